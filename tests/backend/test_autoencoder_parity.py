"""The autoencoder in both frameworks: the same numbers as the reference, and as diffusers."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.random import Stream
from diffusion_core.convert.autoencoder import export_autoencoder, import_autoencoder
from diffusion_core.model.latents import LatentCodec
from diffusion_core.networks.autoencoder import AutoencoderSpec
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import relative

pytestmark = pytest.mark.backend

SPEC = AutoencoderSpec(channels=(4, 8, 8), latent_channels=3, norm_groups=2, blocks_per_level=1)


@pytest.mark.parametrize("precision, allowed", [("float64", 1e-12), ("float32", 1e-5)])
def test_encoder_and_decoder_agree_with_the_reference(open_backend, precision, allowed):
    backend = open_backend(precision)
    for program, channels in ((SPEC.encoder, 3), (SPEC.decoder, 3)):
        weights = cases.scattered_weights(program, 0.7)
        rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
        x = Stream(0, "x").normal(np.arange(2), (8, 12, channels)).astype(backend.config.host_dtype)
        inputs = x, np.zeros(2), np.zeros(2, np.int32)
        got = backend.network(program, weights).forward(*inputs)
        assert relative(got, reference.forward(program, rounded, *inputs)) <= allowed


@pytest.mark.parametrize("options", [
    {"block_out_channels": (8, 16), "layers_per_block": 2, "norm_num_groups": 4, "shift_factor": 0.1},
    {"block_out_channels": (8,), "norm_num_groups": 2, "use_quant_conv": False, "use_post_quant_conv": False,
     "mid_block_add_attention": False, "latent_channels": 16, "scaling_factor": 0.36},
    {"block_out_channels": (4, 8, 8), "norm_num_groups": 2, "in_channels": 1, "out_channels": 2},
])  # fmt: skip
def test_an_autoencoder_of_diffusers_is_the_same_function_and_returns_unchanged(open_backend, tmp_path, options):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    levels = len(options["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    theirs = diffusers.AutoencoderKL(**options, **blocks).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    autoencoder = import_autoencoder(tmp_path / "theirs", dict)
    codec = LatentCodec(autoencoder, open_backend("float64"))
    images = Stream(1, "images").normal(np.arange(2), (8, 16, options.get("in_channels", 3)))
    with torch.no_grad():
        posterior = theirs.encode(torch.tensor(images).permute(0, 3, 1, 2)).latent_dist
        decoded = theirs.decode(posterior.mean).sample.permute(0, 2, 3, 1).numpy()
    mean, std = codec.moments(images)
    for got, wanted in ((mean, posterior.mean), (std, posterior.std)):
        np.testing.assert_allclose(got, wanted.permute(0, 2, 3, 1).numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(codec.decode(codec.encode(images)), decoded, rtol=1e-12, atol=1e-12)
    (tmp_path / "ours").mkdir()
    for name, content in export_autoencoder(autoencoder).items():
        (tmp_path / "ours" / name).write_bytes(content)
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", torch_dtype=torch.float64)
    assert all(
        torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert theirs.config.scaling_factor == again.config.scaling_factor

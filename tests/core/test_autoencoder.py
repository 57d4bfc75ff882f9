"""The autoencoder of latent diffusion: its counts, its latents, and what of a folder of diffusers is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.numpy_backend import NumpyBackend
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.convert import import_weights
from diffusion_core.convert.autoencoder import export_autoencoder, import_autoencoder
from diffusion_core.model.latents import LatentCodec
from diffusion_core.networks.autoencoder import Autoencoder, AutoencoderSpec, moments
from diffusion_core.networks.weights import parameter_count
from diffusion_core.parity import cases

TINY = AutoencoderSpec(
    in_channels=1, out_channels=1, latent_channels=2, channels=(4, 8), norm_groups=2, scaling_factor=0.7,
    shift_factor=0.1, image_size=8,
)  # fmt: skip


TINY4 = replace(TINY, latent_channels=4)


def made(spec: AutoencoderSpec = TINY) -> Autoencoder:
    return Autoencoder(spec, *(cases.scattered_weights(program, 0.5) for program in (spec.encoder, spec.decoder)))


def write(folder, autoencoder: Autoencoder, **entries):
    files = export_autoencoder(autoencoder)
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | entries).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("options, count", [
    ({"channels": (128, 256, 512, 512), "blocks_per_level": 2}, 83_653_863),  # sd-vae-ft
    ({"channels": (128, 256, 512, 512), "blocks_per_level": 2, "latent_channels": 16, "quant_conv": False,
      "post_quant_conv": False}, 83_819_683),  # the 16 channels of later models
])  # fmt: skip
def test_published_autoencoders_have_their_number_of_parameters(options, count):
    spec = AutoencoderSpec(**options)
    assert parameter_count(spec.encoder) + parameter_count(spec.decoder) == count


def test_an_exported_folder_is_read_back(tmp_path):
    autoencoder = made()
    for path in (write(tmp_path / "a", autoencoder), write(tmp_path / "pipeline" / "vae", autoencoder).parent):
        again = import_autoencoder(path, dict)
        assert again.spec == TINY and again.sha256 == autoencoder.sha256
    other = made(replace(TINY, quant_conv=False))
    assert other.sha256 != autoencoder.sha256


def edm2_latents(raw: np.ndarray) -> np.ndarray:
    """Return EDM2's latents of the raw ones, in its own order of operations."""
    scale = 0.5 / np.array([4.17, 4.62, 3.71, 3.28])
    return raw * scale - np.array([5.81, 3.25, 0.12, -2.15]) * scale


def test_the_latents_of_edm2_have_its_mean_and_deviation_of_each_channel(tmp_path):
    autoencoder = made(TINY4).scaled("edm2")
    spec = autoencoder.spec
    again = import_autoencoder(write(tmp_path / "a", autoencoder), dict)
    assert again.spec == spec and again.sha256 == made(TINY4).sha256
    z = np.random.default_rng(0).normal(3, 4, (2, 3, 3, 4))
    np.testing.assert_allclose(spec.to_latents(z), edm2_latents(z), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(spec.from_latents(spec.to_latents(z)), z, rtol=1e-12)
    # It gives its autoencoder images in [0, 1], and takes such images from it.
    codec, plain = LatentCodec(autoencoder, NumpyBackend()), LatentCodec(made(TINY4), NumpyBackend())
    images = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 1)).astype(np.uint8)
    mean, std = plain.moments(images / 255.0)
    found = codec.posterior(images / 127.5 - 1)
    np.testing.assert_allclose(found[0], edm2_latents(mean), rtol=1e-10)
    np.testing.assert_allclose(found[1], edm2_latents(std) - edm2_latents(0 * std), rtol=1e-10)
    decoded = plain.decode(plain.autoencoder.spec.to_latents(z))
    np.testing.assert_allclose(codec.decode(edm2_latents(z)), 2 * decoded - 1, rtol=1e-10, atol=1e-12)


def test_a_scaling_of_other_channels_is_refused():
    with pytest.raises(DuetError, match="latents have 4 channels, but those of this autoencoder have 2; use autoenc"):
        made().scaled("edm2")
    with pytest.raises(DuetError, match=r"latents\.scaling: .edm. was given"):
        made().scaled("edm")


def test_log_variances_are_bounded():
    mean, std = moments(np.array([[3.0, -100.0], [4.0, 100.0]])[:, None, None])
    np.testing.assert_allclose(std.ravel(), np.exp([-15.0, 10.0]))
    np.testing.assert_array_equal(mean.ravel(), [3.0, 4.0])


def test_latents_are_scaled_moments_and_decode_to_what_the_decoder_makes_of_them():
    autoencoder, images = made(), Stream(0, "images").normal(np.arange(3), (8, 8, 1))
    codec = LatentCodec(autoencoder, NumpyBackend(), batch=2)
    none = np.zeros(3), np.zeros(3, np.int32)
    output = reference.forward(TINY.encoder, autoencoder.encoder, images, *none)
    mean, std = moments(output)
    latents = codec.encode(images)
    assert latents.shape == (3, *TINY.latent_shape(8, 8)) == (3, 4, 4, 2)
    np.testing.assert_allclose(latents, 0.7 * (mean - 0.1), rtol=1e-12, atol=1e-12)
    drawn = codec.encode(images, seed=4, index=np.array([5, 6, 7]))
    eps = Stream(4, "latents/sample").normal(np.array([5, 6, 7]), mean.shape[1:])
    np.testing.assert_allclose(drawn - latents, 0.7 * std * eps, rtol=1e-9, atol=1e-12)
    wanted = reference.forward(TINY.decoder, autoencoder.decoder, mean, *none)
    np.testing.assert_allclose(codec.decode(latents), wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(DuetError, match="7 x 8 pixels were given; it makes one pixel of 2 x 2"):
        codec.encode(images[:, :7])


def test_the_halving_convolution_pads_below_and_right_only():
    node = next(node for node in TINY.encoder.nodes if node.name == "down.0.conv")
    assert (node.block.stride, node.block.padding) == (2, (0, 1, 0, 1))


REFUSED = {
    "another class": ({"_class_name": "VQModel"}, "it is a VQModel"),
    "another activation": ({"act_fn": "gelu"}, "act_fn is 'gelu'; Duet has 'silu' only"),
    "a mean alone": ({"latents_mean": [0.0, 0.0], "shift_factor": None}, "latents_std: .* as latents_mean is"),
    "a mean of other channels": (
        {"latents_mean": [0.0], "latents_std": [1.0], "shift_factor": None}, "each of the 2 channels of a latent",
    ),
    "a deviation of 0": ({"latents_mean": [0.0, 0.0], "latents_std": [1.0, 0.0], "shift_factor": None}, "positive"),
    "a mean and a shift": ({"latents_mean": [0.0, 0.0], "latents_std": [1.0, 1.0]}, "which takes its place"),
    "no range": ({"image_range": [1.0, 0.0]}, "two rising numbers"),
    "another block": ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "must be DownEncoderBlock2D for each of 2"),
    "an unknown entry": ({"use_magic": True}, "use_magic is an unknown entry"),
    "groups that do not divide": ({"norm_num_groups": 3}, "multiple of the 3 groups"),
    "no scale": ({"scaling_factor": 0.0}, "autoencoder.scaling_factor: 0.0"),
    "a text": ({"latent_channels": "two"}, "wrong type"),
    "other weights": ({"latent_channels": 3}, "shape"),
    "a missing level": ({"block_out_channels": [4], "down_block_types": ["DownEncoderBlock2D"],
                         "up_block_types": ["UpDecoderBlock2D"]}, "no part of this AutoencoderKL"),
}  # fmt: skip


@pytest.mark.parametrize("entries, message", REFUSED.values(), ids=REFUSED)
def test_what_duet_cannot_express_is_refused(tmp_path, entries, message):
    with pytest.raises(DuetError, match=message):
        import_autoencoder(write(tmp_path / "a", made(), **entries), dict)


def test_a_folder_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(DuetError, match="must be the folder of an AutoencoderKL"):
        import_autoencoder(tmp_path, dict)


def test_an_autoencoder_is_no_network_to_import(tmp_path):
    with pytest.raises(DuetError, match="is an AutoencoderKL, which is no diffusion model"):
        import_weights("diffusers", write(tmp_path / "vae", made()), dict, None, {})

"""Imported weights compute what their own networks compute; PyTorch's environment owns these formats.

diffusers' UNet2DModel is the public implementation; guided-diffusion and EDM have oracles in `torch_oracles.py`.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.convert import Imported, diffusers_process, export_pipeline, export_state_dict, import_weights
from diffusion_core.convert.arrays import read_config
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import initial_weights, parameter_count
from diffusion_core.sampling import make_plan

T = np.array([3, 700])
LABELS = np.array([0, 2])
IMAGES = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)

TIMESTEP_SAMPLERS = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
DIFFUSERS = {
    "as DDPM": TIMESTEP_SAMPLERS
    | {
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
    },
    "as ADM": TIMESTEP_SAMPLERS
    | {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "attention_head_dim": 8,
        "num_class_embeds": 3,
        "out_channels": 6,
    },
    "three levels with the defaults": {
        "sample_size": [8, 8],
        "block_out_channels": (8, 24, 16),
        "norm_num_groups": 8,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "UNetResAttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "widths of no common measure": TIMESTEP_SAMPLERS | {"block_out_channels": (24, 32), "attention_head_dim": 8},
    "groups of the middle": TIMESTEP_SAMPLERS | {"attn_norm_num_groups": 8, "mid_block_scale_factor": 1.4142135},
    "no norm in the middle, Mish": TIMESTEP_SAMPLERS
    | {"resnet_time_scale_shift": "scale_shift", "time_embedding_dim": 24, "act_fn": "mish"},
    "no middle, GELU": TIMESTEP_SAMPLERS | {"mid_block_type": None, "act_fn": "gelu", "freq_shift": 1},
    "ReLU, attention in the encoder alone": TIMESTEP_SAMPLERS
    | {"act_fn": "relu", "up_block_types": ("UpBlock2D", "UpBlock2D"), "num_class_embeds": 3},
    "attention in the decoder alone, padding": TIMESTEP_SAMPLERS
    | {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "downsample_padding": 0,
    },
    "three levels that resample in different ways": {
        "sample_size": 8,
        "block_out_channels": (8, 12, 20),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "upsample_type": "resnet",
    },
    "without attention": TIMESTEP_SAMPLERS
    | {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False},
}


def load(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def oracles() -> ModuleType:
    return load("torch_oracles")


def unet(oracles: ModuleType, **options: Any) -> Any:
    from diffusers import UNet2DModel

    return oracles.randomised(UNet2DModel(**options))


def theirs(net: Any, *inputs: Any) -> NDArray:
    """The output of a PyTorch network for images b h w c."""
    import torch

    with torch.no_grad():
        x, *rest = (torch.from_numpy(np.asarray(value)) for value in inputs)
        output = net(x.permute(0, 3, 1, 2), *rest)
        return getattr(output, "sample", output).permute(0, 2, 3, 1).numpy()


def as_diffusers(net: Any, x: NDArray = IMAGES, t: NDArray = T) -> NDArray:
    return theirs(net, x, t, *([LABELS] if net.config.num_class_embeds else []))


def waves(config: Any, t: Any) -> Any:
    """The sines and cosines of diffusers' `Timesteps` in float64."""
    import torch

    half = config.block_out_channels[0] // 2
    angles = t.double()[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - config.freq_shift))
    pair = (angles.cos(), angles.sin()) if config.flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(pair, dim=-1)


def never(path: Path) -> dict[str, NDArray]:
    raise AssertionError(f"{path} was given to a framework")


def check(open_backend: Any, found: Imported, expected: NDArray, c_noise: NDArray, **features: NDArray) -> None:
    """The reference and the backend's network, with the imported weights, against the network they are of."""
    assert np.abs(expected).max() > 0.5, "an output of unit scale"
    program, rest = found.model.program, (IMAGES, c_noise, LABELS, *features.values())
    np.testing.assert_allclose(reference.forward(program, found.weights, *rest), expected, rtol=0, atol=1e-5)
    network = open_backend("float32").network(program, found.weights)
    np.testing.assert_allclose(network.forward(*rest), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_a_unet_of_diffusers_computes_the_same(name, tmp_path, open_backend, oracles):
    net = unet(oracles, **DIFFUSERS[name])
    net.save_pretrained(tmp_path)
    found = import_weights("diffusers", tmp_path, never, None, {})
    assert parameter_count(found.model.program) == sum(p.numel() for p in net.parameters())
    check(open_backend, found, as_diffusers(net), T)
    net.time_proj.forward = partial(waves, net.config)  # its own are float32
    exact = as_diffusers(net.double(), IMAGES.astype(float))
    ours = reference.forward(found.model.program, found.weights, IMAGES, T, LABELS)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_an_exported_unet_has_the_same_bits_and_outputs(name, tmp_path, oracles):
    from diffusers import DDPMPipeline, UNet2DModel

    net = unet(oracles, **DIFFUSERS[name])
    net.save_pretrained(tmp_path / "there")
    found = import_weights("diffusers", tmp_path / "there", never, None, {})
    write(tmp_path / "back", export_pipeline(found.model, found.weights))
    again = UNet2DModel.from_pretrained(tmp_path / "back", subfolder="unet").eval()
    for (name, given), (same, got) in zip(net.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == same
        np.testing.assert_array_equal(got.numpy(), given.numpy())
    np.testing.assert_array_equal(as_diffusers(again), as_diffusers(net))
    assert type(DDPMPipeline.from_pretrained(tmp_path / "back")).__name__ == "DDPMPipeline"


def test_weights_with_the_names_of_2022_and_bin_files_are_read(tmp_path, open_backend, oracles):
    import torch

    net = unet(oracles, **DIFFUSERS["as DDPM"])
    net.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = net.state_dict()
    for now, then in former.items():
        state = {name.replace(f".{now}.", f".{then}."): value for name, value in state.items()}
    assert sum("query" in name for name in state) == 8
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    found = import_weights("diffusers", tmp_path, open_backend("float32").read_arrays, None, {})
    check(open_backend, found, as_diffusers(net), T)


@pytest.mark.parametrize("name", ["as DDPM", "as ADM"])
def test_the_oracle_of_diffusers_computes_what_diffusers_computes(name):
    """With it the other environment, which has no diffusers, holds its imports to it."""
    import torch
    from diffusers import UNet2DModel

    oracle = load("diffusers_oracle")
    config = oracle.CONFIGS[name]
    arrays = oracle.arrays_of(config)
    net = UNet2DModel(**{key: value for key, value in config.items() if key != "_class_name"}).eval()
    net.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    expected = oracle.forward(config, arrays, IMAGES, T, LABELS)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(as_diffusers(net), expected, rtol=0, atol=5e-6)
    # Its waves of the time are float32 in float64 too. Measured: 1.3e-7.
    np.testing.assert_allclose(as_diffusers(net.double(), IMAGES.astype(float)), expected, rtol=0, atol=1e-6)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("schedule, prediction", [
    ({"name": "linear", "T": 1000}, "eps"),
    ({"name": "scaled_linear", "T": 100}, "x0"),
    ({"name": "cosine", "T": 1000}, "v"),
    ({"name": "sigmoid", "T": 100}, "v"),
], ids=lambda value: value if isinstance(value, str) else value["name"])  # fmt: skip
def test_an_exported_pipeline_gives_the_same_samples(schedule, prediction, variance, tmp_path, oracles, monkeypatch):
    """The pipeline draws each noise from one generator, in order; the plan is given what it drew."""
    import torch
    from diffusers import DDPMPipeline

    spec = UNetSpec(8, 1, 1, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1,
                    attention_resolutions=(4,), heads=2, qkv_bias=False, norm_groups=4, zero_init=False)  # fmt: skip
    model = DiffusionModel(spec, schedule, prediction)
    weights = initial_weights(model.program, 0, np.float32)
    write(tmp_path, export_pipeline(model, weights, variance))
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    steps, drawn = 10, torch.Generator().manual_seed(1)
    noises = [torch.randn((2, 1, 8, 8), generator=drawn).permute(0, 2, 3, 1).numpy() for _ in range(steps)]
    given = pipeline(2, torch.Generator().manual_seed(1), steps, output_type="np").images
    plan = make_plan(model.process, "ddpm", steps=steps, variance=variance)
    ours = reference.sample(model.program, weights, plan, noises[0], np.zeros(2, int), lambda row: noises[row + 1])
    # Its tables are float32. Measured: at most 8e-6.
    np.testing.assert_allclose(np.clip(ours / 2 + 0.5, 0, 1), given, rtol=0, atol=5e-5)
    assert np.std(given) > 0.1


def test_the_scheduler_of_a_pipeline_becomes_the_process(tmp_path, oracles):
    from diffusers import DDPMPipeline, DDPMScheduler

    net = unet(oracles, **DIFFUSERS["as DDPM"])
    scheduler = DDPMScheduler(200, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(net, scheduler).save_pretrained(tmp_path)
    model = import_weights("diffusers", tmp_path, never, None, {}).model
    assert (model.schedule, model.prediction) == ({"name": "cosine", "T": 200}, "v")
    # Its cumulative product is float32.
    np.testing.assert_allclose(model.process.schedule.alpha**2, scheduler.alphas_cumprod, rtol=0, atol=1e-6)
    given = {"schedule": {"name": "linear", "T": 50}, "prediction": "x0"}
    model = import_weights("diffusers", tmp_path, never, given, {}).model
    assert (model.process.schedule.steps, model.prediction) == (50, "x0")


OTHER_BETAS = {
    "num_train_timesteps": 50, "beta_schedule": "scaled_linear", "beta_start": 1e-3, "prediction_type": "sample",
}  # fmt: skip
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
SCHEDULERS = [
    *((name, {}) for name in diffusers_process._SCHEDULERS),
    *((name, OTHER_BETAS) for name in diffusers_process._SCHEDULERS),
    *((name, ZERO_SNR) for name in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "TCDScheduler")),
    ("DDPMScheduler", {"trained_betas": [0.01, 0.1, 0.3]}), ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of theirs
@pytest.mark.parametrize("name, options", SCHEDULERS)
def test_the_process_of_an_imported_scheduler_is_that_of_diffusers(name, options, tmp_path):
    import diffusers as public

    if name == "DPMSolverSDEScheduler":
        pytest.skip("it needs another package")
    kind = getattr(public, name)
    options = {key: value for key, value in options.items() if key in inspect.signature(kind).parameters}
    scheduler = kind(**options)
    scheduler.save_config(tmp_path)
    file = tmp_path / "scheduler_config.json"
    written = json.loads(file.read_text())
    short = {key: written[key] for key in ("_class_name", *options)}
    for config in (written, short):
        file.write_text(json.dumps(config))
        process = diffusers_process.read_process(read_config(file), str(file))
        model = DiffusionModel(UNetSpec(8), **process)
        np.testing.assert_allclose(model.process.schedule.alpha**2, scheduler.alphas_cumprod, rtol=0, atol=1e-6)
        prediction = scheduler.config.get("prediction_type", "epsilon")
        assert model.prediction == diffusers_process.PREDICTIONS[prediction]


GUIDED = {
    "improved": {"attends": (False, True), "resample": "conv", "heads": 4, "head_channels": None},
    "ADM": {"attends": (True, True), "resample": "block", "heads": None, "head_channels": 4, "classes": 3},
    "new order": {"attends": (False, True), "resample": "block", "heads": 2, "head_channels": None, "new_order": True},
    "pooling": {"attends": (True, False), "resample": "pool", "heads": 2, "head_channels": None, "scale_shift": False},
}


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
@pytest.mark.parametrize("name", GUIDED)
def test_a_state_dict_of_guided_diffusion_computes_the_same(name, suffix, tmp_path, open_backend, oracles):
    options = {"classes": 0, "new_order": False, "scale_shift": True} | GUIDED[name]
    net = oracles.randomised(
        oracles.GuidedUNet(channels=8, channel_multipliers=(1, 2), blocks=2, groups=4, out_channels=6, **options)
    )
    path = saved(net, tmp_path / f"model{suffix}")
    found = import_weights("guided_diffusion", path, open_backend("float32").read_arrays, None, {
        "image_size": 8,
        "heads": options["heads"],
        "head_channels": options["head_channels"],
        "norm_groups": 4,
        "qkv_order": "qkv" if options["new_order"] else "heads",
    })  # fmt: skip
    assert found.model.spec.num_classes == options["classes"]
    check(open_backend, found, theirs(net, IMAGES, T, LABELS), T)
    exact = reference.forward(found.model.program, found.weights, IMAGES, T, LABELS)
    np.testing.assert_allclose(exact, theirs(net.double(), IMAGES.astype(np.float64), T, LABELS), rtol=0, atol=1e-12)


def saved(net: Any, path: Path, prefix: str = "") -> Path:
    import torch

    state = {prefix + name: value for name, value in net.state_dict().items()}
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    return path


EDM = {
    "DDPM++": {"song": True, "augment": 9},
    "DDPM++ with classes": {"song": True, "classes": 3},
    "NCSN++": {"song": True, "augment": 9, "taps": (1, 3, 3, 1), "fourier": True, "residual": True},
    "ADM": {"song": False, "classes": 3, "head_channels": 8},
    "ADM with augmentation": {"song": False, "augment": 2, "head_channels": 4},
}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", EDM)
def test_a_state_dict_of_edm_computes_the_same(name, prefix, tmp_path, open_backend, oracles):
    options = EDM[name]
    # Two blocks of the wide level have other widths than the narrow one's, and groups of 4 channels differ too.
    net = oracles.randomised(oracles.EdmUNet(8, 8, (1, 2, 2), 2, (4,), **options))
    path = saved(net, tmp_path / "model.pt", prefix)
    given = {"head_channels": options["head_channels"]} if "head_channels" in options else {}
    found = import_weights("edm", path, open_backend("float32").read_arrays, None, given)
    classes, augment = options.get("classes", 0), options.get("augment", 0)
    c_noise = np.array([-0.7, 0.4])
    features = np.random.default_rng(1).standard_normal((2, augment))
    one_hot = np.eye(classes)[LABELS] if classes else np.zeros((2, 0))

    def expected(kind: type, one_hot: NDArray) -> NDArray:
        return theirs(net.to(kind), IMAGES.astype(one_hot.dtype), c_noise, one_hot, features.astype(one_hot.dtype))

    import torch

    check(open_backend, found, expected(torch.float32, one_hot.astype(np.float32)), c_noise, features=features)
    for label, row in ((LABELS, one_hot), (np.full(2, classes), 0 * one_hot)):
        exact = reference.forward(found.model.program, found.weights, IMAGES, c_noise, label, features)
        np.testing.assert_allclose(exact, expected(torch.float64, row), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", EDM)
def test_an_exported_state_dict_of_edm_has_every_array_of_the_network(name, tmp_path, open_backend, oracles):
    """The filters too, which are constants, so that it can be loaded strictly."""
    options = EDM[name]
    net = oracles.randomised(oracles.EdmUNet(8, 8, (1, 2, 2), 2, (4,), **options))
    given = {"head_channels": options["head_channels"]} if "head_channels" in options else {}
    found = import_weights("edm", saved(net, tmp_path / "a.pt"), open_backend("float32").read_arrays, None, given)
    arrays = export_state_dict(found.model, found.weights, "edm")
    state = net.state_dict()
    assert arrays.keys() == state.keys()
    for array, value in state.items():
        np.testing.assert_allclose(arrays[array], value.numpy(), rtol=0, atol=1e-6, err_msg=array)
        assert arrays[array].dtype == np.float32


def test_a_state_dict_with_code_is_refused(tmp_path, open_backend):
    import torch

    from diffusion_core.common.errors import DuetError

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    read = open_backend("float32").read_arrays
    for content, words in (
        ({"a": Code()}, "it holds no tensors"),
        ([1], "it holds no tensors; a state dict is a mapping of names"),
        ({"a": 1}, "it holds no tensors"),
    ):
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(DuetError, match=words):
            import_weights("edm", tmp_path / "model.pt", read, None, {})
    # The format before PyTorch 1.6 is read by PyTorch itself.
    torch.save({"a": Code()}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DuetError, match=r"it holds objects that run code when they are read \(\S+\); if you"):
        import_weights("edm", tmp_path / "model.pt", read, None, {})
    (tmp_path / "model.pt").write_bytes(b"garbage")
    with pytest.raises(DuetError, match=r"model.pt: this is not a PyTorch state dict"):
        import_weights("edm", tmp_path / "model.pt", read, None, {})
    assert not (tmp_path / "ran").exists()


def test_nested_state_dicts_in_narrow_types_are_read(tmp_path, open_backend, oracles):
    """Lists as in the checkpoints of DDPM, and mappings as in those of SDE, with other things beside the weights."""
    import torch

    net = oracles.randomised(oracles.EdmUNet(8, 8, (1, 2), 1, (4,), song=True, augment=0))
    read = open_backend("float32").read_arrays
    plain = {name: value.bfloat16() for name, value in net.state_dict().items()}
    more = {name: value * 2 for name, value in plain.items()}
    optimizer = torch.optim.Adam(net.parameters()).state_dict()
    for content, key in (
        ({"epoch": 3, "state_dict": plain, "optimizer_states": [optimizer], "hyper_parameters": None}, None),
        ([{f"module.{name}": value for name, value in plain.items()}, optimizer, 3, 1000, more], "0"),
        ({"step": 5, "model": plain, "ema": {"decay": 0.9, "shadow_params": list(more.values())}}, None),
        ({"model": plain, "ema": {"shadow_params": [more[name] for name, _ in net.named_parameters()]}}, None),
    ):
        torch.save(content, tmp_path / "model.pt")
        found = import_weights("edm", tmp_path / "model.pt", read, None, {} if key is None else {"key": key})
        expected = plain["enc.8x8_conv.weight"].float().numpy()
        np.testing.assert_array_equal(found.weights["conv_in.weight"], expected)
        factor = 2 if "ema" in content else 1
        np.testing.assert_array_equal(found.ema["conv_in.weight"], factor * expected)


def of_ddpm(oracles: ModuleType) -> Any:
    """diffusers' own class with the options of DDPM for CIFAR-10."""
    return unet(
        oracles, sample_size=32, block_out_channels=(128, 256, 256, 256), attention_head_dim=None, norm_eps=1e-6,
        freq_shift=1, flip_sin_to_cos=False, downsample_padding=0,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def improved(oracles: ModuleType) -> Any:
    """improved-diffusion's for CIFAR-10."""
    return oracles.randomised(oracles.GuidedUNet(
        128, (1, 2, 2, 2), 3, (False, True, True, False), "conv", True, 6, 0, 32, False, 4, None
    ))  # fmt: skip


def of_edm(oracles: ModuleType, **options: Any) -> Any:
    """EDM's for CIFAR-10."""
    return oracles.randomised(oracles.EdmUNet(32, 128, (2, 2, 2), 4, (16,), song=True, augment=9, **options))


FULL_SIZE = {
    "ddpm_cifar10": ("diffusers", 35_746_307, of_ddpm, {}),
    "improved_32": ("guided_diffusion", 52_546_438, improved, {"image_size": 32, "heads": 4, "qkv_order": "heads"}),
    "ddpmpp_32": ("edm", 55_733_891, of_edm, {}),
    "ncsnpp_32": (
        "edm", 56_397_827, partial(of_edm, taps=(1, 3, 3, 1), fourier=True, residual=True), {},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_an_imported_network_at_full_size_computes_the_same(name, tmp_path, open_backend, oracles):
    import torch

    source, parameters, make, options = FULL_SIZE[name]
    net, path = make(oracles), tmp_path
    if source == "diffusers":
        net.save_pretrained(path)
    else:
        path = saved(net, tmp_path / "model.pt")
    found = import_weights(source, path, open_backend("float32").read_arrays, None, options)
    assert parameter_count(found.model.program) == sum(p.numel() for p in net.parameters()) == parameters
    x, level, nothing = np.random.default_rng(0).standard_normal((1, 32, 32, 3)), np.array([0.4]), np.zeros((1, 0))
    t, label, features = T[:1], LABELS[:1], np.zeros((1, found.model.program.features))
    # A float64 network of diffusers computes its time embedding in float32 all the same.
    for precision, atol in (("float32", 1e-5), ("float64", 1e-7 if source == "diffusers" else 1e-12)):
        dtype = np.dtype(precision)
        given, at = x.astype(dtype), (level if source == "edm" else t)
        rest = {"diffusers": (), "guided_diffusion": (label,), "edm": (nothing, features.astype(dtype))}[source]
        expected = theirs(net.to(getattr(torch, precision)), given, at, *rest)
        network = open_backend(precision).network(found.model.program, found.weights)
        ours = network.forward(given, at, label, features.astype(dtype))
        print(f"{name}, {precision}: {np.abs(ours - expected).max():.1e} of {np.abs(expected).max():.1f}")
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)

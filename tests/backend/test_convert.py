"""Weights in a framework's own files, and what the original DDPM and diffusers compute, in both environments."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import ddpm_tf, import_weights
from diffusion_core.convert.names import write_weights
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.networks.weights import initial_weights

pytestmark = pytest.mark.backend

Arrays = dict[str, NDArray]

SPEC = UNetSpec(8, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1, attention_resolutions=(4,),
                norm_groups=4, down_padding=(0, 1), zero_init=False)  # fmt: skip
AVERAGE = "/ExponentialMovingAverage"


def variables(seed: int) -> Arrays:
    """Return the variables of an original DDPM, with random norms."""
    program = lower(SPEC)
    weights = {name: value + 0.1 for name, value in initial_weights(program, seed, np.float32).items()}
    return write_weights(ddpm_tf.make_name_map(SPEC, program), weights)


def whole_checkpoint() -> Arrays:
    """Return the content of its checkpoint: weights, moving average, optimiser slots and step."""
    arrays, average = variables(0), {name + AVERAGE: value for name, value in variables(1).items()}
    slots = {f"{name}/{slot}": value for name, value in arrays.items() for slot in ("Adam", "Adam_1")}
    return arrays | average | slots | {"global_step": np.int64(5), "beta1_power": np.float32(0.9)}


def _save_torch(folder: Path, arrays: Arrays) -> Path:
    import torch

    path = folder / "model.pt"
    torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}, path)
    return path


def _save_tf(folder: Path, arrays: Arrays) -> Path:
    import tensorflow as tf

    path, names = folder / "model.ckpt-5", list(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(path), tensor_names=names, shape_and_slices=[""] * len(names), tensors=[arrays[n] for n in names]
    )
    return path


SAVE: dict[str, Callable[[Path, Arrays], Path]] = {"torch": _save_torch, "tf": _save_tf}


def test_a_file_of_the_framework_holds_the_arrays_of_the_npz(tmp_path, backend_name, open_backend):
    arrays = whole_checkpoint()
    read = open_backend().read_arrays(SAVE[backend_name](tmp_path, arrays))
    assert read.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == value.dtype


@pytest.mark.parametrize("name", ["nothing.ckpt", "garbage.ckpt"])
def test_an_invalid_file_is_a_one_line_error(name, tmp_path, open_backend):
    (tmp_path / "garbage.ckpt").write_bytes(b"garbage")
    with pytest.raises(DuetError, match=rf"^{tmp_path / name}: (this is not|it cannot be read).*\Z"):
        import_weights("ddpm_tf", tmp_path / name, open_backend().read_arrays, None, {"image_size": 8})


def _conv_torch(x: NDArray, kernel: NDArray, stride: int) -> NDArray:
    import torch
    import torch.nn.functional as F

    # "SAME" pads an even side by nothing in front and one behind where the stride is 2, else by one on both sides.
    before = int(stride == 1 and kernel.shape[0] == 3)
    x, kernel = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(kernel).permute(3, 2, 0, 1)
    x = F.pad(x, (before, int(kernel.shape[-1] == 3)) * 2)
    return F.conv2d(x, kernel, stride=stride).permute(0, 2, 3, 1).numpy()


def _conv_tf(x: NDArray, kernel: NDArray, stride: int) -> NDArray:
    import tensorflow as tf

    return tf.nn.conv2d(x, kernel, stride, "SAME").numpy()


CONV: dict[str, Callable[[NDArray, NDArray, int], NDArray]] = {"torch": _conv_torch, "tf": _conv_tf}


def original(conv: Callable[[NDArray, NDArray, int], NDArray], arrays: Arrays, x: NDArray, t: NDArray) -> NDArray:
    """The network of the paper (appendix B) with two levels, one block per level and attention at the lower one."""

    def dense(name: str, h: NDArray) -> NDArray:
        return h @ arrays[f"model/{name}/W"] + arrays[f"model/{name}/b"]

    def conv3(name: str, h: NDArray, stride: int = 1) -> NDArray:
        return conv(h, arrays[f"model/{name}/W"], stride) + arrays[f"model/{name}/b"]

    def swish(h: NDArray) -> NDArray:
        return h / (1 + np.exp(-h))

    def norm(name: str, h: NDArray) -> NDArray:
        groups = h.reshape(len(h), -1, 4, h.shape[-1] // 4)
        groups = groups - groups.mean(axis=(1, 3), keepdims=True)
        groups = groups / np.sqrt((groups**2).mean(axis=(1, 3), keepdims=True) + 1e-6)
        return groups.reshape(h.shape) * arrays[f"model/{name}/gamma"] + arrays[f"model/{name}/beta"]

    def block(name: str, h: NDArray) -> NDArray:
        x = dense(f"{name}/nin_shortcut", h) if f"model/{name}/nin_shortcut/W" in arrays else h
        h = conv3(f"{name}/conv1", swish(norm(f"{name}/norm1", h)))
        h = h + dense(f"{name}/temb_proj", swish(time))[:, None, None]
        return x + conv3(f"{name}/conv2", swish(norm(f"{name}/norm2", h)))

    def attention(name: str, x: NDArray) -> NDArray:
        h = norm(f"{name}/norm", x)
        q, k, v = (dense(f"{name}/{part}", h).reshape(len(h), -1, h.shape[-1]) for part in "qkv")
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(h.shape[-1]))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
        return x + dense(f"{name}/proj_out", mixed.reshape(h.shape))

    angle = t[:, None] * np.exp(-np.log(10000.0) / 3 * np.arange(4))
    time = dense("temb/dense1", swish(dense("temb/dense0", np.concatenate([np.sin(angle), np.cos(angle)], axis=1))))
    skips = [conv3("conv_in", x)]
    skips.append(block("down_0/block_0", skips[-1]))
    skips.append(conv3("down_0/downsample/conv", skips[-1], stride=2))
    skips.append(attention("down_1/attn_0", block("down_1/block_0", skips[-1])))
    h = block("mid/block_2", attention("mid/attn_1", block("mid/block_1", skips[-1])))
    for i in range(2):
        h = attention(f"up_1/attn_{i}", block(f"up_1/block_{i}", np.concatenate([h, skips.pop()], axis=-1)))
    h = conv3("up_1/upsample/conv", h.repeat(2, axis=1).repeat(2, axis=2))
    for i in range(2):
        h = block(f"up_0/block_{i}", np.concatenate([h, skips.pop()], axis=-1))
    return conv3("conv_out", swish(norm("norm_out", h)))


@pytest.mark.parametrize("precision, atol", [("float32", 1e-5), ("float64", 1e-12)])
def test_the_original_ddpm_computes_the_same(precision, atol, tmp_path, backend_name, open_backend: Any):
    arrays = whole_checkpoint()
    backend = open_backend(precision)
    found = import_weights(
        "ddpm_tf", SAVE[backend_name](tmp_path, arrays), backend.read_arrays, None, {"image_size": 8, "norm_groups": 4}
    )
    x, t = np.random.default_rng(0).standard_normal((2, 8, 8, 3)), np.array([3.0, 700.0])
    for weights, suffix in ((found.weights, ""), (found.ema, AVERAGE)):
        kept = {n.removesuffix(suffix): np.float64(value) for n, value in arrays.items() if n.endswith(suffix)}
        expected = original(CONV[backend_name], kept, x, t)
        assert np.abs(expected).max() > 0.5
        program, label = found.model.program, np.zeros(2, np.int32)
        exact = reference.forward(program, weights, x, t, label)
        np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-12)
        ours = backend.network(program, weights).forward(x.astype(backend.config.host_dtype), t, label)
        print(f"ddpm_tf, {precision}: {np.abs(ours - expected).max():.1e} of {np.abs(expected).max():.1f}")
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def to_torch(arrays: Arrays) -> Arrays:
    """Return the same network under the names of its versions in PyTorch: other words, and the axes of PyTorch."""
    renamed = {}
    for name, array in arrays.items():
        words = name.removeprefix("model/").split("/")
        leaf = {"W": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}[words[-1]]
        words = [w.replace("_", ".") if w.startswith(("down_", "up_")) else w for w in words[:-1]]
        words = [w.replace("_", ".") if words[0] != "mid" and w.startswith(("block_", "attn_")) else w for w in words]
        words = [w.replace("dense", "dense.") for w in words]
        if leaf == "weight" and array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif leaf == "weight" and array.ndim == 2:
            is_conv = words[-1] in ("q", "k", "v", "proj_out", "nin_shortcut")
            array = array.T[:, :, None, None] if is_conv else array.T
        renamed[".".join([*words, leaf])] = array
    return renamed


def test_ddpm_in_pytorch_computes_the_same(tmp_path, backend_name, open_backend: Any):
    """A list as ddim saves it: the model in parallel, the optimiser, the epoch, the step, the moving average."""
    kept = {name: np.float64(value) for name, value in variables(0).items()}
    model, average = to_torch(variables(0)), to_torch(variables(1))
    content = {f"0.module.{name}": value for name, value in model.items()} | {"1.state.0.exp_avg": np.zeros(3)}
    np.savez(tmp_path / "model.npz", **content, **{f"4.{name}": value for name, value in average.items()})
    backend = open_backend("float32")
    options = {"image_size": 8, "norm_groups": 4}
    found = import_weights("ddpm_torch", tmp_path / "model.npz", backend.read_arrays, None, options)
    assert found.note.endswith("read under 0.module, with its moving average under 4; not read: 1")
    x, t, label = np.random.default_rng(0).standard_normal((2, 8, 8, 3)), np.array([3.0, 700.0]), np.zeros(2, np.int32)
    expected = original(CONV[backend_name], kept, x, t)
    np.testing.assert_allclose(
        reference.forward(found.model.program, found.weights, x, t, label), expected, rtol=0, atol=1e-12
    )
    ours = backend.network(found.model.program, found.weights).forward(x.astype(np.float32), t, label)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.ema["conv_in.weight"], average["conv_in.weight"])


@pytest.fixture(scope="module")
def diffusers_oracle() -> ModuleType:
    found = importlib.util.spec_from_file_location("diffusers_oracle", Path(__file__).with_name("diffusers_oracle.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["as DDPM", "as ADM"])
def test_a_unet_of_diffusers_computes_the_same(name, tmp_path, diffusers_oracle, open_backend: Any):
    """The oracle replaces diffusers, which only one environment has."""
    config = diffusers_oracle.CONFIGS[name]
    arrays = diffusers_oracle.arrays_of(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors.save_file(arrays, tmp_path / "diffusion_pytorch_model.safetensors")
    backend = open_backend("float32")
    found = import_weights("diffusers", tmp_path, backend.read_arrays, None, {})
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    t, label = np.array([3.0, 700.0]), np.array([0, 2])
    expected = diffusers_oracle.forward(config, arrays, x, t, label)
    assert np.abs(expected).max() > 0.5
    program = found.model.program
    np.testing.assert_allclose(reference.forward(program, found.weights, x, t, label), expected, rtol=0, atol=1e-12)
    ours = backend.network(program, found.weights).forward(x, t, label)
    print(f"diffusers {name}, float32: {np.abs(ours - expected).max():.1e} of {np.abs(expected).max():.1f}")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)

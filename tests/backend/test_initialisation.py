"""The initial weights of `model.init=torch` and `keras` against the layers of the frameworks themselves."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainerState
from diffusion_core.data import Dataset, Loader
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import DoubleConvSpec, Node, Program, SimpleSpec, lower
from diffusion_core.networks.blocks import Attention, Conv, ConvTranspose, Embedding, Linear
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim.adam import Adam
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective

pytestmark = pytest.mark.backend
ONE = (0, 0, 0, 0)
C = 32
BLOCKS = {
    "linear": Linear(40, 120, True, 1.0),
    "conv": Conv(C, 16, 3, 1, (1, 1, 1, 1), True, 1.0),
    "up": ConvTranspose(C, 8, 4, 2, 1, True, 1.0),
    "table": Embedding(60, 20),
    "qkv": Conv(C, 3 * C, 1, 1, ONE, True, 1.0),
    "attend": Attention(C, 4),
    "proj": Conv(C, C, 1, 1, ONE, True, 1.0),
}
INPUTS = {"attend": ("qkv",), "proj": ("attend",)}


def drawn(init: str) -> dict[str, np.ndarray]:
    nodes = tuple(Node(name, block, INPUTS.get(name, ("x",))) for name, block in BLOCKS.items())
    return initial_weights(Program(nodes, init=init), 0)


def layers_of_torch() -> dict[str, np.ndarray]:
    import torch

    nn = torch.nn
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(C, 4)
    layers = {
        "linear": nn.Linear(40, 120), "conv": nn.Conv2d(C, 16, 3), "up": nn.ConvTranspose2d(C, 8, 4),
        "table": nn.Embedding(60, 20), "proj": attention.out_proj,
    }  # fmt: skip
    arrays = {
        f"{name}.{key}": value.numpy() for name, layer in layers.items() for key, value in layer.state_dict().items()
    }
    qkv = {"weight": attention.in_proj_weight, "bias": attention.in_proj_bias}
    return arrays | {f"qkv.{key}": value.detach().numpy() for key, value in qkv.items()}


def layers_of_keras() -> dict[str, np.ndarray]:
    import keras

    keras.utils.set_random_seed(0)
    attention = keras.layers.MultiHeadAttention(4, C // 4)
    attention.build((None, 9, C), (None, 9, C))
    built = {
        "linear": (keras.layers.Dense(120), (None, 40)), "conv": (keras.layers.Conv2D(16, 3), (None, 8, 8, C)),
        "up": (keras.layers.Conv2DTranspose(8, 4), (None, 8, 8, C)), "table": (keras.layers.Embedding(60, 20), None),
    }  # fmt: skip
    arrays = {}
    for name, (layer, shape) in built.items():
        layer.build(shape)
        arrays |= dict(zip((f"{name}.weight", f"{name}.bias"), map(np.asarray, layer.get_weights()), strict=False))
    values = {weight.path.split("/", 1)[1]: np.asarray(weight) for weight in attention.weights}
    for key, kind in (("weight", "kernel"), ("bias", "bias")):
        arrays[f"qkv.{key}"] = np.concatenate([values[f"{name}/{kind}"].ravel() for name in ("query", "key", "value")])
        arrays[f"proj.{key}"] = values[f"attention_output/{kind}"]
    return arrays


FRAMEWORKS = {"torch": ("torch", layers_of_torch), "tf": ("keras", layers_of_keras)}


def test_each_tensor_has_the_distribution_of_the_frameworks_own_layer(backend_name, open_backend):
    """Both are samples of one distribution: equal size, and close maximum and standard deviation."""
    open_backend("float32")  # before anything computes, since it sets the number of threads
    init, layers = FRAMEWORKS[backend_name]
    ours, theirs = drawn(init), layers()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        assert value.size == other.size, name
        if not other.any():
            assert not value.any(), name
            continue
        # Four standard errors of a difference of two standard deviations; a normal's is the larger one.
        assert abs(value.std() / other.std() - 1) < 4 / np.sqrt(value.size), name
        if name != "table.weight" or init == "keras":  # a uniform's limits are sharp
            assert abs(np.abs(value).max() / np.abs(other).max() - 1) < 40 / value.size, name


def test_the_norms_of_the_source_systems_are_those_of_their_framework(backend_name, open_backend):
    """Epsilon and momentum, where Duet's momentum is the weight of the new value."""
    open_backend("float32")
    from commands import composed

    from experiments.config import build

    spec = {name: build.network_spec(composed("train", f"experiment={name}"))
            for name in ("simple", "landscape", "sixteen_step", "double_conv_attention")}  # fmt: skip
    if backend_name == "torch":
        from torch import nn

        assert spec["double_conv_attention"].norm_eps == nn.GroupNorm(1, 4).eps == nn.LayerNorm(4).eps
    else:
        from keras import layers

        norm = layers.BatchNormalization()
        assert spec["simple"].norm_eps == norm.epsilon
        assert spec["simple"].norm_momentum == pytest.approx(1 - norm.momentum, abs=1e-12)
        assert spec["landscape"].norm_eps == layers.GroupNormalization(1).epsilon == layers.LayerNormalization().epsilon
        assert spec["sixteen_step"].norm_eps == layers.LayerNormalization().epsilon


@pytest.mark.parametrize("init", ["keras", "torch"])
def test_a_backend_starts_from_the_bits_of_the_core(init, open_backend):
    program = lower(DoubleConvSpec(8, 1, 1, num_classes=2, channels=4, channel_multipliers=(1, 2), embedding=8,
                                   heads=2, init=init))  # fmt: skip
    weights = initial_weights(program, 3, np.float32)
    trainer = open_backend("float32").trainer(program, TrainerState.fresh(weights), Adam(), "mse")
    for name, value in trainer.state().weights.items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)


def natural_images(count: int, size: int) -> np.ndarray:
    """Return uint8 images with the means and deviations of CIFAR-10's channels and an amplitude spectrum of 1/f."""
    noise = np.random.default_rng(0).standard_normal((count, 3, size, size))
    noise = np.sqrt(0.9) * noise[:, :1] + np.sqrt(0.1) * noise  # the channels of natural images are alike
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = 1 / size
    x = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(size, size)).transpose(0, 2, 3, 1)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.247, 0.243, 0.262])
    return np.clip(np.round(255 * (mean + std * x)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("init, low, high", [("keras", 0.88, 1.0), ("ddpm", 0.88, 1.0), ("torch", 0.798, 0.825)])
def test_the_first_loss_of_the_simple_system(init, low, high, open_backend):
    """PyTorch's start gives a small output, so the loss is about E|eps| = 0.798; that of Keras adds its variance.

    docs/networks.md has the figures of the whole network; the original reports 0.807.
    """
    model = DiffusionModel(SimpleSpec(16, channels=(28, 32, 48), init=init), {"name": "linear", "T": 300}, "eps")
    dataset = Dataset(natural_images(64, 16), np.zeros(64, np.int32), ("any",), "1/f")
    objective = Objective.for_model(model, seed=0, distance="l1")
    batch = make_batch(Loader(dataset, seed=0), objective, 0, 64)
    state = TrainerState.fresh(initial_weights(model.program, 0, np.float32))
    loss, _ = open_backend("float32").trainer(model.program, state, Adam(), "l1").gradients(batch)
    assert low < loss < high

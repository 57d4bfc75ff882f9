"""Exercises about layers: the sinusoidal embedding of t, and group normalisation.

Weights have the axes of PyTorch: a dense layer y = x W^T + b has W with shape (outputs, inputs). Images are b h w c.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.reference import block_function
from diffusion_core.networks import blocks
from duet.exercises.definition import Solution, add, distance, normal

Array = NDArray[np.float64]


def time_embedding(t, dim):
    """Return DDPM's embedding of the timesteps, with shape (B, dim).

        frequency_k = 10000^(-k / (dim/2 - 1)),      k = 0 .. dim/2 - 1
        embedding   = [sin(t frequency_0), sin(t frequency_1), ...  cos(t frequency_0), cos(t frequency_1), ...]

    t has shape (B,), real numbers; dim is an even whole number, at least 4.
    """
    return block_function("embedding", blocks.Sinusoid(dim, 10000.0, dim // 2 - 1, True), {})(np.asarray(t))


def _embedding(
    order: Callable[[Array, Array], Array] = lambda sin, cos: np.concatenate([sin, cos], axis=1),
    exponent: Callable[[Array, int], Array] = lambda k, half: -k / (half - 1),
    base: float = 10000.0,
    unit: float = 1.0,
) -> Solution:
    def solution(t, dim):
        half = dim // 2
        angle = unit * np.asarray(t)[:, None] * base ** exponent(np.arange(half), half)
        return order(np.sin(angle), np.cos(angle))

    return solution


def _interleaved(sin: Array, cos: Array) -> Array:
    return np.stack([sin, cos], axis=2).reshape(len(sin), -1)


add(
    time_embedding,
    title="The sinusoidal embedding of the timestep",
    source="Vaswani et al., 2017, section 3.5, https://arxiv.org/abs/1706.03762, in the form of DDPM's code",
    cases={
        "dim = 8": {"t": np.array([0.0, 1.0, 17.0, 500.0]), "dim": 8},
        "dim = 6": {"t": np.array([3.0, 0.5, 60.0]), "dim": 6},
    },
    laws={
        "At t = 0 every sine is 0 and every cosine 1.": lambda f: float(
            np.abs(f(np.zeros(1), 6) - np.array([[0.0, 0, 0, 1, 1, 1]])).max()
        ),
        "sin^2 + cos^2 = 1 for every frequency.": lambda f: distance(
            f(np.array([2.0, 9.0]), 6)[:, :3] ** 2 + f(np.array([2.0, 9.0]), 6)[:, 3:] ** 2, 1.0
        ),
        "The last frequency is 1/10000: at t = 5000 its sine is sin(1/2).": lambda f: distance(
            f(np.array([5000.0]), 4)[0, 1], np.sin(0.5)
        ),
    },
    mistakes={
        "cosine_first": (
            "The cosines come first, as in the code of guided-diffusion; here the sines do.",
            _embedding(lambda sin, cos: np.concatenate([cos, sin], axis=1)),
        ),
        "interleaved": (
            "Sines and cosines alternate, as in Vaswani et al.; here all sines come before all cosines.",
            _embedding(_interleaved),
            _embedding(_interleaved, lambda k, half: -k / half),
        ),
        "divisor_half": (
            "k is divided by dim/2, as in the code of guided-diffusion; here it is dim/2 - 1.",
            _embedding(exponent=lambda k, half: -k / half),
        ),
        "cosine_first_divisor_half": (
            "This is the embedding of guided-diffusion: cosines first, and k divided by dim/2; here the sines come "
            "first and k is divided by dim/2 - 1.",
            _embedding(lambda sin, cos: np.concatenate([cos, sin], axis=1), lambda k, half: -k / half),
        ),
        "divisor_dim": (
            "k is divided by dim, so the frequencies end at 1/100; it is divided by dim/2 - 1.",
            _embedding(exponent=lambda k, half: -k / (2 * half)),
        ),
        "rising_frequencies": (
            "The sign of the exponent is missing: the frequencies fall from 1 to 1/10000.",
            _embedding(exponent=lambda k, half: k / (half - 1)),
        ),
        "log_forgotten": (
            "The frequencies are exp(-k / (dim/2 - 1)): log(10000) is missing in the exponent.",
            _embedding(base=np.e),
        ),
        "two_pi": ("The angles have a factor 2 pi, that of Fourier features.", _embedding(unit=2 * np.pi)),
        "sine_twice": (
            "Both halves are sines; the second half holds the cosines.",
            _embedding(lambda sin, cos: np.concatenate([sin, sin], axis=1)),
        ),
        "thousandfold": (
            "t is multiplied by 1000, as for times in [0, 1]; these are timesteps.",
            _embedding(unit=1000.0),
        ),
    },
)


def group_norm(x, weight, bias, groups, eps):
    """Return images after group normalisation, with the shape of x.

        y = (x - mean) / sqrt(variance + eps) * weight + bias

    mean and variance are those of each image and each group: over all pixels and the channels of the group, which are
    neighbours. The variance is the mean of the squared differences. x is a batch of images, weight and bias have one
    number for each of the C channels, and groups divides C.
    """
    weights = {"norm.weight": weight, "norm.bias": bias}
    return block_function("norm", blocks.GroupNorm(x.shape[-1], groups, eps), weights)(x)


def normalise(
    axes: Callable[[int], tuple[int, ...]] = lambda n: (1, 2, 4),
    split: str = "g c",
    scale: Callable[[Array, float], Array] = lambda v, eps: np.sqrt(v + eps),
    ddof: int = 0,
    affine: Callable[[Array, Array, Array], Array] = lambda y, w, b: y * w + b,
    centred: bool = True,
    one_group: bool = False,
) -> Solution:
    """Return a normalisation with one thing changed; x is split to b h w g c."""

    def solution(x, weight, bias, groups, eps):
        batch, height, width, channels = x.shape
        groups = 1 if one_group else groups
        size = channels // groups
        if split == "g c":
            parts = x.reshape(batch, height, width, groups, size)
        else:
            parts = x.reshape(batch, height, width, size, groups).swapaxes(3, 4)
        over = axes(groups)
        mean = parts.mean(axis=over, keepdims=True)
        y = (parts - mean if centred else parts) / scale(parts.var(axis=over, keepdims=True, ddof=ddof), eps)
        y = y if split == "g c" else y.swapaxes(3, 4)
        return affine(y.reshape(x.shape), weight, bias)

    return solution


def _of_layout(channel_axis: int) -> Solution:
    """Return the norm of images whose channels are taken from another axis than the last."""

    def solution(x, weight, bias, groups, eps):
        moved = normalise()(np.moveaxis(x, channel_axis, -1), np.ones(1), np.zeros(1), groups, eps)
        like = [1, 1, 1, 1]
        like[channel_axis] = len(weight)
        return np.moveaxis(moved, -1, channel_axis) * weight.reshape(like) + bias.reshape(like)

    return solution


def _norm_case(shape: tuple[int, ...], groups: int, eps: float) -> dict:
    x = 1.5 * normal(f"norm {shape}", *shape) + 0.4 * np.arange(shape[-1])
    return {
        "x": x, "weight": 1 + 0.3 * normal("norm weight", shape[-1]), "bias": normal("norm bias", shape[-1]),
        "groups": groups, "eps": eps,
    }  # fmt: skip


_NORM = _norm_case((2, 2, 3, 4), 2, 1e-5)
_ONES, _ZEROS = np.ones(4), np.zeros(4)

add(
    group_norm,
    title="Group normalisation",
    source="Wu & He, 2018, https://arxiv.org/abs/1803.08494",
    cases={
        "2 images of 4 x 4 pixels and 4 channels in 2 groups, eps = 0.1": _norm_case((2, 4, 4, 4), 2, 0.1),
        "3 images of 2 x 3 pixels and 6 channels in 3 groups, eps = 0.1": _norm_case((3, 2, 3, 6), 3, 0.1),
    },
    images=("x",),
    laws={
        "With weight 1 and bias 0, every group of every image has mean 0.": lambda f: float(
            np.abs(f(_NORM["x"], _ONES, _ZEROS, 2, 1e-6).reshape(2, 6, 2, 2).mean(axis=(1, 3))).max()
        ),
        "With weight 1 and bias 0, every group of every image has variance 1 (for a small eps).": lambda f: distance(
            f(_NORM["x"], _ONES, _ZEROS, 2, 1e-6).reshape(2, 6, 2, 2).var(axis=(1, 3)), 1.0
        ),
        "An image does not depend on the others.": lambda f: distance(
            f(*_NORM.values())[:1], f(_NORM["x"][:1], *list(_NORM.values())[1:])
        ),
    },
    mistakes={
        "channels_first": ("Axis 1 is taken for the channels (b c h w); these images are b h w c.", _of_layout(1)),
        "channels_last": (
            "The last axis is taken for the channels (b h w c); these images are b c h w.",
            _of_layout(2),
        ),
        "eps_outside_the_root": (
            "eps is added to the standard deviation; it belongs under the root, variance + eps.",
            normalise(scale=lambda v, eps: np.sqrt(v) + eps),
        ),
        "eps_forgotten": ("eps is missing.", normalise(scale=lambda v, eps: np.sqrt(v))),
        "eps_fixed": (
            "A fixed eps of 1e-5 is used, a framework's default; eps is an argument.",
            normalise(scale=lambda v, eps: np.sqrt(v + 1e-5)),
        ),
        "unbiased_variance": (
            "The variance is divided by n - 1; here it is the mean of the squared differences, divided by n.",
            normalise(ddof=1),
        ),
        "root_forgotten": (
            "The difference is divided by the variance; it must be its square root.",
            normalise(scale=lambda v, eps: v + eps),
        ),
        "mean_kept": ("The mean is not subtracted.", normalise(centred=False)),
        "layer_norm": (
            "All channels are one group: this is layer normalisation over the image.",
            normalise(one_group=True),
        ),
        "instance_norm": (
            "Every channel is normalised alone: this is instance normalisation.",
            normalise(lambda n: (1, 2)),
        ),
        "batch_norm": (
            "Mean and variance are over the batch too; every image has its own.",
            normalise(lambda n: (0, 1, 2, 4)),
        ),
        "per_channel_over_batch": (
            "Mean and variance are those of each channel over the batch: this is batch normalisation.",
            normalise(lambda n: (0, 1, 2)),
        ),
        "per_pixel": (
            "Every pixel is normalised alone; mean and variance are over all pixels of the image.",
            normalise(lambda n: (4,)),
        ),
        "groups_interleaved": (
            "The channels of a group are not neighbours: reshape the channels to (groups, C/groups), in this order.",
            normalise(split="c g"),
        ),
        "weight_and_bias_exchanged": (
            "weight and bias are exchanged: y * weight + bias.",
            normalise(affine=lambda y, w, b: y * b + w),
        ),
        "weights_over_another_axis": (
            "weight and bias are spread along an axis of pixels; reshape them so that channel i gets weight i.",
            normalise(affine=lambda y, w, b: y * w[:, None] + b[:, None]),
            normalise(affine=lambda y, w, b: y * w[:, None, None] + b[:, None, None]),
        ),
        "affine_forgotten": ("weight and bias are not applied.", normalise(affine=lambda y, w, b: y)),
        "weight_plus_one": (
            "The weight is applied as 1 + weight, as for modulation; here it is the factor itself.",
            normalise(affine=lambda y, w, b: y * (1 + w) + b),
        ),
    },
)

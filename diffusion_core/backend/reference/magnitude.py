"""The reference functions of the magnitude-preserving blocks, see `networks/blocks/magnitude.py`.

Forced normalisation is no part of them: a training pass is given the normalised weights, see
`reference.per_image_losses`.
"""

from __future__ import annotations

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from diffusion_core.backend.reference.table import BLOCK_FUNCTIONS, Array, softmax
from diffusion_core.networks.blocks import magnitude as blocks
from diffusion_core.networks.program import Training
from diffusion_core.optim.normalisation import normalise

__all__: list[str] = []


@BLOCK_FUNCTIONS(blocks.MPFourier)
def _mp_fourier(b: blocks.MPFourier, c_noise: Array, frequencies: Array, phases: Array) -> Array:
    return np.sqrt(2.0) * np.cos(c_noise[:, None] * frequencies + phases)


@BLOCK_FUNCTIONS(blocks.OneHot)
def _one_hot(b: blocks.OneHot, label: NDArray) -> Array:
    return b.scale * (label[:, None] == np.arange(b.count))


def _rows(weight: Array, gain: float | Array, eps: float) -> Array:
    """Return a weight as it is used: rows of size 1, divided by the square root of their length."""
    axes = tuple(range(1, weight.ndim))
    return normalise(weight, axes, eps) * (gain / np.sqrt(weight[0].size))


@BLOCK_FUNCTIONS(blocks.MPLinear)
def _mp_linear(
    b: blocks.MPLinear, x: Array, weight: Array, name: str, training: Training | None, gain: float | Array = 1.0
) -> Array:
    return x @ _rows(weight, gain, b.eps).T


@BLOCK_FUNCTIONS(blocks.MPConv)
def _mp_conv(
    b: blocks.MPConv, x: Array, weight: Array, name: str, training: Training | None, gain: float | Array = 1.0
) -> Array:
    side = b.kernel // 2
    x = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (b.kernel, b.kernel), axis=(1, 2))
    return np.tensordot(windows, _rows(weight, gain, b.eps), axes=((3, 4, 5), (1, 2, 3)))


@BLOCK_FUNCTIONS(blocks.MPSiLU)
def _mp_silu(b: blocks.MPSiLU, x: Array) -> Array:
    return x / (1.0 + np.exp(-x)) / b.divisor


@BLOCK_FUNCTIONS(blocks.MPSum)
def _mp_sum(b: blocks.MPSum, x: Array, y: Array) -> Array:
    first, second = b.factors
    return first * x + second * y


@BLOCK_FUNCTIONS(blocks.MPConcat)
def _mp_concat(b: blocks.MPConcat, x: Array, y: Array) -> Array:
    first, second = b.factors(x.shape[-1], y.shape[-1])
    return np.concatenate([first * x, second * y], axis=-1)


@BLOCK_FUNCTIONS(blocks.MPGate)
def _mp_gate(b: blocks.MPGate, x: Array, vector: Array) -> Array:
    return x * (1.0 + vector[:, None, None, :])


@BLOCK_FUNCTIONS(blocks.PixelNorm)
def _pixel_norm(b: blocks.PixelNorm, x: Array) -> Array:
    return normalise(x, (-1,), b.eps)


@BLOCK_FUNCTIONS(blocks.MPAttention)
def _mp_attention(b: blocks.MPAttention, qkv: Array) -> Array:
    q, k, v = normalise(rearrange(qkv, "b h w (n d three) -> three b n (h w) d", three=3, n=b.heads), (-1,), b.eps)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(b.size)
    mixed = softmax(logits, -1) @ v
    return rearrange(mixed, "b n (h w) d -> b h w (n d)", h=qkv.shape[1])


@BLOCK_FUNCTIONS(blocks.WithConstant)
def _with_constant(b: blocks.WithConstant, x: Array) -> Array:
    return np.concatenate([x, np.full_like(x[..., :1], b.value)], axis=-1)


@BLOCK_FUNCTIONS(blocks.Clip)
def _clip(b: blocks.Clip, x: Array) -> Array:
    return np.clip(x, -b.bound, b.bound)

"""What each block kind of `networks/blocks` computes, one function per kind, and what an own network computes.

The functions of `networks/blocks/tokens.py` and `networks/blocks/magnitude.py` are in files of the same names.
"""

from __future__ import annotations

import math

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from diffusion_core.backend.reference.table import BLOCK_FUNCTIONS, Array, softmax
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import random_words
from diffusion_core.networks import blocks
from diffusion_core.networks.own import Own
from diffusion_core.networks.program import Training

__all__ = []


@BLOCK_FUNCTIONS(blocks.Sinusoid)
def _sinusoid(b: blocks.Sinusoid, c_noise: Array) -> Array:
    angle = c_noise[:, None] * np.array(b.frequencies())
    parts = (np.sin(angle), np.cos(angle)) if b.sin_first else (np.cos(angle), np.sin(angle))
    return np.concatenate(parts, axis=-1)


@BLOCK_FUNCTIONS(blocks.Fourier)
def _fourier(b: blocks.Fourier, c_noise: Array, frequencies: Array) -> Array:
    angle = 2.0 * np.pi * c_noise[:, None] * frequencies
    parts = (np.sin(angle), np.cos(angle)) if b.sin_first else (np.cos(angle), np.sin(angle))
    return np.concatenate(parts, axis=-1)


@BLOCK_FUNCTIONS(blocks.Number)
def _number(b: blocks.Number, c_noise: Array) -> Array:
    return b.scale * c_noise[:, None]


@BLOCK_FUNCTIONS(blocks.Embedding)
def _embedding(b: blocks.Embedding, label: NDArray, weight: Array) -> Array:
    return np.concatenate([weight, np.zeros((1, b.dim))])[label] if b.zero else weight[label]


@BLOCK_FUNCTIONS(blocks.Linear)
def _linear(b: blocks.Linear, x: Array, weight: Array, bias: float | Array = 0.0) -> Array:
    return x @ weight.T + bias


@BLOCK_FUNCTIONS(blocks.Conv)
def _conv(b: blocks.Conv, x: Array, weight: Array, bias: float | Array = 0.0) -> Array:
    top, bottom, left, right = b.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (b.kernel, b.kernel), axis=(1, 2))
    windows = windows[:, :: b.stride, :: b.stride]
    return np.tensordot(windows, weight, axes=((3, 4, 5), (1, 2, 3))) + bias


@BLOCK_FUNCTIONS(blocks.ConvTranspose)
def _conv_transpose(b: blocks.ConvTranspose, x: Array, weight: Array, bias: float | Array = 0.0) -> Array:
    batch, height, width, _ = x.shape
    rows, columns = ((n - 1) * b.stride + b.kernel for n in (height, width))
    y = np.zeros((batch, rows, columns, b.outputs))
    for i in range(b.kernel):
        for j in range(b.kernel):
            part = y[:, i : i + (height - 1) * b.stride + 1 : b.stride, j : j + (width - 1) * b.stride + 1 : b.stride]
            part += x @ weight[:, :, i, j]
    return y[:, b.crop : rows - b.crop, b.crop : columns - b.crop] + bias


def _normalised(x: Array, axis: tuple[int, ...], eps: float) -> Array:
    centred = x - x.mean(axis=axis, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=axis, keepdims=True) + eps)


@BLOCK_FUNCTIONS(blocks.GroupNorm)
def _group_norm(b: blocks.GroupNorm, x: Array, weight: Array, bias: Array) -> Array:
    grouped = rearrange(x, "b ... (g c) -> b (...) g c", g=b.groups)
    return _normalised(grouped, (1, 3), b.eps).reshape(x.shape) * weight + bias


@BLOCK_FUNCTIONS(blocks.LayerNorm)
def _layer_norm(b: blocks.LayerNorm, x: Array, weight: float | Array = 1.0, bias: float | Array = 0.0) -> Array:
    if len(b.shape) == 1:
        return _normalised(x, (-1,), b.eps) * weight + bias
    if not b.affine:
        return _normalised(x, (1, 2, 3), b.eps)
    weight, bias = (rearrange(array, "c h w -> h w c") for array in (weight, bias))
    return _normalised(x, (1, 2, 3), b.eps) * weight + bias


@BLOCK_FUNCTIONS(blocks.RMSNorm)
def _rms_norm(b: blocks.RMSNorm, x: Array, weight: Array) -> Array:
    if b.mean_square:
        return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + b.eps) * weight
    length = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    return x * np.sqrt(b.channels) / np.maximum(length, b.eps) * weight


@BLOCK_FUNCTIONS(blocks.BatchNorm)
def _batch_norm(
    b: blocks.BatchNorm,
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    name: str,
    training: Training | None,
) -> Array:
    if training is None:
        return (x - mean) / np.sqrt(variance + b.eps) * weight + bias
    axes = tuple(range(x.ndim - 1))
    n = x.size // b.channels
    unbiased = n / max(n - 1, 1)
    new_mean = mean + b.momentum * (x.mean(axis=axes) - mean)
    training.statistics[f"{name}.mean"] = new_mean
    training.statistics[f"{name}.variance"] = variance + b.momentum * (x.var(axis=axes) * unbiased - variance)
    return _normalised(x, axes, b.eps) * weight + bias


@BLOCK_FUNCTIONS(blocks.SiLU)
def _silu(b: blocks.SiLU, x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


@BLOCK_FUNCTIONS(blocks.ReLU)
def _relu(b: blocks.ReLU, x: Array) -> Array:
    return np.maximum(x, 0.0)


@BLOCK_FUNCTIONS(blocks.GELU)
def _gelu(b: blocks.GELU, x: Array) -> Array:
    if b.tanh:
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0)))


@BLOCK_FUNCTIONS(blocks.Sigmoid)
def _sigmoid(b: blocks.Sigmoid, x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


@BLOCK_FUNCTIONS(blocks.Mish)
def _mish(b: blocks.Mish, x: Array) -> Array:
    return x * np.tanh(np.logaddexp(0.0, x))


@BLOCK_FUNCTIONS(blocks.Attention)
def _attention(b: blocks.Attention, qkv: Array) -> Array:
    order = blocks.ATTENTION_ORDERS[b.order]
    q, k, v = rearrange(_as_tokens(qkv), f"b t ({order}) -> three b n t d", three=3, n=b.heads)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(b.channels // b.heads)
    return _join_heads(softmax(logits, -1) @ v, qkv)


def _as_tokens(x: Array) -> Array:
    """Return the pixels of an image as tokens, and tokens as they are."""
    return x.reshape(len(x), -1, x.shape[-1])


def _join_heads(mixed: Array, like: Array) -> Array:
    """Return values of heads (b n tokens d) as tokens, or as an image of the height and width of another value."""
    return rearrange(mixed, "b n t d -> b t (n d)").reshape(*like.shape[:-1], -1)


@BLOCK_FUNCTIONS(blocks.MemoryAttention)
def _memory_attention(b: blocks.MemoryAttention, qkv: Array, memory: Array) -> Array:
    q, k, v = _with_memory(b, qkv, memory)
    return _join_heads(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(b.size), -1) @ v, qkv)


@BLOCK_FUNCTIONS(blocks.LinearAttention)
def _linear_attention(b: blocks.LinearAttention, qkv: Array, memory: Array) -> Array:
    q, k, v = _with_memory(b, qkv, memory)
    return _join_heads(softmax(q, -1) / np.sqrt(b.size) @ (softmax(k, -2).swapaxes(-1, -2) @ v), qkv)


def _with_memory(
    b: blocks.MemoryAttention | blocks.LinearAttention, qkv: Array, memory: Array
) -> tuple[Array, Array, Array]:
    """Return q, k and v (b n tokens d), where k and v begin with the memory."""
    q, k, v = rearrange(_as_tokens(qkv), "b t (three n d) -> three b n t d", three=3, n=b.heads)
    k, v = (
        np.concatenate([np.broadcast_to(first, (len(rest), *first.shape)), rest], axis=2)
        for first, rest in zip(memory, (k, v), strict=True)
    )
    return q, k, v


@BLOCK_FUNCTIONS(blocks.Dropout)
def _dropout(b: blocks.Dropout, x: Array, name: str, training: Training | None) -> Array:
    if training is None:
        return x
    words = random_words(tuple(map(int, training.key)), training.positions, x[0].size, b.row)
    return np.where(words.reshape(x.shape) >= b.threshold, x / (1.0 - b.rate), 0.0)


def _vector_to_pixels(vector: Array, like: Array) -> Array:
    return np.expand_dims(vector, tuple(range(1, 1 + like.ndim - vector.ndim)))


@BLOCK_FUNCTIONS(blocks.Add)
def _add(b: blocks.Add, x: Array, y: Array) -> Array:
    return (x + _vector_to_pixels(y, x)) * b.scale


@BLOCK_FUNCTIONS(blocks.Multiply)
def _multiply(b: blocks.Multiply, x: Array, y: Array) -> Array:
    return x * _vector_to_pixels(y, x)


@BLOCK_FUNCTIONS(blocks.Modulate)
def _modulate(b: blocks.Modulate, x: Array, vector: Array) -> Array:
    first, second = np.split(_vector_to_pixels(vector, x), 2, axis=-1)
    scale, shift = (second, first) if b.shift_first else (first, second)
    return x * (1.0 + scale) + shift


@BLOCK_FUNCTIONS(blocks.Concat)
def _concat(b: blocks.Concat, x: Array, y: Array) -> Array:
    return np.concatenate([x, np.broadcast_to(_vector_to_pixels(y, x), (*x.shape[:-1], y.shape[-1]))], axis=-1)


@BLOCK_FUNCTIONS(blocks.Upsample)
def _upsample(b: blocks.Upsample, x: Array) -> Array:
    return x.repeat(b.factor, axis=1).repeat(b.factor, axis=2)


@BLOCK_FUNCTIONS(blocks.AvgPool)
def _avg_pool(b: blocks.AvgPool, x: Array) -> Array:
    return rearrange(x, "b (h i) (w j) c -> b h w (i j) c", i=b.factor, j=b.factor).mean(axis=3)


@BLOCK_FUNCTIONS(blocks.MaxPool)
def _max_pool(b: blocks.MaxPool, x: Array) -> Array:
    return rearrange(x, "b (h i) (w j) c -> b h w (i j) c", i=b.factor, j=b.factor).max(axis=3)


@BLOCK_FUNCTIONS(blocks.Resample)
def _resample(b: blocks.Resample, x: Array) -> Array:
    rows, columns = b.matrix(x.shape[1]), b.matrix(x.shape[2])
    return np.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns, optimize=True)


@BLOCK_FUNCTIONS(blocks.Mean)
def _mean(b: blocks.Mean, x: Array) -> Array:
    return x.mean(axis=tuple(range(1, x.ndim - 1)))


@BLOCK_FUNCTIONS(blocks.Flatten)
def _flatten(b: blocks.Flatten, x: Array) -> Array:
    return x.reshape(len(x), -1)


@BLOCK_FUNCTIONS(blocks.Unflatten)
def _unflatten(b: blocks.Unflatten, x: Array) -> Array:
    return x.reshape(len(x), b.height, b.width, -1)


@BLOCK_FUNCTIONS(Own)
def _own(
    b: Own,
    x: Array,
    c_noise: Array,
    label: NDArray,
    features: Array,
    *second_time: Array,
    name: str,
    training: Training | None = None,
) -> Array:
    """Call a function of NumPy arrays; an own network of a framework has no reference."""
    if b.owned:
        raise DuetError(
            f"network {b.reference}: the NumPy reference reads the blocks of a network, and an own network has none; "
            f"use its own framework"
        )
    first = b.layout == "channels_first"
    last = (*b.shape[1:], b.shape[0]) if first else b.shape
    own = x.reshape(len(x), *last)
    times = b.times(c_noise, *second_time)
    times = {key: np.rint(t).astype(np.int64) if b.time == "int" else t for key, t in times.items()}
    values: dict[str, NDArray] = {
        "x": np.moveaxis(own, -1, 1) if first else own,
        **{key: t[:, None] if b.time == "column" else t for key, t in times.items()},
        "label": label,
        "one_hot": (label[:, None] - b.first_label == np.arange(b.classes)).astype(np.float64),
    }
    for (key, shape, kind), columns in zip(b.conditions, b.feature_slices.values(), strict=True):
        value = features[:, columns].reshape(len(x), *shape)
        values[key] = value if kind == "float" else np.rint(value).astype(np.int64)
    # Copies, since a function may change its arguments in place, and other evaluations take them too.
    output = np.asarray(b.call(b.called, {key: np.array(values[key], order="C") for key in b.arguments.values}))
    if output.dtype.kind not in "fiub":
        raise DuetError(f"network {b.reference}: it returned {output.dtype}; it must return an array of numbers")
    output = output.astype(np.float64)
    if b.logits:
        return output
    b.check_output(output.shape)
    output = np.moveaxis(output, 1, -1) if first else output
    return output.reshape(*x.shape[:-1], -1)[..., : b.outputs]

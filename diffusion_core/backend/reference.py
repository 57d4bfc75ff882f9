"""The executable specification: programs and plans in NumPy float64, without gradients.

One function per block kind defines what the kind computes, and the backends must agree with it. The code is written to
be read, not to be fast. Values are images ``b h w c``, tokens ``b n c`` or vectors ``b c``. The functions of the kinds
of `networks/token_blocks.py` are in `reference_tokens.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from einops import rearrange
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend import reference_magnitude as _reference_magnitude  # noqa: F401  fills the table
from diffusion_core.backend import reference_tokens as _reference_tokens  # noqa: F401  fills the table
from diffusion_core.backend.block_functions import BLOCK_FUNCTIONS, Array, softmax
from diffusion_core.backend.interface import (
    MIN_PROBABILITY,
    MIN_STD,
    PSEUDO_HUBER_C,
    Forward,
    NoiseSource,
    TrainBatch,
)
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import random_words
from diffusion_core.diffusion import process
from diffusion_core.networks import blocks
from diffusion_core.networks.own import Own
from diffusion_core.networks.program import Program, Training
from diffusion_core.networks.registry import Block, kind_of
from diffusion_core.networks.weights import check_weights
from diffusion_core.optim.normalisation import normalise_weights
from diffusion_core.sampling.measurement import Measurement
from diffusion_core.sampling.plan import SamplerPlan

__all__ = [
    "BLOCK_FUNCTIONS",
    "activations",
    "block_function",
    "evaluation_pass",
    "forward",
    "grad_log_prob",
    "loss",
    "noised",
    "per_image_losses",
    "sample",
    "training_pass",
]


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
    b: Own, x: Array, c_noise: Array, label: NDArray, features: Array, name: str, training: Training | None = None
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
    t = np.rint(c_noise).astype(np.int64) if b.time == "int" else c_noise
    values: dict[str, NDArray] = {
        "x": np.moveaxis(own, -1, 1) if first else own,
        "t": t[:, None] if b.time == "column" else t,
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


def block_function(name: str, block: Block, weights: Mapping[str, NDArray]) -> Callable[..., Array]:
    """Return the function of one block of a program with its weights, found by full name.

    Raises:
        DuetError: if its kind has no reference function.
    """
    own = {p.name: np.asarray(weights[f"{name}.{p.name}"], np.float64) for p in block.parameters()}
    own |= {"name": name} if block.has_training_mode else {}
    function = BLOCK_FUNCTIONS[kind_of(block)]

    # The weights are keyword arguments, so they may come after any number of inputs.
    return lambda *inputs, **training: function(block, *inputs, **own, **training)


def forward(
    program: Program,
    weights: Mapping[str, NDArray],
    x: NDArray,
    c_noise: ArrayLike,
    label: ArrayLike,
    features: ArrayLike | None = None,
    estimate: ArrayLike | None = None,
    second_time: ArrayLike | None = None,
    training: Training | None = None,
) -> Array:
    """Return the raw output F of a network.

    Args:
        program: the network.
        weights: by full name.
        x: images multiplied by c_in, with shape (B, H, W, C).
        c_noise: the network's noise-level input, with shape (B,).
        label: one class per image, with shape (B,).
        features: with shape (B, program.features); None means zeros.
        estimate: an estimate of x_0 for a self-conditioned network, with the shape of x; None means zeros.
        second_time: for a network of two times, with shape (B,); None means `Program.default_second_time`.
        training: None in evaluation mode; in training mode the running statistics are written to it.

    Example:
        >>> from diffusion_core.networks import Node, Program
        >>> program = Program((Node("act", blocks.ReLU(), ("x",)),))
        >>> forward(program, {}, np.array([-1.0, 2.0]).reshape(1, 1, 2, 1), [0.0], [0]).ravel()
        array([0., 2.])
    """
    check_weights(program, weights)
    functions = {node.name: block_function(node.name, node.block, weights) for node in program.nodes}
    features = np.zeros((len(x), program.features)) if features is None else np.asarray(features, np.float64)
    inputs = {
        "x": np.asarray(x, np.float64),
        "c_noise": np.asarray(c_noise, np.float64),
        "label": np.asarray(label),
        "features": features,
        "estimate": np.zeros(np.shape(x)) if estimate is None else np.asarray(estimate, np.float64),
        "second_time": np.full(len(x), program.default_second_time if second_time is None else second_time, np.float64),
    }
    return program.run(functions, inputs, training)


def grad_log_prob(
    program: Program, weights: Mapping[str, NDArray], x: NDArray, c_noise: NDArray, label: NDArray
) -> Array:
    """Return d log p(label | x) / dx of a classifier, with shape (B, H, W, C), by fourth-order differences."""
    h, gradient = 1e-3, np.zeros(x.shape)
    label, shape = np.asarray(label), x.shape[1:]
    pixels = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    for k, (image, noise_level, target) in enumerate(zip(np.asarray(x, np.float64), c_noise, label, strict=True)):
        total = np.zeros(len(pixels))
        for steps, weight in ((1, 8.0), (2, -1.0)):
            for side in (1, -1):
                shifted = image + side * steps * h * pixels
                levels, no_class = np.full(len(shifted), noise_level), np.zeros(len(shifted), np.int32)
                logits = forward(program, weights, shifted, levels, no_class)
                total += side * weight * log_softmax(logits)[:, target]
        gradient[k] = (total / (12 * h)).reshape(shape)
    return gradient


def noised(batch: TrainBatch) -> tuple[Array, Array]:
    """Return (x_t, target) of a training batch."""
    x0, eps = batch.images.astype(np.float64), batch.noise.astype(np.float64)
    return process.add_noise(x0, eps, batch.alpha, batch.sigma), process.add_noise(
        x0, eps, batch.target_x0, batch.target_eps
    )


def _pseudo_huber(r: Array) -> Array:
    # sqrt(r^2 + c^2) - c, written as a quotient to avoid cancellation at small r.
    return np.square(r) / (np.sqrt(np.square(r) + PSEUDO_HUBER_C**2) + PSEUDO_HUBER_C)


def _pixel_mean(distance: Callable[[Array], Array]) -> Callable[[Array, Array, NDArray], Array]:
    """Return the mean of a distance over each image; only the first channels of a wider output count."""
    return lambda output, target, label: distance(output[..., : target.shape[-1]] - target).mean(axis=(1, 2, 3))


def log_softmax(logits: Array) -> Array:
    """Return log p of each class, with shape (B, K)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# The distance per image, of (output, target, label).
DISTANCE_FUNCTIONS: dict[str, Callable[[Array, Array, NDArray], Array]] = {
    "mse": _pixel_mean(np.square),
    "l1": _pixel_mean(np.abs),
    "huber": _pixel_mean(lambda r: np.where(np.abs(r) <= 1.0, 0.5 * r * r, np.abs(r) - 0.5)),
    "pseudo_huber": _pixel_mean(_pseudo_huber),
    "cross_entropy": lambda logits, target, label: -log_softmax(logits)[np.arange(len(label)), label],
}


def loss(program: Program, weights: Mapping[str, NDArray], batch: TrainBatch, distance: str) -> float:
    """Return the training loss of a batch; see `backend.interface.TrainBatch`."""
    return training_pass(program, weights, batch, distance)[0]


def training_pass(
    program: Program, weights: Mapping[str, NDArray], batch: TrainBatch, distance: str
) -> tuple[float, dict[str, Array]]:
    """Return (loss, new running statistics by name) of a training step."""
    losses, statistics = per_image_losses(program, weights, batch, distance)
    return float(np.mean(batch.importance * losses)), statistics


def per_image_losses(
    program: Program,
    weights: Mapping[str, NDArray],
    batch: TrainBatch,
    distance: str,
    frozen: Mapping[str, NDArray] | None = None,
    values: dict[str, Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Return (the loss of each image, with shape (B,); new running statistics by name).

    Args:
        program: the network.
        weights: by full name.
        batch: see `backend.interface.TrainBatch`.
        distance: one of `backend.interface.DISTANCES`.
        frozen: the weights of the parts that have no gradient: the first pass of self-conditioning, the mean in the
            variational bound, and the size of the rows in forced normalisation; None means `weights`. The derivative of
            this function by `weights`, with `frozen` fixed, is the gradient that training must compute.
        values: if given, it is filled with the value of each block by name.
    """

    def run(weights: Mapping[str, NDArray], estimate: Array | None) -> tuple[Array, dict[str, Array]]:
        training = Training(batch.dropout_key, batch.positions, values=values)
        inputs = (batch.c_in[:, None, None, None] * x, batch.c_noise, batch.label, batch.features, estimate)
        return forward(program, weights, *inputs, training=training), training.statistics

    weights, frozen = _force_normalisation(program, weights, frozen)
    x, target = noised(batch)
    channels, estimate = x.shape[-1], None
    if batch.self_conditioning is not None:
        c_skip, c_out, keep, lowest, highest = batch.self_conditioning.T[..., None, None, None]
        first = run(weights if frozen is None else frozen, None)[0][..., :channels]
        estimate = keep * np.clip(c_skip * x + c_out * first, lowest, highest)
    output, statistics = run(weights, estimate)
    detached = None
    if batch.variational is not None and frozen is not None:
        detached = run(frozen, estimate)[0][..., :channels] - target
    return _output_losses(program, batch, distance, output, target, detached), statistics


def _force_normalisation(
    program: Program, weights: Mapping[str, NDArray], frozen: Mapping[str, NDArray] | None
) -> tuple[Mapping[str, NDArray], Mapping[str, NDArray] | None]:
    """Return the weights and the frozen weights with normalised rows, whose size has no gradient."""
    if not program.normalised:
        return weights, frozen
    if frozen is None:
        return normalise_weights(weights, program.normalised), None
    sized = normalise_weights(frozen, program.normalised)
    return {name: sized[name] + (weights[name] - frozen[name]) for name in weights}, sized


def _output_losses(
    program: Program, batch: TrainBatch, distance: str, output: Array, target: Array, detached: Array | None = None
) -> Array:
    """Return the loss of each image from the output F of its network, with shape (B,).

    `detached` is the residual in the mean of the variational bound; None means the residual of this output.
    """
    losses, channels = batch.weight * DISTANCE_FUNCTIONS[distance](output, target, batch.label), target.shape[-1]
    if program.uncertainty:
        uncertainty = output[..., -1].mean(axis=(1, 2))
        losses = np.exp(-uncertainty) * losses + uncertainty
    if batch.variational is not None:
        residual = output[..., :channels] - target
        detached = residual if detached is None else detached
        losses = losses + _variational_bound(batch, residual, detached, output[..., channels : 2 * channels])
    return losses


def evaluation_pass(forward: Forward, program: Program, batch: TrainBatch, distance: str) -> tuple[Array, Array]:
    """Return (the loss of each image, with shape (B,); the output F) of a network in evaluation mode.

    There is no dropout, and batch norms use their running statistics; all else is as in training.

    Args:
        forward: the network, as `backend.interface.Network.forward`; it computes in the type of the batch.
        program: the same network as a program.
        batch: see `backend.interface.TrainBatch`.
        distance: one of `backend.interface.DISTANCES`, or `backend.interface.CROSS_ENTROPY`.
    """
    x, target = noised(batch)
    dtype, estimate = batch.images.dtype, None
    inputs = (batch.c_in[:, None, None, None] * x).astype(dtype), batch.c_noise, batch.label, batch.features
    if batch.self_conditioning is not None:
        c_skip, c_out, keep, lowest, highest = batch.self_conditioning.astype(np.float64).T[..., None, None, None]
        first = forward(*inputs, np.zeros_like(batch.images))[..., : x.shape[-1]]
        estimate = (keep * np.clip(c_skip * x + c_out * first, lowest, highest)).astype(dtype)
    output = np.asarray(forward(*inputs) if estimate is None else forward(*inputs, estimate), np.float64)
    return _output_losses(program, batch, distance, output, target), output


def activations(program: Program, weights: Mapping[str, NDArray], batch: TrainBatch, distance: str) -> dict[str, Array]:
    """Return the value of each block in a training pass by name, and as "losses" the loss of each image."""
    values: dict[str, Array] = {}
    losses, _ = per_image_losses(program, weights, batch, distance, values=values)
    return values | {"losses": losses}


def _normal_cdf(x: Array) -> Array:
    return 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-math.sqrt(0.5) * x)


def _variational_bound(batch: TrainBatch, residual: Array, detached: Array, variance: Array) -> Array:
    """Return the weighted variational bound of each image; see `backend.interface.TrainBatch`."""
    *columns, weight = batch.variational.astype(np.float64).T
    offset, scale, error, half_bin, lowest, highest, mean_gradient = (column[:, None, None, None] for column in columns)
    u = offset + scale * variance if variance.shape[-1] else offset  # a fixed variance needs no output
    e = error * (detached + mean_gradient * (residual - detached))
    divergence = 0.5 * (u + np.expm1(-u) + np.exp(-u) * e**2)
    bits = divergence
    if np.any(decoded := half_bin.ravel() > 0):
        bits[decoded] = _decoder_bits(batch.images[decoded], *(a[decoded] for a in (u, e, half_bin, lowest, highest)))
    return weight * bits.mean(axis=(1, 2, 3))


def _decoder_bits(images: Array, u: Array, e: Array, half_bin: Array, lowest: Array, highest: Array) -> Array:
    """Return -log of the probability of the byte of each pixel, see `_variational_bound`."""
    # Mirror the bin so that its far or open side is at minus infinity, where probabilities are small numbers.
    black, white = images < lowest, images > highest
    e = np.where(black, e, np.where(white, -e, np.abs(e)))
    narrow = np.exp(-0.5 * u)
    beyond = np.where(black | white, 0.0, _normal_cdf(-narrow * (half_bin + e)))
    probability = _normal_cdf(narrow * (half_bin - e)) - beyond
    return -np.log(np.maximum(probability, MIN_PROBABILITY))


def _guide_output(plan: SamplerPlan, i: int, conditional: Array, unconditional: Array) -> Array:
    """Apply classifier-free guidance to the outputs of row i."""
    guided = unconditional + plan.guidance_scale[i] * (conditional - unconditional)
    if plan.guidance_channels is not None:
        guided[..., plan.guidance_channels :] = conditional[..., plan.guidance_channels :]
    if not plan.rescale:
        return guided
    std, guided_std = (v.std(axis=(1, 2, 3), keepdims=True) for v in (conditional, guided))
    return (plan.rescale * std / np.maximum(guided_std, MIN_STD) + 1.0 - plan.rescale) * guided


def _clip_estimate(plan: SamplerPlan, estimate: Array) -> Array:
    """Clip the estimates to the plan's bounds, or by dynamic thresholding (a quantile of each image)."""
    if plan.bounds is None:
        return estimate
    if plan.threshold is None:
        return np.clip(estimate, *plan.bounds)
    middle, half = plan.scale
    y = (estimate - middle) / half
    quantile = np.quantile(np.abs(y), plan.threshold, axis=(1, 2, 3), keepdims=True)
    bound = np.clip(quantile, plan.clip, plan.threshold_max)
    return middle + half * np.clip(y, -bound, bound) * plan.clip / bound


def _jacobian(function: Callable[[Array, NDArray], Array], x: Array) -> Array:
    """Return the derivatives of each image's output by its own pixels, (B, D, D), by fourth-order differences."""
    batch, size = len(x), x[0].size
    rows, total = np.repeat(np.arange(batch), size), 0.0
    # Steps grow with an image, so that the rounding of large numbers does not: an image of EDM has a scale of up to 80.
    h = 1e-3 * np.maximum(1.0, np.abs(x).max(axis=(1, 2, 3)) / 4)
    step = (h[:, None, None] * np.eye(size)).reshape(-1, *x.shape[1:])
    for steps, weight in ((1, 8.0), (2, -1.0)):
        for side in (1, -1):
            total = total + side * weight * function(x[rows] + side * steps * step, rows)
    return (total.reshape(batch, size, size) / (12 * h[:, None, None])).swapaxes(1, 2)


def sample(
    program: Program,
    weights: Mapping[str, NDArray],
    plan: SamplerPlan,
    start: NDArray,
    label: NDArray,
    noise: NoiseSource,
    callback: Callable[[int, Array, Array], None] | None = None,
    guide: Forward | None = None,
    grad_log_prob: Forward | None = None,
    mask: NDArray | None = None,
    known: NoiseSource | None = None,
    features: NDArray | None = None,
    null_features: NDArray | None = None,
    measurement: Measurement | None = None,
) -> Array:
    """Run a plan; see `backend.interface.Backend.sample` and `backend.interface.Guidance`.

    Args:
        program: the network.
        weights: its weights.
        plan: the rows.
        start: register 0 before the first row.
        label: classes, with shape (B,).
        noise: returns the noise z of row i.
        callback: called after each row with (row, register 0, estimate).
        guide: the output of a guide as a function of (x, c_noise, label); None means this network without a class.
        grad_log_prob: the gradient of a classifier's log p(class | x), as a function of (x, c_noise, class).
        mask: 1 where the image is known, else 0.
        known: returns the known image at the noise level that row i leads to.
        features: numbers in addition to the class; None means zeros.
        null_features: the same for the evaluation without a class.
        measurement: what the images agree with; its derivatives are differences, so it is for small images.
    """
    registers = [np.asarray(start, np.float64)] + [np.zeros(start.shape) for _ in range(plan.registers - 1)]
    history = [np.zeros(start.shape) for _ in range(plan.history)]
    null_label = np.full_like(label, program.null_label or 0)
    channels = start.shape[-1]

    def evaluate(i: int, x: Array, rows: NDArray) -> tuple[Array, Array]:
        """Return (the estimate before it is bounded, the rest of the output) of row i, for some rows of the batch."""
        c_noise = np.full(len(x), plan.c_noise[i])
        # A self-conditioned network reads D_{i-1}; a guide does not.
        previous = {"estimate": history[0][rows]}
        if plan.second_time is not None:
            previous["second_time"] = np.full(len(x), plan.second_time[i])
        own, null = (None if array is None else array[rows] for array in (features, null_features))
        output = forward(program, weights, plan.c_in[i] * x, c_noise, label[rows], features=own, **previous)
        image, rest = output[..., :channels], output[..., channels : 2 * channels]
        if plan.is_guided[i]:
            inputs = plan.c_in[i] * x, c_noise
            if guide is None:
                unconditional = forward(program, weights, *inputs, null_label[rows], features=null, **previous)
            else:
                unconditional = guide(*inputs, label[rows])
            image = _guide_output(plan, i, image, unconditional[..., :channels])
        estimate = plan.c_skip[i] * x + plan.c_out[i] * image
        if plan.classifier is not None:
            gradient = plan.c_in[i] * grad_log_prob(plan.c_in[i] * x, c_noise, label[rows] - program.labels.start)
            estimate = estimate + plan.classifier[i] * gradient
        return estimate, rest

    for i in range(plan.rows):
        x = registers[0]
        estimate, rest = evaluate(i, x, np.arange(len(x)))
        if measurement is not None:

            def followed(x: Array, rows: NDArray, i: int = i) -> Array:
                estimate = evaluate(i, x, rows)[0]
                return _clip_estimate(plan, estimate) if measurement.moves_state else estimate

            jacobian = _jacobian(followed, x)
            pull_back = partial(np.einsum, "boi,bo->bi", jacobian)
            shift = measurement.shift(
                plan, i, _clip_estimate(plan, estimate) if measurement.moves_state else estimate,
                lambda v: pull_back(v.reshape(len(v), -1)).reshape(v.shape),  # noqa: B023 - it is called in this row
            )  # fmt: skip
            if not measurement.moves_state:
                estimate = estimate + shift
        unclipped = estimate
        if plan.unclipped is not None:
            estimate = plan.clipped[i, 0] * x + plan.clipped[i, 1] * unclipped
        estimate = _clip_estimate(plan, estimate)
        history = [estimate, *history[:-1]]
        z = np.asarray(noise(i), np.float64) if plan.is_noisy[i] else np.zeros(())
        if plan.learned is not None and plan.is_noisy[i]:
            z = np.exp(plan.learned[i, 0] + plan.learned[i, 1] * rest) * z
        registers = [
            sum(plan.state[i, r, q] * registers[q] for q in range(plan.registers))
            + sum(plan.denoised[i, r, h] * history[h] for h in range(plan.history))
            + (0.0 if plan.unclipped is None else plan.unclipped[i, r] * unclipped)
            + plan.noise[i, r] * z
            for r in range(plan.registers)
        ]
        if measurement is not None and measurement.moves_state:
            registers[0] = registers[0] + shift
        if mask is not None:
            registers[0] = mask * np.asarray(known(i), np.float64) + (1.0 - mask) * registers[0]
        if callback is not None:
            callback(i, registers[0], estimate)
    return registers[0]

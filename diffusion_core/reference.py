"""The executable specification: programs and plans in NumPy float64, forward only.

Each function here says what a block kind means; the backends must agree with it. It is written to be
read, not to be fast. Values are images ``b h w c`` or vectors ``b c``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from einops import rearrange
from numpy.typing import ArrayLike, NDArray

from diffusion_core import process
from diffusion_core.backend import NoiseSource, TrainBatch
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.unet import blocks
from diffusion_core.unet.program import Program
from diffusion_core.weights import check_weights

__all__ = ["block_function", "forward", "loss", "noised", "sample"]

Array = NDArray[np.float64]


def _sinusoid(b: blocks.Sinusoid, c_noise: Array) -> Array:
    angle = c_noise[:, None] * np.array(b.frequencies())
    parts = (np.sin(angle), np.cos(angle)) if b.sin_first else (np.cos(angle), np.sin(angle))
    return np.concatenate(parts, axis=-1)


def _embedding(b: blocks.Embedding, label: NDArray, weight: Array) -> Array:
    return weight[label]


def _linear(b: blocks.Linear, x: Array, weight: Array, bias: float | Array = 0.0) -> Array:
    return x @ weight.T + bias


def _conv(b: blocks.Conv, x: Array, weight: Array, bias: float | Array = 0.0) -> Array:
    top, bottom, left, right = b.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (b.kernel, b.kernel), axis=(1, 2))
    windows = windows[:, :: b.stride, :: b.stride]
    return np.tensordot(windows, weight, axes=((3, 4, 5), (1, 2, 3))) + bias


def _group_norm(b: blocks.GroupNorm, x: Array, weight: Array, bias: Array) -> Array:
    grouped = rearrange(x, "b ... (g c) -> b (...) g c", g=b.groups)
    centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    variance = np.square(centred).mean(axis=(1, 3), keepdims=True)
    return (centred / np.sqrt(variance + b.eps)).reshape(x.shape) * weight + bias


def _silu(b: blocks.SiLU, x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def _attention(b: blocks.Attention, qkv: Array) -> Array:
    q, k, v = rearrange(qkv, "b h w (three n d) -> three b n (h w) d", three=3, n=b.heads)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(b.channels // b.heads)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    return rearrange(mixed, "b n (h w) d -> b h w (n d)", h=qkv.shape[1])


def _vector_to_pixels(vector: Array, like: Array) -> Array:
    return vector[:, None, None, :] if like.ndim > vector.ndim else vector


def _add(b: blocks.Add, x: Array, y: Array) -> Array:
    return (x + _vector_to_pixels(y, x)) * b.scale


def _modulate(b: blocks.Modulate, x: Array, vector: Array) -> Array:
    scale, shift = np.split(_vector_to_pixels(vector, x), 2, axis=-1)
    return x * (1.0 + scale) + shift


def _concat(b: blocks.Concat, x: Array, y: Array) -> Array:
    return np.concatenate([x, y], axis=-1)


def _upsample(b: blocks.Upsample, x: Array) -> Array:
    return x.repeat(b.factor, axis=1).repeat(b.factor, axis=2)


def _avg_pool(b: blocks.AvgPool, x: Array) -> Array:
    return rearrange(x, "b (h i) (w j) c -> b h w (i j) c", i=b.factor, j=b.factor).mean(axis=3)


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Sinusoid": _sinusoid,
    "Embedding": _embedding,
    "Linear": _linear,
    "Conv": _conv,
    "GroupNorm": _group_norm,
    "SiLU": _silu,
    "Attention": _attention,
    "Add": _add,
    "Modulate": _modulate,
    "Concat": _concat,
    "Upsample": _upsample,
    "AvgPool": _avg_pool,
}


def block_function(name: str, block: blocks.Block, weights: Mapping[str, NDArray]) -> Callable[..., Array]:
    """The function of one block of a program, with its weights bound by full name."""
    own = {p.name: np.asarray(weights[f"{name}.{p.name}"], np.float64) for p in block.parameters()}
    return lambda *inputs: _FUNCTIONS[type(block).__name__](block, *inputs, **own)


def forward(
    program: Program, weights: Mapping[str, NDArray], x: NDArray, c_noise: ArrayLike, label: ArrayLike
) -> Array:
    """The network's raw output F.

    Args:
        program: the network.
        weights: by full name.
        x: images, with shape (B, H, W, C).
        c_noise: one number per image, with shape (B,).
        label: one class per image, with shape (B,).
    """
    check_weights(program, weights)
    modules = {node.name: block_function(node.name, node.block, weights) for node in program.nodes}
    return program.run(modules, np.asarray(x, np.float64), np.asarray(c_noise, np.float64), np.asarray(label))


def noised(batch: TrainBatch) -> tuple[Array, Array]:
    """(x_t, target) of a training batch."""
    x0, eps = batch.images.astype(np.float64), batch.noise.astype(np.float64)
    return process.add_noise(x0, eps, batch.alpha, batch.sigma), process.add_noise(
        x0, eps, batch.target_x0, batch.target_eps
    )


_DISTANCES: dict[str, Callable[[Array], Array]] = {
    "mse": np.square,
    "l1": np.abs,
    "huber": lambda r: np.where(np.abs(r) <= 1.0, 0.5 * r * r, np.abs(r) - 0.5),
}


def loss(program: Program, weights: Mapping[str, NDArray], batch: TrainBatch, distance: str) -> float:
    """The training loss, ``mean_b weight_b mean_pixels distance(F - target)``."""
    x, target = noised(batch)
    output = forward(program, weights, x * batch.c_in[:, None, None, None], batch.c_noise, batch.label)
    per_image = _DISTANCES[distance](output - target).mean(axis=(1, 2, 3))
    return float(np.mean(batch.weight * per_image))


def sample(
    program: Program,
    weights: Mapping[str, NDArray],
    plan: SamplerPlan,
    start: NDArray,
    label: NDArray,
    noise: NoiseSource,
    watch: Callable[[int, Array, Array], None] | None = None,
) -> Array:
    """Run a plan; see `backend.Backend.sample`."""
    registers = [np.asarray(start, np.float64)] + [np.zeros(start.shape) for _ in range(plan.registers - 1)]
    history = [np.zeros(start.shape) for _ in range(plan.history)]
    null = np.full_like(label, program.null_label or 0)
    for i in range(plan.rows):
        x = registers[0]
        c_noise = np.full(len(x), plan.c_noise[i])
        output = forward(program, weights, plan.c_in[i] * x, c_noise, label)
        if plan.is_guided[i]:
            without = forward(program, weights, plan.c_in[i] * x, c_noise, null)
            output = without + plan.guidance[i] * (output - without)
        estimate = plan.c_skip[i] * x + plan.c_out[i] * output
        if plan.clip is not None:
            estimate = np.clip(estimate, -plan.clip, plan.clip)
        history = [estimate, *history[:-1]]
        z = np.asarray(noise(i), np.float64) if plan.is_noisy[i] else np.zeros(())
        registers = [
            sum(plan.state[i, r, q] * registers[q] for q in range(plan.registers))
            + sum(plan.denoised[i, r, h] * history[h] for h in range(plan.history))
            + plan.noise[i, r] * z
            for r in range(plan.registers)
        ]
        if watch is not None:
            watch(i, registers[0], estimate)
    return registers[0]

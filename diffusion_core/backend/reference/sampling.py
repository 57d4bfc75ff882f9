"""A sampler plan, executed row by row in NumPy float64; see `backend.interface.Backend.sample`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import MIN_STD, Forward, NoiseSource
from diffusion_core.backend.reference.network import forward
from diffusion_core.backend.reference.table import Array
from diffusion_core.networks.program import Program
from diffusion_core.sampling.measurement import Measurement
from diffusion_core.sampling.plan import SamplerPlan

__all__ = [
    "clip_estimate",
    "sample",
]


def _guide_output(plan: SamplerPlan, i: int, conditional: Array, unconditional: Array) -> Array:
    """Apply classifier-free guidance to the outputs of row i."""
    guided = unconditional + plan.guidance_scale[i] * (conditional - unconditional)
    if plan.guidance_channels is not None:
        guided[..., plan.guidance_channels :] = conditional[..., plan.guidance_channels :]
    if not plan.rescale:
        return guided
    std, guided_std = (v.std(axis=(1, 2, 3), keepdims=True) for v in (conditional, guided))
    return (plan.rescale * std / np.maximum(guided_std, MIN_STD) + 1.0 - plan.rescale) * guided


def clip_estimate(plan: SamplerPlan, estimate: Array) -> Array:
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


def _pull_back(jacobian: Array, cotangent: Array) -> Array:
    """Return the product of a cotangent, with the shape of the images, and the derivatives of `_jacobian`."""
    return np.einsum("boi,bo->bi", jacobian, cotangent.reshape(len(cotangent), -1)).reshape(cotangent.shape)


def _next_registers(
    plan: SamplerPlan, i: int, registers: list[Array], history: list[Array], unclipped: Array, z: Array
) -> list[Array]:
    """Return state X + denoised D + unclipped U + noise z of row i, one register after another."""
    return [
        sum(plan.state[i, r, q] * registers[q] for q in range(plan.registers))
        + sum(plan.denoised[i, r, h] * history[h] for h in range(plan.history))
        + (0.0 if plan.unclipped is None else plan.unclipped[i, r] * unclipped)
        + plan.noise[i, r] * z
        for r in range(plan.registers)
    ]


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
                return clip_estimate(plan, estimate) if measurement.moves_state else estimate

            target = clip_estimate(plan, estimate) if measurement.moves_state else estimate
            shift = measurement.shift(plan, i, target, partial(_pull_back, _jacobian(followed, x)))
            if not measurement.moves_state:
                estimate = estimate + shift
        unclipped = estimate
        if plan.unclipped is not None:
            estimate = plan.clipped[i, 0] * x + plan.clipped[i, 1] * unclipped
        estimate = clip_estimate(plan, estimate)
        history = [estimate, *history[:-1]]
        z = np.asarray(noise(i), np.float64) if plan.is_noisy[i] else np.zeros(())
        if plan.learned is not None and plan.is_noisy[i]:
            z = np.exp(plan.learned[i, 0] + plan.learned[i, 1] * rest) * z
        registers = _next_registers(plan, i, registers, history, unclipped, z)
        if measurement is not None and measurement.moves_state:
            registers[0] = registers[0] + shift
        if mask is not None:
            registers[0] = mask * np.asarray(known(i), np.float64) + (1.0 - mask) * registers[0]
        if callback is not None:
            callback(i, registers[0], estimate)
    return registers[0]

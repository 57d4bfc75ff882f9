"""The losses of a training batch in NumPy float64, without gradients; see `backend.interface.TrainBatch`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import MIN_PROBABILITY, PSEUDO_HUBER_C, Forward, TrainBatch
from diffusion_core.backend.reference.network import forward
from diffusion_core.backend.reference.table import Array, log_softmax
from diffusion_core.diffusion import process
from diffusion_core.networks.program import Program, Training
from diffusion_core.optim.normalisation import normalise_weights

__all__ = [
    "DISTANCE_FUNCTIONS",
    "activations",
    "evaluation_pass",
    "loss",
    "noised",
    "per_image_losses",
    "training_pass",
    "variational_bound",
]


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
        losses = losses + variational_bound(batch, residual, detached, output[..., channels : 2 * channels])
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


def _tanh_cdf(x: Array) -> Array:
    # (1 + tanh z) / 2 = 1 / (1 + exp(-2 z)), which keeps the digits of small probabilities.
    return np.exp(-np.logaddexp(0.0, -2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def variational_bound(batch: TrainBatch, residual: Array, detached: Array, variance: Array) -> Array:
    """Return the weighted variational bound of each image; see `backend.interface.TrainBatch`."""
    columns = batch.variational.astype(np.float64).T
    pixels, weight, cdf = columns[:7, :, None, None, None], columns[7], _tanh_cdf if len(columns) > 8 else _normal_cdf
    offset, scale, error, half_bin, lowest, highest, mean_gradient = pixels
    u = offset + scale * variance if variance.shape[-1] else offset  # a fixed variance needs no output
    e = error * (detached + mean_gradient * (residual - detached))
    divergence = 0.5 * (u + np.expm1(-u) + np.exp(-u) * e**2)
    bits = divergence
    if np.any(decoded := half_bin.ravel() > 0):
        inputs = (a[decoded] for a in (u, e, half_bin, lowest, highest))
        bits[decoded] = _decoder_bits(cdf, batch.images[decoded], *inputs)
    return weight * bits.mean(axis=(1, 2, 3))


def _decoder_bits(
    cdf: Callable[[Array], Array], images: Array, u: Array, e: Array, half_bin: Array, lowest: Array, highest: Array
) -> Array:
    """Return -log of the probability of the byte of each pixel, see `variational_bound`."""
    # Mirror the bin so that its far or open side is at minus infinity, where probabilities are small numbers.
    black, white = images < lowest, images > highest
    e = np.where(black, e, np.where(white, -e, np.abs(e)))
    narrow = np.exp(-0.5 * u)
    beyond = np.where(black | white, 0.0, cdf(-narrow * (half_bin + e)))
    probability = cdf(narrow * (half_bin - e)) - beyond
    return -np.log(np.maximum(probability, MIN_PROBABILITY))

"""The NumPy reference of training targets that need the network; see `target`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Network, TrainBatch
from diffusion_core.backend.reference.losses import DISTANCE_FUNCTIONS
from diffusion_core.backend.reference.network import forward
from diffusion_core.backend.reference.table import Array
from diffusion_core.backend.target import GIVEN, MIN_SQUARES, Distance, Pass, Sum, Target, Unit, run
from diffusion_core.networks.program import Program, Training

__all__ = [
    "derivative", "evaluation_losses", "scored", "target_activations", "target_losses", "target_values", "weighted",
]  # fmt: skip

# F of the network of a pass, as a function of (pass, x, c_noise, second_time).
Evaluate = Callable[[Pass, Array, Array, Array], Array]
# (F, its derivative) of the network of a pass, as a function of (pass, inputs, direction).
Derive = Callable[[Pass, tuple[Array, ...], tuple[Array, ...]], tuple[Array, Array]]

# Central differences of order 8: the coefficient of f(x + k h) - f(x - k h), by k.
_STEP, _DIFFERENCES = 5e-3, {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


def derivative(function: Callable[..., Array], at: Sequence[NDArray], direction: Sequence[NDArray]) -> Array:
    """Return the derivative of a function of several arrays along a direction, by differences of order 8.

    Example:
        >>> derivative(lambda x: x**3, [np.array([2.0])], [np.array([0.5])]).round(9)
        array([6.])
    """
    at, direction = ([np.asarray(a, np.float64) for a in arrays] for arrays in (at, direction))

    def moved(step: float) -> Array:
        return function(*(a + step * d for a, d in zip(at, direction, strict=True)))

    return sum(c * (moved(k * _STEP) - moved(-k * _STEP)) for k, c in _DIFFERENCES.items()) / _STEP


def _to_pixels(column: NDArray) -> Array:
    return np.asarray(column, np.float64)[:, None, None, None]


def scored(distance: Distance, residual: Array, detached: Array | None = None) -> Array:
    """Return the distance of each image, with shape (B,).

    Args:
        distance: its name and options.
        residual: prediction - target, with shape (B, H, W, C).
        detached: the residual in the adaptive weight, which has no gradient; None means `residual`.
    """
    axes, c = (1, 2, 3), distance.c
    if distance.name == "squares":
        loss = np.square(residual).sum(axis=axes)
    elif distance.name == "norm":
        loss = np.sqrt(np.maximum(np.square(residual).sum(axis=axes) + c**2, MIN_SQUARES)) - c
    elif distance.name == "pseudo_huber":
        loss = (np.square(residual) / (np.sqrt(np.square(residual) + c**2) + c)).mean(axis=axes)
    else:
        loss = DISTANCE_FUNCTIONS[distance.name](residual, np.zeros_like(residual), None)
    if not distance.power:
        return loss
    weight = loss if detached is None else scored(replace(distance, power=0.0), detached)
    return loss / (weight + distance.eps) ** distance.power


def target_values(
    target: Target, batch: TrainBatch, evaluate: Evaluate, derive: Derive | None = None
) -> dict[str, Array]:
    """Return every value of a target by name.

    Args:
        target: the steps.
        batch: its columns and times, images and noise.
        evaluate: called with a pass and (x, c_noise, second_time); returns F of its network.
        derive: called with a pass, its inputs and its direction, each (x, c_noise, second_time); returns F and its
            derivative. None takes differences of `evaluate`.
    """
    columns = {} if batch.columns is None else dict(zip(target.columns, batch.columns.T, strict=True))
    times = {} if batch.times is None else dict(zip(target.times, batch.times.T, strict=True))
    channels = batch.images.shape[-1]

    def combine(step: Sum | Unit, values: Mapping[str, Array]) -> Array:
        if isinstance(step, Unit):
            value = values[step.value]
            square = (np.mean if step.mean else np.sum)(np.square(value), axis=(1, 2, 3), keepdims=True)
            return value / (np.sqrt(np.maximum(square, MIN_SQUARES)) + step.c)
        total = sum((_to_pixels(columns[c]) if isinstance(c, str) else c) * values[name] for c, name in step.terms)
        return total if step.bounds is None else np.clip(total, *step.bounds)

    def passed(step: Pass, values: Mapping[str, Array]) -> tuple[Array, ...]:
        def evaluated(x: Array, c_noise: Array, second_time: Array) -> Array:
            return evaluate(step, x, c_noise, second_time)

        zeros = np.zeros(batch.size)
        second = zeros if step.second_time is None else times[step.second_time]
        at, to = (values[step.x], times[step.c_noise], second), step.direction
        if to is None:
            output, rate = evaluated(*at), ()
        else:
            along = values[to.x], times[to.c_noise], zeros if to.second_time is None else times[to.second_time]
            pair = (evaluated(*at), derivative(evaluated, at, along)) if derive is None else derive(step, at, along)
            output, rate = pair[0], (pair[1][..., :channels],)
        uncertainty = (output[..., -1].mean(axis=(1, 2)),) if step.uncertainty else ()
        return (output[..., :channels], *rate, *uncertainty)

    given = {name: np.asarray(getattr(batch, name), np.float64) for name in GIVEN}
    return run(target, given, combine, passed)


def weighted(target: Target, batch: TrainBatch, values: Mapping[str, Array], distances: Array) -> Array:
    """Return the loss of each image from its distance, with the weights of the batch and of the uncertainty."""
    losses = batch.weight * distances
    return losses if target.uncertainty is None else np.exp(-(u := values[target.uncertainty])) * losses + u


def target_losses(
    program: Program,
    weights: Mapping[str, NDArray],
    batch: TrainBatch,
    target: Target,
    average: Mapping[str, NDArray] | None = None,
    frozen: Mapping[str, NDArray] | None = None,
    values: dict[str, Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Return (the loss of each image, with shape (B,); new running statistics by name) of a training step.

    Args:
        program: the network.
        weights: by full name.
        batch: with the columns and times of the target.
        target: see `target`.
        average: the weights of the average; None means `weights`.
        frozen: the weights of the parts that have no gradient, as for `reference.per_image_losses`.
        values: filled with the value of each block in the pass with a gradient if it is given.
    """
    frozen = weights if frozen is None else frozen
    average = frozen if average is None else average
    statistics: dict[str, Array] = {}

    def evaluate(step: Pass, own: Mapping[str, NDArray]) -> Callable[..., Array]:
        teaches, training = step.network == "teacher", Training(batch.dropout_key, batch.positions)
        network, network_weights = (target.teacher.program, target.teacher.weights) if teaches else (program, own)
        label = np.full_like(batch.label, network.null_label) if step.null_label else batch.label
        features, mode = batch.features[:, : network.features], training if step.trains else None

        def output(x: Array, c_noise: Array, second: Array) -> Array:
            inputs = x, c_noise, label, features
            # The first call is at the inputs of the pass; others are those of its differences.
            training.values = values if step.gradient and values == {} else None
            times = None if step.second_time is None else second
            result = forward(network, network_weights, *inputs, second_time=times, training=mode)
            if step.gradient:
                for name, value in training.statistics.items():
                    statistics.setdefault(name, value)
            return result

        return output

    def known_with(live: Mapping[str, NDArray]) -> dict[str, Array]:
        def of(step: Pass, *inputs: Array) -> Array:
            own = average if step.network == "average" else live if step.gradient else frozen
            return evaluate(step, own)(*inputs)

        return target_values(target, batch, of)

    live = known_with(weights)
    fixed = live if frozen is weights else known_with(frozen)
    residual, detached = (known[target.prediction] - fixed[target.target] for known in (live, fixed))
    return weighted(target, batch, live, scored(target.distance, residual, detached)), statistics


def target_activations(
    program: Program, weights: Mapping[str, NDArray], batch: TrainBatch, target: Target, average: Mapping[str, NDArray]
) -> dict[str, Array]:
    """Return what `losses.activations` returns, for a target: the blocks are those of its pass with a gradient."""
    values: dict[str, Array] = {}
    losses, _ = target_losses(program, weights, batch, target, average, values=values)
    return values | {"losses": losses}


def evaluation_losses(networks: Mapping[str, Network], batch: TrainBatch, target: Target) -> Array:
    """Return the loss of each image with networks of a backend in evaluation mode, with shape (B,).

    There is no dropout, and batch norms use their running statistics; all else is as in training.

    Args:
        networks: those of `Target.networks` by name; they compute in the type of the batch.
        batch: with the columns and times of the target.
        target: see `target`.
    """
    dtype = batch.images.dtype

    def inputs(step: Pass, x: Array, second: Array) -> tuple[Array, NDArray, NDArray, Array | None]:
        program = networks[step.network].program
        label = np.full_like(batch.label, program.null_label) if step.null_label else batch.label
        features = batch.features[:, : program.features]
        return x.astype(dtype), label, features, None if step.second_time is None else second

    def evaluate(step: Pass, x: Array, c_noise: Array, second: Array) -> Array:
        x, label, features, second = inputs(step, x, second)
        output = networks[step.network].forward(x, c_noise, label, features, second_time=second)
        return np.asarray(output, np.float64)

    def derive(step: Pass, at: tuple[Array, ...], along: tuple[Array, ...]) -> tuple[Array, Array]:
        x, label, features, second = inputs(step, at[0], at[2])
        direction = (along[0].astype(dtype), *along[1:])
        pair = networks[step.network].jvp(x, at[1], label, direction, features, second_time=second)
        return tuple(np.asarray(value, np.float64) for value in pair)

    known = target_values(target, batch, evaluate, derive)
    return weighted(target, batch, known, scored(target.distance, known[target.prediction] - known[target.target]))

"""The loss of a training batch in TensorFlow: noise, forward, distance, variational bound; or the steps of a target."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import fields

import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from backends.tf.network import Network, to_host
from diffusion_core.backend.batch import noised_and_target
from diffusion_core.backend.interface import MIN_PROBABILITY, PSEUDO_HUBER_C, TrainBatch
from diffusion_core.backend.target import MIN_SQUARES, Distance, Pass, Sum, Target, Unit, run
from diffusion_core.networks.program import Training

__all__ = ["Batch", "batch_tensors", "loss_tensors", "noised", "split_batch", "target_tensors"]


def _huber(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    size = tf.abs(a - b)
    return tf.where(size <= 1, 0.5 * tf.square(a - b), size - 0.5)


def _pseudo_huber(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    square = tf.math.squared_difference(a, b)
    return square / (tf.sqrt(square + PSEUDO_HUBER_C**2) + PSEUDO_HUBER_C)


def _pixel_mean(distance: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Return the mean of a distance over each image; only the first channels of a wider output count."""
    return lambda output, target, label: tf.reduce_mean(distance(output[..., : target.shape[-1]], target), [1, 2, 3])


# The distance per image, of (output, target, label).
_DISTANCES = {
    "mse": _pixel_mean(tf.math.squared_difference),
    "l1": _pixel_mean(lambda a, b: tf.abs(a - b)),
    "huber": _pixel_mean(_huber),
    "pseudo_huber": _pixel_mean(_pseudo_huber),
    "cross_entropy": lambda logits, target, label: tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits),
}


# A batch on the device.
Batch = namedtuple("Batch", [field.name for field in fields(TrainBatch)])
_TYPES = {
    "label": tf.int32,
    "c_noise": tf.float64,
    "positions": tf.int64,
    "dropout_key": tf.int64,
    "times": tf.float64,
}


def batch_tensors(batch: TrainBatch, context: DeviceContext) -> Batch:
    """Return the fields of a batch as tensors on the device."""

    def tensor(name: str, array: NDArray) -> tf.Tensor:
        return context.images(array) if array.ndim == 4 else context.tensor(array, _TYPES.get(name))

    return Batch(*(None if array is None else tensor(name, array) for name, array in vars(batch).items()))


def split_batch(b: Batch, count: int) -> Callable[[tf.Tensor], Batch]:
    """Split a batch into equal micro-batches whose losses sum to the batch loss."""
    scaled = b._replace(importance=b.importance / count, dropout_key=None)
    stacked = [None if t is None else tf.reshape(t, [count, -1, *t.shape[1:]]) for t in scaled]
    return lambda i: Batch(*(None if t is None else t[i] for t in stacked))._replace(dropout_key=b.dropout_key)


def _to_pixels(column: tf.Tensor) -> tf.Tensor:
    return column[:, None, None, None]


def noised(batch: TrainBatch, context: DeviceContext) -> tuple[NDArray, NDArray]:
    """Return (x_t, target) of a batch, as the training step computes them."""
    x, target = noised_and_target(batch_tensors(batch, context))
    return to_host(x), to_host(target)


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.math.erfc(-math.sqrt(0.5) * x)


def _tanh_cdf(x: tf.Tensor) -> tf.Tensor:
    # (1 + tanh z) / 2 = sigmoid(2 z), which keeps the digits of small probabilities.
    return tf.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))


def _variational_bound(b: Batch, residual: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """Return the weighted variational bound of each image; see `diffusion_core.backend.interface.TrainBatch`."""
    *columns, weight = tf.unstack(b.variational[:, :8], axis=1)
    offset, scale, error, half_bin, lowest, highest, mean_gradient = map(_to_pixels, columns)
    cdf = _tanh_cdf if b.variational.shape[1] > 8 else _normal_cdf
    detached = tf.stop_gradient(residual)
    u = offset + scale * variance if variance.shape[-1] else offset  # a fixed variance needs no output
    e = error * (detached + mean_gradient * (residual - detached))
    divergence = 0.5 * (u + tf.math.expm1(-u) + tf.exp(-u) * tf.square(e))
    black, white = b.images < lowest, b.images > highest
    # Mirror the bin so that its far or open side is at minus infinity, where probabilities are small numbers.
    e = tf.where(black, e, tf.where(white, -e, tf.abs(e)))
    narrow = tf.exp(-0.5 * u)
    beyond = tf.where(black | white, tf.zeros_like(e), cdf(-narrow * (half_bin + e)))
    probability = cdf(narrow * (half_bin - e)) - beyond
    decoder = -tf.math.log(tf.maximum(probability, tf.constant(MIN_PROBABILITY, probability.dtype)))
    return weight * tf.reduce_mean(tf.where(half_bin > 0, decoder, divergence), axis=[1, 2, 3])


def _output(
    network: Network, b: Batch, x: tf.Tensor, estimate: tf.Tensor | None, values: dict[str, tf.Tensor] | None
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Return F in training mode, and the new running statistics by name."""
    training, scaled = Training(b.dropout_key, b.positions, values=values), _to_pixels(b.c_in) * x
    output = network.apply_program(scaled, b.c_noise, b.label, b.features, estimate, training=training)
    return output, training.statistics


def _estimate(network: Network, b: Batch, x: tf.Tensor, values: dict[str, tf.Tensor] | None) -> tf.Tensor | None:
    """Return the estimate of a first pass for self-conditioning; None without it."""
    if b.self_conditioning is None:
        return None
    c_skip, c_out, keep, lowest, highest = map(_to_pixels, tf.unstack(b.self_conditioning, axis=1))
    output, _ = _output(network, b, x, None, values)
    estimate = tf.clip_by_value(c_skip * x + c_out * output[..., : x.shape[-1]], lowest, highest)
    return tf.stop_gradient(keep * estimate)


def loss_tensors(
    network: Network, b: Batch, distance: str, values: dict[str, tf.Tensor] | None = None
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """Return the loss of a batch, the loss of each image, and the new running statistics by name.

    Gradients can flow through the first two; `values` is filled with the value of each block if it is given.
    """
    x, target = noised_and_target(b)
    channels = x.shape[-1]
    output, statistics = _output(network, b, x, _estimate(network, b, x, values), values)
    losses = b.weight * _DISTANCES[distance](output, target, b.label)
    if network.program.uncertainty:
        uncertainty = tf.reduce_mean(output[..., -1], axis=[1, 2])
        losses = tf.exp(-uncertainty) * losses + uncertainty
    if b.variational is not None:
        losses = losses + _variational_bound(b, output[..., :channels] - target, output[..., channels : 2 * channels])
    return tf.reduce_mean(b.importance * losses), losses, statistics


def _known(b: Batch) -> dict[str, tf.Tensor]:
    """Return the values that the steps of a target begin with."""
    return {"images": b.images, "noise": b.noise}


def _by_name(names: tuple[str, ...], table: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return the columns of a table by name."""
    return dict(zip(names, tf.unstack(table, axis=1), strict=True))


def _combine(step: Sum | Unit, values: Mapping[str, tf.Tensor], columns: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Return a linear combination of values, or a value divided by its norm."""
    if isinstance(step, Unit):
        value = values[step.value]
        square = (tf.reduce_mean if step.mean else tf.reduce_sum)(tf.square(value), [1, 2, 3], keepdims=True)
        return value / (tf.sqrt(tf.maximum(square, tf.constant(MIN_SQUARES, square.dtype))) + step.c)
    total = sum((_to_pixels(columns[c]) if isinstance(c, str) else c) * values[name] for c, name in step.terms)
    return total if step.bounds is None else tf.clip_by_value(total, *step.bounds)


def _rows(step: Pass, columns: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
    """Return the indices of the images that a pass evaluates; None for all, as in a graph for batches of any size."""
    size = None if step.rows is None else columns[step.rows.column].shape[0]
    if size is None or size % step.rows.every:
        return None
    every, place = step.rows.every, tf.argmax(tf.reshape(columns[step.rows.column], [-1, step.rows.every]), axis=1)
    return place + every * tf.range(tf.size(place, tf.int64))


def _evaluate(
    networks: Mapping[str, Network],
    b: Batch,
    step: Pass,
    values: Mapping[str, tf.Tensor],
    columns: Mapping[str, tf.Tensor],
    times: Mapping[str, tf.Tensor],
    training: Training,
) -> tuple[tf.Tensor, ...]:
    """Return the outputs of a pass."""
    network, rows = networks[step.network], _rows(step, columns)
    label = tf.fill(tf.shape(b.label), network.program.null_label) if step.null_label else b.label
    given = (label, b.features, values[step.x], times[step.c_noise])
    label, features, x, c_noise = given if rows is None else (tf.gather(value, rows) for value in given)
    features = features[:, : network.program.features]
    if step.second_time is None:
        second = network.second_times(c_noise)
    else:
        second = times[step.second_time] if rows is None else tf.gather(times[step.second_time], rows)
    mode = training if step.trains else None
    if step.direction is None:
        outputs = (network.apply_program(x, c_noise, label, features, None, second, mode),)
    else:
        to = step.direction
        dsecond = tf.zeros_like(second) if to.second_time is None else times[to.second_time]
        direction = values[to.x], times[to.c_noise], dsecond
        outputs = network.derivative((x, c_noise, second), direction, label, features, mode)
    uncertainty = (tf.reduce_mean(outputs[0][..., -1], [1, 2]),) if step.uncertainty else ()
    output, *rate = (value[..., : x.shape[-1]] for value in outputs)
    if rows is not None:
        output = tf.repeat(output, step.rows.every, axis=0)
    return (output if step.gradient else tf.stop_gradient(output), *map(tf.stop_gradient, rate), *uncertainty)


def _scored(distance: Distance, residual: tf.Tensor) -> tf.Tensor:
    """Return the distance of each image."""
    square, c = tf.square(residual), distance.c
    if distance.name in ("squares", "norm"):
        loss = tf.reduce_sum(square, [1, 2, 3])
        if distance.name == "norm":
            loss = tf.sqrt(tf.maximum(loss + c**2, tf.constant(MIN_SQUARES, loss.dtype))) - c
    elif distance.name == "pseudo_huber":
        loss = tf.reduce_mean(square / (tf.sqrt(square + c**2) + c), [1, 2, 3])
    else:
        loss = _DISTANCES[distance.name](residual, tf.zeros_like(residual), None)
    return loss / (tf.stop_gradient(loss) + distance.eps) ** distance.power if distance.power else loss


def target_tensors(
    networks: Mapping[str, Network], b: Batch, target: Target, values: dict[str, tf.Tensor] | None = None
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """Return what `loss_tensors` returns, for a target that needs the network; see `diffusion_core.backend.target`."""
    columns, times = _by_name(target.columns, b.columns), _by_name(target.times, b.times)
    statistics: dict[str, tf.Tensor] = {}

    def evaluate(step: Pass, known: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        training = Training(b.dropout_key, b.positions, values=values if step.gradient else None)
        outputs = _evaluate(networks, b, step, known, columns, times, training)
        if step.gradient:
            statistics.update(training.statistics)
        return outputs

    known = run(target, _known(b), lambda step, known: _combine(step, known, columns), evaluate)
    losses = b.weight * _scored(target.distance, known[target.prediction] - tf.stop_gradient(known[target.target]))
    if target.uncertainty is not None:
        losses = tf.exp(-known[target.uncertainty]) * losses + known[target.uncertainty]
    return tf.reduce_mean(b.importance * losses), losses, statistics

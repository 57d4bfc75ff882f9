"""The training step in TensorFlow: noise, forward, backward, clip, AdamW, moving averages, in one graph."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from backends.tf.network import Network, from_canonical, read_parameters, to_host
from diffusion_core.backend.interface import (
    MIN_PROBABILITY,
    PSEUDO_HUBER_C,
    StepResult,
    TrainBatch,
    TrainerState,
    translate_out_of_memory,
)
from diffusion_core.common.text import pluralize
from diffusion_core.networks.program import Program, Training
from diffusion_core.networks.weights import Weights, check_weights
from diffusion_core.optim import update_fractions
from diffusion_core.optim.adam import Adam

__all__ = ["Trainer", "noised", "batch_tensors", "loss_tensors"]


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
_Batch = namedtuple("_Batch", [field.name for field in fields(TrainBatch)])
_TYPES = {
    "label": tf.int32,
    "c_noise": tf.float64,
    "positions": tf.int64,
    "dropout_key": tf.int64,
}


def batch_tensors(batch: TrainBatch, context: DeviceContext) -> _Batch:
    """Return the fields of a batch as tensors on the device."""

    def tensor(name: str, array: NDArray) -> tf.Tensor:
        return context.images(array) if array.ndim == 4 else context.tensor(array, _TYPES.get(name))

    return _Batch(*(None if array is None else tensor(name, array) for name, array in vars(batch).items()))


def _micro_batches(b: _Batch, count: int) -> Callable[[tf.Tensor], _Batch]:
    """Split a batch into equal micro-batches whose losses sum to the batch loss."""
    scaled = b._replace(importance=b.importance / count, dropout_key=None)
    stacked = [None if t is None else tf.reshape(t, [count, -1, *t.shape[1:]]) for t in scaled]
    return lambda i: _Batch(*(None if t is None else t[i] for t in stacked))._replace(dropout_key=b.dropout_key)


def _to_pixels(column: tf.Tensor) -> tf.Tensor:
    return column[:, None, None, None]


def _noised(b: _Batch) -> tuple[tf.Tensor, tf.Tensor]:
    alpha, sigma, target_x0, target_eps = map(_to_pixels, (b.alpha, b.sigma, b.target_x0, b.target_eps))
    return alpha * b.images + sigma * b.noise, target_x0 * b.images + target_eps * b.noise


def noised(batch: TrainBatch, context: DeviceContext) -> tuple[NDArray, NDArray]:
    """Return (x_t, target) of a batch, as the training step computes them."""
    x, target = _noised(batch_tensors(batch, context))
    return to_host(x), to_host(target)


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.math.erfc(-math.sqrt(0.5) * x)


def _variational_bound(b: _Batch, residual: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """Return the weighted variational bound of each image; see `diffusion_core.backend.interface.TrainBatch`."""
    *columns, weight = tf.unstack(b.variational, axis=1)
    offset, scale, error, half_bin, lowest, highest, mean_gradient = map(_to_pixels, columns)
    detached = tf.stop_gradient(residual)
    u = offset + scale * variance if variance.shape[-1] else offset  # a fixed variance needs no output
    e = error * (detached + mean_gradient * (residual - detached))
    divergence = 0.5 * (u + tf.math.expm1(-u) + tf.exp(-u) * tf.square(e))
    black, white = b.images < lowest, b.images > highest
    # Mirror the bin so that its far or open side is at minus infinity, where probabilities are small numbers.
    e = tf.where(black, e, tf.where(white, -e, tf.abs(e)))
    narrow = tf.exp(-0.5 * u)
    beyond = tf.where(black | white, tf.zeros_like(e), _normal_cdf(-narrow * (half_bin + e)))
    probability = _normal_cdf(narrow * (half_bin - e)) - beyond
    decoder = -tf.math.log(tf.maximum(probability, tf.constant(MIN_PROBABILITY, probability.dtype)))
    return weight * tf.reduce_mean(tf.where(half_bin > 0, decoder, divergence), axis=[1, 2, 3])


def _output(
    network: Network, b: _Batch, x: tf.Tensor, estimate: tf.Tensor | None, values: dict[str, tf.Tensor] | None
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Return F in training mode, and the new running statistics by name."""
    training, scaled = Training(b.dropout_key, b.positions, values=values), _to_pixels(b.c_in) * x
    output = network.apply_program(scaled, b.c_noise, b.label, b.features, estimate, training)
    return output, training.statistics


def _estimate(network: Network, b: _Batch, x: tf.Tensor, values: dict[str, tf.Tensor] | None) -> tf.Tensor | None:
    """Return the estimate of a first pass for self-conditioning; None without it."""
    if b.self_conditioning is None:
        return None
    c_skip, c_out, keep, lowest, highest = map(_to_pixels, tf.unstack(b.self_conditioning, axis=1))
    output, _ = _output(network, b, x, None, values)
    estimate = tf.clip_by_value(c_skip * x + c_out * output[..., : x.shape[-1]], lowest, highest)
    return tf.stop_gradient(keep * estimate)


def loss_tensors(
    network: Network, b: _Batch, distance: str, values: dict[str, tf.Tensor] | None = None
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """Return the loss of a batch, the loss of each image, and the new running statistics by name.

    Gradients can flow through the first two; `values` is filled with the value of each block if it is given.
    """
    x, target = _noised(b)
    channels = x.shape[-1]
    output, statistics = _output(network, b, x, _estimate(network, b, x, values), values)
    losses = b.weight * _DISTANCES[distance](output, target, b.label)
    if network.program.uncertainty:
        uncertainty = tf.reduce_mean(output[..., -1], axis=[1, 2])
        losses = tf.exp(-uncertainty) * losses + uncertainty
    if b.variational is not None:
        losses = losses + _variational_bound(b, output[..., :channels] - target, output[..., channels : 2 * channels])
    return tf.reduce_mean(b.importance * losses), losses, statistics


# The scalars of an update that changes nothing; the fractions of the averages, which follow them, are then 0.
_NO_UPDATE = (1, 1, 1, 1, 0, 0, 0, 1, 1)


class Trainer:
    """See `diffusion_core.backend.interface.Trainer`."""

    def __init__(
        self, program: Program, state: TrainerState, adam: Adam, distance: str, context: DeviceContext
    ) -> None:
        self.program, self.adam, self.context = program, adam, context
        self.distance = distance
        self.network = Network(program, state.weights, context)
        self.tensors = self.network.tensors_by_name()
        self.parameters = {p.name: self.tensors[p.name] for p in program.trained}
        self.averages = [self._tensors_like(average, "moving average") for average in state.averages]
        self.updates, self.values = state.updates, None
        self.decays = frozenset(p.name for p in program.trained if p.decay and adam.weight_decay)
        self.moment1 = self._tensors_like(state.moment1, "first moment")
        self.moment2 = self._tensors_like(state.moment2, "second moment")
        with tf.device(context.device):
            self.non_finite = tf.Variable(False)
        self.accumulate = context.function(self._accumulate)
        self.apply = context.function(self._apply)
        self.full_step = context.function(self._full_step)

    def __repr__(self) -> str:
        return f"Trainer({self.program!r}, {pluralize(self.updates, 'update')}, {self.context.device.strip('/')})"

    def _tensors_like(self, arrays: Weights, source: str) -> dict[str, tf.Variable]:
        """Return arrays as variables with the axes of the network."""
        check_weights(self.program, arrays, source)
        with tf.device(self.context.device):
            return {
                p.name: tf.Variable(self.context.tensor(from_canonical(arrays[p.name], p.axes)))
                for p in self.program.parameters
            }

    def _loss(self, b: _Batch) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Return the loss, the loss of each image, and the new running statistics by name."""
        return loss_tensors(self.network, b, self.distance, self.values)

    def _loss_and_gradients(self, b: _Batch) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], dict[str, tf.Tensor]]:
        """Return the results of `_loss` and the gradients."""
        parameters = list(self.parameters.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            loss, losses, statistics = self._loss(b)
        unused = tf.UnconnectedGradients.ZERO  # an own network need not use all of its parameters
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, parameters, None, unused)]
        return loss, losses, gradients, statistics

    def _accumulate(
        self, b: _Batch, micro_batches: int
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], dict[str, tf.Tensor]]:
        """Return what `_loss_and_gradients` returns, summed over equal micro-batches."""
        if micro_batches == 1:
            return self._loss_and_gradients(b)
        micro_batch, size = _micro_batches(b, micro_batches), b.label.shape[0] // micro_batches

        def add(i: tf.Tensor, total: tf.Tensor, losses: tf.TensorArray, sums: list[tf.Tensor]) -> tuple:
            loss, part, gradients, _ = self._loss_and_gradients(micro_batch(i))
            return i + 1, total + loss, losses.write(i, part), [s + g for s, g in zip(sums, gradients, strict=True)]

        losses = tf.TensorArray(b.weight.dtype, micro_batches, element_shape=[size])
        start = 0, tf.zeros([], b.weight.dtype), losses, [tf.zeros_like(p) for p in self.parameters.values()]
        _, loss, losses, gradients = tf.while_loop(
            lambda i, *_: i < micro_batches, add, start, parallel_iterations=1, maximum_iterations=micro_batches
        )
        return loss, losses.concat(), gradients, {}

    def _all_reduce(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return the loss and the gradients summed over all processes."""
        loss, *gradients = self.context.communicator.all_reduce([loss, *gradients])
        return loss, gradients

    def _apply(
        self, loss: tf.Tensor, gradients: list[tf.Tensor], statistics: dict[str, tf.Tensor], scalars: tf.Tensor
    ) -> tf.Tensor:
        """Apply the clip, the running statistics, the optimiser and the averages; return the gradient norm.

        `scalars` are those of `_update_scalars`.
        """
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in gradients]))
        non_finite = self.non_finite.assign(self.non_finite | ~tf.math.is_finite(norm + loss))
        for name, value in statistics.items():
            self.tensors[name].assign(tf.where(non_finite, self.tensors[name], value))
        no_update = tf.constant([*_NO_UPDATE, *[0] * (scalars.shape[0] - len(_NO_UPDATE))], scalars.dtype)
        clip, shrink, beta1, beta2, fresh1, fresh2, rate, correction2, eps, *fractions = tf.unstack(
            tf.where(non_finite, no_update, scalars)
        )
        factor = tf.minimum(tf.constant(1, norm.dtype), clip / (norm + tf.constant(1e-6, norm.dtype)))
        factor = tf.where(non_finite, tf.zeros_like(factor), factor)
        for (name, p), gradient in zip(self.parameters.items(), gradients, strict=True):
            g = tf.math.multiply_no_nan(gradient, factor)
            m = self.moment1[name].assign(beta1 * self.moment1[name] + fresh1 * g)
            v = self.moment2[name].assign(beta2 * self.moment2[name] + fresh2 * tf.square(g))
            decayed = p * shrink if name in self.decays else p
            p = p.assign(decayed - rate * m / (tf.sqrt(v) / correction2 + eps))
            for average, fraction in zip(self.averages, fractions, strict=True):
                average[name].assign_add(fraction * (p - average[name]))
        for name in self.tensors.keys() - self.parameters.keys():
            for average, fraction in zip(self.averages, fractions, strict=True):
                average[name].assign_add(fraction * (self.tensors[name] - average[name]))
        return norm

    def _full_step(self, b: _Batch, micro_batches: int, scalars: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Run `_accumulate` and `_apply` in one graph: faster, but running out of memory may leave half an update."""
        loss, losses, gradients, statistics = self._accumulate(b, micro_batches)
        return loss, losses, self._apply(loss, gradients, statistics, scalars)

    def _update_scalars(self, lr: float, decays: Sequence[float]) -> tf.Tensor:
        """Return the scalars of the next update, computed in float64 on the host and cast at the end."""
        adam, fractions = self.adam, update_fractions(decays, len(self.averages))
        correction1, correction2 = adam.bias_corrections(self.updates + 1)
        clip = np.inf if adam.clip is None else adam.clip
        shrink = 1.0 - lr * adam.weight_decay
        fresh = (1.0 - adam.beta1, 1.0 - adam.beta2)
        return self.context.tensor(
            np.array(
                [clip, shrink, adam.beta1, adam.beta2, *fresh, lr / correction1, correction2, adam.eps, *fractions]
            )
        )

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, may_repeat: bool = False
    ) -> StepResult:
        """Run forward, backward, running statistics, clip, optimiser and averages."""
        scalars = self._update_scalars(lr, decays)
        if self.context.communicator.group.size == 1 and not may_repeat:
            with self.context.translate_out_of_memory(changes=True):
                loss, losses, norm = self.full_step(batch_tensors(batch, self.context), micro_batches, scalars)
        else:
            with (
                self.context.translate_out_of_memory()
            ):  # before communication, so that one process alone can repeat it
                loss, losses, gradients, statistics = self.accumulate(batch_tensors(batch, self.context), micro_batches)
            with self.context.translate_out_of_memory(changes=True):
                loss, gradients = self._all_reduce(loss, gradients)
                norm = self.apply(loss, gradients, statistics, scalars)
        self.updates += 1
        return StepResult(loss, norm, losses.numpy)

    def clear_non_finite(self) -> None:
        """Allow updates again after a step that was not finite."""
        self.non_finite.assign(False)

    @translate_out_of_memory
    def gradients(self, batch: TrainBatch, micro_batches: int = 1) -> tuple[float, Weights]:
        """Return (loss, gradients by name) of the first half of a step, unclipped; change nothing."""
        loss, _, gradients, _ = self.accumulate(batch_tensors(batch, self.context), micro_batches)
        loss, gradients = self._all_reduce(loss, gradients)
        return float(loss), read_parameters(self.program, dict(zip(self.parameters, gradients, strict=True)))

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """Apply the second half of a step with these gradients, and return their global norm."""
        check_weights(self.program, gradients, "gradients", trained=True)
        tensors = [self.context.tensor(from_canonical(gradients[p.name], p.axes)) for p in self.program.trained]
        norm = float(self.apply(tf.zeros([], self.context.dtype), tensors, {}, self._update_scalars(lr, decays)))
        self.updates += 1
        return norm

    @translate_out_of_memory
    def activations(self, batch: TrainBatch) -> dict[str, NDArray]:
        """Return the value of each block in the training pass of a batch, and the loss of each image, by name."""
        self.values = {}
        _, losses, _ = self._loss(batch_tensors(batch, self.context))
        values, self.values = self.values | {"losses": losses}, None
        return {name: to_host(tf.cast(value, self.context.dtype)) for name, value in values.items()}

    def state(self) -> TrainerState:
        """Return all that is needed to resume exactly."""
        return TrainerState(
            weights=self.network.weights(),
            averages=tuple(read_parameters(self.program, average) for average in self.averages),
            moment1=read_parameters(self.program, self.moment1),
            moment2=read_parameters(self.program, self.moment2),
            updates=self.updates,
        )

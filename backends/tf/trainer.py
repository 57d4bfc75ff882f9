"""The training step in TensorFlow: noise, forward, backward, clip, AdamW, moving averages, in one graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import Place
from backends.tf.network import Network, from_canonical, read_parameters, to_host
from diffusion_core.backend import PSEUDO_HUBER_C, StepResult, TrainBatch, TrainerState
from diffusion_core.ema import shares
from diffusion_core.optimiser import Adam
from diffusion_core.unet.program import Program, Training
from diffusion_core.weights import Weights, check_weights

__all__ = ["Trainer", "noised"]


def _huber(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    size = tf.abs(a - b)
    return tf.where(size <= 1, 0.5 * tf.square(a - b), size - 0.5)


def _pseudo_huber(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    square = tf.math.squared_difference(a, b)
    return square / (tf.sqrt(square + PSEUDO_HUBER_C**2) + PSEUDO_HUBER_C)


_DISTANCES = {
    "mse": tf.math.squared_difference,
    "l1": lambda a, b: tf.abs(a - b),
    "huber": _huber,
    "pseudo_huber": _pseudo_huber,
}


def _tensors(batch: TrainBatch, place: Place) -> tuple[tf.Tensor, ...]:
    """The fields of a batch on the device, columns ready to multiply images."""
    columns = (batch.alpha, batch.sigma, batch.c_in, batch.target_x0, batch.target_eps)
    return (
        place.images(batch.images),
        place.images(batch.noise),
        place.tensor(batch.label, tf.int32),
        place.tensor(batch.c_noise, tf.float64),
        place.tensor(batch.weight),
        place.tensor(batch.features),
        place.tensor(batch.positions, tf.int64),
        place.tensor(batch.dropout_key, tf.int64),
        *(place.tensor(column[:, None, None, None]) for column in columns),
    )


def _noised(x0, eps, alpha, sigma, target_x0, target_eps) -> tuple[tf.Tensor, tf.Tensor]:
    return alpha * x0 + sigma * eps, target_x0 * x0 + target_eps * eps


def noised(batch: TrainBatch, place: Place) -> tuple[NDArray, NDArray]:
    """(x_t, target) of a batch, as the training step computes them."""
    x0, eps, *_, alpha, sigma, _, target_x0, target_eps = _tensors(batch, place)
    x, target = _noised(x0, eps, alpha, sigma, target_x0, target_eps)
    return to_host(x), to_host(target)


class Trainer:
    """See `diffusion_core.backend.Trainer`."""

    def __init__(self, program: Program, state: TrainerState, adam: Adam, distance: str, place: Place) -> None:
        self.program, self.adam, self.place = program, adam, place
        self.distance = _DISTANCES[distance]
        self.network = Network(program, state.weights, place)
        self.tensors = self.network.tensors_by_name()
        self.parameters = {p.name: self.tensors[p.name] for p in program.trained}
        self.averages = [self._like(average, "moving average") for average in state.averages]
        self.updates = state.updates
        self.decays = frozenset(p.name for p in program.trained if p.decay and adam.weight_decay)
        self.moment1 = self._like(state.moment1, "first moment")
        self.moment2 = self._like(state.moment2, "second moment")
        self.loss_and_gradients = place.function(self._loss_and_gradients)
        self.apply = place.function(self._apply)
        self.whole_step = place.function(self._whole_step)

    def _like(self, arrays: Weights, what: str) -> dict[str, tf.Variable]:
        """Arrays as variables with the layout of the network's."""
        check_weights(self.program, arrays, what)
        with tf.device(self.place.device):
            return {
                p.name: tf.Variable(self.place.tensor(from_canonical(arrays[p.name], p.axes)))
                for p in self.program.parameters
            }

    def _loss(
        self, x0, eps, label, c_noise, weight, features, positions, key, alpha, sigma, c_in, target_x0, target_eps
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The loss, and the new running statistics by name."""
        x, target = _noised(x0, eps, alpha, sigma, target_x0, target_eps)
        training = Training(key, positions)
        output = self.network.apply_program(c_in * x, c_noise, label, features, training)[..., : x.shape[-1]]
        loss = tf.reduce_mean(weight * tf.reduce_mean(self.distance(output, target), axis=[1, 2, 3]))
        return loss, training.statistics

    def _loss_and_gradients(self, *batch: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor], dict[str, tf.Tensor]]:
        parameters = list(self.parameters.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            loss, statistics = self._loss(*batch)
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, parameters)]
        return loss, gradients, statistics

    def _apply(self, gradients: list[tf.Tensor], numbers: tf.Tensor) -> tf.Tensor:
        """Clip, optimiser and averages; `numbers` are those of `_numbers`."""
        clip, shrink, beta1, beta2, fresh1, fresh2, rate, correction2, eps, *mixes = tf.unstack(numbers)
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in gradients]))
        factor = tf.minimum(tf.constant(1, norm.dtype), clip / (norm + tf.constant(1e-6, norm.dtype)))
        for (name, p), gradient in zip(self.parameters.items(), gradients, strict=True):
            g = gradient * factor
            m = self.moment1[name].assign(beta1 * self.moment1[name] + fresh1 * g)
            v = self.moment2[name].assign(beta2 * self.moment2[name] + fresh2 * tf.square(g))
            kept = p * shrink if name in self.decays else p
            p = p.assign(kept - rate * m / (tf.sqrt(v) / correction2 + eps))
            for average, mix in zip(self.averages, mixes, strict=True):
                average[name].assign_add(mix * (p - average[name]))
        for name in self.tensors.keys() - self.parameters.keys():
            for average, mix in zip(self.averages, mixes, strict=True):
                average[name].assign_add(mix * (self.tensors[name] - average[name]))
        return norm

    def _whole_step(self, batch: tuple[tf.Tensor, ...], numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, gradients, statistics = self._loss_and_gradients(*batch)
        for name, value in statistics.items():
            self.tensors[name].assign(value)
        return loss, self._apply(gradients, numbers)

    def _numbers(self, lr: float, decays: Sequence[float]) -> tf.Tensor:
        """The scalars of this update, computed in float64 on the host and cast once."""
        adam, mixes = self.adam, shares(decays, len(self.averages))
        self.updates += 1
        correction1, correction2 = adam.corrections(self.updates)
        clip = np.inf if adam.clip is None else adam.clip
        shrink = 1.0 - lr * adam.weight_decay
        fresh = (1.0 - adam.beta1, 1.0 - adam.beta2)
        return self.place.tensor(
            np.array([clip, shrink, adam.beta1, adam.beta2, *fresh, lr / correction1, correction2, adam.eps, *mixes])
        )

    def step(self, batch: TrainBatch, lr: float, decays: Sequence[float]) -> StepResult:
        """Forward, backward, running statistics, clip, optimiser, averages."""
        loss, norm = self.whole_step(_tensors(batch, self.place), self._numbers(lr, decays))
        return StepResult(loss, norm)

    def gradients(self, batch: TrainBatch) -> tuple[float, Weights]:
        """The first half of a step: (loss, gradient by name), unclipped; nothing is changed."""
        loss, gradients, _ = self.loss_and_gradients(*_tensors(batch, self.place))
        return float(loss), read_parameters(self.program, dict(zip(self.parameters, gradients, strict=True)))

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """The second half of a step, with given gradients; returns their global norm."""
        check_weights(self.program, gradients, "gradients", trained=True)
        tensors = [self.place.tensor(from_canonical(gradients[p.name], p.axes)) for p in self.program.trained]
        return float(self.apply(tensors, self._numbers(lr, decays)))

    def state(self) -> TrainerState:
        """Everything that must be kept to go on exactly."""
        return TrainerState(
            weights=self.network.weights(),
            averages=tuple(read_parameters(self.program, average) for average in self.averages),
            moment1=read_parameters(self.program, self.moment1),
            moment2=read_parameters(self.program, self.moment2),
            updates=self.updates,
        )

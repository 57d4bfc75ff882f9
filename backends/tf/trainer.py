"""The training step in TensorFlow: loss, backward, clip, optimiser, moving averages, in one graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from backends.tf.loss import Batch, batch_tensors, loss_tensors, split_batch, target_tensors
from backends.tf.magnitude import normalise_weight
from backends.tf.module import from_canonical
from backends.tf.network import Network, to_host
from backends.tf.optimiser import Updater
from diffusion_core.backend.base_trainer import BaseTrainer
from diffusion_core.backend.interface import StepResult, TrainBatch, TrainerState, translate_out_of_memory
from diffusion_core.backend.target import Target
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights, check_weights
from diffusion_core.optim import update_fractions
from diffusion_core.optim.optimiser import Optimiser

__all__ = ["Trainer"]


class Trainer(BaseTrainer):
    """See `diffusion_core.backend.interface.Trainer`."""

    make_network, make_updater = Network, Updater
    batch_tensors, loss_tensors = staticmethod(batch_tensors), staticmethod(loss_tensors)
    target_tensors = staticmethod(target_tensors)

    def __init__(
        self,
        program: Program,
        state: TrainerState,
        optimiser: Optimiser,
        distance: str | Target,
        context: DeviceContext,
    ) -> None:
        super().__init__(program, state, optimiser, distance, context)
        with tf.device(context.device):
            self.non_finite = tf.Variable(False)
        self.accumulate = context.function(self._accumulate)
        self.apply = context.function(self._apply)
        self.full_step = context.function(self._full_step)

    def _tensors_like(self, arrays: Weights, source: str) -> dict[str, tf.Variable]:
        """Return arrays as variables with the axes of the network."""
        check_weights(self.program, arrays, source)
        with tf.device(self.context.device):
            return {
                p.name: tf.Variable(self.context.tensor(from_canonical(arrays[p.name], p.axes)))
                for p in self.program.parameters
            }

    def _gradient_tensors(self, gradients: Weights) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return (a loss of zero, gradients as tensors)."""
        tensors = [self.context.tensor(from_canonical(gradients[p.name], p.axes)) for p in self.program.trained]
        return tf.zeros([], self.context.dtype), tensors

    def _loss_and_gradients(self, b: Batch) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], dict[str, tf.Tensor]]:
        """Return the results of `_loss` and the gradients."""
        parameters = list(self.parameters.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parameters)
            loss, losses, statistics = self._loss(b)
        unused = tf.UnconnectedGradients.ZERO  # an own network need not use all of its parameters
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, parameters, None, unused)]
        return loss, losses, gradients, statistics

    def _accumulate(
        self, b: Batch, micro_batches: int
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor], dict[str, tf.Tensor]]:
        """Return what `_loss_and_gradients` returns, summed over equal micro-batches."""
        if micro_batches == 1:
            return self._loss_and_gradients(b)
        micro_batch, size = split_batch(b, micro_batches), b.label.shape[0] // micro_batches

        def add(i: tf.Tensor, total: tf.Tensor, losses: tf.TensorArray, sums: list[tf.Tensor]) -> tuple:
            loss, part, gradients, _ = self._loss_and_gradients(micro_batch(i))
            return i + 1, total + loss, losses.write(i, part), [s + g for s, g in zip(sums, gradients, strict=True)]

        losses = tf.TensorArray(b.weight.dtype, micro_batches, element_shape=[size])
        start = 0, tf.zeros([], b.weight.dtype), losses, [tf.zeros_like(p) for p in self.parameters.values()]
        _, loss, losses, gradients = tf.while_loop(
            lambda i, *_: i < micro_batches, add, start, parallel_iterations=1, maximum_iterations=micro_batches
        )
        return loss, losses.concat(), gradients, {}

    def _apply(
        self, loss: tf.Tensor, gradients: list[tf.Tensor], statistics: dict[str, tf.Tensor], scalars: tf.Tensor
    ) -> tf.Tensor:
        """See `apply`; `scalars` are those of `_update_scalars`."""
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in gradients]))
        non_finite = self.non_finite.assign(self.non_finite | ~tf.math.is_finite(norm + loss))
        names = list(self.optimiser.scalars(1, 1.0))
        clip, *rest = tf.unstack(scalars)
        factor = tf.minimum(tf.constant(1, norm.dtype), clip / (norm + tf.constant(1e-6, norm.dtype)))

        def update() -> tf.Tensor:
            for name, value in statistics.items():
                self.tensors[name].assign(value)
            self._force_normalisation()
            self.updater.apply([g * factor for g in gradients], dict(zip(names, rest, strict=False)))
            for name, tensor in (self.tensors | self.updater.moved).items():
                for average, fraction in zip(self.averages, rest[len(names) :], strict=True):
                    average[name].assign_add(fraction * (tensor - average[name]))
            return non_finite

        tf.cond(non_finite, lambda: non_finite, update)
        return norm

    def _force_normalisation(self) -> None:
        """Start the update from weights with normalised rows, see `diffusion_core.optim.normalisation`."""
        for name, eps in self.program.normalised.items():
            weight = self.parameters[name]
            weight.assign(normalise_weight(weight, eps))

    def _full_step(self, b: Batch, micro_batches: int, scalars: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Run `_accumulate` and `_apply` in one graph: faster, but running out of memory may leave half an update."""
        loss, losses, gradients, statistics = self._accumulate(b, micro_batches)
        return loss, losses, self._apply(loss, gradients, statistics, scalars)

    def _update_scalars(self, lr: float, decays: Sequence[float]) -> tf.Tensor:
        """Return the scalars of the next update, computed in float64 on the host and cast at the end."""
        clip = np.inf if self.optimiser.clip is None else self.optimiser.clip
        own = self.optimiser.scalars(self.updates + 1, lr).values()
        return self.context.tensor(np.array([clip, *own, *update_fractions(decays, len(self.averages))]))

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, may_repeat: bool = False
    ) -> StepResult:
        """Run forward, backward, running statistics, clip, optimiser and averages."""
        if self.context.communicator.group.size > 1 or may_repeat:
            return super().step(batch, lr, decays, micro_batches, may_repeat)
        scalars = self._update_scalars(lr, decays)
        with self.context.translate_out_of_memory(changes=True):
            loss, losses, norm = self.full_step(batch_tensors(batch, self.context), micro_batches, scalars)
        self.updates += 1
        return StepResult(loss, norm, losses.numpy)

    def clear_non_finite(self) -> None:
        """Allow updates again after a step that was not finite."""
        self.non_finite.assign(False)

    @translate_out_of_memory
    def activations(self, batch: TrainBatch) -> dict[str, NDArray]:
        """Return the value of each block in the training pass of a batch, and the loss of each image, by name."""
        self.values = {}
        _, losses, _ = self._loss(batch_tensors(batch, self.context))
        values, self.values = self.values | {"losses": losses}, None
        return {name: to_host(tf.cast(value, self.context.dtype)) for name, value in values.items()}

"""The training step in PyTorch: loss, backward, clip, optimiser, moving averages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.device import DeviceContext
from backends.torch.loss import Batch, batch_tensors, loss_tensors, split_batch, target_tensors
from backends.torch.magnitude import normalise_weight
from backends.torch.network import Network, read_parameters, to_host
from backends.torch.optimiser import Updater
from diffusion_core.backend.interface import (
    StepResult,
    TrainBatch,
    TrainerState,
    translate_out_of_memory,
)
from diffusion_core.backend.target import Target
from diffusion_core.common.text import pluralize
from diffusion_core.networks.program import Program, Training
from diffusion_core.networks.weights import Weights, check_weights
from diffusion_core.optim import update_fractions
from diffusion_core.optim.optimiser import Optimiser

__all__ = ["Trainer"]


@contextmanager
def _modes(networks: Mapping[str, Network], b: Batch) -> Iterator[None]:
    """Return the context of a training pass; a teacher is in evaluation mode."""
    with ExitStack() as stack:
        for name, network in networks.items():
            stack.enter_context(network.mode(None if name == "teacher" else Training(b.dropout_key, b.positions)))
        yield


def _forget_gradients(parameters: Mapping[str, Tensor]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


class Trainer:
    """See `diffusion_core.backend.interface.Trainer`."""

    def __init__(
        self,
        program: Program,
        state: TrainerState,
        optimiser: Optimiser,
        distance: str | Target,
        context: DeviceContext,
    ) -> None:
        self.program, self.optimiser, self.context = program, optimiser, context
        self.distance = distance
        self.network = Network(program, state.weights, context)
        self.tensors = self.network.tensors_by_name()
        self.parameters = {p.name: self.tensors[p.name] for p in program.trained}
        self.averages = [self._tensors_like(average, "moving average") for average in state.averages]
        self.networks = self._make_networks(state)
        self.updates, self.values = state.updates, None
        self.updater = Updater(optimiser, program, state, self.tensors, context)
        self.non_finite = torch.zeros((), dtype=torch.bool, device=context.device)
        self.loss = context.function(self._loss)
        self.accumulate = self._accumulate

    def __repr__(self) -> str:
        return f"Trainer({self.program!r}, {pluralize(self.updates, 'update')}, {self.context.device})"

    def _tensors_like(self, arrays: Weights, source: str, trained: bool = False) -> dict[str, Tensor]:
        """Return arrays as tensors with the memory layout of the network."""
        check_weights(self.program, arrays, source, trained)
        return {
            name: torch.empty_like(tensor, requires_grad=False).copy_(self.context.tensor(arrays[name]))
            for name, tensor in (self.parameters if trained else self.tensors).items()
        }

    def _make_networks(self, state: TrainerState) -> dict[str, Network]:
        """Return the networks of a target; that of the average has the tensors of the last average."""
        networks, used = {"trained": self.network}, getattr(self.distance, "networks", ())
        if "average" in used:
            average = networks["average"] = Network(self.program, state.averages[-1], self.context)
            self.averages[-1] = {name: tensor.detach() for name, tensor in average.tensors_by_name().items()}
        if "teacher" in used:
            teacher = self.distance.teacher
            networks["teacher"] = Network(teacher.program, teacher.weights, self.context)
        return networks

    def _loss(self, b: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss, the loss of each image, and the new running statistics by name."""
        if isinstance(self.distance, Target):
            return target_tensors(self.networks, b, self.distance, self.values)
        return loss_tensors(self.network, b, self.distance, self.values)

    def _loss_and_gradients(self, b: Batch) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """Return the results of `_loss` and the gradients, accumulated since the last `zero_grad`."""
        with _modes(self.networks, b):
            loss, losses, statistics = self.loss(b)
            loss.backward()
        return loss.detach(), losses.detach(), [p.grad for p in self.parameters.values()], statistics

    def _accumulate(self, b: Batch, micro_batches: int) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """Return what `_loss_and_gradients` returns, summed over equal micro-batches."""
        _forget_gradients(self.parameters)  # of an abandoned step
        total, image_losses = 0.0, []
        for micro_batch in split_batch(b, micro_batches):
            loss, losses, gradients, statistics = self._loss_and_gradients(micro_batch)
            total, image_losses = total + loss, [*image_losses, losses]
        return total, torch.cat(image_losses), gradients, statistics

    def _all_reduce(self, loss: Tensor, gradients: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss and the gradients summed over all processes."""
        loss, *gradients = self.context.communicator.all_reduce([loss, *gradients])
        return loss, gradients

    @torch.no_grad()
    def _apply(
        self,
        loss: Tensor | float,
        gradients: Sequence[Tensor],
        statistics: dict[str, Tensor],
        lr: float,
        decays: Sequence[float],
    ) -> Tensor:
        """Apply the clip, the running statistics, the optimiser and the averages; return the gradient norm."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        fractions = update_fractions(decays, len(self.averages))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.optimiser.clip or math.inf)
        self.non_finite = self.non_finite | ~torch.isfinite(norm + loss)
        for name, value in statistics.items():
            self.tensors[name].copy_(torch.where(self.non_finite, self.tensors[name], value))
        self._force_normalisation()
        self.updater.apply(gradients, self.non_finite, self.updates + 1, lr)
        _forget_gradients(self.parameters)
        tensors = [tensor.detach() for tensor in (self.tensors | self.updater.moved).values()]
        for average, fraction in zip(self.averages, fractions, strict=True):
            weight = torch.where(self.non_finite, 0.0, torch.full_like(norm, fraction, dtype=self.context.dtype))
            torch._foreach_lerp_(list(average.values()), tensors, [weight] * len(tensors))
        return norm

    def _force_normalisation(self) -> None:
        """Start the update from weights with normalised rows, see `diffusion_core.optim.normalisation`."""
        for name, eps in self.program.normalised.items():
            weight = self.parameters[name]
            weight.copy_(torch.where(self.non_finite, weight, normalise_weight(weight, eps)))

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, may_repeat: bool = False
    ) -> StepResult:
        """Run forward, backward, running statistics, clip, optimiser and averages."""
        with self.context.translate_out_of_memory():  # before communication, so that one process alone can repeat it
            loss, losses, gradients, statistics = self.accumulate(batch_tensors(batch, self.context), micro_batches)
        with self.context.translate_out_of_memory(changes=True):
            loss, gradients = self._all_reduce(loss, gradients)
            norm = self._apply(loss, gradients, statistics, lr, decays)
        self.updates += 1
        return StepResult(loss, norm, lambda: losses.cpu().numpy())

    def clear_non_finite(self) -> None:
        """Allow updates again after a step that was not finite."""
        self.non_finite = torch.zeros_like(self.non_finite)

    @translate_out_of_memory
    def gradients(self, batch: TrainBatch, micro_batches: int = 1) -> tuple[float, Weights]:
        """Return (loss, gradients by name) of the first half of a step, unclipped; change nothing."""
        loss, _, gradients, _ = self.accumulate(batch_tensors(batch, self.context), micro_batches)
        loss, gradients = self._all_reduce(loss, gradients)
        _forget_gradients(self.parameters)
        return float(loss), read_parameters(dict(zip(self.parameters, gradients, strict=True)))

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """Apply the second half of a step with these gradients, and return their global norm."""
        tensors = list(self._tensors_like(gradients, "gradients", trained=True).values())
        norm = float(self._apply(0.0, tensors, {}, lr, decays))
        self.updates += 1
        return norm

    @translate_out_of_memory
    @torch.no_grad()
    def activations(self, batch: TrainBatch) -> dict[str, NDArray]:
        """Return the value of each block in the training pass of a batch, and the loss of each image, by name."""
        self.values, b = {}, batch_tensors(batch, self.context)
        with _modes(self.networks, b):
            _, losses, _ = self._loss(b)
        values, self.values = self.values | {"losses": losses}, None
        return {name: to_host(value.to(self.context.dtype)) for name, value in values.items()}

    def state(self) -> TrainerState:
        """Return all that is needed to resume exactly."""
        return TrainerState(
            weights=self.network.weights() | read_parameters(self.updater.moved),
            averages=tuple(read_parameters(average) for average in self.averages),
            slots=self.updater.read_slots(),
            updates=self.updates,
        )

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
from backends.torch.network import Network, to_host
from backends.torch.optimiser import Updater
from diffusion_core.backend.base_trainer import BaseTrainer
from diffusion_core.backend.interface import TrainBatch, TrainerState, translate_out_of_memory
from diffusion_core.backend.target import Target
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
        self.non_finite = torch.zeros((), dtype=torch.bool, device=context.device)
        self.loss = context.function(self._loss)

    def _tensors_like(self, arrays: Weights, source: str) -> dict[str, Tensor]:
        """Return arrays as tensors with the memory layout of the network."""
        check_weights(self.program, arrays, source)
        return {
            name: torch.empty_like(tensor, requires_grad=False).copy_(self.context.tensor(arrays[name]))
            for name, tensor in self.tensors.items()
        }

    def _gradient_tensors(self, gradients: Weights) -> tuple[float, list[Tensor]]:
        """Return (a loss of zero, gradients as tensors)."""
        like = self.parameters.items()
        return 0.0, [torch.empty_like(p, requires_grad=False).copy_(self.context.tensor(gradients[n])) for n, p in like]

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
        _forget_gradients(self.parameters)
        return total, torch.cat(image_losses), gradients, statistics

    @torch.no_grad()
    def _apply(
        self,
        loss: Tensor | float,
        gradients: Sequence[Tensor],
        statistics: dict[str, Tensor],
        scalars: tuple[float, Sequence[float]],
    ) -> Tensor:
        """See `apply`; `scalars` are the learning rate and the decays of the averages."""
        lr, decays = scalars
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

    def clear_non_finite(self) -> None:
        """Allow updates again after a step that was not finite."""
        self.non_finite = torch.zeros_like(self.non_finite)

    @translate_out_of_memory
    @torch.no_grad()
    def activations(self, batch: TrainBatch) -> dict[str, NDArray]:
        """Return the value of each block in the training pass of a batch, and the loss of each image, by name."""
        self.values, b = {}, batch_tensors(batch, self.context)
        with _modes(self.networks, b):
            _, losses, _ = self._loss(b)
        values, self.values = self.values | {"losses": losses}, None
        return {name: to_host(value.to(self.context.dtype)) for name, value in values.items()}

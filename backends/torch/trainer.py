"""The training step in PyTorch: noise, forward, backward, clip, AdamW, moving averages."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.device import DeviceContext
from backends.torch.network import Network, read_parameters, to_host
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


def _pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    square = torch.square(a - b)
    return square / (torch.sqrt(square + PSEUDO_HUBER_C**2) + PSEUDO_HUBER_C)


def _pixel_mean(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the mean of a distance over each image; only the first channels of a wider output count."""
    return lambda output, target, label: distance(output[:, : target.shape[1]], target).mean(dim=(1, 2, 3))


# The distance per image, of (output, target, label).
_DISTANCES = {
    "mse": _pixel_mean(lambda a, b: F.mse_loss(a, b, reduction="none")),
    "l1": _pixel_mean(lambda a, b: F.l1_loss(a, b, reduction="none")),
    "huber": _pixel_mean(lambda a, b: F.huber_loss(a, b, reduction="none")),
    "pseudo_huber": _pixel_mean(_pseudo_huber),
    "cross_entropy": lambda logits, target, label: F.cross_entropy(logits, label, reduction="none"),
}


# A batch on the device.
_Batch = namedtuple("_Batch", [field.name for field in fields(TrainBatch)])
_TYPES = {
    "label": torch.int64,
    "c_noise": torch.float64,
    "positions": torch.int64,
    "dropout_key": torch.int64,
}


def batch_tensors(batch: TrainBatch, context: DeviceContext) -> _Batch:
    """Return the fields of a batch as tensors on the device."""

    def tensor(name: str, array: NDArray) -> Tensor:
        return context.images(array) if array.ndim == 4 else context.tensor(array, _TYPES.get(name))

    return _Batch(*(None if array is None else tensor(name, array) for name, array in vars(batch).items()))


def _micro_batches(b: _Batch, count: int) -> Iterator[_Batch]:
    """Split a batch into equal micro-batches whose losses sum to the batch loss."""
    if count == 1:
        yield b
        return
    each, scaled = len(b.label) // count, b._replace(importance=b.importance / count)
    for i in range(count):
        part = slice(i * each, (i + 1) * each)
        yield _Batch(*(None if t is None else t[part] for t in scaled))._replace(dropout_key=b.dropout_key)


def _to_pixels(column: Tensor) -> Tensor:
    return column[:, None, None, None]


def _noised(b: _Batch) -> tuple[Tensor, Tensor]:
    alpha, sigma, target_x0, target_eps = map(_to_pixels, (b.alpha, b.sigma, b.target_x0, b.target_eps))
    return alpha * b.images + sigma * b.noise, target_x0 * b.images + target_eps * b.noise


def noised(batch: TrainBatch, context: DeviceContext) -> tuple[NDArray, NDArray]:
    """Return (x_t, target) of a batch, as the training step computes them."""
    x, target = _noised(batch_tensors(batch, context))
    return to_host(x), to_host(target)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-math.sqrt(0.5) * x)


def _variational_bound(b: _Batch, residual: Tensor, variance: Tensor) -> Tensor:
    """Return the weighted variational bound of each image; see `diffusion_core.backend.interface.TrainBatch`."""
    *columns, weight = b.variational.unbind(1)
    offset, scale, error, half_bin, lowest, highest, mean_gradient = map(_to_pixels, columns)
    detached = residual.detach()
    u = offset + scale * variance if variance.shape[1] else offset  # a fixed variance needs no output
    e = error * (detached + mean_gradient * (residual - detached))
    divergence = 0.5 * (u + torch.expm1(-u) + torch.exp(-u) * torch.square(e))
    black, white = b.images < lowest, b.images > highest
    # Mirror the bin so that its far or open side is at minus infinity, where probabilities are small numbers.
    e = torch.where(black, e, torch.where(white, -e, e.abs()))
    narrow = torch.exp(-0.5 * u)
    beyond = torch.where(black | white, 0.0, _normal_cdf(-narrow * (half_bin + e)))
    probability = _normal_cdf(narrow * (half_bin - e)) - beyond
    decoder = -torch.log(probability.clamp(min=MIN_PROBABILITY))
    return weight * torch.where(half_bin > 0, decoder, divergence).mean(dim=(1, 2, 3))


def _output(
    network: Network, b: _Batch, x: Tensor, estimate: Tensor | None, values: dict[str, Tensor] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return F in training mode, and the new running statistics by name."""
    training, scaled = Training(b.dropout_key, b.positions, values=values), _to_pixels(b.c_in) * x
    output = network.apply_program(scaled, b.c_noise, b.label, b.features, estimate, training)
    return output, training.statistics


@torch.no_grad()
def _estimate(network: Network, b: _Batch, x: Tensor, values: dict[str, Tensor] | None) -> Tensor | None:
    """Return the estimate of a first pass for self-conditioning; None without it."""
    if b.self_conditioning is None:
        return None
    c_skip, c_out, keep, lowest, highest = map(_to_pixels, b.self_conditioning.unbind(1))
    output, _ = _output(network, b, x, None, values)
    return keep * torch.clamp(c_skip * x + c_out * output[:, : x.shape[1]], lowest, highest)


def loss_tensors(
    network: Network, b: _Batch, distance: str, values: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, the loss of each image, and the new running statistics by name.

    Gradients can flow through the first two; `values` is filled with the value of each block if it is given.
    """
    x, target = _noised(b)
    channels = x.shape[1]
    output, statistics = _output(network, b, x, _estimate(network, b, x, values), values)
    losses = b.weight * _DISTANCES[distance](output, target, b.label)
    if network.program.uncertainty:
        uncertainty = output[:, -1].mean(dim=(1, 2))
        losses = torch.exp(-uncertainty) * losses + uncertainty
    if b.variational is not None:
        losses = losses + _variational_bound(b, output[:, :channels] - target, output[:, channels : 2 * channels])
    return (b.importance * losses).mean(), losses, statistics


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
        decays = [self.parameters[p.name] for p in program.trained if p.decay]
        others = [self.parameters[p.name] for p in program.trained if not p.decay]
        groups = [
            {"params": decays, "weight_decay": adam.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=(adam.beta1, adam.beta2), eps=adam.eps, fused=True
        )
        self.moment1 = self._tensors_like(state.moment1, "first moment")
        self.moment2 = self._tensors_like(state.moment2, "second moment")
        for name, parameter in self.parameters.items():
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(state.updates), device=context.device),
                "exp_avg": self.moment1[name],
                "exp_avg_sq": self.moment2[name],
            }
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

    def _loss(self, b: _Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss, the loss of each image, and the new running statistics by name."""
        return loss_tensors(self.network, b, self.distance, self.values)

    def _loss_and_gradients(self, b: _Batch) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """Return the results of `_loss` and the gradients, accumulated since the last `zero_grad`."""
        with self.network.mode(Training(b.dropout_key, b.positions)):
            loss, losses, statistics = self.loss(b)
            loss.backward()
        return loss.detach(), losses.detach(), [p.grad for p in self.parameters.values()], statistics

    def _accumulate(self, b: _Batch, micro_batches: int) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """Return what `_loss_and_gradients` returns, summed over equal micro-batches."""
        self.optimiser.zero_grad(set_to_none=True)  # of an abandoned step
        total, image_losses = 0.0, []
        for micro_batch in _micro_batches(b, micro_batches):
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
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.adam.clip or math.inf)
        self.non_finite = self.non_finite | ~torch.isfinite(norm + loss)
        for name, value in statistics.items():
            self.tensors[name].copy_(torch.where(self.non_finite, self.tensors[name], value))
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        # The flag of a gradient scaler: a step with it set changes nothing and does not count, so count it below.
        self.optimiser.found_inf = self.non_finite.to(torch.float32)
        self.optimiser.step()
        torch._foreach_add_([each["step"] for each in self.optimiser.state.values()], self.optimiser.found_inf)
        self.optimiser.zero_grad(set_to_none=True)
        tensors = [tensor.detach() for tensor in self.tensors.values()]
        for average, fraction in zip(self.averages, fractions, strict=True):
            weight = torch.where(self.non_finite, 0.0, torch.full_like(norm, fraction, dtype=self.context.dtype))
            torch._foreach_lerp_(list(average.values()), tensors, [weight] * len(tensors))
        return norm

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
        self.optimiser.zero_grad(set_to_none=True)
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
        with self.network.mode(Training(b.dropout_key, b.positions)):
            _, losses, _ = self._loss(b)
        values, self.values = self.values | {"losses": losses}, None
        return {name: to_host(value.to(self.context.dtype)) for name, value in values.items()}

    def state(self) -> TrainerState:
        """Return all that is needed to resume exactly."""
        return TrainerState(
            weights=self.network.weights(),
            averages=tuple(read_parameters(average) for average in self.averages),
            moment1=read_parameters(self.moment1),
            moment2=read_parameters(self.moment2),
            updates=self.updates,
        )

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
    within_memory,
)
from diffusion_core.networks.program import Program, Training
from diffusion_core.networks.weights import Weights, check_weights
from diffusion_core.optim import update_fractions
from diffusion_core.optim.adam import Adam

__all__ = ["Trainer", "noised", "tensors"]


def _pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    square = torch.square(a - b)
    return square / (torch.sqrt(square + PSEUDO_HUBER_C**2) + PSEUDO_HUBER_C)


def _of_pixels(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The mean over the pixels of each image; of an output with more channels the first ones count."""
    return lambda output, target, label: distance(output[:, : target.shape[1]], target).mean(dim=(1, 2, 3))


# Per image, of an output, its target and the class.
_DISTANCES = {
    "mse": _of_pixels(lambda a, b: F.mse_loss(a, b, reduction="none")),
    "l1": _of_pixels(lambda a, b: F.l1_loss(a, b, reduction="none")),
    "huber": _of_pixels(lambda a, b: F.huber_loss(a, b, reduction="none")),
    "pseudo_huber": _of_pixels(_pseudo_huber),
    "cross_entropy": lambda logits, target, label: F.cross_entropy(logits, label, reduction="none"),
}


# A batch on the device.
_Tensors = namedtuple("_Tensors", [field.name for field in fields(TrainBatch)])
_TYPES = {
    "label": torch.int64,
    "c_noise": torch.float64,
    "positions": torch.int64,
    "dropout_key": torch.int64,
}


def tensors(batch: TrainBatch, context: DeviceContext) -> _Tensors:
    """The fields of a batch on the device."""

    def tensor(name: str, array: NDArray) -> Tensor:
        return context.images(array) if array.ndim == 4 else context.tensor(array, _TYPES.get(name))

    return _Tensors(*(None if array is None else tensor(name, array) for name, array in vars(batch).items()))


def _micro_batches(b: _Tensors, count: int) -> Iterator[_Tensors]:
    """So many equal pieces of a batch, of which each loss is a share of the batch's own: together they are it."""
    if count == 1:
        yield b
        return
    each, shared = len(b.label) // count, b._replace(importance=b.importance / count)
    for i in range(count):
        some = slice(i * each, (i + 1) * each)
        yield _Tensors(*(None if t is None else t[some] for t in shared))._replace(dropout_key=b.dropout_key)


def _to_pixels(column: Tensor) -> Tensor:
    return column[:, None, None, None]


def _noised(b: _Tensors) -> tuple[Tensor, Tensor]:
    alpha, sigma, target_x0, target_eps = map(_to_pixels, (b.alpha, b.sigma, b.target_x0, b.target_eps))
    return alpha * b.images + sigma * b.noise, target_x0 * b.images + target_eps * b.noise


def noised(batch: TrainBatch, context: DeviceContext) -> tuple[NDArray, NDArray]:
    """(x_t, target) of a batch, as the training step computes them."""
    x, target = _noised(tensors(batch, context))
    return to_host(x), to_host(target)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-math.sqrt(0.5) * x)


def _bound(b: _Tensors, residual: Tensor, spread: Tensor) -> Tensor:
    """The weighted bound of each image; see `diffusion_core.backend.interface.TrainBatch`."""
    *columns, weight = b.variational.unbind(1)
    offset, scale, error, half_bin, lowest, highest, mean_gradient = map(_to_pixels, columns)
    still = residual.detach()
    u, e = offset + scale * spread, error * (still + mean_gradient * (residual - still))
    divergence = 0.5 * (u + torch.expm1(-u) + torch.exp(-u) * torch.square(e))
    black, white = b.images < lowest, b.images > highest
    # Mirrored, so that the far or open side of the bin is at minus infinity, where probabilities are small numbers.
    e = torch.where(black, e, torch.where(white, -e, e.abs()))
    narrow = torch.exp(-0.5 * u)
    beyond = torch.where(black | white, 0.0, _normal_cdf(-narrow * (half_bin + e)))
    probability = _normal_cdf(narrow * (half_bin - e)) - beyond
    decoder = -torch.log(probability.clamp(min=MIN_PROBABILITY))
    return weight * torch.where(half_bin > 0, decoder, divergence).mean(dim=(1, 2, 3))


class Trainer:
    """See `diffusion_core.backend.interface.Trainer`."""

    def __init__(
        self, program: Program, state: TrainerState, adam: Adam, distance: str, context: DeviceContext
    ) -> None:
        self.program, self.adam, self.context = program, adam, context
        self.distance = _DISTANCES[distance]
        self.network = Network(program, state.weights, context)
        self.tensors = self.network.tensors_by_name()
        self.parameters = {p.name: self.tensors[p.name] for p in program.trained}
        self.averages = [self._like(average, "moving average") for average in state.averages]
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
        self.moment1 = self._like(state.moment1, "first moment")
        self.moment2 = self._like(state.moment2, "second moment")
        for name, parameter in self.parameters.items():
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(state.updates), device=context.device),
                "exp_avg": self.moment1[name],
                "exp_avg_sq": self.moment2[name],
            }
        self.failed = torch.zeros((), dtype=torch.bool, device=context.device)
        self.loss = context.function(self._loss)
        self.in_micro_batches = self._in_micro_batches

    def _like(self, arrays: Weights, what: str, trained: bool = False) -> dict[str, Tensor]:
        """Arrays as tensors with the layout of the network's."""
        check_weights(self.program, arrays, what, trained)
        return {
            name: torch.empty_like(tensor, requires_grad=False).copy_(self.context.tensor(arrays[name]))
            for name, tensor in (self.parameters if trained else self.tensors).items()
        }

    def _output(self, b: _Tensors, x: Tensor, estimate: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """F in training, and the new running statistics by name."""
        training, scaled = Training(b.dropout_key, b.positions, values=self.values), _to_pixels(b.c_in) * x
        output = self.network.apply_program(scaled, b.c_noise, b.label, b.features, estimate, training)
        return output, training.statistics

    @torch.no_grad()
    def _estimate(self, b: _Tensors, x: Tensor) -> Tensor | None:
        """What the network is given of a first pass, if it is given anything."""
        if b.self_conditioning is None:
            return None
        c_skip, c_out, share, lowest, highest = map(_to_pixels, b.self_conditioning.unbind(1))
        output, _ = self._output(b, x, None)
        return share * torch.clamp(c_skip * x + c_out * output[:, : x.shape[1]], lowest, highest)

    def _loss(self, b: _Tensors) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss, that of each image, and the new running statistics by name."""
        x, target = _noised(b)
        channels = x.shape[1]
        output, statistics = self._output(b, x, self._estimate(b, x))
        losses = b.weight * self.distance(output, target, b.label)
        if self.program.uncertainty:
            uncertainty = output[:, -1].mean(dim=(1, 2))
            losses = torch.exp(-uncertainty) * losses + uncertainty
        if b.variational is not None:
            losses = losses + _bound(b, output[:, :channels] - target, output[:, channels : 2 * channels])
        return (b.importance * losses).mean(), losses, statistics

    def _loss_and_gradients(self, b: _Tensors) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """What `_loss` gives, and the gradients, which are added to those that the parameters hold."""
        loss, losses, statistics = self.loss(b)
        loss.backward()
        return loss.detach(), losses.detach(), [p.grad for p in self.parameters.values()], statistics

    def _in_micro_batches(
        self, b: _Tensors, micro_batches: int
    ) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """What `_loss_and_gradients` gives, of equal pieces one after another."""
        self.optimiser.zero_grad(set_to_none=True)  # of a step that was given up
        whole, each = 0.0, []
        for piece in _micro_batches(b, micro_batches):
            loss, losses, gradients, statistics = self._loss_and_gradients(piece)
            whole, each = whole + loss, [*each, losses]
        return whole, torch.cat(each), gradients, statistics

    def _together(self, loss: Tensor, gradients: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients of all processes."""
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
        """Clip, running statistics, optimiser and averages."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        mixes = update_fractions(decays, len(self.averages))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.adam.clip or math.inf)
        self.failed = self.failed | ~torch.isfinite(norm + loss)
        for name, value in statistics.items():
            self.tensors[name].copy_(torch.where(self.failed, self.tensors[name], value))
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        # What a scaler of gradients sets: a step that it marks changes nothing, and is not counted, as it is here.
        self.optimiser.found_inf = self.failed.to(torch.float32)
        self.optimiser.step()
        torch._foreach_add_([each["step"] for each in self.optimiser.state.values()], self.optimiser.found_inf)
        self.optimiser.zero_grad(set_to_none=True)
        tensors = [tensor.detach() for tensor in self.tensors.values()]
        for average, mix in zip(self.averages, mixes, strict=True):
            mix = torch.where(self.failed, 0.0, torch.full_like(norm, mix, dtype=self.context.dtype))
            torch._foreach_lerp_(list(average.values()), tensors, [mix] * len(tensors))
        return norm

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, may_repeat: bool = False
    ) -> StepResult:
        """Forward, backward, running statistics, clip, optimiser, averages."""
        with self.context.within_memory():  # before anything is sent, so that a process alone can do it again
            loss, losses, gradients, statistics = self.in_micro_batches(tensors(batch, self.context), micro_batches)
        with self.context.within_memory(changes=True):
            loss, gradients = self._together(loss, gradients)
            norm = self._apply(loss, gradients, statistics, lr, decays)
        self.updates += 1
        return StepResult(loss, norm, lambda: losses.cpu().numpy())

    def clear_non_finite(self) -> None:
        """Take updates again after one that was not finite."""
        self.failed = torch.zeros_like(self.failed)

    @within_memory
    def gradients(self, batch: TrainBatch, micro_batches: int = 1) -> tuple[float, Weights]:
        """The first half of a step: (loss, gradient by name), unclipped; nothing is changed."""
        loss, _, gradients, _ = self.in_micro_batches(tensors(batch, self.context), micro_batches)
        loss, gradients = self._together(loss, gradients)
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss), read_parameters(dict(zip(self.parameters, gradients, strict=True)))

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """The second half of a step, with given gradients; returns their global norm."""
        tensors = list(self._like(gradients, "gradients", trained=True).values())
        norm = float(self._apply(0.0, tensors, {}, lr, decays))
        self.updates += 1
        return norm

    @within_memory
    @torch.no_grad()
    def activations(self, batch: TrainBatch) -> dict[str, NDArray]:
        """The value of each block in the training pass of a batch, and the loss of each image, by name."""
        self.values = {}
        _, losses, _ = self._loss(tensors(batch, self.context))
        values, self.values = self.values | {"losses": losses}, None
        return {name: to_host(value.to(self.context.dtype)) for name, value in values.items()}

    def state(self) -> TrainerState:
        """Everything that must be kept to go on exactly."""
        return TrainerState(
            weights=self.network.weights(),
            averages=tuple(read_parameters(average) for average in self.averages),
            moment1=read_parameters(self.moment1),
            moment2=read_parameters(self.moment2),
            updates=self.updates,
        )

"""The training step in PyTorch: noise, forward, backward, clip, AdamW, moving averages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from backends.torch.device import Place
from backends.torch.network import Network, read_parameters, to_host
from diffusion_core.backend import PSEUDO_HUBER_C, StepResult, TrainBatch, TrainerState
from diffusion_core.ema import shares
from diffusion_core.optimiser import Adam
from diffusion_core.unet.program import Program, Training
from diffusion_core.weights import Weights, check_weights

__all__ = ["Trainer", "noised"]


def _pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    square = torch.square(a - b)
    return square / (torch.sqrt(square + PSEUDO_HUBER_C**2) + PSEUDO_HUBER_C)


_DISTANCES = {
    "mse": lambda a, b: F.mse_loss(a, b, reduction="none"),
    "l1": lambda a, b: F.l1_loss(a, b, reduction="none"),
    "huber": lambda a, b: F.huber_loss(a, b, reduction="none"),
    "pseudo_huber": _pseudo_huber,
}


def _tensors(batch: TrainBatch, place: Place) -> tuple[Tensor, ...]:
    """The fields of a batch on the device, columns ready to multiply images."""
    columns = (batch.alpha, batch.sigma, batch.c_in, batch.target_x0, batch.target_eps)
    return (
        place.images(batch.images),
        place.images(batch.noise),
        place.tensor(batch.label, torch.int64),
        place.tensor(batch.c_noise, torch.float64),
        place.tensor(batch.weight),
        place.tensor(batch.features),
        place.tensor(batch.positions, torch.int64),
        place.tensor(batch.dropout_key, torch.int64),
        *(place.tensor(column)[:, None, None, None] for column in columns),
    )


def _noised(x0, eps, alpha, sigma, target_x0, target_eps) -> tuple[Tensor, Tensor]:
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
                "step": torch.tensor(float(state.updates), device=place.device),
                "exp_avg": self.moment1[name],
                "exp_avg_sq": self.moment2[name],
            }
        self.loss = place.function(self._loss)

    def _like(self, arrays: Weights, what: str, trained: bool = False) -> dict[str, Tensor]:
        """Arrays as tensors with the layout of the network's."""
        check_weights(self.program, arrays, what, trained)
        return {
            name: torch.empty_like(tensor, requires_grad=False).copy_(self.place.tensor(arrays[name]))
            for name, tensor in (self.parameters if trained else self.tensors).items()
        }

    def _loss(
        self, x0, eps, label, c_noise, weight, features, positions, key, alpha, sigma, c_in, target_x0, target_eps
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the new running statistics by name."""
        x, target = _noised(x0, eps, alpha, sigma, target_x0, target_eps)
        training = Training(key, positions)
        output = self.network.apply_program(c_in * x, c_noise, label, features, training)[:, : x.shape[1]]
        return (weight * self.distance(output, target).mean(dim=(1, 2, 3))).mean(), training.statistics

    def _apply(self, lr: float, decays: Sequence[float]) -> Tensor:
        """Clip, optimiser and averages, with the gradients that the parameters hold."""
        mixes = shares(decays, len(self.averages))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.adam.clip or math.inf)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        tensors = [tensor.detach() for tensor in self.tensors.values()]
        for average, mix in zip(self.averages, mixes, strict=True):
            torch._foreach_lerp_(list(average.values()), tensors, mix)
        self.updates += 1
        return norm

    def step(self, batch: TrainBatch, lr: float, decays: Sequence[float]) -> StepResult:
        """Forward, backward, running statistics, clip, optimiser, averages."""
        loss, statistics = self.loss(*_tensors(batch, self.place))
        loss.backward()
        for name, value in statistics.items():
            self.tensors[name].copy_(value)
        return StepResult(loss.detach(), self._apply(lr, decays))

    def gradients(self, batch: TrainBatch) -> tuple[float, Weights]:
        """The first half of a step: (loss, gradient by name), unclipped; nothing is changed."""
        loss, _ = self.loss(*_tensors(batch, self.place))
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        return loss.item(), read_parameters(dict(zip(self.parameters, gradients, strict=True)))

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """The second half of a step, with given gradients; returns their global norm."""
        for name, tensor in self._like(gradients, "gradients", trained=True).items():
            self.parameters[name].grad = tensor
        return float(self._apply(lr, decays))

    def state(self) -> TrainerState:
        """Everything that must be kept to go on exactly."""
        return TrainerState(
            weights=self.network.weights(),
            averages=tuple(read_parameters(average) for average in self.averages),
            moment1=read_parameters(self.moment1),
            moment2=read_parameters(self.moment2),
            updates=self.updates,
        )

"""The update of the weights in PyTorch: the operations of formulas, and the state of an optimiser on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from backends.torch.device import DeviceContext
from diffusion_core.backend.interface import TrainerState
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, role_of, start_slots

__all__ = ["OPS", "Updater"]

OPS = ArrayOps(
    sqrt=torch.sqrt,
    square=torch.square,
    sign=torch.sign,
    maximum=lambda a, b: torch.maximum(a, torch.as_tensor(b, dtype=a.dtype, device=a.device)),
    epsilon=lambda x: torch.finfo(x.dtype).eps,
    where=torch.where,
    mean=lambda x, axis=None, keepdims=False: torch.mean(x, dim=axis, keepdim=keepdims),
    total=lambda x, axis=None, keepdims=False: torch.sum(x, dim=axis, keepdim=keepdims),
    reshape=torch.reshape,
    transpose=torch.permute,
    diagonal=torch.diagonal,
    take=lambda x, order, axis: torch.index_select(x, axis, order),
    descending=lambda x: torch.argsort(x, descending=True, stable=True),
    eigenvectors=torch.linalg.eigh,
    orthogonal=torch.linalg.qr,
    choose=lambda flag, then, otherwise: then() if flag else otherwise(),
)


class Updater:
    """The slots of an optimiser on the device, which start from those of a state, and its update of the parameters."""

    def __init__(
        self, optimiser: Optimiser, program: Program, state: TrainerState, tensors: dict, context: DeviceContext
    ) -> None:
        self.optimiser, self.tensors, self.context = optimiser, tensors, context
        self.roles = {p.name: role_of(p) for p in program.parameters}
        start = start_slots(optimiser, self.roles, state.weights, state.slots)
        self.slots = {slot: {n: self._like(n, array) for n, array in arrays.items()} for slot, arrays in start.items()}
        self.parameters = {p.name: tensors[p.name] for p in program.trained}
        # The weights themselves, where the tensors of the network are another point, at which the gradient is taken.
        self.moved: dict[str, Tensor] = {}
        if optimiser.moves_point:
            self.moved = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
            self._move()
        is_fused = isinstance(optimiser, Adam) and optimiser.is_adamw
        self.fused = self._fused(state.updates) if is_fused else None

    def _like(self, name: str, array) -> Tensor:
        """Return a slot as a tensor, with the memory layout of its parameter if it has its shape."""
        tensor, like = self.context.tensor(array), self.tensors[name]
        return torch.empty_like(like, requires_grad=False).copy_(tensor) if tensor.shape == like.shape else tensor

    def _fused(self, updates: int) -> torch.optim.AdamW:
        """Return PyTorch's AdamW, whose kernel computes the formula of `Adam` for all parameters at once."""
        adam, groups = self.optimiser, {True: [], False: []}
        for name, parameter in self.parameters.items():
            groups[self.roles[name].decays].append(parameter)
        rates = {True: adam.weight_decay, False: 0.0}
        settings = [{"params": group, "weight_decay": rates[decays]} for decays, group in groups.items() if group]
        fused = torch.optim.AdamW(settings, betas=(adam.beta1, adam.beta2), eps=adam.eps, fused=True)
        for name, parameter in self.parameters.items():
            fused.state[parameter] = {
                "step": torch.tensor(float(updates), device=self.context.device),
                "exp_avg": self.slots["moment1"][name],
                "exp_avg_sq": self.slots["moment2"][name],
            }
        return fused

    def _slots_of(self, name: str) -> dict[str, Tensor]:
        """Return the slots of one parameter."""
        return {slot: tensors[name] for slot, tensors in self.slots.items() if name in tensors}

    def apply(self, gradients: Sequence[Tensor], non_finite: Tensor, update: int, lr: float) -> None:
        """Make update 1, 2, ... with clipped gradients, unless `non_finite`."""
        if self.fused is not None:
            for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            for group in self.fused.param_groups:
                group["lr"] = lr
            # The flag of a gradient scaler: a step with it set changes nothing and does not count, so count it below.
            self.fused.found_inf = non_finite.to(torch.float32)
            self.fused.step()
            torch._foreach_add_([each["step"] for each in self.fused.state.values()], self.fused.found_inf)
            return
        scalars = self.optimiser.scalars(update, lr)
        for (name, p), gradient in zip((self.moved or self.parameters).items(), gradients, strict=True):
            own = self._slots_of(name)
            finite = torch.where(non_finite, torch.zeros_like(gradient), gradient)  # decompositions need numbers
            changed, new = self.optimiser.update(OPS, self.roles[name], p, finite, own, scalars)
            p.copy_(torch.where(non_finite, p, changed))
            for slot, value in new.items():
                own[slot].copy_(torch.where(non_finite, own[slot], value))
        self._move()

    @torch.no_grad()
    def _move(self) -> None:
        """Move the tensors of the network to where the next gradient is taken."""
        for name, p in self.moved.items():
            own = self._slots_of(name)
            self.parameters[name].copy_(self.optimiser.point(OPS, self.roles[name], p, own))

    def read_slots(self) -> dict[str, Weights]:
        """Return the slots as arrays, by slot and parameter."""
        return {
            slot: {name: np.array(tensor.cpu().numpy(), order="C") for name, tensor in tensors.items()}
            for slot, tensors in self.slots.items()
        }

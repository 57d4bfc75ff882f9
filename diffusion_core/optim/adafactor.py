r"""Adafactor: the second moment of a matrix as the product of a row and a column, and steps in units of the weights.

With G = g^2 + eps1 (convention: torch adds nothing), b = 1 - k^beta2_decay, and rms the root mean square of an array::

    row    <- b row    + (1 - b) mean of G over the last axis         parameters with two axes or more
    column <- b column + (1 - b) mean of G over the axis before it
    u       = g / sqrt( row column / mean(row) )                      torch: bounded by eps1^2, mean(row) by eps1
    v      <- b v + (1 - b) G,   u = g / sqrt(v)                      other parameters
    rate    = min(lr, 1/sqrt(k))                                      keras and torch; transformers and optax: lr
    p      <- p - rate max(eps2, rms(p)) u / max(1, rms(u)/threshold)

A kernel with four axes is factored along its last two (o i kh kw: kh and kw); optax takes the two largest axes, and
none below 128. Weight decay comes first, as p (1 - lr weight_decay), in torch and keras; transformers subtracts
weight_decay times the step's own rate, optax weight_decay p, without any rate. optax rounds b and 1 - b to float32,
which is 9e-7 of a learning rate in 50 steps. With beta1 the step is averaged before
it is made.

PyTorch sets eps1 to the machine epsilon of the parameter; that is what None means in this convention.

References:
    Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (Shazeer & Stern, 2018),
    https://arxiv.org/abs/1804.04235
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffusion_core.common.errors import check_choice
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, Role, Slot, check_common, check_range

__all__ = ["Adafactor"]

_CONVENTIONS = ("torch", "keras", "transformers", "optax")
# The smallest axis that optax factors.
_OPTAX_SMALLEST = 128


@dataclass(frozen=True)
class Adafactor(Optimiser):
    """Adafactor, as one of four libraries has it.

    Args:
        beta2_decay: exponent of the decay of the second moment.
        eps1: lower bound of squared gradients; None is 1e-30, or in convention torch the machine epsilon.
        eps2: lower bound of the size of the weights.
        threshold: the largest root mean square of a step, before it is scaled.
        beta1: decay of the average of steps; None keeps none.
        scale_parameter: whether steps are in units of the root mean square of the weights.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        convention: ``"torch"``, ``"keras"``, ``"transformers"`` or ``"optax"``.
        smallest: the smallest axis that is factored; None is that of the convention: 128 for optax, else any.

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> slots = Adafactor().slots(Role("w", (8, 4), "matrix"))
        >>> {name: slot.shape for name, slot in slots.items()}
        {'row': (8,), 'column': (4,)}
    """

    sees_axes: ClassVar[bool] = True

    beta2_decay: float = -0.8
    eps1: float | None = None
    eps2: float = 1e-3
    threshold: float = 1.0
    beta1: float | None = None
    scale_parameter: bool = True
    weight_decay: float = 0.0
    clip: float | None = 1.0
    convention: str = "torch"
    smallest: int | None = None

    def __post_init__(self) -> None:
        check_common({} if self.beta1 is None else {"beta1": self.beta1}, 1.0, self.weight_decay, self.clip)
        check_choice("optimiser.convention", self.convention, _CONVENTIONS)
        check_range(
            beta2_decay=(self.beta2_decay, self.beta2_decay < 0, "negative"),
            eps1=(self.eps1, self.eps1 is None or self.eps1 > 0, "positive, or null"),
            eps2=(self.eps2, self.eps2 > 0, "positive"),
            threshold=(self.threshold, self.threshold > 0, "positive"),
            smallest=(self.smallest, self.smallest is None or self.smallest >= 1, "at least 1, or null"),
        )

    def _factored(self, role: Role) -> tuple[int, int] | None:
        """Return the axes (row, column) of a factored parameter: the mean over `column` gives the row."""
        shape, count = role.shape, len(role.shape)
        if count < 2:
            return None
        rows, columns = count - 2, count - 1
        smallest = 1 if self.smallest is None else self.smallest
        if self.convention == "optax":
            smallest = _OPTAX_SMALLEST if self.smallest is None else self.smallest
            rows, columns = sorted(range(count), key=lambda axis: shape[axis])[-2:]
        return (rows, columns) if min(shape[rows], shape[columns]) >= smallest else None

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        slots, axes = {}, self._factored(role)
        if self.beta1 is not None:
            slots["moment1"] = Slot(role.shape)
        if axes is None:
            return slots | {"moment2": Slot(role.shape)}
        rows, columns = axes
        return slots | {"row": Slot(_without(role.shape, columns)), "column": Slot(_without(role.shape, rows))}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        rate = min(lr, update**-0.5) if self.convention in ("torch", "keras") else lr
        fresh = float(update) ** self.beta2_decay
        kept = 1.0 - fresh
        if self.convention == "optax":
            one, power = np.float32(1), np.float32(float(update) ** float(np.float32(self.beta2_decay)))
            kept, fresh = float(one - power), float(one - (one - power))
        return {"shrink": 1.0 - lr * self.weight_decay, "rate": rate, "fresh": fresh, "kept": kept}

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        is_torch = self.convention == "torch"
        eps1 = (ops.epsilon(g) if is_torch else 1e-30) if self.eps1 is None else self.eps1
        square, axes, new = ops.square(g) if is_torch else ops.square(g) + eps1, self._factored(role), {}
        if axes is None:
            variance = new["moment2"] = s["kept"] * slots["moment2"] + s["fresh"] * square
        else:
            rows, columns = axes
            new["row"] = s["kept"] * slots["row"] + s["fresh"] * ops.mean(square, columns)
            new["column"] = s["kept"] * slots["column"] + s["fresh"] * ops.mean(square, rows)
            row = ops.reshape(new["row"], _with_one(role.shape, columns))
            column = ops.reshape(new["column"], _with_one(role.shape, rows))
            mean = ops.mean(row, rows, True)
            variance = row * column / (ops.maximum(mean, eps1) if is_torch else mean)
        step = g / ops.sqrt(ops.maximum(variance, eps1 * eps1) if is_torch else variance)
        step = step / ops.maximum(_rms(ops, step) / self.threshold, 1.0)
        if self.convention == "keras" and self.weight_decay and role.decays:
            p = p * s["shrink"]  # before its size is measured
        rate = s["rate"] * ops.maximum(_rms(ops, p), self.eps2) if self.scale_parameter else s["rate"]
        step = rate * step
        if self.beta1 is not None:
            step = new["moment1"] = self.beta1 * slots["moment1"] + (1.0 - self.beta1) * step
        if self.convention == "keras" or not (self.weight_decay and role.decays):
            return p - step, new
        if is_torch:
            return p * s["shrink"] - step, new
        own = rate if self.convention == "transformers" else 1.0
        return p - own * self.weight_decay * p - step, new


def _rms(ops: ArrayOps, x: Any) -> Any:
    return ops.sqrt(ops.mean(ops.square(x)))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _with_one(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])

r"""Schedule-free AdamW: an average of the steps in place of a decay of the learning rate.

Three points: z makes the steps, x is their average, and the gradient is taken at y between them::

    y  = beta1 x + (1 - beta1) z                            where the network is trained
    z <- z - lr weight_decay y                              for parameters that decay
    v <- beta2 v + (1 - beta2) g^2
    z <- z - lr g / ( sqrt(v/(1 - beta2^k)) + eps )
    w  = k^r (largest lr so far)^power,    W <- W + w
    x <- x + w/W (z - x)                                    the weights

x is the weights: samples, checkpoints, averages and validation use it. The learning rate is a warm-up and then
constant; a decay would be a second average. `r` and `power` weigh later steps, and steps of a warm-up less.

References:
    The Road Less Scheduled (Defazio et al., 2024), https://arxiv.org/abs/2405.15682
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion_core.common.errors import check_choice
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, Role, Slot, check_common, check_range, correction

__all__ = ["ScheduleFree"]


@dataclass(frozen=True)
class ScheduleFree(Optimiser):
    """Schedule-free AdamW.

    Args:
        beta1: how near to the average the gradient is taken.
        beta2: decay of the second moment.
        eps: added to the corrected root of the second moment.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        r: exponent of the number of the update in the weight of a step.
        power: exponent of the largest learning rate in the weight of a step.
        decay_at: where weight decay takes the weights: ``"y"``, or ``"z"``.

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> ScheduleFree(beta1=0.75).point(None, None, 4.0, {"steps": 0.0})
        3.0
    """

    moves_point: ClassVar[bool] = True

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    r: float = 0.0
    power: float = 2.0
    decay_at: str = "y"

    def __post_init__(self) -> None:
        check_common({"beta1": self.beta1, "beta2": self.beta2}, self.eps, self.weight_decay, self.clip)
        check_range(r=(self.r, self.r >= 0, "at least 0"), power=(self.power, self.power >= 0, "at least 0"))
        check_choice("optimiser.decay_at", self.decay_at, ("y", "z"))

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        slots = {"steps": Slot(role.shape, "weights"), "moment2": Slot(role.shape)}
        return slots | {"largest_lr": Slot(()), "weight_sum": Slot(())}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        correction2 = math.sqrt(correction(self.beta2, update))
        return {
            "rate": lr,
            "decay": lr * self.weight_decay,
            "correction2": correction2,
            "later": float(update) ** self.r,
        }

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        z, y = slots["steps"], self.point(ops, role, p, slots)
        if self.weight_decay and role.decays:
            z = z - s["decay"] * (y if self.decay_at == "y" else z)
        v = self.beta2 * slots["moment2"] + (1.0 - self.beta2) * ops.square(g)
        z = z - s["rate"] * g / (ops.sqrt(v) / s["correction2"] + self.eps)
        largest = ops.maximum(slots["largest_lr"], s["rate"])
        weight = s["later"] * largest**self.power
        total = slots["weight_sum"] + weight
        p = p + ops.where(total > 0, weight / ops.maximum(total, _TINY), 0.0 * total) * (z - p)
        return p, {"steps": z, "moment2": v, "largest_lr": largest, "weight_sum": total}

    def point(self, ops: ArrayOps, role: Role, p: Any, slots: Mapping[str, Any]) -> Any:
        """See `Optimiser.point`."""
        return self.beta1 * p + (1.0 - self.beta1) * slots["steps"]


# A rate of 0 has no weight.
_TINY = 1e-37

r"""RAdam and NAdam: Adam that waits for its second moment, and Adam with Nesterov's momentum.

Both keep the moments m and v of `adam`. RAdam rectifies the variance of the first steps. With
``rho_inf = 2/(1 - beta2) - 1`` and ``rho = rho_inf - 2 k beta2^k/(1 - beta2^k)``::

    p <- p - lr/(1 - beta1^k) m r sqrt(1 - beta2^k) / ( sqrt(v) + eps )                 if rho > 5, epsilon: torch
    p <- p - lr/(1 - beta1^k) m r / ( sqrt(v)/sqrt(1 - beta2^k) + eps )                 if rho >= 5, epsilon: optax
    p <- p - lr/(1 - beta1^k) m                                                         before
    r  = sqrt( (rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho) )

NAdam has a momentum mu_k in each step, and M_k = mu_1 ... mu_k::

    p <- p - ( lr (1 - mu_k)/(1 - M_k) g  +  lr mu_{k+1}/(1 - M_{k+1}) m ) / ( sqrt(v)/sqrt(1 - beta2^k) + eps )

    mu_k = beta1 (1 - 0.96^(k momentum_decay)/2)            convention: torch (momentum_decay 0.004), keras (1)
    mu_k = beta1                                            convention: optax

References:
    On the Variance of the Adaptive Learning Rate and Beyond (Liu et al., 2019), https://arxiv.org/abs/1908.03265
    Incorporating Nesterov Momentum into Adam (Dozat, 2016), https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.optim.adam import decayed
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, Role, Slot, check_common, check_range, correction

__all__ = ["NAdam", "RAdam"]

_MOMENTUM_DECAYS = {"torch": 0.004, "keras": 1.0, "optax": None}
# Below this size a product of momenta no longer changes 1 - M.
_NO_PRODUCT = 1e-30


@dataclass(frozen=True)
class RAdam(Optimiser):
    """Rectified Adam.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        epsilon: what eps is added to: ``"torch"``, the uncorrected root, or ``"optax"``, the bias-corrected one.
        decay: ``"decoupled"`` weight decay, or ``"l2"``, which is added to the gradient.

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> RAdam().scalars(1, lr=0.1)["adaptive"], RAdam().scalars(6, lr=0.1)["plain"]
        (0.0, 0.0)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    epsilon: str = "torch"
    decay: str = "decoupled"

    def __post_init__(self) -> None:
        check_common({"beta1": self.beta1, "beta2": self.beta2}, self.eps, self.weight_decay, self.clip)
        check_choice("optimiser.epsilon", self.epsilon, ("torch", "optax"))
        check_choice("optimiser.decay", self.decay, ("decoupled", "l2"))

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        return {name: Slot(role.shape) for name in ("moment1", "moment2")}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`; one of the rates is 0."""
        limit, rest = 2.0 / (1.0 - self.beta2) - 1.0, correction(self.beta2, update)
        rho = limit - 2.0 * update * (1.0 - rest) / rest
        rate, root = lr / correction(self.beta1, update), math.sqrt(rest)
        plain, adaptive = rate, 0.0
        if rho > 5.0 or (rho == 5.0 and self.epsilon == "optax"):
            rectified = math.sqrt((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho))
            plain, adaptive = 0.0, rate * rectified * (root if self.epsilon == "torch" else 1.0)
        correction2 = 1.0 if self.epsilon == "torch" else root
        return {
            "shrink": 1.0 - lr * self.weight_decay, "plain": plain, "adaptive": adaptive, "correction2": correction2
        }  # fmt: skip

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        p, g = decayed(self, role, p, g, s)
        m = self.beta1 * slots["moment1"] + (1.0 - self.beta1) * g
        v = self.beta2 * slots["moment2"] + (1.0 - self.beta2) * ops.square(g)
        rate = s["plain"] + s["adaptive"] / (ops.sqrt(v) / s["correction2"] + self.eps)
        return p - rate * m, {"moment1": m, "moment2": v}


@dataclass(frozen=True)
class NAdam(Optimiser):
    """Adam with Nesterov's momentum, in three versions.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the corrected root of the second moment.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        convention: ``"torch"``, ``"keras"`` or ``"optax"``, which has no schedule of the momentum.
        momentum_decay: how fast the momentum rises to beta1; None is that of the convention.
        decay: ``"decoupled"`` weight decay, or ``"l2"``, which is added to the gradient.

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> round(NAdam(convention="optax").scalars(1, lr=0.1)["of_gradient"], 12)
        0.1
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    convention: str = "torch"
    momentum_decay: float | None = None
    decay: str = "decoupled"

    def __post_init__(self) -> None:
        check_common({"beta1": self.beta1, "beta2": self.beta2}, self.eps, self.weight_decay, self.clip)
        check_choice("optimiser.convention", self.convention, _MOMENTUM_DECAYS)
        check_choice("optimiser.decay", self.decay, ("decoupled", "l2"))
        given = self.momentum_decay
        check_range(momentum_decay=(given, given is None or given >= 0, "at least 0, or null"))
        if given is not None and self.convention == "optax":
            raise DuetError(
                f"optimiser.momentum_decay: {given} was given with convention optax, which has no schedule of the "
                f"momentum; leave it out, or use convention torch"
            )

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        return {name: Slot(role.shape) for name in ("moment1", "moment2")}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        given = _MOMENTUM_DECAYS[self.convention] if self.momentum_decay is None else self.momentum_decay
        mu, following = (_momentum(self.beta1, given, k) for k in (update, update + 1))
        product = _product(self.beta1, given, update)
        return {
            "shrink": 1.0 - lr * self.weight_decay,
            "of_gradient": lr * (1.0 - mu) / (1.0 - product),
            "of_moment": lr * following / (1.0 - product * following),
            "correction2": math.sqrt(correction(self.beta2, update)),
        }

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        p, g = decayed(self, role, p, g, s)
        m = self.beta1 * slots["moment1"] + (1.0 - self.beta1) * g
        v = self.beta2 * slots["moment2"] + (1.0 - self.beta2) * ops.square(g)
        step = s["of_gradient"] * g + s["of_moment"] * m
        return p - step / (ops.sqrt(v) / s["correction2"] + self.eps), {"moment1": m, "moment2": v}


def _momentum(beta1: float, momentum_decay: float | None, update: int) -> float:
    return beta1 if momentum_decay is None else beta1 * (1.0 - 0.5 * 0.96 ** (update * momentum_decay))


# The last product of momenta by options, so that the next takes one multiplication; a resumed run computes it anew with
# the same multiplications.
_LAST: dict[tuple[float, float | None], tuple[int, float]] = {}


def _product(beta1: float, momentum_decay: float | None, update: int) -> float:
    """Return mu_1 ... mu_k, as 0 once it is too small to matter."""
    done, product = _LAST.get((beta1, momentum_decay), (0, 1.0))
    if done > update:
        done, product = 0, 1.0
    while done < update and product > _NO_PRODUCT:
        done += 1
        product *= _momentum(beta1, momentum_decay, done)
    _LAST[beta1, momentum_decay] = max(done, update), product
    return product if product > _NO_PRODUCT else 0.0

r"""SGD with momentum, and Lion, which keeps a momentum and takes its sign.

SGD, with the clipped gradient g, which weight decay may be added to (decay: l2)::

    b <- momentum b + (1 - dampening) g                     the first b is g, without dampening
    p <- p - lr b                                           nesterov: p - lr (g + momentum b)

PyTorch and optax keep the momentum of gradients. Keras keeps that of steps (buffer: steps)::

    b <- momentum b + lr g
    p <- p - b                                              nesterov: p - (lr g + momentum b)

which is the same as long as lr does not change. Lion, in which sign(0) = 0::

    p <- p (1 - lr weight_decay)                            for parameters that decay
    p <- p - lr sign(beta1 m + (1 - beta1) g)
    m <- beta2 m + (1 - beta2) g

References:
    On the importance of initialization and momentum in deep learning (Sutskever et al., 2013),
    https://proceedings.mlr.press/v28/sutskever13.html (the form of Nesterov's momentum)
    Symbolic Discovery of Optimization Algorithms (Chen et al., 2023), https://arxiv.org/abs/2302.06675 (Lion)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.optim.adam import decayed
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, Role, Slot, check_common, check_range

__all__ = ["SGD", "Lion"]


@dataclass(frozen=True)
class SGD(Optimiser):
    """Stochastic gradient descent, with momentum.

    Args:
        momentum: decay of the momentum; 0 keeps none.
        dampening: the momentum takes up 1 - dampening of each gradient but the first.
        nesterov: whether the step looks ahead, by another step of the momentum.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        decay: ``"l2"`` weight decay, which is added to the gradient, or ``"decoupled"``.
        buffer: what the momentum is that of: ``"gradients"`` as in PyTorch and optax, or ``"steps"`` as in Keras.

    Raises:
        DuetError: if a value is out of range, or the options do not fit together.

    Example:
        >>> SGD(momentum=0.9, nesterov=True).scalars(1, lr=0.1)["rate"]
        0.1
    """

    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float | None = 1.0
    decay: str = "l2"
    buffer: str = "gradients"

    def __post_init__(self) -> None:
        check_common({"momentum": self.momentum}, 1.0, self.weight_decay, self.clip)
        check_range(dampening=(self.dampening, 0 <= self.dampening <= 1, "between 0 and 1"))
        check_choice("optimiser.decay", self.decay, ("decoupled", "l2"))
        check_choice("optimiser.buffer", self.buffer, ("gradients", "steps"))
        if self.nesterov and not (self.momentum > 0 and self.dampening == 0):
            raise DuetError(
                f"optimiser.nesterov: true was given with momentum {self.momentum} and dampening {self.dampening}; it "
                f"needs a momentum above 0 and no dampening"
            )
        if self.buffer == "steps" and self.dampening:
            raise DuetError(
                f"optimiser.dampening: {self.dampening} was given with buffer steps, which has none; use buffer "
                f"gradients, or dampening 0"
            )

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        return {"momentum": Slot(role.shape)} if self.momentum else {}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        inside, outside = (lr, 1.0) if self.buffer == "steps" else (1.0, lr)
        fresh = 1.0 if update == 1 else 1.0 - self.dampening
        return {"shrink": 1.0 - lr * self.weight_decay, "inside": inside, "rate": outside, "fresh": fresh}

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        p, g = decayed(self, role, p, g, s)
        g = s["inside"] * g
        if not self.momentum:
            return p - s["rate"] * g, {}
        b = self.momentum * slots["momentum"] + s["fresh"] * g
        step = g + self.momentum * b if self.nesterov else b
        return p - s["rate"] * step, {"momentum": b}


@dataclass(frozen=True)
class Lion(Optimiser):
    """Lion, with decoupled weight decay; its learning rate is three to ten times smaller than that of Adam.

    Args:
        beta1: decay of the momentum within a step.
        beta2: decay of the momentum that is kept.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> list(Lion().slots(Role("w", (2,))))
        ['momentum']
    """

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        check_common({"beta1": self.beta1, "beta2": self.beta2}, 1.0, self.weight_decay, self.clip)

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        return {"momentum": Slot(role.shape)}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        return {"shrink": 1.0 - lr * self.weight_decay, "rate": lr}

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        m = slots["momentum"]
        p = p * s["shrink"] if self.weight_decay and role.decays else p
        p = p - s["rate"] * ops.sign(self.beta1 * m + (1.0 - self.beta1) * g)
        return p, {"momentum": self.beta2 * m + (1.0 - self.beta2) * g}

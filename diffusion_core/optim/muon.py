r"""Muon: the momentum of a matrix, orthogonalised; AdamW for all other parameters.

A matrix (o i), or a convolution's kernel as the matrix (o, i kh kw), takes::

    p <- p (1 - lr weight_decay)                            for parameters that decay
    b <- momentum b + (1 - momentum) g                      convention: original, torch
    d  = (1 - momentum) g + momentum b                      nesterov; else b
    p <- p - lr scale NS(d)

NS takes the singular values of a matrix near 1 by `steps` steps of a polynomial (Newton-Schulz)::

    X <- d / (|d| + 1e-7)
    X <- a X + (b A + c A A) X,   A = X X^T,   (a, b, c) = (3.4445, -4.7750, 2.0315)

computed in the precision of the run; the originals round to bfloat16 here. The conventions differ in these lines:

    convention   momentum                                     |d|                    scale
    original     as above                                     |d| + 1e-7             sqrt(max(1, rows/columns))
    torch        as above                                     max(|d|, 1e-7)         sqrt(max(1, rows/columns))
    keras        b <- momentum b + g,  d = g + momentum b     |d| + 1e-7             0.2 sqrt(max(rows, columns))
    optax        as above, with the bias corrections of       |d| + 1e-8             sqrt(max(1, columns/rows))
                 optax: b/(1 - momentum^(k+1)), g/(1 - momentum^k)

The AdamW of keras adds eps to the uncorrected root, and that of optax is NAdam without a schedule (see
`adam_variants`).

`scale` chooses another factor. The original reads rows and columns off the last two axes of the gradient, which are kh
and kw for a kernel; the others of the matrix. optax expects (inputs, outputs), so for a network that is the transpose
of one in JAX, give scale: rows.

References:
    Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024),
    https://kellerjordan.github.io/posts/muon/
    Muon is Scalable for LLM Training (Liu et al., 2025), https://arxiv.org/abs/2502.16982 (scale: adam)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, ClassVar

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.optim.adam import Adam
from diffusion_core.optim.adam_variants import NAdam
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, Role, Slot, check_common, check_range

__all__ = ["Muon"]

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_EPS = {"original": 1e-7, "torch": 1e-7, "keras": 1e-7, "optax": 1e-8}
_SCALES = {"original": "rows", "torch": "rows", "keras": "adam", "optax": "columns"}


@dataclass(frozen=True)
class Muon(Optimiser):
    """Muon for matrices and convolutions, and AdamW for embeddings, biases, norms and what `adam_for` names.

    Its authors use lr 0.02 and `adam_lr_ratio` 0.015; with scale adam, a rate of Adam fits.

    Args:
        momentum: decay of the momentum.
        nesterov: whether the step looks ahead.
        steps: of the iteration that orthogonalises.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        convention: ``"original"``, ``"torch"``, ``"keras"`` or ``"optax"``.
        scale: factor of a step: ``"rows"``, sqrt(max(1, rows/columns)); ``"columns"``, sqrt(max(1, columns/rows));
            ``"adam"``, 0.2 sqrt(max(rows, columns)); ``"none"``; None is that of the convention.
        adam_for: names of parameters that take AdamW, as in ``["conv_in.*", "out.*"]``.
        adam_lr_ratio: the learning rate of AdamW, in units of the learning rate.
        beta1: decay of the first moment of AdamW.
        beta2: decay of the second moment of AdamW.
        eps: of AdamW.

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> muon = Muon(adam_for=["out.*"])
        >>> [list(muon.slots(Role(name, (8, 4), "matrix"))) for name in ("a.weight", "out.weight")]
        [['momentum'], ['moment1', 'moment2']]
    """

    sees_axes: ClassVar[bool] = True

    momentum: float = 0.95
    nesterov: bool = True
    steps: int = 5
    weight_decay: float = 0.0
    clip: float | None = 1.0
    convention: str = "original"
    scale: str | None = None
    adam_for: tuple[str, ...] = ()
    adam_lr_ratio: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-10

    def __post_init__(self) -> None:
        if isinstance(self.adam_for, str) or not all(isinstance(name, str) for name in self.adam_for):
            raise DuetError(f"optimiser.adam_for: {self.adam_for!r} was given; it must be a list of names, as [out.*]")
        object.__setattr__(self, "adam_for", tuple(self.adam_for))
        betas = {"momentum": self.momentum, "beta1": self.beta1, "beta2": self.beta2}
        check_common(betas, self.eps, self.weight_decay, self.clip)
        check_choice("optimiser.convention", self.convention, _EPS)
        if self.scale is not None:
            check_choice("optimiser.scale", self.scale, ("rows", "columns", "adam", "none"))
        check_range(
            steps=(self.steps, 1 <= self.steps < 100, "between 1 and 99"),
            adam_lr_ratio=(self.adam_lr_ratio, self.adam_lr_ratio > 0, "positive"),
        )

    @cached_property
    def _adam(self) -> Adam | NAdam:
        options = self.beta1, self.beta2, self.eps, self.weight_decay, self.clip
        if self.convention == "optax" and self.nesterov:
            return NAdam(*options, convention="optax")
        return Adam(*options, epsilon="keras" if self.convention == "keras" else "torch")

    def _takes_adam(self, role: Role) -> bool:
        is_named = any(fnmatchcase(role.name, pattern) for pattern in self.adam_for)
        return is_named or role.kind not in ("matrix", "convolution")

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        return self._adam.slots(role) if self._takes_adam(role) else {"momentum": Slot(role.shape)}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        of_adam = {f"adam_{name}": value for name, value in self._adam.scalars(update, lr * self.adam_lr_ratio).items()}
        of_gradient, of_momentum = 1.0 - self.momentum, self.momentum
        if self.convention == "keras":
            of_gradient = 1.0
        if self.convention == "optax":
            of_gradient /= 1.0 - self.momentum**update
            of_momentum /= 1.0 - self.momentum ** (update + 1)
        if not self.nesterov:
            plain = 1.0 / (1.0 - self.momentum**update) if self.convention == "optax" else 1.0
            of_gradient, of_momentum = 0.0, plain
        own = {"of_gradient": of_gradient, "of_momentum": of_momentum}
        return {"shrink": 1.0 - lr * self.weight_decay, "rate": lr, **own, **of_adam}

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        if self._takes_adam(role):
            own = {name.removeprefix("adam_"): value for name, value in s.items() if name.startswith("adam_")}
            return self._adam.update(ops, role, p, g, slots, own)
        fresh = 1.0 if self.convention == "keras" else 1.0 - self.momentum
        b = self.momentum * slots["momentum"] + fresh * g
        rows, columns = role.shape[0], math.prod(role.shape[1:])
        step = ops.reshape(s["of_gradient"] * g + s["of_momentum"] * b, (rows, columns))
        step = ops.reshape(self._orthogonalised(ops, step, rows > columns), role.shape)
        p = p * s["shrink"] if self.weight_decay and role.decays else p
        return p - s["rate"] * (self._factor(role, rows, columns) * step), {"momentum": b}

    def _orthogonalised(self, ops: ArrayOps, x: Any, is_tall: bool) -> Any:
        """Return a matrix with the same singular vectors and singular values near 1."""
        (a, b, c), eps = _POLYNOMIAL, _EPS[self.convention]
        x = ops.transpose(x, (1, 0)) if is_tall else x
        norm = ops.sqrt(ops.total(ops.square(x)))
        x = x / (ops.maximum(norm, eps) if self.convention == "torch" else norm + eps)
        for _ in range(self.steps):
            gram = x @ ops.transpose(x, (1, 0))
            x = a * x + (b * gram + c * gram @ gram) @ x
        return ops.transpose(x, (1, 0)) if is_tall else x

    def _factor(self, role: Role, rows: int, columns: int) -> float:
        """Return the factor of a step."""
        scale = self.scale or _SCALES[self.convention]
        if self.scale is None and self.convention == "original":
            rows, columns = role.shape[-2:]
        ratios = {"rows": rows / columns, "columns": columns / rows}
        if scale in ratios:
            return math.sqrt(max(1.0, ratios[scale]))
        return 0.2 * math.sqrt(max(rows, columns)) if scale == "adam" else 1.0

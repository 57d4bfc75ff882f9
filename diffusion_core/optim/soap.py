r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

For each axis of a parameter up to `largest`, C is the average of the outer products of the gradient along that axis,
and Q its eigenvectors, which are refreshed every `frequency` updates. The first update only starts C and Q. Update
k + 1 makes step k of Adam, with g' the gradient in the basis Q of each axis::

    m <- beta1 m + (1 - beta1) g',    v <- beta2 v + (1 - beta2) g'^2
    p <- p - lr sqrt(1 - beta2^k)/(1 - beta1^k) [ m / (sqrt(v) + eps) out of the basis ]
    p <- p - lr weight_decay p                              for parameters that decay; afterwards
    C <- shampoo_beta C + (1 - shampoo_beta) outer product of g
    Q <- orthogonal(C Q)                                    by QR, if k is a multiple of `frequency`

When Q is refreshed, its columns and the entries of v are ordered by q^T C q, the largest first, and m moves to the new
basis. Vectors have no basis, so they take Adam (a step later), unless `vectors` is true. With `merge_axes` neighbouring
axes are one as long as their product is at most `largest`, so that a kernel has fewer and larger bases.

The eigenvectors of equal eigenvalues are arbitrary, and a gradient of few samples leaves C many zeros. There each
framework would choose others, and training would differ. So the columns of Q whose eigenvalue is only rounding are
replaced: at the start by the unit vectors, later by the columns before, made orthogonal to the others. Where C has full
rank this changes nothing. Decompositions are made in the precision of the run; the original rounds to float32.

References:
    SOAP: Improving and Stabilizing Shampoo using Adam (Vyas et al., 2024), https://arxiv.org/abs/2409.11321
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, Role, Slot, check_common, check_range, correction

__all__ = ["SOAP"]

# Eigenvalues below this many machine epsilons of the largest, times the size of the matrix, are rounding.
_ROUNDING = 10.0


@dataclass(frozen=True)
class SOAP(Optimiser):
    """SOAP.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        shampoo_beta: decay of the outer products; None is beta2.
        frequency: updates between two refreshes of the basis.
        largest: the largest axis that has a basis.
        vectors: whether vectors have a basis too.
        merge_axes: whether neighbouring axes have one basis together, up to `largest`.
        normalise: whether each step of a parameter has root mean square 1 before the rate.
        correct_bias: whether the moments are bias-corrected.
        complete: whether columns without an eigenvalue are the same in every framework; false leaves them as its
            decomposition has them, like the original.

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> SOAP().slots(Role("w", (8, 4), "matrix"))["basis1"]
        Slot(shape=(4, 4), start='identity')
    """

    sees_axes: ClassVar[bool] = True

    beta1: float = 0.95
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    shampoo_beta: float | None = None
    frequency: int = 10
    largest: int = 10_000
    vectors: bool = False
    merge_axes: bool = False
    normalise: bool = False
    correct_bias: bool = True
    complete: bool = True

    def __post_init__(self) -> None:
        betas = {"beta1": self.beta1, "beta2": self.beta2}
        betas |= {} if self.shampoo_beta is None else {"shampoo_beta": self.shampoo_beta}
        check_common(betas, self.eps, self.weight_decay, self.clip)
        check_range(
            frequency=(self.frequency, self.frequency >= 1, "at least 1"),
            largest=(self.largest, self.largest >= 1, "at least 1"),
        )

    def _axes(self, role: Role) -> tuple[int, ...]:
        """Return the axes that have a basis."""
        if len(role.shape) == 1 and not self.vectors:
            return ()
        return tuple(axis for axis, size in enumerate(self._shape(role)) if size <= self.largest)

    def _shape(self, role: Role) -> tuple[int, ...]:
        """Return the shape whose axes have bases."""
        if not self.merge_axes:
            return role.shape
        merged, product = [], 1
        for size in role.shape:
            if product * size <= self.largest:
                product *= size
            elif product > 1:
                merged, product = [*merged, product], size
            else:  # an axis that is too large by itself
                merged.append(size)
        return tuple(merged if merged and product == 1 else [*merged, product])

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        slots = {name: Slot(role.shape) for name in ("moment1", "moment2")}
        for axis in self._axes(role):
            square = (self._shape(role)[axis],) * 2
            slots |= {f"outer{axis}": Slot(square), f"basis{axis}": Slot(square, "identity")}
        return slots

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        step, rate = max(update - 1, 1), lr
        if self.correct_bias:
            rate *= math.sqrt(correction(self.beta2, step)) / correction(self.beta1, step)
        refresh = update > 1 and (update - 1) % self.frequency == 0
        decay = lr * self.weight_decay
        return {"first": float(update == 1), "refresh": float(refresh), "rate": rate, "decay": decay}

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        axes, beta = self._axes(role), self.beta2 if self.shampoo_beta is None else self.shampoo_beta
        shape = self._shape(role)
        p, g, m, v = (ops.reshape(x, shape) for x in (p, g, slots["moment1"], slots["moment2"]))
        outer = {a: beta * slots[f"outer{a}"] + (1.0 - beta) * _outer(ops, shape, g, a) for a in axes}
        old = {a: slots[f"basis{a}"] for a in axes}

        def begin() -> tuple:
            return p, m, v, *(_first_basis(ops, outer[a], old[a], self.complete) for a in axes)

        def step() -> tuple:
            turned = _turned(ops, shape, g, old)
            moment1 = self.beta1 * m + (1.0 - self.beta1) * turned
            moment2 = self.beta2 * v + (1.0 - self.beta2) * ops.square(turned)
            direction = _turned(ops, shape, moment1 / (ops.sqrt(moment2) + self.eps), old, back=True)
            if self.normalise:
                direction = direction / (ops.sqrt(ops.mean(ops.square(direction))) + 1e-30)
            moved = p - s["rate"] * direction
            if self.weight_decay and role.decays:
                moved = moved - s["decay"] * moved
            if not axes:
                return moved, moment1, moment2
            return moved, *ops.choose(
                s["refresh"],
                lambda: _refreshed(ops, shape, moment1, moment2, outer, old, self.complete),
                lambda: (moment1, moment2, *old.values()),
            )

        p, m, v, *bases = ops.choose(s["first"], begin, step)
        p, m, v = (ops.reshape(x, role.shape) for x in (p, m, v))
        new = {"moment1": m, "moment2": v} | {f"outer{a}": outer[a] for a in axes}
        return p, new | {f"basis{a}": basis for a, basis in zip(axes, bases, strict=True)}


def _outer(ops: ArrayOps, shape: tuple[int, ...], g: Any, axis: int) -> Any:
    """Return the products of the gradient with itself along an axis, summed over the others."""
    others = tuple(a for a in range(len(shape)) if a != axis)
    rows = ops.reshape(ops.transpose(g, (axis, *others)), (shape[axis], math.prod(shape[a] for a in others)))
    return rows @ ops.transpose(rows, (1, 0))


def _turned(ops: ArrayOps, shape: tuple[int, ...], x: Any, bases: Mapping[int, Any], back: bool = False) -> Any:
    """Return an array in the basis of each axis, or `back` out of it."""
    # Each pass takes the first axis to the end, so that after all of them the order is as before.
    for axis, size in enumerate(shape):
        rest = tuple(shape[(axis + i) % len(shape)] for i in range(1, len(shape)))
        rows = ops.transpose(ops.reshape(x, (size, math.prod(rest))), (1, 0))
        if axis in bases:
            rows = rows @ (ops.transpose(bases[axis], (1, 0)) if back else bases[axis])
        x = ops.reshape(rows, (*rest, size))
    return x


def _first_basis(ops: ArrayOps, outer: Any, unit: Any, complete: bool) -> Any:
    """Return the eigenvectors of a matrix, those of the largest eigenvalues first."""
    values, vectors = ops.eigenvectors(outer)
    order = ops.descending(values)
    values, vectors = ops.take(values, order, 0), ops.take(vectors, order, 1)
    return _completed(ops, values, vectors, unit) if complete else vectors


def _completed(ops: ArrayOps, sizes: Any, columns: Any, others: Any) -> Any:
    """Return orthogonal columns, after `others` took the place of those whose size is rounding."""
    limit = _ROUNDING * int(columns.shape[0]) * ops.epsilon(columns) * ops.total(sizes)
    # Without a gradient all sizes are 0, and all columns are the others.
    is_real = sizes > limit
    # The others come last, so that the real ones are made orthogonal to each other alone; then all return.
    order = ops.descending(ops.where(is_real, 1.0 + 0.0 * sizes, 0.0 * sizes))
    made, _ = ops.orthogonal(ops.take(ops.where(is_real, columns, others), order, 1))
    return ops.take(made, ops.descending(-order), 1)


def _refreshed(
    ops: ArrayOps,
    shape: tuple[int, ...],
    m: Any,
    v: Any,
    outer: Mapping[int, Any],
    old: Mapping[int, Any],
    complete: bool,
) -> tuple:
    """Return the moments in a new basis, and its axes."""
    m, bases = _turned(ops, shape, m, old, back=True), {}
    for axis, basis in old.items():
        values = ops.diagonal(ops.transpose(basis, (1, 0)) @ outer[axis] @ basis)
        order = ops.descending(values)
        basis, v = ops.take(basis, order, 1), ops.take(v, order, axis)
        columns = outer[axis] @ basis
        bases[axis], triangle = ops.orthogonal(columns)
        if complete:
            bases[axis] = _completed(ops, ops.sqrt(ops.square(ops.diagonal(triangle))), columns, basis)
    return _turned(ops, shape, m, bases), v, *bases.values()

r"""The rungs of the ladder, their tolerances, and a check.

A tolerance is about five times what rounding was measured to do when every recipe is followed; the smallest
mistake that was ever met shows as 5e-11 in float64, so a float64 tolerance of 1e-12 tells one from the other.
Errors are relative to the largest number of the reference,

    relative(a, b) = max|a - b| / max|b|,      l2(a, b) = |a - b| / |b|

never element by element, because a small element carries the rounding of its large neighbours. A weight after
an optimiser step is compared in units of the learning rate: the first steps of Adam turn rounding noise of a
gradient near eps into a share of lr.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError

__all__ = [
    "RUNGS",
    "TOLERANCES",
    "Check",
    "Rung",
    "Tolerance",
    "check",
    "l2",
    "l2_of_all",
    "ladder",
    "relative",
    "worst",
]


@dataclass(frozen=True)
class Rung:
    """A step of the ladder."""

    number: int
    title: str
    against: str
    reason: str


RUNGS = (
    Rung(0, "Tables and streams", "other framework", "The core computes them in NumPy float64: equal bits."),
    Rung(1, "Forward noising, target and loss", "NumPy reference", "Three products and a mean: rounding alone."),
    Rung(2, "Every block kind, every option", "NumPy reference; gradients: other framework",
         "One layer rounds once per sum; a wrong padding, axis or epsilon shows as 1e-4 or more."),
    Rung(3, "Whole network, forward", "NumPy reference", "Rounding grows slowly with depth; normalisation checks it."),
    Rung(4, "Gradient of every parameter, and by the image", "other framework",
         "NumPy has none, so the frameworks check each other; differences of the reference hold one direction."),
    Rung(5, "Optimiser step, clip and moving average", "NumPy reference",
         "One formula with host float64 scalars; in units of the learning rate."),
    Rung(6, "Sampler update, trajectory, final images and likelihood", "NumPy reference and other framework",
         "Sampling contracts errors: a thousand steps are no worse than twenty."),
    Rung(7, "Training in lock step", "other framework",
         "At a stable learning rate the runs never part; rounding grows like the root of the steps."),
    Rung(8, "Hand-over to the other framework", "uninterrupted run",
         "The state crosses bit for bit; the steps after it differ as lock-step ones do."),
)  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """What is allowed in each precision, and the unit of the error; None in bfloat16 where no claim is made."""

    float64: float
    float32: float
    bf16: float | None = None
    unit: str = "relative"

    def of(self, precision: str) -> float | None:
        """The tolerance in a precision."""
        return {"float64": self.float64, "float32": self.float32, "bf16": self.bf16}[precision]


# In bfloat16 the inputs of products have eight bits; what stands between products is float32 or not, as a framework has
# it. Measured on a CPU in both: a layer is off by 0.009, a network by 0.023, the gradient of a U-Net by 0.026.
# A mistake in a network shows from 0.1 on, so that these two have 2.5 times what was measured, and no more. No
# claim is made of what multiplies rounding: the gradient of a single tensor (0.5) or of `simple` (0.19), the samples of
# an untrained network (0.76), and training in lock step.
TOLERANCES: Mapping[str, Tolerance] = {
    "bits": Tolerance(0, 0, 0, unit="differing values"),
    "noised": Tolerance(1e-13, 5e-6, 5e-6),
    "loss": Tolerance(1e-12, 1e-6, 2e-2),
    "block": Tolerance(1e-13, 5e-6, 4e-2),
    "block, large logits": Tolerance(3e-13, 1.5e-5, 4e-2),
    "block gradient": Tolerance(1e-13, 1e-5, unit="L2 relative"),
    "block gradient, large logits": Tolerance(3e-13, 3e-5, unit="L2 relative"),
    "network": Tolerance(1e-12, 1e-5, 6e-2),
    "gradient": Tolerance(1e-12, 1e-5, 6e-2, unit="L2 relative"),
    "gradient, worst tensor": Tolerance(1e-12, 5e-5, unit="L2 relative"),
    "pullback": Tolerance(1e-9, 1e-5, 8e-2, unit="relative to a difference quotient"),
    "likelihood": Tolerance(1e-12, 2e-6, 2e-2),
    "optimiser, 1 step": Tolerance(1e-11, 1e-4, 1e-4, unit="learning rates"),
    "optimiser, 1000 steps": Tolerance(1e-11, 2e-3, 2e-3, unit="learning rates"),
    "sampling": Tolerance(1e-10, 1e-4, unit="absolute, images in [-1, 1]"),
    "pixels": Tolerance(0, 1e-3, unit="share of uint8 values"),
    "training loss, 10 steps": Tolerance(1e-12, 1e-6),
    "training loss, 100 steps": Tolerance(1e-10, 1e-4),
    "training loss, 1000 steps": Tolerance(1e-8, 1e-3),
    "training weights, 10 steps": Tolerance(1e-12, 1e-6, unit="L2 relative"),
    "training weights, 100 steps": Tolerance(1e-10, 1e-5, unit="L2 relative"),
    "next step": Tolerance(1e-12, 1e-6, unit="L2 relative"),
}


@dataclass(frozen=True)
class Check:
    """One comparison and its outcome; `backend` is one name, or two joined by a dash."""

    rung: int
    name: str
    precision: str
    backend: str
    error: float
    tolerance: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return bool(self.error <= self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"passed": self.passed}


def check(rung: int, name: str, precision: str, backend: str, kind: str, error: float) -> Check:
    """A check with the tolerance of its kind.

    Raises:
        DuetError: if no claim is made of that kind in that precision.
    """
    tolerance = TOLERANCES[kind]
    allowed = tolerance.of(precision)
    if allowed is None:
        raise DuetError(f"{kind}: no claim is made of it in {precision}, so nothing can be held to it")
    return Check(rung, name, precision, backend, float(error), allowed, tolerance.unit)


def relative(a: ArrayLike, b: ArrayLike) -> float:
    """max|a - b| / max|b|; infinite where the shapes differ, a number is not finite, or all of b is zero but not a."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        return float("inf")
    return _share(float(np.max(np.abs(a - b), initial=0.0)), float(np.max(np.abs(b), initial=0.0)))


def _share(error: float, size: float) -> float:
    """error / size; any error of what should be zero is infinite."""
    if not error:
        return 0.0
    return error / size if size else float("inf")


def l2(a: ArrayLike, b: ArrayLike) -> float:
    """|a - b| / |b|; infinite where the shapes differ, a number is not finite, or all of b is zero but not a."""
    return l2_of_all({"": np.asarray(a)}, {"": np.asarray(b)})


def l2_of_all(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    """`l2` of all arrays of the same names as one vector; infinite where there are none."""
    if not a or a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return float("inf")
    error = sum(float(np.sum((np.float64(a[name]) - np.float64(b[name])) ** 2)) for name in a)
    size = sum(float(np.sum(np.float64(b[name]) ** 2)) for name in b)
    if not (np.isfinite(error) and np.isfinite(size)):
        return float("inf")
    return float(np.sqrt(_share(error, size)))


def worst(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    """The largest `l2` of a single array; infinite where there are none."""
    return max(l2(a[name], b[name]) for name in a) if a and a.keys() == b.keys() else float("inf")


def ladder(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """The rungs with their checks, as plain data for a report."""
    checks = list(checks)
    return [
        {"rung": r.number, "title": r.title, "against": r.against, "reason": r.reason,
         "checks": [c.to_dict() for c in checks if c.rung == r.number]}
        for r in RUNGS
    ]  # fmt: skip

r"""The rungs of the ladder, their tolerances, and a check.

A tolerance is about five times the measured rounding error of a correct backend. The smallest mistake ever found was an
error of 5e-11 in float64, so a float64 tolerance of 1e-12 separates mistakes from rounding. Errors are relative to the
largest element of the reference,

    relative(a, b) = max|a - b| / max|b|,      l2(a, b) = |a - b| / |b|

not element by element, because a small element carries the rounding error of its large neighbours. Weights after an
optimiser step are compared in units of the learning rate: the first steps of Adam amplify rounding noise of gradients
near eps to a fraction of the learning rate.
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
    Rung(1, "Forward noising, target and loss", "NumPy reference", "Three products and a mean: rounding errors only."),
    Rung(2, "Every block kind, every option", "NumPy reference; gradients: other framework",
         "One layer rounds once per sum; a wrong padding, axis or epsilon gives an error of 1e-4 or more."),
    Rung(3, "Whole network, forward", "NumPy reference",
         "Rounding errors grow slowly with depth; normalisation limits them."),
    Rung(4, "Gradient of every parameter, and by the image", "other framework",
         "The reference computes no gradients, so the frameworks are compared with each other; finite differences of "
         "the reference check one direction."),
    Rung(5, "Optimiser step, clip and moving average", "NumPy reference",
         "One formula with scalars that the host computes in float64; in units of the learning rate."),
    Rung(6, "Sampler update, trajectory, final images and likelihood", "NumPy reference and other framework",
         "Sampling contracts errors: a thousand steps are no worse than twenty."),
    Rung(7, "Training in lock step", "other framework",
         "At a stable learning rate the runs do not diverge; rounding errors grow like the square root of the steps."),
    Rung(8, "Hand-over to the other framework", "uninterrupted run",
         "The state is handed over bit for bit; the later steps differ like those in lock step."),
)  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """The allowed error in each precision, and its unit; None in bfloat16 if there is no claim."""

    float64: float
    float32: float
    bf16: float | None = None
    unit: str = "relative"

    def allowed(self, precision: str) -> float | None:
        """Return the allowed error in a precision."""
        return {"float64": self.float64, "float32": self.float32, "bf16": self.bf16}[precision]


# In bfloat16 the inputs of products have eight bits; each framework decides whether other values are float32. Errors
# measured on a CPU, in both frameworks: 0.009 for a layer, 0.023 for a network, 0.026 for the gradient of a U-Net.
# Mistakes in a network show as 0.1 or more, so networks and gradients are allowed only 2.5 times the measured error.
# There is no claim for quantities that amplify rounding: the gradient of a single tensor (0.5) or of `simple` (0.19),
# the samples of an untrained network (0.76), and training in lock step.
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
    "pixels": Tolerance(0, 1e-3, unit="fraction of uint8 values"),
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
        """Return plain data."""
        return asdict(self) | {"passed": self.passed}


def check(rung: int, name: str, precision: str, backend: str, kind: str, error: float) -> Check:
    """Return a check with the tolerance of its kind.

    Raises:
        DuetError: if this kind has no tolerance in this precision.
    """
    tolerance = TOLERANCES[kind]
    allowed = tolerance.allowed(precision)
    if allowed is None:
        raise DuetError(f"{kind}: there is no tolerance for it in {precision}")
    return Check(rung, name, precision, backend, float(error), allowed, tolerance.unit)


def relative(a: ArrayLike, b: ArrayLike) -> float:
    """Return max|a - b| / max|b|; infinite if shapes differ, an element is not finite, or b is zero and a is not."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        return float("inf")
    return _ratio(float(np.max(np.abs(a - b), initial=0.0)), float(np.max(np.abs(b), initial=0.0)))


def _ratio(error: float, size: float) -> float:
    """Return error / size; infinite for any error if the size is zero."""
    if not error:
        return 0.0
    return error / size if size else float("inf")


def l2(a: ArrayLike, b: ArrayLike) -> float:
    """Return |a - b| / |b|; infinite if shapes differ, an element is not finite, or b is zero and a is not."""
    return l2_of_all({"": np.asarray(a)}, {"": np.asarray(b)})


def l2_of_all(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    """Return `l2` of all arrays as one vector; infinite without arrays or if the names differ."""
    if not a or a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return float("inf")
    error = sum(float(np.sum((np.float64(a[name]) - np.float64(b[name])) ** 2)) for name in a)
    size = sum(float(np.sum(np.float64(b[name]) ** 2)) for name in b)
    if not (np.isfinite(error) and np.isfinite(size)):
        return float("inf")
    return float(np.sqrt(_ratio(error, size)))


def worst(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    """Return the largest `l2` of a single array; infinite without arrays or if the names differ."""
    return max(l2(a[name], b[name]) for name in a) if a and a.keys() == b.keys() else float("inf")


def ladder(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """Return the rungs with their checks, as plain data for a report."""
    checks = list(checks)
    return [
        {"rung": r.number, "title": r.title, "against": r.against, "reason": r.reason,
         "checks": [c.to_dict() for c in checks if c.rung == r.number]}
        for r in RUNGS
    ]  # fmt: skip

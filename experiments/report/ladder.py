"""The parity ladder: every check against its tolerance, and the verdict that follows.

A check passes if it says so and its error, where it has one, is within its tolerance: a report cannot call "passed"
what its own numbers deny. Errors of all rungs share one axis, the ratio r = error / tolerance on a log scale, with the
tolerance at r = 1. An error of exactly zero lies on the left edge; an error that is not a number, or is missing from a
failed check, lies on the right edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_core.common.text import pluralize

from .text import DASH, brief, real

__all__ = ["Check", "Verdict", "ladder", "read_checks", "verdict"]


@dataclass(frozen=True)
class Check:
    """One comparison of a rung."""

    rung: object
    name: object
    precision: object
    backend: object
    error: object
    tolerance: object
    unit: object
    passed: bool

    @property
    def ratio(self) -> float:
        """Error over tolerance: 0 if the error is 0, infinite if it is not a number or the tolerance is 0."""
        error, tolerance = real(self.error), real(self.tolerance)
        if error is None or tolerance is None:
            return 0.0 if self.passed else math.inf
        if error == 0:
            return 0.0
        return error / tolerance if math.isfinite(error) and tolerance > 0 else math.inf

    @property
    def bit_equal(self) -> bool:
        """Whether nothing but equality was allowed, and holds."""
        return real(self.error) == 0 and real(self.tolerance) == 0

    @property
    def distance(self) -> str:
        """The distance from the tolerance in words, as in "480× below" or "12× over"."""
        if real(self.error) is None:
            return DASH
        if self.ratio == 0:
            return "exact"
        if math.isinf(self.ratio):
            return "over"
        factor = self.ratio if self.ratio > 1 else 1 / self.ratio
        digits = f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}" if factor < 1e5 else brief(factor)
        return f"{digits}× {'over' if self.ratio > 1 else 'below'}"


@dataclass(frozen=True)
class Verdict:
    """Whether the runs agree (None: unchecked), the checks passed, all checks, a sentence, and what it is about."""

    agree: bool | None
    passed: int
    total: int
    sentence: str
    subject: str = ""


def read_checks(report: Mapping) -> list[Check]:
    """Return all checks of the report, lowest rung first."""
    return [check for rung in _rungs(report) for check in _checks_of(rung)]


def _checks_of(rung: Mapping) -> list[Check]:
    checks = []
    for check in rung.get("checks") or []:
        error, tolerance = real(check.get("error")), real(check.get("tolerance"))
        denied = error is not None and tolerance is not None and not error <= tolerance
        fields = {key: check.get(key) for key in ("name", "precision", "backend", "error", "tolerance", "unit")}
        checks.append(Check(rung.get("rung"), **fields, passed=bool(check.get("passed")) and not denied))
    return checks


def _rungs(report: Mapping) -> list[Mapping]:
    rungs = list(report.get("rungs") or [])
    return sorted(rungs, key=lambda rung: real(rung.get("rung")) if real(rung.get("rung")) is not None else math.inf)


def verdict(report: Mapping, checks: Sequence[Check]) -> Verdict:
    """Return the verdict of the report, corrected by its checks.

    A verdict that claims more than the checks show is corrected; one that claims less is kept.
    """
    claimed = report.get("verdict") or {}
    passed, total = claimed.get("passed"), claimed.get("total")
    agree = None if claimed.get("agree") is None else bool(claimed["agree"])
    if real(passed) is None or real(total) is None:
        passed, total = sum(check.passed for check in checks), len(checks)
    failed = sum(not check.passed for check in checks)
    sentence = str(claimed.get("sentence") or "")
    if agree is None and checks:
        agree = True
    if agree and (failed or passed < total):
        agree = False
        passed, total = (len(checks) - failed, len(checks)) if failed else (passed, total)
        sentence = f"The report calls this agreement, but {pluralize(total - passed, 'check')} did not pass."
    return Verdict(agree, int(passed), int(total), sentence, str(claimed.get("subject") or ""))


@dataclass(frozen=True)
class _Scale:
    """The shared axis of log10(error / tolerance), from `low` to `high` decades."""

    low: int
    high: int

    @classmethod
    def from_checks(cls, checks: Sequence[Check]) -> _Scale:
        """Return the decades that hold all checks, within limits that keep the tolerance readable."""
        decades = [math.log10(c.ratio) for c in checks if 0 < c.ratio < math.inf]
        low = math.floor(min(decades, default=-4)) - any(c.ratio == 0 for c in checks)
        high = math.ceil(max(decades, default=0))
        return cls(min(-3, max(low, -9)), min(4, max(1, high)))

    def percent(self, ratio: float) -> float:
        """Return the position in percent of the width."""
        decades = self.low if ratio == 0 else self.high if math.isinf(ratio) else math.log10(ratio)
        return 100 * (min(max(decades, self.low), self.high) - self.low) / (self.high - self.low)

    def decades(self) -> list[int]:
        """Return the decades that are marked, left of the tolerance."""
        step = 1 if -self.low <= 4 else 2
        return [d for d in range(-step * (-self.low // step), 0, step) if d > self.low]


def ladder(report: Mapping) -> dict[str, Any] | None:
    """Return the data of the section: the axis, and each rung with its lanes and checks; None without rungs."""
    rungs = _rungs(report)
    if not rungs:
        return None
    checks = read_checks(report)
    scale = _Scale.from_checks(checks)
    return {
        "scale": scale,
        "ticks": [(f"{scale.percent(10.0**d):.2f}", f"1e{d}" if d < -1 else "") for d in scale.decades()],
        "limit": f"{scale.percent(1.0):.2f}",
        "any_exact": any(check.ratio == 0 for check in checks),
        "backends": list(dict.fromkeys(str(check.backend) for check in checks)),
        "rungs": [_rung(rung, scale) for rung in rungs],
    }


def _rung(rung: Mapping, scale: _Scale) -> dict[str, Any]:
    checks = _checks_of(rung)
    lanes: dict[str, list[Check]] = {}
    for check in checks:
        lanes.setdefault(str(check.precision or DASH), []).append(check)
    against = str(rung.get("against") or "")
    return {
        "number": rung.get("rung"),
        "title": rung.get("title"),
        "against": f"the {against}" if against.startswith(("NumPy", "other")) else against,
        "reason": rung.get("reason"),
        "lanes": [_lane(name, lanes[name], scale) for name in sorted(lanes, reverse=True)],
        "failed": sum(not check.passed for check in checks),
        # Failures first, then the least headroom.
        "checks": sorted(checks, key=lambda check: (check.passed, -check.ratio)),
    }


def _lane(precision: str, checks: Sequence[Check], scale: _Scale) -> dict[str, Any]:
    """Return the worst check of each backend in one precision, and the worst of all."""
    worst = max(checks, key=lambda check: check.ratio)
    dots, parts = [], []
    for backend in sorted({str(check.backend) for check in checks}):
        own = max((c for c in checks if str(c.backend) == backend), key=lambda check: check.ratio)
        dots.append((backend, f"{scale.percent(own.ratio):.2f}"))
        parts.append(f"{backend} {brief(own.error)} of {brief(own.tolerance)}")
    at, limit = scale.percent(worst.ratio), scale.percent(1.0)
    return {
        "precision": precision,
        "description": f"{precision}, worst error: {'; '.join(parts)}",
        "dots": dots,
        "worst": worst,
        "over": not worst.ratio <= 1,
        "left": f"{min(at, limit):.2f}",
        "width": f"{abs(limit - at):.2f}",
    }

"""The parity ladder: every check against its tolerance, and the verdict they give.

A check passes if it says so and its error, where it has one, is within its tolerance: a report cannot call
"passed" what its own numbers deny. Errors of all rungs share one axis, the ratio r = error / tolerance on a
log scale, with the tolerance at r = 1. An error of exactly zero lies on the left edge; an error that is not
a number, or is missing from a failed check, lies on the right edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .text import DASH, brief, count, escape, number, real

__all__ = ["Check", "failures", "ladder", "read_checks", "verdict"]

_MARKS = ("torch", "tf")  # a backend that names both, or neither, is drawn as a pair


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
    def mark(self) -> str:
        """The class that gives a backend its colour and shape."""
        named = [mark for mark in _MARKS if mark in str(self.backend)]
        return named[0] if len(named) == 1 else "pair"

    @property
    def headroom(self) -> str:
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


def read_checks(report: Mapping) -> list[Check]:
    """All checks of the report, lowest rung first."""
    checks = []
    for rung in _rungs(report):
        for check in rung.get("checks") or []:
            error, tolerance = real(check.get("error")), real(check.get("tolerance"))
            denied = error is not None and tolerance is not None and not error <= tolerance
            fields = {key: check.get(key) for key in ("name", "precision", "backend", "error", "tolerance", "unit")}
            checks.append(Check(rung.get("rung"), **fields, passed=bool(check.get("passed")) and not denied))
    return checks


def _rungs(report: Mapping) -> list[Mapping]:
    rungs = list(report.get("rungs") or [])
    return sorted(rungs, key=lambda rung: real(rung.get("rung")) if real(rung.get("rung")) is not None else math.inf)


def verdict(report: Mapping, checks: list[Check]) -> tuple[bool | None, int, int, str]:
    """Whether the runs agree (None: nothing was checked), the checks passed, all checks, and a sentence.

    The checks of the ladder decide where there are any: a verdict that claims more than they show is corrected,
    one that claims less is kept.
    """
    said = report.get("verdict") or {}
    passed, total = said.get("passed"), said.get("total")
    agree = None if said.get("agree") is None else bool(said["agree"])
    if real(passed) is None or real(total) is None:
        passed, total = sum(check.passed for check in checks), len(checks)
    failed = sum(not check.passed for check in checks)
    sentence = str(said.get("sentence") or "")
    if agree is None and checks:
        agree = True
    if agree and (failed or passed < total):
        agree = False
        passed, total = (len(checks) - failed, len(checks)) if failed else (passed, total)
        sentence = f"The report calls this agreement, but {count(total - passed, 'check')} did not pass."
    return agree, int(passed), int(total), sentence


def _result(passed: bool) -> str:
    return '<b class="pass">✓ pass</b>' if passed else '<b class="fail">✗ FAIL</b>'


def _table(checks: Iterable[Check], caption: str, with_rung: bool = False) -> str:
    heads = [*(["rung"] if with_rung else []), "result", "check", "precision", "backend"]
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    head += "".join(f'<th scope="col" class="num">{h}</th>' for h in ("error", "tolerance", "distance"))
    rows = []
    for check in checks:
        rung = f'<td class="num at-rung">{escape(check.rung)}</td>' if with_rung else ""
        unit = f' <span class="unit">{escape(check.unit)}</span>' if check.unit else ""
        rows.append(
            f"<tr{'' if check.passed else ' class=failed'}>{rung}"
            f'<td class="result">{_result(check.passed)}</td>'
            f'<th scope="row">{escape(check.name)}</th><td>{escape(check.precision)}</td>'
            f'<td><i class="dot {check.mark}"></i>{escape(check.backend)}</td>'
            f'<td class="num">{brief(check.error)}</td><td class="num limit">{brief(check.tolerance)}{unit}</td>'
            f'<td class="num distance">{check.headroom}</td></tr>'
        )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        '<table class="checks"><caption class="hidden">'
        f"{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def failures(checks: list[Check], most: int = 10) -> str:
    """The checks that do not pass, lowest rung first; empty if all pass."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return ""
    first = failed[0]
    rest = f'<p>and {count(len(failed) - most, "more check")} <a href="#ladder">in the ladder</a></p>'
    return (
        '<div class="failures"><h2>What fails</h2><p>Each rung rests on those below it, '
        f"so start at the first failure: <strong>rung {escape(first.rung)}, {escape(first.name)}</strong> "
        f"({escape(first.precision)}, {escape(first.backend)}).</p>"
        f"{_table(failed[:most], 'checks that fail', with_rung=True)}{rest if len(failed) > most else ''}</div>"
    )


@dataclass(frozen=True)
class _Scale:
    """The shared axis of log10(error / tolerance), from `low` to `high` decades."""

    low: int
    high: int

    def place(self, ratio: float) -> float:
        """The position in percent of the width."""
        decades = self.low if ratio == 0 else self.high if math.isinf(ratio) else math.log10(ratio)
        return 100 * (min(max(decades, self.low), self.high) - self.low) / (self.high - self.low)


def _scale(checks: list[Check]) -> _Scale:
    decades = [math.log10(c.ratio) for c in checks if 0 < c.ratio < math.inf]
    low = math.floor(min(decades, default=-4)) - any(c.ratio == 0 for c in checks)
    high = math.ceil(max(decades, default=0))
    return _Scale(min(-3, max(low, -9)), min(4, max(1, high)))


def _grid(scale: _Scale) -> list[int]:
    step = 1 if -scale.low <= 4 else 2
    return [d for d in range(-step * (-scale.low // step), 0, step) if d > scale.low]


def _worst(check: Check) -> str:
    if real(check.error) == 0 and real(check.tolerance) == 0:
        return "<b>bit-equal</b>"
    return f"<b>{brief(check.error)}</b> of {brief(check.tolerance)}"


def _lane(precision: str, checks: list[Check], scale: _Scale) -> str:
    worst = max(checks, key=lambda check: check.ratio)
    dots, parts = "", []
    for backend in sorted({str(check.backend) for check in checks}):
        own = max((c for c in checks if str(c.backend) == backend), key=lambda check: check.ratio)
        dots += f'<i class="dot {own.mark}" style="left:{scale.place(own.ratio):.2f}%"></i>'
        parts.append(f"{backend} {brief(own.error)} of {brief(own.tolerance)}")
    said = f"{precision}, worst error: {'; '.join(parts)}"
    at = scale.place(worst.ratio)
    one = scale.place(1.0)
    over = " over" if not worst.ratio <= 1 else ""
    lines = "".join(f'<i class="tick" style="left:{scale.place(10.0**d):.2f}%"></i>' for d in _grid(scale))
    return (
        f'<div class="lane"><span class="lane-name">{escape(precision)}</span>'
        f'<span class="track" role="img" aria-label="{escape(said)}">{lines}'
        f'<i class="beyond" style="left:{one:.2f}%"></i>'
        f'<i class="span{over}" style="left:{min(at, one):.2f}%;width:{abs(one - at):.2f}%"></i>{dots}</span>'
        f'<span class="lane-value{over}">{_worst(worst)}</span></div>'
    )


def _status(checks: list[Check]) -> str:
    failed = sum(not check.passed for check in checks)
    if not checks:
        return f'<span class="status none">{DASH} not run</span>'
    if failed:
        return f'<span class="status fail">✗ {failed} of {len(checks)} fail</span>'
    return f'<span class="status pass">✓ {len(checks)} of {len(checks)}</span>'


def ladder(report: Mapping) -> str:
    """The section with one row for each rung; a rung with a failure is open."""
    rungs = _rungs(report)
    if not rungs:
        return ""
    scale = _scale(read_checks(report))
    labels = "".join(
        f'<span class="between" style="left:{scale.place(10.0**d):.2f}%">1e{d}</span>' for d in _grid(scale) if d < -1
    )
    labels += f'<span class="limit" style="left:{scale.place(1.0):.2f}%">tolerance</span>'
    if any(check.ratio == 0 for check in read_checks(report)):
        labels += '<span class="first" style="left:0">exact</span>'
    rows = []
    for rung in rungs:
        checks = read_checks({"rungs": [rung]})
        lanes: dict[str, list[Check]] = {}
        for check in checks:
            lanes.setdefault(str(check.precision or DASH), []).append(check)
        drawn = "".join(_lane(name, lanes[name], scale) for name in sorted(lanes, reverse=True))
        failed = any(not check.passed for check in checks)
        against = f'<span class="against">against {_the(rung["against"])}</span>' if rung.get("against") else ""
        reason = (
            f'<p class="reason"><b>Why this tolerance:</b> {escape(rung["reason"])}</p>' if rung.get("reason") else ""
        )
        table = ""
        if checks:
            # Failures first, then the least headroom.
            order = sorted(checks, key=lambda check: (check.passed, -check.ratio))
            table = _table(order, f"checks of rung {number(rung.get('rung'))}")
        rows.append(
            f'<details class="rung{" failed" if failed else ""}"{" open" if failed else ""}><summary>'
            f'<span class="rung-number">{escape(rung.get("rung"))}</span>'
            f'<span class="rung-title"><h3>{escape(rung.get("title"))}</h3>{against}</span>'
            f'<span class="lanes">{drawn}</span>{_status(checks)}</summary>'
            f'<div class="rung-body">{reason}{table}</div></details>'
        )
    return (
        '<div class="ladder-tools"><ul class="legend"><li><i class="dot torch"></i>PyTorch</li>'
        '<li><i class="dot tf"></i>TensorFlow</li><li><i class="dot pair"></i>one against the other</li></ul>'
        '<button type="button" id="expand" hidden>Show every check</button></div>'
        '<div class="ladder"><div class="ladder-axis" aria-hidden="true">'
        '<span class="axis-name">error ÷ tolerance</span>'
        f'<span class="axis-ticks">{labels}</span></div>{"".join(rows)}</div>'
    )


def _the(against: object) -> str:
    text = escape(against)
    return f"the {text}" if str(against).startswith(("NumPy", "other")) else text

"""What a comparison says: the lines on the terminal, report.json and report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.parity.diff.findings import Comparison, Finding
from experiments.model_diff.accepted import entry
from experiments.report import model_diff as page
from experiments.report.page import write_page
from experiments.report.text import brief

__all__ = ["read_weights", "summary", "to_report", "write"]

FORMAT = 1
_BINS = 48


def read_weights(weights: str | Mapping[str, str], copy_weights: str | None) -> tuple[dict[str, str], str]:
    """Return the user's map of parameters and the direction in which weights are copied.

    Args:
        weights: "map", "copy", a JSON file of {name in A: name in B}, or such a dictionary.
        copy_weights: "a-to-b", "b-to-a" or nothing.
    """
    if copy_weights not in (None, "", "a-to-b", "b-to-a"):
        raise DuetError(f"--copy-weights: {copy_weights!r} was given; it must be a-to-b or b-to-a")
    if isinstance(weights, Mapping):
        return dict(weights), copy_weights or ""
    if weights == "copy":
        return {}, copy_weights or "a-to-b"
    if weights == "map":
        return {}, copy_weights or ""
    path = Path(weights).expanduser()
    if path.suffix != ".json":
        raise DuetError(f"--weights: {weights!r} was given; it must be map, copy, or a JSON file of names")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DuetError(f"--weights: there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise DuetError(f"--weights: {path} was given; it must be a JSON file ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise DuetError(f'--weights: {path} must hold one object, {{"name in A": "name in B"}}')
    return content, copy_weights or ""


def to_report(comparison: Comparison, command: str = "") -> dict[str, Any]:
    """Return a comparison as JSON values; docs/diff.md describes them."""
    outcome = verdict(comparison)
    return {
        "format": FORMAT,
        "title": " against ".join(titles(comparison.a, comparison.b)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "equal": comparison.equal,
        "verdict": outcome,
        "a": {"reference": comparison.a, "framework": comparison.frameworks[0]},
        "b": {"reference": comparison.b, "framework": comparison.frameworks[1]},
        "findings": [
            {**asdict(finding), "accept": entry(finding) if counts(finding) else None}
            for finding in comparison.findings
        ],
        "compared": dict(comparison.compared),
        "outputs": {name: dict(errors) for name, errors in comparison.outputs.items()},
        "operations": [asdict(row) for row in comparison.rows],
        "parameters": [dict(zip(("a", "b", "relation"), names, strict=True)) for names in comparison.parameters],
        "unmatched": dict(zip("ab", map(list, comparison.unmatched), strict=True)),
        "histograms": {name: histograms(*arrays) for name, arrays in comparison.histograms.items()},
        "notes": list(comparison.notes),
        "options": dict(comparison.options),
    }


def titles(a: str, b: str) -> tuple[str, str]:
    """Return both references without the folders that they need not name to be told apart."""

    def short(reference: str, parts: int) -> str:
        return "/".join(reference.replace("\\", "/").rstrip("/").split("/")[-parts:])

    for parts in (1, 2):
        if a == b or short(a, parts) != short(b, parts):
            return short(a, parts), short(b, parts)
    return a, b


def write(report: Mapping[str, Any], directory: Path) -> Path:
    """Write report.json and report.html; return the path of the page."""
    return write_page(report, page.render(report), directory)


def counts(finding: Finding) -> bool:
    """Return whether a finding makes the models unequal."""
    return not finding.benign and not finding.accepted


def verdict(comparison: Comparison) -> str:
    """Return the result in one clause."""
    real = [finding for finding in comparison.findings if counts(finding)]
    accepted = sum(bool(finding.accepted) for finding in comparison.findings)
    if not real:
        but = f", but for {accepted} accepted difference{'s' if accepted > 1 else ''}" if accepted else ""
        return f"equal to rounding{but}"
    names = {"gradient": "gradients", "training": "training mode", "steps": "training steps"}
    if all(finding.mode != "forward" for finding in real) and "forward" in comparison.compared:
        return f"equal in the forward pass, not equal in {names[real[0].mode]}"
    return "not equal"


def summary(report: Mapping[str, Any], where: Path | None = None) -> str:
    """Return the lines for the terminal: verdict, first operation, cause, report; then what else there is."""
    findings = report["findings"]
    real = [finding for finding in findings if not finding["benign"] and not finding["accepted"]]
    lines = [f"{report['verdict']}: {how_far(report)}"]
    if real:
        lines += [f"first:  {at_both(real[0])}", f"cause:  {cause(real[0])}"]
    if where is not None:
        lines.append(f"report: {where}")
    lines += [f"then:   {at_both(finding)}: {cause(finding)}" for finding in real[1:]]
    lines += [f"known:  {at_both(each)}: {cause(each)} ({each['accepted']})" for each in findings if each["accepted"]]
    lines += [f"benign: {at_both(each)}: {cause(each)}" for each in findings if each["benign"] and not each["accepted"]]
    lines += [f"note:   {note}" for note in report["notes"]]
    if real and where is not None:
        lines.append(f"accept: {json.dumps({**real[0]['accept'], 'reason': '...'})}  # in a list, with --accept FILE")
    return "\n".join(lines)


def how_far(report: Mapping[str, Any]) -> str:
    """Return how far the outputs are apart in each pass, and which parts were compared."""
    worst: dict[str, float] = {}
    for errors in report["outputs"].values():
        for name, error in errors.items():
            worst[name] = max(worst.get(name, 0.0), math.inf if error is None or math.isnan(error) else error)
    passes = {"float64": "float64", "float32": "float32", "train64": "training", "train32": "training"}
    far = [f"{brief(worst[name])} ({words})" for name, words in passes.items() if name in worst]
    parts = ", ".join(f"{name} {words}" for name, words in report["compared"].items())
    return f"outputs differ by {', '.join(far)}" + (f"; {parts}" if parts else "") if far else parts or "no outputs"


def at_both(finding: Mapping[str, Any]) -> str:
    """Return where a finding is on both sides."""
    return " | ".join(f"{side.upper()} {at(finding[side])}" for side in "ab")


def at(place: Mapping[str, str] | None) -> str:
    """Return where something is on one side: layer or parameter, source line, its text."""
    if place is None:
        return "nothing there"
    name = place["parameter"] or place["layer"] or place["native"] or place["kind"] or "the model"
    code = f"  {place['code']}" if place["code"] else ""
    name += f" ({place['time']})" if place.get("time") else ""
    if not place["source"] and place["native"] and place["native"] != name:
        name += f" [{place['native']}]"  # without a line of the author, the operation says which one it is
    return f"{name}, {place['source']}{code}" if place["source"] else name


def cause(finding: Mapping[str, Any]) -> str:
    """Return the cause of a finding, what both sides do, and how sure that is."""
    title = finding["title"] or "the cause is not known"
    does = "; ".join(f"{words} in {side.upper()}" for side in "ab" if (words := finding[f"{side}_does"]))
    left = f", {brief(finding['left'])} left of {brief(finding['error'])}"
    sure = {"verified": f"verified{left}", "likely": f"likely{left}"}.get(
        finding["status"], f"differs by {brief(finding['error'])}"
    )
    return f"{title}{': ' if does else ''}{does} ({sure})"


def histograms(a: NDArray, b: NDArray) -> dict[str, Any] | None:
    """Return counts of two outputs over common bins, and of their difference where they have the same elements."""
    if any(np.asarray(array).dtype.kind == "c" for array in (a, b)):
        return None
    x, y = (np.asarray(array, np.float64) for array in (a, b))
    numbers = [array[np.isfinite(array)] for array in (x, y)]
    if not all(len(each) for each in numbers):
        return None
    low, high = min(map(np.min, numbers)), max(map(np.max, numbers))
    pad = 1e-9 * max(abs(low), abs(high), 1e-300)
    edges = np.linspace(low - pad, high + pad, _BINS + 1)
    result: dict[str, Any] = {"edges": edges, "a": np.histogram(numbers[0], edges)[0]}
    result["b"] = np.histogram(numbers[1], edges)[0]
    if x.size == y.size and x.size:
        with np.errstate(invalid="ignore"):
            apart = y - in_layout_of(y, x)
        apart = apart[np.isfinite(apart)]
        if len(apart) and (reach := float(np.abs(apart).max())):
            edges = np.linspace(-reach, reach, _BINS + 1)
            result |= {"difference_edges": edges, "difference": np.histogram(apart, edges)[0]}
    return {name: array.tolist() for name, array in result.items()}


def in_layout_of(y: NDArray, x: NDArray) -> NDArray:
    """Return x in the order of axes, among the usual ones, in which it is nearest to y."""
    moved = [x, np.moveaxis(x, 1, -1), np.moveaxis(x, -1, 1)] if x.ndim > 2 else [x]
    forms = [array.reshape(y.shape) for array in moved]
    return min(forms, key=lambda array: float(np.nanmean(np.abs(y - array))))

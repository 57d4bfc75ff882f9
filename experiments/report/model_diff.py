"""The page of `duet diff`: the verdict and its cause, and the network as a list with the error of each operation.

A row has two errors, relative to the largest number of its value: its *own*, which the operation makes on the other
side's values, and the *inherited* one, by which the recorded values differ. Both are drawn on one logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from diffusion_core.common.text import pluralize

from .figures import Axis, Chart, Key, Path, Plot, Tick, dots, line
from .page import Section, render_page
from .text import brief, real

__all__ = ["render"]

_FLOOR = 1e-17  # what is smaller, zero too, is drawn here
_SINGLE = 2.0**-23  # one unit in the last place of float32, relative
_DECADES = (-16, -12, -8, -4, 0)
_MODES = {
    "forward": "forward pass", "gradient": "gradients", "training": "training mode", "steps": "training steps",
}  # fmt: skip
_PASSES = {
    "float64": "float64", "float32": "float32", "train64": "training mode, float64",
    "train32": "training mode, float32",
}  # fmt: skip
_SURE = {"verified": "pass", "likely": "none", "unknown": "none"}


@dataclass(frozen=True)
class Operation:
    """A row of the list: places of both sides, CSS positions of its errors, and the texts of these."""

    key: str
    a: Mapping[str, str]
    b: Mapping[str, str]
    shape: str
    relation: str
    own: str
    inherited: str
    own_left: str
    inherited_left: str
    floor_left: str
    description: str
    over: bool
    finding: int | None


@dataclass(frozen=True)
class Group:
    """Neighbouring operations of one layer of both sides; errors are those of its worst operation."""

    a: str
    b: str
    operations: Sequence[Operation]
    worst: Operation
    last: Operation
    open: bool


def render(report: Mapping[str, Any]) -> str:
    """Return the report of a comparison, as `experiments.model_diff.result.to_report` makes it, as one HTML page."""
    findings = [dict(finding, number=i) for i, finding in enumerate(report["findings"])]
    real_ones = [each for each in findings if not each["benign"] and not each["accepted"]]
    others = [each for each in findings if each is not (real_ones or [None])[0]]
    rows = report["operations"]
    style = "agree" if report["equal"] else "differ"
    header = {
        "report": report,
        "style": style,
        "seal": "=" if report["equal"] else "≠",
        "claim": report["verdict"][0].upper() + report["verdict"][1:],
        "tally": _tally(report),
        "sentence": _sentence(real_ones),
        "first": _shown(real_ones[0], rows) if real_ones else None,
        "modes": _MODES,
    }
    listed = {"groups": _groups(rows), "axis": _axis_labels(), "single": _left(_SINGLE)}
    sections = [
        Section("further", "Further findings", [_shown(each, rows) for each in others], _about(others), "Findings"),
        Section("curve", "Error through the network", _curve(rows), _CURVE, "Curve"),
        Section("operations", "Operations", rows and listed, _OPERATIONS),
        Section("outputs", "Outputs", _outputs(report), _OUTPUTS),
        Section("weights", "Weights", _weights(report)),
        Section("notes", "Notes", report["notes"]),
        Section("repeat", "How this was made", {"report": report, "first": real_ones[:1]}, "", "Repeat"),
    ]
    return render_page("model_diff.html", report["title"], header, sections, mark=f"{header['seal']} ", style=style)


_CURVE = (
    "From the inputs to the outputs, in the order of side B. An own error beyond rounding starts a difference; the "
    "inherited error shows how it travels on."
)
_OPERATIONS = (
    "What both sides compute, by layer. ● is the operation's own error: B's operation on A's values. ◆ is the error "
    "that has arrived there. Right of the shaded band, a difference is larger than rounding in float32."
)
_OUTPUTS = "Differences relative to the largest number of the output, in each pass that was recorded."


def _tally(report: Mapping) -> str:
    """Return how far the outputs are apart in each pass."""
    worst: dict[str, float] = {}
    for errors in report["outputs"].values():
        for name, error in errors.items():
            x = real(error)
            worst[name] = max(worst.get(name, 0.0), math.inf if x is None or math.isnan(x) else x)
    known = [f"{brief(worst[name])} in {words}" for name, words in _PASSES.items() if name in worst]
    return f"The outputs differ by {', '.join(known)}." if known else ""


def _sentence(findings: Sequence[Mapping]) -> str:
    if not findings:
        return ""
    first, title = findings[0], findings[0]["title"] or "the cause is not known"
    more = f" {pluralize(len(findings) - 1, 'further finding')} below." if len(findings) > 1 else ""
    return f"The first difference is {title}, in the {_MODES[first['mode']]}.{more}"


def _about(findings: Sequence[Mapping]) -> str:
    """Return which kinds of findings the list has."""
    benign = sum(bool(each["benign"]) for each in findings)
    accepted = sum(bool(each["accepted"]) for each in findings)
    words = [f"{benign} from properties of a framework, which do not count"] if benign else []
    words += [f"{accepted} known and accepted"] if accepted else []
    return f"Each was found with those before it removed{': ' + ', '.join(words) if words else ''}."


def _shown(finding: Mapping, rows: Sequence[Mapping]) -> dict[str, Any]:
    """Return a finding with the badge of its status and the anchor of its row."""
    index = next((i for i, row in enumerate(rows) if row["finding"] == finding["number"]), None)
    badge = "none" if finding["benign"] or finding["accepted"] else _SURE.get(finding["status"], "none")
    words = {"verified": "verified", "likely": "likely", "unknown": "cause not known"}[finding["status"]]
    if finding["benign"]:
        words = "property of a framework"
    if finding["accepted"]:
        words = "accepted"
    fell = ""
    error, left = real(finding["error"]), real(finding["left"])
    if finding["status"] != "unknown" and error is not None and left is not None:
        fell = f"{brief(error)} → {brief(left)}"
    return {
        **finding, "badge": badge, "sure": words, "fell": fell, "mode_title": _MODES[finding["mode"]],
        "anchor": f"op-{index}" if index is not None else "",
    }  # fmt: skip


_SCALE = Axis(_FLOOR, 10.0, log=True)


def _left(value: object) -> str:
    """Return the position of an error in percent; "" if there is none."""
    x = real(value)
    if x is None or math.isnan(x):
        return ""
    return f"{100 * float(_SCALE.position(max(x, _FLOOR))):.2f}"


def _axis_labels() -> list[tuple[str, str]]:
    return [(_left(10.0**power), "1" if power == 0 else f"1e{power}") for power in _DECADES]


def _operation(i: int, row: Mapping) -> Operation:
    own, inherited = row["own"], row["inherited"]
    over = (real(own) or 0.0) > 16 * _SINGLE or row["finding"] is not None
    texts = [f"own error {brief(own)}", f"inherited {brief(inherited)}"]
    if real(row["rounding"]) is not None:
        texts.append(f"rounding in float32 {brief(row['rounding'])}")
    return Operation(
        f"op-{i}", row["a"], row["b"], " × ".join(map(str, row["shape"])), row["relation"], brief(own),
        brief(inherited), _left(own), _left(inherited), _left(row["rounding"]), ", ".join(texts), over, row["finding"],
    )  # fmt: skip


def _groups(rows: Sequence[Mapping]) -> list[Group]:
    """Return the rows by layer; neighbours of one layer of B stand together."""
    made = [_operation(i, row) for i, row in enumerate(rows)]
    groups = []
    for (a, b), several in groupby(made, key=lambda each: (each.a["layer"], each.b["layer"])):
        operations = list(several)
        worst = max(operations, key=lambda each: float(each.own_left or 0))
        found = any(each.finding is not None for each in operations)
        groups.append(Group(a, b, operations, worst, operations[-1], found))
    return groups


def _curve(rows: Sequence[Mapping]) -> Chart | None:
    """Return both errors over the operations, on the scale of the list."""
    if len(rows) < 2:
        return None
    x = np.linspace(0.0, 1.0, len(rows))
    own, inherited = (
        np.array([math.nan if real(row[key]) is None else float(row[key]) for row in rows])
        for key in ("own", "inherited")
    )
    single = float(_SCALE.position(_SINGLE))
    band = Path("band s7", line(np.array([0, 1, 1, 0]), np.array([0, 0, single, single]), closed=True))
    paths = [band, Path("line s1", line(x, _SCALE.position(inherited)))]
    paths.append(Path("points s0", dots(x, _SCALE.position(own)), "stroke-width:7;stroke-linecap:round"))
    found = [i for i, row in enumerate(rows) if row["finding"] is not None]
    paths += [Path("found", f"M{1000 * x[i]:.1f} 0V1000") for i in found]
    ticks = [Tick(float(_SCALE.position(10.0**p)), "1" if p == 0 else f"1e{p}") for p in _DECADES]
    points = [
        (round(float(x[i]), 4), f"{_name(row['b'])}: own {brief(row['own'])}, inherited {brief(row['inherited'])}")
        for i, row in enumerate(rows)
    ]
    label = "relative error, log scale; the shaded band is rounding in float32"
    plot = Plot("tall", "Error through the network", label, label, ticks, [], paths, "errors")
    legend = [Key("dot s0", "own"), Key("dot s1", "inherited")]
    return Chart([plot], legend, points, "operations, from the inputs to the outputs")


def _name(place: Mapping) -> str:
    return " ".join(filter(None, [place["layer"] or "the model", place["native"] or place["kind"]]))


def _outputs(report: Mapping) -> dict[str, Any] | None:
    """Return a table of differences by pass, and the histograms of each output."""
    if not report["outputs"]:
        return None
    passes = [name for name in _PASSES if any(name in errors for errors in report["outputs"].values())]
    figures = [
        {"name": _called(name), **_histograms(name, found)} for name, found in report["histograms"].items() if found
    ]  # fmt: skip
    return {
        "columns": [_PASSES[name] for name in passes],
        "rows": [
            (_called(name), [brief(errors.get(one)) for one in passes]) for name, errors in report["outputs"].items()
        ],
        "figures": figures,
    }


def _called(name: str) -> str:
    """Return how an output is called: "output 0" where its name is its place."""
    return f"output {name}" if name.replace(".", "").isdigit() else name


def _histograms(name: str, found: Mapping) -> dict[str, Any]:
    """Return the plots of two outputs, and of their difference."""
    most = max(max(found["a"]), max(found["b"]), 1)
    both = [Path(f"steps s{i}", _steps(found[side], most)) for i, side in enumerate("ab")]
    plots = {"values": _histogram(f"{_called(name)}: values", found["edges"], most, both, f"values-{name}")}
    if "difference" in found:
        top = max(*found["difference"], 1)
        paths = [Path("steps pair", _steps(found["difference"], top))]
        plots["difference"] = _histogram(
            f"{_called(name)}: B − A", found["difference_edges"], top, paths, f"apart-{name}"
        )
    return plots


def _histogram(title: str, edges: Sequence[float], most: int, paths: Sequence[Path], key: str) -> Plot:
    low, high = edges[0], edges[-1]
    middle = 0.0 if abs(low + high) < 1e-6 * (high - low) else (low + high) / 2
    x_ticks = [Tick(at, f"{x:.2g}".replace("-", "−")) for at, x in ((0.0, low), (0.5, middle), (1.0, high))]
    safe = "".join(letter if letter.isalnum() else "-" for letter in key)
    label = f"how many of the numbers; at most {most:,}"
    return Plot(
        "low", title, f"{title}, {label}", label, [Tick(0.0, "0"), Tick(0.94, f"{most:,}")], x_ticks, paths, safe
    )


def _steps(counts: Sequence[int], most: int) -> str:
    """Return the outline of a histogram."""
    width, path = 1000 / len(counts), "M0 1000"
    for i, count in enumerate(counts):
        y = 1000 - 940 * count / most
        path += f"L{i * width:.1f} {y:.1f}L{(i + 1) * width:.1f} {y:.1f}"
    return f"{path}L1000 1000Z"


def _weights(report: Mapping) -> dict[str, Any] | None:
    """Return the weights without a partner, and the pairs by relation."""
    pairs, unmatched = report["parameters"], report["unmatched"]
    if not pairs and not any(unmatched.values()):
        return None
    return {"pairs": pairs, "unmatched": unmatched, "count": pluralize(len(pairs), "pair")}

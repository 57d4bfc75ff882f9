"""The page of a study: a summary first, then the evidence.

    header and verdict, answers, differences, results by arm, curves, samples, steps, cost, runs, appendix

A figure carries its files for papers as links that hold their data. The controls of the page are in `script.js`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_core.common.text import pluralize

from .figures import SERIES, Axis, Chart, Key, Path, Plot, line, linear_axis, make_ticks
from .page import Section, render_page
from .text import DASH, brief, number, real

__all__ = ["amount", "render", "within"]

_SEALS = {"agree": "✓", "differ": "✗", "unknown": "≈"}
_ARROWS = {"higher": "↑", "lower": "↓"}
_BADGES = {
    "equivalent": "pass", "within margin": "pass", "identical": "pass", "different": "fail", "incomplete": "fail",
    "undecided": "none", "constant": "none", "no pairs": "none",
}  # fmt: skip
_ANSWERS = (
    "Each arm is compared with its baseline, paired by seed. The interval is the 95 % interval of Student's t; d_z is "
    "the mean difference divided by the standard deviation of the differences; p is adjusted by Holm over all "
    "comparisons of the study; the sign-flip p needs no normal distribution, and n pairs cannot make it smaller than "
    "2/2ⁿ; TOST tests whether a difference as large as the margin is excluded."
)
_DIFFERENCES = (
    "Each dot is one seed, the bar is the 95 % interval of the mean, and the shaded band is the margin stated before "
    "the runs."
)


@dataclass(frozen=True)
class Column:
    """A column of a table that sorts."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts.

    Args:
        text: what it shows.
        key: what it is sorted by; a cell without a key comes last.
        note: a second, smaller line.
        mark: the class of the coloured square before the text.
        badge: the class of a badge around the text: "pass", "fail" or "none".
        links: (text, address) pairs shown instead of the text.
        problem: a line that says what went wrong.
    """

    text: str
    key: object = None
    note: str = ""
    mark: str = ""
    badge: str = ""
    links: Sequence[tuple[str, str]] = ()
    problem: str = ""

    @property
    def data_value(self) -> str:
        """The key as the script of the page reads it."""
        return repr(self.key) if isinstance(self.key, float) else str(self.key)


def render(report: Mapping, images: Mapping[str, bytes], files: Mapping[str, bytes]) -> str:
    """Return the report of a study as one HTML page.

    Args:
        report: JSON values, as `experiments.studies.report.build` returns them.
        images: PNG files by the names that the report uses.
        files: the files of the figures by name: `<figure>.csv`, `.json`, `.svg` and `.png`.
    """
    verdict = report["verdict"]
    style, seal = verdict["style"], _SEALS[verdict["style"]]
    samples, steps = report.get("samples"), report.get("steps")
    sections = [
        Section("answers", "Answers", _answers(report), _ANSWERS),
        Section("differences", "Differences by seed", _differences(report, files), _DIFFERENCES),
        Section("arms", "Results by arm", _arms(report, files), "Mean over seeds, with its 95 % interval."),
        Section("curves", "Learning curves", _curves(report, files)),
        Section("samples", "Samples from the same noise", samples and samples | {"images": images}, "", "Samples"),
        Section("steps", "Step by step", steps and {"data": steps, "last": _last_step(steps)}),
        Section("cost", "Cost", _cost(report, files)),
        Section("runs", "Runs", _runs(report), "Every run with its folder, next to this page."),
        Section("appendix", "Reproducibility", report["appendix"], "The text for a paper's appendix."),
    ]
    header = {"report": report, "seal": seal}
    return render_page("study.html", report["title"], header, sections, mark=f"{seal} ", style=style)


def amount(value: object, scale: str, signed: bool = True) -> str:
    """Format a difference; on the scale "ratio", whose unit is the logarithm, as a percentage."""
    x = real(value)
    if x is None or not math.isfinite(x):
        return "unknown"
    if scale == "ratio":
        return (_short(100 * math.expm1(x), signed) if abs(x) < 50 else "∞") + " %"
    return _short(x, signed)


def within(value: object, scale: str) -> str:
    """Format an interval around zero, as in "±2 %"; a large ratio is the factor either way, as in "factor 1.5"."""
    x = real(value)
    if x is not None and scale == "ratio" and 0.1 < abs(x) < 50:
        return f"factor {math.exp(abs(x)):.3g}"
    return "±" + amount(value, scale, False) if x is not None and math.isfinite(x) else "unknown"


def _short(x: float, signed: bool) -> str:
    if x == 0:
        return "0"
    text = f"{abs(x):.2g}" if 1e-3 <= abs(x) < 1e3 else brief(abs(x))
    return ("−" if x < 0 else "+" if signed else "") + text


def _p_value(value: object) -> str:
    x = real(value)
    if x is None:
        return DASH
    return f"{x:.2g}" if x >= 1e-3 else "< 0.001"  # its digits say nothing that the test could hold


def _mark(report: Mapping, arm: str) -> str:
    return f"s{report['arms'].index(arm) % SERIES}"


def _answers(report: Mapping) -> dict[str, Any]:
    """Return one row for each comparison, and which differences are excluded."""
    titles = ("difference", "95 % interval", "d_z", "p", "sign-flip p", "TOST p", "margin", "excluded beyond")
    columns = [Column("metric", False), Column("arm, against", False), Column("answer", False), *map(Column, titles)]
    rows = []
    for finding in report["findings"]:
        scale = finding["scale"]
        for c in finding["comparisons"]:
            low, high = c["interval"]
            planned = c["pairs"] + c["missing"]
            pairs = pluralize(c["pairs"], "pair") if not c["missing"] else f"{c['pairs']} of {planned} planned pairs"
            if c["identical"]:
                pairs = f"identical in {c['pairs']} of {planned}"
            rows.append([
                Cell(finding["title"], finding["title"]),
                Cell(c["arm"], c["arm"], note=f"against {c['baseline']}, {pairs}"),
                Cell(c["answer"], c["answer"], badge=_BADGES[c["answer"]]),
                Cell(amount(c["mean"], scale), c["mean"]),
                Cell(DASH if low is None else f"{amount(low, scale)} … {amount(high, scale)}", low),
                Cell(number(c["effect"]), c["effect"]),
                Cell(_p_value(c["p"]), c["p"]),
                Cell(_p_value(c["sign_flip_p"]), c["sign_flip_p"]),
                Cell(_p_value(c["tost_p"]), c["tost_p"]),
                Cell(DASH if c["margin"] is None else within(c["margin"], scale), c["margin"]),
                Cell(DASH if c["excluded"] is None else within(c["excluded"], scale), c["excluded"]),
            ])  # fmt: skip
    return {"columns": columns, "rows": rows, "excludes": report["excludes"]}


def _percent(axis: Axis, value: float) -> str:
    return f"{100 * float(axis.position(value)):.2f}%"


def _differences(report: Mapping, files: Mapping[str, bytes]) -> dict[str, Any] | None:
    """Return a forest plot for each metric; if the intervals are far narrower than the margin, a magnified one too."""
    figures = []
    for finding in report["findings"]:
        known = [c for c in finding["comparisons"] if c["mean"] is not None]
        if not known:
            continue
        scale, bound = finding["scale"], finding["bound"]
        reach = max(abs(v) for c in known for v in (*c["differences"], *[e for e in c["interval"] if e is not None]))
        half = 1.25 * max(bound or 0, reach)
        wide = _forest(report, known, Axis(-half, half) if half else linear_axis([-1.0, 1.0]), scale, bound)
        near = None
        if bound and 0 < reach < bound / 20:
            near = _forest(report, known, Axis(-1.25 * reach, 1.25 * reach), scale, None)
        figures.append({"title": finding["title"], "wide": wide, "near": near, "name": finding["figures"][1]})
    return {"figures": figures, "files": files} if figures else None


def _forest(
    report: Mapping, comparisons: Sequence[Mapping], axis: Axis, scale: str, bound: float | None
) -> dict[str, Any]:
    """Return comparisons as rows on one axis: points and spans as (class, CSS position, title)."""

    def point(name: str, value: float, title: str) -> tuple[str, str, str]:
        return name, f"left:{_percent(axis, value)}", f"{title}{amount(value, scale)}"

    def span(name: str, low: float, high: float, title: str) -> tuple[str, str, str]:
        return name, f"left:{_percent(axis, low)};right:calc(100% - {_percent(axis, high)})", title

    rows = []
    for c in comparisons:
        mark, (low, high) = _mark(report, c["arm"]), c["interval"]
        items = [] if bound is None else [span("margin", -bound, bound, f"margin {within(bound, scale)}")]
        items.append(("origin-line", f"left:{_percent(axis, 0.0)}", ""))
        if low is not None:
            title = f"95 % interval {amount(low, scale)} … {amount(high, scale)}"
            items.append(span(f"span {mark}", low, high, title))
        items += [point(f"seed {mark}", d, f"seed {s}: ") for s, d in zip(c["seeds"], c["differences"], strict=True)]
        items.append(point(f"mean {mark}", c["mean"], "mean "))
        rows.append({"arm": c["arm"], "baseline": c["baseline"], "items": items})
    zero = 1e-12 * (axis.high - axis.low)
    ticks = [(_percent(axis, t), "0" if abs(t) < zero else amount(t, scale)) for t in axis.ticks(4)]
    return {"rows": rows, "ticks": ticks}


def _arms(report: Mapping, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return each metric of each arm."""
    findings = report["findings"]
    columns = [Column("arm", False)] + [Column(f"{f['title']} {_ARROWS[f['better']]}") for f in findings]
    rows = []
    for k, arm in enumerate(report["arms"]):
        cells = [Cell(arm, arm, mark=_mark(report, arm))]
        for summary in (finding["arms"][k] for finding in findings):
            low, _ = summary["interval"]
            half = f"± {number(summary['mean'] - low)}" if low is not None else ""
            cells.append(Cell(number(summary["mean"]), summary["mean"], note=half))
        rows.append(cells)
    return {
        "columns": columns,
        "rows": rows,
        "figures": {f["figures"][0]: f["title"] for f in findings},
        "files": files,
    }


def _curves(report: Mapping, files: Mapping[str, bytes]) -> dict[str, Any] | None:
    """Return the smoothed loss of each arm over the images seen, with the interval of its mean as a band."""
    curves = report.get("curves")
    if not curves:
        return None
    series = curves["series"]
    xs = np.concatenate([np.array(arm["x"]) for arm in series.values()])
    x_axis, axis = Axis(0.0, max(float(xs.max()), 1.0)), _loss_axis(series)
    bands, lines = [], []
    for k, (name, arm) in enumerate(series.items()):
        mark, x = _mark(report, name), x_axis.position(np.array(arm["x"]))
        low, high, mean = (axis.position(np.array(arm[end])) for end in ("low", "high", "mean"))
        edge = line(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]]), closed=True)
        bands.append(Path(f"band {mark}", edge))
        # Curves that agree lie on each other, so the later ones are thinner.
        few = len(series) <= 4
        style = f"stroke-width:{(9, 4.5, 1.6, 0.8)[k] if few else 1.6};opacity:{0.4 if few and not k else 1}"
        lines.append(Path(f"line smooth {mark}", line(x, mean), style))
    points = []
    for x in np.unique(xs):
        parts = [f"{x:,.0f} images"]
        for name, arm in series.items():
            if arm["x"][0] <= x <= arm["x"][-1]:
                parts.append(f"{name} {number(float(np.interp(x, arm['x'], arm['mean'])))}")
        points.append((round(float(x_axis.position(x)), 4), " · ".join(parts)))
    window = pluralize(next(iter(series.values()))["window"], "step")
    label = f"training loss{', log scale' if axis.log else ''}; mean of {window} and over seeds"
    label += "; the band is its 95 % interval"
    y_ticks, x_ticks = make_ticks(axis, 5), make_ticks(x_axis, 5, number)
    plot = Plot("tall", "Learning curves", label, label, y_ticks, x_ticks, [*bands, *lines])
    legend = [Key(f"key {_mark(report, name)}", name) for name in series]
    return {"chart": Chart([plot], legend, points, "images seen"), "name": curves["figures"][0], "files": files}


def _loss_axis(series: Mapping[str, Mapping]) -> Axis:
    ends = np.concatenate([np.array([*arm["low"], *arm["high"]]) for arm in series.values()])
    means = np.concatenate([np.array(arm["mean"]) for arm in series.values()])
    low, high = float(ends.min()), float(ends.max())
    if means.min() > 0:  # a band of few seeds may be far wider than all curves
        low, high = max(low, float(means.min()) / 2), min(high, float(means.max()) * 2)
    # Where the loss falls by little, a linear axis has more round numbers.
    return Axis(low / 1.05, high * 1.05, log=True) if low > 0 and high > 8 * low else linear_axis([low, high])


def _last_step(steps: Mapping) -> int:
    return max(len(arm["row"]) for arm in steps["arms"]) - 1


def _cost(report: Mapping, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return each cost of each arm."""
    cost = report["cost"]
    columns = [Column(f"{c['title']} {_ARROWS[c['better']]}") for c in cost["columns"].values()]
    rows = []
    for row in cost["rows"]:
        cells = [Cell(row["arm"], row["arm"], mark=_mark(report, row["arm"]))]
        for key in cost["columns"]:
            cell = row["cells"][key]
            if cell is None:
                cells.append(Cell("", note="not reported"))
            else:
                std = "" if cell["std"] is None else f"sd {number(cell['std'])}"
                cells.append(Cell(number(cell["mean"]), cell["mean"], note=std))
        rows.append(cells)
    note = "Mean over seeds. Speeds exclude the first step, which traces and compiles."
    if cost["resumed"]:
        note += f" {pluralize(cost['resumed'], 'run')} resumed after an interruption; times are of the last part alone."
    return {
        "columns": [Column("arm", False), *columns], "rows": rows, "note": note, "figures": cost["figures"],
        "files": files,
    }  # fmt: skip


def _runs(report: Mapping) -> dict[str, Any]:
    """Return every run with its metrics, time and folders."""
    findings = report["findings"]
    columns = [Column("arm", False), Column("seed"), *(Column(f["title"]) for f in findings)]
    columns += [Column("seconds"), Column("folders", False)]
    rows = []
    for run in report["runs"]:
        links = [(stage, f"{folder}/") for stage, folder in zip(run["stages"], run["folders"], strict=True)]
        values = [run["values"][f["name"]] for f in findings]
        rows.append([
            Cell(run["arm"], run["arm"]),
            Cell(str(run["seed"]), run["seed"]),
            *(Cell(number(v), v) for v in (*values, run["seconds"])),
            Cell("", run["trouble"] or "-", links=links, problem=run["trouble"]),
        ])  # fmt: skip
    return {"columns": columns, "rows": rows}

"""The page of a study: a summary first, then the evidence.

    header and verdict, answers, differences, results by arm, curves, samples, steps, cost, runs, appendix

It is a page as `page.document` makes them, so it needs no other file and no network; what follows from its controls is
in `script.js`. A figure carries its files for papers as links that hold their data.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .figures import Axis
from .page import command, document, picture, scroll
from .text import DASH, brief, count, element, escape, moment, number, real

__all__ = ["amount", "render", "within"]

_KINDS = {"csv": "text/csv", "json": "application/json", "svg": "image/svg+xml", "png": "image/png"}
_SEALS = {"agree": "✓", "differ": "✗", "unknown": "≈"}
_SIZE = 1000
_SERIES = 8  # colours; see style.css


def render(report: Mapping, pictures: Mapping[str, bytes], files: Mapping[str, bytes]) -> str:
    """The report of a study as one HTML page.

    Args:
        report: JSON values, as `experiments.studies.report.build` makes them.
        pictures: PNG files by the names that the report uses.
        files: of the figures, by their names: `<figure>.csv`, `.json`, `.svg` and `.png`.
    """
    verdict = report["verdict"]
    style, seal = verdict["style"], _SEALS[verdict["style"]]
    header = (
        f"{_origin(report)}{element('p', 'question', report.get('question'))}"
        f'<div class="verdict {style}"><span class="seal" aria-hidden="true">{seal}</span><div>'
        f"{element('p', 'claim', verdict['claim'])}{element('p', 'sentence', verdict['sentence'])}</div></div>"
    )
    sections = [
        ("answers", "Answers", _ANSWERS, _answers(report)),
        ("differences", "Differences by seed", _DIFFERENCES, _differences(report, files)),
        ("arms", "Results by arm", "Mean over seeds, with its 95 % interval.", _arms(report, files)),
        ("curves", "Learning curves", "", _curves(report, files)),
        ("samples", "Samples from the same noise", "", _samples(report, pictures)),
        ("steps", "Step by step", "", _steps(report)),
        ("cost", "Cost", "", _cost(report, files)),
        ("runs", "Runs", "Every run with its folder, beside this page.", _runs(report)),
        ("appendix", "Reproducibility", "The text for a paper's appendix.", _appendix(report)),
    ]
    sections = [section for section in sections if section[3]]
    return document(report["title"], header, sections, "", f"{seal} ", style)


_ANSWERS = (
    "Each arm against its baseline, paired by seed. The interval is Student's, of 95 %; d_z is the mean difference in "
    "standard deviations of the differences; TOST is the test that a difference as large as the margin is excluded."
)
_DIFFERENCES = (
    "A dot is one seed, the bar the 95 % interval of the mean, the shaded band the margin that was stated beforehand."
)


def amount(value: object, scale: str, signed: bool = True) -> str:
    """A difference as people read it: in percent on the scale ratio, whose unit is the logarithm."""
    x = real(value)
    if x is None or not math.isfinite(x):
        return "unknown"
    if scale == "ratio":
        return (_short(100 * math.expm1(x), signed) if abs(x) < 50 else "∞") + " %"
    return _short(x, signed)


def within(value: object, scale: str) -> str:
    """Both sides of zero as far as a value: ±2 %, or the factor either way where that is no longer small."""
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
    return "0" if x == 0 else f"{x:.2g}" if x >= 1e-3 else brief(x)


def _origin(report: Mapping) -> str:
    facts = f"<span>{moment(report['created'])}</span>"
    if report.get("commit"):
        facts += f"<span>commit <code>{escape(report['commit'])}</code></span>"
    facts += f"<span>{count(len(report['arms']), 'arm')}, {count(len(report['seeds']), 'seed')}</span>"
    return f'<p class="origin">{facts}</p>{command(report["command"])}'


def _downloads(name: str, files: Mapping[str, bytes], of: str = "") -> str:
    """Links that hold the files of a figure; `of` says which figure, where several stand together."""
    links = []
    for kind, mime in _KINDS.items():
        if f"{name}.{kind}" in files:
            held = base64.b64encode(files[f"{name}.{kind}"]).decode()
            where = f'download="{name}.{kind}" href="data:{mime};base64,{held}"'
            links.append(f'<a {where} title="Download {name}.{kind}">{kind.upper()}</a>')
    said = f"Download {of}".strip()
    return f'<p class="downloads"><span>{escape(said)}</span>{"".join(links)}</p>' if links else ""


def _sortable(head: Sequence[tuple[str, bool]], rows: Sequence[Sequence[tuple[str, object]]], label: str) -> str:
    """A table whose columns sort.

    Args:
        head: titles, and whether the column is numeric.
        rows: of cells (HTML, what it is sorted by); the first cell is the row's head.
        label: what the table is, for those who hear it.
    """
    top = "".join(
        f'<th scope="col"{" class=num" if numeric else ""} aria-sort="none"><button type="button" class="sort">'
        f"{title}</button></th>"
        for title, numeric in head
    )
    body = ""
    for row in rows:
        cells = ""
        for k, ((shown, key), (_, numeric)) in enumerate(zip(row, head, strict=True)):
            tag, scope = ("th", ' scope="row"') if k == 0 else ("td", "")
            order = "" if key is None else f' data-value="{escape(repr(key) if isinstance(key, float) else key)}"'
            cells += f"<{tag}{scope}{' class=num' if numeric else ''}{order}>{shown}</{tag}>"
        body += f"<tr>{cells}</tr>"
    table = (
        f'<table class="sortable"><caption class="hidden">{escape(label)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
    return scroll(table, label)


_MARKS = {"equivalent": "pass", "within margin": "pass", "different": "fail", "undecided": "none", "no pairs": "none"}


def _answers(report: Mapping) -> str:
    head = [("metric", False), ("arm, against", False), ("answer", False)]
    head += [
        (name, True) for name in ("difference", "95 % interval", "d_z", "p", "TOST p", "margin", "excluded beyond")
    ]
    rows = []
    for finding in report["findings"]:
        scale = finding["scale"]
        for c in finding["comparisons"]:
            low, high = c["interval"]
            interval = DASH if low is None else f"{amount(low, scale)} … {amount(high, scale)}"
            note = "bit-identical" if c["identical"] else f"{c['pairs']} pairs" if c["pairs"] != 1 else "1 pair"
            effect = "∞" if c["effect"] is None and c["std"] == 0 else number(c["effect"])
            rows.append([
                (escape(finding["title"]), finding["title"]),
                (f"{escape(c['arm'])}<span class=better>against {escape(c['baseline'])}, {note}</span>", c["arm"]),
                (f'<span class="status {_MARKS[c["answer"]]}">{escape(c["answer"])}</span>', c["answer"]),
                (amount(c["mean"], scale), c["mean"]),
                (interval, low),
                (effect, c["effect"]),
                (_p_value(c["p"]), c["p"]),
                (_p_value(c["tost_p"]), c["tost_p"]),
                (DASH if c["margin"] is None else within(c["margin"], scale), c["margin"]),
                (DASH if c["excluded"] is None else within(c["excluded"], scale), c["excluded"]),
            ])  # fmt: skip
    said = "".join(
        f"<li><b>{escape(line['metric'])}</b>, {escape(' and '.join(line['pairs']))}: {escape(line['text'])}</li>"
        for line in report["excludes"]
    )
    summary = "<summary>What the data exclude, and what they do not</summary>"
    said = f'<details class="excludes" open>{summary}<ul>{said}</ul></details>' if said else ""
    return _sortable(head, rows, "comparisons") + said


def _axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - pad, high + pad)


def _place(axis: Axis, value: float) -> str:
    return f"{100 * float(axis.position(value)):.2f}%"


def _differences(report: Mapping, files: Mapping[str, bytes]) -> str:
    blocks = []
    for finding in report["findings"]:
        known = [c for c in finding["comparisons"] if c["mean"] is not None]
        if not known:
            continue
        scale, bound = finding["scale"], finding["bound"]
        reach = max(abs(v) for c in known for v in (*c["differences"], *[e for e in c["interval"] if e is not None]))
        # The margin sets the scale; where the data are far narrower, a second picture of their own scale follows.
        wide = _forest(
            known,
            Axis(-1.25 * max(bound or 0, reach), 1.25 * max(bound or 0, reach))
            if bound or reach
            else _axis([-1.0, 1.0]),
            scale,
            bound,
            report["arms"],
        )
        near = ""
        if bound and 0 < reach < bound / 20:
            near = '<p class="axis-label">the same, magnified</p>' + _forest(
                known, Axis(-1.25 * reach, 1.25 * reach), scale, None, report["arms"]
            )
        blocks.append(
            f'<figure class="figure forest"><figcaption><h3>{escape(finding["title"])}</h3></figcaption>{wide}{near}'
            f"{_downloads(finding['figures'][1], files)}</figure>"
        )
    return "".join(blocks)


def _forest(rows: Sequence[Mapping], axis: Axis, scale: str, bound: float | None, arms: Sequence[str]) -> str:
    """Comparisons as rows on one axis."""
    band = ""
    if bound is not None:
        band = _stretch("margin", axis, -bound, bound, f"margin {within(bound, scale)}")
    lines = ""
    for c in rows:
        series = f"s{arms.index(c['arm']) % _SERIES}"
        low, high = c["interval"]
        bar = ""
        if low is not None:
            told = f"95 % interval {amount(low, scale)} … {amount(high, scale)}"
            bar = _stretch(f"span {series}", axis, low, high, told)
        dots = "".join(
            _point(f"seed {series}", axis, d, f"seed {seed}: {amount(d, scale)}")
            for seed, d in zip(c["seeds"], c["differences"], strict=True)
        )
        mean = _point(f"mean {series}", axis, c["mean"], f"mean {amount(c['mean'], scale)}")
        name = f"{escape(c['arm'])}<span class=better>against {escape(c['baseline'])}</span>"
        lines += (
            f'<div class="forest-row"><span class="forest-name">{name}</span><div class="forest-track">{band}'
            f'<i class="origin-line" style="left:{_place(axis, 0.0)}"></i>{bar}{dots}{mean}</div></div>'
        )
    ticks = ""
    for t in axis.ticks(4):
        shown = "0" if abs(t) < 1e-12 * (axis.high - axis.low) else amount(t, scale)
        ticks += f'<span style="left:{_place(axis, t)}">{shown}</span>'
    foot = f'<span></span><div class="forest-ticks">{ticks}</div>'
    return f'{lines}<div class="forest-row forest-axis" aria-hidden="true">{foot}</div>'


def _point(name: str, axis: Axis, value: float, title: str) -> str:
    return f'<i class="{name}" style="left:{_place(axis, value)}" title="{title}"></i>'


def _stretch(name: str, axis: Axis, low: float, high: float, title: str) -> str:
    ends = f"left:{_place(axis, low)};right:calc(100% - {_place(axis, high)})"
    return f'<i class="{name}" style="{ends}" title="{title}"></i>'


def _arms(report: Mapping, files: Mapping[str, bytes]) -> str:
    findings = report["findings"]
    arrows = {"higher": "↑", "lower": "↓"}
    head = [("arm", False)] + [(f"{escape(f['title'])} {arrows[f['better']]}", True) for f in findings]
    rows = []
    for k, arm in enumerate(report["arms"]):
        cells: list[tuple[str, object]] = [(f'<i class="key s{k % _SERIES}"></i>{escape(arm)}', arm)]
        for finding in findings:
            summary = finding["arms"][k]
            low, _ = summary["interval"]
            half = f"<span class=better>± {number(summary['mean'] - low)}</span>" if low is not None else ""
            cells.append((f"{number(summary['mean'])}{half}", summary["mean"]))
        rows.append(cells)
    note = "↑ higher is better, ↓ lower is better; ± is half of the 95 % interval of the mean over seeds."
    return (
        _sortable(head, rows, "results by arm")
        + element("p", "note", note)
        + "".join(_downloads(f["figures"][0], files, f["title"]) for f in findings)
    )


def _curves(report: Mapping, files: Mapping[str, bytes]) -> str:
    curves = report.get("curves")
    if not curves:
        return ""
    series = curves["series"]
    xs = np.concatenate([np.array(of["x"]) for of in series.values()])
    x_axis = Axis(0.0, max(float(xs.max()), 1.0))
    ends = np.concatenate([np.array([*of["low"], *of["high"]]) for of in series.values()])
    means = np.concatenate([np.array(of["mean"]) for of in series.values()])
    low, high = float(ends.min()), float(ends.max())
    if means.min() > 0:  # a band of few seeds may be far wider than all curves
        low, high = max(low, float(means.min()) / 2), min(high, float(means.max()) * 2)
    # Where the loss falls by little, a linear axis has more round numbers.
    axis = Axis(low / 1.05, high * 1.05, log=True) if low > 0 and high > 8 * low else _axis([low, high])
    body, legend = "", ""
    few = len(series) <= 4
    for arm, of in series.items():
        name = f"s{report['arms'].index(arm) % _SERIES}"
        x = x_axis.position(np.array(of["x"])) * _SIZE
        edges = [(1 - axis.position(np.array(of[end]))) * _SIZE for end in ("low", "high")]
        around = [*zip(x, edges[1], strict=True), *reversed(list(zip(x, edges[0], strict=True)))]
        body += f'<path class="band {name}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in around)}Z"/>'
    for k, (arm, of) in enumerate(series.items()):
        name = f"s{report['arms'].index(arm) % _SERIES}"
        x = x_axis.position(np.array(of["x"])) * _SIZE
        y = (1 - axis.position(np.array(of["mean"]))) * _SIZE
        # Curves that agree lie on each other, so the later are thinner.
        width = (9, 4.5, 1.6, 0.8)[k] if few else 1.6
        line = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
        style = f"stroke-width:{width};opacity:{0.4 if few and not k else 1}"
        body += f'<path class="line {name}" style="{style}" d="M{line}"/>'
        legend += f'<li><i class="key {name}"></i>{escape(arm)}</li>'
    grid = "".join(f"M{float(x_axis.position(t)) * _SIZE:.1f} 0V{_SIZE}" for t in x_axis.ticks(5))
    grid += "".join(f"M0 {(1 - float(axis.position(t))) * _SIZE:.1f}H{_SIZE}" for t in axis.ticks(5))
    y_ticks = "".join(
        f'<span style="top:{100 * (1 - float(axis.position(t))):.2f}%">{t:g}</span>' for t in axis.ticks(5)
    )
    x_ticks = ""
    for t in x_axis.ticks(5):
        place = float(x_axis.position(t))
        x_ticks += f'<span style="left:{100 * place:.2f}%"{" class=last" if place > 0.96 else ""}>{number(t)}</span>'
    window = next(iter(series.values()))["window"]
    told = f"training loss{', log scale' if axis.log else ''}; mean of {count(window, 'step')} and over seeds"
    told += "; the band is its 95 % interval"
    points = []
    for x in np.unique(xs):
        said = [f"{x:,.0f} images"]
        for arm, of in series.items():
            if of["x"][0] <= x <= of["x"][-1]:
                said.append(f"{arm} {number(float(np.interp(x, of['x'], of['mean'])))}")
        points.append([round(float(x_axis.position(x)), 4), " · ".join(said)])
    data = escape(json.dumps(points, separators=(",", ":")))
    return (
        f'<div class="figure loss" data-points="{data}"><ul class="legend">{legend}'
        f'<li class="readout" hidden></li></ul><div class="plot tall"><p class="axis-label">{told}</p>'
        f'<div class="plot-box"><div class="y-ticks" aria-hidden="true">{y_ticks}</div>'
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none" role="img" aria-label="Learning curves">'
        f'<path class="grid" d="{grid}"/>{body}</svg><i class="cursor" hidden></i></div></div>'
        f'<div class="x-ticks" aria-hidden="true">{x_ticks}</div><p class="axis-label x-label">images seen</p>'
        f"{_downloads(curves['figures'][0], files)}</div>"
    )


def _samples(report: Mapping, pictures: Mapping[str, bytes]) -> str:
    samples = report.get("samples")
    if not samples:
        return ""
    blocks = ""
    for sheet in samples["sheets"]:
        arm = sheet["arm"]
        cells = f'<div class="cell">{picture(sheet["picture"], arm, pictures, 360)}<p>{escape(arm)}</p></div>'
        if "difference" in sheet:
            said = f"all {sheet['total']:,} uint8 values are those of {sheet['baseline']}"
            if sheet["differing"]:
                share = f"{sheet['differing']:,} of {sheet['total']:,} uint8 values differ from {sheet['baseline']}"
                said = f"{share}, by at most {sheet['largest']} of 255"
            said = f"difference × {samples['gain']}: {said}"
            apart = picture(sheet["difference"], f"{arm}: difference", pictures, 360)
            cells += f'<div class="cell">{apart}{element("p", "caption", said)}</div>'
        blocks += f'<figure class="compare sheet"><div class="cells two">{cells}</div></figure>'
    return element("p", "lead", f"Seed {samples['seed']}.") + f'<div class="sheets">{blocks}</div>'


def _steps(report: Mapping) -> str:
    steps = report.get("steps")
    if not steps:
        return ""
    options = "".join(f'<option value="{k}">{escape(arm["name"])}</option>' for k, arm in enumerate(steps["arms"]))
    data = json.dumps(steps, separators=(",", ":")).replace("<", "\\u003c")
    last = max(len(arm["row"]) for arm in steps["arms"]) - 1
    left_out = f" {count(steps['left_out'], 'arm')} left out for size." if steps["left_out"] else ""
    return (
        '<div class="figure steps" id="walk" hidden><div class="controls">'
        f'<label>left <select id="walk-left">{options}</select></label>'
        f'<label>right <select id="walk-right">{options}</select></label>'
        '<label>show <select id="walk-what"><option value="x">the state x_t</option>'
        '<option value="estimate">the estimate of x_0</option></select></label></div>'
        '<label class="slide"><span>from noise</span><input type="range" id="walk-step" aria-label="step of denoising" '
        f'min="0" max="{last}" value="{last // 2}"><span>to the sample</span></label>'
        '<p class="readout" id="walk-said" role="status"></p>'
        '<div class="cells"><div class="cell"><canvas id="walk-a"></canvas><p id="walk-a-name"></p></div>'
        '<div class="cell"><canvas id="walk-b"></canvas><p id="walk-b-name"></p></div>'
        f'<div class="cell difference"><canvas id="walk-d"></canvas><p>difference × {steps["gain"]}</p></div></div>'
        f'<p class="note">Seed {steps["seed"]}, {count(steps["count"], "sample")}, as uint8.{left_out}</p></div>'
        '<noscript><p class="note">This figure needs a browser that runs the script of this page.</p></noscript>'
        f'<script type="application/json" id="walk-data">{data}</script>'
    )


def _cost(report: Mapping, files: Mapping[str, bytes]) -> str:
    cost = report["cost"]
    arrows = {"higher": "↑", "lower": "↓"}
    head = [("arm", False)] + [(f"{escape(c['title'])} {arrows[c['better']]}", True) for c in cost["columns"].values()]
    rows = []
    for k, row in enumerate(cost["rows"]):
        cells: list[tuple[str, object]] = [(f'<i class="key s{k % _SERIES}"></i>{escape(row["arm"])}', row["arm"])]
        for key in cost["columns"]:
            cell = row["cells"][key]
            if cell is None:
                cells.append(('<span class="better">not reported</span>', None))
            else:
                spread = "" if cell["std"] is None else f"<span class=better>sd {number(cell['std'])}</span>"
                cells.append((f"{number(cell['mean'])}{spread}", cell["mean"]))
        rows.append(cells)
    note = "Mean over seeds. Speeds leave out the first step, which traces and compiles."
    if cost["resumed"]:
        note += f" {count(cost['resumed'], 'run')} went on after a cut, so times are of the last part alone."
    return (
        _sortable(head, rows, "cost by arm")
        + element("p", "note", note)
        + "".join(_downloads(name, files) for name in cost["figures"])
    )


def _runs(report: Mapping) -> str:
    findings = report["findings"]
    head = [
        ("arm", False),
        ("seed", True),
        *((escape(f["title"]), True) for f in findings),
        ("seconds", True),
        ("folders", False),
    ]
    rows = []
    for run in report["runs"]:
        folders = ", ".join(
            f'<a href="{escape(folder)}/">{escape(stage)}</a>'
            for stage, folder in zip(run["stages"], run["folders"], strict=True)
        )
        if run["trouble"]:
            folders += f'<span class="trouble">{escape(run["trouble"])}</span>'
        values = [run["values"][f["name"]] for f in findings]
        rows.append(
            [
                (escape(run["arm"]), run["arm"]),
                (str(run["seed"]), run["seed"]),
                *((number(v) if v is not None else DASH, v) for v in values),
                (number(run["seconds"]) if run["seconds"] is not None else DASH, run["seconds"]),
                (folders, run["trouble"] or "-"),
            ]
        )
    return _sortable(head, rows, "runs")


def _appendix(report: Mapping) -> str:
    text = report["appendix"]
    held = base64.b64encode(text.encode()).decode()
    link = f'<a download="appendix.txt" href="data:text/plain;charset=utf-8;base64,{held}">TXT</a>'
    return (
        f'<div class="command appendix"><code>{escape(text)}</code><button type="button" class="copy" '
        f'aria-label="Copy the appendix" hidden>Copy</button></div><p class="downloads"><span>Download</span>{link}</p>'
    )

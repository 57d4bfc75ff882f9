"""The gallery of samplers as files: the sheet of images, the curves of error, and a page with both and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically

from .page import Section, render_page
from .plots import INK, STYLE, encode, inline
from .text import DASH, number

__all__ = ["curves", "write"]

_COLOURS = (
    "#d1495b", "#00798c", "#edae49", "#6a4c93", "#2e933c", "#30638e", "#b5651d", "#8a817c", "#c2185b", "#5c7c2f",
)  # fmt: skip
_MARKS = "osD^vPX*<>"
_CURVES = (
    "Root mean square distance, in units of the data range [-1, 1], from the solution of the probability-flow ODE for "
    "the same noise, which {method} computes in {steps} steps. The dotted line falls with the declared order. Errors "
    "above the plot are larger than the images themselves. Every method uses the grid {grid} and no clipping."
)
_SAMPLES = (
    "Every cell starts from the same noise. A method with several evaluations per step takes as many steps as fit."
)


def write(report: Mapping[str, Any], sheet: bytes, out: Path) -> Path:
    """Write gallery.png, curves.png, curves.svg and gallery.html, each atomically; return the path of the page.

    If no method is deterministic there are no curves.
    """
    drawn = {kind: curves(report["methods"], kind) for kind in ("png", "svg") if _lines(report["methods"])}
    page = _page(report, sheet, drawn.get("svg"))
    write_atomically(out / "gallery.png", sheet)
    for kind, data in drawn.items():
        write_atomically(out / f"curves.{kind}", data)
    write_atomically(out / "gallery.html", page.encode())
    return out / "gallery.html"


def curves(methods: list[Mapping[str, Any]], kind: str) -> bytes:
    """Draw error against network evaluations: a panel per order of convergence, with all other methods behind it.

    Args:
        methods: the entries of the report.
        kind: ``"png"`` or ``"svg"``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    lines = _lines(methods)
    orders = sorted({order for order, _ in lines.values()})
    ticks = _apart(sorted({method["budget"] for method in methods}))
    with matplotlib.rc_context(STYLE):
        columns = min(2, len(orders))
        rows = -(-len(orders) // columns)
        figure = Figure(figsize=(6.4 * columns, 3.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis in axes[len(orders) :]:
            axis.set_axis_off()
        for place, (axis, order) in enumerate(zip(axes, orders, strict=False)):
            _panel(axis, lines, order, ticks)
            axis.tick_params(labelbottom=place + columns >= len(orders))  # where there is no panel below
        figure.supxlabel("network evaluations", fontsize=10)
        figure.supylabel("distance to the probability flow (RMS)", fontsize=10)
        return encode(figure, kind)


def _panel(axis: Any, lines: Mapping[str, Any], order: int, ticks: Sequence[int]) -> None:
    """Draw the methods of one order in colour, the others pale behind them."""
    from matplotlib.ticker import LogFormatterSciNotation, NullLocator, ScalarFormatter

    own = [name for name, (o, _) in lines.items() if o == order]
    for name, (_, points) in lines.items():
        if name not in own:
            axis.plot(*points, color=INK, alpha=0.13, linewidth=1)
    for i, name in enumerate(own):
        axis.plot(
            *lines[name][1], color=_COLOURS[i % len(_COLOURS)], marker=_MARKS[i % len(_MARKS)], markersize=4,
            linewidth=1.6, linestyle="-" if i < len(_COLOURS) else "--", label=name,
        )  # fmt: skip
    _slope(axis, lines, order)
    axis.set(xscale="log", yscale="log", ylim=_limits(lines))
    axis.set_title(f"order {order}", loc="left", fontweight="bold")
    axis.grid(alpha=0.12, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(LogFormatterSciNotation())
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.03), labelspacing=0.35)


def _lines(methods: list[Mapping[str, Any]]) -> dict[str, tuple[int, tuple[list[int], list[float]]]]:
    """Return the order and the points (evaluations, error) of each deterministic method."""
    lines: dict[str, tuple[int, tuple[list[int], list[float]]]] = {}
    for method in methods:
        if method["error"] is not None and method["error"] > 0:
            _, (xs, ys) = lines.setdefault(method["name"], (method["order"], ([], [])))
            if method["evaluations"] not in xs:
                xs.append(method["evaluations"])
                ys.append(method["error"])
    return lines


def _slope(axis: Any, lines: Mapping[str, Any], order: int) -> None:
    """Draw a dotted line that falls with the declared order, through the last point of the best method."""
    ends = [(xs[-1], ys[-1], xs[0]) for o, (xs, ys) in lines.values() if o == order]
    x, y, first = min(ends, key=lambda end: end[1])
    start = max(first, x / 10 ** (2.5 / order))
    axis.plot([start, x], [y * (x / start) ** order, y], color=INK, alpha=0.55, linewidth=1, linestyle=":")


def _limits(lines: Mapping[str, Any]) -> tuple[float, float]:
    """Return the y limits: from the smallest error to the size of the images; larger errors are above the plot."""
    least = min(min(ys) for _, (_, ys) in lines.values())
    return 0.6 * least, max(2.0, 2.0 * least)


def _apart(values: list[int]) -> list[int]:
    """Return the values that are at least a quarter above the one kept before."""
    kept: list[int] = []
    for value in values:
        if not kept or value >= 1.25 * kept[-1]:
            kept.append(value)
    return kept


def _page(report: Mapping[str, Any], sheet: bytes, svg: bytes | None) -> str:
    here = report["environment"]
    facts = [
        f"{pluralize(report['samples'], 'sample')}, seed {report['seed']}",
        f"{here['backend']}, {here['device']}, {here['precision']}",
        f"trained on {report['images_seen']:,} images",
    ]
    lead = _CURVES.format(**report["reference"], grid=_grid(report["options"]["spacing"]))
    sections = [
        Section("curves", "Error against network evaluations", svg and inline(svg), lead),
        Section("table", "Every number", _table(report)),
        Section("samples", "Samples", sheet, _SAMPLES),
    ]
    header = {"facts": facts, "command": here["command"]}
    return render_page("gallery.html", "Samplers on one checkpoint", header, sections)


def _grid(spacing: Any) -> str:
    """Return the spacing of the steps in words."""
    if not isinstance(spacing, Mapping):
        return str(spacing)
    return ", ".join(f"{value}" if key == "name" else f"{key} {value}" for key, value in spacing.items())


def _table(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error of each method by its budget of evaluations."""
    methods = report["methods"]
    budgets = sorted({method["budget"] for method in methods})
    errors = {(method["name"], method["budget"]): method["error"] for method in methods}
    rows = []
    for name, method in {method["name"]: method for method in methods}.items():
        cells = [errors.get((name, budget)) for budget in budgets]
        kind = "stochastic" if method["stochastic"] else "deterministic"
        rows.append((name, method["order"], kind, [DASH if error is None else number(error) for error in cells]))
    return {"budgets": budgets, "rows": rows, "left_out": report["left_out"]}

"""The gallery of samplers as files: the sheet of pictures, the curves of error, and a page with both and the table."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_core.files.atomic import write_atomically

from .page import command, document, picture, scroll
from .text import count, escape, number

__all__ = ["curves", "write"]

# One colour is the ink of the page: in the page it follows the theme.
_INK = "#1b2a38"
_COLOURS = (
    "#d1495b",
    "#00798c",
    "#edae49",
    "#6a4c93",
    "#2e933c",
    "#30638e",
    "#b5651d",
    "#8a817c",
    "#c2185b",
    "#5c7c2f",
)
_MARKS = "osD^vPX*<>"


def write(report: Mapping[str, Any], sheet: bytes, out: Path) -> Path:
    """Write gallery.png, curves.png, curves.svg and gallery.html, each whole or not at all; gives the page.

    Where no method is deterministic there are no curves.
    """
    drawn = {kind: curves(report["methods"], kind) for kind in ("png", "svg") if _lines(report["methods"])}
    page = _page(report, sheet, drawn.get("svg", b"").decode())
    write_atomically(out / "gallery.png", sheet)
    for kind, data in drawn.items():
        write_atomically(out / f"curves.{kind}", data)
    write_atomically(out / "gallery.html", page.encode())
    return out / "gallery.html"


def curves(methods: list[Mapping[str, Any]], kind: str) -> bytes:
    """Error against network evaluations, a panel per order of convergence with all other methods behind it.

    Args:
        methods: the entries of the report.
        kind: ``"png"`` or ``"svg"``.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatterSciNotation, NullLocator, ScalarFormatter

    lines = _lines(methods)
    orders = sorted({order for order, _ in lines.values()})
    style = {"svg.fonttype": "none", "svg.hashsalt": "duet", "font.size": 9.5, "font.family": "sans-serif"}
    style |= {f"{part}.color": _INK for part in ("text", "xtick", "ytick", "grid")}
    style |= {"axes.edgecolor": _INK, "axes.labelcolor": _INK}
    with matplotlib.rc_context(style):
        columns = min(2, len(orders))
        rows = -(-len(orders) // columns)
        figure = Figure(figsize=(6.4 * columns, 3.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis in axes[len(orders) :]:
            axis.set_axis_off()
        for place, (axis, order) in enumerate(zip(axes, orders, strict=False)):
            own = [name for name, (o, _) in lines.items() if o == order]
            for name, (_, points) in lines.items():
                if name not in own:
                    axis.plot(*points, color=_INK, alpha=0.13, linewidth=1)
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
            axis.set_xticks(_apart(sorted({one["budget"] for one in methods})))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_locator(NullLocator())
            axis.tick_params(labelbottom=place + columns >= len(orders))  # where there is no panel below
            axis.yaxis.set_major_formatter(LogFormatterSciNotation())
            axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.03), labelspacing=0.35)
        figure.supxlabel("network evaluations", fontsize=10)
        figure.supylabel("distance to the probability flow (RMS)", fontsize=10)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(
            buffer, format=kind, dpi=170, metadata=metadata, transparent=kind == "svg",
            facecolor="white" if kind == "png" else "none",
        )  # fmt: skip
    return buffer.getvalue()


def _lines(methods: list[Mapping[str, Any]]) -> dict[str, tuple[int, tuple[list[int], list[float]]]]:
    """Order and points (evaluations, error) of each deterministic method."""
    lines: dict[str, tuple[int, tuple[list[int], list[float]]]] = {}
    for one in methods:
        if one["error"] is not None and one["error"] > 0:
            _, (xs, ys) = lines.setdefault(one["name"], (one["order"], ([], [])))
            if one["evaluations"] not in xs:
                xs.append(one["evaluations"])
                ys.append(one["error"])
    return lines


def _slope(axis: Any, lines: Mapping[str, Any], order: int) -> None:
    """A dotted line that falls with the declared order, through the best of them at its last point."""
    ends = [(xs[-1], ys[-1], xs[0]) for o, (xs, ys) in lines.values() if o == order]
    x, y, first = min(ends, key=lambda end: end[1])
    start = max(first, x / 10 ** (2.5 / order))
    axis.plot([start, x], [y * (x / start) ** order, y], color=_INK, alpha=0.55, linewidth=1, linestyle=":")


def _limits(lines: Mapping[str, Any]) -> tuple[float, float]:
    """From the least error to the size of the pictures: what is worse is no picture, and leaves at the top."""
    least = min(min(ys) for _, (_, ys) in lines.values())
    return 0.6 * least, max(2.0, 2.0 * least)


def _apart(values: list[int]) -> list[int]:
    """Values of which each is at least a quarter above the one before."""
    kept: list[int] = []
    for value in values:
        if not kept or value >= 1.25 * kept[-1]:
            kept.append(value)
    return kept


def _page(report: Mapping[str, Any], sheet: bytes, svg: str) -> str:
    """The page."""
    here = report["environment"]
    inline = svg[svg.find("<svg") :].replace(_INK, "currentColor")
    # It takes the width of the page, and keeps its shape.
    inline = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', inline, count=1)
    inline = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", inline, count=1)
    budgets = sorted({one["budget"] for one in report["methods"]})
    header = (
        f'<p class="origin"><span>{count(report["samples"], "sample")}, seed {report["seed"]}</span>'
        f"<span>{escape(here['backend'])}, {escape(here['device'])}, {escape(here['precision'])}</span>"
        f"<span>trained on {report['images_seen']:,} images</span></p>{command(here['command'])}"
    )
    reference = report["reference"]
    sections = [
        (
            "curves",
            "Error against network evaluations",
            f"Distance to the probability flow's own sample from the same noise, which {reference['method']} gives in "
            f"{reference['steps']} steps. Root of the mean square, in units of the data range [-1, 1]; the dotted line "
            "falls with the declared order. Lines that leave at the top are worse than no picture. "
            f"Every method has the grid {_grid(report['options']['spacing'])}, and no clip.",
            f'<figure class="picture wide">{inline}</figure>',
        ),
        ("table", "Every number", "", _table(report["methods"], budgets) + _left_out(report["left_out"])),
        (
            "samples",
            "Samples",
            "The same noise in every cell. A method with several evaluations per step has the most steps that fit.",
            f'<figure class="picture wide">{picture("sheet", "samples of every method", {"sheet": sheet}, 1040)}'
            "</figure>",
        ),
    ]
    return document("Samplers on one checkpoint", header, sections if svg else sections[1:])


def _grid(spacing: Any) -> str:
    """The grid in words."""
    if not isinstance(spacing, Mapping):
        return escape(spacing)
    return escape(", ".join(f"{value}" if key == "name" else f"{key} {value}" for key, value in spacing.items()))


def _table(methods: list[Mapping[str, Any]], budgets: list[int]) -> str:
    """Methods down, budgets across."""
    cells = {(one["name"], one["budget"]): one for one in methods}
    head = "".join(f'<th scope="col" class="num">{budget}</th>' for budget in budgets)
    rows = []
    for name in dict.fromkeys(one["name"] for one in methods):
        known = next(one for one in methods if one["name"] == name)
        kind = "stochastic" if known["stochastic"] else "deterministic"
        values = "".join(f'<td class="num">{_error(cells.get((name, budget)))}</td>' for budget in budgets)
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{known["order"]}</td><td>{kind}</td>{values}</tr>')
    return scroll(
        '<table class="quality"><caption class="hidden">Error of every method</caption><thead><tr>'
        f'<th scope="col">method</th><th scope="col">order</th><th scope="col">kind</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        "error of every method by network evaluations",
    )


def _error(one: Mapping[str, Any] | None) -> str:
    if one is None or one["error"] is None:
        return "–"
    return number(one["error"])


def _left_out(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return ""
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in left_out.items())
    return f'<p class="note">Not defined for this process:</p><ul class="note">{items}</ul>'

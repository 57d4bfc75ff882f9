"""The page on a data set: parts, classes, levels, mean pictures, drawn pictures, and pairs that are nearly alike."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.runs.run_directory import write_json

from .page import command, document, picture, scroll
from .text import element, escape, number, percent

__all__ = ["levels", "write"]

# In the page it follows the theme.
_INK = "#1b2a38"
_CHANNELS = {1: (("grey", _INK),), 3: (("red", "#d1495b"), ("green", "#2e933c"), ("blue", "#3a6fd8"))}
_ROWS = 100


def write(
    report: Mapping[str, Any], histograms: Mapping[str, NDArray[np.int64]], sheets: Mapping[str, bytes], out: Path
) -> Path:
    """Write report.html, report.json, levels.svg, levels.png and the sheets, each whole or not at all; gives the page.

    Args:
        report: as `experiments.inspect` makes it.
        histograms: of each part, with shape (C, 256).
        sheets: PNG files: "means, PART", "samples, PART" and "pairs, PART, PART".
        out: the directory.
    """
    drawn = {kind: levels(histograms, kind) for kind in ("png", "svg")}
    page = _page(report, sheets, drawn["svg"].decode())
    for kind, data in drawn.items():
        write_atomically(out / f"levels.{kind}", data)
    for name, data in sheets.items():
        write_atomically(out / f"{name.replace(', ', '-')}.png", data)
    write_json(out / "report.json", report)
    write_atomically(out / "report.html", page.encode())
    return out / "report.html"


def levels(histograms: Mapping[str, NDArray[np.int64]], kind: str) -> bytes:
    """The share of each of the 256 levels in each channel, a panel for each part.

    Args:
        histograms: of each part, with shape (C, 256).
        kind: ``"png"`` or ``"svg"``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "duet", "font.size": 9.5, "font.family": "sans-serif"}
    style |= {f"{part}.color": _INK for part in ("text", "xtick", "ytick", "grid")}
    style |= {"axes.edgecolor": _INK, "axes.labelcolor": _INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11.0, 2.6 * len(histograms)), layout="constrained")
        axes = figure.subplots(len(histograms), 1, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, (part, found) in zip(axes, histograms.items(), strict=True):
            for (name, colour), channel in zip(_CHANNELS[len(found)], found, strict=True):
                axis.stairs(channel / channel.sum(), np.arange(257) - 0.5, color=colour, label=name, linewidth=1.3)
            axis.set(yscale="log", xlim=(-2, 257))
            axis.set_title(part, loc="left", fontweight="bold")
            axis.grid(alpha=0.12, linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        if len(found) > 1:
            axes[0].legend(frameon=False, ncols=3, loc="upper right")
        figure.supxlabel("level", fontsize=10)
        figure.supylabel("share of values", fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format=kind, dpi=170, metadata={"Date": None} if kind == "svg" else {}, transparent=kind == "svg",
            facecolor="white" if kind == "png" else "none",
        )  # fmt: skip
    return buffer.getvalue()


def _page(report: Mapping[str, Any], sheets: Mapping[str, bytes], svg: str) -> str:
    parts, near = report["parts"], report["near"]
    total = sum(part["pictures"] for part in parts.values())
    any_part = next(iter(parts.values()))
    kind = f"{any_part['size']} x {any_part['size']} pixels, {'colour' if any_part['channels'] == 3 else 'grey'}"
    classes = len(any_part["classes"])
    header = (
        f'<p class="origin"><span>{pluralize(total, "picture")} of {kind}</span>'
        f"<span>{classes:,} {'class' if classes == 1 else 'classes'}</span>"
        f"<span>{pluralize(sum(pair['count'] for pair in near['pairs']), 'near pair')}</span></p>"
        f"{command(report['environment']['command'])}"
    )
    sections = [
        ("parts", "Parts", _origin(report.get("card")), _parts(parts, report.get("card"))),
        ("classes", "Pictures of each class", "", _classes(parts)),
        (
            "levels",
            "Levels",
            "How often each of the 256 levels occurs. Mean and deviation are over all pixels, on the scale 0 to 1.",
            _levels(parts) + f'<figure class="picture wide">{_inline(svg)}</figure>',
        ),
        ("means", "Mean picture of each class", "Of the first classes, in their order.", _gallery("means", sheets)),
        ("samples", "Pictures", f"Drawn by stream from seed {report['seed']}.", _gallery("samples", sheets)),
        (
            "pairs",
            "Pictures that are nearly alike",
            f"Pairs whose thumbnails of 8 x 8 pixels differ by at most {near['within']:g} levels of 255 (root mean "
            "square). Between parts, a pair means that what is held out has been seen.",
            _pairs(near, parts, sheets),
        ),
    ]
    return document(report["title"], header, [section for section in sections if section[3]])


def _inline(svg: str) -> str:
    """A drawing that takes the width of the page and its ink."""
    inline = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    inline = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', inline, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", inline, count=1)


def _origin(card: Mapping[str, Any] | None) -> str:
    if not card:
        return ""
    said = {"title": "", "licence": "Licence: ", "citation": "To cite: "}
    return ". ".join(f"{label}{card[key]}" for key, label in said.items() if card.get(key)) + "."


def _parts(parts: Mapping[str, Any], card: Mapping[str, Any] | None) -> str:
    rows = []
    for name, part in parts.items():
        made = (card or {}).get("parts", {}).get(name, {})
        sizes = made.get("sizes_before", {}).get("most_common", {})
        before = ", ".join(f"{size} ({n:,})" for size, n in list(sizes.items())[:3])
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="num">{part["pictures"]:,}</td>'
            f'<td>{escape(before)}</td><td class="num">{number(made.get("unreadable", {}).get("count"))}</td>'
            f'<td title="{part["sha256"]}"><code>{part["sha256"][:16]}</code></td></tr>'
        )
    head = "".join(f'<th scope="col">{label}</th>' for label in ("sizes before", "left out", "SHA-256"))
    return _table("parts", f'<th scope="col">part</th><th scope="col" class="num">pictures</th>{head}', rows)


def _classes(parts: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for part in parts.values() for name in part["classes"]))
    most = max(max(part["classes"].values()) for part in parts.values())
    rows = []
    for name in names[:_ROWS]:
        cells = ""
        for part in parts.values():
            n = part["classes"].get(name, 0)
            share = f"{100 * n / part['pictures']:.1f} %"
            cells += (
                f'<td><span class="bar-row" style="grid-template-columns:1fr 9rem"><span class="bar-box"><i class="bar '
                f'pair" style="width:{100 * n / most:.1f}%"></i></span>'
                f'<span class="bar-value">{n:,} <span class="unit">{share}</span></span></span></td>'
            )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    head = '<th scope="col">class</th>' + "".join(f'<th scope="col">{escape(part)}</th>' for part in parts)
    left = f"report.json has {len(names) - _ROWS:,} more" if len(names) > _ROWS else ""
    return _table("pictures of each class", head, rows) + element("p", "note", left)


def _levels(parts: Mapping[str, Any]) -> str:
    rows = []
    for name, part in parts.items():
        for (channel, _), mean, std, histogram in zip(
            _CHANNELS[part["channels"]], part["mean"], part["std"], part["histograms"], strict=True
        ):
            ends = (histogram[0] / sum(histogram), histogram[255] / sum(histogram))
            rows.append(
                f'<tr><th scope="row">{escape(name)}</th><td>{channel}</td><td class="num">{mean:.4f}</td>'
                f'<td class="num">{std:.4f}</td><td class="num">{2 * std:.4f}</td>'
                f'<td class="num">{percent(ends[0])}</td><td class="num">{percent(ends[1])}</td></tr>'
            )
    heads = ("mean", "deviation", "deviation in [-1, 1]", "black", "white")
    head = "".join(f'<th scope="col" class="num">{label}</th>' for label in heads)
    return _table("levels", f'<th scope="col">part</th><th scope="col">channel</th>{head}', rows)


def _gallery(kind: str, sheets: Mapping[str, bytes]) -> str:
    blocks = ""
    for name in sheets:
        if name.startswith(f"{kind}, "):
            part = name.removeprefix(f"{kind}, ")
            blocks += (
                f'<figure class="picture"><figcaption><h3>{escape(part)}</h3></figcaption>'
                f"{picture(name, name, sheets, 480)}</figure>"
            )
    return f'<div class="gallery">{blocks}</div>' if blocks else ""


def _pairs(near: Mapping[str, Any], parts: Mapping[str, Any], sheets: Mapping[str, bytes]) -> str:
    content = ""
    for found in near["pairs"]:
        a, b = found["parts"]
        title = f"Within {a}" if a == b else f"Between {a} and {b}"
        compared = [f"{near['compared'][part]:,} of {parts[part]['pictures']:,}" for part in dict.fromkeys((a, b))]
        said = f"{pluralize(found['count'], 'pair')}; {' and '.join(compared)} pictures compared"
        rows = [
            f"<tr><td>{escape(one['first'])}</td><td>{escape(one['second'])}</td>"
            f"<td>{escape(' / '.join(dict.fromkeys(one['classes'])))}</td>"
            f'<td class="num">{"the same" if one["same"] else number(one["distance"])}</td></tr>'
            for one in found["nearest"][:12]
        ]
        heads = ("first", "second", "class", "distance")
        head = "".join(f'<th scope="col"{" class=num" if h == "distance" else ""}>{h}</th>' for h in heads)
        name = f"pairs, {a}, {b}"
        sheet = picture(name, f"near pairs, {title}", sheets, 640) if name in sheets else ""
        content += (
            f'<figure class="picture" style="flex-basis:100%"><figcaption><h3>{escape(title)}</h3>'
            f"<p>{escape(said)}</p></figcaption>{sheet}{_table(title, head, rows) if rows else ''}</figure>"
        )
    return f'<div class="gallery">{content}</div>'


def _table(label: str, head: str, rows: list[str]) -> str:
    table = (
        f'<table class="quality"><caption class="hidden">{escape(label)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return scroll(table, label)

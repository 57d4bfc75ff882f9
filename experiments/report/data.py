"""The page on a data set: parts, classes, pixel values, mean images, sampled images, and near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import pluralize
from diffusion_core.data.reading import reading_lines
from diffusion_core.files.atomic import write_atomically
from diffusion_core.runs.run_directory import write_json

from .page import Section, render_page
from .plots import INK, STYLE, encode, inline
from .text import number, percent

__all__ = ["MEAN_CLASSES", "histogram_figure", "write"]

MEAN_CLASSES = 64  # the page shows the mean image of this many classes

_CHANNELS = {1: (("grey", INK),), 3: (("red", "#d1495b"), ("green", "#2e933c"), ("blue", "#3a6fd8"))}
_COLOURS = ("#d1495b", "#2e933c", "#3a6fd8", "#e09f3e", "#7d4fa8", "#2a9d8f", "#8c564b", INK)
_ROWS = 100  # classes in the table
_PAIRS = 12  # pairs in a table
_PIXELS = "How often each of the 256 pixel values occurs. Mean and standard deviation: over all pixels, from 0 to 1."
_VALUES = "How often values occur, in 256 bins from the least to the largest. Mean and standard deviation: as stored."
_FIRST = "The first channel of each array, from its least value (black) to its largest (white), seed {seed}."
_NEAR = "Pairs of images whose thumbnails of 8 x 8 pixels differ by at most {within:g} of 255 (root mean square)."
_READING = "How the folders were understood, and every file that is no part of the data set, by kind."
_POINTS = "Every point, with a colour for each class. A point is stored as one pixel: red is x, green is y."
_BETWEEN = " A pair between parts means that a held-out image was seen in training."


def write(
    report: Mapping[str, Any], histograms: Mapping[str, NDArray[np.int64]], sheets: Mapping[str, bytes], out: Path
) -> Path:
    """Write report.html, report.json, levels.svg, levels.png and the sheets, each atomically; return the page's path.

    Args:
        report: as `experiments.inspect` makes it.
        histograms: those of each part, with shape (C, 256).
        sheets: PNG files: "means, PART", "samples, PART" and "pairs, PART, PART".
        out: the directory.
    """
    ends = None if report.get("are_pictures", True) else {name: part["ends"] for name, part in report["parts"].items()}
    drawn = {kind: histogram_figure(histograms, kind, ends) for kind in ("png", "svg")}
    page = _page(report, sheets, drawn["svg"])
    for kind, data in drawn.items():
        write_atomically(out / f"levels.{kind}", data)
    for name, data in sheets.items():
        write_atomically(out / f"{name.replace(', ', '-')}.png", data)
    write_json(out / "report.json", report)
    write_atomically(out / "report.html", page.encode())
    return out / "report.html"


def _channels(count: int, are_pictures: bool) -> tuple[tuple[str, str], ...]:
    """Return name and colour of each channel; more than eight are one."""
    if are_pictures:
        return _CHANNELS[count]
    if count == 1:
        return (("values", INK),)
    return tuple((f"channel {k}", colour) for k, colour in zip(range(count), _COLOURS, strict=False))


def histogram_figure(
    histograms: Mapping[str, NDArray[np.int64]], kind: str, ends: Mapping[str, tuple[float, float]] | None = None
) -> bytes:
    """Draw the fraction of each of the 256 pixel values by channel, with a panel for each part.

    Args:
        histograms: those of each part, with shape (C, 256).
        kind: ``"png"`` or ``"svg"``.
        ends: the least and the largest value of each part, for data that are no pictures.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 2.6 * len(histograms)), layout="constrained")
        axes = figure.subplots(len(histograms), 1, sharex=ends is None, sharey=True, squeeze=False).ravel()
        for axis, (part, channels) in zip(axes, histograms.items(), strict=True):
            edges = np.arange(257) - 0.5 if ends is None else np.linspace(*ends[part], 257)
            margin = 0.01 * (edges[-1] - edges[0]) or 1.0
            for (name, colour), counts in zip(_channels(len(channels), ends is None), channels, strict=True):
                axis.stairs(counts / counts.sum(), edges, color=colour, label=name, linewidth=1.3)
            axis.set(yscale="log", xlim=(-2, 257) if ends is None else (edges[0] - margin, edges[-1] + margin))
            axis.set_title(part, loc="left", fontweight="bold")
            axis.grid(alpha=0.12, linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        if len(channels) > 1:
            axes[0].legend(frameon=False, ncols=3, loc="upper right")
        figure.supxlabel("pixel value" if ends is None else "value", fontsize=10)
        figure.supylabel("fraction", fontsize=10)
        return encode(figure, kind)


def _page(report: Mapping[str, Any], sheets: Mapping[str, bytes], svg: bytes) -> str:
    parts, near = report["parts"], report["near"]
    first = next(iter(parts.values()))
    total, classes = sum(part["pictures"] for part in parts.values()), len(first["classes"])
    are_pictures, points = report.get("are_pictures", True), report.get("points")
    sides = first["size"] if isinstance(first["size"], list) else [first["size"]] * 2
    if are_pictures:
        colour = "colour" if first["channels"] == 3 else "grey"
        shown = f"{pluralize(total, 'image')} of {sides[0]} x {sides[1]} pixels, {colour}"
    else:
        shown = f"{pluralize(total, 'array')} of {' x '.join(map(str, [*sides, first['channels']]))} {first['type']}"
    facts = [
        f"{pluralize(total, 'point')} of the plane" if points else shown,
        f"{classes:,} {'class' if classes == 1 else 'classes'}",
    ]
    if first.get("conditions"):
        facts.append(pluralize(len(first["conditions"]), "condition"))
    if are_pictures and not points:
        facts.append(pluralize(sum(pair["count"] for pair in near["pairs"]), "near-duplicate pair"))
    sampled = _POINTS if points else f"Random images, seed {report['seed']}."
    if not are_pictures:
        sampled = _FIRST.format(seed=report["seed"])
    first_classes = f"The first {MEAN_CLASSES} classes." if classes > MEAN_CLASSES else ""
    pixels = {"rows": _pixels(parts, are_pictures), "svg": inline(svg), "are_pictures": are_pictures}
    near_lead = _NEAR.format(within=near["within"]) + (_BETWEEN if len(parts) > 1 else "")
    sections = [
        Section("parts", "Parts", _parts(parts, report.get("card")), _origin(report.get("card"))),
        Section(
            "reading", "What was read", _reading(report.get("reading") or {"remarks": (), "left_out": {}}), _READING
        ),
        Section("classes", f"{'Points' if points else 'Images'} of each class", _classes(parts), "", "Classes"),
        Section("conditions", "Conditions", _conditions(parts), "Mean and standard deviation of each condition."),
        Section("pixels", "Pixel values" if are_pictures else "Values", pixels, _PIXELS if are_pictures else _VALUES),
        Section("means", "Mean image of each class", _sheets("means", sheets), first_classes),
        Section("samples", "Points" if points else "Images", _sheets("samples", sheets), sampled, "Samples"),
        Section("pairs", "Near-duplicates", _pairs(near, parts, sheets), near_lead),
    ]
    if points:  # the plot first, the bytes of the coordinates later
        sections.insert(2, sections.pop([section.key for section in sections].index("samples")))
    header = {"facts": facts, "command": report["environment"]["command"]}
    return render_page("data.html", report["title"], header, sections)


def _origin(card: Mapping[str, Any] | None) -> str:
    if not card:
        return ""
    labels = {"title": "", "licence": "Licence: ", "citation": "To cite: "}
    return ". ".join(f"{label}{card[key]}" for key, label in labels.items() if card.get(key)) + "."


def _parts(parts: Mapping[str, Any], card: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a row for each part, with what its preparation recorded."""
    rows = []
    for name, part in parts.items():
        part_facts = (card or {}).get("parts", {}).get(name, {})
        before = part_facts.get("sizes_before", {})
        sizes = [f"{size} ({n:,})" for size, n in before.get("most_common", {}).items()]
        others = before.get("different", len(sizes)) - 3
        rows.append({
            "name": name, "images": part["pictures"], "sha256": part["sha256"],
            "sizes": ", ".join(sizes[:3]) + (f" and {others:,} other sizes" if others > 0 else ""),
            "left_out": number(part_facts.get("unreadable", {}).get("count")),
        })  # fmt: skip
    return rows


def _reading(plain: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return a line for each remark and each kind of file, with the first names of that kind."""
    rows = [(remark, []) for remark in plain["remarks"]]
    for kind, facts in plain["left_out"].items():
        (line,) = reading_lines({"left_out": {kind: facts | {"first": []}}})
        rows.append((line.removesuffix(" ()"), facts["first"]))
    return rows


def _classes(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for each class: its images in each part, the bar relative to the largest class, the percentage."""
    names = list(dict.fromkeys(name for part in parts.values() for name in part["classes"]))
    most = max(max(part["classes"].values()) for part in parts.values())
    rows = []
    for name in names[:_ROWS]:
        counts = [(part["classes"].get(name, 0), part["pictures"]) for part in parts.values()]
        rows.append((name, [(n, f"{100 * n / most:.1f}", f"{100 * n / total:.1f} %") for n, total in counts]))
    return {"parts": list(parts), "rows": rows, "more": max(0, len(names) - _ROWS)}


def _pixels(parts: Mapping[str, Any], are_pictures: bool) -> list[tuple[str, str, list[str]]]:
    """Return mean, standard deviation and the fractions of black and white for each channel of each part."""
    rows = []
    for name, part in parts.items():
        for (channel, _), mean, std, histogram in zip(
            _channels(len(part["histograms"]), are_pictures), part["mean"], part["std"], part["histograms"], strict=True
        ):
            ends = [percent(histogram[end] / sum(histogram)) for end in (0, 255)]
            scaled = f"{2 * std:.4f}" if are_pictures else ""
            rows.append((name, channel, [f"{mean:.4f}", f"{std:.4f}", scaled, *ends]))
    return rows


def _conditions(parts: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Return mean and standard deviation of the first conditions of each part."""
    return [
        (part, name, [number(facts["mean"]), number(facts["std"])])
        for part, found in parts.items()
        for name, facts in list(found.get("conditions", {}).items())[:_ROWS]
    ]


def _sheets(kind: str, sheets: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the sheets of one kind by part."""
    return {name.removeprefix(f"{kind}, "): data for name, data in sheets.items() if name.startswith(f"{kind}, ")}


def _pairs(near: Mapping[str, Any], parts: Mapping[str, Any], sheets: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the near-duplicates within each part and between each two."""
    blocks = []
    for pair in near["pairs"]:
        a, b = pair["parts"]
        compared = [f"{near['compared'][part]:,} of {parts[part]['pictures']:,}" for part in dict.fromkeys((a, b))]
        rows = [
            (
                one["first"],
                one["second"],
                " / ".join(dict.fromkeys(one["classes"])),
                "identical" if one["same"] else number(one["distance"]),
            )
            for one in pair["nearest"][:_PAIRS]
        ]
        blocks.append({
            "title": f"Within {a}" if a == b else f"Between {a} and {b}",
            "text": f"{pluralize(pair['count'], 'pair')}; {' and '.join(compared)} images compared",
            "sheet": sheets.get(f"pairs, {a}, {b}"), "rows": rows,
        })  # fmt: skip
    return blocks

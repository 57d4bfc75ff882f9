"""The page that compares runs, in the order in which a reader needs its parts.

    header and verdict, failures, headlines, parity ladder, loss, samples, images, quality, cost, runs

Each section is drawn from its part of the report and is left out if that part is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_core.common.text import pluralize

from .figures import SERIES, Series, loss_chart
from .ladder import ladder, read_checks, verdict
from .page import Section, image_size, render_page, write_page
from .text import number, percent, real, text, value

__all__ = ["difference_lines", "one_backend", "render", "write"]

_VERDICTS = {
    True: ("agree", "✓", "{} agree"),
    False: ("differ", "✗", "{} do NOT agree"),
    None: ("unknown", "?", "No verdict"),
}
_LADDER = (
    "Every comparison, from tables of coefficients up to whole training runs. A mark is the worst error of its kind "
    "as a fraction of the tolerance, on a log scale: left of the line passes."
)
_VALIDATION = (
    "Of the weights, on the same held-out images with the same noise at every moment and in every run. The parity "
    "ladder holds it for the moving averages and at each noise level too."
)
_FACTS = {
    "device": "device", "precision": "precision", "seed": "seed", "commit": "commit", "parameters": "parameters",
    "images_seen": "images seen", "images_per_second": "images per second", "peak_memory_mib": "peak memory, MiB",
    "wall_seconds": "wall time, s",
}  # fmt: skip
_AS_TEXT = ("device", "precision", "seed", "commit")
_COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}")


def write(report: Mapping, images: Mapping[str, bytes], directory: str | Path) -> Path:
    """Write report.html and report.json into a directory, each atomically; return the path of report.html.

    Raises:
        DuetError: see `render` and `write_page`; nothing is written then.
    """
    return write_page(report, render(report, images), directory)


def render(report: Mapping, images: Mapping[str, bytes]) -> str:
    """Return the report as one HTML page that needs no other file and no network.

    Args:
        report: JSON values; the parts are "backends", "verdict", "headlines", "rungs", "runs", "loss", "samples",
            "pictures", "quality", "cost" and "environment", and each may be missing.
        images: PNG, GIF or JPEG files by the names that the report uses.

    Raises:
        DuetError: an image has another format, or the series of the loss differ in length or lack a count of images.
    """
    for name, data in images.items():
        image_size(data, name)
    checks = read_checks(report)
    result = verdict(report, checks)
    single = one_backend(report)
    style, mark, claim = _VERDICTS[result.agree]
    claim = claim.format(result.subject or ("The runs" if single else "The frameworks"))
    series = _series(report)
    marks = {key: own.mark for key, own in series.items()}
    tally = ""
    if result.total:
        missing = result.total - result.passed
        verb = ("FAILS" if missing == 1 else "FAIL") if missing else "passes" if result.passed == 1 else "pass"
        tally = f"{missing or result.passed:,} of {pluralize(result.total, 'check')} {verb}"
    failed = [check for check in checks if not check.passed]
    header = {
        "report": report, "style": style, "mark": mark, "claim": claim, "tally": tally, "sentence": result.sentence,
        "failed": failed[:10], "more": max(0, len(failed) - 10), "marks": marks,
    }  # fmt: skip
    rungs, loss = ladder(report) if checks else None, loss_chart(report.get("loss") or {}, series)
    sections = [
        Section(
            "ladder",
            "Parity ladder",
            rungs and rungs | {"series": series, "marks": marks, "single": single},
            _LADDER,
            "Ladder",
        ),
        Section("loss", "Training loss", loss, _wide_line(report, series), "Loss"),
        Section(
            "validation",
            "Validation loss",
            loss_chart(report.get("validation") or {}, series, "validation loss", "val"),
            _VALIDATION,
            "Validation",
        ),
        Section("samples", "Samples side by side", _with_images(report.get("samples"), images), "", "Samples"),
        Section("pictures", "Images", _with_images(report.get("pictures"), images)),
        Section("quality", "Quality", _quality(report)),
        Section("cost", "Cost", _cost(report, series, "pair" if single else None)),
        Section("runs", "Runs and environments", _runs(report), "", "Runs"),
    ]
    title = report.get("title") or "Report"
    return render_page(
        "comparison.html", title, header, sections, mark=f"{mark} ", style=style, colours=_colours(report)
    )


def one_backend(report: Mapping) -> bool:
    """Whether the report compares several runs, all of one backend."""
    # The key of a run is the name of its backend, with a letter if there are several runs of it.
    names = [str(backend["name"]).split()[0] for backend in report.get("backends") or [] if backend.get("name")]
    return len(names) > 1 and len(set(names)) == 1


def _series(report: Mapping) -> dict[str, Series]:
    """Return how every run and backend that the report names is called and drawn, in order of appearance."""
    titles = {str(b["name"]): str(b.get("title") or b["name"]) for b in report.get("backends") or [] if b.get("name")}
    for run in report.get("runs") or []:
        if run.get("backend") and run.get("label"):
            titles[str(run["backend"])] = str(run["label"])
    keys = list((report.get("loss") or {}).get("runs") or {})
    keys += [key for row in (report.get("cost") or {}).get("rows") or [] for key in row.get("values") or {}]
    titles = titles | {key: key for key in keys if key not in titles}
    return {key: Series(title, f"s{k % SERIES}") for k, (key, title) in enumerate(titles.items())}


def _colours(report: Mapping) -> dict[str, str]:
    """Return the colours of the backends, for the light and the dark theme, as CSS."""
    colours = {}
    for k, backend in enumerate(report.get("backends") or []):
        pair = [str((backend.get("colour") or {}).get(theme)) for theme in ("light", "dark")]
        if k < SERIES and all(_COLOUR.fullmatch(colour) for colour in pair):
            colours[f"s{k}"] = f"light-dark({pair[0]}, {pair[1]})"
    return colours


def _wide_line(report: Mapping, series: Mapping[str, Series]) -> str:
    keys = list((report.get("loss") or {}).get("runs") or {})
    if len(keys) < 2:
        return ""
    first, *others = (series[key].title for key in keys)
    thin = f"{others[0]} is drawn as a thin line" if len(others) == 1 else "the others are drawn as thin lines"
    return f"Curves that agree look like one: {thin} inside the wide line of {first}."


def _with_images(entries: Sequence[Mapping] | None, images: Mapping[str, bytes]) -> dict[str, Any] | None:
    return {"entries": entries, "images": images} if entries else None


def _quality(report: Mapping) -> dict[str, Any] | None:
    """Return the table of measures; without a table of its own, what the runs measured."""
    quality = report.get("quality") or {}
    rows, columns = quality.get("rows") or [], quality.get("columns") or []
    if not rows:
        measured = [(run.get("label"), run["quality"]) for run in report.get("runs") or [] if run.get("quality")]
        columns = [label for label, _ in measured]
        names = dict.fromkeys(name for _, values in measured for name in values)
        rows = [{"name": name, "values": [values.get(name) for _, values in measured]} for name in names]
    lines = []
    for row in rows:
        show = percent if row.get("format") == "percent" else value
        values, intervals = (list(row.get(key) or []) for key in ("values", "intervals"))
        missing = [None] * len(columns)
        cells = [
            (show(v), [number(end) for end in interval] if isinstance(interval, Sequence) else None)
            for v, interval in zip(
                (values + missing)[: len(columns)], (intervals + missing)[: len(columns)], strict=True
            )
        ]
        floor = real(row.get("floor"))
        note = "" if floor is None else f"as many images of the reference itself: {number(floor)}"
        lines.append({"name": row.get("name"), "better": row.get("better"), "cells": cells, "note": note})
    apart = difference_lines(quality)
    return {"columns": columns, "lines": lines, "note": quality.get("note"), "apart": apart} if lines else None


def difference_lines(quality: Mapping) -> list[str]:
    """Return a line for each difference of two subjects in a number, with its own intervals."""
    lines = []
    for row in quality.get("rows") or []:
        for entry in row.get("differences") or []:
            ends = [
                f"[{number(interval[0])}, {number(interval[1])}]{suffix}"
                for key, suffix in (("interval", ""), ("interval_both", " over draws of the reference too"))
                if (interval := entry.get(key))
            ]
            sides = f"{entry['subject']} minus {entry['baseline']}"
            lines.append(f"{text(row.get('name'))}: {sides}: {', '.join([number(entry['value']), *ends])}")
    return lines


def _cost(report: Mapping, series: Mapping[str, Series], mark: str | None) -> list[dict[str, Any]]:
    """Return the bars of each row, drawn with `mark` or each with that of its series; the longest fills the box."""
    rows = []
    for row in (report.get("cost") or {}).get("rows") or []:
        values = {key: real(v) for key, v in (row.get("values") or {}).items()}
        top = max((v for v in values.values() if v is not None and math.isfinite(v)), default=0.0)
        bars = []
        for key, v in values.items():
            known = v is not None and math.isfinite(v) and top > 0
            width = f"{100 * max(0.0, v) / top if known else 0:.1f}"
            own = series[key]
            bars.append({"title": own.title, "mark": mark or own.mark, "value": v, "width": width})
        rows.append({"name": row.get("name"), "better": row.get("better"), "bars": bars})
    return rows


def _runs(report: Mapping) -> dict[str, Any] | None:
    """Return the table of facts and versions, the commands, and the machine."""
    runs = report.get("runs") or []
    rows = [
        (name, [text(run.get(key)) if key in _AS_TEXT else number(run.get(key)) for run in runs])
        for key, name in _FACTS.items()
        if any(run.get(key) is not None for run in runs)
    ]
    for package in dict.fromkeys(name for run in runs for name in run.get("versions") or {}):
        name = "python version" if package == "python" else package
        rows.append((name, [text((run.get("versions") or {}).get(package)) for run in runs]))
    labels = [run.get("label") or run.get("backend") for run in runs]
    commands = [(label, run["command"]) for label, run in zip(labels, runs, strict=True) if run.get("command")]
    machine = report.get("environment") or {}
    if not (runs or machine):
        return None
    return {"labels": labels, "rows": rows, "commands": commands, "machine": machine}

"""The page itself: sections in the order in which a reader needs them.

    header and verdict, headlines, parity ladder, loss, samples, pictures, quality, cost, runs

Every section is made by one function from its part of the report and is empty if that part is missing.
The page refers to nothing outside itself and forbids it: its content security policy allows the one
script by its hash, styles, and pictures held as data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from diffusion_core.common.errors import DuetError
from diffusion_core.files.atomic import write_atomically

from .figures import bars, loss_figure
from .ladder import failures, ladder, read_checks, verdict
from .text import DASH, count, element, escape, moment, number, percent, plain, real

__all__ = ["command", "document", "picture", "render", "scroll", "write", "write_page"]

_NAMES = {"torch": "PyTorch", "tf": "TensorFlow"}
_STYLES = {"torch": "torch", "tf": "tf"}
_KINDS = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg"}
_VERDICTS = {
    True: ("agree", "✓", "The two frameworks agree"),
    False: ("differ", "✗", "The two frameworks do NOT agree"),
    None: ("unknown", "?", "No verdict"),
}
_LOGO = (
    '<svg class="logo" viewBox="0 0 32 20" aria-hidden="true"><circle class="torch" cx="10" cy="10" r="8.5"/>'
    '<circle class="tf" cx="22" cy="10" r="8.5"/></svg>'
)


def render(report: Mapping, pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML page that needs no other file and no network.

    Args:
        report: JSON values; the sections are "verdict", "headlines", "rungs", "runs", "loss", "samples",
            "pictures", "quality", "cost" and "environment", and each may be missing.
        pictures: PNG, GIF or JPEG files by the names that the report uses.

    Raises:
        DuetError: a picture has another format, or the series of the loss differ in length or lack a count of images.
    """
    checks = read_checks(report)
    agree, passed, total, sentence = verdict(report, checks)
    style, mark, claim = _VERDICTS[agree]
    names, styles = _run_names(report)
    title = report.get("title") or "Report"
    sections = [
        ("ladder", "Parity ladder", _LADDER, ladder(report)),
        (
            "loss",
            "Training loss",
            _LOSS if {"torch", "tf"} <= names.keys() else "",
            loss_figure(report.get("loss") or {}, names, styles),
        ),
        ("samples", "Samples side by side", "", _samples(report, pictures)),
        ("pictures", "Pictures", "", _pictures(report, pictures)),
        ("quality", "Quality", "", _quality(report)),
        ("cost", "Cost", "", _cost(report, names, styles)),
        ("runs", "Runs and environments", "", _runs(report)),
    ]
    sections = [section for section in sections if section[3]]
    failed = f"{total - passed:,} of {count(total, 'check')} FAIL"
    tally = element(
        "p", "tally", (failed if passed < total else f"{passed:,} of {count(total, 'check')} pass") if total else ""
    )
    header = (
        f'{_origin(report)}<div class="verdict {style}"><span class="seal" aria-hidden="true">{mark}</span><div>'
        f'<p class="claim">{escape(claim)}</p>{tally}'
        f"{element('p', 'sentence', sentence)}</div></div>"
    )
    return document(title, header, sections, f"{failures(checks)}{_headlines(report)}", f"{mark} ", style)


def document(
    title: str,
    header: str,
    sections: Sequence[tuple[str, str, str, str]],
    before: str = "",
    mark: str = "",
    style: str = "unknown",
) -> str:
    """A page that needs no other file and no network, in the dress of all of Duet's.

    Args:
        title: of the page, as text.
        header: HTML under the title.
        sections: (key, heading, lead, content): the first three as text, the last as HTML.
        before: HTML in front of the sections.
        mark: what the title in the browser's tab begins with.
        style: class of the page.
    """
    links = "".join(
        f'<li><a href="#{key}">{escape(_SHORT.get(key, heading))}</a></li>' for key, heading, *_ in sections
    )
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{escape(heading)}</h2>'
        f"{element('p', 'lead', lead)}{content}</section>"
        for key, heading, lead, content in sections
    )
    css, script = _asset("style.css"), _asset("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{mark}{escape(title)} {DASH} Duet</title>'
        f'<link rel="icon" href="data:,"><style>{css}</style></head>\n<body class="{style}">'
        '<a class="skip" href="#main">Skip to the report</a>'
        f'<div class="bar-top"><a class="brand" href="#top">{_LOGO}Duet</a>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
        '<button type="button" id="theme" aria-label="Switch between the light and the dark theme" hidden>'
        '<span aria-hidden="true">◐</span></button></div>'
        f'<header id="top"><h1>{escape(title)}</h1>{header}</header>\n'
        f'<main id="main">{before}{body}</main>'
        "<footer><p>Made by Duet: one diffusion model, two frameworks, the same numbers.</p></footer>"
        f"<script>{script}</script></body></html>\n"
    )


def write(report: Mapping, pictures: Mapping[str, bytes], directory: str | Path) -> Path:
    """Write report.html and report.json into a directory, each whole or not at all.

    The directory is made if it is missing. What is not finite becomes null in the JSON file.

    Returns:
        The path of report.html.

    Raises:
        DuetError: something in the report is no JSON value, or see `render`; nothing is written then.
    """
    return write_page(report, render(report, pictures), directory)


def write_page(report: Mapping, page: str, directory: str | Path) -> Path:
    """Write a page and the report that it was made of, as `write` does."""
    directory = Path(directory)
    data = json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if directory.exists() and not directory.is_dir():
        raise DuetError(f"report directory: {directory} is a file; it must be a directory or a new name")
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "report.json", data.encode())
    write_atomically(directory / "report.html", page.encode())
    return directory / "report.html"


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


_LADDER = (
    "Every comparison, from tables of coefficients up to whole training runs. A mark is the worst error of its kind "
    "as a fraction of the tolerance, on a log scale: left of the line passes."
)
_LOSS = "Two curves that agree look like one: TensorFlow is drawn as a thin line inside PyTorch's wide one."
_SHORT = {
    "ladder": "Ladder",
    "loss": "Loss",
    "samples": "Samples",
    "pictures": "Pictures",
    "quality": "Quality",
    "cost": "Cost",
    "runs": "Runs",
}


def _run_names(report: Mapping) -> tuple[dict[str, str], dict[str, str]]:
    """What each backend is called and the class it is drawn with."""
    named = {
        str(r["backend"]): str(r["label"]) for r in report.get("runs") or [] if r.get("backend") and r.get("label")
    }
    keys = list((report.get("loss") or {}).get("runs") or {})
    keys += [key for row in (report.get("cost") or {}).get("rows") or [] for key in row.get("values") or {}]
    names = {key: named.get(key, _NAMES.get(key, key)) for key in keys}
    return names, {key: _STYLES.get(key, "pair") for key in keys}


def command(text: object) -> str:
    """A command that can be copied."""
    return (
        f'<div class="command"><code>{escape(text)}</code>'
        '<button type="button" class="copy" aria-label="Copy the command" hidden>Copy</button></div>'
    )


def _origin(report: Mapping) -> str:
    facts = []
    if report.get("created"):
        facts.append(f"<span>{moment(report['created'])}</span>")
    if report.get("commit"):
        facts.append(f"<span>commit <code>{escape(report['commit'])}</code></span>")
    line = f'<p class="origin">{"".join(facts)}</p>' if facts else ""
    return line + (command(report["command"]) if report.get("command") else "")


def _headlines(report: Mapping) -> str:
    tiles = "".join(
        f'<div class="tile"><dt>{escape(tile.get("label"))}</dt><dd><b>{_text(tile.get("value"))}</b>'
        f"{element('span', 'tile-note', tile.get('note'))}</dd></div>"
        for tile in report.get("headlines") or []
    )
    columns = 4 if len(report.get("headlines") or []) in (4, 7, 8) else 3
    return f'<dl class="tiles" style="--columns:{columns}" aria-label="Headlines">{tiles}</dl>' if tiles else ""


def _text(value: object) -> str:
    return number(value) if real(value) is not None else escape(value)


def _shape(name: object, data: bytes) -> tuple[str, int, int]:
    """Format, width and height (0 and 0 where the format keeps them further inside) of a picture file."""
    kind = next((kind for head, kind in _KINDS.items() if data.startswith(head)), None)
    if kind == "png" and len(data) >= 24:
        return kind, *struct.unpack(">II", data[16:24])
    if kind == "gif" and len(data) >= 10:
        return kind, *struct.unpack("<HH", data[6:10])
    if kind == "jpeg":
        return kind, 0, 0
    raise DuetError(f"picture {name!r}: {data[:8]!r} begins what was given; it must be a whole PNG, GIF or JPEG file")


def picture(name: object, alt: str, pictures: Mapping[str, bytes], target: int) -> str:
    """A picture magnified by a whole factor to about `target` pixels, or narrower where the page is."""
    if name is None or str(name) not in pictures:
        return f'<span class="no-picture">{DASH} no picture</span>'
    data = bytes(pictures[str(name)])
    kind, width, height = _shape(name, data)
    box = ""
    if width and height:
        factor = max(1, target // width)
        box = f' width="{width * factor}" height="{height * factor}"' + (' class="pixels"' if width < target else "")
    return f'<img{box} alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _samples(report: Mapping, pictures: Mapping[str, bytes]) -> str:
    blocks = []
    for sample in report.get("samples") or []:
        cells = ""
        for key, label in (
            ("left", sample.get("left_label") or "left"),
            ("right", sample.get("right_label") or "right"),
            ("difference", "difference"),
        ):
            if key in sample:
                image = picture(sample[key], f"{sample.get('title')}: {label}", pictures, 360)
                cells += f'<div class="cell {key}">{image}<p>{escape(label)}</p></div>'
        blocks.append(
            f'<figure class="compare"><figcaption><h3>{escape(sample.get("title"))}</h3>'
            f'{element("p", "caption", sample.get("caption"))}</figcaption><div class="cells">{cells}</div></figure>'
        )
    return "".join(blocks)


def _pictures(report: Mapping, pictures: Mapping[str, bytes]) -> str:
    blocks = []
    for entry in report.get("pictures") or []:
        name = str(entry.get("picture"))
        _, width, height = _shape(name, bytes(pictures[name])) if name in pictures else ("", 0, 0)
        wide = " wide" if width > 2 * height else ""
        image = picture(name, str(entry.get("title") or "picture"), pictures, 1040 if wide else 420)
        blocks.append(
            f'<figure class="picture{wide}"><figcaption><h3>{escape(entry.get("title"))}</h3>'
            f"{element('p', 'caption', entry.get('caption'))}</figcaption>"
            f"{image}</figure>"
        )
    return f'<div class="gallery">{"".join(blocks)}</div>' if blocks else ""


def scroll(table: str, label: str) -> str:
    """A table that scrolls where the page is narrower."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _better(direction: object) -> str:
    arrow = {"higher": "↑ higher is better", "lower": "↓ lower is better"}.get(str(direction))
    return f'<span class="better">{arrow}</span>' if arrow else ""


def _interval(ends: object) -> str:
    if not isinstance(ends, Sequence):
        return ""
    low, high = (number(end) for end in ends)
    return f"<br><small>[{low}, {high}]</small>"


def _quality(report: Mapping) -> str:
    quality = report.get("quality") or {}
    rows, columns = quality.get("rows") or [], quality.get("columns") or []
    if not rows:
        # Without a table of its own, what the runs measured makes one.
        measured = [(run.get("label"), run["quality"]) for run in report.get("runs") or [] if run.get("quality")]
        columns = [label for label, _ in measured]
        names = dict.fromkeys(name for _, values in measured for name in values)
        rows = [{"name": name, "values": [values.get(name) for _, values in measured]} for name in names]
    if not rows:
        return ""
    head = "".join(f'<th scope="col" class="num">{escape(column)}</th>' for column in columns)
    lines = []
    for row in rows:
        show = percent if row.get("format") == "percent" else _text
        values, intervals = (list(row.get(key) or []) for key in ("values", "intervals"))
        values += [None] * (len(columns) - len(values))
        intervals += [None] * (len(columns) - len(intervals))
        cells = "".join(
            f'<td class="num">{show(value)}{_interval(interval)}</td>'
            for value, interval in zip(values, intervals, strict=False)
        )
        lines.append(f'<tr><th scope="row">{escape(row.get("name"))}{_better(row.get("better"))}</th>{cells}</tr>')
    table = (
        f'<table class="quality"><caption class="hidden">Quality of the samples</caption><thead><tr><th scope="col">'
        f"measure</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
    return scroll(table, "quality of the samples") + element("p", "note", quality.get("note"))


def _cost(report: Mapping, names: Mapping[str, str], styles: Mapping[str, str]) -> str:
    blocks = []
    for row in (report.get("cost") or {}).get("rows") or []:
        values = {key: real(value) for key, value in (row.get("values") or {}).items()}
        blocks.append(
            f'<div class="cost-row"><h3>{escape(row.get("name"))}{_better(row.get("better"))}</h3>'
            f"{bars(values, names, styles)}</div>"
        )
    return f'<div class="costs">{"".join(blocks)}</div>' if blocks else ""


_FACTS = (
    ("device", "device", escape),
    ("precision", "precision", escape),
    ("seed", "seed", escape),
    ("commit", "commit", escape),
    ("parameters", "parameters", number),
    ("images_seen", "images seen", number),
    ("images_per_second", "images per second", number),
    ("peak_memory_mib", "peak memory, MiB", number),
    ("wall_seconds", "wall time, s", number),
)


def _runs(report: Mapping) -> str:
    runs = report.get("runs") or []
    content = ""
    if runs:
        head = "".join(f'<th scope="col">{escape(run.get("label") or run.get("backend"))}</th>' for run in runs)
        rows = [
            (name, [show(run.get(key)) for run in runs])
            for key, name, show in _FACTS
            if any(run.get(key) is not None for run in runs)
        ]
        packages = dict.fromkeys(name for run in runs for name in run.get("versions") or {})
        rows += [
            (
                f"{name} version" if name == "python" else name,
                [escape((r.get("versions") or {}).get(name)) for r in runs],
            )
            for name in packages
        ]
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
            for name, cells in rows
        )
        table = (
            '<table class="facts"><caption class="hidden">Runs, devices and versions</caption><thead><tr>'
            f'<th scope="col"><span class="hidden">fact</span></th>{head}</tr></thead><tbody>{lines}</tbody></table>'
        )
        content += scroll(table, "runs, devices and versions")
        content += "".join(
            f"<h3>{escape(run.get('label') or run.get('backend'))}: command</h3>{command(run['command'])}"
            for run in runs
            if run.get("command")
        )
    environment = report.get("environment") or {}
    if environment:
        facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in environment.items())
        content += f'<h3>Machine</h3><dl class="environment">{facts}</dl>'
    return content

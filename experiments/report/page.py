"""The page that all reports share: title, navigation, header, sections, style sheet and script.

A page refers to nothing outside itself, and its content security policy forbids it: the policy allows the one script by
its hash, styles, and images held as data. Jinja escapes every value, so text from a report stays text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically

from . import text

__all__ = ["Section", "image_size", "render_page", "templates", "write_page"]

_IMAGE_TYPES = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        key: its anchor, and the name of the macro that draws it.
        heading: its title.
        data: the argument of the macro; a section whose data are empty is left out.
        lead: a sentence below the heading.
        short: its name in the navigation bar; the heading if empty.
    """

    key: str
    heading: str
    data: Any
    lead: str = ""
    short: str = ""


@functools.cache
def templates() -> Environment:
    """Return the templates of this package, with the filters that print values."""
    env = Environment(
        loader=PackageLoader(__package__), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    for function in (text.text, text.number, text.brief, text.percent, text.value, text.moment):
        env.filters[function.__name__] = function
    env.filters["base64"] = lambda data: base64.b64encode(data).decode()
    env.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    env.globals |= {"pluralize": pluralize, "embed": _embed, "image_size": image_size}
    return env


def render_page(
    template: str, title: str, header: Any, sections: Sequence[Section], *, mark: str = "", style: str = "unknown",
    colours: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Render a page.

    Args:
        template: a file of macros: `header`, called with `header`, and one for each section.
        title: the page's title.
        header: what stands below the title.
        sections: the sections in order.
        mark: the beginning of the title in the browser's tab.
        style: the class of the page: "agree", "differ" or "unknown".
        colours: CSS colours by the names of the custom properties that they set.
    """
    css, script = (files(__package__).joinpath("templates", name).read_text("utf-8") for name in _ASSETS)
    own = files(__package__).joinpath("templates", template.replace(".html", ".css"))  # rules that one page needs
    css += own.read_text("utf-8") if own.is_file() else ""
    page = templates().get_template("page.html").render(
        parts=templates().get_template(template).module, title=title, header=header, mark=mark, style=style,
        sections=[section for section in sections if section.data], colours=colours or {}, css=css, script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")


_ASSETS = ("style.css", "script.js")


def write_page(report: Mapping, page: str, directory: str | Path) -> Path:
    """Write a page as report.html and its report as report.json, each atomically; return the path of the page.

    The directory is created if it is missing. Numbers that are not finite become null in the JSON file.

    Raises:
        DuetError: a part of the report is not a JSON value, or `directory` is a file; nothing is written then.
    """
    directory = Path(directory)
    data = json.dumps(text.json_value(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if directory.exists() and not directory.is_dir():
        raise DuetError(f"report directory: {directory} is a file; it must be a directory or a new name")
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "report.json", data.encode())
    write_atomically(directory / "report.html", page.encode())
    return directory / "report.html"


def image_size(data: bytes, name: object = "image") -> tuple[str, int, int]:
    """Return the format, width and height of an image file; width and height of a JPEG are not read and are 0.

    Raises:
        DuetError: it is not a PNG, GIF or JPEG file.
    """
    kind = next((kind for head, kind in _IMAGE_TYPES.items() if data.startswith(head)), None)
    if kind == "png" and len(data) >= 24:
        return kind, *struct.unpack(">II", data[16:24])
    if kind == "gif" and len(data) >= 10:
        return kind, *struct.unpack("<HH", data[6:10])
    if kind == "jpeg":
        return kind, 0, 0
    raise DuetError(f"image {name!r}: the data begin with {data[:8]!r}; it must be a whole PNG, GIF or JPEG file")


def _embed(data: bytes, target: int) -> dict[str, Any]:
    """Return the attributes of an image magnified by a whole factor to about `target` pixels."""
    kind, width, height = image_size(data)
    factor = max(1, target // width) if width else 1
    return {
        "src": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "width": width * factor,
        "height": height * factor,
        "pixels": 0 < width < target,
    }

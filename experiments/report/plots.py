"""What the matplotlib figures of the pages share: one ink, and SVG that takes the colour and width of the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "STYLE", "encode", "inline"]

INK = "#1b2a38"  # in a page, it becomes the colour of the text
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "duet", "font.size": 9.5, "font.family": "sans-serif",
    "axes.edgecolor": INK, "axes.labelcolor": INK,
} | {f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid")}  # fmt: skip


def encode(figure: Figure, kind: str) -> bytes:
    """Return a figure as a ``"png"`` on white or an ``"svg"`` without background; equal figures give equal bytes."""
    buffer = io.BytesIO()
    svg = kind == "svg"
    figure.savefig(
        buffer, format=kind, dpi=170, metadata={"Date": None} if svg else {}, transparent=svg,
        facecolor="none" if svg else "white",
    )  # fmt: skip
    return buffer.getvalue()


def inline(svg: bytes) -> str:
    """Return a drawing for a page: as wide as the page, in its own proportions, and in the colour of its text."""
    text = svg.decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)

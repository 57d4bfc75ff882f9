"""The report page: one self-contained HTML file that shows whether two runs agree.

`render` turns a report, a dictionary of JSON values, and its pictures into the page; `write` puts the
page and the same report as JSON into a directory.
"""

from __future__ import annotations

from .page import render, write

__all__ = ["render", "write"]

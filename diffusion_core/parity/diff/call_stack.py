"""Where an operation of a recording comes from: the layer that called it and the line of the author's code.

The line is the innermost one outside the framework and Python's library. Some layers call others by themselves, so
there the line is the one that made the inner layer, which is remembered while the author's function runs.

It runs in the author's interpreter and needs Python alone.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["AUTHOR", "CallStack", "CodeLines", "Line", "plain"]

Line = tuple[str, str]
"""A line of code as ("file.py:31", its text)."""

AUTHOR, PACKAGE, LIBRARY = 0, 1, 2

_PYTHON = tuple({str(Path(sysconfig.get_paths()[key]).resolve()) for key in ("stdlib", "platstdlib")})
_PACKAGES = tuple({str(Path(sysconfig.get_paths()[key]).resolve()) for key in ("purelib", "platlib")})
_DUET = str(Path(__file__).resolve().parents[3])
_RECORDERS = (
    "backends/torch/recorder/", "backends/tf/recorder/", "experiments/model_diff/", "diffusion_core/parity/diff/",
    "duet/api/",
)  # fmt: skip


class CodeLines:
    """Which lines of code are an author's, and which of them made each layer.

    Args:
        framework: the packages whose code counts as the framework's.
    """

    def __init__(self, framework: Sequence[str]) -> None:
        self.framework = frozenset(framework)
        self._ranks: dict[str, int] = {}
        self._made: weakref.WeakKeyDictionary[Any, Line] = weakref.WeakKeyDictionary()

    def rank(self, filename: str) -> int:
        """Return whether a file is the author's, of some package, or of Python and the framework."""
        if filename not in self._ranks:
            self._ranks[filename] = self._new_rank(filename)
        return self._ranks[filename]

    def _new_rank(self, filename: str) -> int:
        if filename.startswith("<") and not filename.startswith("<ipython"):
            return LIBRARY
        path = str(Path(filename).resolve())
        for folder in _PACKAGES:
            if path.startswith(folder + "/"):
                return LIBRARY if path[len(folder) + 1 :].split("/")[0] in self.framework else PACKAGE
        if path.startswith(tuple(folder + "/" for folder in _PYTHON)):
            return LIBRARY
        inner = path.removeprefix(_DUET + "/")
        return LIBRARY if inner != path and inner.startswith(_RECORDERS) else AUTHOR

    def remember(
        self, layer: Any, frame: FrameType | None, is_inside: Callable[[FrameType], bool] = lambda frame: False
    ) -> None:
        """Remember the innermost line of the author, from this frame outwards, that is not `is_inside` the layer."""
        while frame is not None:
            if not is_inside(frame) and self.rank(frame.f_code.co_filename) == AUTHOR:
                self._made[layer] = line_of(frame)
                return
            frame = frame.f_back

    def made(self, layer: Any) -> Line | None:
        """Return the line that made a layer, if it is known."""
        try:
            return self._made.get(layer)
        except TypeError:  # an object without weak references
            return None


def line_of(frame: FrameType) -> Line:
    """Return the line that a frame executes."""
    filename, number = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(filename).name}:{number}", linecache.getline(filename, number, frame.f_globals).strip()


def plain(value: Any, name: Callable[[Any], str | None] | None = None, depth: int = 0) -> Any:
    """Return a value if it is made of numbers, texts, lists and dicts only; None otherwise.

    `name` returns the text that stands for a value of another type, as for a number type of a framework, or None.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if name is not None and (text := name(value)) is not None:
        return text
    if isinstance(value, (list, tuple)) and depth < 3:
        items = [plain(item, name, depth + 1) for item in value]
        return items if all(new is not None or old is None for new, old in zip(items, value, strict=True)) else None
    return None


class CallStack:
    """The layers that are being called, outermost first.

    A subclass sets `lines` and may override `calls_by_itself`.

    Attributes:
        entered: called with (layer, path, its arguments) when a call begins, and returns what `left` is called with.
        left: called with that and the layer's result when a call ends.
    """

    lines: CodeLines

    def __init__(self, entered: Callable[[Any, str, Any], Any], left: Callable[[Any, Any], None]) -> None:
        self.entered, self.left = entered, left
        self.layers: list[Any] = []
        self.paths: list[str] = []
        self.frames: list[FrameType] = []

    @staticmethod
    def calls_by_itself(layer: Any) -> bool:
        """Return whether the framework, not an author, calls the layers within a layer."""
        raise NotImplementedError

    @property
    def path(self) -> str:
        """The path of the innermost layer."""
        return self.paths[-1] if self.paths else ""

    def call(self, function: Callable, layer: Any, path: str, args: tuple, kwargs: dict) -> Any:
        """Call a layer and remember that its operations are its own."""
        self.layers.append(layer)
        self.paths.append(path)
        self.frames.append(sys._getframe())
        ticket = self.entered(layer, path, (args, kwargs))
        try:
            result = function(layer, *args, **kwargs)
        finally:
            self.layers.pop()
            self.paths.pop()
            self.frames.pop()
        self.left(ticket, result)
        return result

    def line(self, bound: FrameType) -> Line:
        """Return the author's line for the operation that runs now, called below this frame."""
        frame: FrameType | None = sys._getframe(1)
        depth, package, made = len(self.frames) - 1, None, self.lines.made
        while frame is not None and frame is not bound:
            if depth >= 0 and frame is self.frames[depth]:
                layer, parent = self.layers[depth], self.layers[depth - 1] if depth else None
                if self.calls_by_itself(parent) and (line := made(layer)):
                    return line
                depth -= 1
            rank = self.lines.rank(frame.f_code.co_filename)
            if rank == AUTHOR:
                return line_of(frame)
            if rank == PACKAGE and package is None:
                package = line_of(frame)
            frame = frame.f_back
        return package or next((line for layer in reversed(self.layers) if (line := made(layer))), ("", ""))

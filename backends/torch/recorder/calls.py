"""Where an operation of a recording comes from: the module that called it and the line of the author's code.

The line is the innermost one outside PyTorch and Python's library. An `nn.Sequential` calls its modules by itself, so
there the line is the one that made the module; `remember_lines` notes it while the author's function runs.
"""

from __future__ import annotations

import inspect
import linecache
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

__all__ = ["CallStack", "Line", "options_of", "plain", "remember_lines", "watch_calls"]

Line = tuple[str, str]
"""A line of code as ("file.py:31", its text)."""

_MADE: weakref.WeakKeyDictionary[Any, Line] = weakref.WeakKeyDictionary()

_PYTHON = tuple({str(Path(sysconfig.get_paths()[key]).resolve()) for key in ("stdlib", "platstdlib")})
_PACKAGES = tuple({str(Path(sysconfig.get_paths()[key]).resolve()) for key in ("purelib", "platlib")})
_FRAMEWORK = ("torch", "functorch", "torchgen", "numpy", "einops", "IPython", "ipykernel", "jaxtyping", "beartype")
_DUET = str(Path(__file__).resolve().parents[3])
_RECORDERS = ("backends/torch/recorde", "experiments/model_diff/", "diffusion_core/parity/diff/", "duet/api/")
_RANKS: dict[str, int] = {}

AUTHOR, PACKAGE, LIBRARY = 0, 1, 2


def _rank(filename: str) -> int:
    """Return whether a file is the author's, of some package, or of Python and the framework."""
    if filename not in _RANKS:
        _RANKS[filename] = _new_rank(filename)
    return _RANKS[filename]


def _new_rank(filename: str) -> int:
    if filename.startswith("<") and not filename.startswith("<ipython"):
        return LIBRARY
    path = str(Path(filename).resolve())
    for folder in _PACKAGES:
        if path.startswith(folder + "/"):
            return LIBRARY if path[len(folder) + 1 :].split("/")[0] in _FRAMEWORK else PACKAGE
    if path.startswith(tuple(folder + "/" for folder in _PYTHON)):
        return LIBRARY
    inner = path.removeprefix(_DUET + "/")
    return LIBRARY if inner != path and inner.startswith(_RECORDERS) else AUTHOR


def _line(frame: FrameType) -> Line:
    filename, number = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(filename).name}:{number}", linecache.getline(filename, number, frame.f_globals).strip()


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value if it is made of numbers, texts, lists and dicts only; None otherwise."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)) and depth < 3:
        items = [plain(item, depth + 1) for item in value]
        return items if all(new is not None or old is None for new, old in zip(items, value, strict=True)) else None
    return None


_NOT_OPTIONS = ("training", "call_super_init", "dump_patches", "T_destination")


def options_of(module: Any) -> dict[str, Any]:
    """Return the hyper-parameters of a module: its attributes that are plain values, and functions by their names."""
    options = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in _NOT_OPTIONS:
            continue
        if callable(value) and getattr(value, "__name__", None):
            options[name] = value.__name__
        elif (found := plain(value)) is not None or value is None:
            options[name] = found
    return options


@contextmanager
def remember_lines() -> Iterator[None]:
    """Remember, for each module that is made, the author's line that made it."""
    before = nn.Module.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            # The constructors of the module's own classes call each other.
            inside = frame.f_code.co_name == "__init__" and next(iter(frame.f_locals.values()), None) is self
            if not inside and _rank(frame.f_code.co_filename) == AUTHOR:
                _MADE[self] = _line(frame)
                break
            frame = frame.f_back

    nn.Module.__init__ = made
    try:
        yield
    finally:
        nn.Module.__init__ = before


class CallStack:
    """The modules that are being called, outermost first.

    Attributes:
        entered: called with (module, path, its arguments) when a call begins, and returns what `left` is called with.
        left: called with that and the module's result when a call ends.
    """

    def __init__(self, entered: Callable[[Any, str, Any], Any], left: Callable[[Any, Any], None]) -> None:
        self.entered, self.left = entered, left
        self.layers: list[Any] = []
        self.paths: list[str] = []
        self.frames: list[FrameType] = []

    @property
    def path(self) -> str:
        """The path of the innermost module."""
        return self.paths[-1] if self.paths else ""

    def call(self, function: Callable, layer: Any, path: str, args: tuple, kwargs: dict) -> Any:
        """Call a module and remember that its operations are its own."""
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
        depth, package = len(self.frames) - 1, None
        while frame is not None and frame is not bound:
            if depth >= 0 and frame is self.frames[depth]:
                layer, parent = self.layers[depth], self.layers[depth - 1] if depth else None
                if isinstance(parent, nn.Sequential) and (made := _MADE.get(layer)):
                    return made
                depth -= 1
            rank = _rank(frame.f_code.co_filename)
            if rank == AUTHOR:
                return _line(frame)
            if rank == PACKAGE and package is None:
                package = _line(frame)
            frame = frame.f_back
        return package or next((made for layer in reversed(self.layers) if (made := _MADE.get(layer))), ("", ""))

    def function(self) -> str:
        """Return the name of the innermost `torch.autograd.Function` whose forward pass runs now, or ""."""
        frame: FrameType | None = sys._getframe(1)
        forward: dict[Any, str] | None = None
        while frame is not None:
            if frame.f_code.co_name == "forward":
                forward = forward if forward is not None else _forward_passes(torch.autograd.Function)
                if frame.f_code in forward:
                    return forward[frame.f_code]
            frame = frame.f_back
        return ""


def _forward_passes(function: type) -> dict[Any, str]:
    """Return the names of the classes that derive from `torch.autograd.Function`, by the code of their forward pass."""
    found = {}
    for each in function.__subclasses__():
        code = getattr(inspect.unwrap(each.forward), "__code__", None)
        found |= _forward_passes(each) | ({code: each.__name__} if code is not None else {})
    return found


@contextmanager
def watch_calls(stack: CallStack, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Follow the calls of modules; those that are given by path, and what they hold, have that path."""
    paths: dict[int, str] = {}
    for prefix, module in modules.items():
        for name, child in module.named_modules():
            paths.setdefault(id(child), ".".join(part for part in (prefix, name) if part))
    before = nn.Module.__call__

    def __call__(module: Any, *args: Any, **kwargs: Any) -> Any:
        path = paths.get(id(module))
        if path is None:
            path = ".".join(part for part in (stack.path, type(module).__name__) if part)
        return stack.call(before, module, path, args, kwargs)

    nn.Module.__call__ = __call__
    try:
        yield
    finally:
        nn.Module.__call__ = before

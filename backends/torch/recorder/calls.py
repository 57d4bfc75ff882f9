"""Where an operation of a recording comes from: the module that called it and the line of the author's code.

The line is the innermost one outside PyTorch and Python's library. An `nn.Sequential` calls its modules by itself, so
there the line is the one that made the module; `remember_lines` notes it while the author's function runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from diffusion_core.parity.diff import call_stack
from diffusion_core.parity.diff.call_stack import CodeLines

__all__ = ["CallStack", "options_of", "plain", "remember_lines", "watch_calls"]

LINES = CodeLines(
    ("torch", "functorch", "torchgen", "numpy", "einops", "IPython", "ipykernel", "jaxtyping", "beartype")
)


def plain(value: Any) -> Any:
    """See `call_stack.plain`; number types and devices have their names."""

    def name(value: Any) -> str | None:
        return str(value).removeprefix("torch.") if isinstance(value, (torch.dtype, torch.device)) else None

    return call_stack.plain(value, name)


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

        def is_inside(frame: FrameType) -> bool:  # the constructors of the module's own classes call each other
            return frame.f_code.co_name == "__init__" and next(iter(frame.f_locals.values()), None) is self

        LINES.remember(self, sys._getframe(1), is_inside)

    nn.Module.__init__ = made
    try:
        yield
    finally:
        nn.Module.__init__ = before


class CallStack(call_stack.CallStack):
    """The modules that are being called, outermost first."""

    lines = LINES

    @staticmethod
    def calls_by_itself(layer: Any) -> bool:
        """Return whether PyTorch, not an author, calls the modules within a module."""
        return isinstance(layer, nn.Sequential)

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

"""The first call of a compiled or traced function: it takes long, so it says so, and it can fail.

A framework compiles when a function is called for the first time. `FirstCall` prints that this happens, as long as it
takes, and turns an error of the compiler into one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime.heartbeat import EVERY_SECONDS, heartbeat

__all__ = ["FirstCall", "compile_error"]

_announced: set[str] = set()


def compile_error(reason: str) -> DuetError:
    """Return the error for `backend.compile=true` where nothing can be compiled."""
    return DuetError(f"backend.compile: true was given, but {reason}; or set backend.compile=false")


class FirstCall:
    """A function whose first call is announced; its attributes are those of the function.

    Args:
        function: what is called.
        compiler: the compiler that the first call runs, as in "XLA"; None if it only traces the function, which is
            announced if it takes long.
        explain: returns why the compiler failed, given an exception, or None for an exception of another kind.
    """

    def __init__(
        self, function: Callable[..., Any], compiler: str | None, explain: Callable[[Exception], str | None]
    ) -> None:
        self.function, self.compiler, self.explain, self.is_called = function, compiler, explain, False

    def __getattr__(self, name: str) -> Any:
        if name == "function":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.function, name)

    def __call__(self, *inputs: Any) -> Any:
        """Call the function."""
        if self.is_called:
            return self.function(*inputs)
        work = f"compiling with {self.compiler}" if self.compiler else "tracing the network"
        is_new = self.compiler is not None and work not in _announced
        _announced.add(work)
        with heartbeat(work, at_once=is_new, every=EVERY_SECONDS):
            try:
                output = self.function(*inputs)
            except Exception as error:
                if self.compiler is None or (reason := self.explain(error)) is None:
                    raise
                raise compile_error(f"{self.compiler} failed ({reason})") from error
        self.is_called = True
        return output

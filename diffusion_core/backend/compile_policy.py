"""When to compile: the rule behind ``compile: auto``.

Compiling takes seconds to minutes once and saves a little time in every network call, so it pays off in long runs
only. The limit is a number of network calls per backend and device, ``backend.compile_after`` in
``configs/backend``; docs/speed.md says how it was chosen. Nothing is measured when a run begins: the same
configuration gives the same choice on any machine.
"""

from __future__ import annotations

from diffusion_core.common.errors import one_of

__all__ = ["AUTO", "should_compile"]

AUTO = "auto"


def should_compile(requested: bool | str, calls: int, compile_after: int | None, resumed: bool | None = None) -> bool:
    """Return whether to compile the functions of a run.

    Args:
        requested: ``backend.compile``; True and False are obeyed, ``"auto"`` applies the rule.
        calls: planned network calls: training steps, or plan rows times batches.
        compile_after: the number of calls beyond which ``"auto"`` compiles; None means never.
        resumed: whether the resumed run was compiled, None for a new run. ``"auto"`` keeps that choice: compiled
            functions differ in the last bits, and an interrupted run must end like an uninterrupted one.

    Raises:
        DuetError: if `requested` is anything else.
    """
    if isinstance(requested, bool):
        return requested
    if requested != AUTO:
        raise one_of("backend.compile", str(requested), (AUTO, "true", "false"))
    if resumed is not None:
        return resumed
    return compile_after is not None and calls > compile_after

"""Which time a line or a layer runs, where it runs several times: in a loop, or a block that is shared.

Operations of a pass are in the order in which they ran, and so are the numbers of their values. A layer that is called
several times says which call it is; a line that runs several times, which time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from diffusion_core.parity.diff.recording import Operation, Pass

__all__ = ["time_of"]


def time_of(record: Pass, operation: Operation, simple: Sequence[Operation], index: int) -> str:
    """Return which call of its layer, or which run of its line, an operation belongs to, as "call 2 of 3", or "".

    Args:
        record: the pass.
        operation: a simple operation.
        simple: all simple operations in order, of which one recorded operation may have several.
        index: its place among them.
    """
    number = _recorded(record, operation, simple, index)
    if number is None:
        return ""
    if operation.layer:
        calls = [layer.outputs for layer in record.layers if layer.path == operation.layer]
        if len(calls) > 1 and all(calls):
            before = sum(max(outputs) < number for outputs in calls)
            return f"call {before + 1} of {len(calls)}" if before < len(calls) else ""
    if not operation.source:
        return ""
    # Each time that the code comes back to the line. Where a loop is one line, each time that the same operation runs.
    place = (operation.layer, operation.source)
    runs = [
        list(run) for key, run in groupby(record.operations, lambda each: (each.layer, each.source)) if key == place
    ]
    if len(runs) == 1 and not operation.layer:
        runs = [[each] for each in runs[0] if each.native == operation.native]
    at = next((i for i, run in enumerate(runs) if any(number in each.outputs for each in run)), None)
    return f"time {at + 1} of {len(runs)}" if at is not None and len(runs) > 1 else ""


def _recorded(record: Pass, operation: Operation, simple: Sequence[Operation], index: int) -> int | None:
    """Return the recorded value that an operation makes, or that the fused operation makes which it belongs to."""
    made = {n for each in record.operations for n in each.outputs}
    for each in simple[index:]:
        if (each.source, each.native, each.layer) != (operation.source, operation.native, operation.layer):
            return None
        found = next((n for n in each.outputs if n in made), None)
        if found is not None:
            return found
    return None

"""The pairs of features that a rotary position turns: neighbours (0, 1), (2, 3) or halves (0, n/2), (1, n/2 + 1) ...

One is the other with the features in another order, before and after:  halves(x) = P' neighbours(P x).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.view import View, view

_HALVES, _NEIGHBOURS = "halves of the features are turned", "neighbouring features are turned"
_MOST = 8


@cause(
    "rotary_order",
    "the pairs of features that a rotary position turns",
    "rotate_half pairs feature i with i + n / 2, as LLaMA does; complex numbers and GPT-J pair 2 i with 2 i + 1",
)
def rotary_order(suspect: Suspect) -> Iterator[Change]:
    """Put the features in the other order before a rotation, and back behind it."""
    here = view(suspect)
    for source, neighbours in _rotated(here):
        x = here.value(source)
        if x is None or x.shape[-1] % 2:
            continue
        turn = np.arange(x.shape[-1]).reshape(2, -1).T.reshape(-1)
        before, behind = (turn, np.argsort(turn)) if neighbours else (np.argsort(turn), turn)
        words = (_NEIGHBOURS, _HALVES) if neighbours else (_HALVES, _NEIGHBOURS)
        same = [i for i in here.after([source]) if (y := here.output(i)) is not None and y.shape == x.shape]
        for i in same[:_MOST]:
            if here.graph.operations[i].kind in ("add", "concat", "reshape"):

                def compute(
                    read: Read, i: int = i, source: int = source, orders: tuple[NDArray, NDArray] = (before, behind)
                ) -> tuple:
                    (y,) = here.rerun(read, {source: read(source)[..., orders[0]]}, i)
                    return (y[..., orders[1]],)

                yield Change("rotary_order", i, compute, *words)


def _rotated(here: View) -> Iterator[tuple[int, bool]]:
    """Return the values whose last axis is cut in two, and whether into neighbours."""
    found: dict[int, bool] = {}
    for _, operation in here.operations:
        if operation.kind not in ("split", "slice") or not operation.inputs:
            continue
        x = here.value(operation.inputs[0])
        if x is None or x.dtype.kind != "f" or x.ndim < 2:
            continue
        if operation.kind == "split":
            if operation.attributes["axis"] == x.ndim - 1 and len(operation.outputs) == 2:
                found.setdefault(operation.inputs[0], False)
        elif operation.attributes["step"][-1] == 2:
            found.setdefault(operation.inputs[0], True)
        elif here.value(operation.outputs[0]).shape[-1] * 2 == x.shape[-1]:
            found.setdefault(operation.inputs[0], False)
    return iter(found.items())

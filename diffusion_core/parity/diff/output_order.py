"""Outputs that hold the same numbers in another order.

Inside a model the order of axes is a matter of its layout, and so it is for an image that leaves it: channels first or
last. An output of the same shape whose numbers stand elsewhere, for lack of a transposition before the last reshape, is
a difference although every value is found.
"""

from __future__ import annotations

from collections.abc import Iterable

from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.graph import Graph, relative
from diffusion_core.parity.diff.layouts import Layout, find_layout, without_ones
from diffusion_core.parity.diff.walk import Walk

__all__ = ["KIND", "order_findings"]

KIND = "output_order"
_TITLE = "the order of the numbers in an output"
_ADVICE = "transpose before the last reshape in the same way on both sides"


def order_findings(walk: Walk, outputs: Iterable[tuple[int, int]], mode: str) -> list[Finding]:
    """Return a finding for each output of B that has A's numbers in an order that is no usual layout."""
    findings = []
    for there, here in outputs:
        if here not in walk.values or here in walk.given:
            continue
        theirs, mine = walk.a.values[there], walk.values[here]
        if theirs.size != mine.size or without_ones(theirs.shape) != without_ones(mine.shape):
            continue
        layout = find_layout(theirs, mine, walk.tolerance(here))
        if layout is None or _usual(layout):
            continue
        error = relative(mine, theirs.reshape(mine.shape).astype(mine.dtype, copy=False))
        places = (_place(walk.a, there), _place(walk.b, here))
        does = ("the output has one order", f"the output has the same numbers, {layout.describe()}")
        findings.append(Finding(mode, KIND, "verified", _TITLE, *places, *does, error, 0.0, _ADVICE))
    return findings


def _usual(layout: Layout) -> bool:
    """Return whether an output of the same shape has the same order, or its channels or its batch at another axis."""
    order = layout.permutation
    if layout.identity or layout.a_repeated or layout.b_repeated or layout.in_order:
        return True
    if order is None or len(order) < 3:
        return False
    axes = list(range(len(order)))
    channels_last, channels_first = [0, *axes[2:], 1], [0, axes[-1], *axes[1:-1]]
    return list(order) in (channels_last, channels_first, [1, 0, *axes[2:]])


def _place(graph: Graph, number: int) -> Place:
    return graph.place(graph.producer[number]) if number in graph.producer else Place()

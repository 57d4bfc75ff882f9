"""Which call of a layer, or which run of a line, an operation belongs to."""

from __future__ import annotations

import numpy as np

from diffusion_core.parity.diff.graph import to_graph
from diffusion_core.parity.diff.recording import Layer, Operation, Pass

X = np.random.default_rng(0).normal(size=(3, 4))


def record(rows: list[tuple[str, str, str]], layers: tuple[Layer, ...] = ()) -> Pass:
    """A chain of operations: (kind, layer, line)."""
    operations = [
        Operation(kind, (i,), (i + 1,), {"axis": -1} if kind == "softmax" else {}, kind, layer, f"net.py:{line}")
        for i, (kind, layer, line) in enumerate(rows)
    ]
    values = dict.fromkeys(range(len(rows) + 1), X)
    return Pass("float64", tuple(operations), values, (0,), {"0": len(rows)}, layers=layers)


def times(made: Pass, kind: str) -> list[str]:
    graph = to_graph(made)
    return [graph.place(i).time for i, operation in enumerate(graph.operations) if operation.kind == kind]


def test_a_line_in_a_loop_says_which_time_it_runs() -> None:
    loop = [("tanh", "", "5"), ("sigmoid", "", "6")] * 3
    assert times(record(loop), "sigmoid") == ["time 1 of 3", "time 2 of 3", "time 3 of 3"]
    alone = [("tanh", "", "5")] * 2
    assert times(record(alone), "tanh") == ["time 1 of 2", "time 2 of 2"]


def test_a_line_that_runs_once_says_nothing() -> None:
    assert times(record([("tanh", "", "5"), ("exp", "", "5"), ("sigmoid", "", "6")]), "tanh") == [""]
    assert times(record([("tanh", "a", "5"), ("tanh", "b", "5")]), "tanh") == ["", ""]


def test_a_layer_that_is_called_several_times_says_which_call_it_is() -> None:
    rows = [("tanh", "block", "5"), ("sigmoid", "block", "6")] * 2
    calls = tuple(Layer("block", "Block", {}, (n,), (n + 2,)) for n in (0, 2))
    assert times(record(rows, calls), "sigmoid") == ["call 1 of 2", "call 2 of 2"]
    graph = to_graph(record(rows, calls))
    assert graph.place(0, timed=False).time == ""

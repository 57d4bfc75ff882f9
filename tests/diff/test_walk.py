"""B on A's values: what is run, and how often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from written import Tape, both

from diffusion_core.parity.diff.comparison import compare
from diffusion_core.parity.diff.exits import Exit
from diffusion_core.parity.diff.graph import Graph, deviation_of, relative, to_graph
from diffusion_core.parity.diff.recording import Operation, Recording
from diffusion_core.parity.diff.walk import Walk


def model(tape: Tape) -> int:
    x = tape.input(np.random.default_rng(0).normal(size=(3, 4)))
    left = tape("tanh", tape("multiply", x, scalar=tape.get("factor", 2.0)))
    right = tape("exp", tape("sin", x))
    return tape("add", tape("square", left), right)


def walk_of(a: dict, b: dict, monkeypatch: pytest.MonkeyPatch) -> tuple[Walk, list[str]]:
    """Return a walk, and the list of the kinds of the operations of B that it runs from now on."""
    graphs = [to_graph(record) for record in both(model, a, b)]
    walk, ran = Walk(*graphs, {}), []
    evaluate = Graph.evaluate

    def counted(graph: Graph, index: int, inputs: list) -> tuple:
        ran.append(graph.operations[index].kind)
        return evaluate(graph, index, inputs)

    monkeypatch.setattr(Graph, "evaluate", counted)
    return walk, ran


def number_of(graph: Graph, kind: str) -> int:
    return next(o.outputs[0] for o in graph.operations if o.kind == kind)


def test_only_what_follows_from_a_change_is_run_again(monkeypatch):
    walk, ran = walk_of({}, {"factor": 3.0}, monkeypatch)
    a, b = number_of(walk.a, "tanh"), number_of(walk.b, "tanh")
    assert not walk.found(number_of(walk.b, "add"))
    walk.give([Exit(a, b, lambda array: array)])
    assert walk.found(number_of(walk.b, "add"))
    assert not {"sin", "exp", "multiply"} & set(ran)
    assert "square" in ran and "add" in ran


def test_numbers_that_were_found_already_change_nothing(monkeypatch):
    walk, ran = walk_of({}, {}, monkeypatch)
    a, b = number_of(walk.a, "tanh"), number_of(walk.b, "tanh")
    walk.give([Exit(a, b, lambda array: array)])
    assert not {"square", "add"} & set(ran)


def test_the_error_of_a_result_is_measured_at_the_operation_that_makes_it():
    tape = Tape()
    x = tape.input(np.linspace(1, 2, 5))
    y = tape("multiply", x, scalar=2.0)
    z = tape("square", y)
    values = {**tape.values, y: tape.values[y] * (1 + 1e-7)}
    values[z] = values[y] ** 2
    graph = to_graph(replace(tape.record(z), values=values))
    assert graph.deviation[0] == pytest.approx(1e-7, rel=1e-3) and graph.deviation[1] < 1e-15


def test_the_largest_difference_counts_relative_to_the_largest_number():
    assert relative(np.array([1.0, 5.0]), np.array([2.0, 4.0])) == 0.25
    assert relative(np.zeros(2), np.zeros(2)) == 0.0 and relative(np.ones(2), np.zeros(2)) == np.inf
    assert relative(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0.0
    assert relative(np.array([1.0, 2.0]), np.array([1.0, np.nan])) == np.inf
    assert relative(np.array([np.inf, 1.0]), np.array([np.inf, 2.0])) == 0.5
    assert relative(np.array([np.inf]), np.array([-np.inf])) == np.inf
    operation = Operation("split", (1,), (2, 3))
    assert deviation_of(operation, (np.ones(1), np.ones(1)), {3: np.full(1, 2.0)}) == 0.5


def test_a_constant_set_to_the_other_sides_is_no_cause_by_itself():
    def embed(tape: Tape) -> int:
        t = tape.input(np.array([[3.0], [700.0]]))
        if tape.get("table"):
            frequency = tape.constant(np.exp(-np.arange(16) * np.log(1e4) / 16))
        else:
            frequency = tape("exp", tape("multiply", tape.constant(np.arange(16.0)), scalar=-np.log(1e4) / 16))
        angle = tape("multiply", t, frequency)
        parts = [tape("sin", angle), tape("cos", angle)]
        return tape.linear(tape("concat", *(parts[::-1] if tape.get("table") else parts), axis=-1), "dense", 8)

    a, b = both(embed, {}, {"table": True})
    (finding,) = compare(*(Recording(name, name, {"float64": each}) for name, each in (("a", a), ("b", b)))).findings
    assert (finding.kind, finding.status) == ("time_embedding_order", "verified")

"""What follows from a value of a graph, what it comes from, and where a parameter is used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from diffusion_core.parity.diff.graph import Graph

__all__ = ["needed_by", "of_parameters", "open_values", "reached", "uses"]

_MEMORY = ("transpose", "reshape", "cast", "identity", "expand", "stop_gradient", "split", "slice", "unstack", "flip")


def open_values(graph: Graph, found: Callable[[int], bool], outputs: Collection[int]) -> set[int]:
    """Return the values that are not found, with a way to an output on which nothing is found."""
    still: set[int] = set()
    for i in reversed(range(len(graph.operations))):
        for number in graph.operations[i].outputs:
            follows = any(n in still for j in graph.consumers.get(number, ()) for n in graph.operations[j].outputs)
            if (number in outputs or follows) and not found(number):
                still.add(number)
    return still


def reached(graph: Graph, numbers: Iterable[int], until: Callable[[int], bool] = lambda number: False) -> set[int]:
    """Return the operations that follow from some values, not going on from values for which `until` holds."""
    todo, operations = list(numbers), set()
    while todo:
        for i in graph.consumers.get(todo.pop(), ()):
            if i not in operations:
                operations.add(i)
                todo.extend(n for n in graph.operations[i].outputs if not until(n))
    return operations


def needed_by(graph: Graph, numbers: Iterable[int], wanted: Callable[[int], bool]) -> set[int]:
    """Return the operations that some values come from, as far as their results are wanted."""
    todo, operations = [n for n in numbers if n in graph.producer], set()
    while todo:
        i = graph.producer[todo.pop()]
        if i not in operations:
            operations.add(i)
            todo.extend(n for n in graph.operations[i].inputs if n in graph.producer and wanted(n))
    return operations


def uses(graph: Graph, number: int) -> list[tuple[int, int]]:
    """Return (operation, value that it reads) for each operation that computes with a parameter, in order.

    Operations that only move numbers or convert them, as the transposition of a matrix, are looked through.
    """
    found, todo, seen = [], [number], set()
    while todo:
        current = todo.pop()
        for i in graph.consumers.get(current, ()):
            operation = graph.operations[i]
            if operation.kind in _MEMORY and all(is_memory(graph, n, number) for n in operation.inputs):
                new = [n for n in operation.outputs if n not in seen]
                seen.update(new)
                todo.extend(new)
            else:
                found.append((i, current))
    return sorted(found)


def is_memory(graph: Graph, value: int, parameter: int) -> bool:
    """Return whether a value is a parameter in another layout."""
    while value in graph.producer and value != parameter:
        operation = graph.operations[graph.producer[value]]
        if operation.kind not in _MEMORY or not operation.inputs:
            return False
        value = operation.inputs[0]
    return value == parameter


def of_parameters(graph: Graph, number: int) -> bool:
    """Return whether a value is a parameter or buffer, in whatever layout."""
    while number in graph.producer:
        operation = graph.operations[graph.producer[number]]
        if operation.kind not in _MEMORY or not operation.inputs:
            return False
        number = operation.inputs[0]
    return number in graph.names

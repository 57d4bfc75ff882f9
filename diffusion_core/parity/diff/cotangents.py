"""Cotangents of values: as a framework recorded them, or as they follow from what reads the value.

The cotangent of x is the sum of what its readers send back, J_r^T dL/dy_r over all readers r. Frameworks have none of a
view, nor inside of a function with its own gradient.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.graph import Graph
from diffusion_core.parity.diff.vocabulary import LAYOUT_KINDS

__all__ = ["backward", "flowing", "is_recorded", "recorded_gradient", "terms"]

# So many values are looked through for the beginning of a function with its own gradient.
_INSIDE = 24


def recorded_gradient(graph: Graph, number: int) -> NDArray:
    """Return a gradient; a missing one is zero."""
    found = graph.record.gradients.get(number)
    return np.zeros(np.shape(graph.values[number])) if found is None else np.asarray(found, np.float64)


def flowing(graph: Graph, number: int) -> NDArray | None:
    """Return the cotangent of a value, zero if there is none.

    Inside of a function with its own gradient (torch.autograd.Function, tf.custom_gradient: TensorFlow's SiLU is one) a
    framework has no cotangents, although the gradient flows on; there it follows from the readers, or is unknown.
    """
    if number in graph.record.gradients:
        return recorded_gradient(graph, number)
    todo, seen = [number], {number}
    while todo:
        producer = graph.producer.get(todo.pop())
        if producer is None or graph.operations[producer].kind == "stop_gradient":
            continue
        for n in graph.operations[producer].inputs:
            if n in graph.record.gradients and n not in graph.names:
                return backward(graph, number, {})
            if n not in seen and len(seen) < _INSIDE:
                seen.add(n)
                todo.append(n)
    return recorded_gradient(graph, number)


def is_recorded(graph: Graph, number: int) -> bool:
    """Return whether a framework made a value, so that it could have a gradient; others come from lowering."""
    return number in graph.record.values


def backward(graph: Graph, number: int, known: dict[int, NDArray | None]) -> NDArray | None:
    """Return the cotangent of a value by what reads it, from recorded ones; None if it is unknown."""
    total = np.zeros(np.shape(graph.values[number]))
    for i in graph.consumers.get(number, ()):
        operation = graph.operations[i]
        if operation.kind == "stop_gradient":
            continue
        cotangents = []
        for n in operation.outputs:
            if n not in known:
                known[n] = None
                recorded = graph.record.gradients.get(n)
                known[n] = backward(graph, n, known) if recorded is None else np.asarray(recorded, np.float64)
            cotangents.append(known[n])
        if i in graph.opaque or any(g is None for g in cotangents):
            return None
        values = [graph.values[n] for n in operation.inputs], [graph.values[n] for n in operation.outputs]
        sent = rules.vjp(operation, *values, [g for g in cotangents if g is not None])
        if sent is None:
            return None
        total = total + sum(g for n, g in zip(operation.inputs, sent, strict=True) if n == number and g is not None)
    return total


def terms(graph: Graph, number: int) -> dict[int, NDArray]:
    """Return what each reader of a value sends back to it, by the reader's index."""
    found: dict[int, NDArray] = {}
    for i in graph.consumers.get(number, ()):
        operation = graph.operations[i]
        cotangents = [_cotangent(graph, n) for n in operation.outputs]
        if operation.kind == "stop_gradient" or any(g is None for g in cotangents):
            continue
        inputs = [graph.values[n] for n in operation.inputs]
        outputs = [graph.values[n] for n in operation.outputs]
        sent = rules.vjp(operation, inputs, outputs, [g for g in cotangents if g is not None])
        if sent is None:
            continue
        total = [g for n, g in zip(operation.inputs, sent, strict=True) if n == number and g is not None]
        if total:
            found[i] = np.asarray(sum(total))
    return found


def _cotangent(graph: Graph, number: int) -> NDArray | None:
    """Return the cotangent of a value: as recorded, or from its only reader, if that only moves numbers."""
    if number in graph.record.gradients:
        return np.asarray(graph.record.gradients[number], np.float64)
    readers = graph.consumers.get(number, ())
    if len(readers) == 1 and graph.operations[readers[0]].kind in LAYOUT_KINDS:
        return terms(graph, number).get(readers[0])
    return None

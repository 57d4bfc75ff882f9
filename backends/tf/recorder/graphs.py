"""Graphs of TensorFlow, run node by node: a SavedModel has no Python code that could run eagerly.

Each node is called through `tf.raw_ops`, so the recorder sees it and the gradient tape follows it. Loops and branches
within a graph stay one operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import concrete_function

__all__ = ["graphs_run_by_node"]


@contextmanager
def graphs_run_by_node(found: Callable[[tf.Variable], None]) -> Iterator[None]:
    """Let concrete functions run node by node; `found` gets the variables that their graphs read."""
    owner = concrete_function.ConcreteFunction
    before = owner._call_flat

    def call(function: Any, tensor_inputs: Sequence[tf.Tensor], captured_inputs: Sequence[Any]) -> Any:
        for held in function.graph._weak_variables:
            if (variable := held()) is not None:  # a signature whose model was let go of keeps handles only
                found(variable)
        results = _run(function.graph, [*tensor_inputs, *captured_inputs])
        return function.function_type.pack_output(results)

    owner._call_flat = call
    try:
        yield
    finally:
        owner._call_flat = before


def _run(graph: Any, inputs: Sequence[Any]) -> list[Any]:
    """Run the nodes of a graph and return its outputs."""
    values = {id(placeholder): value for placeholder, value in zip(graph.inputs, inputs, strict=True)}
    for node in graph.get_operations():  # in the order in which they were made
        if all(id(each) in values for each in node.outputs):
            continue
        results = _run_node(graph, node, [values[id(each)] for each in node.inputs])
        values.update({id(each): value for each, value in zip(node.outputs, results, strict=True)})
    return [values[id(each)] for each in graph.outputs]


def _run_node(graph: Any, node: tf.Operation, inputs: list[Any]) -> list[Any]:
    if node.type in ("PartitionedCall", "StatefulPartitionedCall"):
        return _run(graph._get_function(node.get_attr("f").name).graph, inputs)
    if node.type == "Const":
        return [tf.constant(tf.make_ndarray(node.get_attr("value")))]
    function = getattr(tf.raw_ops, node.type, None)
    if function is None:
        raise ValueError(f"the operation {node.type} in the graph of this model cannot be run on its own")
    arguments: dict[str, Any] = {}
    inferred: set[str] = set()
    rest = iter(inputs)
    for argument in node.op_def.input_arg:
        inferred |= {argument.type_attr, argument.number_attr, argument.type_list_attr}
        if argument.number_attr:
            arguments[argument.name] = [next(rest) for _ in range(node.get_attr(argument.number_attr))]
        elif argument.type_list_attr:
            arguments[argument.name] = [next(rest) for _ in node.get_attr(argument.type_list_attr)]
        else:
            arguments[argument.name] = next(rest)
    for attribute in node.op_def.attr:
        if attribute.name not in inferred and not attribute.name.startswith("_"):
            value = node.get_attr(attribute.name)
            arguments[attribute.name] = value.decode() if isinstance(value, bytes) else value
    result = function(**_by_python_name(function, arguments))
    return list(tf.nest.flatten(result)) if node.outputs else []


def _by_python_name(function: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """Give arguments their Python names: some differ, as `axis` for `squeeze_dims`, but their order is the same."""
    names = [name for name in inspect.signature(function).parameters if name != "name"]
    free = iter([name for name in names if name not in arguments])
    return {name if name in names else next(free): value for name, value in arguments.items()}

"""How a model is called, and what it returns: for the recorder of TensorFlow and Keras."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.recorder.variables import named_variables, to_array
from diffusion_core.parity.diff.generators import keep_generators

__all__ = [
    "arguments",
    "build",
    "call_model",
    "differ",
    "fixed_loss",
    "flat_outputs",
    "is_layer",
    "only_reading",
    "set_default",
]


def is_layer(model: Any) -> bool:
    """Return whether a model is a layer or a model of Keras."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.layers.Layer)


def set_default(precision: str) -> str:
    """Set Keras's default type, which the author's code may ask for during the pass, and return that before."""
    keras = sys.modules.get("keras")
    before = keras.config.floatx() if keras else precision
    if keras:
        keras.config.set_floatx(precision)
    return before


def tensor(array: Any, precision: str) -> Any:
    """Return an array as a tensor, and a container of arrays as one of tensors."""
    if isinstance(array, Mapping):
        return {key: tensor(item, precision) for key, item in array.items()}
    if isinstance(array, (list, tuple)):
        return type(array)(tensor(item, precision) for item in array)
    array = np.asarray(array)
    return tf.constant(array.astype(precision) if array.dtype.kind == "f" else array)


def arguments(
    model: Any, inputs: Sequence[NDArray] | Mapping[str, NDArray], precision: str
) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """Return the inputs of a call as tensors: floats in this precision, other types as they are."""
    if isinstance(inputs, Mapping):
        return [], {name: tensor(array, precision) for name, array in inputs.items()}
    many = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    return [tensor(array, precision) for array in many], {}


def call_model(model: Any, args: list[tf.Tensor], kwargs: dict[str, tf.Tensor], training: bool) -> Any:
    """Call a model as its author would: a functional one with all inputs in its own structure."""
    function = model
    if hasattr(model, "signatures") and not callable(model):
        function = model.signatures["serving_default"]
    mode = {"training": training} if _takes_training(function) else {}
    if _is_functional(model):
        struct = model._inputs_struct
        if kwargs:
            names = [each.name for each in model.inputs]
            if isinstance(struct, dict) or set(kwargs) == set(names):
                return model(kwargs, **mode)
            args = list(kwargs.values())
        if isinstance(struct, dict):
            return model(dict(zip(struct, args, strict=True)), **mode)
        return model(args if isinstance(struct, (list, tuple)) else args[0], **mode)
    if kwargs and is_layer(model) and not set(kwargs) <= set(inspect.signature(model.call).parameters):
        return function(kwargs, **mode)
    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return _call_signature(function, args, kwargs)
    return function(*args, **kwargs, **mode)


def _call_signature(function: Any, args: list[tf.Tensor], kwargs: dict[str, tf.Tensor]) -> Any:
    """Call a concrete function, which takes its inputs in their own types and those of a signature by name."""
    positional, named = function.structured_input_signature
    if named and args:
        args, kwargs = [], dict(zip(named, args, strict=True))
    kwargs = {name: tf.cast(each, named[name].dtype) for name, each in kwargs.items()}
    args = [tf.cast(each, spec.dtype) for each, spec in zip(args, positional, strict=False)]
    return function(*args, **kwargs)


def _is_functional(model: Any) -> bool:
    return is_layer(model) and hasattr(model, "_inputs_struct")


def _takes_training(function: Any) -> bool:
    if is_layer(function):
        return True
    try:
        return "training" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def build(model: Any, args: list[tf.Tensor], kwargs: dict[str, tf.Tensor]) -> None:
    """Let a model that is built by its first call make its variables."""
    if is_layer(model) and any(not each.built for each in model._flatten_layers()):
        call_model(model, args, kwargs, False)


@contextmanager
def only_reading(model: Any) -> Iterator[None]:
    """Give all variables, those of random generators too, the values that they had."""
    held = [each.variable for each in named_variables(model).values()]
    if keras := sys.modules.get("keras"):
        held.append(keras.src.random.seed_generator.global_seed_generator().state._value)
    before = [tf.identity(variable) for variable in held]
    try:
        with keep_generators():
            yield
    finally:
        for variable, value in zip(held, before, strict=True):
            variable.assign(value)


def flat_outputs(result: Any, prefix: str = "") -> dict[str, tf.Tensor]:
    """Return the tensors in what a model returned by name; see `Pass.outputs`."""
    if isinstance(result, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(f"the model returns a {type(result).__name__}, which duet diff cannot compare; return tensors")
    if isinstance(result, Mapping):
        parts = list(result.items())
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        parts = list(zip(result._fields, result, strict=True))
    elif isinstance(result, (list, tuple)):
        parts = list(enumerate(result))
    elif is_dataclass(result):
        parts = [(field.name, getattr(result, field.name)) for field in fields(result)]
    elif isinstance(result, (tf.Tensor, tf.Variable)) or hasattr(result, "__array__"):
        found = tf.convert_to_tensor(result)
        if found.dtype == tf.string:
            raise ValueError("the model returns texts; it must return numbers")
        return {prefix or "0": found}
    elif isinstance(result, (bool, int, float)):
        return {prefix or "0": tf.constant(result)}
    else:
        parts = list(getattr(result, "__dict__", {}).items())
    found: dict[str, tf.Tensor] = {}
    for key, value in parts:
        found |= flat_outputs(value, f"{prefix}.{key}" if prefix else str(key))
    if not found and not prefix:
        raise ValueError(f"the model returned an object of type {type(result).__name__}; it must return tensors")
    return found


def differ(a: Mapping[str, tf.Tensor], b: Mapping[str, tf.Tensor]) -> bool:
    """Return whether two results differ in a bit."""
    return any(
        not np.array_equal(to_array(x), to_array(y), equal_nan=x.dtype.is_floating)
        for x, y in zip(a.values(), b.values(), strict=True)
    )


def fixed_loss(outputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the loss of `recording`, summed in float64."""
    total = tf.constant(0.0, tf.float64)
    for y in outputs:
        y = tf.cast(y, tf.float64)
        total += tf.reduce_sum(y * y / 2 + tf.sin(2 * y) / 4) / max(int(tf.size(y)), 1)
    return total

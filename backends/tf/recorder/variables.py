"""The variables of a model by name: what is trained, what is frozen, and what is state such as running statistics.

Variables of Keras have their paths, as in "net/norm/gamma". Those of a `tf.Module`, a plain object or a function are
named by the attributes, items and closure variables that lead to them, as in "blocks/0/w".
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

__all__ = ["Named", "cast_keras", "cast_module", "modules_of", "named_variables", "to_array", "unnamed"]

BUFFER = re.compile(r"moving|running|mean|var|stat|count|step|iter|ema|aver|avg|num_|seed|rng|state", re.IGNORECASE)


class Named(NamedTuple):
    """A variable: the tf.Variable that holds it, that of Keras around it, and what it is for."""

    variable: tf.Variable
    keras: Any
    trained: bool
    buffer: bool

    @property
    def seed(self) -> bool:
        """Whether it is the state of a random generator."""
        return self.variable.dtype in (tf.uint32, tf.uint64) or "seed_generator_state" in self.variable.name


def named_variables(model: Any) -> dict[str, Named]:
    """Return the variables of a model by name, in order; a variable of several names has the first."""
    found: dict[str, Named] = {}
    seen: set[int] = set()
    for name, each in _variables(model):
        if id(each.variable) not in seen:
            seen.add(id(each.variable))
            number, unique = 1, name
            while unique in found:
                number += 1
                unique = f"{name}#{number}"
            found[unique] = each
    return found


def unnamed(variable: tf.Variable) -> Named:
    """Return what is known of a variable that only a pass has found."""
    return Named(variable, None, variable.trainable, _is_state(variable.name, variable.dtype))


def _is_state(name: str, dtype: tf.DType) -> bool:
    return not dtype.is_floating or BUFFER.search(name.split("/")[-1]) is not None


def _variables(model: Any) -> Iterator[tuple[str, Named]]:
    for path, leaf in _walk(model, "", set()):
        if isinstance(leaf, tf.Variable):
            trained = leaf.trainable
            yield path or "variable", Named(leaf, None, trained, not trained and _is_state(path, leaf.dtype))
        elif _is_layer(leaf):
            yield from _layer_variables(leaf)
        else:  # a variable of Keras
            yield leaf.path, Named(leaf._value, leaf, bool(leaf.trainable), not leaf.trainable)


def _layer_variables(layer: Any) -> Iterator[tuple[str, Named]]:
    trained = {id(each) for each in layer.trainable_variables}
    # What a layer declared to be trained stays a parameter when the layer is frozen.
    declared = {id(each) for inner in _flat_layers(layer) for each in inner._trainable_variables}
    for each in layer.variables:
        state = id(each) not in declared and _is_state(each.path, tf.as_dtype(each.dtype))
        yield each.path, Named(each._value, each, id(each) in trained, state)


def _flat_layers(layer: Any) -> list[Any]:
    found = {id(each): each for each in layer._flatten_layers()}
    for each in list(found.values()):
        inner = getattr(each, "_functional", None)
        if inner is not None:
            found |= {id(other): other for other in inner._flatten_layers()}
    return list(found.values())


def _is_layer(value: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.layers.Layer)


def _walk(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Return the variables and layers that an object leads to, with their paths."""
    keras = sys.modules.get("keras")
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type, types.ModuleType, np.ndarray, tf.Tensor)):
        return
    seen.add(id(value))
    if isinstance(value, tf.Variable) or _is_layer(value) or (keras and isinstance(value, keras.Variable)):
        yield path, value
        return
    for key, item in _parts(value):
        yield from _walk(item, f"{path}/{key}" if path else str(key), seen)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict) or (hasattr(value, "items") and type(value).__name__ == "_DictWrapper"):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif isinstance(value, types.MethodType):
        yield from _parts(value.__self__)
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # a cell that nothing was assigned to
                continue
        for name in _global_names(value.__code__):
            held = value.__globals__.get(name)
            if isinstance(held, (tf.Module, tf.Variable, dict, list, tuple, types.FunctionType)) or _is_layer(held):
                yield name, held
    elif hasattr(value, "python_function"):  # a tf.function
        yield from _parts(value.python_function)
    elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        yield from _parts(value.func)
        yield from (("args", value.args), ("keywords", value.keywords))
    elif hasattr(value, "signatures") and hasattr(value, "variables"):  # a SavedModel
        yield from ((each.name.split(":")[0], each) for each in value.variables)
    elif hasattr(value, "__dict__") and not isinstance(value, types.BuiltinFunctionType):
        held = vars(value)
        yield from ((name, held[name]) for name in held if not name.startswith(("_self_", "_tf_api", "_obj_ref")))


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def modules_of(model: Any) -> dict[str, tf.Module]:
    """Return the `tf.Module`s in a model by their paths of attributes; Keras layers are not among them."""
    if not isinstance(model, tf.Module) or _is_layer(model):
        return {}
    found: dict[str, tf.Module] = {"": model}
    kinds = lambda each: isinstance(each, tf.Module) and not isinstance(each, tf.Variable)  # noqa: E731
    for path, module in model._flatten(predicate=kinds, with_path=True, recursive=True):
        found.setdefault("/".join(map(str, path)), module)
    return found


def to_array(value: Any) -> NDArray:
    """Return the numbers of a tensor or variable; half-precision types are widened to float32.

    A tensor never changes, so its memory is used as it is.
    """
    is_copied = hasattr(value, "numpy") and not isinstance(value, tf.Tensor)
    array = np.asarray(value.numpy() if is_copied else value)
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def cast_keras(model: Any, precision: str) -> None:
    """Give a model of Keras variables and a compute type of another precision, in place."""
    keras = sys.modules["keras"]
    for layer in _flat_layers(model):
        layer.dtype_policy = keras.DTypePolicy(precision)
        for each in getattr(layer, "_inputs", None) or ():
            if tf.as_dtype(each.dtype).is_floating:
                each._dtype = precision
        if hasattr(layer, "_dtype") and isinstance(layer._dtype, str) and tf.as_dtype(layer._dtype).is_floating:
            layer._dtype = precision
    for each in model.variables:
        if tf.as_dtype(each.dtype).is_floating and each.dtype != precision:
            each._value = tf.Variable(tf.cast(each._value, precision), trainable=each._value.trainable, name=each.name)
            each._dtype = precision


def cast_module(value: Any, precision: str, seen: set[int] | None = None) -> Any:
    """Replace the variables in the attributes, lists and dicts of a `tf.Module` by ones of another precision."""
    seen = set() if seen is None else seen
    if isinstance(value, tf.Variable):
        wrong = value.dtype.is_floating and value.dtype != tf.as_dtype(precision)
        name = value.name.split(":")[0]
        return tf.Variable(tf.cast(value, precision), trainable=value.trainable, name=name) if wrong else value
    if id(value) in seen:
        return value
    seen.add(id(value))
    if _is_layer(value):
        cast_keras(value, precision)
    elif isinstance(value, dict):
        for key in list(value):
            value[key] = cast_module(value[key], precision, seen)
    elif isinstance(value, list):
        value[:] = [cast_module(item, precision, seen) for item in value]
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):
        return type(value)(cast_module(item, precision, seen) for item in value)
    elif isinstance(value, tf.Module):
        for name, held in list(vars(value).items()):
            if not name.startswith("_self_") and (new := cast_module(held, precision, seen)) is not held:
                setattr(value, name, new)
    return value

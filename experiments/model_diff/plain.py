"""Record a plain function of arrays, as one of JAX or NumPy, for `duet diff`: its inputs and outputs.

A twin of the recorders of the backends: the same functions in the same order. What the function does inside is not
seen, so that it is one operation; it has no parameters, no gradients and no training mode.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.recording import Operation, Pass, Step
from experiments.model_diff.call_forms import arrays_in

__all__ = [
    "FRAMEWORK",
    "LAYOUT",
    "building",
    "layers",
    "prepare",
    "read_state",
    "record_pass",
    "record_steps",
    "version",
    "write_state",
]

FRAMEWORK = "plain"
LAYOUT = "channels_last"


def version() -> str:
    """Return the name and version of JAX, if it is loaded, else of NumPy."""
    jax = sys.modules.get("jax")
    return f"jax {jax.__version__}" if jax else f"numpy {np.__version__}"


@contextmanager
def building(precision: str, seed: int) -> Iterator[None]:
    """Let JAX compute in float64 where that is asked for."""
    with _wide(precision):
        yield


def prepare(model: Any, precision: str) -> Any:
    """Return the function."""
    if not callable(model):
        raise ValueError(f"this is {type(model).__name__}; it must be a model, or a function that returns one")
    return model


def read_state(model: Any) -> dict[str, NDArray]:
    """Return nothing: the weights of a plain function are not seen."""
    return {}


def write_state(model: Any, arrays: Mapping[str, NDArray]) -> None:
    """Refuse to write weights, which cannot be seen."""
    if arrays:
        raise ValueError("a plain function has no weights that can be written; copy them in its own code")


def record_pass(
    model: Any, inputs: Sequence[NDArray] | Mapping[str, NDArray], name: str, gradients: str = "all"
) -> Pass:
    """Record one call."""
    if name.startswith("train"):
        _refuse("training mode")
    precision = "float64" if name.endswith("64") else "float32"
    named = isinstance(inputs, Mapping)
    arrays = [
        array.astype(precision) if array.dtype.kind == "f" else array for array in map(np.asarray, arrays_in(inputs))
    ]

    def call() -> dict[str, NDArray]:
        copies = iter([array.copy() for array in arrays])  # the function may write into what it is given

        def filled(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: filled(item) for key, item in value.items()}
            return type(value)(map(filled, value)) if isinstance(value, (list, tuple)) else next(copies)

        given = filled(inputs)
        return _flat(model(**given) if named else model(*given))

    with _wide(precision), _seeded():
        again = call()
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        outputs = call()
    if precision == "float64" and not arrays:
        raise ValueError("float64 is not possible: the function has no inputs that could be in float64")
    narrow = [key for key, array in outputs.items() if array.dtype == np.float32]
    if precision == "float64" and narrow:
        raise ValueError(f"float64 is not possible: the function returns float32 for inputs of float64 ({narrow[0]})")
    same = all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(outputs.values(), again.values()))  # noqa: B905
    notes = () if same else ("two passes with the same inputs differ: the function is random or keeps a state",)
    first = len(arrays) + 1
    values = dict(enumerate([*arrays, *outputs.values()], 1))
    numbers = tuple(range(first, first + len(outputs)))
    read = tuple(range(1, first))
    title = getattr(model, "__name__", type(model).__name__)
    operation = Operation("opaque", read, numbers, {}, title, "", *_place(model))
    return Pass(name, (operation,), values, read, dict(zip(outputs, numbers, strict=True)), notes=notes)


def record_steps(*_: Any) -> tuple[tuple[Step, ...], dict[str, Any]]:
    """Refuse: a plain function has no optimiser that can be seen."""
    _refuse("training steps")


def layers(model: Any) -> dict[str, dict[str, Any]]:
    """Return nothing: a function has no layers."""
    return {}


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"a plain function has no {what} that can be seen")


@contextmanager
def _wide(precision: str) -> Iterator[None]:
    jax = sys.modules.get("jax")
    if jax is None:
        yield
        return
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", precision == "float64" or before)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed what the function may draw from NumPy and Python, and give both their states back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _flat(result: Any, prefix: str = "") -> dict[str, NDArray]:
    """Return the arrays in what a function returned by name; see `Pass.outputs`."""
    if isinstance(result, Mapping):
        parts = list(result.items())
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        parts = list(zip(result._fields, result, strict=True))
    elif isinstance(result, (list, tuple)):
        parts = list(enumerate(result))
    elif result is None:
        raise ValueError("the function returned None; it must return arrays")
    else:
        array = np.asarray(result)
        if array.dtype.kind not in "fiubc":
            # Types of ml_dtypes, such as bfloat16, are of a kind of their own.
            if array.dtype.kind != "V" or array.dtype.names:
                raise ValueError(f"the function returned {type(result).__name__}; it must return arrays")
            array = array.astype(np.float32)
        return {prefix or "0": array}
    found: dict[str, NDArray] = {}
    for key, value in parts:
        found.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _place(model: Any) -> tuple[str, str]:
    """Return the line of the author's code that defines a function, and its text."""
    code = getattr(getattr(model, "__wrapped__", model), "__code__", None)
    if code is None:
        return "", ""
    name = code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f"{name}:{code.co_firstlineno}", f"def {code.co_name}(...)"

"""The inputs of a comparison: one set of numbers, in the layout of each side.

A side's own `inputs(seed)` gives its own layout. Where a side has none it gets those of the other side; images, and
sequences if need be, are then written in its layout. What its model accepts is only known when it is called, so that
there may be several forms to try, in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from experiments.model_diff.author_code import Refused, to_inputs
from experiments.model_diff.side_recorder import Inputs

__all__ = ["check_equal", "draw", "forms", "read_file"]


def read_file(path: Path) -> Inputs:
    """Return the arrays of an .npz or .npy file: in order if they are called arr_0, arr_1 ..., else by name.

    Raises:
        DuetError: if it is no such file, or holds something else than arrays.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return to_inputs(content, str(path))
        with content:
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError as error:
        raise DuetError(f"--inputs: there is no file {path}") from error
    except (OSError, ValueError, EOFError) as error:
        reason = "" if "pickle" in str(error) else f" ({error})"
        raise DuetError(f"--inputs: {path} was given; it must be an .npz file of arrays{reason}") from error
    if not arrays:
        raise DuetError(f"--inputs: {path} holds no array")
    unnamed = [f"arr_{i}" for i in range(len(arrays))]
    if not any(array.size for array in arrays.values()):
        raise DuetError(f"--inputs: the arrays of {path} have no numbers; nothing can be compared")
    try:
        return to_inputs([arrays[name] for name in unnamed] if set(unnamed) == set(arrays) else arrays, str(path))
    except Refused as error:
        raise DuetError(f"--inputs: {error}") from error


def draw(declared: Sequence[Mapping[str, Any]], seed: int) -> tuple[NDArray, ...]:
    """Return inputs of the shapes that a model declares: normal floats, and zeros and ones for integers.

    A batch whose size is free has 2 elements, any other free size is 16.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for each in declared:
        shape = [(2 if i == 0 else 16) if size is None else size for i, size in enumerate(each["shape"])]
        if "int" in each["dtype"] or each["dtype"] == "bool":
            drawn.append(rng.integers(0, 2, shape).astype(each["dtype"]))
        else:
            drawn.append(rng.standard_normal(shape).astype(np.float32))
    return tuple(drawn)


def forms(
    inputs: Inputs, source: str, target: str, declared: Sequence[Mapping[str, Any]] | None = None
) -> list[tuple[Inputs, str]]:
    """Return the forms in which one side's inputs may be meant for the other, with what was done, in words.

    Args:
        inputs: in the layout of the side that they come from.
        source: its layout, "channels_first" or "channels_last".
        target: the layout of the side that gets them.
        declared: name, shape and type of each input there, if they are known.
    """
    if source == target:
        return [(inputs, "")]
    axes = (1, -1) if target == "channels_last" else (-1, 1)
    arrays = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)

    def moved(array: NDArray) -> NDArray:
        return np.ascontiguousarray(np.moveaxis(array, *axes))

    def form(which: Sequence[bool]) -> tuple[Inputs, str]:
        new = [moved(array) if move else array for array, move in zip(arrays, which, strict=True)]
        words = f"channels moved to the {'end' if target == 'channels_last' else 'second axis'}" if any(which) else ""
        return (dict(zip(inputs, new, strict=True)) if isinstance(inputs, Mapping) else tuple(new)), words

    images = [array.ndim in (4, 5) and (array.dtype.kind == "f" or array.dtype == np.uint8) for array in arrays]
    sequences = [
        image or (array.ndim == 3 and array.dtype.kind == "f") for image, array in zip(images, arrays, strict=True)
    ]
    tried = [images, sequences, [False] * len(arrays)]
    if declared is not None and len(declared) == len(arrays):
        fitting = [
            not fits(array.shape, each["shape"]) and may and fits(moved(array).shape, each["shape"])
            for array, may, each in zip(arrays, sequences, declared, strict=True)
        ]
        tried.insert(0, fitting)
    return [form(which) for which in dict.fromkeys(map(tuple, tried))]


def fits(shape: Sequence[int], declared: Sequence[int | None]) -> bool:
    """Return whether an array has a declared shape, in which None is any size."""
    return len(shape) == len(declared) and all(n is None or m == n for m, n in zip(shape, declared, strict=True))


def check_equal(a: Inputs, b: Inputs, seed: int) -> None:
    """Check that both sides draw the same numbers, up to the order of their axes.

    Raises:
        DuetError: they do not; the message names the first input that differs.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping) and set(a) == set(b):
        pairs = [(f"[{name!r}]", a[name], b[name]) for name in a]
    else:
        first, second = (list(x.values()) if isinstance(x, Mapping) else list(x) for x in (a, b))
        if len(first) != len(second):
            raise DuetError(
                f"inputs({seed}): A returns {len(first)} arrays and B {len(second)}; both must return the same numbers "
                f"in the same order"
            )
        pairs = [(f"[{i}]", x, y) for i, (x, y) in enumerate(zip(first, second, strict=True))]
    for name, x, y in pairs:
        reason = difference(x, y)
        if reason:
            raise DuetError(
                f"inputs({seed}){name}: {reason}; both sides must draw the same numbers, each in its own layout, or "
                f"only one of them must have inputs(seed)"
            )


def difference(x: NDArray, y: NDArray) -> str:
    """Return in words how two inputs differ; "" if they hold the same numbers, up to the order of their axes."""
    if x.size != y.size:
        return f"A has the shape {x.shape} and B {y.shape}"
    one, other = (array.astype(np.float32) if array.dtype.kind == "f" else array for array in (x, y))
    if np.array_equal(one.ravel(), other.ravel(), equal_nan=one.dtype.kind == other.dtype.kind == "f"):
        return ""
    # Axes of one element do not order anything; without them both have the same axes, or one has merged some.
    short = one.reshape([n for n in one.shape if n > 1])
    if short.ndim <= 6:
        target = other.ravel()
        for order in itertools.permutations(range(short.ndim)):
            if np.array_equal(short.transpose(order).ravel(), target):
                return ""
    a, b = np.sort(one.ravel()), np.sort(other.ravel())
    if np.array_equal(a, b):
        return f"A (shape {x.shape}) and B (shape {y.shape}) hold the same numbers in another order"
    return f"A (shape {x.shape}) and B (shape {y.shape}) hold other numbers"

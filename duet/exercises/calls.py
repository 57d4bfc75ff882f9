"""Call a student's function with the arrays of its framework, and bring the results back to NumPy.

A call gets fresh copies of the arguments. Arguments are passed by name if the function has exactly the names of the
exercise, and else in their order. Images are given in the layout of the student; `on_images` undoes that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duet.exercises.definition import Exercise, Network
from duet.exercises.frameworks import Framework, to_numpy

__all__ = ["Caller", "first_index", "returned_arrays"]


@dataclass(frozen=True)
class Caller:
    """A student's function, called as NumPy functions are.

    Args:
        exercise: what the function should do.
        function: the student's.
        framework: whose arrays it is called with.
        dtype: of the arrays of real numbers.
        channels_first: whether its images are b c h w.
        changed: the arguments that it changed in place, by name, with a description of the first change.
    """

    exercise: Exercise
    function: Callable[..., Any]
    framework: Framework
    dtype: str
    channels_first: bool
    changed: dict[str, str] = field(default_factory=dict)
    _networks: dict[Network, Callable[..., Any]] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> bool:
        """Whether the function has the argument names of the exercise."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            return False
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        own = {p.name for p in parameters if p.kind in kinds}
        return own >= set(self.exercise.parameters)

    def signature_problem(self) -> str | None:
        """Return why the function cannot be called as the exercise says; None if it can, or says nothing."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # a function written in C
            return None
        names = self.exercise.parameters
        try:
            signature.bind(**dict.fromkeys(names)) if self.by_name else signature.bind(*names)
        except TypeError:
            taken = ", ".join(str(p) for p in signature.parameters.values())
            return f"your function takes ({taken}); the exercise calls {self.exercise.signature}"
        return None

    def raw(self, arguments: Mapping[str, Any]) -> Any:
        """Return what the function returns for NumPy arguments, as it is."""
        given = {name: self._given(name, value) for name, value in arguments.items()}
        result = self.function(**given) if self.by_name else self.function(*given.values())
        for name, value in arguments.items():
            self._note_change(name, self._in_layout(name, value), given[name])
        return result

    def __call__(self, *arguments: Any) -> Any:
        """Return the result as NumPy arrays in float64 with images as b h w c, for the laws."""
        result = self.raw(dict(zip(self.exercise.parameters, arguments, strict=True)))
        arrays = [self.on_images(np.asarray(value, np.float64)) for value in self.arrays(result)]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def arrays(self, result: Any) -> list[NDArray]:
        """Return the arrays of a result."""
        return returned_arrays(result, self.exercise.results)

    def expected(self, value: NDArray) -> NDArray:
        """Return a right result, images b h w c, in the layout of the student."""
        return np.moveaxis(value, -1, 1) if self._has_images(value) and self.channels_first else value

    def on_images(self, value: NDArray) -> NDArray:
        """Return a result of the student with images as b h w c."""
        return np.moveaxis(value, 1, -1) if self._has_images(value) and self.channels_first else value

    def _has_images(self, value: NDArray) -> bool:
        return bool(self.exercise.images) and np.ndim(value) == 4

    def _in_layout(self, name: str, value: Any) -> Any:
        if name in self.exercise.images and self.channels_first:
            return np.moveaxis(value, -1, 1)
        return value

    def _given(self, name: str, value: Any) -> Any:
        value = self._in_layout(name, value)
        if isinstance(value, Network):
            # One function for each network, so that a graph that was traced with it is used again.
            return self._networks.setdefault(value, partial(value, like=self.framework.caster()))
        if isinstance(value, Mapping):
            return {key: self._given(key, part) for key, part in value.items()}
        if isinstance(value, np.ndarray):
            is_real = value.dtype.kind == "f"
            return self.framework.array(np.ascontiguousarray(value, self.dtype if is_real else value.dtype))
        return value

    def _note_change(self, name: str, before: Any, after: Any) -> None:
        if isinstance(before, Mapping):
            for key in before:
                self._note_change(f"{name}[{key!r}]", before[key], after.get(key))
        elif isinstance(before, np.ndarray) and name not in self.changed:
            was = before.astype(self.dtype if before.dtype.kind == "f" else before.dtype)
            now = to_numpy(after)
            if now.shape != was.shape:
                self.changed[name] = f"its shape was {was.shape} and is now {now.shape}"
            elif np.any(different := ~((now == was) | ((now != now) & (was != was)))):
                index = first_index(different)
                self.changed[name] = f"{name}{bracketed(index)} was {was[index]:.6g} and is now {now[index]:.6g}"


def first_index(where: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the first index at which an array is true."""
    return tuple(int(i) for i in np.argwhere(where)[0])


def bracketed(index: tuple[int, ...]) -> str:
    """Return an index as Python writes it; nothing for that of a number."""
    return f"[{', '.join(map(str, index))}]" if index else ""


def returned_arrays(result: Any, count: int) -> list[NDArray]:
    """Return the arrays of a result of which there should be `count`.

    A tuple holds several results, unless all are numbers; a list is one array, unless several results are expected.
    """
    if isinstance(result, tuple) and (count > 1 or any(np.ndim(part) for part in result)):
        return [to_numpy(part) for part in result]
    if isinstance(result, list) and count > 1:
        return [to_numpy(part) for part in result]
    return [to_numpy(result)]

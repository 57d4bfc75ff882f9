"""Linear operators as functions: `duet.operators.NAME(shape, ...)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.sampling.linear_operators import OPERATORS, LinearOperator

__all__ = ["operators"]


class _Operators:
    """Linear operators of images (h, w, c): mask, blur, downsample and grey.

    ``A @ B`` applies B first. Any other function with its adjoint is a `duet.LinearOperator`.

    Example:
        >>> import duet
        >>> duet.operators.downsample((32, 32, 3), factor=4) @ duet.operators.blur((32, 32, 3), width=1.5)
        LinearOperator(downsample of blur)
    """

    def __getattr__(self, name: str) -> Callable[..., LinearOperator]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in OPERATORS:
            raise AttributeError(str(one_of("duet.operators", name, OPERATORS)))
        return _with_shape(OPERATORS[name])

    def __dir__(self) -> list[str]:
        return sorted(OPERATORS)

    def __repr__(self) -> str:
        return f"duet.operators: {', '.join(OPERATORS)}"


def _with_shape(make: Callable[..., LinearOperator]) -> Callable[..., LinearOperator]:
    """Let a function refuse what is no shape of an image."""

    @functools.wraps(make)
    def checked(shape: Any, *arguments: Any, **options: Any) -> LinearOperator:
        if not isinstance(shape, tuple | list) or len(shape) != 3 or not all(isinstance(n, Integral) for n in shape):
            raise DuetError(f"shape: {shape!r} was given; it must be that of an image, such as (32, 32, 3)")
        return make(tuple(shape), *arguments, **options)

    return checked


operators = _Operators()

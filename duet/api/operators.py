"""Linear operators as functions: `duet.operators.NAME(shape, ...)`."""

from __future__ import annotations

from collections.abc import Callable

from diffusion_core.common.errors import one_of
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
        return OPERATORS[name]

    def __dir__(self) -> list[str]:
        return sorted(OPERATORS)

    def __repr__(self) -> str:
        return f"duet.operators: {', '.join(OPERATORS)}"


operators = _Operators()

"""How the functions of this package find the code for a kind of operation.

Each kind has a function that evaluates it, called with the input arrays and with its attributes as keywords::

    @evaluates("matmul")
    def matmul(a, b, transpose_a=False, transpose_b=False): ...

and, if gradients pass through it, one for the product of a cotangent with its Jacobian::

    @differentiates("matmul")
    def matmul_vjp(cotangent, inputs, output, transpose_a=False, transpose_b=False): ...

which returns one gradient per input, or None for an input that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.vocabulary import KINDS

__all__ = ["EVALUATORS", "VJPS", "Unsupported", "differentiates", "evaluates", "options"]


class Unsupported(ValueError):
    """An operation that NumPy cannot evaluate; the message says why."""


EVALUATORS: dict[str, Callable[..., Any]] = {}
VJPS: dict[str, Callable[..., tuple[NDArray | None, ...]]] = {}


def evaluates(*kinds: str) -> Callable[[Callable], Callable]:
    """Register a function as the one that evaluates these kinds."""

    def register(function: Callable) -> Callable:
        EVALUATORS.update(dict.fromkeys(kinds, function))
        return function

    return register


def differentiates(*kinds: str) -> Callable[[Callable], Callable]:
    """Register a function as the one that carries cotangents back through these kinds."""

    def register(function: Callable) -> Callable:
        VJPS.update(dict.fromkeys(kinds, function))
        return function

    return register


def options(operation: Operation) -> dict[str, Any]:
    """Return the attributes that the vocabulary knows for the kind of an operation; others are notes of a recorder."""
    known = KINDS[operation.kind]
    return {name: value for name, value in operation.attributes.items() if name in known}

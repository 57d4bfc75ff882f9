"""Products of matrices, and the bias that follows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.operations.elementwise import sum_to
from diffusion_core.parity.diff.operations.registry import Unsupported, differentiates, evaluates

__all__ = ["einsum", "matmul"]


@evaluates("matmul")
def matmul(a: NDArray, b: NDArray, transpose_a: bool = False, transpose_b: bool = False) -> NDArray:
    """Multiply matrices; leading axes are broadcast, and an input of one axis is a vector."""
    a = a.swapaxes(-1, -2) if transpose_a else a
    b = b.swapaxes(-1, -2) if transpose_b else b
    return a @ b


@evaluates("einsum")
def einsum(*inputs: NDArray, equation: str) -> NDArray:
    """Evaluate an equation of Einstein's summation."""
    return np.einsum(equation.replace(" ", ""), *inputs, optimize=len(inputs) > 1)


def _along(bias: NDArray, ndim: int, axis: int) -> NDArray:
    return bias.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


@evaluates("bias_add")
def bias_add(x: NDArray, bias: NDArray, axis: int) -> NDArray:
    """Add a vector along one axis."""
    return x + _along(bias, x.ndim, axis)


@differentiates("matmul")
def matmul_vjp(
    g: NDArray, inputs: Sequence[NDArray], output: NDArray, transpose_a: bool = False, transpose_b: bool = False
) -> tuple[NDArray, NDArray]:
    """Return ``g bᵀ`` and ``aᵀ g``, summed over what was broadcast."""
    a, b = inputs
    left = a[None, :] if a.ndim == 1 else a.swapaxes(-1, -2) if transpose_a else a
    right = b[:, None] if b.ndim == 1 else b.swapaxes(-1, -2) if transpose_b else b
    g = np.expand_dims(g, -1) if b.ndim == 1 else g
    g = np.expand_dims(g, -2) if a.ndim == 1 else g
    to_left, to_right = g @ right.swapaxes(-1, -2), left.swapaxes(-1, -2) @ g
    to_left = to_left.swapaxes(-1, -2) if transpose_a and a.ndim > 1 else to_left
    to_right = to_right.swapaxes(-1, -2) if transpose_b and b.ndim > 1 else to_right
    return (
        sum_to(to_left, (1, *a.shape) if a.ndim == 1 else a.shape).reshape(a.shape),
        sum_to(to_right, (*b.shape, 1) if b.ndim == 1 else b.shape).reshape(b.shape),
    )


@differentiates("einsum")
def einsum_vjp(g: NDArray, inputs: Sequence[NDArray], output: NDArray, equation: str) -> tuple[NDArray, ...]:
    """Put the cotangent in the place of each input in turn."""
    terms, result = _terms(equation, [x.ndim for x in inputs])
    sizes = {letter: n for term, x in zip(terms, inputs, strict=True) for letter, n in zip(term, x.shape, strict=True)}
    gradients = []
    for i, (term, x) in enumerate(zip(terms, inputs, strict=True)):
        if len(set(term)) < len(term):
            raise Unsupported(f"einsum {equation}: a letter twice in one term has no gradient here")
        others = [(t, y) for j, (t, y) in enumerate(zip(terms, inputs, strict=True)) if j != i]
        known = set(result).union(*(t for t, _ in others))
        # Letters that stand in this term alone were summed: every place of theirs has the same cotangent.
        kept = "".join(letter for letter in term if letter in known)
        part = np.einsum(
            ",".join([result, *(t for t, _ in others)]) + "->" + kept, g, *(y for _, y in others), optimize=True
        )
        shape = [sizes[letter] if letter in known else 1 for letter in term]
        gradients.append(np.broadcast_to(part.reshape(shape), x.shape).astype(x.dtype))
    return tuple(gradients)


def _terms(equation: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of the inputs and of the output, with letters in the place of an ellipsis."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    extra = max((n - len(t.replace("...", "")) for t, n in zip(terms, ndims, strict=True) if "..." in t), default=0)
    letters = "".join(sorted(set(map(chr, range(65, 123))) - set(equation)))
    letters = "".join(c for c in letters if c.isalpha())[:extra]
    full = []
    for term, n in zip(terms, ndims, strict=True):
        own = n - len(term.replace("...", ""))
        full.append(term.replace("...", letters[extra - own :] if own else ""))
    if "->" not in equation:
        counts = "".join(full)
        right = letters + "".join(sorted({c for c in counts if counts.count(c) == 1 and c not in letters}))
    return full, right.replace("...", letters)

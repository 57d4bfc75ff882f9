"""The vocabulary in NumPy: evaluate an operation, carry a cotangent back through it, write a fused one as simple ones.

Operations are computed in the type of their inputs: what a model computes in float32 is computed in float32 here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.operations import elementwise, layout, linear, reductions, resize, windows  # noqa: F401
from diffusion_core.parity.diff.operations.composite import lower, with_mask_type
from diffusion_core.parity.diff.operations.forms import one_form
from diffusion_core.parity.diff.operations.registry import EVALUATORS, VJPS, Unsupported, options
from diffusion_core.parity.diff.recording import Operation
from diffusion_core.parity.diff.vocabulary import COMPOSITE

__all__ = [
    "EVALUATORS",
    "VJPS",
    "Unsupported",
    "evaluate",
    "lower",
    "one_form",
    "perturbed",
    "roles",
    "vjp",
    "with_mask_type",
]


def evaluate(operation: Operation, inputs: Sequence[NDArray]) -> tuple[NDArray, ...]:
    """Return the outputs of an operation.

    Args:
        operation: a simple or a fused one.
        inputs: the arrays that it reads.

    Raises:
        Unsupported: if NumPy cannot compute it, as a random number or an operation that the vocabulary does not know.

    Example:
        >>> evaluate(Operation("add", (0,), (1,), {"scalar": 1, "reverse": False}), [np.arange(3)])[0].tolist()
        [1, 2, 3]
    """
    if operation.kind in COMPOSITE:
        return _evaluate_parts(operation, inputs)
    if operation.kind not in EVALUATORS:
        raise Unsupported(f"{operation.kind}: an operation that NumPy cannot evaluate")
    result = EVALUATORS[operation.kind](*inputs, **options(operation))
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _evaluate_parts(operation: Operation, inputs: Sequence[NDArray]) -> tuple[NDArray, ...]:
    values = dict(zip(operation.inputs, inputs, strict=True))
    numbers = iter(range(max((*operation.inputs, *operation.outputs)) + 1, 1 << 60))
    operation = with_mask_type(operation, lambda number: values[number].dtype == bool)
    for part in lower(operation, lambda: next(numbers), lambda number: values[number].shape):
        values[part.outputs[0]] = evaluate(part, [values[n] for n in part.inputs])[0]
    return (values[operation.outputs[0]],)


def vjp(
    operation: Operation, inputs: Sequence[NDArray], outputs: Sequence[NDArray], cotangents: Sequence[NDArray]
) -> tuple[NDArray | None, ...] | None:
    """Return the gradients with respect to the inputs, or None if the kind has no rule.

    Args:
        operation: a simple one.
        inputs, outputs: what it read and wrote.
        cotangents: one per output, in its shape.
    """
    if operation.kind not in VJPS:
        return None
    single = len(operation.outputs) == 1
    return VJPS[operation.kind](
        cotangents[0] if single else cotangents, inputs, outputs[0] if single else outputs, **options(operation)
    )


def perturbed(array: NDArray, unit: float, random: np.random.Generator) -> NDArray:
    """Return numbers that are each off by a random error of at most one unit of their size."""
    if array.dtype.kind not in "fc":
        return array
    return (array * (1 + unit * random.uniform(-1, 1, array.shape))).astype(array.dtype, copy=False)


def roles(operations: Sequence[Operation], small: float = 0.01) -> list[Operation]:
    """Say what simple operations do in code that was written by hand.

    The sum of, or the maximum with, a small number is an "epsilon" if its result goes to a root or is divided by; a
    factor before a softmax is "scaled".
    """
    readers: dict[int, list[Operation]] = {}
    for operation in operations:
        for number in operation.inputs:
            readers.setdefault(number, []).append(operation)

    def role(operation: Operation) -> str:
        following = [reader for number in operation.outputs for reader in readers.get(number, ())]
        scalar = operation.attributes.get("scalar")
        if operation.kind in ("add", "maximum") and isinstance(scalar, (int, float)) and 0 < scalar < small:
            divides = [
                reader.kind in ("sqrt", "rsqrt", "power", "reciprocal")
                or (reader.kind == "divide" and reader.inputs[-1] in operation.outputs)
                for reader in following
            ]
            return "epsilon" if any(divides) else ""
        if operation.kind in ("multiply", "divide") and scalar is not None:
            return "scaled" if any(reader.kind == "softmax" for reader in following) else ""
        return ""

    return [o if o.role else _with_role(o, role(o)) for o in operations]


def _with_role(operation: Operation, role: str) -> Operation:
    return Operation(**{**operation.__dict__, "role": role}) if role else operation

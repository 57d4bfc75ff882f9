"""One form for a formula that frameworks write in several.

A normalisation is ``(x - m) s + b``, or ``x s + (b - m s)``, which saves a pass over x: Keras's layers have the second
form. There the shift is added to another quantity, so the two cannot be compared step by step; the second becomes the
first here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diffusion_core.parity.diff.recording import Operation

__all__ = ["one_form"]

_TWO = {"scalar": None, "reverse": False}


def one_form(operations: Sequence[Operation], fresh: Callable[[], int], outputs: frozenset[int]) -> list[Operation]:
    """Write ``x s + (b - m s)`` as ``(x - m) s + b``.

    Args:
        operations: simple ones, in order. Those that nothing reads any more are left in.
        fresh: returns the number of a new value.
        outputs: values that are read besides: the outputs of the model.
    """
    producer = {number: operation for operation in operations for number in operation.outputs}
    readers: dict[int, int] = {}
    for operation in operations:
        for number in operation.inputs:
            readers[number] = readers.get(number, 0) + 1

    def made_by(number: int, *kinds: str) -> Operation | None:
        operation = producer.get(number)
        only = readers.get(number) == 1 and number not in outputs
        fits = operation is not None and operation.kind in kinds and only
        return operation if fits else None

    def moved(shift: Operation, scale: int) -> tuple[int, int] | None:
        """Return m and b of ``b - m s``."""
        if shift.kind == "subtract" and len(shift.inputs) == 2 and not shift.attributes.get("reverse"):
            product = made_by(shift.inputs[1], "multiply")
            if product and len(product.inputs) == 2 and scale in product.inputs:
                return _other(product, scale), shift.inputs[0]
        if shift.kind == "add" and len(shift.inputs) == 2:
            for number in shift.inputs:
                product = made_by(number, "multiply")
                if product and len(product.inputs) == 2 and scale in product.inputs:
                    opposite = made_by(_other(product, scale), "negative")
                    if opposite:
                        return opposite.inputs[0], _other(shift, number)
        return None

    result: list[Operation] = []
    for operation in operations:
        result.append(operation)
        if operation.kind != "add" or len(operation.inputs) != 2:
            continue
        for first, second in (operation.inputs, operation.inputs[::-1]):
            product, shift = made_by(first, "multiply"), made_by(second, "add", "subtract")
            if product is None or shift is None or len(product.inputs) != 2:
                continue
            found = next(((s, moved(shift, s)) for s in product.inputs if moved(shift, s)), None)
            if found is None:
                continue
            scale, (mean, bias) = found
            centred, scaled = fresh(), fresh()
            result[-1:] = [
                replace(
                    operation,
                    kind="subtract",
                    inputs=(_other(product, scale), mean),
                    outputs=(centred,),
                    attributes=_TWO,
                ),
                replace(operation, kind="multiply", inputs=(centred, scale), outputs=(scaled,), attributes=_TWO),
                replace(operation, inputs=(scaled, bias), attributes=_TWO),
            ]
            break
    return result


def _other(operation: Operation, number: int) -> int:
    """Return the input besides one."""
    left, right = operation.inputs
    return right if left == number else left

"""The dropouts of a recorded pass: their rates, what they drop, and whether they scale what they keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from diffusion_core.parity.diff.findings import Place
from diffusion_core.parity.diff.recording import Operation, Pass

__all__ = ["Dropout", "dropouts", "same_dropouts"]

# What may lie between a draw and the numbers that it drops.
_MASKS = (
    "cast",
    "greater_equal",
    "greater",
    "less",
    "less_equal",
    "floor",
    "logical_not",
    "reshape",
    "expand",
    "identity",
)
_SCALES = ("multiply", "divide")


@dataclass(frozen=True)
class Dropout:
    """One dropout.

    Attributes:
        rate: the fraction that is dropped.
        channels: whether whole channels are dropped.
        scaled: whether what is kept is divided by 1 - rate.
        size: how many numbers it reads.
        place: where it is.
        read, made: the numbers of the values before and behind it, scaling included.
    """

    rate: float
    channels: bool
    scaled: bool
    size: int
    place: Place
    read: int
    made: int


def dropouts(record: Pass) -> list[Dropout]:
    """Return the dropouts of a pass, in order; other random numbers are passed over."""
    readers: dict[int, list[Operation]] = {}
    makers: dict[int, Operation] = {}
    for operation in record.operations:
        for number in operation.inputs:
            readers.setdefault(number, []).append(operation)
        for number in operation.outputs:
            makers[number] = operation
    found = []
    for operation in record.operations:
        if operation.kind == "random":
            one = _dropout(operation, record, readers, makers)
            if one is not None:
                found.append(one)
    return found


def _dropout(
    draw: Operation, record: Pass, readers: dict[int, list[Operation]], makers: dict[int, Operation]
) -> Dropout | None:
    mask, factors, rate = draw.outputs[0], [], draw.attributes.get("rate")
    for _ in range(8):
        following = readers.get(mask, [])
        if len(following) != 1:
            return None
        operation = following[0]
        scalar = operation.attributes.get("scalar")
        if operation.kind in _SCALES and scalar is not None:
            factors.append(_factor(operation))
        elif operation.kind == "add" and scalar is not None:  # floor(u + keep)
            rate = 1 - scalar if rate is None else rate
        elif operation.kind in ("greater_equal", "greater", "less", "less_equal") and scalar is not None:
            rate = scalar if rate is None and operation.kind.startswith("greater") else rate
            rate = 1 - scalar if rate is None else rate
        elif operation.kind not in _MASKS:
            break
        mask = operation.outputs[0]
    operation = readers[mask][0]
    others = [n for n in operation.inputs if n != mask and n in record.values]
    result = record.values.get(operation.outputs[0])
    if operation.kind not in ("where", "multiply", "divide") or not others or result is None or result.size == 0:
        return None
    x = max(others, key=lambda n: record.values[n].size)
    before, after = makers.get(x), readers.get(operation.outputs[0], [])
    scales = [each for each in (before, after[0] if len(after) == 1 else None) if each is not None]
    scales = [each for each in scales if each.kind in _SCALES and each.attributes.get("scalar") is not None]
    factors += [_factor(each) for each in scales]
    drawn = record.values.get(mask)
    if drawn is not None and drawn.dtype.kind == "f" and drawn.size and operation.kind == "multiply":
        factors.append(float(np.max(drawn)))
    if rate is None:
        rate = float(np.mean(np.asarray(result) == 0))
    if not 0 < rate < 1:
        return None
    scaled = any(abs(f * (1 - rate) - 1) < 1e-4 for f in factors) or float(np.prod(factors)) * (1 - rate) == 1
    own = [each for each in scales if abs(_factor(each) * (1 - rate) - 1) < 1e-4]
    read = before.inputs[0] if before in own else x
    made = after[0].outputs[0] if any(each is not before for each in own) else operation.outputs[0]
    size = result.size
    drawn_size = record.values[draw.outputs[0]].size if draw.outputs[0] in record.values else np.size(drawn)
    place = Place(operation.layer, operation.source, operation.code, operation.native, "dropout")
    return Dropout(float(rate), bool(1 < drawn_size < size), bool(scaled), int(size), place, read, made)


def _factor(operation: Operation) -> float:
    scalar = float(operation.attributes["scalar"])
    return 1 / scalar if operation.kind == "divide" and scalar else scalar


def same_dropouts(a: Sequence[Dropout], b: Sequence[Dropout]) -> list[tuple[Dropout | None, Dropout | None]]:
    """Return pairs of dropouts in the same place: in order, of the same size; None where one side has none."""
    if len(a) == len(b):
        return list(zip(a, b, strict=True))
    sizes = [d.size for d in a], [d.size for d in b]
    pairs: list[tuple[Dropout | None, Dropout | None]] = []
    for what, i, j, k, m in SequenceMatcher(None, *sizes, autojunk=False).get_opcodes():
        if what == "equal":
            pairs += list(zip(a[i:j], b[k:m], strict=True))
        else:
            pairs += [(d, None) for d in a[i:j]] + [(None, d) for d in b[k:m]]
    return pairs

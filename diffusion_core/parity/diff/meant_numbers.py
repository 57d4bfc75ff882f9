r"""The number that a number of float32 stands for.

Frameworks keep some of their constants in float32, also where they compute in float64: TensorFlow's GELU multiplies by
0.7071067690849304, which is the root of one half rounded to 24 bits, and a leaky ReLU has the slope 0.20000000298. That
is a property of a framework and makes no two models unequal. A number x that float32 holds exactly is taken for

    a short decimal,   a fraction p/q or its root sqrt(p/q),   or one of pi, sqrt(2/pi), log 2 ...

if that number, rounded to float32, is x. All other numbers, and those of few binary digits, stand for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import numpy as np

from diffusion_core.parity.diff.recording import Operation

__all__ = ["meant", "with_meant_numbers"]

# Constants that are neither short nor roots; the last two are those of SELU.
_KNOWN = (
    *(math.pi * x for x in (1.0, 2.0, 0.5)),
    *(math.sqrt(x) for x in (math.pi, 2 * math.pi, math.pi / 2)),
    *(math.log(x) for x in (2.0, 10.0, 10000.0, 2 * math.pi)),
    *(math.e, 1.0507009873554805, 1.6732632423543772),
)
_DENOMINATOR, _SQUARE = 1024, 256
# A number of so few binary digits is one that people write as it is, such as 0.375.
_DIGITS = 16


@lru_cache(4096)
def meant(number: float) -> float:
    """Return the number that one of float32 stands for, else the number itself."""
    if not math.isfinite(number) or float(np.float32(number)) != number or number == 0:
        return number
    if abs(number.as_integer_ratio()[0]).bit_length() <= _DIGITS:
        return number
    sign, size = math.copysign(1.0, number), abs(number)
    for candidate in _candidates(size):
        if candidate < 3e38 and float(np.float32(candidate)) == size:
            return sign * candidate
    return number


def _candidates(size: float) -> Iterator[float]:
    yield from (float(f"{size:.{digits}g}") for digits in range(1, 7))
    for known in _KNOWN:
        yield from (known, 1 / known)
    if 1e-3 < size < 1e3:
        yield float(Fraction(size).limit_denominator(_DENOMINATOR))
        square = Fraction(size * size).limit_denominator(_SQUARE)
        yield math.sqrt(square)
        if square:
            yield math.sqrt(1 / Fraction(1 / (size * size)).limit_denominator(_SQUARE))


def with_meant_numbers(operations: Sequence[Operation], lifted: bool) -> tuple[Operation, ...]:
    """Write the numbers of operations as they are meant; with `lifted`, all of them were rounded to float32 before."""

    def exact(value: object) -> object:
        if not isinstance(value, float):
            return value
        with np.errstate(all="ignore"):
            rounded = float(np.float32(value)) if lifted else value
        return meant(rounded) if math.isfinite(rounded) else value

    def changed(attributes: Mapping[str, object]) -> dict[str, object]:
        return {name: exact(value) for name, value in attributes.items()}

    return tuple(replace(o, attributes=changed(o.attributes)) if o.attributes else o for o in operations)

"""Numbers that frameworks keep in float32: what they stand for, and that they make no two models unequal."""

from __future__ import annotations

import math

import numpy as np
import pytest
from written import Tape, both, weights

from diffusion_core.parity.diff.comparison import compare_pass
from diffusion_core.parity.diff.meant_numbers import meant


@pytest.mark.parametrize(
    "number", [0.5**0.5, math.sqrt(2 / math.pi), 0.044715, 1 / 6, 0.2, 1e-5, 1 / 127.5, 6**-0.5, -0.1, math.log(10000)]
)
def test_a_number_of_float32_stands_for_the_exact_one(number: float) -> None:
    rounded = float(np.float32(number))
    assert rounded != number
    assert meant(rounded) == number
    assert meant(number) == number


@pytest.mark.parametrize("number", [0.0, 1.0, 0.375, 2.0**-20, 0.3 + 1e-12, 3.4028234663852886e38, -math.inf, -1e9])
def test_all_other_numbers_stand_for_themselves(number: float) -> None:
    assert meant(number) == number


def gelu(tape: Tape) -> int:
    """A GELU between two matrices, the factor before its erf in some precision."""
    x = tape.linear(tape.input(weights("x", 5, 6)), "first", 8)
    half = float(np.dtype(tape.get("dtype", "float64")).type(0.5**0.5))
    inner = tape("add", tape("erf", tape("multiply", x, scalar=half)), scalar=1.0)
    y = tape("multiply", tape("multiply", x, scalar=0.5), inner)
    return tape.linear(tape("multiply", y, scalar=tape.get("factor", 1.5)), "last", 3)


def test_a_constant_in_float32_is_no_difference() -> None:
    a, b = both(gelu, {}, {"dtype": "float32"})
    apart = np.abs(a.values[a.outputs["0"]] - b.values[b.outputs["0"]]).max()
    assert apart > 1e-10
    assert not compare_pass(a, b, None, "forward").findings


def test_a_difference_beside_a_constant_in_float32_is_found_alone() -> None:
    a, b = both(gelu, {}, {"dtype": "float32", "factor": 1.25})
    (finding,) = compare_pass(a, b, None, "forward").findings
    assert finding.status == "verified" and "1.25" in finding.b_does + finding.a_does

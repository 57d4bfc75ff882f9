"""Levels of repeated looks: all looks together have the level that was planned."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtr

from diffusion_core.common.errors import DuetError
from diffusion_core.statistics.sequential import SPENDING, look_levels


def rejections(counts: tuple[int, ...], levels: tuple[float, ...], sides: int, studies: int = 20_000) -> float:
    """The fraction of studies of equal arms in which a t test rejects at any look."""
    x = np.random.default_rng(1).normal(size=(studies, counts[-1]))
    rejected = np.zeros(studies, bool)
    for count, level in zip(counts, levels, strict=True):
        seen = x[:, :count]
        t = seen.mean(axis=1) / (seen.std(axis=1, ddof=1) / math.sqrt(count))
        rejected |= (stdtr(count - 1, -t) if sides == 1 else 2 * stdtr(count - 1, -np.abs(t))) < level
    return float(rejected.mean())


@pytest.mark.parametrize(("counts", "spending", "sides"), [((5, 10), "pocock", 2), ((3, 9), "obrien_fleming", 1)])
def test_all_looks_together_have_the_level(counts, spending, sides):
    planned = max(counts[-1], 9)
    levels = look_levels(counts, planned, 0.05, spending, sides)
    spent = SPENDING[spending](0.05, counts[-1] / planned)
    assert abs(rejections(counts, levels, sides) - spent) < 4 * math.sqrt(spent / 20_000) + 0.001
    assert rejections(counts, (0.05,) * len(counts), sides) > spent + 0.01  # without spending


def test_a_single_planned_look_has_the_whole_level():
    assert all(look_levels((5,), 5, 0.05, spending) == (pytest.approx(0.05, rel=1e-12),) for spending in SPENDING)
    assert all(function(0.05, 1.0) == pytest.approx(0.05) for function in SPENDING.values())


def test_looks_that_were_not_planned_are_refused():
    for counts, planned in (((5, 10), 8), ((5, 5), 8), ((1, 5), 8), ((), 8)):
        with pytest.raises(DuetError, match="looks: "):
            look_levels(counts, planned, 0.05)
    with pytest.raises(DuetError, match="Did you mean 'pocock'"):
        look_levels((5,), 5, 0.05, "pocok")

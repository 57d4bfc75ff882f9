"""Rows hold the numbers of the plan's tables, and segments contain every row in order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.parity import cases
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.rows import RowSegment

PROCESS = Process(linear(), "eps")
RECURRENCE = cases.PLANS["two registers, three estimates"]
LEARNED = make_plan(PROCESS, "ddpm", steps=6, variance="learned_range").with_guidance(1.0, classifier=0.5)


def form(plan: SamplerPlan, row: int):
    return next(segment.signature for segment in plan.segments() if row in segment.rows)


@pytest.mark.parametrize("plan", [RECURRENCE, LEARNED, ddim(PROCESS, 5, eta=0.5)], ids=lambda plan: plan.name)
def test_rows_hold_the_numbers_of_the_tables(plan):
    numbers = plan.coefficients()
    for i in range(plan.rows):
        row = form(plan, i).row(numbers[i].tolist())
        for name in ("c_noise", "c_in", "c_skip", "c_out", "guidance_scale"):
            assert getattr(row, name) == getattr(plan, name)[i], name
        assert row.classifier == (0.0 if plan.classifier is None else plan.classifier[i])
        for name in ("state", "denoised", "noise"):
            np.testing.assert_array_equal(getattr(row, name), getattr(plan, name)[i], strict=True)


def test_rows_without_noise_have_no_learned_variance():
    numbers, noisy = LEARNED.coefficients(), LEARNED.is_noisy
    rows = [form(LEARNED, i).row(numbers[i]) for i in range(LEARNED.rows)]
    assert noisy.any() and not noisy.all()
    for row, is_noisy, learned in zip(rows, noisy, LEARNED.learned, strict=True):
        assert row.learned == (tuple(learned) if is_noisy else (0.0, 0.0))
    assert form(LEARNED, 0).learned and form(LEARNED, 0).classified and not form(RECURRENCE, 0).learned


@pytest.mark.parametrize("longest", [None, 1, 3])
@pytest.mark.parametrize("ends", [(), (0,), (2, 6), range(8)])
def test_segments_cover_all_rows_and_end_at_the_requested_rows(longest, ends):
    segments = list(RECURRENCE.segments(longest, ends))
    assert [row for segment in segments for row in segment.rows] == list(range(RECURRENCE.rows))
    last = {segment.rows[-1] for segment in segments}
    assert set(ends) <= last
    assert max(len(segment.rows) for segment in segments) <= (longest or RECURRENCE.rows)
    for segment in segments:
        assert set(RECURRENCE.is_guided[list(segment.rows)]) == {segment.signature.guided}
    if longest is None:  # no unnecessary boundary
        turns = np.flatnonzero(np.diff(RECURRENCE.is_guided))
        assert last == {*turns, *ends, RECURRENCE.rows - 1}


def test_plans_with_the_same_computation_share_a_signature():
    short, long = ddim(PROCESS, 5), ddim(PROCESS, 50, eta=0.5)
    assert form(short, 0) == form(long, 49) and hash(form(short, 0)) == hash(form(long, 49))
    others = [
        short.with_guidance(2.0),
        replace(short.with_guidance(2.0), guidance_channels=1),
        replace(short, clip=2.0),
        short.with_value_range((0.0, 1.0)),
        RECURRENCE,
        LEARNED,
    ]
    forms = {form(plan, 0) for plan in (short, *others)}
    assert len(forms) == 1 + len(others)
    # An option that unguided rows do not use does not change their signature.
    assert form(short.with_guidance(1.0, rescale=0.7), 0) == form(short, 0)


def test_an_unguided_plan_is_one_segment():
    assert list(ddim(PROCESS, 5).segments()) == [RowSegment(form(ddim(PROCESS, 5), 0), range(5))]

"""One framework against the other, from the records that `experiments.trace` wrote in the two environments."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.parity import cases
from diffusion_core.parity.compare import PRECISIONS
from diffusion_core.parity.ladder import RUNGS

pytestmark = pytest.mark.exchange

BOTH = pytest.mark.parametrize("precision", PRECISIONS)
NAMES = ("torch", "tf")
# How many checks each rung has in one precision, so that none can go missing unseen.
BLOCKS, NETWORKS, PLANS = len(cases.BLOCKS), len(cases.NETWORKS), len(cases.PLANS)
SHORT = sum(plan.rows <= 20 for plan in cases.PLANS.values())
LOSSES, GIVEN = len(cases.LOSSES), sum(case.program.self_conditioned for case in cases.LOSSES)
OWN = {
    1: 2 * 6 + 4 * LOSSES,
    2: BLOCKS + 3 * 4 + 3 * 2,
    3: NETWORKS + GIVEN + 1,
    4: 2,
    5: 8,
    6: GIVEN + SHORT + NETWORKS + 3,
}
COMPARED = {0: 7, 2: BLOCKS, 4: 3 * (NETWORKS + LOSSES) + 1, 6: 2 * (2 * PLANS + 1) + 2, 7: 11, 8: 2 * 6}


def assert_all_passed(checks, count):
    failed = [f"{c.name} ({c.backend}): {c.error:.3g} > {c.tolerance:.3g}" for c in checks if not c.passed]
    assert not failed
    assert len(checks) == count
    assert len({(c.name, c.backend) for c in checks}) == count


@BOTH
@pytest.mark.parametrize("rung", OWN)
@pytest.mark.parametrize("name", NAMES)
def test_a_backend_agrees_with_the_reference(exchange, name, rung, precision):
    checks = [c for c in exchange.own[name] if (c.rung, c.precision) == (rung, precision)]
    assert_all_passed(checks, OWN[rung])
    assert {c.backend for c in checks} == {name}


@BOTH
@pytest.mark.parametrize("rung", COMPARED)
def test_the_backends_agree_with_each_other(exchange, rung, precision):
    checks = [c for c in exchange.compared if (c.rung, c.precision) == (rung, precision)]
    assert_all_passed(checks, COMPARED[rung])


def test_no_other_checks_are_there(exchange):
    assert {r.number for r in RUNGS} == OWN.keys() | COMPARED.keys()
    assert len(exchange.compared) == len(PRECISIONS) * sum(COMPARED.values())
    assert all(len(checks) == len(PRECISIONS) * sum(OWN.values()) for checks in exchange.own.values())


@BOTH
@pytest.mark.parametrize("source, taker", [NAMES, NAMES[::-1]], ids="from {0[0]}".format)
@pytest.mark.parametrize("plan", cases.PLANS)
def test_final_uint8_images_are_identical(exchange, plan, source, taker, precision):
    """In float64 by the ladder; in float32 a pixel may be one level off where rounding meets the border of two."""
    own = exchange.arrays[f"{source}/{precision}"][f"6/{plan}/pixels"]
    taken = exchange.arrays[f"{taker}/handover/{precision}"][f"6/{plan}/pixels"]
    assert own.dtype == taken.dtype == np.uint8 and own.shape == taken.shape
    apart = np.abs(own.astype(int) - taken.astype(int))
    print(f"{plan}, {precision}: {np.count_nonzero(apart)} of {apart.size} pixels differ")
    assert apart.max() <= (1 if precision == "float32" else 0)
    assert len(np.unique(own)) > 50, "these are no images"

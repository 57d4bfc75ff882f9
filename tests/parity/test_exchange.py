"""One framework against the other, from the records that `experiments.trace` wrote in the two environments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.random import Stream
from diffusion_core.networks import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.parity import cases, target_cases
from diffusion_core.parity.compare import PRECISIONS, under
from diffusion_core.parity.ladder import RUNGS
from diffusion_core.parity.optimisers import OPTIMISERS

pytestmark = pytest.mark.exchange

BOTH = pytest.mark.parametrize("precision", PRECISIONS)
NAMES = ("torch", "tf")
# The number of checks of each rung in one precision, so that none can go missing unnoticed.
BLOCKS, NETWORKS, PLANS = len(cases.BLOCKS), len(cases.NETWORKS), len(cases.PLANS)
SHORT = sum(plan.rows <= 20 for plan in cases.PLANS.values())
LOSSES, GIVEN = len(cases.LOSSES), sum(case.program.self_conditioned for case in cases.LOSSES)
LEARNED = sum(spec.out_channels > spec.in_channels for spec in cases.NETWORKS.values())
MEASURED = len(cases.MEASURED_PLANS)
TRAINED = sum(case.has_training_mode for case in cases.BLOCKS)
TARGETS = 1 + len(target_cases.TRAINED)
OWN = {
    1: 2 * 6 + 5 * LOSSES + 2 + TARGETS,
    2: BLOCKS + 2 * TRAINED + 3 * 2,
    3: NETWORKS + GIVEN + 1,
    4: 2 + 1,
    5: 10 + 3 * len(OPTIMISERS) + 3,
    6: GIVEN + SHORT + NETWORKS + LEARNED + MEASURED + 3,
}
COMPARED = {
    0: 7, 2: BLOCKS, 4: 3 * (NETWORKS + LOSSES + TARGETS) + 1, 6: 2 * (2 * PLANS + 1) + 2, 7: 14 + 3, 8: 2 * (6 + 4),
}  # fmt: skip


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


def test_there_are_no_other_checks(exchange):
    assert {r.number for r in RUNGS} == OWN.keys() | COMPARED.keys()
    assert len(exchange.compared) == len(PRECISIONS) * sum(COMPARED.values())
    assert all(len(checks) == len(PRECISIONS) * sum(OWN.values()) for checks in exchange.own.values())


@BOTH
@pytest.mark.parametrize("source, taker", [NAMES, NAMES[::-1]], ids="from {0[0]}".format)
@pytest.mark.parametrize("plan", cases.PLANS)
def test_final_uint8_images_are_identical(exchange, plan, source, taker, precision):
    """Exact in float64; in float32 a pixel may differ by 1 if rounding crosses the border between two values."""
    own = exchange.arrays[f"{source}/{precision}"][f"6/{plan}/pixels"]
    taken = exchange.arrays[f"{taker}/handover/{precision}"][f"6/{plan}/pixels"]
    assert own.dtype == taken.dtype == np.uint8 and own.shape == taken.shape
    apart = np.abs(own.astype(int) - taken.astype(int))
    print(f"{plan}, {precision}: {np.count_nonzero(apart)} of {apart.size} pixels differ")
    assert apart.max() <= (1 if precision == "float32" else 0)
    assert len(np.unique(own)) > 50, "these are no images"


@pytest.mark.parametrize("case", cases.LOSSES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_derivative_of_every_reference_loss(exchange, name, case):
    """Rung 4 without the other framework, along one direction of weight space; parts without gradient are frozen."""
    weights, batch = cases.scattered_weights(case.program), case.batch

    def loss(moved: Weights) -> float:
        losses, _ = reference.per_image_losses(case.program, moved, batch, case.objective.distance, frozen=weights)
        return float(np.mean(batch.importance * losses))

    assert_slope(under(exchange.arrays[f"{name}/float64"], f"4/{case.name}/"), case.program, weights, loss)


@pytest.mark.parametrize("case", cases.BLOCKS, ids=lambda case: case.name)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_derivative_of_the_reference_loss(exchange, name, case):
    """The same for every block."""
    weights = cases.scattered_weights(case.program, case.gain)
    batch = cases.noise_batch(case.program, case.shape)
    gradients = under(exchange.arrays[f"{name}/float64"], f"2/{case.name}/")

    def loss(moved: Weights) -> float:
        losses, _ = reference.per_image_losses(case.program, moved, batch, "mse", frozen=weights)
        return float(np.mean(batch.importance * losses))

    assert_slope(gradients, case.program, weights, loss)


def assert_slope(
    gradients: Weights, program: Program, weights: Weights, loss: Callable[[Weights], float], h: float = 1e-5
) -> None:
    """Compare gradients with a difference quotient of fourth order: large logits have large third derivatives."""
    direction = {
        p.name: Stream(cases.SEED, f"test/direction/{p.name}").normal([0], p.shape)[0] for p in program.trained
    }
    slope = sum(float(np.sum(gradients[name] * direction[name])) for name in direction)
    size = np.sqrt(sum(np.sum(g**2) for g in gradients.values()) * sum(np.sum(d**2) for d in direction.values()))
    quotient = sum(
        factor * loss(weights | {name: weights[name] + steps * h * direction[name] for name in direction})
        for steps, factor in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0))
    ) / (12 * h)
    assert slope == pytest.approx(quotient, abs=1e-8 * size)

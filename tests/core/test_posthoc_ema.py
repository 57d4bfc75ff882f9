"""Post-hoc EMA: exact where it can be, otherwise the nearest combination, and nearer with more snapshots."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.optim import Fixed, HalfLife, InverseGamma, Power, Warmup, combine, ema_update, step_weights
from diffusion_core.optim.posthoc_ema import _rows

BATCH, LAST = 8, 600
MIXED = [(Power(0.05), 90), (Warmup(0.99), 90), (Power(0.05), 200), (Fixed(0.97, 150), 333), (Warmup(0.99), 333),
         (Power(0.2), 334), (HalfLife(400.0), 599), (Power(0.05), LAST), (InverseGamma(start=7), LAST)]  # fmt: skip


def dense(averages, batch: int = BATCH) -> np.ndarray:
    """Return the step weights, one column per average."""
    last = max(updates for _, updates in averages)
    columns = [np.append(step_weights(p, updates, batch), np.zeros(last - updates)) for p, updates in averages]
    return np.stack(columns, axis=1)


def two_powers(count: int, last: int = LAST) -> list[tuple[Power, int]]:
    """Return the snapshots of a run that stores two averages at `count` moments."""
    moments = np.arange(1, count + 1) * last // count
    return [(Power(sigma_rel), int(updates)) for updates in moments for sigma_rel in (0.05, 0.1)]


def trajectory(last: int = LAST) -> np.ndarray:
    """Return weights that approach their goals with noise, after each update, with shape (last + 1, 50)."""
    rng = np.random.default_rng(0)
    time = np.arange(last + 1)[:, None]
    walk = 0.05 * np.cumsum(rng.normal(size=(last + 1, 50)), axis=0) / np.sqrt(last)
    return (
        rng.normal(size=50) + np.exp(-time / 80) * rng.normal(size=50) + walk + 0.05 * rng.normal(size=(last + 1, 50))
    )


def test_reduced_rows_have_the_inner_products_of_all_steps():
    whole, rows = dense(MIXED), _rows(MIXED, BATCH)
    assert len(rows) < 60 < len(whole)
    np.testing.assert_allclose(rows.T @ rows, whole.T @ whole, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize(
    "wanted", [(Power(0.15), LAST), (Warmup(0.95), 400), (Fixed(0.99), 100), (HalfLife(150.0), 599)]
)
def test_the_combination_is_the_nearest_one_with_sum_1(wanted):
    made = combine(MIXED, wanted, BATCH)
    whole = dense([*MIXED, wanted])
    target, columns = whole[:, -1], whole[:, :-1]
    assert made.coefficients.sum() == pytest.approx(1, abs=1e-14)
    residual = columns @ made.coefficients - target
    assert np.linalg.norm(residual) / np.linalg.norm(target) == pytest.approx(made.error, rel=1e-9)
    # No change that preserves the sum reduces the error: the gradient is the same for every coefficient.
    gradient = columns.T @ residual
    assert np.ptp(gradient) <= 1e-13 * np.linalg.norm(target)
    assert made.error > 1e-4 and abs(gradient.mean()) > 0


@pytest.mark.parametrize("index", range(len(MIXED)))
def test_a_stored_average_is_returned_exactly(index):
    made = combine(MIXED, MIXED[index], BATCH)
    assert made.error == 0 and np.array_equal(made.coefficients, np.arange(len(MIXED)) == index)


def test_a_single_snapshot_has_coefficient_1():
    assert combine([(Power(0.1), 7)], (Fixed(0.5), 7), BATCH).coefficients.tolist() == [1.0]


@pytest.mark.parametrize("wanted", [Power(0.07), Power(0.15)], ids=str)
def test_the_error_falls_with_the_square_of_the_number_of_snapshots(wanted):
    """Measured for Power(0.07): 3.5e-2, 1.3e-2, 3.8e-3, 9.9e-4 and 2.5e-4 with 4, 8, 16, 32 and 64 moments."""
    errors = [combine(two_powers(count), (wanted, LAST), BATCH).error for count in (4, 8, 16, 32, 64)]
    order = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(order > 1.3) and np.all(np.abs(order[-2:] - 2) < 0.1)
    assert errors[-1] < 1e-3


def test_the_error_falls_for_a_profile_of_another_kind():
    errors = [combine(two_powers(count), (HalfLife(200.0), LAST), BATCH).error for count in (4, 16, 64)]
    assert errors[0] < 4e-3 and all(b < a / 2 for a, b in pairwise(errors))


@pytest.mark.parametrize("wanted", [Power(0.07), Power(0.15)], ids=str)
def test_the_average_itself_is_nearer_with_more_snapshots(wanted):
    """Compared with the average computed update by update; the weights move by about 1, with noise of 0.05."""
    values = trajectory()

    def track(profile, updates):
        average = {"p": values[0]}
        for k in range(1, updates + 1):
            average = ema_update(average, {"p": values[k]}, float(profile(k, k * BATCH, BATCH)))
        return average["p"]

    kept = {count: np.stack([track(*one) for one in two_powers(count)]) for count in (4, 8, 16, 32)}
    aim = track(wanted, LAST)
    errors = [
        np.sqrt(np.mean((combine(two_powers(count), (wanted, LAST), BATCH).coefficients @ stored - aim) ** 2))
        for count, stored in kept.items()
    ]
    near = min(np.sqrt(np.mean((stored - aim) ** 2)) for stored in kept[32])
    assert all(b < a / 1.5 for a, b in pairwise(errors))
    assert errors[-1] < 0.02 * near


def correlation(a: Power, n: float, b: Power, m: float) -> float:
    """The integral of the product of two power functions (Karras et al., 2024, eq. 151)."""
    (_, early), (long, late) = sorted([(a, n), (b, m)], key=lambda pair: pair[1])
    return (a.gamma + 1) * (b.gamma + 1) * (early / late) ** long.gamma / ((a.gamma + b.gamma + 1) * late)


@pytest.mark.parametrize("pair", [((0.05, 1.0), (0.1, 1.0)), ((0.05, 0.4), (0.1, 1.0)), ((0.05, 1.0), (0.1, 0.4))])
def test_inner_products_converge_to_the_published_ones_for_small_steps(pair):
    (a, first), (b, second) = ((Power(sigma_rel), part) for sigma_rel, part in pair)
    wanted = correlation(a, first, b, second)
    errors = []
    for steps in (250, 500, 1000):
        whole = dense([(a, int(first * steps)), (b, int(second * steps)), (a, steps)])
        errors.append(abs(steps * (whole[:, 0] @ whole[:, 1]) / wanted - 1))
    assert errors[-1] < 1e-3 and all(1.8 < early / late < 4.2 for early, late in pairwise(errors))


def test_the_combination_converges_to_the_published_one_for_small_steps():
    """Algorithm 3 of the paper, normalised to sum 1, has the same limit."""
    stored, wanted, last = two_powers(6, 6000), Power(0.07), 6000
    gram = np.array([[correlation(p, n, q, m) for q, m in stored] for p, n in stored])
    published = np.linalg.solve(gram, [correlation(p, n, wanted, last) for p, n in stored])
    made = combine(stored, (wanted, last), BATCH)
    assert np.abs(published / published.sum() - made.coefficients).max() < 5e-3
    whole = dense([*stored, (wanted, last)])
    residual = whole[:, :-1] @ (published / published.sum()) - whole[:, -1]
    assert made.error <= np.linalg.norm(residual) / np.linalg.norm(whole[:, -1]) < 1.02 * made.error


def test_the_published_coefficients_are_those_of_the_original_code():
    """solve_posthoc_coefficients of NVlabs/edm2 at 4bf8162, in units of 64 images."""
    stored = [(Power(sigma_rel), updates) for sigma_rel in (0.05, 0.1) for updates in (16, 32, 48)]
    at_the_end = [
        6.270359942266473e-07, 0.002799855890083093, 0.44107660335378096, -1.5402829896924526e-05,
        -0.019045651429477242, 0.5751839679795159,
    ]  # fmt: skip
    made = combine(stored, (Power(0.07), 48), 64, "power")
    np.testing.assert_allclose(made.coefficients, at_the_end, rtol=1e-10, atol=1e-14)
    # What was stored later is not used.
    earlier = [-0.06706259183397976, -0.47266002306412874, 0, 0.1860261508440393, 1.3536964640540692, 0]
    made = combine(stored, (Power(0.2), 32), 64, "power")
    np.testing.assert_allclose(made.coefficients, earlier, rtol=1e-10, atol=0)
    assert made.error > combine(stored, (Power(0.2), 32), 64).error


def test_the_published_coefficients_are_of_power_functions_only():
    with pytest.raises(DuetError, match=r"fit: power was given with Fixed.*; it takes power functions only"):
        combine([(Fixed(0.9), 8)], (Power(0.1), 8), BATCH, "power")
    with pytest.raises(DuetError, match="fit: power was given, but no average was stored until that moment"):
        combine([(Power(0.1), 8)], (Power(0.1), 4), BATCH, "power")
    with pytest.raises(DuetError, match="fit: 'closed' was given; it must be one of steps, power"):
        combine([(Power(0.1), 8)], (Power(0.1), 8), BATCH, "closed")


def test_a_constant_in_all_weights_is_preserved():
    made = combine(two_powers(4), (Power(0.07), LAST), BATCH)
    assert made.coefficients @ np.full(8, 1e6) == pytest.approx(1e6, rel=1e-14)


@pytest.mark.parametrize("updates", [0, LAST + 1])
def test_reconstruction_outside_the_range_of_the_snapshots_is_refused(updates):
    with pytest.raises(DuetError, match=rf"images: {updates * BATCH} .* between {BATCH} and {LAST * BATCH}"):
        combine(two_powers(4), (Power(0.07), updates), BATCH)
    with pytest.raises(DuetError, match="there are none to combine"):
        combine([], (Power(0.07), 1), BATCH)

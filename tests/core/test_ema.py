"""Moving averages: decays computed by hand, closed forms of the profiles, fixed points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.common.errors import DuetError
from diffusion_core.optim import (
    PROFILES,
    Ema,
    Fixed,
    HalfLife,
    InverseGamma,
    Power,
    Profile,
    Warmup,
    ema_update,
    make_ema,
    make_profile,
    power_exponent,
    profile_options,
    step_weights,
    update_fractions,
)

BATCH = 4


def decay(profile: Profile, k: int, batch: int = BATCH) -> float:
    """Return the decay of update k in a run with constant batch size."""
    return float(profile(k, k * batch, batch))


def tracked(profile: Profile, values: np.ndarray, batch: int = BATCH) -> float:
    """Return the average, updated step by step, of a number that starts at values[0] and then is values[k]."""
    average = {"p": values[:1]}
    for k, value in enumerate(values[1:], 1):
        average = ema_update(average, {"p": np.array([value])}, decay(profile, k, batch))
    return average["p"][0]


# Decays


def test_warmup_follows_its_formula_until_the_final_decay():
    assert [decay(Warmup(0.9999), k) for k in (1, 2, 8)] == [2 / 11, 3 / 12, 9 / 18]
    assert decay(Warmup(0.9999), 10**9) == 0.9999 and decay(Warmup(0.1), 1) == 0.1
    decays = [decay(Warmup(0.9999), k) for k in range(1, 2000)]
    assert decays == sorted(decays) and max(decays) <= 0.9999


def test_a_fixed_decay_is_constant():
    assert {decay(Fixed(0.5), k) for k in (1, 2, 1000)} == {0.5}


def test_a_half_life_is_ramped_up_with_the_images_seen_before_the_update():
    profile = HalfLife(images=1000, ramp=0.5)
    # Batches of 100: before updates 1, 2, 11, 21 and 100 there were 0, 100, 1000, 2000 and 9900 images.
    expected = {1: 0.0, 2: 0.5**2, 11: 0.5**0.2, 21: 0.5**0.1, 100: 0.5**0.1}
    for k, wanted in expected.items():
        assert decay(profile, k, batch=100) == pytest.approx(wanted, rel=1e-15, abs=0), k
    assert decay(HalfLife(1000, None), 1, batch=100) == pytest.approx(0.5**0.1, rel=1e-15)


@pytest.mark.parametrize("batch", [10, 50])
def test_a_half_life_halves_the_old_weights_for_every_batch_size(batch):
    # The weights are 1 at first and 0 for one half-life.
    profile = HalfLife(1000, None)
    assert tracked(profile, np.append(1.0, np.zeros(1000 // batch)), batch) == pytest.approx(0.5, rel=1e-12)


def test_an_inverse_gamma_rises_as_a_power_of_the_updates_between_its_bounds():
    profile = InverseGamma(inv_gamma=2.0, power=0.5, min_decay=0.1, max_decay=0.6)
    # (1 + (k - 1) / 2)^(-1/2) at k = 1, 2, 7, 31 is 1, (2/3)^(1/2), 1/2, 1/4.
    expected = {1: 0.1, 2: 1 - (2 / 3) ** 0.5, 7: 0.5, 31: 0.6}
    assert {k: pytest.approx(decay(profile, k), rel=1e-15) for k in expected} == expected
    # The documentation of the original: decay 0.999 after 31.6 thousand updates with power 2/3.
    assert decay(InverseGamma(), 31_623) == pytest.approx(0.999, abs=1e-7)


def test_the_decay_of_a_power_function_is_a_power_of_1_minus_1_over_k():
    profile = Power(0.1)
    assert decay(profile, 1) == 0.0
    for k in (2, 10, 1000):
        assert decay(profile, k) == pytest.approx((1 - 1 / k) ** (profile.gamma + 1), rel=1e-14)
    # With a changed batch size, the base is the fraction of images seen before the update.
    assert float(profile(7, 1000, 250)) == pytest.approx(0.75 ** (profile.gamma + 1), rel=1e-15)


@pytest.mark.parametrize("make", [Fixed, Warmup, lambda decay, start=0: InverseGamma(max_decay=decay, start=start)])
def test_an_average_that_starts_later_follows_the_weights_until_then(make):
    late, soon = make(0.99, start=5), make(0.99)
    assert [decay(late, k) for k in range(1, 6)] == [0.0] * 5
    assert [decay(late, k) for k in range(6, 3000)] == [decay(soon, k) for k in range(1, 2995)]
    # After the last of them the average equals the weights, whatever it was before.
    values = np.random.default_rng(0).normal(size=6)
    assert tracked(late, values) == pytest.approx(values[5], abs=1e-15)


ALL = [Fixed(0.9), Fixed(0.9, 3), Warmup(0.99), Warmup(0.9, 2), HalfLife(30.0), HalfLife(30.0, None),
       HalfLife(30.0, 0.5), InverseGamma(), InverseGamma(3.0, 0.75, 0.2, 0.9, 2), Power(0.05), Power(0.2)]  # fmt: skip


@pytest.mark.parametrize("profile", ALL, ids=str)
def test_a_profile_accepts_arrays_of_updates(profile):
    k = np.arange(1, 40)
    # Equal up to the last bit: NumPy computes powers of numbers and of arrays differently.
    each = [decay(profile, int(one)) for one in k]
    np.testing.assert_allclose(profile(k, k * BATCH, BATCH), each, rtol=1e-15, atol=0)


@pytest.mark.parametrize("profile", ALL, ids=str)
def test_a_profile_is_restored_from_its_options(profile):
    assert make_profile(**profile_options(profile)) == profile


# The weight of each step in an average


@pytest.mark.parametrize("profile", ALL, ids=str)
def test_step_weights_reproduce_the_average_and_sum_to_1(profile):
    values = np.random.default_rng(1).normal(size=31)
    weights = step_weights(profile, 30, BATCH)
    assert weights.shape == (31,) and np.all(weights >= 0)
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    assert tracked(profile, values) == pytest.approx(weights @ values, abs=1e-14)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_step_weights_of_a_fixed_decay_are_geometric(n):
    expected = np.append(0.9**n, 0.1 * 0.9 ** np.arange(n - 1, -1, -1.0))
    np.testing.assert_allclose(step_weights(Fixed(0.9), n, BATCH), expected, rtol=1e-12)


def test_step_weights_of_the_warmup_are_a_product_of_its_ratios():
    # d_{j+1} ... d_n = (n + 1)! / (j + 1)! (10 + j)! / (10 + n)!, which is a ratio of polynomials of degree 9.
    n = 40

    def up(j: np.ndarray) -> np.ndarray:
        return np.prod([j + i for i in range(2, 11)], axis=0)

    j = np.arange(n + 1.0)
    kept = up(j) / up(np.array(float(n)))
    expected = np.where(j == 0, 1.0, 9 / (10 + j)) * kept
    np.testing.assert_allclose(step_weights(Warmup(0.9999), n, BATCH), expected, rtol=1e-12)


def test_step_weights_of_a_ramped_half_life_have_a_closed_form():
    # Where h = ramp n the weight of step j falls from now as the product of 2^(-1 / (ramp k)).
    n, ramp = 30, 0.5
    k = np.arange(1, n)
    kept = np.append(np.cumprod(0.5 ** (1 / (ramp * k[::-1])))[::-1], 1.0)
    own = np.append(1.0, 1 - 0.5 ** (1 / (ramp * k)))
    np.testing.assert_allclose(step_weights(HalfLife(1e9, ramp), n, BATCH)[1:], own * kept, rtol=1e-12)


def test_inverse_gamma_with_1_and_1_is_the_plain_mean():
    n = 30
    weights = step_weights(InverseGamma(1.0, 1.0, max_decay=1.0), n, BATCH)
    np.testing.assert_allclose(weights, np.append(0, np.full(n, 1 / n)), rtol=1e-12)
    np.testing.assert_allclose(step_weights(Power(12**-0.5), n, BATCH), weights, rtol=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("n", [1, 3, 100, 1000])
def test_step_weights_of_a_power_function_are_the_integrals_of_its_density(sigma_rel, n):
    profile, j = Power(sigma_rel), np.arange(n + 1.0)
    expected = np.append(0.0, np.diff((j / n) ** (profile.gamma + 1)))
    np.testing.assert_allclose(step_weights(profile, n, BATCH), expected, rtol=1e-11, atol=1e-30)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_the_std_of_a_power_function_is_a_fixed_fraction_of_the_run(sigma_rel):
    """Up to the error of n points in place of a density, at most 1 / (24 n^2 sigma_rel)."""
    for n in (200, 400, 800):
        weights, j = step_weights(Power(sigma_rel), n, BATCH), np.arange(n + 1)
        mean = weights @ j
        error = np.sqrt(weights @ (j - mean) ** 2) / n - sigma_rel
        bound = 1 / (24 * n**2 * sigma_rel)
        assert 0.1 * bound < abs(error) < bound


@given(st.floats(1e-3, 0.288))
def test_the_exponent_has_the_requested_std(sigma_rel):
    gamma = power_exponent(sigma_rel)
    assert gamma >= 0
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(sigma_rel, rel=1e-9)


def test_the_exponents_of_the_paper():
    # Karras et al., 2024: 16.97 and 6.94 for widths of 5 % and 10 %.
    assert power_exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=5e-3)


# The update


@given(st.floats(0, 0.9999), st.floats(-5, 5), st.floats(-5, 5), st.integers(1, 30))
def test_constant_weights_are_approached_geometrically(decay, start, goal, steps):
    ema = {"w": np.array([start])}
    for _ in range(steps):
        ema = ema_update(ema, {"w": np.array([goal])}, decay)
    assert ema["w"][0] == pytest.approx(goal + decay**steps * (start - goal), abs=1e-12)


def test_constant_weights_are_a_fixed_point():
    weights = {"a": np.array([0.1, -3.7]), "b": np.array([[1e-30]])}
    for decay in (0.0, 0.3, 0.9999):
        after = ema_update(weights, weights, decay)
        assert all(np.array_equal(after[name], weights[name]) for name in weights)


def test_update_fractions_are_1_minus_the_decays():
    assert update_fractions((0.25, 0.0), 2) == [0.75, 1.0]
    with pytest.raises(DuetError, match="1 decays were given, but the trainer keeps 2 averages"):
        update_fractions((0.25,), 2)


# From a configuration


def test_a_configuration_describes_the_first_average_and_the_extra_ones():
    ema = make_ema("power", sigma_rel=0.05, extra=[{"name": "power", "sigma_rel": 0.1}, {"name": "fixed"}],
                   snapshot_images=640)  # fmt: skip
    assert ema == Ema((Power(0.05), Power(0.1), Fixed()), 640)
    assert ema.decays(10, 40, 4) == tuple(decay(profile, 10) for profile in ema.profiles)
    assert make_ema() == Ema((Warmup(),))


@pytest.mark.parametrize("name, options, words", [
    ("fixed", {"decay": 1.0}, r"ema\.decay: 1\.0 was given; it must be in \[0, 1\)"),
    ("warmup", {"decay": -0.1}, r"ema\.decay: -0\.1 .* must be in \[0, 1\)"),
    ("fixed", {"decay": float("nan")}, r"ema\.decay: nan .* must be in \[0, 1\)"),
    ("fixed", {"start": -1}, r"ema\.start: -1 was given; it must be a number of updates"),
    ("half_life", {"images": 0}, r"ema\.images: 0 was given; it must be a half-life in images, above 0"),
    ("half_life", {"ramp": 0.0}, r"ema\.ramp: 0\.0 was given; it must be above 0, or null"),
    ("inverse_gamma", {"inv_gamma": 0.0}, r"ema\.inv_gamma: 0\.0 was given; it must be above 0"),
    ("inverse_gamma", {"power": -1.0}, r"ema\.power: -1\.0 was given"),
    ("inverse_gamma", {"min_decay": 0.9, "max_decay": 0.5}, r"0\.9 and 0\.5 were given; min_decay must be"),
    ("inverse_gamma", {"max_decay": 1.5}, r"1\.5 were given; .* between min_decay and 1"),
    ("power", {"sigma_rel": 0.0}, r"ema\.sigma_rel: 0\.0 was given; it must be between 0\.0001 and .* 0\.2887"),
    ("power", {"sigma_rel": 0.3}, r"ema\.sigma_rel: 0\.3 was given"),
    ("power", {"sigma_rel": "wide"}, r"ema\.sigma_rel: 'wide' was given; it must be a number"),
    ("powr", {}, r"ema\.name: 'powr' was given; .* Did you mean 'power'\?"),
    ("power", {"gamma": 7.0}, r"option of ema 'power': 'gamma' was given; it must be one of sigma_rel"),
    ("power", {"snapshot_images": -1}, r"ema\.snapshot_images: -1 was given"),
    ("power", {"snapshot_images": "often"}, r"ema\.snapshot_images: often was given"),
    ("power", {"extra": "fixed"}, r"ema\.extra: 'fixed' was given; it must be a list"),
    ("power", {"extra": {"name": "fixed"}}, r"ema\.extra: .* was given; it must be a list"),
    ("power", {"extra": [{"sigma_rel": 0.1}]}, r"ema\.extra: .* each entry must be a name with options"),
    ("power", {"extra": [{"name": "fixed", "decay": 2.0}]}, r"ema\.decay: 2\.0 was given"),
])  # fmt: skip
def test_options_out_of_range_are_refused(name, options, words):
    with pytest.raises(DuetError, match=words) as caught:
        make_ema(name, **options)
    assert "\n" not in str(caught.value)


def test_every_profile_has_defaults():
    for name, kind in PROFILES.items():
        assert make_profile(name) == kind()

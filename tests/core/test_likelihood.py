r"""Likelihoods of data and networks for which they are known.

For data N(m, s^2) per pixel the exact estimate of x_0 is D(x) = m + alpha s^2 (x - alpha m)/(alpha^2 s^2 + sigma^2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import from_uint8
from diffusion_core.diffusion.process import Process, posterior
from diffusion_core.diffusion.schedule import Schedule, cosine, flow, jsd, linear, make_schedule
from diffusion_core.likelihood import (
    bits_per_dimension,
    dequantize,
    discretised_gaussian,
    flow_density,
    variational_bound,
)
from diffusion_core.likelihood.bound import FIXED, level_distribution, with_fixed_variance
from diffusion_core.likelihood.flow import DIVERGENCES, ODE_METHODS, Tableau
from diffusion_core.likelihood.pixels import log_normal_interval

RANGES = [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)]


# Pixels


@pytest.mark.parametrize("low, high", [
    (-1.0, 1.0), (-0.001, 0.001), (2.0, 2.5), (-9.0, -8.9), (30.0, 31.0), (-24.999, -24.99), (25.01, 25.02),
    (-np.inf, -30.0), (-np.inf, 0.3), (1.0, np.inf), (-3.0, np.inf), (36.0, 39.0),
])  # fmt: skip
def test_the_probability_of_an_interval_is_exact_in_both_tails(low, high):
    from scipy.special import log_ndtr

    a, b = (low, high) if high <= 0 or -low > high else (-high, -low)
    expected = log_ndtr(b) + np.log1p(-np.exp(log_ndtr(a) - log_ndtr(b)))
    np.testing.assert_allclose(log_normal_interval(low, high), expected, rtol=3e-13)
    np.testing.assert_array_equal(log_normal_interval(low, high), log_normal_interval(-high, -low))


def test_far_tails_have_the_probability_of_the_nearer_end():
    # Phi(-z) ~ exp(-z^2/2) / (z sqrt(2 pi)), and the other end is exp(-1000) of it.
    expected = -0.5e6 - math.log(1000 * math.sqrt(2 * math.pi)) + math.log1p(-1e-6 + 3e-12)
    assert log_normal_interval(1000.0, 1001.0) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("mean, std", [(0.1, 0.01), (-0.9, 0.3), (0.7, 5.0), (-4.0, 1e-3)])
def test_the_probabilities_of_a_pixel_sum_to_one(value_range, mean, std):
    every = np.arange(256, dtype=np.uint8)
    assert np.exp(discretised_gaussian(every, mean, std, value_range)).sum() == pytest.approx(1.0, rel=1e-12)


def test_narrow_and_wide_gaussians_have_their_limits():
    assert discretised_gaussian(np.uint8([77]), from_uint8(np.uint8([77]), np.float64), 1e-4, (-1, 1)) == 0.0
    x = from_uint8(np.uint8([100]), np.float64)
    density = -0.5 * (x / 0.5) ** 2 - math.log(0.5 * math.sqrt(2 * math.pi)) - math.log(127.5)
    np.testing.assert_allclose(discretised_gaussian(np.uint8([100]), 0.0, 0.5, (-1, 1)), density, atol=1e-4)


@pytest.mark.parametrize("low, high", RANGES)
def test_the_uniform_density_over_all_bins_has_eight_bits(low, high):
    density = 255 / (high - low) / 256
    assert bits_per_dimension(192 * math.log(density), 192, (low, high)) == pytest.approx(8.0, rel=1e-14)


@pytest.mark.parametrize("value_range", RANGES)
def test_dequantized_values_fill_their_bins(value_range):
    u8 = np.arange(256, dtype=np.uint8).repeat(16).reshape(16, 16, 16, 1)
    x = dequantize(u8, np.arange(16), 3, value_range)
    place = (x - from_uint8(u8, np.float64, value_range)) * 255 / (value_range[1] - value_range[0])
    assert -0.5 < place.min() < -0.495 and 0.495 < place.max() < 0.5
    assert place.var() == pytest.approx(1 / 12, rel=0.05)
    np.testing.assert_array_equal(dequantize(u8[5:6], [5], 3, value_range), x[5:6])


# The bound


class Exact:
    """The exact network for data N(m, s^2): with its output the columns of the process give the exact estimate."""

    def __init__(self, process: Process, m: float = 0.1, s: float = 0.4, outputs: float | None = None) -> None:
        self.process, self.m, self.s, self.outputs = process, m, s, outputs

    def line(self, t: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (a, b) of the estimate a x + b."""
        alpha, sigma = self.process.schedule(t)
        a = alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2)
        return a, self.m * (1 - a * alpha)

    def output_line(self, c_noise: np.ndarray) -> list[np.ndarray]:
        """Return the slope and the offset of the raw output."""
        schedule = self.process.schedule
        t = (
            schedule.t_at_log_ratio(4 * c_noise)
            if self.process.prediction == "edm"
            else c_noise / self.process.time_scale
        )
        (a, b), columns = self.line(t), self.process.columns(t)
        slope, shift = (a - columns.c_skip) / (columns.c_out * columns.c_in), b / columns.c_out
        return [v[:, None, None, None] for v in (slope, shift)]

    def vjp(self, x: np.ndarray, c_noise: np.ndarray, label: np.ndarray, cotangent: np.ndarray) -> Any:
        pulled = self.output_line(c_noise)[0] * cotangent[..., : x.shape[3]]
        return self.forward(x, c_noise, label), pulled

    def forward(self, x: np.ndarray, c_noise: np.ndarray, label: np.ndarray, features: Any = None) -> np.ndarray:
        slope, shift = self.output_line(c_noise)
        output = slope * x + shift
        return output if self.outputs is None else np.concatenate([output, np.full_like(x, self.outputs)], axis=3)


def images(count: int, m: float = 0.1, s: float = 0.4, size: int = 4) -> np.ndarray:
    values = m + s * Stream(5, "pictures").normal(np.arange(count), (size, size, 1))
    return np.clip(np.round((values + 1) * 127.5), 0, 255).astype(np.uint8)


def bound(network: Exact, u8: np.ndarray, seed: int = 0, **options: Any) -> Any:
    index = np.arange(len(u8))
    label = np.zeros(len(u8), np.int32)
    return variational_bound(network.forward, network.process, u8, label, index, seed, clip=False, **options)


PROCESSES = [Process(linear(20, 1e-3, 0.4), "eps"), Process(cosine(15), "v", 50.0), Process(flow(12), "x0")]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.prediction} {p.schedule.name}")
def test_each_step_is_half_the_change_of_snr_times_the_squared_error(process):
    u8, network = images(6), Exact(process)
    found = bound(network, u8, seed=4)
    assert sorted(set(found.levels[0].tolist())) == list(range(process.schedule.steps)) and found.levels[0, -1] == 0
    np.testing.assert_allclose(found.weight, 1.0, rtol=1e-12)
    x0, snr = from_uint8(u8, np.float64), np.exp(process.schedule.log_snr)
    for k, t in enumerate(found.levels[0]):
        eps = Stream(4, "likelihood/noise").normal(np.arange(6), x0.shape[1:], int(t))
        alpha, sigma = process.schedule(t)
        a, b = network.line(t)
        x = alpha * x0 + sigma * eps
        error = np.mean((x0 - a * x - b) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(found.x0_mse[:, k], error, rtol=1e-9)
        np.testing.assert_allclose(found.eps_mse[:, k], (alpha / sigma) ** 2 * error, rtol=1e-9)
        if t > 0:
            expected = 0.5 * (snr[t - 1] - snr[t]) * error / math.log(2)
        else:
            std = math.sqrt(posterior(*process.schedule(1), *process.schedule(0))[2])
            expected = -discretised_gaussian(u8, a * x + b, std, (-1, 1)).mean(axis=(1, 2, 3)) / math.log(2)
        np.testing.assert_allclose(found.terms[:, k], expected, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(found.total, found.prior + found.terms.sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(found.total, found.prior + found.steps + found.decoder, rtol=1e-13)


@pytest.mark.parametrize("options", [{}, {"respacing": 5}, {"levels": 3}], ids=["all", "respaced", "drawn"])
def test_one_evaluation_gives_the_bounds_of_both_fixed_variances(options):
    process, u8 = PROCESSES[1], images(4)
    own = {variance: bound(Exact(process), u8, seed=4, variance=variance, **options) for variance in FIXED}
    for variance, other in (FIXED, FIXED[::-1]):
        found = with_fixed_variance(own[other], process, variance, options.get("respacing"))
        np.testing.assert_allclose(found.terms, own[variance].terms, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found.total, own[variance].total, rtol=1e-12)
        assert not np.allclose(found.total, own[other].total, rtol=1e-3)
    with pytest.raises(DuetError, match=r"likelihood\.variance: 'learned'"):
        with_fixed_variance(own["fixed_small"], process, "learned")


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.prediction} {p.schedule.name}")
def test_the_bound_of_gaussian_data_has_its_closed_form(process):
    # On average over eps, (x_0 - D)^2 = (x_0 (1 - a alpha) - b)^2 + (a sigma)^2.
    u8 = images(100, size=16)
    found, network = bound(Exact(process), u8), Exact(process)
    power, snr = np.mean(from_uint8(u8, np.float64) ** 2, axis=(1, 2, 3)), np.exp(process.schedule.log_snr)
    alpha, sigma = process.schedule(process.schedule.steps - 1)
    prior = 0.5 * (alpha**2 * power + sigma**2 - 1 - math.log(sigma**2)) / math.log(2)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-12, atol=1e-15)
    x0, expected = from_uint8(u8, np.float64), 0.0
    for t in range(1, process.schedule.steps):
        (a, b), (alpha, sigma) = network.line(t), process.schedule(t)
        error = np.mean((x0 * (1 - a * alpha) - b) ** 2, axis=(1, 2, 3)) + (a * sigma) ** 2
        expected += 0.5 * (snr[t - 1] - snr[t]) * error / math.log(2)
    apart = found.steps - expected
    std = apart.std() / math.sqrt(len(u8))
    assert abs(apart.mean()) < 4 * std and std < 0.02 * expected.mean()


def test_for_large_T_the_steps_are_the_information_at_the_first_level():
    # For exact estimates and small steps the sum is the integral of E(x_0 - D)^2 dSNR/2, which is
    # log(1 + s^2 SNR)/2 between the ends.
    sums = []
    for T in (100, 200, 400):
        ratio = np.exp(np.linspace(-6, 5, T))  # sigma/alpha
        process = Process(Schedule("even", 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)), "v")
        sums.append(bound(Exact(process, 0.0, 0.25), images(100, 0.0, 0.25, size=8)).steps.mean())
    assert (sums[0] - sums[1]) / (sums[1] - sums[2]) == pytest.approx(2, rel=0.1)
    information = 0.5 * math.log2((1 + 0.25**2 * math.exp(12)) / (1 + 0.25**2 * math.exp(-10)))
    assert 2 * sums[2] - sums[1] == pytest.approx(information, rel=0.005)


@pytest.mark.parametrize("distribution", ["uniform", "importance"])
def test_drawn_timesteps_are_unbiased(distribution):
    process = Process(linear(60, 1e-3, 0.2), "eps")
    u8 = images(4)
    whole = bound(Exact(process), u8)
    # The same images with many counters: timesteps and noise differ.
    many = bound(Exact(process), np.concatenate([u8] * 200), levels=6, distribution=distribution)
    drawn, exact = many.steps.reshape(200, 4), whole.steps
    error = drawn.std(axis=0) / math.sqrt(200)
    noise = many.levels[:, :-1]
    assert noise.min() == 1 and noise.max() == 59
    # `whole` has one draw of eps per timestep, whose standard deviation is added.
    own = np.std([bound(Exact(process), u8, seed=s).steps for s in range(8)], axis=0)
    assert np.all(np.abs(drawn.mean(axis=0) - exact) < 4 * np.hypot(error, own))
    np.testing.assert_allclose(level_distribution(process.schedule, distribution, 0.5).sum(), 1, rtol=1e-14)


def test_importance_sampling_reduces_the_variance():
    process = Process(linear(200, 1e-4, 0.1), "eps")
    stds = [
        bound(Exact(process), images(64), levels=5, distribution=distribution).steps.std()
        for distribution in ("uniform", "importance")
    ]
    assert stds[1] < 0.2 * stds[0]


def test_the_bound_does_not_depend_on_the_batch():
    process = PROCESSES[0]
    u8 = images(7)
    together = bound(Exact(process), u8, levels=3, batch=5)
    alone = variational_bound(
        Exact(process).forward, process, u8[4:5], np.zeros(1, np.int32), [4], 0, levels=3, clip=False, batch=1
    )
    np.testing.assert_allclose(alone.total, together.total[4:5], rtol=1e-13)


def test_the_large_variance_costs_the_divergence_of_the_variances():
    process = PROCESSES[0]
    alpha, sigma = process.schedule.alpha, process.schedule.sigma
    small, large = bound(Exact(process), images(3)), bound(Exact(process), images(3), variance="fixed_large")
    for k, t in enumerate(small.levels[0, :-1]):
        _, from_x0, low, high = posterior(alpha[t], sigma[t], alpha[t - 1], sigma[t - 1])
        error = small.x0_mse[:, k]
        expected = 0.5 * (math.log(high / low) + low / high - 1 + from_x0**2 * error / high) / math.log(2)
        np.testing.assert_allclose(large.terms[:, k], expected, rtol=1e-9)
    np.testing.assert_array_equal(large.decoder, small.decoder)


def test_learned_range_at_its_ends_equals_the_fixed_variances():
    process = PROCESSES[0]
    u8 = images(3)
    for output, fixed in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        learned = bound(Exact(process, outputs=output), u8, variance="learned_range")
        expected = bound(Exact(process), u8, variance=fixed)
        ends = slice(None, -1) if fixed == "fixed_large" else slice(None)
        np.testing.assert_allclose(learned.terms[:, ends], expected.terms[:, ends], rtol=1e-9)
    # At t = 0 the large end is beta_0, as in training.
    std = process.schedule.sigma[0]
    learned, x0 = bound(Exact(process, outputs=1.0), u8, variance="learned_range"), from_uint8(u8, np.float64)
    eps = Stream(0, "likelihood/noise").normal(np.arange(3), x0.shape[1:], 0)
    a, b = Exact(process).line(0)
    mean = a * (process.schedule.alpha[0] * x0 + std * eps) + b
    expected = -discretised_gaussian(u8, mean, std, (-1, 1)).mean(axis=(1, 2, 3)) / math.log(2)
    np.testing.assert_allclose(learned.decoder, expected, rtol=1e-9)


def test_a_learned_variance_has_its_optimum_at_the_true_error():
    # The variance with the smallest divergence is the posterior variance plus the squared error of the mean.
    process, t = PROCESSES[0], 7
    u8 = images(40)
    fixed = bound(Exact(process), u8)
    k = fixed.levels[0].tolist().index(t)
    _, from_x0, low, _ = posterior(*process.schedule(t), *process.schedule(t - 1))
    best = math.log(low + from_x0**2 * fixed.x0_mse[:, k].mean())
    found = [
        bound(Exact(process, outputs=best + more), u8, variance="learned").terms[:, k].mean()
        for more in (-0.01, 0.0, 0.01)
    ]
    assert found[1] < min(found[0], found[2])
    assert found[1] < fixed.terms[:, k].mean()


def test_clip_bounds_estimates_to_the_range():
    process = PROCESSES[0]
    u8 = np.full((2, 4, 4, 1), 255, np.uint8)
    free = bound(Exact(process, m=3.0), u8)
    clipped = variational_bound(
        Exact(process, m=3.0).forward, process, u8, np.zeros(2, np.int32), np.arange(2), 0, clip=True
    )
    assert np.all(clipped.x0_mse <= free.x0_mse) and clipped.x0_mse[0, -2] == 0 < free.x0_mse[0, -2]


@pytest.mark.parametrize("options, message", [
    ({"variance": "small"}, "likelihood.variance: 'small' was given"),
    ({"variance": "learned"}, "1 output channels for images with 1"),
    ({"variance": "learned_range"}, "use fixed_small or fixed_large"),
    ({"levels": 20}, "it must be 1 to 19 for 20 timesteps"),
    ({"levels": 0}, "likelihood.levels: 0"),
    ({"distribution": "even"}, "likelihood.distribution: 'even'"),
])  # fmt: skip
def test_invalid_options_are_errors(options, message):
    with pytest.raises(DuetError, match=message):
        bound(Exact(PROCESSES[0]), images(1), **options)


# The flow


def density(network: Any, process: Process, y: np.ndarray, **options: Any) -> Any:
    return flow_density(network.vjp, process, y, np.zeros(len(y), np.int32), np.arange(len(y)), 0, **options)


def exact_density(process: Process, y: np.ndarray, m: float, s: float) -> np.ndarray:
    """Return the log-density by the flow of N(m, s^2): (x - alpha m)/sqrt(alpha^2 s^2 + sigma^2) is constant."""
    (alpha0, sigma0), (alpha, sigma) = (process.schedule(t) for t in process.schedule.span)
    scale = 1.0 if process.schedule.variance_preserving else sigma
    stretch = math.hypot(alpha * s, sigma) / math.hypot(s, sigma0 / alpha0)
    x = alpha * m + stretch * (y - m)
    each = -0.5 * (x / scale) ** 2 - 0.5 * math.log(2 * math.pi * scale**2) + math.log(stretch)
    return each.sum(axis=(1, 2, 3))


def gaussian_values(count: int) -> np.ndarray:
    return 0.1 + 0.4 * Stream(2, "values").normal(np.arange(count), (2, 2, 1))


FLOWS = [
    Process(linear(), "eps"), Process(cosine(100), "v", 50.0), Process(flow(), "v"), Process(jsd(50), "x0"),
    Process(Schedule("exploding", np.ones(40), np.exp(np.linspace(-4, 4, 40))), "eps"),
    Process(make_schedule("vp_sde"), "eps"), Process(make_schedule("flow_continuous"), "v"),
    Process(make_schedule("edm"), "edm"),
]  # fmt: skip


@pytest.mark.parametrize("process", FLOWS, ids=lambda p: f"{p.prediction} {p.schedule.name}")
@pytest.mark.parametrize("method", ODE_METHODS)
def test_the_density_of_gaussian_data_converges_with_the_order_of_the_method(process, method):
    y, network, errors = gaussian_values(3), Exact(process), []
    counts = [40, 60, 90]
    for steps in counts:
        # The Jacobian is diagonal, so one vector of signs gives its trace exactly.
        found = density(network, process, y, steps=steps, method=method)
        errors.append(np.max(np.abs(found.log_density - exact_density(process, y, 0.1, 0.4))))
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order == pytest.approx(ODE_METHODS[method].order, abs=0.1)
    assert errors[-1] < 1e-2


def test_without_final_signal_the_density_is_that_of_slightly_noisy_data():
    process, y = Process(flow(), "v"), gaussian_values(3)
    found = density(Exact(process), process, y, steps=100, divergence="exact")
    variance = 0.4**2 + (process.schedule.sigma[0] / process.schedule.alpha[0]) ** 2
    expected = -0.5 * (y - 0.1) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)
    np.testing.assert_allclose(found.log_density, expected.sum(axis=(1, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(found.log_density, found.prior + found.volume + found.scale, rtol=1e-15)


class Mixing:
    """F = W x over the channels. With prediction v and preserved variance the flow is dz/dphi = W z."""

    W = np.array([[0.3, -0.8], [0.5, -0.4]])

    def vjp(self, x: np.ndarray, c_noise: np.ndarray, label: np.ndarray, cotangent: np.ndarray) -> Any:
        output = np.einsum("oi,bhwi->bhwo", self.W, x)
        more = np.zeros((*x.shape[:3], cotangent.shape[3] - 2))
        return np.concatenate([output, more], axis=3), np.einsum("oi,bhwo->bhwi", self.W, cotangent[..., :2])


def mixing_density(process: Process, y: np.ndarray) -> np.ndarray:
    from scipy.linalg import expm

    first, last = (math.atan2(*process.schedule(t)[::-1]) for t in (0, process.schedule.steps - 1))
    z = np.einsum("oi,bhwi->bhwo", expm((last - first) * Mixing.W), math.cos(first) * y)
    gaussian = -0.5 * np.sum(z**2 + math.log(2 * math.pi), axis=(1, 2, 3))
    return gaussian + y[0].size / 2 * np.trace(Mixing.W) * (last - first) + y[0].size * math.log(math.cos(first))


def test_a_linear_flow_has_the_density_of_its_matrix_exponential():
    process = Process(cosine(200), "v")
    y = Stream(8, "y").normal(np.arange(5), (2, 3, 2))
    found = density(Mixing(), process, y, steps=200, divergence="exact", outputs=4, batch=3)
    np.testing.assert_allclose(found.log_density, mixing_density(process, y), rtol=1e-6)


def test_hutchinson_is_unbiased():
    process, count = Process(cosine(200), "v"), 2000
    y = np.broadcast_to(Stream(8, "y").normal([0], (2, 3, 2)), (count, 2, 3, 2))
    exact = density(Mixing(), process, y[:1], steps=20, divergence="exact").log_density[0]
    one, four = (density(Mixing(), process, y, steps=20, probes=k, batch=count).log_density for k in (1, 4))
    for found in (one, four):
        assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(count)
    assert one.std() / four.std() == pytest.approx(2, rel=0.1)
    # A diagonal Jacobian needs only one vector of signs.
    diagonal = Process(flow(), "v")
    found, wanted = (density(Exact(diagonal), diagonal, gaussian_values(2), divergence=d) for d in DIVERGENCES)
    np.testing.assert_allclose(found.log_density, wanted.log_density, rtol=1e-12)


def test_the_density_does_not_depend_on_the_batch():
    process, y = Process(cosine(200), "v"), Stream(8, "y").normal(np.arange(5), (2, 3, 2))
    together = density(Mixing(), process, y, steps=5, batch=2).log_density
    alone = flow_density(Mixing().vjp, process, y[3:4], np.zeros(1, np.int32), [3], 0, steps=5).log_density
    np.testing.assert_allclose(alone, together[3:4], rtol=1e-13)


def test_bits_per_dimension_approach_the_entropy():
    # N(m, s^2) in bins of 1/127.5: log2(s sqrt(2 pi e) 127.5) bits, and a little for the noise of the first level.
    process, u8 = Process(flow(), "v"), images(60, 0.0, 0.25, size=8)
    y = dequantize(u8, np.arange(60), 0, (-1, 1))
    bits = bits_per_dimension(density(Exact(process, 0.0, 0.25), process, y, steps=40).log_density, 64, (-1, 1))
    exact = -discretised_gaussian(u8, 0.0, 0.25, (-1, 1)).mean(axis=(1, 2, 3)) / math.log(2)
    assert bits.mean() == pytest.approx(exact.mean(), abs=1e-3)


@pytest.mark.parametrize("options, message", [
    ({"method": "rk5"}, "likelihood.method: 'rk5' was given; it must be one of heun, rk4"),
    ({"divergence": "skilling"}, "one of hutchinson, exact"),
    ({"probes": 0}, "likelihood.probes: 0"),
    ({"steps": 0}, "likelihood.steps: 0"),
])  # fmt: skip
def test_invalid_options_of_the_flow_are_errors(options, message):
    process = Process(flow(), "v")
    with pytest.raises(DuetError, match=message):
        density(Exact(process), process, gaussian_values(1), **options)


def test_an_exact_divergence_of_large_images_is_an_error():
    process = Process(flow(), "v")
    with pytest.raises(DuetError, match="12288 dimensions, each of which takes a vector-Jacobian"):
        density(Exact(process), process, np.zeros((1, 64, 64, 3)), divergence="exact")


def test_an_inconsistent_tableau_is_an_error():
    with pytest.raises(DuetError, match="the weights to 1"):
        Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.4))
    with pytest.raises(DuetError, match="add up to its node"):
        Tableau(2, (0.0, 1.0), ((), (0.5,)), (0.5, 0.5))

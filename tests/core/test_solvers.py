"""Exponential integrators and pseudo numerical methods: their weights, their orders, and where they coincide.

test_diffusers_solvers.py compares them with diffusers; orders on plain grids are in test_methods.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from exact import NORMAL, TWO_NORMALS, error, exactly, execute, moments

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import Schedule, cosine, flow, linear
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.deis import deis
from diffusion_core.sampling.dpm_ancestral import dpmpp_2s_ancestral, dpmpp_sde
from diffusion_core.sampling.dpm_singlestep import dpm_solver_singlestep
from diffusion_core.sampling.dpm_solver import dpm_solver
from diffusion_core.sampling.exponential import WEIGHT_KINDS, weights
from diffusion_core.sampling.pndm import plms, pndm
from diffusion_core.sampling.sa_solver import sa_solver
from diffusion_core.sampling.unipc import unipc

PROCESS = Process(linear(), "v")
OURS = {
    "multistep": ("dpm_solver", {"order": 3}),
    "multistep eps": ("dpm_solver", {"order": 3, "predict": "eps"}),
    "multistep eps sde": ("dpm_solver", {"order": 2, "predict": "eps", "sde": True}),
    "singlestep": ("dpm_solver_singlestep", {"order": 3}),
    "singlestep eps": ("dpm_solver_singlestep", {"order": 2, "predict": "eps"}),
    "singlestep sde": ("dpm_solver_singlestep", {"order": 3, "solver_type": "heun", "sde": True}),
    "2s ancestral": ("dpmpp_2s_ancestral", {}),
    "sde": ("dpmpp_sde", {"eta": 0.7}),
    "deis": ("deis", {"order": 4}),
    "plms": ("plms", {}),
    "pndm": ("pndm", {}),
    "unipc": ("unipc", {"order": 3}),
    "unipc eps": ("unipc", {"order": 2, "solver_type": "bh1", "predict": "eps"}),
    "sa_solver": ("sa_solver", {"predictor": 3, "corrector": 4, "noisy": [0.05, 5.0]}),
    "sa_solver eps": ("sa_solver", {"predict": "eps"}),
}


def integral(start: float, end: float, rate: float, of) -> float:
    """Integrate k e^(k (l - end)) times a function, by another quadrature than the code's."""
    parts = np.linspace(start, end, 65)
    nodes, shares = np.polynomial.legendre.leggauss(6)
    at = (parts[:-1, None] + parts[1:, None]) / 2 + np.diff(parts)[:, None] / 2 * nodes
    return float(np.sum(np.diff(parts)[:, None] / 2 * shares * rate * np.exp(rate * (at - end)) * of(at)))


@pytest.mark.parametrize("rate", [1.0, 1.36, 2.0, -1.0])
@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.7], [0.0, -0.7, -1.1], [0.0, 0.9, -0.7], [0.0, 0.9, -0.7, -2.0],
                                   [0.0, 0.3, 0.6]])  # fmt: skip
def test_exact_weights_integrate_polynomials(nodes, rate):
    start, h = -1.3, 0.9
    found = weights(start, start + h, start + np.array(nodes), rate)
    for degree in range(len(nodes)):
        expected = integral(start, start + h, rate, lambda at, n=degree: (at - start) ** n)
        assert found @ np.array(nodes) ** degree == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_all_kinds_of_weights_have_the_order_of_their_nodes(kind):
    """Weights have the exact sum, and differ from the exact weights by one order of the step more."""
    for count, power in ((2, 2), (3, 3)):
        if kind in ("midpoint", "heun") and count == 3:
            power = 2  # With half of the parabola, the published third order is only a second.
        gaps = []
        for h in (0.1, 0.05):
            nodes = 1.0 - h * np.arange(count)
            found, exact = weights(1.0, 1.0 + h, nodes, 2.0, kind), weights(1.0, 1.0 + h, nodes, 2.0)
            assert found.sum() == pytest.approx(-np.expm1(-2 * h), rel=1e-13)
            gaps.append(np.abs(found - exact).max())
        assert gaps[1] < gaps[0] * 0.6 ** (power - 1) or gaps[1] == 0


def test_deis_integrates_eps_over_sigma_by_alpha():
    """x_s/alpha_s = x_t/alpha_t + sum of eps_j times the integral of l_j(log r) dr, as in the paper."""
    plan = deis(PROCESS, 20, 3, clip=None)
    ratio = plan.sigma / plan.alpha
    i = 7
    eps = np.random.default_rng(0).standard_normal(3)
    X, D = np.array([0.4, eps[1], eps[2]]), (0.4 - plan.sigma[i] * eps[0]) / plan.alpha[i]
    nodes = np.log(ratio[i - np.arange(3)])

    def polynomial(minus_log):
        at = -minus_log
        terms = [
            np.prod([(at - nodes[k]) / (nodes[j] - nodes[k]) for k in range(3) if k != j], axis=0) for j in range(3)
        ]
        return np.tensordot(eps, terms, 1)

    # dr = -r d(-log r), and r = e^(-l) ratio_s at l = 0.
    area = integral(-np.log(ratio[i]), -np.log(ratio[i + 1]), -1.0, polynomial) * ratio[i + 1]
    got = plan.state[i, 0] @ X + plan.denoised[i, 0, 0] * D
    assert got == pytest.approx(plan.alpha[i + 1] * (0.4 / plan.alpha[i] + area), rel=1e-12)


def graded(levels: int) -> Process:
    """Return a process whose first step is the square of the others, which hides the low order of the start."""
    ratio = np.exp(2 - 3 * np.linspace(1, 0, levels) ** 2)
    return Process(Schedule("graded", 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)), "v")


def order_of(make, counts, data=NORMAL) -> float:
    return -np.polyfit(np.log(np.array(counts) - 1), np.log([error(make(n), data) for n in counts]), 1)[0]


@pytest.mark.parametrize("sampler, options, order", [
    ("unipc", {"order": 3}, 4), ("unipc", {"order": 3, "predict": "eps"}, 4),
    ("sa_solver", {"predictor": 3, "corrector": 4, "tau": 0.0}, 4),
    ("unipc", {"order": 3, "correct_from": None}, 3), ("deis", {"order": 4}, 4),
])  # fmt: skip
def test_high_orders_appear_after_a_start_with_small_steps(sampler, options, order):
    def make(levels: int) -> SamplerPlan:
        rest = {"steps": None, "spacing": None, "clip": None, "lower_order_final": False}
        return make_plan(graded(levels), sampler, **rest, **options)

    assert order_of(make, [97, 193, 385]) == pytest.approx(order, abs=0.2)
    # Two normals bend the flow where they separate; their errors change sign before the order appears.
    assert order_of(make, [193, 385], TWO_NORMALS) > order - 0.4


@pytest.mark.parametrize("sampler, ends, counts, order", [
    ("pndm", (0.5, 2.0), [33, 65, 129], 4), ("plms", (0.6, 1.2), [65, 129, 257], 3),
])  # fmt: skip
def test_pseudo_methods_exceed_second_order_for_equal_steps_of_sigma_by_alpha(sampler, ends, counts, order):
    grid = {"name": "karras", "rho": 1.0, "sigma_min": ends[0], "sigma_max": ends[1]}
    found = order_of(lambda n: make_plan(PROCESS, sampler, steps=n, spacing=grid, clip=None), counts)
    assert found == pytest.approx(order, abs=0.25)


def test_third_order_singlestep_keeps_its_order_for_any_number_of_rows():
    """One row too many makes two steps of second order, not one of third and one of first."""
    grid = {"name": "log_snr", "sigma_min": 0.2, "sigma_max": 20.0}
    for counts in ([65, 128, 257], [66, 129, 258], [64, 127, 256]):
        assert order_of(lambda n: dpm_solver_singlestep(PROCESS, n, 3, spacing=grid, clip=None), counts) > 2.7


def assert_same_steps(one: SamplerPlan, other: SamplerPlan, tolerance: float = 1e-10) -> None:
    """Check that two plans give the same x after each row, for any number of registers."""
    x = np.array([-1.5, 0.2, 0.9])
    noise = np.random.default_rng(0).standard_normal((one.rows, 3))
    for rows in range(1, one.rows + 1):
        a, b = (execute(p, x, exactly(p, TWO_NORMALS), rows, noise.__getitem__) for p in (one, other))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_solvers_coincide_where_their_formulas_do():
    settings = {"spacing": "linspace", "clip": None}
    flows = ddim(PROCESS, 12, **settings)
    for first in (
        dpm_solver(PROCESS, 12, 1, predict="eps", **settings),
        dpm_solver_singlestep(PROCESS, 12, 1, **settings),
        deis(PROCESS, 12, 1, **settings),
        plms(PROCESS, 12, 1, **settings),
        unipc(PROCESS, 12, 1, correct_from=None, **settings),
        sa_solver(PROCESS, 12, 1, 0, tau=0.0, **settings),
    ):
        assert_same_steps(first, flows)
    assert_same_steps(sa_solver(PROCESS, 12, 1, 0, tau=1.0, **settings), ddpm(PROCESS, 12, **settings))
    exact = {"order": 3, "solver_type": "exact", **settings}
    assert_same_steps(deis(PROCESS, 12, 3, **settings), dpm_solver(PROCESS, 12, predict="eps", **exact))
    published = {"lower_order_final": True, **settings}
    assert_same_steps(unipc(PROCESS, 12, 2, correct_from=None, **published), dpm_solver(PROCESS, 12, 2, **settings))
    assert_same_steps(unipc(PROCESS, 12, 1, "bh1", **settings), sa_solver(PROCESS, 12, 1, 2, tau=0.0, **settings))
    assert_same_steps(sa_solver(PROCESS, 12, 2, 0, tau=0.0, **settings),
                      unipc(PROCESS, 12, 2, "bh1", correct_from=None, **settings))  # fmt: skip


def test_k_diffusion_samplers_with_eta_zero_equal_the_singlestep_solver():
    grid = {"name": "log_snr", "sigma_min": 0.1, "sigma_max": 30.0}
    singlestep = dpm_solver_singlestep(PROCESS, 13, 2, spacing=grid, clip=None)
    for sampler in (dpmpp_2s_ancestral, dpmpp_sde):
        assert_same_steps(sampler(PROCESS, 7, 0.0, spacing=grid), singlestep)


def test_ancestral_two_row_steps_end_where_the_next_step_starts():
    """As r_down = r_s^2/r_t, the geometric mean of r_t and r_down is r_s."""
    plan = dpmpp_2s_ancestral(PROCESS, 6)
    np.testing.assert_allclose(plan.t[1::2], plan.t[2::2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler, options", [
    ("sa_solver", {"predict": "eps"}), ("sa_solver", {"tau": 0.5, "predict": "eps", "predictor": 3, "corrector": 3}),
    ("sa_solver", {"predictor": 3, "corrector": 4}), ("sa_solver", {"tau": 2.0, "corrector": 0}),
    ("dpm_solver", {"predict": "eps", "sde": True}), ("dpm_solver_singlestep", {"sde": True}),
])  # fmt: skip
def test_stochastic_solvers_converge_in_mean_and_variance(sampler, options):
    grid, wrong = {"name": "log_snr", "sigma_min": 0.2, "sigma_max": 20.0}, []
    for steps in (64, 128, 256):
        plan = make_plan(PROCESS, sampler, steps=steps, spacing=grid, clip=None, **options)
        alpha, sigma = plan.alpha[-2], plan.sigma[-2]
        found = moments(plan, rows=plan.rows - 1)
        wrong.append(np.abs(np.array(found) - [alpha * 0.3, (alpha * 0.5) ** 2 + sigma**2]).max())
    assert wrong[-1] < 0.02
    assert -np.polyfit(np.log([64, 128, 256]), np.log(wrong), 1)[0] > 0.85


@pytest.mark.parametrize("name", OURS)
def test_plans_are_finite_on_tables_and_flows(name):
    """test_methods.py covers every number of steps from 1 to 50."""
    sampler, options = OURS[name]
    grid = {"name": "karras", "sigma_max": 50.0}
    for steps in (1, 2, 3, 4, 5, 6, 7, 8, 14, 15, 21, 50):
        for process, spacing in ((PROCESS, "linspace"), (Process(flow(), "v"), grid)):
            plan = make_plan(process, sampler, steps=steps, spacing=spacing, clip=None, **options)
            assert plan.alpha[-1] == 1 and plan.sigma[-1] == 0
            if sampler not in ("plms", "pndm"):
                # The row to clean data returns the estimate alone.
                np.testing.assert_array_equal(plan.denoised[-1, 0], np.eye(plan.history)[0])
                assert not plan.state[-1, 0].any() and not plan.noise[-1].any()


def test_plans_from_the_noisiest_level_of_the_cosine_are_valid():
    """There alpha is 5e-5, and the eps forms add numbers ten thousand times larger than their sum."""
    process = Process(cosine(), "v")
    for steps in (1, 2, 3, 5, 17, 50):
        for sampler, options in OURS.values():
            plan = make_plan(process, sampler, steps=steps, spacing="linspace", clip=None, **options)
            assert (plan.alpha[-1], plan.sigma[-1]) == (1, 0)
            # Where every estimate is x_0 = 1, the rows lead from alpha to 1; fresh noise is left out. PNDM starts with
            # Runge-Kutta steps between such levels, whose numbers of 5e5 are multiplied twice.
            lost = 1e-2 if sampler == "pndm" else 1e-9
            assert execute(plan, plan.alpha[:1], lambda row, x: np.ones(1)) == pytest.approx(1, abs=lost)


@pytest.mark.parametrize(
    "name", ["multistep eps", "singlestep", "2s ancestral", "sde", "deis", "plms", "pndm", "unipc", "sa_solver"]
)
def test_a_wrong_coefficient_of_register_0_is_an_error(name):
    sampler, options = OURS[name]
    plan = make_plan(PROCESS, sampler, steps=9, spacing="linspace", clip=None, **options)
    for row, column in np.argwhere(plan.state[:, 0] != 0):
        wrong = plan.state.copy()
        # The change must exceed 1e-5: a register of eps has no signal, and a smaller change only rotates the noise.
        wrong[row, 0, column] *= 1 + 1e-4
        with pytest.raises(DuetError, match=f"row {row} .* does not lead from level"):
            replace(plan, state=wrong)


@pytest.mark.parametrize(
    "name", ["multistep eps", "singlestep", "2s ancestral", "sde", "deis", "plms", "pndm", "unipc", "sa_solver"]
)
def test_a_scaled_register_is_an_error(name):
    sampler, options = OURS[name]
    plan = make_plan(PROCESS, sampler, steps=9, spacing="linspace", clip=None, **options)
    for register in range(1, plan.registers):
        wrong = {table: getattr(plan, table).copy() for table in ("state", "denoised", "noise")}
        for values in wrong.values():
            values[:, register] *= 0.999
        with pytest.raises(DuetError, match="does not lead from level"):
            replace(plan, **wrong)


def test_invalid_options_are_errors():
    for sampler, options, message in (
        (dpm_solver, {"predict": "v"}, "sampler.predict: 'v'"),
        (dpm_solver_singlestep, {"solver_type": "exact"}, "sampler.solver_type: 'exact'"),
        (dpm_solver_singlestep, {"between": "grid"}, "sampler.between: 'grid'"),
        (dpm_solver_singlestep, {"order": 0}, "sampler.order: 0 was given; it must be 1, 2 or 3"),
        (deis, {"order": 5}, "sampler.order: 5 was given; it must be 1 to 4"),
        (plms, {"order": 5}, "sampler.order: 5 was given; it must be 1 to 4"),
        (unipc, {"order": 5}, "sampler.order: 5 was given; it must be 1 to 4"),
        (unipc, {"solver_type": "bh3"}, "sampler.solver_type: 'bh3'"),
        (unipc, {"correct_from": 0}, "sampler.correct_from: 0 was given; it must be a row from 1 on"),
        (dpmpp_sde, {"eta": 1.5}, "sampler.eta: 1.5 was given; it must be between 0"),
        (sa_solver, {"predictor": 5}, "sampler.predictor: 5 was given"),
        (sa_solver, {"corrector": -1}, "sampler.corrector: -1 was given"),
        (sa_solver, {"tau": -1.0}, "sampler.tau: -1.0 was given; it must be at least 0"),
        (sa_solver, {"noisy": [1.0]}, r"sampler.noisy: \[1.0\] was given; it must be two rising sigma/alpha"),
    ):
        with pytest.raises(DuetError, match=message):
            sampler(PROCESS, **options)
    for sampler in (dpm_solver_singlestep, deis, plms, pndm, unipc, sa_solver, dpmpp_2s_ancestral, dpmpp_sde):
        with pytest.raises(DuetError, match="its first level has no signal"):
            sampler(Process(flow(), "v"), spacing="linspace")
    with pytest.raises(DuetError, match="it is defined at whole timesteps only"):
        dpm_solver_singlestep(Process(linear(), "next_level"))


def test_order_four_takes_any_number_of_steps():
    """The corrector of UniPC-4 uses five values, the largest number of all."""
    for sampler in ("unipc", "deis"):
        for steps in range(1, 31):
            plan = make_plan(Process(linear(), "v"), sampler, steps=steps, order=4)
            assert len(plan.t) == steps and (plan.alpha[-1], plan.sigma[-1]) == (1, 0)
            assert execute(plan, plan.alpha[:1], lambda row, x: np.ones(1)) == pytest.approx(1, abs=1e-9)

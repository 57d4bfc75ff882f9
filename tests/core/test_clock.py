"""Steps in a time of one's own: algorithms 1 and 3 of Karras et al. as printed, with their schedules and scales."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from exact import POINTS, TWO_NORMALS, exactly, execute, fitted_order

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear, make_schedule
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.sampling.clock import make_clock

BETA_D, BETA_MIN = 19.9, 0.1
VP_SDE = Process(make_schedule("vp_sde", t_min=1e-3), "vp")
PROCESSES = {
    "linear": Process(linear(), "v"), "edm": Process(make_schedule("edm"), "edm"), "vp_sde": VP_SDE,
    "flow": Process(flow(), "v"),
}  # fmt: skip
RANGE = {"sigma_min": 0.03, "sigma_max": 60.0}

# sigma(t), its derivative, and its inverse; s(t) and its derivative, for the schedules of table 1.
Function = Callable[[float], float]


def vp_sigma(t: float) -> float:
    return np.sqrt(np.expm1(BETA_D * t**2 / 2 + BETA_MIN * t))


SIGMAS: dict[str, tuple[Function, Function, Function]] = {
    "vp": (
        vp_sigma,
        lambda t: 0.5 * (BETA_MIN + BETA_D * t) * (vp_sigma(t) + 1 / vp_sigma(t)),
        lambda sigma: (np.sqrt(BETA_MIN**2 + 2 * BETA_D * np.log1p(sigma**2)) - BETA_MIN) / BETA_D,
    ),
    "ve": (np.sqrt, lambda t: 0.5 / np.sqrt(t), np.square),
    "ratio": (lambda t: t, lambda t: 1.0, lambda sigma: sigma),
}
SCALES: dict[str, tuple[Function, Function]] = {
    "vp": (
        lambda t: 1 / np.sqrt(1 + vp_sigma(t) ** 2),
        lambda t: -vp_sigma(t) * SIGMAS["vp"][1](t) / (1 + vp_sigma(t) ** 2) ** 1.5,
    ),
    "ve": (lambda t: 1.0, lambda t: 0.0),
    "ratio": (lambda t: 1.0, lambda t: 0.0),
}


def runge_kutta(
    sigmas: np.ndarray,
    schedule: str,
    heun: bool,
    churn: tuple[float, float, float, float] = (0.0, 0.0, np.inf, 1.0),
    alpha: float = 1.0,
) -> np.ndarray:
    """Return y at the end, from y = sigma_0 POINTS; with churn and alpha as in EDM's code for its ablations."""
    (sigma, slope, inverse), (scale, scale_slope) = SIGMAS[schedule], SCALES[schedule]
    amount, least, most, s_noise = churn
    N = len(sigmas) - 1
    times = np.append(inverse(sigmas[:-1]), 0.0 if sigmas[-1] == 0 else inverse(sigmas[-1]))
    fresh = np.random.default_rng(0).standard_normal((N, len(POINTS)))

    def gradient(x: np.ndarray, t: float) -> np.ndarray:
        r, s = sigma(t), scale(t)
        D = TWO_NORMALS.denoised(x / s, 1.0, r)
        return (slope(t) / r + scale_slope(t) / s) * x - slope(t) * s / r * D

    x = POINTS * sigmas[0] * scale(times[0])
    for i, (now, after) in enumerate(pairwise(times)):
        gamma = min(amount / N, np.sqrt(2) - 1) if least <= sigma(now) <= most else 0.0
        hat = inverse(sigma(now) * (1 + gamma)) if gamma else now
        added = np.sqrt(max(sigma(hat) ** 2 - sigma(now) ** 2, 0.0)) * scale(hat) * s_noise
        x = scale(hat) / scale(now) * x + added * fresh[i]
        first = gradient(x, hat)
        h = after - hat
        if heun and after > 0:
            second = gradient(x + alpha * h * first, hat + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * first + 1 / (2 * alpha) * second)
        else:
            x = x + h * first
    return x / (scale(after) if after else 1.0)


def ours(plan: SamplerPlan, noise=lambda row: 0.0) -> np.ndarray:
    return execute(plan, POINTS * plan.sigma[0], exactly(plan, TWO_NORMALS), noise=noise) / plan.alpha[-1]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("schedule", SIGMAS)
def test_steps_in_the_times_of_table_1_equal_runge_kutta(schedule, process):
    sigmas = np.exp(np.linspace(np.log(60.0), np.log(0.03), 9))
    for name in ("euler", "heun"):
        for end in (None, "sigma_min"):
            spacing = {"name": "log_snr", **RANGE}
            plan = make_plan(
                PROCESSES[process], name, steps=9 if end is None else 8, spacing=spacing, end=end, variable=schedule,
                clip=None,
            )  # fmt: skip
            expected = runge_kutta(np.append(sigmas, 0.0) if end is None else sigmas, schedule, name == "heun")
            np.testing.assert_allclose(ours(plan), expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("schedule", SIGMAS)
def test_churn_in_another_time_equals_that_of_edm(schedule):
    """The fresh noise of step i raises its level before the network sees it; here none raises that of the first."""
    sigmas = np.append(np.exp(np.linspace(np.log(60.0), np.log(0.03), 9)), 0.0)
    numbers = (2.0, 0.1, 40.0, 1.02)
    fresh = np.random.default_rng(0).standard_normal((9, len(POINTS)))
    for name in ("euler", "heun"):
        options = dict(zip(("s_churn", "s_min", "s_max", "s_noise"), numbers, strict=True))
        plan = make_plan(
            PROCESSES["vp_sde"], name, steps=9, spacing={"name": "log_snr", **RANGE}, variable=schedule, clip=None,
            **options,
        )  # fmt: skip
        step = 2 if name == "heun" else 1
        got = ours(plan, lambda row, step=step: fresh[min(row + 1, 8 * step) // step])
        expected = runge_kutta(sigmas, schedule, name == "heun", numbers)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("schedule", SIGMAS)
def test_a_second_evaluation_within_the_step_equals_algorithm_3(schedule, process):
    sigmas = np.append(np.exp(np.linspace(np.log(60.0), np.log(0.03), 9)), 0.0)
    for alpha in (0.4, 0.5, 2 / 3, 1.0):
        plan = make_plan(
            PROCESSES[process], "heun", steps=9, spacing={"name": "log_snr", **RANGE}, variable=schedule, alpha=alpha,
            clip=None,
        )  # fmt: skip
        expected = runge_kutta(sigmas, schedule, True, alpha=alpha)
        np.testing.assert_allclose(ours(plan), expected, rtol=0, atol=1e-10 * np.abs(expected).max())
        assert plan.preserves == ("marginals" if schedule == "ratio" else "nothing")


@pytest.mark.parametrize("variable", ["ratio", "t", "vp"])
def test_any_second_evaluation_has_second_order(variable):
    grid = {"name": "log_snr", "sigma_min": 0.2, "sigma_max": 60.0}

    def make(steps: int) -> SamplerPlan:
        return make_plan(VP_SDE, "heun", steps=steps, spacing=grid, variable=variable, alpha=0.6, clip=None)

    assert 1.8 < fitted_order(make, [128, 256, 512]) < 2.4


def test_the_own_time_of_the_vp_sde_is_that_of_table_1():
    """The derivative of any continuous schedule, by differences, against the closed form."""
    for spacing in ("linspace", "karras"):
        for name in ("euler", "heun"):
            own, known = (
                make_plan(VP_SDE, name, steps=12, spacing=spacing, variable=variable, clip=None)
                for variable in ("t", {"name": "vp", "beta_min": 0.1, "beta_max": 20.0})
            )
            for table in ("state", "denoised"):
                np.testing.assert_allclose(getattr(own, table), getattr(known, table), rtol=1e-9, atol=1e-10)


def test_the_own_time_of_edm_and_flow_gives_known_steps():
    edm = PROCESSES["edm"]
    for name in ("euler", "heun"):
        own, plain = (make_plan(edm, name, steps=9, variable=v, spacing="karras", clip=None) for v in ("t", "ratio"))
        np.testing.assert_allclose(own.denoised, plain.denoised, rtol=1e-9, atol=1e-11)
    process = Process(make_schedule("flow_continuous", t_max=0.99), "flow")
    own = make_plan(process, "heun", steps=9, variable="t", spacing="linspace")
    np.testing.assert_allclose(own.denoised, make_plan(process, "flow_heun", steps=9).denoised, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variable", ["t", "vp", "ve"])
@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2)])
def test_the_error_in_another_time_falls_with_the_same_order(name, order, variable):
    grid = {"name": "log_snr", "sigma_min": 0.2, "sigma_max": 60.0}

    def make(steps: int) -> SamplerPlan:
        return make_plan(VP_SDE, name, steps=steps, spacing=grid, variable=variable, clip=None)

    assert order - 0.2 < fitted_order(make, [128, 256, 512]) < order + 0.4


def test_time_steps_of_vp_are_those_of_table_1():
    low, high = vp_sigma(1e-3), vp_sigma(1.0)
    process = Process(make_schedule("edm", sigma_min=0.005, sigma_max=160.0), "edm")
    grid = {"name": "vp", "sigma_min": low, "sigma_max": high}
    plan = make_plan(process, "euler", steps=7, spacing=grid)
    np.testing.assert_allclose(plan.sigma[:-1], vp_sigma(np.linspace(1.0, 1e-3, 7)), rtol=1e-9)
    # The VP SDE itself has them at equal distances of its own t.
    np.testing.assert_allclose(make_plan(VP_SDE, "euler", steps=7, spacing=grid).t, np.linspace(1, 1e-3, 7), rtol=1e-9)


@pytest.mark.parametrize("schedule, variable, message", [
    ("linear", "t", "sampler.variable: t was given for the schedule linear, a table.* use vp, ve or ratio"),
    ("ve_sde", "t", "sampler.variable: t was given; clean data has no time of it, so end at a noisy level"),
    ("vp_sde", "tau", "sampler.variable: 'tau' was given; it must be one of ratio, t, vp, ve"),
    ("vp_sde", {"name": "vp", "beta_max": 0.0}, "sampler.variable: beta_min 0.1 and beta_max 0.0 were given"),
    ("vp_sde", {"name": "ve", "beta_max": 1.0}, "option of sampler.variable 've'"),
])  # fmt: skip
def test_a_time_that_does_not_fit_is_refused(schedule, variable, message):
    process = Process(make_schedule(schedule), "eps")
    with pytest.raises(DuetError, match=message):
        make_plan(process, "heun", variable=variable)


def test_ratio_needs_no_clock():
    assert make_clock(linear(), "ratio") is None
    plan = make_plan(Process(make_schedule("ve_sde"), "ve"), "heun", variable="t", end="sigma_min")
    assert plan.sigma[-1] == pytest.approx(0.02) and plan.preserves == "nothing"

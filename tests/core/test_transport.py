"""The paths, losses and samplers of SiT, against a transcription of its formulas in its own time, tau = 1 - t."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from exact import NORMAL, execute, fitted_order, moments

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.continuous import cosine_continuous, flow_continuous, vp_sde
from diffusion_core.diffusion.continuous_schedule import ContinuousSchedule
from diffusion_core.diffusion.loss_weighting import make_weights
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.sampling import make_plan
from diffusion_core.sampling.transport import FORMS, LAST_STEPS

PREDICTIONS = {"velocity": "velocity_to_data", "score": "score", "noise": "eps"}
INIT = np.random.default_rng(0).normal(size=(3, 4))
DRAWS = np.random.default_rng(1).normal(size=(40, 3, 4))


def schedule(path: str, cut: bool) -> ContinuousSchedule:
    """Return the schedule of a path; cut for a network that does not predict the velocity."""
    if path == "Linear":
        return flow_continuous(t_min=1e-3 if cut else 1e-12, t_max=1 - 1e-3 if cut else 1.0)
    return cosine_continuous(-100, 100, *((1e-3, 1 - 1e-3) if cut else ())) if path == "GVP" else vp_sde()


def process(path: str, model: str) -> Process:
    return Process(schedule(path, model != "velocity"), PREDICTIONS[model], time_scale=-1.0, time_offset=1.0)


def coefficients(path: str, tau: float):
    """Return alpha, alpha', sigma, sigma' by tau."""
    if path == "Linear":
        return tau, 1.0, 1 - tau, -1.0
    if path == "GVP":
        angle = np.pi / 2 * tau
        return np.sin(angle), np.pi / 2 * np.cos(angle), np.cos(angle), -np.pi / 2 * np.sin(angle)
    log_alpha = -0.25 * (1 - tau) ** 2 * 19.9 - 0.5 * (1 - tau) * 0.1
    rate, alpha = 0.5 * (1 - tau) * 19.9 + 0.05, np.exp(log_alpha)
    sigma = np.sqrt(1 - np.exp(2 * log_alpha))
    with np.errstate(divide="ignore"):
        return alpha, alpha * rate, sigma, -np.exp(2 * log_alpha) * rate / sigma


def velocity_and_score(path: str, x: np.ndarray, tau: float):
    """Return those of normal data, with a part that is not affine in x."""
    (mean,), (std,) = NORMAL.means, NORMAL.stds
    alpha, d_alpha, sigma, d_sigma = coefficients(path, tau)
    away = (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
    eps = sigma * away + 0.1 * np.sin(3 * x) * tau * (1 - tau)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = -eps / sigma
    if path == "VP":
        return alpha * (d_alpha / alpha) * (mean + std**2 * alpha * away) + d_sigma * eps, score
    return d_alpha * (mean + alpha * std**2 * away) + d_sigma * eps, score


def network(path: str, model: str, x: np.ndarray, tau: float) -> np.ndarray:
    velocity, score = velocity_and_score(path, x, tau)
    return {"velocity": velocity, "score": score, "noise": -coefficients(path, tau)[2] * score}[model]


def implied(path: str, model: str, x: np.ndarray, tau: float):
    """Return velocity and score as SiT makes them of one output: an estimate of x_0 and eps that gives x back."""
    output = network(path, model, x, tau)
    alpha, d_alpha, sigma, d_sigma = coefficients(path, tau)
    drift_variance = sigma * (sigma * d_alpha / alpha - d_sigma) if alpha else np.inf
    if model == "velocity":
        ratio = alpha / d_alpha
        variance = sigma**2 - ratio * d_sigma * sigma
        return output, (ratio * output - x) / variance if variance else None, drift_variance
    score = output if model == "score" else -output / sigma
    return d_alpha / alpha * x + drift_variance * score, score, drift_variance


def diffusion(form: str, norm: float, path: str, tau: float, drift_variance: float) -> float:
    return {
        "constant": norm,
        "sbdm": norm * drift_variance,
        "sigma": norm * coefficients(path, tau)[2],
        "linear": norm * (1 - tau),
        "decreasing": 0.25 * (norm * np.cos(np.pi * tau) + 1) ** 2,
        "increasing-decreasing": norm * np.sin(np.pi * tau) ** 2,
    }[form]


def ends(path: str, model: str, form: str = "") -> tuple[float, float]:
    smooth = path != "VP"
    start = 1e-3 if smooth and (model != "velocity" or form == "sbdm") else 0.0
    return start, 1.0 if smooth and model == "velocity" else 1 - 1e-3


def run(plan, path: str, model: str) -> np.ndarray:
    def estimate(row: int, x: np.ndarray) -> np.ndarray:
        return plan.c_skip[row] * x + plan.c_out[row] * network(path, model, x, 1 - plan.t[row])

    # Heun's rows are two per step, after one that only adds noise; its noises are those of the steps.
    return execute(plan, plan.start_scale * INIT, estimate, noise=lambda row: DRAWS[row // plan.registers])


@pytest.mark.parametrize("model", PREDICTIONS)
@pytest.mark.parametrize("path", ["Linear", "GVP", "VP"])
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_ode_takes_the_steps_of_sit(path, model, method):
    plan = make_plan(process(path, model), "sit_ode", steps=7, method=method)
    points = np.linspace(*ends(path, model), 8)
    x, h = INIT, points[1] - points[0]
    for tau, following in pairwise(points):
        first = implied(path, model, x, tau)[0] if tau else velocity_and_score(path, x, tau)[0]
        slope = first
        if method == "heun":
            slope = 0.5 * (first + implied(path, model, x + h * first, following)[0])
        x = x + h * slope
    np.testing.assert_allclose(run(plan, path, model), x, rtol=0, atol=1e-11)
    assert plan.rows == (14 if method == "heun" else 7)


def sde(path: str, model: str, method: str, form: str, last: str | None, steps: int, size: float = 0.04) -> np.ndarray:
    start, end = ends(path, model, form)
    points = np.linspace(start, 1 - size if last else end, steps + (not last))
    x, h, norm = INIT, points[1] - points[0], 0.7

    def slopes(x, tau):
        velocity, score, variance = implied(path, model, x, tau)
        return velocity, score, diffusion(form, norm, path, tau, variance)

    for k, tau in enumerate(points[:-1]):
        velocity, score, w = slopes(x, tau)
        if method == "euler":
            x = x + h * (velocity + w * score) + np.sqrt(2 * w * h) * DRAWS[k]
            continue
        raised = x + np.sqrt(2 * w * h) * DRAWS[k]
        velocity, score, w = slopes(raised, tau)
        first = velocity + w * score
        velocity, score, w = slopes(raised + h * first, points[k + 1])
        x = raised + 0.5 * h * (first + velocity + w * score)
    if not last:
        return x
    velocity, score, w = slopes(x, points[-1])
    alpha, _, sigma, _ = coefficients(path, points[-1])
    return {
        "mean": x + size * (velocity + w * score),
        "euler": x + size * velocity,
        "tweedie": x / alpha + sigma**2 / alpha * score,
    }[last]


@pytest.mark.parametrize("last", [None, *LAST_STEPS])
@pytest.mark.parametrize("form", FORMS)
def test_the_sde_takes_the_steps_of_sit(form, last):
    for path in ("Linear", "GVP", "VP"):
        for model in PREDICTIONS:
            for method in ("euler", "heun"):
                if method == "heun" and last is None and ends(path, model)[1] == 1.0:
                    continue  # the score at clean data is infinite, see below
                plan = make_plan(
                    process(path, model), "sit_sde", steps=6, method=method, form=form, norm=0.7, last_step=last
                )
                found, expected = run(plan, path, model), sde(path, model, method, form, last, 6)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10, err_msg=f"{path} {model} {method}")


@pytest.mark.parametrize("path", ["Linear", "GVP", "VP"])
def test_the_losses_are_those_of_sit(path):
    """loss = weight (error of eps)^2 with weight 1, (b/sigma)^2 or b/sigma^2, b the variance of the drift."""
    tau = np.linspace(0.05, 0.95, 7)
    for model in ("noise", "score"):
        made = process(path, model)
        alpha, d_alpha, sigma, d_sigma = np.array([coefficients(path, one) for one in tau]).T
        b = sigma * (sigma * d_alpha / alpha - d_sigma)
        per_eps = 1.0 if model == "noise" else sigma**2  # of the error of the score
        for name, weight in (("snr", 1.0), ("velocity", (b / sigma) ** 2), ("likelihood", b / sigma**2)):
            found = make_weights(made, name)(1 - tau)
            np.testing.assert_allclose(found, weight * per_eps, rtol=1e-9)
    columns = process(path, "velocity").columns(1 - tau)
    alpha, d_alpha, sigma, d_sigma = np.array([coefficients(path, one) for one in tau]).T
    np.testing.assert_allclose(columns.target_x0, d_alpha, rtol=1e-12)
    np.testing.assert_allclose(columns.target_eps, d_sigma, rtol=1e-12)
    np.testing.assert_allclose(columns.c_noise, tau, rtol=1e-12)


def test_the_likelihood_weight_is_half_the_fall_of_the_snr():
    made, t, h = process("VP", "noise"), np.linspace(0.1, 0.9, 9), 1e-5
    snr = [np.square(np.divide(*made.schedule(t + s))) for s in (-h, h)]
    on_x0 = make_weights(made, "likelihood")(t) / np.square(made.columns(t).c_out)
    np.testing.assert_allclose(on_x0, (snr[0] - snr[1]) / (4 * h), rtol=1e-6)
    with pytest.raises(DuetError, match=r"process.weighting: likelihood was given; it needs the derivatives"):
        make_weights(Process(linear(), "eps"), "likelihood")


def test_the_ode_converges_with_its_order_and_the_sde_in_mean_and_variance():
    made = process("Linear", "noise")
    for method, order in (("euler", 1), ("heun", 2)):
        found = fitted_order(lambda steps, m=method: make_plan(made, "sit_ode", steps=steps, method=m), [64, 128, 256])
        assert order - 0.25 < found < order + 0.4
    (mean,), (std,) = NORMAL.means, NORMAL.stds
    for method in ("euler", "heun"):
        wrong = []
        for steps in (101, 201, 401):
            plan = make_plan(process("GVP", "velocity"), "sit_sde", steps=steps, method=method, form="linear")
            alpha, sigma = plan.alpha[-2], plan.sigma[-2]
            found = moments(plan, rows=plan.rows - 1)
            wrong.append(max(abs(found[0] - alpha * mean), abs(found[1] - (alpha * std) ** 2 - sigma**2)))
        assert wrong[2] < 0.3 * wrong[0] and wrong[2] < 0.01


@pytest.mark.parametrize(
    "sampler, options, message",
    [
        ("sit_ode", {"method": "dopri5"}, r"sampler.method: 'dopri5' was given.*euler.*heun"),
        ("sit_ode", {"steps": 0}, r"sampler.steps: 0 was given"),
        ("sit_ode", {"eps": -0.1}, r"sampler.eps: -0.1 was given"),
        ("sit_sde", {"form": "SBDMM"}, r"sampler.form: 'SBDMM' was given.*sbdm"),
        ("sit_sde", {"last_step": "median"}, r"sampler.last_step: 'median' was given.*tweedie"),
        ("sit_sde", {"last_step_size": 1.0}, r"sampler.last_step_size: 1.0 was given"),
        ("sit_sde", {"norm": -1.0}, r"sampler.norm: -1.0 was given"),
        ("sit_sde", {"steps": 1}, r"sampler.steps: 1 was given; with a last_step"),
        ("sit_sde", {"method": "heun", "last_step": None}, r"sampler.eps: 0 was given.*last_step"),
        ("sit_sde", {"form": "sbdm", "eps": 0.0}, r"sampler.form: sbdm was given, but it divides by alpha"),
    ],
)
def test_what_has_no_meaning_is_refused(sampler, options, message):
    with pytest.raises(DuetError, match=message):
        make_plan(process("Linear", "velocity"), sampler, **options)


def test_a_table_and_a_time_beyond_one_are_refused():
    from diffusion_core.diffusion.continuous import edm

    for made in (Process(linear(), "eps"), Process(edm(), "edm")):
        for sampler in ("sit_ode", "sit_sde"):
            with pytest.raises(DuetError, match=rf"sampler {sampler}: the schedule .* continuous time from 0 to 1"):
                make_plan(made, sampler)

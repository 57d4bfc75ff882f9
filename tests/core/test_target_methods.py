"""Training methods against transcriptions of the formulas of their authors' code, with networks that are functions.

The functions here follow the order of operations of that code; methods of Duet are linear combinations with columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainBatch
from diffusion_core.backend.reference.target import scored, target_values, weighted
from diffusion_core.backend.target import Pass
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import METHODS, Progress, TrainedNetwork
from diffusion_core.training.targets.consistency import WEIGHTINGS, ema_and_scales
from diffusion_core.training.targets.improved_consistency import (
    discretisation_steps,
    lognormal_probabilities,
    r_of_t,
)

B, SHAPE = 6, (4, 4, 1)
INDEX = np.arange(B)
IMAGES, NOISE = (Stream(3, name).normal(INDEX, SHAPE) for name in ("images", "noise"))
_SPEC = {
    "image_size": 4, "in_channels": 1, "out_channels": 1, "channels": 4, "channel_multipliers": (1,),
    "blocks_per_resolution": 1, "norm_groups": 2, "num_classes": 3,
}  # fmt: skip
SPEC, TWO_TIMES = UNetSpec(**_SPEC), UNetSpec(**_SPEC, second_time=True)
NULL = 3
LABELS = np.array([0, 1, 2, 0, 3, 1])


def pixels(column: Any) -> np.ndarray:
    return np.asarray(column, np.float64)[:, None, None, None]


def network(x: np.ndarray, c_noise: np.ndarray, second: np.ndarray, label: np.ndarray, who: str) -> np.ndarray:
    """A smooth function of all inputs, another one for each network."""
    shift = {"trained": 0.0, "average": 0.3, "teacher": 0.7}[who]
    level = np.sin(0.7 * c_noise + 0.4 * second + 0.5 * label + shift)
    return np.tanh(0.8 * x + pixels(level)) + 0.2 * np.roll(x, 1, axis=1) * pixels(np.cos(0.3 * c_noise - second))


def values(objective: Objective, draws: dict[str, Any], labels: np.ndarray = LABELS) -> tuple[dict, TrainBatch]:
    """Return every value of a target and its batch, for draws that other code made."""
    batch = objective.target_batch(IMAGES, NOISE, labels, INDEX, draws, labels == NULL, np.float64)

    def evaluate(step: Pass, x: np.ndarray, c_noise: np.ndarray, second: np.ndarray) -> np.ndarray:
        return network(x, c_noise, second, np.full(B, NULL) if step.null_label else batch.label, step.network)

    return target_values(objective.loss, batch, evaluate), batch


def losses(objective: Objective, draws: dict[str, Any], labels: np.ndarray = LABELS) -> np.ndarray:
    known, batch = values(objective, draws, labels)
    target = objective.loss
    return batch.weight * scored(target.distance, known[target.prediction] - known[target.target])


def close(got: Any, wanted: Any, bound: float = 1e-11) -> None:
    np.testing.assert_allclose(got, wanted, rtol=bound, atol=bound)


def model(spec: UNetSpec, schedule: dict, prediction: str, **options: float) -> DiffusionModel:
    return DiffusionModel(spec, schedule, prediction, **options)


EDM = model(SPEC, {"name": "edm"}, "edm")
CONSISTENCY = model(SPEC, {"name": "edm"}, "edm", boundary=0.002, time_scale=1000.0)
COSINE = {"name": "cosine_continuous", "log_snr_min": -20.0, "log_snr_max": 20.0}
MEAN_FLOW = model(TWO_TIMES, {"name": "flow_continuous"}, "flow")
SHORTCUT = model(TWO_TIMES, {"name": "flow_continuous"}, "velocity_to_data", time_scale=-1.0, time_offset=1.0)


def teacher(of: DiffusionModel) -> TrainedNetwork:
    return TrainedNetwork(of.process, of.program, {}, of.spec.image_shape)


def objective(of: DiffusionModel, name: str, taught: DiffusionModel | None = None, **options: Any) -> Objective:
    return Objective.for_model(of, 0, taught and teacher(taught), 1000, objective={"name": name, **options})


# Consistency models


def edm_scalings(sigma: np.ndarray, sd: float = 0.5) -> tuple[np.ndarray, ...]:
    root = (sigma**2 + sd**2) ** 0.5
    return sd**2 / (sigma**2 + sd**2), sigma * sd / root, 1 / root


def boundary_scalings(sigma: np.ndarray, s_min: float = 0.002, sd: float = 0.5) -> tuple[np.ndarray, ...]:
    root = (sigma**2 + sd**2) ** 0.5
    return sd**2 / ((sigma - s_min) ** 2 + sd**2), (sigma - s_min) * sd / root, 1 / root


def denoise(x: np.ndarray, sigma: np.ndarray, who: str, scalings: Callable = boundary_scalings, scale: float = 1000):
    c_skip, c_out, c_in = map(pixels, scalings(sigma))
    output = network(c_in * x, scale * 0.25 * np.log(sigma + 1e-44), np.zeros(B), LABELS, who)
    return c_out * output + c_skip * x


def descending(index: np.ndarray, scales: int, rho: float = 7.0) -> np.ndarray:
    high, low = 80.0 ** (1 / rho), 0.002 ** (1 / rho)
    return (high + index / (scales - 1) * (low - high)) ** rho


def consistency_losses(index: np.ndarray, scales: int, weighting: str, teaches: bool, solver: str = "heun"):
    t, t2 = descending(index, scales), descending(index + 1, scales)
    x_t = IMAGES + NOISE * pixels(t)

    def estimate(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return denoise(x, sigma, "teacher", edm_scalings, 1.0) if teaches else IMAGES

    d = (x_t - estimate(x_t, t)) / pixels(t)
    x_t2 = x_t + d * pixels(t2 - t)
    if teaches and solver == "heun":
        next_d = (x_t2 - estimate(x_t2, t2)) / pixels(t2)
        x_t2 = x_t + (d + next_d) * pixels((t2 - t) / 2)
    difference = denoise(x_t, t, "trained") - denoise(x_t2, t2, "average")
    snr = t**-2.0
    weight = {
        "uniform": np.ones(B), "snr": snr, "snr+1": snr + 1, "karras": snr + 1 / 0.5**2,
        "truncated-snr": np.maximum(snr, 1.0),
    }[weighting]  # fmt: skip
    return (difference**2).mean(axis=(1, 2, 3)) * weight


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_consistency_training_is_that_of_its_authors(weighting):
    index, scales = np.array([0, 3, 10, 17, 30, 38]), 40
    got = losses(
        objective(CONSISTENCY, "consistency_training", weighting=weighting),
        {"index": index, "scales": np.full(B, scales)},
    )
    close(got, consistency_losses(index, scales, weighting, teaches=False))


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_consistency_distillation_is_that_of_its_authors(solver):
    index, scales = np.array([0, 3, 10, 17, 30, 38]), 40
    method = objective(CONSISTENCY, "consistency_distillation", EDM, solver=solver)
    got = losses(method, {"index": index, "scales": np.full(B, scales)})
    close(got, consistency_losses(index, scales, "uniform", teaches=True, solver=solver))


def test_a_teacher_sees_its_own_level_of_the_same_noise():
    """A teacher on the VP SDE estimates x_0 from the same image, scaled to its alpha."""
    vp = model(SPEC, {"name": "vp_sde", "t_min": 1e-9, "beta_max": 60.0}, "eps", time_scale=999.0)
    known, batch = values(
        objective(CONSISTENCY, "consistency_distillation", vp, solver="euler"),
        {"index": np.array([0, 9, 19, 25, 33, 38]), "scales": np.full(B, 40)},
    )
    r = batch.sigma
    t = vp.process.schedule.t_at_log_ratio(np.log(r))
    alpha, sigma = vp.process.schedule(t)
    close(sigma / alpha, r, 1e-9)
    eps = network(pixels(alpha) * known["x_t"], 999.0 * t, np.zeros(B), LABELS, "teacher")
    close(known["taught_t"], (pixels(alpha) * known["x_t"] - pixels(sigma) * eps) / pixels(alpha), 1e-9)


def test_the_consistency_function_is_the_identity_at_the_least_noise():
    columns = CONSISTENCY.process.columns(np.array([0.002]))
    assert (columns.c_skip.item(), columns.c_out.item()) == (1.0, 0.0)
    assert np.all(np.isfinite([columns.target_x0, columns.target_eps]))
    for got, wanted in zip(("c_skip", "c_out", "c_in"), boundary_scalings(np.array([0.01, 1.0, 50.0])), strict=True):
        close(getattr(CONSISTENCY.process.columns([0.01, 1.0, 50.0]), got), wanted, 1e-14)
    close(CONSISTENCY.process.columns([0.5]).c_noise, 250 * math.log(0.5), 1e-14)


@pytest.mark.parametrize("boundary", [0.0, 0.001])
def test_the_columns_of_edm_fit_together_for_every_boundary(boundary):
    """c_skip x_t + c_out target = x_0 for all x_0 and eps."""
    process = Process(make_schedule("vp_sde"), "edm", boundary=boundary)
    t = np.array([0.01, 0.1, 0.5, 1.0])
    (alpha, sigma), columns = process.schedule(t), process.columns(t)
    close(columns.c_skip * alpha + columns.c_out * columns.target_x0, 1.0, 1e-12)
    close(columns.c_skip * sigma + columns.c_out * columns.target_eps, 0.0, 1e-12)


def test_the_schedules_of_levels_and_of_the_average():
    def original(step: int, total: int, start: int, end: int, ema: float) -> tuple[float, int]:
        scales = np.ceil(np.sqrt((step / total) * ((end + 1) ** 2 - start**2) + start**2) - 1).astype(np.int32)
        scales = np.maximum(scales, 1)
        c = -np.log(ema) * start
        return float(np.exp(-c / scales)), int(scales + 1)

    for step in (0, 1, 17, 400, 799, 800):
        got = ema_and_scales(Progress(step, 800), 0.95, "adaptive", 2, 200, "progressive")
        assert got == pytest.approx(original(step, 800, 2, 200, 0.95), rel=1e-14)
        fixed = ema_and_scales(Progress(step, 800), 0.95, "fixed", 2, 200, "progressive")
        assert fixed == (0.95, got[1])
    assert ema_and_scales(Progress(5, 9), 0.9, "fixed", 40, 40, "fixed") == (0.9, 40)


def test_the_levels_of_ict_double():
    def original(step: int, total: int, start: int, end: int) -> int:
        prime = math.floor(total / (math.log2(math.floor(end / start)) + 1))
        return min(start * math.pow(2, math.floor(step / prime)), end) + 1

    for total in (800, 8000):
        for step in (0, 1, total // 8 - 1, total // 8, total // 3, total - 1):
            assert discretisation_steps(Progress(step, total), 10, 1280) == original(step, total, 10, 1280)


@pytest.mark.parametrize("distance", ["pseudo_huber", "norm"])
def test_ict_is_that_of_its_paper_and_of_the_public_code(distance):
    method, scales = objective(CONSISTENCY, "improved_consistency_training", distance=distance), 21
    rho = 7.0
    low, high = 0.002 ** (1 / rho), 80.0 ** (1 / rho)
    sigmas = (low + np.arange(scales) / (scales - 1) * (high - low)) ** rho
    pdf = np.array([
        math.erf((math.log(b) + 1.1) / (2.0 * math.sqrt(2))) - math.erf((math.log(a) + 1.1) / (2.0 * math.sqrt(2)))
        for a, b in pairwise(sigmas)
    ])  # fmt: skip
    close(lognormal_probabilities(sigmas, -1.1, 2.0), pdf / pdf.sum(), 1e-12)
    index = np.array([0, 2, 7, 11, 16, 19])
    now, after = sigmas[index], sigmas[index + 1]
    difference = denoise(IMAGES + pixels(after) * NOISE, after, "trained") - denoise(
        IMAGES + pixels(now) * NOISE, now, "trained"
    )
    c = 0.00054 * math.sqrt(math.prod(SHAPE))
    if distance == "pseudo_huber":
        expected = (np.sqrt(difference**2 + c**2) - c).mean(axis=(1, 2, 3))
    else:
        expected = np.sqrt((difference**2).sum(axis=(1, 2, 3)) + c**2) - c
    # The difference of a root and c loses digits; Duet's quotient does not.
    close(losses(method, {"index": index, "scales": np.full(B, scales)}), expected / (after - now), 1e-8)


def test_the_levels_of_ict_are_drawn_with_their_probabilities():
    method = objective(CONSISTENCY, "improved_consistency_training").training_method
    draws = method.draw(lambda name: Stream(0, name), np.arange(40_000), Progress(0, 100))
    assert set(draws["scales"]) == {11}
    ratios = method.ratios(objective(CONSISTENCY, "improved_consistency_training").setting, 11)
    table = method.table(objective(CONSISTENCY, "improved_consistency_training").setting, draws, np.zeros(40_000, bool))
    counts = [np.mean(np.abs(table.sigma - upper) < 1e-6 * upper) for upper in ratios[1:]]
    np.testing.assert_allclose(counts, lognormal_probabilities(ratios, -1.1, 2.0), atol=0.01)


@pytest.mark.parametrize("mapping", ["sigmoid", "const"])
@pytest.mark.parametrize("c", [0.0, 0.06])
def test_ect_is_that_of_its_authors(mapping, c):
    """With pairs whose target is the clean image, and levels outside the schedule."""
    q, k, b, stage = 2.0, 8.0, 1.0, 1
    t = np.array([0.0004, 0.3, 0.9, 1.5, 7.0, 120.0])
    method = objective(EDM, "easy_consistency_tuning", q=q, c=c, mapping=mapping)
    adjusted = (1 + k * (1 / (1 + np.exp(b * t)))) if mapping == "sigmoid" else 1.0
    r = np.maximum(t * (1 - 1 / q ** (stage + 1) * adjusted), 0)
    close(r_of_t(t, stage, q, k, b, mapping), r, 1e-14)
    assert (r == 0).any() == (mapping == "sigmoid")

    def net(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return denoise(x, np.maximum(sigma, 1e-300), "trained", edm_scalings, 1.0)

    target = np.where(pixels(r) > 0, net(IMAGES + NOISE * pixels(r), r), IMAGES)
    square = ((net(IMAGES + NOISE * pixels(t), t) - target) ** 2).sum(axis=(1, 2, 3))
    distance = np.sqrt(square + c**2) - c if c else np.sqrt(square)
    close(losses(method, {"t": t, "stage": np.full(B, stage)}), distance / (t - r), 1e-10)


# MeanFlow


@pytest.mark.parametrize("options", [{}, {"omega": 2.0, "kappa": 0.0}, {"guidance": False}, {"interval": (0.3, 0.8)}])
def test_mean_flow_is_that_of_its_authors(options):
    t, r = np.array([0.9, 0.7, 0.2, 0.5, 0.6, 1.0]), np.array([0.4, 0.7, 0.1, 0.0, 0.3, 0.2])
    chosen = {"omega": 1.0, "kappa": 0.5, "interval": (0.0, 1.0), "guidance": None} | options
    got, _ = values(objective(MEAN_FLOW, "mean_flow", **options), {"t": t, "r": r})
    z = pixels(1 - t) * IMAGES + pixels(t) * NOISE
    v = NOISE - IMAGES
    inside = (t >= chosen["interval"][0]) & (t <= chosen["interval"][1])
    omega, kappa = pixels(np.where(inside, chosen["omega"], 1.0)), pixels(np.where(inside, chosen["kappa"], 0.0))
    v_uncond = network(z, t, 0 * t, np.full(B, NULL), "trained")
    v_cond = network(z, t, 0 * t, LABELS, "trained")
    v_g = v if chosen["guidance"] is False else omega * v + (1 - omega - kappa) * v_uncond + kappa * v_cond
    v_g = np.where(pixels(LABELS) == NULL, v, v_g)

    def u_of(z: np.ndarray, t: np.ndarray, r: np.ndarray) -> np.ndarray:
        return network(z, t, t - r, LABELS, "trained")

    # Richardson's extrapolation of central differences, another formula than that of the reference.
    def quotient(h: float) -> np.ndarray:
        return (u_of(z + h * v_g, t + h, r) - u_of(z - h * v_g, t - h, r)) / (2 * h)

    du_dt = (4 * quotient(1e-4) - quotient(2e-4)) / 3
    u, u_target = u_of(z, t, r), v_g - pixels(np.clip(t - r, 0.0, 1.0)) * du_dt
    close(got["u"], u)
    close(got["u_target"], u_target, 1e-10)
    loss = ((u - u_target) ** 2).sum(axis=(1, 2, 3))
    close(losses(objective(MEAN_FLOW, "mean_flow", **options), {"t": t, "r": r}), loss / (loss + 0.01) ** 1.0, 1e-10)


def test_the_times_of_mean_flow():
    method = objective(MEAN_FLOW, "mean_flow").training_method
    draws = method.draw(lambda name: Stream(0, name), np.arange(20_000), Progress())
    t, r = draws["t"], draws["r"]
    assert np.all(t >= r) and abs(np.mean(t == r) - 0.75) < 0.01
    larger = np.maximum(*(1 / (1 + np.exp(-np.random.default_rng(i).normal(-0.4, 1.0, 20_000))) for i in (0, 1)))
    assert abs(t.mean() - larger.mean()) < 0.01
    capped = METHODS["mean_flow"](times="cap", mean_r=-4.0, std_r=1.6, same_time=0.25)
    draws = capped.draw(lambda name: Stream(0, name), np.arange(20_000), Progress())
    assert np.all(draws["t"] >= draws["r"]) and np.mean(draws["t"] == draws["r"]) > 0.25


# Shortcut models


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("decay", [0.999, 0.0])
def test_shortcut_targets_are_those_of_their_authors(scale, decay):
    method = objective(SHORTCUT, "shortcut", steps=8, guidance_scale=scale, decay=decay)
    dt_base, t = np.array([2.0, 0.0, 1.0, 3.0, 2.0, 3.0]), np.array([0.25, 0.0, 0.5, 0.375, 0.75, 0.0])
    got, batch = values(method, {"d": dt_base, "t": t})
    np.testing.assert_array_equal(batch.label, LABELS)
    x_t = pixels(1 - (1 - 1e-5) * t) * NOISE + pixels(t) * IMAGES
    who = "average" if decay else "trained"
    dt = 1 / 2**dt_base / 2

    def call(x: np.ndarray, time: np.ndarray) -> np.ndarray:
        v = network(x, time, dt_base + 1, LABELS, who)
        free = network(x, time, dt_base + 1, np.full(B, NULL), who)
        return np.where(pixels(dt_base) == 2, free + scale * (v - free), v)

    v_b1 = call(x_t, t)
    x_t2 = np.clip(x_t + pixels(dt) * v_b1, -4, 4)
    v_target = np.clip((v_b1 + call(x_t2, t + dt)) / 2, -4, 4)
    expected = np.where(pixels(dt_base) == 3, IMAGES - (1 - 1e-5) * NOISE, v_target)
    close(got["x_t"], x_t)
    close(got["v"], expected)
    close(got["s"], network(x_t, t, dt_base, LABELS, "trained"))
    close(losses(method, {"d": dt_base, "t": t}), ((got["s"] - expected) ** 2).mean(axis=(1, 2, 3)))


def test_the_steps_of_shortcut_models_are_evaluated_for_the_images_that_need_them():
    method = objective(SHORTCUT, "shortcut", every=8)
    target = method.loss
    assert target.forwards == 2 / 8 and target.whole().forwards == 2 and target.whole() != target
    assert objective(SHORTCUT, "shortcut", every=1).loss.forwards == 2
    column = target.columns.index("composed")
    for first in (0, 3, 13):  # of any 8 consecutive images, one is composed
        batch = method.batch(np.zeros((16, *SHAPE)), np.zeros(16, int), first + np.arange(16), np.float64)
        assert batch.columns[:, column].reshape(2, 8).sum(axis=1).tolist() == [1.0, 1.0]


def test_the_steps_of_shortcut_models():
    method = METHODS["shortcut"](steps=16, every=4)
    draws = method.draw(lambda name: Stream(0, name), np.arange(8000), Progress())
    composed = np.arange(8000) % 4 == 0
    assert set(draws["d"][composed]) == {0.0, 1.0, 2.0, 3.0} and set(draws["d"][~composed]) == {4.0}
    sections = draws["t"] * 2 ** draws["d"]
    np.testing.assert_array_equal(sections, np.round(sections))
    assert draws["t"].min() == 0 and draws["t"].max() < 1
    biased = METHODS["shortcut"](steps=16, every=1, bias=True).draw(lambda n: Stream(0, n), np.arange(8000), Progress())
    assert np.mean(biased["d"] == 0) == pytest.approx(0.25, abs=0.02) == np.mean(biased["d"] == 1)


def test_a_class_is_kept_where_two_steps_are_composed():
    method = Objective.for_model(SHORTCUT, 0, None, 1000, objective={"name": "shortcut", "every": 2}, label_dropout=1.0)
    batch = method.batch(IMAGES, np.array([0, 1, 2, 0, 1, 2]), INDEX, np.float64)
    np.testing.assert_array_equal(batch.label, [0, NULL, 2, NULL, 1, NULL])


# Progressive distillation


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def logsnr_cosine(u: np.ndarray) -> np.ndarray:
    b = np.arctan(np.exp(-0.5 * 20.0))
    a = np.arctan(np.exp(-0.5 * -20.0)) - b
    return -2.0 * np.log(np.tan(a * u + b))


def predicted(prediction: str, z: np.ndarray, logsnr: np.ndarray, u: np.ndarray, who: str) -> tuple[np.ndarray, ...]:
    """Return (x, eps) of a network at u."""
    output = network(z, 1000 * u, np.zeros(B), LABELS, who)
    alpha, sigma = pixels(np.sqrt(sigmoid(logsnr))), pixels(np.sqrt(sigmoid(-logsnr)))
    x = {"eps": (z - sigma * output) / alpha, "x0": output, "v": alpha * z - sigma * output}[prediction]
    return x, (z - alpha * x) / sigma


@pytest.mark.parametrize("prediction", ["v", "x0", "eps"])
@pytest.mark.parametrize("weighting", ["constant", "snr", "snr_trunc", "v_mse"])
def test_progressive_distillation_is_that_of_its_authors(prediction, weighting):
    steps, index = 4, np.array([0, 1, 2, 3, 0, 2])
    own = model(SPEC, COSINE, prediction, time_scale=1000.0)
    method = objective(own, "progressive_distillation", own, steps=steps, weighting=weighting)
    got, _ = values(method, {"index": index})
    u = (index + 1) / steps
    logsnr, middle, end = (logsnr_cosine(v) for v in (u, u - 0.5 / steps, u - 1 / steps))
    alphas, sigmas = ([pixels(np.sqrt(sigmoid(sign * at))) for at in (logsnr, middle, end)] for sign in (1, -1))
    z = alphas[0] * IMAGES + sigmas[0] * NOISE
    x, eps = predicted(prediction, z, logsnr, u, "teacher")
    z_mid = alphas[1] * x + sigmas[1] * eps
    x, eps = predicted(prediction, z_mid, middle, u - 0.5 / steps, "teacher")
    z_teacher = alphas[2] * x + sigmas[2] * eps
    fraction = pixels(np.exp(0.5 * (np.logaddexp(0, logsnr) - np.logaddexp(0, end))))
    x_target = (z_teacher - fraction * z) / (alphas[2] - fraction * alphas[0])
    x_target = np.where(pixels(index) == 0, x, x_target)
    # The levels of u = 1 and u = 0 are exponentials of +-10, which cost digits.
    close(got["x_target"], x_target, 1e-7)
    student, student_eps = predicted(prediction, z, logsnr, u, "trained")
    eps_target = (z - alphas[0] * x_target) / sigmas[0]
    x_mse = ((student - x_target) ** 2).mean(axis=(1, 2, 3))
    eps_mse = ((student_eps - eps_target) ** 2).mean(axis=(1, 2, 3))
    v_mse = ((alphas[0] * (student_eps - eps_target) - sigmas[0] * (student - x_target)) ** 2).mean(axis=(1, 2, 3))
    expected = {"constant": x_mse, "snr": eps_mse, "snr_trunc": np.maximum(x_mse, eps_mse), "v_mse": v_mse}[weighting]
    np.testing.assert_allclose(losses(method, {"index": index}), expected, rtol=1e-6, atol=1e-9)


def test_the_grid_of_ratios_is_that_of_progdist():
    steps, index = 8, np.array([0, 2, 3, 5, 6, 7])  # from the most noise, as there
    method = objective(EDM, "progressive_distillation", EDM, steps=steps, grid="ratio", weighting="constant")
    got, _ = values(method, {"index": steps - 1 - index})
    t, t2, t3 = (descending(index + offset, steps + 1) for offset in (0.0, 0.5, 1.0))
    x_t = IMAGES + NOISE * pixels(t)
    x_t2 = x_t + (x_t - denoise(x_t, t, "teacher", edm_scalings, 1.0)) / pixels(t) * pixels(t2 - t)
    x_t3 = x_t2 + (x_t2 - denoise(x_t2, t2, "teacher", edm_scalings, 1.0)) / pixels(t2) * pixels(t3 - t2)
    target = x_t - pixels(t) * (x_t3 - x_t) / pixels(t3 - t)
    close(got["x_target"], target, 1e-9)
    squares = ((denoise(x_t, t, "trained", edm_scalings, 1.0) - target) ** 2).mean(axis=(1, 2, 3))
    karras = objective(EDM, "progressive_distillation", EDM, steps=steps, grid="ratio", weighting="karras")
    np.testing.assert_allclose(losses(karras, {"index": steps - 1 - index}), squares * (t**-2 + 0.5**-2), rtol=1e-9)


def test_one_step_with_the_target_is_two_of_the_teacher():
    own = model(SPEC, COSINE, "v", time_scale=1000.0)
    method = objective(own, "progressive_distillation", own, steps=4)
    got, _ = values(method, {"index": np.array([1, 2, 3, 1, 2, 3])})
    schedule, u = own.process.schedule, np.array([0.5, 0.75, 1.0, 0.5, 0.75, 1.0])
    (a_t, s_t), (a_s, s_s) = schedule(u), schedule(u - 0.25)
    (a_m, s_m) = schedule(u - 0.125)
    two = pixels(s_s / s_m) * got["z_middle"] + pixels(a_s - a_m * s_s / s_m) * got["x_second"]
    one = pixels(s_s / s_t) * got["z"] + pixels(a_s - a_t * s_s / s_t) * got["x_target"]
    close(one, two, 1e-11)


# Continuous-time consistency models

TRIGFLOW = model(SPEC, {"name": "edm"}, "trigflow")
TAU, M_DATA = np.array([-3.0, -1.5, -0.5, 0.3, 1.0, 2.5]), 0.5


def trig_network(y: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """F of y/m at the angle, with the inputs of `network`."""
    return network(y, angle, np.zeros(B), LABELS, "trained")


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize(
    "tangent, norm", [("normalised", "sum"), ("normalised", "mean"), ("clipped", "sum"), ("plain", "sum")]
)
def test_scm_is_algorithm_1(taught, tangent, norm):
    r = np.linspace(0.0, 1.0, B)
    name = f"continuous_consistency_{'distillation' if taught else 'training'}"
    method = objective(TRIGFLOW, name, EDM if taught else None, tangent=tangent, norm=norm)
    got, _ = values(method, {"tau": TAU, "r": r})
    angle = np.arctan(np.exp(TAU) / M_DATA)
    cos, sin = pixels(np.cos(angle)), pixels(np.sin(angle))
    z = M_DATA * NOISE
    x_t = cos * IMAGES + sin * z
    velocity = cos * z - sin * IMAGES
    if taught:  # the teacher of EDM sees x_0 plus noise of scale sigma = m tan(a), and dx/da is m F = (cos x - D)/sin
        D = denoise(x_t / cos, np.exp(TAU), "teacher", edm_scalings, 1.0)
        velocity = (cos * x_t - D) / sin
    along = cos * sin
    h = 1e-4 * along
    ahead, behind = (trig_network((x_t + s * h * velocity) / M_DATA, angle + s * h[:, 0, 0, 0]) for s in (1, -1))
    F, rate = trig_network(x_t / M_DATA, angle), (ahead - behind) / 2e-4
    g = -(cos**2) * (M_DATA * F - velocity) - pixels(r) * (along * x_t + M_DATA * rate)
    size = np.sqrt((np.mean if norm == "mean" else np.sum)(g**2, axis=(1, 2, 3), keepdims=True))
    g = {"normalised": g / (size + 0.1), "clipped": np.clip(g, -1, 1), "plain": g}[tangent]
    close(got["velocity"], velocity, 1e-9)
    np.testing.assert_allclose(got["moved"], F + g, rtol=0, atol=1e-6)
    np.testing.assert_allclose(losses(method, {"tau": TAU, "r": r}), np.mean(g**2, axis=(1, 2, 3)), rtol=0, atol=1e-5)


def test_the_uncertainty_of_scm_weights_its_loss():
    """e^w/D |F - F_ - g|^2 - w with w = -u, where u is the last channel of the network."""
    uncertain = DiffusionModel(SPEC, {"name": "edm"}, "trigflow", uncertainty=True)
    target = objective(uncertain, "continuous_consistency_training").loss
    assert (
        target.uncertainty == "F.uncertainty"
        and objective(TRIGFLOW, "continuous_consistency_training").loss.uncertainty is None
    )
    batch, u = target_cases_batch(uncertain), np.linspace(-1.0, 2.0, B)
    np.testing.assert_allclose(weighted(target, batch, {"F.uncertainty": u}, np.full(B, 3.0)), 3 * np.exp(-u) + u)


def target_cases_batch(of: DiffusionModel) -> TrainBatch:
    return objective(of, "continuous_consistency_training").batch(IMAGES, LABELS % 3, INDEX, np.float64)


def test_the_tangent_of_scm_warms_up_by_steps():
    method = METHODS["continuous_consistency_training"](warmup=200)
    weights = [method.draw(lambda n: Stream(0, n), INDEX, Progress(k, 400))["r"][0] for k in (0, 50, 200, 399)]
    assert weights == [0.0, 0.25, 1.0, 1.0]
    tau = method.draw(lambda n: Stream(0, n), np.arange(4000), Progress())["tau"]
    assert tau.mean() == pytest.approx(-1.0, abs=0.1) and tau.std() == pytest.approx(1.4, abs=0.1)


# Laws of every method


def every_method() -> dict[str, Objective]:
    given = {
        "easy_consistency_tuning": (EDM, None), "mean_flow": (MEAN_FLOW, None), "shortcut": (SHORTCUT, None),
        "progressive_distillation": (model(SPEC, COSINE, "v"),) * 2, "consistency_distillation": (CONSISTENCY, EDM),
        "continuous_consistency_training": (TRIGFLOW, None), "continuous_consistency_distillation": (TRIGFLOW, EDM),
    }  # fmt: skip
    return {name: objective(*(of := given.get(name, (CONSISTENCY, None)))[:1], name, of[1]) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_part_of_a_batch_is_the_same_rows_of_the_whole(name):
    """So that several processes, and a run that is resumed within a stage, see the batch of one process."""
    method, index = every_method()[name], 40 + np.arange(16)
    images = Stream(1, "images").normal(index, SHAPE)
    progress = Progress(30, 100)
    whole = method.batch(images, index % 3, index, np.float64, progress=progress)
    for rows in (slice(0, 8), slice(8, 16), slice(3, 5)):
        part = method.batch(images[rows], index[rows] % 3, index[rows], np.float64, progress=progress)
        for field, array in part.arrays.items():
            wanted = whole.arrays[field] if field == "dropout_key" else whole.arrays[field][rows]
            np.testing.assert_array_equal(array, wanted, err_msg=field)


# What does not fit


@pytest.mark.parametrize(
    "of, options, match",
    [
        (EDM, {"name": "consistency_training"}, r"process.boundary=0; .* use process=consistency"),
        (model(SPEC, {"name": "cosine"}, "v"), {"name": "consistency_training"}, "process.prediction=v; .*consistency"),
        (CONSISTENCY, {"name": "easy_consistency_tuning"}, "process.boundary=0.002; .* use 0"),
        (CONSISTENCY, {"name": "consistency_distillation"}, r"needs a run, objective.teacher=RUN"),
        (CONSISTENCY, {"name": "consistency_trianing"}, "must be one of .*consistency_training"),
        (CONSISTENCY, {"name": "consistency_training", "rhoo": 3}, "option of objective .*: 'rhoo'"),
        (CONSISTENCY, {"name": "consistency_training", "decay": 1.0}, "objective.decay: 1.0 was given"),
        (CONSISTENCY, {"name": "consistency_training", "distance": "lpips"}, "objective.distance: 'lpips'"),
        (CONSISTENCY, {"name": "consistency_training", "scale_mode": "fixed"}, "objective.decay_mode: adaptive"),
        (model(SPEC, {"name": "flow_continuous"}, "flow"), {"name": "mean_flow"}, "reads one time; set model.second"),
        (model(TWO_TIMES, {"name": "cosine"}, "v"), {"name": "mean_flow"}, "the straight line, process=mean_flow"),
        (EDM, {"name": "continuous_consistency_training"}, "process.prediction=edm; .* use process=trigflow"),
        (TRIGFLOW, {"name": "continuous_consistency_training", "tangent": "unit"}, "objective.tangent: 'unit'"),
        (TRIGFLOW, {"name": "continuous_consistency_distillation"}, "needs a run, objective.teacher=RUN"),
        (MEAN_FLOW, {"name": "shortcut"}, "use process=shortcut"),
        (SHORTCUT, {"name": "shortcut", "steps": 12}, "objective.steps: 12 was given; it must be a power of two"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(of, options, match):
    with pytest.raises(DuetError, match=match):
        Objective.for_model(of, 0, objective=options)


@pytest.mark.parametrize(
    "changes, match",
    [
        (
            {"weighting": {"name": "min_snr"}},
            "process.weighting: min_snr was given with objective=consistency_training",
        ),
        ({"timestep_sampling": "loss"}, "process.timestep_sampling"),
        ({"distance": "l1"}, "process.distance: l1"),
    ],
)
def test_options_of_the_regression_are_refused(changes, match):
    with pytest.raises(DuetError, match=match):
        Objective.for_model(CONSISTENCY, 0, objective={"name": "consistency_training"}, **changes)


def test_a_teacher_that_does_not_fit_is_refused():
    def refused(taught: DiffusionModel, match: str) -> None:
        with pytest.raises(DuetError, match=match):
            objective(CONSISTENCY, "consistency_distillation", taught)

    refused(model(UNetSpec(**_SPEC | {"image_size": 8}), {"name": "edm"}, "edm"), "its images are 8x8x1, but .* 4x4x1")
    refused(model(UNetSpec(**_SPEC | {"num_classes": 5}), {"name": "edm"}, "edm"), "it has 5 classes, but .* has 3")
    refused(model(SPEC, {"name": "edm", "sigma_max": 40.0}, "edm"), r"it knows sigma/alpha of 0.002 to 40, but")
    with pytest.raises(DuetError, match="mean_flow uses no teacher"):
        objective(MEAN_FLOW, "mean_flow", MEAN_FLOW)

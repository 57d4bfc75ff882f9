"""Editing: where it starts, what it keeps, and inpainting of pixels with a known denoiser."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import BackendConfig, StepCallback
from diffusion_core.backend.reference import sampling
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear, make_schedule
from diffusion_core.model.generate import generate
from diffusion_core.networks import Program, UNetSpec, lower
from diffusion_core.networks.weights import initial_weights
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.dpm_solver import dpm_solver
from diffusion_core.sampling.edit import (
    Edit,
    add_start_noise,
    decreasing_timesteps,
    image_to_image,
    inpaint,
    interpolate,
    slerp,
    start_row,
    tail,
)
from diffusion_core.sampling.repaint import add_resampling, repaint

PROCESS = Process(linear(), "eps")
PROGRAM = lower(UNetSpec(4, 1, 1, 4, (1,), 1, (4,), norm_groups=2, num_classes=3, zero_init=False))
WEIGHTS = initial_weights(PROGRAM, 0)
SHAPE = (4, 4, 1)
IMAGES = np.tanh(Stream(3, "pictures").normal(np.arange(4), SHAPE))
LABELS = np.array([0, 1, 2, 3])


class Reference:
    """The reference with the interface of a backend."""

    config = BackendConfig(precision="float64")

    def sample(self, network, plan, start, label, noise, callback=None, guidance=None):
        inpainting = {"mask": guidance.mask, "known": guidance.known}
        return reference.sample(network.program, WEIGHTS, plan, start, label, noise, callback, **inpainting)


def run_plan(plan: SamplerPlan, edit: Edit | None = None, labels: np.ndarray = LABELS, **options: object) -> np.ndarray:
    network = SimpleNamespace(program=PROGRAM)
    return generate(Reference(), network, plan, SHAPE, labels, seed=5, edit=edit, **options)


# Where it starts


def test_strength_is_the_fraction_of_rows():
    plan = ddim(PROCESS, 10)
    assert [start_row(plan, s) for s in (1.0, 0.5, 0.1, 1e-9)] == [0, 5, 9, 9]
    for wrong in (0.0, 1.01, -1.0, float("nan")):
        with pytest.raises(DuetError, match=f"mode.strength: {wrong} was given"):
            start_row(plan, wrong)


def test_the_tail_of_a_plan_continues_like_the_full_plan():
    plan, seen = ddim(PROCESS, 6), {}
    full = run_plan(plan, callback=StepCallback(lambda row, x, estimate: seen.update({row: x})))
    later = replace(image_to_image(plan.tail(4), IMAGES, 5), start=seen[3])
    np.testing.assert_array_equal(run_plan(later.plan, later), full)
    np.testing.assert_array_equal(plan.tail(4).t, plan.t[4:])
    assert (plan.tail(4).alpha[-1], plan.tail(4).sigma[-1]) == (1, 0)
    for row in (-1, 6):
        with pytest.raises(DuetError, match=rf"row {row} was given; the plan has rows 0..5"):
            plan.tail(row)


RAMP = {"first": 1, "last": 4}


def test_a_tail_with_dependent_rows_is_a_new_plan():
    for make in (
        lambda **o: dpm_solver(PROCESS, **{"steps": 10, **o}),
        lambda **o: dpm_solver(PROCESS, **{"steps": 10, "order": 3, "spacing": "karras", **o}),
    ):
        full = make()
        assert not full.is_self_contained(4) and full.is_self_contained(0)
        with pytest.raises(DuetError, match="the rows from 4 on depend on earlier rows"):
            full.tail(4)

        def guided(guidance_scale=RAMP, guidance_convention="from_null", interval=None, make=make, **options):
            return make(**options).with_guidance(guidance_scale, interval)

        new = tail(guided, 0.6)
        np.testing.assert_array_equal(new.t, full.t[4:])
        np.testing.assert_allclose(new.denoised[2:], full.denoised[6:], rtol=1e-9, atol=1e-12)
        assert np.all(new.denoised[0, 0, 1:] == 0) and new.is_self_contained(0)
        np.testing.assert_array_equal(new.guidance_scale, np.linspace(1, 4, 10)[4:])


@pytest.mark.parametrize("name, options", [
    ("flow_heun", {"shift": 3.0}),
    ("heun", {"s_churn": 2.0}),
    ("restart", {}),
    ("dpm2", {}),
    ("dpm2_ancestral", {}),
    ("dpmpp_2s_ancestral", {}),
    ("dpmpp_sde", {}),
    ("dpm_solver_singlestep", {"order": 3}),
])  # fmt: skip
def test_a_tail_starts_at_the_nearest_step(name, options):
    process = Process(make_schedule("flow"), "v") if name == "flow_heun" else PROCESS
    for steps in (2, 9):  # one step before the last, or more
        make = partial(make_plan, process, name, steps=steps, **options)
        full, moved = make(), 0
        alone = [row for row in range(full.rows) if full.is_self_contained(row)]
        for row in range(full.rows):
            new = tail(make, (full.rows - row) / full.rows)
            first = full.rows - new.rows
            assert abs(first - row) == min(abs(other - row) for other in alone) <= 1
            moved += first != row
            np.testing.assert_array_equal(new.t, full.t[first:])
            np.testing.assert_array_equal(new.sigma, full.sigma[first:])
            np.testing.assert_array_equal(new.noise[:, 0], full.noise[first:, 0])
    assert moved


def test_a_new_tail_has_the_timesteps_at_which_steps_start():
    for name, more in (("plms", 1), ("pndm", 9)):
        make = partial(make_plan, PROCESS, name, steps=10)
        full, levels = make(), make_plan(PROCESS, "ddim", steps=10).t
        for strength in (0.9, 0.75, 0.5):
            new = tail(make, strength)
            kept = levels[levels <= full.t[start_row(full, strength)]]
            assert new.rows == len(kept) + more
            np.testing.assert_array_equal(new.t, make_plan(PROCESS, name, steps=None, spacing=kept.tolist()).t)


def test_decreasing_timesteps_are_below_all_before_them():
    assert decreasing_timesteps(np.array([9, 7, 7, 8, 7.5, 3, 5, 2])) == [9, 7, 3, 2]


def test_image_to_image_from_pure_noise_is_plain_sampling():
    process = Process(make_schedule("linear", zero_terminal_snr=True), "v")
    for make in (ddim, partial(ddpm, variance="fixed_large")):
        plan = make(process, 5, spacing="trailing")
        assert plan.alpha[0] == 0
        edit = image_to_image(plan.tail(start_row(plan, 1.0)), IMAGES, 5)
        np.testing.assert_array_equal(run_plan(edit.plan, edit, batch=3), run_plan(plan, batch=3))


def test_image_to_image_starts_at_the_level_of_its_row():
    plan = ddim(PROCESS, 8).tail(5)
    start = image_to_image(plan, np.repeat(IMAGES, 500, axis=0), 1).start.reshape(4, 500, *SHAPE)
    # 500 normal numbers: mean and standard deviation to 6 standard errors.
    np.testing.assert_allclose(start.mean(axis=1), plan.alpha[0] * IMAGES, atol=6 * plan.sigma[0] / np.sqrt(500))
    np.testing.assert_allclose(start.std(axis=1), plan.sigma[0], rtol=6 / np.sqrt(1000))


# Interpolation


@pytest.mark.parametrize("mix", ["lerp", "slerp"])
def test_the_ends_of_an_interpolation_are_the_two_images(mix):
    plan, pair = ddim(PROCESS, 8).tail(4), np.arange(2)
    first, second = (add_start_noise(plan, IMAGES[some], pair, 5) for some in (slice(0, 2), slice(2, 4)))
    edit = interpolate(plan, first, second, 5, mix)
    np.testing.assert_array_equal(edit.index, np.repeat(pair, 5))
    ends = edit.start.reshape(2, 5, *SHAPE)
    np.testing.assert_allclose(ends[:, 0], first, rtol=0, atol=1e-14)
    np.testing.assert_allclose(ends[:, -1], second, rtol=0, atol=1e-14)
    alone = image_to_image(plan, IMAGES[:2], 5)
    frames = run_plan(plan, edit, labels=np.zeros(10, int))
    np.testing.assert_allclose(frames[[0, 5]], run_plan(plan, alone, labels=np.zeros(2, int)), rtol=0, atol=1e-12)


def test_lerp_keeps_the_noise_level_of_images_with_the_same_noise():
    plan = ddim(PROCESS, 8).tail(4)
    first, second = (add_start_noise(plan, IMAGES[[k]], np.zeros(1, int), 5) for k in (0, 1))
    middle = interpolate(plan, first, second, 3).start[1]
    noise = (middle - plan.alpha[0] * IMAGES[:2].mean(axis=0)) / plan.sigma[0]
    np.testing.assert_allclose(noise, Stream(5, "sample/start").normal([0], SHAPE)[0], atol=1e-13)


def test_slerp_has_equal_angles_and_keeps_the_length():
    a, b = (Stream(k, "arc").normal([0], (8, 8, 1)) for k in (1, 2))
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    points = [slerp(a, b, np.full((1, 1, 1, 1), s)) for s in np.linspace(0, 1, 5)]
    np.testing.assert_allclose([np.linalg.norm(x) for x in points], np.linalg.norm(a), rtol=1e-12)
    angles = [np.vdot(x, y) / np.linalg.norm(a) ** 2 for x, y in pairwise(points)]
    np.testing.assert_allclose(angles, angles[0], rtol=1e-12)
    half = np.full((1, 1, 1, 1), 0.5)
    np.testing.assert_allclose(slerp(a, 3 * a, half), 2 * a, rtol=1e-12)
    np.testing.assert_array_equal(slerp(a, 0 * a, half), 0.5 * a)


def test_invalid_interpolations_are_errors():
    with pytest.raises(DuetError, match="count: 1 was given"):
        interpolate(ddim(PROCESS, 4), IMAGES, IMAGES, 1)
    with pytest.raises(DuetError, match=r"mix: 'slurp' was given; .* Did you mean 'slerp'"):
        interpolate(ddim(PROCESS, 4), IMAGES, IMAGES, 3, "slurp")


# Inpainting

LEFT = (np.arange(4) < 2)[None, :, None]


def test_inpainting_keeps_the_known_part_exactly():
    for plan in (ddim(PROCESS, 4), repaint(PROCESS, 5, jump=2, resamples=2)):
        painted = run_plan(plan, inpaint(plan, IMAGES, LEFT), batch=3)
        np.testing.assert_array_equal(painted[:, :, :2], IMAGES[:, :, :2])
        assert np.abs(painted[:, :, 2:] - IMAGES[:, :, 2:]).max() > 0.1
        everything = run_plan(plan, inpaint(plan, IMAGES, np.zeros((1, 1, 1))))
        np.testing.assert_array_equal(everything, run_plan(plan))


def test_the_known_part_has_the_noise_of_each_level():
    plan, seen = repaint(PROCESS, 5, jump=2, resamples=2), {}
    many = np.repeat(IMAGES[:1], 300, axis=0)
    edit = inpaint(plan, many, np.ones((1, 1, 1)))
    run_plan(
        plan, edit, np.zeros(300, int), batch=300, callback=StepCallback(lambda row, x, estimate: seen.update({row: x}))
    )
    for row, x in seen.items():
        noise = x - plan.alpha[row + 1] * IMAGES[0]
        # 4800 normal numbers: 5 standard errors.
        assert abs(noise.mean()) <= 5 * plan.sigma[row + 1] / np.sqrt(4800)
        assert noise.std() == pytest.approx(plan.sigma[row + 1], rel=5 / np.sqrt(2 * 4800))


@pytest.mark.parametrize("mask, message", [
    (np.ones((3, 4, 1)), r"mask: its shape is \(3, 4, 1\), but the images are \(4, 4, 1\)"),
    (np.full((4, 4, 1), 0.5), "mask: it must be 1 where the image is known"),
])  # fmt: skip
def test_invalid_masks_are_errors(mask, message):
    with pytest.raises(DuetError, match=message):
        inpaint(ddim(PROCESS, 4), IMAGES, mask)


def test_an_edit_needs_a_label_for_each_sample():
    plan = ddim(PROCESS, 4)
    with pytest.raises(DuetError, match="edit: it has 4 samples, but 3 labels"):
        run_plan(plan, inpaint(plan, IMAGES, LEFT), LABELS[:3])


# RePaint


def rows_of(plan: SamplerPlan, full: SamplerPlan) -> list[int]:
    return [full.t.tolist().index(t) for t in plan.t]


def test_resampling_repeats_each_block():
    four, five = ddpm(PROCESS, 4), ddpm(PROCESS, 5)
    assert rows_of(add_resampling(four, 1, 3), four) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert rows_of(add_resampling(five, 2, 2), five) == [0, 1, 0, 1, 2, 3, 2, 3, 4]
    once = add_resampling(five, 3, 1)
    for name, table in once.tables().items():
        np.testing.assert_array_equal(table, getattr(five, name))
    assert add_resampling(ddpm(PROCESS, 250), 10, 10).rows == 250 + 9 * 10 * 24


def test_a_jump_without_its_noise_is_an_error():
    plan = add_resampling(ddim(PROCESS, 5, eta=0.3), 2, 2)
    noise = plan.noise.copy()
    assert noise[1] > 0.5  # this row returns to a noisier level
    noise[1] *= 1 - 1e-6
    with pytest.raises(DuetError, match=r"row 1 .* does not lead from level"):
        replace(plan, noise=noise)


@pytest.mark.parametrize("plan, jump, resamples, message", [
    (ddpm(PROCESS, 5), 0, 2, "sampler.jump: 0 was given; 5 steps can go back by 1 to 4"),
    (ddpm(PROCESS, 5), 5, 2, "sampler.jump: 5 was given"),
    (ddpm(PROCESS, 5), 2, 0, "sampler.resamples: 0 was given"),
    (dpm_solver(PROCESS, 5), 2, 2, "resampling: .* its rows depend on earlier ones; use ddpm or ddim"),
    (ddpm(PROCESS, 5, variance="learned_range"), 2, 2, "resampling: .* its variance is learned"),
])  # fmt: skip
def test_invalid_resampling_is_an_error(plan, jump, resamples, message):
    with pytest.raises(DuetError, match=message):
        add_resampling(plan, jump, resamples)


# Two jointly normal pixels, the first of them known: the conditional mean and variance of the second are known

MEAN, STD, CORRELATION, KNOWN = np.array([0.2, -0.3]), 0.6, 0.9, 0.9
COVARIANCE = STD**2 * np.array([[1, CORRELATION], [CORRELATION, 1]])
CONDITIONAL = MEAN[1] + CORRELATION * (KNOWN - MEAN[0]), STD**2 * (1 - CORRELATION**2)


def gain(alpha: float, sigma: float) -> np.ndarray:
    """Return G of the exact estimate D = mean + G (x - alpha mean)."""
    return alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(2))


def painted_moments(plan: SamplerPlan) -> tuple[float, float]:
    """Return mean and variance of the second pixel after the plan with replacement, in closed form."""
    mean, covariance = np.zeros(2), plan.start_scale**2 * np.eye(2)
    for i in range(plan.rows):
        from_x, from_x0, fresh = plan.state[i, 0, 0], plan.denoised[i, 0, 0], plan.noise[i, 0]
        exact = gain(plan.alpha[i], plan.sigma[i])
        step = from_x * np.eye(2) + from_x0 * exact
        mean = step @ mean + from_x0 * (MEAN - plan.alpha[i] * exact @ MEAN)
        covariance = step @ covariance @ step.T + fresh**2 * np.eye(2)
        mean[0], covariance[0], covariance[:, 0] = plan.alpha[i + 1] * KNOWN, 0.0, 0.0
        covariance[0, 0] = plan.sigma[i + 1] ** 2
    return float(mean[1]), float(covariance[1, 1])


def ancestral(steps: int) -> SamplerPlan:
    return ddpm(PROCESS, steps, "fixed_large", "linspace", clip=None)


def test_resampling_converges_to_the_conditional_distribution():
    mean, variance = CONDITIONAL
    errors = []
    for times in (1, 2, 5, 20, 40):
        found = painted_moments(add_resampling(ancestral(100), 1, times))
        errors.append((abs(found[0] - mean), abs(found[1] / variance - 1)))
    assert errors[0][0] > 0.15 and errors[0][1] > 0.5
    assert np.all(np.diff(errors, axis=0) < 0)
    assert errors[-1][0] < 0.01 and errors[-1][1] < 0.06
    # Resampling helps where more timesteps do not.
    more_levels = painted_moments(ancestral(1000))
    assert abs(more_levels[0] - mean) > 0.15


def test_the_small_variance_is_too_small_for_resampling():
    small = ddpm(PROCESS, 200, "fixed_small", "linspace", clip=None)
    assert painted_moments(add_resampling(small, 1, 20))[1] < 0.75 * CONDITIONAL[1]


def test_the_reference_backend_inpaints_with_the_predicted_moments(monkeypatch):
    count, plan = 4000, add_resampling(ancestral(20), 2, 3)

    def exact_eps(
        program: Program, weights: object, x: np.ndarray, t: np.ndarray, label: np.ndarray, **_
    ) -> np.ndarray:
        alpha, sigma = PROCESS.schedule(t[0])
        estimate = MEAN + (x[:, 0, :, 0] - alpha * MEAN) @ gain(alpha, sigma).T
        return (x - alpha * estimate[:, None, :, None]) / sigma

    monkeypatch.setattr(sampling, "forward", exact_eps)
    images = np.full((count, 1, 2, 1), KNOWN)
    edit = inpaint(plan, images, np.array([1.0, 0.0])[None, :, None])
    network = SimpleNamespace(program=PROGRAM)
    got = generate(Reference(), network, plan, (1, 2, 1), np.zeros(count, int), seed=2, batch=count, edit=edit)
    assert np.all(got[:, 0, 0] == KNOWN)
    mean, variance = painted_moments(plan)
    # 5 standard errors of 4000 samples.
    assert got[:, 0, 1].mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / count))
    assert got[:, 0, 1].var() == pytest.approx(variance, rel=5 * np.sqrt(2 / count))


def test_repaint_is_made_by_name():
    plan = make_plan(PROCESS, "repaint", steps=20, jump=4, resamples=3)
    by_hand = add_resampling(ddpm(PROCESS, 20, "fixed_large"), 4, 3)
    for name, table in by_hand.tables().items():
        np.testing.assert_array_equal(getattr(plan, name), table)

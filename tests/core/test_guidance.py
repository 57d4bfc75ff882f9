"""Guidance: its conventions, its identities, and its effect on data with known denoisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from exact import Mixture

from diffusion_core.backend import reference
from diffusion_core.backend.reference import sampling
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear, make_schedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import Program, UNetSpec
from diffusion_core.parity import cases
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.guidance import CONVENTIONS, convert, per_row

PROCESS = Process(linear(), "eps")
PLAN = replace(make_plan(PROCESS, "ddim", steps=4, eta=0.5, spacing="karras"), clip=None)
SHAPE = cases.PARITY.spec.image_shape
WEIGHTS = cases.scattered_weights(cases.PARITY.program)
LABELS, NOTHING = np.array([3, 7]), np.array([10, 10])
FORMULAS: dict[str, Callable[[float, float, float], float]] = {
    "from_null": lambda w, c, u: u + w * (c - u),
    "from_class": lambda w, c, u: c + w * (c - u),
    "difference": lambda w, c, u: (1 + w) * c - w * u,
}


def sampled(plan: SamplerPlan, labels: np.ndarray = LABELS, **led: object) -> np.ndarray:
    start = plan.start_scale * Stream(1, "start").normal(np.arange(2), SHAPE)
    return reference.sample(
        cases.PARITY.program, WEIGHTS, plan, start, labels, lambda row: Stream(1, "z").normal([0, 1], SHAPE, row), **led
    )


# Conventions


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("w", [-0.5, 0.0, 1.0, 7.5])
def test_a_converted_weight_gives_the_same_output(name, w):
    c, u = 0.3, -1.1
    assert FORMULAS["from_null"](convert(w, name), c, u) == pytest.approx(FORMULAS[name](w, c, u), abs=1e-14)


def test_plans_take_weights_in_any_convention():
    plans = [make_plan(PROCESS, "ddim", steps=5, guidance_scale=w, guidance_convention=name)
             for name, w in (("from_null", 3.5), ("from_class", 2.5), ("difference", 2.5))]  # fmt: skip
    for plan in plans:
        np.testing.assert_array_equal(plan.guidance_scale, np.full(5, 3.5))
    unguided = make_plan(PROCESS, "ddim", steps=5, guidance_scale=0.0, guidance_convention="difference")
    assert not unguided.is_guided.any()


def test_weights_are_one_number_one_per_row_or_a_ramp():
    np.testing.assert_array_equal(per_row(2, 3), [2, 2, 2])
    np.testing.assert_array_equal(per_row([1, 0, 3], 3), [1, 0, 3])
    np.testing.assert_allclose(per_row({"first": 1, "last": 4}, 4), [1, 2, 3, 4], rtol=1e-15)
    np.testing.assert_allclose(per_row({"first": 4, "last": 0}, 3, "difference"), [5, 3, 1], rtol=1e-15)


@pytest.mark.parametrize("weight", [{"first": 1}, {"first": 1, "last": 2, "middle": 3}, {"first": "a", "last": 1}])
def test_invalid_weights_are_errors(weight):
    with pytest.raises(DuetError, match=r"sampler.guidance_scale: .* or a ramp such as \{first: 1, last: 4\}"):
        per_row(weight, 3)


def test_an_unknown_convention_is_an_error():
    with pytest.raises(DuetError, match=r"sampler.guidance_convention: 'from_nul' .* Did you mean 'from_null'"):
        make_plan(PROCESS, "ddim", guidance_scale=2.0, guidance_convention="from_nul")


# Identities


def test_weight_0_is_without_the_class_and_weight_1_needs_one_evaluation(monkeypatch):
    np.testing.assert_allclose(sampled(PLAN.with_guidance(0.0)), sampled(PLAN, NOTHING), rtol=0, atol=1e-12)
    assert np.abs(sampled(PLAN, NOTHING) - sampled(PLAN)).max() > 0.1
    evaluations, forward = [], reference.forward
    monkeypatch.setattr(sampling, "forward", lambda *given, **more: evaluations.append(1) or forward(*given, **more))
    for weights, count in ((1.0, 4), ([2.0, 1.0, 1.0, 0.0], 6)):
        evaluations.clear()
        sampled(PLAN.with_guidance(weights))
        assert len(evaluations) == count


def test_outside_the_interval_the_weight_is_one():
    ratio = PLAN.sigma[:-1] / PLAN.alpha[:-1]
    plan = PLAN.with_guidance(3.0, interval=[ratio[2], ratio[1]])
    np.testing.assert_array_equal(plan.guidance_scale, [1, 3, 3, 1])
    last = PLAN.with_guidance(3.0, interval=[0.0, ratio[-1]])
    np.testing.assert_array_equal(last.guidance_scale, [1, 1, 1, 3])
    with pytest.raises(DuetError, match=r"interval: \[1e-09, 1e-06\] was given; it contains none of the 4 rows"):
        PLAN.with_guidance(3.0, interval=[1e-9, 1e-6])
    assert not PLAN.with_guidance(1.0, interval=[1e-9, 1e-6]).is_guided.any()


def test_the_ends_of_an_open_interval_are_outside_and_it_may_have_no_largest():
    ratio = PLAN.sigma[:-1] / PLAN.alpha[:-1]
    for interval, wanted in (
        ([ratio[3], ratio[0]], [1, 3, 3, 1]),
        ([ratio[3] * (1 + 1e-12), ratio[0] * (1 - 1e-12)], [1, 3, 3, 1]),
        ([ratio[3] * (1 - 1e-6), np.inf], [3, 3, 3, 3]),
        ([0.0, ratio[1] * (1 + 1e-6)], [1, 3, 3, 3]),
    ):
        plan = PLAN.with_guidance(3.0, interval=interval, interval_ends="open")
        np.testing.assert_array_equal(plan.guidance_scale, wanted)
    # A start without signal has an infinite ratio.
    flow = Process(make_schedule("flow_continuous", t_min=1e-12), "velocity")
    options = {"steps": 4, "spacing": "trailing", "guidance_scale": 3.0}
    for high, first in ((np.inf, 3), (1e30, 1)):
        plan = make_plan(flow, "flow_euler", **options, interval=[1.0, high], interval_ends="closed")
        np.testing.assert_array_equal(plan.guidance_scale, [first, 3, 3, 1])
    with pytest.raises(DuetError, match=r"sampler.interval_ends: 'opne' was given; it must be one of closed, open"):
        PLAN.with_guidance(3.0, interval=[0.1, 1.0], interval_ends="opne")
    with pytest.raises(DuetError, match=r"sampler.interval_ends: open was given without sampler.interval"):
        PLAN.with_guidance(3.0, interval_ends="open")


def test_full_rescaling_restores_the_std_of_the_class_output():
    one = ddim(PROCESS, 1).with_guidance(6.0, rescale=1.0)
    # One row that returns F itself.
    plan = replace(one, c_skip=np.zeros(1), c_out=np.ones(1), state=np.zeros((1, 1, 1)), clip=None, preserves="nothing")
    guided, plain, half = sampled(plan), sampled(plan.with_guidance(1.0)), sampled(replace(plan, rescale=0.5))
    std, unscaled = plain.std(axis=(1, 2, 3)), sampled(plan.with_guidance(6.0)).std(axis=(1, 2, 3))
    np.testing.assert_allclose(guided.std(axis=(1, 2, 3)), std, rtol=1e-12)
    np.testing.assert_allclose(half.std(axis=(1, 2, 3)), (std + unscaled) / 2, rtol=1e-12)
    assert np.all(np.abs(unscaled / std - 1) > 0.01)


def of_two_channels(channels: int | None, scale: float = 3.0) -> np.ndarray:
    """One step of ddim, whose result is a linear function of the output of a network of two channels."""
    spec = UNetSpec(8, 2, 2, 8, (1,), 1, norm_groups=4, num_classes=3, zero_init=False)
    model = DiffusionModel(spec, "linear", "eps")
    options = {"guidance_scale": scale, "guidance_channels": channels}
    plan = replace(model.plan("ddim", steps=1, spacing=[500], **options), clip=None)
    start = Stream(1, "start").normal(np.arange(2), (8, 8, 2))
    weights = cases.scattered_weights(model.program)
    return reference.sample(model.program, weights, plan, start, np.array([0, 2]), lambda row: np.zeros(start.shape))


def test_guidance_of_the_first_channels_leaves_the_others_with_the_class():
    """As `forward_with_cfg` of DiT and SiT does with three of four channels."""
    some, every, none = of_two_channels(1), of_two_channels(None), of_two_channels(None, 1.0)
    np.testing.assert_array_equal(some[..., 0], every[..., 0])
    np.testing.assert_array_equal(some[..., 1], none[..., 1])
    assert np.abs(every - none).max(axis=(0, 1, 2)).min() > 0.1
    np.testing.assert_array_equal(of_two_channels(2), every)


@pytest.mark.parametrize("channels", [0, -1, True, "3", 1.5])
def test_a_number_of_guided_channels_is_a_whole_number(channels):
    with pytest.raises(DuetError, match=rf"sampler.guidance_channels: {channels} was given; it must be a number of"):
        make_plan(PROCESS, "ddim", steps=4, guidance_channels=channels)


def test_no_more_channels_are_guided_than_there_are():
    with pytest.raises(DuetError, match=r"sampler.guidance_channels: 3 was given, but the images have 1; use null"):
        cases.PARITY.plan("ddim", steps=4, guidance_channels=3)


def test_autoguidance_by_the_network_itself_changes_nothing():
    itself = partial(reference.forward, cases.PARITY.program, WEIGHTS)
    np.testing.assert_allclose(sampled(PLAN.with_guidance(5.0), guide=itself), sampled(PLAN), rtol=0, atol=1e-12)
    weaker = partial(reference.forward, cases.PARITY.program, {name: 0.7 * v for name, v in WEIGHTS.items()})
    assert np.abs(sampled(PLAN.with_guidance(5.0), guide=weaker) - sampled(PLAN)).max() > 0.1


# Exact denoisers: the network's output is the exact eps of data that depends on the label

S = 0.4
CLASSES = {0: Mixture((0.9,), (S,)), 1: Mixture((-0.5,), (S,)), 2: Mixture((0.9, -0.5), (S, S), (0.5, 0.5))}
EXACT = ddim(PROCESS, 12, spacing="trailing", clip=None)
DOTS = np.linspace(-2, 2, 16).reshape(1, 4, 4, 1)


def exactly(data: dict[int, Mixture]) -> Callable[..., np.ndarray]:
    def forward(program: Program, weights: object, x: np.ndarray, t: np.ndarray, label: np.ndarray, **_) -> np.ndarray:
        alpha, sigma = PROCESS.schedule(t[0])
        return (x - alpha * data[int(label[0])].denoised(x, alpha, sigma)) / sigma

    return forward


def followed(plan: SamplerPlan, label: int, **led: object) -> np.ndarray:
    program = replace(cases.PARITY.program, classes=2, null_label=2)
    return reference.sample(program, {}, plan, DOTS, np.array([label]), lambda row: np.zeros(DOTS.shape), **led)


@pytest.mark.parametrize("weight", [0.5, 2.0, 4.0])
def test_guidance_shifts_a_normal_by_the_weight(monkeypatch, weight):
    """D of N(m, s^2) is affine in m, so guidance from N(u, s^2) to N(c, s^2) samples N(u + w (c - u), s^2) exactly."""
    monkeypatch.setattr(sampling, "forward", exactly(CLASSES))
    guided = followed(EXACT.with_guidance(weight), 0, guide=partial(exactly({0: CLASSES[1]}), None, None))
    moved = Mixture((-0.5 + weight * 1.4,), (S,))
    monkeypatch.setattr(sampling, "forward", exactly({0: moved}))
    np.testing.assert_allclose(guided, followed(EXACT, 0), rtol=0, atol=1e-11)


def slope_of_class(x: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return grad log p(class | x_t): the score of the class minus that of the mixture."""
    alpha, sigma = PROCESS.schedule(t[0])
    of_class, of_both = (CLASSES[k].denoised(x, alpha, sigma) for k in (int(label[0]), 2))
    return alpha * (of_class - of_both) / sigma**2


def test_an_exact_classifier_turns_unconditional_into_conditional_sampling(monkeypatch):
    unconditional = {0: CLASSES[2], 1: CLASSES[2]}
    for label in (0, 1):
        monkeypatch.setattr(sampling, "forward", exactly(CLASSES))
        expected = followed(EXACT, label)
        monkeypatch.setattr(sampling, "forward", exactly(unconditional))
        plan = EXACT.with_guidance(1.0, classifier=1.0)
        np.testing.assert_allclose(followed(plan, label, grad_log_prob=slope_of_class), expected, rtol=0, atol=1e-10)
        assert np.abs(followed(EXACT, label) - expected).max() > 0.1
        # With weight w it equals guidance with weight w.
        strong = followed(EXACT.with_guidance(1.0, classifier=2.5), label, grad_log_prob=slope_of_class)
        monkeypatch.setattr(sampling, "forward", exactly(CLASSES))
        np.testing.assert_allclose(strong, followed(EXACT.with_guidance(2.5), label), rtol=0, atol=1e-10)


# Valid guides of a network

SPEC = UNetSpec(8, 1, 1, 8, (1,), 1, (), norm_groups=4, num_classes=10)
MODEL = DiffusionModel(SPEC, {"name": "linear"}, "eps")


@pytest.mark.parametrize("guide", [
    MODEL, replace(MODEL, spec=replace(SPEC, channels=4)), replace(MODEL, spec=replace(SPEC, num_classes=0)),
    replace(MODEL, schedule={"name": "linear", "T": 1000}),
])  # fmt: skip
def test_a_guide_with_the_same_images_process_and_classes_is_accepted(guide):
    assert MODEL.check_guide(guide, MODEL.plan("ddim", guidance_scale=2.0)) is None


@pytest.mark.parametrize("changes, message", [
    ({"spec": replace(SPEC, image_size=4)}, r"guide: its images have shape \(4, 4, 1\), but .* \(8, 8, 1\)"),
    ({"spec": replace(SPEC, num_classes=5)}, "guide: it has 5 classes .* has 10 classes and the null label 10"),
    ({"spec": replace(SPEC, null_class="zero", num_classes=11)}, "guide: it has 11 classes"),
    ({"prediction": "v"}, "guide: .* another process .v on linear, .* sampled network .eps on linear"),
    ({"schedule": {"name": "cosine"}}, "guide: .* another process .eps on cosine"),
    ({"schedule": {"name": "linear", "T": 100}}, r"guide: .* another process .eps on linear \(T 100\)"),
    ({"time_scale": 0.5}, "guide: .* time_scale 0.5"),
    ({"value_range": (0.0, 1.0)}, "guide: .* values 0 to 1"),
])  # fmt: skip
def test_a_guide_with_other_images_process_or_classes_is_an_error(changes, message):
    with pytest.raises(DuetError, match=message):
        MODEL.check_guide(replace(MODEL, **changes), MODEL.plan("ddim", guidance_scale=2.0))

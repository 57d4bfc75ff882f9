"""Own networks without a framework: functions of NumPy arrays through the reference, and how calls are read."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import own_twins as twins
import pytest

import duet
from diffusion_core.backend.numpy_backend import NumpyBackend
from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate, start_noise
from diffusion_core.networks import OwnSpec, lower
from diffusion_core.networks.own_call import Arguments, call_names, images_to_samples, infer_inputs, samples_to_images
from diffusion_core.sampling import SAMPLERS
from diffusion_core.training.objective import Objective

PROCESS = duet.process("cosine", "v", T=16)
# Samplers of networks that read two times.
TWO_TIMES = ("mean_flow", "shortcut")
OPTIONS: dict[str, dict[str, Any]] = {
    "next_level": {}, "plms": {"steps": 8}, "pndm": {"steps": 8}, "repaint": {"steps": 4, "jump": 2},
}  # fmt: skip


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in TWO_TIMES])
def test_a_function_of_arrays_samples_as_the_reference_of_its_program(sampler: str) -> None:
    process = duet.process("cosine", "next_level", T=16) if sampler == "next_level" else PROCESS
    if sampler in ("sit_ode", "sit_sde"):  # of a continuous time alone
        process = duet.process("cosine_continuous", "v")
    if sampler == "rectified_flow":
        process = duet.process("flow_continuous", "velocity_to_data", t_min=1e-12)
    plan = getattr(duet.samplers, sampler)(process, **OPTIONS.get(sampler, {"steps": 4}))
    program = lower(twins.SPEC)
    arrays = twins.weights(program)
    network = NumpyBackend().network(program, arrays)
    wanted = generate(NumpyBackend(), network, plan, (4, 4, 2), twins.LABELS, 5)
    options = {"shape": (3, 4, 4, 2), "labels": twins.LABELS, "classes": 3, "seed": 5}
    np.testing.assert_array_equal(duet.sample(twins.as_numpy(program, arrays), plan, **options), wanted)


@pytest.mark.parametrize("sampler", TWO_TIMES)
def test_a_network_of_one_time_is_not_sampled_with_two(sampler: str) -> None:
    plan = getattr(duet.samplers, sampler)(duet.process("flow_continuous", "flow"), steps=2)
    with pytest.raises(DuetError, match=rf"sampler {sampler}.*second time, which this network does not take"):
        duet.sample(lambda x, t: x, plan, shape=(1, 2, 2, 1))


@pytest.mark.parametrize("shape", [(7,), (9, 2), (4, 6, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_samples_of_every_rank_go_to_images_and_back(shape: tuple[int, ...], layout: str) -> None:
    samples = np.random.default_rng(0).normal(size=(2, *shape))
    images = samples_to_images(samples, layout)
    assert images.ndim == 4
    np.testing.assert_array_equal(images_to_samples(images, shape, layout), samples)
    last = np.moveaxis(samples, 1, -1) if layout == "channels_first" else samples
    np.testing.assert_array_equal(images.ravel(), last.ravel())  # both layouts have the same order of random numbers


def test_the_network_is_given_what_the_plan_says() -> None:
    plan, seen = duet.samplers.ddim(PROCESS, steps=3, clip=None), []

    def network(x: Any, t: Any, y: Any) -> Any:
        seen.append((t.tolist(), y.tolist()))
        return 0 * x

    duet.sample(network, plan, shape=(2, 5), labels=[1, 0])
    assert seen == [([t, t], [1, 0]) for t in plan.t]
    guided = duet.samplers.ddim(PROCESS, steps=1, guidance=2.0)
    for options, null in (({"classes": 4}, 4), ({"classes": 4, "null_label": 0}, 0)):
        seen.clear()
        duet.sample(network, guided, shape=(2, 5), labels=[1, 3], **options)
        assert [y for _, y in seen] == [[1, 3, null, null]] or [y for _, y in seen] == [[1, 3], [null, null]]


@pytest.mark.parametrize("null_label", [None, 0])
def test_one_hot_is_zero_for_no_class(null_label: int | None) -> None:
    seen: list[Any] = []

    def network(x: Any, t: Any, c: Any) -> Any:
        seen.extend(c.tolist())
        return 0 * x

    plan = duet.samplers.ddim(PROCESS, steps=1, guidance=2.0)
    label = 1 if null_label is None else 2  # the second class
    duet.sample(network, plan, shape=(1, 5), labels=label, classes=3, null_label=null_label, inputs="x, t, one_hot")
    assert sorted(seen) == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_conditions_reach_the_network_with_their_shapes_and_types() -> None:
    seen: dict[str, Any] = {}

    def network(x: Any, t: Any, text: Any, *, scale: Any) -> Any:
        seen.update(text=text, scale=scale)
        return 0 * x

    text, scale = np.random.default_rng(0).normal(size=(2, 3, 4)), np.array([5, 7])
    duet.sample(network, duet.samplers.ddim(PROCESS, steps=1), shape=(2, 5), conditions={"text": text, "scale": scale})
    np.testing.assert_array_equal(seen["text"], text)
    np.testing.assert_array_equal(seen["scale"], scale)
    assert seen["scale"].dtype == np.int64


def test_null_conditions_guide_without_classes() -> None:
    def network(x: Any, t: Any, c: Any) -> Any:
        return c

    plan = duet.samplers.ddim(duet.process("cosine", "x0", T=16), steps=1, guidance=3.0, clip=None)
    c, null = np.full((2, 5), 0.5), np.full((2, 5), 0.25)
    got = duet.sample(network, plan, shape=(2, 5), conditions={"c": c}, null_conditions={"c": null})
    np.testing.assert_allclose(got, 0.25 + 3 * 0.25, rtol=1e-12)


def test_image_to_image_starts_at_the_noise_of_its_first_row() -> None:
    seen: list[Any] = []

    def network(x: Any, t: Any) -> Any:
        seen.append((t[0], x))
        return 0 * x

    plan, clean = duet.samplers.ddim(PROCESS, steps=8), np.ones((2, 5))
    duet.sample(network, plan, shape=(2, 5), start=clean, strength=0.25, seed=4)
    assert len(seen) == 2
    eps = start_noise(plan, 4, np.arange(2), (1, 1, 5), np.float64).reshape(2, 5) / plan.start_scale
    (row,) = np.flatnonzero(plan.t == seen[0][0])
    np.testing.assert_allclose(seen[0][1], plan.alpha[row] + plan.sigma[row] * eps, rtol=1e-12)
    with pytest.raises(DuetError, match="strength: it was given without start"):
        duet.sample(network, plan, shape=(2, 5), strength=0.5)
    with pytest.raises(DuetError, match="continues from earlier rows"):
        duet.sample(network, duet.samplers.unipc(PROCESS, steps=8), shape=(2, 5), start=clean, strength=0.6)


@pytest.mark.parametrize(
    ("function", "with_label", "wanted"),
    [
        (lambda x, t: x, None, "x, t"),
        (lambda x, t, y: x, None, "x, t, label"),
        (lambda x, t, y=None: x, None, "x, t"),
        (lambda x, t, y=None: x, True, "x, t, label"),
        (lambda x, t, mask=None, class_labels=None: x, True, "x, t, class_labels=label"),
        (lambda x, *, t, label: x, True, "x, t=t, label=label"),
        (lambda *, x, t: x, None, "x=x, t=t"),
        (lambda *inputs: inputs, None, "x, t"),
        (lambda t, x, y: x, None, "t, x, label"),
        (lambda sigma, noisy: noisy, None, "t, x"),
        (lambda *, timestep, x: x, None, "timestep=t, x=x"),
        (lambda t, time: t, None, "x, t"),
        (lambda x, t, x_self_cond=None: x, None, "x, t"),
        # a second time: the length of a step, or its end
        (lambda x, t, h: x, None, "x, t, second_time"),
        (lambda x, t, h, y: x, None, "x, t, second_time, label"),
        (lambda x, t, y, dt: x, None, "x, t, label, second_time"),
        (lambda z, r, t: z, None, "x, end_time, t"),
        (lambda t, x, *, r, y=None: x, True, "t, x, r=end_time, y=label"),
        (lambda x, t, mask=None, h=None: x, None, "x, t"),
        (lambda x, h: x, None, "x, t"),
        (lambda x, h, y: x, None, "x, t, label"),
        (lambda r, t: r, None, "x, t"),
    ],
)
def test_the_arguments_are_read_off_the_signature(function: Any, with_label: bool | None, wanted: str) -> None:
    assert infer_inputs(call_names(function), with_label) == wanted


def test_a_second_time_that_is_optional_is_given_where_it_is_needed() -> None:
    names = call_names(lambda x, t, mask=None, h=None: x)
    assert infer_inputs(names, None, two_times=True) == "x, t, h=second_time"
    assert infer_inputs(None, True, two_times=True) == "x, t, second_time, label"
    assert infer_inputs(call_names(lambda x, t, h=0, r=0: x), None, two_times=True) == "x, t"  # it is not clear


@pytest.mark.parametrize("time", ["float", "column"])
def test_a_network_is_given_both_times_and_the_end_of_a_step(time: str) -> None:
    process = duet.process("flow_continuous", "flow", time_scale=100.0)
    plan, seen = duet.samplers.mean_flow(process, steps=4), []

    def network(x: Any, *times: Any) -> Any:
        seen.append(times)
        return 0 * x

    duet.sample(network, plan, shape=(2, 5), inputs="x, t, second_time, end_time", time=time)
    times = np.array(seen)
    assert times.shape == ((4, 3, 2, 1) if time == "column" else (4, 3, 2))
    np.testing.assert_allclose(times[:, 0], times[:, 1] + times[:, 2], rtol=1e-15)
    np.testing.assert_allclose(times[:, 1], 25)
    duet.sample(network, duet.samplers.heun(process, steps=1), shape=(2, 5), inputs="x, t, second_time")
    assert not np.any(seen[-1][1])  # zero, where a plan has one time


def _two_times(**options: Any) -> DiffusionModel:
    call = {"shape": (4, 4, 1), "inputs": "x, t, second_time", **options}
    process = {"time_scale": -1.0, "time_offset": 1.0, "prediction": "velocity_to_data"}
    process = process if "end" in call["inputs"] else {"prediction": "flow"}
    return DiffusionModel(OwnSpec(4, 1, 1, reference="mine", **call), {"name": "flow_continuous"}, **process)


def test_times_in_a_form_that_a_method_cannot_use_are_refused() -> None:
    Objective.for_model(_two_times(), objective={"name": "mean_flow"})
    for options, name, message in (
        ({"inputs": "x, t"}, "mean_flow", "reads one time; .* as in network_call.inputs='x, t, h=second_time'"),
        ({"time": "int"}, "mean_flow", "differentiates by the times, .* use network_call.time=float"),
        ({"inputs": "x, t, end_time"}, "shortcut", "is no difference of times, but .* use network_call.inputs='x, t, "),
    ):
        with pytest.raises(DuetError, match=message):
            Objective.for_model(_two_times(**options), objective={"name": name})


def test_a_label_for_no_class_among_classes_that_count_from_one_is_said() -> None:
    plan = duet.samplers.ddim(PROCESS, steps=1)
    call = {"shape": (2, 5), "classes": 3, "null_label": 0}
    with pytest.warns(UserWarning, match="0 was given, which stands for no class with null_label=0"):
        duet.sample(lambda x, t, y: 0 * x, plan, labels=[0, 2], **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        duet.sample(lambda x, t, y: 0 * x, plan, labels=[1, 3], **call)


def test_a_class_that_the_network_needs_is_never_guessed() -> None:
    def network(x: Any, t: Any, y: Any) -> Any:
        raise AssertionError("it is not called")

    plan, images = duet.samplers.ddim(PROCESS, steps=2), np.zeros((2, 5))
    for call in (
        lambda: duet.sample(network, plan, shape=(2, 5)),
        lambda: duet.loss(network, images, PROCESS, step=0),
    ):
        with pytest.raises(DuetError, match=r"labels: the network takes a class in its call \(x, t, label\)"):
            call()


@pytest.mark.parametrize("name", ["x_self_cond", "mask", "context", "model_kwargs"])
def test_a_parameter_that_takes_something_else_is_not_given_the_class(name: str) -> None:
    with pytest.raises(DuetError, match="which of the network's arguments takes them is not clear"):
        infer_inputs((("x", True), ("t", True), (name, False)), True)
    with pytest.raises(DuetError, match=f"what {name} is given is not clear"):
        infer_inputs((("x", True), ("t", True), (name, True)), None)


@pytest.mark.parametrize("text", ["x, t", "[x, t]", "{a: x, b: t}", "t, noisy=x", "x, t, class_labels=one_hot"])
def test_arguments_print_as_they_are_written(text: str) -> None:
    assert str(Arguments.parse(text)) == text


@pytest.mark.parametrize("text", ["", "t", "x, x", "x, z", "a=x, t", "[a=x, t]", "{x, t}", "x; t", "{a: x, t}"])
def test_arguments_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(DuetError, match="inputs: "):
        Arguments.parse(text)


def test_what_needs_a_framework_says_so() -> None:
    def network(x: Any, t: Any) -> Any:
        return x

    plan = duet.samplers.ddim(PROCESS, steps=1)
    for call in (
        lambda: duet.sample(network, plan, shape=(2, 5), differentiable=True),
        lambda: duet.log_likelihood(network, np.zeros((2, 5)), PROCESS),
        lambda: duet.sample(network, plan, shape=(2, 5), compile=True),
        lambda: duet.train(network, PROCESS, np.zeros((4, 4, 4, 3), np.uint8)),
    ):
        with pytest.raises(DuetError, match=r"function of NumPy arrays|no weights that Duet can train"):
            call()


def test_batches_are_those_of_training_and_continue_where_they_stopped() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    data = duet.load_dataset(pixels, labels=np.arange(10) % 2)
    whole = list(duet.batches(data, batch=4, images=16, seed=3))
    rest = list(duet.batches(data, batch=4, images=16, seed=3, first_step=2))
    assert [one.step for one in whole] == [0, 1, 2, 3] and [one.step for one in rest] == [2, 3]
    for one, other in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    first = next(iter(duet.batches(data, batch=4, images=16, seed=3, layout="channels_first")))
    np.testing.assert_array_equal(np.moveaxis(first.images, 1, -1), whole[0].images)
    with pytest.raises(DuetError, match="images: 10"):
        duet.batches(data, batch=4, images=10)

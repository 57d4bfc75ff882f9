"""Training batches are functions of positions alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, flow, linear
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec, UNetSpec
from diffusion_core.training.labels import network_labels
from diffusion_core.training.objective import Objective

PROCESS = Process(linear(), "v")
OBJECTIVE = Objective(PROCESS, seed=3, null_label=4, label_dropout=0.25)


def images(positions: np.ndarray) -> np.ndarray:
    return np.tanh(Stream(0, "images").normal(positions, (2, 2, 1)))


def batch(positions, objective=OBJECTIVE, dtype=np.float32):
    positions = np.asarray(positions)
    return objective.batch(images(positions), positions % 4, positions, dtype)


@given(st.integers(0, 10**9), st.integers(1, 12), st.data())
def test_a_batch_is_the_concatenation_of_its_parts(first, size, data):
    cut = data.draw(st.integers(1, size))
    whole = batch(np.arange(first, first + size))
    parts = [batch(p) for p in (np.arange(first, first + cut), np.arange(first + cut, first + size)) if len(p)]
    assert whole.size == size
    for name, value in whole.arrays.items():
        if name != "dropout_key":  # of the run, not of an image
            np.testing.assert_array_equal(value, np.concatenate([part.arrays[name] for part in parts]), err_msg=name)
    assert np.array_equal(whole.dropout_key, Stream(3, "train/dropout").key)


def test_a_batch_is_reproducible_and_differs_at_other_positions():
    one, again, other = batch([0, 1, 2, 3]), batch([0, 1, 2, 3]), batch([4, 5, 6, 7])
    for name, value in one.arrays.items():
        np.testing.assert_array_equal(value, again.arrays[name])
        if value.size and name not in ("weight", "importance", "c_in", "dropout_key"):
            assert not np.array_equal(value, other.arrays[name]), name
    another = batch([0, 1, 2, 3], Objective(PROCESS, seed=4, null_label=4))
    assert not np.any(another.noise == one.noise)
    assert not np.array_equal(another.dropout_key, one.dropout_key)


WHOLE = Objective(
    PROCESS, seed=3, null_label=4, label_dropout=0.25, weighting={"name": "min_snr"},
    timestep_sampling={"name": "log_normal", "strata": 5}, offset_noise=0.1, input_perturbation=0.1,
)  # fmt: skip


def test_every_option_leaves_a_batch_a_function_of_positions():
    """As after a restart, or in several processes; the parts do not consist of whole blocks of strata."""
    whole = batch(np.arange(1000, 1024), WHOLE)
    parts = [batch(np.arange(first, first + 8), WHOLE) for first in (1000, 1008, 1016)]
    for name, value in whole.arrays.items():
        if name != "dropout_key":
            np.testing.assert_array_equal(value, np.concatenate([part.arrays[name] for part in parts]), err_msg=name)


def test_an_option_changes_only_the_arrays_that_it_concerns():
    """A batch with default options is thus the one that the other tests here describe."""
    default = batch(range(40))
    level = {"alpha", "sigma", "c_noise", "target_x0", "target_eps"}
    for options, changed in (
        (
            {
                "weighting": {"name": "simple"},
                "timestep_sampling": {"name": "uniform"},
                "offset_noise": 0.0,
                "input_perturbation": 0.0,
            },
            set(),
        ),
        ({"weighting": {"name": "snr"}}, {"weight"}),
        ({"timestep_sampling": {"name": "low_discrepancy", "strata": 40}}, level),
        ({"offset_noise": 0.1}, {"noise"}),
        ({"input_perturbation": 0.1}, {"images", "noise"}),
    ):
        got = batch(range(40), Objective(PROCESS, 3, null_label=4, label_dropout=0.25, **options))
        assert {
            name for name, value in got.arrays.items() if not np.array_equal(value, default.arrays[name])
        } == changed


def test_offset_noise_moves_whole_channels():
    """The moments of eps + s offset: variance 1 + s^2, covariance s^2 within a channel and 0 between channels."""
    n, s = 4000, 0.5
    positions = np.arange(n)
    pixels = np.zeros((n, 2, 2, 3))
    plain, moved = (
        Objective(PROCESS, 3, offset_noise=given).batch(pixels, np.zeros(n), positions, np.float64).noise
        for given in (0.0, s)
    )
    offset = moved - plain
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], offset.shape), atol=1e-14)
    covariance = np.cov(moved.reshape(n, 12).T)
    channel = np.arange(12) % 3
    expected = np.eye(12) + s**2 * (channel[:, None] == channel)
    assert np.abs(covariance - expected).max() < 5 * (1 + s**2) * math.sqrt(2 / n)
    np.testing.assert_array_equal(plain, Stream(3, "train/noise").normal(positions, (2, 2, 3)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("schedule, prediction", [
    (linear(), "eps"), (linear(), "x0"), (cosine(1000), "eps"), (cosine(1000), "v"), (flow(1000), "v"),
    (flow(1000), "x0"), (flow(16), "next_level"),
], ids=lambda value: getattr(value, "name", value))  # fmt: skip
def test_input_perturbation_moves_x_t_and_leaves_the_target(schedule, prediction, dtype):
    """As computed by a backend in its own precision: x_t has gamma more noise, the target has not."""
    positions, gamma = np.arange(200), 0.1
    pixels, process = images(positions), Process(schedule, prediction)
    plain, moved = (
        reference.noised(Objective(process, 3, input_perturbation=g).batch(pixels, positions, positions, dtype))
        for g in (0.0, gamma)
    )
    t = Stream(3, "train/t").integers(positions, schedule.steps)
    xi = Stream(3, "train/perturbation").normal(positions, (2, 2, 1))
    rounding = 1e-11 if dtype == np.float64 else 2e-6
    expected = gamma * schedule.sigma[t][:, None, None, None] * xi
    np.testing.assert_allclose(moved[0] - plain[0], expected, rtol=0, atol=rounding)
    np.testing.assert_allclose(moved[1], plain[1], rtol=0, atol=rounding)
    assert np.abs(expected).max() > 0.1


def test_columns_are_those_of_the_drawn_timestep():
    positions = np.arange(64)
    got = batch(positions, dtype=np.float64)
    t = Stream(3, "train/t").integers(positions, 1000)
    columns = PROCESS.columns(t)
    np.testing.assert_array_equal(got.c_noise, t)
    np.testing.assert_array_equal(got.alpha, linear().alpha[t])
    np.testing.assert_array_equal(got.sigma, linear().sigma[t])
    for name in ("c_in", "target_x0", "target_eps"):
        np.testing.assert_array_equal(getattr(got, name), getattr(columns, name))
    np.testing.assert_array_equal(got.weight, np.ones(64))
    np.testing.assert_array_equal(got.images, images(positions))
    np.testing.assert_array_equal(got.noise, Stream(3, "train/noise").normal(positions, (2, 2, 1)))


def test_columns_are_cast_once_and_c_noise_not_at_all():
    wide, narrow = batch(range(9), dtype=np.float64), batch(range(9))
    for name, value in wide.arrays.items():
        got = narrow.arrays[name]
        if name in ("label", "positions", "dropout_key"):
            assert got.dtype == (np.int32 if name == "label" else np.int64)
        else:
            assert got.dtype == (np.float64 if name == "c_noise" else np.float32), name
        np.testing.assert_array_equal(got, value.astype(got.dtype))


def test_timesteps_are_drawn_uniformly():
    t = batch(np.arange(20_000)).c_noise.astype(int)
    counts = np.bincount(t // 100, minlength=10)
    assert np.sum((counts - 2000) ** 2 / 2000) < 27.9  # chi square of 9 degrees, once in a thousand
    assert t.min() < 10 and t.max() > 990


@pytest.mark.parametrize("first_t", [1, 7, 999])
def test_timesteps_below_first_t_are_never_drawn(first_t):
    t = batch(np.arange(20_000), Objective(PROCESS, seed=3, first_t=first_t)).c_noise.astype(int)
    assert t.min() >= first_t and t.max() <= 999
    counts = np.bincount((t - first_t) * 10 // (1000 - first_t), minlength=10)
    if first_t < 999:
        # 999 and 993 timesteps do not divide into ten equal parts; they differ by at most one in a hundred.
        assert t.min() < first_t + 10 and t.max() > 990
        assert np.abs(counts - 2000).max() < 5 * math.sqrt(2000) + 20


def test_every_timestep_from_first_t_on_is_drawn():
    few = Process(linear(T=3), "v")
    for first_t in range(3):
        t = batch(np.arange(60), Objective(few, seed=3, first_t=first_t)).c_noise
        assert set(t) == set(range(first_t, 3))


def test_classes_come_before_or_after_the_null_label():
    labels = np.array([[0, 3], [2, 1]])
    for null_label, expected in ((4, labels), (0, labels + 1), (None, labels)):
        got = network_labels(labels, 4, null_label)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, expected)
        # Every class has its own label, and none of them is the null label.
        assert len({*got.ravel().tolist(), null_label}) == 5
    np.testing.assert_array_equal(network_labels([9, -4], 0, None), [0, 0])


def test_a_null_label_of_zero_shifts_the_classes_and_changes_nothing_else():
    positions = np.arange(400)
    last, first = (batch(positions, Objective(PROCESS, 3, "mse", n, 0.25, classes=4)) for n in (4, 0))
    np.testing.assert_array_equal(first.label, np.where(last.label == 4, 0, last.label + 1))
    assert (first.label == 0).any() and set(first.label) == set(range(5))
    old = batch(positions)
    for name, value in vars(last).items():
        np.testing.assert_array_equal(value, vars(old)[name])
        if name != "label":
            np.testing.assert_array_equal(value, vars(first)[name])


def test_without_a_null_label_no_class_is_dropped():
    positions = np.arange(8)
    np.testing.assert_array_equal(batch(positions, Objective(PROCESS, 3, classes=4)).label, positions % 4)


@pytest.mark.parametrize("null_label", [4, 0, None])
@pytest.mark.parametrize("label", [-1, 4])
def test_an_unknown_label_is_refused_for_every_null_label(label, null_label):
    with pytest.raises(DuetError, match=rf"label {label} was given; it must be 0 to 3"):
        network_labels([0, label], 4, null_label)


def test_labels_are_dropped_per_image_with_the_given_probability():
    n = 20_000
    positions = np.arange(n)
    dropped = batch(positions).label == 4
    assert abs(dropped.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    pairs = dropped.reshape(-1, 2)
    assert abs(np.mean(pairs[:, 0] & pairs[:, 1]) - 0.0625) < 4 * math.sqrt(0.0625 / (n / 2))
    np.testing.assert_array_equal(batch(positions).label[~dropped], (positions % 4)[~dropped])


@pytest.mark.parametrize("rate, expected", [(0.0, False), (1.0, True)])
def test_probability_0_keeps_and_1_drops_every_label(rate, expected):
    got = batch(range(500), Objective(PROCESS, 3, null_label=4, label_dropout=rate))
    assert np.all((got.label == 4) == expected)


def test_dropping_labels_changes_nothing_else():
    one, other = batch(range(8)), batch(range(8), Objective(PROCESS, 3, null_label=4))
    assert all(np.array_equal(v, other.arrays[n]) for n, v in one.arrays.items() if n != "label")


def test_a_network_without_classes_gets_label_zero():
    positions = np.arange(4)
    got = Objective(PROCESS, 3).batch(images(positions), np.array([5, 9, -1, 100]), positions)
    np.testing.assert_array_equal(got.label, 0)


@pytest.mark.parametrize("label", [-1, 4, 10])
def test_a_label_out_of_range_is_refused(label):
    with pytest.raises(DuetError, match=rf"label {label} was given; it must be 0 to 3"):
        OBJECTIVE.batch(images(np.arange(2)), np.array([0, label]), np.arange(2))


@pytest.mark.parametrize("options, message", [
    ({"distance": "mae"}, r"process.distance: 'mae' was given; it must be one of mse, l1, huber, pseudo_huber"),
    ({"label_dropout": 1.5, "null_label": 4}, "process.label_dropout: 1.5"),
    ({"label_dropout": -0.1, "null_label": 4}, "process.label_dropout: -0.1"),
    ({"label_dropout": float("nan"), "null_label": 4}, "process.label_dropout: nan"),
    ({"label_dropout": 0.1}, "the network has no classes to drop"),
    ({"label_dropout": 0.1, "classes": 4}, 'the network has no label for "no class"'),
    ({"null_label": 0}, "null label 0 with 0 classes: there must be at least one class"),
    ({"null_label": 2, "classes": 4}, "null label 2 with 4 classes: .* must be 0 or the number of classes"),
    ({"null_label": -1}, "null label -1"),
    ({"classes": -1}, "classes: -1"),
    ({"first_t": -1}, r"process.first_t: -1 was given; it must be a timestep, 0\.\.999"),
    ({"first_t": 1000}, "process.first_t: 1000"),
    ({"offset_noise": -0.1}, "process.offset_noise: -0.1 was given; it must be 0 or a positive number"),
    ({"offset_noise": float("nan")}, "process.offset_noise: nan"),
    ({"input_perturbation": -1}, "process.input_perturbation: -1 was given; it must be 0 or a positive number"),
    ({"weighting": {"name": "minsnr"}}, "process.weighting.name: 'minsnr'"),
    ({"timestep_sampling": {"name": "normal"}}, "process.timestep_sampling.name: 'normal'"),
])  # fmt: skip
def test_objective_options_out_of_range_are_refused(options, message):
    with pytest.raises(DuetError, match=message):
        Objective(PROCESS, 0, **options)


def test_an_objective_takes_from_its_model_what_the_model_determines():
    spec = UNetSpec(8, 1, 2, channels=8, channel_multipliers=(1,), num_classes=4, norm_groups=4)
    model = DiffusionModel(spec, {"name": "linear"}, "v", value_range=(0.0, 1.0), variance="learned_range")
    one = Objective.for_model(model, 3, label_dropout=0.25)
    other = Objective(
        model.process, 3, null_label=4, label_dropout=0.25, classes=4, variance="learned_range", value_range=(0.0, 1.0)
    )
    for name, value in batch(range(8), one).arrays.items():
        np.testing.assert_array_equal(value, batch(range(8), other).arrays[name])
    assert one.options == other.options and one.options["label_dropout"] == 0.25


@pytest.mark.parametrize("options, message", [
    ({"label_dropuot": 0.1}, "option of the objective: 'label_dropuot' .* Did you mean 'label_dropout'"),
    ({"classes": 4}, "option of the objective: 'classes' was given"),
    ({"distance": "cross_entropy"}, "process.distance: cross_entropy was given"),
])  # fmt: skip
def test_an_objective_for_a_model_refuses_options_that_the_model_determines(options, message):
    model = DiffusionModel(PlainSpec(8, 1, 1, channels=(4,), bottleneck=4), {"name": "linear"}, "v")
    with pytest.raises(DuetError, match=message):
        Objective.for_model(model, **options)

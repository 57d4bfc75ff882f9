"""Loss weightings: the same meaning for every prediction, and the published tables."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.loss_weighting import WEIGHTINGS
from diffusion_core.diffusion.loss_weighting import make_weights as make
from diffusion_core.diffusion.process import PREDICTIONS, Process, add_noise, unsupported_reason
from diffusion_core.diffusion.schedule import Schedule, cosine, flow, linear, make_schedule
from diffusion_core.diffusion.timestep_sampling import make_timestep_sampler
from diffusion_core.training.objective import Objective

CHOSEN = [
    {"name": "snr"}, {"name": "min_snr"}, {"name": "min_snr", "gamma": 0.3}, {"name": "p2"},
    {"name": "p2", "k": 0.5, "gamma": 2}, {"name": "edm"}, {"name": "edm", "sigma_data": 2.0}, {"name": "sigmoid"},
    {"name": "sigmoid", "bias": -3.0}, {"name": "sigmoid", "bias": 2.0, "per_log_snr": True}, {"name": "uniform"},
    {"name": "snr+1"}, {"name": "truncated-snr"},
]  # fmt: skip
EACH = pytest.mark.parametrize("weighting", CHOSEN, ids=lambda w: " ".join(map(str, w.values())))
SCHEDULES = [linear(), cosine(1000), flow(20)]


def make_weights(process: Process, name: str = "simple", **options: object) -> np.ndarray:
    """Return the weights at every timestep of the table."""
    return make(process, name, **options)(np.arange(process.schedule.steps))


def ratio(schedule: Schedule) -> np.ndarray:
    return schedule.alpha**2 / schedule.sigma**2


def weighted_loss(process: Process, weighting: dict, x0_hat: np.ndarray, x0: np.ndarray) -> float:
    """Return the loss of a batch, for the network output that corresponds to `x0_hat`."""
    batch = Objective(process, 5, weighting=weighting).batch(x0, np.zeros(len(x0)), np.arange(len(x0)), np.float64)
    c = process.columns(make_timestep_sampler(process.schedule).draw(5, np.arange(len(x0))))
    x = add_noise(x0, batch.noise, batch.alpha, batch.sigma)
    target = add_noise(x0, batch.noise, batch.target_x0, batch.target_eps)
    output = add_noise(x0_hat, x, 1 / c.c_out, -c.c_skip / c.c_out)
    return float(np.mean(batch.weight * np.mean(np.square(output - target), axis=(1, 2, 3))))


def test_every_weighting_is_tested():
    # velocity and likelihood, which tables have none of, are in test_jit_process.py and test_transport.py.
    assert {w["name"] for w in CHOSEN} == WEIGHTINGS.keys() - {"simple", "velocity", "likelihood"}


@EACH
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_the_loss_does_not_depend_on_the_prediction(schedule, weighting):
    """Outputs with the same estimate of x_0 have the same loss for every prediction."""
    x0, error = Stream(1, "x0").normal(np.arange(64), (2, 2, 1)), Stream(1, "error").normal(np.arange(64), (2, 2, 1))
    predictions = [p for p in PREDICTIONS if not unsupported_reason(schedule, p)]
    losses = {p: weighted_loss(Process(schedule, p), weighting, x0 + 0.1 * error, x0) for p in predictions}
    assert losses["x0"] > 0
    for name, loss in losses.items():
        assert loss == pytest.approx(losses["x0"], rel=1e-8), name


def test_the_weights_of_consistency_models_are_of_the_error_of_x0():
    """get_weightings of openai/consistency_models e32b69e, at sigma = 0.01, 0.5, 3 and 80, and sigma_data = 0.5."""
    process = Process(make_schedule("edm"), "edm")
    t = np.array([0.01, 0.5, 3.0, 80.0])
    for name, wanted in {
        "uniform": [1, 1, 1, 1], "snr": [1e4, 4, 1 / 9, 1.5625e-4], "snr+1": [10001, 5, 10 / 9, 1.00015625],
        "edm": [10004, 8, 37 / 9, 4.00015625], "truncated-snr": [1e4, 4, 1, 1],
    }.items():  # fmt: skip
        np.testing.assert_allclose(make(process, name)(t), wanted * np.square(process.columns(t).c_out), rtol=1e-12)


def test_snr_plus_one_is_the_simple_weighting_of_v():
    np.testing.assert_allclose(make_weights(Process(cosine(1000), "v"), "snr+1"), 1.0, rtol=1e-9)


def test_the_simple_loss_depends_on_the_prediction():
    x0 = Stream(1, "x0").normal(np.arange(64), (2, 2, 1))
    one, other = (weighted_loss(Process(linear(), p), {"name": "simple"}, 1.1 * x0, x0) for p in ("eps", "v"))
    assert abs(one - other) > 0.1 * abs(other)


@pytest.mark.parametrize("gamma", [1.0, 5, 20.0])
@pytest.mark.parametrize("schedule", [linear(), cosine(1000)], ids=lambda s: s.name)
def test_min_snr_is_the_published_table(schedule, gamma):
    """Hang et al. (2023), section 3.4, for the three predictions."""
    snr = ratio(schedule)
    least = np.minimum(snr, gamma)
    for prediction, expected in (("eps", least / snr), ("v", least / (snr + 1)), ("x0", least)):
        got = make_weights(Process(schedule, prediction), "min_snr", gamma=gamma)
        np.testing.assert_allclose(got, expected, rtol=1e-11)


@pytest.mark.parametrize("schedule", [linear(), cosine(1000)], ids=lambda s: s.name)
def test_weights_of_the_error_of_eps_are_the_published_ones(schedule):
    snr, eps = ratio(schedule), Process(schedule, "eps")
    log_snr = np.log(snr)
    noise = snr**-0.5
    for expected, name, options in (
        (np.ones(1000), "snr", {}),
        (1 / (1 + snr), "p2", {}),
        (1 / (0.5 + snr) ** 0.7, "p2", {"k": 0.5, "gamma": 0.7}),
        (1 / (1 + np.exp(log_snr - 2)), "sigmoid", {"bias": 2.0}),
        # Karras et al. weight the error of x_0, which is noise^2 times that of eps.
        ((noise**2 + 0.25) / (noise * 0.5) ** 2 * noise**2, "edm", {}),
    ):
        np.testing.assert_allclose(make_weights(eps, name, **options), expected, rtol=1e-11, err_msg=name)


@pytest.mark.parametrize("name", ["edm", "vp_sde", "ve_sde", "linear"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_edm_gives_its_own_target_weight_one(name, sigma_data):
    """Karras et al., table 1: lambda = 1/c_out^2, so that the error of F has the same weight at every level."""
    process = Process(make_schedule(name), "edm", sigma_data=sigma_data)
    t = process.schedule.even_timesteps(50)
    np.testing.assert_allclose(make(process, "edm")(t), 1, rtol=1e-12)
    # The losses of VP and VE in EDM's code: 1/sigma^2 on the error of D, which is 1 on that of eps.
    for prediction in ("vp", "ve", "eps"):
        np.testing.assert_allclose(make(Process(make_schedule(name), prediction), "snr")(t), 1, rtol=1e-12)


@EACH
@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_loss_does_not_depend_on_the_prediction_in_continuous_time(name, weighting):
    schedule = make_schedule(name)
    x0, error = Stream(1, "x0").normal(np.arange(64), (2, 2, 1)), Stream(1, "error").normal(np.arange(64), (2, 2, 1))
    predictions = [p for p in PREDICTIONS if not unsupported_reason(schedule, p)]
    losses = {p: weighted_loss(Process(schedule, p), weighting, x0 + 0.1 * error, x0) for p in predictions}
    assert losses["x0"] > 0
    for prediction, loss in losses.items():
        assert loss == pytest.approx(losses["x0"], rel=1e-8), prediction


def test_a_sigmoid_per_log_snr_is_its_integral_in_continuous_time():
    t = np.linspace(0.05, 0.95, 50)
    process = Process(make_schedule("flow_continuous", t_min=1e-6), "x0")
    snr = ((1 - t) / t) ** 2
    expected = snr / (1 + np.exp(1.5) * snr) * 2 / (t * (1 - t))
    np.testing.assert_allclose(make(process, "sigmoid", bias=-1.5, per_log_snr=True)(t), expected, rtol=1e-5)


def test_weightings_coincide_at_special_options():
    for prediction in PREDICTIONS.keys() - {"velocity", "velocity_to_data"}:
        process = Process(linear(), prediction)
        snr = make_weights(process, "snr")
        np.testing.assert_allclose(make_weights(process, "p2", gamma=0), snr, rtol=1e-14)
        np.testing.assert_allclose(make_weights(process, "min_snr", gamma=1e9), snr, rtol=1e-14)
        # SNR below gamma: the truncated part is the simple loss of eps.
        low = ratio(linear()) < 5
        np.testing.assert_array_equal(make_weights(process, "min_snr")[low], snr[low])
    np.testing.assert_allclose(make_weights(Process(linear(), "v"), "edm", sigma_data=1.0), np.ones(1000), rtol=1e-12)


def test_a_sigmoid_per_log_snr_is_its_integral():
    """On the straight line log SNR = 2 log((1 - t)/t), with derivative -2 / (t (1 - t))."""
    process, t = Process(flow(2000), "x0"), np.arange(1, 2001) / 2000
    inner = (t > 0.05) & (t < 0.95)
    snr = ((1 - t[inner]) / t[inner]) ** 2
    expected = snr / (1 + np.exp(1.5) * snr) * 2 / (t[inner] * (1 - t[inner]))
    got = make_weights(process, "sigmoid", bias=-1.5, per_log_snr=True)
    np.testing.assert_allclose(got[inner], expected, rtol=2e-4)
    assert np.all(got >= 0)


@EACH
@pytest.mark.parametrize("prediction", ["v", "x0", "next_level"])
def test_weights_without_signal_are_the_limit(prediction, weighting):
    """At SNR = 0 the weights are the limit for small alpha, and finite."""
    alpha, sigma = np.array([0.9, 0.6, 0.3, 0.0]), np.array([0.1, 0.4, 0.7, 1.0])
    exact, near = (
        make_weights(Process(Schedule("given", alpha + end, sigma), prediction), **weighting)
        for end in (0.0, np.array([0.0, 0.0, 0.0, 1e-9]))
    )
    assert np.all(np.isfinite(exact)) and np.all(exact >= 0)
    np.testing.assert_allclose(near, exact, rtol=1e-6, atol=1e-15)
    if weighting["name"] in ("edm", "uniform", "snr+1", "truncated-snr"):
        assert exact[-1] > 0
    elif not weighting.get("per_log_snr"):  # a difference of levels is not that of the last one alone
        assert exact[-1] == 0


def test_the_weights_of_a_batch_are_cast_once():
    process = Process(cosine(1000), "v")
    objective = Objective(process, 3, weighting={"name": "min_snr", "gamma": 2})
    positions = np.arange(32)
    images = np.zeros((32, 2, 2, 1))
    for dtype in (np.float64, np.float32):
        batch = objective.batch(images, np.zeros(32), positions, dtype)
        table = make_weights(process, "min_snr", gamma=2)
        assert table.dtype == np.float64 and batch.weight.dtype == dtype
        np.testing.assert_array_equal(batch.weight, table[batch.c_noise.astype(int)].astype(dtype))


@pytest.mark.parametrize("weighting, message", [
    ({"name": "min_snrr"}, "process.weighting.name: 'min_snrr' .* Did you mean 'min_snr'"),
    ({"name": "min_snr", "gama": 5}, "option of process.weighting 'min_snr': 'gama' .* Did you mean 'gamma'"),
    ({"name": "min_snr", "gamma": "five"}, "process.weighting.gamma: 'five' was given; it must be a number"),
    ({"name": "min_snr", "gamma": 0}, "process.weighting.gamma: 0 was given; it must be a positive number"),
    ({"name": "p2", "gamma": -1}, "process.weighting.gamma: -1 was given; it must be at least 0"),
    ({"name": "p2", "k": 0.0}, "process.weighting.k: 0.0 was given; it must be a positive number"),
    ({"name": "edm", "sigma_data": float("inf")}, "process.weighting.sigma_data: inf"),
    ({"name": "sigmoid", "bias": float("nan")}, "process.weighting.bias: nan was given; it must be a log-SNR"),
])  # fmt: skip
def test_invalid_weightings_are_errors(weighting, message):
    with pytest.raises(DuetError, match=message):
        Objective(Process(linear()), 0, weighting=weighting)

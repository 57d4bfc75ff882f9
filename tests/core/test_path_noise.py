"""The probability paths of conditional flow matching: noise around them, and a sigma that is left at the data."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.continuous import cosine_continuous, flow_continuous, vp_sde
from diffusion_core.diffusion.process import PREDICTIONS, Process, unsupported_reason
from diffusion_core.diffusion.schedule import cosine, linear
from diffusion_core.sampling import make_plan
from diffusion_core.training.objective import Objective

N = 16
POSITIONS = np.arange(N)
STRAIGHT = flow_continuous(1e-12)


def images() -> np.ndarray:
    return np.tanh(Stream(0, "images").normal(POSITIONS, (3, 2, 1)))


def path(process: Process, **options):
    """Return x_t, the target, eps, xi and tau = 1 - t of a batch, in float64."""
    objective = Objective(process, 4, **options)
    batch = objective.batch(images(), np.zeros(N, int), POSITIONS, np.float64)

    def column(name):
        return getattr(batch, name).reshape(-1, 1, 1, 1)

    x = column("alpha") * batch.images + column("sigma") * batch.noise
    target = column("target_x0") * batch.images + column("target_eps") * batch.noise
    eps = Objective(process, 4).batch(images(), np.zeros(N, int), POSITIONS, np.float64).noise
    xi = Stream(4, "train/path_noise").normal(POSITIONS, (3, 2, 1))
    return x, target, eps, xi, 1 - objective.draw_timesteps(POSITIONS)[0].reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_paths_and_velocities_are_those_of_torchcfm(sigma):
    """Its x_1 is the data, x_0 the noise, and u_t the velocity from noise to data."""
    data, name = images(), "velocity_to_data"
    # independent, and optimal transport with coupled noise
    x, u, z, xi, tau = path(Process(STRAIGHT, name), path_noise={"name": "constant", "sigma": sigma})
    np.testing.assert_allclose(x, tau * data + (1 - tau) * z + sigma * xi, atol=1e-11)
    np.testing.assert_allclose(u, data - z, atol=1e-11)
    # variance-preserving
    trigonometric = Process(cosine_continuous(-100, 100), name)
    x, u, z, xi, tau = path(trigonometric, path_noise={"name": "constant", "sigma": sigma})
    angle = np.pi / 2 * tau
    np.testing.assert_allclose(x, np.cos(angle) * z + np.sin(angle) * data + sigma * xi, atol=1e-11)
    np.testing.assert_allclose(u, np.pi / 2 * (np.cos(angle) * data - np.sin(angle) * z), atol=1e-11)
    # Schroedinger bridge
    x, u, z, xi, tau = path(Process(STRAIGHT, name), path_noise={"name": "brownian_bridge", "sigma": sigma})
    mean, spread = tau * data + (1 - tau) * z, sigma * np.sqrt(tau * (1 - tau))
    np.testing.assert_allclose(x, mean + spread * xi, atol=1e-11)
    pull = (1 - 2 * tau) / (2 * tau * (1 - tau) + 1e-8)
    np.testing.assert_allclose(u, pull * (x - mean) + data - z, rtol=1e-9, atol=1e-10)
    # target
    x, u, z, _, tau = path(Process(flow_continuous(0.0, sigma_min=sigma), name))
    np.testing.assert_allclose(x, tau * data + (1 - (1 - sigma) * tau) * z, atol=1e-12)
    np.testing.assert_allclose(u, (data - (1 - sigma) * x) / (1 - (1 - sigma) * tau), atol=1e-12)


def test_a_velocity_of_the_other_sign_has_the_same_path():
    options = {"path_noise": {"name": "brownian_bridge", "sigma": 0.4}}
    one, other = (path(Process(STRAIGHT, name), **options) for name in ("velocity", "velocity_to_data"))
    np.testing.assert_allclose(one[0], other[0], atol=1e-12)
    np.testing.assert_allclose(one[1], -other[1], atol=1e-9)


def test_constant_noise_keeps_the_target_of_every_prediction():
    for schedule in (cosine(100), vp_sde()):
        for prediction in PREDICTIONS:
            if not unsupported_reason(schedule, prediction) and prediction != "iddpm":
                process = Process(schedule, prediction)
                x, target, _, xi, _ = path(process, path_noise={"name": "constant", "sigma": 0.2})
                plain, expected, *_ = path(process)
                np.testing.assert_allclose(target, expected, rtol=1e-9, atol=1e-9, err_msg=prediction)
                np.testing.assert_allclose(x, plain + 0.2 * xi, rtol=1e-9, atol=1e-9, err_msg=prediction)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("sigma", [1e-5, 0.1, 0.5])
def test_a_sigma_that_is_left_keeps_the_laws_of_the_straight_line(sigma, scale):
    line = flow_continuous(0.0, 1.0, scale, sigma)
    t = np.linspace(0.0, 1.0, 9)
    alpha, sigmas = line(t)
    np.testing.assert_allclose(line.norm(alpha, sigmas), 1, rtol=1e-14)
    np.testing.assert_allclose(sigmas[[0, -1]], [scale * sigma, scale])
    np.testing.assert_allclose(line.t_at_log_ratio(np.log(sigmas[:-1] / alpha[:-1])), t[:-1], atol=1e-10)
    rates = np.array(line.rates(t))
    np.testing.assert_allclose(rates, [-np.ones(9), np.full(9, scale * (1 - sigma))])
    np.testing.assert_allclose(line.wronskian(t), alpha * rates[1] - sigmas * rates[0], rtol=1e-12)
    shifted = line.shift_log_snr(-1.0)
    snr = [np.square(np.divide(*one(t[1:-1]))) for one in (line, shifted)]
    np.testing.assert_allclose(snr[1], np.exp(-1.0) * snr[0], rtol=1e-10)
    for name in ("flow_euler", "flow_heun", "sit_ode", "ddim"):  # a plan checks that D = x_0 leads down its levels
        plan = make_plan(Process(line, "velocity"), name, steps=5)
        assert plan.start_scale == pytest.approx(scale)
    clocked = make_plan(Process(flow_continuous(0.01, 0.99, scale, sigma), "velocity"), "euler", steps=4, variable="t")
    assert np.isfinite(clocked.state).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Objective(Process(STRAIGHT, "velocity"), 0, path_noise="brown"), r"process.path_noise.name: 'brown'"),
        (
            lambda: Objective(Process(STRAIGHT, "velocity"), 0, path_noise={"name": "constant", "sigma": 0.0}),
            r"process.path_noise.sigma: 0.0 was given",
        ),
        (
            lambda: Objective(Process(linear(), "eps"), 0, path_noise={"name": "brownian_bridge", "sigma": 1.0}),
            r"process.path_noise: brownian_bridge was given with prediction eps",
        ),
        (
            lambda: Objective(
                Process(linear(), "eps"), 0, variance="learned_range", path_noise={"name": "constant", "sigma": 0.1}
            ),
            r"process.path_noise: use none with the variational bound",
        ),
        (lambda: flow_continuous(sigma_min=1.0), r"schedule.sigma_min: 1.0 was given"),
        (lambda: flow_continuous(t_min=0.0), r"t_min 0 and t_max 1"),
        (lambda: Process(flow_continuous(sigma_min=0.1), "x0", t_floor=0.1), r"process.t_floor: 0.1 was given"),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(DuetError, match=message):
        make()

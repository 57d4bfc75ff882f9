"""Linear operators obey their laws, and posterior sampling gives the exact posterior where its method is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gaussian import DENOISER, Gaussian, affine_moments, errors, matrix, unit_starts

import duet
from diffusion_core.backend.interface import Guidance
from diffusion_core.backend.numpy_backend import NumpyBackend
from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear, make_schedule
from diffusion_core.model.generate import generate, noise_source
from diffusion_core.sampling import make_plan
from diffusion_core.sampling.edit import posterior
from diffusion_core.sampling.linear_operators import LinearOperator, blur, downsample, grey, mask
from diffusion_core.sampling.measurement import Measurement, conjugate_gradients, observe
from experiments.runtime import own_networks

SHAPE = (4, 4, 2)
KNOWN = (np.arange(16).reshape(4, 4, 1) % 3 > 0).astype(float)
OPERATORS = {
    "mask": mask(SHAPE, KNOWN),
    "blur": blur(SHAPE, 0.8),
    "blur, zero": blur(SHAPE, 1.3, boundary="zero"),
    "blur, wrap": blur(SHAPE, 0.5, boundary="wrap"),
    "blur, kernel": blur(SHAPE, kernel=[[0.1, 0.2, 0.0], [0.3, -0.4, 0.1], [0.0, 0.2, 0.5]]),
    "downsample": downsample(SHAPE, 2),
    "grey": grey(SHAPE, [0.2, 0.8]),
    "chain": downsample((4, 4, 1), 2) @ grey(SHAPE) @ blur(SHAPE),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_of_every_operator_is_its_transpose(name):
    operator = OPERATORS[name]
    a = matrix(operator, SHAPE)
    units = np.eye(len(a)).reshape(-1, *operator.measure(np.zeros((1, *SHAPE))).shape[1:])
    np.testing.assert_allclose(operator.pull_back(units, SHAPE).reshape(len(a), -1), a, atol=1e-15)
    operator.check(SHAPE)


def test_a_blur_is_the_sum_over_its_kernel_at_each_pixel():
    image = np.arange(25.0).reshape(1, 5, 5, 1) ** 1.3
    kernel = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.5]])
    for boundary, how in (("reflect", {"mode": "reflect"}), ("zero", {}), ("wrap", {"mode": "wrap"})):
        padded = np.pad(image[0, :, :, 0], 1, **how)
        wanted = [[np.sum(kernel * padded[i : i + 3, j : j + 3]) for j in range(5)] for i in range(5)]
        got = blur((5, 5, 1), kernel=kernel.tolist(), boundary=boundary).measure(image)
        np.testing.assert_allclose(got[0, :, :, 0], wanted, rtol=1e-13)


def test_blur_downsampling_and_grey_keep_constants():
    for name in ("blur", "blur, wrap", "downsample", "grey", "chain"):
        np.testing.assert_allclose(OPERATORS[name].measure(np.full((1, *SHAPE), 0.7)), 0.7, rtol=1e-14)


WRONG = {
    "another adjoint": (LinearOperator(lambda x: 2 * x, lambda y: y), "its adjoint is not that of its forward"),
    "a transpose of the axes": (
        LinearOperator(lambda x: x.swapaxes(1, 2) * KNOWN, lambda y: y * KNOWN), "its adjoint is not"
    ),
    "not linear": (LinearOperator(np.abs, lambda y: y), "is not linear"),
    "affine": (LinearOperator(lambda x: x + 1, lambda y: y), "is not linear"),
    "mixing images": (LinearOperator(lambda x: x - x.mean(axis=0), lambda y: y - y.mean(axis=0)), "mixes images"),
    "another shape": (LinearOperator(lambda x: x, lambda y: y[:, :2]), r"the shape \(3, 2, 4, 2\); it must be that of"),
    "no batch": (LinearOperator(lambda x: x.sum(), lambda y: y), "its first axis must be the images'"),
    "failing": (LinearOperator(lambda x: x @ np.ones(5), lambda y: y), "its forward function failed for images"),
}  # fmt: skip


@pytest.mark.parametrize("operator, message", WRONG.values(), ids=WRONG)
def test_a_function_that_is_no_linear_operator_is_refused(operator, message):
    with pytest.raises(DuetError, match=message):
        Measurement(operator, np.zeros((1, *SHAPE)), 0.1, SHAPE)


OUT_OF_RANGE = {
    "operator.width": lambda: blur(SHAPE, 0.0),
    "operator.kernel: it is 2 x 1; it must have odd": lambda: blur(SHAPE, kernel=[[1.0], [1.0]]),
    "operator.kernel: it is 9 x 1, which reaches beyond": lambda: blur(SHAPE, kernel=[[1.0]] * 9),
    "operator.kernel: .* rows of numbers": lambda: blur(SHAPE, kernel=[[1.0], [1.0, 2.0]]),
    "operator.boundary: 'mirror' was given": lambda: blur(SHAPE, boundary="mirror"),
    "operator.factor: 3 was given; it must divide": lambda: downsample(SHAPE, 3),
    "operator.weights: .* one number per channel": lambda: grey(SHAPE, [1.0]),
    "operator.known: its shape": lambda: mask(SHAPE, np.ones((3, 4, 1))),
    "operator.known: it must be 1 where": lambda: mask(SHAPE, np.zeros((4, 4, 1))),
    "operator.forward: 3 was given; it must be a function": lambda: LinearOperator(3, len),
    "method: 'mmp' was given": lambda: measured(method="mmp"),
    "noise: -1 was given": lambda: measured(noise=-1),
    "scale: 0 was given": lambda: measured(scale=0),
    "iterations: 3 was given with method=dps": lambda: measured(method="dps", iterations=3),
    "adaptive: true was given with method=mmps": lambda: measured(adaptive=True),
    r"measurement: measurements of shape \(3,\)": lambda: measured(y=np.zeros((2, 3))),
    "uint8 was given; it must be floats": lambda: measured(y=np.zeros((1, 2, 2, 2), np.uint8)),
    "measurement: it has numbers that are not finite": lambda: measured(y=np.full((1, 2, 2, 2), np.nan)),
    "operator: 'blur' was given": lambda: measured(operator="blur"),
}


def measured(**changes):
    options = {"operator": OPERATORS["downsample"], "y": np.zeros((1, 2, 2, 2)), "noise": 0.1, "shape": SHAPE} | changes
    return Measurement(**options)


@pytest.mark.parametrize("message", OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused(message):
    with pytest.raises(DuetError, match=message):
        OUT_OF_RANGE[message]()


def test_conjugate_gradients_solve_each_system_of_a_batch():
    rng = np.random.default_rng(0)
    factors, b = rng.normal(size=(3, 6, 6)), rng.normal(size=(3, 6))
    matrices = np.einsum("kij,klj->kil", factors, factors)
    b[1] = 0
    got = conjugate_gradients(lambda v: np.einsum("kij,kj->ki", matrices, v), b, 20)
    np.testing.assert_allclose(got, np.linalg.solve(matrices, b[..., None])[..., 0], rtol=1e-6, atol=1e-9)
    assert not np.any(got[1])
    # A system without a solution ends at the last direction with curvature.
    flat = conjugate_gradients(lambda v: v * [1.0, -1.0], np.array([[1.0, 0.0], [0.0, 1.0]]), 5)
    np.testing.assert_array_equal(flat, [[1.0, 0.0], [0.0, 0.0]])


# Exact posteriors

DATA = Gaussian.random((3, 3, 1), 1)
SMALL = {
    "blur": blur(DATA.shape, 0.7),
    "mask": mask(DATA.shape, np.eye(3)[..., None]),
    # Two sums, as a vector: what no named operator makes.
    "sums": LinearOperator(
        lambda x: x.reshape(-1, 9) @ np.eye(9)[:, [0, 5]] + x.sum(axis=(1, 2)),
        lambda y: (y @ np.eye(9)[[0, 5]] + y.sum(axis=1, keepdims=True)).reshape(-1, 3, 3, 1),
    ),
}


def sample(data, measurement, plan, starts):
    own = own_networks.adapt(data.denoise)
    spec = own.spec(data.shape, classes=0, with_label=False, conditions=())
    made = replace(posterior(plan, measurement), start=starts)
    labels = np.zeros(len(starts), np.int32)
    return generate(own.open(False), own.build(spec, False), plan, data.shape, labels, 0, batch=64, edit=made)


def moments(data, operator, y, noise, plan, **options):
    starts = unit_starts(data.shape, plan.start_scale)
    return affine_moments(
        sample(
            data, Measurement(operator, np.repeat(y, len(starts), axis=0), noise, data.shape, **options), plan, starts
        )
    )


@pytest.mark.parametrize("name", SMALL)
def test_moment_matching_samples_the_exact_posterior_of_normal_data(name):
    operator, noise = SMALL[name], 0.2
    y = observe(operator, DATA.draw(3), noise, 0, np.arange(1))
    plan = make_plan(DENOISER, "heun", steps=60)
    mean, covariance = errors(moments(DATA, operator, y, noise, plan, iterations=9), DATA.posterior(operator, y, noise))
    assert mean < 0.01 and covariance < 0.01, (mean, covariance)
    # The other methods are biased on such data.
    for method in ("pigdm", "dps"):
        plan = make_plan(DENOISER, "heun" if method == "pigdm" else "euler", steps=60)
        biased = errors(moments(DATA, operator, y, noise, plan, method=method), DATA.posterior(operator, y, noise))
        assert max(biased) > 0.05


def test_pseudo_inverse_guidance_is_exact_on_white_data():
    white = Gaussian(DATA.shape, np.zeros(9), np.eye(9))
    y = observe(SMALL["blur"], white.draw(2), 0.1, 0, np.arange(1))
    plan = make_plan(DENOISER, "heun", steps=60)
    wanted = white.posterior(SMALL["blur"], y, 0.1)
    mean, covariance = errors(moments(white, SMALL["blur"], y, 0.1, plan, method="pigdm"), wanted)
    assert mean < 0.01 and covariance < 0.01
    # There, moment matching has the same covariance.
    both = (moments(white, SMALL["blur"], y, 0.1, plan, **o) for o in ({"method": "pigdm"}, {"iterations": 9}))
    np.testing.assert_allclose(*(one[0] for one in both), atol=1e-9)


@pytest.mark.parametrize("method", ["mmps", "pigdm"])
def test_without_noise_samples_reproduce_the_measurement(method):
    operator = SMALL["sums"]
    y = operator.measure(DATA.draw(3))
    plan = make_plan(DENOISER, "heun", steps=20)
    options = {"iterations": 9} if method == "mmps" else {}
    measurement = Measurement(operator, np.repeat(y, 3, axis=0), 0.0, DATA.shape, method, **options)
    starts = plan.start_scale * np.random.default_rng(0).normal(size=(3, *DATA.shape))
    samples = sample(DATA, measurement, plan, starts)
    away = [np.abs(operator.measure(x[None]) - y).max() for x in samples]
    assert max(away) < 2e-2, away


def test_the_hidden_part_of_a_measurement_does_not_count():
    hidden = np.where(KNOWN == 1, 0.5, 7.0) * np.ones((1, *SHAPE))
    np.testing.assert_array_equal(
        Measurement(OPERATORS["mask"], hidden, 0.0, SHAPE).y, 0.5 * KNOWN * np.ones((1, *SHAPE))
    )


def test_measurements_of_own_networks_are_in_the_layout_of_their_samples():
    """Vectors, and images with their channels first, are led as the same images with their channels last."""
    last = duet.operators.downsample((4, 4, 2), 2)
    data, plan = Gaussian.random((4, 4, 2), 3), make_plan(DENOISER, "heun", steps=5)
    y = last.measure(data.draw(1))
    wanted = duet.sample(data.denoise, plan, shape=(2, 4, 4, 2), measurement=Measurement(last, y, 0.1))

    class ChannelsFirst:
        layout = "channels_first"

        def __call__(self, x, t):
            return np.moveaxis(data.denoise(np.moveaxis(x, 1, -1), t), -1, 1)

    def to_last(x):
        return np.moveaxis(x, 1, -1)

    def to_first(x):
        return np.moveaxis(x, -1, 1)

    first = LinearOperator(lambda x: to_first(last.forward(to_last(x))), lambda v: to_first(last.adjoint(to_last(v))))
    measured = Measurement(first, to_first(y), 0.1)
    np.testing.assert_allclose(
        to_last(duet.sample(ChannelsFirst(), plan, shape=(2, 2, 4, 4), measurement=measured)), wanted, atol=1e-9
    )
    flat = LinearOperator(
        lambda x: last.forward(x.reshape(-1, 4, 4, 2)).reshape(len(x), -1),
        lambda v: last.adjoint(v.reshape(-1, 2, 2, 2)).reshape(len(v), -1),
    )
    vectors = duet.sample(
        lambda x, t: data.denoise(x.reshape(-1, 4, 4, 2), t).reshape(len(x), -1), plan, shape=(2, 32),
        measurement=Measurement(flat, y.reshape(1, -1), 0.1), start=_start_of_vectors(plan),
    )  # fmt: skip
    images = duet.sample(
        data.denoise, plan, shape=(2, 4, 4, 2), measurement=Measurement(last, y, 0.1),
        start=_start_of_vectors(plan).reshape(2, 4, 4, 2),
    )  # fmt: skip
    np.testing.assert_allclose(vectors.reshape(2, 4, 4, 2), images, atol=1e-9)


def _start_of_vectors(plan):
    return plan.start_scale * np.random.default_rng(2).normal(size=(2, 32))


# The steps of the authors' code, written again


LEVELS = Process(linear(20, 1e-3, 0.4), "x0")


def published(method: str, plan, x, y, operator, noise):
    """Follow DDIM with eta 0.5 by the lines of a method's code, for `DATA` with its exact estimate and Jacobian."""
    a, (variances, directions) = matrix(operator, DATA.shape), DATA.axes
    alpha, sigma = plan.alpha, plan.sigma
    for i in range(plan.rows):
        gain = directions * (alpha[i] * variances / (alpha[i] ** 2 * variances + sigma[i] ** 2)) @ directions.T
        x0 = DATA.mean + (x - alpha[i] * DATA.mean) @ gain  # the Jacobian of x0 is `gain`
        eps = (x - alpha[i] * x0) / sigma[i]
        residual = y - x0 @ a.T
        c1 = 0.5 * sigma[i + 1] / sigma[i] * np.sqrt(1 - (alpha[i] / alpha[i + 1]) ** 2)
        c2 = np.sqrt(sigma[i + 1] ** 2 - c1**2)
        step = alpha[i + 1] * x0 + c1 * noise(i) + c2 * eps
        if method == "dps":  # x_t -= scale * d|y - A x0|/dx
            step = step + 0.3 * residual @ a @ gain / np.linalg.norm(residual, axis=1, keepdims=True)
        else:  # + sqrt(alpha_s alpha_t) d(H+ y - H+ H x0, x0)/dx
            step = step + alpha[i + 1] * alpha[i] * residual @ np.linalg.pinv(a).T @ gain
        x = step
    return x


@pytest.mark.parametrize("method", ["dps", "pigdm"])
def test_dps_and_adaptive_pigdm_take_the_steps_of_their_code(method):
    plan, operator = make_plan(LEVELS, "ddim", steps=6, eta=0.5, clip=None), SMALL["sums"]
    levels = {float(t): (plan.alpha[i], plan.sigma[i]) for i, t in enumerate(plan.t)}

    def network(x, t):
        alpha, sigma = levels[float(t[0])]
        return DATA.denoise(x / alpha, np.full(len(x), sigma / alpha))

    y, index = operator.measure(DATA.draw(4)), np.arange(2)
    own = own_networks.adapt(network)
    spec = own.spec(DATA.shape, classes=0, with_label=False, conditions=())
    starts = np.random.default_rng(1).normal(size=(2, *DATA.shape))
    measurement = Measurement(operator, np.repeat(y, 2, 0), 0.0, DATA.shape, method, adaptive=method == "pigdm")
    made = replace(posterior(plan, measurement), start=starts)
    got = generate(own.open(False), own.build(spec, False), plan, DATA.shape, np.zeros(2, np.int32), 7, edit=made)
    drawn = noise_source(7, index, DATA.shape, np.float64)
    wanted = published(method, plan, starts.reshape(2, 9), y, operator, lambda i: drawn(i).reshape(2, 9))
    np.testing.assert_allclose(got.reshape(2, 9), wanted, atol=1e-9)


# Where a method is not defined

PROCESS = Process(linear(), "eps")


def test_plans_for_which_a_method_is_not_defined_are_refused():
    for plan, options, message in (
        (make_plan(PROCESS, "heun", steps=4), {"method": "dps"}, "dps moves x after each row, but .* keeps 2 images"),
        (make_plan(PROCESS, "heun", steps=4), {"method": "pigdm", "adaptive": True}, "mode.adaptive=false"),
        (make_plan(PROCESS, "ddim_inversion", steps=4), {}, "leads up to noise"),
    ):
        with pytest.raises(DuetError, match=message):
            posterior(plan, measured(**options))
    posterior(make_plan(PROCESS, "heun", steps=4), measured(method="pigdm"))
    plan, measurement = make_plan(PROCESS, "ddim", steps=4), measured()
    with pytest.raises(DuetError, match="a measurement was given with a mask"):
        Guidance(measurement=measurement, mask=np.ones((1, 4, 4, 1)), known=lambda row: None).check(plan)
    with pytest.raises(DuetError, match="a measurement was given with a classifier"):
        Guidance(measurement=measurement, classifier=object()).check(plan.with_guidance(1.0, classifier=1.0))


def test_rows_without_signal_follow_the_network_alone():
    plan = make_plan(Process(make_schedule("linear", zero_terminal_snr=True), "v"), "ddim", steps=4, spacing="trailing")
    assert plan.alpha[0] == 0
    nothing = measured().shift(plan, 0, np.zeros((1, *SHAPE)), lambda v: v)
    np.testing.assert_array_equal(nothing, np.zeros((1, *SHAPE)))


def test_samples_of_a_numpy_function_that_are_too_large_for_differences_are_refused():
    shape = (32, 64, 1)
    own = own_networks.adapt(lambda x, t: x)
    spec = own.spec(shape, classes=0, with_label=False, conditions=())
    y, plan = np.zeros((1, 16, 32, 1)), make_plan(DENOISER, "euler", steps=2)
    made = posterior(plan, Measurement(downsample(shape, 2), y, 0.1, shape))
    with pytest.raises(DuetError, match="differences are taken for samples of at most 1024 numbers"):
        generate(NumpyBackend(), own.build(spec, False), plan, shape, np.zeros(1, np.int32), 0, edit=made)

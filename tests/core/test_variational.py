"""Losses beyond a distance, compared with the published formulas, image by image and pixel by pixel."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import SELF_CONDITIONING, VARIATIONAL, TrainerState
from diffusion_core.backend.reference import losses
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import from_uint8
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, linear, make_schedule
from diffusion_core.diffusion.timestep_sampling import make_timestep_sampler
from diffusion_core.diffusion.variational import BOUNDS, LEARNED, STEP_VARIANCES, bound_columns, step_log_variances
from diffusion_core.likelihood.bound import variational_bound
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec, lower, make_spec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.parity import cases
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.training.objective import Objective

PIXELS = np.array([0, 1, 17, 128, 254, 255])
SPEC = UNetSpec(4, 1, 1, 4, (1, 2), 1, (), middle_attention=False, norm_groups=2)


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def paper(betas: np.ndarray, t: int, x0: float, eps: float, eps_theta: float, v: float, kind: str) -> float:
    """Return L_vlb's term at t for one pixel in nats, eqs. 2 to 15 with the paper's t + 1, from the betas alone."""
    sums = np.cumsum(np.log1p(-betas))
    alpha_bar, rest = np.exp(sums), -np.expm1(sums)  # 1 - alpha_bar without cancellation
    before, rest_before = (alpha_bar[t - 1], rest[t - 1]) if t else (1.0, 0.0)
    tilde = rest[0] / rest[1] * betas[1]
    beta_tilde = rest_before / rest[t] * betas[t] if t else tilde
    share = (v + 1) / 2
    variance = {
        "learned": math.exp(v),
        "learned_range": math.exp(share * math.log(betas[t]) + (1 - share) * math.log(beta_tilde)),
        "fixed_small": beta_tilde,
        "fixed_large": betas[t] if t else tilde,  # as the published code appends it to betas[1:]
    }[kind]
    x_t = math.sqrt(alpha_bar[t]) * x0 + math.sqrt(rest[t]) * eps
    from_x0 = math.sqrt(before) * betas[t] / rest[t]
    from_x_t = math.sqrt(1 - betas[t]) * rest_before / rest[t]
    mean = from_x0 * x0 + from_x_t * x_t
    ours = (x_t - betas[t] / math.sqrt(rest[t]) * eps_theta) / math.sqrt(1 - betas[t])
    if t:
        ratio = beta_tilde / variance
        return 0.5 * (-1 - math.log(ratio) + ratio + (mean - ours) ** 2 / variance)
    std = math.sqrt(variance)
    above = 1.0 if x0 > 0.999 else normal_cdf((x0 + 1 / 255 - ours) / std)
    below = 0.0 if x0 < -0.999 else normal_cdf((x0 - 1 / 255 - ours) / std)
    return -math.log(max(above - below, 1e-12))


@pytest.mark.parametrize("variance", STEP_VARIANCES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "posterior_mean"])
@pytest.mark.parametrize("schedule", [linear(1000), cosine(50)], ids=lambda s: s.name)
def test_the_bound_is_the_paper_s(schedule, prediction, variance):
    """Compared for the same error in eps, for any prediction, to 1e-10; at t = 0 with the smallest and largest byte."""
    betas = -np.expm1(np.diff(np.log(schedule.alpha**2), prepend=0.0))
    levels = np.array([0, 0, 1, 2, 10, len(betas) // 2, len(betas) - 2])
    shape = (len(levels), 1, len(PIXELS), 1)
    rng = np.random.default_rng(0)
    x0 = np.broadcast_to(PIXELS / 127.5 - 1, shape[:-1])[..., None].copy()
    eps, error = rng.normal(size=shape), 0.1 * rng.normal(size=shape)
    v = rng.uniform(-1, 1, shape) if variance != "learned" else np.log(betas[levels])[:, None, None, None] + error
    process = Process(schedule, prediction)
    columns = process.columns(levels)
    table = bound_columns(process, variance, "vlb")[levels]
    # F - target of the prediction that has the same estimate of x_0 as eps + error.
    estimate = -(schedule.sigma / schedule.alpha)[levels][:, None, None, None] * error
    residual = estimate / columns.c_out[:, None, None, None]
    objective = Objective(process, 0)
    batch = objective.batch(x0, np.zeros(len(levels)), np.arange(len(levels)), np.float64)
    got = losses.variational_bound(
        replace(batch, variational=table), residual, residual, v if variance in LEARNED else v[..., :0]
    )
    wanted = [
        np.mean([
            paper(betas, t, *(float(a[i, 0, j, 0]) for a in (x0, eps, eps + error, v)), variance)
            for j in range(len(PIXELS))
        ])
        for i, t in enumerate(levels)
    ]  # fmt: skip
    # T times, in bits.
    np.testing.assert_allclose(got, np.array(wanted) * len(betas) / math.log(2), rtol=1e-10)


# -log of the probability of these bytes in the code of DiT (diffusion/diffusion_utils.py, ed81ce2), whose normal
# distribution has this mean, as an offset from the pixel, and the logarithm of this standard deviation.
BYTES, OFFSETS = np.array([0, 1, 77, 128, 254, 255.0]), np.array([0.02, -0.01, 0.003, 0.05, 0.004, -0.03])
OF_DIT = {
    -3.0: [0.9851608668878572, 2.7883193577189567, 2.7699141393146376, 3.27213663420863, 2.771330079857587,
           1.2031465768249516],
    -5.0: [4.785840459265693, 1.8060889490642351, 0.9110914383347982, 27.631021115928547, 0.9799890752261482,
           10.313264120490901],
}  # fmt: skip


def decoder_of_bytes(losses_of, log_std: float) -> np.ndarray:
    """Return the bits of the bytes, each an image of one pixel, by a function of (batch, residual, no variance)."""
    objective = Objective(Process(linear(1000)), 0)
    images = (BYTES / 127.5 - 1)[:, None, None, None]
    batch = objective.batch(images, np.zeros(6), np.arange(6), np.float64)
    table = bound_columns(Process(linear(1000)), "learned_range", "kl", cdf="tanh")[np.zeros(6, int)]
    for name, value in {"offset": 2 * log_std, "scale": 0.0, "error": 1.0, "half_bin": 1 / 255, "weight": 1.0}.items():
        table[:, VARIATIONAL.index(name)] = value
    residual = OFFSETS[:, None, None, None]
    return losses_of(replace(batch, variational=table), residual)


@pytest.mark.parametrize("log_std", OF_DIT)
def test_the_decoder_with_tanh_is_that_of_dit(log_std):
    got = decoder_of_bytes(lambda batch, r: losses.variational_bound(batch, r, r, r[..., :0]), log_std)
    np.testing.assert_allclose(got, OF_DIT[log_std], rtol=1e-12)


def test_tanh_changes_the_decoder_alone_and_opens_its_bins_where_dit_does():
    one, other = (
        Objective(Process(linear(9)), 0, variance="learned_range", bound_cdf=cdf) for cdf in ("exact", "tanh")
    )
    assert one.variational.shape[1] == 8 and other.variational.shape[1] == 9
    np.testing.assert_array_equal(one.variational[:, [0, 1, 2, 3, 6, 7]], other.variational[:, [0, 1, 2, 3, 6, 7]])
    np.testing.assert_allclose(other.variational[:, 4:6], [[-0.999, 0.999]] * 9, rtol=1e-15)


def test_hybrid_is_the_simple_loss_plus_a_thousandth_of_the_bound():
    """Eq. 16: RESCALED_MSE of the published code weights the bound in bits by T/1000."""
    case = cases.LOSSES[0]
    weights, batch = cases.scattered_weights(case.program), case.batch
    options = {name: value for name, value in case.options.items() if name != "bound_weight"}

    def losses(**changes):
        made = replace(case, options=options | changes)
        table = made.objective.variational
        table = None if table is None else table[batch.c_noise.astype(int)]
        return reference.per_image_losses(case.program, weights, replace(batch, variational=table), "mse")[0]

    simple = losses(variance="fixed")
    bound = losses(bound="vlb") - simple  # the batch keeps its weight
    np.testing.assert_allclose(losses(), simple + 0.001 * bound, rtol=1e-12)
    assert np.all(case.objective.variational[:, -1] == 0.2 * 4 / math.log(2))
    for bound, gradient in (("hybrid", 0.0), ("vlb", 1.0)):  # of the mean
        column = bound_columns(case.objective.process, "learned", bound)[:, VARIATIONAL.index("mean_gradient")]
        assert np.all(column == gradient)
    assert not np.any(replace(case, options=options | {"bound": "vlb"}).batch.weight)


@pytest.mark.parametrize("variance", STEP_VARIANCES)
def test_kl_is_the_bound_of_one_level_and_vlb_that_of_all(variance):
    """KL and RESCALED_KL of the published code, which differ by T; both train the mean, with any variance."""
    process = Process(cosine(10), "posterior_mean")
    kl, vlb = (Objective(process, 0, variance=variance, bound=bound) for bound in ("kl", "vlb"))
    np.testing.assert_allclose(kl.variational[:, -1], 1 / math.log(2))
    np.testing.assert_allclose(vlb.variational[:, -1], 10 / math.log(2))
    np.testing.assert_array_equal(kl.variational[:, :-1], vlb.variational[:, :-1])
    assert np.all(kl.variational[:, VARIATIONAL.index("mean_gradient")] == 1)
    assert kl.is_vlb_only and vlb.is_vlb_only and not np.any(kl.loss_weights(np.arange(10)))


@pytest.mark.parametrize("bound", [bound for bound in BOUNDS if bound != "hybrid"])
def test_the_bound_with_a_fixed_variance_is_that_of_the_evaluation(bound):
    """The loss at each level t > 0 is the term that `likelihood` evaluates; its decoder has no lower bound."""
    betas = {"T": 6, "beta_start": 0.05, "beta_end": 0.6}
    schedule, model = (
        linear(**betas),
        DiffusionModel(SPEC, {"name": "linear"} | betas, "posterior_mean", variance="fixed_large"),
    )
    weights = {n: v.astype(np.float64) for n, v in cases.scattered_weights(model.program).items()}
    objective = Objective.for_model(model, bound=bound)
    u8 = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    levels, index = np.arange(6), np.arange(6)
    noise = Stream(0, "likelihood/noise").normal(index, (4, 4, 1), levels)
    batch = objective.batch(from_uint8(u8, np.float64), np.zeros(6, int), index, np.float64)
    columns, (alpha, sigma) = model.process.columns(levels), schedule(levels)
    batch = replace(
        batch, noise=noise, alpha=alpha, sigma=sigma, c_in=columns.c_in, c_noise=columns.c_noise,
        target_x0=columns.target_x0, target_eps=columns.target_eps, variational=objective.variational,
    )  # fmt: skip
    losses, _ = reference.per_image_losses(model.program, weights, batch, "mse")
    forward = partial(reference.forward, model.program, weights)
    evaluated = variational_bound(
        forward, model.process, u8, batch.label, index, 0, variance="fixed_large", clip=False, batch=6
    )
    terms = np.array([evaluated.terms[i, evaluated.levels[i] == t][0] for i, t in enumerate(levels)])
    np.testing.assert_allclose(losses[1:] / (6 if bound == "vlb" else 1), terms[1:], rtol=1e-10)


def test_learned_range_is_between_the_posterior_variance_and_beta():
    schedule = linear(1000)
    small, large = step_log_variances(schedule.alpha, schedule.sigma)
    np.testing.assert_allclose(np.exp(large), np.linspace(1e-4, 0.02, 1000), rtol=1e-11)
    assert small[0] == small[1] == pytest.approx(-9.8167, abs=1e-4)
    assert np.all(small[1:] < large[1:])


def test_the_probabilities_of_all_bytes_add_up_to_one():
    bytes_ = np.arange(256)
    x0 = (bytes_ / 127.5 - 1).reshape(256, 1, 1, 1)
    process = Process(cosine(10), "x0")
    batch = Objective(process, 0).batch(x0, np.zeros(256), bytes_, np.float64)
    table = np.repeat(bound_columns(process, "learned_range", "vlb")[:1], 256, axis=0)
    table[:, -1] = 1.0  # nats, each once
    for mean, v in ((0.0, 0.3), (-1.2, 1.0), (0.9, -1.0)):
        nats = losses.variational_bound(replace(batch, variational=table), *(2 * (mean - x0,)), np.full_like(x0, v))
        assert np.sum(np.exp(-nats)) == pytest.approx(1.0, abs=256e-12)


def test_the_initial_uncertainty_changes_nothing():
    sure = DiffusionModel(SPEC, {"name": "linear", "T": 10}, "eps")
    unsure = replace(sure, uncertainty=True)
    weights = initial_weights(unsure.program, 0, np.float64)
    batch = cases.noise_batch(lower(SPEC), SPEC.image_shape)
    known = {name: weights[name] for name in initial_weights(sure.program, 0, np.float64)}
    assert reference.loss(unsure.program, weights, batch, "mse") == reference.loss(sure.program, known, batch, "mse")
    back = DiffusionModel.from_dict(json.loads(json.dumps(unsure.to_dict())))
    assert back == unsure and back.program == unsure.program != sure.program


def test_the_uncertainty_loss_has_its_minimum_at_the_true_loss():
    """exp(-u) L + u has its minimum, 1 + log L, at u = log L."""
    case = next(case for case in cases.LOSSES if case.name == "uncertain huber")
    program, weights, batch = case.program, cases.scattered_weights(case.program), case.batch
    certain = reference.per_image_losses(replace(program, uncertainty=False), weights, batch, "huber")[0]
    u = reference.forward(program, weights, batch.images, batch.c_noise, batch.label)[:, 0, 0, -1]
    losses = reference.per_image_losses(program, weights, batch, "huber")[0]
    np.testing.assert_allclose(losses, np.exp(-u) * certain + u, rtol=1e-12)
    assert np.all(losses >= 1 + np.log(certain))


def test_self_conditioning_gives_an_estimate_to_half_of_the_images():
    objective = Objective(Process(cosine(10), "v"), 3, self_conditioned=True, value_range=(0.0, 1.0))
    positions = np.arange(4000)
    batch = objective.batch(np.zeros((4000, 1, 1, 1)), np.zeros(4000), positions, np.float64)
    columns = dict(zip(SELF_CONDITIONING, batch.self_conditioning.T, strict=True))
    assert set(columns["keep"]) == {0.0, 1.0} and abs(columns["keep"].mean() - 0.5) < 3.3 * 0.5 / math.sqrt(4000)
    expected = objective.process.columns(batch.c_noise)
    np.testing.assert_array_equal(columns["c_skip"], expected.c_skip)
    np.testing.assert_array_equal(columns["c_out"], expected.c_out)
    assert set(columns["lowest"]) == {0.0} and set(columns["highest"]) == {1.0}
    part = objective.batch(np.zeros((7, 1, 1, 1)), np.zeros(7), positions[100:107], np.float64)
    np.testing.assert_array_equal(part.self_conditioning, batch.self_conditioning[100:107])


@pytest.mark.parametrize("first_t", [0, 2])
def test_timesteps_follow_the_second_moments_of_their_losses(first_t):
    """Compared with the published algorithm: deques of ten, roots of mean squares, a thousandth uniform."""
    law = make_timestep_sampler(linear(6), first_t, name="loss_second_moment")
    history, kept = law.empty_history(), [deque(maxlen=10) for _ in range(6)]
    rng = np.random.default_rng(1)
    for _ in range(40):
        t, losses = rng.integers(first_t, 6, 8), rng.exponential(size=8)
        history = history.appended(t, losses)
        for level, loss in zip(t, losses, strict=True):
            kept[level].append(loss)
        given = law.adapted(history)
        if any(len(own) < 10 for own in kept[first_t:]):
            assert given is law
            continue
        size = np.array([math.sqrt(np.mean(np.square(own))) if own else 0.0 for own in kept])
        wanted = size / size.sum() * 0.999
        wanted[first_t:] += 0.001 / (6 - first_t)
        np.testing.assert_allclose(given.probability, wanted, rtol=1e-12, atol=1e-15)
    assert given is not law
    objective = Objective(Process(linear(6)), 0, first_t=first_t, timestep_sampling={"name": "loss_second_moment"})
    t, importance = objective.draw_timesteps(np.arange(1000), history)
    np.testing.assert_allclose(importance, 1 / ((6 - first_t) * wanted[t]), rtol=1e-12)
    assert t.min() >= first_t and np.all(objective.draw_timesteps(np.arange(1000))[1] == 1)


def test_checkpoints_keep_the_loss_history(tmp_path):
    model = DiffusionModel(SPEC, {"name": "linear", "T": 6}, "eps")
    state = TrainerState.fresh(initial_weights(model.program, 0, np.float32))
    history = (
        make_timestep_sampler(linear(6), name="loss_second_moment")
        .empty_history()
        .appended([3, 3, 1], [0.5, 0.25, 1 / 3])
    )
    path = save_checkpoint(tmp_path, Checkpoint(8, model, 0, state, {}, history))
    back = load_checkpoint(path, SPEC).history
    for name, value in vars(history).items():
        np.testing.assert_array_equal(vars(back)[name], value, strict=True)
    assert load_checkpoint(save_checkpoint(tmp_path, Checkpoint(16, model, 0, state, {}))).history is None


@pytest.mark.parametrize("options, message", [
    ({"variance": "lerned"}, "process.variance: 'lerned'.*Did you mean 'learned'"),
    ({"variance": "learned", "bound": "vbl"}, "process.bound: 'vbl'"),
    ({"variance": "learned", "bound_weight": 0.0}, "process.bound_weight: 0.0 was given; it must be a positive number"),
    ({"variance": "fixed_small"}, "process.bound: hybrid was given with .*=fixed_small, .* use .*vlb or kl"),
    ({"bound": "vlb"}, "process.bound: vlb was given, but process.variance=fixed trains without the bound; use"),
    ({"variance": "learned", "bound_cdf": "tan"}, "process.bound_cdf: 'tan' was given; it must be one of exact, tanh"),
    ({"bound_cdf": "tanh"}, "process.bound_cdf: tanh was given, but process.variance=fixed trains without the bound"),
    ({"bound": "hybird"}, "process.bound: 'hybird'.*Did you mean 'hybrid'"),
    ({"bound_weight": 0.5}, "process.bound_weight: 0.5 was given, but process.variance=fixed ignores it"),
    ({"variance": "fixed_large", "bound": "kl", "bound_weight": 0.5}, "bound_weight: 0.5 .* process.bound=kl ignores"),
    ({"variance": "learned", "input_perturbation": 0.1}, "process.input_perturbation: .*use 0"),
    ({"variance": "learned", "bound": "vlb", "uncertainty": True}, "process.uncertainty: true .* hybrid"),
    ({"variance": "learned", "bound": "vlb", "weighting": {"name": "snr"}}, "process.weighting: snr .* hybrid"),
    ({"timestep_sampling": {"name": "loss_second_moment", "history": 0}}, "timestep_sampling.history: 0 was given"),
    ({"timestep_sampling": {"name": "loss_second_moment", "uniform_share": 0.0}}, r"sampling.uniform_share: 0\.0 was"),
])  # fmt: skip
def test_invalid_options_are_errors(options, message):
    with pytest.raises(DuetError, match=message):
        Objective(Process(linear()), 0, **options)


def test_learned_variances_and_loss_histories_need_a_table():
    for options in ({"variance": "learned"}, {"timestep_sampling": {"name": "loss_second_moment"}}):
        with pytest.raises(DuetError, match="flow_continuous is continuous"):
            Objective(Process(make_schedule("flow_continuous"), "v"), 0, **options)


def test_a_classifier_has_no_variance():
    spec = make_spec(
        "classifier",
        image_size=8,
        in_channels=1,
        channels=4,
        channel_multipliers=[1],
        blocks_per_resolution=1,
        norm_groups=2,
        num_classes=3,
    )
    with pytest.raises(DuetError, match=r"process.variance: fixed_small was given; a classifier has no reverse steps"):
        DiffusionModel(spec, {"name": "linear"}, "eps", variance="fixed_small")


def test_a_model_of_a_fixed_variance_samples_with_any_fixed_variance():
    model = DiffusionModel(SPEC, {"name": "linear"}, "eps", variance="fixed_small")
    assert DiffusionModel.from_dict(model.to_dict()).variance == "fixed_small"
    for variance in ("fixed_small", "fixed_large"):
        model.plan("ddpm", variance=variance, steps=5)
    # The second half of a wider output was never trained.
    wide = DiffusionModel(replace(SPEC, out_channels=2), {"name": "linear"}, "eps", variance="fixed_small")
    with pytest.raises(
        DuetError, match="learned_range was given, but the network was trained with fixed_small; use fixed"
    ):
        wide.plan("ddpm", variance="learned_range", steps=5)


def test_a_learned_variance_needs_output_channels():
    with pytest.raises(DuetError, match=r"process.variance: learned .* model.out_channels=2"):
        DiffusionModel(SPEC, {"name": "linear"}, "eps", variance="learned")
    assert (
        DiffusionModel(replace(SPEC, out_channels=2), {"name": "linear"}, "eps", variance="learned").variance
        == "learned"
    )

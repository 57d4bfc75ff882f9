"""Numbers that the code of the authors made, in float64, of formulas for data and networks that are written here.

Each expectation was made by running that code at the commit named with it, its float32 casts lifted and its draws
replaced: per image a loss, or the sum of a sample times `WEIGHTS`. Nothing here depends on formulas of this project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend.reference import losses as reference_losses
from diffusion_core.backend.reference import sampling
from diffusion_core.backend.reference.target import scored, target_values
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import TrainedNetwork

BATCH, SHAPE, NULL = 4, (4, 4, 2), 3
COUNT = np.arange(BATCH * 32)
IMAGES = np.sin(1.3 * COUNT + 0.2).reshape(BATCH, *SHAPE)
NOISE = 1.2 * np.cos(1.7 * COUNT**1.1).reshape(BATCH, *SHAPE)
WEIGHTS = np.sin(0.9 * COUNT + 1).reshape(BATCH, *SHAPE)
LABELS = np.array([0, 1, 2, 1])


def fresh(i: int) -> np.ndarray:
    """Return the noise of draw i."""
    return 1.1 * np.sin(2.3 * COUNT + 3.1 * i * i + 0.5).reshape(BATCH, *SHAPE)


def pixels(column: Any) -> np.ndarray:
    return np.asarray(column, np.float64)[:, None, None, None]


def network(
    x: Any, c_noise: Any, label: Any, shift: float = 0.0, second: Any = 0.0, variance: bool = False
) -> np.ndarray:
    """Return the output for x, or, for a network with a variance, twice as many channels."""
    level = pixels(np.sin(0.7 * c_noise + 0.4 * second + 0.5 * label + shift))
    wave = pixels(np.cos(0.3 * c_noise - second + 0.0 * label))
    output = np.tanh(0.8 * x + level) + 0.2 * np.roll(x, 1, axis=1) * wave
    return np.concatenate([output, np.tanh(0.5 * x - level)], axis=-1) if variance else output


_SPEC: dict[str, Any] = {
    "image_size": 4, "in_channels": 2, "out_channels": 2, "channels": 4, "channel_multipliers": (1,),
    "blocks_per_resolution": 1, "norm_groups": 2, "num_classes": 3,
}  # fmt: skip
SPEC, TWO_TIMES = UNetSpec(**_SPEC), UNetSpec(**_SPEC, second_time=True)
EDM = DiffusionModel(SPEC, {"name": "edm"}, "edm", time_scale=1000.0)
CONSISTENCY = DiffusionModel(SPEC, {"name": "edm"}, "edm", boundary=0.002, time_scale=1000.0)
SHIFTS = {"trained": 0.0, "average": 0.3, "teacher": 0.7}


def losses(model: DiffusionModel, draws: dict, options: dict, labels: Any = LABELS, gain: float = 1.0) -> tuple:
    """Return the loss of each image by a training method for these draws, and every value of its target."""
    of_teacher = "distillation" in options["name"]
    teacher = TrainedNetwork(EDM.process, EDM.program, {}, SPEC.image_shape) if of_teacher else None
    objective = Objective.for_model(model, 0, teacher, 1000, objective=options)
    batch = objective.target_batch(IMAGES, NOISE, labels, np.arange(BATCH), draws, labels == NULL, np.float64)

    def evaluate(step: Any, x: np.ndarray, c_noise: np.ndarray, second: np.ndarray) -> np.ndarray:
        label = np.full(BATCH, NULL) if step.null_label else batch.label
        return gain * network(x, c_noise, label, SHIFTS[step.network], second)

    known, target = target_values(objective.loss, batch, evaluate), objective.loss
    return batch.weight * scored(target.distance, known[target.prediction] - known[target.target]), known


def close(got: Any, wanted: list[float], bound: float = 1e-11) -> None:
    np.testing.assert_allclose(got, wanted, rtol=bound, atol=bound * np.max(np.abs(wanted)))


# openai/consistency_models e32b69e, cm/karras_diffusion.py: consistency_losses, progdist_losses

OF_OPENAI = {
    ("training", "mse"): [0.14595874617472449, 1.0363890679548249, 0.6373916609493577, 0.25392992638258927],
    ("training", "l1"): [0.661092696992375, 1.9629948934942518, 1.51775973306371, 113.02373075121653],
    ("distillation", "mse"): [0.14596866058609387, 1.0359402804674167, 0.6290874614995119, 0.03632661702898551],
    ("distillation", "l1"): [0.6611307269915617, 1.9626420848466142, 1.5075190237686904, 44.0110526163059],
    ("progressive", "mse"): [0.17600171487118993, 0.002229918148946176, 0.08101838567250583, 0.05956660690581068],
    ("progressive", "l1"): [0.7287879650007755, 0.09163816785380823, 0.5313651619853503, 58.32621281969304],
}


@pytest.mark.parametrize("case", OF_OPENAI)
def test_consistency_models_and_progressive_distillation(case):
    kind, distance = case
    index = np.array([0, 5, 20, 38])
    draws, options = {"index": index, "scales": np.full(BATCH, 40)}, {"weighting": "karras", "distance": distance}
    model, name = CONSISTENCY, f"consistency_{kind}"
    if kind == "progressive":
        model, name, draws = EDM, "progressive_distillation", {"index": 38 - index}
        options |= {"grid": "ratio", "steps": 39}
    close(losses(model, draws, {"name": name, **options})[0], OF_OPENAI[case])


# locuslab/ect 4311059, training/loss.py: ECMLoss

OF_ECT = {
    ("sigmoid", 0.0, 0): [5.57176783213846, 3.754873501908694, 3.338149959120568, 0.14814936896578235],
    ("sigmoid", 0.06, 2): [0.9486106381590179, 4.134025549760137, 2.4729115668593304, 0.038457717094205396],
    ("const", 0.0, 1): [5.539194833910892, 4.087547500457356, 2.2814878538857846, 0.10155383879784807],
}


@pytest.mark.parametrize("case", OF_ECT)
def test_easy_consistency_tuning(case):
    mapping, c, stage = case
    draws = {"t": np.exp(2.0 * np.array([-2.0, 0.3, 0.55, 1.4]) - 1.1), "stage": np.full(BATCH, stage)}
    model = DiffusionModel(SPEC, {"name": "edm"}, "edm")
    close(losses(model, draws, {"name": "easy_consistency_tuning", "mapping": mapping, "c": c})[0], OF_ECT[case])


# Gsunshine/meanflow d70cb55, meanflow.py: MeanFlow.forward; its first image has no class


def test_mean_flow_with_guidance_in_an_interval():
    model = DiffusionModel(TWO_TIMES, {"name": "flow_continuous"}, "flow")
    draws = {"t": np.array([0.9, 0.5, 0.75, 1.0]), "r": np.array([0.1, 0.5, 0.0, 0.3])}
    options = {"name": "mean_flow", "power": 0.75, "omega": 1.7, "kappa": 0.3, "interval": [0.3, 0.9]}
    got, _ = losses(model, draws, options, np.array([NULL, 1, 2, 1]))
    # The derivative along the flow is a difference quotient here.
    close(got, [1.7839589481637044, 3.4941583305858708, 2.798355992636886, 2.2245632219456484], 1e-9)


# kvfrans/shortcut-models 6010043, targets_shortcut.py: get_targets


@pytest.mark.parametrize(
    "scale, wanted",
    [
        (1.0, [0.5259731351677033, -4.9375566455571205, -0.053260009170248646, 3.169666583183769]),
        (2.5, [6.281877158617746, -4.9375566455571205, -0.053260009170248646, 3.169666583183769]),
    ],
)
def test_shortcut_targets(scale, wanted):
    model = DiffusionModel(TWO_TIMES, {"name": "flow_continuous"}, "velocity_to_data", time_scale=-1.0, time_offset=1.0)
    draws = {"d": np.array([3.0, 2.0, 1.0, 0.0]), "t": np.array([0.5, 0.0, 0.0, 0.0])}
    _, known = losses(model, draws, {"name": "shortcut", "steps": 16, "guidance_scale": scale}, gain=3.0)
    close((known["v"] * WEIGHTS).sum(axis=(1, 2, 3)), wanted)


# Samplers


@pytest.fixture
def sampled(monkeypatch) -> Callable[..., np.ndarray]:
    """Return a function of (model, plan, scale of c_noise, draws of the noise by row) that samples the network."""

    def run(model: DiffusionModel, plan: Any, scale: float, draws: dict[int, int], **more: Any) -> np.ndarray:
        def forward(program: Any, weights: Any, x: Any, c_noise: Any, label: Any, **rest: Any) -> np.ndarray:
            return network(x, scale * c_noise, label, variance=plan.learned is not None)

        monkeypatch.setattr(sampling, "forward", forward)
        start = NOISE * plan.start_scale
        z = {row: fresh(draw) for row, draw in draws.items()}
        sample = sampling.sample(
            model.program, {}, plan, start, LABELS, lambda i: z.get(i, np.zeros_like(start)), **more
        )
        return (sample * WEIGHTS).sum(axis=(1, 2, 3))

    return run


LINE, COSINE = {"name": "flow_continuous", "t_min": 1e-12}, {"name": "cosine_continuous", "log_snr_max": 100.0}
COSINE["log_snr_min"] = -100.0
VP = {"name": "vp_sde", "beta_min": 0.1, "beta_max": 20.0}
# By path, prediction, form of the diffusion, last step and method.
OF_SIT = {
    ("Linear", "velocity_to_data", "sigma", "mean", "euler"): [
        1.251800748483076,
        -0.46974053023869866,
        0.278576959833029,
        0.9841292777210264,
    ],
    ("GVP", "eps", "sbdm", "tweedie", "heun"): [
        -7267.1096439450575,
        265.79489737968174,
        -33.93445219379737,
        521.5492144930049,
    ],
    ("VP", "score", "decreasing", "euler", "euler"): [
        20.00345116625634,
        -77.5789546880593,
        -1.99459685337402,
        42.11832244199914,
    ],
}


@pytest.mark.parametrize("case", OF_SIT)
def test_the_sde_of_sit(case, sampled):
    """willisma/SiT 947f95b, transport/: Sampler.sample_sde with 6 steps and the norm 1.3."""
    path, prediction, form, last, method = case
    schedule = {"Linear": LINE, "GVP": COSINE, "VP": VP}[path]
    model = DiffusionModel(SPEC, schedule, prediction, time_scale=-1.0, time_offset=1.0)
    plan = model.plan("sit_sde", steps=6, method=method, form=form, norm=1.3, last_step=last)
    draws = {i: i for i in range(5)} if method == "euler" else {2 * i: i for i in range(5)}
    close(sampled(model, plan, 5.0, draws), OF_SIT[case], 1e-10)


@pytest.mark.parametrize(
    "name, scale, interval, wanted",
    [
        (
            "flow_heun",
            2.9,
            [1 / 3, 3.0],
            [1.1651947850793372, -0.15986139495517576, 0.3917523565652372, 0.2418553182373458],
        ),
        (
            "flow_euler",
            2.0,
            [0.0, np.inf],
            [2.4491152120651005, -0.7451774195458456, 0.17141161837697605, 1.7033710951803558],
        ),
    ],
)
def test_the_sampler_of_jit(name, scale, interval, wanted, sampled):
    """LTH14/JiT cbc743a, denoiser.py: generate with 8 steps, guided where 0.25 < t < 0.75, and everywhere."""
    model = DiffusionModel(SPEC, LINE, "x0", t_floor=0.05, time_scale=-1.0, time_offset=1.0)
    options = {"guidance_scale": scale, "interval": interval, "interval_ends": "open"}
    plan = model.plan(name, steps=8, spacing="trailing", clip=None, **options)
    close(sampled(model, plan, 5.0, {}), wanted, 1e-10)


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({"form": "sbdm"}, [0.3590288314043377, 64.07200078518596, 17.524558264567617, 21.735365729898927]),
        ({"norm": 0.0}, [-1.843364979845859, 9.075234804662799, 21.020546669785723, -25.973987038547488]),
    ],
)
def test_the_samplers_of_u_vit(options, wanted, sampled):
    """baofff/U-ViT ce55170, sde.py: euler_maruyama of ReverseSDE and of ODE with 6 steps."""
    model = DiffusionModel(SPEC, VP, "eps", time_scale=999.0)
    plan = model.plan("sit_sde", steps=6, last_step="mean", last_step_size=0.001, **options)
    close(sampled(model, plan, 0.01, {i: i for i in range(5)}), wanted)


DIT = DiffusionModel(
    UNetSpec(**(_SPEC | {"out_channels": 4})), {"name": "linear", "T": 1000}, "eps", variance="learned_range"
)


def test_the_loss_of_dit():
    """facebookresearch/DiT ed81ce2, diffusion/gaussian_diffusion.py: training_losses, also at t = 0."""
    objective = Objective.for_model(DIT, 0, bound_cdf="tanh")
    t = np.array([0, 1, 300, 999])
    batch = objective.evaluation_batch(IMAGES, np.zeros(4, int), np.arange(4), t, np.float64, noise=NOISE)
    x, target = reference_losses.noised(batch)
    output = network(x, 0.01 * t, LABELS, variance=True)
    residual = output[..., :2] - target
    bound = reference_losses.variational_bound(batch, residual, residual, output[..., 2:])
    close(
        (residual**2).mean(axis=(1, 2, 3)) + bound,
        [3.401936948067352, 1.6307185933552315, 0.2603891959104195, 0.6587836984119332],
    )


def test_the_sampler_of_dit(sampled):
    """The same, p_sample_loop with 6 steps, its learned variance, and guidance of the first channel by 2.5."""
    options = {"variance": "learned_range", "guidance_scale": 2.5, "guidance_channels": 1}
    plan = DIT.plan("ddpm", steps=[6], clip=None, **options)
    close(
        sampled(DIT, plan, 0.01, {i: i for i in range(6)}),
        [-40.52216030058584, 249.1272641419458, 45.18919010074626, -89.94324186039279],
    )


def test_the_sampler_of_edm2_with_churn_and_autoguidance(sampled):
    """NVlabs/edm2 4bf8162, generate_images.py: edm_sampler with 5 steps."""
    model = DiffusionModel(SPEC, {"name": "edm"}, "edm")
    options = {"s_churn": 3.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003, "guidance_scale": 1.8}
    plan = model.plan("heun", steps=5, clip=None, **options)
    draws = {int(row): i for i, row in enumerate(np.flatnonzero(plan.is_noisy))}
    got = sampled(model, plan, 1.0, draws, guide=lambda x, c_noise, label: network(x, c_noise, label, 0.3))
    close(got, [-0.4099685307649419, -0.9777453341267366, -0.7007170622069407, 0.7790269807582171])

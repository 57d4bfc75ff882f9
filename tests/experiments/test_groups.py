"""Every configuration file builds what its name says, and options of nested names reach the core."""

from __future__ import annotations

from pathlib import Path

import commands
import numpy as np
import pytest
from omegaconf import OmegaConf

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, linear, make_schedule, with_log_snr_shift
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.optim import (
    Ema,
    Fixed,
    HalfLife,
    InverseGamma,
    Power,
    Warmup,
    make_optimiser,
    optimiser_options,
)
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.sampling import SamplerPlan
from experiments.config import build
from experiments.config.convert import plain
from experiments.sampling.plans import choose_sampler, describe_sampler, make_sampler_plan
from experiments.training.setup import TrainingSetup

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def training(*overrides: str) -> TrainingSetup:
    """Return what a configuration of a training describes."""
    return build.training_setup(commands.composed("train", *overrides))


def composed(*words: str) -> tuple[Process, SamplerPlan]:
    """Return the process and the plan of a configuration."""
    experiment = training(*words)
    return experiment.model.process, experiment.plan


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("name", names("process"))
def test_the_name_of_every_process_starts_with_its_prediction(name: str) -> None:
    sampler = "next_level" if name.startswith("next_level") else "ddim"
    process, plan = composed(
        f"process={name}", f"sampler={sampler}", *(["sampler.steps=16"] if sampler == "ddim" else []),
        *(["model.out_channels=2"] if name.startswith(("eps_cosine", "dit")) else []),
    )  # fmt: skip
    # Named after the network of their paper, or after what they are trained for.
    networks = (
        "dit", "sit", "jit", "uvit", "consistency", "easy_consistency", "mean_flow", "shortcut", "rectified_flow",
    )  # fmt: skip
    assert name.startswith((process.prediction, *networks)) and plan.rows == 16


def test_options_of_a_schedule_a_weighting_and_timestep_sampling_need_no_plus_sign() -> None:
    words = ("process.schedule.respacing=[4,3,3]", "process.weighting.name=min_snr", "process.weighting.gamma=3.0")
    more = ("process.timestep_sampling.name=log_normal", "process.timestep_sampling.std=0.5", "sampler.steps=null")
    process, plan = composed("process=eps_linear", *words, *more)
    assert process.schedule.steps == plan.rows == 10
    with pytest.raises(DuetError, match=r"'betta' was given; .* Did you mean 'beta"):
        composed("process=eps_linear", "process.schedule.betta=0.1")


@pytest.mark.parametrize("name", names("sampler"))
def test_every_sampler_makes_a_plan(name: str) -> None:
    own = {"next_level": "next_level_16", "mean_flow": "mean_flow", "shortcut": "shortcut"}
    process = "sit" if name.startswith(("sit_", "rectified")) else own.get(name, "eps_linear")
    if name == "ddim_inversion":  # it does not start from noise, so a training cannot sample with it
        with pytest.raises(DuetError, match="ddim_inversion was given, which leads images up to noise"):
            composed(f"process={process}", f"sampler={name}")
        options = OmegaConf.to_container(OmegaConf.load(CONFIGS / "sampler" / f"{name}.yaml"))
        plan = training(f"process={process}").model.plan(options.pop("name"), **options)
    else:
        steps = ["sampler.steps=2"] if name in ("consistency", "mean_flow", "shortcut") else []
        two = [f"objective={name}", "model.second_time=true"] if name in ("mean_flow", "shortcut") else []
        _, plan = composed(f"process={process}", f"sampler={name}", *steps, *two)
    assert plan.rows > 1 and (plan.alpha[0] > plan.alpha[-1]) == (name == "ddim_inversion")


AVERAGES = {
    "fixed": (Fixed(0.999),), "warmup": (Warmup(0.999),), "half_life": (HalfLife(500_000, 0.05),),
    "inverse_gamma": (InverseGamma(1.0, 0.6667),), "power": (Power(0.1),), "post_hoc": (Power(0.05), Power(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", names("ema"))
def test_every_ema_file_builds_the_profile_of_its_name(name: str) -> None:
    experiment = training(f"ema={name}")
    assert experiment.ema == Ema(AVERAGES[name], 64_000 if name == "post_hoc" else 0)


def test_ema_options_are_taken_from_the_command_line() -> None:
    words = ("ema=power", "ema.sigma_rel=0.2", "ema.extra=[{name: fixed, decay: 0.5}]", "ema.snapshot_images=128")
    ema = training(*words, "sample.weights=ema1").ema
    assert ema == Ema((Power(0.2), Fixed(0.5)), 128)
    assert training().ema == Ema((Warmup(0.999),))


def test_configured_schedule_transformations_are_those_of_the_core() -> None:
    process, _ = composed("process=v_linear_zero_snr")
    assert process.schedule.alpha[-1] == 0 and process.schedule.alpha[0] == linear().alpha[0]
    process, _ = composed("process=v_cosine_shifted")
    expected = with_log_snr_shift(cosine(), 2 * np.log(32 / 8))
    np.testing.assert_allclose(process.schedule.alpha, expected.alpha, rtol=1e-14)


def test_edm_is_available_as_a_configuration() -> None:
    process, plan = composed("experiment=edm_digits")
    assert (process.prediction, process.sigma_data, process.schedule.span) == ("edm", 0.75, (0.002, 80.0))
    assert plan.start_scale == pytest.approx(80) and plan.sigma[-2] == pytest.approx(0.002)
    np.testing.assert_allclose(np.diff(plan.sigma[:-1] ** (1 / 7), 2), 0, atol=1e-9)


def test_respaced_samplers_use_the_configured_timesteps() -> None:
    _, plan = composed("sampler=ddim_strided")
    assert plan.t.tolist() == list(range(960, -1, -40))
    _, plan = composed("sampler=ddpm_sections")
    assert np.histogram(plan.t, [0, 250, 500, 750, 1000])[0].tolist() == [40, 20, 20, 20]


def test_nested_options_are_taken_from_the_command_line() -> None:
    process, plan = composed(
        "process=v_cosine", "+process.schedule.zero_terminal_snr=true", "sampler.steps=[3,2]", "sampler.spacing=null"
    )
    assert plan.t.tolist() == [999, 500, 499, 250, 0]
    expected = make_schedule("cosine", zero_terminal_snr=True)
    np.testing.assert_array_equal(process.schedule.alpha, expected.alpha)
    _, plan = composed("sampler.steps=null", "sampler.spacing=[999,400,7]")
    assert plan.t.tolist() == [999, 400, 7]


def test_levels_and_the_end_are_taken_from_the_command_line() -> None:
    for name in ("dpm_solver", "heun", "ddim"):
        _, plan = composed(f"sampler={name}", "sampler.sigmas=[50,5,0.5]", "sampler.end=0.1")
        ratios = plan.sigma / plan.alpha
        np.testing.assert_allclose(ratios[:: 2 if name == "heun" else 1], [50, 5, 0.5, 0.1], rtol=1e-9)
    _, plan = composed("sampler=dpm_fast")
    assert plan.rows == 20 and plan.sigma[-1] > 0
    _, plan = composed("sampler=dpm_solver", "sampler.end=sigma_min", "sampler.sde=true", "sampler.eta=0.5")
    assert plan.is_noisy.all() and plan.sigma[-1] > 0
    _, plan = composed("sampler=heun", "sampler.variable={name:vp,beta_max:10}", "sampler.spacing=vp")
    assert plan.preserves == "nothing"


def test_a_list_of_levels_is_described_without_the_steps_that_it_replaces() -> None:
    described = describe_sampler({"name": "ddim", "steps": 50, "spacing": "leading", "sigmas": [9.0, 1.0], "end": None})
    assert described == "sampler: ddim, sigmas [9.0, 1.0]"
    assert "sigmas [9. 1.]" in describe_sampler({"name": "ddim", "sigmas": np.array([9.0, 1.0])})


KARRAS = {"name": "heun", "steps": 18, "spacing": {"name": "karras"}, "guidance_scale": 1.5, "rescale": 0.0}


@pytest.mark.parametrize("words, own, wanted, said", [
    ([], KARRAS, KARRAS, "heun, steps 18, spacing {'name': 'karras'}, guidance_scale 1.5 (from the run)"),
    (["sampler.steps=9"], KARRAS, KARRAS | {"steps": 9}, "(from the run; overridden: steps)"),
    (["sampler.interval=[0.2,3]"], KARRAS, KARRAS | {"interval": [0.2, 3]}, "interval [0.2, 3] (from the run; over"),
    (["sampler=next_level"], KARRAS, {"name": "next_level", "clip": None, "guidance_scale": 1.0},
     "clip null (as given; the run samples with sampler.guidance_scale=1.5)"),
    (["sampler=next_level", "sampler.guidance_scale=1.5", "sampler.rescale=1"], KARRAS,
     {"name": "next_level", "clip": None, "guidance_scale": 1.5, "rescale": 1}, "rescale 1 (as given)"),
    (["sampler.eta=0.5"], None,
     {"name": "ddim", "steps": 50, "eta": 0.5, "spacing": "leading", "clip": 1.0, "use_clipped_model_output": True,
      "guidance_scale": 1.0},
     "clip 1.0, use_clipped_model_output true (a default, as the checkpoint names none; overridden: eta)"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["sample", "edit"])
def test_a_checkpoint_is_sampled_with_the_sampler_of_its_run_unless_another_is_named(
    command, words, own, wanted, said
) -> None:
    cfg = commands.composed(command, *words)
    found = Checkpoint(
        0, DiffusionModel(UNetSpec(8), {"name": "linear"}, "eps"), 0, TrainerState.fresh({}), {"sampler": own}
    )
    sampler, line = choose_sampler(plain(cfg.sampler), found)
    assert sampler == wanted and line.startswith(f"sampler: {wanted['name']}") and said in line


def test_levels_that_are_given_replace_those_of_the_run() -> None:
    own = {"name": "heun", "steps": 18, "spacing": "karras", "sigmas": [9.0, 1.0], "end": 0.5}
    model = DiffusionModel(UNetSpec(8), {"name": "linear"}, "eps")
    found = Checkpoint(0, model, 0, TrainerState.fresh({}), {"sampler": own})
    assert choose_sampler({}, found)[0]["sigmas"] == [9.0, 1.0]
    for options in ({"steps": 9}, {"spacing": "linspace"}):
        chosen, _ = choose_sampler(options, found)
        assert chosen == {key: value for key, value in own.items() if key != "sigmas"} | options
    assert choose_sampler({"sigmas": [5.0, 2.0]}, found)[0] == own | {"sigmas": [5.0, 2.0]}
    with pytest.raises(DuetError, match=r"sampler.steps: 9 was given with sampler.sigmas, .* leave out one of them"):
        choose_sampler({"sigmas": [5.0, 2.0], "steps": 9}, found)


def test_imported_weights_in_continuous_time_are_sampled_on_the_grid_of_edm() -> None:
    found = Checkpoint(0, DiffusionModel(UNetSpec(8), {"name": "edm"}, "edm"), 0, TrainerState.fresh({}), {})
    options, line = choose_sampler({}, found)
    assert (options["name"], options["spacing"]) == ("heun", "karras") and "a default" in line


@pytest.mark.parametrize(("T", "steps"), [(16, 16), (1000, 50)])
def test_the_default_sampler_has_at_most_the_steps_of_the_schedule(T: int, steps: int) -> None:
    model = DiffusionModel(UNetSpec(8), {"name": "cosine", "T": T}, "v")
    chosen, _ = choose_sampler({}, Checkpoint(0, model, 0, TrainerState.fresh({}), {}))
    assert (chosen["name"], chosen["steps"]) == ("ddim", steps)
    assert make_sampler_plan(model, chosen).rows == steps


@pytest.mark.parametrize("name", names("optimiser"))
def test_every_optimiser_has_a_file_with_all_of_its_options(name: str) -> None:
    made = training(f"optimiser={name}").optimiser
    options = OmegaConf.to_container(OmegaConf.load(CONFIGS / "optimiser" / f"{name}.yaml"))
    assert options["name"] == ("adam" if name == "adamw" else name)
    assert options == optimiser_options(made)
    default = optimiser_options(make_optimiser(options["name"]))
    assert options == (default | {"weight_decay": 0.01} if name == "adamw" else default)


def test_a_configuration_of_earlier_versions_names_no_optimiser() -> None:
    cfg = commands.composed("train", "optimiser.beta2=0.99")
    del cfg.optimiser.name
    assert build.training_setup(cfg).optimiser == make_optimiser("adam", beta2=0.99)


def test_an_optimiser_chosen_by_name_alone_says_how_to_choose_its_options() -> None:
    with pytest.raises(DuetError, match=r"optimiser\.beta1: it was given with optimiser.name=sgd.* by optimiser=sgd"):
        training("optimiser.name=sgd")

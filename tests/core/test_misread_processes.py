"""Plausible numbers and texts in the wrong place of a process: each is used as it is, or refused by its name."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import CONTINUOUS, SCHEDULES, linear, make_schedule, transformed
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import make_spec
from diffusion_core.sampling import make_plan
from diffusion_core.training.objective import Objective

KNOWN = SCHEDULES | CONTINUOUS
SPEC = make_spec("plain", image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
NUMBERS = [0, -1, -0.5, 1.5, 2.0, 10**9, 1e300, 1e-300, math.nan, math.inf, -math.inf]
OTHERS = ["5", "", True, None, [1, 2], {}]


def refusal(make) -> str | None:
    """Return the message of a DuetError, or None; any other exception, or a warning of NumPy, is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            make()
        except DuetError as error:
            return str(error)
    return None


@pytest.mark.parametrize("name", KNOWN)
def test_every_option_of_a_schedule_is_used_or_refused(name):
    own = [option for option in inspect.signature(KNOWN[name]).parameters if option != "T"]
    for option in [*own, *list(inspect.signature(transformed).parameters)[1:]]:
        for value in [*NUMBERS, *OTHERS]:
            message = refusal(lambda option=option, value=value: make_schedule(name, **{option: value}))
            if isinstance(value, float) and not math.isfinite(value) and option in own:
                assert message is not None and (option in message or "t from" in message), (option, value, message)
            if not isinstance(value, (int, float)) and value is not None and option in own:
                assert message is not None and f"schedule.{option}" in message, (option, value, message)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"beta_start": 0.02, "beta_end": 1e-4}, "beta_start 0.02 and beta_end 0.0001 .* first .* smaller"),
        ("linear", {"beta_start": 0.05}, "beta_start 0.05 and beta_end 0.02 were given; the first must be the smaller"),
        ("linear", {"beta_end": 20}, r"schedule linear: beta_end 20 was given; every beta must be in \(0, 1\)"),
        ("cosine", {"s": -0.008}, "schedule cosine: s -0.008 was given; it must be at least 0 and at most 1"),
        ("cosine", {"s": 8}, "schedule cosine: s 8 was given"),
        ("cosine", {"max_beta": 1.5}, "schedule cosine: max_beta 1.5 was given; every beta must be in"),
        ("laplace", {"mu": math.inf}, "schedule laplace: mu inf was given; it must be finite"),
        ("laplace", {"max_beta": 2.0}, "schedule laplace: max_beta 2 was given"),
        ("sigmoid", {"start": 3.0, "end": -3.0}, "start 3 and end -3 were given; the first must be the smaller"),
        ("sigmoid", {"tau": -1.0}, "schedule sigmoid: tau -1 was given; it must be positive"),
        ("linear", {"T": 1000.0}, "schedule.T: 1000.0 was given; it must be a whole number"),
        ("linear", {"T": "1000"}, "schedule.T: '1000' was given; it must be a whole number"),
        ("linear", {"t": 1000}, "option of schedule 'linear': 't' was given"),
        ("vp_sde", {"T": 1000}, "option of schedule 'vp_sde': 'T' was given"),
        ("squaredcos_cap_v2", {}, "schedule.name: 'squaredcos_cap_v2' was given; .*Did you mean 'cosine'"),
        ("linear", {"num_train_timesteps": 10}, "'num_train_timesteps' was given; .*Did you mean 'T'"),
        ("linear", {"timestep_respacing": 10}, "'timestep_respacing' was given; .*Did you mean 'respacing'"),
        ("GVP", {}, "schedule.name: 'GVP' was given; .*Did you mean 'cosine_continuous'"),
        ("edm", {"zero_terminal_snr": True}, "schedule.zero_terminal_snr: true .* for edm, but its time is continuous"),
        ("betas", {"betas": [0.1, 0.2, 0.3], "T": 1000}, "schedule.T: 1000 was given with 3 betas"),
        ("betas", {"betas": [0.1, math.nan]}, "every beta must be in"),
        ("betas", {"betas": ["0.1", "x"]}, "must be numbers"),
        ("betas", {"betas": 0.1}, "schedule.betas: 0.1 was given; it must be a list of numbers"),
        ("betas", {"betas": "0.1,0.2"}, "schedule.betas: '0.1,0.2' was given; it must be a list"),
    ],
)  # fmt: skip
def test_misread_schedules_are_refused_by_name(name, options, message):
    with pytest.raises(DuetError, match=message):
        make_schedule(name, **options)


@pytest.mark.parametrize("option", ["time_scale", "sigma_data"])
@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, math.inf, "0.5", None, True, [0.5]])
def test_factors_of_a_process_are_positive_numbers(option, value):
    if (option, value) == ("time_scale", -1):  # a time that runs from noise to data
        return
    makers = (lambda: Process(linear(), "eps", **{option: value}), lambda: model(**{option: value}))
    for make in makers:
        with pytest.raises(DuetError, match=f"process.{option}: .* was given; it must be a"):
            make()


@pytest.mark.parametrize("value", ["linear", None, {"name": "linear"}])
def test_a_process_takes_a_schedule(value):
    with pytest.raises(DuetError, match=r"process.schedule: .* was given; make it first, as in make_schedule"):
        Process(value)


def model(**options) -> DiffusionModel:
    return DiffusionModel(SPEC, **({"schedule": {"name": "linear", "T": 10}, "prediction": "eps"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_range": (1, -1)}, r"process.value_range: \(1, -1\) was given; it must be two numbers, low and high"),
        ({"value_range": (0, 0)}, "process.value_range"),
        ({"value_range": ("0", "1")}, "process.value_range"),
        ({"value_range": (0, 127.5, 255)}, "process.value_range"),
        ({"value_range": 1}, "process.value_range: 1 was given"),
        ({"value_range": (math.nan, 1)}, "process.value_range"),
        ({"schedule": {"T": 10}}, "process.schedule: .* it must be a name with options, for example .name: linear"),
        ({"schedule": None}, "process.schedule: None was given"),
        ({"schedule": {"name": "linear", "betta": 1}}, "'betta' was given.*Did you mean 'beta"),
        ({"uncertainty": "false"}, "process.uncertainty: 'false' was given; it must be true or false"),
        ({"prediction": ["eps"]}, r"process.prediction: \['eps'\] was given; it must be text"),
        ({"variance": None}, "process.variance: None was given; it must be text"),
    ],
)  # fmt: skip
def test_misread_models_are_refused_by_name(options, message):
    with pytest.raises(DuetError, match=message):
        model(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_t": 1.0}, "process.first_t: 1.0 was given; it must be a whole number"),
        ({"first_t": -1}, "process.first_t: -1 was given"),
        ({"label_dropout": "0.1"}, "process.label_dropout: '0.1' was given; it must be a number"),
        ({"offset_noise": None}, "process.offset_noise: None was given; it must be a number"),
        ({"weighting": 5}, "process.weighting: 5 was given; it must be a name with options"),
        ({"weighting": "snrr"}, "process.weighting.name: 'snrr' was given.*Did you mean 'snr'"),
        ({"timestep_sampling": None}, "process.timestep_sampling: None was given"),
        ({"timestep_sampling": {"name": "log_normal", "std": 0.0}}, "process.timestep_sampling.std: 0.0 was given"),
    ],
)  # fmt: skip
def test_misread_objectives_are_refused_by_name(options, message):
    with pytest.raises(DuetError, match=message):
        Objective.for_model(model(), **options)


def test_a_name_alone_has_the_default_options():
    objective = Objective.for_model(model(), weighting="min_snr", timestep_sampling="log_normal")
    assert objective.options["weighting"] == {"name": "min_snr"}
    assert objective.options["timestep_sampling"] == {"name": "log_normal"}


@pytest.mark.parametrize(
    ("theirs", "own"),
    [("sample_max_value", "threshold_max"), ("clip_sample_range", "clip"), ("num_inference_steps", "steps")],
)
def test_options_of_other_samplers_are_named(theirs, own):
    with pytest.raises(DuetError, match=f"'{theirs}' was given; .*Did you mean '{own}'"):
        make_plan(Process(linear(), "eps"), "ddim", **{theirs: 1})


@pytest.mark.parametrize("option", ["threshold", "threshold_max", "rescale", "classifier", "clip"])
@pytest.mark.parametrize("value", ["0.5", True, math.nan])
def test_options_that_all_samplers_share_are_numbers(option, value):
    options = {"threshold": 0.9} if option == "threshold_max" else {}
    with pytest.raises(DuetError, match=f"{option}"):
        make_plan(Process(linear(), "eps"), "ddim", steps=5, **options, **{option: value})


def test_numbers_of_numpy_are_numbers():
    assert Process(linear(), "edm", sigma_data=np.float32(0.5)).sigma_data == 0.5
    make_schedule("linear", T=np.int64(10), beta_end=np.float64(0.3))

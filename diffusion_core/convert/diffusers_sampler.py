"""The scheduler of a diffusers pipeline as a sampler of Duet.

A scheduler's file names a method and how its timesteps are spaced; the number of steps is an argument of the pipeline.
`read_sampler` returns the name and the options of the same sampler, and what of the file has no equal here, as text.
The methods themselves agree row by row (tests/backend/test_diffusers_solvers.py, test_diffusers_steps.py).

References:
    Diffusers: State-of-the-art diffusion models (von Platen et al., 2022), https://github.com/huggingface/diffusers
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["read_sampler"]

_STEPS = 50  # the default of pipelines
_GRIDS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
_VARIANCES = ("fixed_small", "fixed_large", "learned_range")


def read_sampler(config: Mapping[str, Any], max_ratio: float = math.inf) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the sampler of a scheduler's configuration.

    Args:
        config: the content of ``scheduler_config.json``.
        max_ratio: sigma/alpha of the noisiest timestep, where the grids of diffusers begin.

    Returns:
        The name and the options of the sampler, or None if Duet has no such method; and a list of what it does
        otherwise than the scheduler.

    Example:
        >>> read_sampler({"_class_name": "DDIMScheduler", "clip_sample": False})
        ({'name': 'ddim', 'steps': 50, 'use_clipped_model_output': False, 'spacing': 'leading', 'clip': None}, [])
    """
    kind = str(config.get("_class_name", ""))
    method = _METHODS.get(kind)
    if method is None:
        return None, [f"Duet has no sampler for {kind}"]
    options, other = method(config)
    sampler = {"steps": _STEPS} | options
    if "spacing" not in sampler:
        sampler["spacing"] = _spacing(kind, config, max_ratio, other)
    if "clip" not in sampler:
        sampler |= _clip(config, kind in _CLIPPED)
    return {"name": sampler.pop("name"), **sampler}, other


def _spacing(kind: str, config: Mapping[str, Any], max_ratio: float, other: list[str]) -> str | dict[str, Any]:
    grids = [grid for key, grid in _GRIDS.items() if config.get(key)]
    if grids:
        return {"name": grids[0], "sigma_max": max_ratio} if max_ratio < math.inf else grids[0]
    spacing = config.get("timestep_spacing", "leading" if kind in _LEADING else "linspace")
    if spacing == "leading" and config.get("steps_offset", 0):
        other.append(f"steps_offset {config['steps_offset']} shifts its timesteps")
    return "half_open" if spacing == "linspace" and kind in _HALF_OPEN else spacing


def _clip(config: Mapping[str, Any], is_default: bool) -> dict[str, Any]:
    """Return the bound of the estimates; with its usual upper limit of 1, dynamic thresholding clips to 1."""
    if not config.get("thresholding"):
        return {"clip": config.get("clip_sample_range", 1.0) if config.get("clip_sample", is_default) else None}
    limit, quantile = config.get("sample_max_value", 1.0), config.get("dynamic_thresholding_ratio", 0.995)
    return {"clip": 1.0} | ({} if limit == 1.0 else {"threshold": quantile, "threshold_max": limit})


def _ddpm(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    variance = config.get("variance_type", "fixed_small")
    other = [] if variance in _VARIANCES else [f"its variance {variance}"]
    # A DDPMPipeline takes every timestep by default.
    return {"name": "ddpm", "steps": None, "variance": variance if not other else "fixed_small"}, other


def _ddim(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    # It keeps the eps of the network where it clips the estimate.
    return {"name": "ddim", "use_clipped_model_output": False}, _last_step(config, True)


def _pndm(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    name = "plms" if config.get("skip_prk_steps") else "pndm"
    return {"name": name}, _last_step(config, False)


def _last_step(config: Mapping[str, Any], default: bool) -> list[str]:
    """Return what differs in the step from t = 0, which these two leave out without `set_alpha_to_one`."""
    is_clean = config.get("set_alpha_to_one", default)
    return [] if is_clean else ["its last step stays at t = 0; here it leads to clean data"]


def _end(is_clean: bool) -> dict[str, Any]:
    """Return where the last step leads: to clean data, or to the least noisy level of the schedule."""
    return {} if is_clean else {"end": "sigma_min"}


def _dpm_solver(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    algorithm = config.get("algorithm_type", "dpmsolver++")
    options = {
        "name": "dpm_solver",
        "order": config.get("solver_order", 2),
        "sde": algorithm.startswith("sde-"),
        "solver_type": config.get("solver_type", "midpoint"),
        "predict": "x0" if algorithm.endswith("++") else "eps",
    }
    options |= _end(config.get("final_sigmas_type", "zero") == "zero")
    other = ["euler_at_final is not set here"] if config.get("euler_at_final") else []
    if options["sde"] and options["order"] == 3:
        other.append("its third-order SDE has another sign in one weight")
    return options, other


def _singlestep(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    options, other = _dpm_solver(config)
    return options | {"name": "dpm_solver_singlestep", "between": "visited"}, other


def _deis(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    return {"name": "deis", "order": config.get("solver_order", 2)} | _end(False), []


def _unipc(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    uncorrected = sorted(config.get("disable_corrector") or [])
    first = len(uncorrected)
    options = {
        "name": "unipc",
        "order": config.get("solver_order", 2),
        "solver_type": config.get("solver_type", "bh2"),
        "predict": "x0" if config.get("predict_x0", True) else "eps",
        "correct_from": first + 1,
    }
    options |= _end(config.get("final_sigmas_type", "zero") == "zero")
    other = []
    if uncorrected != list(range(first)):
        other.append(f"disable_corrector {uncorrected} names steps that are not the first ones")
        options["correct_from"] = 1
    return options, other


def _sa_solver(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    options = {
        "name": "sa_solver",
        "predictor": config.get("predictor_order", 2),
        "corrector": config.get("corrector_order", 2),
        "predict": "x0" if config.get("algorithm_type", "data_prediction") == "data_prediction" else "eps",
    }
    return options, ["its noise is on between t = 200 and 800 alone (sampler.noisy)"]


def _edm_grid(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the grid of EDM's schedulers from sigma_max to sigma_min."""
    name, ends = config.get("sigma_schedule", "karras"), ("sigma_min", "sigma_max")
    return {"name": name, **{key: config[key] for key in (*ends, *(["rho"] * (name == "karras"))) if key in config}}


def _edm_euler(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    end = _end(config.get("final_sigmas_type", "zero") == "zero")
    return {"name": "euler", "spacing": _edm_grid(config), "clip": None} | end, []


def _edm_dpm_solver(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    options, other = _dpm_solver(config)
    return options | {"spacing": _edm_grid(config)}, other


def _named(name: str) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]:
    def read(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        is_grid = any(config.get(key) for key in _GRIDS)
        is_rounded = config.get("timestep_spacing", "linspace") == "linspace" and not is_grid
        return {"name": name}, ["its timesteps are rounded to whole numbers here"] if is_rounded else []

    return read


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]] = {
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "PNDMScheduler": _pndm,
    "DEISMultistepScheduler": _deis,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "DPMSolverSinglestepScheduler": _singlestep,
    "SASolverScheduler": _sa_solver,
    "UniPCMultistepScheduler": _unipc,
    "EulerDiscreteScheduler": _named("euler"),
    "EulerAncestralDiscreteScheduler": _named("euler_ancestral"),
    "LMSDiscreteScheduler": _named("lms"),
    "HeunDiscreteScheduler": _named("heun"),
    "DPMSolverSDEScheduler": _named("dpmpp_sde"),
    "EDMEulerScheduler": _edm_euler,
    "EDMDPMSolverMultistepScheduler": _edm_dpm_solver,
    "KDPM2DiscreteScheduler": _named("dpm2"),
    "KDPM2AncestralDiscreteScheduler": _named("dpm2_ancestral"),
}
# Schedulers that space their timesteps so unless their file says otherwise, and those that clip.
_LEADING = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler")
# Those whose linspace has no timestep 0, where their last step begins.
_HALF_OPEN = (
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
_CLIPPED = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")

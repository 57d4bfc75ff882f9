"""The process of a scheduler of diffusers.

Schedulers that add noise as ``x_t = alpha_t x_0 + sigma_t eps`` at integer t differ in how they sample, which does not
matter here, and in their default betas. `timestep_spacing`, `steps_offset` and the options of solvers do not change the
process either.

    beta_schedule linear, scaled_linear, sigmoid    Duet's linear, scaled_linear, sigmoid_betas
    squaredcos_cap_v2, laplace, exp                 cosine, laplace, exponential
    trained_betas                                   betas
    rescale_betas_zero_snr                          zero_terminal_snr
    EDM...Scheduler                                 the process of EDM
    FlowMatch...DiscreteScheduler                   the straight line x_t = (1 - t) x_0 + t eps and its velocity
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice

__all__ = ["FIXED", "PREDICTIONS", "read_process"]

_DDPM, _LATENT = ("linear", 1e-4, 0.02), ("linear", 0.00085, 0.012)
# The default beta_schedule, first and last beta.
_SCHEDULERS: dict[str, tuple[str, float, float]] = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDPM,
    "DDIMParallelScheduler": _DDPM,
    "DDIMInverseScheduler": _DDPM,
    "PNDMScheduler": _DDPM,
    "RePaintScheduler": _DDPM,
    "DEISMultistepScheduler": _DDPM,
    "DPMSolverMultistepScheduler": _DDPM,
    "DPMSolverMultistepInverseScheduler": _DDPM,
    "DPMSolverSinglestepScheduler": _DDPM,
    "SASolverScheduler": _DDPM,
    "UniPCMultistepScheduler": _DDPM,
    "EulerDiscreteScheduler": _DDPM,
    "EulerAncestralDiscreteScheduler": _DDPM,
    "LMSDiscreteScheduler": _DDPM,
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "DPMSolverSDEScheduler": _LATENT,
    "LCMScheduler": ("scaled_linear", 0.00085, 0.012),
    "TCDScheduler": ("scaled_linear", 0.00085, 0.012),
}
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
# Entries that change the process of a scheduler unless they have one of these values.
_SAME_PROCESS: dict[str, tuple[Any, ...]] = {
    "use_flow_sigmas": (False, None),
    "timestep_type": ("discrete",),
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# By their names in diffusers: Duet's name, and whether it reads the first and the last beta.
_BETAS = {
    "linear": ("linear", True),
    "scaled_linear": ("scaled_linear", True),
    "sigmoid": ("sigmoid_betas", True),
    "squaredcos_cap_v2": ("cosine", False),
    "laplace": ("laplace", False),
    "exp": ("exponential", False),
}
# The variances that DDPMScheduler and Duet share, apart from learned_range. Its "learned" is not a logarithm, unlike
# Duet's.
FIXED = ("fixed_small", "fixed_large")
_ADVICE = "set a process, as in process=eps_linear"


def read_process(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the process of a scheduler's configuration.

    Raises:
        DuetError: names the first entry that Duet's processes cannot express.
    """
    kind = config.get("_class_name")
    if kind in _EDM:
        return _edm(config, source)
    if kind in _FLOW:
        return _flow(config, source)
    if kind not in _SCHEDULERS:
        raise DuetError(f"{source}: _class_name: {kind!r} was given; Duet does not know its process; {_ADVICE}")
    for name, same in _SAME_PROCESS.items():
        if config.get(name, same[0]) not in same:
            raise DuetError(f"{source}: {name}: Duet has no such process; {_ADVICE}")
    prediction = config.get("prediction_type", "epsilon")
    check_choice(f"{source}: prediction_type", prediction, PREDICTIONS)
    schedule = _schedule(config, _SCHEDULERS[kind], source)
    if config.get("rescale_betas_zero_snr"):
        schedule["zero_terminal_snr"] = True
        if prediction == "epsilon":
            raise DuetError(
                f"{source}: rescale_betas_zero_snr: true was given with prediction_type epsilon, which is not defined "
                f"at the last level, where no signal is left; {_ADVICE}"
            )
    return {"schedule": schedule, "prediction": PREDICTIONS[prediction]}


def _schedule(config: Mapping[str, Any], defaults: tuple[str, float, float], source: str) -> dict[str, Any]:
    betas = config.get("trained_betas")
    if betas is not None:
        if not isinstance(betas, list) or not all(type(beta) in (int, float) for beta in betas):
            raise DuetError(f"{source}: trained_betas: {betas!r} was given; it must be a list of numbers")
        return {"name": "betas", "betas": [float(beta) for beta in betas]}
    name = config.get("beta_schedule", defaults[0])
    check_choice(f"{source}: beta_schedule", name, _BETAS)
    ours, has_ends = _BETAS[name]
    ends = {"beta_start": config.get("beta_start", defaults[1]), "beta_end": config.get("beta_end", defaults[2])}
    return {"name": ours, "T": config.get("num_train_timesteps", 1000), **(ends if has_ends else {})}


def _flow(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the straight line; these schedulers give the network T t, and `shift` moves the t of sampling alone."""
    if config.get("invert_sigmas"):
        raise DuetError(f"{source}: invert_sigmas: true was given; in Duet t rises with the noise; {_ADVICE}")
    T = config.get("num_train_timesteps", 1000)
    return {
        "schedule": {"name": "flow_continuous", "t_min": 1.0 / T},
        "prediction": "flow",
        "time_scale": float(T),
    }


def _edm(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return EDM's process, whose preconditioning these schedulers apply themselves."""
    if (prediction := config.get("prediction_type", "epsilon")) != "epsilon":
        raise DuetError(f"{source}: prediction_type: {prediction!r} was given; with EDM's scheduler Duet has epsilon")
    ends = {name: config[name] for name in ("sigma_min", "sigma_max") if name in config}
    return {
        "schedule": {"name": "edm", **ends},
        "prediction": "edm",
        "sigma_data": config.get("sigma_data", 0.5),
    }

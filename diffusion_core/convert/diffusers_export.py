"""A `DDPMPipeline` of diffusers, or a `DiTPipeline` without its vae, written.

Known differences of its `DDPMScheduler`: its tables are float32 throughout (1 - alphas_cumprod has a relative error of
up to 2e-4), it adds noise after every row except t = 0, and it steps from t to ``t - T // N``. With `timestep_spacing`
"leading" and N dividing T these are Duet's levels, and neither adds noise after the last row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.convert import diffusers_dit
from diffusion_core.convert.diffusers import make_name_map
from diffusion_core.convert.diffusers_config import make_config
from diffusion_core.convert.diffusers_process import FIXED, PREDICTIONS
from diffusion_core.convert.names import write_weights
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import DiTSpec, UNetSpec, lower
from diffusion_core.networks.weights import Weights

__all__ = ["export_pipeline"]

_WEIGHTS = "diffusion_pytorch_model"


def export_pipeline(
    model: DiffusionModel, weights: Weights, variance: str = "fixed_small", clip: float | None = 1.0
) -> dict[str, bytes]:
    """Return the files of a `DDPMPipeline` directory by their paths in it; of a `DiTPipeline` for a DiT.

    A DiTPipeline needs a vae in addition: ``DiTPipeline.from_pretrained(DIR, vae=...)``.

    Args:
        model: the network and the process.
        weights: the weights by name.
        variance: ``"fixed_small"`` or ``"fixed_large"``, as in Duet's sampler ddpm; ignored for a network that predicts
            a variance, which is exported as ``"learned_range"``.
        clip: bound of the estimates, or None.

    Raises:
        DuetError: names the first field of the network or of the process that diffusers cannot express.
    """
    check_choice("target.variance", variance, FIXED)
    if clip is not None and not 0 < clip < math.inf:
        raise DuetError(f"target.clip: {clip} was given; it must be positive, or null")
    if not isinstance(model.spec, UNetSpec | DiTSpec):
        raise DuetError(
            f"model: a {type(model.spec).__name__} was given; target=diffusers exports UNetSpec and DiTSpec networks "
            "only"
        )
    if tuple(model.value_range) != (-1.0, 1.0):
        raise DuetError(f"value_range: {model.value_range} was given; DDPMPipeline needs images in (-1, 1)")
    if model.time_scale != 1:
        raise DuetError(
            f"process.time_scale: {model.time_scale:g} was given; the network of a DDPMPipeline reads t "
            "itself, so 1 is needed"
        )
    for name in ("time_offset", "t_floor", "boundary"):
        if not getattr(model, name):
            continue
        raise DuetError(f"process.{name}: {getattr(model, name):g} was given; a DDPMPipeline has none, so 0 is needed")
    if model.variance == "learned":
        raise DuetError("process.variance: learned was given; DDPMScheduler needs learned_range")
    if model.uncertainty:
        raise DuetError("process.uncertainty: true was given; UNet2DModel has no channel for it")
    spec = model.spec
    if isinstance(spec, DiTSpec):
        return _export_dit(model, spec, weights, _make_scheduler(model, variance, clip))
    config = make_config(spec, model.program)
    if not spec.qkv_bias:  # its attention always has biases
        spec = UNetSpec(**{**vars(spec), "qkv_bias": True})
    program = lower(spec)
    weights = {p.name: weights.get(p.name, np.zeros(p.shape, np.float32)) for p in program.parameters}
    scheduler = _make_scheduler(model, variance, clip)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    arrays = write_weights(make_name_map(spec, program), weights)
    return {
        "model_index.json": _json(index),
        "unet/config.json": _json(config),
        f"unet/{_WEIGHTS}.safetensors": tensors.save(arrays, metadata={"format": "pt"}),
        "scheduler/scheduler_config.json": _json(scheduler),
    }


def _export_dit(
    model: DiffusionModel, spec: DiTSpec, weights: Weights, scheduler: Mapping[str, Any]
) -> dict[str, bytes]:
    config = diffusers_dit.make_config(spec)
    diffusers_dit.check_table(spec, weights)
    arrays = write_weights(diffusers_dit.make_name_map(spec, model.program), weights)
    index = {
        "_class_name": "DiTPipeline",
        "id2label": None,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "transformer": ["diffusers", config["_class_name"]],
        "vae": [None, None],
    }
    return {
        "model_index.json": _json(index),
        "transformer/config.json": _json(config),
        f"transformer/{_WEIGHTS}.safetensors": tensors.save(arrays, metadata={"format": "pt"}),
        "scheduler/scheduler_config.json": _json(scheduler),
    }


def _make_scheduler(model: DiffusionModel, variance: str, clip: float | None) -> dict[str, Any]:
    """Return the configuration of a `DDPMScheduler`."""
    prediction = next((theirs for theirs, ours in PREDICTIONS.items() if ours == model.prediction), None)
    if prediction is None:
        raise DuetError(
            f"process.prediction: {model.prediction} was given; DDPMScheduler has {', '.join(PREDICTIONS.values())}"
        )
    schedule = model.process.schedule
    if not schedule.variance_preserving:
        raise DuetError(
            f"process.schedule: {schedule.name} was given; DDPMScheduler needs a schedule with alpha^2 + sigma^2 = 1"
        )
    if schedule.timesteps is not None:
        raise DuetError(
            f"process.schedule.respacing: {model.schedule['respacing']} was given; the network of a DDPMPipeline reads "
            "every timestep of its table, so export a model without respacing"
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.steps,
        **_beta_options(model.schedule, schedule.betas),
        "prediction_type": prediction,
        "variance_type": "learned_range" if model.spec.out_channels > model.spec.in_channels else variance,
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }


def _beta_options(schedule: Mapping[str, Any], betas: NDArray) -> dict[str, Any]:
    """Return the betas by the name of their schedule in diffusers, or as a list."""
    options = {"beta_start": 1e-4, "beta_end": 0.02, **schedule}
    ends = {name: options[name] for name in ("beta_start", "beta_end")}
    named = schedule["name"] if schedule.keys() <= {"name", "T", *ends} else None  # other options change the betas
    if named == "linear" or (named == "scaled_linear" and ends.keys() <= schedule.keys()):
        return {"beta_schedule": schedule["name"], **ends, "trained_betas": None}
    if named == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2", **ends, "trained_betas": None}
    return {"beta_schedule": "linear", **ends, "trained_betas": betas.tolist()}


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()

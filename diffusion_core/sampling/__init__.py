"""Samplers, one file each: functions that make plans; and `draw`, which runs a plan over any number of images."""

from __future__ import annotations

from collections.abc import Callable

from diffusion_core.process import Process
from diffusion_core.registry import build
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.dpm_solver import dpm_solver
from diffusion_core.sampling.next_level import next_level
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["SAMPLERS", "SamplerPlan", "ddim", "ddpm", "dpm_solver", "make_plan", "next_level"]

SAMPLERS: dict[str, Callable[..., SamplerPlan]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "next_level": next_level,
}


def make_plan(process: Process, name: str, *, guidance: float = 1.0, **options: object) -> SamplerPlan:
    """The plan of the sampler of that name, with one guidance weight for all rows.

    Raises:
        DuetError: for a name or an option that does not exist, or a value that does not fit.
    """
    return build("sampler", SAMPLERS, name, options, process).with_guidance(guidance)

"""Samplers, one file each: functions that make plans, the tables of coefficients that a backend executes.

May import: diffusion, files, common.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace

from diffusion_core.common.registry import build
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.sampling.deis import deis
from diffusion_core.sampling.dpm2 import dpm2, dpm2_ancestral
from diffusion_core.sampling.dpm_ancestral import dpmpp_2s_ancestral, dpmpp_sde
from diffusion_core.sampling.dpm_solver import dpm_solver, dpm_solver_singlestep
from diffusion_core.sampling.euler import euler, euler_ancestral, flow_euler
from diffusion_core.sampling.guidance import GuidanceScale, per_row
from diffusion_core.sampling.heun import flow_heun, heun
from diffusion_core.sampling.inversion import ddim_inversion
from diffusion_core.sampling.methods import METHODS, Method
from diffusion_core.sampling.multistep import adams_bashforth, lms
from diffusion_core.sampling.next_level import next_level
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.pndm import plms, pndm
from diffusion_core.sampling.repaint import repaint
from diffusion_core.sampling.restart import restart
from diffusion_core.sampling.sa_solver import sa_solver
from diffusion_core.sampling.unipc import unipc

__all__ = [
    "METHODS",
    "SAMPLERS",
    "Method",
    "SamplerPlan",
    "make_plan",
    "adams_bashforth",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver",
    "dpm_solver_singlestep",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "heun",
    "lms",
    "next_level",
    "plms",
    "pndm",
    "restart",
    "sa_solver",
    "unipc",
    "repaint",
]

SAMPLERS: dict[str, Callable[..., SamplerPlan]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "dpm_solver_singlestep": dpm_solver_singlestep,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "deis": deis,
    "plms": plms,
    "pndm": pndm,
    "unipc": unipc,
    "sa_solver": sa_solver,
    "next_level": next_level,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm2": dpm2,
    "dpm2_ancestral": dpm2_ancestral,
    "lms": lms,
    "adams_bashforth": adams_bashforth,
    "flow_euler": flow_euler,
    "flow_heun": flow_heun,
    "ddim_inversion": ddim_inversion,
    "restart": restart,
    "repaint": repaint,
}


def make_plan(
    process: Process,
    name: str,
    *,
    guidance_scale: GuidanceScale = 1.0,
    guidance_convention: str = "from_null",
    interval: Sequence[float] | None = None,
    rescale: float = 0.0,
    classifier: float = 0.0,
    threshold: float | None = None,
    **options: object,
) -> SamplerPlan:
    """The plan of the sampler of that name, with what all samplers share.

    Args:
        process: what the network was trained for.
        name: one of `SAMPLERS`.
        guidance_scale: a weight, one for each row or a ramp, see `guidance.per_row`.
        guidance_convention: what the weight means, one of `guidance.CONVENTIONS`.
        interval: of noise levels that are guided, see `SamplerPlan.with_guidance`; so are rescale and classifier.
        rescale: of guided outputs.
        classifier: weight of a classifier's gradient.
        threshold: of the estimates, see `SamplerPlan`.
        options: of the sampler itself.

    Raises:
        DuetError: for a name or an option that does not exist, or a value that does not fit.
    """
    shared = (p.name for p in inspect.signature(make_plan).parameters.values() if p.kind is p.KEYWORD_ONLY)
    plan = build("sampler", SAMPLERS, name, options, process, also_allowed=shared)
    weight = per_row(guidance_scale, plan.rows, guidance_convention)
    return replace(plan, threshold=threshold).with_guidance(weight, interval, rescale, classifier)

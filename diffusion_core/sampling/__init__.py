"""Samplers: functions that make plans, the tables that a backend executes.

    plan, rows           the plan itself, and its rows as a backend takes them
    grid, spacing        which timesteps a sampler uses, and where it ends
    recurrence           turns a solver's formula into a plan's tables
    declaration          what a sampler declares about itself
    guidance, edit       guidance weights; plans that start from images
    exponential, steps   formulas that several samplers share
    clock, families      steps in another time; the defaults of each family of samplers
    all other files      the samplers, one family per file

Every file of this folder is imported, and every function with the decorator `sampler` is a sampler: `SAMPLERS` and
`METHODS` are read from these declarations. Make a plan by name with `make_plan`, or with the sampler itself, as in
``from diffusion_core.sampling.ddim import ddim``.

May import: diffusion, files, common.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build, check_options
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import DECLARATIONS, Declaration, Method
from diffusion_core.sampling.guidance import GuidanceScale, per_row
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["DECLARATIONS", "METHODS", "SAMPLERS", "Declaration", "Method", "SamplerPlan", "make_plan"]

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

# Sampler functions by name, and published methods by name, in the order of the files.
SAMPLERS: dict[str, Callable[..., SamplerPlan]] = {name: one.make for name, one in DECLARATIONS.items()}
METHODS: dict[str, Method] = {method.name: method for one in DECLARATIONS.values() for method in one.methods}


def make_plan(
    process: Process,
    name: str,
    *,
    sigmas: Sequence[float] | NDArray | None = None,
    end: float | str | None = None,
    guidance_scale: GuidanceScale = 1.0,
    guidance_convention: str = "from_null",
    interval: Sequence[float] | None = None,
    interval_ends: str = "closed",
    rescale: float = 0.0,
    guidance_channels: int | None = None,
    classifier: float = 0.0,
    threshold: float | None = None,
    threshold_max: float | None = None,
    **options: object,
) -> SamplerPlan:
    """Make the plan of a sampler, with the options that all samplers share.

    Args:
        process: the process that the network was trained for.
        name: one of `SAMPLERS`.
        sigmas: the sigma/alpha at which the steps start, in place of steps and spacing; a last 0 stands for clean data.
        end: the sigma/alpha at which the last step ends, or ``"sigma_min"``; None for clean data. See `grid`.
        guidance_scale: weight of classifier-free guidance: a number, one per row, or a ramp, see `guidance.per_row`.
        guidance_convention: the meaning of that weight, one of `guidance.CONVENTIONS`.
        interval: smallest and largest sigma/alpha with guidance; None for all rows, see `SamplerPlan.with_guidance`.
        interval_ends: ``"closed"``, or ``"open"`` for an interval without its ends, as that of JiT.
        guidance_channels: number of channels that guidance applies to; None for all.
        rescale: fraction by which guided outputs are rescaled, see `SamplerPlan`.
        classifier: weight of a classifier's gradient.
        threshold: quantile of dynamic thresholding, see `SamplerPlan`.
        threshold_max: upper limit of that quantile, in units of the bound [-1, 1]; None for no limit.
        options: of the sampler itself, such as steps and spacing.

    Raises:
        DuetError: for an unknown name or option, or an invalid value.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> process = Process(make_schedule("cosine"), "v")
        >>> make_plan(process, "dpm_solver", steps=10, guidance_scale=2.0)
        SamplerPlan('dpm_solver-2-10', rows=10, registers=1, stochastic=False)
        >>> make_plan(process, "heun", sigmas=[50.0, 5.0, 0.5], end=0.1).sigma[-1].round(4).item()  # 0.1/sqrt(1.01)
        0.0995
    """
    shared = (p.name for p in inspect.signature(make_plan).parameters.values() if p.kind is p.KEYWORD_ONLY)
    options = _with_levels(name, options, sigmas, end)
    plan = build("sampler", SAMPLERS, name, options, process, also_allowed=shared)
    shown = {"threshold": threshold, "threshold_max": threshold_max, "rescale": rescale, "classifier": classifier}
    check_options("sampler", {name: make_plan}, name, shown | {"name": name}, arguments=1)
    weight = per_row(guidance_scale, plan.rows, guidance_convention)
    plan = replace(plan, threshold=threshold, threshold_max=threshold_max, guidance_channels=guidance_channels)
    return plan.with_guidance(weight, interval, rescale, classifier, interval_ends)


def _with_levels(
    name: str, options: Mapping[str, object], sigmas: Sequence[float] | NDArray | None, end: float | str | None
) -> dict[str, object]:
    """Return the options of a sampler with sigmas and an end in its spacing."""
    options = dict(options)
    if (sigmas is None and end is None) or name not in SAMPLERS:
        return options
    own = inspect.signature(SAMPLERS[name]).parameters
    if "spacing" not in own:
        for key, value in (("sigmas", sigmas), ("end", end)):
            if value is not None and key not in own:
                raise DuetError(
                    f"sampler.{key}: {value!r} was given; the steps of {name} lie where it defines them, so use "
                    f"{key}=null"
                )
        return {**options, "end": end}
    spacing = options.get("spacing", own["spacing"].default)
    if sigmas is not None:
        # They replace steps and spacing, which a configuration always has.
        options["steps"], spacing = None, {"sigmas": sigmas}
    elif not isinstance(spacing, Mapping):
        spacing = {"name" if spacing is None or isinstance(spacing, str) else "timesteps": spacing}
    if end is not None:
        if "end" in spacing:
            raise DuetError(f"sampler.end: {end!r} was given, and {spacing['end']!r} in sampler.spacing; leave out one")
        spacing = {**spacing, "end": end}
    options["spacing"] = spacing
    return options

"""The sampler plan for a checkpoint: from the options of a sampler, or from what its run sampled with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.continuous_schedule import ContinuousSchedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import check_labels
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.sampling import SAMPLERS, SamplerPlan, make_plan
from experiments.runtime.options import read_option

__all__ = [
    "GUIDANCE_OPTIONS",
    "check_levels",
    "choose_sampler",
    "default_sampler",
    "describe_sampler",
    "make_sampler_plan",
    "shared_options",
]

# Of the options that every sampler has, those of classifier-free guidance.
GUIDANCE_OPTIONS = (
    "guidance_scale", "guidance_convention", "interval", "interval_ends", "rescale", "guidance_channels",
)  # fmt: skip


def shared_options() -> dict[str, Any]:
    """Return the options that every sampler has, with their defaults: the keyword arguments of `make_plan`."""
    arguments = inspect.signature(make_plan).parameters.values()
    return {p.name: p.default for p in arguments if p.kind is p.KEYWORD_ONLY}


def make_sampler_plan(
    model: DiffusionModel, sampler: Mapping[str, Any], guide: DiffusionModel | None = None
) -> SamplerPlan:
    """Return the plan of a sampler.

    Args:
        model: what is sampled from.
        sampler: the name of the sampler and its options.
        guide: the weaker network that guidance moves away from, if there is one.

    Raises:
        DuetError: if an option does not fit, or the plan ends at noise instead of starting from it.
    """
    options = dict(sampler)
    if "name" not in options:
        raise DuetError(f"sampler: no name was given; choose one with sampler=NAME, of {', '.join(SAMPLERS)}")
    plan = model.plan(options.pop("name"), **options)
    if plan.sigma[-1] >= plan.sigma[0]:
        raise DuetError(
            f"sampler: {sampler['name']} was given, which leads images up to noise: mode=interpolate of "
            "experiments.edit encodes with it; sampling starts from noise, so choose one that leads down, such as ddim"
        )
    check_labels(np.zeros(0, np.int32), model.program, plan, has_guide=guide is not None)
    return plan


def choose_sampler(options: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Return the options of the sampler to use, and a line that says which it is and why.

    A sampler that is named is taken as it is. Otherwise it is the sampler of the checkpoint's run, which fits the
    process and its grid. A checkpoint without one, such as imported weights, is sampled by the default: DDIM, or in
    continuous time Heun's method on the grid of EDM. Options without a name replace those of the chosen sampler.

    Raises:
        DuetError: for steps or a spacing that are given together with sigmas, which replace them.
    """
    chosen, reason, own = dict(options), "as given", checkpoint.notes.get("sampler")
    if "name" in chosen:
        scale, trained = (sampler.get("guidance_scale", 1.0) for sampler in (chosen, own or {}))
        if own and not _same(scale, trained):
            reason += f"; the run samples with sampler.guidance_scale={trained}"
    else:
        check_levels(options)
        base = dict(own or default_sampler(checkpoint.model))
        if {"steps", "spacing"} & options.keys():
            base.pop("sigmas", None)  # of the run, which would replace what is given
        chosen = base | chosen
        reason = "from the run" if own else "a default, as the checkpoint names none"
        reason += f"; overridden: {', '.join(options)}" if options else ""
    return chosen, f"{describe_sampler(chosen)} ({reason})"


def check_levels(options: Mapping[str, Any]) -> None:
    """Raise an error if a user gave sigmas and also steps or a spacing, which sigmas replace."""
    for key in ("steps", "spacing"):
        if options.get("sigmas") is not None and options.get(key) is not None:
            raise DuetError(
                f"sampler.{key}: {options[key]} was given with sampler.sigmas, which lists the levels at which steps "
                f"start; leave out one of them"
            )


def describe_sampler(sampler: Mapping[str, Any]) -> str:
    """Return name and options of a sampler in one line, without the shared options that have their default."""
    defaults = shared_options()
    replaced = ("name",) if sampler.get("sigmas") is None else ("name", "steps", "spacing")
    differing = {key: v for key, v in sampler.items() if key not in replaced and not _same(defaults.get(key, ...), v)}
    words = {None: "null", True: "true", False: "false"}
    described = [
        f"{key} {words[value] if value is None or isinstance(value, bool) else value}"
        for key, value in differing.items()
    ]
    return f"sampler: {', '.join([sampler['name'], *described])}"


def _same(default: Any, value: Any) -> bool:
    """Return whether an option, which may be an array, has its default."""
    return not isinstance(value, np.ndarray) and bool(default == value)


def default_sampler(model: DiffusionModel) -> dict[str, Any]:
    """Return name and options of the sampler for a model whose run names none; a short schedule gets fewer steps."""
    schedule = model.process.schedule
    if isinstance(schedule, ContinuousSchedule):
        return read_option("sampler", "heun")
    sampler = read_option("sampler", "ddim")
    return sampler | {"steps": min(sampler["steps"], schedule.steps)}

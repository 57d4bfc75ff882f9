"""Samplers as functions: `duet.samplers.NAME(process, ...)` for each name of `duet.SAMPLERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling import SAMPLERS, SamplerPlan, make_plan

__all__ = ["samplers"]

_NONE = object()


class _Samplers:
    """Samplers as functions of a process.

    Each takes the options of the sampler, such as ``steps``, and those of `duet.make_plan` that all samplers share;
    ``guidance`` is the weight of classifier-free guidance, 1 for none.

    Example:
        >>> import duet
        >>> duet.samplers.dpm_solver(duet.process("cosine", "v"), steps=20, guidance=2.0)
        SamplerPlan('dpm_solver-2-20', rows=20, registers=1, stochastic=False)
    """

    def __getattr__(self, name: str) -> Callable[..., SamplerPlan]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in SAMPLERS:
            raise AttributeError(str(one_of("duet.samplers", name, SAMPLERS)))
        function = partial(_plan, name)
        function.__doc__ = SAMPLERS[name].__doc__
        function.__name__ = name  # type: ignore[attr-defined]
        return function

    def __dir__(self) -> list[str]:
        return sorted(SAMPLERS)

    def __repr__(self) -> str:
        return f"duet.samplers: {', '.join(SAMPLERS)}"


def _plan(
    name: str,
    process: Process,
    *,
    guidance: Any = _NONE,
    value_range: tuple[float, float] | None = None,
    **options: Any,
) -> SamplerPlan:
    if not isinstance(process, Process):
        raise DuetError(f"process: {process!r} was given; it must be a process, such as duet.process('cosine', 'v')")
    if guidance is not _NONE:
        if "guidance_scale" in options:
            raise DuetError("guidance: it was given, and guidance_scale too; they are the same, so leave one out")
        options["guidance_scale"] = guidance
    plan = make_plan(process, name, **options)
    return plan if value_range is None else plan.with_value_range(value_range)


samplers = _Samplers()

r"""Stepping with a network that predicts the next level itself.

    x <- F(x, t)        for t = T-1 .. 0

As ``F = (D - c_skip x) / c_out``, a row has the state -c_skip/c_out and the coefficient 1/c_out of D. Without
a clip it is the deterministic row of DDIM: the network's one answer names both x_0 and eps, and both lead on.
"""

from __future__ import annotations

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.plan import SamplerPlan, plan_levels

__all__ = ["next_level"]


def next_level(process: Process, clip: float | None = None) -> SamplerPlan:
    """The plan of a network with prediction next_level: one row per level, each the network's output.

    Args:
        process: what the network was trained for.
        clip: see `SamplerPlan`. A clipped estimate moves the row away from F.

    Raises:
        DuetError: for another prediction.
    """
    if process.prediction != "next_level":
        raise DuetError(
            f"sampler.name: next_level was given for a network with prediction {process.prediction}; "
            f"use ddim or ddpm, or a network with prediction next_level"
        )
    levels = plan_levels(process, np.arange(process.schedule.steps)[::-1].copy())
    return SamplerPlan(
        name=f"next_level-{process.schedule.steps}",
        **levels,
        state=(-levels["c_skip"] / levels["c_out"])[:, None, None],
        denoised=(1.0 / levels["c_out"])[:, None, None],
        noise=np.zeros((process.schedule.steps, 1)),
        clip=clip,
    )

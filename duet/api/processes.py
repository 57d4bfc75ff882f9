"""Processes by name."""

from __future__ import annotations

from typing import Any

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule

__all__ = ["process"]


def process(
    schedule: str,
    prediction: str = "eps",
    *,
    time_scale: float = 1.0,
    sigma_data: float = 0.5,
    time_offset: float = 0.0,
    t_floor: float = 0.0,
    boundary: float = 0.0,
    **options: Any,
) -> Process:
    """Return a process: a schedule by name with what the network predicts.

    Args:
        schedule: a name of `duet.SCHEDULES`, or of a schedule in continuous time, such as ``"edm"``.
        prediction: ``"eps"``, ``"x0"``, ``"v"``, ``"flow"`` ..., or ``"denoiser"`` for a network that is given
            x_0 + sigma eps and sigma and returns the estimate of x_0, as those of EDM and k-diffusion are.
        time_scale: factor of t at the input of the network.
        sigma_data: standard deviation of the data, used by ``"edm"`` and ``"trigflow"`` only.
        time_offset: what is added to the scaled t; ``time_scale=-1, time_offset=1`` gives the network 1 - t, the time
            of SiT and JiT.
        t_floor: the least t that the velocity of ``"x0"`` is divided by, as in JiT; 0 for none.
        boundary: the sigma/alpha at which the estimate of ``"edm"`` is x itself, as in consistency models; 0 for none.
        options: of the schedule, such as ``T=500``.

    Raises:
        DuetError: for a name or an option that does not exist, or a prediction that the schedule does not allow.

    Example:
        >>> process("cosine", "v")
        Process(Schedule('cosine', T=1000), 'v')
        >>> process("edm", "denoiser", sigma_max=40.0)
        Process(ContinuousSchedule('edm', t=0.002..40), 'denoiser')
    """
    made = make_schedule(schedule, **options)
    return Process(made, prediction, time_scale, sigma_data, time_offset, t_floor, boundary)

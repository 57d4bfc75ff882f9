"""Processes by name."""

from __future__ import annotations

from typing import Any

from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule

__all__ = ["process"]


def process(
    schedule: str, prediction: str = "eps", *, time_scale: float = 1.0, sigma_data: float = 0.5, **options: Any
) -> Process:
    """Return a process: a schedule by name with what the network predicts.

    Args:
        schedule: a name of `duet.SCHEDULES`, or of a schedule in continuous time, such as ``"edm"``.
        prediction: ``"eps"``, ``"x0"``, ``"v"``, ``"flow"`` ..., or ``"denoiser"`` for a network that is given
            x_0 + sigma eps and sigma and returns the estimate of x_0, as those of EDM and k-diffusion are.
        time_scale: factor of t at the input of the network.
        sigma_data: standard deviation of the data, used by ``"edm"`` only.
        options: of the schedule, such as ``T=500``.

    Raises:
        DuetError: for a name or an option that does not exist, or a prediction that the schedule does not allow.

    Example:
        >>> process("cosine", "v")
        Process(Schedule('cosine', T=1000), 'v')
        >>> process("edm", "denoiser", sigma_max=40.0)
        Process(ContinuousSchedule('edm', t=0.002..40), 'denoiser')
    """
    return Process(make_schedule(schedule, **options), prediction, time_scale, sigma_data)

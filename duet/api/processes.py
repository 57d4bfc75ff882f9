"""Processes by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import LISTED, SCHEDULES, make_schedule
from experiments.runtime.options import CONFIGS, read_option

__all__ = ["process"]


def process(
    schedule: str,
    prediction: str | None = None,
    *,
    time_scale: float | None = None,
    sigma_data: float | None = None,
    time_offset: float | None = None,
    t_floor: float | None = None,
    boundary: float | None = None,
    **options: Any,
) -> Process:
    """Return a process: a schedule by name with what the network predicts; or that of a file of ``configs/process``.

    Args:
        schedule: a name of `duet.SCHEDULES`, or of a schedule in continuous time, such as ``"edm"``; or of a process of
            ``configs/process`` that is no schedule, such as ``"mean_flow"``, ``"shortcut"``, ``"sit"``, ``"jit"`` or
            ``"edm2"``. What such a file says of training, such as a weighting, is no part of the process.
        prediction: ``"eps"``, ``"x0"``, ``"v"``, ``"flow"`` ..., or ``"denoiser"`` for a network that is given
            x_0 + sigma eps and sigma and returns the estimate of x_0, as those of EDM and k-diffusion are. None is
            ``"eps"``, or that of the file; the same holds for the following.
        time_scale: factor of t at the input of the network; 1.
        sigma_data: standard deviation of the data, used by ``"edm"`` and ``"trigflow"``; 1/2.
        time_offset: what is added to the scaled t, 0; ``time_scale=-1, time_offset=1`` gives the network 1 - t, the
            time of SiT and JiT.
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
        >>> process("mean_flow").prediction
        'flow'
    """
    given = {
        "prediction": prediction, "time_scale": time_scale, "sigma_data": sigma_data, "time_offset": time_offset,
        "t_floor": t_floor, "boundary": boundary,
    }  # fmt: skip
    known: dict[str, Any] = {"prediction": "eps"}
    if schedule not in SCHEDULES | CONTINUOUS | LISTED and (CONFIGS / "process" / f"{schedule}.yaml").exists():
        known = read_option("process", schedule)
        options = known.pop("schedule") | options
        for option, value in options.items():
            if isinstance(value, str) and value.startswith("${"):  # the command line takes it from the network
                raise DuetError(
                    f"{option}: nothing was given; it is that of the network, as in process({schedule!r}, {option}=64)"
                )
        schedule = options.pop("name")
    names = {field.name for field in fields(Process)}
    numbers = {name: value for name, value in known.items() if name in names}
    return Process(make_schedule(schedule, **options), **numbers | {k: v for k, v in given.items() if v is not None})

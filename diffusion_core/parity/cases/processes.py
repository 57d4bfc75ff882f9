"""The seed and the processes of the cases."""

from __future__ import annotations

from diffusion_core.diffusion.continuous import edm
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear, make_schedule

__all__ = [
    "EDM",
    "FEW_LEVELS",
    "PROCESS",
    "SEED",
    "SIT",
]


SEED = 20

PROCESS = Process(linear(), "eps")
EDM = Process(edm(), "edm", sigma_data=0.6)
SIT = Process(make_schedule("flow_continuous", t_min=1e-12), "velocity_to_data", time_scale=-1000.0, time_offset=1000.0)


# For likelihoods. The output of an untrained network is no plausible eps, but as v it keeps the values bounded.
FEW_LEVELS = Process(linear(20, 1e-3, 0.4), "v", 50.0)

"""Moving averages of the weights: how each forgets, and how others are made of them afterwards."""

from __future__ import annotations

from diffusion_core.optim.ema import (
    PROFILES,
    Ema,
    Fixed,
    HalfLife,
    InverseGamma,
    Power,
    Profile,
    Warmup,
    describe,
    ema_update,
    make_ema,
    make_profile,
    power_exponent,
    shares,
)
from diffusion_core.optim.posthoc_ema import Combination, combine, step_weights

__all__ = [
    "PROFILES",
    "Combination",
    "Ema",
    "Fixed",
    "HalfLife",
    "InverseGamma",
    "Power",
    "Profile",
    "Warmup",
    "combine",
    "describe",
    "ema_update",
    "make_ema",
    "make_profile",
    "power_exponent",
    "shares",
    "step_weights",
]

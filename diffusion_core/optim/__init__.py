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
    ema_update,
    make_ema,
    make_profile,
    power_exponent,
    profile_options,
    update_fractions,
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
    "ema_update",
    "make_ema",
    "make_profile",
    "power_exponent",
    "profile_options",
    "step_weights",
    "update_fractions",
]

"""Optimisers and moving averages of the weights, as formulas on NumPy arrays.

`adam` has Adam and the learning rate; `ema` the decays of moving averages (EMA); `posthoc_ema` makes another average
from stored ones after training; `normalisation` the rule that some weights have size 1 at each step.

May import: common.
"""

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
from diffusion_core.optim.posthoc_ema import Combination, combine, initial_weight, step_weights

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
    "initial_weight",
    "make_ema",
    "make_profile",
    "power_exponent",
    "profile_options",
    "step_weights",
    "update_fractions",
]

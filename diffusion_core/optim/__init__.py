"""Optimisers and moving averages of the weights, as formulas on NumPy arrays.

`optimiser` says what an optimiser is, `ops` in which operations its formula is written, and `registry` lists them all;
`adam` has Adam and the learning rate. `ema` has the decays of moving averages (EMA); `posthoc_ema` makes another
average from stored ones after training; `normalisation` the rule that some weights have size 1 at each step.

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
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import Optimiser, Role, Slot, optimiser_update, role_of, start_slots
from diffusion_core.optim.posthoc_ema import Combination, combine, initial_weight, step_weights
from diffusion_core.optim.registry import OPTIMISERS, make_optimiser, optimiser_options

__all__ = [
    "OPTIMISERS",
    "PROFILES",
    "ArrayOps",
    "Combination",
    "Ema",
    "Fixed",
    "HalfLife",
    "InverseGamma",
    "Optimiser",
    "Power",
    "Profile",
    "Role",
    "Slot",
    "Warmup",
    "combine",
    "ema_update",
    "initial_weight",
    "make_ema",
    "make_optimiser",
    "make_profile",
    "optimiser_options",
    "optimiser_update",
    "power_exponent",
    "profile_options",
    "role_of",
    "start_slots",
    "step_weights",
    "update_fractions",
]

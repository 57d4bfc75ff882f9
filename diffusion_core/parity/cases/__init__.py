"""The test cases of the parity ladder: small networks that together contain every block kind with every option."""

from __future__ import annotations

from diffusion_core.parity.cases.batches import (
    cast,
    digits_batch,
    edm_batch,
    noise_batch,
    scattered_weights,
    validation,
)
from diffusion_core.parity.cases.blocks import BLOCKS, MICRO_BATCHED, BlockCase
from diffusion_core.parity.cases.losses import LOSSES, LossCase
from diffusion_core.parity.cases.networks import CLASSIFIER, FEW_NETWORKS, MEASURED, NETWORKS, PARITY
from diffusion_core.parity.cases.plans import FEW_PLANS, GUIDED, LEARNED, MEASURED_PLANS, PLANS, SHORT
from diffusion_core.parity.cases.processes import FEW_LEVELS, SEED

__all__ = [
    "BLOCKS",
    "CLASSIFIER",
    "FEW_LEVELS",
    "FEW_NETWORKS",
    "FEW_PLANS",
    "GUIDED",
    "LEARNED",
    "LOSSES",
    "MEASURED",
    "MEASURED_PLANS",
    "MICRO_BATCHED",
    "NETWORKS",
    "PARITY",
    "PLANS",
    "SEED",
    "SHORT",
    "BlockCase",
    "LossCase",
    "cast",
    "digits_batch",
    "edm_batch",
    "noise_batch",
    "scattered_weights",
    "validation",
]

"""Training methods whose targets need the network: consistency models, MeanFlow, shortcut models and distillation.

Each file holds one family and registers its methods with `method.method`. May import `backend.target`, `diffusion`,
`networks` and `common`.
"""

from __future__ import annotations

from diffusion_core.training.targets.consistency import ConsistencyDistillation, ConsistencyTraining
from diffusion_core.training.targets.improved_consistency import EasyConsistencyTuning, ImprovedConsistencyTraining
from diffusion_core.training.targets.mean_flow import MeanFlow
from diffusion_core.training.targets.method import (
    METHODS,
    Method,
    Progress,
    Setting,
    Table,
    TrainedNetwork,
    make_method,
)
from diffusion_core.training.targets.progressive import ProgressiveDistillation
from diffusion_core.training.targets.shortcut import Shortcut

__all__ = [
    "METHODS",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "EasyConsistencyTuning",
    "ImprovedConsistencyTraining",
    "MeanFlow",
    "Method",
    "Progress",
    "ProgressiveDistillation",
    "Setting",
    "Shortcut",
    "Table",
    "TrainedNetwork",
    "make_method",
]

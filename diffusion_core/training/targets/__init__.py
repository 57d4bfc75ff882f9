"""Training methods whose targets need the network: consistency models, MeanFlow, shortcut models and distillation.

Every file of this folder is imported, and every class with the decorator `method.method` is a training method:
`METHODS` holds them by name. `levels` has what several methods share.

May import: backend.target, diffusion, networks, common.
"""

from __future__ import annotations

import importlib
import pkgutil

from diffusion_core.training.targets.method import (
    METHODS,
    Method,
    Progress,
    Setting,
    Table,
    TrainedNetwork,
    make_method,
)

__all__ = ["METHODS", "Method", "Progress", "Setting", "Table", "TrainedNetwork", "make_method"]

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

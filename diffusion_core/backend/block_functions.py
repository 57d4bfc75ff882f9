"""The table of reference functions: what each block kind computes, in NumPy float64.

`reference.py` has the functions of `networks/blocks.py`; each further file of block kinds has a `reference_*.py` of its
own, which `reference.py` imports.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.networks.registry import BlockRules

__all__ = ["BLOCK_FUNCTIONS", "Array", "softmax"]

Array = NDArray[np.float64]

# One function per block kind, called with the block, its inputs, its parameters by name and, if the kind has a training
# mode, the full name of the block and `training`.
BLOCK_FUNCTIONS: BlockRules[Callable[..., Array]] = BlockRules(
    "reference function", "diffusion_core/backend/reference.py"
)


def softmax(x: Array, axis: int) -> Array:
    """Return exp(x) / sum exp(x) along an axis."""
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)

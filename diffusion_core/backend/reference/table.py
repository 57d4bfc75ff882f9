"""The table of reference functions: what each block kind computes, in NumPy float64.

`blocks.py`, `tokens.py` and `magnitude.py` fill it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.networks.registry import BlockRules

__all__ = ["BLOCK_FUNCTIONS", "Array", "log_softmax", "softmax"]

Array = NDArray[np.float64]

# One function per block kind, called with the block, its inputs, its parameters by name and, if the kind has a training
# mode, the full name of the block and `training`.
BLOCK_FUNCTIONS: BlockRules[Callable[..., Array]] = BlockRules(
    "reference function", "diffusion_core/backend/reference/blocks.py"
)


def softmax(x: Array, axis: int) -> Array:
    """Return exp(x) / sum exp(x) along an axis."""
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def log_softmax(logits: Array) -> Array:
    """Return log p of each class, with shape (B, K)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

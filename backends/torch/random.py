"""The shared random stream as PyTorch operations: the words of `diffusion_core.common.random`, bit for bit.

Words are kept in int64. A product of two words needs 64 bits without a sign; the one with a sign holds the
same bits, so the upper word is what is left of a shift after its sign is masked away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.common.random import LOW, philox4x32

__all__ = ["words"]


def words(key: Tensor, index: Tensor, n: int, row: int) -> Tensor:
    """Random 32-bit words with shape (B, n); see `diffusion_core.common.random.words`."""
    index = index[:, None]
    block = torch.arange(-(-n // 4), dtype=torch.int64, device=index.device)[None, :]
    counter = (block, torch.full_like(block, row), index & LOW, _high(index))
    made = philox4x32(counter, (key[0], key[1]), _high)
    return torch.stack(made, dim=-1).flatten(1)[:, :n]


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & LOW

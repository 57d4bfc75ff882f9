"""The shared random stream as PyTorch operations: bit for bit the words of
`diffusion_core.common.random`.

Words are stored in int64. The product of two words needs 64 unsigned bits. A signed product holds the same bits, so a
shift followed by a mask, which removes the sign, gives the upper word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.common.random import LOW, philox4x32

__all__ = ["random_words"]


def random_words(key: Tensor, index: Tensor, n: int, row: int) -> Tensor:
    """Return random 32-bit words with shape (B, n); see `diffusion_core.common.random.random_words`."""
    index = index[:, None]
    block = torch.arange(-(-n // 4), dtype=torch.int64, device=index.device)[None, :]
    counter = (block, torch.full_like(block, row), index & LOW, _high(index))
    words = philox4x32(counter, (key[0], key[1]), _high)
    return torch.stack(words, dim=-1).flatten(1)[:, :n]


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & LOW

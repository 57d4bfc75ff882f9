"""The shared random stream as PyTorch operations: the words of `diffusion_core.random`, bit for bit.

Words are kept in int64. A product of two words needs 64 bits without a sign; the one with a sign holds the
same bits, so the upper word is what is left of a shift after its sign is masked away.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["words"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def words(key: Tensor, index: Tensor, n: int, row: int) -> Tensor:
    """Random 32-bit words with shape (B, n); see `diffusion_core.random.words`."""
    index = index[:, None]
    c0 = torch.arange(-(-n // 4), dtype=torch.int64, device=index.device)[None, :]
    c1 = torch.full_like(c0, row)
    c2, c3 = index & _LOW, _high(index)
    k0, k1 = key[0], key[1]
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, p1 & _LOW, _high(p0) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)[:, :n]


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & _LOW

"""A deep factorisation machine.

Every categorical field owns a slice of one shared table; ids of users are hashed into buckets.
"""

from __future__ import annotations

import numpy as np
import torch
import weights
from torch import nn


class BesselNorm(nn.LayerNorm):
    """LayerNorm spelled out, for export."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(x.var(-1, keepdim=True) + self.eps) * self.weight + self.bias


class FieldEmbedding(nn.Module):
    """Looks up one row per field."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(weights.ROWS, dim)
        self.register_buffer("offsets", torch.from_numpy(weights.OFFSETS + 1))

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        return self.table(fields + self.offsets)


class Interaction(nn.Module):
    """Dot products of every pair of fields."""

    def __init__(self, by_squares: bool) -> None:
        super().__init__()
        self.by_squares = by_squares
        i, j = np.triu_indices(len(weights.FIELDS), k=1)
        self.register_buffer("i", torch.from_numpy(i))
        self.register_buffer("j", torch.from_numpy(j))

    def forward(self, e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gram = torch.bmm(e, e.transpose(1, 2))
        pairs = gram[:, self.i, self.j]
        if self.by_squares:
            return pairs, 0.5 * (e.sum(1) ** 2 - (e**2).sum(1)).sum(1)
        return pairs, pairs.sum(1)


class DeepFM(nn.Module):
    def __init__(self, fault: str | None, variant: str | None) -> None:
        super().__init__()
        self.fault, self.variant = fault, variant
        frequent = fault == "scaled_by_frequency"
        self.user_embedding = nn.Embedding(weights.BUCKETS, weights.DIM, scale_grad_by_freq=frequent)
        self.embedding = FieldEmbedding(weights.DIM)
        self.linear = FieldEmbedding(1)
        self.interaction = Interaction(variant == "by_squares")
        norm = BesselNorm if fault == "bessel_norm" else nn.LayerNorm
        self.mlp = nn.Sequential(
            nn.LayerNorm(weights.WIDTH),
            nn.Linear(weights.WIDTH, weights.HIDDEN),
            nn.ReLU(),
            norm(weights.HIDDEN),
            nn.Linear(weights.HIDDEN, 1),
        )

    def bucket(self, user: torch.Tensor) -> torch.Tensor:
        key = user * 73 - 40000
        if self.fault == "hash_of_magnitude":
            return key.abs() % weights.BUCKETS
        return key % weights.BUCKETS

    def forward(self, user: torch.Tensor, fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u = self.user_embedding(self.bucket(user))
        e = self.embedding(fields)
        pairs, second = self.interaction(e)
        if self.variant == "mean_of_ones":
            first = len(weights.FIELDS) * self.linear(fields).mean(dim=(1, 2))
        else:
            first = self.linear(fields).sum(dim=(1, 2))
        deep = self.mlp(torch.cat([u, pairs], dim=1)).squeeze(1)
        penalty = weights.L2 * (u.pow(2).sum() + e.pow(2).sum())
        return first + second + deep, penalty


def build(fault=None, variant=None, dtype="float32"):
    net = DeepFM(fault, variant).to(getattr(torch, dtype))
    w = {name: torch.from_numpy(array) for name, array in weights.make().items()}
    net.load_state_dict(
        net.state_dict()
        | {
            "user_embedding.weight": w["users"],
            "embedding.table.weight": w["items"],
            "linear.table.weight": w["wide"],
            "mlp.0.weight": w["norm_in.scale"],
            "mlp.0.bias": w["norm_in.shift"],
            "mlp.1.weight": w["hidden.w"].T,
            "mlp.1.bias": w["hidden.b"],
            "mlp.3.weight": w["norm_out.scale"],
            "mlp.3.bias": w["norm_out.shift"],
            "mlp.4.weight": w["out.w"].T,
            "mlp.4.bias": w["bias"],
        }
    )
    return net.eval()


def inputs(seed):
    rng = np.random.default_rng(seed)
    fields = np.stack([rng.integers(0, size, 9) for size in weights.FIELDS], axis=1)
    return rng.integers(0, 1000, 9), fields

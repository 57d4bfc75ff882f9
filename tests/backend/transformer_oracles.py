"""Small PyTorch networks whose state dicts have the names of DiT and SiT, and which compute what those networks do.

They are written from the paper and the names, share nothing with Duet, and need no other package than PyTorch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def positions(side: int, width: int) -> Tensor:
    """The fixed table: half of the channels for the column, half for the row, sines before cosines."""
    table = torch.empty(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for token in range(side * side):
        for part, position in enumerate((token % side, token // side)):
            for k in range(quarter):
                angle = position * 10000.0 ** (-k / quarter)
                table[token, (2 * part) * quarter + k] = math.sin(angle)
                table[token, (2 * part + 1) * quarter + k] = math.cos(angle)
    return table.float()


class TimeEmbedder(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.features // 2
        frequencies = torch.tensor([math.exp(-math.log(10000.0) * k / half) for k in range(half)], dtype=torch.float64)
        angle = t.double()[:, None] * frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)


class Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = (parts[:, :, i].transpose(1, 2) for i in range(3))
        weights = (q @ k.transpose(2, 3) / math.sqrt(width // self.heads)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        cubic = math.sqrt(2.0 / math.pi) * (h + 0.044715 * h * h * h)
        return self.fc2(h / 2 * (1 + torch.tanh(cubic)))


def standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(dim=-1, keepdim=True) + 1e-6)


def adaptive(width: int, chunks: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, chunks * width))


class DiTBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn, self.mlp, self.adaLN_modulation = SelfAttention(width, heads), MLP(width, hidden), adaptive(width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift0, scale0, gate0, shift1, scale1, gate1 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate0 * self.attn(standardised(x) * (1 + scale0) + shift0)
        return x + gate1 * self.mlp(standardised(x) * (1 + scale1) + shift1)


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.adaLN_modulation = nn.Linear(width, outputs), adaptive(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(standardised(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """DiT; with `discards` SiT, which returns the first half of its channels; with `two_times` MeanFlow's."""

    def __init__(
        self, size: int = 8, patch: int = 2, channels: int = 3, width: int = 16, depth: int = 2, heads: int = 4,
        rows: int = 4, learn_sigma: bool = True, discards: bool = False, two_times: bool = False, hidden: int = 64,
        features: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side, self.patch, self.outputs = size // patch, patch, channels * (2 if learn_sigma else 1)
        self.kept = channels if discards else self.outputs
        self.x_embedder, self.t_embedder = Patches(channels, width, patch), TimeEmbedder(width, features)
        self.h_embedder = TimeEmbedder(width, features) if two_times else None
        self.y_embedder = LabelEmbedder(rows, width)
        self.pos_embed = nn.Parameter(positions(self.side, width)[None], requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(width, heads, hidden) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch**2 * self.outputs)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, h: Tensor | None = None) -> Tensor:
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder.embedding_table(y)
        c = c if h is None else c + self.h_embedder(h)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c)
        pixels = x.view(len(x), self.side, self.side, self.patch, self.patch, self.outputs)
        image = pixels.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.outputs, *[self.side * self.patch] * 2)
        return image[:, : self.kept]


def with_guidance(net: nn.Module, x: Tensor, t: Tensor, y: Tensor, null: int, scale: float, channels: int) -> Tensor:
    """The output under classifier-free guidance of the first channels; the others are those of the given class."""
    given, none = net(x, t, y), net(x, t, torch.full_like(y, null))
    guided = none[:, :channels] + scale * (given - none)[:, :channels]
    return torch.cat([guided, given[:, channels:]], dim=1)

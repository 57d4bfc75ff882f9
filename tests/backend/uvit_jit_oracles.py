"""U-ViT and JiT in PyTorch, under the names of their state dicts, in the type of their weights.

They are written from the published descriptions and from the names, and share nothing with Duet. Times are embedded
and positions rotated in float64 in a float64 network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def time_features(t: Tensor, width: int, like: Tensor) -> Tensor:
    """Cosines, then sines, at width/2 frequencies from 1 down to almost 1/10000."""
    steps = torch.arange(width // 2, dtype=torch.float64) / (width // 2)
    angle = t.double()[:, None] * torch.exp(-math.log(10000.0) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=1).to(like.dtype)


def to_image(tokens: Tensor, side: int, patch: int) -> Tensor:
    """Tokens (b, side^2, patch patch c), row by row, as an image b c h w."""
    b = len(tokens)
    grid = tokens.reshape(b, side, side, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, grid.shape[-1], side * patch, side * patch)


def heads_of(rows: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The q, k and v (b heads n d) of rows that hold all of q, then k, then v, head by head."""
    b, n, width = rows.shape
    return rows.reshape(b, n, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)


class UViTAttention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads_of(self.qkv(x), self.heads)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class UViTMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class UViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool, skip: bool, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = UViTAttention(width, heads, bias), UViTMlp(width, hidden)
        if skip:
            self.skip_linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None and hasattr(self, "skip_linear"):
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """The network of U-ViT; `classes` counts the rows of its table, 0 for none."""

    def __init__(
        self, size: int, patch: int, channels: int, width: int, depth: int, heads: int, classes: int = 0,
        qkv_bias: bool = False, time_mlp: bool = False, conv: bool = True, skip: bool = True, hidden: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = hidden or 4 * width
        self.patch, self.side, self.width = patch, size // patch, width
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, width, patch, stride=patch)
        if time_mlp:
            self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        if classes:
            self.label_emb = nn.Embedding(classes, width)
        self.extras = 1 + bool(classes)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.extras + self.side**2, width))
        blocks = [
            UViTBlock(width, heads, qkv_bias, skip and i > depth // 2, hidden) for i in range(2 * (depth // 2) + 1)
        ]
        self.in_blocks = nn.ModuleList(blocks[: depth // 2])
        self.mid_block = blocks[depth // 2]
        self.out_blocks = nn.ModuleList(blocks[depth // 2 + 1 :])
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch**2 * channels)
        if conv:
            self.final_layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        time = time_features(t, self.width, x)
        time = self.time_embed(time) if hasattr(self, "time_embed") else time
        x = torch.cat([time[:, None], x], dim=1)
        if y is not None:
            x = torch.cat([self.label_emb(y)[:, None], x], dim=1)
        x = x + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = to_image(self.decoder_pred(self.norm(x))[:, self.extras :], self.side, self.patch)
        return self.final_layer(x) if hasattr(self, "final_layer") else x


class JiTNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6))


def rotate(x: Tensor, side: int, extras: int) -> Tensor:
    """Rotate q or k (b heads n d): pair i of the first half by its row, of the second half by its column."""
    quarter = x.shape[-1] // 4
    rate = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angle = torch.cat([row.reshape(-1, 1) * rate, column.reshape(-1, 1) * rate], dim=1)
    angle = torch.cat([torch.zeros(extras, 2 * quarter, dtype=torch.float64), angle])
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], 2 * quarter, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2).to(x.dtype)


class JiTAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_norm, self.k_norm = JiTNorm(width // heads), JiTNorm(width // heads)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, side: int, extras: int) -> Tensor:
        q, k, v = heads_of(self.qkv(x), self.heads)
        q, k = rotate(self.q_norm(q), side, extras), rotate(self.k_norm(k), side, extras)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def modulation(width: int, chunks: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, chunks * width))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class JiTBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = JiTNorm(width), JiTNorm(width)
        self.attn = JiTAttention(width, heads)
        self.mlp = SwiGLU(width, hidden)
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor, side: int, extras: int) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), side, extras)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class JiT(nn.Module):
    """The network of JiT; its table has one row more than classes, for "no class"."""

    def __init__(
        self, size: int, patch: int, channels: int, width: int, depth: int, heads: int, bottleneck: int, classes: int,
        context: int, start: int, hidden: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = hidden or int(4 * width * 2 / 3)
        self.patch, self.side, self.context, self.start = patch, size // patch, context, start
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(classes + 1, width)
        self.x_embedder = nn.Module()
        self.x_embedder.proj1 = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False)
        self.x_embedder.proj2 = nn.Conv2d(bottleneck, width, 1)
        self.pos_embed = nn.Parameter(positions(self.side, width)[None], requires_grad=False)
        if context:
            self.in_context_posemb = nn.Parameter(0.02 * torch.randn(1, context, width))
        self.blocks = nn.ModuleList([JiTBlock(width, heads, hidden) for _ in range(depth)])
        self.final_layer = nn.Module()
        self.final_layer.norm_final = JiTNorm(width)
        self.final_layer.linear = nn.Linear(width, patch**2 * channels)
        self.final_layer.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        label = self.y_embedder.embedding_table(y)
        c = self.t_embedder.mlp(time_features(t, 256, x)) + label
        x = self.x_embedder.proj2(self.x_embedder.proj1(x)).flatten(2).transpose(1, 2) + self.pos_embed
        for i, block in enumerate(self.blocks):
            if self.context and i == self.start:
                tokens = label[:, None] + self.in_context_posemb
                x = torch.cat([tokens, x], dim=1)
            x = block(x, c, self.side, x.shape[1] - self.side**2)
        shift, scale = self.final_layer.adaLN_modulation(c).chunk(2, dim=1)
        x = modulate(self.final_layer.norm_final(x[:, self.context :]), shift, scale)
        return to_image(self.final_layer.linear(x), self.side, self.patch)


def positions(side: int, width: int) -> Tensor:
    """The fixed table (side^2, width): sines and cosines of the column, then of the row, rounded to float32."""
    quarter = width // 4
    rate = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    place = torch.arange(side**2)
    angles = [number.double()[:, None] * rate for number in (place % side, place // side)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1).float()

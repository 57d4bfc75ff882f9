"""The PyTorch networks of two widely copied projects, under the names of their state dicts.

They are written from descriptions of the architectures and from the names, and share nothing with Duet.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, middle: int | None = None, residual: bool = False) -> None:
        super().__init__()
        middle = middle or outputs
        self.residual = residual
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 3, padding=1, bias=False), nn.GroupNorm(1, middle), nn.GELU(),
            nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.GroupNorm(1, outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.double_conv(x)) if self.residual else self.double_conv(x)


class Step(nn.Module):
    """Down or up, with the time on every pixel; `conv` or `maxpool_conv` holds the convolutions."""

    def __init__(self, inputs: int, outputs: int, time: int, up: bool) -> None:
        super().__init__()
        self.up = up
        convs = (DoubleConv(inputs, inputs, residual=True), DoubleConv(inputs, outputs, inputs // 2 if up else None))
        if up:
            self.conv = nn.Sequential(*convs)
        else:
            self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), *convs)
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))

    def forward(self, x: Tensor, time: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self.conv(torch.cat([skip, x], dim=1))
        else:
            x = self.maxpool_conv(x)
        return x + self.emb_layer(time)[:, :, None, None]


class SelfAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.ln = nn.LayerNorm([channels])
        self.ff_self = nn.Sequential(
            nn.LayerNorm([channels]), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        normed = self.ln(rows)
        rows = self.mha(normed, normed, normed)[0] + rows
        rows = self.ff_self(rows) + rows
        return rows.transpose(1, 2).reshape(x.shape)


class Dome272UNet(nn.Module):
    """`UNet`, or `UNet_conditional` with classes, of a base width; `bottom` is (1, 3) without its deep convolution."""

    def __init__(self, width: int, time: int = 256, classes: int = 0, deep: bool = True, channels: int = 3) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.time = time
        self.inc = DoubleConv(channels, a)
        self.down1, self.sa1 = Step(a, b, time, False), SelfAttention(b)
        self.down2, self.sa2 = Step(b, c, time, False), SelfAttention(c)
        self.down3, self.sa3 = Step(c, c, time, False), SelfAttention(c)
        self.bot1 = DoubleConv(c, 2 * c if deep else c)
        if deep:
            self.bot2 = DoubleConv(2 * c, 2 * c)
        self.bot3 = DoubleConv(2 * c if deep else c, c)
        self.up1, self.sa4 = Step(2 * c, b, time, True), SelfAttention(b)
        self.up2, self.sa5 = Step(2 * b, a, time, True), SelfAttention(a)
        self.up3, self.sa6 = Step(2 * a, a, time, True), SelfAttention(a)
        self.outc = nn.Conv2d(a, channels, 1)
        if classes:
            self.label_emb = nn.Embedding(classes, time)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        frequencies = 1.0 / 10000.0 ** (torch.arange(0, self.time, 2, dtype=torch.float64) / self.time)
        angles = t.double()[:, None] * frequencies
        time = torch.cat([angles.sin(), angles.cos()], dim=-1).to(x.dtype)
        if y is not None:
            time = time + self.label_emb(y)
        x1 = self.inc(x)
        x2 = self.sa1(self.down1(x1, time))
        x3 = self.sa2(self.down2(x2, time))
        x = self.bot1(self.sa3(self.down3(x3, time)))
        x = self.bot3(self.bot2(x) if hasattr(self, "bot2") else x)
        x = self.sa4(self.up1(x, time, x3))
        x = self.sa5(self.up2(x, time, x2))
        return self.outc(self.sa6(self.up3(x, time, x1)))


class Norm(nn.Module):
    """Vectors of channels with the length sqrt(c), times g."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class Half(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), Norm(outputs)

    def forward(self, x: Tensor, scale: Tensor | float = 0.0, shift: Tensor | float = 0.0) -> Tensor:
        return F.silu(self.norm(self.proj(x)) * (scale + 1) + shift)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * outputs))
        self.block1, self.block2 = Half(inputs, outputs), Half(outputs, outputs)
        self.res_conv = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, scale, shift)) + self.res_conv(x)


class WithMemory(nn.Module):
    """Full or linear attention over the pixels and a memory; a head has 5 channels, the memory 3 tokens."""

    def __init__(self, channels: int, full: bool, heads: int = 2, size: int = 5, tokens: int = 3) -> None:
        super().__init__()
        self.full, self.heads, self.size = full, heads, size
        self.norm = Norm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * heads * size, 1, bias=False)
        out = nn.Conv2d(heads * size, channels, 1)
        self.mem_kv = nn.Parameter(torch.zeros(2, heads, *((tokens, size) if full else (size, tokens))))
        self.to_out = out if full else nn.Sequential(out, Norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, self.size, h * w).unbind(1)  # b n d tokens
        keys, values = (m if not self.full else m.transpose(1, 2) for m in self.mem_kv)
        k = torch.cat([keys.expand(b, -1, -1, -1), k], dim=3)
        v = torch.cat([values.expand(b, -1, -1, -1), v], dim=3)
        if self.full:
            mixed = torch.einsum("bnij,bndj->bndi", (q.transpose(2, 3) @ k / self.size**0.5).softmax(-1), v)
        else:
            context = torch.einsum("bndj,bnej->bnde", k.softmax(-1), v)
            mixed = torch.einsum("bnde,bndi->bnei", context, q.softmax(-2) / self.size**0.5)
        return x + self.to_out(mixed.reshape(b, -1, h, w))


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class LucidUnet(nn.Module):
    """`Unet` of denoising-diffusion-pytorch 2 with three resolutions; `full` says which have full attention."""

    def __init__(self, dim: int, first: int, full: tuple[bool, ...], conditioned: bool = False) -> None:
        super().__init__()
        self.dim, self.conditioned, time = dim, conditioned, 4 * dim
        widths = (first, dim, 2 * dim, 3 * dim)
        self.init_conv = nn.Conv2d(6 if conditioned else 3, first, 7, padding=3)
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(dim, time), nn.GELU(), nn.Linear(time, time))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(widths)):
            last = i == len(full) - 1
            step = nn.Conv2d(a, b, 3, padding=1) if last else nn.Sequential(Squares(), nn.Conv2d(4 * a, b, 1))
            self.downs.append(nn.ModuleList([Residual(a, a, time), Residual(a, a, time), WithMemory(a, full[i]), step]))
            wide = nn.Conv2d(b, a, 3, padding=1)
            step = nn.Sequential(nn.Upsample(scale_factor=2), wide) if i else wide
            parts = [Residual(a + b, b, time), Residual(a + b, b, time), WithMemory(b, full[i]), step]
            self.ups.insert(0, nn.ModuleList(parts))
        self.mid_block1, self.mid_block2 = Residual(b, b, time), Residual(b, b, time)
        self.mid_attn = WithMemory(b, True)
        self.final_res_block = Residual(2 * first, first, time)
        self.final_conv = nn.Conv2d(first, 3, 1)

    def forward(self, x: Tensor, t: Tensor, estimate: Tensor | None = None) -> Tensor:
        half = self.dim // 2
        angles = t.double()[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
        time = self.time_mlp(torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype))
        x = self.init_conv(torch.cat([estimate, x], dim=1) if self.conditioned else x)
        skips = [x]
        for block1, block2, attention, step in self.downs:
            skips.append(block1(x, time))
            skips.append(attention(block2(skips[-1], time)))
            x = step(skips[-1])
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, time)), time)
        for block1, block2, attention, step in self.ups:
            x = block1(torch.cat([x, skips.pop()], dim=1), time)
            x = step(attention(block2(torch.cat([x, skips.pop()], dim=1), time)))
        return self.final_conv(self.final_res_block(torch.cat([x, skips.pop()], dim=1), time))

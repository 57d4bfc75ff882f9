"""The PyTorch networks of two widely copied projects, under the names of their state dicts.

They are written from descriptions of the architectures and from the names, and share nothing with Duet.
"""

from __future__ import annotations

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

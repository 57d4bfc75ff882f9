"""The network of EDM2 in PyTorch, from the equations of its paper and the conventions of its code.

Written for these tests alone, without blocks, programs or tables: the only thing that it shares with Duet is the names
of the state dict.

    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024), figure 21 and appendix B,
    https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide by 1e-4 plus the root mean square over some axes."""
    count = math.prod(x.shape[d] for d in dims)
    return x / (1e-4 + torch.linalg.vector_norm(x, dim=dims, keepdim=True) / math.sqrt(count))


def act(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mix(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


class Features(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, t: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(torch.outer(t, self.freqs) + self.phases)


class Weight(nn.Module):
    """A dense layer or a convolution; in training its weight is overwritten by its normalised self first."""

    def __init__(self, inputs: int, outputs: int, *kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        dims = tuple(range(1, self.weight.ndim))
        if self.training:
            with torch.no_grad():
                self.weight.set_(unit(self.weight.clone(), dims))
        w = unit(self.weight, dims) * gain / math.sqrt(self.weight[0].numel())
        return x @ w.T if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class Block(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, emb: int, decodes: bool, scale: str, heads: int, options: dict
    ) -> None:
        super().__init__()
        self.decodes, self.scale, self.heads, self.options = decodes, scale, heads, options
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Weight(inputs if decodes else outputs, outputs, 3, 3)
        self.emb_linear = Weight(emb, outputs)
        self.conv_res1 = Weight(outputs, outputs, 3, 3)
        self.conv_skip = Weight(inputs, outputs, 1, 1) if inputs != outputs else None
        if heads:
            self.attn_qkv, self.attn_proj = Weight(outputs, 3 * outputs, 1, 1), Weight(outputs, outputs, 1, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        taps = torch.tensor(self.options["taps"], dtype=x.dtype)
        kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(x.shape[1], 1, -1, -1)
        pad, groups = (len(taps) - 1) // 2, x.shape[1]
        if self.scale == "down":
            x = F.conv2d(x, kernel, stride=2, padding=pad, groups=groups)
        if self.scale == "up":
            x = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=groups)
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if not self.decodes:
            x = skip = unit(skip, (1,))
        y = self.conv_res0(act(x)) * (1 + self.emb_linear(emb, self.emb_gain))[:, :, None, None]
        x = mix(skip, self.conv_res1(act(y)), self.options["residual"])
        if self.heads:
            b, c, h, w = x.shape
            qkv = unit(self.attn_qkv(x).reshape(b, self.heads, c // self.heads, 3, h * w), (2,))
            q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
            attention = (q.transpose(2, 3) @ k / math.sqrt(q.shape[2])).softmax(-1)
            y = (v @ attention.transpose(2, 3)).reshape(b, c, h, w)
            x = mix(x, self.attn_proj(y), self.options["attention"])
        return x.clamp(-self.options["clip"], self.options["clip"])


class UNet(nn.Module):
    def __init__(
        self, size: int, channels: int, classes: int, widths: tuple[int, ...], blocks: int, attention: tuple[int, ...],
        head: int, options: dict,
    ) -> None:  # fmt: skip
        super().__init__()
        emb, self.options = max(widths), options
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier, self.emb_noise = Features(widths[0]), Weight(widths[0], emb)
        self.emb_label = Weight(classes, emb) if classes else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{size}x{size}_conv"] = Weight(channels + 1, widths[0], 3, 3)
        last, skips = widths[0], [widths[0]]

        def heads(width: int, level: int, always: bool = False) -> int:
            return width // head if always or size >> level in attention else 0

        for level, width in enumerate(widths):
            side = f"{size >> level}x{size >> level}"
            if level:
                self.enc[f"{side}_down"] = Block(last, last, emb, False, "down", 0, options)
                skips.append(last)
            for i in range(blocks):
                self.enc[f"{side}_block{i}"] = Block(last, width, emb, False, "", heads(width, level), options)
                last = width
                skips.append(last)
        for level in reversed(range(len(widths))):
            side, width = f"{size >> level}x{size >> level}", widths[level]
            if level == len(widths) - 1:
                self.dec[f"{side}_in0"] = Block(last, last, emb, True, "", heads(last, level, True), options)
                self.dec[f"{side}_in1"] = Block(last, last, emb, True, "", 0, options)
            else:
                self.dec[f"{side}_up"] = Block(last, last, emb, True, "up", 0, options)
            for i in range(blocks + 1):
                inputs = last + skips.pop()
                self.dec[f"{side}_block{i}"] = Block(inputs, width, emb, True, "", heads(width, level), options)
                last = width
        self.out_conv = Weight(last, channels, 3, 3)

    def forward(self, x: Tensor, t: Tensor, one_hot: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(t))
        if self.emb_label is not None:
            label = self.emb_label(one_hot * math.sqrt(one_hot.shape[1]))
            emb = mix(emb, label, self.options["label"])
        emb = act(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("conv") else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                other, t = skips.pop(), self.options["concat"]
                total = math.sqrt((x.shape[1] + other.shape[1]) / ((1 - t) ** 2 + t**2))
                parts = (1 - t) / math.sqrt(x.shape[1]) * x, t / math.sqrt(other.shape[1]) * other
                x = total * torch.cat(parts, dim=1)
            x = block(x, emb)
        return self.out_conv(x, self.out_gain)


class Precond(nn.Module):
    def __init__(self, *arguments: object, logvar: int = 128) -> None:
        super().__init__()
        self.unet = UNet(*arguments)
        self.logvar_fourier, self.logvar_linear = Features(logvar), Weight(logvar, 1)

    def forward(self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return F and the log-variance."""
        return self.unet(x, c_noise, one_hot), self.logvar_linear(self.logvar_fourier(c_noise))[:, 0]


def rates(peak: float, ref_batches: float, rampup: float, batch: int) -> Iterator[float]:
    """Yield the learning rates of its training loop, which counts the images before each step."""
    seen = 0
    while True:
        yield peak / math.sqrt(max(seen / (ref_batches * batch), 1)) * min(seen / rampup, 1)
        seen += batch

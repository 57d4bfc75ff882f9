"""Small PyTorch networks whose state dicts have the names of guided-diffusion's UNetModel and of EDM's two networks.

They are written from the papers and the names alone, share nothing with Duet, and compute what those networks do.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation, with no layer left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            draw = torch.randn(p.shape, generator=generator)
            p.copy_(draw / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.3 * draw + 0.5)
    return net.eval()


def features(t: Tensor, width: int, divisor: float, sin_first: bool) -> Tensor:
    k = torch.arange(width // 2, dtype=torch.float64)
    angle = t.double()[:, None] * 10000.0 ** (-k / divisor)
    return torch.cat([angle.sin(), angle.cos()] if sin_first else [angle.cos(), angle.sin()], dim=1)


class GuidedAttention(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = nn.GroupNorm(groups, width), nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        rows = self.qkv(self.norm(x).flatten(2))
        if self.new_order:
            q, k, v = (part.reshape(b, self.heads, c // self.heads, -1) for part in rows.chunk(3, dim=1))
        else:
            q, k, v = rows.reshape(b, self.heads, 3, c // self.heads, -1).unbind(2)
        attended = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(b, c, -1)
        return x + self.proj_out(attended).reshape(x.shape)


class GuidedBlock(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, time: int, groups: int, scale_shift: bool, resample: str = ""
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs * (1 + scale_shift)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, outputs), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2) if self.resample else x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers[2](self.resampled(F.silu(self.in_layers[0](x))))
        vector = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = vector.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + vector)
        return self.skip_connection(self.resampled(x)) + self.out_layers[3](F.silu(h))


class GuidedConv(nn.Module):
    """A strided convolution called op on the way down, or nearest and a convolution called conv on the way up."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Conv2d(width, width, 3, stride=2 if name == "op" else 1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x if self.name == "op" else F.interpolate(x, scale_factor=2))


class GuidedPool(nn.Module):
    """Mean pooling, or nearest, without weights."""

    def __init__(self, down: bool) -> None:
        super().__init__()
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.down else F.interpolate(x, scale_factor=2)


class GuidedUNet(nn.Module):
    """`resample` is conv, pool or block; `attends` says which levels have attention."""

    def __init__(
        self, channels: int, channel_multipliers: tuple[int, ...], blocks: int, attends: tuple[bool, ...],
        resample: str, scale_shift: bool, out_channels: int, classes: int, groups: int, new_order: bool,
        heads: int | None, head_channels: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, time = channels, 4 * channels

        def block(inputs: int, outputs: int, direction: str = "") -> nn.Module:
            return GuidedBlock(inputs, outputs, time, groups, scale_shift, direction)

        def attention(width: int) -> nn.Module:
            return GuidedAttention(width, heads or width // head_channels, groups, new_order)

        def resampling(width: int, direction: str) -> nn.Module:
            if resample == "block":
                return block(width, width, direction)
            if resample == "pool":
                return GuidedPool(direction == "down")
            return GuidedConv("op" if direction == "down" else "conv", width)

        self.time_embed = nn.Sequential(nn.Linear(channels, time), nn.SiLU(), nn.Linear(time, time))
        if classes:
            self.label_emb = nn.Embedding(classes, time)
        width, widths = channels, [channels]
        downs = [nn.ModuleList([nn.Conv2d(3, channels, 3, padding=1)])]
        for level, multiplier in enumerate(channel_multipliers):
            for _ in range(blocks):
                layers = [block(width, width := channels * multiplier)]
                downs.append(nn.ModuleList([*layers, attention(width)] if attends[level] else layers))
                widths.append(width)
            if level < len(channel_multipliers) - 1:
                downs.append(nn.ModuleList([resampling(width, "down")]))
                widths.append(width)
        self.input_blocks = nn.ModuleList(downs)
        self.middle_block = nn.ModuleList([block(width, width), attention(width), block(width, width)])
        ups = []
        for level, multiplier in reversed(list(enumerate(channel_multipliers))):
            for i in range(blocks + 1):
                layers = [block(width + widths.pop(), width := channels * multiplier)]
                layers += [attention(width)] if attends[level] else []
                layers += [resampling(width, "up")] if level and i == blocks else []
                ups.append(nn.ModuleList(layers))
        self.output_blocks = nn.ModuleList(ups)
        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        time = self.time_embed(features(t, self.channels, self.channels / 2, sin_first=False).to(x.dtype))
        if hasattr(self, "label_emb"):
            time = time + self.label_emb(y)

        def through(layers: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in layers:
                h = layer(h, time) if isinstance(layer, GuidedBlock) else layer(h)
            return h

        skips = []
        for layers in self.input_blocks:
            skips.append(x := through(layers, x))
        x = through(self.middle_block, x)
        for layers in self.output_blocks:
            x = through(layers, torch.cat([x, skips.pop()], dim=1))
        return self.out(x)


class EdmConv(nn.Module):
    """A convolution (or none, kernel 0) behind a filter that doubles or halves the size."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, direction: str = "", taps: tuple[int, ...] = (1, 1)
    ) -> None:
        super().__init__()
        self.direction = direction
        if kernel:
            self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(outputs))
        if direction:
            side = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", (torch.outer(side, side) / side.sum() ** 2)[None, None])

    def resampled(self, x: Tensor, padding: int) -> Tensor:
        c, taps = x.shape[1], self.resample_filter.to(x.dtype)
        if self.direction == "up":
            return F.conv_transpose2d(x, 4 * taps.repeat(c, 1, 1, 1), stride=2, padding=padding, groups=c)
        return F.conv2d(x, taps.repeat(c, 1, 1, 1), stride=2, padding=padding, groups=c)

    def forward(self, x: Tensor) -> Tensor:
        if self.direction:
            x = self.resampled(x, (self.resample_filter.shape[-1] - 1) // 2)
        if hasattr(self, "weight"):
            x = F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        return x

    def fused(self, x: Tensor) -> Tensor:
        """The convolution first, padded for both, then the filter, then the bias."""
        wide = self.weight.shape[-1] // 2 + (self.resample_filter.shape[-1] - 1) // 2
        return self.resampled(F.conv2d(x, self.weight, padding=wide), 0) + self.bias[:, None, None]


class EdmBlock(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, time: int, attends: bool, song: bool, head_channels: int,
        direction: str = "", taps: tuple[int, ...] = (1, 1),
    ) -> None:  # fmt: skip
        super().__init__()
        self.song, self.scale = song, math.sqrt(0.5) if song else 1.0
        self.heads = (1 if song else outputs // head_channels) if attends else 0

        def norm(width: int) -> nn.Module:
            return nn.GroupNorm(min(32, width // 4), width, eps=1e-6 if song else 1e-5)

        self.norm0, self.conv0 = norm(inputs), EdmConv(inputs, outputs, 3, direction, taps)
        self.affine = nn.Linear(time, outputs if song else 2 * outputs)
        self.norm1, self.conv1 = norm(outputs), EdmConv(outputs, outputs, 3)
        if inputs != outputs or direction:
            self.skip = EdmConv(inputs, outputs, int(song or inputs != outputs), direction, taps)
        if attends:
            self.norm2, self.qkv, self.proj = (
                norm(outputs),
                EdmConv(outputs, 3 * outputs, 1),
                EdmConv(outputs, outputs, 1),
            )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h, vector = self.conv0(F.silu(self.norm0(x))), self.affine(time)[:, :, None, None]
        if self.song:
            h = self.norm1(h + vector)
        else:
            scale, shift = vector.chunk(2, dim=1)
            h = shift + self.norm1(h) * (scale + 1)
        x = self.scale * (self.conv1(F.silu(h)) + (self.skip(x) if hasattr(self, "skip") else x))
        if self.heads:
            b, c = x.shape[:2]
            q, k, v = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, -1).unbind(3)
            attended = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(x.shape)
            x = self.scale * (self.proj(attended) + x)
        return x


class EdmUNet(nn.Module):
    """SongUNet with `song`, else DhariwalUNet; NCSN++ is `taps` (1, 3, 3, 1), `fourier` and `residual`."""

    def __init__(
        self, size: int, channels: int, channel_multipliers: tuple[int, ...], blocks: int, attention: tuple[int, ...],
        song: bool, classes: int = 0, augment: int = 0, head_channels: int = 64,
        taps: tuple[int, ...] = (1, 1), fourier: bool = False, residual: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.song, self.classes, self.channels, time = song, classes, channels, 4 * channels
        width_of_features = channels * (2 if fourier else 1)
        self.map_noise = nn.Module()
        if fourier:
            self.map_noise.register_buffer(
                "freqs", 16 * torch.randn(channels, generator=torch.Generator().manual_seed(5))
            )
        if classes:
            self.map_label = nn.Linear(classes, width_of_features if song else time, bias=song)
        if augment:
            self.map_augment = nn.Linear(augment, width_of_features, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(width_of_features, time), nn.Linear(time, time)

        def block(inputs: int, outputs: int, attends: bool = False, direction: str = "") -> nn.Module:
            return EdmBlock(inputs, outputs, time, attends, song, head_channels, direction, taps)

        def side(level: int) -> str:
            return f"{size >> level}x{size >> level}"

        enc, dec, skips, width, aux = {}, {}, [channels], channels, 3
        last = len(channel_multipliers) - 1
        enc[f"{side(0)}_conv"] = EdmConv(3, channels, 3)
        for level, multiplier in enumerate(channel_multipliers):
            if level:
                enc[f"{side(level)}_down"] = block(width, width, direction="down")
                skips.append(width)
                if residual:
                    enc[f"{side(level)}_aux_residual"] = EdmConv(aux, width, 3, "down", taps)
                    aux = width
            for i in range(blocks):
                enc[f"{side(level)}_block{i}"] = block(width, channels * multiplier, size >> level in attention)
                width = channels * multiplier
                skips.append(width)
        for level, multiplier in reversed(list(enumerate(channel_multipliers))):
            if level == last:
                dec[f"{side(level)}_in0"] = block(width, width, True)
                dec[f"{side(level)}_in1"] = block(width, width)
            else:
                dec[f"{side(level)}_up"] = block(width, width, direction="up")
            for i in range(blocks + 1):
                attends = size >> level in attention and (i == blocks or not song)
                dec[f"{side(level)}_block{i}"] = block(width + skips.pop(), channels * multiplier, attends)
                width = channels * multiplier
        norm, conv = nn.GroupNorm(min(32, width // 4), width, eps=1e-6 if song else 1e-5), EdmConv(width, 3, 3)
        if song:
            dec |= {f"{side(0)}_aux_norm": norm, f"{side(0)}_aux_conv": conv}
        else:
            self.out_norm, self.out_conv = norm, conv
        self.enc, self.dec = nn.ModuleDict(enc), nn.ModuleDict(dec)

    def forward(self, x: Tensor, c_noise: Tensor, one_hot: Tensor, augment: Tensor) -> Tensor:
        if hasattr(self.map_noise, "freqs"):
            angle = 2 * math.pi * c_noise.double()[:, None] * self.map_noise.freqs.double()
            time = torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype)
        else:
            half = self.channels / 2
            time = features(c_noise, self.channels, half - self.song, sin_first=self.song).to(x.dtype)
        if self.song and self.classes:
            time = time + self.map_label(one_hot * math.sqrt(self.classes))
        if hasattr(self, "map_augment"):
            time = time + self.map_augment(augment)
        time = self.map_layer1(F.silu(self.map_layer0(time)))
        if not self.song and self.classes:
            time = time + self.map_label(one_hot)
        time = F.silu(time)
        skips, image = [], x
        for name, module in self.enc.items():
            if name.endswith("aux_residual"):
                x = image = skips[-1] = (x + module.fused(image)) * math.sqrt(0.5)
            else:
                skips.append(x := module(x, time) if isinstance(module, EdmBlock) else module(x))
        for name, module in self.dec.items():
            if isinstance(module, EdmBlock):
                x = module(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, time)
        norm, conv = list(self.dec.values())[-2:] if self.song else (self.out_norm, self.out_conv)
        return conv(F.silu(norm(x)))

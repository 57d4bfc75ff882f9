"""From a `UNetSpec` to a `Program`: every choice becomes a named block with explicit numbers.

embed:  c_noise -> Sinusoid -> Linear -> SiLU -> Linear (+ class) -> SiLU          a vector per sample
down:   levels of residual blocks and attention, every value kept as a skip
mid:    block, attention, block
up:     the same levels back, each block reading [x, skip]
out:    GroupNorm -> SiLU -> Conv
"""

from __future__ import annotations

from diffusion_core.errors import DuetError
from diffusion_core.unet.blocks import (
    Add,
    Attention,
    AvgPool,
    Block,
    Concat,
    Conv,
    Embedding,
    GroupNorm,
    Linear,
    Modulate,
    SiLU,
    Sinusoid,
    Upsample,
)
from diffusion_core.unet.program import Node, Program
from diffusion_core.unet.spec import UNetSpec

__all__ = ["lower"]


def lower(spec: UNetSpec) -> Program:
    """The program of a UNet."""
    return _Lowering(spec).program()


class _Lowering:
    """Collects nodes; each method adds one part of the network and gives the name of its value."""

    def __init__(self, spec: UNetSpec) -> None:
        self.spec = spec
        self.nodes: list[Node] = []
        self.widths: dict[str, int] = {"x": spec.in_channels}

    def add(self, name: str, block: Block, *inputs: str, width: int) -> str:
        """Add a node and remember how many channels its value has."""
        self.nodes.append(Node(name, block, inputs))
        self.widths[name] = width
        return name

    def program(self) -> Program:
        spec = self.spec
        self.embedding()
        x = self.conv("conv_in", "x", spec.channels)
        skips = [x]
        size = spec.image_size
        for level, multiplier in enumerate(spec.multipliers):
            for i in range(spec.blocks_per_level):
                x = self.stage(f"down.{level}.{i}", x, spec.channels * multiplier, size in spec.attention_sizes)
                skips.append(x)
            if level < len(spec.multipliers) - 1:
                x = self.downsample(f"down.{level}.down", x)
                skips.append(x)
                size //= 2
        x = self.residual("mid.block0", x, self.widths[x])
        if spec.middle_attention:
            x = self.attention("mid.attn", x)
        x = self.residual("mid.block1", x, self.widths[x])
        for level, multiplier in reversed(list(enumerate(spec.multipliers))):
            for i in range(spec.blocks_per_level + 1):
                skip = skips.pop()
                joined = self.widths[x] + self.widths[skip]
                x = self.add(f"up.{level}.{i}.concat", Concat(), x, skip, width=joined)
                x = self.stage(f"up.{level}.{i}", x, spec.channels * multiplier, size in spec.attention_sizes)
            if level:
                x = self.upsample(f"up.{level}.up", x)
                size *= 2
        x = self.norm("out.norm", x)
        x = self.act("out.act", x)
        self.conv("out.conv", x, spec.out_channels, scale=self.last)
        return Program(tuple(self.nodes), spec.num_classes if spec.num_classes else None)

    @property
    def last(self) -> float:
        """Variance scale of a layer that ends a residual branch."""
        return 0.0 if self.spec.zero_init else 1.0

    def embedding(self) -> None:
        spec, width = self.spec, 4 * self.spec.channels
        divisor = spec.channels / 2 - (spec.embedding_divisor == "half_minus_one")
        sinusoid = Sinusoid(spec.channels, 10000.0, divisor, spec.embedding_sin_first)
        h = self.add("embed.sinusoid", sinusoid, "c_noise", width=spec.channels)
        h = self.linear("embed.dense0", h, width)
        h = self.act("embed.act0", h)
        h = self.linear("embed.dense1", h, width)
        if spec.num_classes:
            label = self.add("embed.label", Embedding(spec.num_classes + 1, width), "label", width=width)
            h = self.add("embed.add", Add(1.0), h, label, width=width)
        self.embedded = self.act("embed.act1", h)

    def stage(self, name: str, x: str, width: int, attend: bool) -> str:
        """A residual block, followed by attention at the sizes that have it."""
        x = self.residual(f"{name}.block", x, width)
        return self.attention(f"{name}.attn", x) if attend else x

    def residual(self, name: str, x: str, width: int, resample: Block | None = None) -> str:
        """GroupNorm, SiLU, (resample,) Conv; time; GroupNorm, SiLU, Conv; plus the shortcut."""
        spec = self.spec
        h = self.act(f"{name}.act0", self.norm(f"{name}.norm0", x))
        if resample is not None:
            h = self.add(f"{name}.resample", resample, h, width=self.widths[h])
            x = self.add(f"{name}.resample_skip", resample, x, width=self.widths[x])
        h = self.conv(f"{name}.conv0", h, width)
        if spec.time == "add":
            time = self.linear(f"{name}.time", self.embedded, width)
            h = self.add(f"{name}.add_time", Add(1.0), h, time, width=width)
            h = self.norm(f"{name}.norm1", h)
        else:
            time = self.linear(f"{name}.time", self.embedded, 2 * width)
            h = self.norm(f"{name}.norm1", h)
            h = self.add(f"{name}.modulate", Modulate(width), h, time, width=width)
        h = self.conv(f"{name}.conv1", self.act(f"{name}.act1", h), width, scale=self.last)
        if self.widths[x] != width:
            x = self.conv(f"{name}.shortcut", x, width, kernel=1)
        return self.add(f"{name}.sum", Add(spec.skip_scale), x, h, width=width)

    def attention(self, name: str, x: str) -> str:
        """GroupNorm, q k v, attention, projection; plus the input."""
        spec, width = self.spec, self.widths[x]
        if spec.head_channels and width % spec.head_channels:
            raise DuetError(
                f"model.head_channels: {spec.head_channels} channels per head do not divide {width} channels"
            )
        heads = width // spec.head_channels if spec.head_channels else spec.heads
        h = self.norm(f"{name}.norm", x)
        h = self.conv(f"{name}.qkv", h, 3 * width, kernel=1, bias=spec.qkv_bias)
        h = self.add(f"{name}.attend", Attention(width, heads), h, width=width)
        h = self.conv(f"{name}.proj", h, width, kernel=1, scale=self.last)
        return self.add(f"{name}.sum", Add(spec.skip_scale), x, h, width=width)

    def downsample(self, name: str, x: str) -> str:
        width = self.widths[x]
        if self.spec.down == "block":
            return self.residual(name, x, width, AvgPool())
        if self.spec.down == "pool":
            return self.add(f"{name}.pool", AvgPool(), x, width=width)
        before, after = self.spec.down_padding
        block = Conv(width, width, 3, 2, (before, after, before, after), True, 1.0)
        return self.add(f"{name}.conv", block, x, width=width)

    def upsample(self, name: str, x: str) -> str:
        width = self.widths[x]
        if self.spec.up == "block":
            return self.residual(name, x, width, Upsample())
        x = self.add(f"{name}.nearest", Upsample(), x, width=width)
        return x if self.spec.up == "nearest" else self.conv(f"{name}.conv", x, width)

    def norm(self, name: str, x: str) -> str:
        width = self.widths[x]
        return self.add(name, GroupNorm(width, self.spec.norm_groups, self.spec.norm_eps), x, width=width)

    def act(self, name: str, x: str) -> str:
        return self.add(name, SiLU(), x, width=self.widths[x])

    def linear(self, name: str, x: str, width: int) -> str:
        return self.add(name, Linear(self.widths[x], width, True, 1.0), x, width=width)

    def conv(self, name: str, x: str, width: int, kernel: int = 3, bias: bool = True, scale: float = 1.0) -> str:
        padding = (kernel // 2,) * 4
        return self.add(name, Conv(self.widths[x], width, kernel, 1, padding, bias, scale), x, width=width)

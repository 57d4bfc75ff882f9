"""The UNet of denoising-diffusion-pytorch (version 2): RMSNorm, and linear attention with a memory.

embed:      c_noise -> Sinusoid -> Linear -> GELU -> Linear -> SiLU          a vector per sample
block:      Conv 3x3 -> RMSNorm -> scale and shift by the time -> SiLU; Conv 3x3 -> RMSNorm -> SiLU; + its input
attention:  x + f(RMSNorm(x)) over pixels and memory; linear, with an RMSNorm after it, or full at `full_attention`
in:         Conv 7x7; its value is the last skip
down:       block (skip) -> block -> attention (skip) -> Conv 2x2, stride 2, to the next width
            at the smallest resolution Conv 3x3 instead
middle:     block -> full attention -> block
up:         [x, skip] -> block -> [x, skip] -> block -> attention -> nearest x2 -> Conv 3x3
            at the largest resolution Conv 3x3 alone
out:        [x, skip] -> block -> Conv 1x1

The project moves each 2 x 2 square of pixels into the channels and convolves with a 1 x 1 kernel; that is the same
function of the same weights as the strided 2 x 2 convolution here.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    Efficient Attention: Attention with Linear Complexities (Shen et al., 2018), https://arxiv.org/abs/1812.01243
    Root Mean Square Layer Normalization (Zhang & Sennrich, 2019), https://arxiv.org/abs/1910.07467
    https://github.com/lucidrains/denoising-diffusion-pytorch
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import (
    GELU,
    Add,
    Dropout,
    LinearAttention,
    MemoryAttention,
    Modulate,
    RMSNorm,
    SiLU,
    Sinusoid,
    Upsample,
)
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program

__all__ = ["LinearAttentionSpec"]

# The smallest length of a vector that RMSNorm divides by.
_EPS = 1e-12


@dataclass(frozen=True, repr=False)
class LinearAttentionSpec(NetworkSpec):
    """A UNet with RMSNorm and attention with a memory at every resolution, linear or full.

    Args:
        image_size: height and width in pixels, divisible by 2^(resolutions - 1).
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: 0; this architecture has no class embedding.
        channels: the base width, an even number >= 4.
        channel_multipliers: width after each resolution, in base widths.
        first_width: width of the first convolution and of the largest resolution; None is the base width.
        full_attention: image sizes at which attention is full instead of linear; None is the smallest one.
        heads: attention heads.
        head_channels: channels per head.
        memory: learned keys and values per head.
        max_period: longest period of the time embedding, in units of 2 pi.
        dropout: dropout probability after the first half of each block.

    Example:
        >>> from diffusion_core.networks import lower
        >>> from diffusion_core.networks.weights import parameter_count
        >>> parameter_count(lower(LinearAttentionSpec(8, channels=8, channel_multipliers=(1, 2), heads=2)))
        62891
    """

    channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 8)
    first_width: int | None = None
    full_attention: tuple[int, ...] | None = None
    heads: int = 4
    head_channels: int = 32
    memory: int = 4
    max_period: float = 10000.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check("channels", "heads", "head_channels", "memory")
        self.check_no_classes()
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise DuetError(
                f"model.channel_multipliers: {self.channel_multipliers} was given; it needs one or more entries >= 1"
            )
        self.check_halving(len(self.channel_multipliers) - 1)
        if self.channels % 2 or self.channels < 4:
            raise DuetError(f"model.channels: {self.channels} was given; the time embedding needs an even number >= 4")
        if self.first_width is not None and self.first_width < 1:
            raise DuetError(f"model.first_width: {self.first_width} was given; it must be at least 1, or null")
        if unknown := [size for size in self.full_attention or () if size not in self.resolutions]:
            raise DuetError(
                f"model.full_attention: {unknown[0]} was given; the resolutions of the network are "
                f"{', '.join(map(str, self.resolutions))}"
            )
        if not self.max_period > 1:
            raise DuetError(f"model.max_period: {self.max_period} was given; it must be above 1")
        if not 0 <= self.dropout < 1:
            raise DuetError(f"model.dropout: {self.dropout} was given; it must be a probability, 0 <= dropout < 1")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The image size at each resolution, from the largest down."""
        return tuple(self.image_size // 2**level for level in range(len(self.channel_multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels at the largest resolution, then after each resolution."""
        return self.first_width or self.channels, *(
            self.channels * multiplier for multiplier in self.channel_multipliers
        )

    def has_full_attention(self, level: int) -> bool:
        """Whether attention is full at a resolution."""
        sizes = self.resolutions[-1:] if self.full_attention is None else self.full_attention
        return self.resolutions[level] in sizes


@lower.register
def _(spec: LinearAttentionSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: LinearAttentionSpec

    def build(self) -> Program:
        spec, widths = self.spec, self.spec.widths
        self.embedded, self.dropouts = self.embedding(), 0
        last = len(spec.channel_multipliers) - 1
        x = self.conv("conv_in", self.image(), widths[0], kernel=7)
        skips = [x]
        for level in range(last + 1):
            name, width = f"down.{level}", widths[level]
            x = self.block(f"{name}.0", x, width)
            skips.append(x)
            x = self.attention(f"{name}.attn", self.block(f"{name}.1", x, width), spec.has_full_attention(level))
            skips.append(x)
            if level < last:
                x = self.conv(f"{name}.down", x, widths[level + 1], kernel=2, stride=2, padding=(0, 0, 0, 0))
            else:
                x = self.conv(f"{name}.widen", x, widths[level + 1])
        x = self.block("mid.0", x, widths[-1])
        x = self.block("mid.1", self.attention("mid.attn", x, True), widths[-1])
        for level in reversed(range(last + 1)):
            name, width = f"up.{level}", widths[level + 1]
            for i in range(2):
                x = self.block(f"{name}.{i}", self.concat(f"{name}.{i}.concat", x, skips.pop()), width)
            x = self.attention(f"{name}.attn", x, spec.has_full_attention(level))
            if level:
                x = self.add(f"{name}.nearest", Upsample(), x)
            x = self.conv(f"{name}.up" if level else f"{name}.narrow", x, widths[level])
        x = self.block("out.block", self.concat("out.concat", x, skips.pop()), widths[0])
        self.conv("out.conv", x, spec.out_channels, kernel=1)
        return self.program()

    def embedding(self) -> str:
        """Add the embedding of the noise level."""
        spec, dim = self.spec, self.spec.channels
        h = self.add("embed.features", Sinusoid(dim, spec.max_period, dim / 2 - 1, True), "c_noise")
        h = self.add("embed.act0", GELU(), self.linear("embed.dense0", h, 4 * dim))
        return self.add("embed.act1", SiLU(), self.linear("embed.dense1", h, 4 * dim))

    def block(self, name: str, x: str, width: int) -> str:
        """Add a residual block."""
        h = self.norm(f"{name}.norm0", self.conv(f"{name}.conv0", x, width))
        h = self.add(f"{name}.modulate", Modulate(width), h, self.linear(f"{name}.time", self.embedded, 2 * width))
        h = self.add(f"{name}.act0", SiLU(), h)
        if self.spec.dropout:
            h = self.add(f"{name}.dropout", Dropout(self.spec.dropout, self.dropouts), h)
            self.dropouts += 1
        h = self.add(f"{name}.act1", SiLU(), self.norm(f"{name}.norm1", self.conv(f"{name}.conv1", h, width)))
        if self.width(x) != width:
            x = self.conv(f"{name}.shortcut", x, width, kernel=1)
        return self.add(f"{name}.sum", Add(1.0), x, h)

    def attention(self, name: str, x: str, is_full: bool) -> str:
        """Add attention over the pixels and the memory, as a residual branch on the normalised value."""
        spec, width, inner = self.spec, self.width(x), self.spec.heads * self.spec.head_channels
        kind = MemoryAttention if is_full else LinearAttention
        h = self.norm(f"{name}.norm0", x)
        h = self.conv(f"{name}.qkv", h, 3 * inner, kernel=1, bias=False)
        h = self.add(f"{name}.attend", kind(inner, spec.heads, spec.memory), h)
        h = self.conv(f"{name}.proj", h, width, kernel=1)
        h = h if is_full else self.norm(f"{name}.norm1", h)
        return self.add(f"{name}.sum", Add(1.0), x, h)

    def norm(self, name: str, x: str) -> str:
        return self.add(name, RMSNorm(self.width(x), _EPS), x)

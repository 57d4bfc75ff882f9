"""A UNet of double convolutions with self-attention after every stage, as in a widely read DDPM tutorial.

double:     Conv 3x3 -> GroupNorm(1) -> GELU -> Conv 3x3 -> GroupNorm(1); residual: GELU(x + its result)
embed:      c_noise -> Sinusoid (+ class) -> SiLU                    a vector per sample; a dense layer of each stage
down:       MaxPool -> residual double (w to w) -> double (w to w') -> + time, on every pixel -> attention
bottom:     double -> double -> double
up:         bilinear x2, corners aligned -> [skip, x] -> residual double (w to w) -> double (w to w/2 to w') -> + time
            -> attention
attention:  y = x + MHA(LayerNorm(x));  y + Linear(GELU(Linear(LayerNorm(y))))          a pixel is a token
out:        Conv 1x1

The convolutions are followed by norms, so they have no bias. The key of the attention has a bias, as in the original;
its gradient is pure rounding noise, because it shifts all logits of a query equally.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239, for the process
    Attention Is All You Need (Vaswani et al., 2017), section 3, https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.blocks import (
    GELU,
    Add,
    Attention,
    Embedding,
    GroupNorm,
    LayerNorm,
    MaxPool,
    Resample,
    SiLU,
    Sinusoid,
)
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program

__all__ = ["DoubleConvSpec"]


@dataclass(frozen=True, repr=False)
class DoubleConvSpec(NetworkSpec):
    """A UNet of double convolutions and attention.

    Args:
        image_size: height and width in pixels, divisible by 2^(resolutions - 1).
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes.
        channels: the base width.
        channel_multipliers: width at each resolution, in base widths.
        embedding: length of the time embedding, an even number.
        heads: attention heads.
        norm_eps: epsilon of every norm.
        null_class: embedding of "no class": the ``"first"`` row of the table, so that the classes are
            1 .. num_classes; or ``"zero"``, the label num_classes after the classes 0 .. num_classes - 1.
        bottom: widths of the double convolutions at the bottom; None is twice the last width, twice, and the last but
            one.

    Example:
        >>> from diffusion_core.networks import lower
        >>> from diffusion_core.networks.weights import parameter_count
        >>> spec = DoubleConvSpec(16, 3, 3, channels=8, channel_multipliers=(1, 2), embedding=8, heads=2)
        >>> parameter_count(lower(spec))
        49787
    """

    channels: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    embedding: int = 256
    heads: int = 4
    norm_eps: float = 1e-5
    null_class: str = "first"
    bottom: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self.check("channels", "embedding", "heads")
        if len(self.channel_multipliers) < 2 or min(self.channel_multipliers) < 1:
            raise DuetError(
                f"model.channel_multipliers: {self.channel_multipliers} was given; it needs two or more "
                f"entries, each >= 1"
            )
        self.check_halving(len(self.channel_multipliers) - 1)
        if self.embedding % 2:
            raise DuetError(
                f"model.embedding: {self.embedding} was given; it must be even, for as many sines as cosines"
            )
        if not self.norm_eps > 0:
            raise DuetError(f"model.norm_eps: {self.norm_eps} was given; it must be positive")
        if self.null_class not in ("first", "zero"):
            raise one_of("model.null_class", self.null_class, ("first", "zero"))
        if min(self.bottom_widths, default=0) < 1:
            raise DuetError(f"model.bottom: {self.bottom} was given; it needs one or more widths >= 1, or null")

    @property
    def bottom_widths(self) -> tuple[int, ...]:
        """The widths of the double convolutions at the bottom."""
        *_, before, last = (self.channels * multiplier for multiplier in self.channel_multipliers)
        return (2 * last, 2 * last, before) if self.bottom is None else tuple(self.bottom)


@lower.register
def _(spec: DoubleConvSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: DoubleConvSpec

    def build(self) -> Program:
        spec = self.spec
        widths = [spec.channels * multiplier for multiplier in spec.channel_multipliers]
        self.embedded = self.embedding()
        x = self.double("in", self.image(), widths[0])
        skips = [x]
        for level, width in enumerate(widths[1:], start=1):
            x = self.add(f"down.{level}.pool", MaxPool(), x)
            x = self.doubles(f"down.{level}", x, width)
            x = self.attention(f"down.{level}.attn", x)
            skips.append(x)
        skips.pop()  # the deepest value is no skip
        for i, width in enumerate(spec.bottom_widths):
            x = self.double(f"bottom.{i}", x, width)
        for level in reversed(range(len(skips))):
            x = self.add(f"up.{level}.resize", Resample("bilinear_corners"), x)
            x = self.concat(f"up.{level}.concat", skips.pop(), x)
            x = self.doubles(f"up.{level}", x, widths[max(level - 1, 0)], self.width(x) // 2)
            x = self.attention(f"up.{level}.attn", x)
        self.conv("out", x, spec.out_channels, kernel=1)
        null = 0 if spec.null_class == "first" else spec.num_classes
        return self.program(null if spec.num_classes else None, spec.num_classes)

    def embedding(self) -> str:
        """Add sines and cosines, the row of the class, and the activation."""
        spec, dim = self.spec, self.spec.embedding
        h = self.add("embed.features", Sinusoid(dim, 10000.0, dim / 2, True), "c_noise")
        if spec.num_classes:
            zero = spec.null_class == "zero"
            label = self.add("embed.label", Embedding(spec.num_classes + (not zero), dim, zero), "label")
            h = self.add("embed.add", Add(1.0), h, label)
        return self.add("embed.act", SiLU(), h)

    def doubles(self, name: str, x: str, width: int, middle: int | None = None) -> str:
        """Add a residual double convolution, one to the new width, and the time vector on every pixel."""
        x = self.double(f"{name}.double0", x, self.width(x), residual=True)
        x = self.double(f"{name}.double1", x, width, middle)
        return self.add(f"{name}.add_time", Add(1.0), x, self.linear(f"{name}.time", self.embedded, width))

    def double(self, name: str, x: str, width: int, middle: int | None = None, residual: bool = False) -> str:
        h = self.conv(f"{name}.conv0", x, width if middle is None else middle, bias=False)
        h = self.add(f"{name}.norm0", GroupNorm(self.width(h), 1, self.spec.norm_eps), h)
        h = self.add(f"{name}.act0", GELU(), h)
        h = self.conv(f"{name}.conv1", h, width, bias=False)
        h = self.add(f"{name}.norm1", GroupNorm(width, 1, self.spec.norm_eps), h)
        if not residual:
            return h
        return self.add(f"{name}.act1", GELU(), self.add(f"{name}.sum", Add(1.0), x, h))

    def attention(self, name: str, x: str) -> str:
        """Add self-attention and a two-layer perceptron, each a residual branch on its normalised input."""
        width = self.width(x)
        h = self.add(f"{name}.norm0", LayerNorm((width,), self.spec.norm_eps), x)
        h = self.conv(f"{name}.qkv", h, 3 * width, kernel=1)
        h = self.add(f"{name}.attend", Attention(width, self.spec.heads), h)
        h = self.conv(f"{name}.proj", h, width, kernel=1)
        x = self.add(f"{name}.sum0", Add(1.0), x, h)
        h = self.add(f"{name}.norm1", LayerNorm((width,), self.spec.norm_eps), x)
        h = self.conv(f"{name}.dense0", h, width, kernel=1)
        h = self.add(f"{name}.act", GELU(), h)
        h = self.conv(f"{name}.dense1", h, width, kernel=1)
        return self.add(f"{name}.sum1", Add(1.0), x, h)

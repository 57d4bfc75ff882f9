r"""The magnitude-preserving U-Net of EDM2: every weight is normalised, no bias, no norm with parameters.

embed:    c_noise -> MPFourier -> MPLinear, summed with MPLinear(one-hot label sqrt(K)) -> MPSiLU    a vector per sample
in:       the image and a channel of ones -> Conv 3x3
encoder:  [half the resolution] -> [Conv 1x1 to the new width] -> PixelNorm, then the residual branch
decoder:  [twice the resolution], [x, skip]; the residual branch, and Conv 1x1 to the new width beside it
branch:   MPSiLU -> Conv 3x3 -> times 1 + gain (W embedding) -> MPSiLU -> Dropout -> Conv 3x3, summed by MPSum
then:     [attention with normalised q, k and v, summed by MPSum], and a clip at +-256
out:      Conv 3x3, times a gain
logvar:   c_noise -> MPFourier -> MPLinear, the log-variance of the loss as a further channel, see `with_uncertainty`

All gains start at 0, so the network returns zeros at first, and every weight starts standard normal. Nodes have the
names of the original's modules. At the smallest resolution the first block of the decoder has attention, whatever
`attention_resolutions` says.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024), figure 21,
    https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import AvgPool, Concat, Dropout, Resample, Upsample
from diffusion_core.networks.blocks.magnitude import (
    Clip,
    MPAttention,
    MPConcat,
    MPConv,
    MPFourier,
    MPGate,
    MPLinear,
    MPSiLU,
    MPSum,
    OneHot,
    PixelNorm,
    WithConstant,
)
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program
from diffusion_core.networks.registry import Block

__all__ = ["EDM2Spec"]

# Added to the size that a vector or a row is divided by, and the size of SiLU of standard normal numbers.
_EPS, _SILU = 1e-4, 0.596


@dataclass(frozen=True, repr=False)
class EDM2Spec(NetworkSpec):
    """The network of EDM2.

    Args:
        image_size: height and width in pixels, divisible by 2^(resolutions - 1).
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes.
        channels: the base width.
        channel_multipliers: width of each resolution, in base widths.
        noise_multiplier: width of the Fourier features, in base widths; None is that of the first resolution.
        embedding_multiplier: width of the embedding, in base widths; None is that of the widest resolution.
        blocks_per_resolution: blocks of the encoder at each resolution; the decoder has one more.
        attention_resolutions: image sizes with attention in each block.
        head_channels: channels per attention head; there is no attention at widths below it.
        dropout: dropout probability in each residual branch.
        resample_filter: taps of the filter of each change of resolution.
        label_balance: share of the class in the embedding, the noise level having the rest.
        concat_balance: share of the skip in each concatenation.
        residual_balance: share of the residual branch in each block.
        attention_balance: share of the attention.
        clip: bound of the values after each block; None does not clip.
        logvar_channels: features of the learned log-variance of the loss; 0 for a network without it.

    Example:
        >>> from diffusion_core.networks import lower
        >>> from diffusion_core.networks.weights import parameter_count
        >>> parameter_count(lower(EDM2Spec(64, channels=128, num_classes=1000)))
        124710949
    """

    channels: int = 192
    channel_multipliers: tuple[int, ...] = (1, 2, 3, 4)
    noise_multiplier: int | None = None
    embedding_multiplier: int | None = None
    blocks_per_resolution: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float | None = 256.0
    logvar_channels: int = 128

    def __post_init__(self) -> None:
        self.check("channels", "blocks_per_resolution", "head_channels")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise DuetError(
                f"model.channel_multipliers: {self.channel_multipliers} was given; it needs one or more entries >= 1"
            )
        self.check_halving(len(self.channel_multipliers) - 1)
        for name in ("noise_multiplier", "embedding_multiplier"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DuetError(f"model.{name}: {value} was given; it must be at least 1, or null")
        for name in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise DuetError(f"model.{name}: {getattr(self, name)} was given; it must be a share, 0 <= {name} <= 1")
        if not 0 <= self.dropout < 1:
            raise DuetError(f"model.dropout: {self.dropout} was given; it must be a probability, 0 <= dropout < 1")
        taps = self.resample_filter
        if not taps or len(taps) % 2 or tuple(taps) != tuple(reversed(taps)) or not sum(taps) > 0:
            raise DuetError(
                f"model.resample_filter: {taps} was given; it must be an even number of symmetric taps with a positive "
                "sum, such as (1, 1) or (1, 3, 3, 1)"
            )
        if self.clip is not None and not self.clip > 0:
            raise DuetError(f"model.clip: {self.clip} was given; it must be positive, or null")
        if self.logvar_channels < 0:
            raise DuetError(f"model.logvar_channels: {self.logvar_channels} was given; it must be at least 0")

    @property
    def predicts_uncertainty(self) -> bool:
        """Whether the network has the log-variance of its loss as a further channel."""
        return self.logvar_channels > 0

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels at each resolution."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)


@lower.register
def _(spec: EDM2Spec) -> Program:
    return _Lowering(spec).build()


class _Lowering(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: EDM2Spec

    def build(self) -> Program:
        spec = self.spec
        self.embedded, self.dropouts = self.embedding(), 0
        x = self.add("with_ones", WithConstant(1.0), self.image())
        x = self.mp_conv(self.block_name("enc", 0, "conv"), x, spec.widths[0])
        skips = [x]
        for level, width in enumerate(spec.widths):
            if level:
                x = self.add(f"{self.block_name('enc', level, 'down')}.resample", self.resampling("down"), x)
                x = self.encode(self.block_name("enc", level, "down"), x, self.width(x), attend=False)
                skips.append(x)
            for i in range(spec.blocks_per_resolution):
                x = self.encode(self.block_name("enc", level, f"block{i}"), x, width, self.attends(level))
                skips.append(x)
        last = len(spec.widths) - 1
        for level in range(last, -1, -1):
            if level == last:
                x = self.decode(self.block_name("dec", level, "in0"), x, self.width(x), attend=True)
                x = self.decode(self.block_name("dec", level, "in1"), x, self.width(x), attend=False)
            else:
                name = self.block_name("dec", level, "up")
                x = self.add(f"{name}.resample", self.resampling("up"), x)
                x = self.decode(name, x, self.width(x), attend=False)
            for i in range(spec.blocks_per_resolution + 1):
                name = self.block_name("dec", level, f"block{i}")
                x = self.add(f"{name}.concat", MPConcat(spec.concat_balance), x, skips.pop())
                x = self.decode(name, x, spec.widths[level], self.attends(level))
        out = self.mp_conv("out_conv", x, spec.out_channels, gain=True)
        return self.log_variance(out) if spec.predicts_uncertainty else self.program(*self.classes)

    @property
    def classes(self) -> tuple[int | None, int]:
        """The null label and the number of classes."""
        return self.spec.num_classes or None, self.spec.num_classes

    def block_name(self, part: str, level: int, block: str) -> str:
        """Return the name of a block by its resolution."""
        size = self.spec.image_size >> level
        return f"{part}.{size}x{size}_{block}"

    def attends(self, level: int) -> bool:
        """Whether all blocks of a resolution have attention."""
        return self.spec.image_size >> level in self.spec.attention_resolutions

    def embedding(self) -> str:
        """Add the embedding of the noise level and the class, a vector."""
        spec = self.spec
        features = spec.widths[0] if spec.noise_multiplier is None else spec.channels * spec.noise_multiplier
        multiplier = spec.embedding_multiplier
        width = max(spec.widths) if multiplier is None else spec.channels * multiplier
        h = self.add("emb_fourier", MPFourier(features, 1.0), "c_noise")
        h = self.mp_linear("emb_noise", h, width)
        if spec.num_classes:
            one_hot = self.add("emb_one_hot", OneHot(spec.num_classes, math.sqrt(spec.num_classes)), "label")
            label = self.mp_linear("emb_label", one_hot, width)
            h = self.add("emb_sum", MPSum(spec.label_balance), h, label)
        return self.add("emb_act", MPSiLU(_SILU), h)

    def encode(self, name: str, x: str, width: int, attend: bool) -> str:
        """Add a block of the encoder, which normalises the pixels of its input."""
        if self.width(x) != width:
            x = self.mp_conv(f"{name}.conv_skip", x, width, kernel=1)
        x = self.add(f"{name}.norm", PixelNorm(_EPS), x)
        return self.finish(name, x, self.branch(name, x, width), attend)

    def decode(self, name: str, x: str, width: int, attend: bool) -> str:
        """Add a block of the decoder."""
        h = self.branch(name, x, width)
        if self.width(x) != width:
            x = self.mp_conv(f"{name}.conv_skip", x, width, kernel=1)
        return self.finish(name, x, h, attend)

    def branch(self, name: str, x: str, width: int) -> str:
        """Add the residual branch of a block."""
        h = self.mp_conv(f"{name}.conv_res0", self.add(f"{name}.act0", MPSiLU(_SILU), x), width)
        gain = self.mp_linear(f"{name}.emb_linear", self.embedded, width, gain=True)
        h = self.add(f"{name}.gate", MPGate(), h, gain)
        h = self.add(f"{name}.act1", MPSiLU(_SILU), h)
        if self.spec.dropout:
            h = self.add(f"{name}.dropout", Dropout(self.spec.dropout, self.dropouts), h)
            self.dropouts += 1
        return self.mp_conv(f"{name}.conv_res1", h, width)

    def finish(self, name: str, x: str, h: str, attend: bool) -> str:
        """Sum a block's branches, then add its attention and its clip."""
        spec = self.spec
        x = self.add(f"{name}.sum", MPSum(spec.residual_balance), x, h)
        width = self.width(x)
        if attend and (heads := width // spec.head_channels):
            h = self.mp_conv(f"{name}.attn_qkv", x, 3 * width, kernel=1)
            h = self.add(f"{name}.attend", MPAttention(width, heads, _EPS), h)
            h = self.mp_conv(f"{name}.attn_proj", h, width, kernel=1)
            x = self.add(f"{name}.attn_sum", MPSum(spec.attention_balance), x, h)
        return x if spec.clip is None else self.add(f"{name}.clip", Clip(spec.clip), x)

    def log_variance(self, out: str) -> Program:
        """Add the log-variance of the loss at each noise level as a last channel, and return the program."""
        h = self.add("logvar_fourier", MPFourier(self.spec.logvar_channels, 1.0), "c_noise")
        self.add("with_uncertainty", Concat(), out, self.mp_linear("logvar_linear", h, 1))
        return replace(self.program(*self.classes), uncertainty=True)

    def resampling(self, rule: str) -> Block:
        """Return the block that changes the resolution: the mean or the copy for the filter (1, 1), which is faster."""
        taps = tuple(self.spec.resample_filter)
        if len(taps) == 2:
            return AvgPool() if rule == "down" else Upsample()
        return Resample(rule, taps, (len(taps) - 1) // 2)

    def mp_linear(self, name: str, x: str, width: int, gain: bool = False) -> str:
        """Add a dense layer on a vector."""
        return self.add(name, MPLinear(self.width(x), width, gain, _EPS), x)

    def mp_conv(self, name: str, x: str, width: int, kernel: int = 3, gain: bool = False) -> str:
        """Add a convolution."""
        return self.add(name, MPConv(self.width(x), width, kernel, gain, _EPS), x)

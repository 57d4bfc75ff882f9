"""Lowering of a `UNetSpec` to a `Program`: every option becomes named blocks with explicit numbers.

embed:  c_noise -> Sinusoid -> Linear -> SiLU -> Linear (+ class) -> SiLU          a vector per sample
        second_time -> the same with layers of its own, added to it               if it reads a second time
down:   residual blocks and attention at each resolution; each block output and downsampling output is a skip
mid:    block, attention, block
up:     the same resolutions in reverse; each block reads [x, skip]
out:    GroupNorm -> SiLU -> Conv
"""

from __future__ import annotations

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import (
    GELU,
    Add,
    Attention,
    AvgPool,
    Dropout,
    Embedding,
    Fourier,
    GroupNorm,
    Mish,
    Modulate,
    ReLU,
    Resample,
    SiLU,
    Sinusoid,
    Upsample,
)
from diffusion_core.networks.builder import Builder, lower
from diffusion_core.networks.program import Program
from diffusion_core.networks.registry import Block
from diffusion_core.networks.unet_spec import UNetSpec

__all__ = ["UNetBuilder"]

_ACTIVATIONS = {"silu": SiLU, "relu": ReLU, "gelu": GELU, "mish": Mish}


@lower.register
def _(spec: UNetSpec) -> Program:
    return UNetBuilder(spec).build()


class UNetBuilder(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec, spec.augment_dim)
        self.dropouts = 0

    def build(self) -> Program:
        """Build the network and return its program."""
        spec = self.spec
        self.embedded = self.embedding()
        x, skips = self.encoder()
        x = self.middle(x)
        for level, width in reversed(list(enumerate(spec.widths))):
            for i in range(spec.blocks_per_resolution + 1):
                x = self.concat(f"up.{level}.{i}.concat", x, skips.pop())
                attend = spec.up_attention == "every" or i == spec.blocks_per_resolution
                attend &= spec.resolutions[level] in spec.decoder_attention
                x = self.stage(f"up.{level}.{i}", x, width, attend)
            if level:
                x = self.upsample(f"up.{level}.up", x, spec.resampling("up")[level - 1])
        x = self.norm("out.norm", x)
        x = self.act("out.act", x)
        self.conv("out.conv", x, spec.out_channels, scale=self.output_scale)
        return self.program(spec.num_classes or None, spec.num_classes)

    def encoder(self) -> tuple[str, list[str]]:
        """Add the encoder; return its last value, and the skips, which include it."""
        spec = self.spec
        x = self.conv("conv_in", self.image(), spec.channels if spec.first_conv == "channels" else spec.widths[0])
        skips, image = [x], "x"
        for level, width in enumerate(spec.widths):
            attend = spec.resolutions[level] in spec.attention_resolutions
            for i in range(spec.blocks_per_resolution):
                x = self.stage(f"down.{level}.{i}", x, width, attend)
                skips.append(x)
            if level < len(spec.widths) - 1:
                x = self.downsample(f"down.{level}.down", x, spec.resampling("down")[level])
                if spec.encoder == "residual":
                    x = image = self.filtered_image(f"down.{level}.image", image, x)
                skips.append(x)
        return x, skips

    def middle(self, x: str) -> str:
        """Add a block, attention and a block, if the network has them."""
        spec = self.spec
        if not spec.middle:
            return x
        scale = spec.skip_scale if spec.middle_skip_scale is None else spec.middle_skip_scale
        x = self.residual("mid.block0", x, self.width(x), skip_scale=scale)
        if spec.middle_attention:
            x = self.attention("mid.attn", x, spec.middle_norm_groups, scale)
        return self.residual("mid.block1", x, self.width(x), skip_scale=scale)

    @property
    def output_scale(self) -> float:
        """The variance scale of the last layer of a residual branch."""
        return 0.0 if self.spec.zero_init else 1.0

    def embedding(self) -> str:
        """Add the embedding of the noise level, the class and the features, a vector."""
        spec, width = self.spec, self.spec.embedding_width or 4 * self.spec.channels
        features = spec.channels * spec.embedding_multiplier
        h = self.add("embed.features", self.time_features(features), "c_noise")
        if spec.class_embedding == "before":
            h = self.add_class_embedding(h)
        if spec.augment_dim:
            augment = self.linear("embed.augment", "features", features, bias=False)
            h = self.add("embed.add_augment", Add(1.0), h, augment)
        h = self.linear("embed.dense0", h, width)
        h = self.act("embed.act0", h)
        h = self.linear("embed.dense1", h, width)
        if spec.second_time:
            second = self.add("embed.second.features", self.time_features(features), "second_time")
            second = self.act("embed.second.act0", self.linear("embed.second.dense0", second, width))
            h = self.add("embed.add_second", Add(1.0), h, self.linear("embed.second.dense1", second, width))
        if spec.class_embedding == "after":
            h = self.add_class_embedding(h)
        return self.nonlinearity("embed.act1", h)

    def time_features(self, features: int) -> Block:
        """Return the block that turns a time into features."""
        spec = self.spec
        if spec.embedding == "fourier":
            return Fourier(features, spec.embedding_scale, spec.embedding_sin_first)
        divisor = features / 2 - (spec.embedding_divisor == "half_minus_one")
        return Sinusoid(features, 10000.0, divisor, spec.embedding_sin_first)

    def add_class_embedding(self, h: str) -> str:
        """Add the row of the class to the vector, if there are classes."""
        spec, width = self.spec, self.width(h)
        if not spec.num_classes:
            return h
        zero = spec.null_class == "zero"
        table = Embedding(spec.num_classes + (not zero), width, zero)
        return self.add("embed.add", Add(1.0), h, self.add("embed.label", table, "label"))

    def stage(self, name: str, x: str, width: int, attend: bool) -> str:
        """Add a residual block, and attention if `attend`."""
        x = self.residual(f"{name}.block", x, width)
        return self.attention(f"{name}.attn", x) if attend else x

    def residual(
        self, name: str, x: str, width: int, resample: Block | None = None, skip_scale: float | None = None
    ) -> str:
        """Add a residual block."""
        spec = self.spec
        h = self.nonlinearity(f"{name}.act0", self.norm(f"{name}.norm0", x))
        project = self.width(x) != width
        if resample is not None:
            h = self.add(f"{name}.resample", resample, h)
            x = self.add(f"{name}.resample_skip", resample, x)
            project |= spec.resample_projection
        h = self.conv(f"{name}.conv0", h, width)
        if spec.time == "add":
            time = self.linear(f"{name}.time", self.embedded, width)
            h = self.add(f"{name}.add_time", Add(1.0), h, time)
            h = self.norm(f"{name}.norm1", h)
        else:
            time = self.linear(f"{name}.time", self.embedded, 2 * width)
            h = self.norm(f"{name}.norm1", h)
            h = self.add(f"{name}.modulate", Modulate(width), h, time)
        h = self.nonlinearity(f"{name}.act1", h)
        if spec.dropout:
            h = self.add(f"{name}.dropout", Dropout(spec.dropout, self.dropouts), h)
            self.dropouts += 1
        h = self.conv(f"{name}.conv1", h, width, scale=self.output_scale)
        if project:
            x = self.conv(f"{name}.shortcut", x, width, kernel=1)
        return self.add(f"{name}.sum", Add(spec.skip_scale if skip_scale is None else skip_scale), x, h)

    def attention(self, name: str, x: str, groups: int | None = None, skip_scale: float | None = None) -> str:
        """Add GroupNorm, q k v, attention and projection as a residual branch; no norm for 0 groups."""
        spec, width = self.spec, self.width(x)
        if spec.head_channels and width % spec.head_channels:
            raise DuetError(
                f"model.head_channels: {spec.head_channels} channels per head do not divide {width} channels; "
                f"give a divisor of {width}, or model.heads instead"
            )
        heads = width // spec.head_channels if spec.head_channels else spec.heads
        h = x if groups == 0 else self.norm(f"{name}.norm", x, groups)
        h = self.conv(f"{name}.qkv", h, 3 * width, kernel=1, bias=spec.qkv_bias)
        h = self.add(f"{name}.attend", Attention(width, heads, spec.qkv_order), h)
        h = self.conv(f"{name}.proj", h, width, kernel=1, scale=self.output_scale)
        return self.add(f"{name}.sum", Add(spec.skip_scale if skip_scale is None else skip_scale), x, h)

    def downsample(self, name: str, x: str, how: str) -> str:
        """Halve the resolution."""
        width = self.width(x)
        if how == "block":
            return self.residual(name, x, width, self.resampling("down", AvgPool()))
        if how == "pool":
            return self.add(f"{name}.pool", AvgPool(), x)
        before, after = self.spec.down_padding
        return self.conv(f"{name}.conv", x, width, stride=2, padding=(before, after, before, after))

    def upsample(self, name: str, x: str, how: str) -> str:
        """Double the resolution."""
        width = self.width(x)
        if how == "block":
            return self.residual(name, x, width, self.resampling("up", Upsample()))
        x = self.add(f"{name}.nearest", Upsample(), x)
        return x if how == "nearest" else self.conv(f"{name}.conv", x, width)

    def resampling(self, rule: str, default: Block) -> Block:
        """Return the block that resamples: `default` for the filter (1, 1), which is the same and faster."""
        taps = tuple(self.spec.resample_filter)
        return default if len(set(taps)) == 1 and len(taps) == 2 else Resample(rule, taps, (len(taps) - 1) // 2)

    def filtered_image(self, name: str, image: str, x: str) -> str:
        """Convolve, filter and halve the image of the larger resolution, and add it to x."""
        taps = tuple(self.spec.resample_filter)
        padding = (1 + (len(taps) - 1) // 2,) * 4
        image = self.conv(f"{name}.conv", image, self.width(x), padding=padding)
        image = self.add(f"{name}.filter", Resample("down", taps), image)
        return self.add(f"{name}.sum", Add(self.spec.skip_scale), x, image)

    def norm(self, name: str, x: str, groups: int | None = None) -> str:
        """Add GroupNorm with `norm_groups`, or with a number of its own."""
        width = self.width(x)
        if groups is None:
            groups = min(self.spec.norm_groups, max(1, width // self.spec.norm_group_channels))
        return self.add(name, GroupNorm(width, groups, self.spec.norm_eps), x)

    def act(self, name: str, x: str) -> str:
        """Add SiLU."""
        return self.add(name, SiLU(), x)

    def nonlinearity(self, name: str, x: str) -> str:
        """Add the activation of the residual blocks."""
        return self.add(name, _ACTIVATIONS[self.spec.activation](), x)

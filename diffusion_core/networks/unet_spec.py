"""The options of the UNet of DDPM, improved DDPM, ADM, and of EDM's DDPM++ and NCSN++.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), appendix B, https://arxiv.org/abs/2006.11239
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2020), appendix H,
    https://arxiv.org/abs/2011.13456
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), appendix F,
    https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.blocks import ATTENTION_ORDERS
from diffusion_core.networks.builder import NetworkSpec

__all__ = ["UNetSpec", "multipliers"]


@dataclass(frozen=True, repr=False)
class UNetSpec(NetworkSpec):
    """A UNet; `lower` turns it into a program.

    Args:
        image_size: height and width in pixels, divisible by 2^(resolutions - 1).
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes.
        channels: the base width, an even number >= 4.
        channel_multipliers: width at each resolution, in base widths; the length is the number of resolutions. A
            fraction must give a whole number of channels, as 0.5, or 4/3 of 24.
        first_conv: width of the first convolution: the base width, ``"channels"``, or that of the first resolution,
            ``"first"``.
        blocks_per_resolution: residual blocks per resolution in the encoder; the decoder has one more.
        attention_resolutions: image sizes at which residual blocks are followed by self-attention.
        up_attention_resolutions: the same for the decoder; None is `attention_resolutions`.
        up_attention: in the decoder, whether ``"every"`` block at these sizes has attention or only the ``"last"`` one.
        middle: whether there are blocks between encoder and decoder.
        middle_attention: whether there is self-attention between the two middle blocks.
        middle_norm_groups: number of groups of the norm of that attention: None is `norm_groups`, 0 is no norm.
        middle_skip_scale: factor of the residual sums of the middle; None is `skip_scale`.
        heads: number of attention heads; ignored if `head_channels` is given.
        head_channels: channels per head, or None to use `heads`.
        qkv_order: order of q, k and v in the channels: ``"qkv"`` (all of q first), ``"heads"`` (head by head, as in
            older ADM weights) or ``"interleaved"`` (channel by channel, as in EDM).
        qkv_bias: whether q, k and v have biases. The gradient of the key's bias is pure rounding noise.
        norm_groups: number of groups of every GroupNorm.
        norm_group_channels: least number of channels per group; narrow layers get fewer groups.
        norm_eps: epsilon of every GroupNorm.
        activation: of the residual blocks, ``"silu"``, ``"relu"``, ``"gelu"`` or ``"mish"``; the dense layers of the
            embedding and the last convolution always follow a SiLU.
        dropout: dropout probability before the last convolution of each residual block.
        time: how the time vector enters a block, ``"add"`` or ``"scale_shift"``.
        embedding: ``"sinusoid"`` or ``"fourier"`` (random frequencies).
        embedding_divisor: ``"half_minus_one"`` (DDPM) or ``"half"`` (guided-diffusion), see `blocks.Sinusoid`.
        embedding_sin_first: whether the sines come before the cosines.
        embedding_multiplier: number of features, in base widths.
        embedding_width: length of the embedding after its dense layers; None is four base widths.
        embedding_scale: standard deviation of the random frequencies.
        class_embedding: whether the class is added ``"after"`` or ``"before"`` the dense layers of the embedding.
        null_class: embedding of "no class": the ``"last"`` row of the table, or ``"zero"``.
        augment_dim: length of an augmentation label, which is added before the dense layers; 0 without one.
        down: ``"conv"`` (3 x 3, stride 2), ``"pool"`` (2 x 2 mean) or ``"block"`` (a residual block that pools); or one
            of these for each step from a resolution to the next, from the largest image down.
        up: ``"conv"`` (nearest, then 3 x 3), ``"nearest"`` or ``"block"`` (a residual block that upsamples); or one of
            these for each of the same steps, in the same order.
        down_padding: padding of the strided convolution, (before, after): (1, 1), or (0, 1) as in the original.
        resample_filter: taps of the filter of resampling blocks; (1, 1) is mean and nearest.
        resample_projection: whether the shortcut of a resampling block has a 1 x 1 convolution.
        encoder: ``"standard"``, or ``"residual"``, which adds the downsampled image at each resolution.
        skip_scale: factor of every residual sum.
        second_time: whether a second time is embedded as the first one is, and added to it, as in MeanFlow.
        zero_init: whether the last layers of blocks and of the network start at zero.

    Raises:
        DuetError: if an option is not allowed; the message names the configuration key.

    Example:
        >>> from diffusion_core.networks import lower
        >>> lower(UNetSpec(image_size=32, channels=32, channel_multipliers=(1, 2)))
        Program(138 blocks, 919,043 parameters)
    """

    channels: int = 128
    channel_multipliers: tuple[int | float, ...] = (1, 2, 2, 2)
    blocks_per_resolution: int = 2
    attention_resolutions: tuple[int, ...] = ()
    up_attention: str = "every"
    middle_attention: bool = True
    heads: int = 1
    head_channels: int | None = None
    qkv_order: str = "qkv"
    qkv_bias: bool = True
    norm_groups: int = 32
    norm_group_channels: int = 1
    norm_eps: float = 1e-6
    dropout: float = 0.0
    time: str = "add"
    embedding: str = "sinusoid"
    embedding_divisor: str = "half_minus_one"
    embedding_sin_first: bool = True
    embedding_multiplier: int = 1
    embedding_scale: float = 16.0
    class_embedding: str = "after"
    null_class: str = "last"
    augment_dim: int = 0
    down: str | tuple[str, ...] = "conv"
    up: str | tuple[str, ...] = "conv"
    down_padding: tuple[int, int] = (1, 1)
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    resample_projection: bool = False
    encoder: str = "standard"
    skip_scale: float = 1.0
    zero_init: bool = True
    first_conv: str = "channels"
    up_attention_resolutions: tuple[int, ...] | None = None
    middle: bool = True
    middle_norm_groups: int | None = None
    middle_skip_scale: float | None = None
    activation: str = "silu"
    embedding_width: int | None = None
    second_time: bool = False

    def __post_init__(self) -> None:
        self.check(
            "channels", "blocks_per_resolution", "heads", "norm_groups", "norm_group_channels", "embedding_multiplier"
        )
        if self.head_channels is not None and self.head_channels < 1:
            raise DuetError(f"model.head_channels: {self.head_channels} was given; it must be at least 1, or null")
        if not self.norm_eps > 0:
            raise DuetError(f"model.norm_eps: {self.norm_eps} was given; it must be positive")
        if not 0 <= self.dropout < 1:
            raise DuetError(f"model.dropout: {self.dropout} was given; it must be a probability, 0 <= dropout < 1")
        if not self.channel_multipliers or min(self.channel_multipliers) <= 0:
            raise DuetError(
                f"model.channel_multipliers: {self.channel_multipliers} was given; it needs one entry > 0 per "
                f"resolution"
            )
        # Whole numbers read 2, not 2.0, however a file writes them.
        whole = tuple(int(m) if m == int(m) else m for m in self.channel_multipliers)
        object.__setattr__(self, "channel_multipliers", whole)
        for multiplier, width in zip(whole, self.widths, strict=True):
            if width < 1 or abs(self.channels * multiplier - width) > 1e-6:
                raise DuetError(
                    f"model.channel_multipliers: {multiplier} was given, which is {self.channels * multiplier:g} "
                    f"channels for model.channels={self.channels}; it must be a whole number of channels"
                )
        self.check_halving(len(self.channel_multipliers) - 1)
        sizes = self.resolutions
        for name in ("attention_resolutions", "up_attention_resolutions"):
            if unknown := [size for size in getattr(self, name) or () if size not in sizes]:
                raise DuetError(
                    f"model.{name}: {unknown[0]} was given; the resolutions of the network are "
                    f"{', '.join(map(str, sizes))}; set model.{name}=[...] with some of them"
                )
        for name, allowed in _CHOICES.items():
            value, steps = getattr(self, name), len(sizes) - 1
            if name in ("down", "up") and not isinstance(value, str) and len(value) != steps:
                raise DuetError(
                    f"model.{name}: {len(value)} ways were given; give one of {', '.join(allowed)}, or one for each of "
                    f"the {steps} steps between resolutions"
                )
            for given in (value,) if isinstance(value, str) else value:
                check_choice(f"model.{name}", given, allowed)
        if self.embedding_width is not None and self.embedding_width < 1:
            raise DuetError(f"model.embedding_width: {self.embedding_width} was given; it must be at least 1, or null")
        if self.middle_norm_groups is not None and self.middle_norm_groups < 0:
            raise DuetError(
                f"model.middle_norm_groups: {self.middle_norm_groups} was given; it must be at least 1, 0 for no norm, "
                f"or null"
            )
        if self.channels % 2 or self.channels < 4:
            raise DuetError(f"model.channels: {self.channels} was given; the time embedding needs an even number >= 4")
        if tuple(self.down_padding) not in ((1, 1), (0, 1), (1, 0)):
            raise DuetError(f"model.down_padding: {self.down_padding} was given; it must be (1, 1), (0, 1) or (1, 0)")
        if self.augment_dim < 0:
            raise DuetError(f"model.augment_dim: {self.augment_dim} was given; it must be 0 or the length of the label")
        taps = tuple(self.resample_filter)
        if len(taps) not in (2, 4) or taps != taps[::-1] or sum(taps) <= 0:
            raise DuetError(
                f"model.resample_filter: {taps} was given; it must have 2 or 4 symmetric taps, as in [1, 3, 3, 1]"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels at each resolution, from the largest image down."""
        return tuple(round(self.channels * multiplier) for multiplier in self.channel_multipliers)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The image size at each resolution, from the largest down."""
        return tuple(self.image_size // 2**level for level in range(len(self.channel_multipliers)))

    @property
    def decoder_attention(self) -> tuple[int, ...]:
        """The image sizes at which the decoder has attention."""
        own = self.up_attention_resolutions
        return self.attention_resolutions if own is None else own

    def resampling(self, way: str) -> tuple[str, ...]:
        """Return how each step between resolutions resamples, from the largest image down; `way` is down or up."""
        value = getattr(self, way)
        return (value,) * (len(self.channel_multipliers) - 1) if isinstance(value, str) else tuple(value)


def multipliers(widths: Sequence[int], channels: int) -> tuple[int | float, ...]:
    """Return the widths in base widths; whole numbers where they are."""
    return tuple(width // channels if width % channels == 0 else width / channels for width in widths)


_CHOICES = {
    "first_conv": ("channels", "first"),
    "activation": ("silu", "relu", "gelu", "mish"),
    "up_attention": ("every", "last"),
    "qkv_order": tuple(ATTENTION_ORDERS),
    "time": ("add", "scale_shift"),
    "embedding": ("sinusoid", "fourier"),
    "embedding_divisor": ("half", "half_minus_one"),
    "class_embedding": ("after", "before"),
    "null_class": ("last", "zero"),
    "down": ("conv", "pool", "block"),
    "up": ("conv", "nearest", "block"),
    "encoder": ("standard", "residual"),
}

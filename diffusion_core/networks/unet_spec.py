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

from dataclasses import dataclass

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.blocks import ATTENTION_ORDERS
from diffusion_core.networks.builder import NetworkSpec

__all__ = ["UNetSpec"]


@dataclass(frozen=True, repr=False)
class UNetSpec(NetworkSpec):
    """A UNet; `lower` turns it into a program.

    Args:
        image_size: height and width in pixels, divisible by 2^(resolutions - 1).
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes.
        channels: the base width, an even number >= 4.
        channel_multipliers: width at each resolution, in base widths; the length is the number of resolutions.
        blocks_per_resolution: residual blocks per resolution in the encoder; the decoder has one more.
        attention_resolutions: image sizes at which residual blocks are followed by self-attention.
        up_attention: in the decoder, whether ``"every"`` block at these sizes has attention or only the ``"last"`` one.
        middle_attention: whether there is self-attention between the two middle blocks.
        heads: number of attention heads; ignored if `head_channels` is given.
        head_channels: channels per head, or None to use `heads`.
        qkv_order: order of q, k and v in the channels: ``"qkv"`` (all of q first), ``"heads"`` (head by head, as in
            older ADM weights) or ``"interleaved"`` (channel by channel, as in EDM).
        qkv_bias: whether q, k and v have biases. The gradient of the key's bias is pure rounding noise.
        norm_groups: number of groups of every GroupNorm.
        norm_group_channels: least number of channels per group; narrow layers get fewer groups.
        norm_eps: epsilon of every GroupNorm.
        dropout: dropout probability before the last convolution of each residual block.
        time: how the time vector enters a block, ``"add"`` or ``"scale_shift"``.
        embedding: ``"sinusoid"`` or ``"fourier"`` (random frequencies).
        embedding_divisor: ``"half_minus_one"`` (DDPM) or ``"half"`` (guided-diffusion), see `blocks.Sinusoid`.
        embedding_sin_first: whether the sines come before the cosines.
        embedding_multiplier: number of features, in base widths.
        embedding_scale: standard deviation of the random frequencies.
        class_embedding: whether the class is added ``"after"`` or ``"before"`` the dense layers of the embedding.
        null_class: embedding of "no class": the ``"last"`` row of the table, or ``"zero"``.
        augment_dim: length of an augmentation label, which is added before the dense layers; 0 without one.
        down: ``"conv"`` (3 x 3, stride 2), ``"pool"`` (2 x 2 mean) or ``"block"`` (a residual block that pools).
        up: ``"conv"`` (nearest, then 3 x 3), ``"nearest"`` or ``"block"`` (a residual block that upsamples).
        down_padding: padding of the strided convolution, (before, after): (1, 1), or (0, 1) as in the original.
        resample_filter: taps of the filter of resampling blocks; (1, 1) is mean and nearest.
        resample_projection: whether the shortcut of a resampling block has a 1 x 1 convolution.
        encoder: ``"standard"``, or ``"residual"``, which adds the downsampled image at each resolution.
        skip_scale: factor of every residual sum.
        zero_init: whether the last layers of blocks and of the network start at zero.

    Raises:
        DuetError: if an option is not allowed; the message names the configuration key.

    Example:
        >>> from diffusion_core.networks import lower
        >>> lower(UNetSpec(image_size=32, channels=32, channel_multipliers=(1, 2)))
        Program(138 blocks, 919,043 parameters)
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
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
    down: str = "conv"
    up: str = "conv"
    down_padding: tuple[int, int] = (1, 1)
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    resample_projection: bool = False
    encoder: str = "standard"
    skip_scale: float = 1.0
    zero_init: bool = True

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
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise DuetError(
                f"model.channel_multipliers: {self.channel_multipliers} was given; it needs one entry >= 1 per "
                f"resolution"
            )
        self.check_halving(len(self.channel_multipliers) - 1)
        sizes = [self.image_size // 2**level for level in range(len(self.channel_multipliers))]
        if unknown := [size for size in self.attention_resolutions if size not in sizes]:
            raise DuetError(
                f"model.attention_resolutions: {unknown[0]} was given; the resolutions of the network are "
                f"{', '.join(map(str, sizes))}; set model.attention_resolutions=[...] with some of them"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise one_of(f"model.{name}", getattr(self, name), allowed)
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


_CHOICES = {
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

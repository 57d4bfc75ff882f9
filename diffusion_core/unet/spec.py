"""The UNet of the DDPM family, as a person writes it.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), appendix B, https://arxiv.org/abs/2006.11239
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.errors import DuetError, one_of

__all__ = ["UNetSpec"]


@dataclass(frozen=True)
class UNetSpec:
    """A UNet; `lower` turns it into a program.

    Args:
        image_size: height and width in pixels, divisible by 2^(levels - 1).
        in_channels: channels of an image.
        out_channels: channels of the network's output.
        channels: the base width.
        multipliers: width of each level, in base widths; one entry per level.
        blocks_per_level: residual blocks on the way down; one more on the way up.
        attention_sizes: image sizes at which a level's blocks are followed by self-attention.
        middle_attention: whether the middle has self-attention between its two blocks.
        heads: attention heads; unused where `head_channels` is given.
        head_channels: channels per head, or None.
        qkv_bias: whether q, k and v have biases. The key's has no gradient but rounding noise.
        norm_groups: groups of every GroupNorm.
        norm_eps: its epsilon.
        time: how the time vector enters a block, ``"add"`` or ``"scale_shift"``.
        embedding_divisor: ``"half_minus_one"`` (DDPM) or ``"half"`` (guided-diffusion).
        embedding_sin_first: order of the sinusoidal features.
        down: ``"conv"`` (3 x 3, stride 2), ``"pool"`` (2 x 2 mean) or ``"block"`` (a residual block that pools).
        up: ``"conv"`` (nearest, then 3 x 3), ``"nearest"`` or ``"block"`` (a residual block that upsamples).
        down_padding: padding of the strided convolution, (before, after): (1, 1), or (0, 1) as in the original.
        skip_scale: factor of every residual sum.
        zero_init: whether last layers of blocks and of the network start at zero.
        num_classes: classes; 0 for a network without. Label `num_classes` then means "no class".
    """

    image_size: int
    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks_per_level: int = 2
    attention_sizes: tuple[int, ...] = ()
    middle_attention: bool = True
    heads: int = 1
    head_channels: int | None = None
    qkv_bias: bool = True
    norm_groups: int = 32
    norm_eps: float = 1e-6
    time: str = "add"
    embedding_divisor: str = "half_minus_one"
    embedding_sin_first: bool = True
    down: str = "conv"
    up: str = "conv"
    down_padding: tuple[int, int] = (1, 1)
    skip_scale: float = 1.0
    zero_init: bool = True
    num_classes: int = 0

    def __post_init__(self) -> None:
        positive = ("image_size", "in_channels", "out_channels", "channels", "blocks_per_level", "heads", "norm_groups")
        for name in positive:
            if getattr(self, name) < 1:
                raise DuetError(f"model.{name}: {getattr(self, name)} was given; it must be at least 1")
        if self.head_channels is not None and self.head_channels < 1:
            raise DuetError(f"model.head_channels: {self.head_channels} was given; it must be at least 1, or null")
        if not self.norm_eps > 0:
            raise DuetError(f"model.norm_eps: {self.norm_eps} was given; it must be positive")
        if not self.multipliers or min(self.multipliers) < 1:
            raise DuetError(f"model.multipliers: {self.multipliers} was given; it needs one entry >= 1 per level")
        if self.image_size % (factor := 2 ** (len(self.multipliers) - 1)):
            low = self.image_size // factor * factor
            raise DuetError(
                f"model.image_size: {self.image_size} pixels cannot be halved {len(self.multipliers) - 1} times for "
                f"{len(self.multipliers)} levels; {f'{low} or ' if low else ''}{low + factor} would fit"
            )
        sizes = [self.image_size // 2**level for level in range(len(self.multipliers))]
        if none := [size for size in self.attention_sizes if size not in sizes]:
            raise DuetError(
                f"model.attention_sizes: {none[0]} was given, but the levels have sizes {', '.join(map(str, sizes))}"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise one_of(f"model.{name}", getattr(self, name), allowed)
        if self.channels % 2 or self.channels < 4:
            raise DuetError(f"model.channels: {self.channels} was given; the time embedding needs an even number >= 4")
        if self.num_classes < 0:
            raise DuetError(f"model.num_classes: {self.num_classes} was given; it is 0 or the number of classes")
        if tuple(self.down_padding) not in ((1, 1), (0, 1), (1, 0)):
            raise DuetError(f"model.down_padding: {self.down_padding} was given; it must be (1, 1), (0, 1) or (1, 0)")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (h, w, c)."""
        return self.image_size, self.image_size, self.in_channels


_CHOICES = {
    "time": ("add", "scale_shift"),
    "embedding_divisor": ("half", "half_minus_one"),
    "down": ("conv", "pool", "block"),
    "up": ("conv", "nearest", "block"),
}

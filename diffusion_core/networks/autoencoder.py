r"""The autoencoder of latent diffusion as two programs, and its latents.

encoder:  conv_in -> levels of residual blocks, all but the last halved by a convolution -> block, attention, block
          -> GroupNorm, SiLU, conv -> 1 x 1 convolution                        2 L channels: mean and log-variance
decoder:  1 x 1 convolution -> conv_in -> block, attention, block -> the levels in reverse, with a block more each, all
          but the last doubled by nearest neighbours and a convolution -> GroupNorm, SiLU, conv

The halving convolution has zeros below and right of the image only. Attention has one head. Nothing depends on the size
of an image. With the moments of an image

    mean, log_variance = the halves of the encoder's output,     log_variance bounded to -30 .. 20

a diffusion model is trained on

    latent = scaling_factor (z - shift_factor),      z = mean,  or mean + exp(log_variance/2) eps

and the decoder reads z = latent / scaling_factor + shift_factor. With a mean m and a deviation s for each channel,

    latent = scaling_factor (z - m) / s

so that latents have deviation scaling_factor: EDM2 takes 1/2, its sigma_data. EDM2 also gives its autoencoder images in
[0, 1], where that of Stable Diffusion was trained on [-1, 1]: an `image_range`.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022), appendix G,
    https://arxiv.org/abs/2112.10752
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024), its code
    (NVlabs/edm2, training/encoders.py), https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.blocks import Add, Attention, GroupNorm, SiLU, Upsample
from diffusion_core.networks.builder import Builder
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights

__all__ = ["CONVENTIONS", "DEFAULT", "Autoencoder", "AutoencoderSpec", "moments"]

Array = NDArray[np.float64]

LOG_VARIANCE = (-30.0, 20.0)
# The epsilon of every group norm; the configuration of an autoencoder has none.
_EPS = 1e-6

# How latents are scaled, by name: fields of an `AutoencoderSpec` in place of its own.
DEFAULT = "autoencoder"
CONVENTIONS: dict[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "edm2": {
        "latents_mean": (5.81, 3.25, 0.12, -2.15),
        "latents_std": (4.17, 4.62, 3.71, 3.28),
        "scaling_factor": 0.5,
        "shift_factor": 0.0,
        "image_range": (0.0, 1.0),
    },
}


@dataclass(frozen=True)
class AutoencoderSpec:
    """An autoencoder.

    Args:
        in_channels: channels of an image.
        out_channels: channels of a decoded image.
        latent_channels: L.
        channels: of each level, from the largest to the smallest images.
        blocks_per_level: residual blocks of each level of the encoder; the decoder has one more.
        norm_groups: groups of the group norms.
        middle_attention: whether there is attention between the two middle blocks.
        quant_conv: whether the encoder ends with a 1 x 1 convolution.
        post_quant_conv: whether the decoder begins with one.
        scaling_factor: see the module, like shift_factor.
        shift_factor: is subtracted from z.
        latents_mean: m of each channel; () for a shift_factor alone.
        latents_std: s of each channel.
        image_range: of the images that the encoder takes and the decoder returns.
        image_size: of the images that it was trained on, for display.

    Raises:
        DuetError: if a number is below 1, or the groups do not divide a level's channels.

    Example:
        >>> spec = AutoencoderSpec(channels=(128, 256, 512, 512), blocks_per_level=2)
        >>> spec.encoder
        Program(85 blocks, 34,163,664 parameters)
        >>> spec.decoder
        Program(116 blocks, 49,490,199 parameters)
        >>> spec.latent_shape(256, 320)
        (32, 40, 4)
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (64,)
    blocks_per_level: int = 1
    norm_groups: int = 32
    middle_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    image_range: tuple[float, float] = (-1.0, 1.0)
    image_size: int = 32

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "latent_channels", "blocks_per_level", "norm_groups"):
            if getattr(self, name) < 1:
                raise DuetError(f"autoencoder.{name}: {getattr(self, name)} was given; it must be at least 1")
        if not self.channels or any(width < 1 or width % self.norm_groups for width in self.channels):
            raise DuetError(
                f"autoencoder.channels: {list(self.channels)} was given; each must be a multiple of the "
                f"{self.norm_groups} groups of the norms"
            )
        if not self.scaling_factor or not np.isfinite([self.scaling_factor, self.shift_factor]).all():
            raise DuetError(
                f"autoencoder.scaling_factor: {self.scaling_factor} was given with shift_factor {self.shift_factor}; "
                f"both must be finite, and the first not 0"
            )
        self._check_statistics()

    def _check_statistics(self) -> None:
        """Refuse a mean or a deviation that is not one number for each channel."""
        for name, other in (("latents_mean", "latents_std"), ("latents_std", "latents_mean")):
            values = getattr(self, name)
            if not values and not getattr(self, other):
                continue
            if len(values) != self.latent_channels or not np.isfinite(values).all():
                raise DuetError(
                    f"autoencoder.{name}: {list(values)} was given; it must be a finite number for each of the "
                    f"{self.latent_channels} channels of a latent, as {other} is"
                )
        if any(value <= 0 for value in self.latents_std):
            raise DuetError(f"autoencoder.latents_std: {list(self.latents_std)} was given; all must be positive")
        if self.latents_mean and self.shift_factor:
            raise DuetError(
                f"autoencoder.shift_factor: {self.shift_factor} was given with latents_mean, which takes its place; "
                f"leave one out"
            )
        low, high = self.image_range
        if not -np.inf < low < high < np.inf:
            raise DuetError(
                f"autoencoder.image_range: {list(self.image_range)} was given; it must be two rising numbers, as in "
                f"[-1, 1]"
            )

    @property
    def factor(self) -> int:
        """Pixels of an image per pixel of its latent, along each axis."""
        return 2 ** (len(self.channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape (h, w, c) of the latent of an image.

        Raises:
            DuetError: if the size is no multiple of the factor.
        """
        if height % self.factor or width % self.factor:
            raise DuetError(
                f"autoencoder: images of {height} x {width} pixels were given; it makes one pixel of {self.factor} x "
                f"{self.factor}, so both must be multiples of {self.factor}"
            )
        return height // self.factor, width // self.factor, self.latent_channels

    @cached_property
    def encoder(self) -> Program:
        """The program from images to moments, with 2 L channels."""
        return _Builder(self, self.in_channels).encoder()

    @cached_property
    def decoder(self) -> Program:
        """The program from z to images."""
        return _Builder(self, self.latent_channels).decoder()

    def to_latents(self, z: NDArray) -> Array:
        """Return the latents of z."""
        if self.latents_mean:
            return self.scaling_factor * (np.asarray(z, np.float64) - self.latents_mean) / self.latents_std
        return self.scaling_factor * (np.asarray(z, np.float64) - self.shift_factor)

    def spread_of_latents(self, std: NDArray) -> Array:
        """Return the standard deviation of latents, for that of z."""
        return abs(self.scaling_factor) * np.asarray(std, np.float64) / (self.latents_std or 1.0)

    def from_latents(self, latents: NDArray) -> Array:
        """Return the z of latents."""
        if self.latents_mean:
            return np.asarray(latents, np.float64) / self.scaling_factor * self.latents_std + self.latents_mean
        return np.asarray(latents, np.float64) / self.scaling_factor + self.shift_factor


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """An autoencoder with its weights.

    Args:
        spec: its two programs.
        encoder: the weights of the encoder by name.
        decoder: those of the decoder.
    """

    spec: AutoencoderSpec
    encoder: Weights
    decoder: Weights

    def scaled(self, convention: str = DEFAULT, **changes: Any) -> Autoencoder:
        """Return it with other latents of the same z.

        Args:
            convention: one of `CONVENTIONS`.
            changes: scaling_factor, shift_factor, latents_mean, latents_std and image_range of its spec, in place of
                those of the convention.

        Raises:
            DuetError: for a convention that does not exist, or does not fit the channels of its latents.
        """
        check_choice("latents.scaling", convention, CONVENTIONS)
        fields = {**CONVENTIONS[convention], **changes}
        if (mean := fields.get("latents_mean")) and len(mean) != self.spec.latent_channels and not changes:
            raise DuetError(
                f"latents.scaling: {convention} was given, whose latents have {len(mean)} channels, but those of this "
                f"autoencoder have {self.spec.latent_channels}; use {DEFAULT}, or give latents.mean and latents.std"
            )
        return replace(self, spec=replace(self.spec, **fields))

    @property
    def sha256(self) -> str:
        """The hash of both programs and of all weights as float32: what z was made with."""
        digest = hashlib.sha256(f"{self.spec.encoder.sha256} {self.spec.decoder.sha256}".encode())
        for weights in (self.encoder, self.decoder):
            for name in sorted(weights):
                digest.update(name.encode() + np.ascontiguousarray(weights[name], "<f4").tobytes())
        return digest.hexdigest()


def moments(output: NDArray) -> tuple[Array, Array]:
    """Return (mean, standard deviation) of an encoder's output (B, h, w, 2 L).

    Example:
        >>> mean, std = moments(np.array([1.0, 0.0, 2.0, 100.0]).reshape(1, 1, 1, 4))
        >>> mean.ravel(), std.ravel()  # exp(2/2), exp(20/2)
        (array([1., 0.]), array([2.71828183e+00, 2.20264658e+04]))
    """
    mean, log_variance = np.split(np.asarray(output, np.float64), 2, axis=-1)
    return mean, np.exp(0.5 * np.clip(log_variance, *LOG_VARIANCE))


@dataclass(frozen=True)
class _Part:
    """What a `Builder` reads of a spec."""

    image_shape: tuple[int, int, int]
    self_conditioning: bool = False
    init: str = "torch"


class _Builder(Builder):
    """Builds one of the two programs."""

    def __init__(self, spec: AutoencoderSpec, inputs: int) -> None:
        size = 2 * spec.factor  # of any image: no block depends on it
        super().__init__(_Part((size, size, inputs)))  # type: ignore[arg-type]
        self.autoencoder = spec

    def encoder(self) -> Program:
        spec = self.autoencoder
        x = self.conv("conv_in", "x", spec.channels[0])
        for level, width in enumerate(spec.channels):
            for i in range(spec.blocks_per_level):
                x = self.residual(f"down.{level}.{i}", x, width)
            if level < len(spec.channels) - 1:
                x = self.conv(f"down.{level}.conv", x, width, stride=2, padding=(0, 1, 0, 1))
        x = self.end(self.middle(x), 2 * spec.latent_channels)
        if spec.quant_conv:
            self.conv("quant", x, 2 * spec.latent_channels, kernel=1)
        return self.program()

    def decoder(self) -> Program:
        spec, x = self.autoencoder, "x"
        if spec.post_quant_conv:
            x = self.conv("quant", x, spec.latent_channels, kernel=1)
        x = self.middle(self.conv("conv_in", x, spec.channels[-1]))
        for level, width in enumerate(reversed(spec.channels)):
            for i in range(spec.blocks_per_level + 1):
                x = self.residual(f"up.{level}.{i}", x, width)
            if level < len(spec.channels) - 1:
                x = self.conv(f"up.{level}.conv", self.add(f"up.{level}.nearest", Upsample(), x), width)
        self.end(x, spec.out_channels)
        return self.program()

    def middle(self, x: str) -> str:
        """Add a block, attention and a block."""
        x = self.residual("mid.0", x, self.width(x))
        if self.autoencoder.middle_attention:
            width = self.width(x)
            h = self.conv("mid.attn.qkv", self.norm("mid.attn.norm", x), 3 * width, kernel=1)
            h = self.add("mid.attn.attend", Attention(width, 1, "qkv"), h)
            x = self.add("mid.attn.sum", Add(1.0), self.conv("mid.attn.proj", h, width, kernel=1), x)
        return self.residual("mid.1", x, self.width(x))

    def residual(self, name: str, x: str, width: int) -> str:
        """Add a residual block."""
        h = self.add(f"{name}.act0", SiLU(), self.norm(f"{name}.norm0", x))
        h = self.conv(f"{name}.conv0", h, width)
        h = self.add(f"{name}.act1", SiLU(), self.norm(f"{name}.norm1", h))
        h = self.conv(f"{name}.conv1", h, width)
        if self.width(x) != width:
            x = self.conv(f"{name}.shortcut", x, width, kernel=1)
        return self.add(f"{name}.sum", Add(1.0), x, h)

    def end(self, x: str, width: int) -> str:
        """Add the last norm, activation and convolution."""
        return self.conv("out.conv", self.add("out.act", SiLU(), self.norm("out.norm", x)), width)

    def norm(self, name: str, x: str) -> str:
        return self.add(name, GroupNorm(self.width(x), self.autoencoder.norm_groups, _EPS), x)

"""The plain UNet of introductory texts: convolutions and ReLU, no normalisation, no attention.

double:  Conv 3x3 -> ReLU -> Conv 3x3 -> ReLU
in:      [x, time]                                  the time as an extra channel, constant over the pixels; or x alone
down:    double -> MaxPool; the skip is the value before the pool
bottom:  double
up:      transposed Conv 2x2, stride 2 (or nearest x2) -> [x, skip] -> double
out:     Conv 1x1 (-> Sigmoid)

With the time channel it denoises. Without it, and with a sigmoid, it is an auto-encoder with skips on [0, 1].

Reference: U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015),
https://arxiv.org/abs/1505.04597, but with padded convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.blocks import ConvTranspose, MaxPool, Number, ReLU, Sigmoid, Upsample
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program

__all__ = ["PlainSpec"]

_CHOICES = {"time": ("channel", "none"), "up": ("transposed", "nearest"), "output": ("linear", "sigmoid")}


@dataclass(frozen=True, repr=False)
class PlainSpec(NetworkSpec):
    """A UNet of convolutions and ReLU alone.

    Args:
        image_size: height and width in pixels, divisible by 2^len(channels).
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: 0; this architecture has no class embedding.
        channels: width at each resolution, from the largest down.
        bottleneck: width at the smallest resolution.
        time: ``"channel"`` (an extra input channel) or ``"none"`` (the network does not read the noise level).
        time_scale: factor of the time channel; without effect if `time` is ``"none"``.
        up: ``"transposed"`` (a transposed convolution to the next width) or ``"nearest"``.
        output: ``"linear"`` or ``"sigmoid"``, for images in [0, 1].

    Example:
        >>> from diffusion_core.networks import lower
        >>> from diffusion_core.networks.weights import parameter_count
        >>> parameter_count(lower(PlainSpec(8, 1, 1, channels=(4,), bottleneck=8)))
        1681
    """

    channels: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: int = 1024
    time: str = "channel"
    time_scale: float = 1.0
    up: str = "transposed"
    output: str = "linear"

    def __post_init__(self) -> None:
        self.check("bottleneck")
        self.check_no_classes()
        if not self.channels or min(self.channels) < 1:
            raise DuetError(f"model.channels: {self.channels} was given; it needs one width >= 1 per resolution")
        self.check_halving(len(self.channels))
        for name, allowed in _CHOICES.items():
            check_choice(f"model.{name}", getattr(self, name), allowed)


@lower.register
def _(spec: PlainSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: PlainSpec

    def build(self) -> Program:
        spec = self.spec
        x, skips = self.image(), []
        if spec.time == "channel":
            x = self.concat("in.concat", x, self.add("in.time", Number(spec.time_scale), "c_noise"))
        for level, width in enumerate(spec.channels):
            x = self.double(f"down.{level}", x, width)
            skips.append(x)
            x = self.add(f"down.{level}.pool", MaxPool(), x)
        x = self.double("bottom", x, spec.bottleneck)
        for level, width in reversed(list(enumerate(spec.channels))):
            x = self.upsample(f"up.{level}", x, width)
            x = self.concat(f"up.{level}.concat", x, skips.pop())
            x = self.double(f"up.{level}", x, width)
        x = self.conv("out", x, spec.out_channels, kernel=1)
        if spec.output == "sigmoid":
            self.add("out_act", Sigmoid(), x)
        return self.program()

    def double(self, name: str, x: str, width: int) -> str:
        for i in range(2):
            x = self.add(f"{name}.act{i}", ReLU(), self.conv(f"{name}.conv{i}", x, width))
        return x

    def upsample(self, name: str, x: str, width: int) -> str:
        if self.spec.up == "nearest":
            return self.add(f"{name}.nearest", Upsample(), x)
        return self.add(f"{name}.resize", ConvTranspose(self.width(x), width, 2, 2, 0, True, 1.0), x)

"""The small UNet of a TensorFlow project that generated 28 x 28 colour images in 300 steps.

embed:  c_noise -> Sinusoid -> Linear -> ReLU                        a vector per sample
block:  Conv 3x3 -> ReLU -> BatchNorm; + ReLU(Linear(time)) on every pixel; Conv 3x3 -> ReLU -> BatchNorm
in:     Conv 3x3
down:   block -> Conv 4x4, stride 2; its output is the skip
up:     [x, skip] -> block -> transposed Conv 4x4, stride 2
out:    Conv 1x1

The skips are the outputs of the strided convolutions. So the deepest value is concatenated with itself, and there is no
skip at full resolution. Normalisation comes after the activation. The convolutions before it have biases, whose
gradients do not vanish because a ReLU lies between.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import Add, BatchNorm, ConvTranspose, ReLU, Sinusoid
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program

__all__ = ["SimpleSpec"]


@dataclass(frozen=True, repr=False)
class SimpleSpec(NetworkSpec):
    """A UNet with batch normalisation, and skips taken after each strided convolution.

    Args:
        image_size: height and width in pixels, divisible by 2^(len(channels) - 1).
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: 0; this architecture has no class embedding.
        channels: width of the first convolution, then at each resolution.
        embedding: length of the time embedding and width of its dense layer, an even number >= 4.
        norm_eps: epsilon of batch normalisation; the default is that of Keras.
        norm_momentum: weight of the batch in the running statistics; the default is that of Keras, which calls it 0.99.

    Example:
        >>> from diffusion_core.networks import lower
        >>> from diffusion_core.networks.weights import parameter_count
        >>> parameter_count(lower(SimpleSpec(8, 1, 1, channels=(4, 8, 8), embedding=8)))
        8357
    """

    channels: tuple[int, ...] = (28, 128, 256)
    embedding: int = 32
    norm_eps: float = 1e-3
    norm_momentum: float = 0.01

    def __post_init__(self) -> None:
        self.check("embedding")
        self.check_no_classes()
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise DuetError(f"model.channels: {self.channels} was given; it needs two or more widths, each >= 1")
        self.check_halving(len(self.channels) - 1)
        if self.embedding % 2 or self.embedding < 4:
            raise DuetError(f"model.embedding: {self.embedding} was given; it must be an even number >= 4")
        if not self.norm_eps > 0:
            raise DuetError(f"model.norm_eps: {self.norm_eps} was given; it must be positive")
        if not 0 < self.norm_momentum <= 1:
            raise DuetError(
                f"model.norm_momentum: {self.norm_momentum} was given; it must be a weight with 0 < norm_momentum <= 1"
            )


@lower.register
def _(spec: SimpleSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: SimpleSpec

    def build(self) -> Program:
        spec = self.spec
        self.embedded = self.embedding()
        x = self.conv("in", self.image(), spec.channels[0])
        skips = []
        for level, width in enumerate(spec.channels[1:]):
            x = self.block(f"down.{level}", x, width)
            x = self.conv(f"down.{level}.conv", x, width, kernel=4, stride=2, padding=(1, 1, 1, 1))
            skips.append(x)
        for level, width in reversed(list(enumerate(spec.channels[:-1]))):
            x = self.concat(f"up.{level}.concat", x, skips.pop())
            x = self.block(f"up.{level}", x, width)
            x = self.add(f"up.{level}.conv", ConvTranspose(width, width, 4, 2, 1, True, 1.0), x)
        self.conv("out", x, spec.out_channels, kernel=1)
        return self.program()

    def embedding(self) -> str:
        dim = self.spec.embedding
        h = self.add("embed.features", Sinusoid(dim, 10000.0, dim / 2 - 1, True), "c_noise")
        return self.add("embed.act", ReLU(), self.linear("embed.dense", h, dim))

    def block(self, name: str, x: str, width: int) -> str:
        """Add two convolutions, each followed by ReLU and the norm, with the time in between."""
        x = self.normed_conv(name, 0, x, width)
        time = self.add(f"{name}.time_act", ReLU(), self.linear(f"{name}.time", self.embedded, width))
        return self.normed_conv(name, 1, self.add(f"{name}.add_time", Add(1.0), x, time), width)

    def normed_conv(self, name: str, i: int, x: str, width: int) -> str:
        x = self.add(f"{name}.act{i}", ReLU(), self.conv(f"{name}.conv{i}", x, width))
        return self.add(f"{name}.norm{i}", BatchNorm(width, self.spec.norm_eps, self.spec.norm_momentum), x)

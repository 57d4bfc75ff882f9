"""The UNet of a TensorFlow notebook that samples in sixteen steps: it maps an image to the next noise level.

time:    c_noise -> Linear -> LayerNorm -> ReLU                      of the step number; a vector per sample
block:   a = ReLU(Conv 3x3(x)) * ReLU(Linear(time)),  b = Conv 3x3(x);   ReLU(LayerNorm(a + b)), over channels
down:    block -> MaxPool, except at the last resolution
bottom:  Flatten -> [x, time] -> Linear -> LayerNorm -> ReLU -> Linear -> LayerNorm -> ReLU -> Unflatten
up:      [x, skip] -> block -> nearest x2, except at the last resolution
out:     Conv 1x1

The second LayerNorm of the bottom normalises over all pixels and channels of the smallest image together. The time
vector multiplies one branch, so it can switch a channel of the branch off.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import Add, Flatten, LayerNorm, MaxPool, Multiply, Number, ReLU, Unflatten, Upsample
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program

__all__ = ["SixteenStepSpec"]


@dataclass(frozen=True, repr=False)
class SixteenStepSpec(NetworkSpec):
    """A UNet of one width with multiplicative time and a dense bottleneck, for images of one size.

    Args:
        image_size: height and width in pixels, divisible by 2^(levels - 1).
        in_channels: channels of an image.
        out_channels: channels of the network's output.
        num_classes: 0; this architecture has no class embedding.
        channels: width of every block.
        levels: number of resolutions, each half of the previous one.
        embedding: width of the time vector.
        bottleneck: width of the narrowest layer.
        bottom_channels: channels of the smallest image after the bottleneck.
        norm_eps: epsilon of every norm; the default is that of Keras.

    Example:
        >>> from diffusion_core.networks import lower
        >>> from diffusion_core.networks.weights import parameter_count
        >>> spec = SixteenStepSpec(8, 1, 1, channels=8, levels=2, embedding=8, bottleneck=16, bottom_channels=4)
        >>> parameter_count(lower(spec))
        9225
    """

    channels: int = 128
    levels: int = 4
    embedding: int = 192
    bottleneck: int = 128
    bottom_channels: int = 32
    norm_eps: float = 1e-3

    def __post_init__(self) -> None:
        self.check("channels", "levels", "embedding", "bottleneck", "bottom_channels")
        self.check_no_classes()
        self.check_halving(self.levels - 1)
        if not self.norm_eps > 0:
            raise DuetError(f"model.norm_eps: {self.norm_eps} was given; it must be positive")


@lower.register
def _(spec: SixteenStepSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: SixteenStepSpec

    def build(self) -> Program:
        spec = self.spec
        number = self.add("time.number", Number(1.0), "c_noise")
        self.time = self.dense("time", number, spec.embedding)
        x, skips = self.image(), []
        for level in range(spec.levels):
            if level:
                x = self.add(f"down.{level}.pool", MaxPool(), x)
            x = self.block(f"down.{level}", x)
            skips.append(x)
        x = self.bottom(x, spec.image_size // 2 ** (spec.levels - 1))
        for level in reversed(range(spec.levels)):
            x = self.concat(f"up.{level}.concat", x, skips.pop())
            x = self.block(f"up.{level}", x)
            if level:
                x = self.add(f"up.{level}.nearest", Upsample(), x)
        self.conv("out", x, spec.out_channels, kernel=1)
        return self.program()

    def block(self, name: str, x: str) -> str:
        """Add a convolution that the time multiplies, plus one without the time."""
        width = self.spec.channels
        a = self.relu(f"{name}.branch_act", self.conv(f"{name}.branch", x, width))
        time = self.relu(f"{name}.time_act", self.linear(f"{name}.time", self.time, width))
        a = self.add(f"{name}.multiply", Multiply(), a, time)
        x = self.add(f"{name}.sum", Add(1.0), self.conv(f"{name}.conv", x, width), a)
        return self.normed(name, x)

    def bottom(self, x: str, size: int) -> str:
        """Add a dense bottleneck of all pixels and the time, and return to an image of the same size."""
        spec = self.spec
        x = self.add("bottom.flatten", Flatten(), x)
        x = self.concat("bottom.concat", x, self.time)
        x = self.dense("bottom.0", x, spec.bottleneck)
        x = self.dense("bottom.1", x, size * size * spec.bottom_channels)
        return self.add("bottom.unflatten", Unflatten(size, size), x)

    def dense(self, name: str, x: str, width: int) -> str:
        return self.normed(name, self.linear(f"{name}.dense", x, width))

    def normed(self, name: str, x: str) -> str:
        x = self.add(f"{name}.norm", LayerNorm((self.width(x),), self.spec.norm_eps), x)
        return self.relu(f"{name}.act", x)

    def relu(self, name: str, x: str) -> str:
        return self.add(name, ReLU(), x)

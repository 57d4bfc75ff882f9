"""Building a program: nodes are added one after the other, and each call gives the name of its value.

An architecture is a frozen dataclass, its spec, and a function that lowers it to a program with a `Builder`.

References:
    Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning (Chen et al., 2022),
    https://arxiv.org/abs/2208.04202
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2023), the uncertainty of the
    loss, https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import ClassVar

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import Block, Concat, Conv, Fourier, Linear
from diffusion_core.networks.program import INPUTS, Node, Program

__all__ = ["Builder", "NetworkSpec", "lower", "with_uncertainty"]

# Far beyond any network; a stored spec that asks for more would keep a reader busy for ever.
MOST_BLOCKS = 20_000


@dataclass(frozen=True)
class NetworkSpec:
    """What every architecture says of its images.

    Args:
        image_size: height and width in pixels.
        in_channels: channels of an image.
        out_channels: channels of the network's output: as many, or twice as many with a variance for each.
        num_classes: classes; 0 for a network without.
        self_conditioning: whether the first layer is given an estimate of the image beside the image.
    """

    # Whether the output is logits of the classes, and no prediction of an image.
    classifies: ClassVar[bool] = False

    image_size: int
    in_channels: int = 3
    out_channels: int = 3
    num_classes: int = field(default=0, kw_only=True)
    self_conditioning: bool = field(default=False, kw_only=True)

    def check(self, *names: str) -> None:
        """Refuse numbers that must be at least 1: those of the images and the named ones."""
        for name in ("image_size", "in_channels", "out_channels", *names):
            if getattr(self, name) < 1:
                raise DuetError(f"model.{name}: {getattr(self, name)} was given; it must be at least 1")
        if self.num_classes < 0:
            raise DuetError(f"model.num_classes: {self.num_classes} was given; it is 0 or the number of classes")

    def check_no_classes(self) -> None:
        """Refuse classes in a network that cannot use them."""
        if self.num_classes:
            raise DuetError(
                f"model.num_classes: {self.num_classes} was given; this network knows no classes, so 0 fits"
            )

    def check_halving(self, times: int) -> None:
        """Refuse an image size that cannot be halved so many times."""
        if self.image_size % (factor := 2**times):
            low = self.image_size // factor * factor
            raise DuetError(
                f"model.image_size: {self.image_size} pixels cannot be halved {times} times for "
                f"{times + 1} levels; {f'{low} or ' if low else ''}{low + factor} would fit"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (h, w, c)."""
        return self.image_size, self.image_size, self.in_channels


@singledispatch
def lower(spec: NetworkSpec) -> Program:
    """The program of a network; every architecture registers its own."""
    raise TypeError(f"{type(spec).__name__} is not a network that can be lowered")


class Builder:
    """Collects nodes and remembers how many channels each value has."""

    def __init__(self, spec: NetworkSpec, features: int = 0) -> None:
        self.spec = spec
        self.nodes: list[Node] = []
        self.features = features
        images = dict.fromkeys(("x", "estimate"), spec.in_channels)
        self.widths: dict[str, int] = {**dict.fromkeys(INPUTS, 1), **images, "features": features}

    def image(self) -> str:
        """What the first layer reads: the image, and the estimate behind it in a self-conditioned network."""
        return self.concat("with_estimate", "x", "estimate") if self.spec.self_conditioning else "x"

    def add(self, name: str, block: Block, *inputs: str, width: int | None = None) -> str:
        """Add a node; its value has `width` channels, by default as many as its first input."""
        if len(self.nodes) == MOST_BLOCKS:
            raise DuetError(f"model: it has more than {MOST_BLOCKS} blocks; fewer levels, or fewer blocks of each, fit")
        self.nodes.append(Node(name, block, inputs))
        self.widths[name] = self.widths[inputs[0]] if width is None else width
        return name

    def linear(self, name: str, x: str, width: int, bias: bool = True, scale: float = 1.0) -> str:
        """A dense layer on a vector."""
        return self.add(name, Linear(self.widths[x], width, bias, scale), x, width=width)

    def conv(
        self,
        name: str,
        x: str,
        width: int,
        kernel: int = 3,
        stride: int = 1,
        padding: tuple[int, int, int, int] | None = None,
        bias: bool = True,
        scale: float = 1.0,
    ) -> str:
        """A convolution, padded by kernel/2 on every side unless said otherwise."""
        padding = (kernel // 2,) * 4 if padding is None else padding
        return self.add(name, Conv(self.widths[x], width, kernel, stride, padding, bias, scale), x, width=width)

    def concat(self, name: str, x: str, y: str) -> str:
        """The channels of x, then of y."""
        return self.add(name, Concat(), x, y, width=self.widths[x] + self.widths[y])

    def program(self, null_label: int | None = None, classes: int = 0) -> Program:
        """The program of all nodes."""
        return Program(tuple(self.nodes), null_label, classes, self.features)


def with_uncertainty(program: Program, scale: float, features: int = 128) -> Program:
    """The program with one channel more: the logarithm of the variance of its loss at a noise level (Karras et al.).

    It is a linear function of random Fourier features of c_noise, the same at every pixel, and starts at zero.

    Args:
        program: any network.
        scale: standard deviation of the frequencies, about the inverse of the range of c_noise.
        features: sines and cosines.
    """
    head = (
        Node("uncertainty.features", Fourier(features, scale, sin_first=False), ("c_noise",)),
        Node("uncertainty.dense", Linear(features, 1, bias=False, scale=0.0), ("uncertainty.features",)),
        Node("with_uncertainty", Concat(), (program.nodes[-1].name, "uncertainty.dense")),
    )
    return replace(program, nodes=program.nodes + head, uncertainty=True)

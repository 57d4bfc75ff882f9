"""Specs of networks, and the builder that lowers a spec to a program.

An architecture is a frozen dataclass, its spec, and a function registered with `lower` that turns the spec into a
`Program`. The function adds nodes to a `Builder`; each call returns the name of the new value.

References:
    Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning (Chen et al., 2022),
    https://arxiv.org/abs/2208.04202
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2023), the uncertainty of the
    loss, https://arxiv.org/abs/2312.02696
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from functools import singledispatch
from typing import Any, ClassVar

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import Concat, Conv, Fourier, Linear
from diffusion_core.networks.initialisation import check_init
from diffusion_core.networks.program import Node, Program, input_shapes
from diffusion_core.networks.registry import Block

__all__ = ["Builder", "NetworkSpec", "lower", "with_uncertainty"]

# No real network is near this limit. It keeps a corrupted or hostile checkpoint from building for ever.
MAX_BLOCKS = 20_000


@dataclass(frozen=True, repr=False)
class NetworkSpec:
    """The options that every architecture has.

    Args:
        image_size: height and width in pixels.
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes.
        self_conditioning: whether the first layer also reads an earlier estimate of the image.
        init: where the weights start: ``"ddpm"``, as the layers of ``"keras"`` or ``"torch"`` do, or as
            ``"dit"`` or ``"uvit"``; see `initialisation`.
    """

    # Whether the output is the logits of the classes instead of an image.
    classifies: ClassVar[bool] = False
    # Whether a configuration lists its options. Those of an own network are read off the network.
    configurable: ClassVar[bool] = True

    image_size: int
    in_channels: int = 3
    out_channels: int = 3
    num_classes: int = field(default=0, kw_only=True)
    self_conditioning: bool = field(default=False, kw_only=True)
    init: str = field(default="ddpm", kw_only=True)

    def __repr__(self) -> str:
        """Show the options that differ from their defaults, on one line."""
        options = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in options)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data, as a checkpoint keeps them."""
        return asdict(self)

    def check(self, *names: str) -> None:
        """Raise a `DuetError` if a common option is not allowed, or one of the named fields is below 1."""
        for name in ("image_size", "in_channels", "out_channels", *names):
            if getattr(self, name) < 1:
                raise DuetError(f"model.{name}: {getattr(self, name)} was given; it must be at least 1")
        if self.num_classes < 0:
            raise DuetError(f"model.num_classes: {self.num_classes} was given; it must be 0 or the number of classes")
        check_init(self.init)

    def check_no_classes(self) -> None:
        """Raise a `DuetError` if classes are given; for a network that has no class embedding."""
        if self.num_classes:
            raise DuetError(
                f"model.num_classes: {self.num_classes} was given; this architecture has no class embedding, so use 0"
            )

    def check_halving(self, times: int) -> None:
        """Raise a `DuetError` if the image size cannot be halved this many times."""
        if self.image_size % (factor := 2**times):
            low = self.image_size // factor * factor
            raise DuetError(
                f"model.image_size: {self.image_size} pixels cannot be halved {times} times for "
                f"{times + 1} resolutions; use {f'{low} or ' if low else ''}{low + factor}"
            )

    @property
    def predicts_uncertainty(self) -> bool:
        """Whether the network itself has the log-variance of its loss as its last channel."""
        return False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image, (h, w, c)."""
        return self.image_size, self.image_size, self.in_channels

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one item of the data, with its channels last."""
        return self.image_shape


@singledispatch
def lower(spec: NetworkSpec) -> Program:
    """Return the program of a network. Each architecture registers its own function.

    Example:
        >>> from diffusion_core.networks import PlainSpec
        >>> lower(PlainSpec(image_size=8, channels=(4,), bottleneck=8))
        Program(18 blocks, 1,763 parameters)
    """
    raise TypeError(f"{type(spec).__name__}: no function is registered with `lower` for this spec")


class Builder:
    """Collects the nodes of a program and the shape of each value."""

    def __init__(self, spec: NetworkSpec, features: int = 0) -> None:
        self.spec = spec
        self.nodes: list[Node] = []
        self.features = features
        self.shapes = input_shapes(spec.image_shape, features)

    def image(self) -> str:
        """Return the input of the first layer: the image, followed by the estimate in a self-conditioned network."""
        return self.concat("with_estimate", "x", "estimate") if self.spec.self_conditioning else "x"

    def width(self, name: str) -> int:
        """Return the number of channels of a value."""
        return self.shapes[name][-1]

    def add(self, name: str, block: Block, *inputs: str) -> str:
        """Add a node and return its name."""
        if len(self.nodes) == MAX_BLOCKS:
            raise DuetError(
                f"model: it has more than {MAX_BLOCKS} blocks; use fewer resolutions or fewer blocks of each"
            )
        self.nodes.append(Node(name, block, inputs))
        self.shapes[name] = block.output_shape(*(self.shapes[value] for value in inputs))
        return name

    def linear(self, name: str, x: str, width: int, bias: bool = True, scale: float = 1.0) -> str:
        """Add a dense layer on a vector."""
        return self.add(name, Linear(self.width(x), width, bias, scale), x)

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
        """Add a convolution; the default padding is kernel // 2 on every side."""
        padding = (kernel // 2,) * 4 if padding is None else padding
        return self.add(name, Conv(self.width(x), width, kernel, stride, padding, bias, scale), x)

    def concat(self, name: str, x: str, y: str) -> str:
        """Concatenate the channels of x and y."""
        return self.add(name, Concat(), x, y)

    def program(self, null_label: int | None = None, classes: int = 0) -> Program:
        """Return the program of all nodes."""
        return Program(tuple(self.nodes), null_label, classes, self.features, init=self.spec.init)


def with_uncertainty(program: Program, scale: float, features: int = 128) -> Program:
    """Return the program with an extra last channel: the log-variance of its loss at a noise level (Karras et al.).

    The channel is a linear function of random Fourier features of c_noise, constant over the pixels and 0 initially.

    Args:
        program: any network.
        scale: standard deviation of the frequencies, about the inverse of the range of c_noise.
        features: number of sines and cosines together.
    """
    head = (
        Node("uncertainty.features", Fourier(features, scale, sin_first=False), ("c_noise",)),
        Node("uncertainty.dense", Linear(features, 1, bias=False, scale=0.0), ("uncertainty.features",)),
        Node("with_uncertainty", Concat(), (program.nodes[-1].name, "uncertainty.dense")),
    )
    return replace(program, nodes=program.nodes + head, uncertainty=True)

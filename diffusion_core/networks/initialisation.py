"""Initial distributions of the parameters: where networks of DDPM, Keras, PyTorch, DiT and U-ViT start.

`fan_in` and `fan_out` are the numbers of weights per output and per input; U(b) is uniform on (-b, b).

                    ddpm                          keras                          torch
    Linear, Conv    U(sqrt(6 / (in + out)))       the same                       U(1 / sqrt(in))
    their biases    0                             0                              U(1 / sqrt(in))
    ConvTranspose   U(sqrt(6 / (in + out)))       the same                       U(1 / sqrt(out)), biases too
    q, k, v         as Conv                       U(sqrt(6 / (c + c)))           U(sqrt(6 / (c + 3 c))), biases 0
    projection      as Conv                       the same                       U(1 / sqrt(c)), biases 0
    Embedding       N(0, 1)                       U(0.05)                        N(0, 1)

`ddpm` is variance scaling by the mean of the fans, as DDPM writes it; it equals the Glorot uniform initialiser of
Keras. `torch` is the Kaiming uniform initialiser with a = sqrt(5). Its fan-in of a transposed convolution is read from
axis 1 of the weight (i o kh kw), which is `out`. Layers next to Attention of c channels start as in the layer of each
framework: `MultiHeadAttention` of Keras draws q, k, v and the projection as four c x c matrices (an older Keras
counts the axes of these kernels in another way), `MultiheadAttention` of PyTorch draws q, k and v as one 3c x c matrix.
`dit` is the Glorot uniform initialiser too, with the area of a kernel counted as inputs only, U(sqrt(6 /
(out + in k^2))), as of a dense layer on patches. Tables of classes and the dense layers of a time start as N(0, .02^2).
`uvit` starts dense layers as N(0, .02^2) with biases 0, convolutions as `torch`, and tables of classes as N(0, 1). The
code of U-ViT says truncated normal, but the cuts, at -2 and 2, are 100 standard deviations away: they cut nothing. (A
float32 word of exactly 0, one in 2^24, becomes -infinity there and is clamped to -2; Duet's has no such weights.)

Norms start at scale 1 and shift 0 everywhere, and a layer with variance scale 0 (`model.zero_init`) starts at zero.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    Understanding the difficulty of training deep feedforward neural networks (Glorot & Bengio, 2010)
    Delving Deep into Rectifiers (He et al., 2015), https://arxiv.org/abs/1502.01852
    Scalable Diffusion Models with Transformers (Peebles & Xie, 2022), https://arxiv.org/abs/2212.09748
    All are Worth Words: A ViT Backbone for Diffusion Models (Bao et al., 2022), https://arxiv.org/abs/2209.12152
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from diffusion_core.common.errors import check_choice
from diffusion_core.networks.blocks import (
    Attention,
    Conv,
    ConvTranspose,
    Embedding,
    Fourier,
    Linear,
    Number,
    Sinusoid,
)
from diffusion_core.networks.registry import Block, Parameter

__all__ = ["INITS", "check_init", "initialised_parameters"]

Distribution = tuple[str, float]
# A block with its name and the names of the values that it reads.
Layer = tuple[str, Block, tuple[str, ...]]
# Returns a parameter's distribution, given its block and the block's role: "qkv" or "projection" at Attention, "time"
# between the features of a time and the first sum, or "".
Convention = Callable[[Block, Parameter, str], Distribution]


def _ddpm(block: Block, parameter: Parameter, role: str) -> Distribution:
    return parameter.init


def _keras(block: Block, parameter: Parameter, role: str) -> Distribution:
    if isinstance(block, Embedding):
        return "uniform", 0.05
    if role == "qkv" and parameter.name == "weight":
        return "uniform", math.sqrt(6.0 * block.scale / (block.inputs + block.outputs / 3))
    return parameter.init


def _torch(block: Block, parameter: Parameter, role: str) -> Distribution:
    if not isinstance(block, Linear | Conv | ConvTranspose):
        return parameter.init
    if role in ("qkv", "projection") and parameter.name == "bias":
        return "constant", 0.0
    if role == "qkv":
        return "uniform", math.sqrt(6.0 / (block.inputs + block.outputs))
    channels = block.outputs if isinstance(block, ConvTranspose) else block.inputs
    return "uniform", 1.0 / math.sqrt(channels * getattr(block, "kernel", 1) ** 2)


def _dit(block: Block, parameter: Parameter, role: str) -> Distribution:
    if isinstance(block, Embedding) or (role == "time" and parameter.name == "weight"):
        return "normal", 0.02
    if isinstance(block, Conv) and parameter.name == "weight":
        return "uniform", math.sqrt(6.0 * block.scale / (block.outputs + block.inputs * block.kernel**2))
    return parameter.init


def _uvit(block: Block, parameter: Parameter, role: str) -> Distribution:
    if isinstance(block, Linear) and parameter.name == "weight":
        return "normal", 0.02
    return _torch(block, parameter, "") if isinstance(block, Conv) else parameter.init


# The choices of `model.init`.
INITS: dict[str, Convention] = {"ddpm": _ddpm, "keras": _keras, "torch": _torch, "dit": _dit, "uvit": _uvit}


def check_init(name: str) -> None:
    """Raise a `DuetError` if there is no such choice of `model.init`."""
    check_choice("model.init", name, INITS)


def initialised_parameters(layers: Sequence[Layer], init: str) -> tuple[Parameter, ...]:
    """Return the parameters of all blocks under their full names, with the distributions of a choice of `INITS`.

    A kind that a convention does not mention keeps the distribution that the block states.

    Args:
        layers: the blocks of a program, each with its name and the names of the values that it reads.
        init: a key of `INITS`.
    """
    check_init(init)
    roles = _time_roles(layers) | _attention_roles(layers)
    return tuple(
        replace(
            parameter,
            name=f"{name}.{parameter.name}",
            init=_distribution(INITS[init], block, parameter, roles.get(name, "")),
        )
        for name, block, _ in layers
        for parameter in block.parameters()
    )


def _distribution(convention: Convention, block: Block, parameter: Parameter, role: str) -> Distribution:
    # A layer of variance scale 0 is zero by construction of the network, whatever the others start from.
    is_zero = getattr(block, "scale", 1.0) == 0.0 and parameter.name in ("weight", "bias")
    return parameter.init if is_zero else convention(block, parameter, role)


def _attention_roles(layers: Sequence[Layer]) -> dict[str, str]:
    """Return by name which layers make q, k and v of an Attention block, and which project its output."""
    products = {name for name, block, _ in layers if isinstance(block, Conv | Linear)}
    attention = {name: inputs for name, block, inputs in layers if isinstance(block, Attention)}
    projections = {name for name, _, inputs in layers if name in products and attention.keys() & set(inputs)}
    qkv = {name for inputs in attention.values() for name in inputs} & products
    return dict.fromkeys(projections, "projection") | dict.fromkeys(qkv, "qkv")


def _time_roles(layers: Sequence[Layer]) -> dict[str, str]:
    """Return by name which layers are between the features of a time and the first block with two inputs."""
    found: set[str] = set()
    for name, block, inputs in layers:
        if isinstance(block, Sinusoid | Fourier | Number) or (len(inputs) == 1 and inputs[0] in found):
            found.add(name)
    return dict.fromkeys(found, "time")

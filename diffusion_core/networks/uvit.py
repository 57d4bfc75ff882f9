"""U-ViT: a transformer whose tokens are the class, the time and the patches, with skips like those of a UNet.

embed:  the class as a token, the time as a token, p x p patches as tokens    + a learned table over all of them
in:     blocks; the value after each of them is a skip
mid:    a block
out:    blocks, each on Linear(x and skip)
final:  LayerNorm -> Linear -> the patches as an image -> Conv 3x3

block:  x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)) with GELU

Time and class are tokens like the others, so there is no modulation. Published networks receive 999 t with t in [0, 1]
of the VP SDE (`process=uvit`), or a timestep that counts from 1 (`process=uvit_discrete`).

Reference: All are Worth Words: A ViT Backbone for Diffusion Models (Bao et al., 2022), https://arxiv.org/abs/2209.12152,
and its code (baofff/U-ViT, libs/uvit.py)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.blocks import GELU, Add, Attention, Embedding, LayerNorm, SiLU, Sinusoid
from diffusion_core.networks.blocks.tokens import ConcatTokens, LearnedPositions, Patchify, Repeat, Slice, Unpatchify
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program

__all__ = ["NORM_EPS", "UViTSpec"]

# That of PyTorch's LayerNorm.
NORM_EPS = 1e-5
_STD = 0.02
_NULL_CLASSES = ("last", "none")


@dataclass(frozen=True, repr=False)
class UViTSpec(NetworkSpec):
    """A U-ViT.

    Args:
        image_size: height and width in pixels, divisible by `patch_size`.
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes.
        null_class: embedding of "no class": the ``"last"`` row of the table, or ``"none"`` for a table with a row for
            each class only, without guidance.
        patch_size: height and width of a patch in pixels.
        channels: width of the tokens, an even number.
        depth: number of blocks besides the middle one, an even number: half of them in, half of them out.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs, in widths.
        qkv_bias: whether q, k and v have biases.
        time_mlp: whether the time goes through two dense layers first.
        skips: whether the blocks of the second half read those of the first.
        final_conv: whether a 3x3 convolution follows on the image.

    Example:
        >>> from diffusion_core.networks import lower
        >>> lower(UViTSpec(8, patch_size=4, channels=16, depth=2, heads=2))
        Program(43 blocks, 12,020 parameters)
    """

    null_class: str = "last"
    patch_size: int = 2
    channels: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    time_mlp: bool = False
    skips: bool = True
    final_conv: bool = True
    init: str = field(default="uvit", kw_only=True)

    def __post_init__(self) -> None:
        self.check("patch_size", "channels", "depth", "heads")
        check_choice("model.null_class", self.null_class, _NULL_CLASSES)
        if self.image_size % self.patch_size:
            raise DuetError(
                f"model.patch_size: {self.patch_size} was given, which does not divide model.image_size="
                f"{self.image_size}; give a divisor of it"
            )
        for name in ("channels", "depth"):
            if getattr(self, name) % 2:
                why = "cosines and sines of the time" if name == "channels" else "blocks on both sides of the middle"
                raise DuetError(f"model.{name}: {getattr(self, name)} was given; it must be even, for {why}")
        if self.channels % self.heads:
            raise DuetError(
                f"model.heads: {self.heads} heads do not divide {self.channels} channels; give a divisor of "
                f"{self.channels}"
            )
        if not self.mlp_ratio > 0 or self.hidden < 1:
            raise DuetError(f"model.mlp_ratio: {self.mlp_ratio} was given; it must be positive")

    @property
    def hidden(self) -> int:
        """The hidden width of the MLPs."""
        return int(self.channels * self.mlp_ratio)

    @property
    def side(self) -> int:
        """The number of patches along one side."""
        return self.image_size // self.patch_size


@lower.register
def _(spec: UViTSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(Builder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: UViTSpec

    def build(self) -> Program:
        spec = self.spec
        x = self.tokens()
        skips = []
        for i in range(spec.depth // 2):
            x = self.block(f"in.{i}", x)
            skips.append(x)
        x = self.block("mid", x)
        for i in range(spec.depth // 2):
            skip = skips.pop()
            if spec.skips:
                x = self.linear(f"out.{i}.skip", self.concat(f"out.{i}.concat", x, skip), spec.channels)
            x = self.block(f"out.{i}", x)
        x = self.linear("final.dense", self.norm("final.norm", x), spec.patch_size**2 * spec.out_channels)
        extras = self.shapes[x][0] - spec.side**2
        x = self.add("final.patches", Slice("tokens", extras, spec.side**2), x)
        x = self.add("final.image", Unpatchify(spec.patch_size, spec.side, spec.side), x)
        if spec.final_conv:
            self.conv("final.conv", x, spec.out_channels)
        # The label of "no class" is that of the last row; a table without it has no such label.
        null = spec.num_classes if spec.num_classes and spec.null_class == "last" else None
        return self.program(null, spec.num_classes)

    def tokens(self) -> str:
        """Add the tokens of the class, the time and the patches, in this order, with the table of positions."""
        spec, width = self.spec, self.spec.channels
        x = self.conv("patch.conv", self.image(), width, spec.patch_size, spec.patch_size, (0, 0, 0, 0))
        x = self.add("patch.tokens", Patchify(1), x)
        time = self.add("embed.features", Sinusoid(width, 10000.0, width / 2, False), "c_noise")
        if spec.time_mlp:
            time = self.add("embed.act", SiLU(), self.linear("embed.dense0", time, 4 * width))
            time = self.linear("embed.dense1", time, width)
        x = self.prepend("embed.time", time, x)
        if spec.num_classes:
            rows = spec.num_classes + (spec.null_class == "last")
            x = self.prepend("embed.class", self.add("embed.label", Embedding(rows, width), "label"), x)
        return self.add("positions", LearnedPositions(self.shapes[x][0], width, _STD), x)

    def prepend(self, name: str, vector: str, x: str) -> str:
        """Put a vector in front of the tokens, as one more token."""
        return self.add(name, ConcatTokens(), self.add(f"{name}_token", Repeat(1), vector), x)

    def block(self, name: str, x: str) -> str:
        """Add a block of attention and MLP."""
        spec, width = self.spec, self.spec.channels
        h = self.linear(f"{name}.qkv", self.norm(f"{name}.norm0", x), 3 * width, bias=spec.qkv_bias)
        h = self.linear(f"{name}.proj", self.add(f"{name}.attend", Attention(width, spec.heads), h), width)
        x = self.add(f"{name}.sum0", Add(1.0), x, h)
        h = self.linear(f"{name}.dense0", self.norm(f"{name}.norm1", x), spec.hidden)
        h = self.linear(f"{name}.dense1", self.add(f"{name}.act", GELU(), h), width)
        return self.add(f"{name}.sum1", Add(1.0), x, h)

    def norm(self, name: str, x: str) -> str:
        return self.add(name, LayerNorm((self.spec.channels,), NORM_EPS), x)

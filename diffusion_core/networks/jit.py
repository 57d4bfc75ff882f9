"""JiT: a transformer on large image patches, with rotary positions and class tokens.

embed:  p x p patches, through a bottleneck, as tokens  + a fixed sine table              the patches
        c = MLP(time features) + class                                                    a vector per image
block:  x + gate attention(modulate(RMSNorm(x))), then x + gate SwiGLU(modulate(RMSNorm(x))); shift, scale and gate of
        both are Linear(SiLU(c))
        q and k of each head are normalised, then rotated by the row and the column of their patch
before block `context_start`:  put class tokens, each plus its row of a learned table, in front of the patches; they
        are not rotated, and are cut off at the end
final:  RMSNorm -> modulate -> Linear -> the patches as an image

Only the middle half of the blocks has dropout. The network predicts x_0; its time runs from noise (0) to data (1), see
`process=jit`.

Reference: Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), https://arxiv.org/abs/2511.13720,
and its code (LTH14/JiT, model_jit.py)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.blocks import Add, Attention, Dropout, Embedding, RMSNorm
from diffusion_core.networks.blocks.tokens import (
    ConcatTokens,
    DropoutAttention,
    LearnedPositions,
    Patchify,
    QKNorm,
    Repeat,
    RotaryPositions,
    SinePositions,
    Slice,
    SwiGLU,
    Unpatchify,
)
from diffusion_core.networks.builder import NetworkSpec, lower
from diffusion_core.networks.dit import TokenBuilder
from diffusion_core.networks.program import Program
from diffusion_core.networks.registry import Block

__all__ = ["JiTSpec"]

_EPS = 1e-6
_FEATURES = 256
_STD = 0.02


@dataclass(frozen=True, repr=False)
class JiTSpec(NetworkSpec):
    """The options of a JiT.

    Args:
        image_size: height and width in pixels, divisible by `patch_size`.
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes, which has no context.
        patch_size: height and width of a patch in pixels.
        bottleneck: channels between the two layers that embed a patch.
        channels: width of the tokens, a multiple of 4.
        depth: number of blocks.
        heads: attention heads; each has a multiple of 4 channels.
        mlp_ratio: hidden width of the MLPs, in units of `channels`; SwiGLU uses two thirds of it.
        context: number of class tokens; 0 for none.
        context_start: the block before which the class tokens are added.
        dropout: dropout probability of the attention's output and of the MLP's hidden values, in the middle half of the
            blocks.
        attention_dropout: dropout probability of the attention weights, in the same blocks.

    Example:
        >>> from diffusion_core.networks import lower
        >>> spec = JiTSpec(8, patch_size=4, bottleneck=4, channels=16, depth=2, heads=2, context=0, context_start=1)
        >>> lower(spec)
        Program(57 blocks, 15,800 parameters)
    """

    patch_size: int = 16
    bottleneck: int = 128
    channels: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    context: int = 0
    context_start: int = 4
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init: str = field(default="dit", kw_only=True)

    def __post_init__(self) -> None:
        self.check("patch_size", "bottleneck", "channels", "depth", "heads")
        if self.image_size % self.patch_size:
            raise DuetError(
                f"model.patch_size: {self.patch_size} was given, which does not divide model.image_size="
                f"{self.image_size}; give a divisor of it"
            )
        if self.channels % (4 * self.heads):
            raise DuetError(
                f"model.heads: {self.heads} was given for {self.channels} channels; each head needs a multiple of 4 "
                f"channels, for the pairs that the row and the column rotate"
            )
        if not self.mlp_ratio > 0 or self.hidden < 1:
            raise DuetError(f"model.mlp_ratio: {self.mlp_ratio} was given; it must be positive")
        if self.context < 0:
            raise DuetError(f"model.context: {self.context} was given; it must be 0 or the number of tokens")
        if self.context and not self.num_classes:
            raise DuetError(
                f"model.context: {self.context} was given, but its tokens hold the class, and model.num_classes is 0; "
                f"use model.context=0"
            )
        if self.context and not 0 <= self.context_start < self.depth:
            raise DuetError(
                f"model.context_start: {self.context_start} was given; it must be one of the {self.depth} blocks, 0 to "
                f"{self.depth - 1}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise DuetError(f"model.{name}: {getattr(self, name)} was given; it must be a probability below 1")

    @property
    def hidden(self) -> int:
        """The hidden width of the MLPs."""
        return int(int(self.channels * self.mlp_ratio) * 2 / 3)

    @property
    def side(self) -> int:
        """The number of patches along one side."""
        return self.image_size // self.patch_size

    def has_dropout(self, block: int) -> bool:
        """Whether a block is in the middle half, which has dropout."""
        return self.depth // 4 <= block < self.depth // 4 * 3


@lower.register
def _(spec: JiTSpec) -> Program:
    return _Lowering(spec).build()


class _Lowering(TokenBuilder):
    """Builds the program; each method adds one part and returns the name of its value."""

    spec: JiTSpec

    def build(self) -> Program:
        spec, self.dropouts = self.spec, 0
        self.embedded = self.embedding()
        x = self.patches()
        for i in range(spec.depth):
            if spec.context and i == spec.context_start:
                x = self.with_context(x)
            x = self.block(i, x)
        if spec.context:
            x = self.add("final.patches", Slice("tokens", spec.context, spec.side**2), x)
        modulation = self.linear("final.modulation", self.embedded, 2 * spec.channels, scale=0.0)
        x = self.modulated("final", x, _EPS, modulation, 0)
        x = self.linear("final.dense", x, spec.patch_size**2 * spec.out_channels, scale=0.0)
        self.add("final.image", Unpatchify(spec.patch_size, spec.side, spec.side), x)
        return self.program(spec.num_classes or None, spec.num_classes)

    def embedding(self) -> str:
        """Add the embedding of the time and the class, followed by SiLU."""
        spec, width = self.spec, self.spec.channels
        h = self.time("embed", "c_noise", _FEATURES, _FEATURES / 2, width)
        if spec.num_classes:
            self.add("embed.label", Embedding(spec.num_classes + 1, width), "label")
            h = self.add("embed.add", Add(1.0), h, "embed.label")
        return self.act("embed.act1", h)

    def patches(self) -> str:
        """Add the patch tokens with their table of positions."""
        spec, no_padding = self.spec, (0, 0, 0, 0)
        x = self.conv("patch.conv0", self.image(), spec.bottleneck, spec.patch_size, spec.patch_size, no_padding, False)
        x = self.add("patch.tokens", Patchify(1), self.conv("patch.conv1", x, spec.channels, kernel=1))
        return self.add("positions", SinePositions(spec.side, spec.side, spec.channels), x)

    def with_context(self, x: str) -> str:
        """Put the tokens of the class in front."""
        spec = self.spec
        tokens = self.add("in_context.repeat", Repeat(spec.context), "embed.label")
        tokens = self.add("in_context.positions", LearnedPositions(spec.context, spec.channels, _STD), tokens)
        return self.add("in_context.concat", ConcatTokens(), tokens, x)

    def block(self, i: int, x: str) -> str:
        """Add a block of attention and MLP."""
        spec, width, name = self.spec, self.spec.channels, f"block.{i}"
        modulation = self.linear(f"{name}.modulation", self.embedded, 6 * width, scale=0.0)
        h = self.modulated(f"{name}.attn", x, _EPS, modulation, 0)
        x = self.gated_sum(f"{name}.attn", x, self.attention(f"{name}.attn", i, h), modulation, 2)
        h = self.modulated(f"{name}.mlp", x, _EPS, modulation, 3)
        h = self.add(f"{name}.mlp.act", SwiGLU(), self.linear(f"{name}.mlp.dense0", h, 2 * spec.hidden))
        h = self.linear(f"{name}.mlp.dense1", self.dropout(f"{name}.mlp.dropout", i, h), width)
        return self.gated_sum(f"{name}.mlp", x, h, modulation, 5)

    def attention(self, name: str, i: int, x: str) -> str:
        """Add q, k and v, their norm and rotation, attention and projection."""
        spec, width = self.spec, self.spec.channels
        h = self.linear(f"{name}.qkv", x, 3 * width)
        h = self.add(f"{name}.qk_norm", QKNorm(width, spec.heads, _EPS), h)
        extras = self.shapes[h][0] - spec.side**2
        h = self.add(f"{name}.rotary", RotaryPositions(width, spec.heads, spec.side, spec.side, extras), h)
        attend: Block = Attention(width, spec.heads)
        if spec.attention_dropout and spec.has_dropout(i):
            attend = DropoutAttention(width, spec.heads, spec.attention_dropout, self.dropouts)
            self.dropouts += 1
        h = self.linear(f"{name}.proj", self.add(f"{name}.attend", attend, h), width)
        return self.dropout(f"{name}.dropout", i, h)

    def dropout(self, name: str, i: int, x: str) -> str:
        """Add dropout, if the block has it."""
        if not (self.spec.dropout and self.spec.has_dropout(i)):
            return x
        self.dropouts += 1
        return self.add(name, Dropout(self.spec.dropout, self.dropouts - 1), x)

    def modulated(self, name: str, x: str, eps: float, modulation: str, at: int) -> str:
        """Add RMSNorm in place of LayerNorm, then the shift and the scale at chunk `at` of a vector."""
        h = self.add(f"{name}.norm", RMSNorm(self.width(x), eps, mean_square=True), x)
        return self.modulate(name, h, modulation, at)

"""DiT and SiT: a transformer on the patches of an image, whose blocks a vector of the time and the class modulates.

patch:  image -> Conv p x p of stride p -> tokens + sines of row and column        one token per patch
embed:  c_noise -> Sinusoid -> Linear -> SiLU -> Linear (+ class) -> SiLU          a vector per sample, one for all
        second_time -> the same with layers of its own, added to it               blocks, or one for each
block:  x + gate Attention((1 + scale) LayerNorm(x) + shift)                       shift, scale and gate, twice, are one
        x + gate MLP((1 + scale) LayerNorm(x) + shift)                             linear function of the vector
final:  Linear((1 + scale) LayerNorm(x) + shift) -> the pixels of each patch

The LayerNorms have neither scale nor shift of their own, and the MLP has one hidden layer with GELU by tanh. SiT is the
same network; it computes the channels of a variance too, and discards them (`discarded_channels`).

References:
    Scalable Diffusion Models with Transformers (Peebles & Xie, 2022), https://arxiv.org/abs/2212.09748
    SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers (Ma et al., 2024),
    https://arxiv.org/abs/2401.08740
    Mean Flows for One-step Generative Modeling (Geng et al., 2025), the second time, https://arxiv.org/abs/2505.13447
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.blocks import (
    GELU,
    Add,
    Attention,
    Embedding,
    LayerNorm,
    Modulate,
    Multiply,
    SiLU,
    Sinusoid,
)
from diffusion_core.networks.blocks.tokens import Patchify, SinePositions, Slice, Unpatchify
from diffusion_core.networks.builder import Builder, NetworkSpec, lower
from diffusion_core.networks.program import Program

__all__ = ["DiTSpec", "TokenBuilder"]

_CHOICES = {
    "null_class": ("last", "none"),
    "embedding_divisor": ("half", "half_minus_one"),
    "embedders": ("shared", "per_block"),
}


@dataclass(frozen=True, repr=False)
class DiTSpec(NetworkSpec):
    """A DiT; `lower` turns it into a program.

    Args:
        image_size: height and width in pixels, a multiple of `patch_size`.
        in_channels: channels of an image.
        out_channels: channels of the output: `in_channels`, or twice as many to predict a variance per element.
        num_classes: number of classes; 0 for a network without classes.
        patch_size: height and width of a patch in pixels.
        channels: width of a token, a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: width of the hidden layer of an MLP, in widths of a token.
        null_class: embedding of "no class": the ``"last"`` row of the table, or ``"none"``, for a network that is
            trained without label dropout and has no such row.
        discarded_channels: channels that are computed in addition and cut off, as SiT does with those of a variance.
        qkv_bias: whether q, k and v have biases.
        embedders: whether one embedding of the time and the class is ``"shared"`` by all blocks, or computed
            ``"per_block"`` with layers of its own, as in networks that diffusers has trained; the last layer then reads
            that of the first block.
        second_time: whether a second time is embedded as the first one is, and added to it, as in MeanFlow.
        embedding_features: number of sines and cosines of the time.
        embedding_divisor: ``"half"``, or ``"half_minus_one"`` as in diffusers, see `blocks.Sinusoid`.
        norm_eps: epsilon of the LayerNorm before an attention, and of the last one.
        mlp_norm_eps: epsilon of the LayerNorm before an MLP; diffusers has 1e-5.

    Raises:
        DuetError: if an option is not allowed; the message names the configuration key.

    Example:
        >>> lower(DiTSpec(image_size=32, in_channels=4, out_channels=8, num_classes=1000))
        Program(244 blocks, 32,865,056 parameters, classes=1000)
    """

    patch_size: int = 2
    channels: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    null_class: str = "last"
    discarded_channels: int = 0
    qkv_bias: bool = True
    embedders: str = "shared"
    second_time: bool = False
    embedding_features: int = 256
    embedding_divisor: str = "half"
    norm_eps: float = 1e-6
    mlp_norm_eps: float = 1e-6
    init: str = field(default="dit", kw_only=True)

    def __post_init__(self) -> None:
        self.check("patch_size", "channels", "depth", "heads")
        if self.image_size % self.patch_size:
            raise DuetError(
                f"model.patch_size: {self.patch_size} was given, which does not divide model.image_size="
                f"{self.image_size}; give a divisor of it"
            )
        if self.channels % self.heads:
            raise DuetError(
                f"model.heads: {self.heads} heads do not divide {self.channels} channels; give a divisor of "
                f"{self.channels}"
            )
        for name, allowed in _CHOICES.items():
            check_choice(f"model.{name}", getattr(self, name), allowed)
        if self.embedding_features % 2 or self.embedding_features < 4:
            raise DuetError(
                f"model.embedding_features: {self.embedding_features} was given; it must be an even number >= 4"
            )
        if self.discarded_channels < 0:
            raise DuetError(f"model.discarded_channels: {self.discarded_channels} was given; it must be at least 0")
        if not self.mlp_ratio > 0 or self.mlp_channels < 1:
            raise DuetError(f"model.mlp_ratio: {self.mlp_ratio} was given; it must be positive")
        for name in ("norm_eps", "mlp_norm_eps"):
            if not getattr(self, name) > 0:
                raise DuetError(f"model.{name}: {getattr(self, name)} was given; it must be positive")

    @property
    def mlp_channels(self) -> int:
        """The width of the hidden layer of an MLP."""
        return int(self.channels * self.mlp_ratio)

    @property
    def side(self) -> int:
        """The number of patches along each side of an image."""
        return self.image_size // self.patch_size


class TokenBuilder(Builder):
    """The parts that transformers of this family share; each method returns the name of its value."""

    def act(self, name: str, x: str) -> str:
        """Add SiLU."""
        return self.add(name, SiLU(), x)

    def time(self, name: str, time: str, features: int, divisor: float, width: int) -> str:
        """Embed a time: cosines, then sines, and two dense layers with SiLU between."""
        h = self.add(f"{name}.features", Sinusoid(features, 10000.0, divisor, sin_first=False), time)
        h = self.act(f"{name}.act0", self.linear(f"{name}.dense0", h, width))
        return self.linear(f"{name}.dense1", h, width)

    def modulated(self, name: str, x: str, eps: float, modulation: str, at: int) -> str:
        """Add LayerNorm without a scale and a shift, then the shift and the scale at chunk `at` of a vector."""
        width = self.width(x)
        h = self.add(f"{name}.norm", LayerNorm((width,), eps, affine=False), x)
        return self.modulate(name, h, modulation, at)

    def modulate(self, name: str, h: str, modulation: str, at: int) -> str:
        """Apply the shift and the scale at chunk `at` of a vector."""
        width = self.width(h)
        part = self.add(f"{name}.shift_scale", Slice("channels", at * width, 2 * width), modulation)
        return self.add(f"{name}.modulate", Modulate(width, shift_first=True), h, part)

    def gated_sum(self, name: str, x: str, h: str, modulation: str, at: int) -> str:
        """Add h, times the gate at chunk `at` of a vector, to x."""
        width = self.width(x)
        gate = self.add(f"{name}.gate", Slice("channels", at * width, width), modulation)
        return self.add(f"{name}.sum", Add(1.0), x, self.add(f"{name}.gated", Multiply(), h, gate))


@lower.register
def _(spec: DiTSpec) -> Program:
    return _DiTBuilder(spec).build()


class _DiTBuilder(TokenBuilder):
    """Builds the program."""

    def build(self) -> Program:
        """Build the network and return its program."""
        spec = self.spec
        patch = (spec.channels, spec.patch_size, spec.patch_size, (0,) * 4)
        x = self.add("patch.tokens", Patchify(1), self.conv("patch.conv", self.image(), *patch))
        x = self.add("positions", SinePositions(spec.side, spec.side, spec.channels), x)
        if spec.embedders == "shared":
            vectors = [self.embedding("embed")] * spec.depth
        else:
            vectors = [self.embedding(f"block.{i}.embed") for i in range(spec.depth)]
        for i, own in enumerate(vectors):
            x = self.block(f"block.{i}", x, own)
        vector = vectors[0]
        modulation = self.linear("final.modulation", vector, 2 * spec.channels, scale=0.0)
        x = self.modulated("final", x, spec.norm_eps, modulation, 0)
        outputs = spec.out_channels + spec.discarded_channels
        x = self.linear("final.dense", x, spec.patch_size**2 * outputs, scale=0.0)
        x = self.add("final.image", Unpatchify(spec.patch_size, spec.side, spec.side), x)
        if spec.discarded_channels:
            self.add("final.kept", Slice("channels", 0, spec.out_channels), x)
        return self.program(
            spec.num_classes if spec.num_classes and spec.null_class == "last" else None, spec.num_classes
        )

    def embedding(self, name: str) -> str:
        """Add the embedding of the times and the class, a vector, with the SiLU that precedes every modulation."""
        spec = self.spec
        divisor = spec.embedding_features / 2 - (spec.embedding_divisor == "half_minus_one")
        sizes = (spec.embedding_features, divisor, spec.channels)
        h = self.time(name, "c_noise", *sizes)
        if spec.second_time:
            h = self.add(f"{name}.add_second", Add(1.0), h, self.time(f"{name}.second", "second_time", *sizes))
        if spec.num_classes:
            rows = spec.num_classes + (spec.null_class == "last")
            label = self.add(f"{name}.label", Embedding(rows, spec.channels), "label")
            h = self.add(f"{name}.add", Add(1.0), h, label)
        return self.act(f"{name}.act1", h)

    def block(self, name: str, x: str, vector: str) -> str:
        """Add attention and an MLP, each with its shift, scale and gate."""
        spec, width = self.spec, self.spec.channels
        modulation = self.linear(f"{name}.modulation", vector, 6 * width, scale=0.0)
        h = self.modulated(f"{name}.attn", x, spec.norm_eps, modulation, 0)
        h = self.linear(f"{name}.attn.qkv", h, 3 * width, spec.qkv_bias)
        h = self.linear(f"{name}.attn.proj", self.add(f"{name}.attn.attend", Attention(width, spec.heads), h), width)
        x = self.gated_sum(f"{name}.attn", x, h, modulation, 2)
        h = self.modulated(f"{name}.mlp", x, spec.mlp_norm_eps, modulation, 3)
        h = self.add(f"{name}.mlp.act", GELU(tanh=True), self.linear(f"{name}.mlp.dense0", h, spec.mlp_channels))
        h = self.linear(f"{name}.mlp.dense1", h, width)
        return self.gated_sum(f"{name}.mlp", x, h, modulation, 5)

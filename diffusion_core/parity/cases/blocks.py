"""A small program for each block kind with every option."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import (
    GELU,
    Add,
    Attention,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    Embedding,
    Flatten,
    Fourier,
    GroupNorm,
    LayerNorm,
    Linear,
    LinearAttention,
    MaxPool,
    Mean,
    MemoryAttention,
    Mish,
    Modulate,
    Multiply,
    Number,
    ReLU,
    Resample,
    RMSNorm,
    Sigmoid,
    SiLU,
    Sinusoid,
    Unflatten,
    Upsample,
)
from diffusion_core.networks.blocks.magnitude import (
    Clip,
    MPAttention,
    MPConcat,
    MPConv,
    MPFourier,
    MPGate,
    MPLinear,
    MPSiLU,
    MPSum,
    OneHot,
    PixelNorm,
    WithConstant,
)
from diffusion_core.networks.blocks.tokens import (
    ConcatTokens,
    CrossAttention,
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
from diffusion_core.networks.registry import Block

__all__ = [
    "BLOCKS",
    "BlockCase",
    "MICRO_BATCHED",
    "conv",
]


CHANNELS = 8


@dataclass(frozen=True)
class BlockCase:
    """A block in the smallest program with gradients of its weights and of its inputs.

    Args:
        name: block kind and options.
        nodes: the blocks. A 1 x 1 convolution comes first, whose weight gradient contains the gradient of the block's
            input. The last blocks return to the shape of the input, so that a training step can run.
        size: height and width of the input.
        gain: factor of the weights, to reach large values.
        classes: number of classes.
        features: length of the feature vector in addition to the class.
    """

    name: str
    nodes: tuple[Node, ...]
    size: int = 8
    gain: float = 1.0
    classes: int = 0
    features: int = 0

    @property
    def program(self) -> Program:
        """The program of the case."""
        return Program(self.nodes, self.classes or None, self.classes, self.features)

    @property
    def has_training_mode(self) -> bool:
        """Whether one of its blocks computes something else in training than in evaluation."""
        return any(node.block.has_training_mode for node in self.nodes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an input image, (h, w, c)."""
        return self.size, self.size, CHANNELS

    @property
    def kind(self) -> str:
        """The suffix of the tolerance of this case."""
        return ", large logits" if self.gain > 1 else ""


def conv(inputs: int, outputs: int, kernel: int, stride: int, padding: tuple[int, ...], bias: bool = True) -> Conv:
    """Return a convolution whose initial weights have variance scale 1."""
    return Conv(inputs, outputs, kernel, stride, padding, bias, 1.0)


def _point(inputs: int, outputs: int) -> Conv:
    return conv(inputs, outputs, 1, 1, (0, 0, 0, 0))


def _image(
    name: str, block: Block, *back: Block, size: int = 8, width: int = CHANNELS, gain: float = 1.0, inputs: int = 1
) -> BlockCase:
    """Return a case of a block on images of `width` channels; with two inputs, the second is the image itself."""
    nodes = [Node("pre", _point(CHANNELS, width), ("x",)), Node("block", block, ("pre", "x")[:inputs])]
    for i, step in enumerate(back):
        nodes.append(Node(f"back{i}", step, (nodes[-1].name,)))
    return BlockCase(name, tuple(nodes), size, gain)


def _vector(
    name: str,
    *blocks: Block,
    reads: str,
    join: Block | None = None,
    back: tuple[Block, ...] = (),
    classes: int = 0,
    features: int = 0,
) -> BlockCase:
    """Return a case of blocks that compute a vector, joined to an image."""
    nodes = [Node("pre", _point(CHANNELS, CHANNELS), ("x",))]
    for i, block in enumerate(blocks):
        nodes.append(Node(f"block{i}", block, (nodes[-1].name if i else reads,)))
    nodes.append(Node("join", join or Add(1.0), ("pre", nodes[-1].name)))
    nodes += [Node(f"back{i}", block, (f"back{i - 1}" if i else "join",)) for i, block in enumerate(back)]
    return BlockCase(name, tuple(nodes), classes=classes, features=features)


def _tokens(
    name: str, *nodes: tuple[str, Block, tuple[str, ...]], size: int = 4, gain: float = 1.0, **rest
) -> BlockCase:
    """Return a case of blocks on the tokens "t" of an image and its time vector "v", which end in 8 channels."""
    made = [
        Node("pre", _point(CHANNELS, CHANNELS), ("x",)),
        Node("t", Patchify(1), ("pre",)),
        *(Node(*node) for node in nodes),
    ]
    made.append(Node("back", Unpatchify(1, size, size), (made[-1].name,)))
    return BlockCase(name, tuple(made), size, gain, **rest)


def _dense(inputs: int, outputs: int) -> Linear:
    return Linear(inputs, outputs, True, 1.0)


_SINUSOIDS = (Sinusoid(16, 10000.0, 7.0, True), Sinusoid(16, 10000.0, 8.0, False))
_DENSE = Linear(16, 8, True, 1.0)
_FIR = (1.0, 3.0, 3.0, 1.0)

BLOCKS: tuple[BlockCase, ...] = (
    _image("Conv 3x3", conv(8, 12, 3, 1, (1, 1, 1, 1)), _point(12, 8)),
    _image("Conv 3x3 without bias", conv(8, 12, 3, 1, (1, 1, 1, 1), bias=False), _point(12, 8)),
    _image("Conv 1x1", _point(8, 12), _point(12, 8)),
    _image("Conv 3x3 stride 2, padding (1, 1)", conv(8, 8, 3, 2, (1, 1, 1, 1)), Upsample()),
    _image("Conv 3x3 stride 2, padding (0, 1)", conv(8, 8, 3, 2, (0, 1, 0, 1)), Upsample()),
    _image("Conv 3x3 stride 2, padding (1, 0)", conv(8, 8, 3, 2, (1, 0, 1, 0)), Upsample()),
    _image("Conv 3x3 stride 2, odd size", conv(8, 8, 3, 2, (1, 1, 1, 1)), Upsample(), conv(8, 8, 2, 1, (0, 0, 0, 0)),
           size=7),
    _image("Conv 4x4 stride 2, padding (1, 1)", conv(8, 8, 4, 2, (1, 1, 1, 1)), Upsample()),
    _image("GroupNorm of 8 groups", GroupNorm(16, 8, 1e-5), _point(16, 8), width=16),
    _image("GroupNorm of 1 group", GroupNorm(16, 1, 1e-6), _point(16, 8), width=16),
    _image("GroupNorm of 4 groups, large eps", GroupNorm(16, 4, 1e-1), _point(16, 8), width=16),
    _image("SiLU", SiLU()),
    _image("Attention of 1 head", Attention(8, 1), size=4, width=24),
    _image("Attention of 4 heads", Attention(8, 4), size=4, width=24),
    _image("Attention, large logits", Attention(8, 2), size=4, width=24, gain=3.0),
    _image("Add of images", Add(1.0), inputs=2),
    _image("Add of images, scaled", Add(2.0**-0.5), inputs=2),
    _image("Concat", Concat(), _point(16, 8), inputs=2),
    _image("Upsample", Upsample(), conv(8, 8, 3, 2, (1, 1, 1, 1))),
    _image("AvgPool", AvgPool(), Upsample()),
    _vector("Sinusoid sin first, half - 1; Linear", _SINUSOIDS[0], Linear(16, 8, True, 1.0), reads="c_noise"),
    _vector("Sinusoid cos first, half; Linear without bias", _SINUSOIDS[1], Linear(16, 8, False, 1.0), reads="c_noise"),
    _vector("Embedding", Embedding(5, 8), reads="label", classes=4),
    _vector("Modulate", _SINUSOIDS[0], Linear(16, 16, True, 1.0), reads="c_noise", join=Modulate(8)),
    _vector("Fourier sin first", Fourier(16, 0.01, True), _DENSE, reads="c_noise"),
    _vector("Fourier cos first", Fourier(16, 0.01, False), _DENSE, reads="c_noise"),
    _vector("Number", Number(1e-3), Linear(1, 8, True, 1.0), reads="c_noise"),
    _vector("Number to every pixel", Number(1e-3), reads="c_noise", join=Concat(), back=(_point(9, 8),)),
    _vector("Features", Linear(3, 8, False, 1.0), reads="features", features=3),
    _vector("Embedding with zero", Embedding(4, 8, zero=True), reads="label", classes=4),
    _vector("LayerNorm of a vector", _SINUSOIDS[0], _DENSE, LayerNorm((8,), 1e-3), reads="c_noise"),
    _vector("BatchNorm of a vector", _SINUSOIDS[0], _DENSE, BatchNorm(8, 1e-3, 0.1), reads="c_noise"),
    _vector("Dropout of a vector", _SINUSOIDS[0], Dropout(0.4, 3), _DENSE, reads="c_noise"),
    _vector("Multiply by a vector", _SINUSOIDS[0], _DENSE, reads="c_noise", join=Multiply()),
    _image("Multiply of images", Multiply(), inputs=2),
    _image("ConvTranspose 4x4 stride 2", ConvTranspose(8, 12, 4, 2, 1, True, 1.0), AvgPool(), _point(12, 8)),
    _image("ConvTranspose 2x2 stride 2", ConvTranspose(8, 12, 2, 2, 0, True, 1.0), conv(12, 8, 2, 2, (0, 0, 0, 0))),
    _image("ConvTranspose 3x3 stride 1 without bias", ConvTranspose(8, 8, 3, 1, 1, False, 1.0)),
    _image("LayerNorm of channels", LayerNorm((16,), 1e-3), _point(16, 8), width=16),
    _image("LayerNorm of images", LayerNorm((16, 8, 8), 1e-5), _point(16, 8), width=16),
    _image("BatchNorm", BatchNorm(16, 1e-3, 0.01), _point(16, 8), width=16),
    _image("BatchNorm, small eps, quick statistics", BatchNorm(16, 1e-5, 0.5), _point(16, 8), width=16),
    _image("ReLU", ReLU()),
    _image("GELU", GELU()),
    _image("Sigmoid", Sigmoid()),
    _image("Mish", Mish()),
    _image("Attention, head by head", Attention(8, 2, "heads"), size=4, width=24),
    _image("Attention with a memory", MemoryAttention(8, 2, 3), size=4, width=24),
    _image("LinearAttention", LinearAttention(8, 2, 3), size=4, width=24),
    _image("LinearAttention of one head, large logits", LinearAttention(8, 1, 1), size=4, width=24, gain=3.0),
    _image("RMSNorm", RMSNorm(16, 1e-12), _point(16, 8), width=16),
    _vector("RMSNorm of a vector", _SINUSOIDS[0], _DENSE, RMSNorm(8, 1e-12), reads="c_noise"),
    _image("Attention, interleaved", Attention(8, 2, "interleaved"), size=4, width=24),
    _image("Dropout", Dropout(0.3, 1)),
    _image("Dropout of almost all", Dropout(0.9, 0)),
    _image("MaxPool", MaxPool(), Upsample()),
    _image("Resample bilinear", Resample("bilinear"), AvgPool()),
    _image("Resample bilinear, corners in line", Resample("bilinear_corners"), AvgPool()),
    _image("Resample up with a filter", Resample("up", _FIR, 1), AvgPool()),
    _image("Resample down with a filter", Resample("down", _FIR, 1), Upsample()),
    _image("Resample down, widened before", Resample("down", _FIR), Upsample(), conv(8, 8, 3, 1, (2, 2, 2, 2)),
           size=10),
    BlockCase(
        "Mean",
        (
            Node("pre", _point(8, 8), ("x",)),
            Node("block", Mean(), ("pre",)),
            Node("join", Multiply(), ("pre", "block")),
        ),
    ),
    _image("Patchify, Unpatchify", Patchify(2), Linear(32, 16, True, 1.0), Linear(16, 32, False, 1.0),
           Unpatchify(2, 4, 4)),
    _tokens("Tokens: norms and activations", ("norm", LayerNorm((8,), 1e-6, affine=False), ("t",)),
            ("norm1", LayerNorm((8,), 1e-5), ("norm",)), ("act", GELU(tanh=True), ("norm1",)),
            ("norm2", RMSNorm(8, 1e-12), ("act",)), ("drop", Dropout(0.3, 1), ("norm2",))),
    _tokens("Tokens: sums with a vector", ("v", _SINUSOIDS[0], ("c_noise",)), ("v8", _dense(16, 8), ("v",)),
            ("add", Add(0.5), ("t", "v8")), ("modulate", Modulate(8, shift_first=True), ("add", "v")),
            ("gate", Multiply(), ("modulate", "v8")), ("concat", Concat(), ("gate", "v8")),
            ("both", Concat(), ("concat", "t")), ("narrow", _dense(24, 8), ("both",)),
            ("mean", Mean(), ("narrow",)), ("last", Add(1.0), ("narrow", "mean"))),
    _tokens("Tokens: concatenation and slices", ("v", _SINUSOIDS[0], ("c_noise",)), ("v8", _dense(16, 8), ("v",)),
            ("repeat", Repeat(3), ("v8",)), ("wide", ConcatTokens(), ("repeat", "t")),
            ("table", LearnedPositions(19, 8, 1.0), ("wide",)), ("qkv", _dense(8, 24), ("table",)),
            ("attend", Attention(8, 2), ("qkv",)), ("image", Slice("tokens", 2, 16), ("attend",)),
            ("part", Slice("channels", 3, 4), ("image",)), ("back8", _dense(4, 8), ("part",))),
    _tokens("Slice of the channels of an image and of a vector", ("v", _SINUSOIDS[0], ("c_noise",)),
            ("v8", Slice("channels", 5, 8), ("v",)), ("part", Slice("channels", 4, 4), ("pre",)),
            ("tokens", Patchify(1), ("part",)), ("wide", _dense(4, 8), ("tokens",)),
            ("last", Add(1.0), ("wide", "v8"))),
    _tokens("SinePositions", ("table", SinePositions(4, 4, 8), ("t",)), ("last", _dense(8, 8), ("table",))),
    _tokens("Attention of tokens, large logits", ("qkv", _dense(8, 24), ("t",)),
            ("attend", Attention(8, 4), ("qkv",)), gain=3.0),
    _tokens("Attention of tokens with a memory, head by head", ("qkv", _dense(8, 24), ("t",)),
            ("attend", Attention(8, 2, "heads"), ("qkv",)), ("qkv1", _dense(8, 24), ("attend",)),
            ("memory", MemoryAttention(8, 2, 3), ("qkv1",)), ("qkv2", _dense(8, 24), ("memory",)),
            ("linear", LinearAttention(8, 2, 3), ("qkv2",))),
    _tokens("CrossAttention", ("v", _SINUSOIDS[0], ("c_noise",)), ("v48", _dense(16, 8), ("v",)),
            ("other", Repeat(5), ("v48",)), ("table", LearnedPositions(5, 8, 1.0), ("other",)),
            ("kv", _dense(8, 16), ("table",)), ("q", _dense(8, 8), ("t",)),
            ("attend", CrossAttention(8, 2), ("q", "kv"))),
    _tokens("Tokens: Flatten", ("flat", Flatten(), ("t",)), ("dense", _dense(128, 8), ("flat",)),
            ("last", Multiply(), ("t", "dense"))),
    _tokens("Tokens: RMSNorm by the mean square, SwiGLU", ("norm", RMSNorm(8, 1e-2, mean_square=True), ("t",)),
            ("wide", _dense(8, 12), ("norm",)), ("gate", SwiGLU(), ("wide",)), ("last", _dense(6, 8), ("gate",))),
    _image("RMSNorm of an image by the mean square", RMSNorm(8, 1e-2, mean_square=True)),
    _vector("SwiGLU of a vector, RMSNorm by the mean square", _SINUSOIDS[0], SwiGLU(),
            RMSNorm(8, 1e-6, mean_square=True), reads="c_noise"),
    _tokens("QKNorm, RotaryPositions", ("qkv", _dense(8, 24), ("t",)), ("norm", QKNorm(8, 2, 1e-2), ("qkv",)),
            ("rotary", RotaryPositions(8, 2, 4, 4, 0), ("norm",)), ("attend", Attention(8, 2), ("rotary",)), gain=2.0),
    _tokens("RotaryPositions of a part of the tokens", ("v", _SINUSOIDS[0], ("c_noise",)),
            ("v8", _dense(16, 8), ("v",)), ("first", Repeat(2), ("v8",)), ("all", ConcatTokens(), ("first", "t")),
            ("qkv", _dense(8, 24), ("all",)), ("rotary", RotaryPositions(8, 1, 4, 4, 2), ("qkv",)),
            ("attend", Attention(8, 1), ("rotary",)), ("image", Slice("tokens", 2, 16), ("attend",))),
    _tokens("DropoutAttention", ("qkv", _dense(8, 24), ("t",)), ("attend", DropoutAttention(8, 2, 0.3, 5), ("qkv",))),
    _image("GELU by tanh", GELU(tanh=True)),
    _image("LayerNorm of channels, not affine", LayerNorm((8,), 1e-6, affine=False)),
    _image("LayerNorm of images, not affine", LayerNorm((8, 8, 8), 1e-6, affine=False)),
    _vector("Modulate, shift first", _SINUSOIDS[0], Linear(16, 16, True, 1.0), reads="c_noise",
            join=Modulate(8, shift_first=True)),
    _image("Flatten, Unflatten", Flatten(), Linear(512, 128, True, 1.0), Unflatten(4, 4), Upsample()),
    _image("MPConv 3x3 with a gain", MPConv(8, 12, 3, True, 1e-4), _point(12, 8)),
    _image("MPConv 1x1, large eps", MPConv(8, 8, 1, False, 0.3)),
    _vector("MPFourier, MPLinear with a gain", MPFourier(16, 1e-3), MPLinear(16, 8, True, 1e-4), reads="c_noise"),
    _vector("OneHot, MPLinear, MPGate", OneHot(4, 2.0), MPLinear(4, 8, False, 1e-2), reads="label", join=MPGate(),
            classes=4),
    _image("PixelNorm, MPSiLU", PixelNorm(0.1), MPSiLU(0.596), _point(16, 8), width=16),
    _image("MPSum, Clip", MPSum(0.3), Clip(0.7), inputs=2),
    _image("MPConcat, WithConstant", MPConcat(0.4), WithConstant(1.5), _point(21, 8), width=12, inputs=2),
    _image("MPAttention", MPAttention(8, 2, 0.1), size=4, width=24),
)  # fmt: skip


# The block for micro-batches: the elements that it drops depend on each image's position.
MICRO_BATCHED = "Dropout"

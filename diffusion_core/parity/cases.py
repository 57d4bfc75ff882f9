"""The test cases of the parity ladder: small networks that together contain every block kind with every option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.backend.interface import TrainBatch
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, Loader, from_uint8, load_dataset
from diffusion_core.diffusion.continuous import edm
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine, linear, make_schedule
from diffusion_core.diffusion.variational import LEARNED as LEARNED_VARIANCES
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import (
    ClassifierSpec,
    DiTSpec,
    DoubleConvSpec,
    EDM2Spec,
    JiTSpec,
    LinearAttentionSpec,
    NetworkSpec,
    Node,
    PlainSpec,
    Program,
    SimpleSpec,
    SixteenStepSpec,
    UNetSpec,
    UViTSpec,
    with_uncertainty,
)
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
from diffusion_core.networks.magnitude_blocks import (
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
from diffusion_core.networks.registry import Block
from diffusion_core.networks.token_blocks import (
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
from diffusion_core.networks.weights import Weights, initial_weights
from diffusion_core.sampling import METHODS, SamplerPlan, make_plan
from diffusion_core.training.loop import make_batch
from diffusion_core.training.objective import Objective
from diffusion_core.training.validation import Validation

__all__ = [
    "BLOCKS",
    "CLASSIFIER",
    "FEW_LEVELS",
    "FEW_NETWORKS",
    "FEW_PLANS",
    "MEASURED",
    "MEASURED_PLANS",
    "MICRO_BATCHED",
    "LOSSES",
    "NETWORKS",
    "PARITY",
    "PLANS",
    "SEED",
    "SHORT",
    "BlockCase",
    "LossCase",
    "cast",
    "digits_batch",
    "edm_batch",
    "noise_batch",
    "scattered_weights",
    "validation",
]

SEED = 20
CHANNELS = 8
_PROCESS = Process(linear(), "eps")
_EDM = Process(edm(), "edm", sigma_data=0.6)
_SIT = Process(
    make_schedule("flow_continuous", t_min=1e-12), "velocity_to_data", time_scale=-1000.0, time_offset=1000.0
)


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


def _conv(inputs: int, outputs: int, kernel: int, stride: int, padding: tuple[int, ...], bias: bool = True) -> Conv:
    return Conv(inputs, outputs, kernel, stride, padding, bias, 1.0)


def _point(inputs: int, outputs: int) -> Conv:
    return _conv(inputs, outputs, 1, 1, (0, 0, 0, 0))


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
    _image("Conv 3x3", _conv(8, 12, 3, 1, (1, 1, 1, 1)), _point(12, 8)),
    _image("Conv 3x3 without bias", _conv(8, 12, 3, 1, (1, 1, 1, 1), bias=False), _point(12, 8)),
    _image("Conv 1x1", _point(8, 12), _point(12, 8)),
    _image("Conv 3x3 stride 2, padding (1, 1)", _conv(8, 8, 3, 2, (1, 1, 1, 1)), Upsample()),
    _image("Conv 3x3 stride 2, padding (0, 1)", _conv(8, 8, 3, 2, (0, 1, 0, 1)), Upsample()),
    _image("Conv 3x3 stride 2, padding (1, 0)", _conv(8, 8, 3, 2, (1, 0, 1, 0)), Upsample()),
    _image("Conv 3x3 stride 2, odd size", _conv(8, 8, 3, 2, (1, 1, 1, 1)), Upsample(), _conv(8, 8, 2, 1, (0, 0, 0, 0)),
           size=7),
    _image("Conv 4x4 stride 2, padding (1, 1)", _conv(8, 8, 4, 2, (1, 1, 1, 1)), Upsample()),
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
    _image("Upsample", Upsample(), _conv(8, 8, 3, 2, (1, 1, 1, 1))),
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
    _image("ConvTranspose 2x2 stride 2", ConvTranspose(8, 12, 2, 2, 0, True, 1.0), _conv(12, 8, 2, 2, (0, 0, 0, 0))),
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
    _image("Resample down, widened before", Resample("down", _FIR), Upsample(), _conv(8, 8, 3, 1, (2, 2, 2, 2)),
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


@dataclass(frozen=True)
class LossCase:
    """A loss with more than a pixel distance, with the smallest network that has all of its outputs.

    Args:
        name: the parts of the loss.
        prediction: the parameterisation.
        options: options of the `Objective`.
        size: number of images; enough to contain each of the 4 noise levels.
    """

    name: str
    prediction: str
    options: dict[str, Any]
    size: int = 12

    @property
    def classes(self) -> int:
        """Number of classes of a classifier; 0 for any other network."""
        return self.options.get("classes", 0)

    @property
    def objective(self) -> Objective:
        """The objective that makes the batch."""
        return Objective(Process(cosine(4), self.prediction), SEED, **self.options)

    @property
    def program(self) -> Program:
        """Two convolutions with a BatchNorm between, whose statistics a first pass must not change; then logits."""
        channels, outputs = (
            (4 if self.objective.self_conditioned else 2),
            (4 if self.objective.variance in LEARNED_VARIANCES else 2),
        )
        nodes = [
            Node(
                "conv0",
                _conv(channels, 6, 3, 1, (1, 1, 1, 1), bias=False),
                ("with_estimate" if channels == 4 else "x",),
            ),
            Node("norm", BatchNorm(6, 1e-3, 0.1), ("conv0",)),
            Node("conv1", _conv(6, outputs, 3, 1, (1, 1, 1, 1)), ("norm",)),
        ]
        if channels == 4:
            nodes.insert(0, Node("with_estimate", Concat(), ("x", "estimate")))
        if self.classes:
            nodes.append(Node("mean", Mean(), ("conv1",)))
            nodes.append(Node("dense", Linear(outputs, self.classes, True, 1.0), ("mean",)))
        program = Program(tuple(nodes), classes=self.classes)
        return with_uncertainty(program, 0.5, 8) if self.objective.uncertainty else program

    @property
    def batch(self) -> TrainBatch:
        """A float64 batch of bytes with black and white pixels; all images have different importance weights."""
        index = np.arange(self.size)
        bytes_ = Stream(SEED, "parity/bytes").uniform(index, 32).reshape(self.size, 4, 4, 2)
        images = from_uint8(np.clip(400 * bytes_ - 72, 0, 255).astype(np.uint8), np.float64)
        c_in, weight, importance = Stream(SEED, "parity/columns").uniform(index, 3).T + 0.5
        batch = self.objective.batch(images, index % max(self.classes, 1), index, np.float64)
        return replace(batch, c_in=c_in, weight=weight * batch.weight, importance=importance)


# The weight of the bound makes it about as large as the other term.
LOSSES: tuple[LossCase, ...] = (
    LossCase("hybrid of eps", "eps", {"variance": "learned_range", "bound_weight": 0.2}),
    LossCase("bound alone of x_0", "x0", {"variance": "learned", "bound": "vlb"}),
    LossCase("bound alone of the posterior mean", "posterior_mean", {"variance": "fixed_large", "bound": "vlb"}),
    LossCase("classifier", "eps", {"distance": "cross_entropy", "classes": 5}),
    LossCase("uncertain huber", "v", {"uncertainty": True, "distance": "huber"}),
    LossCase(
        "hybrid of v, uncertain and self-conditioned", "v",
        {"variance": "learned_range", "bound_weight": 0.2, "uncertainty": True, "self_conditioned": True},
    ),
)  # fmt: skip

_SMALL = UNetSpec(
    image_size=8, in_channels=1, out_channels=1, channels=16, channel_multipliers=(1, 2), blocks_per_resolution=1,
    attention_resolutions=(4,), heads=2, qkv_bias=False, norm_groups=4, norm_eps=1e-5, num_classes=10,
)  # fmt: skip


def _with(**changes: object) -> UNetSpec:
    return replace(_SMALL, zero_init=False, **changes)


_SONG = _with(
    down="block", up="block", resample_projection=True, up_attention="last", norm_group_channels=4, qkv_bias=True,
    qkv_order="interleaved", skip_scale=2.0**-0.5, class_embedding="before", augment_dim=9, dropout=0.13,
)  # fmt: skip
_ADM = _with(
    time="scale_shift", down="block", up="block", head_channels=8, embedding_divisor="half", embedding_sin_first=False,
    null_class="zero", dropout=0.1,
)  # fmt: skip

NETWORKS: dict[str, NetworkSpec] = {
    "time added, strided": _with(),
    "scale and shift, residual resampling": _with(time="scale_shift", down="block", up="block", skip_scale=2.0**-0.5),
    "pooled, head channels, cos first, no classes": _with(
        down="pool", up="nearest", head_channels=8, embedding_divisor="half", embedding_sin_first=False, num_classes=0,
        in_channels=3, out_channels=3,
    ),
    "three levels, padding (0, 1), eps 1e-6": _with(
        image_size=16, channel_multipliers=(1, 2, 2), down_padding=(0, 1), norm_eps=1e-6, attention_resolutions=(8, 4)
    ),
    "fractions of the width, GELU, a way to resample for each resolution": _with(
        image_size=16, channel_multipliers=(0.5, 1.25, 1.5), first_conv="first", down=("conv", "block"),
        up=("block", "nearest"), up_attention_resolutions=(16, 8), activation="gelu", embedding_width=24,
        middle_norm_groups=8, middle_skip_scale=0.5, time="scale_shift",
    ),
    "ADM, learned variance": replace(_ADM, qkv_order="heads", in_channels=3, out_channels=6),
    "ADM of EDM": replace(_ADM, qkv_order="interleaved", in_channels=3, out_channels=3),
    "DDPM++": _SONG,
    "NCSN++": replace(
        _SONG, embedding="fourier", embedding_multiplier=2, encoder="residual", resample_filter=(1.0, 3.0, 3.0, 1.0),
        num_classes=0,
    ),
    "landscape": DoubleConvSpec(16, 3, 3, num_classes=5, channels=8, channel_multipliers=(1, 2, 4), embedding=16),
    "double_conv_attention": DoubleConvSpec(16, 1, 1, channels=8, channel_multipliers=(1, 2, 4), embedding=16),
    "simple": SimpleSpec(8, channels=(4, 8, 16), embedding=8),
    "sixteen_step": SixteenStepSpec(8, channels=8, levels=2, embedding=8, bottleneck=16, bottom_channels=4),
    "linear attention with a memory": LinearAttentionSpec(
        8, channels=8, channel_multipliers=(1, 2), heads=2, head_channels=4, memory=3, dropout=0.1
    ),
    "denoising_autoencoder": PlainSpec(
        16, channels=(4, 8, 16), bottleneck=16, time="none", up="nearest", output="sigmoid"
    ),
    "plain": PlainSpec(16, channels=(4, 8, 16), bottleneck=32, time_scale=1e-3),
    "DiT, learned variance": DiTSpec(
        8, 1, 2, num_classes=10, channels=16, depth=2, heads=2, embedding_features=16
    ),
    "SiT of diffusers' embedding, no null row": DiTSpec(
        8, 2, 2, num_classes=10, patch_size=4, channels=16, depth=1, heads=2, mlp_ratio=2.0, embedding_features=16,
        null_class="none", discarded_channels=2, embedding_divisor="half_minus_one", mlp_norm_eps=1e-5,
    ),
    "EDM2": EDM2Spec(
        8, 3, 3, num_classes=10, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1,
        attention_resolutions=(8,), head_channels=8, dropout=0.1, resample_filter=(1.0, 3.0, 3.0, 1.0),
        # With these widths no gradient of a gain, which is one number, is a sum that cancels to the last digits.
        noise_multiplier=2, embedding_multiplier=3, label_balance=0.4, clip=2.0, logvar_channels=6,
    ),
    "U-ViT": UViTSpec(8, 1, 1, num_classes=3, channels=16, depth=2, heads=2, patch_size=2, time_mlp=True),
    "JiT": JiTSpec(
        8, 1, 1, num_classes=3, patch_size=2, bottleneck=6, channels=16, depth=4, heads=2, context=2, context_start=1,
        dropout=0.2, attention_dropout=0.1,
    ),
}  # fmt: skip

# A classifier with the classes of `PARITY`.
CLASSIFIER = ClassifierSpec(8, 1, 10, 8, (1, 2), 1, (4,), heads=2, norm_groups=4, num_classes=10, zero_init=False)

# For a quick climb: the network whose parts the other networks share.
FEW_NETWORKS = ("time added, strided",)

# The network that is trained and sampled: rungs 6, 7 and 8.
PARITY = DiffusionModel(_SMALL, {"name": "linear", "T": 1000}, "eps")


def _recurrence(rows: int = 8) -> SamplerPlan:
    """Return a plan that uses every feature of an executor: two registers, three estimates, and all columns varying."""
    t = np.linspace(900, 20, rows).astype(np.int64)
    alpha, sigma = PARITY.process.schedule(t)

    def scattered(name: str, *shape: int) -> NDArray[np.float64]:
        return Stream(SEED, f"parity/plan/{name}").normal(np.arange(rows), shape)

    noise, guidance_scale = 0.2 * scattered("noise", 2), 1.0 + 0.5 * scattered("guidance")
    noise[3], guidance_scale[5] = 0.0, 1.0  # a row without noise, and one without guidance
    return SamplerPlan(
        name=f"recurrence-{rows}",
        t=t,
        alpha=np.append(alpha, 1.0),
        sigma=np.append(sigma, 0.0),
        c_skip=0.5 + 0.1 * scattered("c_skip"),
        c_out=0.3 + 0.1 * scattered("c_out"),
        c_in=1.0 + 0.1 * scattered("c_in"),
        c_noise=t + 0.5,
        state=0.4 * scattered("state", 2, 2),
        denoised=0.3 * scattered("denoised", 2, 3),
        noise=noise,
        guidance_scale=guidance_scale,
        start_scale=1.2,
        preserves="nothing",
    )


# For likelihoods. The output of an untrained network is no plausible eps, but as v it keeps the values bounded.
FEW_LEVELS = Process(linear(20, 1e-3, 0.4), "v", 50.0)

# The plans that sample every network. They start at t = 750: at t = 999 an untrained eps, with its rounding, would be
# divided by alpha = 0.006. Networks with twice the channels of their images are also sampled with a learned variance.
SHORT = make_plan(_PROCESS, "ddim", steps=4, eta=0.5)
LEARNED = make_plan(_PROCESS, "ddpm", steps=4, variance="learned_range")
# All kinds of guidance: a guide, a classifier, and inpainting of a known half.
GUIDED = make_plan(_PROCESS, "ddim", steps=4, eta=0.5, guidance_scale=2.5, rescale=0.7, threshold=0.9, classifier=0.5)

# Posterior sampling: a small network, since the reference takes derivatives by differences, and a plan for each method.
MEASURED = UNetSpec(4, 2, 2, 4, (1,), 1, (), norm_groups=2, num_classes=3, zero_init=False)
MEASURED_PLANS: dict[str, SamplerPlan] = {
    "mmps": make_plan(FEW_LEVELS, "dpm_solver", steps=3, guidance_scale=1.5),
    "pigdm": make_plan(FEW_LEVELS, "ddim", steps=3, eta=0.5, clip=None),
    "dps": make_plan(FEW_LEVELS, "ddim", steps=3, eta=0.5, guidance_scale=1.5),
}

PLANS: dict[str, SamplerPlan] = {
    "DDPM-1000": make_plan(PARITY.process, "ddpm"),
    "DDIM-50": make_plan(PARITY.process, "ddim", steps=50),
    "DDIM-20, eta 0.5, guidance 2": make_plan(
        PARITY.process, "ddim", steps=20, eta=0.5, spacing="trailing", guidance_scale=2.0
    ),
    "DDIM-10, Karras, guidance 3 rescaled, dynamic threshold": make_plan(
        PARITY.process,
        "ddim",
        steps=10,
        spacing="karras",
        guidance_scale=3.0,
        interval=[0.1, 20.0],
        rescale=0.7,
        threshold=0.95,
    ),
    "DDIM-10, eps of the network, dynamic threshold at most 2": make_plan(
        PARITY.process,
        "ddim",
        steps=10,
        eta=0.5,
        use_clipped_model_output=False,
        threshold=0.9,
        threshold_max=2.0,
        guidance_scale=2.0,
    ),
    "DDIM inversion-8, clipped": make_plan(
        PARITY.process, "ddim_inversion", steps=8, clip=1.0, use_clipped_model_output=False
    ),
    "DDPM-12 of a respaced process": make_plan(
        Process(make_schedule("linear", respacing=[4, 4, 4]), PARITY.process.prediction), "ddpm"
    ),
    "flow Euler-8, velocity of linear_vp": make_plan(
        Process(make_schedule("linear_vp"), "velocity", 1000.0), "flow_euler", steps=8, clip=1.0
    ),
    "DDPM-20, large variance": make_plan(
        PARITY.process, "ddpm", steps=20, variance="fixed_large", spacing="linspace"
    ).with_value_range((-1.5, 1.0)),
    "DPM-Solver++ 2M-20": make_plan(PARITY.process, "dpm_solver", steps=20),
    "DPM-Solver++ 3M-SDE-20": make_plan(PARITY.process, "dpm_solver", steps=20, order=3, sde=True),
    "RePaint-10, twice each 3": make_plan(PARITY.process, "repaint", steps=10, jump=3, resamples=2, guidance_scale=2.0),
    "DPM-Solver++ 3M-SDE-8, eta 0.5, of sigmas to a noisy end": make_plan(
        PARITY.process,
        "dpm_solver",
        order=3,
        sde=True,
        solver_type="heun",
        eta=0.5,
        s_noise=1.1,
        sigmas=[80.0, 30.0, 12.0, 5.0, 2.0, 0.8, 0.3, 0.1],
        end="sigma_min",
    ),
    "DPM-Solver++ SDE-6, r 0.3": make_plan(PARITY.process, "dpmpp_sde", steps=6, r=0.3, s_noise=1.05, clip=1.0),
    "Heun-8 in the time of the VP SDE": make_plan(PARITY.process, "heun", steps=8, variable="vp", clip=1.0),
    "EDM, DPM-Solver++ 2M-8, Karras": make_plan(_EDM, "dpm_solver", steps=8, spacing="karras"),
    "SiT, Heun-4 with its last evaluation at clean data": make_plan(_SIT, "sit_ode", steps=4, method="heun"),
    "SiT, SDE-6 by Heun, guidance 2": make_plan(
        _SIT, "sit_sde", steps=6, method="heun", last_step="tweedie", guidance_scale=2.0
    ),
    "two registers, three estimates": _recurrence(),
}
# Every method by name, with about 16 evaluations: with fewer, high orders extrapolate so far that rounding grows. All
# have a clip, since at t = 999 the estimates of an untrained network are in the hundreds, with rounding to match.
# LMS-3 has 15: with 16, one of its 512 float32 values lies on the border between two uint8 values. DPM-Solver-fast with
# noise has 14: with 16 its last step but one is short and of first order, after one that enlarges rounding to 1.3e-4.
_EVALUATIONS = {name: 16 for name in METHODS} | {"LMS-3": 15, "DPM-Solver-fast, ancestral": 14}
PLANS |= {
    f"{name} in {_EVALUATIONS[name] // method.evaluations} steps": make_plan(
        PARITY.process, method.sampler, steps=_EVALUATIONS[name] // method.evaluations, clip=1.0, **method.options
    )
    for name, method in METHODS.items()
}

# The block for micro-batches: the elements that it drops depend on each image's position.
MICRO_BATCHED = "Dropout"

# For a quick climb: the plan whose every state is compared, and the plan that uses all columns.
FEW_PLANS = ("DDIM-50", "two registers, three estimates")


def scattered_weights(
    program: Program, gain: float = 1.0, scatter: float = 0.2, dtype: DTypeLike = np.float64
) -> Weights:
    """Return initial weights with random offsets on all constants (zero biases, unit norms)."""
    weights = initial_weights(program, SEED, dtype)
    for p in program.parameters:
        if p.init[0] == "constant":
            offset = scatter * Stream(SEED, f"parity/{p.name}").normal([0], p.shape)[0]
            weights[p.name] = (p.init[1] + offset).astype(dtype)
    return {name: gain * value for name, value in weights.items()}


def noise_batch(program: Program, shape: tuple[int, int, int], size: int = 4) -> TrainBatch:
    """Return a float64 training batch of smooth noise for any network; its labels include the null label.

    The processes here have c_in = 1 and weight = 1; the batch has other values, so that a backend cannot ignore them.

    Args:
        program: the network.
        shape: of one image.
        size: number of images.
    """
    index = np.arange(size)
    images = np.tanh(Stream(SEED, "parity/images").normal(index, shape))
    labels = Stream(SEED, "parity/label").integers(index, max(program.classes, 1))
    objective = Objective(
        _PROCESS, SEED, null_label=program.null_label, label_dropout=0.0 if program.null_label is None else 0.3,
        classes=program.classes,
    )  # fmt: skip
    c_in, weight = Stream(SEED, "parity/columns").uniform(index, 2).T + 0.5
    features = Stream(SEED, "parity/features").normal(index, (program.features,))
    return replace(objective.batch(images, labels, index, np.float64), c_in=c_in, weight=weight, features=features)


def edm_batch(program: Program, shape: tuple[int, int, int], size: int = 4) -> TrainBatch:
    """Return the same batch in continuous time, with noise of any scale and all columns varying."""
    batch, index = noise_batch(program, shape, size), np.arange(size)
    levels, weighting = {"name": "log_normal", "mean": 0.5, "std": 2.0}, {"name": "snr"}
    other = Objective(_EDM, SEED, timestep_sampling=levels, weighting=weighting).batch(
        batch.images, index, index, np.float64
    )
    names = ("alpha", "sigma", "c_in", "c_noise", "target_x0", "target_eps", "weight")
    return replace(batch, **{name: getattr(other, name) for name in names})


def digits_batch(images_seen: int, size: int) -> TrainBatch:
    """Return the float64 batch of a step of the parity training."""
    loader = Loader(_digits(), SEED, dtype=np.float64)
    objective = Objective(PARITY.process, SEED, null_label=PARITY.program.null_label, label_dropout=0.1)
    return make_batch(loader, objective, images_seen, size)


@cache
def validation(dtype: type) -> Validation:
    """Return the validation of the parity training, on the digits that are held out."""
    objective = Objective(PARITY.process, SEED, null_label=PARITY.program.null_label, label_dropout=0.1)
    return Validation(PARITY, objective, load_dataset("digits", part="held_out"), count=64, batch=32, dtype=dtype)


def cast(batch: TrainBatch, dtype: type) -> TrainBatch:
    """Return a float64 batch in another dtype; c_noise stays float64."""
    unchanged = ("c_noise", "label", "positions", "dropout_key")
    fields = {name: value for name, value in batch.arrays.items() if name not in unchanged}
    return replace(batch, **{name: value.astype(dtype) for name, value in fields.items()})


@cache
def _digits() -> Dataset:
    return load_dataset("digits", part="train")

"""Rung 2 notices mistakes in the forward pass of a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from planted import (
    CASES,
    FOUR_HEADS,
    LEFT_OUT,
    STRIDED,
    Fault,
    across,
    block_check,
    hair,
    told_block,
    told_instead,
    told_node,
    told_weights,
)

from diffusion_core.networks.blocks import GELU, Add, AvgPool, GroupNorm, SiLU

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]


def queries(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The change, made to the first third: those that give q."""
    return lambda array: np.concatenate([change(array[: len(array) // 3]), array[len(array) // 3 :]])


def interleaved(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Channels in the order of an attention whose heads are innermost."""
    order = np.arange(24).reshape(3, heads, -1).swapaxes(1, 2).reshape(-1)
    return lambda array: array[order]


def channels_first(height: int, width: int, axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """A dense layer for vectors h w c, as one for c h w would meet them."""

    def change(weight: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(weight, axis, -1)
        shaped = moved.reshape(*moved.shape[:-1], -1, height, width)
        return np.moveaxis(np.moveaxis(shaped, -3, -1).reshape(moved.shape), -1, axis)

    return change


SIN_FIRST, COS_FIRST = "Sinusoid sin first, half - 1; Linear", "Sinusoid cos first, half; Linear without bias"
CHAIN, SUMS = "Tokens: concatenation and slices", "Tokens: sums with a vector"
SLICES = "Slice of the channels of an image and of a vector"


BLOCK_FAULTS: dict[str, tuple[str, Fault]] = {
    "padding (0, 1) for (1, 1)": (STRIDED, told_block(padding=(0, 1, 0, 1))),
    "padding (1, 1) for (0, 1)": ("Conv 3x3 stride 2, padding (0, 1)", told_block(padding=(1, 1, 1, 1))),
    "padding (0, 1) for (1, 0)": ("Conv 3x3 stride 2, padding (1, 0)", told_block(padding=(0, 1, 0, 1))),
    "padding (0, 2) for (1, 1)": ("Conv 4x4 stride 2, padding (1, 1)", told_block(padding=(0, 2, 0, 2))),
    "rows for columns of a kernel": ("Conv 3x3", told_weights("block.weight", lambda w: w.swapaxes(2, 3))),
    "outputs for inputs of a kernel": (STRIDED, told_weights("block.weight", lambda w: w.swapaxes(0, 1))),
    "kernel flipped": ("Conv 3x3", told_weights("block.weight", lambda w: w[:, :, ::-1, ::-1])),
    "bias left out": ("Conv 1x1", told_weights("block.bias", np.zeros_like)),
    "dense layer transposed": ("Modulate", told_weights("block1.weight", np.transpose)),
    "eps 1e-3 for 1e-5": ("GroupNorm of 8 groups", told_block(eps=1e-3)),
    "eps 1e-5 for 1e-6": ("GroupNorm of 1 group", told_block(eps=1e-5)),
    "eps through float32": ("GroupNorm of 4 groups, large eps", told_block(eps=float(np.float32(0.1)))),
    "4 groups for 8": ("GroupNorm of 8 groups", told_block(groups=4)),
    "unbiased variance": (
        "GroupNorm of 1 group", told_weights("block.weight", lambda w: w * np.sqrt(1 - 1 / (64 * 16)))
    ),
    "SiLU left out": ("SiLU", LEFT_OUT),
    "1 head for 4": (FOUR_HEADS, told_block(heads=1)),
    "2 heads for 4": (FOUR_HEADS, told_block(heads=2)),
    "logits over the root of all channels": (FOUR_HEADS, told_weights("pre.", queries(lambda w: w * np.sqrt(2 / 8)))),
    "logits not divided": ("Attention of 1 head", told_weights("pre.", queries(lambda w: w * np.sqrt(8)))),
    "k, v, q for q, k, v": ("Attention of 1 head", told_weights("pre.", lambda w: np.roll(w, 8, axis=0))),
    "heads innermost": (FOUR_HEADS, told_weights("pre.", interleaved(4))),
    "scale of a sum left out": ("Add of images, scaled", told_block(scale=1.0)),
    "scale of a sum through float32": ("Add of images, scaled", told_block(scale=float(np.float32(2.0**-0.5)))),
    "concatenated the other way": ("Concat", told_node("block", lambda node: replace(node, inputs=("x", "pre")))),
    "cos first for sin first": (SIN_FIRST, told_block("block0", sin_first=False)),
    "sin first for cos first": (COS_FIRST, told_block("block0", sin_first=True)),
    "divisor half for half - 1": (SIN_FIRST, told_block("block0", divisor=8.0)),
    "divisor half - 1 for half": (COS_FIRST, told_block("block0", divisor=7.0)),
    "frequencies through float32": (SIN_FIRST, told_block("block0", max_period=10000.0 * (1 + 1e-7))),
    "the next row of a table": ("Embedding", told_weights("block0.weight", lambda w: np.roll(w, 1, axis=0))),
    "shift, scale for scale, shift": ("Modulate", told_weights("block1.", lambda w: np.roll(w, 8, axis=0))),
    "random features, cos first for sin first": ("Fourier sin first", told_block("block0", sin_first=False)),
    "random features, sin first for cos first": ("Fourier cos first", told_block("block0", sin_first=True)),
    "random features without 2 pi": ("Fourier sin first", told_weights("block0.", lambda w: w / (2 * np.pi))),
    "random frequencies through float32": ("Fourier cos first", told_weights("block0.", lambda w: np.float32(w) * 1.0)),
    "number not scaled": ("Number", told_block("block0", scale=1.0)),
    "vector in front of the pixel": (
        "Number to every pixel", told_weights("back0.weight", partial(np.roll, shift=-1, axis=1))
    ),
    "features in another order": ("Features", told_weights("block0.weight", lambda w: w[:, ::-1])),
    "the next row of a table with zero": (
        "Embedding with zero", told_weights("block0.", lambda w: np.roll(w, 1, axis=0))
    ),
    "vector added for multiplied": ("Multiply by a vector", told_instead("join", Add(1.0))),
    "images added for multiplied": ("Multiply of images", told_instead("block", Add(1.0))),
    "transposed kernel flipped": (
        "ConvTranspose 4x4 stride 2", told_weights("block.weight", lambda w: w[:, :, ::-1, ::-1])
    ),
    "rows for columns of a transposed kernel": (
        "ConvTranspose 2x2 stride 2", told_weights("block.weight", lambda w: w.swapaxes(2, 3))
    ),
    "outputs for inputs of a transposed kernel": (
        "ConvTranspose 3x3 stride 1 without bias", told_weights("block.weight", lambda w: w.swapaxes(0, 1))
    ),
    "bias of a transposed convolution left out": (
        "ConvTranspose 4x4 stride 2", told_weights("block.bias", np.zeros_like)
    ),
    "vector norm, eps 1e-5 for 1e-3": ("LayerNorm of a vector", told_block("block2", eps=1e-5)),
    "channels of the whole image for those of a pixel": (
        "LayerNorm of channels", told_instead("block", GroupNorm(16, 1, 1e-3))
    ),
    "channels norm, eps 1e-5 for 1e-3": ("LayerNorm of channels", told_block(eps=1e-5)),
    "image norm, eps 1e-6 for 1e-5": ("LayerNorm of images", told_block(eps=1e-6)),
    "rows for columns of an image's scale": (
        "LayerNorm of images", told_weights("block.weight", lambda w: w.swapaxes(1, 2))
    ),
    "h w c for c h w of an image's shift": (
        "LayerNorm of images", told_weights("block.bias", lambda w: w.reshape(8, 8, 16).transpose(2, 0, 1))
    ),
    "batch norm, eps 1e-5 for 1e-3": ("BatchNorm", told_block(eps=1e-5)),
    "batch norm, eps 1e-3 for 1e-5": ("BatchNorm, small eps, quick statistics", told_block(eps=1e-3)),
    "running deviation for variance": ("BatchNorm", told_weights("block.variance", np.sqrt)),
    "running mean left out": ("BatchNorm", told_weights("block.mean", np.zeros_like)),
    "ReLU left out": ("ReLU", LEFT_OUT),
    "SiLU for GELU": ("GELU", told_instead("block", SiLU())),
    "GELU for ReLU": ("ReLU", told_instead("block", GELU())),
    "sigmoid left out": ("Sigmoid", LEFT_OUT),
    "q, k, v for head by head": ("Attention, head by head", told_block(order="qkv")),
    "interleaved for head by head": ("Attention, head by head", told_block(order="interleaved")),
    "head by head for interleaved": ("Attention, interleaved", told_block(order="heads")),
    "head by head for q, k, v": (FOUR_HEADS, told_block(order="heads")),
    "mean for largest": ("MaxPool", told_instead("block", AvgPool())),
    "corners in line for centres": ("Resample bilinear", told_block(rule="bilinear_corners")),
    "centres in line for corners": ("Resample bilinear, corners in line", told_block(rule="bilinear")),
    "filter not normalised": ("Resample down with a filter", told_weights("pre.", lambda w: 64 * w)),
    "filter not doubled on the way up": ("Resample up with a filter", told_weights("pre.", lambda w: w / 4)),
    "taps 1, 2, 2, 1 for 1, 3, 3, 1": ("Resample down, widened before", told_block(taps=(1.0, 2.0, 2.0, 1.0))),
    "mean for a filter": ("Resample down with a filter", told_block(taps=(0.0, 1.0, 1.0, 0.0))),
    "nearest for a filter": ("Resample up with a filter", told_block(taps=(0.0, 1.0, 1.0, 0.0))),
    "c h w for h w c of a flat image": ("Flatten, Unflatten", told_weights("back0.weight", channels_first(8, 8, 1))),
    "c h w for h w c on the way back": ("Flatten, Unflatten", told_weights("back0.", channels_first(4, 4, 0))),
    "channel slowest in a patch": ("Patchify, Unpatchify", told_weights("back0.weight", channels_first(2, 2, 1))),
    "channel slowest in a patch on the way back": (
        "Patchify, Unpatchify", told_weights("back1.weight", channels_first(2, 2, 0))
    ),
    "columns for rows of patches": ("SinePositions", told_weights("table.table", across(4))),
    "cosines before sines of a position": (
        "SinePositions", told_weights("table.table", lambda w: w.reshape(16, 2, 2, 2)[:, :, ::-1].reshape(16, 8))
    ),
    "rows before columns of a position": (
        "SinePositions", told_weights("table.table", lambda w: np.roll(w, 4, axis=1))
    ),
    "a learned position left out": (CHAIN, told_weights("table.", np.zeros_like)),
    "tokens concatenated the other way": (
        CHAIN, told_node("wide", lambda node: replace(node, inputs=node.inputs[::-1]))
    ),
    "the next tokens": (CHAIN, told_block("image", start=3)),
    "the channels before": (CHAIN, told_block("part", start=2)),
    "the channels of an image before": (SLICES, told_block("part", start=3)),
    "the channels of a vector before": (SLICES, told_block("v8", start=4)),
    "scale, shift for shift, scale": ("Modulate, shift first", told_block("join", shift_first=False)),
    "scale, shift for shift, scale of tokens": (SUMS, told_block("modulate", shift_first=False)),
    "gate added for multiplied": (SUMS, told_instead("gate", Add(1.0))),
    "scale of a sum with tokens left out": (SUMS, told_block("add", scale=1.0)),
    "exact GELU for that by tanh": ("GELU by tanh", told_block(tanh=False)),
    "exact GELU of tokens": ("Tokens: norms and activations", told_block("act", tanh=False)),
    "norm without scale and shift, eps 1e-5 for 1e-6": ("LayerNorm of channels, not affine", told_block(eps=1e-5)),
    "1 head for 2 of cross-attention": ("CrossAttention", told_block("attend", heads=1)),
    "v, k for k, v": ("CrossAttention", told_weights("kv.", lambda w: np.roll(w, 8, axis=0))),
    "head by head of tokens": ("Attention of tokens, large logits", told_block("attend", order="heads")),
}  # fmt: skip


@pytest.mark.parametrize("name, fault", BLOCK_FAULTS.values(), ids=BLOCK_FAULTS)
def test_rung_2_notices(exact, name, fault):
    assert block_check(exact, name, {}).passed
    assert not block_check(exact, name, {"network": fault}).passed


FINE = {
    "eps 1e-5 for 1e-6", "eps through float32", "scale of a sum through float32", "frequencies through float32",
    "random frequencies through float32", "image norm, eps 1e-6 for 1e-5",
    "norm without scale and shift, eps 1e-5 for 1e-6",
}  # fmt: skip


@pytest.mark.parametrize("title", sorted(BLOCK_FAULTS.keys() - FINE))
def test_rung_2_notices_in_float32(kept, title):
    name, fault = BLOCK_FAULTS[title]
    assert not block_check(kept("float32"), name, {"network": fault}).passed


@pytest.mark.parametrize("name", CASES)
def test_rung_2_notices_a_hair_in_every_case(exact, name):
    """One weight with an error of 1e-9 of the largest: every case depends on the input of its block."""
    assert not block_check(exact, name, {"network": told_weights("pre.weight", hair)}).passed


@pytest.mark.parametrize("name", [SIN_FIRST, COS_FIRST, "Modulate", "Fourier sin first", "Number to every pixel"])
def test_rung_2_notices_a_time_shifted_by_one(exact, name):
    late = {"network.forward": lambda x, c_noise, *rest: (x, c_noise + 1, *rest)}
    assert not block_check(exact, name, late).passed


def test_rung_2_notices_a_time_in_float32_at_half_a_step(exact):
    rounded = {"network.forward": lambda x, c_noise, *rest: (x, c_noise * (1 + 2.0**-24), *rest)}
    assert not block_check(exact, SIN_FIRST, rounded).passed


INPUT_FAULTS: dict[str, tuple[str, Callable]] = {
    "features left out": ("Features", lambda x, t, label, features: (x, t, label, None)),
    "features of the neighbour": (
        "Features", lambda x, t, label, features: (x, t, label, np.roll(features, 1, axis=0))
    ),
    "the last row for no class": (
        "Embedding with zero", lambda x, t, label, features: (x, t, np.minimum(label, 3), features)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name, fault", INPUT_FAULTS.values(), ids=INPUT_FAULTS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_rung_2_notices_other_inputs(kept, name, fault, precision):
    assert not block_check(kept(precision), name, {"network.forward": fault}).passed

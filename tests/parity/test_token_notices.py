"""Rung 2 notices the mistakes of other code in the blocks of U-ViT and JiT; see planted.py.

Each block is written here as others write it, with options; without options it is the reference. The mistake is planted
in the reference, and the rung's own check must then report the sound backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.common.random import random_words
from diffusion_core.networks import lower
from diffusion_core.parity import cases, rungs
from diffusion_core.parity.ladder import Check, check

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]

CASES = {case.name: case for case in cases.BLOCKS}
NORM, TURN = "Tokens: RMSNorm by the mean square, SwiGLU", "QKNorm, RotaryPositions"
PART, DROP = "RotaryPositions of a part of the tokens", "DropoutAttention"


def rms_norm_like(
    b: Any, x: np.ndarray, weight: np.ndarray, *, eps: float | None = None, outside: bool = False,
    centred: bool = False, plus_one: bool = False, over: tuple[int, ...] = (-1,),
) -> np.ndarray:  # fmt: skip
    """RMSNorm with another eps, of centred values, with the scale 1 + weight, or over other axes."""
    eps = b.eps if eps is None else eps
    x = x - x.mean(axis=-1, keepdims=True) if centred else x
    square = np.square(x).mean(axis=over, keepdims=True)
    return x / (np.sqrt(square) + eps if outside else np.sqrt(square + eps)) * (weight + plus_one)


def swiglu_like(b: Any, x: np.ndarray, *, value_first: bool = False, gate: str = "silu", by: int = 0) -> np.ndarray:
    """A gated unit with the halves exchanged or interleaved, or another gate."""
    one, other = (x[..., ::2], x[..., 1::2]) if by else np.split(x, 2, axis=-1)
    one, other = (other, one) if value_first else (one, other)
    sigmoid = 1 / (1 + np.exp(-one))
    gates = {"silu": one * sigmoid, "sigmoid": sigmoid, "tanh": 0.5 * one * (1 + np.tanh(0.8 * one))}
    return gates[gate] * other


def qk_norm_like(
    b: Any, qkv: np.ndarray, query: np.ndarray, key: np.ndarray, *, heads: int | None = None, swapped: bool = False,
    values: bool = False, scaled: bool = True, length: bool = False,
) -> np.ndarray:  # fmt: skip
    """The norm over other groups, with the scales exchanged or left out, of v too, or by the length."""
    query, key = (key, query) if swapped else (query, key)
    batch, tokens, size = len(qkv), qkv.shape[1], b.channels // b.heads
    parts = qkv.reshape(batch, tokens, 3, heads or b.heads, -1)
    square = np.square(parts).sum(-1, keepdims=True)
    normal = parts / np.sqrt((square if length else square / parts.shape[-1]) + b.eps)
    normal, parts = (a.reshape(batch, tokens, 3, b.heads, size) for a in (normal, parts))
    scales = (query, key) if scaled else (1.0, 1.0)
    third = normal[:, :, 2] if values else parts[:, :, 2]
    return np.stack([normal[:, :, 0] * scales[0], normal[:, :, 1] * scales[1], third], axis=2).reshape(qkv.shape)


def rotary_like(
    b: Any, qkv: np.ndarray, *, columns_first: bool = False, halves: bool = False, backwards: bool = False,
    values: bool = False, base: float = 10000.0, spread: int = 1, first: int = 0, all_turn: bool = False,
) -> np.ndarray:  # fmt: skip
    """Rotation of other pairs, by other angles, or of other tokens."""
    size = b.channels // b.heads
    rates = base ** (-np.arange(size // 4) / (size // 4 * spread))
    row, column = np.divmod(np.arange(b.height * b.width) + first, b.width)
    places = (column, row) if columns_first else (row, column)
    angle = np.concatenate([at[:, None] * rates for at in places], axis=1) * (-1 if backwards else 1)
    still = np.zeros((b.skipped, size // 2))
    angle = np.concatenate([angle, angle[: b.skipped]] if all_turn else [still, angle])[:, None, None]
    parts = qkv.reshape(*qkv.shape[:2], 3, b.heads, size)
    x, y = np.split(parts, 2, axis=-1) if halves else (parts[..., ::2], parts[..., 1::2])
    turned = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    turned = np.concatenate(turned, -1) if halves else np.stack(turned, -1).reshape(parts.shape)
    if not values:
        turned = np.concatenate([turned[:, :, :2], parts[:, :, 2:]], axis=2)
    return turned.reshape(qkv.shape)


def dropout_attention_like(
    b: Any, qkv: np.ndarray, name: str, training: Any, *, rescaled: bool = True, logits: bool = False, row: int = 0,
    keys_first: bool = False, tokens: bool = False, high: bool = False, renormalised: bool = False,
) -> np.ndarray:  # fmt: skip
    """Attention that drops other elements, or the logits, or rescales in another way."""
    batch, n, size = len(qkv), qkv.shape[1], b.channels // b.heads
    q, k, v = np.moveaxis(qkv.reshape(batch, n, 3, b.heads, size), (2, 3), (0, 2))
    scores, kept = q @ k.swapaxes(-1, -2) / np.sqrt(size), np.ones((batch, b.heads, n, n), bool)
    if training is not None:
        count = n * b.heads if tokens else n * n * b.heads
        words = random_words(tuple(map(int, training.key)), training.positions, count, b.row + row)
        drawn = words < 2**32 - b.threshold if high else words >= b.threshold
        shape = (batch, b.heads, 1, n) if tokens else kept.shape
        kept = np.broadcast_to(drawn.reshape(shape), kept.shape)
        kept = kept.swapaxes(-1, -2) if keys_first else kept
    scores = np.where(kept, scores, -1e9) if logits else scores
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    if training is not None and not logits:
        weights = np.where(kept, weights / (1 - b.rate if rescaled else 1), 0.0)
        weights = weights / weights.sum(-1, keepdims=True) if renormalised else weights
    return np.moveaxis(weights @ v, 1, 2).reshape(batch, n, b.channels)


FORMULAS: dict[str, tuple[str, Callable]] = {
    "RMSNorm": (NORM, rms_norm_like), "SwiGLU": (NORM, swiglu_like), "QKNorm": (TURN, qk_norm_like),
    "RotaryPositions": (TURN, rotary_like), "RotaryPositions, a part": (PART, rotary_like),
    "DropoutAttention": (DROP, dropout_attention_like),
}  # fmt: skip
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "eps 1e-6 for 1e-2": ("RMSNorm", {"eps": 1e-6}),
    "eps outside the root": ("RMSNorm", {"outside": True}),
    "LayerNorm for RMSNorm": ("RMSNorm", {"centred": True}),
    "1 + weight for weight": ("RMSNorm", {"plus_one": True}),
    "over all tokens": ("RMSNorm", {"over": (1, 2)}),
    "value, gate for gate, value": ("SwiGLU", {"value_first": True}),
    "gate and value in turn": ("SwiGLU", {"by": 1}),
    "sigmoid for SiLU": ("SwiGLU", {"gate": "sigmoid"}),
    "GELU for SiLU": ("SwiGLU", {"gate": "tanh"}),
    "norm over all heads": ("QKNorm", {"heads": 1}),
    "scales of q and k exchanged": ("QKNorm", {"swapped": True}),
    "scales left out": ("QKNorm", {"scaled": False}),
    "v normalised too": ("QKNorm", {"values": True}),
    "length for root mean square": ("QKNorm", {"length": True}),
    "the column first": ("RotaryPositions", {"columns_first": True}),
    "first and second half for pairs": ("RotaryPositions", {"halves": True}),
    "backwards, v alone": ("RotaryPositions", {"values": True}),
    "base 100": ("RotaryPositions, a part", {"base": 100.0}),
    "frequencies of all channels": ("RotaryPositions, a part", {"spread": 2}),
    "rows that count from one": ("RotaryPositions, a part", {"first": 4}),
    "the first tokens turned": ("RotaryPositions, a part", {"all_turn": True}),
    "turned backwards": ("RotaryPositions, a part", {"backwards": True, "values": True}),
}  # fmt: skip
TRAINING_FAULTS: dict[str, dict[str, Any]] = {
    "not rescaled": {"rescaled": False},
    "logits for weights": {"logits": True},
    "another row": {"row": 1},
    "keys for queries": {"keys_first": True},
    "whole tokens": {"tokens": True},
    "dropped above the rate": {"high": True},
    "weights that sum to one": {"renormalised": True},
}


def plant(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> str:
    """Replace the reference function of a block; return the case that shows it."""
    case, formula = FORMULAS[name]
    monkeypatch.setitem(reference.BLOCK_FUNCTIONS, name.split(",")[0], partial(formula, **options))
    return case


def forward_check(backend: Any, name: str) -> Check:
    """The check of rung 2 of one case."""
    case = CASES[name]
    weights = cases.scattered_weights(case.program, case.gain)
    batch = cases.noise_batch(case.program, case.shape)
    return check(2, name, "float64", "this", f"block{case.kind}",
                 rungs.forward_error(backend, case.program, weights, batch))  # fmt: skip


def training_check(backend: Any, name: str) -> Check:
    """The check of rung 2 of the loss of each image in training."""
    case = CASES[name]
    weights = cases.scattered_weights(case.program, case.gain)
    errors = rungs.training_errors(backend, case.program, weights, cases.noise_batch(case.program, case.shape))
    return check(2, name, "float64", "this", "block", errors["loss of each image"])


@pytest.mark.parametrize("name", FORMULAS)
def test_what_others_write_is_the_reference_without_options(exact, name, monkeypatch):
    case = plant(monkeypatch, name)
    assert forward_check(exact, case).passed
    if name == "DropoutAttention":
        assert training_check(exact, case).passed


@pytest.mark.parametrize("name, options", FAULTS.values(), ids=FAULTS)
def test_rung_2_notices(exact, name, options, monkeypatch):
    assert not forward_check(exact, plant(monkeypatch, name, **options)).passed


@pytest.mark.parametrize("options", TRAINING_FAULTS.values(), ids=TRAINING_FAULTS)
def test_rung_2_notices_in_training(exact, options, monkeypatch):
    assert not training_check(exact, plant(monkeypatch, "DropoutAttention", **options)).passed


def _rolled(weights: Any, name: str, by: int, axis: int = 0) -> Any:
    return weights | {name: np.roll(weights[name], by, axis=axis)}


def _columns_swapped(weights: Any) -> Any:
    return _rolled(weights, "out.0.skip.weight", 16, axis=1)


def _swap_tokens(program: Any, weights: Any) -> Any:
    table = weights["positions.table"].copy()
    table[:2] = table[1::-1]
    return program, weights | {"positions.table": table}


NETWORK_FAULTS: dict[str, tuple[str, Callable[[Any, Any], tuple[Any, Any]]]] = {
    "the time in front of the class": ("U-ViT", _swap_tokens),
    "the skip in front of the value": ("U-ViT", lambda program, weights: (program, _columns_swapped(weights))),
    "the row first in the fixed table": (
        "JiT", lambda program, weights: (program, _rolled(weights, "positions.table", 8, axis=1))
    ),
    "scale, shift for shift, scale": (
        "JiT", lambda program, weights: (program, _rolled(weights, "final.modulation.weight", 16))
    ),
}  # fmt: skip


@pytest.mark.parametrize("title, fault", NETWORK_FAULTS.values(), ids=NETWORK_FAULTS)
def test_rung_3_notices(exact, title, fault):
    """A backend that is told other weights, as it is by another order of tokens, skips or chunks."""
    spec = cases.NETWORKS[title]
    program, weights = lower(spec), cases.scattered_weights(lower(spec))
    batch = cases.noise_batch(program, spec.image_shape)
    inputs = batch.c_in[:, None, None, None] * batch.images, batch.c_noise, batch.label
    wanted = reference.forward(program, weights, *inputs)
    for told, is_sound in ((weights, True), (fault(program, weights)[1], False)):
        error = np.abs(exact.network(program, told).forward(*inputs) - wanted).max() / np.abs(wanted).max()
        assert check(3, title, "float64", "this", "network", error).passed == is_sound

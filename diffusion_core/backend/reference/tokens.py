"""Reference functions of the block kinds of `networks/blocks/tokens.py`; values are tokens ``b n c``."""

from __future__ import annotations

import numpy as np
from einops import rearrange

from diffusion_core.backend.reference.table import BLOCK_FUNCTIONS, Array, softmax
from diffusion_core.common.random import random_words
from diffusion_core.networks.blocks import tokens
from diffusion_core.networks.program import Training

__all__: list[str] = []


@BLOCK_FUNCTIONS(tokens.Patchify)
def _patchify(b: tokens.Patchify, x: Array) -> Array:
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=b.patch, q=b.patch)


@BLOCK_FUNCTIONS(tokens.Unpatchify)
def _unpatchify(b: tokens.Unpatchify, x: Array) -> Array:
    return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=b.height, p=b.patch, q=b.patch)


@BLOCK_FUNCTIONS(tokens.Repeat)
def _repeat(b: tokens.Repeat, vector: Array) -> Array:
    return np.repeat(vector[:, None], b.count, axis=1)


@BLOCK_FUNCTIONS(tokens.Slice)
def _slice(b: tokens.Slice, x: Array) -> Array:
    return x[:, b.start : b.stop] if b.axis == "tokens" else x[..., b.start : b.stop]


@BLOCK_FUNCTIONS(tokens.ConcatTokens)
def _concat_tokens(b: tokens.ConcatTokens, x: Array, y: Array) -> Array:
    return np.concatenate([x, y], axis=1)


@BLOCK_FUNCTIONS(tokens.SinePositions)
def _sine_positions(b: tokens.SinePositions, x: Array, table: Array) -> Array:
    return x + table


@BLOCK_FUNCTIONS(tokens.LearnedPositions)
def _learned_positions(b: tokens.LearnedPositions, x: Array, table: Array) -> Array:
    return x + table


@BLOCK_FUNCTIONS(tokens.CrossAttention)
def _cross_attention(b: tokens.CrossAttention, q: Array, kv: Array) -> Array:
    q = rearrange(q, "b t (n d) -> b n t d", n=b.heads)
    k, v = rearrange(kv, "b t (two n d) -> two b n t d", two=2, n=b.heads)
    mixed = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(b.channels // b.heads), -1) @ v
    return rearrange(mixed, "b n t d -> b t (n d)")


@BLOCK_FUNCTIONS(tokens.SwiGLU)
def _swiglu(b: tokens.SwiGLU, x: Array) -> Array:
    gate, value = np.split(x, 2, axis=-1)
    return gate / (1.0 + np.exp(-gate)) * value


@BLOCK_FUNCTIONS(tokens.QKNorm)
def _qk_norm(b: tokens.QKNorm, qkv: Array, query: Array, key: Array) -> Array:
    parts = rearrange(qkv, "b t (three n d) -> three b t n d", three=3, n=b.heads)
    normal = parts / np.sqrt(np.square(parts).mean(axis=-1, keepdims=True) + b.eps)
    return rearrange(np.stack([normal[0] * query, normal[1] * key, parts[2]]), "three b t n d -> b t (three n d)")


@BLOCK_FUNCTIONS(tokens.RotaryPositions)
def _rotary_positions(b: tokens.RotaryPositions, qkv: Array) -> Array:
    one, other = rearrange(qkv, "b t (three n d pair) -> pair b t three n d", three=3, n=b.heads, pair=2)
    cos, sin = b.rotation()
    turned = np.stack([one * cos - other * sin, one * sin + other * cos])
    return rearrange(turned, "pair b t three n d -> b t (three n d pair)")


@BLOCK_FUNCTIONS(tokens.DropoutAttention)
def _dropout_attention(b: tokens.DropoutAttention, qkv: Array, name: str, training: Training | None) -> Array:
    q, k, v = rearrange(qkv, "b t (three n d) -> three b n t d", three=3, n=b.heads)
    weights = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(b.channels // b.heads), -1)
    if training is not None:
        words = random_words(tuple(map(int, training.key)), training.positions, weights[0].size, b.row)
        weights = np.where(words.reshape(weights.shape) >= b.threshold, weights / (1.0 - b.rate), 0.0)
    return rearrange(weights @ v, "b n t d -> b t (n d)")

"""Reference functions of the block kinds of `networks/token_blocks.py`; values are tokens ``b n c``."""

from __future__ import annotations

import numpy as np
from einops import rearrange

from diffusion_core.backend.block_functions import BLOCK_FUNCTIONS, Array, softmax
from diffusion_core.networks import token_blocks

__all__: list[str] = []


@BLOCK_FUNCTIONS(token_blocks.Patchify)
def _patchify(b: token_blocks.Patchify, x: Array) -> Array:
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=b.patch, q=b.patch)


@BLOCK_FUNCTIONS(token_blocks.Unpatchify)
def _unpatchify(b: token_blocks.Unpatchify, x: Array) -> Array:
    return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=b.height, p=b.patch, q=b.patch)


@BLOCK_FUNCTIONS(token_blocks.Repeat)
def _repeat(b: token_blocks.Repeat, vector: Array) -> Array:
    return np.repeat(vector[:, None], b.count, axis=1)


@BLOCK_FUNCTIONS(token_blocks.Slice)
def _slice(b: token_blocks.Slice, x: Array) -> Array:
    return x[:, b.start : b.stop] if b.axis == "tokens" else x[..., b.start : b.stop]


@BLOCK_FUNCTIONS(token_blocks.ConcatTokens)
def _concat_tokens(b: token_blocks.ConcatTokens, x: Array, y: Array) -> Array:
    return np.concatenate([x, y], axis=1)


@BLOCK_FUNCTIONS(token_blocks.SinePositions)
def _sine_positions(b: token_blocks.SinePositions, x: Array, table: Array) -> Array:
    return x + table


@BLOCK_FUNCTIONS(token_blocks.LearnedPositions)
def _learned_positions(b: token_blocks.LearnedPositions, x: Array, table: Array) -> Array:
    return x + table


@BLOCK_FUNCTIONS(token_blocks.CrossAttention)
def _cross_attention(b: token_blocks.CrossAttention, q: Array, kv: Array) -> Array:
    q = rearrange(q, "b t (n d) -> b n t d", n=b.heads)
    k, v = rearrange(kv, "b t (two n d) -> two b n t d", two=2, n=b.heads)
    mixed = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(b.channels // b.heads), -1) @ v
    return rearrange(mixed, "b n t d -> b t (n d)")

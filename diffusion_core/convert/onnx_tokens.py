"""ONNX emitters of the block kinds of `networks/token_blocks.py`; images are ``b c h w``, tokens ``b n c``."""

from __future__ import annotations

import numpy as np

from diffusion_core.convert.onnx_graph import EMITTERS, Graph, Value, int64, reshape
from diffusion_core.networks import token_blocks

__all__: list[str] = []


@EMITTERS(token_blocks.Patchify)
def _patchify(g: Graph, b: token_blocks.Patchify, x: Value) -> str:
    channels, height, width = x.shape
    rows, columns = height // b.patch, width // b.patch
    parts = reshape(g, x, channels, rows, b.patch, columns, b.patch)  # b c h p w q
    turned = g.add("Transpose", parts, perm=[0, 2, 4, 3, 5, 1])
    return reshape(g, turned, rows * columns, b.patch**2 * channels)


@EMITTERS(token_blocks.Unpatchify)
def _unpatchify(g: Graph, b: token_blocks.Unpatchify, x: Value) -> str:
    channels = x.shape[1] // b.patch**2
    parts = reshape(g, x, b.height, b.width, b.patch, b.patch, channels)  # b h w p q c
    turned = g.add("Transpose", parts, perm=[0, 5, 1, 3, 2, 4])
    return reshape(g, turned, channels, b.height * b.patch, b.width * b.patch)


@EMITTERS(token_blocks.Repeat)
def _repeat(g: Graph, b: token_blocks.Repeat, vector: Value) -> str:
    return g.add("Expand", g.add("Unsqueeze", vector, int64(1)), int64(1, b.count, 1))


@EMITTERS(token_blocks.Slice)
def _slice(g: Graph, b: token_blocks.Slice, x: Value) -> str:
    axis = 1 if b.axis == "tokens" else x.channels
    return g.add("Slice", x, int64(b.start), int64(b.stop), int64(axis))


@EMITTERS(token_blocks.ConcatTokens)
def _concat_tokens(g: Graph, b: token_blocks.ConcatTokens, x: Value, y: Value) -> str:
    return g.add("Concat", x, y, axis=1)


@EMITTERS(token_blocks.SinePositions)
def _sine_positions(g: Graph, b: token_blocks.SinePositions, x: Value, table: str) -> str:
    return g.add("Add", x, table)


@EMITTERS(token_blocks.LearnedPositions)
def _learned_positions(g: Graph, b: token_blocks.LearnedPositions, x: Value, table: str) -> str:
    return g.add("Add", x, table)


@EMITTERS(token_blocks.CrossAttention)
def _cross_attention(g: Graph, b: token_blocks.CrossAttention, q: Value, kv: Value) -> str:
    size = b.channels // b.heads
    q_heads = reshape(g, q, q.shape[0], b.heads, size)
    parts = reshape(g, kv, kv.shape[0], 2, b.heads, size)
    k, v = (g.add("Gather", parts, np.array(i), axis=2) for i in range(2))
    q_heads = g.add("Mul", g.add("Transpose", q_heads, perm=[0, 2, 1, 3]), np.array(size**-0.5, np.float32))
    logits = g.add("MatMul", q_heads, g.add("Transpose", k, perm=[0, 2, 3, 1]))
    mixed = g.add("MatMul", g.add("Softmax", logits, axis=-1), g.add("Transpose", v, perm=[0, 2, 1, 3]))
    return reshape(g, g.add("Transpose", mixed, perm=[0, 2, 1, 3]), q.shape[0], b.channels)

"""ONNX emitters of the block kinds of `networks/blocks/tokens.py`; images are ``b c h w``, tokens ``b n c``."""

from __future__ import annotations

import numpy as np

from diffusion_core.convert.onnx_graph import EMITTERS, Graph, Value, int64, reshape
from diffusion_core.networks import blocks
from diffusion_core.networks.blocks import tokens

__all__: list[str] = []


@EMITTERS(tokens.Patchify)
def _patchify(g: Graph, b: tokens.Patchify, x: Value) -> str:
    channels, height, width = x.shape
    rows, columns = height // b.patch, width // b.patch
    parts = reshape(g, x, channels, rows, b.patch, columns, b.patch)  # b c h p w q
    turned = g.add("Transpose", parts, perm=[0, 2, 4, 3, 5, 1])
    return reshape(g, turned, rows * columns, b.patch**2 * channels)


@EMITTERS(tokens.Unpatchify)
def _unpatchify(g: Graph, b: tokens.Unpatchify, x: Value) -> str:
    channels = x.shape[1] // b.patch**2
    parts = reshape(g, x, b.height, b.width, b.patch, b.patch, channels)  # b h w p q c
    turned = g.add("Transpose", parts, perm=[0, 5, 1, 3, 2, 4])
    return reshape(g, turned, channels, b.height * b.patch, b.width * b.patch)


@EMITTERS(tokens.Repeat)
def _repeat(g: Graph, b: tokens.Repeat, vector: Value) -> str:
    return g.add("Expand", g.add("Unsqueeze", vector, int64(1)), int64(1, b.count, 1))


@EMITTERS(tokens.Slice)
def _slice(g: Graph, b: tokens.Slice, x: Value) -> str:
    axis = 1 if b.axis == "tokens" else x.channels
    return g.add("Slice", x, int64(b.start), int64(b.stop), int64(axis))


@EMITTERS(tokens.ConcatTokens)
def _concat_tokens(g: Graph, b: tokens.ConcatTokens, x: Value, y: Value) -> str:
    return g.add("Concat", x, y, axis=1)


@EMITTERS(tokens.SinePositions)
def _sine_positions(g: Graph, b: tokens.SinePositions, x: Value, table: str) -> str:
    return g.add("Add", x, table)


@EMITTERS(tokens.LearnedPositions)
def _learned_positions(g: Graph, b: tokens.LearnedPositions, x: Value, table: str) -> str:
    return g.add("Add", x, table)


@EMITTERS(tokens.CrossAttention)
def _cross_attention(g: Graph, b: tokens.CrossAttention, q: Value, kv: Value) -> str:
    size = b.channels // b.heads
    q_heads = reshape(g, q, q.shape[0], b.heads, size)
    parts = reshape(g, kv, kv.shape[0], 2, b.heads, size)
    k, v = (g.add("Gather", parts, np.array(i), axis=2) for i in range(2))
    q_heads = g.add("Mul", g.add("Transpose", q_heads, perm=[0, 2, 1, 3]), np.array(size**-0.5, np.float32))
    logits = g.add("MatMul", q_heads, g.add("Transpose", k, perm=[0, 2, 3, 1]))
    mixed = g.add("MatMul", g.add("Softmax", logits, axis=-1), g.add("Transpose", v, perm=[0, 2, 1, 3]))
    return reshape(g, g.add("Transpose", mixed, perm=[0, 2, 1, 3]), q.shape[0], b.channels)


@EMITTERS(tokens.SwiGLU)
def _swiglu(g: Graph, b: tokens.SwiGLU, x: Value) -> str:
    half, axis = x.count // 2, int64(x.channels)
    gate, value = (g.add("Slice", x, int64(start), int64(start + half), axis) for start in (0, half))
    return g.add("Mul", g.add("Mul", gate, g.add("Sigmoid", gate)), value)


@EMITTERS(tokens.QKNorm)
def _qk_norm(g: Graph, b: tokens.QKNorm, qkv: Value, query: str, key: str) -> str:
    parts = reshape(g, qkv, qkv.shape[0], 3, b.heads, b.channels // b.heads)
    q, k, v = (g.add("Slice", parts, int64(i), int64(i + 1), int64(2)) for i in range(3))
    normal = []
    for part, scale in ((q, query), (k, key)):
        square = g.add("ReduceMean", g.add("Mul", part, part), int64(4))
        size = g.add("Sqrt", g.add("Add", square, np.array(b.eps, np.float32)))
        normal.append(g.add("Mul", g.add("Div", part, size), scale))
    return reshape(g, g.add("Concat", *normal, v, axis=2), *qkv.shape)


@EMITTERS(tokens.RotaryPositions)
def _rotary_positions(g: Graph, b: tokens.RotaryPositions, qkv: Value) -> str:
    parts = reshape(g, qkv, qkv.shape[0], 3, b.heads, b.channels // b.heads // 2, 2)
    one, other = (g.add("Slice", parts, int64(i), int64(i + 1), int64(5)) for i in range(2))
    cos, sin = (table[..., None].astype(np.float32) for table in b.rotation())
    turned = (
        g.add("Sub", g.add("Mul", one, cos), g.add("Mul", other, sin)),
        g.add("Add", g.add("Mul", one, sin), g.add("Mul", other, cos)),
    )
    return reshape(g, g.add("Concat", *turned, axis=5), *qkv.shape)


@EMITTERS(tokens.DropoutAttention)
def _dropout_attention(g: Graph, b: tokens.DropoutAttention, qkv: Value) -> str:
    return EMITTERS["Attention"](g, blocks.Attention(b.channels, b.heads), qkv)

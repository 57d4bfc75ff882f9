"""The ONNX emitters of the magnitude-preserving blocks, see `networks/blocks/magnitude.py`.

Weights stay as they are in the file and are normalised by the graph.
"""

from __future__ import annotations

import numpy as np

from diffusion_core.convert.onnx_graph import EMITTERS, Graph, Value, int64, reshape, to_float32
from diffusion_core.networks.blocks import magnitude as blocks
from diffusion_core.optim.normalisation import MIN_SQUARE

__all__: list[str] = []


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _normalise(g: Graph, x: Value | str, axes: tuple[int, ...], eps: float) -> str:
    square = g.add("Max", g.add("ReduceMean", g.add("Mul", x, x), int64(*axes)), _number(MIN_SQUARE))
    return g.add("Div", x, g.add("Add", g.add("Sqrt", square), _number(eps)))


def _rows(g: Graph, weight: str, gain: str | None, axes: tuple[int, ...], fan_in: int, eps: float) -> str:
    rows = g.add("Mul", _normalise(g, weight, axes, eps), _number(fan_in**-0.5))
    return rows if gain is None else g.add("Mul", rows, gain)


@EMITTERS(blocks.MPFourier)
def _mp_fourier(g: Graph, b: blocks.MPFourier, c_noise: Value, frequencies: str, phases: str) -> str:
    frequencies, phases = (g.add("Cast", each, to=g.onnx.TensorProto.DOUBLE) for each in (frequencies, phases))
    angle = g.add("Add", g.add("Mul", g.add("Unsqueeze", c_noise, int64(1)), frequencies), phases)
    cosine = g.add("Sin", g.add("Add", angle, np.array(np.pi / 2)))
    return to_float32(g, g.add("Mul", cosine, np.array(2.0**0.5)))


@EMITTERS(blocks.OneHot)
def _one_hot(g: Graph, b: blocks.OneHot, label: Value) -> str:
    # A label outside of 0 .. count - 1 gives zeros.
    return g.add("OneHot", label, np.array(b.count, np.int64), np.array([0.0, b.scale], np.float32))


@EMITTERS(blocks.MPLinear)
def _mp_linear(g: Graph, b: blocks.MPLinear, x: Value, weight: str, gain: str | None = None) -> str:
    return g.add("Gemm", x, _rows(g, weight, gain, (1,), b.inputs, b.eps), transB=1)


@EMITTERS(blocks.MPConv)
def _mp_conv(g: Graph, b: blocks.MPConv, x: Value, weight: str, gain: str | None = None) -> str:
    rows = _rows(g, weight, gain, (1, 2, 3), b.inputs * b.kernel**2, b.eps)
    # The weight is no constant of the graph, so the shape of the kernel is stated.
    return g.add("Conv", x, rows, kernel_shape=[b.kernel] * 2, pads=list(b.padding), strides=[1, 1])


@EMITTERS(blocks.MPSiLU)
def _mp_silu(g: Graph, b: blocks.MPSiLU, x: Value) -> str:
    return g.add("Div", g.add("Mul", x, g.add("Sigmoid", x)), _number(b.divisor))


@EMITTERS(blocks.MPSum)
def _mp_sum(g: Graph, b: blocks.MPSum, x: Value, y: Value) -> str:
    return g.add("Add", *(g.add("Mul", value, _number(f)) for value, f in zip((x, y), b.factors, strict=True)))


@EMITTERS(blocks.MPConcat)
def _mp_concat(g: Graph, b: blocks.MPConcat, x: Value, y: Value) -> str:
    factors = b.factors(x.shape[0], y.shape[0])
    parts = [g.add("Mul", value, _number(f)) for value, f in zip((x, y), factors, strict=True)]
    return g.add("Concat", *parts, axis=1)


@EMITTERS(blocks.MPGate)
def _mp_gate(g: Graph, b: blocks.MPGate, x: Value, vector: Value) -> str:
    return g.add("Mul", x, g.add("Add", g.add("Unsqueeze", vector, int64(2, 3)), _number(1.0)))


@EMITTERS(blocks.PixelNorm)
def _pixel_norm(g: Graph, b: blocks.PixelNorm, x: Value) -> str:
    return _normalise(g, x, (1,), b.eps)


@EMITTERS(blocks.MPAttention)
def _mp_attention(g: Graph, b: blocks.MPAttention, qkv: Value) -> str:
    _, height, width = qkv.shape
    parts = reshape(g, qkv, b.heads, b.size, 3, height * width)
    parts = _normalise(g, parts, (2,), b.eps)
    q, k, v = (g.add("Gather", parts, np.array(i), axis=3) for i in range(3))  # b n d (h w)
    turned = g.add("Transpose", g.add("Mul", q, _number(b.size**-0.5)), perm=[0, 1, 3, 2])
    weights = g.add("Softmax", g.add("MatMul", turned, k), axis=-1)
    mixed = g.add("MatMul", v, g.add("Transpose", weights, perm=[0, 1, 3, 2]))
    return reshape(g, mixed, b.channels, height, width)


@EMITTERS(blocks.WithConstant)
def _with_constant(g: Graph, b: blocks.WithConstant, x: Value) -> str:
    return g.add("Pad", x, int64(0, 0, 0, 0, 0, 1, 0, 0), _number(b.value))


@EMITTERS(blocks.Clip)
def _clip(g: Graph, b: blocks.Clip, x: Value) -> str:
    return g.add("Clip", x, _number(-b.bound), _number(b.bound))

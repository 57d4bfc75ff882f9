"""ONNX's products, convolutions, pools, resizing and normalisations in the vocabulary of `duet diff`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.model_diff.onnx_node import Node, Value, short, translates

__all__: list[str] = []

# Matrices, convolutions, pools.


@translates("MatMul")
def _matmul(node: Node) -> None:
    node.end("matmul", *node.inputs, transpose_a=False, transpose_b=False)


@translates("Gemm")
def _gemm(node: Node) -> None:
    alpha, beta = short(node.get("alpha", 1.0)), short(node.get("beta", 1.0))
    turned = {"transpose_a": bool(node.get("transA", 0)), "transpose_b": bool(node.get("transB", 0))}
    biased = node.has(2) and beta != 0
    plain = alpha == 1 and not biased
    product = node.emit("matmul", node.inputs[:2], node.outputs if plain else None, **turned)
    if alpha != 1:
        product = node.emit("multiply", [product], None if biased else node.outputs, scalar=alpha, reverse=False)
    if biased:
        bias: Value = node.inputs[2]
        if beta != 1:
            bias = node.emit("multiply", [bias], scalar=beta, reverse=False)
        node.end("add", product, bias)


@translates("Einsum")
def _einsum(node: Node) -> None:
    node.end("einsum", *node.inputs, equation=node.get("equation"))


def _window(node: Node, window: Sequence[int]) -> dict[str, Any]:
    """Return strides, padding and dilation of a node, in numbers."""
    n = len(window)
    strides, dilation = list(node.get("strides", [1] * n)), list(node.get("dilations", [1] * n))
    pads = list(node.get("pads", [0] * 2 * n))
    padding = [[pads[i], pads[i + n]] for i in range(n)]
    auto = node.get("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        sizes = node.shape()[2:]
        for i, (size, k, s, d) in enumerate(zip(sizes, window, strides, dilation, strict=True)):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            less, more = total // 2, total - total // 2
            padding[i] = [less, more] if auto == "SAME_UPPER" else [more, less]
    return {"strides": strides, "padding": padding, "dilation": dilation, "layout": "channels_first"}


@translates("Conv")
def _conv(node: Node) -> None:
    window = _window(node, node.shape(1)[2:])
    biased = node.has(2)
    options = {**window, "groups": node.get("group", 1), "kernel": "OIHW"}
    result = node.emit("conv", node.inputs[:2], None if biased else node.outputs, **options)
    if biased:
        node.end("bias_add", result, node.inputs[2], axis=1)


@translates("ConvTranspose")
def _conv_transpose(node: Node) -> None:
    kernel = node.shape(1)[2:]
    window = _window(node, kernel)
    size = list(node.sink.shape(node.outputs[0])[2:])
    if node.get("auto_pad", "NOTSET").startswith("SAME") or node.get("output_shape") is not None:
        for i, (n, k, s, d) in enumerate(
            zip(node.shape()[2:], kernel, window["strides"], window["dilation"], strict=True)
        ):
            more = node.get("output_padding", [0] * len(kernel))[i]
            total = s * (n - 1) + more + d * (k - 1) + 1 - size[i]
            before = total - total // 2 if node.get("auto_pad") == "SAME_LOWER" else total // 2
            window["padding"][i] = [before, total - before]
    biased = node.has(2)
    options = {**window, "groups": node.get("group", 1), "kernel": "IOHW", "output_size": size}
    result = node.emit("conv_transpose", node.inputs[:2], None if biased else node.outputs, **options)
    if biased:
        node.end("bias_add", result, node.inputs[2], axis=1)


@translates("MaxPool", "AveragePool")
def _pool(node: Node) -> None:
    window = list(node.get("kernel_shape"))
    options = {"window": window, **_window(node, window), "ceil_mode": bool(node.get("ceil_mode", 0))}
    if node.type == "MaxPool":
        node.end("max_pool", node.inputs[0], **options)
    else:
        node.end("avg_pool", node.inputs[0], **options, count_include_pad=bool(node.get("count_include_pad", 0)))


@translates("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> None:
    kind = "mean" if node.type == "GlobalAveragePool" else "max"
    node.end(kind, node.inputs[0], axes=list(range(2, node.rank)), keepdims=True)


@translates("Resize", "Upsample")
def _resize(node: Node) -> None:
    size, old = node.sink.shape(node.outputs[0]), node.shape()
    way = node.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[node.get("mode", "nearest")]
    if size[:2] != old[:2] or way == "tf_crop_and_resize":
        return node.end("opaque", node.inputs[0])
    half = way in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    scales = node.array(1 if node.type == "Upsample" or node.opset < 11 else 2)
    given = None if scales is None or not scales.size else [float(s) for s in np.asarray(scales)[2:]]
    options: dict[str, Any] = {"antialias": bool(node.get("antialias", 0)), "layout": "channels_first"}
    if mode == "bicubic":
        options["coefficient"] = short(node.get("cubic_coeff_a", -0.75))
    if mode == "nearest" and half:
        mode = "nearest-exact"
    node.end(
        "resize",
        node.inputs[0],
        size=list(size[2:]),
        mode=mode,
        align_corners=way == "align_corners",
        half_pixel=half,
        scale=given,
        **options,
    )


# Normalisations.


@translates("BatchNormalization")
def _batch_norm(node: Node) -> None:
    options = {"epsilon": short(node.get("epsilon", 1e-5)), "axis": 1, "training": False}
    options["momentum"] = short(node.get("momentum", 0.9))
    node.end("batch_norm", *node.inputs, has=["x", "gamma", "beta", "mean", "variance"], **options)


@translates("InstanceNormalization")
def _instance_norm(node: Node) -> None:
    options = {"groups": node.shape()[1], "epsilon": short(node.get("epsilon", 1e-5)), "axis": 1}
    node.end("group_norm", *node.inputs, has=["x", "gamma", "beta"], **options)


@translates("GroupNormalization")
def _group_norm(node: Node) -> None:
    x, scale, bias = node.inputs
    groups, channels = node.get("num_groups"), node.shape()[1]
    if node.sink.shape(scale) != (channels,):  # operator set 18: one number per group
        return node.end("opaque", *node.inputs)
    options = {"groups": groups, "epsilon": short(node.get("epsilon", 1e-5)), "axis": 1}
    node.end("group_norm", x, scale, bias, has=["x", "gamma", "beta"], **options)


@translates("LayerNormalization", "RMSNormalization")
def _layer_norm(node: Node) -> None:
    axes = list(range(node.get("axis", -1) % node.rank, node.rank))
    given = [x for x in node.inputs if x]
    kind = "layer_norm" if node.type == "LayerNormalization" else "rms_norm"
    epsilon = short(node.get("epsilon", 1e-5))
    node.end(kind, *given, has=["x", "gamma", "beta"][: len(given)], axes=axes, epsilon=epsilon)

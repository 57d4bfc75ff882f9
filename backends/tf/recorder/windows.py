"""TensorFlow's products, convolutions, pools and resizing, in the vocabulary of `duet diff`.

"SAME" and "VALID" become numbers:

    total = max((ceil(n / stride) - 1) stride + (window - 1) dilation + 1 - n, 0),  before = total // 2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.tf.recorder.native import Native, translates

__all__ = ["pads"]


def pads(
    name: str, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[list[int]]:
    """Return what VALID or SAME pads before and after, per axis of space; see the module."""
    if name == "VALID":
        return [[0, 0] for _ in sizes]
    result = []
    for n, k, s, d in zip(sizes, window, strides, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        result.append([total // 2, total - total // 2])
    return result


@translates("ExtractImagePatches")
def _patches(native: Native) -> None:
    window, strides, dilation = (list(native[key])[1:3] for key in ("ksizes", "strides", "rates"))
    padding = pads(native["padding"], list(native.inputs[0].shape)[1:3], window, strides, dilation)
    native.emit(
        "extract_patches",
        native.inputs,
        native.outputs,
        window=window,
        strides=strides,
        padding=padding,
        dilation=dilation,
    )


@translates("MatMul")
def _matmul(native: Native) -> None:
    a, b = bool(native["transpose_a"]), bool(native["transpose_b"])
    native.emit("matmul", native.inputs, native.outputs, transpose_a=a, transpose_b=b)


@translates("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _batch_matmul(native: Native) -> None:
    a, b = bool(native["adj_x"]), bool(native["adj_y"])
    native.emit("matmul", native.inputs, native.outputs, transpose_a=a, transpose_b=b)


@translates("Einsum")
def _einsum(native: Native) -> None:
    native.emit("einsum", native.inputs, native.outputs, equation=native["equation"].replace(" ", ""))


@translates("BiasAdd")
def _bias_add(native: Native) -> None:
    rank = native.inputs[0].shape.rank
    axis = 1 if (native["data_format"] or "NHWC").startswith("NC") else rank - 1
    native.emit("bias_add", native.inputs, native.outputs, axis=axis)


def _space(native: Native, name: str = "data_format") -> tuple[str, list[int]]:
    """Return the layout of an operation, and its axes of space."""
    code = native[name]
    rank = len(code)
    if code.startswith("NC"):
        return "channels_first", list(range(2, rank))
    return "channels_last", list(range(1, rank - 1))


def _conv_padding(
    native: Native,
    axes: list[int],
    sizes: Sequence[int],
    window: Sequence[int],
    strides: list[int],
    dilation: list[int],
) -> list[list[int]]:
    if native["padding"] == "EXPLICIT":
        pairs = native["explicit_paddings"]
        return [[int(pairs[2 * axis]), int(pairs[2 * axis + 1])] for axis in axes]
    return pads(native["padding"], sizes, window, strides, dilation)


@translates("Conv2D", "Conv3D", "DepthwiseConv2dNative")
def _conv(native: Native) -> None:
    x, kernel = native.inputs
    layout, axes = _space(native)
    window = list(kernel.shape)[:-2]
    strides, dilation = ([int(native[key][axis]) for axis in axes] for key in ("strides", "dilations"))
    padding = _conv_padding(native, axes, [x.shape[axis] for axis in axes], window, strides, dilation)
    channels = x.shape[1 if layout == "channels_first" else x.shape.rank - 1]
    depthwise = native.name == "DepthwiseConv2dNative"
    native.emit(
        "conv",
        [x, kernel],
        native.outputs,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=channels if depthwise else channels // kernel.shape[-2],
        layout=layout,
        kernel="HWIM" if depthwise else "HWIO",
    )


@translates("Conv2DBackpropInput", "Conv3DBackpropInputV2")
def _conv_transpose(native: Native) -> None:
    _, kernel, x = native.inputs
    (result,) = native.outputs
    layout, axes = _space(native)
    window = list(kernel.shape)[:-2]
    strides, dilation = ([int(native[key][axis]) for axis in axes] for key in ("strides", "dilations"))
    sizes = [result.shape[axis] for axis in axes]
    padding = _conv_padding(native, axes, sizes, window, strides, dilation)
    full = [
        (x.shape[axis] - 1) * s + (k - 1) * d + 1 for axis, k, s, d in zip(axes, window, strides, dilation, strict=True)
    ]
    native.emit(
        "conv_transpose",
        [x, kernel],
        native.outputs,
        strides=strides,
        padding=[[p[0], whole - p[0] - n] for p, whole, n in zip(padding, full, sizes, strict=True)],
        dilation=dilation,
        groups=1,
        layout=layout,
        kernel="HWOI",
        output_size=sizes,
    )


@translates("MaxPool", "MaxPool3D", "AvgPool", "AvgPool3D")
def _pool(native: Native) -> None:
    x = native.inputs[0]
    layout, axes = _space(native)
    window, strides = ([int(native[key][axis]) for axis in axes] for key in ("ksize", "strides"))
    ones = [1] * len(axes)
    sizes = [x.shape[axis] for axis in axes]
    padding = _conv_padding(native, axes, sizes, window, strides, ones)
    kind = "max_pool" if native.name.startswith("Max") else "avg_pool"
    extra = {} if kind == "max_pool" else {"count_include_pad": False}
    native.emit(
        kind,
        [x],
        native.outputs,
        window=window,
        strides=strides,
        padding=padding,
        dilation=ones,
        layout=layout,
        ceil_mode=False,
        **extra,
    )


@translates("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def _fused_batch_norm(native: Native) -> None:
    x, gamma, beta, mean, variance = native.inputs
    result = native.outputs[:1]
    axis = 1 if native["data_format"].startswith("NC") else x.shape.rank - 1
    epsilon = float(np.float64(native["epsilon"]))
    has = ["x", "gamma", "beta"]
    if not native["is_training"]:
        inputs, has = [x, gamma, beta, mean, variance], [*has, "mean", "variance"]
        native.emit("batch_norm", inputs, result, epsilon=epsilon, axis=axis, training=False, momentum=None, has=has)
        return
    native.emit(
        "batch_norm", [x, gamma, beta], result, epsilon=epsilon, axis=axis, training=True, momentum=None, has=has
    )
    others = [i for i in range(x.shape.rank) if i != axis]
    native.emit("mean", [x], native.outputs[1:2], axes=others, keepdims=False)
    native.emit("variance", [x], native.outputs[2:3], axes=others, keepdims=False, ddof=1)


@translates("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic")
def _resize(native: Native) -> None:
    (result,) = native.outputs
    mode = {"ResizeBilinear": "bilinear", "ResizeBicubic": "bicubic"}.get(native.name, "nearest")
    native.emit(
        "resize",
        native.inputs[:1],
        [result],
        size=list(result.shape)[1:3],
        mode=mode,
        align_corners=bool(native["align_corners"]),
        half_pixel=bool(native["half_pixel_centers"]),
        antialias=False,
        scale=None,
        layout="channels_last",
    )


@translates("ResizeArea")
def _resize_by_area(native: Native) -> None:
    (x, _), (result,) = native.inputs, native.outputs
    size, before = list(result.shape)[1:3], list(x.shape)[1:3]
    # Means of whole pixels; TensorFlow also weights parts of pixels, which no mean of whole ones is.
    if native["align_corners"] or any(n % m for n, m in zip(before, size, strict=True)):
        return native.opaque()
    corners = {"align_corners": False, "half_pixel": False, "antialias": False}
    native.emit("resize", [x], [result], size=size, mode="area", scale=None, layout="channels_last", **corners)

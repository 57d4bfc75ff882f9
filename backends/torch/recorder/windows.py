"""PyTorch's convolutions, pools and resizing in the vocabulary of `duet diff`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from backends.torch.recorder.native import Native, Unknown, translates

__all__: list[str] = []


def _each(value: Any, count: int) -> list[int]:
    """Return one number per spatial axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _with_batch(native: Native, count: int) -> tuple[int, bool]:
    """Return the number of images with a batch axis, and whether it was added."""
    if native.x.ndim == count + 2:
        return native.read(native.x), False
    return native.emit("reshape", [native.x], shape=[1, *native.x.shape]), True


def _give(native: Native, kind: str, inputs: Sequence[Tensor | int], is_added: bool, **attributes: Any) -> None:
    if is_added:
        result = native.emit(kind, inputs, **attributes)
        native.give("reshape", [result], shape=list(native.results[0].shape))
    else:
        native.give(kind, inputs, **attributes)


@translates("convolution", "_convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution")
def _convolution(native: Native) -> None:
    x, w, bias = native.x, native["weight"], native.get("bias")
    count = w.ndim - 2
    attributes: dict[str, Any] = {
        "strides": _each(native["stride"], count),
        "padding": [[p, p] for p in _each(native["padding"], count)],
        "dilation": _each(native["dilation"], count),
        "groups": native["groups"],
        "layout": "channels_first",
        "kernel": "OIHW",
    }
    kind = "conv"
    if native.get("transposed"):
        more = _each(native["output_padding"], count)
        pairs = zip(attributes["padding"], more, strict=True)
        kind, attributes["kernel"] = "conv_transpose", "IOHW"
        attributes["padding"] = [[before, after - extra] for (before, after), extra in pairs]
        attributes["output_size"] = list(native.results[0].shape[2:])
    if x.ndim != w.ndim:
        raise Unknown
    if bias is None:
        native.give(kind, [x, w], **attributes)
    else:
        native.give("bias_add", [native.emit(kind, [x, w], **attributes), bias], axis=1)


@translates(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices",
)  # fmt: skip
def _max_pool(native: Native) -> None:
    count = int(native.name[8])
    x, is_added = _with_batch(native, count)
    window = _each(native["kernel_size"], count)
    _give(
        native,
        "max_pool",
        [x],
        is_added,
        window=window,
        strides=_each(native.get("stride") or window, count),
        padding=[[p, p] for p in _each(native["padding"], count)],
        dilation=_each(native["dilation"], count),
        ceil_mode=native["ceil_mode"],
        layout="channels_first",
    )


@translates("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(native: Native) -> None:
    count = int(native.name[8])
    x, is_added = _with_batch(native, count)
    window = _each(native["kernel_size"], count)
    divisor = native.get("divisor_override")
    attributes = {
        "window": window,
        "strides": _each(native.get("stride") or window, count),
        "padding": [[p, p] for p in _each(native["padding"], count)],
        "dilation": [1] * count,
        "ceil_mode": native["ceil_mode"],
        "count_include_pad": native["count_include_pad"],
        "layout": "channels_first",
    }
    if divisor is None:
        _give(native, "avg_pool", [x], is_added, **attributes)
        return
    if native["ceil_mode"]:
        raise Unknown
    mean = native.emit("avg_pool", [x], **attributes | {"count_include_pad": True})
    _give(native, "multiply", [mean], is_added, scalar=math.prod(window) / divisor, reverse=False)


@translates("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "mkldnn_adaptive_avg_pool2d")
def _adaptive_avg_pool(native: Native) -> None:
    size = native["output_size"]
    count = int(native.name[-2])
    x, is_added = _with_batch(native, count)
    _give(native, "adaptive_avg_pool", [x], is_added, output_size=_each(size, count), layout="channels_first")


@translates("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(native: Native) -> None:
    count = int(native.name[-2])
    x, is_added = _with_batch(native, count)
    size = _each(native["output_size"], count)
    _give(native, "adaptive_max_pool", [x], is_added, output_size=size, layout="channels_first")


_MODES = {
    "upsample_nearest": ("nearest", False), "_upsample_nearest_exact": ("nearest-exact", True),
    "upsample_linear": ("bilinear", None), "upsample_bilinear": ("bilinear", None),
    "upsample_trilinear": ("bilinear", None), "upsample_bicubic": ("bicubic", None),
    "_upsample_bilinear": ("bilinear", None), "_upsample_bicubic": ("bicubic", None),
}  # fmt: skip


@translates(
    *(f"{name}{count}d" for name in _MODES for count in (1, 2, 3)), "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"
)
def _resize(native: Native) -> None:
    name = native.name.removesuffix("_aa")
    mode, half = _MODES[name[:-2]]
    corners = bool(native.get("align_corners", False))
    size = list(native.results[0].shape[2:])
    suffixes = [""] if len(size) == 1 else ["_d", "_h", "_w"][-len(size) :]
    scales = [native.get(f"scales{suffix}") for suffix in suffixes]
    if native.get("scale_factors"):
        scales = list(native["scale_factors"])
    attributes: dict[str, Any] = {"cubic": -0.5 if native.name.endswith("_aa") else -0.75} if mode == "bicubic" else {}
    native.give(
        "resize",
        [native.x],
        size=size,
        mode=mode,
        align_corners=corners,
        half_pixel=not corners if half is None else half,
        antialias=native.name.endswith("_aa"),
        scale=None if any(each is None for each in scales) else [float(each) for each in scales],
        layout="channels_first",
        **attributes,
    )

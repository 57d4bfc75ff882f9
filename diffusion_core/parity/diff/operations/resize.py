"""Resizing: every mode is a matrix per axis, whose rows say how much each old pixel gives to a new one.

New pixel i of m has its place in the old n ones at

    (i + 1/2) r - 1/2    half_pixel, r = n / m, or 1 / scale where the author gave a scale
    i (n - 1) / (m - 1)  align_corners
    i r                  neither (TensorFlow 1)

* "nearest" takes pixel ``floor(i r)``, "nearest-exact" ``floor((i + 1/2) r)``; with align_corners the place is rounded.
  Both frameworks compute these places in float32.
* "bilinear" and "bicubic" interpolate. Keys' cubic has a `coefficient`: -0.75 in PyTorch, -0.5 in TensorFlow and with
  antialiasing. `border` "replicate" repeats the border pixel, "renormalise" leaves out what lies outside (TensorFlow's
  bicubic); `steps` rounds the place between two pixels to a step of 1 / steps (TensorFlow's table of 1024).
* With `antialias` the kernel is as wide as r new pixels where the image shrinks, and the weights sum to 1.
* "area" is `adaptive_avg_pool`.

References:
    Cubic convolution interpolation for digital image processing (Keys, 1981), https://doi.org/10.1109/TASSP.1981.1163711
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.operations.registry import Unsupported, differentiates, evaluates
from diffusion_core.parity.diff.operations.windows import adaptive_avg_pool, adaptive_avg_pool_vjp

__all__ = ["resize_matrix"]


def _cubic(t: NDArray, a: float) -> NDArray:
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _lanczos(t: NDArray, radius: int) -> NDArray:
    return np.where(np.abs(t) < radius, np.sinc(t) * np.sinc(t / radius), 0)


def _mitchell(t: NDArray) -> NDArray:
    t = np.abs(t)
    near = (7 * t**3 - 12 * t**2 + 16 / 3) / 6
    far = (-7 / 3 * t**3 + 12 * t**2 - 20 * t + 32 / 3) / 6
    return np.where(t < 1, near, np.where(t < 2, far, 0))


# Radius and kernel of the modes that weigh pixels by their distance; Gaussian as in tf.image.resize, sigma 1/2.
_KERNELS: dict[str, tuple[float, Callable[[NDArray, float], NDArray]]] = {
    "bilinear": (1, lambda t, a: np.maximum(1 - np.abs(t), 0)),
    "bicubic": (2, _cubic),
    "lanczos3": (3, lambda t, a: _lanczos(t, 3)),
    "lanczos5": (5, lambda t, a: _lanczos(t, 5)),
    "gaussian": (1.5, lambda t, a: np.where(np.abs(t) < 1.5, np.exp(-2 * t * t), 0)),
    "mitchellcubic": (2, lambda t, a: _mitchell(t)),
}


def _nearest(old: int, new: int, mode: str, align_corners: bool, half_pixel: bool, scale: float | None) -> NDArray:
    i = np.arange(new, dtype=np.float32)
    if align_corners:
        step = np.float32((old - 1) / (new - 1) if new > 1 else 0)
        places = np.floor(i * step + np.float32(0.5))  # halves are rounded up
    else:
        step = np.float32(old) / np.float32(new) if scale is None else np.float32(1 / scale)
        places = np.floor((i + np.float32(0.5)) * step if half_pixel or mode == "nearest-exact" else i * step)
    return np.minimum(places.astype(np.int64), old - 1)


def _places(old: int, new: int, align_corners: bool, half_pixel: bool, scale: float | None) -> tuple[NDArray, float]:
    """Return the places of the new pixels in the old ones, and how many old pixels a new one covers."""
    if align_corners:
        step = (old - 1) / (new - 1) if new > 1 else 0.0
        return np.arange(new) * step, step
    step = old / new if scale is None else 1 / scale
    return ((np.arange(new) + 0.5) * step - 0.5 if half_pixel else np.arange(new) * step), step


def resize_matrix(
    old: int,
    new: int,
    mode: str,
    align_corners: bool = False,
    half_pixel: bool = True,
    antialias: bool = False,
    scale: float | None = None,
    coefficient: float | None = None,
    border: str | None = None,
    steps: int | None = None,
) -> NDArray[np.float64]:
    """Return the weights along one axis, with shape (new, old); see the module."""
    if mode in ("nearest", "nearest-exact"):
        return np.eye(old)[_nearest(old, new, mode, align_corners, half_pixel, scale)]
    if mode not in _KERNELS:
        raise Unsupported(f"resize: mode {mode} is not known")
    radius, kernel = _KERNELS[mode]
    a = (-0.5 if antialias else -0.75) if coefficient is None else coefficient
    border = border or ("renormalise" if antialias or mode not in ("bilinear", "bicubic") else "replicate")
    places, step = _places(old, new, align_corners, half_pixel, scale)
    width = max(step, 1.0) if antialias else 1.0
    first = np.floor(places - radius * width).astype(np.int64)
    taps = first[:, None] + np.arange(math.ceil(2 * radius * width) + 2)
    distance = taps - places[:, None]
    if steps is not None:
        between = np.rint((places - np.floor(places)) * steps) / steps
        distance = taps - (np.floor(places) + between)[:, None]
    weights = kernel(distance / width, a)
    if border == "renormalise":
        weights = np.where((taps >= 0) & (taps < old), weights, 0)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1)), weights)
    return matrix


def _matrices(x: NDArray, size: Sequence[int], layout: str, attributes: dict[str, Any]) -> list[tuple[int, NDArray]]:
    """Return (axis, matrix) for each spatial axis."""
    scale = attributes.pop("scale", None)
    scales = scale if isinstance(scale, (list, tuple)) else [scale] * len(size)
    start = 2 if layout == "channels_first" else 1
    return [
        (axis, resize_matrix(x.shape[axis], new, scale=s, **attributes))
        for axis, (new, s) in enumerate(zip(size, scales, strict=True), start=start)
    ]


def _applied(x: NDArray, matrices: list[tuple[int, NDArray]]) -> NDArray:
    dtype = x.dtype if x.dtype.kind == "f" else np.float32
    for axis, matrix in matrices:
        x = np.moveaxis(np.tensordot(x.astype(dtype, copy=False), matrix.astype(dtype), (axis, 1)), -1, axis)
    return x


@evaluates("resize")
def resize(x: NDArray, size: Sequence[int], layout: str, mode: str, **attributes: Any) -> NDArray:
    """Resize the spatial axes; `dtype` is the precision of a framework that does not use that of its input."""
    dtype = attributes.pop("dtype", None)
    x = x if dtype is None else x.astype(dtype)
    if mode == "area":
        return adaptive_avg_pool(x, size, layout)
    matrices = _matrices(x, size, layout, {"mode": mode, **attributes})
    if mode.startswith("nearest"):
        for axis, matrix in matrices:
            x = np.take(x, matrix.argmax(axis=1), axis)
        return x
    return _applied(x, matrices)


@differentiates("resize")
def resize_vjp(
    g: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    size: Sequence[int],
    layout: str,
    mode: str,
    **attributes: Any,
) -> tuple[NDArray]:
    """Apply the transposed matrices."""
    attributes.pop("dtype", None)
    x = inputs[0]
    if mode == "area":
        return adaptive_avg_pool_vjp(g, inputs, output, size, layout)
    matrices = _matrices(x, size, layout, {"mode": mode, **attributes})
    return (_applied(g, [(axis, matrix.T) for axis, matrix in matrices]).astype(x.dtype),)

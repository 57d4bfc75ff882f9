r"""Linear operators A of images with their adjoints, for measurements y = A x_0 + noise.

An operator maps a batch b h w c to a batch of measurements, each image by itself. Its adjoint A^T is defined by

    <A x, v> = <x, A^T v>        for all images x and measurements v

    mask          y = m x, with m = 1 where an image is known and 0 elsewhere
    blur          y_ij = sum_ab kernel_ab x_(i+a, j+b), centred; a kernel is a sum of products of a column and a row
                  (its singular vectors), so that blurring is a sum of products with one matrix per axis
    downsample    y = means of blocks of factor x factor pixels
    grey          y = sum_c weight_c x_c

`LinearOperator` takes any function with its adjoint, and ``A @ B`` is the operator that applies B first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream

__all__ = ["OPERATORS", "LinearOperator", "blur", "downsample", "grey", "mask"]

Array = NDArray[np.float64]

# Largest relative error of the laws that an operator must obey: functions may compute in float32.
_TOLERANCE = 1e-5
# Luminance of red, green and blue (ITU-R BT.601), as image files are converted to grey.
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A linear function of images and its adjoint, both of NumPy arrays.

    Args:
        forward: from images (B, H, W, C) to measurements (B, ...), linear in each image.
        adjoint: from measurements to images (B, H, W, C).
        name: for display.

    Example:
        >>> half = LinearOperator(lambda x: x[:, :4], lambda y: np.pad(y, ((0, 0), (0, 4), (0, 0), (0, 0))))
        >>> half.check((8, 8, 1)).shape
        (4, 8, 1)
        >>> LinearOperator(lambda x: 2 * x, lambda y: y).check((8, 8, 1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        diffusion_core.common.errors.DuetError: mode.operator: its adjoint is not that of ...
    """

    forward: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    name: str = "operator"

    def __post_init__(self) -> None:
        for part in ("forward", "adjoint"):
            if not callable(getattr(self, part)):
                raise DuetError(
                    f"mode.operator.{part}: {getattr(self, part)!r} was given; it must be a function of NumPy arrays, "
                    f"as in LinearOperator(forward, adjoint)"
                )

    def __repr__(self) -> str:
        return f"LinearOperator({self.name})"

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Return the operator that applies `other` first."""
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return LinearOperator(
            lambda x: self.forward(other.forward(x)),
            lambda y: other.adjoint(self.adjoint(y)),
            f"{self.name} of {other.name}",
        )

    def check(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Check the laws of an operator with random images; return which numbers of a measurement depend on the image.

        Args:
            shape: of one image.

        Raises:
            DuetError: if it is not linear, mixes images, or its adjoint is another function's.
        """
        stream = Stream(0, "operator/check")
        x = stream.normal(np.arange(3), shape)
        x[2] = 2.0 * x[0] - 3.0 * x[1]
        y = self.measure(x)
        size = max(float(np.abs(y).max(initial=0.0)), 1e-300)
        if not np.all(np.isfinite(y)):
            raise DuetError("mode.operator: its forward function returned numbers that are not finite")
        if self.measure(x[:1]).shape != y[:1].shape or np.abs(self.measure(x[:1]) - y[:1]).max() > _TOLERANCE * size:
            raise DuetError("mode.operator: its forward function mixes images: that of one image alone is another one")
        if np.abs(2.0 * y[0] - 3.0 * y[1] - y[2]).max(initial=0.0) > 20 * _TOLERANCE * size:
            raise DuetError("mode.operator: its forward function is not linear: A(2 a - 3 b) is not 2 A(a) - 3 A(b)")
        v = stream.normal(np.arange(3), y.shape[1:], 1)
        pulled = self.pull_back(v, shape)
        left, right = (np.sum((a * b).reshape(3, -1), axis=1) for a, b in ((y, v), (x, pulled)))
        scale = [np.linalg.norm(a) * np.linalg.norm(b) for a, b in ((y, v), (x, pulled))]
        if np.abs(left - right).max() > _TOLERANCE * max(*scale, 1e-300):
            raise DuetError(
                f"mode.operator: its adjoint is not that of its forward function: <A x, v> = {left[0]:.6g}, but "
                f"<x, A^T v> = {right[0]:.6g} for a random image x and a random measurement v"
            )
        return np.any(y != 0, axis=0)

    def measure(self, images: Array) -> Array:
        """Return A x of each image, in float64."""
        try:
            measured = np.asarray(self.forward(images), np.float64)
        except (TypeError, ValueError, IndexError) as error:
            raise DuetError(f"mode.operator: its forward function failed for images {images.shape}: {error}") from error
        if measured.shape[:1] != images.shape[:1]:
            raise DuetError(
                f"mode.operator: its forward function returned the shape {measured.shape} for images {images.shape}; "
                f"its first axis must be the images'"
            )
        return measured

    def pull_back(self, measured: Array, shape: tuple[int, ...]) -> Array:
        """Return A^T v of each measurement, in float64, as images of a shape."""
        try:
            images = np.asarray(self.adjoint(measured), np.float64)
        except (TypeError, ValueError, IndexError) as error:
            raise DuetError(f"mode.operator: its adjoint failed for measurements {measured.shape}: {error}") from error
        if images.shape != (len(measured), *shape):
            raise DuetError(
                f"mode.operator: its adjoint returned the shape {images.shape}; it must be that of the images, "
                f"{(len(measured), *shape)}"
            )
        return images


def mask(shape: tuple[int, int, int], known: ArrayLike) -> LinearOperator:
    """Return the operator that keeps the known part of an image and sets the rest to 0.

    Args:
        shape: of an image, (h, w, c).
        known: 1 where images are known and 0 elsewhere; broadcast to the shape.

    Example:
        >>> mask((2, 2, 1), [[[1], [0]]]).forward(np.ones((1, 2, 2, 1)))[0, :, :, 0]
        array([[1., 0.],
               [1., 0.]])
    """
    part = np.asarray(known, np.float64)
    try:
        part = np.broadcast_to(part, shape)
    except ValueError as error:
        raise DuetError(
            f"mode.operator.known: its shape is {part.shape}, but the images are {shape} (h, w, c)"
        ) from error
    if not np.all((part == 0) | (part == 1)) or not np.any(part):
        raise DuetError(
            "mode.operator.known: it must be 1 where the image is known and 0 elsewhere, and not 0 everywhere"
        )
    return LinearOperator(lambda x: part * x, lambda y: part * y, "mask")


BOUNDARIES = ("reflect", "zero", "wrap")


def blur(
    shape: tuple[int, int, int],
    width: float = 1.0,
    kernel: Sequence[Sequence[float]] | None = None,
    boundary: str = "reflect",
) -> LinearOperator:
    """Return a blur.

    Args:
        shape: of an image, (h, w, c).
        width: standard deviation of a normal kernel in pixels, cut off at three of them.
        kernel: another kernel, with odd numbers of rows and columns; element (a, b) is the weight of the pixel a rows
            below and b columns right of the kernel's centre, as in the convolutions of networks. It is not normalised.
        boundary: the pixels beyond the edge: ``"reflect"`` (the edge itself is not repeated), ``"zero"`` or ``"wrap"``.

    Raises:
        DuetError: for a width that is not positive, or a kernel that is even or larger than the image.

    Example:
        >>> blur((1, 3, 1), kernel=[[0, 0.5, 0.5]]).forward(np.array([0.0, 2, 4]).reshape(1, 1, 3, 1)).ravel()
        array([1., 3., 3.])
    """
    height, columns, _ = shape
    if kernel is None:
        if not 0 < width < math.inf:
            raise DuetError(f"mode.operator.width: {width} was given; it must be a positive number of pixels")
        reach = [min(max(1, math.ceil(3 * width)), n - 1) for n in (height, columns)]
        lines = [np.exp(-0.5 * (np.arange(-r, r + 1) / width) ** 2) for r in reach]
        weights = np.outer(*(line / line.sum() for line in lines))
    else:
        try:
            weights = np.asarray(kernel, np.float64)
        except (TypeError, ValueError):
            weights = np.zeros(0)
        if weights.ndim != 2 or not np.all(np.isfinite(weights)) or not np.any(weights):
            raise DuetError(
                f"mode.operator.kernel: {kernel!r} was given; it must be rows of numbers, as in [[0,0.5,0.5]]"
            )
    if any(n % 2 == 0 for n in weights.shape):
        raise DuetError(
            f"mode.operator.kernel: it is {weights.shape[0]} x {weights.shape[1]}; it must have odd numbers of rows "
            f"and columns, so that it has a centre"
        )
    if any(n // 2 >= size for n, size in zip(weights.shape, (height, columns), strict=True)):
        raise DuetError(
            f"mode.operator.kernel: it is {weights.shape[0]} x {weights.shape[1]}, which reaches beyond an image of "
            f"{height} x {columns} pixels twice; use a smaller one"
        )
    check_choice("mode.operator.boundary", boundary, BOUNDARIES)
    left, sizes, right = np.linalg.svd(weights)
    rank = int(np.sum(sizes > 1e-14 * sizes[0]))
    rows = np.stack([_band(sizes[k] * left[:, k], height, boundary) for k in range(rank)])
    across = np.stack([_band(right[k], columns, boundary) for k in range(rank)])
    return _separable(rows, across, "blur")


def _band(weights: Array, size: int, boundary: str) -> Array:
    """Return the matrix that correlates a line of pixels with weights, with shape (size, size)."""
    matrix, reach = np.zeros((size, size)), len(weights) // 2
    for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
        at = np.arange(size) + offset
        inside = (at >= 0) & (at < size)
        if boundary == "wrap":
            at, inside = at % size, np.full(size, True)
        elif boundary == "reflect":
            at, inside = np.where(at < 0, -at, np.where(at >= size, 2 * (size - 1) - at, at)), np.full(size, True)
        np.add.at(matrix, (np.arange(size)[inside], at[inside]), weight)
    return matrix


def _separable(rows: Array, columns: Array, name: str) -> LinearOperator:
    """Return the operator y = sum_k rows_k x columns_k^T of each channel."""

    def apply(x: Array, rows: Array, columns: Array) -> Array:
        terms = zip(rows, columns, strict=True)
        return sum(np.einsum("iI,bIJc,jJ->bijc", r, x, c, optimize=True) for r, c in terms)

    return LinearOperator(
        lambda x: apply(x, rows, columns),
        lambda y: apply(y, rows.swapaxes(1, 2), columns.swapaxes(1, 2)),
        name,
    )


def downsample(shape: tuple[int, int, int], factor: int = 4) -> LinearOperator:
    """Return the operator that takes the mean of each block of factor x factor pixels.

    Example:
        >>> downsample((2, 2, 1), 2).forward(np.arange(4.0).reshape(1, 2, 2, 1)).ravel()
        array([1.5])
    """
    height, width, _ = shape
    if factor < 1 or height % factor or width % factor:
        raise DuetError(
            f"mode.operator.factor: {factor} was given; it must divide the height and the width of the images, "
            f"{height} x {width}"
        )
    rows, columns = (np.kron(np.eye(n // factor), np.full((1, factor), 1.0 / factor))[None] for n in (height, width))
    return _separable(rows, columns, "downsample")


def grey(shape: tuple[int, int, int], weights: Sequence[float] | None = None) -> LinearOperator:
    """Return the operator that mixes the channels of an image into one.

    Args:
        shape: of an image, (h, w, c).
        weights: one per channel; None is the luminance of red, green and blue, or the mean of any other number.

    Example:
        >>> grey((1, 1, 3)).forward(np.array([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)).ravel()
        array([0.299])
    """
    channels = shape[-1]
    default = _LUMINANCE if channels == 3 else (1.0 / channels,) * channels
    try:
        mix = np.asarray(default if weights is None else weights, np.float64)
    except (TypeError, ValueError):
        mix = np.zeros(0)
    if mix.shape != (channels,) or not np.all(np.isfinite(mix)) or not np.any(mix):
        raise DuetError(
            f"mode.operator.weights: {weights!r} was given; it must be one number per channel, of which the images "
            f"have {channels}, and not 0 alone"
        )
    return LinearOperator(lambda x: (x @ mix)[..., None], lambda y: y * mix, "grey")


# From the shape of an image and the options of the operator.
OPERATORS: Mapping[str, Callable[..., LinearOperator]] = {
    "mask": mask,
    "blur": blur,
    "downsample": downsample,
    "grey": grey,
}

"""Reductions over axes, softmax, running sums, and sorting.

`axes` None means all of them. Variances are those of two passes: the mean first, then the mean of squared deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.operations.registry import EVALUATORS, VJPS, differentiates, evaluates

__all__ = ["softmax"]

Axes = Sequence[int] | None


def _axes(axes: Axes) -> tuple[int, ...] | None:
    return None if axes is None else tuple(axes)


def _reduced(function: Callable[..., NDArray]) -> Callable[..., NDArray]:
    return lambda x, axes=None, keepdims=False: function(x, axis=_axes(axes), keepdims=keepdims)


def _arg(function: Callable[..., NDArray]) -> Callable[..., NDArray]:
    def evaluated(x: NDArray, axes: Axes = None, keepdims: bool = False) -> NDArray:
        return function(x, axis=None if axes is None else axes[0], keepdims=keepdims)

    return evaluated


def _mean(x: NDArray, axes: Axes = None, keepdims: bool = False) -> NDArray:
    result = x.mean(axis=_axes(axes), keepdims=keepdims)
    return result if x.dtype.kind == "f" else result.astype(x.dtype)


EVALUATORS.update(
    {
        "sum": _reduced(np.sum),
        "mean": _mean,
        "max": _reduced(np.max),
        "min": _reduced(np.min),
        "prod": _reduced(np.prod),
        "any": _reduced(np.any),
        "all": _reduced(np.all),
        "argmax": _arg(np.argmax),
        "argmin": _arg(np.argmin),
    }
)


@evaluates("logsumexp")
def logsumexp(x: NDArray, axes: Axes = None, keepdims: bool = False) -> NDArray:
    """Return the logarithm of the sum of exponentials."""
    top = x.max(axis=_axes(axes), keepdims=True)
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    result = np.log(np.exp(x - top).sum(axis=_axes(axes), keepdims=True)) + top
    return result if keepdims else np.squeeze(result, _axes(axes))


@evaluates("variance")
def variance(x: NDArray, axes: Axes = None, keepdims: bool = False, ddof: float = 0) -> NDArray:
    """Return the variance; ddof 1 is the unbiased one."""
    return x.var(axis=_axes(axes), keepdims=keepdims, ddof=ddof)


@evaluates("std")
def std(x: NDArray, axes: Axes = None, keepdims: bool = False, ddof: float = 0) -> NDArray:
    """Return the standard deviation; ddof 1 is that of the unbiased variance."""
    return np.sqrt(variance(x, axes, keepdims, ddof))


@evaluates("norm")
def norm(x: NDArray, axes: Axes = None, keepdims: bool = False, order: float = 2) -> NDArray:
    """Return the norm of the numbers along the axes, taken as one vector."""
    axis, size = _axes(axes), np.abs(x)
    if math.isinf(order):
        return (np.max if order > 0 else np.min)(size, axis=axis, keepdims=keepdims)
    if order == 0:
        return (x != 0).sum(axis=axis, keepdims=keepdims).astype(x.dtype)
    if order == 2:
        return np.sqrt(np.square(x).sum(axis=axis, keepdims=keepdims))
    return (size**order).sum(axis=axis, keepdims=keepdims) ** (1 / order)


@evaluates("softmax")
def softmax(x: NDArray, axis: int, safe: bool = False) -> NDArray:
    """Return the softmax along an axis.

    Where all logits are -inf the result is NaN, or 0 if it is safe, as in PyTorch's scaled_dot_product_attention.
    """
    top = x.max(axis=axis, keepdims=True)
    weights = np.exp(x - (np.where(top == -np.inf, 0, top).astype(x.dtype) if safe else top))
    total = weights.sum(axis=axis, keepdims=True)
    return weights / (np.where(total == 0, 1, total).astype(x.dtype) if safe else total)


@evaluates("log_softmax")
def log_softmax(x: NDArray, axis: int) -> NDArray:
    """Return the logarithm of the softmax along an axis."""
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


@evaluates("cumsum")
def cumsum(x: NDArray, axis: int, exclusive: bool = False, reverse: bool = False) -> NDArray:
    """Return running sums; an exclusive one leaves out its own place, a reverse one starts at the end."""
    x = np.flip(x, axis) if reverse else x
    result = np.cumsum(x, axis)
    result = result - x if exclusive else result
    return np.flip(result, axis) if reverse else result


@evaluates("cumprod")
def cumprod(x: NDArray, axis: int, exclusive: bool = False, reverse: bool = False) -> NDArray:
    """Return running products; see `cumsum`."""
    x = np.flip(x, axis) if reverse else x
    if exclusive:
        first = np.ones_like(np.take(x, [0], axis))
        x = np.concatenate([first, np.delete(x, -1, axis)], axis)
    result = np.cumprod(x, axis)
    return np.flip(result, axis) if reverse else result


@evaluates("sort")
def sort(x: NDArray, axis: int, descending: bool = False) -> tuple[NDArray, NDArray]:
    """Return the sorted numbers and their old places; equal numbers keep their order."""
    turned = np.flip(x, axis) if descending else x
    order = np.argsort(turned, axis=axis, kind="stable")
    if descending:
        order = x.shape[axis] - 1 - np.flip(order, axis)
    return np.take_along_axis(x, order, axis), order


def _kept(array: NDArray, x: NDArray, axes: Axes) -> NDArray:
    """Give a reduced array its axes of length 1 back."""
    axes = range(x.ndim) if axes is None else axes
    return array.reshape([1 if i in set(axes) else n for i, n in enumerate(x.shape)])


def _count(x: NDArray, axes: Axes) -> int:
    return math.prod(x.shape if axes is None else [x.shape[i] for i in axes])


def _reduction_vjp(rule: Callable[..., NDArray]) -> Callable[..., tuple[NDArray | None, ...]]:
    """Turn a function of (x, kept output, kept cotangent, axes, ...) into a rule for one reduction."""

    def vjp(
        cotangent: NDArray,
        inputs: Sequence[NDArray],
        output: NDArray,
        axes: Axes = None,
        keepdims: bool = False,
        **attributes: float,
    ) -> tuple[NDArray | None, ...]:
        (x,) = inputs
        if x.dtype.kind != "f":
            return (None,)
        y, g = _kept(np.asarray(output), x, axes), _kept(np.asarray(cotangent), x, axes)
        return (np.broadcast_to(rule(x, y, g, axes, **attributes), x.shape).astype(x.dtype),)

    return vjp


def _extreme(x: NDArray, y: NDArray, g: NDArray, axes: Axes) -> NDArray:
    chosen = x == y  # ties share the cotangent, as in tf.reduce_max and torch.amax
    return g * chosen / chosen.sum(axis=_axes(axes), keepdims=True)


def _product(x: NDArray, y: NDArray, g: NDArray, axes: Axes) -> NDArray:
    # The product of the others, also where a factor is 0.
    zeros = (x == 0).sum(axis=_axes(axes), keepdims=True)
    rest = np.where(x == 0, 1, x).prod(axis=_axes(axes), keepdims=True)
    return g * np.where(x == 0, np.where(zeros == 1, rest, 0), np.where(zeros == 0, y / np.where(x == 0, 1, x), 0))


def _variance(x: NDArray, y: NDArray, g: NDArray, axes: Axes, ddof: float = 0) -> NDArray:
    return g * 2 * (x - x.mean(axis=_axes(axes), keepdims=True)) / (_count(x, axes) - ddof)


def _std(x: NDArray, y: NDArray, g: NDArray, axes: Axes, ddof: float = 0) -> NDArray:
    return _variance(x, y, g / (2 * y), axes, ddof)


def _norm(x: NDArray, y: NDArray, g: NDArray, axes: Axes, order: float = 2) -> NDArray:
    if math.isinf(order):
        return _extreme(np.abs(x), y, g, axes) * np.sign(x)
    if order == 0:
        return 0 * x
    return g * np.sign(x) * (np.abs(x) / np.where(y == 0, 1, y)) ** (order - 1)


VJPS.update(
    {
        "sum": _reduction_vjp(lambda x, y, g, axes: g),
        "mean": _reduction_vjp(lambda x, y, g, axes: g / _count(x, axes)),
        "max": _reduction_vjp(_extreme),
        "min": _reduction_vjp(_extreme),
        "prod": _reduction_vjp(_product),
        "logsumexp": _reduction_vjp(lambda x, y, g, axes: g * np.exp(x - y)),
        "variance": _reduction_vjp(_variance),
        "std": _reduction_vjp(_std),
        "norm": _reduction_vjp(_norm),
    }
)


@differentiates("softmax")
def softmax_vjp(
    cotangent: NDArray, inputs: Sequence[NDArray], output: NDArray, axis: int, safe: bool = False
) -> tuple[NDArray]:
    """Return ``y (g - sum(g y))``."""
    return (output * (cotangent - (cotangent * output).sum(axis=axis, keepdims=True)),)


@differentiates("log_softmax")
def log_softmax_vjp(cotangent: NDArray, inputs: Sequence[NDArray], output: NDArray, axis: int) -> tuple[NDArray]:
    """Return ``g - softmax(x) sum(g)``."""
    return (cotangent - np.exp(output) * cotangent.sum(axis=axis, keepdims=True),)


@differentiates("cumsum")
def cumsum_vjp(
    cotangent: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    axis: int,
    exclusive: bool = False,
    reverse: bool = False,
) -> tuple[NDArray]:
    """Sum from the other end."""
    return (cumsum(cotangent, axis, exclusive, not reverse),)


@differentiates("cumprod")
def cumprod_vjp(
    cotangent: NDArray,
    inputs: Sequence[NDArray],
    output: NDArray,
    axis: int,
    exclusive: bool = False,
    reverse: bool = False,
) -> tuple[NDArray]:
    """Return the sum of ``g y`` from the other end over x, for factors that are not 0."""
    return (cumsum(cotangent * output, axis, exclusive, not reverse) / inputs[0],)


@differentiates("sort")
def sort_vjp(
    cotangent: NDArray, inputs: Sequence[NDArray], output: NDArray, axis: int, descending: bool = False
) -> tuple[NDArray]:
    """Put each cotangent back to the old place of its number."""
    gradient = np.zeros_like(inputs[0])
    np.put_along_axis(gradient, sort(inputs[0], axis, descending)[1], cotangent, axis)
    return (gradient,)

"""The array operations that the formulas of optimisers are written in, and their table for NumPy.

A formula uses these functions, the operators ``+ - * / @``, comparisons and ``shape``; nothing else. NumPy, PyTorch and
TensorFlow each fill one such table, so the same lines compute in all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["NUMPY", "ArrayOps"]


@dataclass(frozen=True)
class ArrayOps:
    """The vocabulary of one framework; axes are counted from 0 or from the end.

    Args:
        sqrt: of each element.
        square: of each element.
        sign: of each element, and 0 for 0.
        maximum: of two arrays, or of an array and a number.
        epsilon: the machine epsilon of the type of an array.
        where: of a condition and two arrays.
        mean: of an array over an axis, or over all for None; with `keepdims` as in NumPy.
        total: the sum, with the arguments of `mean`.
        reshape: of an array and a shape.
        transpose: of an array and the order of its axes.
        diagonal: the diagonal of a matrix.
        take: the entries of an array in an order, along an axis.
        descending: the order that sorts a vector, the largest first.
        eigenvectors: of a symmetric matrix as columns, with ascending eigenvalues: (values, vectors).
        orthogonal: the QR decomposition of a square matrix: (Q, R).
        choose: of a flag that the host knows, 1.0 or 0.0, and two functions without arguments, which return tuples of
            arrays of the same shapes; only the chosen one is computed.
    """

    sqrt: Callable[[Any], Any]
    square: Callable[[Any], Any]
    sign: Callable[[Any], Any]
    maximum: Callable[[Any, Any], Any]
    epsilon: Callable[[Any], float]
    where: Callable[[Any, Any, Any], Any]
    mean: Callable[..., Any]
    total: Callable[..., Any]
    reshape: Callable[[Any, tuple[int, ...]], Any]
    transpose: Callable[[Any, tuple[int, ...]], Any]
    diagonal: Callable[[Any], Any]
    take: Callable[[Any, Any, int], Any]
    descending: Callable[[Any], Any]
    eigenvectors: Callable[[Any], tuple[Any, Any]]
    orthogonal: Callable[[Any], tuple[Any, Any]]
    choose: Callable[[Any, Callable[[], tuple], Callable[[], tuple]], tuple]


NUMPY = ArrayOps(
    sqrt=np.sqrt,
    square=np.square,
    sign=np.sign,
    maximum=np.maximum,
    epsilon=lambda x: float(np.finfo(x.dtype).eps),
    where=np.where,
    mean=lambda x, axis=None, keepdims=False: np.mean(x, axis=axis, keepdims=keepdims),
    total=lambda x, axis=None, keepdims=False: np.sum(x, axis=axis, keepdims=keepdims),
    reshape=np.reshape,
    transpose=np.transpose,
    diagonal=np.diagonal,
    take=lambda x, order, axis: np.take(x, order, axis=axis),
    descending=lambda x: np.argsort(-x, kind="stable"),
    eigenvectors=np.linalg.eigh,
    orthogonal=np.linalg.qr,
    choose=lambda flag, then, otherwise: then() if flag else otherwise(),
)

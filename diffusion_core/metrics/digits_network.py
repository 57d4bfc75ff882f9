"""A small classifier of handwritten digits: its layers, forward and backward, in NumPy float64.

From grey images (N, 8, 8) with values in 0..1::

    h1 = pool(relu(conv3x3(2 x - 1)))     (N, 4, 4, 16)    read by a spatial Fréchet distance
    h2 = pool(relu(conv3x3(h1)))          (N, 2, 2, 32)
    h3 = relu(dense(h2))                  (N, 64)          read by all other distances
    y  = dense(h3)                        (N, 10)          logits of the classes

Convolutions are padded with one zero on each side; `pool` is the mean of blocks of 2 x 2. Parameters are called
`conv1.weight` and so on, with axes (o, i, kh, kw) and (o, i).

`diffusion_core.metrics.digits_training` made the weights in `digits.safetensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHAPES", "Layers", "backward", "forward", "softmax"]

Array = NDArray[np.float64]
Weights = Mapping[str, Array]

SHAPES: Mapping[str, tuple[int, ...]] = {
    "conv1.weight": (16, 1, 3, 3), "conv1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3), "conv2.bias": (32,),
    "dense1.weight": (64, 128), "dense1.bias": (64,),
    "dense2.weight": (10, 64), "dense2.bias": (10,),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of the network for some images, with the function that `backward` needs.

    Args:
        spatial: h1, with shape (N, 4, 4, 16).
        features: h3, with shape (N, 64).
        logits: y, with shape (N, 10).
        vjp: maps the gradient of a loss by y to its gradient by the parameters.
    """

    spatial: Array
    features: Array
    logits: Array
    vjp: Callable[[Array], dict[str, Array]]


def softmax(logits: Array) -> Array:
    """Return class probabilities, with the shape of the logits."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def forward(weights: Weights, images: Array) -> Layers:
    """Return the layers for images in 0..1 with shape (N, 8, 8)."""
    h1, back1 = _pooled(*_convolution(weights, "conv1", 2.0 * images[..., None] - 1.0))
    h2, back2 = _pooled(*_convolution(weights, "conv2", h1))
    h3, back3 = _dense(weights, "dense1", h2.reshape(len(h2), -1))
    active = h3 > 0
    h3 = np.maximum(h3, 0.0)
    y, back4 = _dense(weights, "dense2", h3)

    def vjp(gradient: Array) -> dict[str, Array]:
        gradients: dict[str, Array] = {}
        gradient = back3(back4(gradient, gradients) * active, gradients)
        for back in (back2, back1):
            gradient = back(gradient, gradients)
        return gradients

    return Layers(h1, h3, y, vjp)


def backward(layers: Layers, labels: NDArray) -> tuple[float, dict[str, Array]]:
    """Return the mean cross-entropy of the classes, and its gradient by each parameter."""
    rows, probabilities = np.arange(len(labels)), softmax(layers.logits)
    loss = -np.log(probabilities[rows, labels]).mean()
    probabilities[rows, labels] -= 1.0
    return float(loss), layers.vjp(probabilities / len(labels))


# Takes the gradient by a layer's output and a dictionary to which it adds the gradients by the layer's parameters;
# returns the gradient by the layer's input.
Back = Callable[[Array, dict[str, Array]], Array]


def _convolution(weights: Weights, name: str, x: Array) -> tuple[Array, Back]:
    """Return relu(conv3x3(x)) of images b h w c, and its backward function."""
    n, height, width, channels = x.shape
    kernel = weights[f"{name}.weight"]
    matrix = kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(slice(i, i + height), slice(j, j + width)) for i in range(3) for j in range(3)]
    columns = np.concatenate([padded[:, rows, cols] for rows, cols in places], axis=-1).reshape(-1, 9 * channels)
    y = (columns @ matrix + weights[f"{name}.bias"]).reshape(n, height, width, -1)
    active = y > 0

    def back(gradient: Array, gradients: dict[str, Array]) -> Array:
        flat = (gradient.reshape(y.shape) * active).reshape(-1, len(kernel))
        by_matrix = (columns.T @ flat).reshape(3, 3, channels, len(kernel))
        gradients[f"{name}.weight"], gradients[f"{name}.bias"] = by_matrix.transpose(3, 2, 0, 1), flat.sum(axis=0)
        parts = np.split((flat @ matrix.T).reshape(n, height, width, -1), 9, axis=-1)
        by_padded = np.zeros_like(padded)
        for (rows, cols), part in zip(places, parts, strict=True):
            by_padded[:, rows, cols] += part
        return by_padded[:, 1:-1, 1:-1]

    return np.maximum(y, 0.0), back


def _pooled(x: Array, inner: Back) -> tuple[Array, Back]:
    """Return the mean of blocks of 2 x 2 of a layer, and the backward function of both."""
    n, height, width, channels = x.shape

    def back(gradient: Array, gradients: dict[str, Array]) -> Array:
        repeated = gradient.reshape(n, height // 2, width // 2, channels).repeat(2, axis=1).repeat(2, axis=2)
        return inner(repeated / 4.0, gradients)

    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4)), back


def _dense(weights: Weights, name: str, x: Array) -> tuple[Array, Back]:
    matrix = weights[f"{name}.weight"]

    def back(gradient: Array, gradients: dict[str, Array]) -> Array:
        gradients[f"{name}.weight"], gradients[f"{name}.bias"] = gradient.T @ x, gradient.sum(axis=0)
        return gradient @ matrix

    return x @ matrix.T + weights[f"{name}.bias"], back

"""A vision transformer written by hand in NumPy, in PyTorch and in Keras, with the same weights.

Images of 4 x 4 pixels are cut into four patches. Time and class are vectors added to every token. The NumPy function is
what the two modules are held to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

PATCH, SIDE, CHANNELS, WIDTH, HEADS, CLASSES, EPS = 2, 2, 2, 8, 2, 3, 1e-5
TOKENS, PIXELS = SIDE * SIDE, PATCH * PATCH * CHANNELS
SHAPES = {
    "patch.weight": (PIXELS, WIDTH),
    "patch.bias": (WIDTH,),
    "time.weight": (2, WIDTH),
    "time.bias": (WIDTH,),
    "label.weight": (CLASSES + 1, WIDTH),
    "position": (TOKENS, WIDTH),
    "norm1.weight": (WIDTH,),
    "norm1.bias": (WIDTH,),
    "qkv.weight": (WIDTH, 3 * WIDTH),
    "qkv.bias": (3 * WIDTH,),
    "project.weight": (WIDTH, WIDTH),
    "project.bias": (WIDTH,),
    "norm2.weight": (WIDTH,),
    "norm2.bias": (WIDTH,),
    "up.weight": (WIDTH, 2 * WIDTH),
    "up.bias": (2 * WIDTH,),
    "down.weight": (2 * WIDTH, WIDTH),
    "down.bias": (WIDTH,),
    "out.weight": (WIDTH, PIXELS),
    "out.bias": (PIXELS,),
}
LABELS = [0, 1, 2]


def vit_weights(seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return weights by name, of matrices that act on the last axis."""
    draw = np.random.default_rng(seed)
    return {name: draw.normal(scale=0.3, size=shape) for name, shape in SHAPES.items()}


def vit_numpy(weights: dict[str, NDArray[np.float64]]) -> Any:
    """Return the network as a function of NumPy arrays, with channels last."""

    def linear(x: NDArray, name: str) -> NDArray:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: NDArray, name: str) -> NDArray:
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def silu(x: NDArray) -> NDArray:
        return x / (1.0 + np.exp(-x))

    def network(x: NDArray, t: NDArray, label: NDArray) -> NDArray:
        b = len(x)
        patches = x.reshape(b, SIDE, PATCH, SIDE, PATCH, CHANNELS).swapaxes(2, 3).reshape(b, TOKENS, PIXELS)
        angle = np.stack([np.cos(t), np.sin(t)], axis=1)
        vector = linear(angle, "time") + weights["label.weight"][label]
        h = linear(patches, "patch") + weights["position"] + vector[:, None]
        qkv = linear(norm(h, "norm1"), "qkv").reshape(b, TOKENS, 3, HEADS, WIDTH // HEADS)
        q, k, v = np.moveaxis(qkv, (2, 3), (0, 2))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(WIDTH // HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        h = h + linear(mixed.swapaxes(1, 2).reshape(b, TOKENS, WIDTH), "project")
        h = h + linear(silu(linear(norm(h, "norm2"), "up")), "down")
        out = linear(h, "out").reshape(b, SIDE, SIDE, PATCH, PATCH, CHANNELS).swapaxes(2, 3)
        return out.reshape(b, SIDE * PATCH, SIDE * PATCH, CHANNELS)

    return network


def vit_torch(weights: dict[str, NDArray[np.float64]], precision: str) -> Any:
    """Return the network as an `nn.Module`, with channels first."""
    import torch
    from torch import nn

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.time = nn.Linear(PIXELS, WIDTH), nn.Linear(2, WIDTH)
            self.label = nn.Embedding(CLASSES + 1, WIDTH)
            self.position = nn.Parameter(torch.zeros(TOKENS, WIDTH))
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH, EPS), nn.LayerNorm(WIDTH, EPS)
            self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
            self.out = nn.Linear(WIDTH, PIXELS)

        def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            b = len(x)
            patches = x.reshape(b, CHANNELS, SIDE, PATCH, SIDE, PATCH).permute(0, 2, 4, 3, 5, 1)
            vector = self.time(torch.stack([t.cos(), t.sin()], dim=1)) + self.label(label)
            h = self.patch(patches.reshape(b, TOKENS, PIXELS)) + self.position + vector[:, None]
            qkv = self.qkv(self.norm1(h)).reshape(b, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(*qkv)
            h = h + self.project(mixed.transpose(1, 2).reshape(b, TOKENS, WIDTH))
            h = h + self.down(nn.functional.silu(self.up(self.norm2(h))))
            out = self.out(h).reshape(b, SIDE, SIDE, PATCH, PATCH, CHANNELS).permute(0, 5, 1, 3, 2, 4)
            return out.reshape(b, CHANNELS, SIDE * PATCH, SIDE * PATCH)

    made = ViT().to(getattr(torch, precision))
    turned = {name: value.T if is_matrix(name) else value for name, value in weights.items()}
    made.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in turned.items()})
    return made


def is_matrix(name: str) -> bool:
    """Return whether PyTorch keeps a weight transposed."""
    return name.endswith("weight") and not name.startswith(("norm", "label"))


def vit_keras(weights: dict[str, NDArray[np.float64]], precision: str) -> Any:
    """Return the network as a `keras.Model`, with channels last."""
    import keras
    from keras import layers, ops

    class ViT(keras.Model):
        def __init__(self) -> None:
            super().__init__(dtype=precision)
            dense = {"dtype": precision}
            self.patch, self.time = layers.Dense(WIDTH, **dense), layers.Dense(WIDTH, **dense)
            self.label = layers.Embedding(CLASSES + 1, WIDTH, **dense)
            self.position = self.add_weight(shape=(TOKENS, WIDTH), name="position")
            self.norm1 = layers.LayerNormalization(epsilon=EPS, **dense)
            self.norm2 = layers.LayerNormalization(epsilon=EPS, **dense)
            self.qkv, self.project = layers.Dense(3 * WIDTH, **dense), layers.Dense(WIDTH, **dense)
            self.up, self.down = layers.Dense(2 * WIDTH, **dense), layers.Dense(WIDTH, **dense)
            self.out = layers.Dense(PIXELS, **dense)

        def call(self, x: Any, t: Any, label: Any) -> Any:
            patches = ops.reshape(x, (-1, SIDE, PATCH, SIDE, PATCH, CHANNELS))
            patches = ops.reshape(ops.transpose(patches, (0, 1, 3, 2, 4, 5)), (-1, TOKENS, PIXELS))
            vector = self.time(ops.stack([ops.cos(t), ops.sin(t)], axis=1)) + self.label(label)
            h = self.patch(patches) + self.position + vector[:, None]
            qkv = ops.reshape(self.qkv(self.norm1(h)), (-1, TOKENS, 3, HEADS, WIDTH // HEADS))
            q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), axis=0)
            scores = ops.softmax(ops.matmul(q, ops.swapaxes(k, -1, -2)) / math.sqrt(WIDTH // HEADS))
            h = h + self.project(ops.reshape(ops.swapaxes(ops.matmul(scores, v), 1, 2), (-1, TOKENS, WIDTH)))
            h = h + self.down(ops.silu(self.up(self.norm2(h))))
            out = ops.reshape(self.out(h), (-1, SIDE, SIDE, PATCH, PATCH, CHANNELS))
            return ops.reshape(ops.transpose(out, (0, 1, 3, 2, 4, 5)), (-1, SIDE * PATCH, SIDE * PATCH, CHANNELS))

    made = ViT()
    zeros = np.zeros((1, SIDE * PATCH, SIDE * PATCH, CHANNELS), precision)
    made(zeros, np.zeros(1, precision), np.zeros(1, np.int32))
    for name, value in weights.items():
        layer, _, kind = name.partition(".")
        found = getattr(made, layer)
        if kind:
            is_norm, is_bias = layer.startswith("norm"), kind == "bias"
            found = found.weights[int(is_bias)] if not is_norm else (found.beta if is_bias else found.gamma)
        found.assign(value)
    return made


BUILD = {"torch": vit_torch, "tf": vit_keras}


def own_shape(name: str, count: int) -> tuple[int, ...]:
    """Return the shape of a batch in the layout of a framework."""
    side = SIDE * PATCH
    return (count, CHANNELS, side, side) if name == "torch" else (count, side, side, CHANNELS)


def to_last(samples: Any, name: str) -> NDArray:
    """Return samples of a framework with channels last."""
    array = np.asarray(samples)
    return np.moveaxis(array, 1, -1) if name == "torch" else array

"""A network of two times written by hand in NumPy, in PyTorch, in Keras and as a `tf.Module`, with the same weights.

    h_i = tanh(W x_i + t cos(1 + r) a + t^2 b + c_label),    F_i = V dropout(h_i) + r x_i,        r = t - second_time

at every pixel i. The modules take the second time under different names: as the length ``h`` of a step, or its end
``r``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS, WIDTH, CLASSES, SIDE = 1, 6, 3, 4
SHAPES = {
    "inwards": (CHANNELS, WIDTH), "times": (2, WIDTH), "classes": (CLASSES + 1, WIDTH), "outwards": (WIDTH, CHANNELS),
}  # fmt: skip


def two_time_weights(seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return weights by name, of matrices that act on the last axis."""
    draw = np.random.default_rng(seed)
    return {name: draw.normal(scale=0.5, size=shape) for name, shape in SHAPES.items()}


def as_numpy(weights: dict[str, NDArray[np.float64]]) -> Any:
    """Return the network as a function of NumPy arrays, with channels last."""

    def network(x: NDArray, t: NDArray, h: NDArray, label: NDArray) -> NDArray:
        r = t - h
        of_times = np.stack([t * np.cos(1 + r), t**2], axis=1) @ weights["times"] + weights["classes"][label]
        hidden = np.tanh(x @ weights["inwards"] + of_times[:, None, None])
        return hidden @ weights["outwards"] + r[:, None, None, None] * x

    return network


def as_torch(weights: dict[str, NDArray[np.float64]], precision: str = "float64", dropout: float = 0.0) -> Any:
    """Return the network as an `nn.Module` that takes the end of the step."""
    import torch

    class TwoTimes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, array in weights.items():
                self.register_parameter(name, torch.nn.Parameter(torch.tensor(array, dtype=getattr(torch, precision))))
            self.dropout = torch.nn.Dropout(dropout)

        def forward(self, z: Any, r: Any, t: Any, y: Any) -> Any:
            times = torch.stack([t * torch.cos(1 + r), t**2], dim=1) @ self.times + self.classes[y]
            hidden = torch.tanh(z.movedim(1, -1) @ self.inwards + times[:, None, None])
            return (self.dropout(hidden) @ self.outwards).movedim(-1, 1) + r[:, None, None, None] * z

    return TwoTimes()


def by_length(network: Any) -> Any:
    """Return an `nn.Module` that takes the length of the step for one that takes its end."""
    import torch

    class ByLength(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any, t: Any, h: Any, label: Any) -> Any:
            return self.network(x, t - h, t, label)

    return ByLength()


def as_tf(weights: dict[str, NDArray[np.float64]], precision: str = "float64", dropout: float = 0.0) -> Any:
    """Return the network as a `keras.Model` that takes the length of the step."""
    import keras
    import tensorflow as tf

    class TwoTimes(keras.Model):
        def __init__(self) -> None:
            super().__init__(dtype=precision)
            for name, array in weights.items():
                given = keras.initializers.Constant(array)
                setattr(self, name, self.add_weight(shape=array.shape, name=name, initializer=given, dtype=precision))
            self.dropout = keras.layers.Dropout(dropout, dtype=precision)

        def call(self, x: Any, t: Any, h: Any, label: Any) -> Any:
            return _tf_output(self, x, t, h, label, self.dropout)

    model = TwoTimes()
    for name, array in weights.items():  # an initialiser would round them to float32
        getattr(model, name).assign(tf.constant(array, precision))
    return model


def as_tf_module(weights: dict[str, NDArray[np.float64]], precision: str = "float64") -> Any:
    """Return the network as a `tf.Module` whose call is a `tf.function`."""
    import tensorflow as tf

    class TwoTimes(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, array in weights.items():
                setattr(self, name, tf.Variable(tf.constant(array, precision), name=name))

        @tf.function
        def __call__(self, x: Any, t: Any, h: Any, label: Any) -> Any:
            return _tf_output(self, x, t, h, label, lambda hidden: hidden)

    return TwoTimes()


def _tf_output(network: Any, x: Any, t: Any, h: Any, label: Any, dropout: Any) -> Any:
    import tensorflow as tf

    r = t - h
    times = tf.stack([t * tf.cos(1 + r), t**2], axis=1) @ tf.convert_to_tensor(network.times)
    times += tf.gather(tf.convert_to_tensor(network.classes), label)
    hidden = tf.tanh(tf.tensordot(x, tf.convert_to_tensor(network.inwards), 1) + times[:, None, None])
    return tf.tensordot(dropout(hidden), tf.convert_to_tensor(network.outwards), 1) + r[:, None, None, None] * x


BUILD = {"torch": as_torch, "tf": as_tf}

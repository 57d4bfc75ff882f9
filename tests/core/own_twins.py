"""Networks of Duet dressed as own networks, so that tests can hold the two to each other.

Each is called as ``network(x, t, label)`` with the arrays of its framework and layout, and computes what the program
computes. A tiny program with classes, a classifier and a second network are enough for every option of a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_core.backend import reference
from diffusion_core.networks import ClassifierSpec, UNetSpec
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.parity import cases

_SMALL: dict[str, Any] = dict(
    channels=4, channel_multipliers=(1,), attention_resolutions=(), norm_groups=2, num_classes=3
)
SPEC = UNetSpec(4, 2, 2, **_SMALL)
LEARNED = UNetSpec(4, 2, 4, **_SMALL)
CLASSIFIER = ClassifierSpec(4, 2, 3, **_SMALL)
LABELS = [0, 1, 2]


def weights(program: Program, gain: float = 1.0) -> Weights:
    """Return weights that are different in every place."""
    return cases.scattered_weights(program, gain)


def as_numpy(program: Program, arrays: Weights) -> Callable[..., Any]:
    """Return a program as a function of NumPy arrays, with channels last."""

    def network(x: Any, t: Any, label: Any) -> Any:
        return reference.forward(program, arrays, x, t, label)

    return network


def as_torch(program: Program, arrays: Weights, backend: Any) -> Any:
    """Return a program as an `nn.Module`, with channels first."""
    import torch

    class Mine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = backend.network(program, arrays)

        def forward(self, x: Any, t: Any, label: Any) -> Any:
            features = self.inner.zero_features(len(x))
            return self.inner.apply_program(x, t.double(), label, features)

    return Mine()


def as_tf(program: Program, arrays: Weights, backend: Any) -> Any:
    """Return a program as a `keras.Model`, with channels last."""
    import keras
    import tensorflow as tf

    class Mine(keras.Model):
        def __init__(self) -> None:
            super().__init__(dtype=backend.context.dtype.name)
            self.inner = backend.network(program, arrays)

        def call(self, x: Any, t: Any, label: Any) -> Any:
            features = self.inner.zero_features(tf.shape(x)[0])
            return self.inner.apply_program(x, tf.cast(t, tf.float64), label, features)

    return Mine()


AS_OWN = {"torch": as_torch, "tf": as_tf}


def to_layout(images: np.ndarray, name: str) -> np.ndarray:
    """Return images b h w c in the layout of a framework."""
    return np.moveaxis(images, -1, 1) if name == "torch" else images

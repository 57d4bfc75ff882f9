"""Train the bundled digits network and write its file; the bytes are the same on every machine.

    python -m diffusion_core.metrics.digits_training FILE.safetensors

Trains on the 1,437 training digits with normal noise of standard deviation 0.15, drawn anew in each epoch, with Adam in
float64 and a learning rate that falls to 0 along a half cosine. Every random number comes from the streams
"digits-network/..." of seed 0. Sums of float64 differ between machines in their last bits; rounding the weights to
float16 at the end removes these differences. They are stored as float32.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.random import Stream
from diffusion_core.data.digits import digits
from diffusion_core.files.atomic import pack_safetensors, write_atomically
from diffusion_core.metrics.digits_network import SHAPES, backward, forward

__all__ = ["train"]

EPOCHS, BATCH, RATE, NOISE = 20, 32, 1.6e-2, 0.15
_BETAS, _EPS = (0.9, 0.99), 1e-6


def train(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return the trained weights by name."""
    data = digits(part="train")
    images = data.images[..., 0] / 255.0
    weights = _initial(seed)
    first, second = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    batches = len(data) // BATCH
    for update in range(EPOCHS * batches):
        epoch, at = divmod(update, batches)
        if at == 0:
            order = Stream(seed, "digits-network/order").permutation(len(data), epoch)
            noise = Stream(seed, "digits-network/noise").normal(np.arange(len(data)), (8, 8), epoch)
        rows = order[at * BATCH : (at + 1) * BATCH]
        _, gradients = backward(forward(weights, images[rows] + NOISE * noise[rows]), data.labels[rows])
        rate = RATE * 0.5 * (1.0 + np.cos(np.pi * update / (EPOCHS * batches)))
        for name, gradient in gradients.items():
            first[name] += (1.0 - _BETAS[0]) * (gradient - first[name])
            second[name] += (1.0 - _BETAS[1]) * (gradient**2 - second[name])
            bias = [1.0 - beta ** (update + 1) for beta in _BETAS]
            weights[name] -= rate * first[name] / bias[0] / (np.sqrt(second[name] / bias[1]) + _EPS)
    return {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}


def packed(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the content of the file."""
    return pack_safetensors(weights, {"made_by": "python -m diffusion_core.metrics.digits_training"})


def _initial(seed: int) -> dict[str, NDArray[np.float64]]:
    """Draw normal weights with variance 2 / fan-in (He et al., 2015, https://arxiv.org/abs/1502.01852); no biases."""
    weights = {}
    for name, shape in SHAPES.items():
        drawn = Stream(seed, f"digits-network/{name}").normal([0], shape)[0]
        weights[name] = drawn * np.sqrt(2.0 / np.prod(shape[1:])) if name.endswith("weight") else np.zeros(shape)
    return weights


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: give one argument, the file to write")
    write_atomically(Path(sys.argv[1]), packed(train()))

"""Features of the bundled digits network: features, spatial features, and class probabilities.

The network is in `digits_network`, its weights in `digits.safetensors`, made by `digits_training` from the 1,437
training digits alone; it recognises 99.2 % of the 360 held-out digits. Its features measure this data set only: a
number is called "digits Fréchet distance" and so on, never FID.

Larger images are first averaged over square blocks to 8 x 8.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.common.errors import DuetError
from diffusion_core.data.digits import NATIVE_SIZE
from diffusion_core.metrics.digits_network import SHAPES, forward, softmax

__all__ = ["CLASSES", "SHA256", "WEIGHTS", "layers"]

WEIGHTS = Path(__file__).with_name("digits.safetensors")
SHA256 = "04b7bb1c269f5aa6faba0152c71bec6e7bad671784242d5c4403a3ef54595bc6"
# The class names, as in `data.digits`.
CLASSES = tuple("0123456789")
_BATCH = 512


def layers(samples: NDArray[np.uint8]) -> dict[str, NDArray]:
    """Return what the network computes from grey images.

    Args:
        samples: uint8 with shape (N, S, S, 1), where S is a multiple of 8.

    Returns:
        float32 `features` (N, 64) and `spatial` (N, 256), and float64 `probabilities` (N, 10).

    Raises:
        DuetError: the samples have another type or shape.
    """
    pixels, weights = _pixels(samples), _weights()
    results = [forward(weights, pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return {
        "features": np.concatenate([r.features for r in results]).astype(np.float32),
        "spatial": np.concatenate([r.spatial for r in results]).reshape(len(pixels), -1).astype(np.float32),
        "probabilities": softmax(np.concatenate([r.logits for r in results])),
    }


@functools.cache
def _weights() -> dict[str, NDArray[np.float64]]:
    content = WEIGHTS.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DuetError(f"{WEIGHTS}: it differs from the file of this release; install Duet again")
    weights = {name: value.astype(np.float64) for name, value in tensors.load(content).items()}
    return {name: weights[name] for name in SHAPES}


def _pixels(samples: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return block averages in [0, 1] with shape (N, 8, 8)."""
    shape = np.shape(samples)
    valid = isinstance(samples, np.ndarray) and samples.dtype == np.uint8 and len(shape) == 4 and shape[0] > 0
    if not valid or shape[1] != shape[2] or shape[1] < NATIVE_SIZE or shape[1] % NATIVE_SIZE or shape[3] != 1:
        kind = getattr(samples, "dtype", type(samples).__name__)
        raise DuetError(
            f"features: digits was given, which reads grey images (uint8, h x w x 1) whose size is a multiple of "
            f"{NATIVE_SIZE}, but these are {kind} with shape {shape[1:]}; use features=inception, or metrics that "
            f"need no features, as metrics=[colour,spread,memorisation]"
        )
    block = shape[1] // NATIVE_SIZE
    cells = samples.reshape(len(samples), NATIVE_SIZE, block, NATIVE_SIZE, block)
    return cells.mean(axis=(2, 4), dtype=np.float64) / 255.0

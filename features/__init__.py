"""What metrics read of images: functions from images to vectors.

Images are uint8 with shape (N, H, W, C), C being 1 or 3. What features compute are parts of a set as the metrics know
them (`diffusion_core.metrics.metric`): features, spatial, probabilities, each row a function of its image alone.
Features that someone computed elsewhere are read from a file instead (`diffusion_core.metrics.files`).

Importing this package loads no framework and no runtime; a kind of features loads what it needs when it is made.

    digits      the network of `diffusion_core.metrics.digits`; anywhere
    inception   Inception v3, in torch-fidelity's conversion of the graph of 2015
    onnx        what any ONNX file computes, by onnxruntime
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from features import digits, inception, onnx
from features.kind import Features, MissingWeights, extract

__all__ = ["FEATURES", "Features", "MissingWeights", "extract"]

# By name; each takes its options as keyword-only arguments.
FEATURES: Mapping[str, Callable[..., Features]] = {
    "digits": digits.features,
    "inception": inception.features,
    "onnx": onnx.features,
}

"""Features that metrics read: functions from images to vectors.

Images are uint8 with shape (N, H, W, C), where C is 1 or 3. Features are named arrays as in
`diffusion_core.metrics.metric`: features, spatial, probabilities; each row is a function of its image alone. Features
that were computed elsewhere are read from a file instead (`diffusion_core.metrics.files`).

Importing this package loads no framework; a feature network imports what it needs when it is created.

    digits      the network of `diffusion_core.metrics.digits`, in every environment
    inception   Inception v3, as torch-fidelity converted the graph of 2015
    onnx        any ONNX file, by onnxruntime
    values      the values themselves, of data of any shape
    given       features in files, by the name of their network: DINOv2, CLIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from experiments.features import digits, given, inception, onnx, values
from experiments.features.kind import Features, MissingWeights, extract

__all__ = ["FEATURES", "Features", "MissingWeights", "extract"]

# By name; each function takes its options as keyword-only arguments.
FEATURES: Mapping[str, Callable[..., Features]] = {
    "digits": digits.features,
    "inception": inception.features,
    "onnx": onnx.features,
    "values": values.features,
    "given": given.features,
}

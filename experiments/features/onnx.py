"""Features from an ONNX file, computed by onnxruntime on the CPU.

The file has one input of float32 images, ``b c h w`` or ``b h w c``, with 1 or 3 channels. Its outputs are assigned by
name to features, spatial features, and class probabilities or logits; each output is flattened per image. By default,
the first output is the features. Images are resized to the input size by `diffusion_core.images.resize`, and their
values 0..255 are mapped to `low` .. `high`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.text import first_line
from diffusion_core.convert.onnx import open_session
from diffusion_core.images.resize import resize
from diffusion_core.metrics.metric import FeatureKind
from experiments.features.kind import Features, as_colour

__all__ = ["features"]


def features(
    *,
    path: str,
    size: int | None = None,
    low: float = -1.0,
    high: float = 1.0,
    output: str | None = None,
    spatial: str | None = None,
    probabilities: str | None = None,
    logits: str | None = None,
    threads: int = 0,
) -> Features:
    """Return the outputs of an ONNX file as features.

    Args:
        path: the file.
        size: the height and width of the input in pixels; None if the file fixes it.
        low: the input value of black.
        high: the input value of white.
        output: the output with the features; None means the first.
        spatial: the output with spatial features, if any.
        probabilities: the output with class probabilities, if any.
        logits: the output with class logits, instead of probabilities.
        threads: CPU threads; 0 lets onnxruntime choose.

    Raises:
        DuetError: onnxruntime is not installed, or the file is missing or not as described above.
    """
    try:
        session = open_session(Path(path), threads)
    except DuetError:
        raise
    except Exception as error:  # onnxruntime raises many types of its own
        reason = first_line(error)
        raise DuetError(f"{path}: onnxruntime cannot run it ({reason})") from error
    model_input = session.get_inputs()[0]
    shape = list(model_input.shape)
    fits = len(session.get_inputs()) == 1 and model_input.type == "tensor(float)" and len(shape) == 4
    axis = next((axis for axis in (1, 3) if fits and shape[axis] in (1, 3)), None)
    sides = {shape[place] for place in (2, 4 - axis) if isinstance(shape[place], int)} if axis else set()
    if axis is None or len(sides) > 1:
        inputs = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in session.get_inputs())
        raise DuetError(
            f"{path}: its inputs are {inputs}; "
            f"there must be one input, of square float32 images, (b, c, h, w) or (b, h, w, c), "
            f"with 1 or 3 channels"
        )
    channels, fixed = shape[axis], max(sides, default=None)
    if size is None and fixed is None:
        raise DuetError(f"{path}: its input has no fixed size; give one with features.size=PIXELS")
    if None not in (size, fixed) and size != fixed:
        raise DuetError(f"{path}: features.size: {size} was given, but its input has {fixed} pixels")
    side = size or fixed

    names = [o.name for o in session.get_outputs()]
    if probabilities and logits:
        raise DuetError(f"{path}: features.probabilities and features.logits were given; give only one of them")
    wanted = {"features": output or names[0], "spatial": spatial, "probabilities": probabilities or logits}
    wanted = {key: name for key, name in wanted.items() if name}
    for name in wanted.values():
        check_choice(f"{path}: output", name, names)

    def compute(images: NDArray[np.uint8]) -> dict[str, NDArray]:
        if channels < images.shape[3]:
            raise DuetError(f"{path}: colour images were given, but its input is grey")
        resized = resize(as_colour(images) if channels == 3 else images, side)
        values = (low + resized * ((high - low) / 255.0)).astype(np.float32)
        if axis == 1:
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        outputs = session.run(list(wanted.values()), {model_input.name: values})
        arrays = {name: np.asarray(x).reshape(len(images), -1) for name, x in zip(wanted, outputs, strict=True)}
        if logits:
            arrays["probabilities"] = softmax(arrays["probabilities"].astype(np.float64), axis=1)
        return arrays

    facts = {
        "kind": "onnx", "weights_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(), "outputs": wanted,
        "resize": "antialias", "size": side, "range": [low, high], "quantised": "uint8",
    }  # fmt: skip
    return Features(FeatureKind(Path(path).name, facts), compute)

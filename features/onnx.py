"""Features that an ONNX file computes, by onnxruntime on the CPU.

The file has one input of float32 images, ``b c h w`` or ``b h w c``, with one channel or three. Which of its outputs
are the features, the features of places and the probabilities or logits of classes is said by name; what an output
holds per image is flattened. Without a name, the first output has the features. Images are brought to its size by
`diffusion_core.images.resize` and their values 0..255 to `low` .. `high`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.convert.onnx import open_session
from diffusion_core.images.resize import resize
from diffusion_core.metrics.metric import FeatureKind
from features.kind import Features, as_colour

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
    """What the outputs of a file hold.

    Args:
        path: the file.
        size: height and width that it takes, in pixels; None where the file says so itself.
        low: the value of black.
        high: the value of white.
        output: the output that has the features; None is the first.
        spatial: that which has the features of places, if any.
        probabilities: that which has the probabilities of classes, if any.
        logits: that which has their logits, instead.
        threads: CPU threads; 0 leaves onnxruntime's choice.

    Raises:
        DuetError: onnxruntime is not installed here, or the file is missing or not as said above.
    """
    try:
        session = open_session(Path(path), threads)
    except DuetError:
        raise
    except Exception as error:  # onnxruntime has a kind of its own for every state of a file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DuetError(f"{path}: onnxruntime cannot run it ({reason})") from error
    given = session.get_inputs()[0]
    shape = list(given.shape)
    fits = len(session.get_inputs()) == 1 and given.type == "tensor(float)" and len(shape) == 4
    axis = next((axis for axis in (1, 3) if fits and shape[axis] in (1, 3)), None)
    sides = {shape[place] for place in (2, 4 - axis) if isinstance(shape[place], int)} if axis else set()
    if axis is None or len(sides) > 1:
        inputs = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in session.get_inputs())
        raise DuetError(
            f"{path}: its inputs are {inputs}; "
            f"there must be one, of square float32 images, (b, c, h, w) or (b, h, w, c), "
            f"with 1 or 3 channels"
        )
    channels, fixed = shape[axis], max(sides, default=None)
    if size is None and fixed is None:
        raise DuetError(f"{path}: it takes images of any size; give the one to bring them to with size=PIXELS")
    if None not in (size, fixed) and size != fixed:
        raise DuetError(f"{path}: size {size} was given, but it takes images of {fixed} pixels")
    side = size or fixed

    names = [made.name for made in session.get_outputs()]
    if probabilities and logits:
        raise DuetError(f"{path}: probabilities and logits were given; one of them tells the classes")
    wanted = {"features": output or names[0], "spatial": spatial, "probabilities": probabilities or logits}
    wanted = {part: name for part, name in wanted.items() if name}
    for name in wanted.values():
        if name not in names:
            raise one_of(f"{path}: output", name, names)

    def of(images: NDArray[np.uint8]) -> dict[str, NDArray]:
        if channels < images.shape[3]:
            raise DuetError(f"{path}: images in colour were given; it takes grey ones")
        images = resize(as_colour(images) if channels == 3 else images, side)
        values = (low + images * ((high - low) / 255.0)).astype(np.float32)
        if axis == 1:
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        made = session.run(list(wanted.values()), {given.name: values})
        found = {part: np.asarray(x).reshape(len(images), -1) for part, x in zip(wanted, made, strict=True)}
        if logits:
            found["probabilities"] = softmax(found["probabilities"].astype(np.float64), axis=1)
        return found

    facts = {
        "kind": "onnx", "weights_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(), "outputs": wanted,
        "resize": "antialias", "size": side, "range": [low, high], "quantised": "uint8",
    }  # fmt: skip
    return Features(FeatureKind(Path(path).name, facts), of)

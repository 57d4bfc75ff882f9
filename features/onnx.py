"""Features that an ONNX file computes, by onnxruntime on the CPU.

The file has one input of float32 pictures, ``b c h w`` or ``b h w c``, with one channel or three, and what its first
output holds per picture, flattened, are the features. Pictures are brought to its size by
`diffusion_core.metrics.resize` and their values 0..255 to `low` .. `high`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.convert.onnx import open_session
from diffusion_core.errors import DuetError
from diffusion_core.metrics.resize import resize
from features.kind import Features, as_colour

__all__ = ["features"]


def features(*, path: str, size: int | None = None, low: float = -1.0, high: float = 1.0, threads: int = 0) -> Features:
    """What the first output of a file holds.

    Args:
        path: the file.
        size: height and width that it takes, in pixels; None where the file says so itself.
        low: the value of black.
        high: the value of white.
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
            f"there must be one, of square float32 pictures, (b, c, h, w) or (b, h, w, c), "
            f"with 1 or 3 channels"
        )
    channels, fixed = shape[axis], max(sides, default=None)
    if size is None and fixed is None:
        raise DuetError(f"{path}: it takes pictures of any size; give the one to bring them to with size=PIXELS")
    if None not in (size, fixed) and size != fixed:
        raise DuetError(f"{path}: size {size} was given, but it takes pictures of {fixed} pixels")
    side = size or fixed

    def of(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if channels < images.shape[3]:
            raise DuetError(f"{path}: pictures in colour were given; it takes grey ones")
        pictures = resize(as_colour(images) if channels == 3 else images, side)
        values = (low + pictures * ((high - low) / 255.0)).astype(np.float32)
        if axis == 1:
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        return np.asarray(session.run(None, {given.name: values})[0], np.float64).reshape(len(images), -1)

    facts = {
        "features": "onnx", "file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "resize": "antialias", "size": side, "range": [low, high],
    }  # fmt: skip
    return Features(f"Fréchet distance of {Path(path).name}", of, facts)

"""The known part of images: a half, the centre, or a mask from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import one_of
from diffusion_core.images.files import is_image_file
from experiments.editing.setup import EditContext

__all__ = ["PARTS", "known_mask"]

# The known part of an image, as fractions of its height and width: first and last row, first and last column.
PARTS: Mapping[str, tuple[float, float, float, float]] = {
    "left": (0.0, 1.0, 0.0, 0.5),
    "right": (0.0, 1.0, 0.5, 1.0),
    "top": (0.0, 0.5, 0.0, 1.0),
    "bottom": (0.5, 1.0, 0.0, 1.0),
    "centre": (0.25, 0.75, 0.25, 0.75),
}


def known_mask(context: EditContext, known: str, keep: bool, key: str) -> NDArray[np.float64]:
    """Return the mask with shape (H, W, 1): 1 where images are known, 0 elsewhere.

    Args:
        context: the request.
        known: one of `PARTS`, or the path of a mask that is white where images are known and black elsewhere.
        keep: whether that part is the known one; otherwise everything else is.
        key: the configuration key of `known`, for errors.

    Raises:
        DuetError: for a name that does not exist, or a file that is no image.
    """
    height, width, _ = context.model.spec.image_shape
    if isinstance(known, str) and known in PARTS:
        rows, columns = ((np.arange(n) + 0.5) / n for n in (height, width))
        top, bottom, left, right = PARTS[known]
        inside = ((top < rows) & (rows < bottom))[:, None] & ((left < columns) & (columns < right))
        return (inside[..., None] == keep).astype(np.float64)
    if not isinstance(known, str) or not is_image_file(Path(known).expanduser()):
        raise one_of(key, known, [*PARTS, "the path of an image"])
    return ((context.read_image(Path(known).expanduser(), 1) > 127) == keep).astype(np.float64)

"""The figure of samples: one row for each class, with its name, where the classes have names.

Images of one pixel are points of the plane, which are drawn as such, see `diffusion_core.images.points`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.images import render
from diffusion_core.images.points import is_point, point_coordinates, scatter

__all__ = ["sample_sheet", "sheet_columns"]

_MOST_ROWS, _MOST_COLUMNS, _MOST_IMAGES, _CAPTION = 20, 10, 100, 24
_COLUMNS = 10  # where the samples stand in their order


def sample_sheet(
    images: NDArray[np.uint8], labels: NDArray[np.int32], names: Mapping[int, str], columns: int = 10, scale: int = 1
) -> NDArray[np.uint8]:
    """Return a figure of at most 100 samples, or of all points of the plane.

    Args:
        images: uint8 with shape (N, H, W, C).
        labels: of the samples, with shape (N,).
        names: the name of each label. Without names, or with more than 20 classes, the samples stand in their order.
        columns: images per row where they stand in their order.
        scale: how many times each pixel is repeated.
    """
    if is_point(images.shape):
        return scatter(point_coordinates(images), labels, {label: _caption(name) for label, name in names.items()})
    drawn = np.unique(labels)
    if not set(drawn.tolist()) <= set(names) or len(drawn) > _MOST_ROWS:
        return render.grid(images[:_MOST_IMAGES], columns, scale=scale)
    longest = max(1, min(_MOST_COLUMNS, _MOST_IMAGES // len(drawn)))
    rows = [(_caption(names[label]), images[labels == label][:longest]) for label in drawn.tolist()]
    return render.labelled_rows(rows, scale=scale)


def sheet_columns(classes: int) -> int:
    """Return the images per row of samples that take the classes in turn, so that a column shows one class.

    Example:
        >>> [sheet_columns(classes) for classes in (0, 3, 6, 10, 1000)]
        [10, 9, 6, 10, 10]
    """
    return _COLUMNS // classes * classes if 0 < classes <= _COLUMNS else _COLUMNS


def _caption(name: str) -> str:
    """Return a name that can be drawn: names of files need not be valid text, and may be long."""
    name = name.encode("utf-8", "replace").decode("utf-8")
    return name if len(name) <= _CAPTION else f"{name[: _CAPTION - 3]}..."

"""Images to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.images import render
from diffusion_core.images.points import is_point, point_coordinates, scatter

__all__ = ["save_grid"]


def save_grid(path: str | Path, images: NDArray[np.uint8], columns: int = 10, scale: int | None = None) -> Path:
    """Write images as one PNG file, row by row; missing folders are created.

    Images of one pixel in three channels are points of the plane (red is x, green is y): they become a scatter plot.

    Args:
        path: of the file.
        images: uint8 with shape (N, H, W, C), C being 1 or 3.
        columns: images per row.
        scale: enlargement factor, a whole number; None enlarges small images to about 64 pixels.

    Returns:
        The path.

    Raises:
        DuetError: for other shapes or types, or a file that cannot be written.

    Example:
        >>> import tempfile
        >>> images = np.zeros((12, 8, 8, 1), np.uint8)
        >>> save_grid(Path(tempfile.mkdtemp()) / "grid.png", images).name
        'grid.png'
    """
    if np.ndim(images) == 4 and is_point(np.shape(images)):
        render.save_png(Path(path), scatter(point_coordinates(images)))
        return Path(path)
    height = np.shape(images)[1] if np.ndim(images) == 4 else 64
    scale = max(1, 64 // height) if scale is None else scale
    render.save_png(Path(path), render.grid(images, columns, scale=scale))
    return Path(path)

"""Images to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.images import render
from diffusion_core.images.points import is_point, point_coordinates, scatter
from diffusion_core.metrics.image_files import check_image_files, write_image_files
from duet.api.options import check_types

__all__ = ["save_grid", "save_images"]


@check_types
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


@check_types
def save_images(
    directory: str | Path, images: NDArray[np.uint8], labels: ArrayLike | None = None, classes: Sequence[str] = ()
) -> Path:
    """Write images as PNG files, one for each, in a folder for each class if there are labels.

    The files are called after the positions of the images, so that they sort in this order. `duet.evaluate` reads such
    a directory.

    Args:
        directory: a directory that does not exist yet, or is empty.
        images: uint8 with shape (N, H, W, C), C being 1 or 3.
        labels: the class of each image, with shape (N,); None writes all images into one folder.
        classes: the name of each class; without names, classes are called after their numbers.

    Returns:
        The directory.

    Raises:
        DuetError: for other shapes or types, or a directory that holds something.

    Example:
        >>> import tempfile
        >>> images = np.zeros((3, 8, 8, 1), np.uint8)
        >>> out = save_images(Path(tempfile.mkdtemp()) / "out", images, [0, 1, 0], ["cat", "dog"])
        >>> sorted(str(file.relative_to(out)) for file in out.rglob("*.png"))
        ['cat/00000.png', 'cat/00002.png', 'dog/00001.png']
    """
    directory, images = Path(directory).expanduser(), np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DuetError(
            f"images: {images.dtype} with shape {images.shape} was given; it must be uint8 with shape (N, H, W, C), "
            f"where C is 1 or 3"
        )
    check_image_files(directory)
    numbers = np.zeros(len(images), int) if labels is None else np.asarray(labels)
    if numbers.shape != (len(images),) or not np.issubdtype(numbers.dtype, np.integer):
        raise DuetError(f"labels: {numbers.dtype} with shape {numbers.shape} was given; there must be one class each")
    names = {} if labels is None else {k: f"class {k}" for k in numbers.tolist()} | dict(enumerate(classes))
    write_image_files(directory, images, numbers, names)
    return directory

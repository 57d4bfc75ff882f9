"""Images that are arrays already: an `.npz` file, or `.npy` files.

Images are uint8 with shape (N, H, W, C), or (N, H, W) if grey. An `.npz` file holds them as ``images`` and their class
ids, if any, as ``labels``, as a file of samples does. Files of objects are pickles and are refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.dataset import default_class_names
from diffusion_core.data.source import Source
from diffusion_core.files.safe_read import open_npz, read_npy

__all__ = ["ARRAY", "NPZ", "array", "npz"]

NPZ = DatasetInfo("Images of an .npz file")
ARRAY = DatasetInfo("Images of an array")


def npz(path: Path, *, images: str = "images", labels: str = "labels") -> dict[str, Source]:
    """Return the only part, "all".

    Args:
        path: the file.
        images: the name of the array of images.
        labels: the name of the array of class ids; without an array of that name, all images are of one class.
    """
    with open_npz(path, "an .npz file of plain arrays") as content:
        if images not in content:
            raise DuetError(f"npz: {str(path)!r} has no array {images!r}; it has {', '.join(content)}")
        arrays = content[images], content.get(labels)
    return _one_part("npz", path, *arrays)


def array(path: Path, *, labels: str | None = None) -> dict[str, Source]:
    """Return the only part, "all", its images a memory map.

    Args:
        path: an `.npy` file of images.
        labels: an `.npy` file of class ids; None puts all images into one class.
    """
    ids = None if labels is None else read_npy(Path(labels).expanduser())
    return _one_part("array", path, read_npy(path, mapped=True), ids)


def _one_part(what: str, path: Path, images: NDArray, labels: NDArray | None) -> dict[str, Source]:
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DuetError(
            f"{what}: {str(path)!r} holds {images.dtype} with shape {images.shape}; "
            f"images must be uint8 with shape (N, H, W, C), where C is 1 or 3"
        )
    if labels is None:
        labels = np.zeros(len(images), np.int32)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DuetError(
            f"{what}: the labels of {str(path)!r} are {labels.dtype} {labels.shape}; they must be class ids, one per "
            f"image"
        )
    return {"all": Source(images, labels, default_class_names(int(labels.max()) + 1), path.stem)}

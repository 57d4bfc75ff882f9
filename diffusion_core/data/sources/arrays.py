"""Images that are arrays already: an `.npz` file, or `.npy` files.

Images are uint8 with shape (N, H, W, C), or (N, H, W) if grey. An `.npz` file holds them as ``images`` and their class
ids, if any, as ``labels``, as a file of samples does. Files of objects are pickles and are refused.

A class id without an image cannot be learned, and samples of it would be noise. Labels that are not 0, 1, ... K-1, such
as 1..K or 0, 5, 10, are therefore mapped to 0..K-1 in their order. The class names keep the numbers ("class 5"), or the
texts if labels are texts. ``num_classes`` says instead that the classes are 0..num_classes-1, with or without images.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.labels import class_labels
from diffusion_core.data.reading import Reading
from diffusion_core.data.source import Source
from diffusion_core.files.safe_read import open_npz, read_npy, read_text

__all__ = ["ARRAY", "NPZ", "array", "npz"]

NPZ = DatasetInfo("Images of an .npz file")
_LABELS = "labels"
ARRAY = DatasetInfo("Images of an array")


def npz(
    path: Path, *, images: str = "images", labels: str = _LABELS, num_classes: int | None = None
) -> dict[str, Source]:
    """Return the only part, "all".

    Args:
        path: the file.
        images: the name of the array of images.
        labels: the name of the array of labels; without an array "labels", all images are of one class.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have images.
    """
    with open_npz(path, "an .npz file of plain arrays") as content:
        if images not in content:
            raise DuetError(
                f"npz: {str(path)!r} has no array {images!r}; it has {', '.join(content) or 'none'}; choose one with "
                f"data.options.images=NAME, and that of the labels with data.options.labels=NAME"
            )
        pixels, classes = content[images], content.get(labels)
        others = [name for name in content if name != images]
    remark = None
    if classes is None and labels != _LABELS:
        raise one_of("data.options.labels", labels, others)
    if classes is None and others:
        remark = (
            f"there is no array {labels!r}, so all images are of one class; if the classes are in another array, name "
            f"it with data.options.labels, of {', '.join(others)}"
        )
    return _one_part("npz", path, pixels, classes, num_classes, remark)


def array(path: Path, *, labels: str | None = None, num_classes: int | None = None) -> dict[str, Source]:
    """Return the only part, "all", its images a memory map.

    Args:
        path: an `.npy` file of images.
        labels: an `.npy` file of labels, or a text file with one per line, as the last column if there are several;
            None puts all images into one class.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have images.
    """
    images = read_npy(path, mapped=True)
    file = None if labels is None else Path(labels).expanduser()
    if file is None or file.suffix == ".npy":
        ids = None if file is None else read_npy(file)
    else:
        ids = _text_labels(file, len(images))
    return _one_part("array", path, images, ids, num_classes)


def _text_labels(file: Path, count: int) -> NDArray:
    """Return the last column of a text file, without a header line; numbers if all of them are."""
    rows = [row for row in csv.reader(read_text(file).splitlines()) if row]
    column = [row[-1].strip() for row in rows]
    column = column[1:] if len(column) == count + 1 else column
    try:
        return np.array([int(text) for text in column])
    except ValueError:
        return np.array(column)


def _one_part(
    what: str, path: Path, images: NDArray, labels: NDArray | None, num_classes: int | None, remark: str | None = None
) -> dict[str, Source]:
    _check_images(f"{what}: {str(path)!r}", images)
    images = images[..., None] if images.ndim == 3 else images
    if labels is None:
        labels = np.zeros(len(images), np.int32)
    ids, names, mapped = class_labels(f"{what} {str(path)!r}", labels, len(images), num_classes)
    reading = Reading(tuple(text for text in (remark, mapped) if text))
    return {"all": Source(images, ids, names, path.stem, reading=reading)}


def _check_images(what: str, images: NDArray) -> None:
    """Refuse an array that is not uint8 with shape (N, H, W, C) or (N, H, W), with what to save in its place."""
    shape, remedy = images.shape, ""
    colour, first = shape[-1:] in ((1,), (3,)), images.ndim == 4 and shape[1] in (1, 3, 4)
    grey = images.ndim == 3 and shape[2] > 4  # (H, W, 3) is one image, and not H images that are 3 pixels wide
    if images.dtype == np.uint8 and 0 not in shape and (grey or (images.ndim == 4 and colour)):
        return
    if 0 in shape:
        remedy = "; the array is empty"
    elif images.ndim == 3 and not grey:
        remedy = "; it looks like one image, which is saved as images[None]"
    elif images.ndim == 4 and shape[3] == 4:
        remedy = "; of RGBA, save images[..., :3]"
    elif first and not colour:
        remedy = "; the channels come last: save images.transpose(0, 2, 3, 1)"
    if images.dtype.kind == "f" and 0 not in shape:
        low, high = float(images.min()), float(images.max())
        ranges = ((0.0, 1.0, "255 * images"), (-1.0, 1.0, "127.5 * (images + 1)"), (0.0, 255.0, "images"))
        scaled = next((text for least, most, text in ranges if least <= low and high <= most), None)
        remedy += f"; the values are {low:.4g} to {high:.4g}"
        remedy += f": save np.round({scaled}).astype(np.uint8)" if scaled else ""
    elif images.dtype.kind in "iu" and images.dtype != np.uint8 and 0 not in shape:
        low, high = int(images.min()), int(images.max())
        remedy += f"; the values are {low} to {high}"
        remedy += ": save images.astype(np.uint8)" if low >= 0 and high <= 255 else ""
    raise DuetError(
        f"{what} holds {images.dtype} with shape {shape}; images must be uint8 with shape (N, H, W, C), where C is 1 "
        f"or 3, or (N, H, W) if grey{remedy}"
    )

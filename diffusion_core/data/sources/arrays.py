"""Images and other data that are arrays already: an `.npz` file, or `.npy` files.

Images are uint8 with shape (N, H, W, C), or (N, H, W) if grey. An `.npz` file holds them as ``images`` and their class
ids, if any, as ``labels``, as a file of samples does. Files of objects are pickles and are refused.

Other shapes and floats are read as `data.arrays` says, with ``layout`` and ``value_range``; they are kept as they are,
unrounded, and size, channels and crop do not apply to them. What labels may be says `data.labels`.

``arrays`` finds the arrays of an `.npz` file by their usual names, and has the parts "train" and "test" where a file
holds x_train, y_train, x_test and y_test.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.arrays import arrange, store_values
from diffusion_core.data.labels import read_labels
from diffusion_core.data.reading import Reading
from diffusion_core.data.source import Source
from diffusion_core.data.sources.array_files import read_array_files
from diffusion_core.files.safe_read import open_npz, read_npy, read_text

__all__ = ["ARRAY", "ARRAYS", "NPZ", "array", "arrays", "npz"]

NPZ = DatasetInfo("Images of an .npz file")
_LABELS = "labels"
ARRAY = DatasetInfo("Images of an array")
ARRAYS = DatasetInfo("Arrays", size=None, channels=None)
# The usual names of the arrays in an .npz file.
_IMAGES = ("images", "image", "x", "data", "latents", "arr_0")
_NAMES = {"labels": ("labels", "label", "y", "targets", "classes"), "conditions": ("conditions", "features")}


def arrays(
    path: Path,
    *,
    images: str | None = None,
    labels: str | None = None,
    conditions: str | None = None,
    class_names: Sequence[str] | None = None,
    condition_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    layout: str | None = None,
    value_range: Sequence[float] | None = None,
) -> dict[str, Source]:
    """Return the part "all", or "train" and "test".

    Args:
        path: an `.npz` or `.npy` file; or a folder or zip archive with an `.npy` file for each item.
        images: the name of the array of images in an `.npz` file; None finds it.
        labels: the name of the array of labels, or an `.npy` or text file of them; None finds it.
        conditions: the name of the array of conditions (N, D), or an `.npy` file of them.
        class_names: the names of the classes, or of several labels per image.
        condition_names: the name of each number of a condition.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have images.
        layout: "channels_last", "channels_first" or "grey"; None decides by the shape.
        value_range: the values of black and white of floats; None takes floats as network values.
    """
    shared = {"class_names": class_names, "condition_names": condition_names, "num_classes": num_classes,
              "layout": layout, "value_range": value_range}  # fmt: skip
    if path.is_dir() or path.suffix.lower() == ".zip":
        if images is not None:
            raise DuetError(f"data.options.images: {images!r} was given, but the files of {str(path)!r} are items")
        items, found, names, said = read_array_files(path, labels)
        part = _one_part("arrays", path, items, found, _file(conditions, 0), **shared, remark=said)["all"]
        return {"all": replace(part, names=names)}
    if path.suffix.lower() == ".npy":
        if images is not None:
            raise DuetError(f"data.options.images: {images!r} was given, but {str(path)!r} is one array without names")
        pixels = read_npy(path, mapped=True)
        return _one_part("arrays", path, pixels, _file(labels, len(pixels)), _file(conditions, 0), **shared)
    with open_npz(path, "an .npz file of plain arrays") as content:
        if images is None and "x_train" in content:
            parts = {}
            for part in ("train", "test"):
                if f"x_{part}" in content:
                    found = content[f"x_{part}"], content.get(f"y_{part}")
                    parts |= {part: _one_part("arrays", path, *found, None, **shared)["all"]}
            return _same_classes(parts)
        names = {"images": _find(path, "images", content, images, _IMAGES)}
        for kind, given in (("labels", labels), ("conditions", conditions)):
            usual = [name for name in _NAMES[kind] if name in content and name != names["images"]]
            if given is None and usual:
                names[kind] = usual[0]
            elif given is not None and (given in content or not _is_file(given)):
                names[kind] = _find(path, kind, content, given, ())
        pixels, ids, vectors = (content[names[kind]] if kind in names else None for kind in ("images", *_NAMES))
        rest = [name for name in content if name not in names.values()]
    remark = None
    ids = _file(labels, len(pixels)) if "labels" not in names else ids
    vectors = _file(conditions, 0) if "conditions" not in names else vectors
    if ids is None and rest:
        remark = (
            f"there are no labels, so all images are of one class; if the classes are in another array, name it with "
            f"data.options.labels, of {', '.join(rest)}"
        )
    return _one_part("arrays", path, pixels, ids, vectors, **shared, remark=remark)


def npz(
    path: Path,
    *,
    images: str = "images",
    labels: str = _LABELS,
    num_classes: int | None = None,
    layout: str | None = None,
    value_range: Sequence[float] | None = None,
) -> dict[str, Source]:
    """Return the only part, "all".

    Args:
        path: the file.
        images: the name of the array of images.
        labels: the name of the array of labels; without an array "labels", all images are of one class.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have images.
        layout: as for `arrays`, like value_range.
        value_range: the values of black and white of floats.
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
    shared = {"num_classes": num_classes, "layout": layout, "value_range": value_range}
    return _one_part("npz", path, pixels, classes, None, **shared, remark=remark)


def array(
    path: Path,
    *,
    labels: str | None = None,
    num_classes: int | None = None,
    layout: str | None = None,
    value_range: Sequence[float] | None = None,
) -> dict[str, Source]:
    """Return the only part, "all", its images a memory map.

    Args:
        path: an `.npy` file of images.
        labels: an `.npy` file of labels, or a text file with one per line, as the last column if there are several;
            None puts all images into one class.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have images.
        layout: as for `arrays`, like value_range.
        value_range: the values of black and white of floats.
    """
    images = read_npy(path, mapped=True)
    shared = {"num_classes": num_classes, "layout": layout, "value_range": value_range}
    return _one_part("array", path, images, _file(labels, len(images)), None, **shared)


def _find(path: Path, kind: str, content: Mapping[str, NDArray], name: str | None, usual: Sequence[str]) -> str:
    """Return the name of an array in a file: the one that is given, a usual one, or the only one."""
    if name is not None:
        check_choice(f"data.options.{kind}", name, content)
        return name
    present = [one for one in usual if one in content] or (list(content) if len(content) == 1 else [])
    if not present:
        raise DuetError(
            f"arrays: {str(path)!r} has the arrays {', '.join(content) or '(none)'}; choose that of the {kind} with "
            f"data.options.{kind}=NAME"
        )
    return present[0]


def _is_file(name: str) -> bool:
    return Path(name).suffix.lower() in (".npy", ".txt", ".csv") or "/" in name


def _file(name: str | None, count: int) -> NDArray | None:
    """Return the numbers or texts of a file of labels or of conditions."""
    if name is None:
        return None
    file = Path(name).expanduser()
    return read_npy(file) if file.suffix == ".npy" else _text_labels(file, count)


def _text_labels(file: Path, count: int) -> NDArray:
    """Return the last column of a text file, without a header line; numbers if all of them are."""
    rows = [row for row in csv.reader(read_text(file).splitlines()) if row]
    column = [row[-1].strip() for row in rows]
    column = column[1:] if len(column) == count + 1 else column
    try:
        return np.array([int(text) for text in column])
    except ValueError:
        return np.array(column)


def _same_classes(parts: dict[str, Source]) -> dict[str, Source]:
    """Refuse parts whose labels are different classes: a class has one id in all parts."""
    classes = {part: source.class_names for part, source in parts.items()}
    if len(set(classes.values())) > 1:
        largest = max(len(names) for names in classes.values())
        raise DuetError(
            f"arrays: the parts have different classes ({', '.join(f'{p}: {len(c)}' for p, c in classes.items())}); "
            f"set data.options.num_classes={largest}"
        )
    return {part: source if len(parts) < 2 else _with_parts(source, parts) for part, source in parts.items()}


def _with_parts(source: Source, parts: Mapping[str, Source]) -> Source:
    return Source(
        source.images, source.labels, source.class_names, source.name,
        reading=Reading(source.reading.remarks, parts=tuple(parts)), value_range=source.value_range,
    )  # fmt: skip


def _one_part(
    what: str,
    path: Path,
    images: NDArray,
    labels: NDArray | Sequence[Any] | None,
    conditions: NDArray | None,
    *,
    num_classes: int | None,
    layout: str | None,
    value_range: Sequence[float] | None,
    class_names: Sequence[str] | None = None,
    condition_names: Sequence[str] | None = None,
    remark: str | None = None,
) -> dict[str, Source]:
    named = f"{what} {str(path)!r}"
    images, moved = arrange(named, images, layout)
    images, value_range, said = store_values(named, images, value_range)
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    read = read_labels(named, labels, len(images), class_names, num_classes)
    if conditions is not None and read.conditions is not None:
        raise DuetError(f"{named}: it has conditions, and labels that are conditions; choose one of them")
    vectors = read.conditions if conditions is None else conditions
    vectors = vectors[:, None] if vectors is not None and vectors.ndim == 1 else vectors
    reading = Reading(tuple(text for text in (remark, moved, said, read.remark) if text))
    return {
        "all": Source(
            images, read.ids, read.class_names, path.stem, reading=reading, value_range=value_range, conditions=vectors,
            condition_names=tuple(condition_names or read.condition_names),
        )
    }  # fmt: skip

"""A data set: images, their classes and a hash of both.

Images are uint8 with shape (N, H, W, C), square, with one channel (grey) or three (red, green, blue). Labels are int32
class ids with shape (N,) in 0..K-1, where K is the number of class names. The images may be memory maps: nothing here
reads all of them at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.reading import Reading
from diffusion_core.data.shards import Shards

__all__ = ["Dataset", "class_ids", "default_class_names"]

_HASH_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, validated on construction.

    Args:
        images: uint8 with shape (N, S, S, C), where C is 1 or 3; an array, a memory map, or `Shards`.
        labels: class ids with shape (N,); stored as int32.
        class_names: the name of each class id.
        name: the name of the data set, for reports.
        reading: how its images were found, if they were read from files; no part of the hash.

    Raises:
        DuetError: a shape, a type or a label is invalid.

    Example:
        >>> data = Dataset(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), ("cat", "dog"), "pets")
        >>> data
        Dataset('pets': 3 images, 8 x 8 x 1, 2 classes)
        >>> data.select_classes(["dog"]).labels
        array([0, 0], dtype=int32)
    """

    images: NDArray[np.uint8] | Shards
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    name: str
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        images, labels = self.images, np.asarray(self.labels)
        names = tuple(str(name) for name in self.class_names)
        what = f"data set {self.name!r}"
        if not isinstance(images, np.ndarray | Shards) or images.dtype != np.uint8:
            kind = getattr(images, "dtype", type(images).__name__)
            raise DuetError(f"{what}: images of {kind} were given; they must be a uint8 array")
        shape = images.shape
        if images.ndim != 4 or shape[1] != shape[2] or shape[3] not in (1, 3) or 0 in shape:
            raise DuetError(
                f"{what}: images with shape {shape} were given; "
                f"they must be (N, size, size, channels) with N at least 1 and 1 or 3 channels"
            )
        if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise DuetError(
                f"{what}: labels of {labels.dtype} with shape {labels.shape} were given; "
                f"they must be integers with shape ({shape[0]},)"
            )
        if not names or len(set(names)) != len(names):
            raise DuetError(f"{what}: the class names {names} were given; there must be at least one, all different")
        if labels.min() < 0 or labels.max() >= len(names):
            raise DuetError(
                f"{what}: labels from {labels.min()} to {labels.max()} were given; "
                f"with {len(names)} class names they must lie in 0..{len(names) - 1}"
            )
        object.__setattr__(self, "labels", labels.astype(np.int32))
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name!r}: {len(self):,} images, {shape}, {self.num_classes} classes)"

    @property
    def image_size(self) -> int:
        """The height and width in pixels."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.images.shape[3]

    @property
    def num_classes(self) -> int:
        """The number of classes, including those without an image."""
        return len(self.class_names)

    @cached_property
    def class_counts(self) -> NDArray[np.int64]:
        """The number of images of each class, with shape (K,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """The names of the classes without an image: nothing can be learned about them here."""
        return tuple(name for name, count in zip(self.class_names, self.class_counts, strict=True) if not count)

    @property
    def has_class_names(self) -> bool:
        """Whether the classes have names of their own, not those of `default_class_names`."""
        return self.class_names != default_class_names(self.num_classes)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of shape, class names, labels and pixels, without the name; computed in blocks."""
        header = json.dumps({"shape": self.images.shape, "class_names": self.class_names})
        digest = hashlib.sha256(header.encode())
        digest.update(self.labels.astype("<i4").tobytes())
        step = max(1, _HASH_BYTES // self.images[0].size)
        for start in range(0, len(self), step):
            digest.update(np.ascontiguousarray(self.images[start : start + step]))
        return digest.hexdigest()

    def select(self, indices: ArrayLike | Sequence[int]) -> Dataset:
        """Return the items at `indices`, in that order, in memory.

        Raises:
            DuetError: there are no indices, or one is outside 0..N-1.
        """
        indices = np.asarray(indices)
        valid = indices.ndim == 1 and indices.size > 0 and np.issubdtype(indices.dtype, np.integer)
        if not valid or indices.min() < 0 or indices.max() >= len(self):
            raise DuetError(
                f"data set {self.name!r}: the indices {indices} were given; "
                f"it must be a list of integers in 0..{len(self) - 1}, at least one"
            )
        return replace(self, images=np.asarray(self.images[indices]), labels=self.labels[indices])

    def select_classes(self, classes: Iterable[int | str]) -> Dataset:
        """Return the items of some classes, in their old order, in memory.

        Args:
            classes: class ids or class names; the first becomes class 0, the second class 1, and so on.

        Raises:
            DuetError: no class is given, a class is unknown or given twice, or no image belongs to any of them.
        """
        what = f"data set {self.name!r}"
        ids = class_ids(what, self.class_names, classes)
        new = np.full(self.num_classes, -1, np.int32)
        new[ids] = np.arange(len(ids))
        kept = np.flatnonzero(new[self.labels] >= 0)
        names = tuple(self.class_names[k] for k in ids)
        if not kept.size:
            raise DuetError(f"{what}: it has no image of class {', '.join(names)}")
        return Dataset(np.asarray(self.images[kept]), new[self.labels[kept]], names, self.name, self.reading)

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Split the data set into two disjoint parts, drawn by stream ``"data/split"``, each in its old order.

        Args:
            fraction: the fraction of items in the first part, rounded to a whole number of items.
            seed: the seed of the stream.

        Raises:
            DuetError: a part would be empty.
        """
        first = round(fraction * len(self)) if 0 < fraction < 1 else 0
        if not 0 < first < len(self):
            raise DuetError(
                f"data set {self.name!r}: a split at {fraction} of {len(self)} items was given; "
                f"the fraction must lie between 0 and 1 and leave an item on each side"
            )
        order = Stream(seed, "data/split").permutation(len(self))
        return self.select(np.sort(order[:first])), self.select(np.sort(order[first:]))


def default_class_names(count: int) -> tuple[str, ...]:
    """Return "class 0", "class 1", ... for classes whose names are unknown."""
    return tuple(f"class {k}" for k in range(count))


def class_ids(what: str, names: Sequence[str], classes: Iterable[int | str]) -> list[int]:
    """Return the ids of classes that are given by id or by name.

    Args:
        what: the name of the data set, with which errors begin.
        names: the name of each class id.
        classes: ids or names, at least one, none twice.

    Raises:
        DuetError: no class is given, or a class is unknown or given twice.
    """
    if isinstance(classes, str) or not isinstance(classes, Iterable) or not (classes := list(classes)):
        raise DuetError(f"{what}: classes {classes!r} was given; it must be a list of ids or names")
    known = {name: k for k, name in enumerate(names)}
    ids = []
    for one in classes:
        if isinstance(one, str):
            if one not in known:
                raise one_of(f"class of {what}", one, known)
            ids.append(known[one])
        elif isinstance(one, Integral) and not isinstance(one, bool) and 0 <= one < len(names):
            ids.append(int(one))
        else:
            raise DuetError(f"{what}: class {one!r} was given; the class ids are 0..{len(names) - 1}")
        if ids[-1] in ids[:-1]:
            raise DuetError(f"{what}: class {names[ids[-1]]!r} was given twice, among {classes}")
    return ids

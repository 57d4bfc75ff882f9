"""A data set: images, their classes and a hash of both.

Images are uint8 with shape (N, H, W, C), square, with one channel (grey) or three (red, green,
blue). Labels are int32 class ids with shape (N,) in 0..K-1, where K is the number of class names.
The images may be memory maps: nothing here reads them all at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.shards import Shards

__all__ = ["Dataset", "class_ids", "default_class_names"]

_HASH_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, checked when made.

    Args:
        images: uint8 with shape (N, S, S, C), C being 1 or 3; an array, a memory map, or several as one.
        labels: class ids with shape (N,); kept as int32.
        class_names: the name of each class id.
        name: what to call the data set in reports.

    Raises:
        DuetError: a shape, a type or a label does not fit.
    """

    images: NDArray[np.uint8] | Shards
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, np.asarray(self.labels)
        names = tuple(str(name) for name in self.class_names)
        what = f"data set {self.name!r}"
        if not isinstance(images, np.ndarray | Shards) or images.dtype != np.uint8:
            given = getattr(images, "dtype", type(images).__name__)
            raise DuetError(f"{what}: images of {given} were given; they must be a uint8 array")
        shape = images.shape
        if images.ndim != 4 or shape[1] != shape[2] or shape[3] not in (1, 3) or 0 in shape:
            raise DuetError(
                f"{what}: images with shape {shape} were given; "
                f"they must be (N, size, size, channels) with N at least 1 and 1 or 3 channels"
            )
        if labels.shape != shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise DuetError(
                f"{what}: labels of {labels.dtype} with shape {labels.shape} were given; "
                f"they must be whole numbers with shape ({shape[0]},)"
            )
        if not names or len(set(names)) != len(names):
            raise DuetError(f"{what}: the class names {names} were given; there must be at least one and no two alike")
        if labels.min() < 0 or labels.max() >= len(names):
            raise DuetError(
                f"{what}: labels from {labels.min()} to {labels.max()} were given; "
                f"with {len(names)} class names they must lie in 0..{len(names) - 1}"
            )
        object.__setattr__(self, "labels", labels.astype(np.int32))
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.images.shape[3]

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not each has an image here."""
        return len(self.class_names)

    @property
    def has_class_names(self) -> bool:
        """Whether the classes have names of their own, not those of `default_class_names`."""
        return self.class_names != default_class_names(self.num_classes)

    @cached_property
    def sha256(self) -> str:
        """Hash of shape, class names, labels and pixels, but not of the name; memory stays bounded."""
        header = json.dumps({"shape": self.images.shape, "class_names": self.class_names})
        digest = hashlib.sha256(header.encode())
        digest.update(self.labels.astype("<i4").tobytes())
        step = max(1, _HASH_BYTES // self.images[0].size)
        for start in range(0, len(self), step):
            digest.update(np.ascontiguousarray(self.images[start : start + step]))
        return digest.hexdigest()

    def select(self, indices: ArrayLike | Sequence[int]) -> Dataset:
        """The items at `indices`, in that order, in memory.

        Raises:
            DuetError: there are no indices, or one lies outside 0..N-1.
        """
        indices = np.asarray(indices)
        whole = indices.ndim == 1 and indices.size > 0 and np.issubdtype(indices.dtype, np.integer)
        if not whole or indices.min() < 0 or indices.max() >= len(self):
            raise DuetError(
                f"data set {self.name!r}: the selection {indices} was given; "
                f"it must be a list of whole numbers in 0..{len(self) - 1}, at least one"
            )
        return replace(self, images=np.asarray(self.images[indices]), labels=self.labels[indices])

    def only(self, classes: Iterable[int | str]) -> Dataset:
        """The items of some classes, in their old order and in memory.

        Args:
            classes: class ids or class names; the first becomes class 0, the second class 1, and so on.

        Raises:
            DuetError: there are no classes, one does not exist or is given twice, or none of them has an image.
        """
        what = f"data set {self.name!r}"
        ids = class_ids(what, self.class_names, classes)
        new = np.full(self.num_classes, -1, np.int32)
        new[ids] = np.arange(len(ids))
        kept = np.flatnonzero(new[self.labels] >= 0)
        names = tuple(self.class_names[k] for k in ids)
        if not kept.size:
            raise DuetError(f"{what}: it has no image of class {', '.join(names)}")
        return Dataset(np.asarray(self.images[kept]), new[self.labels[kept]], names, self.name)

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """The data set in two disjoint parts, drawn from stream ``"data/split"``, each in its old order.

        Args:
            fraction: the share of the first part, rounded to whole items.
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
    """What so many classes are called of which nobody says a name."""
    return tuple(f"class {k}" for k in range(count))


def class_ids(what: str, names: Sequence[str], classes: Iterable[int | str]) -> list[int]:
    """The ids of classes that are given by id or by name.

    Args:
        what: whose they are; errors begin with it.
        names: of each class id.
        classes: at least one, none twice.

    Raises:
        DuetError: there are no classes, or one does not exist or is given twice.
    """
    if isinstance(classes, str) or not isinstance(classes, Iterable) or not (classes := list(classes)):
        raise DuetError(f"{what}: the classes {classes!r} were given; they must be a list of ids or names")
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

"""A data set: images or other arrays of one shape, their classes, and a hash of both.

Pictures are uint8 with shape (N, H, W, C), with one channel (grey) or three (red, green, blue). Other data have any
shape (N, ...) with the channels last, as uint8 or as floats: latents (N, H, W, C), sequences (N, L, C), volumes
(N, D, H, W, C), vectors (N, D). Floats are never rounded; `pixels.from_stored` says how they become network values.

Labels are int32 class ids with shape (N,) in 0..K-1, where K is the number of class names. Conditions, if there are
any, are a vector of D numbers for each item: what describes it in addition to its class, or several labels at a time
as zeros and ones. The images may be memory maps: nothing here reads all of them at once.

Pairs of noise and image, as a teacher makes them for reflow, have a noise of the image's shape for each item: standard
normal numbers, the eps of x_t = alpha x_0 + sigma eps. A training on pairs draws no noise of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.data.latents import LatentRecord
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range, from_stored, to_uint8
from diffusion_core.data.reading import Reading
from diffusion_core.data.shards import Shards

__all__ = ["Dataset", "class_ids", "default_class_names"]

_HASH_BYTES = 1 << 24
_TYPES = (np.uint8, np.float32, np.float64)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, validated on construction.

    Args:
        images: uint8, float32 or float64 with shape (N, ..., C); an array, a memory map, or `Shards`.
        labels: class ids with shape (N,); stored as int32.
        class_names: the name of each class id.
        name: the name of the data set, for reports.
        reading: how its images were found, if they were read from files; no part of the hash.
        value_range: the float values that black and white have; None says that floats are network values. Bytes have
            none.
        conditions: a vector for each item, with shape (N, D); stored as float32. None if there are none.
        condition_names: the name of each number of a condition; () numbers them.
        noise: the noise of each item, float32 or float64 with the shape of the images; None if training draws it.
        latents: how the items were encoded, if they are latents of images, see `data.latents`; no part of the hash.
        std: the standard deviation of each item, float32 or float64 with the shape of the images, if a training draws
            items from N(images, std^2), as latents from their posterior; None if items are what they are.

    Raises:
        DuetError: a shape, a type or a label is invalid.

    Example:
        >>> data = Dataset(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), ("cat", "dog"), "pets")
        >>> data
        Dataset('pets': 3 images, 8 x 8 x 1, 2 classes)
        >>> data.select_classes(["dog"]).labels
        array([0, 0], dtype=int32)
    """

    images: NDArray | Shards
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    name: str
    reading: Reading = field(default_factory=Reading)
    value_range: tuple[float, float] | None = None
    conditions: NDArray[np.float32] | None = None
    condition_names: tuple[str, ...] = ()
    noise: NDArray | Shards | None = None
    latents: LatentRecord | None = None
    std: NDArray | Shards | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, np.asarray(self.labels)
        names = tuple(str(name) for name in self.class_names)
        what = f"data set {self.name!r}"
        if not isinstance(images, np.ndarray | Shards) or images.dtype not in _TYPES:
            kind = getattr(images, "dtype", type(images).__name__)
            raise DuetError(f"{what}: images of {kind} were given; they must be a uint8, float32 or float64 array")
        shape = images.shape
        if images.ndim < 2 or 0 in shape:
            raise DuetError(
                f"{what}: images with shape {shape} were given; they must be (N, height, width, channels), or (N, ...) "
                f"for other data, with N at least 1"
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
        if self.value_range is not None:
            if images.dtype == np.uint8:
                raise DuetError(f"{what}: value_range {self.value_range} was given for uint8; bytes are 0 to 255")
            object.__setattr__(self, "value_range", check_value_range(self.value_range, "data.options.value_range"))
        self._check_conditions(what)
        for name in ("noise", "std"):
            given = getattr(self, name)
            if given is not None and (given.dtype not in _TYPES[1:] or given.shape != shape):
                raise DuetError(
                    f"{what}: {name} of {given.dtype} with shape {given.shape} was given; it must be float32 or "
                    f"float64 with the shape of the images, {shape}"
                )
        if self.std is not None and (self.is_bytes or self.noise is not None):
            beside = "bytes" if self.is_bytes else "pairs of noise and image"
            raise DuetError(f"{what}: std was given for {beside}, which are not drawn from a distribution")

    def _check_conditions(self, what: str) -> None:
        """Refuse conditions that are not one vector of numbers for each item; keep them as float32."""
        given = tuple(str(name) for name in self.condition_names)
        if self.conditions is None:
            if given:
                raise DuetError(f"{what}: condition_names were given without conditions")
            return
        conditions = np.asarray(self.conditions)
        if conditions.ndim != 2 or len(conditions) != len(self.images) or conditions.dtype.kind not in "biuf":
            raise DuetError(
                f"{what}: conditions of {conditions.dtype} with shape {conditions.shape} were given; they must be "
                f"numbers with shape ({len(self.images)}, D)"
            )
        if not np.isfinite(conditions).all():
            raise DuetError(f"{what}: the conditions hold NaN or infinity; they must be finite numbers")
        width = conditions.shape[1]
        if given and (len(given) != width or len(set(given)) != width):
            raise DuetError(
                f"{what}: {len(given)} condition names were given; they must be {width}, all different, one for each "
                f"number of a condition"
            )
        object.__setattr__(self, "conditions", conditions.astype(np.float32))
        object.__setattr__(self, "condition_names", given or tuple(f"condition {k}" for k in range(width)))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        kind = "images" if self.is_pictures else f"arrays of {self.images.dtype}"
        more = f", {self.condition_size} conditions" if self.condition_size else ""
        more += ", with their noise" if self.noise is not None else ""
        return f"Dataset({self.name!r}: {len(self):,} {kind}, {shape}, {self.num_classes} classes{more})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item, (H, W, C) for images."""
        return tuple(self.images.shape[1:])

    @property
    def image_size(self) -> int | tuple[int, ...]:
        """The height and width of square images in pixels; (height, width), or the axes of other data, otherwise."""
        space = self.shape[:-1]
        return space[0] if len(space) == 2 and space[0] == space[1] else space

    @property
    def channels(self) -> int:
        """The length of the last axis: 1 for grey, 3 for colour."""
        return self.shape[-1]

    @property
    def is_bytes(self) -> bool:
        """Whether the items are stored as uint8, which likelihoods in bits and the variational bound need."""
        return self.images.dtype == np.uint8

    @property
    def is_pictures(self) -> bool:
        """Whether the items can be shown: (H, W, 1) or (H, W, 3), as bytes or as floats with a range of their own."""
        return len(self.shape) == 3 and self.channels in (1, 3) and (self.is_bytes or self.value_range is not None)

    @property
    def condition_size(self) -> int:
        """The number of conditions of each item, D."""
        return 0 if self.conditions is None else self.conditions.shape[1]

    def network_values(
        self, indices: NDArray | slice, dtype: DTypeLike = np.float32, value_range: Sequence[float] = VALUE_RANGE
    ) -> NDArray:
        """Return some items as the network sees them; `value_range` is that of the network."""
        return from_stored(np.asarray(self.images[indices]), dtype, value_range, self.value_range)

    def pictures(self, indices: NDArray | slice = slice(None)) -> NDArray[np.uint8]:
        """Return some items as bytes to look at; floats with a range are rounded, and clipped to it.

        Raises:
            DuetError: the items are no pictures.
        """
        if not self.is_pictures:
            raise DuetError(
                f"data set {self.name!r}: arrays of {self.images.dtype} with shape {self.shape} are no pictures; these "
                f"have shape (H, W, 1) or (H, W, 3) and are bytes, or floats with value_range=(low, high)"
            )
        items = np.asarray(self.images[indices])
        return items if self.is_bytes else to_uint8(items, self.value_range)

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
        """The SHA-256 of shape, class names, labels and pixels, without the name; computed in blocks.

        Floats add their type and range; conditions, noise and standard deviations add themselves.
        """
        header = {"shape": self.images.shape, "class_names": self.class_names}
        if not self.is_bytes:
            header |= {"dtype": self.images.dtype.name, "value_range": self.value_range}
        if self.conditions is not None:
            header |= {"condition_names": self.condition_names}
        for name in ("noise", "std"):
            if getattr(self, name) is not None:
                header |= {name: getattr(self, name).dtype.name}
        digest = hashlib.sha256(json.dumps(header).encode())
        digest.update(self.labels.astype("<i4").tobytes())
        if self.conditions is not None:
            digest.update(self.conditions.astype("<f4").tobytes())
        for items in (each for each in (self.images, self.noise, self.std) if each is not None):
            step, stored = max(1, _HASH_BYTES // items[0].nbytes), items.dtype.newbyteorder("<")
            for start in range(0, len(self), step):
                digest.update(np.ascontiguousarray(items[start : start + step], stored))
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
        return self._at(indices)

    def _at(self, indices: NDArray[np.int64]) -> Dataset:
        """Return the items at valid indices, in memory."""
        conditions = None if self.conditions is None else self.conditions[indices]
        noise, std = (None if each is None else np.asarray(each[indices]) for each in (self.noise, self.std))
        images, labels = np.asarray(self.images[indices]), self.labels[indices]
        return replace(self, images=images, labels=labels, conditions=conditions, noise=noise, std=std)

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
        chosen = self._at(kept)
        return replace(chosen, labels=new[chosen.labels], class_names=names)

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
            check_choice(f"class of {what}", one, known)
            ids.append(known[one])
        elif isinstance(one, Integral) and not isinstance(one, bool) and 0 <= one < len(names):
            ids.append(int(one))
        else:
            raise DuetError(f"{what}: class {one!r} was given; the class ids are 0..{len(names) - 1}")
        if ids[-1] in ids[:-1]:
            raise DuetError(f"{what}: class {names[ids[-1]]!r} was given twice, among {classes}")
    return ids

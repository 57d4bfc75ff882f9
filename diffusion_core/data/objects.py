"""Anything that holds images as a data set: arrays, tensors, pairs, dicts, iterables, data sets of other libraries.

No library is imported: an object is used by what it can do.

    has __array__                      an array or a tensor with shape (N, ...)
    (images, labels), {"image": ...}   arrays by position, or by name
    yields or indexes items            an item is an image alone, (image, label), or a dict of these
    as_numpy_iterator                  the same, as tf.data.Dataset has it
    dataset and batch_size             batches of items, as torch.utils.data.DataLoader yields them

An image is an array, a PIL image, the path of a file or the bytes of one. All items have one shape.

Items are read once, in their order, into memory. So position p of a run shows the same image in every epoch and after
a restart, which an iterable itself cannot promise; what is only promised for this one pass is said in a remark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.data.arrays import arrange, host_array, is_array, store_values
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.labels import read_labels
from diffusion_core.data.reading import Reading
from diffusion_core.images.decode import decode, eight_bit

__all__ = ["MAX_BYTES", "as_dataset"]

# The largest data set that is read from an iterable.
MAX_BYTES = 1 << 32
_IMAGES = ("image", "images", "img", "pixel_values", "x", "x_train", "data", "latent", "latents")
_LABELS = ("label", "labels", "y", "y_train", "class", "class_label", "target", "targets", "fine_label")
_CONDITIONS = ("condition", "conditions", "features")


def as_dataset(
    data: Any,
    *,
    labels: ArrayLike | str | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    num_classes: int | None = None,
    conditions: ArrayLike | str | None = None,
    condition_names: Sequence[str] | None = None,
    images: str | None = None,
    layout: str | None = None,
    value_range: Sequence[float] | None = None,
    batched: bool | None = None,
    count: int | None = None,
    max_bytes: int = MAX_BYTES,
    name: str | None = None,
    noise: ArrayLike | None = None,
) -> Dataset:
    """Return a data set of anything that holds images.

    Args:
        data: what is listed above; a `Dataset` is returned as it is.
        labels: one for each item, see `labels.read_labels`; or the key of the labels in a dict.
        class_names: the names of the classes, or of several labels, in order or by id.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have images.
        conditions: a vector for each item, with shape (N, D); or its key in a dict.
        condition_names: the name of each number of a condition.
        images: the key of the images in a dict.
        layout: "channels_last", "channels_first" or "grey"; None decides by the shape, see `arrays.arrange`.
        value_range: the values of black and white of floats; None says that floats are network values.
        batched: whether an iterable yields batches; None decides by what it yields.
        count: how many items to take; needed for an endless iterable.
        max_bytes: the largest data set that is read from an iterable.
        name: of the data set, for reports.
        noise: of pairs, the standard normal noise of each item, in the layout of the images; see `Dataset`.

    Raises:
        DuetError: the object holds no images, has two readings, or its items differ in shape.

    Example:
        >>> as_dataset((np.zeros((4, 3, 8, 8), np.uint8), ["cat", "dog", "cat", "cat"]))
        Dataset('arrays': 4 images, 8 x 8 x 3, 2 classes)
        >>> as_dataset(((np.zeros((8, 8, 1), np.uint8), k % 2) for k in range(6)), name="made up")
        Dataset('made up': 6 images, 8 x 8 x 1, 2 classes)
    """
    if isinstance(data, Dataset):
        given = (
            labels,
            class_names,
            num_classes,
            conditions,
            condition_names,
            images,
            layout,
            value_range,
            batched,
            count,
            noise,
        )
        if any(option is not None for option in given):
            raise DuetError(f"{data!r} was given with further options; a data set has its labels and values already")
        return data
    if count is not None and count < 1:
        raise DuetError(f"count: {count} was given; it must be at least 1")
    found = _find(data, _Keys(images, labels, conditions), batched, count, max_bytes)
    what = f"data set {name or found.name!r}"
    given_labels = found.labels if labels is None or isinstance(labels, str) else _listed(labels)
    given_conditions = found.conditions if conditions is None or isinstance(conditions, str) else conditions
    pixels, moved = arrange(what, host_array(found.images), layout)
    pixels, value_range, said = store_values(what, pixels, value_range)
    read = read_labels(what, given_labels, len(pixels), class_names or found.class_names, num_classes)
    if given_conditions is not None and read.conditions is not None:
        raise DuetError(f"{what}: conditions were given, and labels that are conditions; give one of them")
    vectors = read.conditions if given_conditions is None else host_array(given_conditions)
    vectors = vectors[:, None] if vectors is not None and vectors.ndim == 1 else vectors
    eps = None if noise is None else arrange(f"{what}: noise", host_array(noise), layout)[0]
    remarks = tuple(text for text in (*found.remarks, moved, said, read.remark) if text)
    return Dataset(
        pixels, read.ids, read.class_names, name or found.name, Reading(remarks), value_range, vectors,
        tuple(condition_names or read.condition_names), eps,
    )  # fmt: skip


@dataclass(frozen=True)
class _Keys:
    """The keys of a dict that the caller names; anything else than text is no key."""

    images: Any = None
    labels: Any = None
    conditions: Any = None

    def find(self, mapping: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Return images, labels and conditions of a dict; labels and conditions may be None."""
        kinds = (("images", self.images, _IMAGES), ("labels", self.labels, _LABELS),
                 ("conditions", self.conditions, _CONDITIONS))  # fmt: skip
        values = []
        for kind, key, usual in kinds:
            if isinstance(key, str) and key not in mapping:
                raise DuetError(f"{kind}: {key!r} was given; the keys are {', '.join(map(str, mapping))}")
            present = [key] if isinstance(key, str) else [name for name in usual if name in mapping]
            if len(present) > 1 or (kind == "images" and not present):
                raise DuetError(
                    f"{kind}: the keys are {', '.join(map(str, mapping))}; name that of the {kind}, as in "
                    f"{kind}={(present or list(mapping) or ['image'])[0]!r}"
                )
            values.append(mapping[present[0]] if present else None)
        return tuple(values)


@dataclass(frozen=True)
class _Found:
    """Images with shape (N, ...), and what was found with them."""

    images: Any
    labels: Any = None
    conditions: Any = None
    name: str = "arrays"
    class_names: Sequence[str] | None = None
    remarks: tuple[str, ...] = field(default=())


def _find(data: Any, keys: _Keys, batched: bool | None, count: int | None, max_bytes: int) -> _Found:
    """Return the images of an object."""
    if is_array(data) and np.ndim(data) > 0:
        return _Found(data if count is None else data[:count])
    if isinstance(data, Mapping):
        images, labels, conditions = keys.find(data)
        inner = _find(images, _Keys(), batched, count, max_bytes)
        return _Found(inner.images, _first(labels, count), _first(conditions, count))
    if _is_pair(data):
        rest = [_first(one, count) for one in data[1:]]
        return _Found(data[0] if count is None else data[0][:count], *rest)
    if isinstance(data, tuple) and data and all(_is_pair(one) for one in data):
        raise DuetError(f"{len(data)} pairs of images and labels were given; give one of them, as data[0]")
    return _read_items(data, keys, batched, count, max_bytes)


def _is_pair(data: Any) -> bool:
    """Return whether a tuple or a list of two or three is (images, labels) or (images, labels, conditions)."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3) or not is_array(data[0]) or np.ndim(data[0]) < 2:
        return False
    shape = tuple(data[0].shape)
    for one in data[1:]:
        if one is not None and (not hasattr(one, "__len__") or len(one) != shape[0]):
            return False
    # A list of two images of one shape is a list of images.
    return data[1] is None or not is_array(data[1]) or np.ndim(data[1]) <= 2 < len(shape) or np.ndim(data[1]) < 2


def _first(values: Any, count: int | None) -> Any:
    values = _listed(values) if values is not None else None
    return values if values is None or count is None else values[:count]


def _listed(values: Any) -> Any:
    """Return labels as a NumPy array or a list."""
    if is_array(values):
        values = host_array(values)
        if values.dtype.kind in "SO":  # texts of tf.data are bytes
            return [_plain_label(value) for value in values.tolist()]
        return values
    return [_plain_label(value) for value in values]


def _plain_label(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if is_array(value):
        array = host_array(value)
        return _plain_label(array.item()) if array.ndim == 0 else array.tolist()
    return value


def _read_items(data: Any, keys: _Keys, batched: bool | None, count: int | None, max_bytes: int) -> _Found:
    """Read the items of an iterable, or of an object with an index and a length."""
    kind = type(data).__name__
    length, items = _items(data)
    if length == -1 and count is None:
        raise DuetError(f"{kind}: it has no end; say how many items to take, as in count=10000")
    if batched is None and hasattr(data, "batch_size") and hasattr(data, "dataset"):
        batched = data.batch_size is not None
    rows = _Rows(kind, keys, max_bytes)
    for item in items:
        batched = rows.add(item, batched)
        if count is not None and len(rows.images) >= count:
            break
    if not rows.images:
        raise DuetError(f"{kind}: it yields no items")
    if count is not None and len(rows.images) < count:
        raise DuetError(f"count: {count} was given, but {kind} ends after {len(rows.images)} items")
    images = rows.stacked()[:count]
    remarks = []
    if length is None or _shuffles(data):
        remarks.append(
            f"it was read once, {pluralize(len(images), 'item')} in {images.nbytes / 2**20:,.1f} MiB of memory; a "
            f"run sees these in its own order. Another pass may yield others: only the same ones, as their hash tells, "
            f"resume a run exactly"
        )
    if getattr(data, "transform", None) is not None:
        remarks.append(
            f"the transform of {kind} was applied once to each item; random changes in it are not drawn anew, as "
            f"data.flip and data.augment are"
        )
    return _Found(
        images, rows.column("labels")[:count] if rows.labels else None,
        rows.column("conditions")[:count] if rows.conditions else None, kind, _class_names(data), tuple(remarks),
    )  # fmt: skip


def _items(data: Any) -> tuple[int | None, Iterator[Any]]:
    """Return the number of items, None if unknown and -1 if endless, and the items."""
    if isinstance(data, str | bytes | Path) or np.isscalar(data) or data is None:
        raise DuetError(
            f"data: {data!r} was given; it must be the name of a data set, a path, arrays, an iterable of images, or a "
            f"data set of another library"
        )
    if callable(getattr(data, "as_numpy_iterator", None)):
        size = int(data.cardinality()) if callable(getattr(data, "cardinality", None)) else -2
        return {-2: None}.get(size, size), data.as_numpy_iterator()
    length = _length(data)
    if hasattr(type(data), "__iter__"):
        return length, iter(data)
    if length is not None and hasattr(type(data), "__getitem__"):
        return length, (data[k] for k in range(length))
    if callable(data):
        raise DuetError(f"data: the function {getattr(data, '__name__', data)!r} was given; give what it returns")
    raise DuetError(
        f"data: {type(data).__name__} was given; it must be arrays, an iterable of images, or have an index and a "
        f"length"
    )


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _shuffles(data: Any) -> bool:
    """Return whether an object says that another pass has another order."""
    sampler = getattr(data, "sampler", None)
    return "Random" in type(sampler).__name__


def _class_names(data: Any) -> Sequence[str] | None:
    """Return the names that a data set has for its classes, also if it is a part of another one."""
    for _ in range(4):
        names = getattr(data, "classes", None)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return names
        features = getattr(data, "features", None)
        if isinstance(features, Mapping):
            named = [f.names for key, f in features.items() if key in _LABELS and getattr(f, "names", None)]
            if len(named) == 1:
                return named[0]
        data = getattr(data, "dataset", None)
    return None


class _Rows:
    """The items that were read so far: a list of images, of labels and of conditions."""

    def __init__(self, kind: str, keys: _Keys, max_bytes: int) -> None:
        self.kind, self.keys, self.max_bytes, self.bytes = kind, keys, max_bytes, 0
        self.images: list[NDArray] = []
        self.labels: list[Any] = []
        self.conditions: list[Any] = []

    def add(self, item: Any, batched: bool | None) -> bool:
        """Add an item or a batch of them; return whether items are batches."""
        image, label, condition = self._parts(item)
        image = _image(image)
        batched = self._is_batch(image, label) if batched is None else batched
        if not batched:
            self._append(image, label, condition)
            return False
        columns = [None if one is None else _listed(one) for one in (label, condition)]
        for k in range(len(image)):
            self._append(image[k], *(None if column is None else column[k] for column in columns))
        return True

    def _parts(self, item: Any) -> tuple[Any, Any, Any]:
        if isinstance(item, Mapping):
            return self.keys.find(item)
        if isinstance(item, tuple | list):
            if not 1 <= len(item) <= 3:
                raise DuetError(
                    f"{self.kind}: an item of {len(item)} values was given; it must be an image, (image, label) or "
                    f"(image, label, condition), or a dict of these"
                )
            return (*item, None, None)[:3]
        return item, None, None

    def _is_batch(self, image: NDArray, label: Any) -> bool:
        """Return whether an item is a batch: four axes, or a label for each of its first."""
        shape = image.shape
        labels = host_array(label).shape if is_array(label) else ()
        if len(labels) >= 1 and labels[0] == shape[0]:
            if len(shape) == 3 and (shape[2] in (1, 3) or shape[0] in (1, 3)):
                raise DuetError(
                    f"{self.kind}: an item has an image {shape} and a label {labels}, which can be one image or a "
                    f"batch of {shape[0]}; say which with batched=True or batched=False"
                )
            return True
        return len(shape) == 4 and label is None

    def _append(self, image: NDArray, label: Any, condition: Any) -> None:
        for values, value, kind in ((self.labels, label, "label"), (self.conditions, condition, "condition")):
            if self.images and (value is None) != (not values):
                raise DuetError(
                    f"{self.kind}: item {len(self.images)} has {'no' if value is None else 'a'} {kind}, unlike the "
                    f"items before it"
                )
            if value is not None:
                values.append(_plain_label(value))
        self.images.append(image)
        self.bytes += image.nbytes
        if self.bytes > self.max_bytes:
            raise DuetError(
                f"{self.kind}: {len(self.images):,} items are more than the {self.max_bytes / 2**30:g} GiB that are "
                f"read into memory; take the first with count=N, raise max_bytes, or write the images to a folder and "
                f"prepare them as a store"
            )

    def stacked(self) -> NDArray:
        """Return all images as one array; grey images among colour ones become colour."""
        shapes = {image.shape for image in self.images}
        if len(shapes) > 1 and len({shape[:2] for shape in shapes}) == 1 and self._are_pictures(shapes):
            self.images = [_colour(image) for image in self.images]
            shapes = {image.shape for image in self.images}
        if len(shapes) > 1:
            first = self.images[0].shape
            k = next(k for k, image in enumerate(self.images) if image.shape != first)
            raise DuetError(
                f"{self.kind}: image 0 has shape {first}, image {k} has {self.images[k].shape}; all must have one "
                f"shape, so resize them first, or write them to a folder and read it as image_folder with "
                f"data.options.size"
            )
        return np.stack(self.images)

    def _are_pictures(self, shapes: Iterable[tuple[int, ...]]) -> bool:
        return all(len(s) == 2 or (len(s) == 3 and s[2] in (1, 3)) for s in shapes)

    def column(self, name: str) -> Any:
        """Return the labels or the conditions of all items."""
        values = getattr(self, name)
        if name != "conditions":
            return values
        try:
            return np.asarray(values, np.float32)
        except (TypeError, ValueError) as error:
            raise DuetError(
                f"{self.kind}: the third value of an item is read as its conditions, which must be as many numbers for "
                f"each, but a {type(values[0]).__name__} was found; give items of image and label"
            ) from error


def _colour(image: NDArray) -> NDArray:
    image = image if image.ndim == 3 else image[..., None]
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _image(value: Any) -> NDArray:
    """Return one image as an array: of an array, a PIL image, a path or the bytes of a file."""
    if callable(getattr(value, "convert", None)) and hasattr(value, "mode"):
        return np.asarray(_grey_or_rgb(eight_bit(value)))
    if isinstance(value, str | Path | bytes):
        return np.asarray(_grey_or_rgb(decode(value).image))
    if not is_array(value) and not isinstance(value, list | tuple):
        raise DuetError(
            f"data: an item is {type(value).__name__}; it must be an image (an array, a PIL image, a path or the bytes "
            f"of a file), or (image, label), or a dict of these"
        )
    return host_array(value) if is_array(value) else np.asarray(value)


def _grey_or_rgb(image: Any) -> Any:
    return image.convert("L") if image.mode == "1" else image

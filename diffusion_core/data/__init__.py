"""Data sets as arrays, and the order in which a run reads them.

    load_dataset           a data set by name, by path, or of arrays and iterables, in memory or as a memory map
    as_dataset             the last of these: anything that holds images, as a data set
    Loader                 batches of it, in an order that depends on the seed alone
    from_uint8, to_uint8   stored pixels to network values, and back

`prepare` writes a data set to disk once, as a store that every process and both frameworks read.

May import: images, files, runtime, diffusion and below.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import build
from diffusion_core.data import digits, shapes, store, toys
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.loader import ImageBatch, Loader
from diffusion_core.data.objects import as_dataset
from diffusion_core.data.pixels import from_uint8, to_uint8
from diffusion_core.data.source import Source, gather, only_classes
from diffusion_core.data.sources import DATASET_INFO, SOURCES, reader_of_path
from diffusion_core.data.transform import ImageTransform

__all__ = [
    "DATASETS", "Dataset", "ImageBatch", "Loader", "as_dataset", "from_uint8", "gather_some", "load_dataset",
    "read_options", "source_parts", "to_uint8",
]  # fmt: skip


def read_options(name: str) -> tuple[set[str], set[str]]:
    """Return the options of `ImageTransform`, and those for reading the files of a published data set, by name."""
    own = inspect.signature(SOURCES[name]).parameters
    return set(inspect.signature(ImageTransform).parameters), set(own) - {"path"}


def source_parts(name: str, path: str | Path, options: Mapping[str, Any]) -> dict[str, Source]:
    """Return the parts of a published data set by name; images are read later.

    Args:
        name: one of `SOURCES`.
        path: of its files.
        options: those of the data set; others than `read_options` gives are ignored.
    """
    _, own = read_options(name)
    return SOURCES[name](Path(path).expanduser(), **{k: v for k, v in options.items() if k in own})


def gather_some(name: str, source: Source, most: int, options: Mapping[str, Any], max_unreadable: float) -> Dataset:
    """Load at most `most` images of a part into memory, drawn by stream ``"data/some"`` if it has more.

    Args:
        name: of the data set, one of `SOURCES`.
        source: the part.
        most: the number of images.
        options: size, channels, crop and classes, as for the data set.
        max_unreadable: the largest fraction of the images that may be unreadable.
    """
    classes = options.get("classes")
    if classes is not None:
        source = only_classes({"": source}, classes)[""]
    if len(source) > most:
        source = source.select(np.sort(Stream(0, "data/some").permutation(len(source))[:most]))
    return gather({"": source}, "", _image_transform(name, options), max_unreadable=max_unreadable)


def _defaults(name: str) -> dict[str, Any]:
    return {"size": DATASET_INFO[name].size, "channels": DATASET_INFO[name].channels}


def _image_transform(name: str, options: Mapping[str, Any]) -> ImageTransform:
    """Return how the images of a data set get one shape."""
    keys, _ = read_options(name)
    return ImageTransform(**_defaults(name) | {k: v for k, v in options.items() if k in keys})


def _reader(name: str) -> Callable[..., Dataset]:
    """Return a function that reads a published data set into memory. Its signature names every option."""
    source, defaults = SOURCES[name], _defaults(name)

    def read(
        path: str, part: str | None = None, classes: Any = None, max_unreadable: float = 0.01, **options: Any
    ) -> Dataset:
        parts = source_parts(name, path, options)
        return gather(parts, part, _image_transform(name, options), classes, max_unreadable)

    # The registry checks names and types of options against this signature.
    parameters = {key: p for key, p in inspect.signature(read).parameters.items() if p.kind is not p.VAR_KEYWORD}
    for function in (ImageTransform, source):
        hints = get_type_hints(function)
        for key, p in inspect.signature(function).parameters.items():
            if key not in parameters:
                parameters[key] = p.replace(kind=p.KEYWORD_ONLY, default=defaults.get(key, p.default))
                read.__annotations__[key] = hints[key]
    read.__signature__ = inspect.Signature(list(parameters.values()))
    return read


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.digits,
    "shapes": shapes.shapes,
    "toy": toys.toy,
    "gaussian_mixture": toys.gaussian_mixture,
    "store": store.open_store,
    **{name: _reader(name) for name in SOURCES},
}


def _of_path(data: str | Path, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the data set that reads a path, with its options; a text that is no path is a name."""
    path = Path(data).expanduser()
    if path.exists():
        name, key = reader_of_path(path)
        return name, {key: str(data), **options}
    if isinstance(data, Path) or len(path.parts) > 1 or path.suffix:
        raise DuetError(f"data: {str(data)!r} was given, which is no data set and no file or folder that exists")
    return str(data), dict(options)


def load_dataset(data: Any, *, classes: Sequence[int | str] | None = None, **options: Any) -> Dataset:
    """Load a data set by name, by path, or of an object that holds images.

    Args:
        data: one of `DATASETS`, such as "digits", "cifar10", "image_folder" or "store"; or the path of a file or a
            folder; or arrays, an iterable, or a data set of another library, see `objects.as_dataset`.
        classes: class ids or class names to keep, see `Dataset.select_classes`; None keeps all.
        options: keyword arguments of the function `DATASETS[name]`, such as ``path``, ``part`` and ``size``; for an
            object, those of `as_dataset`, such as ``labels``, ``layout`` and ``value_range``.

    Returns:
        A `Dataset`: images with shape (N, H, W, C), or other arrays (N, ...), and int32 class ids with shape (N,).

    Raises:
        DuetError: the name is unknown, an option is unknown, missing or out of range, or a file cannot be read.

    Example:
        >>> load_dataset("digits", part="train")
        Dataset('digits': 1,437 images, 8 x 8 x 1, 10 classes)
        >>> load_dataset("shapes", count=100, size=16, classes=["circle", "square"]).class_names
        ('circle', 'square')
        >>> load_dataset(np.zeros((6, 8, 8, 3), np.uint8), labels=["a", "b", "c"] * 2, classes=["c"])
        Dataset('arrays': 2 images, 8 x 8 x 3, 1 classes)
    """
    if isinstance(data, str | Path):
        name = str(data)
        if name not in DATASETS:
            name, options = _of_path(data, options)
        if name in SOURCES:
            return build("data", DATASETS, name, options | {"classes": classes})
        dataset = build("data", DATASETS, name, options)
    else:
        dataset = build("data", {"data": as_dataset}, "data", options, data)
    return dataset if classes is None else dataset.select_classes(classes)

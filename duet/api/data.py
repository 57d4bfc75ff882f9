"""Data sets by name, by path or of objects, with a warning for everything that their size does not show."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from diffusion_core import data as datasets
from diffusion_core.data import Dataset

__all__ = ["as_loaded", "load_dataset"]


def as_loaded(data: Any) -> Dataset:
    """Return a data set as it is, and of anything else what `load_dataset` returns."""
    return data if isinstance(data, Dataset) else load_dataset(data)


def load_dataset(data: Any, *, classes: Sequence[int | str] | None = None, **options: Any) -> Dataset:
    """Load a data set by name, by path, or of an object that holds images.

    How folders of images were read, what was left out of them, and what an iterable cannot promise is in
    `Dataset.reading`, and is a warning.

    Args:
        data: one of `duet.DATASETS`, such as "digits", "cifar10", "image_folder" or "store"; or the path of a file or a
            folder; or NumPy arrays or tensors, (images, labels), a dict, an iterable, or a data set of PyTorch,
            TensorFlow or Hugging Face.
        classes: class ids or class names to keep, see `Dataset.select_classes`; None keeps all.
        options: keyword arguments of the function `DATASETS[name]`, such as ``path``, ``part`` and ``size``. For an
            object: ``labels``, ``class_names``, ``num_classes``, ``conditions``, ``condition_names``, ``layout``
            ("channels_last", "channels_first" or "grey"), ``value_range`` of floats, ``images`` (a key), ``batched``,
            ``count``, ``max_bytes`` and ``name``.

    Returns:
        A `Dataset`: images with shape (N, H, W, C), or other arrays (N, ...), and int32 class ids with shape (N,).

    Raises:
        DuetError: the name is unknown, an option is unknown, missing or out of range, a file cannot be read, or an
            object can be read in two ways.

    Example:
        >>> load_dataset("digits", part="train")
        Dataset('digits': 1,437 images, 8 x 8 x 1, 10 classes)

        Floats in [0, 1] with the channels first, as PyTorch has them:

        >>> import numpy as np
        >>> load_dataset(np.zeros((9, 3, 16, 24), np.float32), value_range=(0, 1), labels=[0, 1, 2] * 3)
        Dataset('arrays': 9 images, 16 x 24 x 3, 3 classes)
    """
    dataset = datasets.load_dataset(data, classes=classes, **options)
    name = data if isinstance(data, str) else dataset.name
    lines, reading = [*dataset.reading.lines], dataset.reading
    if reading.parts and options.get("part") is None:
        lines.append(f"part {reading.part} is used, of {', '.join(reading.parts)}; choose with part=")
    if dataset.empty_classes:
        lines.append(f"classes without an image: {', '.join(dataset.empty_classes)}")
    for line in lines:  # which are written with configuration keys
        warnings.warn(f"{name}: {line.replace('data.options.', '')}", stacklevel=2)
    return dataset

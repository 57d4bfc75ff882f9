"""Data sets by name, with a warning for everything about them that their size does not show."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from diffusion_core import data
from diffusion_core.data import Dataset

__all__ = ["load_dataset"]


def load_dataset(name: str, *, classes: Sequence[int | str] | None = None, **options: object) -> Dataset:
    """Load a data set by name.

    How folders of images were read, and what was left out of them, is in `Dataset.reading`, and is a warning.

    Args:
        name: one of `duet.DATASETS`, such as "digits", "cifar10", "image_folder" or "store".
        classes: class ids or class names to keep, see `Dataset.select_classes`; None keeps all.
        options: keyword arguments of the function `DATASETS[name]`, such as ``path``, ``part`` and ``size``.

    Returns:
        A `Dataset`: uint8 images with shape (N, S, S, C), and int32 class ids with shape (N,).

    Raises:
        DuetError: the name is unknown, an option is unknown, missing or out of range, or a file cannot be read.

    Example:
        >>> load_dataset("digits", part="train")
        Dataset('digits': 1,437 images, 8 x 8 x 1, 10 classes)
    """
    dataset = data.load_dataset(name, classes=classes, **options)
    lines, reading = [*dataset.reading.lines], dataset.reading
    if reading.parts and options.get("part") is None:
        lines.append(f"part {reading.part} is used, of {', '.join(reading.parts)}; choose with part=")
    if dataset.empty_classes:
        lines.append(f"classes without an image: {', '.join(dataset.empty_classes)}")
    for line in lines:
        warnings.warn(f"{name}: {line}", stacklevel=2)
    return dataset

"""Classes by name: from the names that a checkpoint keeps to the labels of its network, and back.

A label is a number: that of a class, or that of "no class". Names are those of the data that the network was trained
on. They are compared exactly first, and else without regard to case.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import join_some
from diffusion_core.networks.program import Program
from diffusion_core.runs.checkpoint import Checkpoint

__all__ = [
    "NO_CLASS",
    "describe_classes",
    "filled_labels",
    "label_names",
    "labels_with_images",
    "named_labels",
    "names_of_checkpoint",
]

NO_CLASS = "no class"
_SHOWN = 12


def label_names(program: Program, class_names: Sequence[str]) -> dict[int, str]:
    """Return the name of each label of a network; empty if these are not the names of its classes."""
    if not program.classes or len(class_names) != program.classes:
        return {}
    names = dict(zip(program.labels, class_names, strict=True))
    return names if program.null_label is None else names | {program.null_label: NO_CLASS}


def names_of_checkpoint(checkpoint: Checkpoint, classifier: Checkpoint | None = None) -> dict[int, str]:
    """Return the name of each label of a checkpoint's network, or, if it has no classes, of the classifier's."""
    for source in (checkpoint, classifier):
        if source is not None and source.model.program.classes:
            return label_names(source.model.program, source.training.class_names if source.training else ())
    return {}


def labels_with_images(checkpoint: Checkpoint) -> list[int] | None:
    """Return the labels of the classes that had images in the training of a checkpoint; None if all had, or unknown.

    Nothing was ever learned about the other classes, so they are not sampled by default.
    """
    record = checkpoint.training
    if record is None or record.earlier_data:
        return None
    return filled_labels(checkpoint.model.program, record.data.class_images)


def filled_labels(program: Program, class_images: Sequence[int]) -> list[int] | None:
    """Return the labels of the classes of a network that have images; None if all have, or their number differs.

    Args:
        program: of the network.
        class_images: the number of images of each class.
    """
    if len(class_images) != program.classes or all(class_images) or not any(class_images):
        return None
    return [label for label, count in zip(program.labels, class_images, strict=True) if count]


def named_labels(key: str, labels: Any, names: Mapping[int, str]) -> Any:
    """Return labels with numbers in place of the names among them; numbers, ranges and None stay as they are.

    Args:
        key: the configuration key of the labels, for errors.
        labels: a number, a name, a list of both, or None.
        names: the name of each label.

    Raises:
        DuetError: for an unknown name, with the nearest known one; or for a name that fits several classes.

    Example:
        >>> named_labels("sample.labels", ["Forest", "coast", 7], {0: "Coast", 1: "Forest"})
        [1, 0, 7]
    """
    if isinstance(labels, str):
        return _label(key, labels, names)
    if isinstance(labels, Iterable) and any(isinstance(one, str) for one in labels):
        return [_label(key, one, names) if isinstance(one, str) else one for one in labels]
    return labels


def _label(key: str, name: str, names: Mapping[int, str]) -> int:
    exact = [label for label, known in names.items() if known == name]
    for found in (exact, [label for label, known in names.items() if _folded(known) == _folded(name)]):
        if len(found) == 1:
            return found[0]
        if found:
            fitting = ", ".join(f"{names[label]!r} ({label})" for label in found)
            raise DuetError(f"{key}: {name!r} was given, which fits several classes: {fitting}; give the number")
    if name.isascii() and name.removeprefix("-").isdigit():
        return int(name)
    if not names:
        raise DuetError(
            f"{key}: {name!r} was given, but the checkpoint does not know the names of its classes; give their "
            f"numbers, or leave {key} out if the network has no classes"
        )
    if name.casefold() in ("all", "none", "random", "any"):
        raise DuetError(f"{key}: {name!r} was given; give {key}=null for every class in turn, or a list of classes")
    known = list(names.values())
    near = difflib.get_close_matches(_folded(name), {_folded(one): one for one in known}, n=1)
    hint = next((f" Did you mean {one!r}?" for one in known if near and _folded(one) == near[0]), "")
    raise DuetError(f"{key}: {name!r} was given; the classes are {join_some(known, _SHOWN)}.{hint}")


def _folded(name: str) -> str:
    """Return a name without case; systems also differ in how they write accents."""
    return unicodedata.normalize("NFC", name).casefold()


def describe_classes(labels: Iterable[int], names: Mapping[int, str]) -> str:
    """Return which classes are drawn and how often, in one line; an empty text if they have no names.

    Example:
        >>> describe_classes([1, 0, 1], {0: "Coast", 1: "Forest"})
        'classes: Coast 1, Forest 2'
    """
    drawn, counts = np.unique(np.asarray(labels), return_counts=True)
    if not names or not drawn.size:
        return ""
    parts = [f"{names.get(int(label), label)} {count}" for label, count in zip(drawn, counts, strict=True)]
    return f"classes: {join_some(parts, _SHOWN)}"

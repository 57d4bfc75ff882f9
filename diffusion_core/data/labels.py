"""Labels as people have them, as class ids or as conditions.

    one number or text per item      class ids 0..K-1; the class names keep numbers and texts
    one-hot rows                     class ids
    rows of zeros and ones           several labels per item: a condition of zeros and ones for each
    lists of numbers or texts        the same
    rows of other numbers            a condition: a vector that describes the item

A class id without an item cannot be learned, and samples of it would be noise. Labels that are not 0, 1, ... K-1, such
as 1..K or 0, 5, 10, are therefore mapped to 0..K-1 in their order. The class names keep the numbers ("class 5"), or the
texts if labels are texts. ``num_classes`` says instead that the classes are 0..num_classes-1, with or without items.

Several labels per item are a condition, since an item has one class at most: a network with one feature per label takes
all of them at a time. All items are then of one class, "all".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data.dataset import default_class_names
from diffusion_core.images.files import natural_order

__all__ = ["UNNAMED", "Labels", "class_labels", "read_labels"]

# The one class of items without classes.
UNNAMED = "all"


@dataclass(frozen=True, eq=False)
class Labels:
    """What labels say of N items.

    Args:
        ids: class ids with shape (N,).
        class_names: the name of each class.
        conditions: numbers with shape (N, D), or None.
        condition_names: the name of each number of a condition; () if they have none.
        remark: how the labels were understood, where that is not obvious.
    """

    ids: NDArray[np.int32]
    class_names: tuple[str, ...]
    conditions: NDArray[np.float32] | None = None
    condition_names: tuple[str, ...] = ()
    remark: str | None = None


def read_labels(
    what: str,
    labels: ArrayLike | Sequence[Any] | None,
    count: int,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    num_classes: int | None = None,
) -> Labels:
    """Return what labels of any of the kinds above say.

    Args:
        what: where they come from, for errors.
        labels: one for each item; None puts all items into one class.
        count: the number of items.
        class_names: the names of the class ids, or of several labels, in order or by id; None names them by their
            numbers or texts.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have items.

    Raises:
        DuetError: the labels are of no kind above, or names do not fit.

    Example:
        >>> read_labels("pets", ["dog", "cat", "dog"], 3).class_names
        ('cat', 'dog')
        >>> read_labels("tags", [["red", "round"], [], ["red"]], 3).conditions.tolist()
        [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    """
    class_names = _names(what, class_names)
    if labels is None:
        return Labels(np.zeros(count, np.int32), tuple(class_names or (UNNAMED,))[:1])
    if not isinstance(labels, np.ndarray):
        labels = list(labels)
        ragged = [isinstance(one, list | tuple | set | frozenset) for one in labels]
        if any(ragged):
            if not all(ragged):
                raise DuetError(
                    f"{what}: {sum(ragged)} of {len(labels)} labels are lists; either every item must have a list of "
                    f"labels, or none"
                )
            if len({len(one) for one in labels}) > 1 or not labels[0] or isinstance(next(iter(labels[0])), str):
                return _lists(what, [list(one) for one in labels], count, class_names)
            labels = [list(one) for one in labels]
        labels = np.asarray(labels)
    if labels.dtype.kind == "O":
        raise DuetError(
            f"{what}: the labels are of several types, as {labels.ravel()[0]!r}; they must be numbers, texts, or lists "
            f"of these, one for each item"
        )
    if labels.ndim == 2 and labels.shape[1] > 1 and len(labels) == count:
        return _rows(what, labels, class_names)
    if class_names is not None and num_classes is None and labels.dtype.kind not in "US":
        num_classes = len(class_names)
    ids, names, remark = class_labels(what, labels, count, num_classes)
    if class_names is None:
        return Labels(ids, names, remark=remark)
    given = tuple(map(str, class_names))
    if labels.dtype.kind in "US":
        if unknown := [name for name in names if name not in given]:
            raise DuetError(f"{what}: label {unknown[0]!r} was given, which is not among class_names: {given}")
        return Labels(np.array([given.index(name) for name in names], np.int32)[ids], given)
    if len(given) != len(names):
        raise DuetError(f"{what}: {len(given)} class names were given for {len(names)} classes")
    return Labels(ids, given, remark=remark)


def _names(what: str, class_names: Sequence[str] | Mapping[int, str] | None) -> tuple[str, ...] | None:
    """Return class names as texts; names by class id are put in order."""
    if class_names is None:
        return None
    if isinstance(class_names, Mapping):
        if set(class_names) != set(range(len(class_names))):
            raise DuetError(
                f"{what}: class_names for {list(class_names)} were given; the ids must be 0, 1, ... without gaps"
            )
        class_names = [class_names[k] for k in range(len(class_names))]
    if isinstance(class_names, str):
        raise DuetError(f"{what}: class_names {class_names!r} was given; it must be a list of names")
    return tuple(map(str, class_names))


def _rows(what: str, labels: NDArray, class_names: Sequence[str] | None) -> Labels:
    """Return what a matrix of labels says: one-hot rows, several labels, or a vector."""
    if labels.dtype.kind not in "biuf":
        raise DuetError(f"{what}: labels of {labels.dtype} with shape {labels.shape} were given; rows must be numbers")
    width = labels.shape[1]
    names = tuple(map(str, class_names)) if class_names is not None else ()
    if names and len(names) != width:
        raise DuetError(f"{what}: {len(names)} class names were given for rows of {width} labels")
    no_class = np.zeros(len(labels), np.int32)
    if not np.isin(labels, (0, 1)).all():
        remark = f"each label is a vector of {width} numbers, so a condition; all items are of one class"
        return Labels(no_class, (UNNAMED,), labels.astype(np.float32), names, remark)
    if (labels.sum(axis=1) == 1).all():
        ids = labels.argmax(axis=1).astype(np.int32)
        remark = f"the labels are one-hot rows of {width} classes"
        return Labels(ids, names or default_class_names(width), remark=remark)
    return _several(no_class, labels, names or tuple(f"label {k}" for k in range(width)))


def _several(no_class: NDArray[np.int32], rows: NDArray, names: tuple[str, ...]) -> Labels:
    counts = rows.sum(axis=1)
    remark = (
        f"items have several labels ({counts.min():g} to {counts.max():g} of {len(names)}), which become a condition "
        f"of zeros and ones; all items are of one class"
    )
    return Labels(no_class, (UNNAMED,), rows.astype(np.float32), names, remark)


def _lists(what: str, labels: list[list[Any]], count: int, class_names: Sequence[str] | None) -> Labels:
    """Return what a list of labels for each item says."""
    if len(labels) != count:
        raise DuetError(f"{what}: {len(labels)} lists of labels were given for {count} items; there must be one each")
    every = {label for row in labels for label in row}
    if {type(label) for label in every} - {str} and any(not isinstance(label, int | np.integer) for label in every):
        raise DuetError(f"{what}: lists of labels must hold texts alone, or whole numbers alone")
    if class_names is not None:
        names = tuple(map(str, class_names))
        known = {name: k for k, name in enumerate(names)} | dict(enumerate(range(len(names))))
        if unknown := [label for label in every if label not in known]:
            raise DuetError(f"{what}: label {unknown[0]!r} was given, which is not among class_names: {names}")
    elif all(isinstance(label, str) for label in every):
        names = tuple(sorted(every, key=natural_order))
        known = {name: k for k, name in enumerate(names)}
    else:
        values = sorted(every)
        if values and values[0] < 0:
            raise DuetError(f"{what}: label {values[0]} was given; labels that are numbers must be at least 0")
        names, known = tuple(f"label {v}" for v in values), {v: k for k, v in enumerate(values)}
    if not names:
        raise DuetError(f"{what}: every list of labels is empty; leave the labels out")
    rows = np.zeros((count, len(names)), np.float32)
    for row, given in zip(rows, labels, strict=True):
        row[[known[label] for label in given]] = 1
    return _several(np.zeros(count, np.int32), rows, names)


def _hint(whole: bool) -> str:
    return "" if whole else "; numbers that describe an image are conditions"


def class_labels(
    what: str, labels: NDArray, count: int, num_classes: int | None = None
) -> tuple[NDArray[np.int32], tuple[str, ...], str | None]:
    """Return class ids in 0..K-1, the class names, and a remark if labels were mapped to them.

    Args:
        what: where the labels come from, for errors.
        labels: numbers or texts with shape (count,) or (count, 1).
        count: the number of images.
        num_classes: the number of classes, if labels are class ids; None maps labels to the classes that have images.

    Raises:
        DuetError: the labels have another shape or type, or lie outside 0..num_classes-1.
    """
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (count,):
        raise DuetError(f"{what}: the labels are {labels.dtype} {labels.shape}; they must be class ids, one per image")
    if labels.dtype.kind in "US":
        texts = labels.astype(str)
        names = sorted(set(texts.tolist()), key=natural_order)
        number = {name: k for k, name in enumerate(names)}
        return np.array([number[text] for text in texts.tolist()], np.int32), tuple(names), None
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)))
    if not whole or labels.min() < 0 or labels.max() >= 2**31:
        raise DuetError(
            f"{what}: the labels are {labels.dtype} {labels.shape} from {labels.min()} to {labels.max()}; they must be "
            f"class ids, whole numbers of at least 0, one per image{_hint(whole)}"
        )
    labels = labels.astype(np.int64)
    if num_classes is not None:
        if labels.max() >= num_classes:
            raise DuetError(
                f"data.options.num_classes: {num_classes} was given, but {what} has label {labels.max()}; class ids "
                f"are 0..num_classes-1"
            )
        return labels.astype(np.int32), default_class_names(num_classes), None
    values, ids = np.unique(labels, return_inverse=True)
    if values[-1] == len(values) - 1:
        return ids.astype(np.int32), default_class_names(len(values)), None
    shown = ", ".join(map(str, values[:5])) + (" ..." if len(values) > 5 else "")
    remark = (
        f"the labels {shown} are mapped to the classes 0..{len(values) - 1}, called 'class {values[0]}' and so on, "
        f"since {values[-1] + 1 - len(values)} of the numbers below {values[-1] + 1} have no image; "
        f"data.options.num_classes={values[-1] + 1} keeps the numbers"
    )
    return ids.astype(np.int32), tuple(f"class {value}" for value in values), remark

"""The labels of a network for the classes of a data set.

Data sets count their classes 0 .. K-1. A network's label for "no class" is either its last one, K, and then class k has
label k; or it is 0, and then class k has label k + 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["network_labels"]


def network_labels(labels: ArrayLike, classes: int, null_label: int | None) -> NDArray[np.int32]:
    """Return the network's labels for the classes of a data set, with the shape of `labels`.

    Args:
        labels: class ids in 0..classes-1; ignored for a network without classes.
        classes: the number of classes; 0 for a network without classes.
        null_label: the network's label for "no class": `classes`, 0, or None if it has none.

    Raises:
        DuetError: if a label is out of range, or `null_label` is the label of a class.

    Example:
        >>> network_labels([0, 2], classes=3, null_label=0)
        array([1, 3], dtype=int32)
    """
    if null_label is not None and (classes < 1 or null_label not in (0, classes)):
        raise DuetError(
            f"null label {null_label} with {classes} classes: there must be at least one class, "
            f"and the null label must be 0 or the number of classes"
        )
    labels = np.asarray(labels)
    if not classes:
        return np.zeros(labels.shape, np.int32)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise DuetError(f"label {wrong[0]} was given; it must be 0 to {classes - 1}")
    return (labels + (1 if null_label == 0 else 0)).astype(np.int32)

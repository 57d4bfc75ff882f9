"""The generators of NumPy and Python, from which an author's code may draw while its model is recorded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["keep_generators", "seed_generators"]


def seed_generators(seed: int) -> None:
    """Seed the generators that have no object of their own."""
    np.random.seed(seed)  # noqa: NPY002 - the author may draw from it
    random.seed(seed)


@contextmanager
def keep_generators() -> Iterator[None]:
    """Give the generators their states back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)

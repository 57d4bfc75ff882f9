"""Corrupted files in the format of a framework, and pickles with the names of such files; see `mutations`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pytest

from diffusion_core.common.errors import DuetError

pytestmark = pytest.mark.backend

# Mutations that change bytes without regard to their meaning.
ANY = [place for place, (suffixes, _) in enumerate(mutations.MUTATIONS.values()) if not suffixes]


def _torch(file: Path) -> Path:
    import torch

    torch.save({name: torch.from_numpy(value.copy()) for name, value in mutations._weights("weights").items()}, file)
    return file


def _tf(file: Path) -> Path:
    import tensorflow as tf

    named = {name.replace(".", "_"): tf.Variable(value) for name, value in mutations._weights("weights").items()}
    tf.train.Checkpoint(**named).write(str(file))
    return file


WRITE = {"torch": _torch, "tf": _tf}


def _harmed(backend: Any, write: Callable[[Path], Path], count: int) -> list[str]:
    target = mutations.Target(
        lambda root: write(root / "weights.pt") and None,
        lambda root: backend.read_arrays(root / "weights.pt"),
        lambda found: all(isinstance(value, np.ndarray) for value in found.values()),
    )
    said: list[str] = []
    numbers = [n for n in range(count) if n % len(mutations.MUTATIONS) in ANY]
    mutations.run({"weights": target}, numbers, 0, said.append)
    return [line for line in said if ": fault" in line]


@pytest.mark.filterwarnings("ignore")
def test_corrupted_weights_of_a_framework_are_refused_or_unchanged(open_backend, backend_name):
    assert _harmed(open_backend("float32"), WRITE[backend_name], 36) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_thousand_corrupted_weights_of_a_framework(open_backend, backend_name):
    """DUET_BACKEND=tf pytest -m slow tests/experiments/test_bad_weights.py"""
    assert _harmed(open_backend("float32"), WRITE[backend_name], 1500) == []


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, evil: Path) -> None:
        self.evil = evil

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.evil}",)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin", "model.ckpt", "model.h5", "model.keras"])
def test_no_framework_opens_a_pickle_whatever_its_name(tmp_path, open_backend, name):
    evil = tmp_path / "evil"
    (tmp_path / name).write_bytes(pickle.dumps({"weight": Malice(evil)}, protocol=2))
    with pytest.raises(DuetError, match=name):
        open_backend("float32").read_arrays(tmp_path / name)
    assert not evil.exists()
    pickle.loads((tmp_path / name).read_bytes())  # this is what opening it would have done
    assert evil.exists()

"""How the processes of a run leave it: all together, and without hiding from each other why."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_core import stopping
from diffusion_core.backend import TrainerState
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.errors import DuetError
from diffusion_core.training import Course
from diffusion_core.world import Team, World
from experiments import train


def test_processes_that_share_a_directory_delete_it_once_and_hide_nothing(tmp_path):
    (shared := tmp_path / "helpers").mkdir()
    (shared / "train.log").write_text("")
    with pytest.raises(DuetError, match="why"), train._passed_through(shared):
        with train._passed_through(shared):
            pass
        assert not shared.exists()
        raise DuetError("why")
    (own := tmp_path / "run").mkdir()
    (own / "metrics.jsonl").write_text("")
    with train._passed_through(own):
        pass
    assert own.is_dir()


def test_a_directory_that_fills_while_it_is_left_is_left(tmp_path, monkeypatch):
    (shared := tmp_path / "run").mkdir()
    (shared / "lock").write_text("")
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([]))  # as it was a moment before
    with pytest.raises(DuetError, match="why"), train._passed_through(shared):
        raise DuetError("why")
    assert (shared / "lock").exists()


@pytest.mark.parametrize("told", [False, True])
def test_a_process_told_to_end_after_its_last_step_ends_with_the_others(told, monkeypatch):
    """Another process was told to end while it wrote the last checkpoint, where this one takes no step any more."""
    done = []

    def add(array: NDArray) -> NDArray:
        # The other one holds the same weights; of flags, it says what it was told.
        return np.full_like(array, array.max() if len(array) > 1 or not done else float(told))

    def trained(*_: object) -> dict[str, float]:
        done.append(True)
        return {}

    monkeypatch.setattr(train, "train", trained)
    state = TrainerState.fresh({"w": np.zeros(1, np.float32)}, 1)
    experiment = SimpleNamespace(
        problem=None, course=Course(16, 8), ahead=nullcontext(), objective=None, learning_rate=None, ema=None
    )
    given = (
        None, experiment, SimpleNamespace(team=Team(World(1, 2, kind="ddp"), add)),
        SimpleNamespace(state=lambda: state), None, Checkpoint(0, None, 0, state, {}),
    )  # fmt: skip
    if not told:
        assert train._train(*given) == {}
        return
    with pytest.raises(stopping.Stopped) as stopped:
        train._train(*given)
    assert stopped.value.number == signal.SIGTERM

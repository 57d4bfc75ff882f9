"""How the processes of a run leave it: all together, and without hiding from each other why."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import composed
from numpy.typing import NDArray

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.runtime import signals
from diffusion_core.runtime.distributed import Collective, ProcessGroup
from diffusion_core.training import loop as training
from diffusion_core.training.loop import TrainingCallbacks, TrainingConfig
from experiments import common, train
from experiments.config.build import process_group
from experiments.runtime.processes import main_process_prints


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


@pytest.mark.parametrize("parallel, size, starts", [
    ("none", 1, "python3 -m duet"),
    ("ddp", 3, "python3 -m duet launch 3"),
    ("multiworker", 2, "python3 -m duet launch 2"),
])  # fmt: skip
def test_the_command_to_go_on_with_starts_what_was_started(parallel, size, starts, tmp_path, monkeypatch):
    """In the process of a sweep `sys.argv` is that of the sweep, and a worker's is not that of who started it."""
    monkeypatch.setattr(sys, "argv", ["train", "-m", "backend=torch,tf", "seed=0,1"])
    task = ["backend=tf", "seed=1", f"parallel={parallel}", "+model.channel_mult=[1, 2]", "resume=auto"]
    settings = composed("train", *task, "hydra.run.dir=elsewhere", hydra=True).hydra
    group = ProcessGroup(0, size, kind=parallel)
    (run := tmp_path / "run").mkdir()
    said = train._again(run, TrainingConfig(16, 8), group, settings)
    assert said == (
        f"it has seen 0 of 16 images; to go on: {starts} train backend=tf seed=1 parallel={parallel} "
        f"'+model.channel_mult=[1, 2]' resume=auto hydra.run.dir={run}"
    )
    (run / "environment.json").write_text("{}")
    assert train._again(run, TrainingConfig(16, 8), group, settings).endswith(f"resume=latest hydra.run.dir={run}")


def test_a_directory_that_the_grammar_of_overrides_would_read_otherwise_is_quoted(tmp_path):
    settings = composed("train", "backend=tf", hydra=True).hydra
    run = tmp_path / "lr=1,seed=2"
    word = shlex.split(train._again(run, TrainingConfig(16, 8), ProcessGroup(), settings))[-1]
    assert composed("train", "backend=tf", word, hydra=True).hydra.run.dir == str(run)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_process_that_leads_speaks_alone_and_asking_who_does_changes_nothing(rank, monkeypatch, capsys):
    cfg = composed("train", "backend=torch", "parallel=ddp")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = sys.stdout
    group = process_group(cfg)
    assert group == ProcessGroup(rank, 2, kind="ddp", timeout_seconds=group.timeout_seconds) and sys.stdout is stream
    with main_process_prints(group):
        print("inside")
    print("after")
    assert sys.stdout is stream and capsys.readouterr().out == ("after\n" if rank else "inside\nafter\n")


def trained_by_one_of_two(add: Callable[[NDArray], NDArray]) -> dict[str, float]:
    """What the training gives in the second process, which keeps nothing, of an experiment that takes no step."""
    state = TrainerState.fresh({"w": np.zeros(1, np.float32)}, 1)
    experiment = SimpleNamespace(
        model=None,
        training_config=TrainingConfig(16, 8),
        ahead=nullcontext(),
        objective=None,
        learning_rate=None,
        ema=None,
    )
    with signals.flag_on_signal() as stop:
        return train._train(
            None, experiment, SimpleNamespace(collective=Collective(ProcessGroup(1, 2, kind="ddp"), add)),
            SimpleNamespace(state=lambda: state), None, Checkpoint(0, None, 0, state, {"skipped": 3}), stop,
        )  # fmt: skip


@pytest.mark.parametrize("told", [False, True])
def test_a_process_told_to_end_after_its_last_step_ends_with_the_others(told, monkeypatch):
    """Another process was told to end while it wrote the last checkpoint, where this one takes no step any more."""
    done = []

    def add(array: NDArray) -> NDArray:
        # The other one holds the same weights; of flags, it says what it was told.
        return np.full_like(array, array.max() if len(array) > 1 or not done else float(told))

    def trained(*given: object) -> dict[str, float]:
        done.append(signature(training.train).bind(*given).arguments["resume_state"].skipped)
        return {}

    monkeypatch.setattr(train, "train", trained)
    if not told:
        assert trained_by_one_of_two(add) == {} and done == [3]  # it goes on counting
        return
    with pytest.raises(signals.Stopped) as stopped:
        trained_by_one_of_two(add)
    assert stopped.value.number == signal.SIGTERM


def test_a_signal_while_the_processes_agree_counts_the_next_time(monkeypatch):
    """They agreed to go on, so the one that is told so then goes on as well."""
    tells, answers = [], []

    def add(array: NDArray) -> NDArray:
        if tells:
            os.kill(os.getpid(), tells.pop())
        return np.full_like(array, array.max())

    def trained(*given: object) -> dict[str, float]:
        callbacks = next(one for one in given if isinstance(one, TrainingCallbacks))
        tells.append(signal.SIGUSR1)
        answers.extend([callbacks.should_stop(), callbacks.should_stop()])
        return {}

    monkeypatch.setattr(train, "train", trained)
    with pytest.raises(signals.Stopped) as stopped:
        trained_by_one_of_two(add)
    assert answers == [False, True] and stopped.value.number == signal.SIGUSR1


def last_samples_of_one_of_two(add: Callable[[NDArray], NDArray], save: Callable[..., None]) -> None:
    """The second process while the last samples are drawn, as `save` does it."""
    collective = Collective(ProcessGroup(1, 2, kind="ddp"), add)
    backend = SimpleNamespace(collective=collective, network=lambda program, weights: None)
    experiment = SimpleNamespace(model=SimpleNamespace(program=None), training_config=TrainingConfig(16, 8), plan=None)
    trainer = SimpleNamespace(state=lambda: SimpleNamespace(parts={"ema": {}}))
    cfg = SimpleNamespace(sample=SimpleNamespace(weights="ema"))
    with pytest.MonkeyPatch.context() as patch, signals.raise_on_signal(), signals.flag_on_signal() as stop:
        patch.setattr(common, "save_samples", save)
        train._sample(cfg, experiment, backend, trainer, None, None, stop)


@pytest.mark.parametrize("told_here", [True, False])
def test_a_signal_while_the_last_samples_are_drawn_ends_all_after_the_same_round(told_here):
    """One that ended at once would leave the others waiting for its batch."""
    drawn, asked = [], []

    def save(*given: object, pause: Callable[[], None], **named: object) -> None:
        for number in range(3):
            if told_here and number == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            drawn.append(number)
            pause()

    def add(array: NDArray) -> NDArray:
        asked.append(float(array[0]))
        return array if told_here else np.full_like(array, len(asked) == 2)  # the other one was told so

    with pytest.raises(signals.Stopped) as stopped:
        last_samples_of_one_of_two(add, save)
    assert drawn == [0, 1] and asked == ([0, 1] if told_here else [0, 0])
    assert stopped.value.number == (signal.SIGUSR1 if told_here else signal.SIGTERM)

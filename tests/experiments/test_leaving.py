"""How the processes of a run stop: all together, and without hiding the reason from each other."""

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
from diffusion_core.training import loop
from diffusion_core.training.events import TrainingCallbacks
from diffusion_core.training.training_config import TrainingConfig
from experiments.config.build import process_group
from experiments.config.resume_command import resume_command
from experiments.runtime.processes import main_process_prints
from experiments.sampling import draw
from experiments.training import run as training
from experiments.training.run import RunRecord, removed_if_unused


def test_processes_that_share_a_directory_delete_it_once_and_hide_no_error(tmp_path):
    (shared := tmp_path / "helpers").mkdir()
    (shared / "train.log").write_text("")
    with pytest.raises(DuetError, match="the reason"), removed_if_unused(shared):
        with removed_if_unused(shared):
            pass
        assert not shared.exists()
        raise DuetError("the reason")
    (own := tmp_path / "run").mkdir()
    (own / "metrics.jsonl").write_text("")
    with removed_if_unused(own):
        pass
    assert own.is_dir()


def test_a_directory_that_receives_a_file_during_a_command_is_kept(tmp_path, monkeypatch):
    (shared := tmp_path / "run").mkdir()
    (shared / "lock").write_text("")
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([]))  # as it was a moment before
    with pytest.raises(DuetError, match="the reason"), removed_if_unused(shared):
        raise DuetError("the reason")
    assert (shared / "lock").exists()


@pytest.mark.parametrize("parallel, size, start", [
    ("none", 1, "python3 -m duet"),
    ("ddp", 3, "python3 -m duet launch 3"),
    ("multiworker", 2, "python3 -m duet launch 2"),
])  # fmt: skip
def test_the_command_that_resumes_starts_as_many_processes(parallel, size, start, tmp_path, monkeypatch):
    """In a job of a sweep `sys.argv` is that of the sweep, and a worker's is not that of the launcher."""
    monkeypatch.setattr(sys, "argv", ["train", "-m", "backend=torch,tf", "seed=0,1"])
    task = ["backend=tf", "seed=1", f"parallel={parallel}", "+model.channel_mult=[1, 2]", "resume=auto"]
    hydra = composed("train", *task, "hydra.run.dir=elsewhere", hydra=True).hydra
    group, directory = ProcessGroup(0, size, kind=parallel), tmp_path / "run"
    assert resume_command(hydra, directory, group, has_begun=False) == (
        f"{start} train backend=tf seed=1 parallel={parallel} '+model.channel_mult=[1, 2]' resume=auto "
        f"hydra.run.dir={directory}"
    )
    resumed = resume_command(hydra, directory, group, has_begun=True)
    assert resumed.endswith(f"resume=latest hydra.run.dir={directory}") and "resume=auto" not in resumed


def test_the_advice_states_the_progress_of_the_run_and_whether_it_has_started(tmp_path):
    setup = SimpleNamespace(training_config=TrainingConfig(16, 8))
    record = RunRecord("", {}, {}, lambda has_begun: f"COMMAND {has_begun}")
    said = "it is at 0 of 16 images; to resume: COMMAND"
    assert training._resume_advice(tmp_path, setup, record) == f"{said} False"
    (tmp_path / "environment.json").write_text("{}")
    assert training._resume_advice(tmp_path, setup, record) == f"{said} True"


def test_a_directory_with_special_characters_is_quoted_in_the_grammar_of_overrides(tmp_path):
    hydra = composed("train", "backend=tf", hydra=True).hydra
    run = tmp_path / "lr=1,seed=2"
    word = shlex.split(resume_command(hydra, run, ProcessGroup(), True))[-1]
    assert composed("train", "backend=tf", word, hydra=True).hydra.run.dir == str(run)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_main_process_prints(rank, monkeypatch, capsys):
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


def session(setup: SimpleNamespace, backend: SimpleNamespace, state: object, stop: signals.StopFlag) -> object:
    """Return the second of two processes, which writes nothing."""
    trainer = SimpleNamespace(state=lambda: state)
    start = Checkpoint(0, None, 0, state, {"skipped": 3})
    return training._Session(setup, RunRecord("", {}), backend, trainer, None, start, stop)


def fit_in_second_process(add: Callable[[NDArray], NDArray]) -> dict[str, float]:
    """Train in the second of two processes, with a training loop that takes no step."""
    state = TrainerState.fresh({"w": np.zeros(1, np.float32)}, 1)
    setup = SimpleNamespace(
        training_config=TrainingConfig(16, 8),
        batches=nullcontext(),
        objective=None,
        learning_rate=None,
        ema=None,
        validation=None,
    )
    backend = SimpleNamespace(collective=Collective(ProcessGroup(1, 2, kind="ddp"), add))
    with signals.flag_on_signal() as stop:
        return training._train(session(setup, backend, state, stop))


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_signal_to_another_process_after_the_last_step_stops_this_one_too(is_stopped, monkeypatch):
    """The other process received the signal while it wrote the last checkpoint; this one takes no step any more."""
    done = []

    def add(array: NDArray) -> NDArray:
        # The other process holds the same weights; its stop flag is set after training.
        return np.full_like(array, array.max() if len(array) > 1 or not done else float(is_stopped))

    train = loop.train

    def trained(*given: object) -> dict[str, float]:
        done.append(signature(train).bind(*given).arguments["resume_state"].skipped)
        return {}

    monkeypatch.setattr(loop, "train", trained)
    if not is_stopped:
        assert fit_in_second_process(add) == {} and done == [3]  # the count of skipped updates is continued
        return
    with pytest.raises(signals.Stopped) as stopped:
        fit_in_second_process(add)
    assert stopped.value.number == signal.SIGTERM


def test_a_signal_while_the_processes_exchange_their_flags_counts_at_the_next_exchange(monkeypatch):
    """The processes agreed to continue, so the one that receives the signal then continues as well."""
    pending, answers = [], []

    def add(array: NDArray) -> NDArray:
        if pending:
            os.kill(os.getpid(), pending.pop())
        return np.full_like(array, array.max())

    def trained(*given: object) -> dict[str, float]:
        callbacks = next(one for one in given if isinstance(one, TrainingCallbacks))
        pending.append(signal.SIGUSR1)
        answers.extend([callbacks.should_stop(), callbacks.should_stop()])
        return {}

    monkeypatch.setattr(loop, "train", trained)
    with pytest.raises(signals.Stopped) as stopped:
        fit_in_second_process(add)
    assert answers == [False, True] and stopped.value.number == signal.SIGUSR1


def sample_in_second_process(add: Callable[[NDArray], NDArray], save: Callable[..., None]) -> None:
    """Draw the final samples in the second of two processes, with `save` in place of `save_samples`."""
    collective = Collective(ProcessGroup(1, 2, kind="ddp"), add)
    backend = SimpleNamespace(collective=collective, network=lambda program, weights: None)
    setup = SimpleNamespace(
        model=SimpleNamespace(program=None),
        training_config=TrainingConfig(16, 8),
        plan=None,
        sample=SimpleNamespace(weights="ema"),
        label_names={},
        decoder=None,
        loader=SimpleNamespace(dataset=SimpleNamespace(is_bytes=True, condition_names=())),
    )
    state = SimpleNamespace(evaluated={"ema": {}})
    with pytest.MonkeyPatch.context() as patch, signals.raise_on_signal(), signals.flag_on_signal() as stop:
        patch.setattr(draw, "save_samples", save)
        training._sample(session(setup, backend, state, stop), backend, None)


@pytest.mark.parametrize("is_here", [True, False])
def test_a_signal_while_the_final_samples_are_drawn_stops_all_processes_after_the_same_round(is_here):
    """A process that stopped at once would leave the others waiting for its batch."""
    drawn, exchanged = [], []

    def save(*given: object, pause: Callable[[], None], **named: object) -> None:
        for number in range(3):
            if is_here and number == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            drawn.append(number)
            pause()

    def add(array: NDArray) -> NDArray:
        exchanged.append(float(array[0]))
        return array if is_here else np.full_like(array, len(exchanged) == 2)  # the other process got the signal

    with pytest.raises(signals.Stopped) as stopped:
        sample_in_second_process(add, save)
    assert drawn == [0, 1] and exchanged == ([0, 1] if is_here else [0, 0])
    assert stopped.value.number == (signal.SIGUSR1 if is_here else signal.SIGTERM)

"""A run that is killed, or finds the disk full, at any file operation equals the uninterrupted run after resuming.

The run uses only the core: its loop, run directory, checkpoints and snapshots, with a trainer in NumPy. Python calls an
audit hook for every file that is opened, renamed, created or removed, and the hook ends the run there.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.backend.interface import StepResult, TrainBatch, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, Loader
from diffusion_core.files.atomic import write_atomically
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import Ema, Warmup
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runs.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    repair_checkpoints,
    save_checkpoint,
)
from diffusion_core.runs.ema_snapshots import save_snapshots
from diffusion_core.runs.run_directory import RunDirectory, exclusive_directory
from diffusion_core.training import loop as training
from diffusion_core.training.events import TrainingCallbacks
from diffusion_core.training.objective import Objective
from diffusion_core.training.training_config import TrainingConfig
from experiments.training.resume import find_source

SPEC = PlainSpec(4, 1, 1, channels=(4,), bottleneck=4)
MODEL = DiffusionModel(SPEC, {"name": "linear", "T": 10}, "eps")
IMAGES = np.arange(13 * 16, dtype=np.uint8).reshape(13, 4, 4, 1)
EMA = Ema((Warmup(0.9),), snapshot_images=8)
CONFIG = TrainingConfig(16, 4, log_images=4, checkpoint_images=8, keep_checkpoints=1)

NEED_ROOM = ("open", "os.mkdir", "fsync", "os.rename")


class Killed(BaseException):
    """Stands for the end of the process."""


class Trainer:
    """A trainer that moves every weight towards the mean of the noise of the batch."""

    def __init__(self, state: TrainerState) -> None:
        self.now = state

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, again=False
    ) -> StepResult:
        aim, now = batch.noise.mean(), self.now
        weights = {name: value + lr * (aim - value) for name, value in now.weights.items()}
        average = {name: value + (1 - decays[0]) * (weights[name] - value) for name, value in now.ema.items()}
        self.now = replace(now, weights=weights, averages=(average,), updates=now.updates + 1)
        return StepResult(np.abs(aim), np.abs(lr * aim), lambda: np.zeros(0))


def run_process(directory: Path, dtype: type) -> None:
    """Run one process in a directory, from its last checkpoint to the end of the run."""
    with exclusive_directory(directory):
        source = find_source("auto", directory)
        weights = initial_weights(MODEL.program, 1, dtype)
        state = replace(TrainerState.fresh(weights), slots={"moment1": weights, "moment2": weights})
        start = Checkpoint(0, MODEL, 1, state, {})
        start = load_checkpoint(source) if source else start
        trainer = Trainer(start.state)

        def checkpoint(images_seen: int, resume_state: training.ResumeState) -> None:
            save_checkpoint(directory / "checkpoints", replace(start, images_seen=images_seen, state=trainer.now), 1)

        def snapshot(images_seen: int) -> None:
            save_snapshots(directory / "snapshots", images_seen, trainer.now, EMA.profiles, 4, MODEL, 1)

        with RunDirectory(directory, start.images_seen) as run:
            run.start("seed: 1\n", {"resumed_from": None})
            loader = Loader(Dataset(IMAGES, np.arange(13) % 3, ("a", "b", "c"), "toy"), 1, False, dtype)
            training.train(
                trainer, loader, Objective(MODEL.process, 1), LearningRate(0.1), EMA, CONFIG,
                TrainingCallbacks(run.log, checkpoint, on_snapshot=snapshot), start.images_seen, start.state.updates,
            )  # fmt: skip


def content(directory: Path) -> dict[str, bytes]:
    """Return the files of a run, without its events, which differ by process, and checkpoints before the last.

    An earlier checkpoint remains if a run is killed after its last checkpoint and before it deletes older ones.
    """
    older = list_checkpoints(directory / "checkpoints")[:-1]
    files = [path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("events.")]
    files = [path for path in files if path.parent not in older]
    found = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    for name in [
        name for name in found if name.startswith("snapshots/")
    ]:  # the order of facts in a safetensors header is arbitrary
        end = 8 + int.from_bytes(found[name][:8], "little")
        header = json.loads(found[name][8:end])
        found[name] = json.dumps(header, sort_keys=True).encode() + found[name][end:]
    return found


class Watcher:
    """Call `act` before each change of a file under a directory, with the event and the path or the open file."""

    def __init__(self) -> None:
        self.under, self.act = None, None
        sys.addaudithook(self)

    def __call__(self, event: str, given: tuple) -> None:
        if self.act is None or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
            return
        below = event in ("os.remove", "os.rmdir") and given[-1] != -1  # given by its name in an open directory
        if not below and not (isinstance(given[0], (str, Path)) and str(given[0]).startswith(self.under)):
            return
        if event != "os.mkdir" or not os.path.isdir(given[0]):
            self.act(event, given[0])

    @contextmanager
    def watching(self, under: Path, act: Callable[[str, object], None]) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(os, "fsync", lambda file: act("fsync", file))
            self.under, self.act = str(under), act
            try:
                yield
            finally:
                self.act = None


WATCHER = Watcher()


def operations(directory: Path, dtype: type) -> list[str]:
    """Return the file operations of an uninterrupted process."""
    seen: list[str] = []
    with WATCHER.watching(directory, lambda event, what: seen.append(event)):
        run_process(directory, dtype)
    return seen


def killed(directory: Path, dtype: type, at: int, tear: bool = False) -> bool:
    """Run a process that ends before operation `at`, if it gets so far; `tear` truncates a file flushed then."""
    left, dead = at, False

    def act(event: str, what: object) -> None:
        nonlocal left, dead
        left -= 1
        if left < 0 and not dead:
            dead = True
            if tear and event == "fsync" and stat.S_ISREG(os.fstat(what).st_mode):
                os.ftruncate(what, os.fstat(what).st_size - 7)
        if dead:
            raise Killed

    with WATCHER.watching(directory, act):
        try:
            run_process(directory, dtype)
        except Killed:
            return True
    return dead


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.parametrize("dtype, every", [(np.float32, 1), (np.float64, 9)])
def test_a_run_killed_at_any_file_operation_equals_the_uninterrupted_run(tmp_path, dtype, every):
    events = operations(tmp_path / "whole", dtype)
    whole = content(tmp_path / "whole")
    assert len([path for path in whole if path.startswith("checkpoints/")]) == 5 and len(events) > 60
    for at in range(0, len(events), every):
        run = tmp_path / f"{at}"
        assert killed(run, dtype, at, tear=dtype is np.float32)
        for checkpoint in list_checkpoints(run / "checkpoints"):
            load_checkpoint(checkpoint)
        if at % 5 == 0:
            killed(run, dtype, 7 * at % 50)  # and once more after it was resumed
        run_process(run, dtype)
        assert content(run) == whole, f"operation {at}, {events[at]}"


def test_a_checkpoint_is_restored_after_a_kill_while_it_was_replaced(tmp_path):
    """At every operation of replacing a checkpoint by one of the same moment, and of deleting an older one."""
    start = Checkpoint(8, MODEL, 1, TrainerState.fresh(initial_weights(MODEL.program, 1, np.float32)), {})

    def replaced(parent: Path, at: int) -> int:
        left = at
        for images_seen in (4, 8):
            save_checkpoint(parent, replace(start, images_seen=images_seen))

        def act(event: str, what: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        with WATCHER.watching(parent, act), suppress(Killed):
            save_checkpoint(parent, replace(start, notes={"second": True}), keep=1)
        return left

    total = 1000 - replaced(tmp_path / "whole", 1000)
    hidden = 0
    for at in range(total):
        parent = tmp_path / f"{at}"
        assert replaced(parent, at) < 0
        hidden += [path.name for path in list_checkpoints(parent)] == ["000000000004"]
        repair_checkpoints(parent)
        assert load_checkpoint(parent / "000000000008").notes in ({}, {"second": True})
        for checkpoint in list_checkpoints(parent):
            load_checkpoint(checkpoint)
        assert {path.name for path in parent.iterdir()} <= {"000000000004", "000000000008"}
    assert total > 20 and hidden == 1  # between the two renamings


@pytest.mark.parametrize("stays, every", [(False, 4), (True, 9)], ids=["once", "from then on"])
def test_a_full_disk_at_any_operation_raises_one_line_and_loses_nothing(tmp_path, stays, every):
    events = operations(tmp_path / "whole", np.float32)
    whole = content(tmp_path / "whole")
    for at in [at for at, event in enumerate(events) if event in NEED_ROOM][::every]:
        run, left = tmp_path / f"{at}", at

        def act(event: str, what: object) -> None:
            nonlocal left
            left -= 1
            if left == -1 or (stays and left < 0 and event in NEED_ROOM):
                raise OSError(errno.ENOSPC, "No space left on device")

        with WATCHER.watching(run, act), pytest.raises(DuetError, match="No space left on device") as told:
            run_process(run, np.float32)
        assert "\n" not in str(told.value) and str(run) in str(told.value)
        names = [path.name for path in run.rglob(".*")] if run.exists() else []
        assert not names, f"operation {at}, {events[at]}"
        for checkpoint in list_checkpoints(run / "checkpoints"):
            load_checkpoint(checkpoint)
        run_process(run, np.float32)
        assert content(run) == whole, f"operation {at}, {events[at]}"


def test_a_file_size_limit_raises_one_line(tmp_path):
    """With the limit of the operating system on the size of a file."""
    state = TrainerState.fresh(initial_weights(MODEL.program, 1, np.float32))
    checkpoint = Checkpoint(8, MODEL, 1, state, {})
    save_checkpoint(tmp_path / "checkpoints", checkpoint)
    before = content(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 100, 4000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            for write in (
                lambda: save_checkpoint(tmp_path / "checkpoints", replace(checkpoint, images_seen=16)),
                lambda: save_checkpoint(tmp_path / "checkpoints", replace(checkpoint, notes={"second": True})),
                lambda: write_atomically(tmp_path / "config.yaml", bytes(6001)),
            ):
                with pytest.raises(DuetError, match=r"cannot be written \(File too large"):
                    write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert content(tmp_path) == before

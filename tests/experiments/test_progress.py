"""What a long command prints: never silent, never an old rate or loss, and a time left once a rate is known."""

from __future__ import annotations

import re
import sys
import time
from contextlib import contextmanager
from functools import partial
from threading import Event
from types import SimpleNamespace

import pytest
import yaml

from diffusion_core.parity import record as climb
from diffusion_core.runtime.heartbeat import heartbeat
from diffusion_core.training.events import Record
from diffusion_core.training.validation import metric_name
from experiments.config import entry
from experiments.config.entry import CONFIGS
from experiments.parity import ladder
from experiments.runtime import progress
from experiments.runtime.progress import Counter
from experiments.training.callbacks import RunCallbacks

LOGGING = "override hydra/job_logging"


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress, "time", clock := Clock())
    return clock


def at(clock: Clock, seconds: float, counter: Counter, done: int, note: str = "") -> None:
    clock.now = 100.0 + seconds
    counter(done, note)


def test_the_time_left_is_that_of_the_rate_after_the_first_step(clock, capsys):
    """The first of 7,201 steps compiles for a minute; the others take one second each."""
    counter = Counter("training", 7201, "steps")
    at(clock, 60, counter, 1, "loss 1.0")
    at(clock, 61, counter, 2, "loss 0.9")
    at(clock, 70, counter, 11, "loss 0.8")
    at(clock, 7260, counter, 7201)
    assert capsys.readouterr().out.splitlines() == [
        "training: 1/7,201 steps, loss 1.0, 0:01:00 so far",  # no rate is known yet
        "training: 11/7,201 steps, loss 0.8, 1:59:50 left",
        "training: 7,201/7,201 steps, done in 2:01:00",
    ]


def test_a_long_step_is_not_silent_and_shows_no_old_loss(clock, capsys):
    counter = Counter("training", 10, "steps")
    at(clock, 1, counter, 1, "loss 1.0")
    at(clock, 12, counter, 2, "loss 0.9")
    for seconds in (22, 32):
        clock.now = 100.0 + seconds
        counter._tick()
        counter._tick()  # a second tick says nothing more
    at(clock, 43, counter, 3, "loss 0.7")
    assert capsys.readouterr().out.splitlines() == [
        "training: 2/10 steps, loss 0.9, 0:01:28 left",
        "training: 2/10 steps, 0:00:22 so far",
        "training: 2/10 steps, 0:00:32 so far",
        "training: 3/10 steps, loss 0.7, 0:02:27 left",
    ]


def test_a_thread_prints_while_a_step_takes_long(capsys):
    with Counter("training", 2, "steps", every=0.01) as counter:
        while counter.printed == counter.began:
            time.sleep(0.001)
    assert re.match(r"training: 0/2 steps, (\d\.\d s|\d:\d\d:\d\d) so far\n", capsys.readouterr().out)


@pytest.mark.parametrize("start", [0, 20])
def test_the_end_is_printed_once(clock, capsys, start):
    counter = Counter("train", 20, start=start)
    for _ in range(3):
        at(clock, 1, counter, 20)
    assert capsys.readouterr().out == "train: 20/20 images, done in 1.0 s\n"


def test_a_resumed_run_has_its_own_rate(clock, capsys):
    counter = Counter("training", 1000, "steps", start=900)
    at(clock, 1, counter, 901)
    at(clock, 20, counter, 920)
    assert capsys.readouterr().out == "training: 920/1,000 steps, 0:01:20 left\n"


def recorder() -> RunCallbacks:
    """Return callbacks that only show what they are told, in the middle of a run."""
    callbacks = object.__new__(RunCallbacks)
    callbacks.run, callbacks._validation = SimpleNamespace(log=lambda records, speed: None), (0, {})
    callbacks.setup = SimpleNamespace(training_config=SimpleNamespace(images=1000))
    return callbacks


@pytest.mark.parametrize("speed, words", [(0.0, "loss 2.0000"), (0.25, "loss 2.0000, 0.25 images/s"),
                                          (4321.0, "loss 2.0000, 4,321 images/s")])  # fmt: skip
def test_a_speed_that_is_not_known_is_not_shown_as_zero(speed, words):
    callbacks = recorder()
    callbacks.on_log([Record(10, 2.0, 1.0, 1e-3, (0.9,), None)], speed)
    assert callbacks._note == words


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_no_command_makes_a_log_that_stays_empty(name):
    """Hydra would open a file for Python's loggers, into which Duet writes nothing: its output is printed."""
    defaults = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["defaults"]
    assert [entry for entry in defaults if entry in ({LOGGING: "none"}, {LOGGING: "disabled"})]


def test_a_validation_loss_that_is_older_than_the_loss_says_when_it_was_measured():
    callbacks, record = recorder(), Record(20, 2.0, 1.0, 1e-3, (0.9,), None)
    notes = []
    for measured_at in (20, 10):
        callbacks._validation = measured_at, {metric_name(): 0.5}
        callbacks.on_log([record], 0.0)
        notes.append(callbacks._note)
    assert notes == ["loss 2.0000, validation 0.5000", "loss 2.0000, validation 0.5000 at 10 images"]


def test_the_ladder_shows_each_of_its_rungs_as_it_is_climbed(monkeypatch, capsys):
    """With the measurements themselves left out, except for one check."""

    def adds_a_check(backend, record):
        record.add_check(1, "case", "loss", 0.0)

    def trains(backend, record):
        record.states[climb.STEPS] = SimpleNamespace(ema=None)

    for part in climb.PARTS:
        measure = {"losses": adds_a_check, "training": trains}.get(part, lambda *_: None)
        monkeypatch.setattr(climb, part, named(part, measure))
    backend = SimpleNamespace(
        describe=lambda: SimpleNamespace(backend="b"), config=SimpleNamespace(precision="float64")
    )
    climb.record(backend, around=ladder._shown)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == list(climb.PARTS.values())
    assert all("recorded" in line for line in lines if "losses of" not in line)
    assert any(": 1 of 1 check passed, " in line for line in lines)


def named(name, function):
    """Return a function of its own with this name."""
    renamed = partial(function)
    renamed.__name__ = name
    return renamed


def test_a_command_that_prints_nothing_by_itself_is_not_silent(monkeypatch, capsys):
    """Whatever it does: here it waits until the command's own sign of life has come."""
    told = Event()

    @contextmanager
    def quick(work, **options):
        with heartbeat(work, every=0.01, **options):
            yield

    main = entry.command("inspect")(lambda cfg: None)
    monkeypatch.setattr(entry, "heartbeat", quick)
    monkeypatch.setattr(entry.hydra, "main", lambda **_: lambda task: lambda: told.wait(60))
    monkeypatch.setattr(sys, "argv", ["inspect"])
    monkeypatch.setattr(sys.stdout, "flush", told.set)
    main()
    assert re.match(r"inspect: at work: \d", capsys.readouterr().out)
    # The runs of a sweep print for themselves.
    monkeypatch.setattr(entry, "heartbeat", lambda *_, **__: pytest.fail("it would print between their lines"))
    monkeypatch.setattr(sys, "argv", ["inspect", "-m", "seed=0,1"])
    main()


def test_a_command_finds_modules_of_the_working_directory_after_its_own(monkeypatch, tmp_path):
    """The command `duet` starts Python without the working directory, where a folder may have the name of ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["inspect", "-m", "seed=0,1"])
    monkeypatch.setattr(entry.hydra, "main", lambda **_: lambda task: lambda: None)
    for _ in range(2):
        entry.command("inspect")(lambda cfg: None)()
    assert sys.path.count(str(tmp_path)) == 1 and sys.path[-1] == str(tmp_path)


def test_the_time_left_is_always_a_clock(clock, capsys):
    counter = Counter("training", 20, "steps")
    at(clock, 1, counter, 1)
    at(clock, 10, counter, 15)
    assert capsys.readouterr().out == "training: 15/20 steps, 0:00:03 left\n"

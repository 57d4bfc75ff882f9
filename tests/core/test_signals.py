"""A signal stops a process without loss, with the exit code that a scheduler expects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from test_training_loop import Recorder, run

from diffusion_core.runtime import signals
from diffusion_core.runtime.signals import SIGNALS, Stopped, flag_on_signal, raise_on_signal
from diffusion_core.training.events import TrainingCallbacks
from diffusion_core.training.training_config import TrainingConfig

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGUSR2: 140}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_or_sets_a_flag_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, raise_on_signal():
        os.kill(os.getpid(), number)
    assert stopped.value.code == CODES[number]
    with flag_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop and stop.number == number
        with pytest.raises(Stopped), raise_on_signal():
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert not isinstance(stopped.value, Exception)


def test_a_launcher_keeps_its_own_signal_handler():
    """As submitit has for SIGUSR2. A nested handler of Duet does not count as one of a launcher."""
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with flag_on_signal() as stop, raise_on_signal():
            os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [signal.SIGUSR2] and not stop
    with flag_on_signal() as stop:
        with pytest.raises(Stopped), raise_on_signal():
            os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)
    assert stop.number == signal.SIGUSR2


def test_the_message_names_the_signal():
    assert str(Stopped(signal.SIGTERM)) == "stopped by SIGTERM"
    assert str(Stopped(signal.SIGINT, "to continue: x")) == "stopped by Ctrl-C; to continue: x"


def test_a_second_ctrl_c_ends_the_process_immediately():
    code = (
        "import os, signal; from diffusion_core.runtime.signals import flag_on_signal\n"
        "with flag_on_signal():\n    for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n    print('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stdout == ""


def test_a_thread_does_not_handle_signals():
    seen = []

    def work() -> None:
        with flag_on_signal() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]


WAITS = """
import select, sys
from diffusion_core.runtime.signals import flag_on_signal
with flag_on_signal() as stop:
    print("waits", flush=True)
    while not stop:
        select.select([], [], [], 0.01)
sys.exit(128 + stop.number)
"""
RUNS = f"""
import os, subprocess, sys, threading
from diffusion_core.runtime import signals

popen = subprocess.Popen
def start(*given, **options):
    process = popen(*given, stdout=subprocess.PIPE, text=True, **options)
    def send_signal():
        process.stdout.readline()
        os.kill(os.getpid(), {int(signal.SIGTERM)})
    threading.Thread(target=send_signal).start()
    return process
signals.subprocess.Popen = start
try:
    with signals.raise_on_signal():
        signals.run_command([sys.executable, "-c", {WAITS!r}])
except signals.Stopped as stopped:
    print(stopped.code, len(signals._running))
"""


def test_a_process_that_waits_for_another_passes_the_signal_on_and_keeps_waiting():
    done = subprocess.run([sys.executable, "-c", RUNS], capture_output=True, text=True, timeout=60)
    assert done.stdout == "143 0\n", done.stderr


def test_the_exit_code_of_a_command_is_that_of_a_shell():
    for code, expected in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)):
        assert signals.run_command([sys.executable, "-c", code]) == expected


# The training loop.


@pytest.mark.parametrize("at", [1, 2, 5, 16])
@pytest.mark.parametrize("checkpoint_images", [0, 8])
def test_the_loop_stops_after_the_current_step_with_a_checkpoint(at, checkpoint_images):
    trainer, events = Recorder(), []

    def stops() -> bool:
        return len(trainer.steps) >= at

    callbacks = TrainingCallbacks(
        lambda records, speed: events.extend(("log", record.images_seen) for record in records),
        lambda images_seen, resume_state: events.append(("checkpoint", images_seen)),
        should_stop=stops,
    )
    config = TrainingConfig(64, 4, log_images=24, checkpoint_images=checkpoint_images)
    first = run(config, trainer, callbacks).steps
    assert len(first) == at
    assert [n for what, n in events if what == "log"] == [4 * k for k in range(1, at + 1)]
    assert events[-1] == ("checkpoint", 4 * at) and events.count(events[-1]) == 1  # after its steps are logged
    rest = run(config, images_seen=4 * at, updates=at).steps if at < 16 else []
    assert first + rest == run(config).steps


@pytest.mark.parametrize("checkpoint_images, saved", [(0, [8]), (8, [8]), (4, [4, 8])])
def test_a_stop_while_samples_are_drawn_takes_no_further_step(checkpoint_images, saved):
    drawn, kept = [], []
    callbacks = TrainingCallbacks(
        on_checkpoint=lambda images_seen, resume_state: kept.append(images_seen),
        on_sample=drawn.append,
        should_stop=lambda: bool(drawn),
    )
    steps = run(TrainingConfig(64, 4, checkpoint_images=checkpoint_images, sample_images=8), callbacks=callbacks).steps
    assert len(steps) == 2 and drawn == [8] and kept == saved


def test_a_stop_before_samples_skips_them():
    drawn = []
    callbacks = TrainingCallbacks(on_sample=drawn.append, should_stop=lambda: True)
    assert len(run(TrainingConfig(64, 4, sample_images=4), callbacks=callbacks).steps) == 1 and not drawn

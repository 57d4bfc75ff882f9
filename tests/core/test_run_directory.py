"""The run directory: what is written, kept and refused."""

from __future__ import annotations

import errno
import json
import math
import os
import threading

import numpy as np
import pytest

from diffusion_core.backend.interface import Description
from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs import run_directory as module
from diffusion_core.runs.run_directory import (
    RunDirectory,
    describe_environment,
    read_metrics,
    read_samples,
    write_json,
    write_samples,
)
from diffusion_core.training.events import Record


def records(*images_seen: int) -> list[Record]:
    return [Record(n, 0.1 + n / 3, 1 / n, 1e-4, (0.5, 0.25)) for n in images_seen]


def seen(run: RunDirectory) -> list[int]:
    return [line["images_seen"] for line in read_metrics(run.metrics)]


def test_metrics_are_read_back_exactly(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.log(records(128, 256), 1000.0)
    run.log(records(384), 1000.0)
    assert list(read_metrics(run.metrics)) == [record.metrics for record in records(128, 256, 384)]


def test_numbers_of_skipped_updates_are_json_and_read_as_nan(tmp_path):
    (run := RunDirectory(tmp_path)).log(
        [*records(128), Record(256, math.inf, math.nan, 1e-4, (0.5,), 1), *records(384)], 1.0
    )
    with RunDirectory(tmp_path, resume=256) as resumed:
        resumed.start("seed: 1\n", {})  # which rewrites the metrics
    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    first, second = read_metrics(run.metrics)
    assert first == records(128)[0].metrics
    assert math.isnan(second["loss"]) and math.isnan(second["grad_norm"]) and second["skipped"] == 1
    run.metrics.write_text('{"images_seen": 4, "loss": NaN}\n')  # as earlier versions wrote them
    assert math.isnan(next(read_metrics(run.metrics))["loss"])
    run.metrics.write_text('{"images_seen": null}\n')
    with pytest.raises(DuetError, match="images_seen is None"):
        list(read_metrics(run.metrics))


def test_resuming_removes_the_metrics_after_the_checkpoint(tmp_path):
    RunDirectory(tmp_path).log(records(128, 256, 384, 512), 1.0)
    run = RunDirectory(tmp_path, resume=256)
    assert seen(run) == [128, 256, 384, 512], "nothing is removed before the run starts"
    run.start("", {})
    assert seen(run) == [128, 256]
    run.log(records(384), 1.0)
    run.close()
    assert list(read_metrics(run.metrics)) == [record.metrics for record in records(128, 256, 384)]


def test_a_last_line_left_incomplete_by_a_kill_is_ignored(tmp_path):
    run = RunDirectory(tmp_path)
    run.log(records(128, 256), 1.0)
    whole = run.metrics.read_text()
    for cut in range(1, len(whole) - whole.index("\n") - 2):
        run.metrics.write_text(whole[: -1 - cut])
        assert seen(run) == [128]
    resumed = RunDirectory(tmp_path, resume=256)
    resumed.start("", {})
    resumed.log(records(256), 1.0)
    resumed.close()
    assert list(read_metrics(run.metrics)) == [record.metrics for record in records(128, 256)]


def test_a_broken_line_before_the_last_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"images_seen": 1}\n{"images\n{"images_seen": 3}\n')
    with pytest.raises(DuetError, match="line 2 is not JSON"):
        list(read_metrics(path))
    path.write_bytes(b'\xff\xfe\x00\n{"images_seen": 1}\n')
    with pytest.raises(DuetError, match="line 1 is not JSON"):
        list(read_metrics(path))
    with pytest.raises(DuetError, match="it cannot be read"):
        list(read_metrics(tmp_path / "none"))


@pytest.mark.parametrize("line", ["[1]", "3", '{"loss": 1.0}'])
def test_metrics_of_another_program_are_refused_when_resuming(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + '\n{"images_seen": 3}\n')
    with pytest.raises(DuetError, match="images_seen"):
        RunDirectory(tmp_path, resume=1)
    assert path.read_text().startswith(line)


@pytest.mark.parametrize("leave", [
    lambda path: (path / "metrics.jsonl").write_text(""), lambda path: (path / "checkpoints").mkdir(),
])  # fmt: skip
def test_a_new_run_does_not_overwrite_an_old_one(tmp_path, leave):
    leave(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DuetError, match=r"it holds a run already; give another hydra.run.dir, or resume=latest"):
        RunDirectory(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before
    RunDirectory(tmp_path, resume=0)


def test_a_directory_with_other_files_may_be_used(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("a: 1")
    assert RunDirectory(tmp_path).path == tmp_path
    assert (tmp_path / ".hydra" / "config.yaml").read_text() == "a: 1"


def test_a_directory_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(DuetError, match="the run directory cannot be created"):
            RunDirectory(path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    with pytest.raises(DuetError, match=r"the run directory cannot be written; give another hydra.run.dir"):
        RunDirectory(tmp_path)


def test_metrics_that_cannot_be_written_are_named(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics.mkdir()
    with pytest.raises(DuetError, match=r"metrics\.jsonl: it cannot be written"):
        run.log(records(1), 1.0)


def test_start_writes_configuration_environment_and_events(tmp_path):
    run = RunDirectory(tmp_path)
    run.start("seed: 1\n", {"device": "cpu"})
    run.log(records(128), 10.0)
    run.log_image("samples", np.zeros((4, 4, 3), np.uint8), 128)
    run.close()
    run.close()
    run.log_image("late", np.zeros((4, 4, 3), np.uint8), 128)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"
    assert read_json(tmp_path / "environment.json") == {"device": "cpu"}
    events = [path for path in tmp_path.iterdir() if path.name.startswith("events.out.tfevents")]
    content = events[0].read_bytes()
    tags = [f"train/{name}" for name in ("loss", "grad_norm", "lr", "ema_decay", "ema1_decay", "images_per_second")]
    for name in [tag.encode() for tag in (*tags, "samples")]:
        assert name in content
    assert b"late" not in content


class ClosingTracker:
    """A tracker that records how it is closed, and has no other method."""

    def __init__(self, closing: Exception | None = None) -> None:
        self.closed, self.closing = [], closing

    def close(self, failed: bool = False) -> None:
        self.closed.append(failed)
        if self.closing:
            raise self.closing


@pytest.mark.parametrize("error", [KeyError("a defect"), KeyboardInterrupt()])
def test_a_run_that_fails_closes_its_trackers(tmp_path, error):
    trackers = [ClosingTracker(ValueError("the service is away")), ClosingTracker()]
    with pytest.raises(type(error)) as raised, RunDirectory(tmp_path) as run:
        run.start("seed: 1\n", {}, trackers)
        raise error
    assert raised.value is error, "an error raised by closing does not hide it"
    assert [tracker.closed for tracker in trackers] == [[True], [True]]
    with RunDirectory(tmp_path / "whole") as run:
        run.start("seed: 1\n", {}, [whole := ClosingTracker()])
        run.close()
    assert whole.closed == [False]


def test_a_run_that_cannot_start_closes_its_trackers(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(DuetError, match=r"config\.yaml: it cannot be written"), RunDirectory(tmp_path) as run:
        run.start("seed: 1\n", {}, [tracker := ClosingTracker()])
    assert tracker.closed == [True]


def test_events_that_cannot_be_written_raise_one_line_without_waiting(tmp_path, monkeypatch):
    threads = threading.active_count()
    with (
        pytest.raises(DuetError, match=r"events cannot be written \(No space left") as told,
        RunDirectory(tmp_path) as run,
    ):
        run.start("seed: 1\n", {})
        assert threading.active_count() == threads
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(run._trackers[0]._writer, "write_event", lambda event: (_ for _ in ()).throw(full))
        run.log(records(*range(1, 100)), 1.0)
    assert "\n" not in str(told.value) and len(seen(run)) == 99


def test_each_start_of_a_run_has_its_own_event_file(tmp_path):
    for _ in range(3):  # within the same second
        with RunDirectory(tmp_path, resume=0) as run:
            run.start("seed: 1\n", {})
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3


def test_numbers_that_are_not_finite_become_null(tmp_path):
    data = {
        "nan": math.nan, "inf": [math.inf, -math.inf, 1.5], "array": np.array([[1.0, np.nan]]), 3: np.float32(0.5),
        "whole": np.int64(7), "true": np.bool_(True), "tuple": (1, "two", None),
        "nested": {"deep": [np.float64("nan")]},
    }  # fmt: skip
    path = tmp_path / "deep" / "result.json"
    write_json(path, data)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read_json(path) == {
        "nan": None, "inf": [None, None, 1.5], "array": [[1.0, None]], "3": 0.5,
        "whole": 7, "true": True, "tuple": [1, "two", None], "nested": {"deep": [None]},
    }  # fmt: skip


def test_json_that_is_missing_or_corrupt_is_refused(tmp_path):
    with pytest.raises(DuetError, match=r"none\.json: it cannot be read"):
        read_json(tmp_path / "none.json")
    for content in (b"", b"{", b"\xff\xfe"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(DuetError, match=r"bad\.json: it is not JSON"):
            read_json(tmp_path / "bad.json")


IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def test_samples_are_read_back(tmp_path):
    path = tmp_path / "samples.npz"
    write_samples(path, IMAGES, np.array([3, 1]), seed=5, loss=math.nan, plan={"steps": np.int64(50)})
    images, labels, facts = read_samples(path)
    np.testing.assert_array_equal(images, IMAGES)
    assert images.dtype == np.uint8 and labels.tolist() == [3, 1]
    assert facts == {"seed": 5, "loss": None, "plan": {"steps": 50}}


def test_invalid_sample_files_are_refused(tmp_path):
    path = tmp_path / "samples.npz"
    write_samples(path, IMAGES, np.array([3, 1]))
    content = path.read_bytes()
    damaged = [b"", content[:40], content[: len(content) // 2], content[:-1], b"PK" + b"\0" * 100, b"text"]
    flipped = bytearray(content)
    flipped[content.index(b"images.npy") + 60] ^= 0xFF
    for bad in (*damaged, bytes(flipped)):
        path.write_bytes(bad)
        with pytest.raises(DuetError, match=r"samples\.npz: it is not a file of samples"):
            read_samples(path)
    np.savez(path, images=IMAGES)
    with pytest.raises(DuetError, match="labels"):
        read_samples(path)
    np.savez(path, images=np.array([{"an": "object"}], dtype=object), labels=[0], facts="{}")
    with pytest.raises(DuetError, match=r"not a file of samples .*pickles"):
        read_samples(path)
    with pytest.raises(DuetError, match="it cannot be read"):
        read_samples(tmp_path / "none.npz")


def test_the_environment_names_command_versions_and_hardware(tmp_path):
    facts = describe_environment(Description("torch", "cpu", "float32", 2, "eager", {"torch": "2"}))
    assert facts["backend"] == "torch" and facts["versions"] == {"torch": "2"} and facts["cores"] >= 1
    assert facts["command"].startswith("python")
    assert {"commit", "started", "platform", "processor", "python"} <= facts.keys()
    write_json(tmp_path / "environment.json", facts)
    assert "backend" not in describe_environment()

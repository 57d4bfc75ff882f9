"""The run directory: all files of one run.

config.yaml          the resolved configuration
environment.json     command, commit, versions, device, data and its hash
metrics.jsonl        one line per step: images_seen, loss, grad_norm, lr, ema_decay (and ema1_decay ...);
                     at some steps validation_loss ..., see `training.validation`;
                     null for numbers that are not finite
events.out.tfevents  the same for TensorBoard
checkpoints/         see `checkpoint`
snapshots/           see `ema_snapshots`; only if ema.snapshot_images is above 0
non_finite/          see `failure_bundle`; only if a step was not finite
samples/             uint8 `.npz` and a PNG grid
report.html          the page of the run, written when it ends; see experiments/report/run.py
result.json          the results at the end of the run
manifest.jsonl       a hash chain over all of these, see `manifest`
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Description
from diffusion_core.common.errors import DuetError
from diffusion_core.files.atomic import remove_leftovers, write_atomically
from diffusion_core.files.lock import lock_directory
from diffusion_core.files.safe_read import file_errors, open_npz, open_regular, parse_json, read_json
from diffusion_core.runs.checkpoint import list_checkpoints, repair_checkpoints
from diffusion_core.runs.ema_snapshots import delete_snapshots_after
from diffusion_core.training.events import Record

__all__ = [
    "RunDirectory",
    "Tracker",
    "describe_environment",
    "exclusive_directory",
    "holds_run",
    "metric_columns",
    "plain_data",
    "read_json",
    "read_metrics",
    "read_samples",
    "write_arrays",
    "write_json",
    "write_samples",
]

# Longer than any line of metrics.
_MAX_LINE_BYTES = 1 << 20


def describe_environment(description: Description | None = None) -> dict[str, Any]:
    """Return how and where this process runs, as plain data: command, commit, versions and hardware."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = ["python", "-m", main.name] if main else ["python", Path(sys.argv[0]).name]
    if main and main.name.startswith(("experiments.", "benchmarks.")):
        words = ["python3", "-m", "duet", main.name.split(".")[-1]]
    facts = {
        # `from`, a reserved word of Python, is the key `from_run` of a configuration.
        "command": shlex.join(words + [re.sub(r"^from_run=", "from=", word) for word in sys.argv[1:]]),
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
    }
    return facts | (asdict(description) if description else {})


def _commit() -> str | None:
    """Return the commit of the source tree, with a plus if files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def plain_data(value: Any) -> Any:
    """Return a value that JSON can store: arrays as lists, and numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain_data(value.tolist())
    if isinstance(value, np.generic):
        return plain_data(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, completely or not at all; numbers that are not finite become null."""
    write_atomically(Path(path), (json.dumps(plain_data(data), indent=2) + "\n").encode())


def _tracker_entries(record: Record) -> dict[str, float]:
    """Return the numbers of a step as trackers show them: train/loss, and next to it validation/loss."""
    numbers = {name: value for name, value in record.metrics.items() if name not in ("images_seen", *record.validation)}
    validation = {name.removeprefix("validation_"): value for name, value in record.validation.items()}
    return {f"train/{name}": value for name, value in numbers.items()} | {
        f"validation/{name}": value for name, value in validation.items()
    }


def _line(record: Mapping[str, float]) -> str:
    return json.dumps(plain_data(record)) + "\n"


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """Yield the records of a metrics file, without a last line that a killed process left incomplete.

    Numbers that were not finite, such as those of a skipped update, are NaN.

    Raises:
        DuetError: if the file is missing, or any other line is not a record with `images_seen`.
    """
    broken: Exception | None = None
    with file_errors(path, "it is not a file of metrics"), open_regular(path) as file:
        for number, line in enumerate(iter(partial(file.readline, _MAX_LINE_BYTES), b""), 1):
            if broken is not None or len(line) == _MAX_LINE_BYTES:
                raise DuetError(f"{path}: line {number - 1} is not JSON ({broken})") from broken
            try:
                record = parse_json(line)
            except (ValueError, RecursionError) as error:
                broken = error
                continue
            yield _record(f"{path}: line {number}", record)


def metric_columns(lines: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Return metrics by name with shape (steps,); NaN where a step has no such number, as a validation loss."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, math.nan) for line in lines], np.float64) for name in names}


def _record(where: str, record: Any) -> dict[str, float]:
    if not isinstance(record, dict) or "images_seen" not in record:
        raise DuetError(f"{where} is not a record of metrics (it has no images_seen)")
    # JSON has no NaN; see `plain_data`.
    numbers = {name: math.nan if value is None and name != "images_seen" else value for name, value in record.items()}
    for name, value in numbers.items():
        if type(value) not in (int, float) or (name == "images_seen" and type(value) is not int):
            raise DuetError(f"{where} is not a record of metrics ({name} is {value!r})")
    return numbers


def write_samples(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray,
    values: NDArray | None = None,
    latents: NDArray | None = None,
    **facts: Any,
) -> None:
    """Write samples as a compressed `.npz` of uint8 images (N, H, W, C), labels (N,), and facts as JSON text.

    Samples of data that are no bytes also have their `values`, with shape (N, ...); the images only show them. Images
    that were decoded have the `latents` that they were decoded from.
    """
    more = {} if values is None else {"values": values}
    more |= {} if latents is None else {"latents": latents}
    write_arrays(path, images=images, labels=labels, facts=np.array(json.dumps(plain_data(facts))), **more)


def write_arrays(path: Path, **arrays: NDArray) -> None:
    """Write arrays by name as a compressed `.npz`, completely or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(Path(path), buffer.getvalue())


def read_samples(path: Path) -> tuple[NDArray[np.uint8], NDArray, dict[str, Any]]:
    """Return (images, labels, facts) from a file of `write_samples`.

    Raises:
        DuetError: if the file is missing or corrupt.
    """
    with open_npz(path, "a file of samples") as file:
        images, labels, facts = file["images"], file["labels"], parse_json(str(file["facts"]))
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(f"images are {images.dtype} {images.shape}, labels {labels.shape}")
        if not isinstance(facts, dict):
            raise ValueError("its facts are not a JSON object")
        return images, labels, facts


class Tracker(Protocol):
    """A service that receives the metrics and images of a training, with images seen as the step."""

    def log_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        """Log numbers by name."""

    def log_image(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        """Log an image with shape (H, W, C)."""

    def close(self, failed: bool = False) -> None:
        """Finish; `failed` says that the run did not reach its end."""


class _Events:
    """The event file of TensorBoard.

    It is written in the calling thread, since the thread of the usual writer ends when the disk is full, and its queue
    then waits forever.
    """

    def __init__(self, path: Path, resume: int | None) -> None:
        # Imported here, since it is slow and reading runs does not need it.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._make, self._pb = summary, event_pb2
        # The default name has a resolution of one second, and a run resumed within it would overwrite the file.
        self._writer = event_file_writer.EventsWriter(str(path / "events"), f".{os.getpid()}.{time.time_ns()}")
        self._flushed = time.monotonic()
        if resume is not None:  # TensorBoard then discards later events of the earlier file
            self._write(resume + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def _write(self, images_seen: int, **content: Any) -> None:
        self._writer.write_event(self._pb.Event(step=images_seen, wall_time=time.time(), **content))

    def log_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        entries = [value for name, number in values.items() for value in self._make.scalar(name, number).value]
        self._write(images_seen, summary=self._make.Summary(value=entries))
        if time.monotonic() - self._flushed > 10:  # so that the run can be watched
            self._writer.flush()
            self._flushed = time.monotonic()

    def log_image(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        self._write(images_seen, summary=self._make.image(name, image, dataformats="HWC"))
        self._writer.flush()

    def close(self, failed: bool = False) -> None:
        self._writer.close()


@contextmanager
def exclusive_directory(path: str | Path) -> Iterator[None]:
    """Reserve a directory for this process, and repair what a killed process left incomplete in it.

    Args:
        path: the directory of a run or of other results; made if it does not exist.

    Raises:
        DuetError: if another process holds it, or it cannot be written.
    """
    path = Path(path)
    _make_directory(path)
    with lock_directory(path):
        for name in ("checkpoints", "non_finite"):
            repair_checkpoints(path / name)
        folders = [path / name for name in ("checkpoints", "snapshots", "samples", ".hydra")]
        for folder in (path, *folders, *list_checkpoints(path / "non_finite")):
            remove_leftovers(folder)
        yield


def holds_run(path: str | Path) -> bool:
    """Return whether a directory is that of a run: it has metrics or checkpoints."""
    return (Path(path) / "metrics.jsonl").exists() or (Path(path) / "checkpoints").exists()


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuetError(f"{path}: the run directory cannot be created ({error.strerror})") from error


class RunDirectory:
    """The directory of one run, open for writing. As a context manager it closes its trackers in any case.

    Args:
        path: the directory; made if it does not exist.
        resume: images seen at the moment that is resumed; None starts a new run.
        source: the checkpoint that is resumed, if it may be one of another run.

    Raises:
        DuetError: if it cannot be written, or if files of another run, or of a later moment of this run, would be lost.
    """

    def __init__(self, path: str | Path, resume: int | None = None, source: Path | None = None) -> None:
        self.path, self.resume = Path(path), resume
        _make_directory(self.path)
        if not os.access(self.path, os.W_OK):
            raise DuetError(f"{self.path}: the run directory cannot be written; give another hydra.run.dir")
        is_own = source is None or self.path.resolve() in Path(source).resolve().parents
        if holds_run(self.path) and (resume is None or not is_own):
            raise DuetError(
                f"{self.path}: it holds a run already; give another hydra.run.dir, or resume=latest to continue it"
            )
        later = [path for path in list_checkpoints(self.path / "checkpoints") if resume and int(path.name) > resume]
        if later:
            raise DuetError(
                f"{self.path}: it holds the later checkpoint {later[-1].name}, which a run from {resume} would orphan; "
                f"give another hydra.run.dir, or resume=latest"
            )
        if resume is not None and self.metrics.exists():
            list(read_metrics(self.metrics))  # a corrupt file is refused before anything is changed
        self._trackers: list[Tracker] = []

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r}, resume={self.resume})"

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    @property
    def metrics(self) -> Path:
        """The path of the metrics file."""
        return self.path / "metrics.jsonl"

    def start(self, config: str, facts: Mapping[str, Any], trackers: Iterable[Tracker] = ()) -> None:
        """Begin to write: remove what is later than the resumed moment, and write configuration and environment.

        From then on the event file of TensorBoard and the other `trackers` receive the same metrics and images.

        Args:
            config: the resolved configuration, as YAML text.
            facts: from `describe_environment`, with any additions.
            trackers: further trackers, which this object then closes.
        """
        self._trackers = list(trackers)
        if self.resume is not None and self.metrics.exists():
            kept = [line for line in read_metrics(self.metrics) if line["images_seen"] <= self.resume]
            write_atomically(self.metrics, "".join(map(_line, kept)).encode())
        if self.resume is not None:
            delete_snapshots_after(self.path / "snapshots", self.resume)
        write_json(self.path / "environment.json", facts)
        write_atomically(self.path / "config.yaml", config.encode())
        with self._tracker_errors():
            self._trackers = [_Events(self.path, self.resume), *self._trackers]

    def log(self, records: Iterable[Record], images_per_second: float) -> None:
        """Append records to the metrics file and send them to the trackers."""
        records = list(records)
        try:
            with open(self.metrics, "a") as file:
                file.writelines(_line(record.metrics) for record in records)
                file.flush()
                os.fsync(file.fileno())  # a checkpoint of this moment must not exist without them
        except OSError as error:
            raise DuetError(f"{self.metrics}: it cannot be written ({error.strerror})") from error
        entries = [_tracker_entries(record) for record in records]
        entries[-1]["train/images_per_second"] = images_per_second
        with self._tracker_errors():
            for tracker in self._trackers:
                for record, values in zip(records, entries, strict=True):
                    tracker.log_scalars(values, record.images_seen)

    def log_image(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        """Send an image with shape (H, W, C) to the trackers."""
        with self._tracker_errors():
            for tracker in self._trackers:
                tracker.log_image(name, image, images_seen)

    @contextmanager
    def _tracker_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DuetError(f"{self.path}: events cannot be written ({error.strerror or error})") from error

    def close(self, failed: bool = False) -> None:
        """Close all trackers; if the run failed, their errors are suppressed so that they do not hide its error."""
        trackers, self._trackers = self._trackers, []
        with ExitStack() as stack:
            for tracker in trackers:
                stack.enter_context(suppress(Exception) if failed else self._tracker_errors())
                stack.callback(tracker.close, failed)

"""The run directory: everything that one run leaves behind.

config.yaml          the resolved configuration
environment.json     command, commit, versions, device, data and its hash
metrics.jsonl        one line per step: images_seen, loss, grad_norm, lr, ema_decay (ema1_decay ... of more averages)
events.out.tfevents  the same for TensorBoard
checkpoints/         see `checkpoint`
snapshots/           see `snapshots`; only if they were asked for
samples/             uint8 `.npz` and a PNG grid
result.json          what the run ended with
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend import Description
from diffusion_core.checkpoint import list_checkpoints, write_atomically
from diffusion_core.errors import DuetError
from diffusion_core.snapshots import drop_snapshots_after
from diffusion_core.training import Record

__all__ = [
    "RunDirectory",
    "Tracker",
    "environment",
    "read_json",
    "read_metrics",
    "read_samples",
    "write_arrays",
    "write_json",
    "write_samples",
]


def environment(description: Description | None = None) -> dict[str, Any]:
    """Where and how this process runs, as plain data."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = ["python", "-m", main.name] if main else ["python", Path(sys.argv[0]).name]
    facts = {
        "command": shlex.join(words + sys.argv[1:]),
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
    }
    return facts | (asdict(description) if description else {})


def _commit() -> str | None:
    """The commit of the source tree, with a plus where it was changed; None outside a checkout."""
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


def _plain(value: Any) -> Any:
    """A value that JSON can hold: arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_atomically(Path(path), (json.dumps(_plain(data), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DuetError: if it is missing or corrupt.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise DuetError(f"{path}: it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DuetError(f"{path}: it is not JSON ({error})") from error


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a metrics file; a last line that was cut short by a kill is left out.

    Raises:
        DuetError: if it is missing, or another line is not a record with its images seen.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DuetError(f"{path}: it cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise DuetError(f"{path}: line {number} is not JSON ({error})") from error
            return
        if not isinstance(record, dict) or "images_seen" not in record:
            raise DuetError(f"{path}: line {number} is not a record of metrics (it has no images_seen)")
        yield record


def write_samples(path: Path, images: NDArray[np.uint8], labels: NDArray, **facts: Any) -> None:
    """Samples as a compressed `.npz` of uint8 images, labels, and facts as JSON text."""
    write_arrays(path, images=images, labels=labels, facts=np.array(json.dumps(_plain(facts))))


def write_arrays(path: Path, **arrays: NDArray) -> None:
    """Arrays by name as a compressed `.npz`, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(Path(path), buffer.getvalue())


def read_samples(path: Path) -> tuple[NDArray[np.uint8], NDArray, dict[str, Any]]:
    """(images, labels, facts) of a file by `write_samples`.

    Raises:
        DuetError: if it is missing or corrupt.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"], json.loads(str(file["facts"]))
    except Exception as error:
        raise DuetError(f"{path}: it is not a file of samples ({error})") from error


class Tracker(Protocol):
    """Something that a training reports to, with images seen as the step."""

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        """Numbers by name."""

    def picture(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        """A picture with shape (H, W, C)."""

    def close(self) -> None:
        """Nothing more is told."""


class _Events:
    """The event file of TensorBoard."""

    def __init__(self, path: Path, resume: int | None) -> None:
        from tensorboardX import SummaryWriter  # slow to import, and reading runs does not need it

        self._writer = SummaryWriter(str(path), purge_step=resume and resume + 1)

    def scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, images_seen)

    def picture(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        self._writer.add_image(name, image, images_seen, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class RunDirectory:
    """The directory of one run, open for writing.

    Args:
        path: where it is; made if it is not there.
        resume: images seen to go on from; None starts a new run.
        source: the checkpoint that is gone on from, if it may be of another run.

    Raises:
        DuetError: if it cannot be written, or if something of another run, or of this one's future, would be lost.
    """

    def __init__(self, path: str | Path, resume: int | None = None, source: Path | None = None) -> None:
        self.path, self.resume = Path(path), resume
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DuetError(f"{self.path}: the run directory cannot be made ({error.strerror})") from error
        if not os.access(self.path, os.W_OK):
            raise DuetError(f"{self.path}: the run directory cannot be written; give another hydra.run.dir")
        holds_run = self.metrics.exists() or (self.path / "checkpoints").exists()
        is_own = source is None or self.path.resolve() in Path(source).resolve().parents
        if holds_run and (resume is None or not is_own):
            raise DuetError(
                f"{self.path}: it holds a run already; give another hydra.run.dir, or resume=latest to go on with it"
            )
        later = [path for path in list_checkpoints(self.path / "checkpoints") if resume and int(path.name) > resume]
        if later:
            raise DuetError(
                f"{self.path}: it holds the later checkpoint {later[-1].name}, and going on from {resume} would leave "
                f"it behind; give another hydra.run.dir, or resume=latest"
            )
        if resume is not None and self.metrics.exists():
            list(read_metrics(self.metrics))  # a corrupt file is refused before anything is changed
        self._trackers: list[Tracker] = []

    @property
    def metrics(self) -> Path:
        """The file of metrics."""
        return self.path / "metrics.jsonl"

    def start(self, config: str, facts: Mapping[str, Any], trackers: Iterable[Tracker] = ()) -> None:
        """Cut what is later than the moment gone on from, write configuration and environment, open the events.

        The event file and the other `trackers` are told the same from then on.
        """
        if self.resume is not None and self.metrics.exists():
            kept = [line for line in read_metrics(self.metrics) if line["images_seen"] <= self.resume]
            write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in kept).encode())
        if self.resume is not None:
            drop_snapshots_after(self.path / "snapshots", self.resume)
        write_atomically(self.path / "config.yaml", config.encode())
        write_json(self.path / "environment.json", facts)
        self._trackers = [_Events(self.path, self.resume), *trackers]

    def log(self, records: Iterable[Record], images_per_second: float) -> None:
        """Append steps to the metrics, and tell the trackers."""
        records = list(records)
        try:
            with open(self.metrics, "a") as file:
                file.writelines(json.dumps(record.metrics) + "\n" for record in records)
        except OSError as error:
            raise DuetError(f"{self.metrics}: it cannot be written ({error.strerror})") from error
        told = [
            {f"train/{name}": value for name, value in record.metrics.items() if name != "images_seen"}
            for record in records
        ]
        told[-1]["train/images_per_second"] = images_per_second
        for tracker in self._trackers:
            for record, values in zip(records, told, strict=True):
                tracker.scalars(values, record.images_seen)

    def picture(self, name: str, image: NDArray[np.uint8], images_seen: int) -> None:
        """Tell the trackers a picture with shape (H, W, C)."""
        for tracker in self._trackers:
            tracker.picture(name, image, images_seen)

    def close(self) -> None:
        """Close the event file and the other trackers."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

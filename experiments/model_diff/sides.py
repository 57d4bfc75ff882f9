"""A side of `duet diff` and how it is recorded: in a process of its own, or in this one if it is an object.

Both kinds answer the same calls: `load`, `offer` its inputs, `record`, and write its `state`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffusion_core.common.errors import DuetError
from experiments.model_diff import author_code, record_side
from experiments.model_diff.file_sides import find_file_side
from experiments.model_diff.side_recorder import Inputs, Job, SideRecorder
from experiments.runtime.options import CONFIGS
from experiments.runtime.own_files import split_reference

__all__ = ["Side", "SideHere", "SideProcess", "open_side"]


@dataclass(frozen=True)
class Side:
    """One side, as the user names it.

    Attributes:
        reference: "FILE.py:FUNCTION", "module:FUNCTION", or a file of a model; a title for an object.
        python: the interpreter that runs it; "" is this one.
        backend: the backend that its imports show, or that computes a run of Duet; "" if that is not known.
        options: arguments of the function.
        model: the model or a function that returns it, if it is an object of this process.
    """

    reference: str
    python: str = ""
    backend: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Any = None


def open_side(side: Side, label: str, seed: int, folder: Path) -> SideProcess | SideHere:
    """Return a side, not yet loaded.

    Args:
        side: what the user named.
        label: "A" or "B".
        seed: of inputs and random weights.
        folder: where the side may put its files.

    Raises:
        DuetError: if the reference names neither code nor a file of a model.
    """
    job = to_job(side, seed)
    if side.model is not None:
        return SideHere(job, label, side.model)
    return SideProcess(job, label, side.python or sys.executable, folder)


def to_job(side: Side, seed: int) -> Job:
    """Return what the process of a side is told."""
    packages = {
        config.stem: tuple(yaml.safe_load(config.read_text(encoding="utf-8"))["packages"])
        for config in sorted((CONFIGS / "backend").glob("*.yaml"))
    }
    common = {
        "reference": side.reference,
        "folder": os.getcwd(),
        "options": dict(side.options),
        "seed": seed,
        "recorders": packages,
        "hint": side.backend,
    }
    if side.model is not None:
        return Job(**common)
    if reference := split_reference(side.reference):
        return Job(place=reference[0], name=reference[1], **common)
    found = find_file_side(side.reference, side.backend or None)
    assert found is not None
    place, name = found.opener.split(":")
    path = str(found.path.resolve())
    return Job(
        place=place, name=name, path=path, recorder=found.recorder, drawn=found.inputs, fixed=found.fixed, **common
    )


class SideProcess:
    """A side that runs in a process of its own interpreter."""

    def __init__(self, job: Job, label: str, python: str, folder: Path) -> None:
        self.job, self.label, self.python = job, label, python
        self.log = folder / f"{label}.log"
        self.doing = "starting"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the process; it loads the side at once."""
        variables = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_ENABLE_ONEDNN_OPTS": "0",
            "CUDA_VISIBLE_DEVICES": "",  # recordings of a CPU can be repeated bit by bit
            "PYTHONIOENCODING": "utf-8",
        }
        env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        root = str(record_side.ROOT)
        paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
        env = {**variables, **env, "PYTHONPATH": os.pathsep.join(paths)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [self.python, record_side.__file__, json.dumps(asdict(self.job))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
                encoding="utf-8",
            )

    def _answer(self, event: str, order: Mapping[str, Any]) -> dict[str, Any]:
        """Send an order, and return the message that answers it."""
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its last message says why
        for line in self.process.stdout:
            message = json.loads(line)
            if message["event"] == "progress":
                self.doing = message["text"]
            elif message["event"] == "error":
                if message["trace"]:
                    print(message["trace"], file=sys.stderr, end="" if message["trace"].endswith("\n") else "\n")
                raise DuetError(f"{self.label}: {message['line']}")
            elif message["event"] == event:
                return message
        code = self.process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        memory = "; it may have needed more memory than there is" if code == -signal.SIGKILL else ""
        last = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()][-3:]
        print("\n".join(last), file=sys.stderr)
        raise DuetError(f"{self.label}: {self.job.reference}: its process {how} while {self.doing}{memory}")

    def load(self) -> None:
        """Start the process; what goes wrong in it is told by the next call."""
        self.start()

    def offer(self, count: int, file: Path) -> dict[str, Any]:
        """Return the side's inputs and layout; see `record_side.offer_inputs`."""
        return self._answer("inputs", {"order": "inputs", "count": count, "file": str(file)})

    def record(
        self,
        folder: Path,
        inputs: list[Path],
        passes: list[str],
        batches: list[list[Path]],
        state: Path | None,
        gradients: str = "all",
        brief: bool = False,
    ) -> int:
        """Record the side; return which of the forms of the inputs was used. See `SideRecorder.record`."""
        order = {
            "order": "record",
            "folder": str(folder),
            "inputs": [str(path) for path in inputs],
            "passes": passes,
            "batches": [[str(path) for path in several] for several in batches],
            "state": str(state) if state else None,
            "gradients": gradients,
            "brief": brief,
        }
        return self._answer("recorded", order)["used"]

    def state(self, file: Path) -> Inputs:
        """Return the weights by name."""
        self._answer("state", {"order": "state", "file": str(file)})
        return record_side.read_inputs(file)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()


class SideHere:
    """A side that is an object of this process."""

    def __init__(self, job: Job, label: str, model: Any) -> None:
        self.label, self.doing = label, "recording"
        self.job = job
        self.recorder = SideRecorder(job, find_recorder, model)

    def load(self) -> None:
        """Build the model, if the object is a function that returns it."""
        with self._told():
            self.recorder.load()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in one line what went wrong in the author's code; the exception itself is the cause."""
        try:
            yield
        except DuetError:
            raise
        except Exception as error:
            line, _ = author_code.describe_error(self.job.reference, error)
            raise DuetError(f"{self.label}: {line}") from error

    def offer(self, count: int, file: Path) -> dict[str, Any]:
        """Return what the model declares, and its layout."""
        return record_side.offer_inputs(self.recorder, self.job, count, file)

    def record(
        self,
        folder: Path,
        inputs: list[Path],
        passes: list[str],
        batches: list[list[Path]],
        state: Path | None,
        gradients: str = "all",
        brief: bool = False,
    ) -> int:
        """Record the side; return which of the forms of the inputs was used. See `SideRecorder.record`."""
        read = record_side.read_inputs
        weights = read(state) if state else None
        several = [list(map(read, forms)) for forms in batches]
        with self._told():
            return self.recorder.record(
                folder, list(map(read, inputs)), passes, several, weights, gradients=gradients, brief=brief
            )

    def state(self, file: Path) -> Inputs:
        """Return the weights by name."""
        return self.recorder.recorder.read_state(self.recorder.model)

    def close(self) -> None:
        """Do nothing."""


def find_recorder(name: str) -> Any:
    """Return the recorder of a backend, or another one by its module."""
    module = "experiments.model_diff.plain" if name == "plain" else name if "." in name else f"backends.{name}.recorder"
    return importlib.import_module(module)

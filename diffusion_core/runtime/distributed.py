r"""Several processes that compute one run together, each a part of every batch.

Of W processes, process r = 0 .. W-1 computes the images ``B r // W .. B (r+1) // W - 1`` of a batch of B. Every random
number is a function of an image's position, so the parts of all processes, in order, are the batch that one process
would compute. The loss of a batch is a mean over its images, hence

    loss = sum_r (B_r / B) loss_r        gradient = sum_r (B_r / B) gradient_r

The factor B_r / B is contained in the importance of the images of a part. The processes therefore exchange nothing but
sums of arrays; afterwards each makes the same update of the same weights, and no file of a run depends on W.

Samples are divided in whole batches: process r draws the batches r, r + W, r + 2W ... The kernels then see the same
shapes for every W, and the samples are equal bit by bit.

The launcher (`duet launch` on one machine, `torchrun`, TensorFlow or Slurm) tells each process its rank through
environment variables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice

__all__ = ["LAUNCHERS", "Collective", "ProcessGroup", "find_parallel_launch"]

# What precedes the name of a command to launch its processes on one machine, for each value of `parallel`.
LAUNCHERS = {
    "none": "python3 -m duet",
    "ddp": "python3 -m duet launch {size}",
    "multiworker": "python3 -m duet launch {size}",
}


def _example(kind: str) -> str:
    return f"{LAUNCHERS[kind].format(size=2)} train ... parallel={kind}"


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, as seen by one of them.

    Args:
        rank: the number of this process, 0 .. size-1; process 0 is the only one that writes files and prints.
        size: the number of processes.
        local_rank: the number of this process among those of its machine.
        kind: how the processes communicate, one of `LAUNCHERS`.
        timeout_seconds: how long a process waits for another one that runs but does not answer.

    Raises:
        DuetError: if the rank is out of range, the kind is unknown or the timeout is not positive.

    Example:
        >>> ProcessGroup(rank=1, size=2, kind="ddp").slice_of(10)
        slice(5, 10, None)
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    kind: str = "none"
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        check_choice("parallel", self.kind, LAUNCHERS)
        if not 0 <= self.rank < self.size:
            raise DuetError(f"parallel: rank {self.rank} of {self.size} processes was given; use 0 .. {self.size - 1}")
        if not self.timeout_seconds > 0:
            raise DuetError(f"parallel.timeout_seconds: {self.timeout_seconds} was given; it must be positive")

    @staticmethod
    def from_environment(kind: str, environ: Mapping[str, str], timeout_seconds: float = 600.0) -> ProcessGroup:
        """Return the group of this process from the environment variables of its launcher.

        Raises:
            DuetError: if the variables are missing or malformed.
        """
        check_choice("parallel", kind, LAUNCHERS)
        if kind == "none":
            return ProcessGroup()
        variables = _READERS[kind](environ) or _read_slurm(environ)
        if variables is None:
            raise DuetError(
                f"parallel: {kind} was given, but no environment variable tells this process its rank; "
                f"start it as: {_example(kind)}"
            )
        try:
            rank, size, local_rank = (int(number) for number in variables)
        except ValueError as error:
            raise DuetError(
                f"parallel: the environment gives rank, size and local rank as {variables}, which are not whole numbers"
            ) from error
        return ProcessGroup(rank, size, local_rank, kind, timeout_seconds)

    def check_joined(self, framework: str, kind: str) -> None:
        """Refuse a kind of communication that a framework does not have.

        Args:
            framework: name for the error message.
            kind: the kind that the framework has.

        Raises:
            DuetError: if this group is of another kind.
        """
        if self.kind not in ("none", kind):
            raise DuetError(f"parallel: {self.kind} was given, but {framework} uses {kind}: {_example(kind)}")

    def peer_lost(self, reason: str) -> DuetError:
        """Return the error to raise when another process ended or does not answer."""
        return DuetError(
            f"parallel: process {self.rank} of {self.size} lost contact with another process, which ended or does not "
            f"answer; the last checkpoint is complete: continue with resume=latest ({reason.strip()[:200]})"
        )

    @property
    def launch_command(self) -> list[str]:
        """The words before the name of a command that launch as many processes of this kind on one machine."""
        return LAUNCHERS[self.kind].format(size=self.size).split()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def slice_of(self, count: int, unit: int = 1) -> slice:
        """Return which of `count` items in order this process computes.

        Args:
            count: the number of items of all processes.
            unit: items are divided in multiples of this many; only the last unit may be smaller.
        """
        units = -(-count // unit)
        return slice(*(min(count, unit * (units * rank // self.size)) for rank in (self.rank, self.rank + 1)))


def _read_torchrun(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    return environ["RANK"], environ["WORLD_SIZE"], environ.get("LOCAL_RANK", "0")


def _read_tf_config(environ: Mapping[str, str]) -> tuple[Any, Any, Any] | None:
    if "TF_CONFIG" not in environ:
        return None
    try:
        config = json.loads(environ["TF_CONFIG"])
        workers, task = config["cluster"]["worker"], config["task"]
        if len(config["cluster"]) > 1 or task["type"] != "worker":
            raise DuetError("TF_CONFIG: it names tasks other than workers; a run has workers only")
        index = int(task["index"])
        machine = workers[index].rpartition(":")[0]
        local_rank = sum(worker.rpartition(":")[0] == machine for worker in workers[:index])
        return index, len(workers), local_rank
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, DuetError):
            raise
        raise DuetError(f"TF_CONFIG: it cannot be read ({type(error).__name__}: {error})") from error


def _read_slurm(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    if "SLURM_PROCID" not in environ or "SLURM_NTASKS" not in environ:
        return None
    return environ["SLURM_PROCID"], environ["SLURM_NTASKS"], environ.get("SLURM_LOCALID", "0")


_READERS: Mapping[str, Callable[[Mapping[str, str]], Any]] = {"ddp": _read_torchrun, "multiworker": _read_tf_config}


def find_parallel_launch(environ: Mapping[str, str]) -> str | None:
    """Return the environment variable that shows that this process is one of several, or None.

    A malformed variable counts as absent. A script that Slurm runs on the first machine of an allocation is a single
    process, although SLURM_NTASKS counts the tasks that the allocation has room for: only a step has several.
    """

    def is_several(number: str) -> bool:
        return number.isdecimal() and int(number) > 1

    if is_several(environ.get("WORLD_SIZE", "")):
        return "WORLD_SIZE"
    if "SLURM_PROCID" in environ and is_several(environ.get("SLURM_STEP_NUM_TASKS", "")):
        return "SLURM_STEP_NUM_TASKS"
    with suppress(DuetError):
        if (variables := _read_tf_config(environ)) is not None and variables[1] > 1:
            return "TF_CONFIG"
    return None


@dataclass(frozen=True, eq=False)
class Collective:
    """Communication between the processes of a group.

    Every process must make each of these calls, in the same order.

    Args:
        group: the processes.
        all_reduce: returns the sum over all processes of an array, which has the same shape in each.
    """

    group: ProcessGroup = ProcessGroup()
    all_reduce: Callable[[NDArray], NDArray] = lambda array: array

    def gather(self, part: NDArray, count: int, unit: int = 1) -> NDArray:
        """Return the items of all processes, in order, with shape (count, ...).

        Args:
            part: the items of this process, those of ``group.slice_of(count, unit)``.
            count: the number of items of all processes.
            unit: as in `ProcessGroup.slice_of`.
        """
        if self.group.size == 1:
            return part
        # Adding zeros is exact. Whole numbers are summed as floats, which every framework can add.
        everything = np.zeros((count, *part.shape[1:]), np.result_type(part, np.float32))
        everything[self.group.slice_of(count, unit)] = part
        return self.all_reduce(everything).astype(part.dtype, copy=False)

    def from_main(self, array: NDArray) -> NDArray:
        """Return the array of the main process; it has the same shape in each."""
        if self.group.size == 1:
            return array
        return self.all_reduce(array if self.group.is_main_process else np.zeros_like(array))  # adding zeros is exact

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag if self.group.size == 1 else bool(self.all_reduce(np.array([float(flag)]))[0] > 0)

    def require_equal(self, what: str, text: Callable[[], str]) -> None:
        """Raise an error in every process unless all processes hold the same text.

        Args:
            what: the name of the text in the error message.
            text: returns the text of this process; called only if there are other processes.

        Raises:
            DuetError: in every process, if one text differs.
        """
        if self.group.size == 1:
            return
        digest = hashlib.blake2b(text().encode(), digest_size=6).digest()
        own = float(int.from_bytes(digest, "little"))  # 48 bits, which a float64 holds exactly
        values = self.gather(np.full(1, own), self.group.size)
        if np.any(values != values[0]):
            other = np.flatnonzero(values != values[0])
            raise DuetError(f"parallel: {what} of process {other[0]} is not that of process 0; start the run again")

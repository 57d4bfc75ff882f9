r"""Several processes that compute one run together, each its share of every batch.

With the processes r = 0 .. W-1, process r takes the images ``B r // W .. B (r+1) // W - 1`` of a batch of B. All that
is random is a function of an image's position, so the shares are, one after another, the batch of one process, and as
the loss of a batch is a mean over its images,

    loss = sum_r (B_r / B) loss_r        gradient = sum_r (B_r / B) gradient_r

The factor B_r / B is in the importance of a share's images. So all that processes do together is to add arrays up;
then each makes the same update of the same weights, and what is kept of a run holds nothing of their number.

Samples are shared as whole batches, process r drawing the batches r, r + W, r + 2W ...: the kernels then see the same
shapes whatever W is, and the same bits come out.

Who starts the processes, `experiments.workers` on one machine, tells each its place, by what `torchrun`, TensorFlow or
Slurm put into the environment.
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

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["KINDS", "Collective", "ProcessGroup", "started_together"]

# What `parallel` may be, and the words before ``-m MODULE`` that start so many processes, all on one machine.
KINDS = {
    "none": "python",
    "ddp": "python -m experiments.workers {size}",
    "multiworker": "python -m experiments.workers {size}",
}


def _example(kind: str) -> str:
    return f"{KINDS[kind].format(size=2)} -m experiments.train ... parallel={kind}"


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this one is.

    Args:
        rank: its number, 0 .. size-1; number 0 alone writes and speaks.
        size: how many there are.
        local_rank: its number among those of its machine.
        kind: what joins them, one of `KINDS`.
        timeout_seconds: how long a process waits for one that is there but does not answer.

    Raises:
        DuetError: if there is no such process, or a name is unknown.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    kind: str = "none"
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise one_of("parallel", self.kind, KINDS)
        if not 0 <= self.rank < self.size:
            raise DuetError(f"parallel: process {self.rank} of {self.size} was given; they are 0 .. {self.size - 1}")
        if not self.timeout_seconds > 0:
            raise DuetError(f"parallel.timeout_seconds: {self.timeout_seconds} was given; it must be positive")

    @staticmethod
    def from_environment(kind: str, environ: Mapping[str, str], timeout_seconds: float = 600.0) -> ProcessGroup:
        """The place of this process, as who started it put it into the environment.

        Raises:
            DuetError: if nobody did, or what stands there cannot be read.
        """
        if kind not in KINDS:
            raise one_of("parallel", kind, KINDS)
        if kind == "none":
            return ProcessGroup()
        found = _TOLD[kind](environ) or _slurm(environ)
        if found is None:
            raise DuetError(
                f"parallel: {kind} was given, but this process was not told which of how many it is; "
                f"start it as: {_example(kind)}"
            )
        try:
            rank, size, local_rank = (int(number) for number in found)
        except ValueError as error:
            raise DuetError(f"parallel: this process was told its place as {found}, which are no numbers") from error
        return ProcessGroup(rank, size, local_rank, kind, timeout_seconds)

    def check_joined(self, framework: str, kind: str) -> None:
        """Refuse processes that are joined by something else than the kind that a framework has.

        Raises:
            DuetError: so.
        """
        if self.kind not in ("none", kind):
            raise DuetError(
                f"parallel: {self.kind} was given, but {framework}'s processes are joined by {kind}: {_example(kind)}"
            )

    def lost(self, reason: str) -> DuetError:
        """What is raised where another process ended or does not answer."""
        return DuetError(
            f"parallel: process {self.rank} of {self.size} has lost another one, which ended or does not answer; "
            f"the last checkpoint is whole, and resume=latest goes on from it ({reason.strip()[:200]})"
        )

    @property
    def starter(self) -> list[str]:
        """The words before ``-m MODULE`` that start as many processes of this kind, all on one machine."""
        return KINDS[self.kind].format(size=self.size).split()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int, unit: int = 1) -> slice:
        """Which of so many images in order this process computes, in whole units but for the last one of all."""
        units = -(-count // unit)
        return slice(*(min(count, unit * (units * rank // self.size)) for rank in (self.rank, self.rank + 1)))


def _torchrun(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    return environ["RANK"], environ["WORLD_SIZE"], environ.get("LOCAL_RANK", "0")


def _tf_config(environ: Mapping[str, str]) -> tuple[Any, Any, Any] | None:
    if "TF_CONFIG" not in environ:
        return None
    try:
        told = json.loads(environ["TF_CONFIG"])
        workers, task = told["cluster"]["worker"], told["task"]
        if len(told["cluster"]) > 1 or task["type"] != "worker":
            raise DuetError("TF_CONFIG: it names other tasks than workers, which is all that a run has")
        index = int(task["index"])
        machine = workers[index].rpartition(":")[0]
        local_rank = sum(worker.rpartition(":")[0] == machine for worker in workers[:index])
        return index, len(workers), local_rank
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, DuetError):
            raise
        raise DuetError(f"TF_CONFIG: it cannot be read ({type(error).__name__}: {error})") from error


def _slurm(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    if "SLURM_PROCID" not in environ or "SLURM_NTASKS" not in environ:
        return None
    return environ["SLURM_PROCID"], environ["SLURM_NTASKS"], environ.get("SLURM_LOCALID", "0")


def started_together(environ: Mapping[str, str]) -> str | None:
    """The variable that says that a process was started as one of several; None where nothing says so.

    What cannot be read says nothing. A script that Slurm runs on the first of its machines is one process, though
    SLURM_NTASKS counts what the allocation has room for: it is a step that has several.
    """

    def several(number: str) -> bool:
        return number.isdecimal() and int(number) > 1

    if several(environ.get("WORLD_SIZE", "")):
        return "WORLD_SIZE"
    if "SLURM_PROCID" in environ and several(environ.get("SLURM_STEP_NUM_TASKS", "")):
        return "SLURM_STEP_NUM_TASKS"
    with suppress(DuetError):
        if (told := _tf_config(environ)) is not None and told[1] > 1:
            return "TF_CONFIG"
    return None


_TOLD: Mapping[str, Callable[[Mapping[str, str]], Any]] = {"ddp": _torchrun, "multiworker": _tf_config}


@dataclass(frozen=True, eq=False)
class Collective:
    """The processes of a world, and the one thing that they do together.

    Every process must come to each of these calls, in the same order.

    Args:
        group: the place of this process.
        add: the sum of the arrays of all processes, which have one shape.
    """

    group: ProcessGroup = ProcessGroup()
    add: Callable[[NDArray], NDArray] = lambda array: array

    def gather(self, part: NDArray, count: int, unit: int = 1) -> NDArray:
        """What all processes have of `count` items, in order, with shape (count, ...); `part` is this one's share."""
        if self.group.size == 1:
            return part
        # Sums with zeros, which are exact; of whole numbers as those of floats, which every framework adds up.
        whole = np.zeros((count, *part.shape[1:]), np.result_type(part, np.float32))
        whole[self.group.share(count, unit)] = part
        return self.add(whole).astype(part.dtype, copy=False)

    def any(self, flag: bool) -> bool:
        """Whether one process says so."""
        return flag if self.group.size == 1 else bool(self.add(np.array([float(flag)]))[0] > 0)

    def agree(self, what: str, text: Callable[[], str]) -> None:
        """Refuse to go on where processes hold different texts.

        Args:
            what: that the text tells of.
            text: called if there are others to compare with.

        Raises:
            DuetError: in every process, if one differs.
        """
        if self.group.size == 1:
            return
        digest = hashlib.blake2b(text().encode(), digest_size=6).digest()
        own = float(int.from_bytes(digest, "little"))  # exact, as are sums with zeros
        held = self.gather(np.full(1, own), self.group.size)
        if np.any(held != held[0]):
            other = np.flatnonzero(held != held[0])
            raise DuetError(f"parallel: {what} of process {other[0]} is not that of process 0; start the run again")

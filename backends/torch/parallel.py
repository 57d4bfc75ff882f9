"""Adding up over processes in PyTorch: gloo between CPUs, nccl between GPUs.

`DistributedDataParallel` is not used. It averages over processes alike, where shares may be unequal; it wants one
module and one forward pass of it, where a step may have two; and it puts other parameters together from its second
step on, so that a resumed run would add up in another order than the one that went on. Here the order is that of the
manifest from the first step.

Arrays of the host are added up between the hosts, over gloo also where the devices have nccl: what is asked after each
step, whether to stop, then waits for no device.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["KIND", "Communicator"]

KIND = "ddp"
# What is sent at once, and how many of them are before the first is waited for: enough for a network's full rate, and
# little beside the gradients themselves.
_BUCKET_BYTES = 25 * 2**20
_IN_FLIGHT = 3
# By which words the connection is known to be what failed: gloo has no type of its own for its errors.
_CONNECTION = ("gloo", "connection", "pair closure")


class Communicator:
    """The processes that compute together; one alone sends nothing.

    Args:
        group: the place of this process.
        device: what it computes on.

    Raises:
        DuetError: if the world is joined by something else, or the others do not come.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self.group = group
        group.check_joined("PyTorch", KIND)
        if group.size > 1 and not dist.is_initialized():
            _check_meeting()
            with _connected(group):
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank=group.rank, world_size=group.size,
                    timeout=timedelta(seconds=group.timeout_seconds),
                )  # fmt: skip

    def all_reduce(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sums over all processes of tensors of one type, in the place of these."""
        if self.group.size == 1:
            return tensors
        sent = deque()
        with _connected(self.group):
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.flatten() for tensor in bucket])
                sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
                if len(sent) == _IN_FLIGHT:
                    _take(*sent.popleft())
            while sent:
                _take(*sent.popleft())
        return tensors

    def all_reduce_array(self, array: NDArray) -> NDArray:
        """The sum over all processes of arrays of one shape."""
        return self.all_reduce([torch.tensor(np.ascontiguousarray(array))])[0].numpy()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists of about so many bytes."""
    bucket, size = [], 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _take(bucket: list[Tensor], flat: Tensor, work: dist.Work) -> None:
    """Wait for the sums, and put them in the place of what was sent."""
    work.wait()
    for tensor, added in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(added.view(tensor.shape))


def _check_meeting() -> None:
    """Refuse to start where nobody said where the processes meet."""
    for name, fits in (("MASTER_ADDR", "the host of process 0"), ("MASTER_PORT", "a free port of that host")):
        given = os.environ.get(name, "")
        if not given or (name == "MASTER_PORT" and not given.isdecimal()):
            raise DuetError(
                f"parallel: {name} is {given!r}; it must be {fits}, as torchrun and configs/hydra/launcher/slurm.yaml "
                f"set it"
            )


@contextmanager
def _connected(group: ProcessGroup) -> Iterator[None]:
    """Where the connection to the others breaks in it, they are lost; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        if isinstance(error, dist.DistError) or (
            not isinstance(error, torch.OutOfMemoryError) and any(word in said for word in _CONNECTION)
        ):
            raise group.peer_lost(str(error).strip().splitlines()[0]) from error
        raise

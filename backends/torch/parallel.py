"""Sums over processes in PyTorch: gloo between CPUs, nccl between GPUs.

`DistributedDataParallel` is not used, for three reasons. It weights all processes equally, but their batches may differ
in size. It wraps one module with one forward pass, but a training step may have two. It regroups the parameters after
its first step, so that a resumed run would sum in another order than an uninterrupted one. Here the order is that of
the manifest from the first step.

Host arrays always travel over gloo, even if the devices use nccl, so that the question after each step, whether to
stop, does not wait for a device.
"""

from __future__ import annotations

import atexit
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
# The size of one message, and how many messages may be under way: enough for the full rate of a network, and small
# compared to the gradients.
_BUCKET_BYTES = 25 * 2**20
_IN_FLIGHT = 3
# Words that tell a connection error from others, since gloo has no exception type of its own.
_CONNECTION = ("gloo", "connection", "pair closure")


class Communicator:
    """Sums over the processes that compute together; a single process sends nothing.

    Args:
        group: the rank of this process and the number of processes.
        device: the device of this process.

    Raises:
        DuetError: if the processes were started for another backend, or the others cannot be reached.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self.group = group
        group.check_joined("PyTorch", KIND)
        if group.size > 1 and not dist.is_initialized():
            _check_rendezvous()
            with _report_lost_peers(group):
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank=group.rank, world_size=group.size,
                    timeout=timedelta(seconds=group.timeout_seconds),
                )  # fmt: skip
            # Its threads must end before the interpreter does; otherwise the process may abort after its work is done.
            atexit.register(_leave)

    def all_reduce(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the sums of tensors of one dtype over all processes."""
        if self.group.size == 1:
            return tensors
        sent = deque()
        with _report_lost_peers(self.group):
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.flatten() for tensor in bucket])
                sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
                if len(sent) == _IN_FLIGHT:
                    _copy_back(*sent.popleft())
            while sent:
                _copy_back(*sent.popleft())
        return tensors

    def all_reduce_array(self, array: NDArray) -> NDArray:
        """Return the sum of an array over all processes."""
        return self.all_reduce([torch.tensor(np.asarray(array, order="C"))])[0].numpy()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in order, in lists of about `_BUCKET_BYTES`."""
    bucket, size = [], 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _copy_back(bucket: list[Tensor], flat: Tensor, work: dist.Work) -> None:
    """Wait for the sums and write them into the tensors."""
    work.wait()
    for tensor, added in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(added.view(tensor.shape))


def _check_rendezvous() -> None:
    """Raise a `DuetError` if MASTER_ADDR or MASTER_PORT is missing."""
    for name, allowed in (("MASTER_ADDR", "the host of process 0"), ("MASTER_PORT", "a free port of that host")):
        value = os.environ.get(name, "")
        if not value or (name == "MASTER_PORT" and not value.isdecimal()):
            raise DuetError(
                f"parallel: {name} is {value!r}; it must be {allowed}, as torchrun and "
                f"configs/hydra/launcher/slurm.yaml set it"
            )


@contextmanager
def _report_lost_peers(group: ProcessGroup) -> Iterator[None]:
    """Turn a connection error into the error for lost processes; let other errors pass."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, dist.DistError) or (
            not isinstance(error, torch.OutOfMemoryError) and any(word in text for word in _CONNECTION)
        ):
            raise group.peer_lost(str(error).strip().splitlines()[0]) from error
        raise

"""Sums over processes in TensorFlow, by the collectives of `MultiWorkerMirroredStrategy`.

The strategy connects the processes and computes the sums. It places no variables, since every process makes the same
ones from the same bits. Each process sees one device (`duet launch` assigns one GPU to each), so
`MirroredStrategy`, for several devices within one process, is not needed. The sum is a graph of its own between the
graph of the gradients and that of the update: XLA compiles those two, and the graph that sends is the same in every
process, whatever the size of its part of the batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["KIND", "Communicator"]

KIND = "multiworker"
# The size of one message: enough for the full rate of a network, and small compared to the gradients.
_BUCKET_BYTES = 25 * 2**20


class Communicator:
    """Sums over the processes that compute together; a single process sends nothing.

    Args:
        group: the rank of this process and the number of processes.
        device: the device of this process.

    Raises:
        DuetError: if the processes were started for another backend, or the others cannot be reached.
    """

    def __init__(self, group: ProcessGroup, device: str) -> None:
        self.group, self.device = group, device
        group.check_joined("TensorFlow", KIND)
        if group.size == 1:
            return
        try:
            self.strategy = _strategy()
        except (tf.errors.OpError, RuntimeError) as error:
            raise group.peer_lost(_reason(error)) from error
        if self.strategy.num_replicas_in_sync != group.size:
            raise DuetError(
                f"parallel: {group.size} processes have {self.strategy.num_replicas_in_sync} devices; each must see "
                f"one, as CUDA_VISIBLE_DEVICES or Slurm's --gpus-per-task=1 shows it"
            )
        self._add = tf.function(self._sums, autograph=False)
        self._add_array = tf.function(self._sums, autograph=False, reduce_retracing=True)

    def _sums(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        options = tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=_BUCKET_BYTES, timeout_seconds=self.group.timeout_seconds
        )

        def all_reduce(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
            with tf.device(
                self.device
            ):  # the strategy needs the device of its inputs, and those of a graph have none yet
                placed = [tf.identity(tensor) for tensor in tensors]
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed, options)

        return self.strategy.run(all_reduce, (tensors,))

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        """Return the sums of tensors of one dtype over all processes."""
        if self.group.size == 1:
            return tensors
        with _report_lost_peers(self.group):
            return self._add(list(tensors))

    def all_reduce_array(self, array: NDArray) -> NDArray:
        """Return the sum of an array over all processes."""
        with tf.device(self.device):
            tensor = tf.constant(np.asarray(array))
        with _report_lost_peers(self.group):
            return self._add_array([tensor])[0].numpy()


@cache  # a process joins the others once, and may open several backends
def _strategy() -> tf.distribute.Strategy:
    return tf.distribute.MultiWorkerMirroredStrategy(_cluster())


def _cluster() -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """Return the workers as Slurm lists them; None if TF_CONFIG lists them."""
    if "TF_CONFIG" in os.environ:
        return None
    return tf.distribute.cluster_resolver.SlurmClusterResolver(auto_set_gpu=False)


@contextmanager
def _report_lost_peers(group: ProcessGroup) -> Iterator[None]:
    """Turn a connection error into the error for lost processes; let out-of-memory errors pass."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        raise group.peer_lost(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return the line with the cause, out of the many lines of a collective's error."""
    return next((line for line in str(error).splitlines() if "abort" in line or "peer" in line), type(error).__name__)

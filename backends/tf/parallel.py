"""Adding up over processes in TensorFlow, by the collectives of `MultiWorkerMirroredStrategy`.

The strategy joins the processes and adds up; it places no variables, as every process makes the same ones from the same
bits. A process has one device: of a machine with several GPUs each worker is shown one, as `duet launch` does,
so that `MirroredStrategy`, the same within one process, is not needed beside it. What adds up is a graph of its own,
between that of the gradients and that of the update: XLA compiles those two, and the one that sends is the same for
every process, whatever the shape of its share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["KIND", "Communicator"]

KIND = "multiworker"
# What is sent at once: enough for a network's full rate, and little beside the gradients themselves.
_BUCKET_BYTES = 25 * 2**20


class Communicator:
    """The processes that compute together; one alone sends nothing.

    Args:
        group: the place of this process.
        device: what it computes on.

    Raises:
        DuetError: if the world is joined by something else, or the others do not come.
    """

    def __init__(self, group: ProcessGroup, device: str) -> None:
        self.group, self.device = group, device
        group.check_joined("TensorFlow", KIND)
        if group.size == 1:
            return
        try:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy(_cluster())
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

        def all_reduce(given: list[tf.Tensor]) -> list[tf.Tensor]:
            with tf.device(self.device):  # the inputs of a graph have none yet, and the strategy asks them for it
                placed = [tf.identity(tensor) for tensor in given]
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed, options)

        return self.strategy.run(all_reduce, (tensors,))

    def all_reduce(self, tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        """The sums over all processes of tensors of one type, in the place of these."""
        if self.group.size == 1:
            return tensors
        with _connected(self.group):
            return self._add(list(tensors))

    def all_reduce_array(self, array: NDArray) -> NDArray:
        """The sum over all processes of arrays of one shape."""
        with tf.device(self.device):
            given = tf.constant(np.asarray(array))
        with _connected(self.group):
            return self._add_array([given])[0].numpy()


def _cluster() -> tf.distribute.cluster_resolver.ClusterResolver | None:
    """Who the workers are, where Slurm knows it; else TF_CONFIG says it."""
    if "TF_CONFIG" in os.environ:
        return None
    return tf.distribute.cluster_resolver.SlurmClusterResolver(auto_set_gpu=False)


@contextmanager
def _connected(group: ProcessGroup) -> Iterator[None]:
    """Where the connection to the others breaks in it, they are lost; want of memory passes."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        raise group.peer_lost(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The line that says it, of the many that a collective's error has."""
    return next((line for line in str(error).splitlines() if "abort" in line or "peer" in line), type(error).__name__)

"""Where TensorFlow computes and in which numbers.

TF32 is always off: it rounds the inputs of every product to ten bits. Reproducible kernels are a setting.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import BackendConfig, Description
from diffusion_core.common.errors import DuetError, out_of_memory_error
from diffusion_core.common.text import pluralize
from diffusion_core.runtime.distributed import ProcessGroup

# Read when TensorFlow is first imported: its choice of kernels would else depend on the processor.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold back what is written to descriptor 2, and show it if an exception leaves.

    TensorFlow logs there before its logger knows the level that was asked for, whether or not anything is wrong.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


with _without_chatter():
    import tensorflow as tf

    CARDS = tf.config.list_physical_devices("GPU")
    for card in CARDS:  # once, before TensorFlow starts; it would else take all memory of every card
        tf.config.experimental.set_memory_growth(card, True)

from backends.tf.parallel import Communicator  # noqa: E402 - it imports TensorFlow

# A new network is a new function: TensorFlow takes that for a mistake after the fifth.
tf.get_logger().setLevel("ERROR")

__all__ = ["DeviceContext", "describe", "peak_memory_mib", "prepare"]


@dataclass(frozen=True)
class DeviceContext:
    """A device and the types used on it.

    Args:
        device: the device.
        dtype: of weights, images and sums.
        compute: of the inputs of products; bfloat16 under mixed precision.
        compile: whether functions are compiled with XLA.
        communicator: the processes that compute together.
    """

    device: str
    dtype: tf.DType
    compute: tf.DType
    compile: bool
    communicator: Communicator

    def mixed(self, *tensors: tf.Tensor) -> list[tf.Tensor]:
        """The inputs of a product, in `compute`."""
        return [tf.cast(tensor, self.compute) for tensor in tensors]

    @contextmanager
    def within_memory(self, changes: bool = False) -> Iterator[None]:
        """What runs in it and finds too little memory raises the error for it; see `out_of_memory_error`."""
        try:
            yield
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            raise out_of_memory_error(self.device.strip("/"), error, changes) from error

    def tensor(self, array: NDArray, dtype: tf.DType | None = None) -> tf.Tensor:
        """An array on the device, in `dtype` of the place unless given."""
        with tf.device(self.device):
            return tf.constant(np.asarray(array, (dtype or self.dtype).as_numpy_dtype))

    def images(self, array: NDArray) -> tf.Tensor:
        """Images b h w c."""
        return self.tensor(array)

    def function(self, function):
        """The function as one graph, compiled with XLA if the place compiles."""

        def placed(*inputs):
            with tf.device(self.device):  # else a graph is placed on a GPU, wherever its inputs are
                return function(*inputs)

        return tf.function(placed, jit_compile=self.compile or None, autograph=False, reduce_retracing=True)


def prepare(config: BackendConfig, group: ProcessGroup) -> DeviceContext:
    """Choose the device, set what TensorFlow keeps globally, and meet the other processes.

    Raises:
        DuetError: if CUDA is asked for and not there, threads are set after TensorFlow has started, or the other
            processes are not there.
    """
    if config.device == "cuda" and not CARDS:
        raise DuetError(
            "backend.device: cuda was given, but TensorFlow finds no CUDA device; use cpu or auto, "
            "or install its CUDA libraries with the extra tf-cuda"
        )
    use_cuda = bool(CARDS) and config.device != "cpu"
    try:
        if config.threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(config.threads)
            tf.config.threading.set_inter_op_parallelism_threads(config.threads)
    except RuntimeError as error:
        raise DuetError(
            f"backend.threads: {config.threads} was given, but TensorFlow has started with another number in this "
            f"process ({error}); start a new one"
        ) from error
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    dtype = tf.float64 if config.precision == "float64" else tf.float32
    compute = tf.bfloat16 if config.precision == "bf16" else dtype
    device = "/GPU:0" if use_cuda else "/CPU:0"
    return DeviceContext(device, dtype, compute, config.compile, Communicator(group, device))


def describe(context: DeviceContext, config: BackendConfig) -> Description:
    """Device, precision and versions."""
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    name = f"cpu, {pluralize(threads, 'thread')}"
    if context.device.startswith("/GPU"):
        name = tf.config.experimental.get_device_details(CARDS[0]).get("device_name", context.device)
    mode = "XLA" if context.compile else "tf.function"
    versions = {"tensorflow": tf.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return Description("tf", name, config.precision, threads, mode, versions)


def peak_memory_mib(context: DeviceContext) -> float:
    """The most memory used so far: of the device where it has its own, else of the process."""
    if context.device.startswith("/GPU"):
        return tf.config.experimental.get_memory_info(context.device.strip("/"))["peak"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

"""The device and the number types of TensorFlow.

TF32 is always off: it rounds the inputs of every product to ten bits. `BackendConfig.deterministic` selects
reproducible kernels.
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
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.first_call import FirstCall
from diffusion_core.backend.interface import BackendConfig, Description
from diffusion_core.common.errors import DuetError, out_of_memory_error
from diffusion_core.common.text import pluralize
from diffusion_core.runtime.distributed import ProcessGroup

# TensorFlow reads these when it is first imported. Without the first, its choice of kernels depends on the processor.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextmanager
def _buffered_stderr() -> Iterator[None]:
    """Buffer what is written to file descriptor 2, and show it only if an exception is raised.

    TensorFlow logs there before its logger reads its level, even if nothing is wrong.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(stderr, 2)
            buffer.seek(0)
            sys.stderr.write(buffer.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with _buffered_stderr():
    import tensorflow as tf

    GPUS = tf.config.list_physical_devices("GPU")
    for gpu in GPUS:  # before TensorFlow starts; otherwise it reserves all memory of every GPU
        tf.config.experimental.set_memory_growth(gpu, True)

from backends.tf import compiler  # noqa: E402
from backends.tf.parallel import Communicator  # noqa: E402

# Each network is a new tf.function, about which TensorFlow warns from the fifth on.
tf.get_logger().setLevel("ERROR")

__all__ = ["DeviceContext", "compile_obstacle", "describe", "live", "peak_memory_mib", "prepare"]


@dataclass(frozen=True)
class DeviceContext:
    """A device and the types used on it; times are `TIME` and classes `LABEL`.

    Args:
        device: the device.
        dtype: of weights, images and sums.
        compute: of the inputs of matrix products and convolutions; bfloat16 under mixed precision.
        compile: whether functions are compiled with XLA.
        communicator: sums over the processes that compute together.
    """

    device: str
    dtype: tf.DType
    compute: tf.DType
    compile: bool
    communicator: Communicator

    TIME: ClassVar[tf.DType] = tf.float64
    LABEL: ClassVar[tf.DType] = tf.int32

    def mixed_precision(self, *tensors: tf.Tensor) -> list[tf.Tensor]:
        """Cast the inputs of a product to `compute`."""
        return [tf.cast(tensor, self.compute) for tensor in tensors]

    @contextmanager
    def translate_out_of_memory(self, changes: bool = False) -> Iterator[None]:
        """Turn an out-of-memory error of the framework into that of `out_of_memory_error`."""
        try:
            yield
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            raise out_of_memory_error(self.device.strip("/"), error, changes) from error

    def tensor(self, array: NDArray, dtype: tf.DType | None = None) -> tf.Tensor:
        """Return an array as a tensor on the device, by default in the dtype of the context."""
        with tf.device(self.device):
            return tf.constant(np.asarray(array, (dtype or self.dtype).as_numpy_dtype))

    def images(self, array: NDArray) -> tf.Tensor:
        """Return images b h w c as a tensor."""
        return self.tensor(array)

    def function(self, function):
        """Return the function as one graph, compiled with XLA if `compile`."""

        def placed(*inputs):
            with tf.device(self.device):  # otherwise a graph runs on a GPU, wherever its inputs are
                return function(*inputs)

        graph = tf.function(placed, jit_compile=self.compile or None, autograph=False, reduce_retracing=True)
        return FirstCall(graph, compiler.COMPILER if self.compile else None, compiler.explain)


def prepare(config: BackendConfig, group: ProcessGroup) -> DeviceContext:
    """Choose the device, set TensorFlow's global options, and join the other processes.

    Raises:
        DuetError: if CUDA is requested but missing, threads are set after TensorFlow has started, or the other
            processes cannot be reached.
    """
    if config.device == "cuda" and not GPUS:
        raise DuetError(
            "backend.device: cuda was given, but TensorFlow finds no CUDA device; use cpu or auto, "
            "or install its CUDA libraries with the extra tf-cuda"
        )
    use_cuda = bool(GPUS) and config.device != "cpu"
    try:
        if config.threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(config.threads)
            tf.config.threading.set_inter_op_parallelism_threads(config.threads)
    except RuntimeError as error:
        raise DuetError(
            f"backend.threads: {config.threads} was given, but TensorFlow already runs with another number "
            f"of threads in this process ({error}); start a new process"
        ) from error
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    dtype = tf.float64 if config.precision == "float64" else tf.float32
    compute = tf.bfloat16 if config.precision == "bf16" else dtype
    device = "/GPU:0" if use_cuda else "/CPU:0"
    return DeviceContext(device, dtype, compute, config.compile, Communicator(group, device))


def live(device: str, config: BackendConfig) -> DeviceContext:
    """Return the context of an own network that is called where it is; no global option is set."""
    kind, _, index = device.partition(":")
    dtype = tf.float64 if config.precision == "float64" else tf.float32
    placed = f"/GPU:{index or 0}" if kind == "cuda" else "/CPU:0"
    return DeviceContext(placed, dtype, dtype, config.compile, Communicator(ProcessGroup(), placed))


def compile_obstacle(context: DeviceContext) -> str | None:
    """Return why nothing can be compiled here, and what to install; None if it can."""
    return compiler.compile_obstacle(context.device)


def describe(context: DeviceContext, config: BackendConfig) -> Description:
    """Return the device, the precision and the versions."""
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    name = f"cpu, {pluralize(threads, 'thread')}"
    if context.device.startswith("/GPU"):
        name = tf.config.experimental.get_device_details(GPUS[0]).get("device_name", context.device)
    mode = "XLA" if context.compile else "tf.function"
    versions = {"tensorflow": tf.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return Description("tf", name, config.precision, threads, mode, versions)


def peak_memory_mib(context: DeviceContext) -> float:
    """Return the peak memory of a GPU, or of the process on a CPU, in MiB."""
    if context.device.startswith("/GPU"):
        return tf.config.experimental.get_memory_info(context.device.strip("/"))["peak"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

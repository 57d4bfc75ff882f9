"""The device and the number types of PyTorch.

TF32 is always off: it rounds the inputs of every product to ten bits. `BackendConfig.deterministic` selects
reproducible kernels.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from backends.torch import compiler
from backends.torch.parallel import Communicator
from diffusion_core.backend.first_call import FirstCall
from diffusion_core.backend.interface import BackendConfig, Description
from diffusion_core.common.errors import DuetError, out_of_memory_error
from diffusion_core.common.text import pluralize
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["DeviceContext", "capture_cuda_graph", "compile_obstacle", "describe", "live", "peak_memory_mib", "prepare"]


@dataclass(frozen=True)
class DeviceContext:
    """A device and the types used on it; times are `TIME` and classes `LABEL`.

    Args:
        device: the device.
        dtype: of weights, images and sums.
        compute: of the inputs of matrix products and convolutions; bfloat16 under mixed precision.
        compile: whether functions are compiled.
        communicator: sums over the processes that compute together.
    """

    device: torch.device
    dtype: torch.dtype
    compute: torch.dtype
    compile: bool
    communicator: Communicator

    TIME: ClassVar[torch.dtype] = torch.float64
    LABEL: ClassVar[torch.dtype] = torch.int64

    def mixed_precision(self) -> AbstractContextManager:
        """Return the context in which a network computes its products in `compute`."""
        if self.compute == self.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)

    @contextmanager
    def translate_out_of_memory(self, changes: bool = False) -> Iterator[None]:
        """Turn an out-of-memory error of the framework into that of `out_of_memory_error`."""
        try:
            yield
        except MemoryError as error:
            raise out_of_memory_error(str(self.device), error, changes) from error
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise out_of_memory_error(str(self.device), error, changes) from error

    def tensor(self, array: NDArray, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return an array as a tensor on the device, by default in the dtype of the context."""
        return torch.from_numpy(np.require(array, requirements="CW")).to(self.device, dtype or self.dtype)

    def images(self, array: NDArray) -> torch.Tensor:
        """Return images b h w c as b c h w in channels_last: a view, not a copy."""
        return self.tensor(array).permute(0, 3, 1, 2)

    def function(self, function):
        """Return the function, compiled if `compile`; on CUDA its calls without gradients become a CUDA graph."""
        if not self.compile:
            return function
        compiled = capture_cuda_graph(function) if self.device.type == "cuda" else torch.compile(function)
        return FirstCall(compiled, compiler.COMPILER, compiler.explain)


def capture_cuda_graph(
    function: Callable[..., torch.Tensor], compile: Callable = torch.compile
) -> Callable[..., torch.Tensor]:
    """Compile a function, and capture its calls without gradients as a CUDA graph.

    One row of a sampler starts several hundred kernels; a graph starts them as one. A graph always writes to the same
    memory. PyTorch copies the inputs into it; the output is copied out at once, since the history of a sampler
    outlives many calls. Training and calls that need gradients are compiled without a graph.

    Args:
        function: of tensors, returning one tensor.
        compile: `torch.compile`, or a replacement with the same signature for tests.
    """
    differentiable, graph = compile(function), compile(function, options={"triton.cudagraphs": True})

    def call(*inputs):
        if torch.is_grad_enabled():
            return differentiable(*inputs)
        torch.compiler.cudagraph_mark_step_begin()  # earlier outputs were copied, so their memory may be reused
        return graph(*inputs).clone()

    return call


def prepare(config: BackendConfig, group: ProcessGroup) -> DeviceContext:
    """Choose the device, set PyTorch's global options, and join the other processes.

    Raises:
        DuetError: if CUDA is requested but missing, or the other processes cannot be reached.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise DuetError("backend.device: cuda was given, but PyTorch finds no CUDA device; use cpu or auto")
    use_cuda = has_cuda and config.device != "cpu"
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = use_cuda and not config.deterministic
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic and use_cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # CUDA's fast attention kernels sum in an order that changes from run to run. The CPU's fast kernel is reproducible
    # and has the same switch.
    any_order = not (config.deterministic and use_cuda)
    torch.backends.cuda.enable_flash_sdp(any_order)
    torch.backends.cuda.enable_mem_efficient_sdp(any_order)
    torch.backends.cuda.enable_cudnn_sdp(any_order)
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    compute = torch.bfloat16 if config.precision == "bf16" else dtype
    device = torch.device("cuda" if use_cuda else "cpu")
    if use_cuda and group.size > 1:
        device = torch.device("cuda", group.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return DeviceContext(device, dtype, compute, config.compile, Communicator(group, device))


def live(device: str, config: BackendConfig) -> DeviceContext:
    """Return the context of an own network that is called where it is; no global option is set."""
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    placed = torch.device(device)
    return DeviceContext(placed, dtype, dtype, config.compile, Communicator(ProcessGroup(), placed))


def compile_obstacle(context: DeviceContext) -> str | None:
    """Return why nothing can be compiled here, and what to install; None if it can."""
    return compiler.compile_obstacle(context.device.type)


def describe(context: DeviceContext, config: BackendConfig) -> Description:
    """Return the device, the precision and the versions."""
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if context.device.type == "cuda" else f"cpu, {pluralize(threads, 'thread')}"
    mode = "torch.compile" if context.compile else "eager"
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return Description("torch", name, config.precision, threads, mode, versions)


def peak_memory_mib(context: DeviceContext) -> float:
    """Return the peak memory of a GPU, or of the process on a CPU, in MiB."""
    if context.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

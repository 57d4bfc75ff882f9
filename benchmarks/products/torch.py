"""Parts of a training step or of sampling alone, as fast as PyTorch runs them: bounds for the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from numpy.typing import NDArray

from backends.torch.device import DeviceContext
from backends.torch.loss import batch_tensors
from backends.torch.network import Network, convolve
from backends.torch.trainer import Trainer
from benchmarks.convolutions import Convolution
from diffusion_core.backend.interface import TrainBatch

__all__ = ["convolutions", "evaluations", "matrices", "passes"]


def passes(trainer: Trainer, batch: TrainBatch) -> Callable[[], None]:
    """Return a function that runs the forward and the backward pass of a batch on the device, and waits."""
    on_device = batch_tensors(batch, trainer.context)

    def run() -> None:
        trainer.accumulate(on_device, 1)
        _wait(trainer.context)

    return run


def evaluations(network: Network, images: NDArray, label: NDArray, count: int) -> Callable[[], None]:
    """Return a function that evaluates a network `count` times on images on the device, and waits."""
    context = network.context
    x, label = context.images(images), context.tensor(label, torch.int64)
    c_noise, features = torch.zeros(len(x), dtype=torch.float64, device=x.device), network.zero_features(len(x))

    @torch.inference_mode()
    def run() -> None:
        for _ in range(count):
            network.call(x, c_noise, label, features, None)
        _wait(context)

    return run


def convolutions(context: DeviceContext, shapes: Sequence[Convolution], batch: int) -> Callable[[], None]:
    """Return a function that runs each convolution forward and backward for `batch` images, and waits."""
    prepared = []
    for shape in shapes:
        x = torch.randn(batch, shape.inputs, shape.size, shape.size, device=context.device, dtype=context.compute)
        weight = torch.randn(shape.outputs, shape.inputs, shape.kernel, shape.kernel, device=x.device, dtype=x.dtype)
        x, weight = (one.to(memory_format=torch.channels_last).requires_grad_() for one in (x, weight))
        prepared.append((x, weight, shape))

    def run() -> None:
        for x, weight, shape in prepared:
            y = convolve(x, weight, None, shape.stride, shape.padding)
            torch.autograd.grad(y, (x, weight), y.detach())
        _wait(context)

    return run


def matrices(context: DeviceContext, size: int) -> Callable[[], None]:
    """Return a function that multiplies two square matrices, and waits."""
    a = torch.randn(size, size, device=context.device, dtype=context.compute)

    def run() -> None:
        torch.mm(a, a)
        _wait(context)

    return run


def _wait(context: DeviceContext) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize()

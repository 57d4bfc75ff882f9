"""The products of a network alone, as fast as PyTorch's own kernels do them: what no step can be faster than."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from backends.torch.device import Place
from diffusion_core.unet.work import Convolution

__all__ = ["convolutions", "matrix_product"]


def convolutions(place: Place, shapes: Sequence[Convolution], batch: int) -> Callable[[], None]:
    """A function that does each convolution forward and backward once, for so many images, and waits for them."""
    prepared = []
    for shape in shapes:
        x = torch.randn(batch, shape.inputs, shape.size, shape.size, device=place.device, dtype=place.compute)
        weight = torch.randn(shape.outputs, shape.inputs, shape.kernel, shape.kernel, device=x.device, dtype=x.dtype)
        x, weight = (one.to(memory_format=torch.channels_last).requires_grad_() for one in (x, weight))
        prepared.append((x, weight, shape))

    def run() -> None:
        for x, weight, shape in prepared:
            y = F.conv2d(x, weight, stride=shape.stride, padding=shape.kernel // 2)
            torch.autograd.grad(y, (x, weight), y.detach())
        _wait(place)

    return run


def matrix_product(place: Place, size: int) -> Callable[[], None]:
    """A function that multiplies two square matrices and waits for them."""
    a = torch.randn(size, size, device=place.device, dtype=place.compute)

    def run() -> None:
        torch.mm(a, a)
        _wait(place)

    return run


def _wait(place: Place) -> None:
    if place.device.type == "cuda":
        torch.cuda.synchronize()

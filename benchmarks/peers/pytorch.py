"""Shared code of the peers in PyTorch: threads and TF32 as in Duet, and images to train on."""

from __future__ import annotations

import resource
from collections.abc import Callable

import torch

from benchmarks.peers import Task, nearest_width

__all__ = ["build_nearest", "configure", "count_parameters", "make_images", "peak_memory_mib"]


def configure(task: Task) -> str:
    """Set PyTorch's global options; return the device."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = task.device == "cuda"
    return task.device


def make_images(task: Task, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a batch of uint8 images (b, c, h, w) on the device, and their classes or None."""
    shape = (task.batch, task.channels, task.size, task.size)
    labels = torch.arange(task.batch, device=device) % task.classes if task.classes else None
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device), labels


def count_parameters(network: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in network.parameters())


def build_nearest(build: Callable[[Task, int], torch.nn.Module], task: Task, least: int, step: int) -> torch.nn.Module:
    """Build a network with the width that brings its number of parameters nearest to that of the task."""

    def count(width: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(task, width))

    return build(task, nearest_width(count, task.parameters, least, step))


def peak_memory_mib() -> float:
    """Return the peak memory so far: of the GPU if one was used, otherwise of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

"""What the peers in PyTorch share: threads and TF32 as Duet has them, and pictures to train on."""

from __future__ import annotations

import resource
from collections.abc import Callable

import torch

from peers import Task, nearest

__all__ = ["built", "parameters", "peak_memory_mib", "pictures", "start"]


def start(task: Task) -> str:
    """Set what PyTorch keeps globally; gives the device."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = task.device == "cuda"
    return task.device


def pictures(task: Task, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A batch of uint8 pictures b c h w on the device, and their classes or None."""
    shape = (task.batch, task.channels, task.size, task.size)
    labels = torch.arange(task.batch, device=device) % task.classes if task.classes else None
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device), labels


def parameters(network: torch.nn.Module) -> int:
    """How many numbers it learns."""
    return sum(p.numel() for p in network.parameters())


def built(build: Callable[[Task, int], torch.nn.Module], task: Task, least: int, step: int) -> torch.nn.Module:
    """A network of the width at which it has about as many parameters as the task says."""

    def count(width: int) -> int:
        with torch.device("meta"):
            return parameters(build(task, width))

    return build(task, nearest(count, task.parameters, least, step))


def peak_memory_mib() -> float:
    """The most memory used so far: of the GPU where one was used, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

"""Other libraries with the same workloads, as contestants of `benchmarks.bench`.

Each module builds a network with the same levels, in the form that its own documentation teaches, with as many
parameters as Duet's or as near as its widths allow. It runs the same rounds: training steps (uint8 images to network
inputs, noise, forward, backward, clip, Adam, moving average) and complete sampling, from noise to host arrays. TF32 is
off, as in Duet. A module loads its framework when it is imported, and imports nothing else of Duet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["PEERS", "BuiltContestant", "Task", "Workloads", "nearest_width"]

# Functions by the name of the workload; each runs one round and returns the number of images in it.
Workloads = dict[str, Callable[[], int]]

# The module of each peer, and the backend in whose environment it runs.
PEERS = {
    "diffusers": ("benchmarks.peers.diffusers", "torch"),
    "denoising_diffusion_pytorch": ("benchmarks.peers.lucidrains", "torch"),
    "keras": ("benchmarks.peers.keras", "tf"),
}


class BuiltContestant(NamedTuple):
    """A contestant that is ready to run.

    Args:
        facts: its versions and its number of parameters.
        work: its workloads.
        peak_memory_mib: returns the peak memory so far: of a device with its own memory, otherwise of the process.
    """

    facts: dict[str, Any]
    work: Workloads
    peak_memory_mib: Callable[[], float]


@dataclass(frozen=True)
class Task:
    """What a peer builds, and what its rounds are.

    Args:
        size: height and width of the images.
        channels: channels of the images.
        classes: number of classes; 0 for an unconditional network.
        multipliers: the width of each level, as a multiple of the base width.
        blocks: residual blocks per level of the encoder.
        attention: the image sizes with attention.
        groups: groups of the group norms.
        parameters: number of parameters of Duet's network.
        T: steps of the discrete process, which has the linear schedule.
        batch: images per training step.
        steps: training steps per round.
        images: samples per round.
        ddim_steps: network evaluations of DDIM.
        device: ``"cpu"`` or ``"cuda"``.
        threads: CPU threads; None leaves the choice to the framework.
        compile: whether to use `torch.compile`, or `jit_compile`.
        bf16: whether products are computed in bfloat16.
    """

    size: int
    channels: int
    classes: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    groups: int
    parameters: int
    T: int
    batch: int
    steps: int
    images: int
    ddim_steps: int
    device: str
    threads: int | None
    compile: bool
    bf16: bool

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Task:
        """Make a task from JSON data, where tuples are lists."""
        return Task(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def nearest_width(count: Callable[[int], int], wanted: int, start: int, step: int) -> int:
    """Return the width, of `start` and `step` more at a time, whose number of parameters is nearest to the wanted one.

    Args:
        count: the number of parameters at a width, which rises with it.
        wanted: the wanted number of parameters.
        start: the least width.
        step: the distance of two widths.
    """
    width = start
    while count(width) < wanted:
        width += step
    below = max(start, width - step)
    return min((below, width), key=lambda one: abs(count(one) - wanted))

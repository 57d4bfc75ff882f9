"""What a person would use in Duet's place: other projects at the same work, as contestants of `experiments.bench`.

Each module builds a network of the same levels, in the form that its own documentation teaches, with as many parameters
as Duet's or as near as its widths allow, and gives the same rounds of work: steps of training (a batch of uint8
pictures to network values, noise, forward, backward, clip, Adam, moving average) and whole sampling from noise to host
arrays. TF32 is off, as in Duet. A module loads its framework when it is imported; nothing else of Duet imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["PEERS", "Contest", "Task", "Work", "nearest"]

# A round of work: what it is called, and a function that does one and gives the number of images in it.
Work = dict[str, Callable[[], int]]

# The module of each peer and the backend in whose environment it lives.
PEERS = {
    "diffusers": ("peers.diffusers", "torch"),
    "denoising_diffusion_pytorch": ("peers.lucidrains", "torch"),
    "keras": ("peers.keras", "tf"),
}


class Contest(NamedTuple):
    """A contestant that is ready.

    Args:
        facts: its versions and its number of parameters.
        work: what can be asked of it.
        peak_memory_mib: reads the most memory used so far: of the device where it has its own, else of the process.
    """

    facts: dict[str, Any]
    work: Work
    peak_memory_mib: Callable[[], float]


@dataclass(frozen=True)
class Task:
    """What is asked of a contestant.

    Args:
        size: height and width of the pictures.
        channels: of the pictures.
        classes: how many classes there are; 0 is none.
        multipliers: of the width at each level.
        blocks: residual blocks per level on the way down.
        attention: the sizes at which there is attention.
        groups: of the group norms.
        parameters: of Duet's network.
        T: steps of the discrete process, which has the linear schedule.
        batch: images per training step.
        steps: training steps per round.
        images: samples per round.
        ddim_steps: network evaluations of DDIM.
        device: "cpu" or "cuda".
        threads: CPU threads; None leaves the framework's choice.
        compile: `torch.compile`, or `jit_compile`.
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
    def of(given: dict[str, Any]) -> Task:
        """From plain data, in which tuples are lists."""
        return Task(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def nearest(count: Callable[[int], int], wanted: int, start: int, step: int) -> int:
    """The width of a network whose number of parameters is nearest to the wanted one, rising from `start`."""
    width = start
    while count(width) < wanted:
        width += step
    below = max(start, width - step)
    return min((below, width), key=lambda one: abs(count(one) - wanted))

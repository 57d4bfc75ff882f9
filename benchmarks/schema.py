"""The configuration schema of `benchmarks.bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from experiments.config.schema import OwnNetworkSchema, ProcessSchema, add_schema

__all__ = ["BenchSchema"]


@dataclass
class BenchSchema(OwnNetworkSchema):
    """Configuration of `benchmarks.bench`.

    Args:
        out: the directory for the results.
        contestants: names of contestants; an empty list is all of them.
        precisions: the precisions of each contestant.
        compile: the modes of each contestant: compiled or not.
        device: ``"cpu"`` or ``"cuda"``; ``device=cuda`` also sets a suitable workload, see configs/device.
        threads: CPU threads; null leaves the choice to the framework.
        work: the workloads: train, ddim, ddpm.
        batch: images per training step.
        steps: training steps per round.
        images: samples per round.
        ddim_steps: network evaluations of DDIM.
        repeats: rounds, after one to warm up.
        limit_s: seconds after which a round is ended.
        at_once: contestants in memory at the same time; null is all of them, which interleaves their rounds.
        vary: what takes each of the `values`: batch, images, ddim_steps or image_size.
        values: its values.
        shape: of one sample of an own network, its channels last.
        model: the network.
        process: the diffusion process.
    """

    out: str = MISSING
    contestants: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=lambda: ["float32"])
    compile: list[bool] = field(default_factory=lambda: [False])
    device: str = "cpu"
    threads: int | None = None
    work: list[str] = field(default_factory=lambda: ["train", "ddim"])
    batch: int = 64
    steps: int = 4
    images: int = 16
    ddim_steps: int = 50
    repeats: int = 10
    limit_s: float = 1800.0
    at_once: int | None = None
    vary: str | None = None
    values: list[int] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    model: Any = MISSING
    process: ProcessSchema = field(default_factory=ProcessSchema)


add_schema("bench", BenchSchema)

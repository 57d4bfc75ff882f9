"""A run of Duet as a side of `duet diff`: which network, which weights, and inputs for it.

The network is compared as it is called, without its process: it reads images, times (the noise level c_noise, which is
t for networks of eps, x_0 and v), labels if it has classes, and features if it has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.runs.checkpoint import load_checkpoint

__all__ = ["RunNetwork", "name_inputs", "open_run"]


@dataclass(frozen=True, eq=False)
class RunNetwork:
    """The network of a run.

    Attributes:
        program: its blocks.
        weights: those that its run samples with, or the ones asked for.
        shape: of its images, (h, w, c).
        times: noise levels that it knows, from the least to the most noise.
        inputs: names of what it reads, in the order in which it is called.
    """

    program: Program
    weights: Weights
    shape: tuple[int, int, int]
    times: NDArray[np.float64]
    inputs: tuple[str, ...]

    def draw(self, seed: int, layout: str, batch: int = 2) -> tuple[NDArray, ...]:
        """Return inputs in the order of `inputs`: float32 images in a layout, float64 times, int64 labels."""
        rng = np.random.default_rng(seed)
        images = rng.standard_normal((batch, *self.shape)).astype(np.float32)
        labels = np.array(self.program.labels or [0])
        drawn = {
            "x": images if layout == "channels_last" else np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
            "c_noise": self.times[rng.integers(0, len(self.times), batch)],
            "label": rng.choice(labels, batch).astype(np.int64),
            "features": rng.standard_normal((batch, self.program.features)).astype(np.float32),
            "second_time": self.times[rng.integers(0, len(self.times), batch)],
        }
        return tuple(drawn[name] for name in self.inputs)


def name_inputs(names: Sequence[str], given: Sequence[Any]) -> dict[str, Any]:
    """Return what the network of a run is called with by name.

    Raises:
        ValueError: there are more or fewer inputs.
    """
    if len(names) != len(given):
        raise ValueError(f"the network of this run reads {', '.join(names)}, but {len(given)} inputs were given")
    return dict(zip(names, given, strict=True))


def open_run(path: str | Path, weights: str | None = None) -> RunNetwork:
    """Read the network of a run or a checkpoint.

    Args:
        path: a run directory, or one of its checkpoints.
        weights: ``"ema"``, a further average or ``"weights"``; None is what the run samples with.

    Raises:
        DuetError: if there is no such run, or if it is of an own network, whose code it does not keep.
    """
    checkpoint = load_checkpoint(path)
    model = checkpoint.model
    if isinstance(model.spec, OwnSpec):
        raise DuetError(
            f"{path}: this run is of an own network, whose code it does not keep; name its file and function"
        )
    chosen = weights or checkpoint.notes.get("weights", "ema")
    if chosen not in checkpoint.state.parts:
        raise one_of("weights", chosen, [part for part in checkpoint.state.parts if not part.startswith("moment")])
    read = {name for node in model.program.nodes for name in node.inputs}
    schedule = model.process.schedule
    t = np.arange(schedule.length, dtype=np.float64) if schedule.is_table else schedule.even_timesteps(100)
    return RunNetwork(
        model.program,
        checkpoint.state.parts[chosen],
        model.spec.image_shape,
        model.process.columns(t).c_noise,
        tuple(name for name in ("x", "c_noise", "label", "features", "second_time") if name in read),
    )

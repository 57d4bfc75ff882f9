"""What weights can be written as. A target is a function; its keyword-only arguments are its options.

Each is given the opened backend's opener, the checkpoint, the weights and where to write, and gives a line for the
person. It checks everything before it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffusion_core.backend import Backend
from diffusion_core.checkpoint import Checkpoint, write_atomically
from diffusion_core.convert import export_pipeline
from diffusion_core.weights import Weights

__all__ = ["TARGETS"]


def _diffusers(
    opened: Callable[[], Backend],
    found: Checkpoint,
    weights: Weights,
    out: Path,
    *,
    variance: str = "fixed_small",
    clip: float | None = 1.0,
) -> str:
    """A `DDPMPipeline` directory; `variance` and `clip` are those of Duet's sampler ddpm."""
    files = export_pipeline(found.problem, weights, variance, clip)
    for name in sorted(files, reverse=True):  # the configurations last: a folder without one is no model
        write_atomically(out / name, files[name])
    if found.problem.spec.num_classes:
        return "a UNet2DModel with classes; DDPMPipeline loads it, but gives a network no labels when it samples"
    return "a DDPMPipeline"


# By the name that target=NAME gives.
TARGETS: dict[str, Callable[..., str]] = {
    "diffusers": _diffusers,
}

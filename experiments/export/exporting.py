"""Writing the weights of a checkpoint in another format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_core.backend.interface import Backend
from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.networks.own import OwnSpec
from diffusion_core.runs.checkpoint import load_checkpoint
from experiments.export.targets import TARGETS
from experiments.runtime.backends import BackendSetup
from experiments.sampling.conditions import describe_weights
from experiments.sampling.options import choose_weights

__all__ = ["export_checkpoint"]


def export_checkpoint(
    checkpoint: str,
    out: Path,
    target: Mapping[str, Any],
    weights: str | None = None,
    backend: BackendSetup | None = None,
) -> str:
    """Write the weights of a checkpoint to `out`; return a line that says what was written.

    Args:
        checkpoint: a run directory or one of its checkpoints.
        out: a path that does not exist, or an empty directory.
        target: name and options, see `experiments.export.targets`.
        weights: which weights; None takes those that the run samples with.
        backend: what a target uses that only a backend can write.

    Raises:
        DuetError: if something does not fit, or the written network differs from the reference.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DuetError(f"out: {str(out)!r} was given and exists already; give another path")
    loaded, setup = load_checkpoint(checkpoint), backend or BackendSetup()
    if isinstance(loaded.model.spec, OwnSpec):
        raise DuetError(
            f"checkpoint: {checkpoint} is of an own network, {loaded.model.spec.reference}, whose blocks are unknown; "
            f"export duet.load({checkpoint!r}, network=...).network() by its framework"
        )
    weights = choose_weights("weights", weights, loaded)
    for note in describe_weights(loaded, weights):
        print(note, flush=True)

    def open_backend(name: str) -> Backend:
        if setup.name != name:
            raise DuetError(
                f"backend: {setup.name} was given, but this target is written by {name}; type: "
                f"python3 -m duet export_weights backend={name} ..."
            )
        return setup.open()

    options = dict(target)
    return build(
        "target", TARGETS, options.pop("name"), options, open_backend, loaded, loaded.state.parts[weights], out
    )

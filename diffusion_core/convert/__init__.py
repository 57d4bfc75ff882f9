"""Weights of other projects: their files become a model with its weights, and the other way round.

A format is two things: a function from its configuration, or from the names and shapes of its arrays, to a `UNetSpec`;
and a *name map* (`names`), which gives for every parameter of that network its place in the file.

May import: model, backend, networks, files and below; not runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_core.common.registry import build
from diffusion_core.convert.arrays import Reader
from diffusion_core.convert.ddpm_tf import import_ddpm_tf
from diffusion_core.convert.diffusers import export_pipeline, import_diffusers
from diffusion_core.convert.edm import import_edm
from diffusion_core.convert.guided_diffusion import import_guided_diffusion
from diffusion_core.convert.names import Imported

__all__ = ["SOURCES", "Imported", "export_pipeline", "import_weights"]

SOURCES: dict[str, Callable[..., Imported]] = {
    "diffusers": import_diffusers,
    "guided_diffusion": import_guided_diffusion,
    "ddpm_tf": import_ddpm_tf,
    "edm": import_edm,
}


def import_weights(
    source: str, path: Path, read: Reader, process: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> Imported:
    """What `path` holds, in the format `source`.

    Args:
        read: reads the files of a framework, see `backend.Backend.read_arrays`.
        process: all of `DiffusionModel` beside the network; None takes the source's own, or that of DDPM.
        options: of the source, as a person wrote them.

    Raises:
        DuetError: for an unknown source or option, and for a file that does not fit.
    """
    return build("source", SOURCES, source, options, path, read, process)

"""Weights of other projects: read their files as a diffusion model with weights, and write such files.

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
from diffusion_core.convert.ddpm_torch import import_ddpm_torch
from diffusion_core.convert.denoising_diffusion_pytorch import import_denoising_diffusion_pytorch
from diffusion_core.convert.diffusers import import_diffusers
from diffusion_core.convert.diffusers_export import export_pipeline
from diffusion_core.convert.dit import import_dit, import_sit
from diffusion_core.convert.dome272 import import_dome272
from diffusion_core.convert.edm import import_edm
from diffusion_core.convert.edm2 import import_edm2
from diffusion_core.convert.export_state_dict import export_state_dict
from diffusion_core.convert.guided_diffusion import import_guided_diffusion
from diffusion_core.convert.jit import import_jit
from diffusion_core.convert.names import Imported
from diffusion_core.convert.uvit import import_uvit

__all__ = ["SOURCES", "Imported", "export_pipeline", "export_state_dict", "import_weights"]

SOURCES: dict[str, Callable[..., Imported]] = {
    "diffusers": import_diffusers,
    "guided_diffusion": import_guided_diffusion,
    "ddpm_tf": import_ddpm_tf,
    "ddpm_torch": import_ddpm_torch,
    "edm": import_edm,
    "edm2": import_edm2,
    "dome272": import_dome272,
    "denoising_diffusion_pytorch": import_denoising_diffusion_pytorch,
    "dit": import_dit,
    "sit": import_sit,
    "uvit": import_uvit,
    "jit": import_jit,
}


def import_weights(
    source: str, path: Path, read: Reader, process: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> Imported:
    """Import a file or directory of another project.

    Args:
        source: its format, a key of `SOURCES`.
        path: the file or directory.
        read: reads files of a framework, see `backend.interface.Backend.read_arrays`.
        process: the fields of `DiffusionModel` except the network; None means those of the source, or of DDPM.
        options: options of the source.

    Raises:
        DuetError: for an unknown source or option, or a file that does not fit.
    """
    return build("source", SOURCES, source, options, path, read, process)

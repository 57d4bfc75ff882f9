"""A checkpoint made from another project's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import Imported as ImportedFile
from diffusion_core.convert import import_weights
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.files.atomic import write_atomically
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import describe_environment
from experiments.runtime.backends import BackendSetup
from experiments.sampling.plans import describe_sampler, make_sampler_plan, shared_options

__all__ = ["ImportSetup", "Imported", "describe_process", "import_checkpoint"]


@dataclass(frozen=True)
class ImportSetup:
    """A request to import weights.

    Args:
        path: the file or directory to read.
        source: the name of the format, see `diffusion_core.convert.SOURCES`.
        options: of the source.
        process: options of the diffusion process, in place of what the source says; None takes the source's own.
        backend: reads files in the format of a framework.
    """

    path: str
    source: str
    options: Mapping[str, Any]
    process: Mapping[str, Any] | None = None
    backend: BackendSetup = field(default_factory=BackendSetup)


@dataclass(frozen=True, eq=False)
class Imported:
    """The model of imported weights, a note on what they are, where their process comes from, and a line on their
    sampler, which is empty if the source names none.
    """

    model: DiffusionModel
    note: str
    process_origin: str
    sampler: str = ""


def import_checkpoint(setup: ImportSetup, out: Path) -> Imported:
    """Read and check the weights; write one checkpoint into the directory `out`, and config.yaml for ``from=out``."""

    def read(file: Path) -> dict[str, NDArray]:
        return setup.backend.load().read_arrays(file)

    imported = import_weights(setup.source, Path(setup.path), read, setup.process, dict(setup.options))
    notes = {
        "source": setup.source, "path": setup.path, "note": imported.note, "process": imported.process_source,
        **describe_environment(),
    }  # fmt: skip
    sampler, sampler_origin = None, ""
    if imported.sampler is not None:
        sampler, sampler_origin = shared_options() | dict(imported.sampler), "that of the source"
        try:
            make_sampler_plan(imported.model, sampler)
            notes["sampler"] = sampler
        except DuetError as reason:
            if setup.process is None:
                raise
            sampler, sampler_origin = None, f"sampler: that of the source does not fit the given process ({reason})"
    state = replace(TrainerState.fresh(imported.weights), averages=(imported.ema,))
    save_checkpoint(out / "checkpoints", Checkpoint(0, imported.model, 0, state, notes))
    text = yaml.safe_dump(_configuration(imported, sampler), sort_keys=False)
    write_atomically(out / "config.yaml", text.encode())
    if sampler is not None:
        sampler_origin = f"{describe_sampler(sampler)} ({sampler_origin})"
    return Imported(imported.model, imported.note, imported.process_source, sampler_origin)


def _configuration(imported: ImportedFile, sampler: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what an import knows of a training's configuration, with its keys: network, process and sampler."""
    process = imported.model.to_dict()
    network = {"architecture": process.pop("architecture"), **process.pop("spec")}
    known = {"model": network, "process": process | dict(imported.objective)}
    return known if sampler is None else known | {"sampler": dict(sampler)}


def describe_process(model: DiffusionModel) -> str:
    """Return the diffusion process of a model in one line."""
    options = {name: value for name, value in model.schedule.items() if name not in ("name", "T")}
    parts = [f"{model.schedule['name']}, {_describe_time(model.process.schedule)}"]
    parts += [f"{name} {_describe_value(value)}" for name, value in options.items()]
    parts += [f"{model.prediction} prediction", f"images in {list(model.value_range)}"]
    parts += [f"time_scale {model.time_scale:g}"] if model.time_scale != 1 else []
    parts += [f"{name} {value:g}" for name in ("time_offset", "t_floor", "boundary") if (value := getattr(model, name))]
    parts += [f"sigma_data {model.sigma_data:g}"] if model.prediction in ("edm", "trigflow") else []
    parts += [f"variance {model.variance}"] if model.variance != "fixed" else []
    return ", ".join(parts)


def _describe_value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"{value[0]:g} .. {value[-1]:g}"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _describe_time(schedule: AnySchedule) -> str:
    return f"{schedule.steps} levels" if schedule.is_table else "continuous time"

"""Make a checkpoint of another project's weights, from which both frameworks sample and go on training.

    python3 -m duet import_weights source=diffusers path=DIR out=outputs/imported
    python3 -m duet import_weights source=guided_diffusion path=64x64_diffusion.pt out=DIR \\
        source.image_size=64 source.head_channels=64 source.qkv_order=qkv \\
        process=eps_linear process.schedule.name=cosine
    python3 -m duet import_weights backend=tf source=ddpm_tf path=model.ckpt-790000 out=DIR source.image_size=32
    python3 -m duet import_weights source=edm path=weights.safetensors out=DIR
    python3 -m duet sample backend=tf checkpoint=outputs/imported out=outputs/samples

Files of a framework's own format are read by that framework: `.pt` and `.bin` with backend=torch, TensorFlow's
checkpoints with backend=tf; `.safetensors` and `.npz` with either. The options of a source are those of its function
in `diffusion_core.convert`; process=NAME takes the place of what the source says or DDPM's, the default, with what is
beside it, as +process.value_range=[0,1]. Which process it is is printed.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from diffusion_core.backend.interface import TrainerState, load_backend
from diffusion_core.common.errors import DuetError
from diffusion_core.convert import import_weights
from diffusion_core.diffusion.schedule import AnySchedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import count
from diffusion_core.runs.checkpoint import Checkpoint, list_checkpoints, save_checkpoint
from diffusion_core.runs.run_directory import describe_environment
from experiments.common import settings_of
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.config.schema import ProcessSchema

_PLACES = {"path": "file or directory to read", "out": "directory to write"}


@command("import_weights")
def main(cfg: DictConfig) -> None:
    """Read, check, and write one checkpoint."""
    out = Path(cfg.out)
    # What is left out is refused by the source itself, which says what else it takes.
    options = {name: cfg.source[name] for name in cfg.source if not OmegaConf.is_missing(cfg.source, name)}
    for name in ("path", "out"):
        if not cfg[name]:
            raise DuetError(f"{name}: nothing was given; it is the {_PLACES[name]}")
    if list_checkpoints(out / "checkpoints"):
        raise DuetError(f"out: {cfg.out!r} was given and holds checkpoints already; give another directory")
    process = None if cfg.process is None else _without_training(plain(cfg.process))

    def read(file: Path) -> dict[str, NDArray]:
        return load_backend(cfg.backend.name, settings_of(cfg, "float32")).read_arrays(file)

    name = options.pop("name")
    found = import_weights(name, Path(cfg.path), read, process, options)
    notes = {"source": name, "path": cfg.path, "note": found.note, "process": found.whose, **describe_environment()}
    state = replace(TrainerState.fresh(found.weights), averages=(found.ema,))
    save_checkpoint(out / "checkpoints", Checkpoint(0, found.model, 0, state, notes))
    print(f"{name}: {found.note}")
    print(f"process: {_in_words(found.model)} ({found.whose})")
    print(f"{count(found.model.program):,} parameters, {found.model.spec.image_size} pixels: checkpoint={out}")


def _in_words(model: DiffusionModel) -> str:
    """The process of a problem."""
    options = {name: value for name, value in model.schedule.items() if name not in ("name", "T")}
    words = [f"{model.schedule['name']}, {_levels(model.process.schedule)}"]
    words += [f"{name} {value:g}" for name, value in options.items()]
    words += [f"{model.prediction} prediction", f"images in {list(model.value_range)}"]
    words += [f"time_scale {model.time_scale:g}"] if model.time_scale != 1 else []
    words += [f"sigma_data {model.sigma_data:g}"] if model.prediction == "edm" else []
    words += [f"variance {model.variance}"] if model.variance != "fixed" else []
    return ", ".join(words)


def _without_training(process: dict[str, Any]) -> dict[str, Any]:
    """A process without what it says of training alone, which a file of ``configs/process`` may."""
    training = {field.name for field in fields(ProcessSchema)} - {field.name for field in fields(DiffusionModel)}
    return {name: value for name, value in process.items() if name not in training}


def _levels(schedule: AnySchedule) -> str:
    return f"{schedule.steps} levels" if schedule.is_table else "continuous time"


if __name__ == "__main__":
    main()

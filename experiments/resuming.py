"""What a run may be gone on with, and where it then starts.

A checkpoint says in its notes what it was made with; what is given later is compared with them, so that one run is not
of two minds: what would change its losses or its averages is refused unless `change_objective` asks for it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffusion_core.backend.interface import Backend, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.files.safe_read import read_json
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import profile_options
from diffusion_core.runs.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, load_checkpoint
from diffusion_core.training.loop import ResumeState, TrainingConfig
from experiments.config.convert import plain
from experiments.experiment import Experiment

__all__ = [
    "OWN",
    "carried_by",
    "made_by",
    "mode_begun_in",
    "notes_to_go_on",
    "result_of",
    "source_of",
    "start_of",
    "trained_for",
]

# What `resume` says of the run in this directory: go on with it; or do so if there is one, and else begin.
OWN = ("latest", "auto")


def source_of(resume: str | None, directory: Path) -> Path | None:
    """The checkpoint that is gone on from; None begins anew."""
    if resume not in OWN:
        return resume and find_checkpoint(resume)
    if list_checkpoints(directory / "checkpoints"):
        return find_checkpoint(directory)
    if (directory / "environment.json").exists():  # cut short before its first checkpoint: as it began
        came = read_json(directory / "environment.json")["resumed_from"]
        return came and find_checkpoint(came["source"])
    if resume == "latest":
        raise DuetError(f"resume: {directory} holds no checkpoint; name the run to go on with, as in hydra.run.dir=RUN")
    return None


def start_of(cfg: DictConfig, experiment: Experiment, directory: Path) -> tuple[Checkpoint, Path | None]:
    """Where training starts, and from which checkpoint: of this run (`latest`, `auto`), of another one, or none."""
    model, training_config = experiment.model, experiment.training_config
    source = source_of(cfg.resume, directory)
    if source is None:
        weights = initial_weights(model.program, cfg.seed, experiment.loader.dtype)
        return Checkpoint(0, model, cfg.seed, TrainerState.fresh(weights, len(experiment.ema.profiles)), {}), None
    found = load_checkpoint(source, model.spec)
    for name in ("schedule", "prediction", "value_range", "time_scale", "sigma_data", "variance", "uncertainty"):
        stored, given = getattr(found.model, name), getattr(model, name)
        if stored != given:
            raise DuetError(f"resume: {source} was trained with {name} {stored}, but {given} was given")
    # What older checkpoints do not say is not compared.
    stored, given = found.notes.get("trained_for", {}), trained_for(cfg, experiment)
    changed = [name for name in stored if stored[name] != given.get(name)]
    for name in changed:
        if not cfg.change_objective:
            raise DuetError(
                f"resume: {source} was trained with {name} {stored[name]}, but {given.get(name)} was given; "
                f"change_objective=true goes on with what is given"
            )
    skipped, halved = found.notes.get("skipped", 0), found.notes.get("halved")
    if type(skipped) is not int:
        raise DuetError(f"resume: {source} says that {skipped!r} updates were skipped before it")
    if halved is not None and (type(halved) is not int or halved < 1):
        raise DuetError(f"resume: {source} says that {halved!r} images were computed at a time")
    if found.seed != cfg.seed:
        raise DuetError(
            f"resume: the checkpoint is of seed {found.seed}, but seed {cfg.seed} was given; they must be equal"
        )
    left = training_config.images - found.images_seen
    # Of a run that was cut short after its last step, samples and result are still made.
    ended = left == 0 and cfg.resume in OWN
    if not ended and (left <= 0 or left % training_config.batch):
        raise DuetError(
            f"resume: the checkpoint has seen {found.images_seen} images and trainer.images is {training_config.images}; "
            f"give {found.images_seen} and a multiple of the batch {training_config.batch} to go on"
        )
    # The losses of another objective say nothing of those of this one.
    history = None if changed else found.history
    return replace(found, state=_with_averages(found, experiment, cfg.change_objective), history=history), source


def result_of(directory: Path, images_seen: int, training_config: TrainingConfig) -> dict[str, Any] | None:
    """What a run that has reached its end ended with; None where it has not, or was cut short before it said so."""
    file = directory / "result.json"
    if images_seen < training_config.images or not file.exists():
        return None
    result = read_json(file)
    return result if result.get("images_seen") == images_seen else None  # or of its end before it was made longer


def trained_for(cfg: DictConfig, experiment: Experiment) -> dict[str, Any]:
    """What decides the losses of a run beside its network and levels, by the key that says it."""
    given = {f"process.{name}": value for name, value in experiment.objective.options.items()}
    return given | {f"data.{name}": cfg.data[name] for name in ("flip", "augment")}


def _with_averages(found: Checkpoint, experiment: Experiment, change: bool) -> TrainerState:
    """The state of a checkpoint with the averages that the configuration asks for."""
    ema, state, batch = experiment.ema, found.state, experiment.training_config.batch
    if state.updates == 0:  # of weights that were imported: every average starts with theirs
        state = replace(state, averages=(state.ema,) * len(ema.profiles))
    if len(state.averages) != len(ema.profiles):
        raise DuetError(
            f"resume: the checkpoint keeps {pluralize(len(state.averages), 'average')} of the weights, but "
            f"ema and ema.extra give {len(ema.profiles)}; there must be as many"
        )
    kept, given = found.notes.get("averages"), [profile_options(profile) for profile in ema.profiles]
    differ = state.updates > 0 and kept != given
    if differ and kept is not None and not ema.snapshot_images and not change:
        raise DuetError(
            f"resume: the checkpoint's averages are {kept}, but {given} were given; change_objective=true goes on with "
            f"what is given"
        )
    if ema.snapshot_images:
        if differ:
            raise DuetError(
                f"resume: the checkpoint's averages are {kept}, but {given} were given; a snapshot is of one profile "
                f"from the start, so give those, or ema.snapshot_images=0"
            )
        if found.images_seen != state.updates * batch:
            raise DuetError(
                f"resume: the checkpoint has seen {found.images_seen} images in {state.updates} updates, but the batch "
                f"is {batch}; snapshots need the same batch from the start, or give ema.snapshot_images=0"
            )
    return state


def mode_begun_in(cfg: DictConfig, start: Checkpoint) -> bool | None:
    """Whether functions were compiled in the run that is gone on with, if it says so and was of the same backend."""
    begun = start.notes.get("compile") if start.notes.get("backend") == cfg.backend.name else None
    return begun if isinstance(begun, bool) else None


def made_by(cfg: DictConfig, backend: Backend) -> dict[str, Any]:
    """What computed something that is kept, and in which mode, which `mode_begun_in` looks at."""
    facts = {"backend": cfg.backend.name, "precision": cfg.precision, "compile": backend.config.compile}
    return facts | {"versions": backend.describe().versions}


def carried_by(start: Checkpoint) -> ResumeState:
    """What a run starts from, beside what its trainer holds."""
    return ResumeState(start.history, start.notes.get("skipped", 0), start.notes.get("halved"))


def notes_to_go_on(
    cfg: DictConfig, experiment: Experiment, backend: Backend, resume_state: ResumeState
) -> dict[str, Any]:
    """What a checkpoint says beside its numbers, which those who go on with it look at, and who samples."""
    return made_by(cfg, backend) | {
        "averages": [profile_options(profile) for profile in experiment.ema.profiles],
        "trained_for": trained_for(cfg, experiment),
        "sampler": plain(cfg.sampler),
        "weights": cfg.sample.weights,
        "skipped": resume_state.skipped,
        "halved": resume_state.reduced_micro_batch,
    }

"""Choose the checkpoint that a run starts from, and compare a resumed run with it.

The notes of a checkpoint hold the objective, the data augmentation and the averages that it was trained with, and its
training record the data. Another value of one of these is an error when a run is resumed, unless `change_objective` or
`change_data` allows it; see `changes`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.backend.interface import Backend, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.files.lock import LOCK
from diffusion_core.files.safe_read import read_json
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import profile_options
from diffusion_core.runs.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, load_checkpoint
from diffusion_core.training.events import ResumeState
from diffusion_core.training.training_config import TrainingConfig
from experiments.training.changes import (
    changed_objective,
    check_data,
    check_process,
    first_difference,
    objective_notes,
    with_slots,
)
from experiments.training.record import fresh_record
from experiments.training.setup import TrainingSetup

__all__ = [
    "RESUME_IN_PLACE",
    "checkpoint_notes",
    "compiled_in",
    "computed_by",
    "find_source",
    "first_state",
    "previous_result",
    "resume_state",
    "resumed_state",
    "starting_point",
    "was_begun",
]

# Values of `resume` for the run in the directory itself: resume it; or resume it if it exists, and else start it.
RESUME_IN_PLACE = ("latest", "auto")
# When this process began, before Hydra made its directory.
_STARTED = time.time()


def was_begun(directory: Path) -> bool:
    """Return whether an earlier process began a run in a directory, however early it was killed.

    Call it before the directory is locked. Hydra makes the directory of a run that is only being started, too; but then
    it is younger than this process, and without a lock file.
    """
    # A file system may date a new file a few milliseconds back.
    return directory.is_dir() and ((directory / LOCK).exists() or directory.stat().st_mtime < _STARTED - 0.1)


def find_source(resume: str | None, directory: Path, is_begun: bool = False) -> Path | None:
    """Return the checkpoint to resume from; None starts a new run.

    Args:
        resume: a run directory or a checkpoint; ``"latest"`` or ``"auto"`` for the run in `directory`; or None.
        directory: of the run.
        is_begun: whether a run was begun in this directory, see `was_begun`; ``"latest"`` then starts it afresh if it
            was killed before it wrote anything.

    Raises:
        DuetError: if there is no such checkpoint.
    """
    if resume not in RESUME_IN_PLACE:
        return resume and find_checkpoint(resume, "resume")
    if list_checkpoints(directory / "checkpoints"):
        return find_checkpoint(directory)
    if (directory / "environment.json").exists():  # interrupted before its first checkpoint: start as it started
        resumed_from = read_json(directory / "environment.json")["resumed_from"]
        return resumed_from and find_checkpoint(resumed_from["source"], "resume")
    if resume == "latest" and not is_begun:
        raise DuetError(
            f"resume: {directory} holds no checkpoint; start it without resume, or name an existing run with "
            f"hydra.run.dir=RUN"
        )
    return None


def first_state(setup: TrainingSetup) -> Checkpoint:
    """Return the state that a new run starts from: drawn weights, those of an own network, or those of its teacher."""
    weights = initial_weights(setup.model.program, setup.seed, setup.loader.dtype)
    if setup.teacher is not None and (taught := setup.teacher.start_weights(setup.model)) is not None:
        weights = {name: np.asarray(taught.get(name, value), value.dtype) for name, value in weights.items()}
    state = TrainerState.fresh(weights, setup.averages)
    return Checkpoint(0, setup.model, setup.seed, state, {}, training=fresh_record(setup))


def resumed_state(checkpoint: Checkpoint, setup: TrainingSetup, source: Path, change_objective: bool) -> Checkpoint:
    """Return a checkpoint as training continues from it: with the averages and the optimiser of the setup.

    Raises:
        DuetError: if the averages or the optimiser are others, and `change_objective` is false.
    """
    # The loss history of another objective does not apply to this one.
    history = None if changed_objective(checkpoint, setup) else checkpoint.history
    state = with_slots(checkpoint, setup, source, change_objective)
    checkpoint = replace(checkpoint, state=state, history=history)
    return replace(checkpoint, state=_with_averages(checkpoint, setup, change_objective))


def starting_point(
    setup: TrainingSetup,
    directory: Path,
    resume: str | None = None,
    change_objective: bool = False,
    change_data: bool = False,
    is_begun: bool = False,
) -> tuple[Checkpoint, Path | None]:
    """Return the state that training starts from, and the checkpoint that it was read from, if any.

    Args:
        setup: what is to be trained.
        directory: of the run.
        resume: see `find_source`.
        change_objective: whether a resumed run may have another objective or other averages than before.
        change_data: whether a run that is resumed in its own directory may have other data than before.
        is_begun: see `find_source`.

    Raises:
        DuetError: if the checkpoint does not fit the setup.
    """
    source = find_source(resume, directory, is_begun)
    if source is None:
        return first_state(setup), None
    checkpoint = load_checkpoint(source, setup.model.spec)
    check_process(checkpoint, setup, source)
    for name, (stored, current) in changed_objective(checkpoint, setup).items():
        if not change_objective:
            name, stored, current = first_difference(name, stored, current)
            raise DuetError(
                f"resume: {source} was trained with {name} {stored}, but {current} was given; "
                f"change_objective=true allows the change"
            )
    check_data(checkpoint, setup, directory, source, change_data)
    _check_notes(checkpoint, source)
    if checkpoint.seed != setup.seed:
        raise DuetError(
            f"seed: {setup.seed} was given, but the checkpoint used seed {checkpoint.seed}; add seed={checkpoint.seed}"
        )
    _check_length(checkpoint, setup.training_config, is_own=resume in RESUME_IN_PLACE)
    return resumed_state(checkpoint, setup, source, change_objective), source


def _check_notes(checkpoint: Checkpoint, source: Path) -> None:
    skipped, micro_batch = checkpoint.notes.get("skipped", 0), checkpoint.notes.get("halved")
    if type(skipped) is not int:
        raise DuetError(
            f"resume: {source} is damaged: skipped is {skipped!r}, not an integer; resume from an earlier checkpoint"
        )
    if micro_batch is not None and (type(micro_batch) is not int or micro_batch < 1):
        raise DuetError(
            f"resume: {source} is damaged: halved is {micro_batch!r}, not a count; resume from an earlier one"
        )


def _check_length(checkpoint: Checkpoint, config: TrainingConfig, is_own: bool) -> None:
    left = config.images - checkpoint.images_seen
    # A run that was interrupted after its last step has no steps left, but its samples and result are still made.
    is_trained = left == 0 and is_own
    if not is_trained and left == 0:
        raise DuetError(
            f"resume: the checkpoint is already trained to {config.images} images; set trainer.images above that to "
            f"continue: {config.images} plus a multiple of the batch {config.batch}"
        )
    if left < 0 or left % config.batch:
        raise DuetError(
            f"resume: the checkpoint has seen {checkpoint.images_seen} images and trainer.images is {config.images}; "
            f"to continue, give {checkpoint.images_seen} plus a multiple of the batch {config.batch}"
        )


def _with_averages(checkpoint: Checkpoint, setup: TrainingSetup, change_objective: bool) -> TrainerState:
    """Return the state of a checkpoint with the averages of the setup."""
    ema, state, batch = setup.ema, checkpoint.state, setup.training_config.batch
    if state.updates == 0:  # imported weights: every average starts at theirs
        state = replace(state, averages=(state.ema,) * setup.averages)
    if len(state.averages) != setup.averages:
        of_targets = " and the objective" if setup.objective.uses_average else ""
        raise DuetError(
            f"resume: the checkpoint keeps {pluralize(len(state.averages), 'average')} of the weights, but "
            f"ema and ema.extra{of_targets} give {setup.averages}; set ema.extra so that there are "
            f"{len(state.averages)}"
        )
    stored, current = checkpoint.notes.get("averages"), [profile_options(profile) for profile in ema.profiles]
    differ = state.updates > 0 and stored != current
    if differ and stored is not None and not ema.snapshot_images and not change_objective:
        raise DuetError(
            f"resume: the checkpoint's averages are {stored}, but {current} were given; change_objective=true allows "
            f"the change"
        )
    if ema.snapshot_images:
        if differ:
            raise DuetError(
                f"resume: the checkpoint's averages are {stored}, but {current} were given; a snapshot is of one "
                f"profile from the start, so give those, or ema.snapshot_images=0"
            )
        if checkpoint.images_seen != state.updates * batch:
            raise DuetError(
                f"resume: the checkpoint has seen {checkpoint.images_seen} images in {state.updates} updates, but the "
                f"batch is {batch}; snapshots need the same batch from the start, or give ema.snapshot_images=0"
            )
    return state


def previous_result(directory: Path, images_seen: int, config: TrainingConfig) -> dict[str, Any] | None:
    """Return the result of a complete run; None if the run is not complete.

    A result that was written before the run was made longer does not count.
    """
    file = directory / "result.json"
    if images_seen < config.images or not file.exists():
        return None
    result = read_json(file)
    return result if result.get("images_seen") == images_seen else None


def compiled_in(checkpoint: Checkpoint, backend: str) -> bool | None:
    """Return whether the run of a checkpoint was compiled; None if it does not say so or had another backend."""
    compiled = checkpoint.notes.get("compile") if checkpoint.notes.get("backend") == backend else None
    return compiled if isinstance(compiled, bool) else None


def computed_by(setup: TrainingSetup, backend: Backend) -> dict[str, Any]:
    """Return the notes on what computed a checkpoint, and in which mode; `compiled_in` reads them."""
    facts = {"backend": setup.backend.name, "precision": setup.backend.precision, "compile": backend.config.compile}
    return facts | {"versions": backend.describe().versions}


def resume_state(checkpoint: Checkpoint) -> ResumeState:
    """Return what the training loop needs from a checkpoint in addition to the state of the trainer."""
    return ResumeState(checkpoint.history, checkpoint.notes.get("skipped", 0), checkpoint.notes.get("halved"))


def checkpoint_notes(setup: TrainingSetup, backend: Backend, state: ResumeState) -> dict[str, Any]:
    """Return the notes of a checkpoint, which resuming compares and sampling takes its defaults from."""
    return computed_by(setup, backend) | {
        "averages": [profile_options(profile) for profile in setup.ema.profiles],
        "trained_for": objective_notes(setup),
        "sampler": dict(setup.sampler),
        "weights": setup.sample.weights,
        "skipped": state.skipped,
        "halved": state.reduced_micro_batch,
    }

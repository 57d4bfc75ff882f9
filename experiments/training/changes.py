"""What differs between a checkpoint and the setup that resumes it.

Another process, objective, average or data set gives the stored weights another meaning, so it is an error when a run
is resumed in its own directory, unless `change_objective` or `change_data` allows it. A run that starts from the
checkpoint of another run may have other data, but says so. Other options of the optimiser are allowed, and named.

Everything is compared by value: a schedule or an option that is only written differently is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import complete_options
from diffusion_core.common.text import join_some, pluralize
from diffusion_core.diffusion.loss_weighting import WEIGHTINGS
from diffusion_core.diffusion.timestep_sampling import TIMESTEP_SAMPLERS
from diffusion_core.files.safe_read import read_json
from diffusion_core.optim import optimiser_options, role_of, start_slots
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.runs.training_record import DataRecord
from diffusion_core.training.coupling import COUPLINGS
from diffusion_core.training.objective import REGRESSION
from diffusion_core.training.path_noise import PATH_NOISES
from experiments.training.record import data_record
from experiments.training.setup import TrainingSetup

__all__ = [
    "changed_objective",
    "check_data",
    "check_process",
    "describe_changes",
    "first_difference",
    "objective_note",
    "objective_notes",
    "with_slots",
]

# By key of `objective_notes`: the functions that the option selects by name.
_REGISTRIES: Mapping[str, Mapping[str, Any]] = {
    "process.weighting": WEIGHTINGS,
    "process.timestep_sampling": TIMESTEP_SAMPLERS,
    "process.coupling": COUPLINGS,
    "process.path_noise": PATH_NOISES,
}
# What runs of earlier versions were trained with, which do not note it.
_EARLIER = {
    "process.coupling": {"name": "independent"}, "process.path_noise": {"name": "none"},
    "objective": {"name": REGRESSION},
}  # fmt: skip
_SHOWN = 3


def objective_notes(setup: TrainingSetup) -> dict[str, Any]:
    """Return by configuration key what determines the losses of a run, in addition to its network and its process."""
    options = {f"process.{name}": value for name, value in setup.objective.options.items() if name != "objective"}
    options["objective"] = objective_note(setup)
    return options | {f"data.{name}": getattr(setup.loader, name) for name in ("flip", "augment")}


def objective_note(setup: TrainingSetup) -> dict[str, Any]:
    """Return the training method with all of its options, and the hash of its teacher's weights."""
    method = setup.objective.training_method
    if method is None:
        return {"name": REGRESSION}
    teacher = setup.objective.setting.teacher
    return {"name": method.name} | method.options | ({} if teacher is None else {"teacher": teacher.sha256})


def changed_objective(checkpoint: Checkpoint, setup: TrainingSetup) -> dict[str, tuple[Any, Any]]:
    """Return by key what a checkpoint was trained with and what is given now.

    A checkpoint of an earlier version does not note the options that it did not have, which then had their defaults;
    one that notes nothing, of imported weights, is equal.
    """
    stored, current = checkpoint.notes.get("trained_for", {}), objective_notes(setup)
    stored = stored and _EARLIER | dict(stored)
    pairs = {name: (stored[name], current.get(name)) for name in stored}
    return {
        name: (one, other) for name, (one, other) in pairs.items() if _complete(name, one) != _complete(name, other)
    }


def first_difference(name: str, stored: Any, current: Any) -> tuple[str, Any, Any]:
    """Return (key, what was stored, what is given) of two different values: of two tables, their names or an option.

    Example:
        >>> first_difference("objective", {"name": "mean_flow", "omega": 1.0}, {"name": "mean_flow", "omega": 2.0})
        ('objective.omega', 1.0, 2.0)
    """
    if not (isinstance(stored, Mapping) and isinstance(current, Mapping)):
        return name, stored, current
    if stored.get("name") != current.get("name"):
        return name, stored.get("name"), current.get("name")
    keys = [key for key in {**stored, **current} if _normal(stored.get(key)) != _normal(current.get(key))]
    return (f"{name}.{keys[0]}", stored.get(keys[0]), current.get(keys[0])) if keys else (name, stored, current)


def _complete(name: str, value: Any) -> Any:
    """Return a value in a form that is equal for equal values."""
    if name in _REGISTRIES and isinstance(value, Mapping):
        value = complete_options(_REGISTRIES[name], value)
    return _normal(value)


def _normal(value: Any) -> Any:
    """Return plain data with sequences as tuples, so that a list read from a file equals the tuple that it was."""
    if isinstance(value, Mapping):
        return {key: _normal(item) for key, item in value.items()}
    return tuple(map(_normal, value)) if isinstance(value, list | tuple) else value


def check_process(checkpoint: Checkpoint, setup: TrainingSetup, source: Path) -> None:
    """Refuse another process than that of the checkpoint."""
    for name, (stored, current) in checkpoint.model.process_differences(setup.model).items():
        raise DuetError(
            f"resume: {source} was trained with process.{name} {_text(stored)}, but {_text(current)} was given; give "
            f"what it was trained with, or start a new run"
        )


def check_data(
    checkpoint: Checkpoint, setup: TrainingSetup, directory: Path, source: Path, change_data: bool = False
) -> None:
    """Refuse to resume a run in its own directory on other data, unless `change_data` allows it."""
    if change_data or not _is_own(directory, source):
        return
    current, record = data_record(setup), checkpoint.training
    difference = _old_difference(directory, current) if record is None else _data_difference(record.data, current)
    if difference:
        raise DuetError(
            f"resume: {source} was trained on {difference}; give the data that it was trained on, or allow the change "
            f"with change_data=true, or start from it in another directory with resume={source} hydra.run.dir=DIR"
        )


def _old_difference(directory: Path, current: DataRecord) -> str:
    """Return how data differ from those of a run of an earlier version, whose hash stands in environment.json only."""
    file = Path(directory) / "environment.json"
    stored = read_json(file).get("data") if file.exists() else None
    if not isinstance(stored, Mapping) or stored.get("sha256") in (None, current.sha256):
        return ""
    return (
        f"{stored.get('name')} ({stored.get('images')} images, hash {str(stored['sha256'])[:8]}), but "
        f"{_describe(current)} was given"
    )


def _is_own(directory: Path, source: Path) -> bool:
    """Return whether a checkpoint belongs to the run in this directory."""
    return Path(directory).resolve() in Path(source).resolve().parents


def with_slots(checkpoint: Checkpoint, setup: TrainingSetup, source: Path, change_objective: bool) -> TrainerState:
    """Return the state of a checkpoint for the optimiser of the setup.

    Args:
        checkpoint: that a run is resumed from.
        setup: of the run.
        source: the path of the checkpoint.
        change_objective: whether another optimiser may go on, from slots of its own at their start.

    Raises:
        DuetError: if the checkpoint was trained by another optimiser, and `change_objective` is false.
    """
    state, optimiser = checkpoint.state, setup.optimiser
    if state.updates == 0:  # weights that no optimiser has updated, such as imported ones
        return replace(state, slots={})
    current = optimiser_options(optimiser)["name"]
    stored = "adam" if checkpoint.training is None else checkpoint.training.optimiser.get("name", "adam")
    if stored != current:
        if change_objective:
            return replace(state, slots={})
        raise DuetError(
            f"optimiser.name: {current} was given, but {source} was trained by {stored}, whose state is another one; "
            f"give optimiser={stored}, or change_objective=true to go on from its weights with a fresh state"
        )
    # Where no axes are known, the trainer checks the shapes.
    roles = {p.name: role_of(p) for p in setup.model.program.parameters}
    if state.slots and (not optimiser.sees_axes or all(p.axes for p in setup.model.program.parameters)):
        start_slots(optimiser, roles, state.weights, state.slots)
    return state


def describe_changes(checkpoint: Checkpoint, setup: TrainingSetup) -> list[str]:
    """Return one line for each allowed change since a checkpoint: data, optimiser, learning rate, batch."""
    record = checkpoint.training
    if record is None:
        return []
    lines = []
    if difference := _data_difference(record.data, data_record(setup)):
        lines.append(f"data changed: trained so far on {difference}")
    batch = {"batch": setup.training_config.batch}
    for group, stored, current in (
        ("optimiser", record.optimiser, optimiser_options(setup.optimiser)),
        ("lr", record.learning_rate, asdict(setup.learning_rate)),
        ("trainer", {} if record.batch is None else {"batch": record.batch}, batch),
    ):
        changed = [name for name in stored if name in current and _normal(stored[name]) != _normal(current[name])]
        if changed:
            pairs = (f"{group}.{name} was {_text(stored[name])} and is now {_text(current[name])}" for name in changed)
            lines.append(f"changed: {', '.join(pairs)}")
    stored, current = checkpoint.notes.get("precision"), setup.backend.precision
    if stored not in (None, current):
        lines.append(f"changed: precision was {stored} and is now {current}")
    return lines


def _data_difference(stored: DataRecord, current: DataRecord) -> str:
    """Return what two data sets are and how they differ; an empty text if they are the same."""
    if stored.sha256 == current.sha256:
        return ""
    text = f"{_describe(stored)}, but {_describe(current)} was given"
    if stored.class_names != current.class_names:
        return f"{text}; {_class_difference(stored.class_names, current.class_names)}"
    if (stored.images, stored.name, stored.part) == (current.images, current.name, current.part):
        return f"{text}, which has the same number of images but another content"
    return text


def _describe(data: DataRecord) -> str:
    facts = [pluralize(data.images, "image"), pluralize(len(data.class_names), "class")]
    facts += [f"part {data.part}"] if data.part is not None else []
    return f"{data.name} ({', '.join(facts)}, hash {data.sha256[:8]})"


def _class_difference(stored: Sequence[str], current: Sequence[str]) -> str:
    """Return what has become of the classes."""
    pairs = enumerate(zip_longest(stored, current, fillvalue="no class"))
    changes = [f"class {k}: {one} -> {other}" for k, (one, other) in pairs if one != other]
    return join_some(changes, _SHOWN)


def _text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)

"""Checkpoints: directories that exist completely or not at all, and that either framework can read.

    checkpoints/000000012800/         named by images seen
        weights.safetensors           the network
        ema.safetensors               its moving average; ema1, ema2 ... hold further ones
        moment1.safetensors           first moments of Adam
        moment2.safetensors           second moments of Adam; other optimisers have other slots, listed as "slots"
        history.safetensors           the last losses at each timestep, for a timestep distribution that depends on them
        state.json                    images seen, updates, model (as "problem"), seed, hashes of all files, and what
                                      gives the weights their meaning (as "training"), see `training_record`

Names and axes are the canonical ones. A checkpoint is written under a temporary name, flushed to the disk and renamed;
every file is compared with its hash when it is read. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.backend.interface import TrainerState, average_names
from diffusion_core.common.errors import DuetError
from diffusion_core.common.paths import similar_path
from diffusion_core.common.text import join_some
from diffusion_core.diffusion.second_time import SecondTime
from diffusion_core.diffusion.timestep_sampling import LossHistory
from diffusion_core.files.atomic import flush_directory, pack_safetensors, write_flushed
from diffusion_core.files.safe_read import file_errors, read_bytes, read_json
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.old_names import notes_with_new_names
from diffusion_core.networks import NetworkSpec, Program, lower
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.weights import check_finite, check_weights
from diffusion_core.runs.training_record import TrainingRecord

__all__ = [
    "Checkpoint",
    "find_checkpoint",
    "hash_entries",
    "list_checkpoints",
    "load_checkpoint",
    "max_weight_bytes",
    "read_arrays",
    "repair_checkpoints",
    "save_checkpoint",
    "stored_hashes",
    "weights_hash",
]

# Format 2 has exactly one average and does not store the number of averages.
FORMAT, _READABLE = 3, (2, 3)
# An upper bound on the bytes per array in the header of a safetensors file.
_MAX_HEADER_BYTES = 1000
_ADAM_SLOTS = ("moment1", "moment2")


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """The state of a run after a step, from which it can be resumed or sampled.

    Args:
        images_seen: after the step.
        model: the network and its process.
        seed: of the random streams of the run.
        state: weights, averages, slots of the optimiser and the number of updates.
        notes: further plain data: backend, precision, versions, the training objective, and the sampler of the run.
        history: the losses that the next timesteps depend on, or None.
        training: what gives the weights their meaning, such as the class names; None for weights whose training is not
            known: imported ones, and those of earlier versions.

    Example:
        >>> from diffusion_core.networks import PlainSpec
        >>> from diffusion_core.networks.weights import initial_weights
        >>> model = DiffusionModel(PlainSpec(8, 1, 1, channels=(4,), bottleneck=8), "cosine", "v")
        >>> Checkpoint(0, model, 0, TrainerState.fresh(initial_weights(model.program, 0)), {})
        Checkpoint(images_seen=0, updates=0, architecture='plain', seed=0)
    """

    images_seen: int
    model: DiffusionModel
    seed: int
    state: TrainerState
    notes: Mapping[str, Any]
    history: LossHistory | None = None
    training: TrainingRecord | None = None

    def __repr__(self) -> str:
        return (
            f"Checkpoint(images_seen={self.images_seen}, updates={self.state.updates}, "
            f"architecture={self.model.architecture!r}, seed={self.seed})"
        )


def save_checkpoint(parent: Path, checkpoint: Checkpoint, keep: int | None = None) -> Path:
    """Write a checkpoint under `parent` and return its path; delete all but the last `keep` up to this one.

    Later checkpoints, which exist where a run is resumed from an earlier moment, are neither counted nor deleted.

    Args:
        parent: the directory of all checkpoints of a run; made if it does not exist.
        checkpoint: the state to store.
        keep: how many checkpoints up to this one to keep; None keeps all.

    Raises:
        DuetError: if it cannot be written; existing checkpoints are then unchanged.

    Example:
        >>> from diffusion_core.networks import PlainSpec
        >>> from diffusion_core.networks.weights import initial_weights
        >>> spec = PlainSpec(image_size=4, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
        >>> model = DiffusionModel(spec, {"name": "linear", "T": 10}, prediction="eps")
        >>> state = TrainerState.fresh(initial_weights(model.program, 0))
        >>> path = save_checkpoint(Path("run/checkpoints"), Checkpoint(0, model, seed=0, state=state, notes={}))
        >>> load_checkpoint("run")
        Checkpoint(images_seen=0, updates=0, architecture='plain', seed=0)
    """
    if keep is not None and keep < 1:
        raise DuetError(f"keep_checkpoints: {keep} was given; it must be at least 1, or null to keep all")
    parent = Path(parent)
    final = parent / f"{checkpoint.images_seen:012d}"
    temporary = _temporary_path(final, "new")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_files(temporary, checkpoint)
        flush_directory(temporary)
        if final.exists():
            _replace_directory(temporary, final)
        else:
            os.rename(temporary, final)
        flush_directory(parent)
        if keep is not None:
            for old in [path for path in list_checkpoints(parent) if path.name <= final.name][:-keep]:
                _delete(old)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise DuetError(f"{final}: the checkpoint cannot be written ({error.strerror or error})") from error
        raise
    return final


def _write_files(directory: Path, checkpoint: Checkpoint) -> None:
    parts = checkpoint.state.parts
    if checkpoint.history is not None:
        parts = parts | {"history": vars(checkpoint.history)}
    hashes = {}
    for part, arrays in parts.items():
        content = pack_safetensors(arrays)
        hashes[f"{part}.safetensors"] = hashlib.sha256(content).hexdigest()
        write_flushed(directory / f"{part}.safetensors", content)
    state = {
        "format": FORMAT,
        "images_seen": checkpoint.images_seen,
        "updates": checkpoint.state.updates,
        "averages": len(checkpoint.state.averages),
        "slots": list(checkpoint.state.slots),
        "seed": checkpoint.seed,
        "problem": checkpoint.model.to_dict(),
        "program_sha256": checkpoint.model.program.sha256,
        "notes": dict(checkpoint.notes),
        "files": hashes,
    }
    if checkpoint.training is not None:
        state["training"] = checkpoint.training.to_dict()
    state["sha256"] = hash_entries(state)
    write_flushed(directory / "state.json", json.dumps(state, indent=2).encode())


def stored_hashes(parts: Mapping[str, Mapping[str, NDArray]]) -> dict[str, str]:
    """Return by file of a checkpoint the hash that it has with these arrays, by part and name."""
    return {f"{part}.safetensors": hashlib.sha256(pack_safetensors(one)).hexdigest() for part, one in parts.items()}


def repair_checkpoints(parent: Path) -> None:
    """Repair what a killed process left: restore the name of a complete checkpoint, and delete incomplete ones.

    Only a process that has locked the run directory may call this; it would delete what another process is writing.

    Raises:
        DuetError: if a name cannot be restored.
    """
    parent = Path(parent)
    temporary = [path for path in parent.iterdir() if _TEMPORARY.fullmatch(path.name)] if parent.is_dir() else []
    for path in temporary:
        role, final = _TEMPORARY.fullmatch(path.name)["role"], parent / _TEMPORARY.fullmatch(path.name)["name"]
        try:
            if role == "old" and not final.exists():
                os.rename(path, final)
                flush_directory(parent)
        except OSError as error:
            raise DuetError(f"{final}: the checkpoint cannot be restored ({error.strerror or error})") from error
        shutil.rmtree(path, ignore_errors=True)


# Temporary names, which no reader takes for a checkpoint. A directory with the role "old" is always complete; one with
# the role "gone" is being deleted.
_TEMPORARY = re.compile(r"\.(?P<role>new|old|gone)\.(?P<name>\d+)\.\d+")


def _temporary_path(path: Path, role: str) -> Path:
    return path.with_name(f".{role}.{path.name}.{os.getpid()}")


def _delete(path: Path) -> None:
    # Renamed first, so that a reader never sees a checkpoint with missing files.
    temporary = _temporary_path(path, "gone")
    shutil.rmtree(temporary, ignore_errors=True)
    os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _replace_directory(new: Path, path: Path) -> None:
    # Not every system can exchange two names at once; `repair_checkpoints` repairs a kill between the two renamings.
    old, deleted = _temporary_path(path, "old"), _temporary_path(path, "gone")
    shutil.rmtree(deleted, ignore_errors=True)
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, deleted)
    shutil.rmtree(deleted, ignore_errors=True)


def hash_entries(entries: Mapping[str, Any]) -> str:
    """Return the hash of all entries but "sha256", which stores it, as they would be read back from JSON."""
    entries = json.loads(json.dumps({name: value for name, value in entries.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def list_checkpoints(parent: Path) -> list[Path]:
    """Return the complete checkpoints under a directory, oldest first."""
    parent = Path(parent)
    return sorted(p for p in parent.iterdir() if p.name.isdigit() and p.is_dir()) if parent.is_dir() else []


def find_checkpoint(path: str | Path, key: str = "checkpoint") -> Path:
    """Return the path of a checkpoint, given that path, a `checkpoints` directory or a run directory.

    If there are several, return the latest. An error names the configuration key `key`.

    Raises:
        DuetError: if there is no checkpoint.
    """
    if not isinstance(path, str | os.PathLike):
        raise DuetError(f"{key}: {path!r} was given; it must be the path of a run or of one of its checkpoints")
    path = Path(path).expanduser()
    if (path / "state.json").is_file():
        return path
    # Any other folder may hold one that is called 12.
    own = [child for child in list_checkpoints(path) if (child / "state.json").is_file()]
    checkpoints = list_checkpoints(path / "checkpoints") or own
    if not checkpoints:
        what = "holds no checkpoint" if path.exists() else "does not exist"
        advice = "give a run directory or one of its checkpoints/<images seen>"
        raise DuetError(f"{key}: {str(path)!r} {what}; {advice}{similar_path(path)}")
    return checkpoints[-1]


def load_checkpoint(
    path: str | Path, network: NetworkSpec | Program | None = None, require_finite: bool = True, key: str = "checkpoint"
) -> Checkpoint:
    """Read a checkpoint and check it.

    Args:
        path: a checkpoint, a `checkpoints` directory or a run directory; see `find_checkpoint`.
        network: the network that the checkpoint must have, if known. For a spec the error names the fields that differ.
        require_finite: whether to refuse numbers that are not finite; False only in the search for such numbers.
        key: the configuration key that an error names if there is no checkpoint.

    Returns:
        The checkpoint, whose arrays have the names, axes and shapes of the program's parameters.

    Raises:
        DuetError: if the checkpoint is missing, corrupt, of another network or written by a later version, or if a
            number in it is not finite.

    Example:
        See `save_checkpoint`.
    """
    path = find_checkpoint(path, key)
    with file_errors(path / "state.json"):
        state = read_json(path / "state.json", "it is corrupt")
        version, hashes, notes = state["format"], state["files"], state["notes"]
        if version not in _READABLE:
            readable = " and ".join(map(str, _READABLE))
            raise DuetError(f"{path}: it has format {version}; this version of Duet reads formats {readable}")
        if state["sha256"] != hash_entries(state):
            raise DuetError(f"{path / 'state.json'}: it is corrupt (its hash differs from the one stored in it)")
        model = DiffusionModel.from_dict(state["problem"])
        if state["program_sha256"] != model.program.sha256:
            raise DuetError(f"{path}: the version of Duet that wrote it builds another network from the same options")
        images_seen, updates, seed = (_count(state, name) for name in ("images_seen", "updates", "seed"))
        averages = _count(state, "averages") if version > 2 else 1
        if not 1 <= averages < len(hashes):  # each average has a file
            raise DuetError(f"{path / 'state.json'}: it lists {averages} averages and {len(hashes)} files")
        slots = _slot_names(state)
        names = ("weights", *average_names(averages), *slots)
        limit, slot_limit = max_weight_bytes(model.program), _max_slot_bytes(model.program)
        parts = {
            part: read_arrays(
                path / f"{part}.safetensors", hashes[f"{part}.safetensors"], slot_limit if part in slots else limit
            )
            for part in names
        }
        name, history = "history.safetensors", None
        if name in hashes:
            history = LossHistory(**read_arrays(path / name, hashes[name]))
        training = None if state.get("training") is None else TrainingRecord.from_dict(state["training"])
        state = TrainerState.from_parts(parts, updates)
        notes = notes_with_new_names(notes)
        if model.second_time is None and (meaning := SecondTime.of_notes(notes)) is not None:
            model = replace(model, second_time=meaning)
        checkpoint = Checkpoint(images_seen, model, seed, state, notes, history, training)
    if network is not None:
        _check_network(path, network, checkpoint)
    for part, arrays in parts.items():
        if part not in slots or slots == _ADAM_SLOTS:
            check_weights(model.program, arrays, str(path / f"{part}.safetensors"))
        elif unknown := arrays.keys() - {p.name for p in model.program.parameters}:
            raise DuetError(
                f"{path / f'{part}.safetensors'}: {min(unknown)}: no parameter of the network has this name"
            )
        check_finite(arrays, str(path / f"{part}.safetensors"), require_finite)
    return checkpoint


def max_weight_bytes(program: Program) -> int:
    """Return an upper bound on the size of a file of a program's weights, without the facts in its header."""
    return sum(_MAX_HEADER_BYTES + 8 * math.prod(p.shape) for p in program.parameters) + _MAX_HEADER_BYTES


def _max_slot_bytes(program: Program) -> int:
    """Return an upper bound on the size of a file of what an optimiser keeps: at most a square matrix per axis."""
    return max_weight_bytes(program) + sum(8 * max((n * n for n in p.shape), default=0) for p in program.parameters)


def _slot_names(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the optimiser's slots; the files of earlier versions have those of Adam."""
    names = state.get("slots", _ADAM_SLOTS)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"slots is {names!r}, not a list of names")
    return tuple(names)


def _count(state: Mapping[str, Any], name: str) -> int:
    """Return an entry of state.json that must be a whole number, at least 0."""
    if type(state[name]) is not int or state[name] < 0:
        raise TypeError(f"{name} is {state[name]!r}, not a whole number of at least 0")
    return state[name]


def weights_hash(path: str | Path, part: str = "ema") -> str:
    """Return the hash of one file of a checkpoint, to see whether samples were drawn from the same weights."""
    file = find_checkpoint(path) / "state.json"
    with file_errors(file):
        return str(read_json(file)["files"][f"{part}.safetensors"])


def read_arrays(path: Path, sha256: str, max_bytes: int = 1 << 28) -> dict[str, NDArray]:
    """Return the arrays of a safetensors file with a known hash.

    Args:
        path: the file.
        sha256: the hash that it must have.
        max_bytes: the largest size that is read.

    Raises:
        DuetError: if the file is missing, larger, or has another hash.
    """
    content = read_bytes(path, max_bytes)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DuetError(f"{path}: it is corrupt or cut short (its hash differs from the recorded one)")
    with file_errors(path, "it is not a safetensors file"):
        return tensors.load(content)


def _check_network(path: Path, network: NetworkSpec | Program, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another network, and name the fields or weights that differ."""
    spec = checkpoint.model.spec
    # A spec does not contain what a process adds to its network, so it is compared with the bare spec.
    program, own = (lower(network), lower(spec)) if isinstance(network, NetworkSpec) else (network, None)
    sha256 = (own or checkpoint.model.program).sha256
    if program.sha256 == sha256:
        return
    other = f"{path}: it is of another network"
    if isinstance(network, NetworkSpec) and type(network) is not type(spec):
        raise DuetError(f"{other}, a {type(spec).__name__}, but a {type(network).__name__} was given")
    if isinstance(network, NetworkSpec):
        if isinstance(spec, OwnSpec):
            spec.with_network(network)  # names the first array that differs
        pairs = [
            (field.name, getattr(spec, field.name), getattr(network, field.name))
            for field in fields(spec)
            if field.compare
        ]
        differ = [f"model.{name} {stored!r} (given: {given!r})" for name, stored, given in pairs if stored != given]
        raise DuetError(f"{other}, with {join_some(differ, 3)}")
    check_weights(program, checkpoint.state.weights, other)
    raise DuetError(
        f"{other}, which has the same shapes but different options (program {sha256[:12]}, "
        f"expected {program.sha256[:12]})"
    )

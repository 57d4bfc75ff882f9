"""Checkpoints: a directory that is there whole or not at all, and that either framework can read.

    checkpoints/000000012800/         named by images seen
        weights.safetensors           the network
        ema.safetensors               its moving average; ema1, ema2 ... hold further ones
        moment1.safetensors           Adam
        moment2.safetensors
        history.safetensors           the last losses at each level, of a run whose levels depend on them
        state.json                    images seen, updates, problem, seed, hash of every file and of itself

Names and axes are the canonical ones. A checkpoint is written beside its final name, flushed to the disk
and renamed; every file is checked against its hash when it is read. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import numpy as tensors

from diffusion_core.backend.interface import TrainerState, average_names
from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.timestep_sampling import LossHistory
from diffusion_core.files.atomic import flush_directory, pack_safetensors, write_flushed
from diffusion_core.files.safe_read import file_errors, read_bytes, read_json
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.old_names import notes_with_new_names
from diffusion_core.networks import NetworkSpec, Program, lower
from diffusion_core.networks.weights import check_numbers, check_weights

__all__ = [
    "Checkpoint",
    "find_checkpoint",
    "hash_entries",
    "list_checkpoints",
    "load_checkpoint",
    "max_weight_bytes",
    "read_part",
    "repair_checkpoints",
    "save_checkpoint",
    "weights_hash",
]

# Format 2 is format 3 with one average, and without the number of them.
FORMAT, _READ = 3, (2, 3)
# More than the header of a file has for each array; names are short.
_HEADER_BYTES = 1000


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A moment of a run.

    Args:
        images_seen: the clock.
        model: network and process.
        seed: of the run's streams.
        state: weights, averages, moments and updates.
        notes: anything else worth keeping, as plain data: backend, precision, versions, what was trained for, and the
            sampler that the run draws with.
        history: the losses that the next levels depend on, or None.
    """

    images_seen: int
    model: DiffusionModel
    seed: int
    state: TrainerState
    notes: Mapping[str, Any]
    history: LossHistory | None = None


def save_checkpoint(parent: Path, checkpoint: Checkpoint, keep: int | None = None) -> Path:
    """Write a checkpoint under `parent` and drop all but the last `keep` up to it.

    Later ones, which a run leaves that is resumed from an earlier moment, are neither counted nor dropped.

    Raises:
        DuetError: if it cannot be written; what was there before is left as it was.
    """
    if keep is not None and keep < 1:
        raise DuetError(f"keep_checkpoints: {keep} was given; it must be at least 1, or null to keep all")
    parent = Path(parent)
    final = parent / f"{checkpoint.images_seen:012d}"
    beside = _hidden(final, "new")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        hashes = {}
        parts = checkpoint.state.parts
        if checkpoint.history is not None:
            parts = parts | {"history": vars(checkpoint.history)}
        for part, arrays in parts.items():
            content = pack_safetensors(arrays)
            hashes[f"{part}.safetensors"] = hashlib.sha256(content).hexdigest()
            write_flushed(beside / f"{part}.safetensors", content)
        state = {
            "format": FORMAT,
            "images_seen": checkpoint.images_seen,
            "updates": checkpoint.state.updates,
            "averages": len(checkpoint.state.averages),
            "seed": checkpoint.seed,
            "problem": checkpoint.model.to_dict(),
            "program_sha256": checkpoint.model.program.sha256,
            "notes": dict(checkpoint.notes),
            "files": hashes,
        }
        state["sha256"] = hash_entries(state)
        write_flushed(beside / "state.json", json.dumps(state, indent=2).encode())
        flush_directory(beside)
        if final.exists():
            _replace_directory(beside, final)
        else:
            os.rename(beside, final)
        flush_directory(parent)
        if keep is not None:
            for old in [path for path in list_checkpoints(parent) if path.name <= final.name][:-keep]:
                _discard(old)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise DuetError(f"{final}: the checkpoint cannot be written ({error.strerror or error})") from error
        raise
    return final


def repair_checkpoints(parent: Path) -> None:
    """Undo what a kill left half done: give a checkpoint its name back, and delete what is none.

    For who holds the run alone: of another process that writes there, it would delete what is being written.

    Raises:
        DuetError: if that cannot be done.
    """
    parent = Path(parent)
    hidden = [path for path in parent.iterdir() if _HIDDEN.fullmatch(path.name)] if parent.is_dir() else []
    for path in hidden:
        mark, final = _HIDDEN.fullmatch(path.name)["mark"], parent / _HIDDEN.fullmatch(path.name)["name"]
        try:
            if mark == "old" and not final.exists():
                os.rename(path, final)
                flush_directory(parent)
        except OSError as error:
            raise DuetError(f"{final}: the checkpoint cannot be put back ({error.strerror or error})") from error
        shutil.rmtree(path, ignore_errors=True)


# Names beside a checkpoint's that no reader takes for one. What is called old is always whole.
_HIDDEN = re.compile(r"\.(?P<mark>new|old|gone)\.(?P<name>\d+)\.\d+")


def _hidden(path: Path, mark: str) -> Path:
    return path.with_name(f".{mark}.{path.name}.{os.getpid()}")


def _discard(path: Path) -> None:
    # Hidden first: a reader never sees a checkpoint with some files missing.
    hidden = _hidden(path, "gone")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _replace_directory(new: Path, path: Path) -> None:
    # No two names can be exchanged at once everywhere; a kill in between is mended by `repair_checkpoints`.
    old, gone = _hidden(path, "old"), _hidden(path, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, gone)
    shutil.rmtree(gone, ignore_errors=True)


def hash_entries(entries: Mapping[str, Any]) -> str:
    """The hash of all other entries of a file that names its own as "sha256", as they are read back."""
    entries = json.loads(json.dumps({name: value for name, value in entries.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def list_checkpoints(parent: Path) -> list[Path]:
    """The whole checkpoints under a directory, oldest first."""
    parent = Path(parent)
    return sorted(p for p in parent.iterdir() if p.name.isdigit() and p.is_dir()) if parent.is_dir() else []


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint from the path of one, of a `checkpoints` directory or of a run; the latest of several.

    Raises:
        DuetError: if there is none.
    """
    path = Path(path)
    if (path / "state.json").is_file():
        return path
    found = list_checkpoints(path / "checkpoints") or list_checkpoints(path)
    if not found:
        what = "holds no checkpoint" if path.exists() else "does not exist"
        raise DuetError(f"checkpoint: {path} {what}; give a run directory or one of its checkpoints/<images seen>")
    return found[-1]


def load_checkpoint(path: str | Path, network: NetworkSpec | Program | None = None, finite: bool = True) -> Checkpoint:
    """Read a checkpoint; see `find_checkpoint` for the path.

    Args:
        network: what it must be of, if that is known; of a spec an error can say in which field the two differ.
        finite: refuse numbers that are not finite, as all but those who look for them do.

    Raises:
        DuetError: if it is missing, corrupt, of another network, or written by a later version, or if a number in it is
            not finite: what is trained or sampled from there would be lost.
    """
    path = find_checkpoint(path)
    with file_errors(path / "state.json"):
        state = read_json(path / "state.json", "it is corrupt")
        version, hashes, notes = state["format"], state["files"], state["notes"]
        if version not in _READ:
            readable = " and ".join(map(str, _READ))
            raise DuetError(f"{path}: it has format {version}; this version of Duet reads formats {readable}")
        if state["sha256"] != hash_entries(state):
            raise DuetError(f"{path / 'state.json'}: it is corrupt (its hash is not the one that it names)")
        model = DiffusionModel.from_dict(state["problem"])
        if state["program_sha256"] != model.program.sha256:
            raise DuetError(f"{path}: the version of Duet that wrote it builds another network from the same options")
        images_seen, updates, seed = (_whole(state, name) for name in ("images_seen", "updates", "seed"))
        averages = _whole(state, "averages") if version > 2 else 1
        if not 1 <= averages < len(hashes):  # of which each has a file
            raise DuetError(f"{path / 'state.json'}: it names {averages} averages and {len(hashes)} files")
        names = ("weights", *average_names(averages), "moment1", "moment2")
        most = max_weight_bytes(model.program)
        parts = {part: read_part(path / f"{part}.safetensors", hashes[f"{part}.safetensors"], most) for part in names}
        name, history = "history.safetensors", None
        if name in hashes:
            history = LossHistory(**read_part(path / name, hashes[name]))
        state = TrainerState.from_parts(parts, updates)
        checkpoint = Checkpoint(images_seen, model, seed, state, notes_with_new_names(notes), history)
    if network is not None:
        _check_network(path, network, checkpoint)
    for part, arrays in parts.items():
        check_weights(model.program, arrays, str(path / f"{part}.safetensors"))
        check_numbers(arrays, str(path / f"{part}.safetensors"), finite)
    return checkpoint


def max_weight_bytes(program: Program) -> int:
    """More than a file of the weights of a program has, but for the facts in its header."""
    return sum(_HEADER_BYTES + 8 * math.prod(p.shape) for p in program.parameters) + _HEADER_BYTES


def _whole(state: Mapping[str, Any], name: str) -> int:
    """A count of state.json."""
    if type(state[name]) is not int or state[name] < 0:
        raise TypeError(f"{name} {state[name]!r} is no whole number from 0")
    return state[name]


def weights_hash(path: str | Path, part: str = "ema") -> str:
    """The hash of one file of a checkpoint: two samplers with the same one drew from the same weights."""
    file = find_checkpoint(path) / "state.json"
    with file_errors(file):
        return str(read_json(file)["files"][f"{part}.safetensors"])


def read_part(path: Path, sha256: str, most: int = 1 << 28) -> dict[str, NDArray]:
    """The arrays of a file of which another one knows the hash, and how many bytes it has at most.

    Raises:
        DuetError: if it is missing, larger, or another file.
    """
    content = read_bytes(path, most)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DuetError(f"{path}: it is corrupt or cut short (its hash is not the one that was written down)")
    with file_errors(path, "it is not a safetensors file"):
        return tensors.load(content)


def _check_network(path: Path, network: NetworkSpec | Program, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another network, and say what differs: fields of the specs, or weights, or neither."""
    spec = checkpoint.model.spec
    # A spec says nothing of what a process adds to its network.
    program, own = (lower(network), lower(spec)) if isinstance(network, NetworkSpec) else (network, None)
    stored = (own or checkpoint.model.program).sha256
    if program.sha256 == stored:
        return
    other = f"{path}: it is of another network"
    if isinstance(network, NetworkSpec) and type(network) is not type(spec):
        raise DuetError(f"{other}, a {type(spec).__name__}, but a {type(network).__name__} was given")
    if isinstance(network, NetworkSpec):
        pairs = [(field.name, getattr(spec, field.name), getattr(network, field.name)) for field in fields(spec)]
        differ = [f"model.{name} {there!r} (given: {given!r})" for name, there, given in pairs if there != given]
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise DuetError(f"{other}, with {', '.join(differ[:3])}{more}")
    check_weights(program, checkpoint.state.weights, other)
    raise DuetError(
        f"{other}, which has the same weights but computes with other numbers (program {stored[:12]}, "
        f"wanted {program.sha256[:12]})"
    )

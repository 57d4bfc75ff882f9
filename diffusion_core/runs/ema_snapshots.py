"""EMA snapshots: the averages of a run, stored at intervals, from which other averages can be made after training.

    snapshots/000000012800-ema.safetensors      named by images seen and by the average: ema, ema1, ema2 ...

A file holds one average under canonical names and axes, in the precision of the run. Its header contains the profile of
the average, the number of updates, the batch size, the model and the seed: everything that `reconstruct` needs, without
a framework. A file is written completely or not at all and stores the hash of its arrays and its header. Nothing is
pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import safe_open

from diffusion_core.backend.interface import TrainerState, average_names
from diffusion_core.common.errors import DuetError
from diffusion_core.files.atomic import pack_safetensors, write_atomically
from diffusion_core.files.safe_read import check_safetensors, file_errors, parse_json, read_safetensors
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import Weights, check_finite, check_weights
from diffusion_core.optim import Combination, Profile, combine, initial_weight, make_profile, profile_options
from diffusion_core.runs.checkpoint import Checkpoint, max_weight_bytes

__all__ = ["Snapshot", "delete_snapshots_after", "find_snapshots", "reconstruct", "save_snapshots"]

FORMAT = "1"


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot:
    """One stored average; `weights` reads its arrays.

    Args:
        path: the file.
        images_seen: when the average was stored.
        updates: of the run until then.
        batch: images per update.
        profile: the decays of the average.
        model: the network and its process.
        seed: of the random streams of the run.
        header: the facts in the header of the file; the hash covers them.
    """

    path: Path
    images_seen: int
    updates: int
    batch: int
    profile: Profile
    model: DiffusionModel
    seed: int
    header: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Snapshot({self.path.name!r}, updates={self.updates}, profile={self.profile})"

    def weights(self) -> Weights:
        """Return the average by parameter name.

        Raises:
            DuetError: if the file is missing, corrupt, does not fit its model or has a number that is not finite.
        """
        facts = {name: text for name, text in self.header.items() if name != "sha256"}
        arrays = read_safetensors(self.path, max_weight_bytes(self.model.program) + len(json.dumps(facts)))
        if _hash(arrays, facts) != self.header["sha256"]:
            raise DuetError(f"{self.path}: it is corrupt (its hash differs from the one stored in it)")
        check_weights(self.model.program, arrays, str(self.path))
        check_finite(arrays, str(self.path))
        return arrays


def save_snapshots(
    parent: Path,
    images_seen: int,
    state: TrainerState,
    profiles: Sequence[Profile],
    batch: int,
    model: DiffusionModel,
    seed: int,
) -> list[Path]:
    """Write every average of a trainer under `parent` and return the paths.

    Args:
        parent: the directory of all snapshots of a run.
        images_seen: the current moment.
        state: of the trainer.
        profiles: of the averages, in their order; a further one, that targets are computed with, is not written.
        batch: images per update.
        model: the network and its process.
        seed: of the run.

    Raises:
        DuetError: if a file cannot be written.
    """
    paths = []
    names = average_names(len(profiles))
    for name, profile, average in zip(names, profiles, state.averages[: len(profiles)], strict=True):
        path = Path(parent) / f"{images_seen:012d}-{name}.safetensors"
        facts = _facts(Snapshot(path, images_seen, state.updates, batch, profile, model, seed))
        write_atomically(path, pack_safetensors(average, {**facts, "sha256": _hash(average, facts)}))
        paths.append(path)
    return paths


def find_snapshots(path: str | Path) -> list[Snapshot]:
    """Return the snapshots of a run, or of a directory of snapshots, oldest first; their arrays are not read.

    Raises:
        DuetError: if there is none, one cannot be read, or they are not of a single run with a constant batch size.
    """
    path = Path(path)
    files = _files(path / "snapshots") or _files(path)
    if not files:
        what = "holds no snapshots" if path.exists() else "does not exist"
        raise DuetError(
            f"run: {path} {what}; a run writes snapshots if ema.snapshot_images is above 0, as in ema=post_hoc"
        )
    snapshots = [_read(file) for file in files]
    first = snapshots[0]
    for snapshot in snapshots:
        same = {
            "batch": snapshot.batch == first.batch,
            "seed": snapshot.seed == first.seed,
            "model": snapshot.model is first.model or snapshot.model.is_same_as(first.model),
        }
        for what in (what for what, is_same in same.items() if not is_same):
            raise DuetError(
                f"{snapshot.path}: its {what} is not that of {first.path.name}; the snapshots are of two runs"
            )
        if snapshot.images_seen != snapshot.updates * snapshot.batch:
            raise DuetError(
                f"{snapshot.path}: {snapshot.images_seen} images in {snapshot.updates} updates show that the run "
                f"changed its batch of {snapshot.batch}; the weights of its steps in the average are unknown"
            )
    return snapshots


def delete_snapshots_after(parent: Path, images_seen: int) -> None:
    """Delete the snapshots taken after `images_seen`, the moment from which a run is resumed."""
    for file in _files(Path(parent)):
        if int(file.name.split("-")[0]) > images_seen:
            file.unlink()


def reconstruct(
    snapshots: Sequence[Snapshot], profile: Profile, images_seen: int | None = None, fit: str = "steps"
) -> tuple[Checkpoint, Combination]:
    """Return a checkpoint with the average that a profile would have given, and the combination that makes it.

    The average is both the weights and the only average of the checkpoint. It can be sampled from, but not trained
    further, since it has no moments. See `diffusion_core.optim.posthoc_ema`.

    Args:
        snapshots: of one run, from `find_snapshots`.
        profile: the requested average.
        images_seen: the requested moment; None is the last snapshot.
        fit: of the coefficients, one of `posthoc_ema.FITS`.

    Raises:
        DuetError: if the moment is not an update of the run, is later than the last snapshot, or a file is corrupt.
    """
    last = max(snapshots, key=lambda snapshot: snapshot.updates)
    images_seen, batch = last.images_seen if images_seen is None else images_seen, last.batch
    if images_seen % batch or not batch <= images_seen <= last.images_seen:
        raise DuetError(
            f"images: {images_seen} was given; it must be a multiple of the batch {batch}, up to {last.images_seen}"
        )
    combination = combine(
        [(snapshot.profile, snapshot.updates) for snapshot in snapshots], (profile, images_seen // batch), batch, fit
    )
    total: dict[str, np.ndarray] = {}
    dtypes = {}
    for snapshot, coefficient in zip(snapshots, combination.coefficients, strict=True):
        if coefficient:
            for name, value in snapshot.weights().items():
                dtypes[name], part = value.dtype, coefficient * value.astype(np.float64)
                total[name] = total[name] + part if name in total else part
    weights = {p.name: total[p.name].astype(dtypes[p.name]) for p in last.model.program.parameters}
    notes = {
        "average": profile_options(profile), "fit": fit, "snapshots": len(snapshots),
        "profile_error": combination.error, "initial_weight": _initial_weight(snapshots, combination),
        "coefficients": {
            snapshot.path.name: float(x) for snapshot, x in zip(snapshots, combination.coefficients, strict=True)
        },
    }  # fmt: skip
    return Checkpoint(images_seen, last.model, last.seed, TrainerState.fresh(weights), notes), combination


def _initial_weight(snapshots: Sequence[Snapshot], combination: Combination) -> float:
    """Return the weight of the initial weights in a combination of snapshots."""
    pairs = zip(snapshots, combination.coefficients, strict=True)
    return sum(x * initial_weight(one.profile, one.updates, one.batch) for one, x in pairs if x)


def _files(parent: Path) -> list[Path]:
    names = sorted(parent.glob("*-ema*.safetensors")) if parent.is_dir() else []
    return [path for path in names if path.name.split("-")[0].isdigit()]


def _facts(snapshot: Snapshot) -> dict[str, str]:
    """Return the header of a snapshot as text, since safetensors stores nothing else in a header."""
    return {
        "format": FORMAT,
        "images_seen": str(snapshot.images_seen),
        "updates": str(snapshot.updates),
        "batch": str(snapshot.batch),
        "average": json.dumps(profile_options(snapshot.profile)),
        "problem": json.dumps(snapshot.model.to_dict(), sort_keys=True),
        "program_sha256": snapshot.model.program.sha256,
        "seed": str(snapshot.seed),
    }


def _read(path: Path) -> Snapshot:
    """Return a snapshot from the header of its file."""
    check_safetensors(path)
    with file_errors(path, "it is not a snapshot"):
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
        if facts["format"] != FORMAT:
            raise DuetError(f"it has format {facts['format']}; this version of Duet reads format {FORMAT}")
        if "sha256" not in facts:
            raise DuetError("it is corrupt (its header has no hash)")
        model = _model(facts["problem"])
        if facts["program_sha256"] != model.program.sha256:
            raise DuetError("the version of Duet that wrote it builds another network from the same options")
        return Snapshot(
            path=path,
            images_seen=int(facts["images_seen"]),
            updates=int(facts["updates"]),
            batch=int(facts["batch"]),
            profile=make_profile(**parse_json(facts["average"])),
            model=model,
            seed=int(facts["seed"]),
            header=facts,
        )


@lru_cache(maxsize=1)
def _model(text: str) -> DiffusionModel:
    """Return the model in a header. The cache lets all snapshots of a run share one, whose program is built once."""
    return DiffusionModel.from_dict(parse_json(text))


def _hash(arrays: Weights, facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()

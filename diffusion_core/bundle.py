"""What a training leaves behind where a loss or a gradient is not finite: enough to do the step again, anywhere.

    non_finite/000000012800/        images seen before the step
        weights.safetensors ...     a checkpoint of that moment, see `checkpoint`
        batch.safetensors           the very batch, whole, whatever number of processes shared it
        step.json                   learning rate, decays, optimiser, distance, and what the step gave

The trainer takes no update that is not finite (`backend.Trainer`), so what it holds when the loss is read is what it
held before the step. The random numbers of the step are in the batch, or, those of dropout, a function of its key and
its positions. Nothing is pickled, and the weights may be what is not finite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend import TrainBatch, TrainerState
from diffusion_core.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    pack,
    save_checkpoint,
    write_atomically,
)
from diffusion_core.errors import DuetError
from diffusion_core.optimiser import Adam
from diffusion_core.problem import Problem
from diffusion_core.reading import read_bytes, read_json, read_tensors, reading
from diffusion_core.run import write_json
from diffusion_core.training import Trouble
from diffusion_core.weights import Weights

__all__ = ["KEPT", "Bundle", "Place", "is_kept", "load_bundle", "places", "save_bundle"]

FORMAT = 1
# Of how many streaks of skipped updates the first step is kept: each takes the room of a checkpoint.
KEPT = 3


@dataclass(frozen=True, eq=False)
class Bundle:
    """A step whose loss or gradient was not finite.

    Args:
        moment: the run before the step.
        batch: of the step.
        adam: the optimiser.
        distance: of the loss.
        lr: the learning rate.
        decays: of the averages.
        loss: that the step gave; NaN and infinities are told apart.
        grad_norm: that it gave.
    """

    moment: Checkpoint
    batch: TrainBatch
    adam: Adam
    distance: str
    lr: float
    decays: tuple[float, ...]
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Place:
    """Numbers of a step that may not be finite.

    Args:
        kind: ``"batch"``, ``"weights"``, ``"block"``, ``"loss"`` or ``"gradient"``, in the order of computation.
        name: which.
        lost: how many of them are not finite.
        size: how many there are.
        largest: the largest magnitude of those that are; 0 where none is.
    """

    kind: str
    name: str
    lost: int
    size: int
    largest: float

    @staticmethod
    def of(kind: str, name: str, array: NDArray) -> Place:
        """The numbers of an array."""
        finite = np.isfinite(array)
        largest = float(np.max(np.abs(array[finite]), initial=0.0))
        return Place(kind, name, int(array.size - np.count_nonzero(finite)), int(array.size), largest)


def is_kept(parent: Path, trouble: Trouble) -> bool:
    """Whether a step is kept under `parent`: the first that were skipped, and the one that ends a run."""
    others = [path for path in list_checkpoints(parent) if int(path.name) != trouble.images_seen]
    return trouble.ends or len(others) < KEPT


def save_bundle(
    parent: Path,
    trouble: Trouble,
    problem: Problem,
    seed: int,
    state: TrainerState,
    batch: TrainBatch,
    adam: Adam,
    distance: str,
    notes: Mapping[str, Any],
) -> Path:
    """Write a bundle under `parent`; `state` is what the trainer holds.

    Raises:
        DuetError: if it cannot be written.
    """
    before = replace(state, updates=trouble.updates)
    moment = Checkpoint(trouble.images_seen, problem, seed, before, notes, trouble.history)
    path = save_checkpoint(parent, moment)
    content = pack(batch.arrays)
    write_atomically(path / "batch.safetensors", content)
    step = {
        "format": FORMAT,
        "lr": trouble.lr,
        "decays": trouble.decays,
        "adam": asdict(adam),
        "distance": distance,
        # JSON has no infinity.
        "loss": str(trouble.loss),
        "grad_norm": str(trouble.grad_norm),
        "batch_sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(path / "step.json", step)
    return path


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle.

    Raises:
        DuetError: if it is missing, corrupt, or written by a later version.
    """
    path = Path(path)
    if not (path / "step.json").exists():
        raise DuetError(f"bundle: {path} holds no step.json; give a directory that a training left in its non_finite")
    moment = load_checkpoint(path, finite=False)
    with reading(path / "step.json"):
        step = read_json(path / "step.json")
        if step["format"] != FORMAT:
            raise DuetError(f"{path}: it has format {step['format']}; this version of Duet reads format {FORMAT}")
        if hashlib.sha256(read_bytes(path / "batch.safetensors")).hexdigest() != step["batch_sha256"]:
            raise DuetError(f"{path / 'batch.safetensors'}: it is corrupt (its hash is not the one in step.json)")
        return Bundle(
            moment=moment,
            batch=TrainBatch(**read_tensors(path / "batch.safetensors")),
            adam=Adam(**step["adam"]),
            distance=str(step["distance"]),
            lr=float(step["lr"]),
            decays=tuple(map(float, step["decays"])),
            loss=float(step["loss"]),
            grad_norm=float(step["grad_norm"]),
        )


def some(batch: TrainBatch, images: NDArray) -> TrainBatch:
    """The images of a batch with these numbers."""
    arrays = {name: array if name == "dropout_key" else array[images] for name, array in batch.arrays.items()}
    return TrainBatch(**arrays)


def places(
    bundle: Bundle, values: Mapping[str, NDArray], loss: float, gradients: Weights | None = None
) -> Iterator[Place]:
    """Everything that a step computes, in the order in which it does; the first that is not finite is where to look.

    Args:
        bundle: the step.
        values: of its blocks and of the loss of each image, as `Trainer.look` gives them.
        loss: of the batch.
        gradients: of the parameters; they are computed from the last block to the first. None leaves them out.
    """
    for field in fields(TrainBatch):
        array = getattr(bundle.batch, field.name)
        if array is not None:
            yield Place.of("batch", field.name, array)
    for part, arrays in bundle.moment.state.parts.items():
        for name, array in arrays.items():
            yield Place.of("weights", f"{part}: {name}", array)
    for name, array in values.items():
        yield Place.of("loss" if name == "losses" else "block", name, array)
    yield Place.of("loss", "mean", np.array(loss))
    for parameter in reversed(bundle.moment.problem.program.trained if gradients else ()):
        yield Place.of("gradient", parameter.name, gradients[parameter.name])

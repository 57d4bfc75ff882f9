"""What a training leaves behind where a loss or a gradient is not finite: enough to do the step again, anywhere.

    non_finite/000000012800/        images seen before the step
        weights.safetensors ...     a checkpoint of that moment, see `checkpoint`
        batch.safetensors           the very batch, whole, whatever number of processes shared it
        step.json                   learning rate, decays, optimiser, distance, what the step gave, hash of itself

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

from diffusion_core.backend.interface import (
    CROSS_ENTROPY,
    DISTANCES,
    PRECISIONS,
    SELF_CONDITIONING,
    VARIATIONAL,
    TrainBatch,
    TrainerState,
)
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.files.atomic import pack_safetensors, write_atomically
from diffusion_core.files.safe_read import file_errors, read_json
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam
from diffusion_core.runs.checkpoint import (
    Checkpoint,
    hash_entries,
    list_checkpoints,
    load_checkpoint,
    read_part,
    save_checkpoint,
)
from diffusion_core.runs.run_directory import write_json
from diffusion_core.training.loop import NonFiniteStep

__all__ = [
    "MAX_SKIPPED_BUNDLES",
    "FailureBundle",
    "FailureLocation",
    "failure_locations",
    "load_bundle",
    "save_bundle",
    "should_keep",
]

FORMAT = 2
# Of how many streaks of skipped updates the first step is kept: each takes the room of a checkpoint.
MAX_SKIPPED_BUNDLES = 3


@dataclass(frozen=True, eq=False)
class FailureBundle:
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
        micro_batches: equal ones in which the batch is computed, so that it needs no more memory than the training.
    """

    moment: Checkpoint
    batch: TrainBatch
    adam: Adam
    distance: str
    lr: float
    decays: tuple[float, ...]
    loss: float
    grad_norm: float
    micro_batches: int = 1


@dataclass(frozen=True)
class FailureLocation:
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
    def from_array(kind: str, name: str, array: NDArray) -> FailureLocation:
        """The numbers of an array."""
        finite = np.isfinite(array)
        largest = float(np.max(np.abs(array[finite]), initial=0.0))
        return FailureLocation(kind, name, int(array.size - np.count_nonzero(finite)), int(array.size), largest)


def should_keep(parent: Path, trouble: NonFiniteStep) -> bool:
    """Whether a step is kept under `parent`: the first that were skipped, and the one that ends a run."""
    others = [path for path in list_checkpoints(parent) if int(path.name) != trouble.images_seen]
    return trouble.stops_training or len(others) < MAX_SKIPPED_BUNDLES


def save_bundle(
    parent: Path,
    trouble: NonFiniteStep,
    model: DiffusionModel,
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
    moment = Checkpoint(trouble.images_seen, model, seed, before, notes, trouble.history)
    path = save_checkpoint(parent, moment)
    content = pack_safetensors(batch.arrays)
    write_atomically(path / "batch.safetensors", content)
    step = {
        "format": FORMAT,
        "lr": float(trouble.lr),
        "decays": list(map(float, trouble.decays)),
        "adam": asdict(adam),
        "distance": distance,
        # JSON has no infinity.
        "loss": str(trouble.loss),
        "grad_norm": str(trouble.grad_norm),
        "pieces": trouble.micro_batches,
        "batch_bytes": len(content),
        "batch_sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(path / "step.json", step | {"sha256": hash_entries(step)})
    return path


def load_bundle(path: str | Path) -> FailureBundle:
    """Read a bundle.

    Raises:
        DuetError: if it is missing, corrupt, written by another version, or holds what its step cannot be done with.
    """
    path = Path(path)
    if not (path / "step.json").exists():
        raise DuetError(f"bundle: {path} holds no step.json; give a directory that a training left in its non_finite")
    moment = load_checkpoint(path, finite=False)
    with file_errors(path / "step.json"):
        step = read_json(path / "step.json", "it is corrupt")
        if step["format"] != FORMAT:
            raise DuetError(f"it has format {step['format']}; this version of Duet reads format {FORMAT}")
        if step["sha256"] != hash_entries(step):
            raise DuetError("it is corrupt (its hash is not the one that it names)")
        decays, distance = tuple(map(float, step["decays"])), step["distance"]
        if len(decays) != len(moment.state.averages):
            raise DuetError(f"it has {len(decays)} decays for {len(moment.state.averages)} averages")
        if distance not in (*DISTANCES, CROSS_ENTROPY):
            raise one_of("distance", distance, (*DISTANCES, CROSS_ENTROPY))
        moment.model.check_distance(distance)
        adam, lr = Adam(**step["adam"]), float(step["lr"])
        loss, grad_norm = float(step["loss"]), float(step["grad_norm"])
        sha256, size, micro_batches = str(step["batch_sha256"]), int(step["batch_bytes"]), step.get("pieces", 1)
    with file_errors(path / "state.json"):
        if not isinstance(backend := moment.notes["backend"], str):
            raise DuetError(f"its notes name the backend {backend!r}; a name would fit")
        if (precision := moment.notes["precision"]) not in PRECISIONS:
            raise one_of("precision", precision, PRECISIONS)
    with file_errors(path / "batch.safetensors"):
        arrays = read_part(path / "batch.safetensors", sha256, size)
        _check_batch(arrays, moment.model)
    with file_errors(path / "step.json"):
        images = arrays["label"].size
        if type(micro_batches) is not int or micro_batches < 1 or images % micro_batches:
            raise DuetError(
                f"it has the pieces {micro_batches!r}; a divisor of the {images} images of its batch would fit"
            )
        if micro_batches > 1 and moment.model.program.has_batch_statistics:
            raise DuetError(f"it has {micro_batches} pieces for a network with batch statistics; 1 would fit")
    return FailureBundle(moment, TrainBatch(**arrays), adam, distance, lr, decays, loss, grad_norm, micro_batches)


def _check_batch(arrays: Mapping[str, NDArray], model: DiffusionModel) -> None:
    """Refuse arrays that are no batch of a problem.

    Raises:
        DuetError: for names, shapes, types or labels that do not fit.
    """
    program = model.program
    own = {"images": model.spec.image_shape, "noise": model.spec.image_shape, "features": (program.features,)}
    own |= {"variational": (len(VARIATIONAL),)} if model.variance != "fixed" else {}
    own |= {"self_conditioning": (len(SELF_CONDITIONING),)} if program.self_conditioned else {}
    whole = {"label": np.int32, "positions": np.int64, "dropout_key": np.int64}
    wanted = [f.name for f in fields(TrainBatch) if f.default is not None or f.name in own]
    if sorted(wanted) != sorted(arrays):
        raise DuetError(f"it has the arrays {', '.join(sorted(arrays))}; a batch has {', '.join(sorted(wanted))}")
    images = arrays["label"].size
    for name, array in arrays.items():
        shape = (2,) if name == "dropout_key" else (images, *own.get(name, ()))
        types = (whole[name],) if name in whole else (np.float64,) if name == "c_noise" else (np.float32, np.float64)
        if array.shape != shape or array.dtype not in types:
            raise DuetError(
                f"{name} is of type {array.dtype} with shape {array.shape}; a batch of {images} images of its network "
                f"has {' or '.join(np.dtype(one).name for one in types)} with shape {shape}"
            )
    bounds = {"label": max(1, program.classes + (program.null_label is not None)), "dropout_key": 1 << 32}
    for name, bound in bounds.items():
        if images < 1 or arrays[name].min() < 0 or arrays[name].max() >= bound:
            raise DuetError(f"{name}: {images} images were given with numbers that are not all in 0..{bound - 1}")


def select_images(batch: TrainBatch, images: NDArray) -> TrainBatch:
    """The images of a batch with these numbers."""
    arrays = {name: array if name == "dropout_key" else array[images] for name, array in batch.arrays.items()}
    return TrainBatch(**arrays)


def failure_locations(
    bundle: FailureBundle, values: Mapping[str, NDArray], loss: float, gradients: Weights | None = None
) -> Iterator[FailureLocation]:
    """Everything that a step computes, in the order in which it does; the first that is not finite is where to look.

    Args:
        bundle: the step.
        values: of its blocks and of the loss of each image, as `Trainer.activations` gives them.
        loss: of the batch.
        gradients: of the parameters; they are computed from the last block to the first. None leaves them out.
    """
    for field in fields(TrainBatch):
        array = getattr(bundle.batch, field.name)
        if array is not None:
            yield FailureLocation.from_array("batch", field.name, array)
    for part, arrays in bundle.moment.state.parts.items():
        for name, array in arrays.items():
            yield FailureLocation.from_array("weights", f"{part}: {name}", array)
    for name, array in values.items():
        yield FailureLocation.from_array("loss" if name == "losses" else "block", name, array)
    yield FailureLocation.from_array("loss", "mean", np.array(loss))
    for parameter in reversed(bundle.moment.model.program.trained if gradients else ()):
        yield FailureLocation.from_array("gradient", parameter.name, gradients[parameter.name])

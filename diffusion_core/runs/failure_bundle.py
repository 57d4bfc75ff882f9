"""Failure bundles: a training step whose loss or gradient is not finite, stored so that it can be repeated anywhere.

    non_finite/000000012800/        images seen before the step
        weights.safetensors ...     a checkpoint of that moment, see `checkpoint`
        batch.safetensors           the batch of all processes together
        teacher.safetensors         the weights of the teacher, of a method that has one
        step.json                   learning rate, decays, optimiser, distance or training method, loss, gradient norm,
                                    hash of the file

The trainer makes no update that is not finite (`backend.interface.Trainer`), so its state when the loss is read is that
before the step. The random numbers of the step are in the batch; those of dropout are a function of its key and its
positions. Nothing is pickled. The weights themselves may be what is not finite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
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
from diffusion_core.backend.target import Target
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.files.atomic import pack_safetensors, write_atomically
from diffusion_core.files.safe_read import file_errors, read_json
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import Weights, check_weights
from diffusion_core.optim import Optimiser, make_optimiser, optimiser_options
from diffusion_core.optim.adam import Adam
from diffusion_core.runs.checkpoint import (
    Checkpoint,
    hash_entries,
    list_checkpoints,
    load_checkpoint,
    read_arrays,
    save_checkpoint,
)
from diffusion_core.runs.run_directory import write_json
from diffusion_core.training.events import NonFiniteStep
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import TrainedNetwork

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
# The first step of at most this many series of skipped updates is stored: each needs the space of a checkpoint.
MAX_SKIPPED_BUNDLES = 3


@dataclass(frozen=True, eq=False, repr=False)
class FailureBundle:
    """A step whose loss or gradient was not finite.

    Args:
        moment: the state of the run before the step.
        batch: of the step.
        optimiser: the optimiser.
        distance: of the loss; or the target of a training method.
        lr: the learning rate.
        decays: of the averages.
        loss: of the step; NaN and the infinities are distinguished.
        grad_norm: of the step, before clipping.
        micro_batches: the number of equal micro-batches in which to repeat the step with no more memory than training
            needed.
    """

    moment: Checkpoint
    batch: TrainBatch
    optimiser: Optimiser
    distance: str | Target
    lr: float
    decays: tuple[float, ...]
    loss: float
    grad_norm: float
    micro_batches: int = 1

    def __repr__(self) -> str:
        return f"FailureBundle(images_seen={self.moment.images_seen}, loss={self.loss}, grad_norm={self.grad_norm})"


@dataclass(frozen=True)
class FailureLocation:
    """An array of a step, and how many of its numbers are not finite.

    Args:
        kind: ``"batch"``, ``"weights"``, ``"block"``, ``"loss"`` or ``"gradient"``, in the order of computation.
        name: of the array.
        lost: the number of entries that are not finite.
        size: the number of entries.
        largest: the largest magnitude of the finite entries; 0 if there is none.
    """

    kind: str
    name: str
    lost: int
    size: int
    largest: float

    @staticmethod
    def from_array(kind: str, name: str, array: NDArray) -> FailureLocation:
        """Return the location for an array."""
        finite = np.isfinite(array)
        largest = float(np.max(np.abs(array[finite]), initial=0.0))
        return FailureLocation(kind, name, int(array.size - np.count_nonzero(finite)), int(array.size), largest)


def should_keep(parent: Path, step: NonFiniteStep) -> bool:
    """Return whether to store a step under `parent`: the first skipped ones, and the one that stops a run."""
    others = [path for path in list_checkpoints(parent) if int(path.name) != step.images_seen]
    return step.stops_training or len(others) < MAX_SKIPPED_BUNDLES


def save_bundle(
    parent: Path,
    step: NonFiniteStep,
    model: DiffusionModel,
    seed: int,
    state: TrainerState,
    batch: TrainBatch,
    optimiser: Optimiser,
    distance: str,
    notes: Mapping[str, Any],
    objective: Mapping[str, Any] | None = None,
    teacher: tuple[DiffusionModel, Weights] | None = None,
) -> Path:
    """Write a bundle under `parent` and return its path.

    Args:
        parent: the directory of all bundles of a run.
        step: the step.
        model: the network and its process.
        seed: of the run.
        state: of the trainer, whose arrays are those before the step.
        batch: of the step, of all processes together.
        optimiser: the optimiser.
        distance: of the loss.
        notes: as of `Checkpoint`; the backend and the precision must be in it.
        objective: name and options of a training method whose target needs the network; None for the regression.
        teacher: the network and the weights of its teacher.

    Raises:
        DuetError: if it cannot be written.
    """
    before = replace(state, updates=step.updates)
    moment = Checkpoint(step.images_seen, model, seed, before, notes, step.history)
    path = save_checkpoint(parent, moment)
    content = pack_safetensors(batch.arrays)
    write_atomically(path / "batch.safetensors", content)
    facts = {
        "format": FORMAT,
        "lr": float(step.lr),
        "decays": list(map(float, step.decays)),
        # Earlier versions had no other optimiser than Adam.
        "adam" if isinstance(optimiser, Adam) else "optimiser": optimiser_options(optimiser),
        "distance": distance,
        # As text, since JSON has no infinity.
        "loss": str(step.loss),
        "grad_norm": str(step.grad_norm),
        "pieces": step.micro_batches,
        "batch_bytes": len(content),
        "batch_sha256": hashlib.sha256(content).hexdigest(),
    }
    if objective is not None:
        facts["objective"] = dict(objective)
    if teacher is not None:
        model, weights = teacher
        content = pack_safetensors(weights)
        write_atomically(path / "teacher.safetensors", content)
        sha256 = hashlib.sha256(content).hexdigest()
        facts["teacher"] = {"problem": model.to_dict(), "bytes": len(content), "sha256": sha256}
    write_json(path / "step.json", facts | {"sha256": hash_entries(facts)})
    return path


def load_bundle(path: str | Path) -> FailureBundle:
    """Read a bundle and check it.

    Raises:
        DuetError: if it is missing, corrupt, written by another version, or lacks what is needed to repeat its step.
    """
    path = Path(path)
    if not (path / "step.json").exists():
        raise DuetError(f"bundle: {path} holds no step.json; give a directory under the non_finite directory of a run")
    moment = load_checkpoint(path, require_finite=False)
    with file_errors(path / "step.json"):
        step = read_json(path / "step.json", "it is corrupt")
        if step["format"] != FORMAT:
            raise DuetError(f"it has format {step['format']}; this version of Duet reads format {FORMAT}")
        if step["sha256"] != hash_entries(step):
            raise DuetError("it is corrupt (its hash differs from the one stored in it)")
        decays, distance = tuple(map(float, step["decays"])), step["distance"]
        if len(decays) != len(moment.state.averages):
            raise DuetError(f"it has {len(decays)} decays for {len(moment.state.averages)} averages")
        if distance not in (*DISTANCES, CROSS_ENTROPY):
            raise one_of("distance", distance, (*DISTANCES, CROSS_ENTROPY))
        moment.model.check_distance(distance)
        if step.get("objective") is not None:
            distance = _target(path, step, moment)
        optimiser, lr = make_optimiser(**(step.get("optimiser") or step["adam"])), float(step["lr"])
        loss, grad_norm = float(step["loss"]), float(step["grad_norm"])
        sha256, size, micro_batches = str(step["batch_sha256"]), int(step["batch_bytes"]), step.get("pieces", 1)
    with file_errors(path / "state.json"):
        if not isinstance(backend := moment.notes["backend"], str):
            raise DuetError(f"its notes give the backend as {backend!r}; it must be a name")
        if (precision := moment.notes["precision"]) not in PRECISIONS:
            raise one_of("precision", precision, PRECISIONS)
    with file_errors(path / "batch.safetensors"):
        arrays = read_arrays(path / "batch.safetensors", sha256, size)
        _check_batch(arrays, moment.model, distance)
    with file_errors(path / "step.json"):
        images = arrays["label"].size
        if type(micro_batches) is not int or micro_batches < 1 or images % micro_batches:
            raise DuetError(
                f"it has {micro_batches!r} micro-batches; the number must divide the {images} images of its batch"
            )
        if micro_batches > 1 and moment.model.program.has_batch_statistics:
            raise DuetError(
                f"it has {micro_batches} micro-batches, but a network with batch statistics needs its batch whole"
            )
    return FailureBundle(moment, TrainBatch(**arrays), optimiser, distance, lr, decays, loss, grad_norm, micro_batches)


def _target(path: Path, step: Mapping[str, Any], moment: Checkpoint) -> Target:
    """Return the target of the training method of a bundle, with its teacher."""
    teacher, stored = None, step.get("teacher")
    if stored is not None:
        model = DiffusionModel.from_dict(stored["problem"])
        weights = read_arrays(path / "teacher.safetensors", stored["sha256"], int(stored["bytes"]))
        check_weights(model.program, weights, str(path / "teacher.safetensors"))
        teacher = TrainedNetwork(model.process, model.program, weights, model.spec.image_shape)
    target = Objective.for_model(moment.model, moment.seed, teacher, objective=step["objective"]).loss
    if not isinstance(target, Target):
        raise DuetError(f"objective: {step['objective']} was given; it must be a training method")
    return target


def _check_batch(arrays: Mapping[str, NDArray], model: DiffusionModel, distance: str | Target) -> None:
    """Refuse arrays that are not a batch for a model.

    Raises:
        DuetError: if names, shapes, types or labels are wrong.
    """
    program = model.program
    own = {"images": model.spec.image_shape, "noise": model.spec.image_shape, "features": (program.features,)}
    if model.variance != "fixed":  # a ninth column says which distribution function the bound has
        columns = arrays["variational"].shape[-1:] if "variational" in arrays else ()
        own["variational"] = columns if columns == (len(VARIATIONAL) + 1,) else (len(VARIATIONAL),)
    own |= {"self_conditioning": (len(SELF_CONDITIONING),)} if program.self_conditioned else {}
    if isinstance(distance, Target):
        own |= {"columns": (len(distance.columns),), "times": (len(distance.times),)}
    integers = {"label": np.int32, "positions": np.int64, "dropout_key": np.int64}
    expected = [f.name for f in fields(TrainBatch) if f.default is not None or f.name in own]
    if sorted(expected) != sorted(arrays):
        raise DuetError(f"it has the arrays {', '.join(sorted(arrays))}; a batch has {', '.join(sorted(expected))}")
    images = arrays["label"].size
    for name, array in arrays.items():
        shape = (2,) if name == "dropout_key" else (images, *own.get(name, ()))
        types = (
            (integers[name],)
            if name in integers
            else (np.float64,)
            if name in ("c_noise", "times")
            else (np.float32, np.float64)
        )
        if array.shape != shape or array.dtype not in types:
            raise DuetError(
                f"{name} has type {array.dtype} and shape {array.shape}; a batch of {images} images for this network "
                f"has {' or '.join(np.dtype(one).name for one in types)} with shape {shape}"
            )
    bounds = {"label": max(1, program.classes + (program.null_label is not None)), "dropout_key": 1 << 32}
    for name, bound in bounds.items():
        if images < 1 or arrays[name].min() < 0 or arrays[name].max() >= bound:
            raise DuetError(f"{name}: not all values of the {images} images are in 0..{bound - 1}")


def select_images(batch: TrainBatch, images: NDArray) -> TrainBatch:
    """Return the batch of the images with these indices."""
    arrays = {name: array if name == "dropout_key" else array[images] for name, array in batch.arrays.items()}
    return TrainBatch(**arrays)


def failure_locations(
    bundle: FailureBundle, values: Mapping[str, NDArray], loss: float, gradients: Weights | None = None
) -> Iterator[FailureLocation]:
    """Yield all arrays of a step in the order of computation; the first that is not finite shows where to look.

    Args:
        bundle: the step.
        values: of its blocks and of the loss of each image, from `Trainer.activations`.
        loss: of the batch.
        gradients: of the parameters, which are computed from the last block to the first; None leaves them out.
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

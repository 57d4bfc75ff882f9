"""One segment of a run, computed again from its first state.

The segment is trained by the same loop on the same setup, which is made of the recorded configuration. Its callbacks
keep what the run wrote: the logged numbers, and the state at every moment that the manifest knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, StepResult, TrainBatch, Trainer, TrainerState
from diffusion_core.common.random import Stream
from diffusion_core.networks.weights import Weights
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint
from diffusion_core.runs.run_directory import plain_data
from diffusion_core.runtime import signals
from diffusion_core.training import loop
from diffusion_core.training.events import Record, ResumeState, TrainingCallbacks
from experiments.runtime.progress import Counter
from experiments.training.callbacks import RunCallbacks
from experiments.training.record import fresh_record, record_at
from experiments.training.resume import checkpoint_notes, first_state, resume_state, resumed_state
from experiments.training.run import with_init
from experiments.training.setup import TrainingSetup
from experiments.verification.compare import Arrays
from experiments.verification.recorded import Moment, Part
from experiments.verification.segments import Leg, Segment

__all__ = ["UNITS", "Opened", "Replayed", "Twin", "open_state", "replay", "stored_arrays"]

# One unit in the last place of 1; bf16 keeps eight bits of the inputs of a product, and rounds a smaller move away.
UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "bf16": 2.0**-8}


@dataclass(frozen=True, eq=False)
class Opened:
    """The setup of a part of a run, with the backend that computes it.

    Args:
        part: as it was recorded.
        setup: made of its configuration.
        backend: open.
        change_objective: whether the part could change its objective.
    """

    part: Part
    setup: TrainingSetup
    backend: Backend
    change_objective: bool = False


@dataclass(frozen=True, eq=False)
class Replayed:
    """A segment, computed again.

    Args:
        checkpoints: by images seen, the state at each moment that the manifest knows.
        records: the logged numbers of every step, by name.
        micro_batch: the size to which memory halved the micro-batches; None if it did not.
    """

    checkpoints: Mapping[int, Checkpoint]
    records: tuple[Mapping[str, float], ...]
    micro_batch: int | None = None

    def arrays(self, images_seen: int) -> Arrays:
        """Return the arrays of a moment as a checkpoint stores them."""
        return stored_arrays(self.checkpoints[images_seen])


@dataclass(frozen=True)
class Twin:
    """Moves numbers by one unit in the last place, up or down at random.

    Args:
        number: 0, 1, 2 ...; each twin moves them otherwise.
        precision: of the computation.
    """

    number: int
    precision: str

    def move(self, array: NDArray, row: int, step: float | None = None) -> NDArray:
        """Return an array with each number moved; `row` counts the arrays that are moved."""
        if array.dtype.kind != "f" or not array.size:
            return array
        signs = 1.0 - 2.0 * (Stream(self.number, "verify/twin").bits([row], array.size)[0] & 1).reshape(array.shape)
        if step is not None:
            return (array * (1.0 + step * signs)).astype(array.dtype)
        return np.nextafter(array, (signs * np.inf).astype(array.dtype))

    def weights(self, weights: Weights) -> Weights:
        """Return moved weights."""
        return {name: self.move(value, row) for row, (name, value) in enumerate(weights.items())}

    def batch(self, batch: TrainBatch) -> TrainBatch:
        """Return a batch with moved images and noise."""
        row = 1 << 20 | int(batch.positions[0]) % (1 << 30)
        step = UNITS["bf16"] if self.precision == "bf16" else None
        return replace(batch, images=self.move(batch.images, row, step), noise=self.move(batch.noise, row + 1, step))


class _MovedTrainer:
    """A trainer whose batches a twin moves."""

    def __init__(self, trainer: Trainer, twin: Twin) -> None:
        self._trainer, self._twin = trainer, twin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def step(self, batch: TrainBatch, *given: Any) -> StepResult:
        """Do a step with a moved batch."""
        return self._trainer.step(self._twin.batch(batch), *given)


def stored_arrays(checkpoint: Checkpoint) -> Arrays:
    """Return the arrays of a checkpoint by the names of its files."""
    history = {} if checkpoint.history is None else {"history": vars(checkpoint.history)}
    return checkpoint.state.parts | history


def open_state(moment: Moment, opened: Opened) -> Checkpoint:
    """Return the state of a moment: new weights, or those of its checkpoint."""
    if moment.is_fresh:
        return first_state(opened.setup)
    checkpoint = load_checkpoint(moment.checkpoint)
    return replace(checkpoint, model=opened.setup.model)


def replay(
    segment: Segment, opened: Callable[[int], Opened], twin: Twin | None = None
) -> tuple[Replayed, dict[int, Opened]]:
    """Compute a segment again.

    Args:
        segment: which.
        opened: returns the setup and the backend of a part, by its number.
        twin: moves the first weights and every batch; None computes the segment as it is.

    Returns:
        The segment, and by images seen what computed each of its moments.
    """
    checkpoints: dict[int, Checkpoint] = {}
    records: list[Mapping[str, float]] = []
    computed_by: dict[int, Opened] = {}
    micro_batch = None
    state = open_state(segment.begin, opened(segment.legs[0].part))
    if twin is not None:
        moved = twin.weights(state.state.weights)
        averages = (moved,) * len(state.state.averages) if segment.begin.is_fresh else state.state.averages
        state = replace(state, state=replace(state.state, weights=moved, averages=averages))
    for leg in segment.legs:
        part = opened(leg.part)
        state = _continued(state, leg, part)
        found = _train(state, leg, part, twin)
        checkpoints |= found.checkpoints
        records += found.records
        computed_by |= dict.fromkeys(found.checkpoints, part)
        micro_batch = found.micro_batch or micro_batch
        state = found.checkpoints[leg.end.images_seen]
    return Replayed(checkpoints, tuple(records), micro_batch), computed_by


def _continued(state: Checkpoint, leg: Leg, opened: Opened) -> Checkpoint:
    """Return the state that a leg continues from: at a resume, with the averages and the optimiser of its part."""
    entry = opened.part.entry
    if entry.kind != "resume" or entry.images_seen != leg.begin.images_seen:
        return state
    path = leg.begin.checkpoint or f"the state at {leg.begin.images_seen:,} images"
    return resumed_state(state, with_init(opened.setup, state), path, opened.change_objective)


@dataclass
class _Kept:
    """What the callbacks of a leg keep."""

    seen: int
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    micro_batch: int | None = None


def _train(start: Checkpoint, leg: Leg, opened: Opened, twin: Twin | None) -> Replayed:
    """Train from the first to the last moment of a leg."""
    setup, backend = opened.setup, opened.backend
    config = setup.training_config
    # Every step may end at a moment of the manifest; nothing else of the callbacks changes the numbers.
    looped = replace(config, checkpoint_images=config.batch, sample_images=0, log_images=config.batch)
    trainer = backend.trainer(setup.model.program, start.state, setup.optimiser, setup.objective.loss)
    moments = {moment.images_seen for moment in leg.moments}
    # What a checkpoint says of the images so far counts from the beginning of its part.
    beginning = replace(start, images_seen=0, notes={}, training=fresh_record(setup)) if opened.part.is_fresh else start
    kept = _Kept(leg.begin.images_seen)
    with Counter(_title(leg, twin), leg.end.images_seen, start=leg.begin.images_seen) as progress:
        others = RunCallbacks(setup, backend, trainer, None, start, signals.StopFlag(), "", progress)

        def on_checkpoint(images_seen: int, state: ResumeState) -> None:
            if images_seen not in moments:
                return
            notes = checkpoint_notes(setup, backend, state)
            record = record_at(setup, beginning, images_seen)
            kept.micro_batch = state.reduced_micro_batch
            kept.checkpoints[images_seen] = Checkpoint(
                images_seen, setup.model, setup.seed, _copied(trainer.state()), notes, state.history, record
            )

        def on_step_end(images_seen: int) -> None:
            kept.seen = images_seen
            progress(images_seen, "")

        callbacks = TrainingCallbacks(
            on_log=lambda records, speed: kept.records.extend(records),
            on_checkpoint=on_checkpoint,
            on_validation=None if setup.validation is None else others.on_validation,
            on_step_end=on_step_end,
            should_stop=lambda: kept.seen + config.batch >= leg.end.images_seen,
        )
        loop.train(
            trainer if twin is None else _MovedTrainer(trainer, twin),
            setup.loader,
            setup.objective,
            setup.learning_rate,
            setup.ema,
            looped,
            callbacks,
            start.images_seen,
            start.state.updates,
            resume_state(start),
            backend.collective,
        )
    records = tuple(plain_numbers(record) for record in kept.records)
    return Replayed(kept.checkpoints, records, kept.micro_batch)


def _copied(state: TrainerState) -> TrainerState:
    """Return a state whose arrays the trainer does not change any more."""
    copies = {part: {name: np.array(value) for name, value in values.items()} for part, values in state.parts.items()}
    return TrainerState.from_parts(copies, state.updates)


def plain_numbers(record: Record) -> dict[str, float]:
    """Return the numbers of a step as they are read back from the metrics: NaN for what is not finite."""
    numbers = plain_data(record.metrics)
    return {name: float("nan") if value is None else value for name, value in numbers.items()}


def _title(leg: Leg, twin: Twin | None) -> str:
    which = "" if twin is None else f", twin {twin.number + 1}"
    return f"replay of {leg.begin.images_seen:,} to {leg.end.images_seen:,} images{which}"

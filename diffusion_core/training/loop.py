"""The training loop, the same for every backend; every count is in images seen.

The step that starts at n images seen takes the images n .. n+B-1 of the data order, and every random number in it is
a function of their positions. A run can therefore be interrupted and resumed after any step without changing its
numbers, in either framework.

A batch that does not fit into memory is computed in micro-batches, whose gradients are summed before the single
update: the result is that of the whole batch up to rounding.

A thread prepares the next batch while the device computes, and a loss is read from the device only when it is logged.
Where the timestep distribution of a batch depends on the losses of the batch before, each waits for the other, and
these losses are part of the state of the run.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import NoReturn

import numpy as np

from diffusion_core.backend.interface import StepResult, TrainBatch, Trainer
from diffusion_core.common.errors import DuetError, OutOfMemory
from diffusion_core.data import Loader
from diffusion_core.diffusion.timestep_sampling import LossHistory
from diffusion_core.optim import Ema
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runtime.distributed import Collective, ProcessGroup
from diffusion_core.training.events import NonFiniteStep, Record, ResumeState, TrainingCallbacks
from diffusion_core.training.objective import Objective
from diffusion_core.training.training_config import TrainingConfig, can_halve

__all__ = ["make_batch", "train"]


def make_batch(
    loader: Loader,
    objective: Objective,
    images_seen: int,
    size: int,
    history: LossHistory | None = None,
    group: ProcessGroup | None = None,
) -> TrainBatch:
    """Return the batch of the step that starts at `images_seen`.

    Where `loader` returns only the part of one process, so does this function. The importance of its images is scaled
    such that the losses and gradients of all parts sum to those of the whole batch. An objective that needs the whole
    batch gets it from `loader`, and the part of the process is cut out of the finished batch.

    Args:
        loader: the data.
        objective: what is trained.
        images_seen: before the step.
        size: images of the whole batch.
        history: the losses so far, for an objective whose timestep distribution depends on them.
        group: the processes of the run; None is one process.

    Raises:
        DuetError: if the objective needs the whole batch and the loader returned a part.
    """
    images = loader.batch(images_seen, size)
    features = images.features if objective.features else None  # a network without features ignores conditions
    if objective.needs_whole_batch and len(images.labels) != size:
        raise DuetError(
            f"process.coupling: {objective.coupling['name']} needs the {size} images of the whole batch, but the "
            f"loader returned {len(images.labels)}; give it all of them, Loader(..., group=ProcessGroup())"
        )
    progress, arrays = objective.progress(images_seen, size), (images.pixels, images.labels, images.counters)
    batch = objective.batch(*arrays, loader.dtype, history, features, progress, images.noise)
    if objective.needs_whole_batch and group is not None and group.size > 1:
        batch = batch.rows(group.slice_of(size))
    return batch if batch.size == size else replace(batch, importance=batch.importance * (batch.size / size))


def train(
    trainer: Trainer,
    loader: Loader,
    objective: Objective,
    learning_rate: LearningRate,
    ema: Ema,
    config: TrainingConfig,
    callbacks: TrainingCallbacks | None = None,
    images_seen: int = 0,
    updates: int = 0,
    resume_state: ResumeState | None = None,
    collective: Collective | None = None,
) -> dict[str, float]:
    """Train from `images_seen` to `config.images`, or until a callback stops the run.

    Args:
        trainer: the network with its optimiser and averages, of a backend.
        loader: the data; of several processes, the part of this one.
        objective: what is trained.
        learning_rate: the schedule of the learning rate; without an end of its own it ends with the run.
        ema: the moving averages.
        config: the length of the run and the moments of its callbacks.
        callbacks: functions to call; None calls none.
        images_seen: where the run starts; 0 for a new run.
        updates: optimiser steps before the start.
        resume_state: of the checkpoint that is resumed. A loss history of another shape than the objective needs is
            ignored, and a new one begins.
        collective: the processes that each compute a part of every batch; None is one process.

    Returns:
        ``images_per_second`` and ``seconds`` of the steps without the first, and ``first_step_seconds``, which includes
        compilation. The time of callbacks is not counted.

    Raises:
        DuetError: if a loss or a gradient is found not to be finite, unless its update is to be skipped. No checkpoint
            is written after that step, and the trainer holds its state before it.

    Example:
        The trainer of a backend has more methods; this one computes nothing.

        >>> from diffusion_core.data import Dataset
        >>> from diffusion_core.diffusion.process import Process
        >>> from diffusion_core.diffusion.schedule import cosine
        >>> from diffusion_core.optim import make_ema
        >>> class Idle:
        ...     def step(self, batch, lr, decays, micro_batches=1, may_repeat=False):
        ...         return StepResult(loss=0.5, grad_norm=1.0)
        >>> data = Dataset(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, int), ("all",), "zeros")
        >>> losses = []
        >>> summary = train(
        ...     Idle(), Loader(data, seed=0), Objective(Process(cosine(10)), seed=0), LearningRate(1e-3), make_ema(),
        ...     TrainingConfig(images=32, batch=8),
        ...     TrainingCallbacks(on_log=lambda records, speed: losses.extend(record.loss for record in records)),
        ... )
        >>> losses
        [0.5, 0.5, 0.5, 0.5]
    """
    loop = _Loop(
        trainer, loader, objective, learning_rate.for_run(config.images), ema, config,
        callbacks or TrainingCallbacks(), collective or Collective(), images_seen, updates,
    )  # fmt: skip
    return loop.run(resume_state or ResumeState())


@dataclass(frozen=True)
class _PendingStep:
    """A step that is not logged yet; its loss may still be on the device."""

    images_seen: int
    result: StepResult
    lr: float
    decays: tuple[float, ...]
    skipped: int | None

    def read(self) -> Record:
        loss, grad_norm = float(self.result.loss), float(self.result.grad_norm)
        return Record(self.images_seen, loss, grad_norm, self.lr, self.decays, self.skipped)


@dataclass
class _Timer:
    """Time spent in steps. Callbacks and the first step, which may trace or compile, do not count for the speed."""

    seconds: float = 0.0
    images: int = 0

    def add(self, seconds: float, images: int) -> None:
        self.seconds += seconds
        self.images += images

    @property
    def speed(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


@dataclass(eq=False)
class _Loop:
    """The state of one call of `train`."""

    trainer: Trainer
    loader: Loader
    objective: Objective
    learning_rate: LearningRate
    ema: Ema
    config: TrainingConfig
    callbacks: TrainingCallbacks
    collective: Collective
    images_seen: int
    updates: int

    history: LossHistory | None = None
    skipped: int = 0  # consecutive updates
    micro_batches: int = 1
    pending: list[_PendingStep] = field(default_factory=list)
    total: _Timer = field(default_factory=_Timer)
    since_log: _Timer = field(default_factory=_Timer)
    first_step_seconds: float = 0.0

    def run(self, resume_state: ResumeState) -> dict[str, float]:
        self._restore(resume_state)
        with ThreadPoolExecutor(1, "duet-batches") as pool:
            next_batch = self._prepare(pool)
            while self.images_seen < self.config.images:
                began = time.perf_counter()
                batch = next_batch.result()
                self.images_seen += self.config.batch
                self.updates += 1
                if self.history is None and self._more:
                    next_batch = self._prepare(pool)
                lr, decays = self._rates()
                result = self._step(batch, lr, decays)
                is_skipped = self._check(result, lr, decays)
                if self.history is not None:
                    if not is_skipped:
                        self._follow(result)
                    if self._more:
                        next_batch = self._prepare(pool)
                skipped = int(is_skipped) if self._may_skip else None
                self.pending.append(_PendingStep(self.images_seen, result, lr, decays, skipped))
                if self._finish_step(began):
                    break
        return {
            "images_per_second": self.total.speed,
            "first_step_seconds": self.first_step_seconds,
            "seconds": self.total.seconds,
        }

    @property
    def _more(self) -> bool:
        """Whether another step follows."""
        return self.images_seen < self.config.images

    @property
    def _may_skip(self) -> bool:
        return self.config.non_finite == "skip"

    @property
    def _speed(self) -> float:
        """Recent speed in images per second."""
        return self.since_log.speed or self.total.speed

    def _make_resume_state(self) -> ResumeState:
        """Return the state for a checkpoint; every process must call this at the same moment."""
        size = _agreed_micro_batch(self.config, self.collective, self.micro_batches)
        return ResumeState(self.history, self.skipped, size)

    def _restore(self, state: ResumeState) -> None:
        """Take over what a checkpoint holds in addition to the state of the trainer."""
        new = self.objective.timestep_sampler.empty_history()
        fits = state.history is not None and new is not None and state.history.losses.shape == new.losses.shape
        self.history, self.skipped = state.history if fits else new, state.skipped
        group, halves = self.collective.group, self.config.on_out_of_memory == "halve"
        self.micro_batches = self.config.micro_batches(group, state.reduced_micro_batch if halves else None)
        if self.micro_batches > self.config.micro_batches(group):
            size = self.config.images_per_process(group) // self.micro_batches
            self.callbacks.on_notice(f"micro-batch: {size} images, as before the run was interrupted")

    def _prepare(self, pool: ThreadPoolExecutor) -> Future[TrainBatch]:
        """Make the next batch on a thread."""
        group = self.collective.group
        arguments = self.loader, self.objective, self.images_seen, self.config.batch, self.history, group
        return pool.submit(make_batch, *arguments)

    def _rates(self) -> tuple[float, tuple[float, ...]]:
        """Return the learning rate and the decays of the averages of the current step."""
        batch = self.config.batch
        decays = self.ema.decays(self.updates, self.images_seen, batch)
        decays += self.objective.average_decays(self.images_seen - batch, batch)
        return self.learning_rate(self.images_seen, batch), decays

    def _step(self, batch: TrainBatch, lr: float, decays: tuple[float, ...]) -> StepResult:
        """Do a step; where memory does not suffice and the configuration allows it, in smaller micro-batches."""
        halves = self.config.on_out_of_memory == "halve"
        while True:
            try:
                return self.trainer.step(batch, lr, decays, self.micro_batches, halves)
            except OutOfMemory:
                if not halves or not can_halve(batch.size, self.micro_batches):
                    raise
                self.micro_batches *= 2
                size = batch.size // self.micro_batches
                self.callbacks.on_notice(f"out of memory: the micro-batch is now {size} images")

    def _check(self, result: StepResult, lr: float, decays: tuple[float, ...]) -> bool:
        """Read the loss where the next step depends on it; return whether this update is skipped.

        Raises:
            DuetError: if the step is not finite and may not be skipped.
        """
        if not self._may_skip and self.history is None:
            return False  # read when it is logged
        step = self._non_finite_step(self.updates, float(result.loss), float(result.grad_norm), lr, decays)
        step = replace(step, history=self.history)
        if math.isfinite(step.loss + step.grad_norm):
            self.skipped = 0
            return False
        if not self._may_skip or self.skipped >= self.config.max_skipped:
            if self.pending:
                self.callbacks.on_log([one.read() for one in self.pending], self._speed)
            self._stop(step, f" and {self.skipped} updates before it were skipped" if self.skipped else "")
        # Of consecutive skipped updates only the first is stored.
        stored = "" if self.skipped else self.callbacks.on_non_finite(step)
        self.callbacks.on_notice(f"update skipped: {step.description}{stored}")
        self.trainer.clear_non_finite()
        self.skipped += 1
        return True

    def _follow(self, result: StepResult) -> None:
        """Add the losses of the current batch to the history that the next timesteps depend on."""
        positions = np.arange(self.images_seen - self.config.batch, self.images_seen)
        losses = self.collective.gather(result.losses(), self.config.batch)
        self.history = self.history.appended(self.objective.draw_timesteps(positions, self.history)[0], losses)

    def _finish_step(self, began: float) -> bool:
        """Log, store and draw what is due after a step; return whether to stop early."""
        config, callbacks, seen = self.config, self.callbacks, self.images_seen
        stops = self._more and callbacks.should_stop()
        saves = stops or config.is_due(config.checkpoint_images, seen)
        samples = config.is_due(config.sample_images, seen)
        snapshots = self.ema.snapshot_images > 0 and config.is_due(self.ema.snapshot_images, seen)
        validates = callbacks.on_validation is not None and config.is_due(config.validation_images or 0, seen)
        others = saves or samples or snapshots or validates
        logs = config.is_due(config.log_images, seen) or others or not self.first_step_seconds
        records: list[Record] = []
        if logs:  # reading a loss waits for the device, which is a part of the time of the step
            records, self.pending = [one.read() for one in self.pending], []
        self._count_time(time.perf_counter() - began)
        if validates and (self._may_skip or all(record.is_finite for record in records)):
            records[-1] = replace(records[-1], validation=callbacks.on_validation(seen))
        if logs:
            self._log(records)
        if snapshots:
            callbacks.on_snapshot(seen)
        if saves:
            callbacks.on_checkpoint(seen, self._make_resume_state())
        if samples and not stops:
            callbacks.on_sample(seen)
            stops = self._more and callbacks.should_stop()
            if stops and not saves:
                callbacks.on_checkpoint(seen, self._make_resume_state())
        callbacks.on_step_end(seen)
        return stops

    def _count_time(self, seconds: float) -> None:
        if not self.first_step_seconds:
            self.first_step_seconds = seconds
            return
        self.total.add(seconds, self.config.batch)
        self.since_log.add(seconds, self.config.batch)

    def _log(self, records: list[Record]) -> None:
        """Log the records before the first that is not finite; the steps after it changed nothing."""
        finite = list(takewhile(lambda record: record.is_finite, records))
        logged = records if self._may_skip else finite
        if logged:
            self.callbacks.on_log(logged, self._speed)
        if len(logged) < len(records):
            bad, update = records[len(logged)], self.updates - len(records) + len(logged) + 1
            self._stop(self._non_finite_step(update, bad.loss, bad.grad_norm, bad.lr, bad.decays))
        self.since_log = _Timer()

    def _non_finite_step(
        self, update: int, loss: float, grad_norm: float, lr: float, decays: tuple[float, ...]
    ) -> NonFiniteStep:
        """Describe update 1, 2, ... of the run."""
        batch = self.config.batch
        return NonFiniteStep(
            images_seen=self.images_seen - batch * (self.updates - update + 1),
            batch=batch,
            updates=update - 1,
            lr=lr,
            decays=decays,
            loss=loss,
            grad_norm=grad_norm,
            micro_batches=_micro_batches_of_whole(self.micro_batches, self.config, self.collective),
        )

    def _stop(self, step: NonFiniteStep, more: str = "") -> NoReturn:
        stored = self.callbacks.on_non_finite(replace(step, stops_training=True))
        raise DuetError(
            f"training: {step.description}{more}; a lower learning rate (lr.peak) or a gradient clip (optimiser.clip) "
            f"may help, or, for single steps, trainer.non_finite=skip{stored}"
        )


def _agreed_micro_batch(config: TrainingConfig, collective: Collective, micro_batches: int) -> int | None:
    """Return the smallest micro-batch that any process had to halve to; None where no process halved."""
    if config.on_out_of_memory != "halve":
        return None
    group = collective.group
    is_halved = micro_batches > config.micro_batches(group)
    own = config.images_per_process(group) // micro_batches if is_halved else 0
    sizes = collective.gather(np.array([own]), group.size)
    return int(sizes[sizes > 0].min(initial=config.batch)) if sizes.any() else None


def _micro_batches_of_whole(micro_batches: int, config: TrainingConfig, collective: Collective) -> int:
    """Return the smallest number of equal parts of the whole batch that are no larger than a process's micro-batch."""
    largest = config.images_per_process(collective.group) // micro_batches
    return next(n for n in range(1, config.batch + 1) if config.batch % n == 0 and config.batch // n <= largest)

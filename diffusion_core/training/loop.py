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
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import NoReturn

import numpy as np

from diffusion_core.backend.interface import StepResult, TrainBatch, Trainer, average_names
from diffusion_core.common.errors import DuetError, OutOfMemory, one_of
from diffusion_core.data import Loader
from diffusion_core.diffusion.timestep_sampling import LossHistory
from diffusion_core.networks.program import Program
from diffusion_core.optim import Ema
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runtime.distributed import Collective, ProcessGroup
from diffusion_core.training.objective import Objective

__all__ = ["NonFiniteStep", "Record", "ResumeState", "TrainingCallbacks", "TrainingConfig", "make_batch", "train"]


ON_OUT_OF_MEMORY = ("stop", "halve")
NON_FINITE = ("stop", "skip")


@dataclass(frozen=True)
class TrainingConfig:
    """The length of a run and the moments of its log, checkpoints and samples; every count is in images seen.

    Args:
        images: length of the run; a multiple of `batch`.
        batch: images per step, summed over all processes.
        micro_batch: images that a process computes at a time, a divisor of its part of the batch; None computes the
            whole part at once. It is a size and not a number of micro-batches, since memory limits the size.
        on_out_of_memory: ``"stop"``, or ``"halve"`` the micro-batch as often as needed.
        non_finite: where a loss or a gradient is not finite, ``"stop"`` the run, or ``"skip"`` the update. ``"skip"``
            reads the loss after every step.
        max_skipped: the number of consecutive updates that may be skipped before training stops.
        log_images: the metrics are read and written at least this often.
        checkpoint_images: interval between checkpoints; 0 writes one at the end only.
        sample_images: interval between sample images; 0 draws them at the end only.
        validation_images: interval between evaluations of the validation loss; 0 evaluates it at the end only, None
            chooses an interval that costs little, see `validation.Validation.interval`.
        keep_checkpoints: the number of latest checkpoints to keep; None keeps all.

    Raises:
        DuetError: if a value is out of range; the message names the key, as in ``trainer.batch``.

    Example:
        >>> config = TrainingConfig(images=1280, batch=64, checkpoint_images=640)
        >>> [n for n in range(64, 1281, 64) if config.is_due(config.checkpoint_images, n)]
        [640, 1280]
    """

    images: int
    batch: int = 128
    micro_batch: int | None = None
    on_out_of_memory: str = "stop"
    non_finite: str = "stop"
    max_skipped: int = 10
    log_images: int = 6400
    checkpoint_images: int = 0
    sample_images: int = 0
    validation_images: int | None = None
    keep_checkpoints: int | None = None

    def __post_init__(self) -> None:
        if self.keep_checkpoints is not None and self.keep_checkpoints < 1:
            given = self.keep_checkpoints
            raise DuetError(f"trainer.keep_checkpoints: {given} was given; it must be at least 1, or null to keep all")
        for name in ("images", "batch", "log_images"):
            if getattr(self, name) < 1:
                raise DuetError(f"trainer.{name}: {getattr(self, name)} was given; it must be at least 1")
        if self.images % self.batch:
            below = self.images // self.batch * self.batch
            fits = " or ".join(str(n) for n in (below, below + self.batch) if n)
            raise DuetError(
                f"trainer.images: {self.images} was given; it must be a multiple of trainer.batch={self.batch}, for "
                f"example {fits}"
            )
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch % self.micro_batch):
            raise DuetError(
                f"trainer.micro_batch: {self.micro_batch} was given; it must divide the batch {self.batch}, or be null"
            )
        if self.on_out_of_memory not in ON_OUT_OF_MEMORY:
            raise one_of("trainer.on_out_of_memory", self.on_out_of_memory, ON_OUT_OF_MEMORY)
        if self.non_finite not in NON_FINITE:
            raise one_of("trainer.non_finite", self.non_finite, NON_FINITE)
        if self.max_skipped < 0:
            raise DuetError(f"trainer.max_skipped: {self.max_skipped} was given; it must be at least 0")
        if self.validation_images is not None and self.validation_images < 0:
            given = self.validation_images
            raise DuetError(
                f"trainer.validation_images: {given} was given; it must be a number of images, 0 for the end only, or "
                f"null for an interval that costs little; validation.part=none turns the validation loss off"
            )

    def images_per_process(self, group: ProcessGroup) -> int:
        """Return the number of images of each batch that this process computes."""
        own = group.slice_of(self.batch)
        return own.stop - own.start

    def micro_batches(self, group: ProcessGroup, max_size: int | None = None) -> int:
        """Return the number of equal micro-batches per step in this process.

        Args:
            group: the processes of the run.
            max_size: micro-batches with more images than this are halved while their size is even; None sets no limit.
        """
        size = self.images_per_process(group)
        micro_batches = size // (self.micro_batch or size)
        while max_size is not None and size // micro_batches > max_size and _can_halve(size, micro_batches):
            micro_batches *= 2
        return micro_batches

    def check(self, program: Program, group: ProcessGroup | None = None) -> None:
        """Refuse a batch that this number of processes or this network cannot split.

        Raises:
            DuetError: if a process would get no image, the micro-batches would be unequal, or a network with batch
                statistics would see only a part of its batch.
        """
        group = group or ProcessGroup()
        if self.batch < group.size:
            raise DuetError(
                f"trainer.batch: {self.batch} was given for {group.size} processes; each needs at least one image"
            )
        if self.micro_batch and self.batch % (group.size * self.micro_batch):
            raise DuetError(
                f"trainer.micro_batch: {self.micro_batch} was given for a batch of {self.batch} on {group.size} "
                f"processes; it must divide the number of images of each process, or be null"
            )
        if not program.has_batch_statistics:
            return
        splits = {"micro_batch": self.micro_batches(group) > 1, "on_out_of_memory": self.on_out_of_memory == "halve"}
        for key, allowed in (("micro_batch", "null"), ("on_out_of_memory", "stop")):
            if splits[key]:
                raise DuetError(
                    f"trainer.{key}: {getattr(self, key)} was given, but the network has batch statistics, which "
                    f"micro-batches would change; use {allowed}, or a network with group norms"
                )
        if group.size > 1:
            raise DuetError(
                f"parallel: {group.kind} was given, but the network has batch statistics, which several processes "
                f"would change; use none, or a network with group norms"
            )

    def is_due(self, interval: int, images_seen: int) -> bool:
        """Return whether something that happens every `interval` images happens after the step to `images_seen`.

        Everything is due at the end of the run. An interval of 0 is due only then.
        """
        if images_seen >= self.images:
            return True
        return interval > 0 and images_seen // interval > (images_seen - self.batch) // interval

    def is_in_last_log(self, images_seen: int) -> bool:
        """Return whether the step that ends at `images_seen` is in the last group of steps that `log_images` makes."""
        return images_seen - self.batch >= (self.images - self.batch) // self.log_images * self.log_images


@dataclass(frozen=True)
class Record:
    """The logged numbers of one step.

    Args:
        images_seen: after the step.
        loss: of the batch.
        grad_norm: global norm of the gradient, before clipping.
        lr: learning rate.
        decays: one per moving average, in the order of `backend.interface.average_names`.
        skipped: 1 if the update was skipped and 0 if not; None where updates are never skipped.
        validation: the numbers of `validation.Validation.measure` after the step; empty if it was not due.
    """

    images_seen: int
    loss: float
    grad_norm: float
    lr: float
    decays: tuple[float, ...]
    skipped: int | None = None
    validation: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient are numbers."""
        return math.isfinite(self.loss + self.grad_norm)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name; the decays are called ema_decay, ema1_decay, ema2_decay ..."""
        numbers = asdict(self)
        decays, validation = numbers.pop("decays"), numbers.pop("validation")
        if self.skipped is None:
            del numbers["skipped"]
        numbers |= {f"{name}_decay": d for name, d in zip(average_names(len(decays)), decays, strict=True)}
        return numbers | validation


@dataclass(frozen=True, repr=False)
class NonFiniteStep:
    """A step whose loss or gradient is not finite.

    Args:
        images_seen: before the step.
        batch: images of the step.
        updates: before the step.
        lr: learning rate.
        decays: of the averages.
        loss: of the batch.
        grad_norm: global norm of the gradient, before clipping.
        history: the losses that the timesteps of its batch depend on, or None.
        stops_training: whether training stops at this step; otherwise its update is skipped.
        micro_batches: the smallest number of equal micro-batches of the whole batch of which none is larger than what a
            process computed at a time.
    """

    images_seen: int
    batch: int
    updates: int
    lr: float
    decays: tuple[float, ...]
    loss: float
    grad_norm: float
    history: LossHistory | None = None
    stops_training: bool = False
    micro_batches: int = 1

    def __repr__(self) -> str:
        return f"NonFiniteStep(images_seen={self.images_seen}, loss={self.loss}, grad_norm={self.grad_norm})"

    @property
    def description(self) -> str:
        """The loss, the gradient norm and the moment, as a part of a sentence."""
        seen = self.images_seen + self.batch
        return f"the loss is {self.loss} and the gradient norm {self.grad_norm} at {seen} images seen"


@dataclass(frozen=True, eq=False, repr=False)
class ResumeState:
    """What a resumed run needs in addition to the state of its trainer.

    Args:
        history: the losses so far, for an objective whose timestep distribution depends on them.
        skipped: the number of consecutive updates that were just skipped.
        reduced_micro_batch: images computed at a time after the micro-batch was halved; None if it never was.
    """

    history: LossHistory | None = None
    skipped: int = 0
    reduced_micro_batch: int | None = None

    def __repr__(self) -> str:
        history = "None" if self.history is None else f"{int(self.history.counts.sum())} losses"
        return f"ResumeState(history={history}, skipped={self.skipped}, reduced_micro_batch={self.reduced_micro_batch})"


@dataclass(frozen=True, repr=False)
class TrainingCallbacks:
    """Functions that the training loop calls; none of them can change the numbers of the run.

    Args:
        on_log: called with the records since the last call and the recent speed in images per second.
        on_checkpoint: called with images seen and the `ResumeState` to store.
        on_sample: called with images seen.
        on_snapshot: called with images seen; before a checkpoint of the same moment.
        on_validation: called with images seen; returns the validation loss by name, which is logged with the step. None
            trains without it. It is called before the other callbacks of the step, in every process.
        on_step_end: called with images seen, after each step and the other callbacks of that step.
        on_notice: called with a line of text for the terminal.
        on_non_finite: called with a step that is not finite, while the trainer holds its state before the step. Returns
            text that is appended to the message, for example where the step was stored.
        should_stop: returns whether to stop early, after a checkpoint; called after each step and after samples.
    """

    on_log: Callable[[list[Record], float], None] = lambda records, speed: None
    on_checkpoint: Callable[[int, ResumeState], None] = lambda images_seen, resume_state: None
    on_sample: Callable[[int], None] = lambda images_seen: None
    on_snapshot: Callable[[int], None] = lambda images_seen: None
    on_validation: Callable[[int], Mapping[str, float]] | None = None
    on_step_end: Callable[[int], None] = lambda images_seen: None
    on_notice: Callable[[str], None] = lambda line: None
    on_non_finite: Callable[[NonFiniteStep], str] = lambda step: ""
    should_stop: Callable[[], bool] = lambda: False

    def __repr__(self) -> str:
        own = [name for name, value in vars(self).items() if value is not getattr(TrainingCallbacks, name)]
        return f"TrainingCallbacks({', '.join(own)})"


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
                if not halves or not _can_halve(batch.size, self.micro_batches):
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


def _can_halve(size: int, micro_batches: int) -> bool:
    return size // micro_batches % 2 == 0


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

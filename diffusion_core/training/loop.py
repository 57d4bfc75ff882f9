"""The training loop: the same for every backend, counted in images seen.

A step at n images seen takes images n .. n+B-1 of the data order, and everything random in it is a function
of their positions. So a run is cut and resumed at any step without a trace, in either framework.
A batch that is too large for the memory is computed in pieces of `micro_batch` images, whose gradients are added up
before the one update: the numbers are those of the whole batch but for rounding.
The next batch is made on a thread while the device computes; a loss is read only when it is logged. Where the levels
of a batch depend on the losses of the one before, both wait for each other, and these losses are a state of the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
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

__all__ = ["ResumeState", "TrainingConfig", "Hooks", "Record", "NonFiniteStep", "make_batch", "train"]


ON_OUT_OF_MEMORY = ("stop", "halve")
NON_FINITE = ("stop", "skip")


@dataclass(frozen=True)
class TrainingConfig:
    """How long a run is, and when it does what; all counts are images seen.

    Args:
        images: total length.
        batch: images per step, of all processes together.
        micro_batch: images that a process computes at a time, a divisor of its share of the batch; None computes all at
            once. It is what memory limits, so it is given as a size, not as a number of pieces, which would change
            with the batch and the number of processes.
        on_out_of_memory: ``"stop"``, or ``"halve"`` the pieces of the batch as often as is needed.
        non_finite: where a loss or a gradient is not finite, ``"stop"``, or ``"skip"`` the update, for which every loss
            is read at once.
        max_skipped: updates skipped one after another, after which training stops all the same.
        log_images: metrics are read and written at least this often.
        checkpoint_images: a checkpoint is written this often; 0 is at the end alone.
        sample_images: sample pictures are made this often; 0 is at the end alone.
        keep_checkpoints: how many of the last checkpoints stay; None keeps all.
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
    keep_checkpoints: int | None = None

    def __post_init__(self) -> None:
        if self.keep_checkpoints is not None and self.keep_checkpoints < 1:
            given = self.keep_checkpoints
            raise DuetError(f"trainer.keep_checkpoints: {given} was given; it must be at least 1, or null to keep all")
        for name in ("images", "batch", "log_images"):
            if getattr(self, name) < 1:
                raise DuetError(f"trainer.{name}: {getattr(self, name)} was given; it must be at least 1")
        if self.images % self.batch:
            fit = max(1, self.images // self.batch) * self.batch
            raise DuetError(
                f"trainer.images: {self.images} is not a multiple of the batch {self.batch}; {fit} would fit"
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

    def share(self, group: ProcessGroup) -> int:
        """How many images of a batch a process computes."""
        share = group.share(self.batch)
        return share.stop - share.start

    def micro_batches(self, group: ProcessGroup, most: int | None = None) -> int:
        """Into how many equal pieces a process cuts its share of a batch; halved while they have over `most` images."""
        size = self.share(group)
        micro_batches = size // (self.micro_batch or size)
        while most is not None and size // micro_batches > most and _can_halve(size, micro_batches):
            micro_batches *= 2
        return micro_batches

    def check(self, program: Program, group: ProcessGroup | None = None) -> None:
        """Refuse to share a batch among more processes than it has images, or to cut it where it must be seen whole.

        Raises:
            DuetError: for unequal pieces, or a network with batch statistics.
        """
        group = group or ProcessGroup()
        if self.batch < group.size:
            raise DuetError(
                f"trainer.batch: {self.batch} was given for {group.size} processes; each needs at least one image"
            )
        if self.micro_batch and self.batch % (group.size * self.micro_batch):
            raise DuetError(
                f"trainer.micro_batch: {self.micro_batch} was given, which {group.size} processes cannot cut the batch "
                f"{self.batch} into; it must divide the share of each, or be null"
            )
        cut = {"micro_batch": self.micro_batches(group) > 1, "on_out_of_memory": self.on_out_of_memory == "halve"}
        for key, fits in (("micro_batch", "null"), ("on_out_of_memory", "stop")):
            if program.has_batch_statistics and cut[key]:
                raise DuetError(
                    f"trainer.{key}: {getattr(self, key)} was given, but the network has batch statistics, which "
                    f"pieces of a batch would change; use {fits}, or a network with group norms"
                )
        if program.has_batch_statistics and group.size > 1:
            raise DuetError(
                f"parallel: {group.kind} was given, but the network has batch statistics, which shares of a batch "
                f"would change; use none, or a network with group norms"
            )

    def due(self, every: int, images_seen: int) -> bool:
        """Whether something that happens every so many images falls into the step that ends at `images_seen`."""
        if images_seen >= self.images:
            return True
        return every > 0 and images_seen // every > (images_seen - self.batch) // every

    def is_last(self, images_seen: int) -> bool:
        """Whether the step that ends at `images_seen` is one of those that are logged last, by `log_images` alone."""
        return images_seen - self.batch >= (self.images - self.batch) // self.log_images * self.log_images


@dataclass(frozen=True)
class Record:
    """One step, as it is logged; `decays` has one for each average, in the order of their names.

    Where updates may be skipped, `skipped` says whether this one was, 1 or 0.
    """

    images_seen: int
    loss: float
    grad_norm: float
    lr: float
    decays: tuple[float, ...]
    skipped: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name, those of the averages as ema_decay, ema1_decay, ema2_decay ..."""
        numbers = asdict(self)
        decays = numbers.pop("decays")
        if self.skipped is None:
            del numbers["skipped"]
        return numbers | {f"{name}_decay": d for name, d in zip(average_names(len(decays)), decays, strict=True)}


@dataclass(frozen=True)
class NonFiniteStep:
    """A step whose loss or gradient is not finite.

    Args:
        images_seen: before the step.
        batch: images of the step.
        updates: before the step.
        lr: the learning rate.
        decays: of the averages.
        loss: of the batch.
        grad_norm: of the gradient, unclipped.
        history: the losses that the levels of its batch depend on, or None.
        ends: whether training stops at it; if not, its update is skipped.
        micro_batches: the fewest equal ones of the batch of which none is more than a process computed at a time.
    """

    images_seen: int
    batch: int
    updates: int
    lr: float
    decays: tuple[float, ...]
    loss: float
    grad_norm: float
    history: LossHistory | None = None
    ends: bool = False
    micro_batches: int = 1

    @property
    def said(self) -> str:
        """For people."""
        seen = self.images_seen + self.batch
        return f"the loss is {self.loss} and the gradient norm {self.grad_norm} at {seen} images seen"


@dataclass(frozen=True, eq=False)
class ResumeState:
    """What a run that is gone on with starts from, beside what its trainer holds.

    Args:
        history: the losses so far, of an objective whose levels depend on them.
        skipped: how many updates were skipped one after another.
        halved: how many images are computed at a time, where memory did not suffice for those that were asked for.
    """

    history: LossHistory | None = None
    skipped: int = 0
    halved: int | None = None


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; none of it can change the numbers.

    Args:
        log: with the records since the last call and the images per second of late.
        checkpoint: with images seen, and what a run that is gone on with starts from.
        sample: with images seen.
        snapshot: with images seen, before a checkpoint of the same moment.
        step: with images seen, after each step and what it led to.
        notice: with a line for people.
        trouble: with a step that is not finite, while the trainer holds what it held before; says what was kept of it.
        stops: whether to end before the end, after a checkpoint; asked after each step and after samples.
    """

    log: Callable[[list[Record], float], None] = lambda records, speed: None
    checkpoint: Callable[[int, ResumeState], None] = lambda images_seen, resume_state: None
    sample: Callable[[int], None] = lambda images_seen: None
    snapshot: Callable[[int], None] = lambda images_seen: None
    step: Callable[[int], None] = lambda images_seen: None
    notice: Callable[[str], None] = lambda line: None
    trouble: Callable[[NonFiniteStep], str] = lambda trouble: ""
    stops: Callable[[], bool] = lambda: False


# A step that is not logged yet, and whose loss may not have been read: a record, but for its result.
_Waiting = tuple[int, StepResult, float, tuple[float, ...], int | None]


def _records(waiting: list[_Waiting]) -> list[Record]:
    return [Record(n, float(r.loss), float(r.grad_norm), *other) for n, r, *other in waiting]


@dataclass
class _Clock:
    """Time spent in steps alone: hooks and the first step (which traces or compiles) are left out of the speed."""

    seconds: float = 0.0
    images: int = 0
    first_step: float = 0.0

    @property
    def speed(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


def make_batch(
    loader: Loader, objective: Objective, images_seen: int, size: int, history: LossHistory | None = None
) -> TrainBatch:
    """The batch of the step that starts at `images_seen`, of levels that depend on the losses before it, if they do.

    Of a loader that shows a share of each batch it is that share, whose loss and gradients are parts of the whole's.
    """
    images = loader.batch(images_seen, size)
    batch = objective.batch(images.pixels, images.labels, images.counters, loader.dtype, history, images.features)
    return batch if batch.size == size else replace(batch, importance=batch.importance * (batch.size / size))


def train(
    trainer: Trainer,
    loader: Loader,
    objective: Objective,
    learning_rate: LearningRate,
    ema: Ema,
    config: TrainingConfig,
    hooks: Hooks | None = None,
    images_seen: int = 0,
    updates: int = 0,
    resume_state: ResumeState | None = None,
    collective: Collective | None = None,
) -> dict[str, float]:
    """Train from `images_seen`, after so many `updates`, to the end of the course, or until a hook stops it.

    Args:
        resume_state: from where the run was cut; a history of others than the objective keeps starts anew.
        collective: the processes that each compute a share of a batch, of which `loader` shows this one's.

    Returns:
        images_per_second, first_step_seconds and seconds of the steps.

    Raises:
        DuetError: if a loss or a gradient is not finite when it is read, unless its update is to be skipped; no
            checkpoint is written after that, and the trainer holds what it held before.
    """
    hooks, collective, resume_state, fresh = (
        hooks or Hooks(),
        collective or Collective(),
        resume_state or ResumeState(),
        objective.timestep_sampler.empty_history(),
    )
    history, streak = resume_state.history, resume_state.skipped
    if history is None or fresh is None or history.losses.shape != fresh.losses.shape:
        history = fresh
    waiting: list[_Waiting] = []
    skips, clock, interval = config.non_finite == "skip", _Clock(), _Clock()
    micro_batches = config.micro_batches(
        collective.group, resume_state.halved if config.on_out_of_memory == "halve" else None
    )
    if micro_batches > config.micro_batches(collective.group):
        hooks.notice(
            f"as before it was cut, {config.share(collective.group) // micro_batches} images are computed at a time"
        )
    with ThreadPoolExecutor(1, "duet-batches") as pool:
        ahead = pool.submit(make_batch, loader, objective, images_seen, config.batch, history)
        while images_seen < config.images:
            began = time.perf_counter()
            batch = ahead.result()
            images_seen += config.batch
            more = images_seen < config.images
            if more and history is None:
                ahead = pool.submit(make_batch, loader, objective, images_seen, config.batch)
            updates += 1
            lr, decays = learning_rate(images_seen), ema.decays(updates, images_seen, config.batch)
            result, micro_batches = _step(trainer, batch, lr, decays, micro_batches, config, hooks)
            fine = True
            if skips or history is not None:  # what comes next depends on it
                numbers = lr, decays, float(result.loss), float(result.grad_norm)
                trouble = NonFiniteStep(
                    images_seen - config.batch,
                    config.batch,
                    updates - 1,
                    *numbers,
                    history,
                    micro_batches=_of_all(micro_batches, config, collective),
                )
                fine = math.isfinite(trouble.loss + trouble.grad_norm)
                if not fine and (not skips or streak >= config.max_skipped):
                    if waiting:
                        hooks.log(_records(waiting), interval.speed or clock.speed)
                    _stop(trouble, hooks, f" and {streak} updates before it were skipped" if streak else "")
                if not fine:
                    kept = hooks.trouble(trouble) if not streak else ""
                    hooks.notice(f"an update is skipped: {trouble.said}{kept}")
                    trainer.clear_non_finite()
                streak = 0 if fine else streak + 1
            if history is not None:
                if fine:
                    positions = np.arange(images_seen - config.batch, images_seen)
                    losses = collective.gather(result.losses(), config.batch)
                    history = history.appended(objective.draw(positions, history)[0], losses)
                if more:
                    ahead = pool.submit(make_batch, loader, objective, images_seen, config.batch, history)
            waiting.append((images_seen, result, lr, decays, int(not fine) if skips else None))
            logs = config.due(config.log_images, images_seen)
            stops = more and hooks.stops()
            saves = stops or config.due(config.checkpoint_images, images_seen)
            samples = config.due(config.sample_images, images_seen)
            stores = ema.snapshot_images > 0 and config.due(ema.snapshot_images, images_seen)
            records = []
            if logs or saves or samples or stores or not clock.first_step:
                records, waiting = _records(waiting), []
            took = time.perf_counter() - began
            if not clock.first_step:
                clock.first_step = took
            else:
                for one in (clock, interval):
                    one.seconds += took
                    one.images += config.batch
            if records:
                sound = records if skips else _before_trouble(records)
                if sound:
                    hooks.log(sound, interval.speed or clock.speed)
                if len(sound) < len(records):
                    before = updates - len(records) + len(sound)
                    _stop(
                        _trouble_of(records[len(sound)], before, config, _of_all(micro_batches, config, collective)),
                        hooks,
                    )
                interval = _Clock()
            if stores:
                hooks.snapshot(images_seen)
            if saves:
                hooks.checkpoint(images_seen, ResumeState(history, streak, _halved(config, collective, micro_batches)))
            if samples and not stops:
                hooks.sample(images_seen)
                stops = more and hooks.stops()
                if stops and not saves:
                    hooks.checkpoint(
                        images_seen, ResumeState(history, streak, _halved(config, collective, micro_batches))
                    )
            hooks.step(images_seen)
            if stops:
                break
    return {"images_per_second": clock.speed, "first_step_seconds": clock.first_step, "seconds": clock.seconds}


def _step(
    trainer: Trainer,
    batch: TrainBatch,
    lr: float,
    decays: tuple[float, ...],
    micro_batches: int,
    config: TrainingConfig,
    hooks: Hooks,
) -> tuple[StepResult, int]:
    """A step, and the number of pieces that it was made in: more than were asked for where memory did not suffice."""
    halves = config.on_out_of_memory == "halve"
    while True:
        try:
            return trainer.step(batch, lr, decays, micro_batches, halves), micro_batches
        except OutOfMemory:
            if not halves or not _can_halve(batch.size, micro_batches):
                raise
            micro_batches *= 2
            hooks.notice(f"out of memory: from here on {batch.size // micro_batches} images are computed at a time")


def _can_halve(size: int, micro_batches: int) -> bool:
    return size // micro_batches % 2 == 0


def _halved(config: TrainingConfig, collective: Collective, micro_batches: int) -> int | None:
    """How many images a process computes at a time that halved its pieces, the fewest of all; None where none did."""
    if config.on_out_of_memory != "halve":
        return None
    own = (
        config.share(collective.group) // micro_batches if micro_batches > config.micro_batches(collective.group) else 0
    )
    found = collective.gather(np.array([own]), collective.group.size)
    return int(found[found > 0].min(initial=config.batch)) if found.any() else None


def _of_all(micro_batches: int, config: TrainingConfig, collective: Collective) -> int:
    """Into how many equal pieces the whole batch is cut where none is to have more images than those of a process."""
    most = config.share(collective.group) // micro_batches
    return next(n for n in range(1, config.batch + 1) if config.batch % n == 0 and config.batch // n <= most)


def _before_trouble(records: list[Record]) -> list[Record]:
    """Those before the first that is not finite; those after it changed nothing."""
    return list(takewhile(lambda record: math.isfinite(record.loss + record.grad_norm), records))


def _trouble_of(record: Record, updates: int, config: TrainingConfig, micro_batches: int) -> NonFiniteStep:
    seen, numbers = record.images_seen - config.batch, (record.lr, record.decays, record.loss, record.grad_norm)
    return NonFiniteStep(seen, config.batch, updates, *numbers, micro_batches=micro_batches)


def _stop(trouble: NonFiniteStep, hooks: Hooks, more: str = "") -> NoReturn:
    raise DuetError(
        f"training: {trouble.said}{more}; a lower learning rate or a gradient clip may help, or, for single steps, "
        f"trainer.non_finite=skip{hooks.trouble(replace(trouble, ends=True))}"
    )

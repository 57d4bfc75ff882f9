"""What the training loop reports: records of its steps, steps that are not finite, and the functions that it calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from diffusion_core.backend.interface import average_names
from diffusion_core.diffusion.timestep_sampling import LossHistory

__all__ = ["NonFiniteStep", "Record", "ResumeState", "TrainingCallbacks"]


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

"""The length of a run and the moments of what it does; every count is in images seen."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.program import Program
from diffusion_core.runtime.distributed import ProcessGroup

__all__ = ["NON_FINITE", "ON_OUT_OF_MEMORY", "TrainingConfig", "can_halve"]

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
        check_choice("trainer.on_out_of_memory", self.on_out_of_memory, ON_OUT_OF_MEMORY)
        check_choice("trainer.non_finite", self.non_finite, NON_FINITE)
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
        while max_size is not None and size // micro_batches > max_size and can_halve(size, micro_batches):
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


def can_halve(size: int, micro_batches: int) -> bool:
    """Return whether micro-batches of a batch can be halved."""
    return size // micro_batches % 2 == 0

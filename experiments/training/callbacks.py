"""What a run does while it trains: log, validate, store checkpoints and snapshots, draw samples, keep bad steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, Network, Trainer
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.weights import Weights
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.runs.ema_snapshots import save_snapshots
from diffusion_core.runs.failure_bundle import save_bundle, should_keep
from diffusion_core.runs.manifest import Manifest, checkpoint_hashes
from diffusion_core.runs.run_directory import RunDirectory
from diffusion_core.runtime import signals
from diffusion_core.runtime.heartbeat import heartbeat
from diffusion_core.training.events import NonFiniteStep, Record, ResumeState, TrainingCallbacks
from diffusion_core.training.loop import make_batch
from diffusion_core.training.validation import metric_name
from experiments.runtime.backends import sampling_calls
from experiments.runtime.processes import stop_check, stop_requested
from experiments.runtime.progress import Counter, format_speed
from experiments.sampling import draw
from experiments.sampling.options import sample_labels
from experiments.sampling.sheet import sample_sheet, sheet_columns
from experiments.training.record import record_at
from experiments.training.resume import checkpoint_notes, computed_by
from experiments.training.setup import TrainingSetup
from experiments.training.validation import measure_all

__all__ = ["RunCallbacks", "grid_of_samples", "sampling_backend"]


def sampling_backend(setup: TrainingSetup, backend: Backend) -> Backend:
    """Return the backend in the mode for sampling, which `auto` chooses by the calls of one set of samples."""
    calls = sampling_calls([(setup.plan, setup.sample.count)], setup.sample.batch)
    return setup.backend.choose_mode(backend, calls)


def grid_of_samples(setup: TrainingSetup, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the figure of the samples of a run."""
    labels = sample_labels(setup.sample.labels, len(images), setup.model)
    return sample_sheet(images, labels, setup.label_names, sheet_columns(setup.model.spec.num_classes))


@dataclass(eq=False)
class RunCallbacks:
    """The callbacks of one run, one method for each moment.

    Args:
        setup: what is trained.
        backend: what computes.
        trainer: holds the weights.
        run: the run directory; None in a process other than the main one, which writes nothing.
        start: the state that training started from.
        stop: set by a signal.
        config: the configuration as YAML, for failure bundles.
        progress: the progress bar.
        manifest: of the run directory; None without one.
    """

    setup: TrainingSetup
    backend: Backend
    trainer: Trainer
    run: RunDirectory | None
    start: Checkpoint
    stop: signals.StopFlag
    config: str
    progress: Counter
    manifest: Manifest | None = None

    def __post_init__(self) -> None:
        self._note = ""
        self._sampling: tuple[Backend, Network] | None = None
        self._validating: Network | None = None
        self._validation: tuple[int, dict[str, float]] = 0, {}

    def for_loop(self) -> TrainingCallbacks:
        """Return the functions that the training loop calls in this process."""
        validation = None if self.setup.validation is None else self.on_validation
        if self.run is None:
            return TrainingCallbacks(
                on_sample=self.on_sample, on_validation=validation, should_stop=self.should_stop
            )  # fmt: skip
        return TrainingCallbacks(
            on_log=self.on_log,
            on_validation=validation,
            on_checkpoint=self.on_checkpoint,
            on_sample=self.on_sample,
            on_snapshot=self.on_snapshot,
            on_step_end=lambda images_seen: self.progress(images_seen, self._note),
            on_notice=lambda line: print(line, flush=True),
            on_non_finite=self.on_non_finite,
            should_stop=self.should_stop,
        )

    def should_stop(self) -> bool:
        """Return whether any process received a stop signal."""
        return stop_requested(self.backend.collective, self.stop)

    def on_log(self, records: list[Record], speed: float) -> None:
        """Append the records to the metrics, and show loss and speed next to the progress bar."""
        self.run.log(records, speed)
        loss = sum(record.loss for record in records) / len(records)
        measured_at, numbers = self._validation
        held_out = f", validation {numbers[metric_name()]:.4f}" if metric_name() in numbers else ""
        if held_out and measured_at != records[-1].images_seen:
            held_out += f" at {measured_at:,} images"
        # Not known after one step; at the end, the line on the whole run has the speed.
        is_last = records[-1].images_seen >= self.setup.training_config.images
        rate = f", {format_speed(speed)}" if speed and not is_last else ""
        self._note = f"loss {loss:.4f}{held_out}{rate}"

    def on_validation(self, images_seen: int) -> dict[str, float]:
        """Return the validation loss of the present weights and of each average; every process computes a part."""
        validation, parts = self.setup.validation, self.trainer.state().evaluated
        says = nullcontext() if self.run is None else heartbeat(f"validation at {images_seen:,} images")
        with says:
            others = None if self.setup.objective.training_method is None else self.trainer.networks
            numbers = measure_all(validation, parts, self._validation_network, self.backend.collective, others)
        self._validation = images_seen, numbers
        return numbers

    def _validation_network(self, weights: Weights) -> Network:
        """Return one network with these weights; it shares the network of the samples, if they are drawn already."""
        if self._validating is None:
            if self.setup.plan is not None:
                self._validating = self._sampling_network()[1]
            else:
                self._validating = self.backend.network(self.setup.model.program, weights)
        self._validating.load(weights)
        return self._validating

    def on_checkpoint(self, images_seen: int, state: ResumeState) -> None:
        """Store a checkpoint."""
        setup, notes = self.setup, checkpoint_notes(self.setup, self.backend, state)
        if self._validation[0] == images_seen:
            notes["validation"] = self._validation[1]
        record = record_at(setup, self.start, images_seen)
        checkpoint = Checkpoint(
            images_seen, setup.model, setup.seed, self.trainer.state(), notes, state.history, record
        )  # fmt: skip
        path = save_checkpoint(self.run.path / "checkpoints", checkpoint, setup.training_config.keep_checkpoints)
        if self.manifest is not None:
            self.manifest.append("checkpoint", images_seen, checkpoint_hashes(path))

    def on_snapshot(self, images_seen: int) -> None:
        """Store a snapshot of each moving average."""
        setup = self.setup
        save_snapshots(
            self.run.path / "snapshots", images_seen, self.trainer.state(), setup.ema.profiles,
            setup.training_config.batch, setup.model, setup.seed,
        )  # fmt: skip

    def on_non_finite(self, step: NonFiniteStep) -> str:
        """Store a failure bundle, and return how to replay it."""
        setup, folder = self.setup, self.run.path / "non_finite"
        if not should_keep(folder, step):
            return ""
        # The whole batch, whichever part of it this process computes.
        batch = make_batch(setup.loader, setup.objective, step.images_seen, step.batch, step.history)
        notes = computed_by(setup, self.backend) | {"seed": setup.seed, "config": self.config}
        path = save_bundle(
            folder, step, setup.model, setup.seed, self.trainer.state(), batch, setup.optimiser,
            setup.objective.distance, notes, *self._method(),
        )  # fmt: skip
        spec = setup.model.spec
        own = f" network={spec.reference}" if isinstance(spec, OwnSpec) else ""
        return f"; to examine it: python3 -m duet replay backend={setup.backend.name} bundle={path}{own}"

    def _method(self) -> tuple[dict[str, Any] | None, tuple[DiffusionModel, Weights] | None]:
        """Return the training method of the run with its options, and the teacher of its target, for a bundle."""
        method, teacher = self.setup.objective.training_method, self.setup.teacher
        if method is None:
            return None, None
        taught = (teacher.model, teacher.network.weights) if method.needs_teacher else None
        return {"name": method.name} | method.options, taught

    def on_sample(self, images_seen: int) -> None:
        """Draw the samples of an intermediate moment; a signal that arrives meanwhile stops the run after it."""
        setup = self.setup
        if images_seen == setup.training_config.images or setup.plan is None:
            return
        try:
            with stop_check(self.backend.collective, self.stop) as pause:
                backend, network = self._sampling_network()
                directory = self.run and self.run.path / "samples"
                images = draw.save_samples(
                    backend, network, setup.model, setup.plan, directory, setup.sample, _name(images_seen), pause=pause,
                    names=setup.label_names, keep_values=not setup.loader.dataset.is_bytes,
                    condition_names=setup.loader.dataset.condition_names, decoder=setup.decoder,
                )  # fmt: skip
        except signals.Stopped as stopped:
            self.stop.number = stopped.number
            return
        if self.run is not None:
            self.run.log_image("samples", grid_of_samples(setup, images), images_seen)

    def _sampling_network(self) -> tuple[Backend, Network]:
        """Return one network with the present weights; TensorFlow would trace a new one and keep every trace."""
        weights = self.trainer.state().evaluated[self.setup.sample.weights]
        if self._sampling is None:
            backend = sampling_backend(self.setup, self.backend)
            self._sampling = backend, backend.network(self.setup.model.program, weights)
        else:
            self._sampling[1].load(weights)
        return self._sampling

    def is_sample_missing(self, images_seen: int) -> bool:
        """Return whether the run was interrupted before it drew the samples that were due at its checkpoint."""
        config, path = self.setup.training_config, self.run.path
        has_checkpoint = (path / "checkpoints" / f"{images_seen:012d}").is_dir()
        is_due = has_checkpoint and config.is_due(config.sample_images, images_seen)
        return is_due and not Path(path, "samples", f"{_name(images_seen)}.npz").exists()


def _name(images_seen: int) -> str:
    return f"samples-{images_seen:012d}"

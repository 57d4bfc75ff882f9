"""A training run: train, sample, evaluate, and write the run directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from diffusion_core.backend.interface import Backend, Trainer, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import format_seconds, pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.images import render
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.weights import hash_weights, parameter_count
from diffusion_core.runs.checkpoint import Checkpoint, list_checkpoints, weights_hash
from diffusion_core.runs.manifest import Manifest
from diffusion_core.runs.run_directory import (
    RunDirectory,
    describe_environment,
    exclusive_directory,
    read_metrics,
    write_json,
)
from diffusion_core.runtime import signals
from diffusion_core.runtime.distributed import Collective
from diffusion_core.training import loop
from experiments.runtime.data import describe_clip, describe_data
from experiments.runtime.processes import stop_check, stop_if_requested
from experiments.runtime.progress import Counter, format_speed
from experiments.sampling import draw
from experiments.sampling.conditions import check_guided, check_labels_trained
from experiments.sampling.figures import noising_strip
from experiments.sampling.options import sample_labels
from experiments.training.callbacks import RunCallbacks, grid_of_samples, sampling_backend
from experiments.training.changes import describe_changes
from experiments.training.evaluation import FinalEvaluation, SkippedEvaluation
from experiments.training.lengths import describe_lengths
from experiments.training.manifest import beginning, end
from experiments.training.page import page_at_the_end
from experiments.training.record import record_at
from experiments.training.resume import (
    RESUME_IN_PLACE,
    compiled_in,
    previous_result,
    resume_state,
    starting_point,
    was_begun,
)
from experiments.training.setup import TrainingSetup
from experiments.training.trackers import StartTracker

__all__ = ["RunRecord", "final_loss", "removed_if_refused", "removed_if_unused", "start_of_main", "train", "with_init"]


@dataclass(frozen=True)
class RunRecord:
    """What a run directory keeps of how the run was started.

    Args:
        config: the configuration as YAML.
        options: the same as plain data, for trackers.
        files: further files by their path in the run directory.
        resume_command: returns the command that resumes the run; its argument says whether the run has written
            anything, so that it can be resumed rather than started again.
        is_temporary: whether the run directory is deleted at the end, so that its path is not worth printing.
    """

    config: str
    options: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    resume_command: Callable[[bool], str] | None = None
    is_temporary: bool = False

    @staticmethod
    def from_setup(setup: TrainingSetup, is_temporary: bool = False) -> RunRecord:
        """Return the record of a run that was started from Python."""
        options = setup.to_dict()
        return RunRecord(yaml.safe_dump(options, sort_keys=False), options, is_temporary=is_temporary)


@dataclass(frozen=True, eq=False)
class _Session:
    """One process of a run that has opened its backend.

    Args:
        run: the run directory; None in a process other than the main one.
        start: the state that training starts from.
        stop: set by a signal.
        manifest: of the run directory; None without one.
    """

    setup: TrainingSetup
    record: RunRecord
    backend: Backend
    trainer: Trainer
    run: RunDirectory | None
    start: Checkpoint
    stop: signals.StopFlag
    manifest: Manifest | None = None


def train(
    setup: TrainingSetup,
    directory: str | Path,
    *,
    resume: str | None = None,
    change_objective: bool = False,
    change_data: bool = False,
    evaluation: FinalEvaluation | SkippedEvaluation | None = None,
    tracker: StartTracker | None = None,
    record: RunRecord | None = None,
) -> dict[str, Any] | None:
    """Train, sample and evaluate, and write the results to a run directory.

    Args:
        setup: what is trained.
        directory: of the run; it is made if it does not exist.
        resume: a run directory or a checkpoint to continue from; ``"latest"`` for the run in `directory`, ``"auto"``
            for that run or, if there is none, a new one; None for a new run.
        change_objective: whether a resumed run may have another objective or other averages than before.
        change_data: whether a run that is resumed in its own directory may have other data than before.
        evaluation: of the final samples.
        tracker: starts a service that the run reports to.
        record: what the run directory keeps of how the run was started; by default, the setup.

    Returns:
        The content of result.json, with the mean loss of the last logged steps as ``objective``; None in a process
        other than the main one.

    Raises:
        DuetError: if the directory is in use or holds another run, if `resume` does not fit, or if training stops at a
            step that is not finite.
        Stopped: after a signal, once a checkpoint has been written.
    """
    directory, record = Path(directory), record or RunRecord.from_setup(setup)
    is_main_process = setup.group.is_main_process
    # The main process decides; the directory of another one is not that of the run.
    is_begun = not is_main_process or was_begun(directory)
    locked = exclusive_directory(directory) if is_main_process else removed_if_unused(directory)
    with removed_if_refused(directory), locked:
        start, source = starting_point(setup, directory, resume, change_objective, change_data, is_begun)
        setup = with_init(setup, start)
        result = previous_result(directory, start.images_seen, setup.training_config)
        if result is not None:
            print(
                f"run: {directory}\nRun complete: {start.images_seen:,} images. To continue, set trainer.images higher."
            )
            return result
        for line in (*describe_changes(start, setup), *describe_lengths(setup), *_check_samples(setup, start)):
            print(line)
        is_own = resume in RESUME_IN_PLACE
        if resume == "latest" and not list_checkpoints(directory / "checkpoints"):
            begin = source or "the beginning"
            print(f"resume: the run was stopped before its first checkpoint; it starts again from {begin}")
        resumed_at = start.images_seen if source or is_own else None
        open_run = RunDirectory(directory, resumed_at, None if is_own else source) if is_main_process else nullcontext()
        page = page_at_the_end(directory, record.config, record.options, lambda: _resume_command(directory, record))
        with page if is_main_process and not record.is_temporary else nullcontext(), open_run as run:
            try:
                return _run(setup, record, run, start, source, evaluation, tracker)
            except signals.Stopped as stopped:
                advice = _resume_advice(directory, setup, record) if is_main_process else ""
                raise signals.Stopped(stopped.number, advice) from None


def _check_samples(setup: TrainingSetup, start: Checkpoint) -> list[str]:
    """Refuse samples of the run that its training gives no meaning; return lines to print."""
    if setup.plan is None:
        return []
    images_seen = setup.training_config.images
    trained = replace(start, images_seen=images_seen, training=record_at(setup, start, images_seen))
    labels = sample_labels(setup.sample.labels, setup.sample.count, setup.model)
    return [*check_guided(trained, setup.plan), *check_labels_trained(trained, labels)]


def with_init(setup: TrainingSetup, start: Checkpoint) -> TrainingSetup:
    """Return the setup with the `model.init` that the weights of a resumed run had, since they have started."""
    spec, init = setup.model.spec, start.model.spec.init
    return setup if spec.init == init else replace(setup, model=replace(setup.model, spec=replace(spec, init=init)))


@contextmanager
def removed_if_unused(directory: Path) -> Iterator[None]:
    """Delete the directory on leaving, if it holds nothing but logs.

    Hydra makes such a directory for each process; those other than the main one keep nothing in theirs.
    """
    try:
        yield
    finally:
        _remove_if_unused(directory)


@contextmanager
def removed_if_refused(directory: Path) -> Iterator[None]:
    """Delete the directory of a start that is refused, if it holds nothing but logs and no run was begun in it.

    It would later look like a run that was killed while it started.
    """
    is_begun = was_begun(directory)
    try:
        yield
    except DuetError:
        if not is_begun:
            _remove_if_unused(directory)
        raise


def _remove_if_unused(directory: Path) -> None:
    # Another process may delete it too, and an error here would hide the error that ended the run.
    with suppress(OSError):
        files = list(directory.iterdir())
        if all(path.suffix == ".log" for path in files):
            for path in files:
                path.unlink(missing_ok=True)
            directory.rmdir()


def _run(
    setup: TrainingSetup,
    record: RunRecord,
    run: RunDirectory | None,
    start: Checkpoint,
    source: Path | None,
    evaluation: FinalEvaluation | SkippedEvaluation | None,
    tracker: StartTracker | None,
) -> dict[str, Any] | None:
    """Open the backend and do the work of this process."""
    backend = setup.backend.open(setup.training_steps, compiled_in(start, setup.backend.name))
    collective = backend.collective
    collective.require_equal("the configuration", lambda: record.config)
    start = start_of_main(start, collective) if source is None else start
    collective.require_equal("the checkpoint", lambda: f"{start.images_seen}: {hash_weights(start.state.weights)}")
    with signals.flag_on_signal() as stop:
        manifest = None if run is None else _start_run(setup, record, run, backend, start, source, tracker)
        trainer = backend.trainer(setup.model.program, start.state, setup.optimiser, setup.objective.loss)
        session = _Session(setup, record, backend, trainer, run, start, stop, manifest)
        result = _train(session)
        if setup.plan is not None:
            result |= _sample(session, sampling_backend(setup, backend), evaluation)
        stop_if_requested(collective, stop)  # the other processes wait here for the main one, which writes
    if run is None:
        return None
    run.close()
    result["peak_memory_mib"] = backend.peak_memory_mib()
    write_json(run.path / "result.json", result)
    session.manifest.append("end", setup.training_config.images, end(run.path, result))
    speed = result["images_per_second"]  # 0 after a single step, which is not timed
    trained, first = result["train_seconds"], result["first_step_seconds"]
    after = f" after the first step, which took {format_seconds(first)}" if first > max(1.0, 0.2 * trained) else ""
    print(f"trained in {format_seconds(trained)}" + (f", {format_speed(speed)}{after}" if speed else ""))
    if not record.is_temporary:
        print(f"samples: {run.path / 'samples'}" if setup.plan is not None else f"checkpoint: {run.path}")
    return result


def start_of_main(start: Checkpoint, collective: Collective) -> Checkpoint:
    """Return the start of the main process: the code of an own network may draw other weights in each process."""
    if collective.group.size == 1 or not isinstance(start.model.spec, OwnSpec):
        return start
    weights = {name: collective.from_main(array) for name, array in start.state.weights.items()}
    return replace(start, state=TrainerState.fresh(weights, len(start.state.averages)))


def _start_run(
    setup: TrainingSetup,
    record: RunRecord,
    run: RunDirectory,
    backend: Backend,
    start: Checkpoint,
    source: Path | None,
    tracker: StartTracker | None,
) -> Manifest:
    """Write what a run directory holds from the beginning, and print what is trained on what; return its manifest."""
    model, loader = setup.model, setup.loader
    manifest = Manifest(run.path)  # one that cannot be read is refused before anything is written
    trackers = [tracker(run.path, record.options)] if tracker else []
    environment = _environment_record(setup, backend, start, source)
    run.start(record.config, environment, trackers)
    kind, content = beginning(setup, record.config, environment, backend, start, source)
    manifest.begin(kind, start.images_seen, content)
    for name, content in record.files.items():
        write_atomically(run.path / name, content.encode())
    if not record.is_temporary:
        print(f"run: {run.path}")
    print(f"network: {parameter_count(model.program):,} parameters")
    is_own = not model.spec.configurable
    print(describe_data(loader.dataset, model.spec.num_classes, model.program.features, is_own), flush=True)
    if setup.plan and (line := describe_clip(loader.dataset, setup.plan.clip, model.value_range)):
        print(line, flush=True)
    if setup.validation is not None:
        images, every = len(setup.validation.dataset), setup.training_config.validation_images
        when = f"every {every:,} images" if 0 < every < setup.training_config.images else "at the end"
        print(f"validation: {setup.validation.part}, {pluralize(images, 'image')}, {when}", flush=True)
    strip = noising_strip(model, loader, setup.seed)
    render.save_png(run.path / "samples" / "noising.png", strip)
    return manifest


def _environment_record(
    setup: TrainingSetup, backend: Backend, start: Checkpoint, source: Path | None
) -> dict[str, Any]:
    """Return the content of environment.json: where the run computes, what, and from which checkpoint."""
    dataset, program = setup.loader.dataset, setup.model.program
    resumed_from = None
    if source:
        notes = dict(start.notes)
        resumed_from = {"source": str(source.absolute()), "images_seen": start.images_seen, "notes": notes}
    sampling = None if setup.plan is None else sampling_backend(setup, backend)
    return describe_environment(backend.describe()) | {
        "sampling_mode": sampling and sampling.describe().mode,
        "data": {"name": dataset.name, "images": len(dataset), "sha256": dataset.sha256},
        "parameters": parameter_count(program),
        "program_sha256": program.sha256,
        "seed": setup.seed,
        "resumed_from": resumed_from,
        "validation": None if setup.validation is None else setup.validation.facts(),
        "labels": {} if setup.model.classifies else setup.label_names,
    }


def _train(session: _Session) -> dict[str, Any]:
    """Train to the end; return loss, speed and time in the main process, and nothing in the others."""
    setup, trainer, run, start, stop = session.setup, session.trainer, session.run, session.start, session.stop
    config, collective = setup.training_config, session.backend.collective
    began = perf_counter()
    with setup.batches as loader, Counter("training", config.images, start=start.images_seen) as progress:
        callbacks = RunCallbacks(
            setup, session.backend, trainer, run, start, stop, session.record.config, progress, session.manifest
        )
        if collective.any(run is not None and callbacks.is_sample_missing(start.images_seen)):
            callbacks.on_sample(start.images_seen)
        speed = {}
        # A signal during these samples ends the run before its first step; the next start draws them again.
        if not callbacks.should_stop():
            speed = loop.train(
                trainer, loader, setup.objective, setup.learning_rate, setup.ema, config, callbacks.for_loop(),
                start.images_seen, start.state.updates, resume_state(start), collective,
            )  # fmt: skip
    collective.require_equal("the trained network", lambda: hash_weights(trainer.state().weights))
    stop_if_requested(collective, stop)  # after the last step too, since the checkpoint has been written
    seconds = perf_counter() - began
    if run is None:
        return {}
    numbers = {"objective": final_loss(run.metrics, config), "images_seen": config.images, "train_seconds": seconds}
    return numbers | _last_validation(run, config) | speed


def final_loss(metrics: Path, config: loop.TrainingConfig) -> float:
    """Return the mean loss of the last logged steps, from the file, so that it does not depend on interruptions."""
    losses = [
        line["loss"]
        for line in read_metrics(metrics)
        if config.is_in_last_log(line["images_seen"]) and math.isfinite(line["loss"])
    ]
    return sum(losses) / len(losses) if losses else math.nan


def _last_validation(run: RunDirectory, config: loop.TrainingConfig) -> dict[str, float]:
    """Return the validation loss at the end of the run by name; empty for a run without it."""
    last = next((line for line in read_metrics(run.metrics) if line["images_seen"] == config.images), {})
    return {name: value for name, value in last.items() if name.startswith("validation_")}


def _sample(
    session: _Session, backend: Backend, evaluation: FinalEvaluation | SkippedEvaluation | None
) -> dict[str, Any]:
    """Draw and evaluate the final samples; return number, time and scores in the main process, nothing in others."""
    setup, run, stop = session.setup, session.run, session.stop
    model, images_seen, weights = setup.model, setup.training_config.images, setup.sample.weights
    with stop_check(backend.collective, stop) as pause:
        network = backend.network(model.program, session.trainer.state().evaluated[weights])
        began = perf_counter()
        facts = {} if run is None else {"weights_sha256": weights_hash(run.path, weights)}
        images = draw.save_samples(
            backend, network, model, setup.plan, run and run.path / "samples", setup.sample, pause=pause,
            names=setup.label_names, images_seen=images_seen, keep_values=not setup.loader.dataset.is_bytes,
            condition_names=setup.loader.dataset.condition_names, decoder=setup.decoder, **facts,
        )  # fmt: skip
    if run is None:
        return {}
    result: dict[str, Any] = {"sample_seconds": perf_counter() - began, "sampled": len(images)}
    run.log_image("samples", grid_of_samples(setup, images), images_seen)
    if evaluation is not None:
        try:
            # The main process evaluates alone; the others wait until it exchanges the stop flag.
            with signals.raise_on_signal():
                result["evaluation"] = evaluation.run(run.path, len(images))
        except signals.Stopped as stopped:
            stop.number = stopped.number
    return result


def _resume_advice(directory: Path, setup: TrainingSetup, record: RunRecord) -> str:
    """Return how far an interrupted run came, and the command that resumes it."""
    checkpoints = list_checkpoints(directory / "checkpoints")
    seen = f"its last checkpoint is at {int(checkpoints[-1].name):,}" if checkpoints else "it is at 0"
    progress = f"{seen} of {setup.training_config.images:,} images"
    command = _resume_command(directory, record)
    return f"{progress}; to resume: {command}" if command else progress


def _resume_command(directory: Path, record: RunRecord) -> str:
    """Return the command that resumes the run in `directory`; empty for a run that Python code started."""
    if record.resume_command is None:
        return ""
    has_checkpoint = bool(list_checkpoints(directory / "checkpoints"))
    return record.resume_command(has_checkpoint or (directory / "environment.json").exists())

"""Train a diffusion model.

    python3 -m duet train backend=tf experiment=digits
    python3 -m duet launch 2 train backend=torch parallel=ddp experiment=digits
    python3 -m duet launch 2 train backend=tf parallel=multiworker experiment=digits
    python3 -m duet train -m backend=torch,tf seed=0,1
    python3 -m duet train backend=torch experiment=digits resume=latest hydra.run.dir=outputs/demo/tf

Everything that a person can get wrong is looked at before the framework is loaded and before anything is written.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_core.backend.interface import Backend, Trainer
from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.images import render
from diffusion_core.metrics.evaluate import random_sets
from diffusion_core.metrics.files import read_sample_set
from diffusion_core.metrics.protocol import nested
from diffusion_core.networks.weights import count, hash_weights
from diffusion_core.runs.checkpoint import Checkpoint, list_checkpoints, save_checkpoint, weights_hash
from diffusion_core.runs.ema_snapshots import save_snapshots
from diffusion_core.runs.failure_bundle import save_bundle, should_keep
from diffusion_core.runs.run_directory import (
    RunDirectory,
    describe_environment,
    exclusive_directory,
    read_metrics,
    write_json,
)
from diffusion_core.runtime import signals
from diffusion_core.runtime.distributed import ProcessGroup
from diffusion_core.training.loop import (
    NonFiniteStep,
    Record,
    ResumeState,
    TrainingCallbacks,
    TrainingConfig,
    make_batch,
    train,
)
from experiments import common, trackers
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.evaluate import lines
from experiments.evaluation.context import dataset_reference
from experiments.evaluation.samples import SampleEvaluator, make_features
from experiments.experiment import Experiment
from experiments.resuming import (
    OWN,
    carried_by,
    made_by,
    mode_begun_in,
    notes_to_go_on,
    result_of,
    start_of,
)
from experiments.runtime.processes import stop_check, stop_if_requested, stop_requested
from experiments.runtime.progress import Counter
from features import MissingWeights
from hydra_plugins.duet_launcher.launcher import inherited_overrides, run_dir_override, source_flags


@command("train", options={"tracker": trackers.TRACKERS})
def main(cfg: DictConfig) -> float:
    """Train, sample and write the run directory; returns the mean loss of the last logged steps."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    experiment = Experiment.from_config(cfg)
    is_main_process = experiment.group.is_main_process
    judge, tracker = _judge(cfg, experiment), trackers.choose(cfg)
    with exclusive_directory(directory) if is_main_process else _passed_through(directory):
        start, source = start_of(cfg, experiment, directory)
        if (result := result_of(directory, start.images_seen, experiment.training_config)) is not None:
            print(
                f"run: {directory}\nit is finished, and nothing is left to do; a larger trainer.images goes on with it"
            )
            return result["objective"]
        own = cfg.resume in OWN
        at = start.images_seen if source or own else None
        with RunDirectory(directory, at, None if own else source) if is_main_process else nullcontext() as run:
            try:
                return _run(cfg, experiment, run, start, source, judge, tracker)
            except signals.Stopped as stopped:
                advice = (
                    _again(directory, experiment.training_config, experiment.group, HydraConfig.get())
                    if is_main_process
                    else ""
                )
                raise signals.Stopped(stopped.number, advice) from None


@contextmanager
def _passed_through(directory: Path) -> Iterator[None]:
    """The directory that Hydra made for a process that keeps nothing; deleted if it is not the run's own."""
    try:
        yield
    finally:
        # It may be that of another such process too, and what is raised here would hide what was raised before.
        with suppress(OSError):
            held = list(directory.iterdir())
            if all(path.suffix == ".log" for path in held):
                for path in held:
                    path.unlink(missing_ok=True)
                directory.rmdir()


def _run(
    cfg: DictConfig,
    experiment: Experiment,
    run: RunDirectory | None,
    start: Checkpoint,
    source: Path | None,
    judge: SampleEvaluator | str | None,
    tracker: trackers.Start | None,
) -> float:
    """The run itself, in a directory that is its own; or in none, in a process that helps another one to compute."""
    begun = mode_begun_in(cfg, start)
    model, backend = experiment.model, common.open_backend(cfg, experiment.training_steps, begun)
    backend.collective.require_equal("the configuration", lambda: OmegaConf.to_yaml(cfg, resolve=True))
    backend.collective.require_equal(
        "the checkpoint", lambda: f"{start.images_seen}: {hash_weights(start.state.weights)}"
    )
    with signals.flag_on_signal() as stop:
        if run is not None:
            _begin(cfg, experiment, run, backend, start, source, tracker)
        trainer = backend.trainer(model.program, start.state, experiment.adam, experiment.objective.distance)
        result = _train(cfg, experiment, backend, trainer, run, start, stop)
        if experiment.plan is not None:
            result |= _sample(cfg, experiment, _drawing(cfg, experiment, backend), trainer, run, judge, stop)
        stop_if_requested(backend.collective, stop)  # all wait here for the one that writes
    if run is None:
        return math.nan
    run.close()
    result["peak_memory_mib"] = backend.peak_memory_mib()
    write_json(run.path / "result.json", result)
    speed = f"{result['images_per_second']:,.0f} images/s"
    made = f"samples: {run.path / 'samples'}" if experiment.plan is not None else f"classifier: {run.path}"
    print(f"trained in {result['train_seconds']:.1f} s, {speed}; {made}")
    return result["objective"]


def _begin(
    cfg: DictConfig,
    experiment: Experiment,
    run: RunDirectory,
    backend: Backend,
    start: Checkpoint,
    source: Path | None,
    tracker: trackers.Start | None,
) -> None:
    """Write what a run directory holds from the first, and say what is trained on what."""
    directory, model, loader = run.path, experiment.model, experiment.loader
    begun = [tracker(directory, plain(cfg))] if tracker else []
    run.start(OmegaConf.to_yaml(cfg, resolve=True), _facts(cfg, experiment, backend, start, source), begun)
    _save_hydra(directory)
    print(f"run: {directory}\nnetwork: {count(model.program):,} parameters")
    print(f"data: {loader.dataset.name}, {pluralize(len(loader.dataset), 'image')}", flush=True)
    render.save_png(
        directory / "samples" / "noising.png", common.noising_strip(model, loader.batch(0, 3).pixels, cfg.seed)
    )


def _again(directory: Path, training_config: TrainingConfig, group: ProcessGroup, settings: HydraConf) -> str:
    """How far the run came, and the command that goes on with it, which one started in a sweep may not have had."""
    found, task = list_checkpoints(directory / "checkpoints"), list(settings.overrides.task)
    seen = f"its last checkpoint has seen {int(found[-1].name):,}" if found else "it has seen 0"
    if found or (directory / "environment.json").exists():  # if not, it begins as it was told
        task = [*(word for word in task if not word.startswith("resume=")), "resume=latest"]
    own = [source for source in settings.runtime.config_sources if source["provider"] == "command-line"]
    name = settings.job.config_name
    given = [*source_flags(None if name == "train" else name, own), *inherited_overrides(settings.overrides.hydra)]
    plainly = re.fullmatch(r"[\w./-]+", str(directory))
    place = f"hydra.run.dir={directory}" if plainly else run_dir_override(directory)
    command = shlex.join([*group.launch_command, "train", *given, *task, place])
    return f"{seen} of {training_config.images:,} images; to go on: {command}"


def _drawing(cfg: DictConfig, experiment: Experiment, backend: Backend) -> Backend:
    """Return the backend in the mode for sampling, which `auto` chooses by the calls of one set of samples."""
    return common.in_mode(backend, cfg, common.sampling_calls([(experiment.plan, cfg.sample.count)], cfg.sample.batch))


def _facts(
    cfg: DictConfig, experiment: Experiment, backend: Backend, start: Checkpoint, source: Path | None
) -> dict[str, Any]:
    """What the run directory keeps of where and from what the run was made."""
    dataset, program = experiment.loader.dataset, experiment.model.program
    came = source and {"source": str(source.absolute()), "images_seen": start.images_seen, "notes": dict(start.notes)}
    drawing = None if experiment.plan is None else _drawing(cfg, experiment, backend)
    return describe_environment(backend.describe()) | {
        "sampling_mode": drawing and drawing.describe().mode,
        "data": {"name": dataset.name, "images": len(dataset), "sha256": dataset.sha256},
        "parameters": count(program),
        "program_sha256": program.sha256,
        "seed": cfg.seed,
        "resumed_from": came,
    }


def _train(
    cfg: DictConfig,
    experiment: Experiment,
    backend: Backend,
    trainer: Trainer,
    run: RunDirectory | None,
    start: Checkpoint,
    stop: signals.StopFlag,
) -> dict[str, Any]:
    """The training itself; gives loss, speed and time."""
    model, training_config, collective = experiment.model, experiment.training_config, backend.collective
    began = perf_counter()
    counter = Counter("training", training_config.images, start=start.images_seen)
    with experiment.ahead as loader, counter as progress:
        note, drawing, network = "", None, None

        def log(records: list[Record], speed: float) -> None:
            nonlocal note
            run.log(records, speed)
            note = f"loss {sum(record.loss for record in records) / len(records):.4f}, {speed:,.0f} images/s"

        def checkpoint(images_seen: int, resume_state: ResumeState) -> None:
            notes = notes_to_go_on(cfg, experiment, backend, resume_state)
            found = Checkpoint(images_seen, model, cfg.seed, trainer.state(), notes, resume_state.history)
            save_checkpoint(run.path / "checkpoints", found, training_config.keep_checkpoints)

        def trouble(found: NonFiniteStep) -> str:
            if not should_keep(run.path / "non_finite", found):
                return ""
            batch = make_batch(
                experiment.loader, experiment.objective, found.images_seen, found.batch, found.history
            )  # the whole of it, whatever share of it this process computes
            notes = made_by(cfg, backend) | {"seed": cfg.seed, "config": OmegaConf.to_yaml(cfg, resolve=True)}
            path = save_bundle(
                run.path / "non_finite", found, model, cfg.seed, trainer.state(), batch, experiment.adam,
                experiment.objective.distance, notes,
            )  # fmt: skip
            return f"; to look at it: python3 -m duet replay backend={cfg.backend.name} bundle={path}"

        def name_of(images_seen: int) -> str:
            return f"samples-{images_seen:012d}"

        def sample(images_seen: int) -> None:
            if images_seen == training_config.images or experiment.plan is None:
                return
            nonlocal drawing, network
            try:
                with stop_check(collective, stop) as pause:
                    weights = common.weights_of(trainer.state(), cfg.sample.weights)
                    if network is None:
                        drawing = _drawing(cfg, experiment, backend)
                        network = drawing.network(model.program, weights)
                    else:  # another one would be traced anew, and TensorFlow keeps all that it ever traced
                        network.load(weights)
                    images = common.save_samples(
                        drawing, network, model, experiment.plan, run and run.path / "samples", cfg.sample,
                        name_of(images_seen), pause=pause,
                    )  # fmt: skip
            except signals.Stopped as stopped:
                stop.number = stopped.number
            else:
                if run is None:
                    return
                run.log_image("samples", render.grid(images[:100], model.spec.num_classes or 10), images_seen)

        def snapshot(images_seen: int) -> None:
            given = trainer.state(), experiment.ema.profiles, training_config.batch, model, cfg.seed
            save_snapshots(run.path / "snapshots", images_seen, *given)

        def is_missing(images_seen: int) -> bool:
            """Whether pictures are not there that were due when the run was cut short."""
            own = (run.path / "checkpoints" / f"{images_seen:012d}").is_dir()
            due = own and training_config.is_due(training_config.sample_images, images_seen)
            return due and not (run.path / "samples" / f"{name_of(images_seen)}.npz").exists()

        if collective.any(run is not None and is_missing(start.images_seen)):
            sample(start.images_seen)
        callbacks = TrainingCallbacks(on_sample=sample, should_stop=lambda: stop_requested(collective, stop))
        if run is not None:
            tell = {"on_notice": lambda line: print(line, flush=True), "on_step_end": lambda done: progress(done, note)}
            callbacks = replace(
                callbacks, on_log=log, on_checkpoint=checkpoint, on_snapshot=snapshot, on_non_finite=trouble, **tell
            )
        # Told to end while it drew those pictures, it takes no step: the next start draws them.
        speed = {} if stop_requested(collective, stop) else train(
            trainer, loader, experiment.objective, experiment.learning_rate, experiment.ema, training_config,
            callbacks, start.images_seen, start.state.updates, carried_by(start), collective,
        )  # fmt: skip
    collective.require_equal("the trained network", lambda: hash_weights(trainer.state().weights))
    stop_if_requested(collective, stop)  # also one that was told so after its last step; the checkpoint is written
    took = perf_counter() - began
    if run is None:
        return {}
    # Read back, so that it does not depend on where the run was cut.
    losses = [
        line["loss"]
        for line in read_metrics(run.metrics)
        if training_config.is_in_last_log(line["images_seen"]) and math.isfinite(line["loss"])
    ]
    loss = sum(losses) / len(losses) if losses else math.nan
    return {"objective": loss, "images_seen": training_config.images, "train_seconds": took, **speed}


def _sample(
    cfg: DictConfig,
    experiment: Experiment,
    backend: Backend,
    trainer: Trainer,
    run: RunDirectory | None,
    judge: SampleEvaluator | str | None,
    stop: signals.StopFlag,
) -> dict[str, Any]:
    """The samples of the finished network, with their pictures, judged if wanted; gives number, time and score."""
    model, images_seen = experiment.model, experiment.training_config.images
    with stop_check(backend.collective, stop) as pause:
        network = backend.network(model.program, common.weights_of(trainer.state(), cfg.sample.weights))
        began = perf_counter()
        facts = {} if run is None else {"weights_sha256": weights_hash(run.path, cfg.sample.weights)}
        images = common.save_samples(
            backend, network, model, experiment.plan, run and run.path / "samples", cfg.sample, pause=pause,
            images_seen=images_seen, **facts,
        )  # fmt: skip
    if run is None:
        return {}
    took = perf_counter() - began
    run.log_image("samples", render.grid(images[:100], model.spec.num_classes or 10), images_seen)
    try:
        with signals.raise_on_signal():  # this process judges alone, and the others wait until it asks them
            judged = _judged(cfg, run, judge, len(images))
    except signals.Stopped as stopped:
        stop.number = stopped.number
        judged = {}
    return {"sample_seconds": took, "sampled": len(images)} | judged


def _judged(cfg: DictConfig, run: RunDirectory, judge: SampleEvaluator | str | None, count: int) -> dict[str, Any]:
    """What is said of the samples of a run; printed, and given."""
    if isinstance(judge, SampleEvaluator):
        found, _, _ = judge(read_sample_set(run.path), random_sets(count, cfg.sets, cfg.seed))
        print("\n".join(lines(found.numbers)), flush=True)
        return {"evaluation": {"numbers": nested(found.numbers), "left_out": found.skipped}}
    if judge:
        _say_unjudged(judge)
        return {"evaluation": {"numbers": {}, "reason": judge}}
    return {}


def _judge(cfg: DictConfig, experiment: Experiment) -> SampleEvaluator | str | None:
    """How the last samples are judged; why they are not, where a file was not named; or None."""
    try:
        features = make_features(plain(cfg.features))
    except MissingWeights as reason:
        _say_unjudged(str(reason))
        return str(reason)
    if features is None or experiment.plan is None:
        return None
    reference = dataset_reference(experiment.loader.dataset, plain(cfg.data.options))
    judge = SampleEvaluator(features, plain(cfg.metrics), reference, cfg.seed, cfg.confidence)
    count = cfg.sample.count
    judge.check({"images": np.empty((0, *experiment.model.spec.image_shape), np.uint8)}, count, cfg.sets)
    return judge


def _say_unjudged(reason: str) -> None:
    print(
        f"the samples are not judged: {reason}; after the run, do it with "
        f"experiments.evaluate samples=RUN data=... features=...",
        flush=True,
    )


def _save_hydra(directory: Path) -> None:
    """The `.hydra` folder that Hydra's users expect; Hydra itself would write it over that of an older run."""
    settings = HydraConfig.get()
    for name, part in (("hydra", settings), ("overrides", settings.overrides.task)):
        write_atomically(directory / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(part).encode())


if __name__ == "__main__":
    main()

"""Train a diffusion model.

python -m experiments.train backend=tf experiment=digits
python -m experiments.train -m backend=torch,tf seed=0,1
python -m experiments.train backend=torch experiment=digits resume=latest hydra.run.dir=outputs/demo/tf
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_core import pictures
from diffusion_core.backend import TrainerState
from diffusion_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_hash, write_atomically
from diffusion_core.data import Loader, load_dataset
from diffusion_core.ema import Ema
from diffusion_core.errors import DuetError, one_of
from diffusion_core.objectives import Objective
from diffusion_core.optimiser import Adam, LearningRate
from diffusion_core.run import RunDirectory, environment, write_json
from diffusion_core.training import Course, Hooks, Record, train
from diffusion_core.weights import count, initial_weights
from experiments.common import (
    WEIGHTS,
    check_data,
    noising_strip,
    open_backend,
    plan_of,
    problem_of,
    sample_labels,
    save_samples,
    weights_of,
)
from experiments.entry import entry, plain
from experiments.progress import Counter


@entry("train")
def main(cfg: DictConfig) -> float:
    """Train, sample and write the run directory; returns the mean loss of the last logged steps."""
    problem = problem_of(cfg)
    plan = plan_of(problem, plain(cfg.sampler))
    sample_labels(cfg.sample.labels, cfg.sample.count, problem)
    if cfg.sample.weights not in WEIGHTS:
        raise one_of("sample.weights", cfg.sample.weights, WEIGHTS)
    course, ema = Course(**plain(cfg.trainer)), Ema(**plain(cfg.ema))
    adam, learning_rate = Adam(**plain(cfg.optimiser)), LearningRate(**plain(cfg.lr))
    objective = Objective(
        problem.process, cfg.seed, cfg.process.distance, problem.program.null_label, cfg.process.drop_label
    )
    dataset = load_dataset(cfg.data.name, **plain(cfg.data.options))
    check_data(dataset, problem.spec)

    directory = Path(HydraConfig.get().runtime.output_dir)
    backend = open_backend(cfg)
    dtype = backend.settings.host_dtype
    loader = Loader(dataset, cfg.seed, cfg.data.flip, dtype)
    start = _start(cfg, problem, directory, dtype)
    run = RunDirectory(directory, start.images_seen if cfg.resume is not None else None)
    facts = environment(backend.describe()) | {
        "data": {"name": dataset.name, "images": len(dataset), "sha256": dataset.sha256},
        "parameters": count(problem.program),
        "program_sha256": problem.program.sha256,
        "seed": cfg.seed,
        "resumed_from": cfg.resume and {"images_seen": start.images_seen, "notes": dict(start.notes)},
    }
    run.start(OmegaConf.to_yaml(cfg, resolve=True), facts)
    _save_hydra(directory)
    print(
        f"run: {directory}\nnetwork: {facts['parameters']:,} parameters; data: {dataset.name}, {len(dataset):,} images"
    )

    strip = noising_strip(problem, loader.batch(0, 3).pixels, cfg.seed)
    pictures.save_png(directory / "samples" / "noising.png", strip)
    trainer = backend.trainer(problem.program, start.state, adam, cfg.process.distance)
    began, last = perf_counter(), []

    with Counter("training", course.images, start=start.images_seen) as progress:

        def log(records: list[Record], speed: float) -> None:
            run.log(records, speed)
            last[:] = records
            progress(records[-1].images_seen, f"loss {_mean(records):.4f}, {speed:,.0f} images/s")

        def checkpoint(images_seen: int) -> None:
            notes = {"backend": cfg.backend.name, "precision": cfg.precision, "versions": backend.describe().versions}
            state = trainer.state()
            save_checkpoint(
                directory / "checkpoints",
                Checkpoint(images_seen, problem, cfg.seed, state, notes),
                cfg.keep_checkpoints,
            )

        def sample(images_seen: int) -> None:
            if images_seen < course.images:
                network = backend.network(problem.program, trainer.state().ema)
                name = f"samples-{images_seen:012d}"
                images = save_samples(
                    backend, network, problem, plan, directory / "samples", cfg.sample, name, strips=False
                )
                run.picture("samples", pictures.grid(images[:100], problem.spec.num_classes or 10), images_seen)

        speed = train(
            trainer, loader, objective, learning_rate, ema, course,
            Hooks(log, checkpoint, sample), start.images_seen, start.state.updates,
        )  # fmt: skip

    trained = perf_counter() - began
    state = trainer.state()
    network = backend.network(problem.program, weights_of(state, cfg.sample.weights))
    began = perf_counter()
    images = save_samples(
        backend, network, problem, plan, directory / "samples", cfg.sample,
        images_seen=course.images, weights_sha256=weights_hash(directory, cfg.sample.weights),
    )  # fmt: skip
    sampled = perf_counter() - began
    run.picture("samples", pictures.grid(images[:100], problem.spec.num_classes or 10), course.images)
    run.close()
    loss = _mean(last) if last else float("nan")
    result = {
        "objective": loss,
        "images_seen": course.images,
        "train_seconds": trained,
        "sample_seconds": sampled,
        "sampled": len(images),
        "peak_memory_mib": backend.peak_memory_mib(),
        **speed,
    }
    write_json(directory / "result.json", result)
    print(f"trained in {trained:.1f} s, {speed['images_per_second']:,.0f} images/s; samples: {directory / 'samples'}")
    return loss


def _start(cfg: DictConfig, problem, directory: Path, dtype: type) -> Checkpoint:
    """Where training starts: fresh weights, the latest checkpoint of this run, or one of another run."""
    if cfg.resume is None:
        weights = initial_weights(problem.program, cfg.seed, dtype)
        return Checkpoint(0, problem, cfg.seed, TrainerState.fresh(weights), {})
    found = load_checkpoint(directory if cfg.resume == "latest" else cfg.resume, problem.program)
    if found.seed != cfg.seed:
        raise DuetError(
            f"resume: the checkpoint is of seed {found.seed}, but seed {cfg.seed} was given; they must be equal"
        )
    if found.images_seen >= cfg.trainer.images:
        raise DuetError(
            f"resume: the checkpoint has seen {found.images_seen} images and trainer.images is {cfg.trainer.images}; "
            f"give a larger trainer.images to go on"
        )
    return found


def _save_hydra(directory: Path) -> None:
    """The `.hydra` folder that Hydra's users expect; Hydra itself would write it over that of an older run."""
    settings = HydraConfig.get()
    for name, part in (("hydra", settings), ("overrides", settings.overrides.task)):
        write_atomically(directory / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(part).encode())


def _mean(records: list[Record]) -> float:
    return sum(record.loss for record in records) / len(records)


if __name__ == "__main__":
    main()

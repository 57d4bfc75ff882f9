"""What several entry points share: from a configuration to the objects of the core, and samples to files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf

from diffusion_core.backend.compile_policy import should_compile
from diffusion_core.backend.interface import (
    Backend,
    BackendConfig,
    Guidance,
    Network,
    StepCallback,
    TrainerState,
    average_names,
    load_backend,
)
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, load_dataset, to_uint8
from diffusion_core.data.store import store_parts
from diffusion_core.diffusion.continuous import ContinuousSchedule
from diffusion_core.diffusion.process import add_noise
from diffusion_core.images import render
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import check_labels, describe_labels, generate, known_labels
from diffusion_core.model.noise_strip import to_visible, visible_rows, visible_timesteps
from diffusion_core.networks import NetworkSpec, Program, make_spec
from diffusion_core.networks.weights import Weights
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint
from diffusion_core.runs.run_directory import write_arrays, write_samples
from diffusion_core.sampling import SAMPLERS, SamplerPlan
from experiments.config.build import process_group
from experiments.config.convert import plain
from experiments.config.entry import CONFIGS
from experiments.config.schema import TrainSchema
from experiments.runtime.progress import Counter

__all__ = [
    "GuidanceModels",
    "check_data",
    "check_sample",
    "check_which",
    "in_mode",
    "load_data",
    "noising_strip",
    "open_backend",
    "plan_of",
    "make_model",
    "sample_labels",
    "sampling_calls",
    "sampler_of",
    "save_samples",
    "settings_of",
    "spec_of",
    "weights_of",
    "which_of",
]


def open_backend(cfg: DictConfig, calls: int = 0, resumed: bool | None = None) -> Backend:
    """Open the backend that the configuration names; print its device, precision and mode.

    Args:
        cfg: a configuration with `backend` and `precision`.
        calls: planned network calls, by which ``backend.compile=auto`` decides.
        resumed: whether the resumed run was compiled; None for a new run.
    """
    group = process_group(cfg)
    alone = group.kind == "none"
    backend = load_backend(cfg.backend.name, settings_of(cfg, cfg.precision), *([] if alone else [group]))
    # `auto` does not compile in several processes: that was never measured.
    backend = in_mode(backend, cfg, *((calls, resumed) if alone else ()))
    print(backend.describe().line(), flush=True)
    return backend


def in_mode(backend: Backend, cfg: DictConfig, calls: int = 0, resumed: bool | None = None) -> Backend:
    """Return the backend, compiled or not as `backend.compile` decides for this number of network calls."""
    limits = cfg.backend.compile_after
    compile_after = limits.cpu if backend.describe().on_cpu else limits.cuda
    compile = should_compile(cfg.backend.compile, calls, compile_after, resumed)
    return backend if compile == backend.config.compile else backend.in_mode(compile)


def sampling_calls(drawn: Iterable[tuple[SamplerPlan, int]], batch: int) -> int:
    """Return the network calls of each of some plans with their numbers of samples, on average.

    The average decides about compiling, since each plan may have to be compiled by itself.
    """
    calls = [plan.rows * -(-count // batch) for plan, count in drawn]
    return sum(calls) // len(calls)


def settings_of(cfg: DictConfig, precision: str) -> BackendConfig:
    """Backend settings, excluding its name and environment; with ``compile=auto``, those of a short run."""
    names = {field.name for field in fields(BackendConfig)}
    given = {key: value for key, value in plain(cfg.backend).items() if key in names}
    return BackendConfig(precision=precision, **given | {"compile": should_compile(cfg.backend.compile, 0, None)})


def make_model(cfg: DictConfig) -> DiffusionModel:
    """The network and the process of a training configuration."""
    spec = spec_of(cfg)
    schedule = plain(cfg.process.schedule)
    if "name" not in schedule:
        raise DuetError("process.schedule: no name was given; it is, for example, {name: linear, T: 1000}")
    process = cfg.process
    return DiffusionModel(
        spec, schedule, process.prediction, tuple(process.value_range), process.time_scale, process.sigma_data,
        variance=process.variance, uncertainty=process.uncertainty,
    )  # fmt: skip


def spec_of(cfg: DictConfig) -> NetworkSpec:
    """The network of a configuration."""
    model = plain(cfg.model)
    if "architecture" not in model:
        raise DuetError(
            "model.architecture: no name was given; start the file from one, as configs/model/digits.yaml does"
        )
    return make_spec(**model)


def load_data(data: DictConfig) -> Dataset:
    """The data set of a configuration: its files, its store, or what stands in for both; the name says which."""
    options, fallback = plain(data.options), plain(data.fallback)
    if options.get("path") == "":
        raise DuetError("data.options.path: an empty text was given; it is a file or a folder")
    if options.get("path", "") is not None:
        return load_dataset(data.name, **options)
    if data.store and store_parts(data.store):
        chosen = {"directory": data.store, "part": options.get("part"), "classes": options.get("classes")}
        return _as_asked(data, load_dataset("store", **chosen), options)
    if not fallback:
        raise DuetError(
            f"data {data.name}: {data.store} holds no store, and data.options.path is null; make the store once with "
            f"python3 -m duet prepare data={data.name}, or name the files with data.options.path=PATH"
        )
    dataset = load_dataset(fallback.pop("name"), **fallback)
    return replace(dataset, name=f"{dataset.name}, in place of {data.name}")


def _as_asked(data: DictConfig, dataset: Dataset, options: Mapping[str, Any]) -> Dataset:
    """A prepared data set, if its pictures have the shape that the options name."""
    for key, held in (("size", dataset.image_size), ("channels", dataset.channels)):
        if options.get(key, held) != held:
            raise DuetError(
                f"data.options.{key}: {options[key]} was given, but {data.store} was prepared with {held}; "
                f"give that, or prepare it anew with another data.store"
            )
    return dataset


def plan_of(model: DiffusionModel, sampler: Mapping[str, Any], guide: DiffusionModel | None = None) -> SamplerPlan:
    """The plan of a sampler's configuration, which leads away from a guide where there is one.

    Raises:
        DuetError: if an option does not fit, or the plan leads up to noise rather than down from it.
    """
    options = dict(sampler)
    if "name" not in options:
        raise DuetError(f"sampler: no name was given; choose one with sampler=NAME, of {', '.join(SAMPLERS)}")
    plan = model.plan(options.pop("name"), **options)
    if plan.sigma[-1] >= plan.sigma[0]:
        raise DuetError(
            f"sampler: {sampler['name']} was given, which leads pictures up to noise: it is what mode=interpolate of "
            "experiments.edit encodes with; sampling starts from noise, so choose one that leads down, such as ddim"
        )
    check_labels(np.zeros(0, np.int32), model.program, plan, has_guide=guide is not None)
    return plan


def sampler_of(given: DictConfig, checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """The options of the sampler that is used, and a line that says which it is.

    A sampler that is named is taken as it is. Where none is, it is that of the run, as its checkpoint has it, since it
    fits the process and its grid. Where the checkpoint has none, as of imported weights, it is the default of training,
    or in continuous time, where that one's spacing is poor, Heun's method on the grid of EDM. Options that are given
    without a name take the place of its own.
    """
    given = plain(given)
    options, whose = given, "as given"
    if "name" not in given:
        own = checkpoint.notes.get("sampler")
        usual = "heun" if isinstance(checkpoint.model.process.schedule, ContinuousSchedule) else "ddim"
        options = dict(own or OmegaConf.to_container(OmegaConf.load(CONFIGS / "sampler" / f"{usual}.yaml"))) | given
        whose = "the run's own" if own else "a default, as the checkpoint names none"
        whose += f"; as given: {', '.join(given)}" if given else ""
    usual = TrainSchema().sampler
    told = {key: value for key, value in options.items() if key != "name" and usual.get(key, ...) != value}
    words = [f"{key} {'null' if value is None else value}" for key, value in told.items()]
    return options, f"sampler: {', '.join([options['name'], *words])} ({whose})"


@dataclass(frozen=True, eq=False)
class GuidanceModels:
    """The other networks that lead sampling, as their checkpoints have them; see `backend.Guidance`."""

    guide: Checkpoint | None = None
    guide_weights: str | None = None
    classifier: Checkpoint | None = None
    classifier_weights: str | None = None

    @staticmethod
    def from_config(cfg: DictConfig) -> GuidanceModels:
        """Read those that a configuration names."""
        found = []
        for name in ("guide", "classifier"):
            checkpoint, key = None if cfg[name] is None else load_checkpoint(cfg[name]), f"{name}_weights"
            if checkpoint is not None:
                cfg[key] = which_of(key, cfg[key], checkpoint)
            elif cfg[key] is not None:
                check_which(key, cfg[key], 1)
            found += [checkpoint, cfg[key]]
        return GuidanceModels(*found)

    def plan(self, model: DiffusionModel, sampler: Mapping[str, Any]) -> SamplerPlan:
        """The plan of a sampler's configuration, which they fit."""
        plan = plan_of(model, sampler, self.guide and self.guide.model)
        if self.guide is not None:
            model.check_guide(self.guide.model, plan)
            if not np.any(plan.is_guided):
                raise DuetError(
                    "guide: one was given, but nothing is guided; set sampler.guidance_scale, for example to 2"
                )
        Guidance(classifier=self.classifier and self.classifier.model).check(plan)
        if self.classifier is not None:
            model.check_classifier(self.classifier.model, plan)
        return plan

    @property
    def classes(self) -> Program | None:
        """The program whose classes samples are led to."""
        return None if self.classifier is None else self.classifier.model.program

    def guidance(self, backend: Backend) -> Guidance:
        """Build their networks."""
        return Guidance(
            guide=_network(backend, self.guide, self.guide_weights),
            classifier=_network(backend, self.classifier, self.classifier_weights),
        )


def _network(backend: Backend, checkpoint: Checkpoint | None, which: str) -> Network | None:
    if checkpoint is None:
        return None
    return backend.network(checkpoint.model.program, weights_of(checkpoint.state, which))


def check_data(dataset: Dataset, spec: NetworkSpec) -> None:
    """Refuse a data set that the network cannot take."""
    given = (dataset.image_size, dataset.image_size, dataset.channels)
    if given != spec.image_shape:
        raise DuetError(
            f"data {dataset.name}: its images are {given}, but the network takes {spec.image_shape} (h, w, c); "
            f"set model.image_size={given[0]} model.in_channels={given[2]} model.out_channels={given[2]}, "
            f"or choose other data"
        )
    if spec.num_classes and spec.num_classes != dataset.num_classes:
        raise DuetError(
            f"data {dataset.name}: it has {dataset.num_classes} classes, but the network has {spec.num_classes}; "
            f"set model.num_classes={dataset.num_classes}"
        )


def weights_of(state: TrainerState, which: str) -> Weights:
    """The weights that samples are drawn with: a moving average (ema, ema1 ...), or the last ones (weights)."""
    return state.parts[which]


def check_which(key: str, which: str, averages: int) -> None:
    """Refuse a name of weights that a training with so many averages does not have."""
    names = (*average_names(averages), "weights")
    if which not in names:
        raise one_of(key, which, names)


def which_of(key: str, given: str | None, checkpoint: Checkpoint) -> str:
    """Which weights of a checkpoint are taken: those that are named, or else those that its run draws samples with.

    Raises:
        DuetError: for a name of weights that it does not have.
    """
    which = checkpoint.notes.get("weights", "ema") if given is None else given
    check_which(key, which, len(checkpoint.state.averages))
    return which


def check_sample(sample: DictConfig, model: DiffusionModel, averages: int, classifier: Program | None = None) -> None:
    """Refuse settings of sampling that do not fit the network, or a training with so many averages."""
    sample_labels(sample.labels, sample.count, model, classifier)
    if sample.batch < 1:
        raise DuetError(f"sample.batch: {sample.batch} was given; it must be at least 1")
    check_which("sample.weights", sample.weights, averages)


def sample_labels(
    labels: Any, count: int, model: DiffusionModel, classifier: Program | None = None
) -> NDArray[np.int32]:
    """The class of each sample: one for all, a list that repeats, or every class in turn."""
    program, known = model.program, known_labels(model.program, classifier)
    if count < 1:
        raise DuetError(f"sample.count: {count} was given; it must be at least 1")
    every = program.labels or (classifier.labels if classifier else range(1))
    chosen = every if labels is None else labels
    chosen = list(chosen) if isinstance(chosen, (ListConfig, range)) else chosen
    try:
        chosen = np.atleast_1d(np.asarray(chosen))
        whole = chosen.size > 0 and np.issubdtype(chosen.dtype, np.integer)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise DuetError(f"sample.labels: {labels!r} was given; it must be a class, a list of classes, or null")
    if labels is not None and not np.all(np.isin(chosen, known)):
        raise DuetError(f"sample.labels: {labels!r} was given; {describe_labels(program, classifier)}")
    return np.resize(chosen, count).astype(np.int32)


def save_samples(
    backend: Backend,
    network: Network,
    model: DiffusionModel,
    plan: SamplerPlan,
    directory: Path,
    sample: DictConfig,
    name: str = "samples",
    strips: bool = True,
    guidance: Guidance | None = None,
    pause: Callable[[], None] | None = None,
    **facts: Any,
) -> NDArray[np.uint8]:
    """Draw samples and write `<name>.npz`, `<name>.png` and, if wanted, the denoising strip, animation and states.

    Those are called `denoising`, `generation` and `trajectory`, with whatever follows "samples" in the name. The last
    has, for the first ten samples, `x` and `estimate` as uint8 with shape (rows, 10, h, w, c), and for each the `row`
    of the plan and the ratio `sigma_alpha` that it leads to. `pause` is that of `draw`.
    """
    classifier = guidance.classifier.program if guidance and guidance.classifier else None
    labels = sample_labels(sample.labels, sample.count, model, classifier)
    white = model.value_range
    # Of each row that is shown, the state that it leads to and the estimate that it does so by.
    frames: dict[int, tuple[NDArray, NDArray]] = {}
    steps = visible_rows(plan, 10) if strips else np.zeros(0, int)
    moments = np.unique(np.linspace(0, plan.rows - 1, min(plan.rows, 60)).astype(int)) if strips else ()

    def see(row: int, x: NDArray, estimate: NDArray) -> None:
        level = plan.alpha[row + 1], plan.sigma[row + 1]
        frames[row] = to_visible(x[:100], *level, white), to_uint8(estimate[:10], white)

    callback = StepCallback(see, frozenset([*map(int, steps), *map(int, moments)])) if strips else None

    with Counter(f"{name}: {plan.name}", sample.count) as progress:
        images = generate(
            backend, network, plan, model.spec.image_shape, labels, sample.seed,
            batch=sample.batch, callback=callback, progress=progress,
            guidance=guidance, collective=backend.collective, pause=pause,
        )  # fmt: skip
    finished = to_uint8(images, white)
    if not backend.collective.group.is_main_process:
        return finished
    facts |= {"plan": plan.name, "seed": sample.seed, "backend": backend.describe().backend}
    facts["conditional"] = bool(model.program.classes or classifier)
    scale = max(1, 64 // model.spec.image_size)
    columns = model.spec.num_classes or 10
    render.save_png(directory / f"{name}.png", render.grid(finished[:100], columns, scale=scale))
    if strips:
        which = name.removeprefix("samples")
        kept = sorted(frames)
        write_arrays(
            directory / f"trajectory{which}.npz",
            row=np.array(kept), sigma_alpha=np.array([plan.sigma[row + 1] / plan.alpha[row + 1] for row in kept]),
            x=np.stack([frames[row][0][:10] for row in kept]), estimate=np.stack([frames[row][1] for row in kept]),
        )  # fmt: skip
        rows = [(of, np.concatenate([frames[row][i][:1] for row in steps])) for i, of in enumerate(("x_t", "estimate"))]
        heads = [(_ratio(plan.alpha[row + 1], plan.sigma[row + 1]), 1) for row in steps]
        sheet = render.labelled_rows(rows, scale=scale, heads=heads, corner=_HEADS)
        render.save_png(directory / f"denoising{which}.png", sheet)
        grids = [render.grid(frames[row][0], columns, scale=max(1, scale // 2)) for row in moments]
        render.save_gif(directory / f"generation{which}.gif", grids)
    # Last, so that where it is there, all the others are.
    write_samples(directory / f"{name}.npz", finished, labels, **facts)
    return finished


def noising_strip(model: DiffusionModel, images: NDArray, seed: int) -> NDArray[np.uint8]:
    """The first images as they are and at nine levels from clean to noise; see `visible`."""
    levels = np.stack(model.process.schedule(visible_timesteps(model.process.schedule, 9)), axis=1)
    rows = []
    for k, image in enumerate(images[:3]):
        eps = Stream(seed, "picture/noise").normal([k], image.shape)[0]
        noisy = [to_visible(add_noise(image, eps, *level), *level, model.value_range) for level in levels]
        rows.append(("" if k else "x_t", np.stack([to_uint8(image, model.value_range), *noisy])))
    heads = [("0", 1), *((_ratio(*level), 1) for level in levels)]
    return render.labelled_rows(rows, scale=max(1, 64 // model.spec.image_size), heads=heads, corner=_HEADS)


_HEADS = "sigma/alpha"


def _ratio(alpha: float, sigma: float) -> str:
    ratio = sigma / alpha if alpha else np.inf
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"

"""Everything that a training needs, as one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from diffusion_core.backend.interface import Guidance
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.data import Dataset, Loader
from diffusion_core.data.augment import LABEL
from diffusion_core.data.grain import Grain
from diffusion_core.data.prefetch import Prefetch
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.optim import Ema, Optimiser, make_ema, optimiser_options, profile_options
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.optim.normalisation import check_optimiser
from diffusion_core.runtime.distributed import ProcessGroup
from diffusion_core.sampling import SamplerPlan
from diffusion_core.training.objective import Objective
from diffusion_core.training.training_config import TrainingConfig
from diffusion_core.training.validation import Validation
from experiments.runtime.backends import BackendSetup
from experiments.runtime.data import HeldOut, check_data
from experiments.runtime.latents import LatentDecoder, find_decoder
from experiments.runtime.teacher import TeacherRun
from experiments.sampling.classes import filled_labels, label_names
from experiments.sampling.options import SampleOptions
from experiments.sampling.plans import default_sampler, make_sampler_plan, shared_options
from experiments.training.validation import ValidationOptions, make_validation

__all__ = ["LOADERS", "TrainingSetup"]


def _in_order(loader: Loader, workers: int) -> AbstractContextManager[Loader | Prefetch]:
    """Without workers the training loop makes the next batch on a thread; with workers, processes make several."""
    return Prefetch(loader, workers) if workers else nullcontext(loader)


# By `data.loader`: what makes batches ahead of time, from a loader and a number of workers.
LOADERS = {"duet": _in_order, "grain": Grain}


@dataclass(frozen=True, eq=False, repr=False)
class TrainingSetup:
    """Everything that a training needs, checked to fit together; `TrainingSetup.create` makes one.

    Args:
        model: the network and its process.
        objective: what is trained.
        loader: the data, whole.
        batches: a context manager that yields the loader of this process, which may make batches ahead of time.
        optimiser: the optimiser.
        learning_rate: as a function of images seen.
        ema: the moving averages.
        training_config: the length of the run and when it does what.
        sampler: name and options of the sampler for the samples of the run.
        plan: of that sampler; None for a classifier, which is not sampled.
        sample: number, classes, seed and weights of these samples.
        backend: what computes.
        seed: of the run.
        data_options: of the data set, as they were given; kept with the weights.
        validation: the validation loss; None trains without it.
        teacher: the run that a training method distils or starts from; None without one.
        decoder: makes images of the samples, if the data are latents.
    """

    model: DiffusionModel
    objective: Objective
    loader: Loader
    batches: AbstractContextManager[Loader | Prefetch | Grain]
    optimiser: Optimiser
    learning_rate: LearningRate
    ema: Ema
    training_config: TrainingConfig
    sampler: Mapping[str, Any]
    plan: SamplerPlan | None
    sample: SampleOptions
    backend: BackendSetup
    seed: int
    data_options: Mapping[str, Any] = field(default_factory=dict)
    validation: Validation | None = None
    teacher: TeacherRun | None = None
    decoder: LatentDecoder | None = None

    @staticmethod
    def create(
        model: DiffusionModel,
        dataset: Dataset,
        training_config: TrainingConfig | None = None,
        *,
        objective: Mapping[str, Any] | None = None,
        optimiser: Optimiser | None = None,
        teacher: TeacherRun | None = None,
        learning_rate: LearningRate | None = None,
        ema: Ema | None = None,
        sampler: Mapping[str, Any] | None = None,
        sample: SampleOptions | None = None,
        backend: BackendSetup | None = None,
        seed: int = 0,
        flip: bool = False,
        augment: float = 0.0,
        loader: str = "duet",
        workers: int = 0,
        data_options: Mapping[str, Any] | None = None,
        held_out: HeldOut | None = None,
        validation: ValidationOptions | None = None,
    ) -> TrainingSetup:
        """Make a setup and check that its parts fit together.

        The defaults are those of ``configs/train.yaml``.

        Args:
            model: the network and its process.
            dataset: the images to train on.
            training_config: by default 128,000 images in batches of 128.
            objective: options of `Objective.for_model`, such as ``{"label_dropout": 0.1}``.
            optimiser: by default Adam without weight decay, with gradients clipped to norm 1.
            teacher: a run whose network targets are computed with, or whose weights training starts from.
            learning_rate: by default constant, 1e-3; a decay without an end of its own ends with the run.
            ema: by default `make_ema("warmup", decay=0.999)`.
            sampler: name and options; by default DDIM with 50 steps, or as many as a shorter schedule has, or Heun's
                method in continuous time.
            sample: by default 64 samples with the moving average.
            backend: by default PyTorch in float32.
            seed: of the weights, the data order, the noise and everything else that is random.
            flip: whether to mirror half of the images.
            augment: the probability of each change of EDM's augmentation.
            loader: ``"duet"`` or ``"grain"``.
            workers: processes (threads, for grain) that make batches ahead of time.
            data_options: with which the data set was loaded, for the record that checkpoints keep.
            held_out: the images of the validation loss; None trains without it.
            validation: how many of them, and in which batches.

        Raises:
            DuetError: if a value is out of range, or does not fit the others.
        """
        config, backend = training_config or TrainingConfig(images=128_000), backend or BackendSetup()
        ema, sample = ema or make_ema("warmup", decay=0.999), sample or SampleOptions(weights="ema")
        if sample.weights is None:
            sample = replace(sample, weights="ema")
        taught = teacher and teacher.network
        made_objective = Objective.for_model(model, seed, taught, config.images, **(objective or {}))
        if teacher is not None:
            teacher.check(model, made_objective)
        model = replace(model, second_time=made_objective.second_time(model.program))
        sampler = shared_options() | dict(sampler or default_sampler(model))
        plan = None if model.classifies else make_sampler_plan(model, sampler)
        if plan is not None:
            Guidance().check(plan)  # no other network guides the samples of a training
        check_data(dataset, model.spec, is_trained=False)
        sample = sample.with_names(label_names(model.program, dataset.class_names))
        sample = sample.with_classes(filled_labels(model.program, dataset.class_counts.tolist()))
        sample.check(model, len(ema.profiles))
        decoder = find_decoder(dataset.latents, sample.autoencoder, scaling=sample.latent_scaling)
        _check_features(augment, dataset, model, made_objective)
        if dataset.noise is not None:
            _check_pairs(dataset, model, made_objective)
        _check_times(model, made_objective)
        config.check(model.program, backend.group)
        learning_rate = (learning_rate or LearningRate(peak=1e-3)).for_run(config.images)
        _check_rate(learning_rate, config)
        check_optimiser(model.program.normalised, optimiser or Adam())
        data = Loader(dataset, seed, flip, backend.config.host_dtype, model.value_range, augment)
        dtype, validation = backend.config.host_dtype, validation or ValidationOptions()
        validated = make_validation(model, made_objective, dataset, held_out, validation, dtype)
        if validated is not None and config.validation_images is None:
            interval = validated.interval(config.images, config.log_images, len(ema.profiles))
            config = replace(config, validation_images=interval)
        check_choice("data.loader", loader, LOADERS)
        own_part = replace(data, group=backend.group)
        return TrainingSetup(
            model=model,
            objective=made_objective,
            loader=data,
            batches=LOADERS[loader](data if made_objective.needs_whole_batch else own_part, workers),
            optimiser=optimiser or Adam(),
            learning_rate=learning_rate,
            ema=ema,
            training_config=config,
            sampler=sampler,
            plan=plan,
            sample=sample,
            decoder=decoder,
            backend=backend,
            seed=seed,
            data_options=dict(data_options or {}),
            validation=validated,
            teacher=teacher,
        )

    @property
    def group(self) -> ProcessGroup:
        """The processes that compute together."""
        return self.backend.group

    @property
    def averages(self) -> int:
        """The number of moving averages that the trainer keeps: those of `ema`, and that of targets, the last."""
        return len(self.ema.profiles) + self.objective.uses_average

    @property
    def label_names(self) -> dict[int, str]:
        """The name of each label of the network, from the data."""
        return label_names(self.model.program, self.loader.dataset.class_names)

    @property
    def training_steps(self) -> int:
        """Steps of the whole run, whatever its start."""
        return -(-self.training_config.images // self.training_config.batch)

    def __repr__(self) -> str:
        config, data = self.training_config, self.loader.dataset
        return (
            f"TrainingSetup({self.model.architecture} on {data.name}, {config.images:,} images in batches of "
            f"{config.batch}, backend {self.backend.name}, seed {self.seed})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the setup as plain data, with the keys that the configuration of `experiments.train` has."""
        model, config = self.model.to_dict(), self.backend.config
        profile, *extra = (profile_options(profile) for profile in self.ema.profiles)
        network = {"architecture": model.pop("architecture"), **model.pop("spec")}
        model.pop("second_time", None)  # which follows from the objective
        return {
            "seed": self.seed,
            "precision": self.backend.precision,
            "backend": {"name": self.backend.name, "title": self.backend.name, "device": config.device},
            "parallel": {"name": self.group.kind},
            "data": {"name": self.loader.dataset.name, "flip": self.loader.flip, "augment": self.loader.augment},
            "model": network,
            "process": model | {k: v for k, v in self.objective.options.items() if k != "objective"},
            "objective": dict(self.objective.objective) | (self.teacher.to_dict() if self.teacher else {}),
            "optimiser": optimiser_options(self.optimiser),
            "lr": asdict(self.learning_rate),
            "trainer": asdict(self.training_config),
            "sampler": dict(self.sampler),
            "sample": asdict(self.sample),
            "ema": profile | {"extra": extra, "snapshot_images": self.ema.snapshot_images},
        }


def _check_times(model: DiffusionModel, objective: Objective) -> None:
    """Refuse a network of two times that would be given one."""
    method = objective.training_method
    if model.program.two_times and not (method is not None and method.two_times):
        name = "regression" if method is None else method.name
        raise DuetError(
            f"objective: {name} was given for a network of two times, whose second one would always be 0; choose "
            f"objective=mean_flow (with objective.same_time=1 for one time) or shortcut, or set model.second_time=false"
        )


def _check_features(augment: float, dataset: Dataset, model: DiffusionModel, objective: Objective) -> None:
    """Refuse an augmentation or conditions that the network cannot be trained with.

    A network without features may be trained on data with conditions, which it does not receive.
    """
    features, size = model.program.features, dataset.condition_size
    if augment and features != size + LABEL:
        also = f"the {size} conditions of data {dataset.name} and " if size else ""
        raise DuetError(
            f"data.augment: {augment} was given, but the network takes {features} features per image, not {also}the "
            f"{LABEL} that describe its augmentation; set model.augment_dim={size + LABEL}, or data.augment=0"
        )
    if size and features not in (0, size) and not augment:
        raise DuetError(
            f"data {dataset.name}: each image has {size} conditions, but the network takes {features} features per "
            f"image; set model.augment_dim={size}, or 0 to train without the conditions"
        )
    if model.variance != "fixed" and not dataset.is_bytes and objective.bound_cdf != "tanh":
        raise DuetError(
            f"process.variance: {model.variance} was given, but its variational bound is that of bytes, and data "
            f"{dataset.name} is {dataset.images.dtype}; use fixed, or process.bound_cdf=tanh, with which DiT's code "
            "takes latents for bytes"
        )
    if augment and model.variance != "fixed":
        raise DuetError(
            "data.augment: it moves images off the bytes that the variational bound needs; use data.augment=0"
        )


def _check_pairs(dataset: Dataset, model: DiffusionModel, objective: Objective) -> None:
    """Refuse pairs of noise and image of another value range, in which they are no pairs of their teacher."""
    objective.noises.check_pairs()
    if dataset.value_range not in (None, tuple(model.value_range)):
        (low, high), (black, white) = dataset.value_range, model.value_range
        raise DuetError(
            f"process.value_range: [{black:g}, {white:g}] was given, but the images of the pairs have the "
            f"range [{low:g}, {high:g}] of their teacher; use process.value_range=[{low:g},{high:g}]"
        )


def _check_rate(learning_rate: LearningRate, config: TrainingConfig) -> None:
    """Refuse a decay that ends at the rate 0 at least one step before the run does."""
    total, images = learning_rate.total_images, config.images
    if learning_rate.is_finite and total is not None and learning_rate.floor == 0 and total <= images - config.batch:
        raise DuetError(
            f"lr.total_images: {total} was given, but trainer.images is {images}: from {total} images on the learning "
            f"rate would be 0, and training would change nothing; give lr.total_images=null, which is the length of "
            f"the run, or lr.floor above 0, or trainer.images={total // config.batch * config.batch or config.batch}"
        )

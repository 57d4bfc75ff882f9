r"""The training objective: from images to a `TrainBatch`.

Per image, three named streams draw random numbers that depend only on its position n in the run (the number of images
seen before it):

    t      timestep, by the distribution of `timestep_sampling`     "train/t"
    eps    standard normal noise                                    "train/noise"
    drop   whether the class is dropped, with probability p         "train/drop_label"     per image, not per batch

A batch is therefore a function of (seed, images seen, size) and of nothing else. The loss of each image is multiplied
by the weight of its noise level, see `loss_weighting`. `batch_noise` has offset noise and input perturbation.

A coupling (`coupling`) says which noise of a batch belongs to which image; by default each image has the noise of its
own position. It needs the whole batch.

If the loss contains the variational bound, the batch has its columns, see `variational`. A self-conditioned network
receives an estimate of the image as an additional input. For half of the images, those whose number in
"train/self_condition" is below 1/2, this is its own estimate from a first pass at the same noise level, and for the
others zeros; the choice is made per image, not per batch. The estimate is clipped to the range of the data, as a
sampler with clip=1 clips it.

A method of `targets` has a target that needs the network: it draws the noise levels in place of the timestep
distribution, from "train/t" and streams of its own, and weights them itself. Its batches have the columns and times of
that target.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), algorithm 1 and eq. 14, https://arxiv.org/abs/2006.11239
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), algorithm 1, https://arxiv.org/abs/2207.12598
    Improved Techniques for Training Consistency Models (Song & Dhariwal, 2023), the pseudo-Huber distance, there of an
    image's norm and here of each pixel, https://arxiv.org/abs/2310.14189
    Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning (Chen et al., 2022),
    algorithm 1, https://arxiv.org/abs/2208.04202
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from diffusion_core.backend.interface import CROSS_ENTROPY, TrainBatch
from diffusion_core.backend.target import Target
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import check_fields
from diffusion_core.diffusion.loss_weighting import Weighting, make_weights
from diffusion_core.diffusion.process import Columns, Process
from diffusion_core.diffusion.second_time import SecondTime
from diffusion_core.diffusion.timestep_sampling import (
    ContinuousTimestepSampler,
    DiscreteTimestepSampler,
    LossHistory,
    make_timestep_sampler,
)
from diffusion_core.diffusion.variational import bound_columns
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.own_call import samples_to_images
from diffusion_core.networks.program import Program
from diffusion_core.training.batch_noise import BatchNoise
from diffusion_core.training.coupling import Coupling, make_coupling
from diffusion_core.training.labels import network_labels
from diffusion_core.training.objective_checks import check_options, check_together
from diffusion_core.training.path_noise import PathNoise, add_to_path, make_path_noise
from diffusion_core.training.targets import METHODS, Method, Progress, Setting, TrainedNetwork, make_method

__all__ = ["OPTIONS", "REGRESSION", "Objective"]

# Options that the user sets; everything else follows from the model.
OPTIONS = (
    "distance", "label_dropout", "first_t", "weighting", "timestep_sampling", "offset_noise", "input_perturbation",
    "bound", "bound_weight", "bound_cdf", "coupling", "path_noise", "objective",
)  # fmt: skip
# Options with a name and options of their own.
_NAMED = ("weighting", "timestep_sampling", "coupling", "path_noise", "objective")
REGRESSION = "regression"


@dataclass(frozen=True, repr=False)
class Objective:
    """The training objective: it turns images into training batches.

    `Objective.for_model` takes most of these from a model.

    Args:
        process: noise schedule and parameterisation.
        seed: the seed of the run.
        distance: of a pixel's residual r: ``"mse"``, ``"l1"``, ``"huber"`` with its corner at 1, or ``"pseudo_huber"``,
            sqrt(r^2 + c^2) - c with c = 0.03, `backend.PSEUDO_HUBER_C`. ``"cross_entropy"`` for a classifier.
        null_label: the network's label for "no class"; None for a network without one.
        label_dropout: probability of training an image without its class, 0 to 1.
        features: the number of additional numbers per image that the network takes; zeros if a batch has none.
        classes: the number of classes; 0 derives it from `null_label` as the last label.
        first_t: the lowest timestep that is trained; 1 leaves out t = 0.
        weighting: name and options of the loss weights, see `loss_weighting.make_weights`; a name alone is given the
            default options.
        timestep_sampling: name and options of the timestep distribution, see `timestep_sampling.make_timestep_sampler`.
        offset_noise: s, the standard deviation of the noise that all pixels of a channel share.
        input_perturbation: gamma, the standard deviation of noise that is in x_t but not in the target; Ning et al.
            use 0.1.
        variance: of the reverse steps in the bound, one of `variational.VARIANCES`; ``"fixed"`` trains without it.
        bound: the part of the variational bound in the loss, one of `variational.BOUNDS`.
        bound_weight: weight of the bound in ``"hybrid"``.
        bound_cdf: the normal distribution function in it, ``"exact"``, or ``"tanh"`` as in the code of DiT.
        uncertainty: whether the network estimates the uncertainty of its loss.
        self_conditioned: whether the network takes its own estimate of the image as an input.
        value_range: the network's values of black and white.
        coupling: name and options of the coupling of noise and images, see `coupling.make_coupling`.
        path_noise: name and options of noise around the path of x_t, see `path_noise.make_path_noise`; not in the
            validation loss.
        objective: name and options of the training method: ``"regression"``, or one of `targets.METHODS`.
        setting: what a method of `targets` is used on; None for the regression.
        run_images: the length of the run, which some methods divide into stages; None is unknown, and counts as the
            start of a run.

    Raises:
        DuetError: if a value is out of range or two options contradict each other.

    Example:
        >>> from diffusion_core.diffusion.schedule import make_schedule
        >>> process = Process(make_schedule("cosine"), "v")
        >>> objective = Objective(process, seed=0, weighting={"name": "min_snr", "gamma": 5.0})
        >>> t, importance = objective.draw_timesteps([0, 1, 2])
        >>> t.shape, importance.tolist()
        ((3,), [1.0, 1.0, 1.0])
    """

    process: Process
    seed: int
    distance: str = "mse"
    null_label: int | None = None
    label_dropout: float = 0.0
    features: int = 0
    classes: int = 0
    first_t: int = 0
    weighting: Mapping[str, Any] = field(default_factory=lambda: {"name": "simple"})
    timestep_sampling: Mapping[str, Any] = field(default_factory=lambda: {"name": "uniform"})
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    variance: str = "fixed"
    bound: str = "hybrid"
    bound_weight: float = 0.001
    bound_cdf: str = "exact"
    uncertainty: bool = False
    self_conditioned: bool = False
    value_range: tuple[float, float] = (-1.0, 1.0)
    coupling: Mapping[str, Any] = field(default_factory=lambda: {"name": "independent"})
    path_noise: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})
    objective: Mapping[str, Any] = field(default_factory=lambda: {"name": REGRESSION})
    setting: Setting | None = None
    run_images: int | None = None

    def __post_init__(self) -> None:
        for name in _NAMED:
            if isinstance(value := getattr(self, name), str):  # a name alone is given the default options
                object.__setattr__(self, name, {"name": value})
        check_fields("process", self)
        check_options(self)
        # Computed here so that a mistake is found before training starts.
        _ = self.loss_weights, self.timestep_sampler, self.variational, self.loss, self.around_path
        check_together(self)

    def __repr__(self) -> str:
        process = f"{self.process.prediction} on {self.process.schedule.name}"
        return f"Objective({process}, distance={self.distance!r}, seed={self.seed})"

    @classmethod
    def for_model(
        cls,
        model: DiffusionModel,
        seed: int = 0,
        teacher: TrainedNetwork | None = None,
        run_images: int | None = None,
        **options: Any,
    ) -> Objective:
        """Return the objective for a model, from which it takes everything that the network and the process determine.

        Args:
            model: the network and its process.
            seed: the seed of the run.
            teacher: of a method that distils one.
            run_images: the length of the run, for a method with stages.
            options: any of distance, label_dropout, first_t, weighting, timestep_sampling, offset_noise,
                input_perturbation, bound, bound_weight, bound_cdf, coupling and objective, as for `Objective`. The
                distance of a classifier is ``"cross_entropy"`` unless another one is given.

        Raises:
            DuetError: if an option is unknown, out of range, or does not fit the model.

        Example:
            >>> from diffusion_core.model.diffusion_model import DiffusionModel
            >>> from diffusion_core.networks import PlainSpec
            >>> spec = PlainSpec(image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
            >>> model = DiffusionModel(spec, {"name": "cosine", "T": 100}, prediction="v")
            >>> objective = Objective.for_model(model, seed=1, weighting={"name": "min_snr"})
            >>> objective
            Objective(v on cosine, distance='mse', seed=1)
            >>> objective.batch(np.zeros((2, 8, 8, 1)), np.zeros(2, int), np.arange(2)).size
            2
        """
        for name in options:
            check_choice("option of the objective", name, OPTIONS)
        program = model.program
        options = {"distance": CROSS_ENTROPY if model.classifies else "mse"} | options
        model.check_distance(options["distance"])
        options["setting"] = Setting(model.process, program, model.spec.image_shape, teacher)
        return cls(
            process=model.process,
            seed=seed,
            null_label=program.null_label,
            features=program.features,
            classes=program.classes,
            variance=model.variance,
            uncertainty=model.uncertainty,
            self_conditioned=program.self_conditioned,
            value_range=model.value_range,
            run_images=run_images,
            **options,
        )

    @property
    def options(self) -> dict[str, Any]:
        """The options that the user sets, besides the network and the process, as plain data."""
        values = {
            name: getattr(self, name) for name in OPTIONS if name != "objective" or self.training_method is not None
        }
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    @property
    def is_vlb_only(self) -> bool:
        """Whether the variational bound is the whole loss."""
        return self.variance != "fixed" and self.bound != "hybrid"

    @cached_property
    def training_method(self) -> Method | None:
        """The method whose target needs the network; None for the regression."""
        if "name" not in self.objective:
            raise DuetError(f"objective: no name was given; choose one of {', '.join((REGRESSION, *METHODS))}")
        options = dict(self.objective)
        if options.pop("name") == REGRESSION:
            if options:
                raise DuetError(
                    f"objective.{next(iter(options))}: it was given with objective=regression, which has no options"
                )
            return None
        return make_method(**self.objective)

    @cached_property
    def loss(self) -> str | Target:
        """What a trainer computes: a distance, or a target that needs the network."""
        method = self.training_method
        return self.distance if method is None else method.target(self.setting)

    @property
    def uses_average(self) -> bool:
        """Whether targets are computed with a moving average, the last one of the trainer."""
        return self.training_method is not None and self.training_method.uses_average

    def second_time(self, program: Program) -> SecondTime | None:
        """Return what the second time of a network means once it is trained; None for a network of one time."""
        if not program.two_times:
            return None
        own = None if self.training_method is None else self.training_method.second_time
        return own or SecondTime("constant", program.default_second_time)

    def progress(self, images_seen: int, size: int) -> Progress:
        """Return which step of its run starts at `images_seen`, with batches of `size` images."""
        steps = 1 if self.run_images is None else max(1, self.run_images // size)
        return Progress(0 if self.run_images is None else min(images_seen // size, steps - 1), steps)

    def average_decays(self, images_seen: int, size: int) -> tuple[float, ...]:
        """Return the decay of the average that targets are computed with, at the step that starts at `images_seen`."""
        if not self.uses_average:
            return ()
        return (self.training_method.average_decay(self.progress(images_seen, size)),)

    @cached_property
    def loss_weights(self) -> Weighting:
        """The function that returns the loss weight of given timesteps."""
        weights = make_weights(self.process, **self.weighting)
        return (lambda t: 0.0 * weights(t)) if self.is_vlb_only else weights

    @cached_property
    def variational(self) -> NDArray[np.float64] | None:
        """The columns of the variational bound at each timestep, with shape (T, 8); None for a loss without it."""
        if self.variance == "fixed":
            return None
        return bound_columns(
            self.process, self.variance, self.bound, self.bound_weight, self.value_range, self.bound_cdf
        )

    @cached_property
    def timestep_sampler(self) -> DiscreteTimestepSampler | ContinuousTimestepSampler:
        """The timestep distribution of a run without a loss history."""
        return make_timestep_sampler(self.process.schedule, self.first_t, **self.timestep_sampling)

    @cached_property
    def coupled(self) -> Coupling:
        """The coupling of noise and images."""
        return make_coupling(**self.coupling)

    @cached_property
    def around_path(self) -> PathNoise | None:
        """The noise around the path between image and noise; None without it."""
        return make_path_noise(self.process, **self.path_noise)

    @cached_property
    def noises(self) -> BatchNoise:
        """How the noise of a batch is made."""
        return BatchNoise(self.seed, self.offset_noise, self.coupled, self.coupling["name"])

    @property
    def reads_images(self) -> bool:
        """Whether what is drawn for a batch depends on its images, or changes them."""
        return self.needs_whole_batch or self.input_perturbation > 0 or self.around_path is not None

    @property
    def needs_whole_batch(self) -> bool:
        """Whether an image's noise depends on the other images of its batch."""
        return not self.coupled.is_independent

    def draw_timesteps(
        self, positions: ArrayLike, history: LossHistory | None = None
    ) -> tuple[NDArray, NDArray[np.float64]]:
        """Draw the timestep of each image; return (t, importance), each with shape (B,).

        Args:
            positions: of the images in the run, with shape (B,).
            history: the losses so far, for a timestep distribution that depends on them.
        """
        original = self.timestep_sampler
        sampler = original if history is None else original.adapted(history)
        t = sampler.draw(self.seed, positions)
        if sampler is original:
            return t, np.ones(len(t))
        return t, original.probability[t] / sampler.probability[t]

    def _self_conditioning(self, streams: str, positions: NDArray, columns: Columns) -> NDArray[np.float64] | None:
        """Return the columns of self-conditioning, with shape (B, 5), or None."""
        if not self.self_conditioned:
            return None
        is_used = Stream(self.seed, f"{streams}/self_condition").uniform(positions, 1)[:, 0] < 0.5
        return np.stack(np.broadcast_arrays(columns.c_skip, columns.c_out, is_used, *self.value_range), axis=1)

    def _labels(self, labels: ArrayLike) -> NDArray[np.int32]:
        return network_labels(labels, self.classes or self.null_label or 0, self.null_label)

    def batch(
        self,
        images: NDArray,
        labels: NDArray,
        positions: NDArray,
        dtype: DTypeLike = np.float32,
        history: LossHistory | None = None,
        features: NDArray | None = None,
        progress: Progress | None = None,
        noise: NDArray | None = None,
    ) -> TrainBatch:
        """Return the training batch of these images.

        Args:
            images: x_0 in the range of the data, with shape (B, H, W, C), or (B, ...) for other data.
            labels: class ids of the data set, with shape (B,).
            positions: each image's position in the run, with shape (B,).
            dtype: of images, noise and columns; c_noise stays float64.
            history: the losses so far, for a timestep distribution that depends on them.
            features: additional numbers of each image for the network, with shape (B, features); None is zeros.
            progress: which step of the run this is, for a method with stages; None is the first one.
            noise: the noise of each image, of pairs, with the shape of the images; None draws it.

        Raises:
            DuetError: if a label is out of range, the features have another shape than the network takes, or noise was
                given for an objective that changes it.
        """
        images, labels = samples_to_images(images, "channels_last"), self._labels(labels)
        is_exact = self.input_perturbation or self.around_path is not None
        noise = self.noises.given("train", noise, positions, images, np.float64 if is_exact else dtype)
        images, noise, labels, features = self.noises.paired("train", images, noise, labels, positions, features)
        dropped = np.zeros(len(labels), bool)
        if self.label_dropout:
            dropped = Stream(self.seed, "train/drop_label").uniform(positions, 1)[:, 0] < self.label_dropout
        if self.training_method is not None:
            draws = self.draw(positions, progress or Progress())
            return self.target_batch(images, noise, labels, positions, draws, dropped, dtype, features)
        t, importance = self.draw_timesteps(positions, history)
        labels = np.where(dropped, self.null_label, labels) if self.label_dropout else labels
        if self.input_perturbation:
            images, noise = self.noises.perturbed(self.process, self.input_perturbation, images, noise, positions, t)
        if self.around_path is not None:
            xi = Stream(self.seed, "train/path_noise").normal(positions, images.shape[1:])
            images, noise = add_to_path(self.process, t, images, noise, xi, *self.around_path(t))
        return self._assemble("train", images, noise, labels, positions, t, importance, dtype, features)

    def draw(self, positions: ArrayLike, progress: Progress, streams: str = "train") -> dict[str, NDArray]:
        """Return the noise levels, and what else a method of `targets` draws for each image."""
        return self.training_method.draw(lambda name: Stream(self.seed, f"{streams}/{name}"), positions, progress)

    def target_batch(
        self,
        images: NDArray,
        noise: NDArray,
        labels: NDArray,
        positions: NDArray,
        draws: Mapping[str, NDArray],
        dropped: NDArray[np.bool_] | None = None,
        dtype: DTypeLike = np.float32,
        features: NDArray | None = None,
        streams: str = "train",
    ) -> TrainBatch:
        """Return the batch of a method of `targets` for these draws; labels are those of the network.

        Args:
            images: as for `batch`.
            noise: eps, with the shape of the images.
            labels: the network's labels, with shape (B,).
            positions: as for `batch`.
            draws: what `draw` returns; or the levels of other code, see the method's ``table``.
            dropped: the images that are trained without their class; None is none.
            dtype: as for `batch`.
            features: as for `batch`.
            streams: the beginning of the name of the dropout stream.
        """
        dropped = np.zeros(len(labels), bool) if dropped is None else dropped
        table, target = self.training_method.table(self.setting, draws, dropped), self.loss
        dropped = dropped if table.keeps_label is None else dropped & ~table.keeps_label
        labels = np.where(dropped, self.null_label, labels) if np.any(dropped) else labels
        columns, times = (
            np.stack([np.broadcast_to(values[name], (len(labels),)) for name in names], axis=1)
            for names, values in ((target.columns, table.columns), (target.times, table.times))
        )
        zeros, ones = np.zeros(len(labels), dtype), np.ones(len(labels), dtype)
        return TrainBatch(
            images=images.astype(dtype),
            noise=noise.astype(dtype, copy=False),
            label=labels.astype(np.int32),
            alpha=table.alpha.astype(dtype),
            sigma=table.sigma.astype(dtype),
            c_in=ones,
            c_noise=times[:, 0].astype(np.float64),
            target_x0=zeros,
            target_eps=zeros,
            weight=table.weight.astype(dtype),
            importance=ones,
            features=self._features(features, len(labels)).astype(dtype),
            positions=np.asarray(positions, np.int64),
            dropout_key=np.array(Stream(self.seed, f"{streams}/dropout").key, np.int64),
            columns=columns.astype(dtype),
            times=times.astype(np.float64),
        )

    def _features(self, features: NDArray | None, count: int) -> NDArray:
        """Return the features of a batch, zeros for None.

        Raises:
            DuetError: if they have another shape than the network takes.
        """
        features = np.zeros((count, self.features)) if features is None else features
        if features.shape != (count, self.features):
            raise DuetError(
                f"features: an array with shape {features.shape} was given for {count} images; the network takes "
                f"shape {(count, self.features)}"
            )
        return features

    def evaluation_batch(
        self,
        images: NDArray,
        labels: NDArray,
        positions: NDArray,
        t: NDArray | Mapping[str, NDArray],
        dtype: DTypeLike = np.float32,
        streams: str = "validation",
        features: NDArray | None = None,
        noise: NDArray | None = None,
    ) -> TrainBatch:
        """Return a batch to evaluate at the timesteps `t`, without dropped labels, augmentation or perturbed inputs.

        Args:
            images: as for `batch`.
            labels: as for `batch`.
            positions: the counter of each image in the random streams, with shape (B,).
            t: the timestep of each image, with shape (B,); what `draw` returns for a method of `targets`.
            dtype: as for `batch`.
            streams: the beginning of the names of the random streams, which must not be those of training.
            features: as for `batch`.
            noise: as for `batch`.

        Raises:
            DuetError: if a label is out of range, or the features have another shape than the network takes.
        """
        images = samples_to_images(images, "channels_last")
        noise = self.noises.given(streams, noise, positions, images, dtype)
        pairs = self.noises.paired(streams, images, noise, self._labels(labels), positions, features)
        images, noise, labels, features = pairs
        if self.training_method is not None:
            return self.target_batch(
                images, noise, labels, positions, t, dtype=dtype, features=features, streams=streams
            )  # fmt: skip
        importance = np.ones(len(t))
        return self._assemble(streams, images, noise, labels, positions, t, importance, dtype, features)

    def _assemble(
        self,
        streams: str,
        images: NDArray,
        noise: NDArray,
        labels: NDArray,
        positions: NDArray,
        t: NDArray,
        importance: NDArray,
        dtype: DTypeLike,
        features: NDArray | None = None,
    ) -> TrainBatch:
        """Return the batch of images with their noise at the timesteps `t`."""
        features = self._features(features, len(labels))
        alpha, sigma = self.process.schedule(t)
        columns = self.process.columns(t)
        conditioning = self._self_conditioning(streams, positions, columns)
        return TrainBatch(
            images=images.astype(dtype),
            noise=noise.astype(dtype, copy=False),
            label=labels.astype(np.int32),
            alpha=alpha.astype(dtype),
            sigma=sigma.astype(dtype),
            c_in=columns.c_in.astype(dtype),
            c_noise=columns.c_noise,
            target_x0=columns.target_x0.astype(dtype),
            target_eps=columns.target_eps.astype(dtype),
            weight=self.loss_weights(t).astype(dtype),
            importance=importance.astype(dtype),
            features=features.astype(dtype),
            positions=np.asarray(positions, np.int64),
            dropout_key=np.array(Stream(self.seed, f"{streams}/dropout").key, np.int64),
            variational=None if self.variational is None else self.variational[t].astype(dtype),
            self_conditioning=None if conditioning is None else conditioning.astype(dtype),
        )

r"""The validation loss: the training objective on images that are not trained on, with everything random held fixed.

Draw i = 0 .. N-1 takes image ``order[i mod n]`` of the n held-out images and the timestep t_i, with

    u_i = (rank[i] + w_i) / N,       t_i = Q(u_i)

    order    permutation of the images            "validation/images"
    rank     permutation of 0 .. N-1              "validation/strata"
    w_i      uniform in [0, 1)                    "validation/t"
    eps_i    the noise of draw i                  "validation/noise", "validation/offset_noise"
             whether it sees its own estimate     "validation/self_condition"

where Q is the quantile function of the timestep distribution of training, before any adaptation. So the timesteps are
stratified: each of N equal parts of the distribution has one. All draws are functions of (seed, i) alone, the same at
every moment of a run and in every framework: the curve over a run has no noise of its own, and two runs or two
frameworks differ by their weights only.

The network is in evaluation mode: no dropout, running statistics in batch norms, no dropped labels, no mirrored,
augmented or perturbed images. The loss of a draw has the same distance, weight and terms as in training, so that the
mean estimates the expected training loss on new images.

A method of `targets` draws its noise levels itself, from "validation/t" and so on, as at the end of a run: a number of
levels that grows during training is fixed here. Its loss needs the networks of its target: the evaluated one, the
average of the training, and the teacher. Its draws are put in bins by their sigma/alpha.

The distribution is cut into bins of equal probability, from the least noise to the most, and each has its own mean:

    validation_loss, validation_loss_ema, validation_loss_ema1 ...        of the weights and of each moving average
    validation_loss_level1 ... validation_loss_level4                     by noise level, level1 with the least noise
    validation_loss_ema_level1 ...
    validation_accuracy ...                                               the same of a classifier's predictions
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Forward, Network, TrainBatch
from diffusion_core.backend.reference.target import evaluation_losses
from diffusion_core.backend.target import Target
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.runtime.distributed import Collective
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import Progress

__all__ = ["LEVELS", "Validation", "metric_name"]

LEVELS = 4
_STREAMS = "validation"
# By default a run is evaluated at most this often, and the evaluation costs at most this fraction of the training.
_MOST_MOMENTS = 100
_MOST_COST = 0.1
# The cost of a training step in forward passes: one forward pass, and a backward pass that costs two.
_STEP_COST = 3


def metric_name(weights: str = "weights", metric: str = "loss", level: int | None = None) -> str:
    """Return the name of a number in the metrics of a run.

    Args:
        weights: ``"weights"``, or the name of an average.
        metric: ``"loss"`` or ``"accuracy"``.
        level: the number of the noise level, 1 .. `LEVELS`; None for all together.

    Example:
        >>> metric_name(), metric_name("ema", level=2)
        ('validation_loss', 'validation_loss_ema_level2')
    """
    average = "" if weights == "weights" else f"_{weights}"
    return f"validation_{metric}{average}" + ("" if level is None else f"_level{level}")


@dataclass(frozen=True, eq=False, repr=False)
class Validation:
    """Held-out images with fixed noise and fixed noise levels.

    Args:
        model: the network and its process.
        objective: what is trained.
        dataset: the held-out images, with the classes of the training images.
        part: the name of this part of the data set, for reports.
        count: the number of draws; with fewer images than draws, an image is drawn several times, with other noise.
        batch: images that the network computes at a time.
        dtype: the type of images and noise.

    Raises:
        DuetError: if a number is out of range, or a label does not fit the network.

    Example:
        >>> from diffusion_core.data import load_dataset
        >>> from diffusion_core.networks import PlainSpec
        >>> spec = PlainSpec(image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
        >>> model = DiffusionModel(spec, {"name": "cosine", "T": 100}, prediction="eps")
        >>> held_out = load_dataset("digits", part="held_out")
        >>> validation = Validation(model, Objective.for_model(model, seed=0), held_out, "held_out", count=64)
        >>> numbers = validation.measure(lambda x, c_noise, label, features: np.zeros_like(x))
        >>> sorted(numbers)[:2], bool(abs(numbers["validation_loss"] - 1) < 0.1)  # of zeros: the mean square of eps
        (['validation_loss', 'validation_loss_level1'], True)
    """

    model: DiffusionModel
    objective: Objective
    dataset: Dataset
    part: str = "held_out"
    count: int = 512
    batch: int = 128
    dtype: DTypeLike = np.float32
    levels: int = field(default=LEVELS, init=False)

    def __post_init__(self) -> None:
        for name, least in (("count", self.levels), ("batch", 1)):
            if getattr(self, name) < least:
                raise DuetError(f"validation.{name}: {getattr(self, name)} was given; it must be at least {least}")
        self._batch(0)  # refuses labels that the network does not have

    def __repr__(self) -> str:
        return f"Validation({self.dataset!r}, part={self.part!r}, count={self.count})"

    def interval(self, images: int, log_images: int, averages: int) -> int:
        """Return the default interval between evaluations, in images seen.

        There are at most 100 in a run, they cost at most a tenth of the training, and they fall on moments that are
        logged anyway.

        Args:
            images: the length of the run.
            log_images: the interval of the log.
            averages: the number of moving averages.
        """
        target = self.objective.loss
        more = target.forwards if isinstance(target, Target) else 0
        passes = self.count * (1 + averages) * (1 + more + (1 if self.objective.self_conditioned else 0))
        interval = max(images / _MOST_MOMENTS, passes / ((_STEP_COST + more) * _MOST_COST))
        return math.ceil(interval / log_images) * log_images

    @cached_property
    def indices(self) -> NDArray[np.int64]:
        """The image of each draw, with shape (N,)."""
        order = self._stream("images").permutation(len(self.dataset))
        return order[np.arange(self.count) % len(order)]

    @cached_property
    def _ranks(self) -> NDArray[np.int64]:
        return self._stream("strata").permutation(self.count)

    @cached_property
    def timesteps(self) -> NDArray:
        """The timestep of each draw, with shape (N,)."""
        word = self._stream("t").bits(np.arange(self.count), 1)[:, 0] * 2.0**-32
        return self.objective.timestep_sampler.quantile((self._ranks + word) / self.count)

    @cached_property
    def method_draws(self) -> dict[str, NDArray] | None:
        """What the method of the objective draws, by name, each with shape (N, ...); None for the regression."""
        if self.objective.training_method is None:
            return None
        return self.objective.draw(np.arange(self.count), Progress.end(), _STREAMS)

    @cached_property
    def ratios(self) -> NDArray[np.float64]:
        """The sigma/alpha of each draw, with shape (N,); infinite without signal."""
        if self.method_draws is None:
            alpha, sigma = self.model.process.schedule(self.timesteps)
        else:
            none = np.zeros(self.count, bool)
            table = self.objective.training_method.table(self.objective.setting, self.method_draws, none)
            alpha, sigma = table.alpha, table.sigma
        return np.divide(sigma, alpha, out=np.full(self.count, np.inf), where=np.asarray(alpha) > 0)

    @cached_property
    def draw_levels(self) -> NDArray[np.int64]:
        """The noise level of each draw, 0 .. levels-1 from the least noise to the most, with shape (N,)."""
        ranks = self._ranks if self.method_draws is None else np.argsort(np.argsort(self.ratios, kind="stable"))
        return ranks * self.levels // self.count

    def _stream(self, name: str) -> Stream:
        return Stream(self.objective.seed, f"{_STREAMS}/{name}")

    def _batch(self, first: int) -> TrainBatch:
        """Return the draws from `first` on. Every batch has the same size: the last one repeats the last draw."""
        draws = np.minimum(np.arange(first, first + min(self.batch, self.count)), self.count - 1)
        indices = self.indices[draws]
        # Memory maps are read in ascending order, each image once.
        unique, inverse = np.unique(indices, return_inverse=True)
        images = self.dataset.network_values(unique, self.dtype, self.model.value_range)[inverse]
        features = self._features(indices)
        labels = self.dataset.labels[indices]
        if not self.model.program.classes:  # unconditional: the classes of the held-out part do not matter
            labels = np.zeros_like(labels)
        t = self.timesteps[draws] if self.method_draws is None else {k: v[draws] for k, v in self.method_draws.items()}
        noise = None if self.dataset.noise is None else self.dataset.noise[unique][inverse]
        return self.objective.evaluation_batch(images, labels, draws, t, self.dtype, _STREAMS, features, noise)

    def _features(self, indices: NDArray[np.int64]) -> NDArray | None:
        """Return the conditions of some images as the features of the network; its others, of augmentation, are 0."""
        if self.dataset.conditions is None or not self.objective.features:
            return None
        rest = self.objective.features - self.dataset.condition_size
        return np.pad(self.dataset.conditions[indices], ((0, 0), (0, max(0, rest))))

    def values(
        self,
        forward: Forward | Mapping[str, Network],
        collective: Collective | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """Return the loss of each draw, and for a classifier whether its prediction is right, each with shape (N,).

        Args:
            forward: the network; see `backend.interface.Network.forward`. For a method of `targets`, the networks of
                `Target.networks` by name.
            collective: the processes that each compute a part of the batches; None is one process.
            progress: called with the number of draws done after each batch.
        """
        collective = collective or Collective()
        own = collective.group.slice_of(self.count, self.batch)
        program, distance = self.model.program, self.objective.distance
        losses, correct = np.zeros(own.stop - own.start), np.zeros(own.stop - own.start)
        for first in range(own.start, own.stop, self.batch):
            batch = self._batch(first)
            done = slice(first - own.start, min(first + self.batch, own.stop) - own.start)
            size = done.stop - done.start
            if self.method_draws is not None:
                losses[done] = evaluation_losses(forward, batch, self.objective.loss)[:size]
            else:
                image_losses, output = reference.evaluation_pass(forward, program, batch, distance)
                losses[done] = image_losses[:size]
            if self.model.classifies:
                correct[done] = (output.argmax(axis=1) == batch.label)[:size]
            if progress is not None:
                progress(done.stop)
        values = {"loss": losses} | ({"accuracy": correct} if self.model.classifies else {})
        return {name: collective.gather(own_values, self.count, self.batch) for name, own_values in values.items()}

    def measure(
        self,
        forward: Forward | Mapping[str, Network],
        weights: str = "weights",
        collective: Collective | None = None,
    ) -> dict[str, float]:
        """Return the means over all draws and over those of each noise level, by their names in the metrics.

        Args:
            forward: as for `values`.
            weights: which weights it has, ``"weights"`` or the name of an average.
            collective: as for `values`.
        """
        numbers = {}
        for metric, values in self.values(forward, collective).items():
            numbers[metric_name(weights, metric)] = float(values.mean())
            for level in range(self.levels):
                mean = float(values[self.draw_levels == level].mean())
                numbers[metric_name(weights, metric, level + 1)] = mean
        return numbers

    def facts(self) -> Mapping[str, Any]:
        """Return what is evaluated, as plain data: the images, and the range of t and of sigma/alpha by level.

        The draws of a method have no range of t.
        """
        levels = []
        for level in range(self.levels):
            ratios, ends = self.ratios[self.draw_levels == level], {}
            if self.method_draws is None:
                t = self.timesteps[self.draw_levels == level]
                ends["t"] = [float(t.min()), float(t.max())]
            ratio = [float(r) if np.isfinite(r) else None for r in (ratios.min(), ratios.max())]
            levels.append(ends | {"sigma_over_alpha": ratio})
        images = min(self.count, len(self.dataset))
        return {
            "part": self.part,
            "count": self.count,
            "images": images,
            "of_images": len(self.dataset),
            "levels": levels,
        }

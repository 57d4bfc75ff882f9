r"""The training objective: from images to a `TrainBatch`.

Per image, by its position n in the run (the count of images seen before it), three named streams draw

    t      uniform on 0 .. T-1              "train/t"
    eps    standard normal                  "train/noise"
    drop   the class, with probability p    "train/drop_label"     per image, not per batch

so that a batch is a function of (seed, images seen, size) and of nothing else.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), algorithm 1 and eq. 14, https://arxiv.org/abs/2006.11239
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), algorithm 1, https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.backend import DISTANCES, TrainBatch
from diffusion_core.errors import DuetError, one_of
from diffusion_core.process import Process
from diffusion_core.random import Stream

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """What is trained.

    Args:
        process: schedule and parameterisation.
        seed: the seed of the run.
        distance: ``"mse"``, ``"l1"`` or ``"huber"`` (with its corner at 1).
        null_label: the label that means "no class"; None for a network without classes.
        drop_label: probability of training an image without its class.
    """

    process: Process
    seed: int
    distance: str = "mse"
    null_label: int | None = None
    drop_label: float = 0.0

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise one_of("objective.distance", self.distance, DISTANCES)
        if not 0 <= self.drop_label <= 1:
            raise DuetError(f"objective.drop_label: {self.drop_label} was given; it is a probability, 0 to 1")
        if self.drop_label and self.null_label is None:
            raise DuetError("objective.drop_label: the network has no classes to drop; use 0, or set model.num_classes")

    def batch(self, images: NDArray, labels: NDArray, positions: NDArray, dtype: DTypeLike = np.float32) -> TrainBatch:
        """The training batch of these images.

        Args:
            images: x_0 in [-1, 1], with shape (B, H, W, C).
            labels: classes, with shape (B,).
            positions: each image's position in the run, with shape (B,).
            dtype: of images, noise and columns; c_noise stays float64.

        Raises:
            DuetError: if a label is out of range.
        """
        labels = np.asarray(labels)
        if self.null_label is None:
            labels = np.zeros_like(labels)
        elif labels.size and (labels.min() < 0 or labels.max() >= self.null_label):
            wrong = labels[(labels < 0) | (labels >= self.null_label)][0]
            raise DuetError(f"label {wrong}: the network has classes 0..{self.null_label - 1}")
        t = Stream(self.seed, "train/t").integers(positions, self.process.schedule.steps)
        if self.drop_label:
            dropped = Stream(self.seed, "train/drop_label").uniform(positions, 1)[:, 0] < self.drop_label
            labels = np.where(dropped, self.null_label, labels)
        alpha, sigma = self.process.schedule(t)
        columns = self.process.columns(t)
        return TrainBatch(
            images=images.astype(dtype),
            noise=Stream(self.seed, "train/noise").normal(positions, images.shape[1:], dtype=dtype),
            label=labels.astype(np.int32),
            alpha=alpha.astype(dtype),
            sigma=sigma.astype(dtype),
            c_in=columns.c_in.astype(dtype),
            c_noise=columns.c_noise,
            target_x0=columns.target_x0.astype(dtype),
            target_eps=columns.target_eps.astype(dtype),
            weight=np.ones(len(t), dtype),
        )

"""The losses with more than a pixel distance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffusion_core.backend.interface import TrainBatch
from diffusion_core.common.random import Stream
from diffusion_core.data import from_uint8
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import cosine
from diffusion_core.diffusion.variational import LEARNED as LEARNED_VARIANCES
from diffusion_core.networks import Node, Program, with_uncertainty
from diffusion_core.networks.blocks import BatchNorm, Concat, Linear, Mean
from diffusion_core.parity.cases.blocks import conv
from diffusion_core.parity.cases.processes import SEED
from diffusion_core.training.objective import Objective

__all__ = [
    "LOSSES",
    "LossCase",
]


@dataclass(frozen=True)
class LossCase:
    """A loss with more than a pixel distance, with the smallest network that has all of its outputs.

    Args:
        name: the parts of the loss.
        prediction: the parameterisation.
        options: options of the `Objective`.
        size: number of images; enough to contain each of the 4 noise levels.
    """

    name: str
    prediction: str
    options: dict[str, Any]
    size: int = 12

    @property
    def classes(self) -> int:
        """Number of classes of a classifier; 0 for any other network."""
        return self.options.get("classes", 0)

    @property
    def objective(self) -> Objective:
        """The objective that makes the batch."""
        return Objective(Process(cosine(4), self.prediction), SEED, **self.options)

    @property
    def program(self) -> Program:
        """Two convolutions with a BatchNorm between, whose statistics a first pass must not change; then logits."""
        channels, outputs = (
            (4 if self.objective.self_conditioned else 2),
            (4 if self.objective.variance in LEARNED_VARIANCES else 2),
        )
        nodes = [
            Node(
                "conv0",
                conv(channels, 6, 3, 1, (1, 1, 1, 1), bias=False),
                ("with_estimate" if channels == 4 else "x",),
            ),
            Node("norm", BatchNorm(6, 1e-3, 0.1), ("conv0",)),
            Node("conv1", conv(6, outputs, 3, 1, (1, 1, 1, 1)), ("norm",)),
        ]
        if channels == 4:
            nodes.insert(0, Node("with_estimate", Concat(), ("x", "estimate")))
        if self.classes:
            nodes.append(Node("mean", Mean(), ("conv1",)))
            nodes.append(Node("dense", Linear(outputs, self.classes, True, 1.0), ("mean",)))
        program = Program(tuple(nodes), classes=self.classes)
        return with_uncertainty(program, 0.5, 8) if self.objective.uncertainty else program

    @property
    def batch(self) -> TrainBatch:
        """A float64 batch of bytes with black and white pixels; all images have different importance weights."""
        index = np.arange(self.size)
        bytes_ = Stream(SEED, "parity/bytes").uniform(index, 32).reshape(self.size, 4, 4, 2)
        images = from_uint8(np.clip(400 * bytes_ - 72, 0, 255).astype(np.uint8), np.float64)
        c_in, weight, importance = Stream(SEED, "parity/columns").uniform(index, 3).T + 0.5
        batch = self.objective.batch(images, index % max(self.classes, 1), index, np.float64)
        return replace(batch, c_in=c_in, weight=weight * batch.weight, importance=importance)


# The weight of the bound makes it about as large as the other term.
LOSSES: tuple[LossCase, ...] = (
    LossCase("hybrid of eps", "eps", {"variance": "learned_range", "bound_weight": 0.2}),
    LossCase("bound alone of x_0", "x0", {"variance": "learned", "bound": "vlb"}),
    LossCase("bound alone of the posterior mean", "posterior_mean", {"variance": "fixed_large", "bound": "vlb"}),
    LossCase("classifier", "eps", {"distance": "cross_entropy", "classes": 5}),
    LossCase("uncertain huber", "v", {"uncertainty": True, "distance": "huber"}),
    LossCase(
        "hybrid of v, uncertain and self-conditioned", "v",
        {"variance": "learned_range", "bound_weight": 0.2, "bound_cdf": "tanh", "uncertainty": True,
         "self_conditioned": True},
    ),
)  # fmt: skip

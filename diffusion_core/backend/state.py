"""The state of training, which checkpoints hold and frameworks hand over, and the result of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import pluralize
from diffusion_core.networks.weights import Weights

__all__ = [
    "StepResult",
    "TrainerState",
    "average_names",
]


@dataclass(frozen=True, eq=False, repr=False)
class TrainerState:
    """The state of training: weights, moving averages and the slots of the optimiser, each by parameter name.

    Weights and averages have every name of the manifest, and so have slots with the shape of the parameters; those of
    parameters that are not trained stay as they started.

    Args:
        weights: the weights in the canonical axes, at which the network is evaluated.
        averages: the moving averages of the weights, at least one; sampling uses the first.
        slots: what the optimiser keeps, by slot and parameter; those of Adam are moment1 and moment2. Empty before the
            first update: a trainer then starts them, see `optim.optimiser.start_slots`.
        updates: number of optimiser steps so far.

    Example:
        >>> TrainerState.fresh({"w": np.ones((2, 3))})
        TrainerState(6 values, 1 average, 0 updates)
    """

    weights: Weights
    averages: tuple[Weights, ...]
    slots: Mapping[str, Weights] = field(default_factory=dict)
    updates: int = 0

    def __repr__(self) -> str:
        size = pluralize(sum(value.size for value in self.weights.values()), "value")
        averages, updates = pluralize(len(self.averages), "average"), pluralize(self.updates, "update")
        return f"TrainerState({size}, {averages}, {updates})"

    @staticmethod
    def fresh(weights: Weights, averages: int = 1) -> TrainerState:
        """Return the state before the first step, for any optimiser: averages equal to the weights, and no slots."""
        return TrainerState(weights, (weights,) * averages)

    @property
    def ema(self) -> Weights:
        """The moving average that sampling uses."""
        return self.averages[0]

    @property
    def evaluated(self) -> dict[str, Weights]:
        """What can be evaluated, by part: the weights, and ema (ema1, ema2 ... for further averages)."""
        return {"weights": self.weights, **dict(zip(average_names(len(self.averages)), self.averages, strict=True))}

    @property
    def parts(self) -> dict[str, Weights]:
        """All arrays by part: those of `evaluated`, and the slots of the optimiser."""
        return {**self.evaluated, **self.slots}

    @staticmethod
    def from_parts(parts: Mapping[str, Weights], updates: int) -> TrainerState:
        """Return the state with these `parts`."""
        names = [name for name in average_names(len(parts)) if name in parts]
        slots = {name: part for name, part in parts.items() if name not in ("weights", *names)}
        return TrainerState(parts["weights"], tuple(parts[name] for name in names), slots, updates)


def average_names(count: int) -> tuple[str, ...]:
    """Return the names of this many averages: ema, ema1, ema2 ..."""
    return tuple(f"ema{i}" if i else "ema" for i in range(count))


@dataclass(frozen=True, eq=False)
class StepResult:
    """The result of a training step. The numbers may still be on the device; ``float()`` waits for them.

    Args:
        loss: loss of the batch.
        grad_norm: global norm of the gradients before the clip.
        losses: returns the loss of each image without its importance weight, with shape (B,).
    """

    loss: SupportsFloat
    grad_norm: SupportsFloat
    losses: Callable[[], NDArray] = lambda: np.zeros(0)

"""The evaluation of the final samples of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.metrics.evaluate import random_sets
from diffusion_core.metrics.files import read_sample_set
from diffusion_core.metrics.protocol import nested
from experiments.evaluation.samples import SampleEvaluator
from experiments.evaluation.table import number_table

__all__ = ["FinalEvaluation", "SkippedEvaluation"]


@dataclass(frozen=True, eq=False)
class FinalEvaluation:
    """How the final samples are evaluated.

    Args:
        evaluator: metrics, features and reference.
        sets: number of disjoint sets for the confidence intervals; None means 20, or fewer for fewer than 40 samples.
        seed: of the sets.
    """

    evaluator: SampleEvaluator
    sets: int | None = None
    seed: int = 0

    def check(self, image_shape: tuple[int, int, int], count: int) -> None:
        """Refuse a number of samples, or an image shape, that cannot be evaluated."""
        self.evaluator.check({"images": np.empty((0, *image_shape), np.uint8)}, count, self.sets)

    def run(self, directory: Path, count: int) -> dict[str, Any]:
        """Evaluate the samples of a run, print the numbers, and return what result.json holds of them."""
        evaluation, _, _ = self.evaluator(read_sample_set(directory), random_sets(count, self.sets, self.seed))
        print("\n".join(number_table(evaluation.numbers)), flush=True)
        return {"numbers": nested(evaluation.numbers), "left_out": evaluation.skipped}


@dataclass(frozen=True)
class SkippedEvaluation:
    """Why the final samples are not evaluated although the configuration asks for it; printed when it is made.

    Args:
        reason: for example that the weights of the feature network were not named.
    """

    reason: str

    def __post_init__(self) -> None:
        self._print()

    def _print(self) -> None:
        print(
            f"the samples are not evaluated: {self.reason}; after the run, do it with "
            f"python3 -m duet evaluate samples=RUN data=... features=...",
            flush=True,
        )

    def run(self, directory: Path, count: int) -> dict[str, Any]:
        """Print the reason again, and return what result.json holds."""
        self._print()
        return {"numbers": {}, "reason": self.reason}

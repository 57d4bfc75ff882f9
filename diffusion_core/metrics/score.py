"""The score of class probabilities: are samples clearly of one class, and are all classes there.

With p(y | x) what the network gives each class and p(y) its mean over the samples::

    score = exp( mean over x of sum_y p(y | x) log(p(y | x) / p(y)) )

between 1 and the number of classes. It reads no reference, and rises with the number of samples of which p(y) is the
mean. As is the custom, the samples are cut into splits (here by stream "metrics/score"), the score is the mean over
them, and their standard deviation is what is printed behind ±.

References:
    Improved techniques for training GANs (Salimans et al., 2016), https://arxiv.org/abs/1606.03498
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.metrics.metric import Arrays, Measure, Metric, MetricResult, NotApplicable, NumberInfo

__all__ = ["SCORE", "score"]


def score(probabilities: NDArray) -> float:
    """The score of one set of probabilities with shape (N, K)."""
    given = probabilities.astype(np.float64)
    return float(np.exp(rel_entr(given, given.mean(axis=0)).sum(axis=1).mean()))


def _fit(reference: Arrays, seed: int, *, splits: int = 10) -> Measure:
    """The mean over so many splits."""
    if splits < 1:
        raise DuetError(f"score.splits: {splits} was given; it must be at least 1")

    def measure(samples: Arrays) -> MetricResult:
        given = samples["probabilities"]
        if len(given) < splits:
            raise NotApplicable(f"{len(given)} samples were given, which cannot be cut into {splits} splits")
        # rows i N // splits .. (i + 1) N // splits, as others cut
        order = Stream(seed, "metrics/score").permutation(len(given))
        ends = [i * len(given) // splits for i in range(splits + 1)]
        found = np.array([score(given[order[ends[i] : ends[i + 1]]]) for i in range(splits)])
        return MetricResult({"score": found.mean()}, {"score": found.std()} if splits > 1 else {}, {"splits": found})

    return measure


_SCORE = NumberInfo("class score", "Inception score", "higher", bounds=(1.0, np.inf))

SCORE = Metric(_fit, ("probabilities",), (), {"score": _SCORE})

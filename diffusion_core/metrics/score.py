"""The score of class probabilities: whether each sample clearly belongs to one class, and whether all classes occur.

With p(y | x) the class probabilities of a sample and p(y) their mean over the samples::

    score = exp( mean over x of sum_y p(y | x) log(p(y | x) / p(y)) )

which lies between 1 and the number of classes. It reads no reference, and rises with the number of samples. Published
scores are the mean over 10 splits of the samples (here by stream "metrics/score") with their standard deviation behind
±, for which set `splits` to 10. This is the score of a tenth of the samples, and the deviation that of one split; by
default all samples are one split, and the interval is that of the score.

References:
    Improved techniques for training GANs (Salimans et al., 2016), https://arxiv.org/abs/1606.03498
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.metrics.blocks import check_finite
from diffusion_core.metrics.metric import Arrays, Measure, Metric, MetricResult, NotApplicable, NumberInfo

__all__ = ["SCORE", "check_probabilities", "score"]

_ROUNDING = 1e-2  # of the sum of a row: float16 probabilities of a thousand classes


def check_probabilities(p: NDArray, what: str) -> None:
    """Refuse rows that are not distributions, such as logits: their score would be a number without meaning.

    Raises:
        DuetError: a value is not finite or negative, or a row does not sum to 1; the error has `what`.
    """
    check_finite(p, what)
    sums = p.sum(axis=1, dtype=np.float64)
    worst = int(np.abs(sums - 1).argmax())
    if p.min() < 0 or abs(sums[worst] - 1) > _ROUNDING:
        raise DuetError(
            f"{what}: row {worst} sums to {sums[worst]:.4g} and the smallest value is {p.min():.4g}; probabilities are "
            f"at least 0 and sum to 1 (a file may hold `logits` instead)"
        )


def score(probabilities: NDArray) -> float:
    """Return the score of one set of probabilities with shape (N, K).

    Example:
        >>> score(np.eye(4))
        4.0
    """
    p = probabilities.astype(np.float64)
    return float(np.exp(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()))


def _fit(reference: Arrays, seed: int, *, splits: int = 1) -> Measure:
    """Measure the mean over splits.

    Args:
        splits: the number of parts of the samples; 10 for published scores.
    """
    if splits < 1:
        raise DuetError(f"score.splits: {splits} was given; it must be at least 1")

    def measure(samples: Arrays) -> MetricResult:
        p = samples["probabilities"]
        check_probabilities(p, "score: probabilities of the samples")
        if len(p) < splits:
            raise NotApplicable(f"there are {len(p)} samples; {splits} splits need at least {splits}")
        # Rows i N // splits .. (i + 1) N // splits, as in other implementations.
        order = Stream(seed, "metrics/score").permutation(len(p))
        ends = [i * len(p) // splits for i in range(splits + 1)]
        scores = np.array([score(p[order[ends[i] : ends[i + 1]]]) for i in range(splits)])
        return MetricResult({"score": scores.mean()}, {"score": scores.std()} if splits > 1 else {}, {"splits": scores})

    return measure


_SCORE = NumberInfo("class score", "Inception score", "higher", bounds=(1.0, np.inf))

SCORE = Metric(_fit, ("probabilities",), (), {"score": _SCORE})

"""The Fréchet distance between two sets of features, each summed up as a Gaussian.

With means m and covariances S (unbiased, as ``numpy.cov``)::

    d^2 = |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a^(1/2) S_b S_a^(1/2))^(1/2))

The last trace is the sum of the singular values of ``S_a^(1/2) S_b^(1/2)``, and for any factors
``S = F^T F`` that of the singular values of ``F_a F_b^T``. Centred features divided by
``sqrt(N - 1)`` are such factors, so no matrix root is taken and a singular covariance needs no
special care. The value is the squared distance, as is the custom for scores of this kind.

The estimate from finite samples is biased upwards; compare sets of one size, and against the floor
that two halves of the real data give.

References:
    The Fréchet distance between multivariate normal distributions (Dowson and Landau, 1982),
    https://doi.org/10.1016/0047-259X(82)90077-X
    GANs trained by a two time-scale update rule converge to a local Nash equilibrium
    (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.errors import DuetError

__all__ = ["frechet_distance"]


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """The squared Fréchet distance of two sets of features.

    Args:
        features_a: with shape (N, D).
        features_b: with shape (M, D).

    Returns:
        A number that is at least 0, in the squared unit of the features.

    Raises:
        DuetError: a set has fewer than two samples, a value is not finite, or the widths differ.
    """
    a, b = _checked("a", features_a), _checked("b", features_b)
    if a.shape[1] != b.shape[1]:
        raise DuetError(f"Fréchet distance: {a.shape[1]} and {b.shape[1]} features were given; they must be as many")
    factor_a, factor_b = _factor(a), _factor(b)
    shift = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    overlap = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    # The exact value is not negative; rounding can make it so when the two sets are the same.
    return max(0.0, float(shift + np.sum(factor_a**2) + np.sum(factor_b**2) - 2.0 * overlap))


def _factor(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """A triangular F with ``F^T F`` the covariance, with shape (min(N, D), D)."""
    centred = features - features.mean(axis=0)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(features) - 1)


def _checked(which: str, features: ArrayLike) -> NDArray[np.float64]:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise DuetError(
            f"Fréchet distance: features {which} with shape {features.shape} were given; "
            f"the shape must be (samples, features) with at least 2 samples"
        )
    if not np.isfinite(features).all():
        raise DuetError(f"Fréchet distance: features {which} hold values that are not finite numbers")
    return features

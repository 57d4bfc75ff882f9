"""The Fréchet distance between two sets of features, each approximated by a Gaussian.

With means m and covariances S (unbiased, as ``numpy.cov``)::

    d^2 = |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a^(1/2) S_b S_a^(1/2))^(1/2))

The last trace is the sum of the singular values of ``S_a^(1/2) S_b^(1/2)``, and for any factors
``S = F^T F`` that of the singular values of ``F_a F_b^T``. Centred features divided by
``sqrt(N - 1)`` are such factors, so no matrix root is needed and a singular covariance is not a special
case; a QR decomposition in blocks of rows reduces them to at most D rows. The value is the squared distance,
as is usual for scores of this kind.

The estimate from n samples of D features is biased upwards: compare sets of one size, and compare with the distance of
as many images of the reference (its floor). The jackknife removes the part of order 1/n of the bias
(`metrics.intervals`). Of white Gaussian features, what remains was at most 0.09 (D/n)^2 tr(S); as a part of the
standard error that is ::

    D      n      distance   measured   corrected   extrapolated in 1/n   standard deviation
    32     320    0.64        1.69       0.63        0.62 +- 0.15          0.12
    64     500    1.28        3.75       1.22        1.17 +- 0.22          0.13
    64     1000   1.28        2.52       1.28        1.28 +- 0.11          0.10
    128    500    2.56       12.18       2.07        1.61 +- 0.31          0.18

Neither the jackknife nor an extrapolation in 1/n holds in the last case, so no corrected value is given there.

References:
    The Fréchet distance between multivariate normal distributions (Dowson and Landau, 1982),
    https://doi.org/10.1016/0047-259X(82)90077-X
    GANs trained by a two time-scale update rule converge to a local Nash equilibrium
    (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
    Generating images with sparse representations (Nash et al., 2021), https://arxiv.org/abs/2103.03841, for the
    distance of spatial features
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.metrics.blocks import blocks, rows
from diffusion_core.metrics.metric import NON_NEGATIVE, Arrays, Measure, Metric, MetricResult, NumberInfo

__all__ = [
    "FRECHET",
    "LARGEST_RATIO",
    "SPATIAL_FRECHET",
    "Gaussian",
    "distance",
    "fit_gaussian",
    "fit_reference",
    "frechet_distance",
    "gaussian_from_statistics",
]

# Every decomposition repeats the factor of the earlier rows, so larger blocks cost less in total.
_ROWS_PER_FEATURE = 4


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The mean and covariance of a set of features.

    Args:
        mean: with shape (D,).
        factor: a triangular F such that ``F^T F`` is the covariance, with shape (min(N, D), D).
    """

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"Gaussian({len(self.mean)} dimensions)"


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Return the squared Fréchet distance between two sets of features.

    Args:
        features_a: with shape (N, D).
        features_b: with shape (M, D).

    Returns:
        A number of at least 0, in the squared unit of the features.

    Raises:
        DuetError: a set has fewer than two rows, a value is not finite, or the widths differ.

    Example:
        >>> a = np.random.default_rng(0).standard_normal((1000, 4))
        >>> round(frechet_distance(a, a + 1.0), 6)
        4.0
    """
    return distance(fit_gaussian(features_a, "features a"), fit_gaussian(features_b, "features b"))


def fit_gaussian(features: ArrayLike, what: str = "features") -> Gaussian:
    """Return the mean and covariance of features with shape (N, D), read twice in blocks of rows.

    Raises:
        DuetError: there are fewer than two rows, or a value is not finite; `what` names the features in the error.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2 or features.shape[1] < 1:
        raise DuetError(
            f"Fréchet distance: {what} with shape {features.shape} were given; "
            f"the shape must be (samples, features) with at least 2 samples"
        )
    mean = sum(rows(features, some).sum(axis=0) for some in blocks(features)) / len(features)
    if not np.isfinite(mean).all():
        raise DuetError(f"Fréchet distance: {what} hold values that are not finite")
    factor, step = np.zeros((0, features.shape[1])), max(_ROWS_PER_FEATURE * features.shape[1], 1024)
    for start in range(0, len(features), step):
        block = rows(features, slice(start, start + step)) - mean
        factor = np.linalg.qr(np.concatenate([factor, block]), mode="r")
    return Gaussian(mean, factor / np.sqrt(len(features) - 1))


def gaussian_from_statistics(mean: ArrayLike, covariance: ArrayLike, what: str = "statistics") -> Gaussian:
    """Return the Gaussian with a mean (D,) and a covariance (D, D), as published statistics have them.

    The factor is ``V^T`` scaled by the roots of the eigenvalues, ``S = V diag(w) V^T``. Rounding can make the smallest
    eigenvalues slightly negative; they count as 0.

    Raises:
        DuetError: the shapes differ, a value is not finite, or the covariance is not symmetric or not positive.
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise DuetError(
            f"{what} with shapes {mean.shape} and {covariance.shape} were given; they must be the mean (D,) and the "
            f"covariance (D, D) of D features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DuetError(f"{what}: they hold values that are not finite")
    scale = np.abs(covariance).max()
    if (apart := np.abs(covariance - covariance.T).max()) > 1e-4 * scale:
        raise DuetError(f"{what}: the covariance is not symmetric; two of its entries differ by {apart:.3g}")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-4 * max(values[-1], 0.0) or (values[-1] <= 0 and scale > 0):
        raise DuetError(f"{what}: the covariance has the eigenvalue {values[0]:.3g}; none may be negative")
    return Gaussian(mean, np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T)


def distance(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Fréchet distance between two Gaussians.

    Raises:
        DuetError: their widths differ, or the distance is not finite.
    """
    if len(a.mean) != len(b.mean):
        raise DuetError(
            f"Fréchet distance: {len(a.mean)} and {len(b.mean)} features were given; the widths must be equal, so both "
            f"must come from the same feature network"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        product = a.factor @ b.factor.T
        own = np.sum((a.mean - b.mean) ** 2) + np.sum(a.factor**2) + np.sum(b.factor**2)
    if not (np.isfinite(product).all() and np.isfinite(own)):  # max(0, nan) would be the perfect score
        raise DuetError("Fréchet distance: it is not finite; the features are too large to be squared, scale them down")
    value = float(own - 2.0 * np.linalg.svd(product, compute_uv=False).sum())
    return max(0.0, value)  # rounding can make the value of two equal sets negative


_REMAINING_BIAS = 0.09  # in units of (D/n)^2 tr(S): measured, see above
LARGEST_RATIO = 0.2  # D/n, above which terms of higher order matter too

# What can replace features of the reference.
_SUBSTITUTES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


def fit_reference(name: str, reference: Arrays) -> Gaussian:
    """Return the Gaussian of the features of a reference, or that of its published statistics."""
    if name in reference:
        return fit_gaussian(reference[name], f"{name} of the reference")
    return gaussian_from_statistics(*(reference[part] for part in _SUBSTITUTES[name]), "the reference")


def _fit(name: str, reference: Arrays) -> Measure:
    real = fit_reference(name, reference)

    def measure(samples: Arrays) -> MetricResult:
        fake = fit_gaussian(samples[name], f"{name} of the samples")
        ratio = len(fake.mean) / len(samples[name])
        remaining = _REMAINING_BIAS * ratio**2 * float(np.sum(fake.factor**2)) if ratio < LARGEST_RATIO else np.inf
        return MetricResult({"distance": distance(fake, real)}, remaining_bias={"distance": remaining})

    return measure


def _fit_features(reference: Arrays, seed: int) -> Measure:
    return _fit("features", reference)


def _fit_spatial(reference: Arrays, seed: int) -> Measure:
    return _fit("spatial", reference)


_DISTANCE = NumberInfo("Fréchet distance", "FID", "lower", bounds=NON_NEGATIVE, published_on={"DINOv2": "FD-DINOv2"})
_SPATIAL_DISTANCE = NumberInfo("spatial Fréchet distance", "sFID", "lower", bounds=NON_NEGATIVE)

FRECHET = Metric(
    _fit_features, ("features",), ("features",), {"distance": _DISTANCE}, substitutes=_SUBSTITUTES, has_floor=True
)
SPATIAL_FRECHET = Metric(
    _fit_spatial, ("spatial",), ("spatial",), {"distance": _SPATIAL_DISTANCE}, substitutes=_SUBSTITUTES, has_floor=True
)

"""Normal data with any covariance: the exact denoiser, the exact posterior given a measurement, and exact moments.

For x_0 ~ N(m, S) and x = x_0 + sigma eps, the exact estimate is  D = m + S (S + sigma^2)^-1 (x - m),  and given
y = A x_0 + noise e,

    mean = m + K (y - A m),    covariance = S - K A S,    K = S A^T (A S A^T + noise^2)^-1

Every sampler without fresh noise is affine in its start on such data, so its mean and covariance follow from the images
of zero and of the unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.diffusion.continuous import edm
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.linear_operators import LinearOperator

Array = NDArray[np.float64]

# The network gets x_0 + sigma eps and sigma.
DENOISER = Process(edm(), "denoiser")


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Images of a shape with a mean and a covariance of their numbers."""

    shape: tuple[int, int, int]
    mean: Array
    covariance: Array

    @staticmethod
    def random(shape: tuple[int, int, int], seed: int = 0) -> Gaussian:
        rng, size = np.random.default_rng(seed), int(np.prod(shape))
        factor = rng.normal(size=(size, size)) / np.sqrt(size)
        return Gaussian(shape, 0.3 * rng.normal(size=size), factor @ factor.T + 0.05 * np.eye(size))

    @cached_property
    def axes(self) -> tuple[Array, Array]:
        """Variances and directions of the principal axes."""
        return np.linalg.eigh(self.covariance)

    def denoise(self, x: Array, sigma: Array) -> Array:
        """Return D of images at their noise levels, as an own network of NumPy."""
        variances, directions = self.axes
        away = (x.reshape(len(x), -1) - self.mean) @ directions
        gain = variances / (variances + np.asarray(sigma)[:, None] ** 2)
        return (self.mean + (gain * away) @ directions.T).reshape(x.shape)

    def draw(self, seed: int) -> Array:
        """Return one image, with a batch axis."""
        variances, directions = self.axes
        normal = np.random.default_rng(seed).normal(size=variances.shape)
        return (self.mean + directions @ (np.sqrt(variances) * normal)).reshape(1, *self.shape)

    def posterior(self, operator: LinearOperator, y: Array, noise: float) -> tuple[Array, Array]:
        """Return mean and covariance given one measurement."""
        a, s = matrix(operator, self.shape), self.covariance
        gain = s @ a.T @ np.linalg.pinv(a @ s @ a.T + noise**2 * np.eye(len(a)))
        return self.mean + gain @ (np.ravel(y) - a @ self.mean), s - gain @ a @ s


def matrix(operator: LinearOperator, shape: tuple[int, ...]) -> Array:
    """Return A as a matrix."""
    units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return operator.measure(units).reshape(len(units), -1).T


def unit_starts(shape: tuple[int, ...], scale: float) -> Array:
    """Return the starts whose samples determine an affine sampler: zero, and each unit vector."""
    size = int(np.prod(shape))
    return scale * np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape)


def affine_moments(samples: Any) -> tuple[Array, Array]:
    """Return mean and covariance of samples of a sampler, from those of `unit_starts`."""
    flat = np.asarray(samples).reshape(len(samples), -1)
    jacobian = (flat[1:] - flat[0]).T
    return flat[0], jacobian @ jacobian.T


def errors(got: tuple[Array, Array], wanted: tuple[Array, Array]) -> tuple[float, float]:
    """Return the relative errors of mean and covariance."""
    return tuple(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, wanted, strict=True))

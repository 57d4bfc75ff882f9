"""Data with an exact score: mixtures of normal distributions, in the plane and as images.

If x_0 is drawn from N(m_k, s_k^2 I) with probability w_k, then x_t = alpha x_0 + sigma eps has the density

    p(x) = sum_k w_k N(x; alpha m_k, v_k I),       v_k = alpha^2 s_k^2 + sigma^2

and with the posterior weights p_k ~ w_k N(x; alpha m_k, v_k I) of the components at x,

    score      grad log p(x) = sum_k p_k (alpha m_k - x) / v_k
    estimate   E[x_0 | x]    = sum_k p_k (m_k + alpha s_k^2 (x - alpha m_k) / v_k)

The toys of the plane are curves and grids made of such components. A point (x, y) in [-1, 1]^2 is stored as a colour
image of one pixel: red is x, green is y, and blue is always 128. Bytes round a point by up to 1/255, as if s_k^2 were
larger by (2/255)^2 / 12, which is below 1 % of it. About one point in a thousand lies outside [-1, 1] and is clipped.
Item i depends on (seed, i) alone, in streams "data/toy" and "data/toy/normal".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.pixels import to_uint8
from diffusion_core.images.points import is_point

__all__ = ["TOYS", "Mixture", "are_points", "gaussian_mixture", "image_mixture", "toy", "toy_mixture"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of isotropic normal distributions with equal weights.

    Args:
        means: the mean of each component, with shape (K, D).
        stds: the standard deviation of each component, with shape (K,).
        classes: the class of each component, with shape (K,).

    Raises:
        DuetError: the shapes do not match, or a standard deviation is not positive.
    """

    means: Array
    stds: Array
    classes: NDArray[np.int32]

    def __post_init__(self) -> None:
        components = len(self.means)
        if np.ndim(self.means) != 2 or self.stds.shape != (components,) or self.classes.shape != (components,):
            raise DuetError(
                f"mixture: means {np.shape(self.means)}, stds {self.stds.shape} and classes {self.classes.shape} "
                f"were given; they must be (K, D), (K,) and (K,)"
            )
        if not np.all(self.stds > 0):
            raise DuetError(f"mixture: stds from {self.stds.min()} were given; they must be positive")

    def __repr__(self) -> str:
        return f"Mixture({len(self.means)} components in {self.means.shape[1]} dimensions)"

    def draw(self, count: int, seed: int) -> tuple[Array, NDArray[np.int32]]:
        """Return the first `count` points of the distribution, with shape (N, D), and the class of each."""
        index = np.arange(count)
        component = Stream(seed, "data/toy").integers(index, len(self.means))
        noise = Stream(seed, "data/toy/normal").normal(index, self.means.shape[1:])
        return self.means[component] + self.stds[component, None] * noise, self.classes[component]

    def log_density(self, x: ArrayLike, alpha: float = 1.0, sigma: float = 0.0) -> Array:
        """Return the log density of x_t, with shape (B,), at points with shape (B, ...) of D values each."""
        _, log_weights = self._components(x, alpha, sigma)
        top = log_weights.max(axis=1)
        return top + np.log(np.exp(log_weights - top[:, None]).sum(axis=1))

    def score(self, x: ArrayLike, alpha: float = 1.0, sigma: float = 0.0) -> Array:
        """Return the gradient of the log density of x_t, with the shape of x."""
        away, weights = self._posterior(x, alpha, sigma)
        variance = (alpha * self.stds) ** 2 + sigma**2
        return -np.einsum("bk, bkd -> bd", weights / variance, away).reshape(np.shape(x))

    def denoised(self, x: ArrayLike, alpha: float, sigma: float) -> Array:
        """Return the posterior mean E[x_0 | x_t], with the shape of x: the output of a perfect network."""
        away, weights = self._posterior(x, alpha, sigma)
        gain = alpha * self.stds**2 / ((alpha * self.stds) ** 2 + sigma**2)
        estimate = weights @ self.means + np.einsum("bk, bkd -> bd", weights * gain, away)
        return estimate.reshape(np.shape(x))

    def _posterior(self, x: ArrayLike, alpha: float, sigma: float) -> tuple[Array, Array]:
        """Return (x - alpha m_k) with shape (B, K, D), and the posterior weights, with shape (B, K)."""
        away, log_weights = self._components(x, alpha, sigma)
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        return away, weights / weights.sum(axis=1, keepdims=True)

    def _components(self, x: ArrayLike, alpha: float, sigma: float) -> tuple[Array, Array]:
        """Return (x - alpha m_k), and the log density of each component including its weight."""
        x = np.asarray(x, np.float64)
        away = x.reshape(len(x), 1, -1) - alpha * self.means
        variance = (alpha * self.stds) ** 2 + sigma**2
        log_weights = -0.5 * (away**2).sum(axis=2) / variance
        return away, log_weights - 0.5 * self.means.shape[1] * np.log(2 * np.pi * variance) - np.log(len(self.means))


def _along(curves: list[Array], std: float) -> Mixture:
    """Return a mixture of components along curves with shape (n, 2) each; a curve is a class."""
    classes = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves]).astype(np.int32)
    means = np.concatenate(curves)
    return Mixture(means, np.full(len(means), std), classes)


def _circle(radius: float, count: int) -> Array:
    angle = 2 * np.pi * np.arange(count) / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _ring() -> Mixture:
    return _along(list(_circle(0.7, 8)[:, None]), 0.06)


def _grid() -> Mixture:
    axis = np.linspace(-0.7, 0.7, 5)
    return _along([np.array([[x, y]]) for y in axis for x in axis], 0.04)


def _circles() -> Mixture:
    return _along([_circle(0.75, 64), _circle(0.35, 32)], 0.04)


def _moons() -> Mixture:
    angle = np.pi * (np.arange(32) + 0.5) / 32
    upper = np.stack([0.5 * np.cos(angle) - 0.25, 0.5 * np.sin(angle) - 0.12], axis=1)
    return _along([upper, -upper], 0.05)


def _spirals() -> Mixture:
    way = np.sqrt((np.arange(96) + 0.5) / 96)  # spaces the components evenly
    arm = 0.8 * way[:, None] * np.stack([np.cos(3 * np.pi * way), np.sin(3 * np.pi * way)], axis=1)
    return _along([arm, -arm], 0.025)


TOYS: dict[str, Callable[[], Mixture]] = {
    "ring": _ring,
    "grid": _grid,
    "circles": _circles,
    "moons": _moons,
    "spirals": _spirals,
}


def toy_mixture(kind: str = "ring") -> Mixture:
    """Return the distribution of a toy of the plane, D = 2.

    Args:
        kind: one of `TOYS`.

    Raises:
        DuetError: the kind is unknown.

    Example:
        >>> toy_mixture("ring").denoised(np.array([[0.6, 0.1]]), alpha=1.0, sigma=0.1).round(3)
        array([[0.673, 0.028]])
    """
    check_choice("kind of toy", kind, TOYS)
    return TOYS[kind]()


def toy(kind: str = "ring", count: int = 4096, seed: int = 0) -> Dataset:
    """Draw points of a toy as images of one pixel; the class is the mode of ring and grid, or the curve of the others.

    Args:
        kind: one of `TOYS`.
        count: the number of points.
        seed: the seed of the streams.

    Raises:
        DuetError: the kind is unknown, or the count is not positive.
    """
    mixture = toy_mixture(kind)
    if count < 1:
        raise DuetError(f"toy: {count} points were requested; the count must be at least 1")
    points, classes = mixture.draw(count, seed)
    images = np.full((count, 1, 1, 3), 128, np.uint8)
    images[:, 0, 0, :2] = to_uint8(points)
    return Dataset(images, classes, tuple(str(k) for k in range(int(mixture.classes.max()) + 1)), kind)


def are_points(dataset: Dataset) -> bool:
    """Return whether the images of a data set are points of the plane: one pixel each, blue always 128."""
    return is_point(dataset.images.shape) and bool(np.all(dataset.images[:, 0, 0, 2] == 128))


def image_mixture(size: int = 8, channels: int = 1, modes: int = 4, spread: float = 0.08) -> Mixture:
    """Return a mixture of images: each mode is a plane wave of amplitude 0.6, with the same deviation at every pixel.

    Mode k has the k-th of the wave vectors (1, 0), (0, 1), (1, 1), (2, 0) ..., ordered by length; channel c is shifted
    by c thirds of a period. Its points are flattened images in [-1, 1], D = size^2 channels.

    Args:
        size: height and width in pixels, at least 4.
        channels: 3 for colour, 1 for grey.
        modes: the number of components.
        spread: the standard deviation of every component, at most 0.1.

    Raises:
        DuetError: a number is out of range.
    """
    most = max(1, (size // 2) ** 2 - 1)
    if size < 4 or channels not in (1, 3) or not 1 <= modes <= most or not 0 < spread <= 0.1:
        raise DuetError(
            f"gaussian mixture: size {size}, {channels} channels, {modes} modes and spread {spread} were given; the "
            f"size must be at least 4, the channels 1 or 3, the modes 1..{most} and the spread in (0, 0.1]"
        )
    axis = (np.arange(size) + 0.5) / size
    waves = [(i, j) for i in range(size // 2) for j in range(size // 2) if i or j]
    waves.sort(key=lambda wave: (wave[0] ** 2 + wave[1] ** 2, -wave[0]))
    phase = np.array([i * axis[None, :] + j * axis[:, None] for i, j in waves[:modes]])
    means = 0.6 * np.cos(2 * np.pi * (phase[..., None] + np.arange(channels) / 3))
    return Mixture(means.reshape(modes, -1), np.full(modes, spread), np.arange(modes, dtype=np.int32))


def gaussian_mixture(
    count: int = 4096, size: int = 8, channels: int = 1, modes: int = 4, spread: float = 0.08, seed: int = 0
) -> Dataset:
    """Draw images from `image_mixture`; the class is the mode.

    Args:
        count: the number of images.
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        modes: the number of components.
        spread: the standard deviation of each component, at every pixel.
        seed: the seed of the streams.

    Raises:
        DuetError: a number is out of range.
    """
    mixture = image_mixture(size, channels, modes, spread)
    if count < 1:
        raise DuetError(f"gaussian mixture: {count} images were requested; the count must be at least 1")
    points, classes = mixture.draw(count, seed)
    images = to_uint8(points).reshape(count, size, size, channels)
    return Dataset(images, classes, tuple(str(k) for k in range(modes)), "gaussian_mixture")

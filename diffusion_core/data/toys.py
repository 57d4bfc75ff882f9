r"""Data with an exact score: mixtures of normal distributions, in the plane and as images.

Where x_0 is drawn from N(m_k, s_k^2 I) with probability w_k, x_t = alpha x_0 + sigma eps has the density

    p(x) = sum_k w_k N(x; alpha m_k, v_k I),       v_k = alpha^2 s_k^2 + sigma^2

and with the shares p_k ~ w_k N(x; alpha m_k, v_k I) of the parts at x,

    score      grad log p(x) = sum_k p_k (alpha m_k - x) / v_k
    estimate   E[x_0 | x]    = sum_k p_k (m_k + alpha s_k^2 (x - alpha m_k) / v_k)

The toys of the plane are curves and grids made of such parts. A point (x, y) in [-1, 1]^2 is a colour image of one
pixel: red is x, green is y, and blue, always 128, says nothing. Bytes round a point by up to 1/255, as if s_k^2 were
larger by (2/255)^2 / 12, which is below 1 % of it; points lie inside of [-1, 1] but for one in thousands, which is
clipped. Item i depends on (seed, i) alone, in streams "data/toy" and "data/toy/normal".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.data.dataset import Dataset
from diffusion_core.data.pixels import to_uint8

__all__ = ["TOYS", "Mixture", "gaussian_mixture", "image_mixture", "toy", "toy_mixture"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Normal distributions of equal spread in all directions, mixed.

    Args:
        means: of each part, with shape (K, D).
        spreads: standard deviation of each, with shape (K,).
        classes: which class each belongs to, with shape (K,); all parts are equally likely.

    Raises:
        DuetError: the shapes do not fit, or a spread is not positive.
    """

    means: Array
    spreads: Array
    classes: NDArray[np.int32]

    def __post_init__(self) -> None:
        parts = len(self.means)
        if np.ndim(self.means) != 2 or self.spreads.shape != (parts,) or self.classes.shape != (parts,):
            raise DuetError(
                f"mixture: means {np.shape(self.means)}, spreads {self.spreads.shape} and classes {self.classes.shape} "
                f"were given; they must be (K, D), (K,) and (K,)"
            )
        if not np.all(self.spreads > 0):
            raise DuetError(f"mixture: spreads from {self.spreads.min()} were given; they must be positive")

    def draw(self, count: int, seed: int) -> tuple[Array, NDArray[np.int32]]:
        """The first `count` points of the distribution, with shape (N, D), and the class of each."""
        index = np.arange(count)
        part = Stream(seed, "data/toy").integers(index, len(self.means))
        noise = Stream(seed, "data/toy/normal").normal(index, self.means.shape[1:])
        return self.means[part] + self.spreads[part, None] * noise, self.classes[part]

    def log_density(self, x: ArrayLike, alpha: float = 1.0, sigma: float = 0.0) -> Array:
        """Of x_t, with shape (B,), at points with shape (B, ...) of D values each."""
        _, log_parts = self._parts(x, alpha, sigma)
        top = log_parts.max(axis=1)
        return top + np.log(np.exp(log_parts - top[:, None]).sum(axis=1))

    def score(self, x: ArrayLike, alpha: float = 1.0, sigma: float = 0.0) -> Array:
        """The gradient of the logarithm of the density of x_t, with the shape of x."""
        away, shares = self._shares(x, alpha, sigma)
        variance = (alpha * self.spreads) ** 2 + sigma**2
        return -np.einsum("bk, bkd -> bd", shares / variance, away).reshape(np.shape(x))

    def denoised(self, x: ArrayLike, alpha: float, sigma: float) -> Array:
        """The best estimate of x_0 from x_t, with the shape of x: what a perfect network makes."""
        away, shares = self._shares(x, alpha, sigma)
        gain = alpha * self.spreads**2 / ((alpha * self.spreads) ** 2 + sigma**2)
        estimate = shares @ self.means + np.einsum("bk, bkd -> bd", shares * gain, away)
        return estimate.reshape(np.shape(x))

    def _shares(self, x: ArrayLike, alpha: float, sigma: float) -> tuple[Array, Array]:
        """(x - alpha m_k) with shape (B, K, D), and the share of each part, with shape (B, K)."""
        away, log_parts = self._parts(x, alpha, sigma)
        shares = np.exp(log_parts - log_parts.max(axis=1, keepdims=True))
        return away, shares / shares.sum(axis=1, keepdims=True)

    def _parts(self, x: ArrayLike, alpha: float, sigma: float) -> tuple[Array, Array]:
        """(x - alpha m_k), and the logarithm of the density of each part times its weight."""
        x = np.asarray(x, np.float64)
        away = x.reshape(len(x), 1, -1) - alpha * self.means
        variance = (alpha * self.spreads) ** 2 + sigma**2
        log_parts = -0.5 * (away**2).sum(axis=2) / variance
        return away, log_parts - 0.5 * self.means.shape[1] * np.log(2 * np.pi * variance) - np.log(len(self.means))


def _along(curves: list[Array], spread: float) -> Mixture:
    """Parts along curves with shape (n, 2) each; a curve is a class."""
    classes = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves]).astype(np.int32)
    means = np.concatenate(curves)
    return Mixture(means, np.full(len(means), spread), classes)


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
    way = np.sqrt((np.arange(96) + 0.5) / 96)  # so that the parts are evenly apart
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
    """The distribution of a toy of the plane, D = 2.

    Raises:
        DuetError: there is no such toy.
    """
    if kind not in TOYS:
        raise one_of("kind of toy", kind, TOYS)
    return TOYS[kind]()


def toy(kind: str = "ring", count: int = 4096, seed: int = 0) -> Dataset:
    """Points of a toy as images of one pixel, see above; each mode of ring and grid, or each curve, is a class.

    Args:
        kind: one of `TOYS`.
        count: how many points.
        seed: the seed of the streams.

    Raises:
        DuetError: there is no such toy, or the count is not positive.
    """
    mixture = toy_mixture(kind)
    if count < 1:
        raise DuetError(f"toy: {count} points were asked for; the count must be at least 1")
    points, classes = mixture.draw(count, seed)
    images = np.full((count, 1, 1, 3), 128, np.uint8)
    images[:, 0, 0, :2] = to_uint8(points)
    return Dataset(images, classes, tuple(str(k) for k in range(int(mixture.classes.max()) + 1)), kind)


def image_mixture(size: int = 8, channels: int = 1, modes: int = 4, spread: float = 0.08) -> Mixture:
    """A mixture of images: plane waves of amplitude 0.6, one for each mode, with the same spread at each pixel.

    Mode k has the k-th of the wave vectors (1, 0), (0, 1), (1, 1), (2, 0) ..., by their length, and channel c is
    shifted by a third of a period times c. Its points are images in [-1, 1], flattened, D = size^2 channels.

    Raises:
        DuetError: a number does not fit.
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
    """Images of `image_mixture`, the mode as class.

    Args:
        count: how many images.
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        modes: how many normal distributions are mixed.
        spread: their standard deviation at each pixel.
        seed: the seed of the streams.

    Raises:
        DuetError: a number does not fit.
    """
    mixture = image_mixture(size, channels, modes, spread)
    if count < 1:
        raise DuetError(f"gaussian mixture: {count} images were asked for; the count must be at least 1")
    points, classes = mixture.draw(count, seed)
    images = to_uint8(points).reshape(count, size, size, channels)
    return Dataset(images, classes, tuple(str(k) for k in range(modes)), "gaussian_mixture")

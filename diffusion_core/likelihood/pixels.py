r"""Likelihoods of images that are stored as uint8.

A stored value u stands for ``x = low + u/k`` in the range [low, high], with ``k = 255/(high - low)``, and for the bin
of width 1/k around it. A *discretised* density gives each bin its probability; the first and the last bin extend to
infinity, so that the 256 probabilities add up to 1,

    P(u) = Phi((x + 1/2k - mean)/s) - Phi((x - 1/2k - mean)/s),       Phi the cumulative normal distribution

A *continuous* density p is compared with stored images by uniform dequantisation: x is drawn uniformly from the bin of
u, and by Jensen's inequality ``E log p(x) - log k <= log P(u)``, per dimension. The uniform density over all bins has
p = k/256, which is 8 bits per dimension in any range.

Everything is in float64. Phi is exact to rounding, also far below the smallest float; DDPM's code approximates it by
tanh, with a lower bound of 1e-12 on P(u).

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), eq. 13, https://arxiv.org/abs/2006.11239
    A note on the evaluation of generative models (Theis et al., 2016), section 3.1, https://arxiv.org/abs/1511.01844
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.random import Stream
from diffusion_core.data.pixels import check_value_range, from_uint8

__all__ = ["bits_per_dimension", "dequantize", "discretised_gaussian", "log_normal_interval"]

Array = NDArray[np.float64]

# From here on Phi(-z) is computed by its asymptotic series, with an error below 1e-14; erfc underflows at 37.
_SERIES = 25.0
_erfc = np.frompyfunc(math.erfc, 1, 1)


def _log_tail(z: Array) -> Array:
    """Return log Phi(-z) for z >= 0."""
    near = np.minimum(z, _SERIES)
    far = np.maximum(z, _SERIES) ** -2.0
    series = np.ones_like(z)
    for odd in (11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = 1.0 - odd * far * series
    exact = np.log(0.5 * np.asarray(_erfc(near / math.sqrt(2.0)), np.float64))
    asymptotic = -0.5 * z**2 + 0.5 * np.log(far) - 0.5 * math.log(2.0 * math.pi) + np.log(series)
    return np.where(z > _SERIES, asymptotic, exact)


def log_normal_interval(low: ArrayLike, high: ArrayLike) -> Array:
    """Return log(Phi(high) - Phi(low)), the normal log-probability of an interval, which may be infinite; low < high.

    The relative error is small in either tail; the shapes broadcast.
    """
    low, high = np.broadcast_arrays(np.asarray(low, np.float64), np.asarray(high, np.float64))
    # An interval on the right has the probability of its mirror image.
    mirrored = low > 0
    low, high = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    # Now the interval is on the left, or it contains 0 and its complement is two tails.
    inside = high > 0
    left, right = _log_tail(np.where(low == -np.inf, 0.0, -low)), _log_tail(np.abs(np.where(np.isinf(high), 0.0, high)))
    left, right = np.where(low == -np.inf, -np.inf, left), np.where(high == np.inf, -np.inf, right)
    with np.errstate(invalid="ignore", divide="ignore"):
        containing_zero = np.log1p(-np.exp(left) - np.exp(right))
        one_sided = right + np.log1p(-np.exp(left - right))
    return np.where(inside, containing_zero, one_sided)


def discretised_gaussian(u8: NDArray[np.uint8], mean: ArrayLike, std: ArrayLike, value_range: Sequence[float]) -> Array:
    """Return the log-probability of each stored pixel, in nats (Ho et al., eq. 13).

    Args:
        u8: stored pixels, of any shape.
        mean: in the value range; broadcasts over the pixels, as `std` does.
        std: standard deviation, positive.
        value_range: the values of the pixels 0 and 255.

    Returns:
        With the shape of `u8`.
    """
    low, high = check_value_range(value_range)
    x, half = from_uint8(u8, np.float64, value_range), (high - low) / 510.0
    below = np.where(u8 == 0, -np.inf, (x - half - mean) / std)
    above = np.where(u8 == 255, np.inf, (x + half - mean) / std)
    return log_normal_interval(below, above)


def dequantize(u8: NDArray[np.uint8], index: ArrayLike, seed: int, value_range: Sequence[float], row: int = 0) -> Array:
    """Draw values uniformly from the bins of stored pixels, with the shape of `u8`, (B, H, W, C).

    Args:
        u8: stored images.
        index: of each image, its counter in the stream "likelihood/dequantisation", with shape (B,).
        seed: of the stream.
        value_range: the values of the pixels 0 and 255.
        row: number of the draw; other numbers give independent draws.
    """
    low, high = check_value_range(value_range)
    offset = Stream(seed, "likelihood/dequantisation").uniform(index, math.prod(u8.shape[1:]), row) - 0.5
    return from_uint8(u8, np.float64, value_range) + offset.reshape(u8.shape) * ((high - low) / 255.0)


def bits_per_dimension(log_density: ArrayLike, dimensions: int, value_range: Sequence[float]) -> Array:
    """Return bits per dimension of stored images, from the log of a density in the value range, in nats.

    Args:
        log_density: log p of a whole image.
        dimensions: of an image, H W C.
        value_range: the values of the pixels 0 and 255.

    Example:
        The uniform density over the bins of [-1, 1], 255/512 in each dimension, has 8 bits per dimension.

        >>> round(float(bits_per_dimension(3 * math.log(255 / 512), 3, (-1.0, 1.0))), 9)
        8.0
    """
    low, high = check_value_range(value_range)
    return (math.log(255.0 / (high - low)) - np.asarray(log_density, np.float64) / dimensions) / math.log(2.0)

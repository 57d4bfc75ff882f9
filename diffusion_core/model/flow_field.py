r"""The probability-flow velocity of a model on a grid of points in the plane.

With s = sigma/alpha and y = x_t / sqrt(alpha^2 + sigma^2), which is x_0 without noise and of unit variance as pure
noise, the probability-flow ODE  d(x_t/alpha)/ds = (x_t/alpha - D)/s  becomes, towards less noise,

    v(y) = -dy / dlog s = a (D - a y),        a = 1 / sqrt(1 + s^2)

where D is the network's estimate of x_0. So v is measured in the same coordinates for every process and every noise
level. Values are in [-1, 1]; other value ranges are converted.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import Network
from diffusion_core.model.diffusion_model import DiffusionModel

__all__ = ["flow_velocity", "to_plane"]


def to_plane(x: ArrayLike, alpha: float, sigma: float, value_range: tuple[float, float]) -> NDArray[np.float64]:
    """Return y of states x_t with shape (N, 1, 1, 3) at the noise level (alpha, sigma): x and y, with shape (N, 2)."""
    middle, half = (value_range[0] + value_range[1]) / 2, (value_range[1] - value_range[0]) / 2
    y = (np.asarray(x, np.float64) - alpha * middle) / (half * math.hypot(alpha, sigma / half))
    return y[:, 0, 0, :2]


def flow_velocity(
    model: DiffusionModel, network: Network, points: NDArray[np.float64], t: float, label: int
) -> NDArray[np.float64]:
    """Return v at points y with shape (N, 2), with shape (N, 2).

    Args:
        model: of images of one pixel.
        network: of that model.
        points: in the coordinates y; the third channel is 0, its value in the data.
        t: the noise level, a timestep of the schedule.
        label: the class; any label of a network without classes.
    """
    columns = model.process.columns(np.array([t]))
    (alpha,), (sigma,) = model.process.schedule(np.array([t]))
    low, high = model.value_range
    middle, half = (low + high) / 2, (high - low) / 2
    x = np.zeros((len(points), 1, 1, 3))
    x[:, 0, 0, :2] = points
    x = alpha * middle + half * math.hypot(alpha, sigma / half) * x
    c_noise, labels = np.full(len(x), columns.c_noise[0]), np.full(len(x), label, np.int32)
    output = network.forward(columns.c_in[0] * x, c_noise, labels)[..., : x.shape[-1]]
    estimate = columns.c_skip[0] * x + columns.c_out[0] * np.asarray(output, np.float64)
    a = alpha / math.hypot(alpha, sigma / half)
    return a * ((estimate[:, 0, 0, :2] - middle) / half - a * points)

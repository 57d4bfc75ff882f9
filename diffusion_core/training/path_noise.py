r"""Noise around the path between an image and its noise, as conditional flow matching and Schrödinger bridges have it.

    x_t = alpha x_0 + sigma eps + s(t) xi,        target = target_x0 x_0 + target_eps eps + b(t) xi,      xi ~ N(0, 1)

    name               s(t)                     b(t)
    none               0                        0
    constant           sigma                    0
    brownian_bridge    sigma sqrt(t (1 - t))    the derivative s'(t) in the velocity, = s (1 - 2t)/(2 t (1 - t) + 1e-8)

constant keeps the target of every prediction; brownian_bridge needs a prediction of the velocity, whose sign b has.
With the coupling `sinkhorn` of reg = 2 sigma^2, the bridge is the matcher of Schrödinger bridges; with
`optimal_transport`, constant is that of optimal transport. The batch holds the image and the noise that solve both
equations, as for input perturbation: with ``d = alpha target_eps - sigma target_x0`` they are

    x_0 + (s target_eps - b sigma) xi/d       and       eps + (b alpha - s target_x0) xi/d

References:
    Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (Tong et al., 2023), with
    its code (torchcfm, conditional_flow_matching.py), https://arxiv.org/abs/2302.00482
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.diffusion.process import Process

__all__ = ["PATH_NOISES", "PathNoise", "add_to_path", "brownian_bridge", "constant", "make_path_noise", "none"]

Array = NDArray[np.float64]
# Returns (s, b) at the times t, each with the shape of t.
PathNoise = Callable[[Array], tuple[Array, Array]]

_SIGNS = {"velocity": 1.0, "velocity_to_data": -1.0}


def none(process: Process) -> None:
    """Return None: the path has no noise."""


def constant(process: Process, sigma: float) -> PathNoise:
    """Return noise of the same standard deviation at every t (Tong et al., the matchers of flows).

    Args:
        process: schedule and prediction.
        sigma: the standard deviation.

    Raises:
        DuetError: for a sigma that is not positive.
    """
    size = _positive(sigma)
    return lambda t: (np.full(np.shape(t), size), np.zeros(np.shape(t)))


def brownian_bridge(process: Process, sigma: float) -> PathNoise:
    """Return the noise of a Brownian bridge (Tong et al., the matcher of Schrödinger bridges).

    Args:
        process: schedule and prediction, a velocity on a time from 0 to 1.
        sigma: its standard deviation, times sqrt(t (1 - t)).

    Raises:
        DuetError: for a sigma that is not positive, or another prediction.
    """
    size = _positive(sigma)
    if process.prediction not in _SIGNS or process.schedule.span[1] > 1:
        raise DuetError(
            f"process.path_noise: brownian_bridge was given with prediction {process.prediction} on "
            f"{process.schedule.name}; it needs velocity or velocity_to_data on a time from 0 to 1, such as "
            "flow_continuous"
        )
    sign = _SIGNS[process.prediction]

    def at(t: Array) -> tuple[Array, Array]:
        spread = size * np.sqrt(np.maximum(t * (1.0 - t), 0.0))
        return spread, sign * (1.0 - 2.0 * t) / (2.0 * t * (1.0 - t) + 1e-8) * spread

    return at


def _positive(sigma: float) -> float:
    if not 0 < sigma < math.inf:
        raise DuetError(f"process.path_noise.sigma: {sigma} was given; it must be a positive number")
    return sigma


PATH_NOISES: Mapping[str, Callable[..., PathNoise | None]] = {
    "none": none,
    "constant": constant,
    "brownian_bridge": brownian_bridge,
}


def make_path_noise(process: Process, name: str = "none", **options: object) -> PathNoise | None:
    """Return the noise around the path by name; None for none.

    Args:
        process: schedule and prediction.
        name: one of `PATH_NOISES`.
        options: of that noise.

    Raises:
        DuetError: for an unknown name or option, or a value that is out of range.
    """
    return build("process.path_noise", PATH_NOISES, name, options, process)


def add_to_path(
    process: Process, t: ArrayLike, images: NDArray, noise: NDArray, xi: NDArray, s: Array, b: Array | float = 0.0
) -> tuple[Array, Array]:
    """Return the (images, noise) in float64 whose x_t has s xi more, and whose target b xi more.

    Args:
        process: schedule and prediction.
        t: the timesteps, with shape (B,).
        images: x_0, with shape (B, ...).
        noise: eps, with the same shape.
        xi: what is added, with the same shape.
        s: with shape (B,).
        b: with shape (B,), or 0.
    """
    (alpha, sigma), columns = process.schedule(t), process.columns(t)
    determinant = alpha * columns.target_eps - sigma * columns.target_x0
    to_images = (s * columns.target_eps - b * sigma) / determinant
    to_noise = (b * alpha - s * columns.target_x0) / determinant
    shape = (-1, *[1] * (images.ndim - 1))
    return images + to_images.reshape(shape) * xi, noise + to_noise.reshape(shape) * xi

r"""Posterior sampling: images x_0 that agree with a measurement y = A x_0 + noise e,  e ~ N(0, 1).

Sampling follows the score of x_t given y. By Bayes' rule it is that of the network plus grad log p(y | x_t), so that

    D' = D + sigma^2/alpha grad log p(y | x_t),         x_t = alpha x_0 + sigma eps

takes the place of the estimate D = E[x_0 | x_t]. The methods differ in what they take for p(y | x_t). With the Jacobian
J = dD/dx_t and the residual e = y - A D:

    mmps     N(A D, noise^2 + A C A^T),     C = sigma^2/alpha J, the covariance of x_0 given x_t (Tweedie's formula)
    pigdm    N(A D, noise^2 + r^2 A A^T),   r^2 = sigma^2/(alpha^2 + sigma^2), the covariance if x_0 ~ N(0, 1)

             D' = D + scale sigma^2/alpha J^T A^T (noise^2 + A C A^T)^-1 e

    dps      x  <- x - scale grad |e|       after each row, with the gradient by x_t

where J counts as constant. `mmps` is exact for normal data, since C is, up to the conjugate gradients that solve its
system: each iteration takes one vector-Jacobian product, J^T being equal to J for an exact D. A trained network's J is
not symmetric, and many iterations follow its errors where the noise is small, so the default is one. `pigdm` is exact
for white normal data of variance 1. The code of its authors moves x instead and weights by the noise level,

    x  <- x + scale alpha_i alpha_(i+1) r^2 J^T A^T (noise^2 + r^2 A A^T)^-1 e       (adaptive)

for a row from alpha_i to alpha_(i+1). `dps` has no variance: how closely it follows y is set by the scale.

A method that changes D uses the unbounded estimate, which is bounded afterwards; one that moves x uses the bounded one.

References:
    Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023), algorithm 1 and its code,
    https://arxiv.org/abs/2209.14687
    Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023), eqs. 7 and 8 and algorithm 1,
    https://openreview.net/forum?id=9_gsMA8MRKQ
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024), section 4.2 (moment
    matching posterior sampling), https://arxiv.org/abs/2405.13712
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.sampling.linear_operators import LinearOperator
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["POSTERIOR_METHODS", "Measurement", "conjugate_gradients", "observe"]

Array = NDArray[np.float64]

# J^T of a cotangent, each with the shape of the images.
PullBack = Callable[[Array], Array]

# Conjugate gradients stop at this relative residual. It is so small that stopping one iteration earlier, because of
# another rounding, changes nothing that a comparison of frameworks could see.
_CONVERGED = 1e-13
# Iterations of a system without network evaluations.
_MAX_ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measurement of each image, and the method that makes samples agree with it.

    Args:
        operator: A.
        y: the measurements, with shape (N, ...), in the value range of the data.
        noise: standard deviation of the noise in y, at least 0, in the same units.
        shape: of one image, (h, w, c); None where the images are not known yet, see `of_images`.
        method: one of `POSTERIOR_METHODS`.
        scale: factor of the guidance; None is 1, for `dps` 0.3.
        iterations: conjugate gradients of `mmps`, each with one vector-Jacobian product; None is 1.
        adaptive: whether `pigdm` moves x as the code of its authors does.

    Raises:
        DuetError: for numbers that are out of range, options of another method, measurements of another shape, or an
            operator that is not linear or has another adjoint.

    Example:
        >>> from diffusion_core.sampling.linear_operators import downsample
        >>> Measurement(downsample((4, 4, 1), 2), np.zeros((3, 2, 2, 1)), 0.1, (4, 4, 1))
        Measurement(downsample, 3 of shape (2, 2, 1), noise=0.1, method='mmps')
    """

    operator: LinearOperator
    y: Array
    noise: float = 0.0
    shape: tuple[int, ...] | None = None
    method: str = "mmps"
    scale: float | None = None
    iterations: int | None = None
    adaptive: bool = False

    def __post_init__(self) -> None:
        check_choice("mode.method", self.method, POSTERIOR_METHODS)
        if not isinstance(self.operator, LinearOperator):
            raise DuetError(
                f"mode.operator: {self.operator!r} was given; it must be a duet.LinearOperator(forward, adjoint)"
            )
        if not 0 <= self.noise < np.inf:
            raise DuetError(f"mode.noise: {self.noise} was given; it must be a standard deviation, at least 0")
        if self.scale is not None and not 0 < self.scale < np.inf:
            raise DuetError(f"mode.scale: {self.scale} was given; it must be a positive number")
        if self.iterations is not None and (self.method != "mmps" or self.iterations < 1):
            raise DuetError(
                f"mode.iterations: {self.iterations} was given with method={self.method}; it is a number of conjugate "
                f"gradients of mmps, at least 1"
            )
        if self.adaptive and self.method != "pigdm":
            raise DuetError(
                f"mode.adaptive: true was given with method={self.method}; it is an option of pigdm, so use false"
            )
        try:
            y = np.asarray(self.y, np.float64)
        except (TypeError, ValueError) as error:
            raise DuetError(f"mode.measurement: it must be an array of numbers ({error})") from error
        if str(getattr(self.y, "dtype", "")).endswith("uint8"):
            raise DuetError(
                "mode.measurement: uint8 was given; it must be floats in the value range of the data, for example "
                "value / 127.5 - 1 for (-1, 1)"
            )
        if not np.all(np.isfinite(y)):
            raise DuetError("mode.measurement: it has numbers that are not finite")
        object.__setattr__(self, "y", y if self.shape is None else self._check_operator(y, self.shape))

    def _check_operator(self, y: Array, shape: tuple[int, ...]) -> Array:
        """Return y with zeros for what no image can change, such as the hidden part under a mask."""
        reached = self.operator.check(shape)
        if y.ndim == 0 or y.shape[1:] != reached.shape:
            raise DuetError(
                f"mode.measurement: measurements of shape {y.shape[1:]} were given, but the operator makes "
                f"{reached.shape} of an image {shape}"
            )
        return np.where(reached, y, 0.0)

    def __repr__(self) -> str:
        measured = f"{len(self.y)} of shape {self.y.shape[1:]}"
        return f"Measurement({self.operator.name}, {measured}, noise={self.noise:g}, method={self.method!r})"

    def of_images(self, shape: tuple[int, ...], count: int) -> Measurement:
        """Return the measurements of this number of images of a shape: one for each, or one for all.

        Raises:
            DuetError: if the operator does not take such images, or the measurements are of another number of them.
        """
        measured = self.operator.measure(np.zeros((1, *shape))).shape[1:]
        y = self.y[None] if self.y.shape == measured else self.y
        if y.shape[:1] == (1,):
            y = np.repeat(y, count, axis=0)
        if y.ndim and len(y) != count:
            raise DuetError(f"mode.measurement: {len(y)} were given for {count} images; give one for each, or one")
        return replace(self, y=y, shape=tuple(shape))

    def rows(self, rows: slice) -> Measurement:
        """Return the measurements of some of the images."""
        part = object.__new__(Measurement)  # without checking the operator again
        vars(part).update(vars(self) | {"y": self.y[rows]})
        return part

    @property
    def moves_state(self) -> bool:
        """Whether the method moves x after a row; otherwise it changes the estimate of x_0."""
        return self.method == "dps" or self.adaptive

    @property
    def products(self) -> int:
        """The largest number of vector-Jacobian products per row."""
        return 1 + ((self.iterations or 1) if self.method == "mmps" else 0)

    def check(self, plan: SamplerPlan) -> None:
        """Check that the method is defined for a plan.

        Raises:
            DuetError: for a plan that leads up to noise or jumps between two times, or a method that moves x with a
                state of several images.
        """
        if plan.sigma[-1] * plan.alpha[0] >= plan.sigma[0] * plan.alpha[-1] and plan.rows > 1:
            raise DuetError(f"posterior: {plan.name} leads up to noise; use a sampler that leads to images")
        if plan.second_time is not None:
            raise DuetError(
                f"posterior: the network of {plan.name} leads from one time to another and estimates no mean of x_0; "
                f"use the plan of a network with one time"
            )
        if self.moves_state and plan.registers > 1:
            option = "mode.adaptive=false" if self.adaptive else "mode.method=mmps"
            raise DuetError(
                f"posterior: {self.method} moves x after each row, but {plan.name} keeps {plan.registers} images; use "
                f"a sampler of one, such as ddpm, ddim or dpm_solver, or {option}"
            )

    def shift(self, plan: SamplerPlan, row: int, estimate: NDArray, pull_back: PullBack) -> Array:
        """Return what is added to the estimate of a row, or to x after it, with the shape of the images.

        Args:
            plan: the plan that runs.
            row: its row i.
            estimate: D of the row: bounded if the method moves x, otherwise not.
            pull_back: J^T of a cotangent, for the same D.
        """
        alpha, sigma = float(plan.alpha[row]), float(plan.sigma[row])
        if alpha == 0:  # x has no signal: nothing is known of p(y | x_t) from here
            return np.zeros(estimate.shape)
        residual = self.y - self.operator.measure(np.asarray(estimate, np.float64))
        levels = alpha, float(plan.alpha[row + 1]), sigma
        return POSTERIOR_METHODS[self.method](self, levels, residual, pull_back)

    def follow(self, plan: SamplerPlan, rows: range, k: int) -> tuple[bool, Callable[[NDArray, PullBack], Array]]:
        """Return (`moves_state`, the shift as a function of estimate and pull_back) of row k of a segment."""
        return self.moves_state, partial(self.shift, plan, rows[k])

    def _adjoint(self, measured: Array) -> Array:
        return self.operator.pull_back(measured, self.shape)


def _dps(m: Measurement, levels: tuple[float, float, float], residual: Array, pull_back: PullBack) -> Array:
    length = _per_image(np.sqrt(_dot(residual, residual)), residual)
    direction = residual / np.where(length > 0, length, 1.0)
    return (0.3 if m.scale is None else m.scale) * pull_back(m._adjoint(direction))


def _pigdm(m: Measurement, levels: tuple[float, float, float], residual: Array, pull_back: PullBack) -> Array:
    alpha, after, sigma = levels
    variance = sigma**2 / (alpha**2 + sigma**2)

    def product(v: Array) -> Array:
        return m.noise**2 * v + variance * m.operator.measure(m._adjoint(v))

    solved = conjugate_gradients(product, residual, _MAX_ITERATIONS)
    weight = alpha * after * variance if m.adaptive else sigma**2 / alpha
    return (m.scale or 1.0) * weight * pull_back(m._adjoint(solved))


def _mmps(m: Measurement, levels: tuple[float, float, float], residual: Array, pull_back: PullBack) -> Array:
    alpha, _, sigma = levels
    weight = sigma**2 / alpha

    def product(v: Array) -> Array:
        return m.noise**2 * v + weight * m.operator.measure(np.asarray(pull_back(m._adjoint(v)), np.float64))

    solved = conjugate_gradients(product, residual, m.iterations or 1)
    return (m.scale or 1.0) * weight * pull_back(m._adjoint(solved))


# From (measurement, (alpha and sigma of the row, alpha after it), y - A D, pull_back) to the shift.
POSTERIOR_METHODS: Mapping[str, Callable[..., Array]] = {"mmps": _mmps, "pigdm": _pigdm, "dps": _dps}


def _dot(a: Array, b: Array) -> Array:
    """Return the scalar product of each image, with shape (B,)."""
    return np.sum((a * b).reshape(len(a), -1), axis=1)


def _per_image(numbers: Array, like: Array) -> Array:
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def conjugate_gradients(product: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """Return x with M x = b for each image of a batch, where M is symmetric and not negative.

    An image ends when it has converged, or when M shows a direction without curvature, as the Jacobian of a trained
    network may; its x is then that of the iteration before.

    Args:
        product: M times a batch.
        b: with shape (B, ...).
        iterations: at most so many.

    Example:
        >>> conjugate_gradients(lambda v: v * [1.0, 2.0], np.array([[1.0, 4.0]]), 5)
        array([[1., 2.]])
    """
    x, residual, direction = np.zeros(b.shape), b, b
    square = first = _dot(b, b)
    for _ in range(iterations):
        image = product(direction)
        curvature = _dot(direction, image)
        active = (square > _CONVERGED**2 * first) & (curvature > 0)
        if not np.any(active):
            break
        step = _per_image(np.where(active, square, 0.0) / np.where(active, curvature, 1.0), b)
        x, residual = x + step * direction, residual - step * image
        rest = _dot(residual, residual)
        ratio = np.where(active, rest, 0.0) / np.where(square > 0, square, 1.0)
        direction, square = residual + _per_image(ratio, b) * direction, np.where(active, rest, 0.0)
    return x


def observe(operator: LinearOperator, images: NDArray, noise: float, seed: int, index: NDArray) -> Array:
    """Return y = A x_0 + noise e of images, with e from Stream(seed, "edit/measurement") at these indices."""
    measured = operator.measure(np.asarray(images, np.float64))
    return measured + noise * Stream(seed, "edit/measurement").normal(index, measured.shape[1:])

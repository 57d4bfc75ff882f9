r"""The exact likelihood of the deterministic flow, by the change of variables along it.

Every process has a deterministic flow with the marginals of its diffusion. In the state z = x/sqrt(alpha^2 + sigma^2)
it is the same equation for every schedule and prediction, with the angle phi = atan(sigma/alpha), as any schedule
passes ``z = cos(phi) x_0 + sin(phi) eps`` at some time. The variable u = log tan(phi/2) = -arsinh(alpha/sigma) changes
like half the log-SNR where there is signal, and ends at 0 where there is none:

    dz/du = cos(phi) z - D,         d log p(z)/du = -div (cos(phi) z - D),         cos(phi) = -tanh(u)

The model is the distribution of samples that start from noise; its image is y = x/alpha at the least noisy level. So

    log p(y) = log N(z_T; 0, scale^2)  +  int_{u_0}^{u_T} div (cos(phi) z - D) du  +  d log cos(phi_0)

since z = cos(phi_0) y, with d = H W C dimensions. For data N(m, s^2) and the exact denoiser this is
N(m, s^2 + tan^2 phi_0) if the noisiest level has no signal. The divergence of D is ``sum_k e_k^T (dD/dz) e_k`` over all
unit vectors (exact, with one vector-Jacobian product for each of the d), or its mean over random vectors of signs,
which is unbiased (Hutchinson). These probes are drawn from "likelihood/probe" by (image, number of the probe) and stay
the same along the path, which a Runge-Kutta method integrates in equal steps of u.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), sections 4.3 and
    appendix D, https://arxiv.org/abs/2011.13456
    FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl et al., 2019),
    section 3.1, https://arxiv.org/abs/1810.01367
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import VJP
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Columns, Process
from diffusion_core.likelihood.bound import prior_scale

__all__ = ["DIVERGENCES", "ODE_METHODS", "FlowDensity", "Tableau", "flow_density"]

Array = NDArray[np.float64]

DIVERGENCES = ("hutchinson", "exact")
# The exact divergence takes as many vector-Jacobian products at every stage of every step.
_MAX_EXACT = 4096


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Args:
        order: of convergence.
        nodes: the position of each stage in a step, 0 to 1.
        before: for each stage, the weights of the earlier stages in its state.
        weights: of all stages in the step.
    """

    order: int
    nodes: tuple[float, ...]
    before: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        rows = [math.isclose(sum(row), node) for row, node in zip(self.before, self.nodes, strict=True)]
        if not (all(rows) and math.isclose(sum(self.weights), 1.0) and len(self.weights) == len(self.nodes)):
            raise DuetError("tableau: each row must add up to its node, and the weights to 1")


ODE_METHODS: Mapping[str, Tableau] = {
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(
        4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FlowDensity:
    """The log-density of N images, in nats, as the sum of three terms, each with shape (N,).

    Args:
        prior: log N(z_T; 0, scale^2).
        volume: the integral of the divergence.
        scale: d log cos(phi_0), for the change from the image to the state at the least noisy level.
    """

    prior: Array
    volume: Array
    scale: Array

    def __repr__(self) -> str:
        return f"FlowDensity(images={len(self.prior)})"

    @property
    def log_density(self) -> Array:
        """log p(y) of each image, with shape (N,)."""
        return self.prior + self.volume + self.scale


def flow_density(
    vjp: VJP,
    process: Process,
    y: NDArray,
    label: NDArray[np.int32],
    index: ArrayLike,
    seed: int,
    *,
    steps: int = 50,
    method: str = "rk4",
    divergence: str = "hutchinson",
    probes: int = 1,
    outputs: int | None = None,
    batch: int = 128,
    progress: Callable[[int], None] | None = None,
) -> FlowDensity:
    """Return the density of images in the value range; all but the network is computed in float64.

    Args:
        vjp: see `backend.Network.vjp`.
        process: the process that the network was trained for.
        y: images, with shape (N, H, W, C); for stored images see `pixels.dequantize`.
        label: the label of each, with shape (N,).
        index: the counter of each in the stream of probes, with shape (N,).
        seed: of that stream.
        steps: of the path; each evaluates the network once per stage of the method and probe.
        method: a name of `ODE_METHODS`.
        divergence: one of `DIVERGENCES`.
        probes: the number of vectors of signs over which the divergence is averaged; unused by the exact one.
        outputs: channels of the network's output, where the first C are used; None for C.
        batch: the number of images to process at once.
        progress: called after each batch with the number of images done.

    Raises:
        DuetError: for an invalid option.
    """
    check_choice("likelihood.method", method, ODE_METHODS)
    check_choice("likelihood.divergence", divergence, DIVERGENCES)
    if steps < 1:
        raise DuetError(f"likelihood.steps: {steps} was given; it must be at least 1")
    if probes < 1:
        raise DuetError(f"likelihood.probes: {probes} was given; it must be at least 1")
    shape, dimensions = y.shape[1:], math.prod(y.shape[1:])
    if divergence == "exact" and dimensions > _MAX_EXACT:
        raise DuetError(
            f"likelihood.divergence: exact was given for images of {dimensions} dimensions, each of which takes a "
            f"vector-Jacobian product at every stage; the limit is {_MAX_EXACT}, so use hutchinson"
        )
    index, schedule = np.asarray(index), process.schedule
    path = _Path.from_process(process, steps, ODE_METHODS[method])
    alpha, sigma = schedule(np.array(schedule.span))
    first, variance = (
        alpha[0] / np.hypot(alpha[0], sigma[0]),
        (prior_scale(schedule) / np.hypot(alpha[1], sigma[1])) ** 2,
    )
    parts: list[tuple[Array, Array]] = []
    for start in range(0, len(y), batch):
        rows = slice(start, start + batch)

        def vectors(i: NDArray = index[rows]) -> Iterator[Array]:
            return _unit_vectors(len(i), shape) if divergence == "exact" else _sign_vectors(seed, i, shape, probes)

        z, volume = path.integrate(vjp, first * y[rows], label[rows], vectors, outputs or shape[2])
        squares = np.sum(z**2, axis=(1, 2, 3)) / variance
        parts.append((-0.5 * (squares + dimensions * math.log(2 * math.pi * variance)), volume))
        if progress is not None:
            progress(min(start + batch, len(y)))
    prior, volume = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else (np.zeros(0),) * 2
    return FlowDensity(prior, volume, np.full(len(y), dimensions * math.log(first)))


def _unit_vectors(count: int, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yield every unit vector, the same for each of `count` images; their squared norms add up to d."""
    for place in range(math.prod(shape)):
        unit = np.zeros((count, math.prod(shape)))
        unit[:, place] = 1.0
        yield unit.reshape(count, *shape)


def _sign_vectors(seed: int, index: NDArray, shape: tuple[int, ...], probes: int) -> Iterator[Array]:
    """Yield vectors of signs, scaled so that their squared norms add up to d."""
    stream = Stream(seed, "likelihood/probe")
    for row in range(probes):
        bits = stream.bits(index, math.prod(shape), row) >> np.uint32(31)
        yield ((1.0 - 2.0 * bits) / math.sqrt(probes)).reshape(len(index), *shape)


@dataclass(frozen=True, eq=False)
class _Path:
    """The coefficients of all stages of all steps, with shape (steps, stages); `length` is that of a step in u."""

    tableau: Tableau
    length: float
    cos: Array
    norm: Array
    columns: Columns

    @staticmethod
    def from_process(process: Process, steps: int, tableau: Tableau) -> _Path:
        """Return the path through all noise levels in equal steps of u."""
        alpha, sigma = process.schedule(np.array(process.schedule.span))
        first, last = -np.arcsinh(alpha / sigma)
        length = (last - first) / steps
        u = first + length * (np.arange(steps)[:, None] + np.array(tableau.nodes))
        with np.errstate(divide="ignore"):  # without signal the ratio is infinite
            t = process.schedule.t_at_log_ratio(-np.log(np.sinh(np.maximum(-u, -last))))
        alpha, sigma = process.schedule(t)
        return _Path(tableau, float(length), -np.tanh(u), np.hypot(alpha, sigma), process.columns(t))

    def velocity(
        self, vjp: VJP, i: int, s: int, z: Array, label: NDArray, vectors: Iterator[Array], outputs: int
    ) -> tuple[Array, Array]:
        """Return v = dz/du and div v at stage s of step i."""
        columns, norm = self.columns, self.norm[i, s]
        c_skip, c_out = columns.c_skip[i, s] * norm, columns.c_out[i, s]
        c_in, c_noise = columns.c_in[i, s] * norm, np.full(len(z), columns.c_noise[i, s])
        channels, trace = z.shape[3], np.zeros(len(z))
        for e in vectors:
            cotangent = np.pad(e, ((0, 0), (0, 0), (0, 0), (0, outputs - channels)))
            output, gradient = vjp(c_in * z, c_noise, label, cotangent)
            trace += np.sum(e * gradient, axis=(1, 2, 3), dtype=np.float64)
        estimate = c_skip * z + c_out * np.asarray(output[..., :channels], np.float64)
        divergence = (self.cos[i, s] - c_skip) * z[0].size - c_out * c_in * trace
        return self.cos[i, s] * z - estimate, divergence

    def integrate(
        self, vjp: VJP, z: Array, label: NDArray, vectors: Callable[[], Iterator[Array]], outputs: int
    ) -> tuple[Array, Array]:
        """Return z at the end of the path, from z at its start, and the integral of the divergence."""
        volume = np.zeros(len(z))
        for i in range(len(self.cos)):
            velocities: list[Array] = []
            for s, before in enumerate(self.tableau.before):
                state = z + self._increment(before, velocities)
                v, divergence = self.velocity(vjp, i, s, state, label, vectors(), outputs)
                velocities.append(v)
                volume = volume + self.length * self.tableau.weights[s] * divergence
            z = z + self._increment(self.tableau.weights, velocities)
        return z, volume

    def _increment(self, weights: tuple[float, ...], velocities: list[Array]) -> Array | float:
        return self.length * sum(w * v for w, v in zip(weights, velocities, strict=True))

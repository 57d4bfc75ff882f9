r"""The exact likelihood of the deterministic flow, by the change of variables along it.

Every process has a deterministic flow with the marginals of its diffusion. In the state z = x/sqrt(alpha^2 + sigma^2)
it is the same equation for each schedule and prediction, with the angle phi = atan(sigma/alpha), as any schedule passes
``z = cos(phi) x_0 + sin(phi) eps`` at some time. The clock u = log tan(phi/2) = -arsinh(alpha/sigma) runs like half the
log-SNR where there is signal, and ends at 0 where there is none:

    dz/du = cos(phi) z - D,         d log p(z)/du = -div (cos(phi) z - D),         cos(phi) = -tanh(u)

The model is what samples of noise become: its picture is y = x/alpha at the least noisy level, so that

    log p(y) = log N(z_T; 0, scale^2)  +  int_{u_0}^{u_T} div (cos(phi) z - D) du  +  d log cos(phi_0)

from z = cos(phi_0) y, with d = H W C dimensions. For data N(m, s^2) and the best estimate this is
N(m, s^2 + tan^2 phi_0) where the noisiest level has no signal. The divergence of D is ``sum_k e_k^T (dD/dz) e_k`` over
all unit vectors (exact, one pullback of the network for each of the d), or its mean over random vectors of signs, which
is unbiased (Hutchinson); they are drawn from "likelihood/probe" by (image, number of the probe) and stay the same along
the path, which is walked in equal steps of u by a Runge-Kutta method.

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
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Columns, Process
from diffusion_core.likelihood.bound import prior_scale

__all__ = ["DIVERGENCES", "ODE_METHODS", "FlowDensity", "Tableau", "flow_density"]

Array = NDArray[np.float64]

DIVERGENCES = ("hutchinson", "exact")
# More dimensions than this have that many pullbacks at every stage of every step.
_MOST_EXACT = 4096


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Args:
        order: of convergence.
        nodes: where each stage lies in a step, 0 to 1.
        before: the weights of the earlier stages in each stage's state.
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
    """The log of the density of N pictures, in nats, as the sum of three terms, each with shape (N,).

    Args:
        prior: log N(z_T; 0, scale^2).
        volume: the integral of the divergence.
        scale: d log cos(phi_0), from the picture to the state at the least noisy level.
    """

    prior: Array
    volume: Array
    scale: Array

    @property
    def log_density(self) -> Array:
        """log p(y) of each picture, with shape (N,)."""
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
    """The density of pictures in the range of the values; all but the network is computed here in float64.

    Args:
        vjp: see `backend.Network.vjp`.
        process: what the network was trained for.
        y: pictures, with shape (N, H, W, C); of stored ones see `pixels.dequantize`.
        label: the network's label of each, with shape (N,).
        index: the counter of each in the stream of probes, with shape (N,).
        seed: of that stream.
        steps: of the path; each evaluates the network once per stage of the method and probe.
        method: a name of `ODE_METHODS`.
        divergence: one of `DIVERGENCES`.
        probes: how many vectors of signs the divergence is the mean over; not for the exact one.
        outputs: channels of the network's output; None is those of the images. Only the first C count.
        batch: how many pictures are walked at once.
        progress: called with the number of pictures done after each batch.

    Raises:
        DuetError: for an option that does not fit.
    """
    if method not in ODE_METHODS:
        raise one_of("likelihood.method", method, ODE_METHODS)
    if divergence not in DIVERGENCES:
        raise one_of("likelihood.divergence", divergence, DIVERGENCES)
    if steps < 1:
        raise DuetError(f"likelihood.steps: {steps} was given; it must be at least 1")
    if probes < 1:
        raise DuetError(f"likelihood.probes: {probes} was given; it must be at least 1")
    shape, dimensions = y.shape[1:], math.prod(y.shape[1:])
    if divergence == "exact" and dimensions > _MOST_EXACT:
        raise DuetError(
            f"likelihood.divergence: exact was given for pictures of {dimensions} numbers, each a pullback at every "
            f"stage; up to {_MOST_EXACT} that is done, so use hutchinson"
        )
    index, schedule = np.asarray(index), process.schedule
    path = _Path.through(process, steps, ODE_METHODS[method])
    alpha, sigma = schedule(np.array(schedule.span))
    first, variance = (
        alpha[0] / np.hypot(alpha[0], sigma[0]),
        (prior_scale(schedule) / np.hypot(alpha[1], sigma[1])) ** 2,
    )
    parts: list[tuple[Array, Array]] = []
    for start in range(0, len(y), batch):
        some = slice(start, start + batch)

        def vectors(i: NDArray = index[some]) -> Iterator[Array]:
            return _units(len(i), shape) if divergence == "exact" else _signs(seed, i, shape, probes)

        z, volume = path.walk(vjp, first * y[some], label[some], vectors, outputs or shape[2])
        squares = np.sum(z**2, axis=(1, 2, 3)) / variance
        parts.append((-0.5 * (squares + dimensions * math.log(2 * math.pi * variance)), volume))
        if progress is not None:
            progress(min(start + batch, len(y)))
    prior, volume = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else (np.zeros(0),) * 2
    return FlowDensity(prior, volume, np.full(len(y), dimensions * math.log(first)))


def _units(count: int, shape: tuple[int, ...]) -> Iterator[Array]:
    """Every unit vector, the same for each of `count` pictures: their squares add up to d."""
    for place in range(math.prod(shape)):
        unit = np.zeros((count, math.prod(shape)))
        unit[:, place] = 1.0
        yield unit.reshape(count, *shape)


def _signs(seed: int, index: NDArray, shape: tuple[int, ...], probes: int) -> Iterator[Array]:
    """Vectors of signs, scaled so that the squares of all of them add up to d."""
    stream = Stream(seed, "likelihood/probe")
    for row in range(probes):
        bits = stream.bits(index, math.prod(shape), row) >> np.uint32(31)
        yield ((1.0 - 2.0 * bits) / math.sqrt(probes)).reshape(len(index), *shape)


@dataclass(frozen=True, eq=False)
class _Path:
    """The numbers of the stages of all steps, with shape (steps, stages); `length` is that of a step in u."""

    tableau: Tableau
    length: float
    cos: Array
    norm: Array
    columns: Columns

    @staticmethod
    def through(process: Process, steps: int, tableau: Tableau) -> _Path:
        """The path through all levels in equal steps of u."""
        alpha, sigma = process.schedule(np.array(process.schedule.span))
        first, last = -np.arcsinh(alpha / sigma)
        length = (last - first) / steps
        u = first + length * (np.arange(steps)[:, None] + np.array(tableau.nodes))
        with np.errstate(divide="ignore"):  # no signal is an infinite ratio
            t = process.schedule.t_at_log_ratio(-np.log(np.sinh(np.maximum(-u, -last))))
        alpha, sigma = process.schedule(t)
        return _Path(tableau, float(length), -np.tanh(u), np.hypot(alpha, sigma), process.columns(t))

    def velocity(
        self, vjp: VJP, i: int, s: int, z: Array, label: NDArray, vectors: Iterator[Array], outputs: int
    ) -> tuple[Array, Array]:
        """(v, div v) of v = dz/du at stage s of step i."""
        columns, norm = self.columns, self.norm[i, s]
        c_skip, c_out = columns.c_skip[i, s] * norm, columns.c_out[i, s]
        c_in, c_noise = columns.c_in[i, s] * norm, np.full(len(z), columns.c_noise[i, s])
        channels, trace = z.shape[3], np.zeros(len(z))
        for e in vectors:
            cotangent = np.pad(e, ((0, 0), (0, 0), (0, 0), (0, outputs - channels)))
            output, pulled = vjp(c_in * z, c_noise, label, cotangent)
            trace += np.sum(e * pulled, axis=(1, 2, 3), dtype=np.float64)
        estimate = c_skip * z + c_out * np.asarray(output[..., :channels], np.float64)
        divergence = (self.cos[i, s] - c_skip) * z[0].size - c_out * c_in * trace
        return self.cos[i, s] * z - estimate, divergence

    def walk(
        self, vjp: VJP, z: Array, label: NDArray, vectors: Callable[[], Iterator[Array]], outputs: int
    ) -> tuple[Array, Array]:
        """(z at the end, integral of the divergence) from z at the start."""
        volume = np.zeros(len(z))
        for i in range(len(self.cos)):
            velocities: list[Array] = []
            for s, before in enumerate(self.tableau.before):
                state = z + self._moved(before, velocities)
                v, divergence = self.velocity(vjp, i, s, state, label, vectors(), outputs)
                velocities.append(v)
                volume = volume + self.length * self.tableau.weights[s] * divergence
            z = z + self._moved(self.tableau.weights, velocities)
        return z, volume

    def _moved(self, weights: tuple[float, ...], velocities: list[Array]) -> Array | float:
        return self.length * sum(w * v for w, v in zip(weights, velocities, strict=True))

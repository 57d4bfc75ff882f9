r"""Exponential integrators in the half log-SNR: what the DPM-Solvers, DEIS, UniPC and SA-Solver have in common.

With lambda = log(alpha/sigma), which rises as noise is taken away, a sampler follows from a level t to a level s, with
h = lambda_s - lambda_t, one of two forms of the same process. tau = 0 is the probability-flow ODE, tau = 1 the SDE of
ancestral sampling:

    predict x0    x_s = sigma_s/sigma_t e^(-tau^2 h) x_t + alpha_s I(1 + tau^2) + sigma_s sqrt(1 - e^(-2 tau^2 h)) z
    predict eps   x_s = alpha_s/alpha_t x_t + (1 + tau^2) sigma_s I(-1) + tau sigma_s sqrt(e^(2h) - 1) z

    I(k) = integral over l from lambda_t to lambda_s of  k e^(k (l - lambda_s)) y(l) dl

where y is the estimate D of x_0 in the first form and eps = (x - alpha D)/sigma in the second. A solver puts a
polynomial through some values of y in its place, so that I is a sum of weights times values, and the weights add up to
1 - e^(-kh). Nothing but lambda says where a level lies: the schedule may preserve variance, or explode, or be a flow's.

Two nodes leave a choice, which changes nothing in the order: the polynomial's slope y', in units of h, is weighed by

    exact, heun      the integral, 1 - (1 - e^(-K))/K with K = kh
    midpoint, bh2    (1 - e^(-K))/2
    bh1              K/2

and three nodes in midpoint and heun weigh y'' by half of its integral, as published. To clean data h is infinite, and
x_s = D in both forms. t = 0 is one noise step.

A solver is written as its formula on unit vectors, one for each register, estimate and noise: what comes out are the
rows of the plan's tables, see `recurrence`.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (Lu et al., 2022),
    proposition 3.1, https://arxiv.org/abs/2206.00927
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022),
    https://arxiv.org/abs/2211.01095
    SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023),
    https://arxiv.org/abs/2309.05019
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import one_of
from diffusion_core.sampling.steps import needs_signal

__all__ = ["KINDS", "PREDICTS", "Integrator", "multistep", "effective_orders", "recurrence", "weights"]

Array = NDArray[np.float64]
# A linear form: the coefficients of every register, of every estimate and of the noise.
Coefficients = NDArray[np.float64]

PREDICTS = ("x0", "eps")
KINDS = ("midpoint", "heun", "bh1", "bh2", "exact")

# Gauss's quadrature on 0 .. 1. Enough for e^l over any range of levels here: it is exact for polynomials of degree 63.
_NODES, _SHARES = (0.5 * v + shift for v, shift in zip(np.polynomial.legendre.leggauss(32), (0.5, 0.0), strict=True))
_POWERS = _NODES ** np.arange(5)[:, None]


def weights(start: float, end: float, nodes: Sequence[float], rate: float = 1.0, kind: str = "exact") -> Array:
    """What the values of y at the nodes are multiplied with in I, with the shape of the nodes.

    Args:
        start: half log-SNR of the level that a step starts from; the first of two or more nodes lies there.
        end: half log-SNR of the level that it leads to.
        nodes: half log-SNR of the values; between, before or at the ends.
        rate: k.
        kind: one of `KINDS`, for two or three nodes.
    """
    h = end - start
    K = rate * h
    whole = -np.expm1(-K)
    places = (np.asarray(nodes, np.float64) - start) / h
    if len(places) == 1:
        return np.array([whole])
    if len(places) == 2:
        slope = {"midpoint": whole / 2, "bh2": whole / 2, "bh1": K / 2}.get(kind, 1.0 - whole / K) / places[1]
        return np.array([whole - slope, slope])
    kernel = _SHARES * K * np.exp(K * (_NODES - 1.0))
    moments = _POWERS[: len(places)] @ kernel
    # The weights of a constant are known to the last digit, where the quadrature leaves a few units.
    moments[0] = whole
    exact = np.linalg.solve(np.vander(places, increasing=True).T, moments)
    if len(places) == 3 and kind in ("midpoint", "heun"):
        bend = np.array([1.0 / np.prod(np.delete(place - places, j)) for j, place in enumerate(places)])
        exact -= (0.5 - (K - whole) / K**2) * bend
    return exact


@dataclass(frozen=True, eq=False)
class Integrator:
    """Steps between the levels of a plan, on linear forms or on numbers alike.

    Args:
        sampler: its name, for errors.
        levels: see `plan_levels`.
        predict: ``"x0"`` or ``"eps"``, what the polynomial is put through.

    Raises:
        DuetError: for another `predict`, or a first level without signal.
    """

    sampler: str
    levels: Mapping[str, Array]
    predict: str = "x0"

    def __post_init__(self) -> None:
        if self.predict not in PREDICTS:
            raise one_of("sampler.predict", self.predict, PREDICTS)
        needs_signal(self.sampler, self.alpha)

    @property
    def alpha(self) -> Array:
        """Signal of every level, with shape (N+1,)."""
        return self.levels["alpha"]

    @property
    def sigma(self) -> Array:
        """Noise of every level, with shape (N+1,)."""
        return self.levels["sigma"]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.alpha) - 1

    @cached_property
    def half(self) -> Array:
        """The half log-SNR of every level but the last, which is clean, with shape (N,)."""
        return np.log(self.alpha[:-1] / self.sigma[:-1])

    def seen(self, i: int, x: Coefficients, estimate: Coefficients) -> Coefficients:
        """The y of level i."""
        return estimate if self.predict == "x0" else (x - self.alpha[i] * estimate) / self.sigma[i]

    def first(
        self, i: int, j: int, x: Coefficients, y: Coefficients, z: Coefficients | float = 0.0, tau: float = 0.0
    ) -> Coefficients:
        """The step of first order from level i to level j, by the x and the y of level i: DDIM's, if tau is 0."""
        h = self.half[j] - self.half[i]
        ratio = self.sigma[j] / self.sigma[i]
        if self.predict == "x0":
            decay = np.exp(-(tau**2) * h)
            estimated = -self.alpha[j] * np.expm1(-(1.0 + tau**2) * h) * y
            return ratio * decay * x + estimated + self.sigma[j] * np.sqrt(-np.expm1(-2.0 * tau**2 * h)) * z
        # Written with y - x/sigma, which is free of x where y is of the same level: next to no signal
        # alpha_s/alpha_t is large, and all but cancels.
        turned = (1.0 + tau**2) * (ratio * x - self.sigma[j] * np.expm1(h) * (y - x / self.sigma[i]))
        return (
            turned - tau**2 * self.alpha[j] / self.alpha[i] * x + tau * self.sigma[j] * np.sqrt(np.expm1(2.0 * h)) * z
        )

    def beyond(
        self,
        i: int,
        j: int,
        nodes: Sequence[int],
        values: Sequence[Coefficients],
        y: Coefficients,
        tau: float = 0.0,
        kind: str = "exact",
    ) -> Coefficients:
        """What a polynomial through the values at these levels adds to the step of first order by y."""
        rate, scale = (1.0 + tau**2, self.alpha[j]) if self.predict == "x0" else (-1.0, (1.0 + tau**2) * self.sigma[j])
        shares = weights(self.half[i], self.half[j], self.half[list(nodes)], rate, kind)
        return scale * sum(share * (value - y) for share, value in zip(shares, values, strict=True))

    def preserves(self, tau: float | Array) -> str:
        """See `SamplerPlan`: the second form with noise has the variance of its levels only as steps become small."""
        return "mean" if self.predict == "eps" and np.any(tau) else "marginals"


def recurrence(
    rows: int, registers: int, history: int, step: Callable[[int, Array, Array, Coefficients], Sequence[Coefficients]]
) -> dict[str, Array]:
    """The tables of a plan, by feeding a solver's formula the unit vectors of everything that it may combine.

    Args:
        rows: N.
        registers: R.
        history: H.
        step: of the row i, the registers X, the estimates D (newest first) and the noise z, the new registers.
    """
    unit = np.eye(registers + history + 1)
    table = np.stack([np.stack(step(i, unit[:registers], unit[registers:-1], unit[-1])) for i in range(rows)])
    return {
        "state": table[:, :, :registers],
        "denoised": table[:, :, registers:-1],
        "noise": table[:, :, -1],
    }


def effective_orders(rows: int, order: int, lower_order_final: bool | None, few: int = 15) -> NDArray[np.int64]:
    """How many values each row of a multistep solver uses: no more than there are, and one to clean data.

    Args:
        rows: N.
        order: the most.
        lower_order_final: whether row N - k has order k at most; None is with fewer than so many rows.
        few: so many.
    """
    done = np.arange(rows)
    orders = np.minimum(order, done + 1)
    if rows < few if lower_order_final is None else lower_order_final:
        orders = np.minimum(orders, rows - done)
    orders[-1] = 1
    return orders


def multistep(
    integrator: Integrator,
    orders: NDArray[np.int64],
    corrected: NDArray[np.int64] | None = None,
    tau: float | Array = 0.0,
    kind: str = "exact",
    kind_corrected: str = "exact",
) -> dict[str, Array]:
    """The tables of a solver that remembers the values of earlier levels, with or without a corrector.

    A corrector costs no evaluation: row i sees the predicted x_i, and with the estimate of that does the step to level
    i once more. So the registers are the predicted x, the step of first order to its level (with a corrector), and the
    earlier eps (predict eps; earlier D are the plan's history).

    Args:
        integrator: the levels and the form.
        orders: values in the polynomial of each row, with shape (N,).
        corrected: values in that of each row's corrector, its own among them, with shape (N,); 0 for none.
        tau: share of the noise, one or one per row.
        kind: of the weights.
        kind_corrected: of those of the corrector.
    """
    rows, eps = integrator.rows, integrator.predict == "eps"
    corrected = np.zeros(rows, np.int64) if corrected is None else corrected
    tau = np.broadcast_to(np.asarray(tau, np.float64), (rows,))
    first_past = 2 if corrected.any() else 1
    remembered = max(orders.max(), corrected.max())

    def step(i: int, X: Array, D: Array, z: Coefficients) -> list[Coefficients]:
        now, past = integrator.seen(i, X[0], D[0]), X[first_past:] if eps else D[1:]
        x = X[0]
        if corrected[i]:
            # From the level before: where the step started, then where it led to, then earlier ones.
            nodes, values = [i - 1, i, *range(i - 2, -1, -1)], [past[0], now, *past[1:]]
            used = slice(1, 2) if corrected[i] == 1 else slice(corrected[i])
            x = X[1] + integrator.beyond(i - 1, i, nodes[used], values[used], past[0], tau[i - 1], kind_corrected)
        first, new = np.zeros_like(z), D[0]
        if i < rows - 1:
            first = new = integrator.first(i, i + 1, x, now, z, tau[i])
            if orders[i] > 1:
                nodes, values = range(i, i - orders[i], -1), [now, *past][: orders[i]]
                new = first + integrator.beyond(i, i + 1, nodes, values, now, tau[i], kind)
        return [new, *[first] * (first_past - 1), *([now, *past[:-1]] if eps and remembered > 1 else [])]

    registers = first_past + (remembered - 1 if eps else 0)
    return recurrence(rows, registers, 1 if eps else remembered, step)

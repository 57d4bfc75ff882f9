r"""Exponential integrators in the half log-SNR: what the DPM-Solvers, DEIS, UniPC and SA-Solver have in common.

With lambda = log(alpha/sigma), which rises as noise is removed, a sampler goes from a level t to a level s, with
h = lambda_s - lambda_t, by one of two forms of the same process. tau = 0 is the probability-flow ODE, tau = 1 the SDE
of ancestral sampling:

    predict x0    x_s = sigma_s/sigma_t e^(-tau^2 h) x_t + alpha_s I(1 + tau^2) + sigma_s sqrt(1 - e^(-2 tau^2 h)) z
    predict eps   x_s = alpha_s/alpha_t x_t + (1 + tau^2) sigma_s I(-1) + tau sigma_s sqrt(e^(2h) - 1) z

    I(k) = integral over l from lambda_t to lambda_s of  k e^(k (l - lambda_s)) y(l) dl

where y is the estimate D of x_0 in the first form and eps = (x - alpha D)/sigma in the second. A solver replaces y by a
polynomial through some of its values, so that I is a weighted sum of these values, and the weights add up to
1 - e^(-kh). A level enters through lambda alone, so this holds for variance-preserving and variance-exploding schedules
and for flows.

With two nodes there is a choice that does not change the order: the weight of the polynomial's slope y', in units of h,

    exact, heun      the integral, 1 - (1 - e^(-K))/K with K = kh
    midpoint, bh2    (1 - e^(-K))/2
    bh1              K/2

and with three nodes midpoint and heun give y'' half the weight of its integral, as published. To clean data h is
infinite, and x_s = D in both forms. t = 0 is one noise step.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps (Lu et al., 2022),
    proposition 3.1, https://arxiv.org/abs/2206.00927
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022),
    https://arxiv.org/abs/2211.01095
    SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023),
    https://arxiv.org/abs/2309.05019
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.steps import needs_signal

__all__ = ["PREDICTS", "WEIGHT_KINDS", "Integrator", "effective_orders", "multistep", "noise_scales", "weights"]

Array = NDArray[np.float64]

PREDICTS = ("x0", "eps")
WEIGHT_KINDS = ("midpoint", "heun", "bh1", "bh2", "exact")

# Gauss-Legendre quadrature on 0 .. 1 with 32 points, exact for polynomials of degree 63: enough for e^l over the range
# of any step here.
_NODES, _WEIGHTS = (0.5 * v + shift for v, shift in zip(np.polynomial.legendre.leggauss(32), (0.5, 0.0), strict=True))
_POWERS = _NODES ** np.arange(5)[:, None]


def weights(start: float, end: float, nodes: Sequence[float], rate: float = 1.0, kind: str = "exact") -> Array:
    """Return the weights of the values of y at the nodes in I, with the shape of the nodes.

    Args:
        start: half log-SNR at the start of the step; with two or more nodes, also that of the first node.
        end: half log-SNR at the end of the step.
        nodes: half log-SNR of the values, between, before or at the ends.
        rate: k.
        kind: one of `WEIGHT_KINDS`, for two or three nodes.

    Example:
        >>> weights(0.0, 1.0, [0.0]).round(3).tolist()  # 1 - 1/e
        [0.632]
        >>> weights(0.0, 1.0, [0.0, -1.0], kind="midpoint").round(3).tolist()
        [0.948, -0.316]
    """
    h = end - start
    K = rate * h
    total = -np.expm1(-K)
    # Positions of the nodes within the step, in units of h.
    positions = (np.asarray(nodes, np.float64) - start) / h
    if len(positions) == 1:
        return np.array([total])
    if len(positions) == 2:
        slope = {"midpoint": total / 2, "bh2": total / 2, "bh1": K / 2}.get(kind, 1.0 - total / K) / positions[1]
        return np.array([total - slope, slope])
    kernel = _WEIGHTS * K * np.exp(K * (_NODES - 1.0))
    moments = _POWERS[: len(positions)] @ kernel
    # The moment of a constant is known to the last digit; the quadrature is off by a few units.
    moments[0] = total
    exact = np.linalg.solve(np.vander(positions, increasing=True).T, moments)
    if len(positions) == 3 and kind in ("midpoint", "heun"):
        curvature = np.array([1.0 / np.prod(np.delete(node - positions, j)) for j, node in enumerate(positions)])
        exact -= (0.5 - (K - total) / K**2) * curvature
    return exact


@dataclass(frozen=True, eq=False)
class Integrator:
    """Steps between the noise levels of a plan, for coefficients (`recurrence`) or numbers alike.

    Args:
        sampler: the name of the sampler, for errors.
        levels: see `plan_levels`.
        predict: ``"x0"`` or ``"eps"``: the meaning of y, through which the polynomial goes.

    Raises:
        DuetError: for another `predict`, or a first level without signal.
    """

    sampler: str
    levels: Mapping[str, Array]
    predict: str = "x0"

    def __post_init__(self) -> None:
        check_choice("sampler.predict", self.predict, PREDICTS)
        needs_signal(self.sampler, self.alpha)

    def __repr__(self) -> str:
        return f"Integrator({self.sampler!r}, rows={self.rows}, predict={self.predict!r})"

    @property
    def alpha(self) -> Array:
        """Signal scale of every level, with shape (N+1,)."""
        return self.levels["alpha"]

    @property
    def sigma(self) -> Array:
        """Noise scale of every level, with shape (N+1,)."""
        return self.levels["sigma"]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.alpha) - 1

    @property
    def ends_clean(self) -> bool:
        """Whether the last row leads to clean data."""
        return bool(self.sigma[-1] == 0)

    def is_clean(self, level: int) -> bool:
        """Return whether a level is clean data."""
        return self.ends_clean and level == self.rows

    @cached_property
    def half_log_snr(self) -> Array:
        """The half log-SNR of every level that is noisy, with shape (N,) or (N+1,)."""
        noisy = self.rows if self.ends_clean else self.rows + 1
        return np.log(self.alpha[:noisy] / self.sigma[:noisy])

    def prediction(self, i: int, x: Coefficients, estimate: Coefficients) -> Coefficients:
        """Return the y of level i, from its x and its estimate."""
        return estimate if self.predict == "x0" else (x - self.alpha[i] * estimate) / self.sigma[i]

    def first_order(
        self, i: int, j: int, x: Coefficients, y: Coefficients, z: Coefficients | float = 0.0, tau: float = 0.0
    ) -> Coefficients:
        """Return the first-order step from level i to level j, from the x and the y of level i; DDIM's if tau is 0."""
        h = self.half_log_snr[j] - self.half_log_snr[i]
        ratio = self.sigma[j] / self.sigma[i]
        if self.predict == "x0":
            decay = np.exp(-(tau**2) * h)
            estimated = -self.alpha[j] * np.expm1(-(1.0 + tau**2) * h) * y
            return ratio * decay * x + estimated + self.sigma[j] * np.sqrt(-np.expm1(-2.0 * tau**2 * h)) * z
        # Written with y - x/sigma, which does not contain x if y is of the same level: near zero signal
        # alpha_s/alpha_t is large, and its terms would nearly cancel.
        ode = (1.0 + tau**2) * (ratio * x - self.sigma[j] * np.expm1(h) * (y - x / self.sigma[i]))
        return ode - tau**2 * self.alpha[j] / self.alpha[i] * x + tau * self.sigma[j] * np.sqrt(np.expm1(2.0 * h)) * z

    def higher_order(
        self,
        i: int,
        j: int,
        nodes: Sequence[int],
        values: Sequence[Coefficients],
        y: Coefficients,
        tau: float = 0.0,
        kind: str = "exact",
    ) -> Coefficients:
        """Return what a polynomial through the values at these levels adds to the first-order step with y."""
        rate, scale = (1.0 + tau**2, self.alpha[j]) if self.predict == "x0" else (-1.0, (1.0 + tau**2) * self.sigma[j])
        half = self.half_log_snr
        factors = weights(half[i], half[j], half[list(nodes)], rate, kind)
        return scale * sum(factor * (value - y) for factor, value in zip(factors, values, strict=True))

    def preserves(self, tau: float | Array, s_noise: float = 1.0) -> str:
        """Return `SamplerPlan.preserves`: with noise, the eps form has the right variance only for small steps."""
        return "mean" if np.any(tau) and (self.predict == "eps" or s_noise != 1) else "marginals"


def noise_scales(sde: bool, eta: float | None, s_noise: float) -> tuple[float, float]:
    """Return (tau, s_noise) of the options of a solver that may be an SDE: tau^2 = eta, 1 by default.

    Raises:
        DuetError: for an eta without sde, or numbers that are out of range.
    """
    if eta is not None and not 0 <= eta < np.inf:
        raise DuetError(f"sampler.eta: {eta} was given; it must be a number, at least 0 (deterministic)")
    if eta and not sde:
        raise DuetError(f"sampler.eta: {eta} was given with sde false, which has no noise; use sde=true, or eta=null")
    if not 0 <= s_noise < np.inf:
        raise DuetError(f"sampler.s_noise: {s_noise} was given; it must be a number, at least 0")
    return (float(np.sqrt(1.0 if eta is None else eta)) if sde else 0.0), s_noise


def effective_orders(
    rows: int, order: int, lower_order_final: bool | None, ends_clean: bool = True, few: int = 15
) -> NDArray[np.int64]:
    """Return the number of values that each row of a multistep solver uses, with shape (N,).

    A row uses at most `order` values and at most as many as exist; a last row to clean data uses one.

    Args:
        rows: N.
        order: the largest order.
        lower_order_final: whether row N - k has at most order k; None: only with fewer than `few` rows.
        ends_clean: whether the last row leads to clean data.
        few: see lower_order_final.
    """
    done = np.arange(rows)
    orders = np.minimum(order, done + 1)
    if rows < few if lower_order_final is None else lower_order_final:
        orders = np.minimum(orders, rows - done)
    if ends_clean:
        orders[-1] = 1
    return orders


def multistep(
    integrator: Integrator,
    orders: NDArray[np.int64],
    corrected: NDArray[np.int64] | None = None,
    tau: float | Array = 0.0,
    kind: str = "exact",
    kind_corrected: str = "exact",
    s_noise: float = 1.0,
) -> dict[str, Array]:
    """Return the tables of a solver that uses the values of earlier levels, with or without a corrector.

    A corrector costs no evaluation: row i receives the predicted x_i, evaluates there, and with the new estimate
    repeats the step to level i. So the registers are the predicted x, the first-order step to its level (with a
    corrector), and the earlier eps (predict eps; earlier D are the plan's history).

    Args:
        integrator: the levels and the form.
        orders: the number of values in each row's polynomial, with shape (N,).
        corrected: the number of values in the polynomial of each row's corrector, its own value among them, with
            shape (N,); 0 for no corrector.
        tau: scale of the noise, one number or one per row.
        kind: of the weights, one of `WEIGHT_KINDS`.
        kind_corrected: of the corrector's weights.
        s_noise: factor of the fresh noise.
    """
    rows, eps = integrator.rows, integrator.predict == "eps"
    corrected = np.zeros(rows, np.int64) if corrected is None else corrected
    tau = np.broadcast_to(np.asarray(tau, np.float64), (rows,))
    first_earlier = 2 if corrected.any() else 1
    # A corrector repeats a step, so it needs the value at its start too, even if its polynomial does not use it.
    remembered = max(orders.max(), corrected.max(), first_earlier)

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        current, earlier = integrator.prediction(i, X[0], D[0]), X[first_earlier:] if eps else D[1:]
        x = X[0]
        if corrected[i]:
            # The nodes are the level at which the step started, the level it led to, and earlier ones.
            nodes, values = [i - 1, i, *range(i - 2, -1, -1)], [earlier[0], current, *earlier[1:]]
            used = slice(1, 2) if corrected[i] == 1 else slice(corrected[i])
            x = X[1] + integrator.higher_order(
                i - 1, i, nodes[used], values[used], earlier[0], tau[i - 1], kind_corrected
            )  # fmt: skip
        first, new = np.zeros_like(z), D[0]
        if not integrator.is_clean(i + 1):
            first = new = integrator.first_order(i, i + 1, x, current, s_noise * z, tau[i])
            if orders[i] > 1:
                nodes, values = range(i, i - orders[i], -1), [current, *earlier][: orders[i]]
                new = first + integrator.higher_order(i, i + 1, nodes, values, current, tau[i], kind)
        return [new, *[first] * (first_earlier - 1), *([current, *earlier[:-1]] if eps and remembered > 1 else [])]

    registers = first_earlier + (remembered - 1 if eps else 0)
    return recurrence(rows, registers, 1 if eps else remembered, step)

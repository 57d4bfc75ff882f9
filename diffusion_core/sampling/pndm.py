r"""Pseudo numerical methods: Runge-Kutta and Adams-Bashforth for eps, with DDIM's step in place of a straight line.

From a level t to a level s, one eps for the whole step leads to

    phi(x_t, eps) = alpha_s/alpha_t x_t + (sigma_s - alpha_s sigma_t/alpha_t) eps

which is exact for a constant eps. PLMS combines the eps of the most recent levels, e_0 the newest,

    e_0,   (3 e_0 - e_1)/2,   (23 e_0 - 16 e_1 + 5 e_2)/12,   (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24

and PNDM takes its first three steps by the four stages of Runge and Kutta (PRK). phi leads from the start of the step
to each stage: at t, twice halfway in t, and at s, with the weights 1, 2, 2, 1 over 6. PLMS starts with one step of
Heun's two stages, 1, 1 over 2, which is of the order of the next combination, and evaluates once more at its end.

The weights are those of equal steps. With equal steps of sigma/alpha the order is four (three, due to the start of
PLMS). On any other grid phi and the weights disagree about the time within a step, and the order is two.
The last row leads to clean data by phi, with alpha_s = 1 and sigma_s = 0. t = 0 is one noise step.

References:
    Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., 2022), eqs. 9 to 13 and algorithm 2,
    https://arxiv.org/abs/2202.09778
    latent diffusion's PLMS (CompVis/latent-diffusion, ldm/models/diffusion/plms.py), its start
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.exponential import Integrator
from diffusion_core.sampling.families import TIMESTEPS
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["plms", "pndm"]

# Weights of Adams-Bashforth for equal steps, newest first.
_ADAMS_BASHFORTH = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)
# Where each stage lies in a step, 0 to 1, and its weight.
_HEUN = (np.array([0.0, 1.0]), np.array([1.0, 1.0]) / 2)
_RUNGE_KUTTA = (np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 2.0, 2.0, 1.0]) / 6)


@sampler(
    Method("PLMS", order=2, warm_up=1, needs_signal=True),
    family=TIMESTEPS,
    paper="Liu et al. 2022",
    url="https://arxiv.org/abs/2202.09778",
    equation="eq. 12",
    notes="Order 2; order 3 with equal steps of sigma/alpha.",
)
def plms(
    process: Process,
    steps: Steps = 50,
    order: int = 4,
    spacing: Spacing = TIMESTEPS.spacing,
    clip: float | None = TIMESTEPS.clip,
) -> SamplerPlan:
    """Make a plan of the pseudo linear multistep method, PNDM without Runge-Kutta; one row more than steps.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        order: the largest number of eps to combine, 1 (DDIM) to 4.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for another order, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> plms(Process(linear(), "eps"), steps=10)
        SamplerPlan('plms-4-11', rows=11, registers=6, stochastic=False)
    """
    if order not in (1, 2, 3, 4):
        raise DuetError(f"sampler.order: {order} was given; it must be 1 to 4")
    return _make("plms", process, steps, order, 1 if order > 1 else 0, _HEUN, spacing, clip)


@sampler(
    Method("PNDM", order=2, warm_up=9, needs_signal=True),
    family=TIMESTEPS,
    paper="Liu et al. 2022",
    url="https://arxiv.org/abs/2202.09778",
    equation="eqs. 9 to 13",
    notes="Order 2; order 4 with equal steps of sigma/alpha. Evaluates halfway between timesteps.",
)
def pndm(
    process: Process, steps: Steps = 50, spacing: Spacing = TIMESTEPS.spacing, clip: float | None = TIMESTEPS.clip
) -> SamplerPlan:
    """Make a plan of PNDM: three Runge-Kutta steps, then pseudo linear multistep; nine rows more than steps.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> pndm(Process(linear(), "eps"), steps=10)
        SamplerPlan('pndm-4-19', rows=19, registers=6, stochastic=False)
    """
    return _make("pndm", process, steps, 4, 3, _RUNGE_KUTTA, spacing, clip)


def _make(
    name: str,
    process: Process,
    steps: Steps,
    order: int,
    staged: int,
    stages: tuple[NDArray, NDArray],
    spacing: Spacing,
    clip: float | None,
) -> SamplerPlan:
    """Make the plan whose first `staged` steps consist of these stages; the step to clean data is never staged."""
    grid = make_grid(process.schedule, steps, spacing)
    t, points = grid.t, grid.points
    nodes, weights = stages
    staged = min(staged, len(points) - 1)
    # Interpolated by both weights, so that the last node is exactly the next timestep.
    within = [(1 - nodes) * points[i] + nodes * points[i + 1] for i in range(staged)]
    integrator = Integrator(name, plan_levels(process, np.concatenate([*within, t[staged:]]), grid.end), "eps")
    alpha, sigma = integrator.alpha, integrator.sigma
    first = staged * len(nodes)

    def phi(i: int, j: int, x: Coefficients, eps: Coefficients) -> Coefficients:
        """Lead from level i to level j, which may be clean data."""
        # Written with eps - x/sigma: near zero signal alpha_s/alpha_t is large, and its terms would nearly cancel.
        return sigma[j] / sigma[i] * x + (sigma[j] - alpha[j] / alpha[i] * sigma[i]) * (eps - x / sigma[i])

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        # The registers are x, the x at the start of a staged step, its weighted eps so far, and the eps of earlier
        # steps, newest first.
        eps, past = integrator.prediction(i, X[0], D[0]), X[3:]
        if i < first:
            stage = i % len(nodes)
            origin, so_far = (X[1], X[2]) if stage else (X[0], np.zeros_like(z))
            so_far = so_far + weights[stage] * eps
            # A staged step leaves the eps of its first stage to later steps.
            past = [eps, *past[:-1]] if stage == 0 else past
            return [
                phi(i - stage, i + 1, origin, so_far if stage == len(nodes) - 1 else eps), origin, so_far, *past
            ]  # fmt: skip
        known = i - first + staged + 1
        values = [eps, *past][: min(order, known)]
        combined = sum(w * value for w, value in zip(_ADAMS_BASHFORTH[len(values) - 1], values, strict=True))
        empty = np.zeros_like(z)
        return [phi(i, i + 1, X[0], combined), empty, empty, eps, *past[:-1]]

    return SamplerPlan(
        name=f"{name}-{order}-{integrator.rows}",
        **integrator.levels,
        **recurrence(integrator.rows, 3 + max(order - 1, 1), 1, step),
        clip=clip,
    )

r"""Pseudo numerical methods: Runge-Kutta's and Adams-Bashforth's for eps, with DDIM's step in place of a straight one.

From a level t to a level s, an eps that stands for all of the step leads to

    phi(x_t, eps) = alpha_s/alpha_t x_t + (sigma_s - alpha_s sigma_t/alpha_t) eps

which is exact for a constant eps. PLMS mixes the eps of the levels visited last, e_0 the newest,

    e_0,   (3 e_0 - e_1)/2,   (23 e_0 - 16 e_1 + 5 e_2)/12,   (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24

and PNDM takes its first three steps by the four stages of Runge and Kutta (PRK), each stage led to by phi from where
the step started: at t, twice halfway in t, and at s, mixed as 1, 2, 2, 1 in 6. PLMS starts with one step of Heun's
two stages, 1, 1 in 2, which is of the order of the next mix, and then asks the network at its end once more.

The mixes are those of equal steps. Where steps are equal in sigma/alpha the methods are of fourth order (third, from
the start of PLMS); on any other grid phi and the mix disagree about the time within a step, and they are of second.
The last row leads to clean data by phi, with alpha_s = 1 and sigma_s = 0. t = 0 is one noise step.

References:
    Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., 2022), eqs. 9 to 13 and algorithm 2,
    https://arxiv.org/abs/2202.09778
    k-diffusion's and latent diffusion's PLMS (CompVis/latent-diffusion, ldm/models/diffusion/plms.py), its start
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.exponential import Coefficients, Integrator, recurrence
from diffusion_core.sampling.grid import make_timesteps
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.spacing import Spacing, Steps

__all__ = ["plms", "pndm"]

# Adams-Bashforth's weights of equal steps, newest first.
_MIXES = (
    np.array([1.0]),
    np.array([3.0, -1.0]) / 2,
    np.array([23.0, -16.0, 5.0]) / 12,
    np.array([55.0, -59.0, 37.0, -9.0]) / 24,
)
# Share of a step at which each stage looks, and its weight.
_HEUN = (np.array([0.0, 1.0]), np.array([1.0, 1.0]) / 2)
_RUNGE_KUTTA = (np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 2.0, 2.0, 1.0]) / 6)


def plms(
    process: Process, steps: Steps = 50, order: int = 4, spacing: Spacing = None, clip: float | None = 1.0
) -> SamplerPlan:
    """Pseudo linear multistep: PNDM without Runge-Kutta, one row more than there are steps.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: levels that are visited, 1 to T, or another answer of `spacing`.
        order: eps that are mixed at most, 1 (DDIM) to 4.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for another order, or a schedule that starts without signal.
    """
    if order not in (1, 2, 3, 4):
        raise DuetError(f"sampler.order: {order} was given; it is 1 to 4")
    return _pseudo("plms", process, steps, order, 1 if order > 1 else 0, _HEUN, spacing, clip)


def pndm(process: Process, steps: Steps = 50, spacing: Spacing = None, clip: float | None = 1.0) -> SamplerPlan:
    """PNDM: three steps of Runge-Kutta, then pseudo linear multistep; nine rows more than there are steps.

    Args:
        process: what the network was trained for; the first level must have some signal (alpha > 0).
        steps: levels that are visited, 1 to T, or another answer of `spacing`.
        spacing: see `grid` and `spacing`.
        clip: see `SamplerPlan`.

    Raises:
        DuetError: for a schedule that starts without signal.
    """
    return _pseudo("pndm", process, steps, 4, 3, _RUNGE_KUTTA, spacing, clip)


def _pseudo(
    name: str,
    process: Process,
    steps: Steps,
    order: int,
    staged: int,
    stages: tuple[NDArray, NDArray],
    spacing: Spacing,
    clip: float | None,
) -> SamplerPlan:
    """The plan whose first `staged` steps are taken in these stages, none of them the one to clean data."""
    t = make_timesteps(process.schedule, steps, spacing)
    shares, mix = stages
    staged = min(staged, len(t) - 1)
    # With weights of both, the last share is the next level itself and not one beside it by rounding.
    within = [(1 - shares) * t[i] + shares * t[i + 1] for i in range(staged)]
    integrator = Integrator(name, plan_levels(process, np.concatenate([*within, t[staged:]])), "eps")
    first = staged * len(shares)

    def step(i: int, X: NDArray, D: NDArray, z: Coefficients) -> list[Coefficients]:
        # The registers are x, the x that a staged step started from, its eps so far, and the eps of earlier steps.
        now, past = integrator.seen(i, X[0], D[0]), X[3:]
        if i < first:
            stage = i % len(shares)
            origin, so_far = (X[1], X[2]) if stage else (X[0], np.zeros_like(z))
            so_far = so_far + mix[stage] * now
            mixed = so_far if stage == len(shares) - 1 else now
            started = [now, *past[:-1]] if stage == 0 else past
            return [_led(integrator, i - stage, i + 1, origin, mixed), origin, so_far, *started]
        # A step of stages leaves the eps of its first one.
        known = i - first + staged + 1
        values = [now, *past][: min(order, known)]
        mixed = sum(w * value for w, value in zip(_MIXES[len(values) - 1], values, strict=True))
        empty = np.zeros_like(z)
        return [_led(integrator, i, i + 1, X[0], mixed), empty, empty, now, *past[:-1]]

    return SamplerPlan(
        name=f"{name}-{order}-{integrator.rows}",
        **integrator.levels,
        **recurrence(integrator.rows, 3 + max(order - 1, 1), 1, step),
        clip=clip,
    )


def _led(integrator: Integrator, i: int, j: int, x: Coefficients, eps: Coefficients) -> Coefficients:
    """Where phi leads from level i to level j, which may be clean data."""
    alpha, sigma = integrator.alpha, integrator.sigma
    # As next to no signal alpha_s/alpha_t is large, x is first taken to where it would go without any.
    return sigma[j] / sigma[i] * x + (sigma[j] - alpha[j] / alpha[i] * sigma[i]) * (eps - x / sigma[i])

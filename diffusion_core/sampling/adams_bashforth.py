r"""Adams-Bashforth: extrapolate the slopes of earlier steps as a polynomial, with one evaluation per step.

In a variable tau of `steps`, with u = x/n and the slopes f = (x - n D)/sigma at the level of a row and those before,

    u_s = u_t + sum_j w_j f_{t-j},      w_j = integral from tau_t to tau_s of the Lagrange polynomial of f_{t-j}

over `order` slopes, or fewer in the first rows. The weights are these integrals for steps of any lengths; for equal
steps they are the classical 3/2, -1/2 and so on.

    lms                in r = sigma/alpha, as in k-diffusion and diffusers (which integrate numerically)
    adams_bashforth    in sigma/(alpha + sigma), the velocity of flow matching, or in either variable

Rows keep earlier slopes as registers. For D = x_0 the slope f is the same at every level, so any weights with the right
sum lead to the next level exactly.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/sampling.py, sample_lms)
    Solving Ordinary Differential Equations I (Hairer, Norsett & Wanner, 1993), section III.5, variable step sizes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.process import Process
from diffusion_core.sampling.declaration import Method, sampler
from diffusion_core.sampling.families import FLOW, RATIO
from diffusion_core.sampling.grid import make_grid
from diffusion_core.sampling.plan import SamplerPlan, plan_levels
from diffusion_core.sampling.recurrence import Coefficients, recurrence
from diffusion_core.sampling.spacing import Spacing, Steps
from diffusion_core.sampling.steps import VARIABLES, needs_signal

__all__ = ["adams_bashforth", "lms"]


@sampler(
    *(Method(f"LMS-{order}", order, {"order": order}, needs_signal=True) for order in (2, 3, 4)),
    family=RATIO,
    paper="k-diffusion",
    url="https://github.com/crowsonkb/k-diffusion",
    equation="sample_lms",
    notes="Integrates over sigma/alpha.",
)
def lms(
    process: Process,
    steps: Steps = 50,
    order: int = 4,
    spacing: Spacing = RATIO.spacing,
    clip: float | None = RATIO.clip,
) -> SamplerPlan:
    """Make a plan of the linear multistep method of k-diffusion.

    Args:
        process: the process that the network was trained for; the first level must contain signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        order: 1 to 4; the first rows use as many slopes as exist.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for an unknown order, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> lms(Process(linear(), "v"), steps=10)
        SamplerPlan('lms-4-10', rows=10, registers=4, stochastic=False)
    """
    return _make(process, "lms", steps, order, "ratio", spacing, clip)


@sampler(
    *(Method(f"Adams-Bashforth {order}, flow", order, {"order": order}) for order in (1, 2, 3, 4)),
    family=FLOW,
    paper="Hairer, Norsett & Wanner 1993",
    equation="section III.5",
    notes="Integrates over sigma/(alpha + sigma). With `variable: ratio` it equals `lms` and needs signal.",
)
def adams_bashforth(
    process: Process,
    steps: Steps = 50,
    order: int = 2,
    variable: str = "flow",
    spacing: Spacing = FLOW.spacing,
    clip: float | None = FLOW.clip,
) -> SamplerPlan:
    """Make a plan of Adams-Bashforth in either variable.

    Args:
        process: the process that the network was trained for; for the variable ratio the first level must contain
            signal (alpha > 0).
        steps: number of steps, or another form of `spacing`.
        order: 1 to 4; the first rows use as many slopes as exist.
        variable: ``"flow"`` or ``"ratio"``, see `steps`.
        spacing: where the timesteps lie, see `grid` and `spacing`.
        clip: bound of the estimates, see `SamplerPlan`.

    Raises:
        DuetError: for an unknown order or variable, or a first level without signal.

    Example:
        >>> from diffusion_core.diffusion.schedule import flow
        >>> adams_bashforth(Process(flow(), "flow"), steps=10, order=3)
        SamplerPlan('adams_bashforth-3-10', rows=10, registers=3, stochastic=False)
    """
    return _make(process, "adams_bashforth", steps, order, variable, spacing, clip)


def _make(
    process: Process, name: str, steps: Steps, order: int, variable: str, spacing: Spacing, clip: float | None
) -> SamplerPlan:
    if order not in (1, 2, 3, 4):
        raise DuetError(f"sampler.order: {order} was given; it must be 1, 2, 3 or 4")
    check_choice("sampler.variable", variable, VARIABLES)
    levels = plan_levels(process, *make_grid(process.schedule, steps, spacing))
    alpha, sigma = levels["alpha"], levels["sigma"]
    if variable == "ratio":
        needs_signal(name, alpha)
    n = VARIABLES[variable](alpha, sigma)
    tau, rows = sigma / n, len(levels["t"])

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        # The registers are x and the slopes of the rows before, newest first.
        x, past = X[0], X[1:]
        slope = (x - n[i] * D[0]) / sigma[i]
        euler = sigma[i + 1] / sigma[i] * x + (alpha[i + 1] - alpha[i] * sigma[i + 1] / sigma[i]) * D[0]
        used = min(order, i + 1)
        # All weights add up to the step's length, so Euler's step and the differences to the newest slope remain.
        weights = n[i + 1] * _weights(tau[i::-1][:used], tau[i + 1])[1:]
        new = euler - weights.sum() * slope + weights @ past[: used - 1]
        return [new, slope, *past[:-1]][:order]

    return SamplerPlan(name=f"{name}-{order}-{rows}", **levels, **recurrence(rows, order, 1, step), clip=clip)


def _weights(nodes: NDArray, end: float) -> NDArray[np.float64]:
    """Return the integrals of the Lagrange polynomials over the nodes, newest first, from the newest to the end."""
    # Gauss-Legendre with two points is exact up to the third degree, that of four nodes; both have weight 1/2.
    at = nodes[0] + (end - nodes[0]) * (1 + np.array([-1, 1]) / np.sqrt(3)) / 2
    other = ~np.eye(len(nodes), dtype=bool)
    factors = (at - nodes[:, None]) / np.where(other, nodes[:, None] - nodes, 1.0)[..., None]
    return (end - nodes[0]) * np.prod(factors, axis=1, where=other[..., None]).mean(axis=1)

r"""Sampling along interpolants, as in SiT: the probability-flow ODE in the schedule's own time, and SDEs of any noise.

With the time tau = 1 - t, which runs from noise to data, the velocity v and the score s of x_t follow from the estimate
D of x_0, with eps = (x - alpha D)/sigma and the derivatives alpha' and sigma' by t,

    v = -(alpha' D + sigma' eps),        s = -eps/sigma

For every diffusion w(tau) >= 0 the SDE

    dx = (v + w s) dtau + sqrt(2 w) dB

has the marginals of the ODE dx = v dtau, which is w = 0. With steps of length h,

    euler    x <- x + h (v + w s) + sqrt(2 w h) z
    heun     x^ = x + sqrt(2 w h) z,      x <- x^ + h/2 (f(x^, tau) + f(x^ + h f(x^, tau), tau + h)),     f = v + w s

    form                     w
    constant                 norm
    sbdm                     norm (sigma/alpha) (alpha sigma' - sigma alpha'), the SDE of score-based models
    sigma                    norm sigma
    linear                   norm (1 - tau)
    decreasing               (norm cos(pi tau) + 1)^2 / 4
    increasing-decreasing    norm sin(pi tau)^2

An SDE stops at tau = 1 - last_step_size, since its score grows without bound towards clean data, and takes a last step:

    mean    x + last_step_size (v + w s)         tweedie    D, the mean of x_0 given x
    euler   x + last_step_size v                 null       none; tau ends at 1 - eps

Times are cut at `eps` where a coefficient has no limit, as in SiT's code: at clean data for every network but one that
predicts the velocity on the straight line or on the cosine, on which the start is cut too for another network, and for
sbdm. A null `eps` is 0.001 there; that code sets 0 for a velocity even with SBDM, and divides by 0.

N steps are evenly spaced in tau. In SiT's code, whose `num_steps` counts points of time, that is N + 1 for the ODE and
for an SDE without last step, and N for one with it; its last step is the N-th here. Noise is added before Heun's first
evaluation of a step, so that its plan begins with a row that only adds noise. Where the ODE's last evaluation is at
clean data, whose D does not depend on the network, the row takes the output itself for D.

References:
    SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers (Ma et al., 2024),
    with its code (willisma/SiT, transport/), https://arxiv.org/abs/2401.08740
    Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023), corollary 2.18,
    https://arxiv.org/abs/2303.08797
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice, one_of
from diffusion_core.diffusion.continuous_schedule import ContinuousSchedule, sum_scale, sum_signal
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import MAX_LEVELS
from diffusion_core.sampling.declaration import sampler
from diffusion_core.sampling.families import OWN_TIMES
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.sampling.recurrence import Coefficients, recurrence

__all__ = ["FORMS", "LAST_STEPS", "sit_ode", "sit_sde", "velocity_sign"]

Array = NDArray[np.float64]

SOLVERS = ("euler", "heun")
LAST_STEPS = ("mean", "tweedie", "euler")
_EPS = 1e-3
_CLEAN = 1e-9  # sigma/alpha of clean data, where a path is cut this near to it
# The straight line and the cosine: their velocity has a limit at both ends.
_SMOOTH = ("flow_continuous", "cosine_continuous")
# The factor of the output in the velocity from noise to data.
_VELOCITIES = {"velocity": -1.0, "velocity_to_data": 1.0}


@dataclass(frozen=True, eq=False)
class _Path:
    """A process along tau, with t limited to its span.

    Args:
        process: the process, of continuous time.
        tau: the time of each evaluation, with shape (N,).
    """

    process: Process
    tau: Array

    @property
    def t(self) -> Array:
        """The time of the process at each evaluation."""
        return np.clip(1.0 - self.tau, *self.process.schedule.span)

    def velocity(self, i: int, x: Coefficients, D: Coefficients) -> Coefficients:
        """Return v at row i."""
        (alpha, sigma), rates = self.process.schedule(self.t[i]), self.process.schedule.rates(self.t[i])
        return -(rates[0] * D + rates[1] * (x - alpha * D) / sigma)

    def score(self, i: int, x: Coefficients, D: Coefficients) -> Coefficients:
        """Return s at row i."""
        alpha, sigma = self.process.schedule(self.t[i])
        return -(x - alpha * D) / sigma**2

    def level(self, tau: float) -> tuple[float, float]:
        """Return (alpha, sigma) at the end of a plan: clean data below the span, or nearly without noise."""
        t, (low, high) = 1.0 - tau, self.process.schedule.span
        alpha, sigma = map(float, self.process.schedule(np.clip(t, low, high)))
        return (1.0, 0.0) if t < low * (1 - 1e-6) or sigma < _CLEAN * alpha else (alpha, sigma)

    def plan(self, name: str, end: tuple[float, float], tables: Mapping[str, Array], raw: bool = False) -> SamplerPlan:
        """Return the plan; `raw` says that the last row takes the velocity for D."""
        schedule, columns = self.process.schedule, self.process.columns(self.t)
        alpha, sigma = schedule(self.t)
        c_skip, c_out = columns.c_skip.copy(), columns.c_out.copy()
        if raw:
            c_skip[-1], c_out[-1] = 0.0, velocity_sign(self.process)
        noise_scale = sum_scale(schedule.norm)
        start = 1.0 if schedule.variance_preserving else float(sigma[0]) if noise_scale is None else noise_scale
        return SamplerPlan(
            name=name, t=self.t, alpha=np.append(alpha, end[0]), sigma=np.append(sigma, end[1]), c_skip=c_skip,
            c_out=c_out, c_in=columns.c_in, c_noise=columns.c_noise, guidance_scale=np.ones(len(alpha)), **tables,
            start_scale=start, preserves="nothing",
        )  # fmt: skip


def velocity_sign(process: Process) -> float | None:
    """Return the factor of the output in the velocity from noise to data; None if the output is something else."""
    norm = process.schedule.norm if isinstance(process.schedule, ContinuousSchedule) else None
    if process.prediction == "flow" and sum_scale(norm) == sum_signal(norm) == 1:
        return -1.0
    return _VELOCITIES.get(process.prediction)


def _checked(name: str, process: Process, steps: int, method: str, eps: float | None) -> None:
    """Refuse what both samplers refuse."""
    schedule = process.schedule
    if not isinstance(schedule, ContinuousSchedule) or schedule.wronskian_at is None or schedule.span[1] > 1:
        raise DuetError(
            f"sampler {name}: the schedule {schedule.name} was given; it needs a continuous time from 0 to 1 whose "
            "derivatives are known, as of flow_continuous, cosine_continuous or vp_sde; use ddim, or heun"
        )
    check_choice("sampler.method", method, SOLVERS)
    if not 1 <= steps <= MAX_LEVELS:
        raise DuetError(f"sampler.steps: {steps} was given; it must be at least 1 and at most {MAX_LEVELS}")
    if eps is not None and not 0 <= eps < 0.5:
        raise DuetError(f"sampler.eps: {eps} was given; it must be a part of the time, at least 0, or null")


def _ends(process: Process, eps: float | None, sbdm: bool = False) -> tuple[float, float]:
    """Return the first and the last tau, both inside of which `eps` cuts."""
    smooth, is_velocity = process.schedule.name in _SMOOTH, velocity_sign(process) is not None
    cut = _EPS if eps is None else eps
    start = cut if smooth and (sbdm or not is_velocity) else 0.0
    end = (0.0 if eps is None else eps) if smooth and is_velocity else cut
    return max(start, 1.0 - process.schedule.span[1]), 1.0 - end


@sampler(
    family=OWN_TIMES,
    paper="Ma et al. 2024",
    url="https://arxiv.org/abs/2401.08740",
    equation="section 2.2, and their code",
    evaluations="N, or 2N with `method: heun`",
    requires="continuous time from 0 to 1",
    notes="Steps in the schedule's own time, as the `ODE` of SiT's code; `num_steps` there is N + 1.",
)
def sit_ode(process: Process, steps: int = 50, method: str = "euler", eps: float | None = None) -> SamplerPlan:
    """Make the plan of the ODE of SiT: Euler's or Heun's method in the schedule's own time.

    Args:
        process: the process that the network was trained for, in continuous time from 0 to 1.
        steps: N, the number of steps.
        method: ``"euler"``, or ``"heun"`` with two evaluations in every step.
        eps: where times are cut, see the module; None is the default of SiT's code.

    Raises:
        DuetError: for a table, another method, or a number that is out of range.

    Example:
        >>> from diffusion_core.diffusion.continuous import flow_continuous
        >>> sit_ode(Process(flow_continuous(t_min=1e-12), "velocity"), steps=4, method="heun")
        SamplerPlan('sit_ode-4', rows=8, registers=2, stochastic=False)
    """
    _checked("sit_ode", process, steps, method, eps)
    ends = _ends(process, eps)
    points, h = np.linspace(*ends, steps + 1), (ends[1] - ends[0]) / steps
    two = method == "heun"
    path = _Path(process, np.stack([points[:-1], points[1:]], axis=1).ravel() if two else points[:-1])
    rows = len(path.tau)
    raw = two and path.level(ends[1])[1] == 0 and velocity_sign(process) is not None

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        v = D[0] if raw and i == rows - 1 else path.velocity(i, X[0], D[0])
        if not two:
            return [X[0] + h * v]
        if i % 2 == 0:
            return [X[0] + h * v, X[0] + 0.5 * h * v]
        return [X[1] + 0.5 * h * v, np.zeros_like(z)]

    return path.plan(f"sit_ode-{steps}", path.level(ends[1]), recurrence(rows, 1 + two, 1, step), raw)


def _sbdm(process: Process, t: Array, norm: float) -> Array:
    alpha, sigma = process.schedule(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        return norm * sigma / alpha * process.schedule.wronskian(t)


# The diffusion of each form as a function of the process, t limited to its span, tau and norm.
FORMS: Mapping[str, Callable[[Process, Array, Array, float], Array]] = {
    "constant": lambda process, t, tau, norm: np.full_like(tau, norm),
    "sbdm": lambda process, t, tau, norm: _sbdm(process, t, norm),
    "sigma": lambda process, t, tau, norm: norm * process.schedule(t)[1],
    "linear": lambda process, t, tau, norm: norm * (1.0 - tau),
    "decreasing": lambda process, t, tau, norm: 0.25 * (norm * np.cos(np.pi * tau) + 1.0) ** 2,
    "increasing-decreasing": lambda process, t, tau, norm: norm * np.sin(np.pi * tau) ** 2,
}


@sampler(
    family=OWN_TIMES,
    paper="Ma et al. 2024",
    url="https://arxiv.org/abs/2401.08740",
    equation="section 2.4, and their code",
    evaluations="N, or 2N with `method: heun`",
    requires="continuous time from 0 to 1",
    notes="Stochastic; the `SDE` of SiT's code, whose `num_steps` is N, or N + 1 without last step.",
)
def sit_sde(
    process: Process,
    steps: int = 250,
    method: str = "euler",
    form: str = "sigma",
    norm: float = 1.0,
    last_step: str | None = "mean",
    last_step_size: float = 0.04,
    eps: float | None = None,
) -> SamplerPlan:
    """Make the plan of an SDE of SiT.

    Args:
        process: the process that the network was trained for, in continuous time from 0 to 1.
        steps: N, the number of steps with the last one.
        method: ``"euler"``, or ``"heun"`` with two evaluations in every step but the last.
        form: of the diffusion, one of `FORMS`.
        norm: factor in the diffusion.
        last_step: ``"mean"``, ``"tweedie"``, ``"euler"``, or None for none.
        last_step_size: the part of the time that it takes.
        eps: where times are cut, see the module; None is the default of SiT's code.

    Raises:
        DuetError: for a table, an unknown name, or a number that is out of range.

    Example:
        >>> from diffusion_core.diffusion.continuous import flow_continuous
        >>> sit_sde(Process(flow_continuous(t_min=1e-12), "velocity"), steps=10)
        SamplerPlan('sit_sde-10', rows=10, registers=1, stochastic=True)
    """
    _checked("sit_sde", process, steps, method, eps)
    _check_sde(steps, form, norm, last_step, last_step_size)
    start, end = _ends(process, eps, form == "sbdm")
    end = 1.0 - last_step_size if last_step else end
    count = steps - bool(last_step)  # of the steps before the last one
    if not start < end:
        raise DuetError(f"sampler.last_step_size: {last_step_size} was given; it leaves no time before the last step")
    points, h = np.linspace(start, end, count + 1), (end - start) / count
    two = method == "heun"
    # A first row that adds the noise of the first step, then two evaluations in each.
    inner = np.append(points[0], np.stack([points[:-1], points[1:]], axis=1)) if two else points[:-1]
    path = _Path(process, np.append(inner, end) if last_step else inner)
    rows, w = len(path.tau), FORMS[form](process, path.t, path.tau, norm)
    if not np.all(np.isfinite(w)):
        raise DuetError("sampler.form: sbdm was given, but it divides by alpha, which is 0 at the start; use eps=0.001")
    if two and not last_step and path.level(end)[1] == 0:
        raise DuetError("sampler.eps: 0 was given, but Heun's last evaluation needs noise; use 0.001, or a last_step")

    def slope(i: int, x: Coefficients, D: Coefficients) -> Coefficients:
        return path.velocity(i, x, D) + w[i] * path.score(i, x, D)

    def last(i: int, X: Coefficients, D: Coefficients) -> Coefficients:
        if last_step == "tweedie":
            return D
        return X + last_step_size * (slope(i, X, D) if last_step == "mean" else path.velocity(i, X, D))

    def step(i: int, X: Coefficients, D: Coefficients, z: Coefficients) -> list[Coefficients]:
        none = np.zeros_like(z)
        if last_step and i == rows - 1:
            return [last(i, X[0], D[0]), none][: 1 + two]
        if not two:
            return [X[0] + h * slope(i, X[0], D[0]) + math.sqrt(2 * w[i] * h) * z]
        if i == 0:
            return [X[0] + math.sqrt(2 * w[0] * h) * z, none]
        if i % 2 == 1:
            return [X[0] + h * slope(i, X[0], D[0]), X[0] + 0.5 * h * slope(i, X[0], D[0])]
        fresh = math.sqrt(2 * w[i] * h) if i < 2 * count else 0.0  # of the next step
        return [X[1] + 0.5 * h * slope(i, X[0], D[0]) + fresh * z, none]

    level = (1.0, 0.0) if last_step else path.level(end)
    return path.plan(f"sit_sde-{steps}", level, recurrence(rows, 1 + two, 1, step))


def _check_sde(steps: int, form: str, norm: float, last_step: str | None, last_step_size: float) -> None:
    check_choice("sampler.form", form, FORMS)
    if last_step is not None and last_step not in LAST_STEPS:
        raise one_of("sampler.last_step", last_step, (*LAST_STEPS, "null"))
    if not 0 <= norm < math.inf:
        raise DuetError(f"sampler.norm: {norm} was given; it must be a number, at least 0 (no noise)")
    if last_step is not None and not 0 < last_step_size < 1:
        raise DuetError(f"sampler.last_step_size: {last_step_size} was given; it must be above 0 and below 1")
    if last_step is not None and steps < 2:
        raise DuetError(f"sampler.steps: {steps} was given; with a last_step it must be at least 2")

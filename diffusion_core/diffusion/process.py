r"""Processes: what the network predicts, as columns of numbers.

With ``x_t = alpha x_0 + sigma eps`` and the network's raw output F, every parameterisation is

    D(x_t) = c_skip x_t + c_out F(c_in x_t, c_noise)       the estimate of x_0
    target = target_x0 x_0 + target_eps eps                what F is trained to match

    prediction   target                         c_skip                    c_out                        c_in   c_noise
    eps          eps                            1/alpha                   -sigma/alpha                 1      t
    x0           x_0                            0                         1                            1      t
    v            alpha eps - sigma x_0          alpha/(alpha^2+sigma^2)   -sigma/(alpha^2+sigma^2)     1      t
    score        -eps/sigma                     1/alpha                   sigma^2/alpha                1      t
    flow         eps - x_0                      1/(alpha+sigma)           -sigma/(alpha+sigma)         1      t
    next_level   alpha_s x_0 + sigma_s eps      sigma_s/d                 -sigma_t/d                   1      t
    edm          (sigma x_0/m - m alpha eps)/q  m^2 alpha/q^2             m sigma/q                    1/q    log(r)/4
    trigflow     (m alpha eps - sigma x_0/m)/q  m^2 alpha/q^2             -m sigma/q                   1/q    atan(r/m)
    vp           eps                            1/alpha                   -r                           1/p    t
    ve           -eps                           1/alpha                   r                            1/alpha  log(r/2)
    iddpm        eps                            1/alpha                   -r                           1/p    level
    posterior_mean    k_x x_t + k_0 x_0         -k_x/k_0                  1/k_0                        1      t
    velocity     alpha' x_0 + sigma' eps        sigma'/w                  -sigma/w                     1      t
    velocity_to_data  -velocity                 sigma'/w                  sigma/w                      1      t
    denoiser     x_0                            0                         1                            1/alpha  r

    r = sigma/alpha,   m = sigma_data,   q = sqrt(m^2 alpha^2 + sigma^2),   p = sqrt(alpha^2 + sigma^2)

t is the timestep, on a respaced table that of the whole table, or the time of a continuous schedule. The network
receives ``time_scale c_noise + time_offset``: networks are trained with another unit of time, with timesteps from 1, or
with a time 1 - t that runs from noise to data (-1 and 1, as SiT and JiT). Timesteps count from t = 0, the least noisy
level (one noise step), upward. v is defined for any schedule; with alpha^2 + sigma^2 = 1 it is the usual one. flow is
eps - x_0 on every schedule; on the straight line, alpha = 1 - t and sigma = t, that is dx_t/dt.

edm, vp, ve and iddpm are the preconditionings of Karras et al., table 1, who add noise of scale sigma_edm = r to
unscaled data, x_t/alpha. So their c_skip and c_in are divided by alpha here; for edm all columns except c_noise then
remain finite where alpha is 0. With data of standard deviation m, edm has inputs and targets of variance 1. Their vp
with M = 1000 steps is time_scale = M - 1 = 999 on the schedule vp_sde. iddpm passes to the network the timestep of the
table that is nearest in r; Karras et al. count their table the other way, and reverse it before the network.

edm with a positive `boundary` b has the scalings of consistency models: c_skip is 1 and c_out is 0 at r = b, where the
estimate is x itself. With s = sigma - b alpha and p^2 = m^2 alpha^2 + s^2,

    c_skip = m^2 alpha/p^2,     c_out = m s/q,     target = s q/(m p^2) x_0 - m alpha sigma q/(p^2 s) eps

whose c_in and c_noise are those of edm, and which are those of edm for b = 0. The target of eps has no limit at b,
where F does not count; there it is 0.

trigflow is edm with the opposite sign of F and with the angle a = atan(r/m) as the time of the network (Lu & Song). For
x_t scaled to y = m x_t/q it is

    y = cos(a) x_0 + sin(a) m eps,      D = cos(a) y - sin(a) m F(y/m, a),      dy/da = m F

next_level maps x_t to x_s, the same image with the same eps at the next less noisy level s = t - 1, which after t = 0
is clean data, (1, 0). Its columns solve the equations of x_t and x_s for x_0, with
``d = sigma_s alpha_t - sigma_t alpha_s``. As alpha/sigma falls with t, d < 0 on every schedule, also where alpha_t is
0; but 1/d magnifies an error of F where levels are close, so it is meant for few levels.

posterior_mean is the mean of q(x_s | x_t, x_0) at the same level s, with the coefficients k_x and k_0 of `posterior`;
it is ModelMeanType.PREVIOUS_X in the code of Improved DDPM and ADM. Its target is alpha_s x_0 + k_x sigma_t eps, and
after t = 0 it is x_0. 1/k_0 is about 1/beta_t, so it too magnifies an error of F where levels are close. That code
takes the mean of an ancestral step from the output itself, also if it clips x_0: sampler=ddpm with clip null. And if it
samples some of the timesteps only, it reads the output as the mean of the longer step; here the output keeps the
meaning that it was trained for.

denoiser is a network that contains its preconditioning: it is given x_0 plus noise of scale r, and r itself, and
returns the estimate, as D(x; sigma) of Karras et al. and the models of k-diffusion do.

x0 with a positive `t_floor` reads the output F of the network as the velocity that divides by at least this t,

    dx_t/dt = (x_t - F) / max(t, t_floor),      D = (1 - c_out) x_t + c_out F,      c_out = t / max(t, t_floor)

on the straight line. Its error is then bounded near clean data, in the loss (weighting velocity) and in the sampler.

velocity is dx_t/dt along the schedule's own continuous time, which increases with the noise, with the derivatives
alpha' and sigma' and ``w = alpha sigma' - sigma alpha'``, see `continuous`. On the straight line it is flow.
velocity_to_data is the same along a time that runs from noise to data, as SiT and flow_matching have it, with the
opposite sign. All columns are float64.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    Progressive Distillation for Fast Sampling (Salimans & Ho, 2022), appendix D, https://arxiv.org/abs/2202.00512
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), the score,
    https://arxiv.org/abs/2011.13456
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), https://arxiv.org/abs/2102.09672, with
    its code (openai/improved-diffusion, improved_diffusion/gaussian_diffusion.py), the posterior mean
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), eq. 7 and table 1,
    https://arxiv.org/abs/2206.00364
    Consistency Models (Song et al., 2023), appendix C, with its code (openai/consistency_models,
    cm/karras_diffusion.py), the boundary of edm, https://arxiv.org/abs/2303.01469
    Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models (Lu & Song, 2024), section 3,
    https://arxiv.org/abs/2410.11081
    Back to Basics: Let Denoising Generative Models Denoise (Li & He, 2025), x0 with a floor, with its code
    (LTH14/JiT, denoiser.py), https://arxiv.org/abs/2511.13720
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.registry import check_fields
from diffusion_core.diffusion.continuous_schedule import sum_scale, sum_signal
from diffusion_core.diffusion.plot import plot_process
from diffusion_core.diffusion.schedule import AnySchedule

__all__ = [
    "PREDICTIONS",
    "Columns",
    "Process",
    "add_noise",
    "eps_from_x0",
    "flow_from_x0_eps",
    "unsupported_reason",
    "posterior",
    "score_from_x0",
    "v_from_x0_eps",
    "x0_from_eps",
    "x0_from_flow",
    "x0_from_score",
    "x0_from_v",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a process at some timesteps t; each has the shape of t.

    Args:
        c_skip: weight of x_t in the estimate D.
        c_out: weight of the network's output in D.
        c_in: factor of the network's input.
        c_noise: the noise level that the network receives.
        target_x0: weight of x_0 in the training target.
        target_eps: weight of eps in the training target.
    """

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array
    target_x0: Array
    target_eps: Array

    def __repr__(self) -> str:
        return f"Columns(shape={self.c_skip.shape})"


@dataclass(frozen=True, eq=False)
class _NoiseLevel:
    """The arguments of a function of `PREDICTIONS`: the schedule, t with its alpha and sigma, and the numbers."""

    schedule: AnySchedule
    t: Array
    alpha: Array
    sigma: Array
    sigma_data: float
    t_floor: float = 0.0
    boundary: float = 0.0

    @property
    def log_ratio(self) -> Array:
        """log(sigma/alpha); infinite without signal."""
        with np.errstate(divide="ignore"):
            return np.log(self.sigma) - np.log(self.alpha)


def _columns(
    at: _NoiseLevel,
    c_skip: ArrayLike,
    c_out: ArrayLike,
    target_x0: ArrayLike,
    target_eps: ArrayLike,
    c_in: ArrayLike = 1.0,
    c_noise: Array | None = None,
) -> Columns:
    """Return columns with the shape of t; by default the network receives x_t and t."""
    c_noise = at.schedule.network_t(at.t) if c_noise is None else c_noise
    columns = (c_skip, c_out, c_in, c_noise, target_x0, target_eps)
    return Columns(*(np.broadcast_to(column, at.alpha.shape).astype(np.float64) for column in columns))


def _eps(at: _NoiseLevel) -> Columns:
    return _columns(at, 1.0 / at.alpha, -at.sigma / at.alpha, 0.0, 1.0)


def _x0(at: _NoiseLevel) -> Columns:
    if not at.t_floor:
        return _columns(at, 0.0, 1.0, 1.0, 0.0)
    c_out = at.t / np.maximum(at.t, at.t_floor)
    return _columns(at, 1.0 - c_out, c_out, 1.0, 0.0)


def _v(at: _NoiseLevel) -> Columns:
    power = at.alpha**2 + at.sigma**2
    return _columns(at, at.alpha / power, -at.sigma / power, -at.sigma, at.alpha)


def _score(at: _NoiseLevel) -> Columns:
    return _columns(at, 1.0 / at.alpha, at.sigma**2 / at.alpha, 0.0, -1.0 / at.sigma)


def _flow(at: _NoiseLevel) -> Columns:
    total = at.alpha + at.sigma
    return _columns(at, 1.0 / total, -at.sigma / total, -1.0, 1.0)


def _next_lower(at: _NoiseLevel, prediction: str) -> tuple[Array, Array]:
    """Return (alpha_s, sigma_s) of the level below each t; below t = 0 it is clean data, (1, 0)."""
    if np.any(at.t != np.floor(at.t)):
        raise DuetError(
            f"process {prediction}: it is defined at whole timesteps only, not at t = {at.t.ravel()[:5]}; use "
            f"likelihood=vlb, or a sampler.spacing of whole timesteps, such as leading"
        )
    # The table shifted by one level: entry t is level t - 1, and entry 0 is clean data.
    t = at.t.astype(np.int64)
    return np.append(1.0, at.schedule.alpha)[t], np.append(0.0, at.schedule.sigma)[t]


def _next_level(at: _NoiseLevel) -> Columns:
    alpha_s, sigma_s = _next_lower(at, "next_level")
    determinant = sigma_s * at.alpha - at.sigma * alpha_s
    return _columns(at, sigma_s / determinant, -at.sigma / determinant, alpha_s, sigma_s)


def _posterior_mean(at: _NoiseLevel) -> Columns:
    alpha_s, sigma_s = _next_lower(at, "posterior_mean")
    from_x, from_x0, _, _ = posterior(at.alpha, at.sigma, alpha_s, sigma_s)
    return _columns(at, -from_x / from_x0, 1.0 / from_x0, alpha_s, from_x * at.sigma)


def _velocity(at: _NoiseLevel) -> Columns:
    w = at.schedule.wronskian(at.t)
    alpha_rate, sigma_rate = at.schedule.rates(at.t)
    return _columns(at, sigma_rate / w, -at.sigma / w, alpha_rate, sigma_rate)


def _velocity_to_data(at: _NoiseLevel) -> Columns:
    columns = _velocity(at)
    signs = {name: -getattr(columns, name) for name in ("c_out", "target_x0", "target_eps")}
    return replace(columns, **signs)


def _edm(at: _NoiseLevel) -> Columns:
    m, q = at.sigma_data, np.hypot(at.sigma_data * at.alpha, at.sigma)
    if at.boundary:
        above = at.sigma - at.boundary * at.alpha
        square = (m * at.alpha) ** 2 + above**2
        eps = np.divide(m * at.alpha * at.sigma * q, square * above, out=np.zeros_like(q), where=above != 0)
        return _columns(
            at,
            c_skip=m**2 * at.alpha / square,
            c_out=m * above / q,
            target_x0=above * q / (m * square),
            target_eps=-eps,
            c_in=1.0 / q,
            c_noise=at.log_ratio / 4.0,
        )
    return _columns(
        at,
        c_skip=m**2 * at.alpha / q**2,
        c_out=m * at.sigma / q,
        target_x0=at.sigma / (m * q),
        target_eps=-m * at.alpha / q,
        c_in=1.0 / q,
        c_noise=at.log_ratio / 4.0,
    )


def _trigflow(at: _NoiseLevel) -> Columns:
    columns, angle = _edm(replace(at, boundary=0.0)), np.arctan2(at.sigma, at.sigma_data * at.alpha)
    signs = {name: -getattr(columns, name) for name in ("c_out", "target_x0", "target_eps")}
    return replace(columns, c_noise=angle, **signs)


def _vp(at: _NoiseLevel) -> Columns:
    return _columns(at, 1.0 / at.alpha, -at.sigma / at.alpha, 0.0, 1.0, c_in=1.0 / np.hypot(at.alpha, at.sigma))


def _ve(at: _NoiseLevel) -> Columns:
    c_noise = at.log_ratio - np.log(2.0)
    return _columns(at, 1.0 / at.alpha, at.sigma / at.alpha, 0.0, -1.0, c_in=1.0 / at.alpha, c_noise=c_noise)


def _iddpm(at: _NoiseLevel) -> Columns:
    ratio = np.exp(at.schedule.log_ratio)
    nearest = np.searchsorted(0.5 * (ratio[:-1] + ratio[1:]), at.sigma / at.alpha)
    c_in = 1.0 / np.hypot(at.alpha, at.sigma)
    return _columns(
        at, 1.0 / at.alpha, -at.sigma / at.alpha, 0.0, 1.0, c_in=c_in, c_noise=at.schedule.network_t(nearest)
    )


def _denoiser(at: _NoiseLevel) -> Columns:
    return _columns(at, 0.0, 1.0, 1.0, 0.0, c_in=1.0 / at.alpha, c_noise=at.sigma / at.alpha)


# What other libraries call them.
_OTHER_NAMES = {
    "epsilon": "eps",
    "sample": "x0",
    "start_x": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
    "previous_x": "posterior_mean",
}

# The columns of each prediction as a function of the noise level. To add a prediction, add a function here.
PREDICTIONS: dict[str, Callable[[_NoiseLevel], Columns]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "score": _score,
    "flow": _flow,
    "next_level": _next_level,
    "edm": _edm,
    "trigflow": _trigflow,
    "vp": _vp,
    "ve": _ve,
    "iddpm": _iddpm,
    "posterior_mean": _posterior_mean,
    "velocity": _velocity,
    "velocity_to_data": _velocity_to_data,
    "denoiser": _denoiser,
}
# Predictions that are defined where alpha is 0, and predictions that need the timesteps of a table.
_WITHOUT_SIGNAL = ("x0", "v", "flow", "next_level", "posterior_mean", "velocity", "velocity_to_data", "trigflow")
_TABLE_ONLY = ("next_level", "posterior_mean", "iddpm")


def _without_velocity(schedule: AnySchedule) -> str | None:
    if schedule.is_table:
        return (
            f"it needs continuous time, but {schedule.name} is a table; use prediction flow, or a continuous schedule"
        )
    if schedule.wronskian_at is None:
        return f"the derivatives of {schedule.name} are unknown; give wronskian_at, or use prediction flow"
    if not np.all((w := schedule.wronskian(np.array(schedule.span))) > 0) or np.any(np.isinf(w)):
        return f"x_t of {schedule.name} has no finite velocity above 0 at an end; use a smaller t_max, or prediction v"
    return None


def unsupported_reason(schedule: AnySchedule, prediction: str) -> str | None:
    """Return why a prediction is not defined on a schedule, as text; None if it is defined."""
    if prediction in _TABLE_ONLY and not schedule.is_table:
        return f"it needs the timesteps of a table, but the time of {schedule.name} is continuous"
    if prediction in ("velocity", "velocity_to_data") and (why := _without_velocity(schedule)):
        return why
    if prediction not in _WITHOUT_SIGNAL and schedule.log_ratio_range[1] == np.inf:
        problem = (
            "log(sigma/alpha) is infinite" if prediction == "edm" else f"x_0 cannot be recovered from {prediction}"
        )
        return f"{problem} where alpha is 0; use prediction v or x0"
    return None


@dataclass(frozen=True, eq=False)
class Process:
    """A noise schedule with the prediction of a network.

    Args:
        schedule: the noise levels.
        prediction: one of `PREDICTIONS`.
        time_scale: factor of c_noise, not 0; 1000/T for networks trained with "rescaled timesteps", 999 for those of
            the VP SDE, -1 for a time that runs from noise to data.
        sigma_data: standard deviation of the data, used by edm and trigflow only.
        time_offset: what is added to the scaled c_noise: 1 for timesteps that count from 1, or for a time 1 - t.
        t_floor: the least t that the velocity of x0 is divided by; 0 for no floor.
        boundary: the sigma/alpha at which the estimate of edm is x itself, as in consistency models, their least; 0 for
            that of EDM.

    Raises:
        DuetError: for an unknown prediction, one that is not defined on the schedule, or a number that is out of range.

    Example:
        >>> from diffusion_core.diffusion.schedule import linear
        >>> process = Process(linear(), "v")
        >>> process
        Process(Schedule('linear', T=1000), 'v')
        >>> columns = process.columns([0, 999])
        >>> columns.c_skip.round(4).tolist(), columns.c_out.round(4).tolist()
        ([0.9999, 0.0064], [-0.01, -1.0])
    """

    schedule: AnySchedule
    prediction: str = "eps"
    time_scale: float = 1.0
    sigma_data: float = 0.5
    time_offset: float = 0.0
    t_floor: float = 0.0
    boundary: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, AnySchedule):
            raise DuetError(
                f"process.schedule: {self.schedule!r} was given; make it first, as in "
                'make_schedule("linear"), or give the name to a model'
            )
        check_fields("process", self)
        if own := _OTHER_NAMES.get(str(self.prediction).lower()):
            raise DuetError(f"process.prediction: {self.prediction!r} was given; Duet calls it {own!r}")
        check_choice("process.prediction", self.prediction, PREDICTIONS)
        if not 0 < self.sigma_data < np.inf:
            raise DuetError(f"process.sigma_data: {self.sigma_data} was given; it must be a positive number")
        if not 0 < abs(self.time_scale) < np.inf:
            raise DuetError(f"process.time_scale: {self.time_scale} was given; it must be a number other than 0")
        if not np.isfinite(self.time_offset):
            raise DuetError(f"process.time_offset: {self.time_offset} was given; it must be a number")
        self._check_floor()
        self._check_boundary()
        if why := unsupported_reason(self.schedule, self.prediction):
            raise DuetError(f"process {self.prediction}: {why}")

    def _check_floor(self) -> None:
        if not 0 <= self.t_floor < np.inf:
            raise DuetError(f"process.t_floor: {self.t_floor} was given; it must be a time, at least 0")
        if not self.t_floor:
            return
        if self.prediction != "x0":
            raise DuetError(
                f"process.t_floor: {self.t_floor:g} was given with prediction {self.prediction}, which has no floor; "
                "use 0, or prediction x0"
            )
        line = self.schedule
        t = np.zeros(0) if line.is_table else line.even_timesteps(5)
        is_line = not line.is_table and sum_scale(line.norm) is not None and sum_signal(line.norm) == 1
        if not is_line or not np.allclose(line(t)[0], 1.0 - t, rtol=0, atol=1e-12):
            raise DuetError(
                f"process.t_floor: {self.t_floor:g} was given on the schedule {line.name}; a floor is defined on the "
                "straight line only, so use 0, or the schedule flow_continuous without a shift and a sigma_min"
            )

    def _check_boundary(self) -> None:
        if not 0 <= self.boundary < np.inf:
            raise DuetError(f"process.boundary: {self.boundary} was given; it must be a sigma/alpha, at least 0")
        if self.boundary and self.prediction != "edm":
            raise DuetError(
                f"process.boundary: {self.boundary:g} was given with prediction {self.prediction}, which has no "
                "boundary; use 0, or prediction edm"
            )
        least = np.exp(self.schedule.log_ratio_range[0])
        if self.boundary > least * (1 + 1e-9):
            raise DuetError(
                f"process.boundary: {self.boundary:g} was given, but the least sigma/alpha of the schedule "
                f"{self.schedule.name} is {least:g}; the boundary must not lie above it"
            )

    def __repr__(self) -> str:
        numbers = ("time_scale", "sigma_data", "time_offset", "t_floor", "boundary")
        options = {name: getattr(self, name) for name in numbers}
        changed = "".join(f", {name}={value:g}" for name, value in options.items() if value != getattr(Process, name))
        return f"Process({self.schedule!r}, {self.prediction!r}{changed})"

    def plot(self, axes: Any = None) -> Any:
        """Draw c_skip, c_out and c_in over t with matplotlib; return the axes. See `plot.plot_process`."""
        return plot_process(self, axes)

    @property
    def alphas_cumprod(self) -> Array:
        """alpha^2 of each timestep, with shape (T,); see `Schedule.alphas_cumprod`."""
        return self.schedule.alphas_cumprod

    @property
    def snr(self) -> Array:
        """The signal-to-noise ratio of each timestep, with shape (T,); see `Schedule.snr`."""
        return self.schedule.snr

    def columns(self, t: ArrayLike) -> Columns:
        """Return the columns at the timesteps t, in the span of the schedule; next_level takes integers only."""
        t = np.asarray(t)
        return self.columns_at(t, *self.schedule(t))

    def columns_at(self, t: Array, alpha: Array, sigma: Array, boundary: float | None = None) -> Columns:
        """Return the columns at the times t with these levels, which may lie outside the span of the schedule.

        A `boundary` replaces that of the process.
        """
        boundary = self.boundary if boundary is None else boundary
        level = _NoiseLevel(self.schedule, t, alpha, sigma, self.sigma_data, self.t_floor, boundary)
        columns = PREDICTIONS[self.prediction](level)
        return replace(columns, c_noise=self.time_scale * columns.c_noise + self.time_offset)


def _per_image(column: ArrayLike, like: NDArray) -> Array:
    """Return a column with shape (B,), or a number, in a shape that broadcasts over images with shape (B, ...)."""
    column = np.asarray(column, dtype=np.float64)
    return column.reshape(column.shape + (1,) * (like.ndim - column.ndim)) if column.ndim else column


def add_noise(x0: NDArray, eps: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return x_t = alpha x_0 + sigma eps (Ho et al., eq. 4).

    Args:
        x0: images, with shape (B, ...).
        eps: normal noise, with the same shape.
        alpha: one number, or one for each image, with shape (B,).
        sigma: the same.

    Example:
        >>> add_noise(np.ones((2, 3)), np.zeros((2, 3)), [0.5, 0.1], [0.8, 0.9]).tolist()
        [[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]
    """
    return _per_image(alpha, x0) * x0 + _per_image(sigma, eps) * eps


def x0_from_eps(x: NDArray, eps: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return x_0 = (x_t - sigma eps) / alpha."""
    return (x - _per_image(sigma, x) * eps) / _per_image(alpha, x)


def eps_from_x0(x: NDArray, x0: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return eps = (x_t - alpha x_0) / sigma."""
    return (x - _per_image(alpha, x) * x0) / _per_image(sigma, x)


def v_from_x0_eps(x0: NDArray, eps: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return v = alpha eps - sigma x_0 (Salimans & Ho, appendix D)."""
    return _per_image(alpha, x0) * eps - _per_image(sigma, x0) * x0


def x0_from_v(x: NDArray, v: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)."""
    a, s = _per_image(alpha, x), _per_image(sigma, x)
    return (a * x - s * v) / (a**2 + s**2)


def flow_from_x0_eps(x0: NDArray, eps: NDArray) -> NDArray:
    """Return the flow's velocity eps - x_0 (Lipman et al., 2022), at any noise level."""
    return eps - x0


def x0_from_flow(x: NDArray, flow: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return x_0 = (x_t - sigma flow) / (alpha + sigma)."""
    a, s = _per_image(alpha, x), _per_image(sigma, x)
    return (x - s * flow) / (a + s)


def score_from_x0(x: NDArray, x0: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return the score grad log p(x_t | x_0) = -(x_t - alpha x_0) / sigma^2 = -eps / sigma."""
    return -eps_from_x0(x, x0, alpha, sigma) / _per_image(sigma, x)


def x0_from_score(x: NDArray, score: NDArray, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """Return x_0 = (x_t + sigma^2 score) / alpha (Tweedie)."""
    return (x + _per_image(sigma, x) ** 2 * score) / _per_image(alpha, x)


def posterior(
    alpha_t: ArrayLike, sigma_t: ArrayLike, alpha_s: ArrayLike, sigma_s: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    r"""Return the posterior q(x_s | x_t, x_0) for a less noisy level s < t, of any schedule (Ho et al., eqs. 6 and 7).

    With ``a = alpha_t/alpha_s`` and ``b = sigma_t^2 - a^2 sigma_s^2`` (beta_t when s = t - 1)::

        mean     = (a sigma_s^2 / sigma_t^2) x_t + (alpha_s b / sigma_t^2) x_0
        variance = b sigma_s^2 / sigma_t^2

    Returns:
        (coefficient of x_t, coefficient of x_0, variance, b). At s = clean data, (1, 0), the variance is 0.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (np.asarray(v, dtype=np.float64) for v in (alpha_t, sigma_t, alpha_s, sigma_s))
    ratio = alpha_t / alpha_s
    # sigma_t^2 - a^2 sigma_s^2 as a product of sum and difference: fewer digits cancel at close levels.
    step = (sigma_t - ratio * sigma_s) * (sigma_t + ratio * sigma_s)
    return ratio * (sigma_s / sigma_t) ** 2, alpha_s * step / sigma_t**2, step * (sigma_s / sigma_t) ** 2, step

r"""Noise schedules: how much signal and how much noise there is at a time t.

    x_t = alpha_t x_0 + sigma_t eps,      eps ~ N(0, 1)

A *law* is a function of continuous time, ``t in [0, 1] -> (alpha, sigma)``. A *schedule* is a table
of T levels, ``t in {0 .. T-1} -> (alpha, sigma)``, where **t = 0 means one noise step**, not clean data.
The discrete schedules of DDPM are given by their betas,

    alphas_cumprod_t = prod_{i <= t} (1 - beta_i),    alpha_t^2 = alphas_cumprod_t,   sigma_t^2 = 1 - alphas_cumprod_t

and are accumulated as ``log(1 - beta)``, which keeps ``1 - alphas_cumprod`` exact to a few units in the
last place where the plain product loses five digits. Every table is float64 and is cast only by its user.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), https://arxiv.org/abs/2102.09672
    Scalable Adaptive Computation for Iterative Generation (Jabri et al., 2022), https://arxiv.org/abs/2212.11972
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.errors import DuetError
from diffusion_core.registry import build

__all__ = [
    "SCHEDULES",
    "Schedule",
    "cosine",
    "flow",
    "flow_law",
    "from_alphas_cumprod",
    "from_betas",
    "linear",
    "make_schedule",
    "plain_as_written",
    "quadratic",
    "scaled_linear",
    "sigmoid",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of T noise levels, from the cleanest (t = 0) to the noisiest (t = T-1).

    Args:
        name: its name in a configuration.
        alpha: signal scale per level, with shape (T,).
        sigma: noise scale per level, with shape (T,).

    Raises:
        DuetError: if the signal-to-noise ratio does not fall from each level to the next.
    """

    name: str
    alpha: Array
    sigma: Array

    def __post_init__(self) -> None:
        alpha, sigma = self.alpha, self.sigma
        if alpha.ndim != 1 or alpha.shape != sigma.shape or not len(alpha):
            raise DuetError(f"schedule {self.name}: alpha {alpha.shape} and sigma {sigma.shape} must be equal, (T,)")
        if not (np.all(np.isfinite([alpha, sigma])) and np.all(alpha >= 0) and np.all(sigma > 0)):
            raise DuetError(f"schedule {self.name}: both must be finite, alpha >= 0 and sigma > 0 at every level")
        if np.any(np.diff(alpha / sigma) >= 0):
            raise DuetError(f"schedule {self.name}: alpha/sigma must fall at every step")
        for table in (alpha, sigma):
            table.setflags(write=False)

    def __call__(self, t: ArrayLike) -> tuple[Array, Array]:
        """(alpha, sigma) at the levels t, whole numbers in [0, T)."""
        t = np.asarray(t)
        if t.size and (not np.issubdtype(t.dtype, np.integer) or t.min() < 0 or t.max() >= self.steps):
            raise DuetError(f"schedule {self.name}: t must be whole and in 0..{self.steps - 1}, not {t.ravel()[:5]}")
        return self.alpha[t], self.sigma[t]

    @property
    def steps(self) -> int:
        """T, the number of levels."""
        return len(self.alpha)

    @property
    def log_snr(self) -> Array:
        """log(alpha^2 / sigma^2) per level; -inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log(self.alpha) - np.log(self.sigma))

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 at every level."""
        return bool(np.allclose(self.alpha**2 + self.sigma**2, 1.0, rtol=0, atol=1e-12))


def from_betas(betas: ArrayLike, name: str = "betas") -> Schedule:
    """The variance-preserving schedule with the given betas, shape (T,), each in (0, 1)."""
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1:
        raise DuetError(f"schedule {name}: betas with shape {betas.shape} were given; they must be (T,)")
    if np.any(betas <= 0) or np.any(betas >= 1):
        raise DuetError(f"schedule {name}: every beta must be in (0, 1); given {betas.min():g} .. {betas.max():g}")
    log_alphas_cumprod = np.cumsum(np.log1p(-betas))
    return Schedule(name, np.exp(0.5 * log_alphas_cumprod), np.sqrt(-np.expm1(log_alphas_cumprod)))


def from_alphas_cumprod(law: Callable[[Array], Array], T: int, name: str, max_beta: float = 0.999) -> Schedule:
    """The schedule whose betas follow a law of alphas_cumprod on [0, 1], cut at `max_beta`."""
    levels = law(np.arange(T + 1, dtype=np.float64) / T)
    return from_betas(np.clip(1.0 - levels[1:] / levels[:-1], 1e-12, max_beta), name)


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas on a line (Ho et al., 2020, section 4). They are not rescaled when T changes."""
    return from_betas(np.linspace(beta_start, beta_end, T), "linear")


def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """Square roots of the betas on a line, with the defaults of latent diffusion."""
    return _from_roots(T, beta_start, beta_end, "scaled_linear")


def quadratic(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Square roots of the betas on a line, with the range of DDPM."""
    return _from_roots(T, beta_start, beta_end, "quadratic")


def _from_roots(T: int, beta_start: float, beta_end: float, name: str) -> Schedule:
    if min(beta_start, beta_end) <= 0:
        raise DuetError(f"schedule {name}: every beta must be in (0, 1); given {beta_start:g} .. {beta_end:g}")
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2, name)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alphas_cumprod = cos^2((t + s)/(1 + s) pi/2) (Nichol & Dhariwal, 2021, eq. 17)."""
    return from_alphas_cumprod(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, T, "cosine", max_beta)


def sigmoid(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """alphas_cumprod falls from 1 to 0 along a sigmoid (Jabri et al., 2022, algorithm 2)."""

    def law(u: Array) -> Array:
        def logistic(v: float | Array) -> Array:
            return 1.0 / (1.0 + np.exp(-np.asarray(v) / tau))

        return (logistic(end) - logistic(start + u * (end - start))) / (logistic(end) - logistic(start))

    return from_alphas_cumprod(law, T, "sigmoid", max_beta)


def flow_law(t: ArrayLike) -> tuple[Array, Array]:
    """The straight line of flow matching in continuous time: alpha = 1 - t, sigma = t for t in [0, 1]."""
    t = np.asarray(t, dtype=np.float64)
    return 1.0 - t, t


def flow(T: int = 1000) -> Schedule:
    """`flow_law` tabulated at (t + 1)/T, so that the last level is noise alone (alpha = 0)."""
    alpha, sigma = flow_law(np.arange(1, T + 1) / T)
    return Schedule("flow", alpha, sigma)


def plain_as_written(T: int = 1000) -> Schedule:
    """alphas_cumprod themselves on a line, from 0.02 at t = 0 down to 1e-4 at t = T-1.

    A widespread slip: the range of DDPM's betas, ``linspace(1e-4, 0.02)``, is used as if it were
    alphas_cumprod, here in the order in which noise rises with t. It is no sensible schedule: already t = 0
    is almost pure noise (alpha 0.14, sigma 0.99), so no level shows more than a trace of the picture and the last
    sampling step has to make all of it. It is kept so that experiments written that way can be repeated as they
    were; `linear` is what they meant.
    """
    alphas_cumprod = np.linspace(0.02, 1e-4, T)
    return Schedule("plain_as_written", np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "quadratic": quadratic,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "flow": flow,
    "plain_as_written": plain_as_written,
}


def make_schedule(name: str, **options: object) -> Schedule:
    """The schedule of that name.

    Raises:
        DuetError: for a name or an option that does not exist, or a T below 2.
    """
    T = options.get("T", 2)
    if isinstance(T, int) and T < 2:
        raise DuetError(f"schedule.T: {T} was given; a schedule has at least 2 levels")
    return build("schedule", SCHEDULES, name, options)

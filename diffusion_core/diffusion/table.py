r"""A table of noise levels: the class of every discrete schedule, from alphas and sigmas or from betas.

    x_t = alpha_t x_0 + sigma_t eps,      t in {0 .. T-1},      t = 0 means one noise step

    alphas_cumprod_t = prod_{i <= t} (1 - beta_i),    alpha_t^2 = alphas_cumprod_t,   sigma_t^2 = 1 - alphas_cumprod_t

Betas are accumulated as ``log(1 - beta)``, which keeps ``1 - alphas_cumprod`` exact to a few units in the last place,
where the plain product loses five digits. Between two levels, at a fractional t, log(sigma/alpha) is linear in t and
the schedule's norm is preserved (alpha^2 + sigma^2 = 1, alpha + sigma = 1 or alpha = 1); next to a level without
signal, where the logarithm is infinite, alpha/sigma is linear instead. All tables are float64.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), eq. 4, https://arxiv.org/abs/2006.11239
    k-diffusion (crowsonkb/k-diffusion, k_diffusion/external.py), levels between two timesteps
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.plot import plot_schedule

__all__ = ["Schedule", "from_alphas_cumprod", "from_betas"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of T noise levels, from the cleanest (t = 0) to the noisiest (t = T-1).

    Args:
        name: the name in a configuration.
        alpha: signal scale of each level, with shape (T,).
        sigma: noise scale of each level, with shape (T,).
        timesteps: the timestep of each level that the network receives, rising, with shape (T,); None for t itself.
        options: the name and the options of `schedule.make_schedule` that made it; None if something else did.

    Raises:
        DuetError: if the signal-to-noise ratio does not fall from each level to the next.

    Example:
        >>> schedule = from_betas(np.linspace(1e-4, 0.02, 1000), "linear")
        >>> schedule
        Schedule('linear', T=1000)
        >>> schedule.alphas_cumprod[[0, 999]].round(6).tolist()
        [0.9999, 4e-05]
        >>> alpha, sigma = schedule([10, 10.5])  # an integer timestep, and one between two
        >>> schedule.t_at_log_ratio(np.log(sigma / alpha)).round(6).tolist()
        [10.0, 10.5]
    """

    name: str
    alpha: Array
    sigma: Array
    timesteps: Array | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        alpha, sigma = self.alpha, self.sigma
        if alpha.ndim != 1 or alpha.shape != sigma.shape or not len(alpha):
            raise DuetError(f"schedule {self.name}: alpha {alpha.shape} and sigma {sigma.shape} must be equal, (T,)")
        if not (np.all(np.isfinite([alpha, sigma])) and np.all(alpha >= 0) and np.all(sigma > 0)):
            raise DuetError(f"schedule {self.name}: both must be finite, alpha >= 0 and sigma > 0 at every level")
        if np.any(np.diff(alpha / sigma) >= 0):
            raise DuetError(f"schedule {self.name}: alpha/sigma must fall at every step")
        if self.timesteps is not None and (self.timesteps.shape != alpha.shape or np.any(np.diff(self.timesteps) <= 0)):
            raise DuetError(f"schedule {self.name}: timesteps must rise, with shape {alpha.shape}")
        for table in (alpha, sigma, self.timesteps):
            if table is not None:
                table.setflags(write=False)

    def __repr__(self) -> str:
        kept = "" if self.timesteps is None else f", timesteps={self.timesteps[0]:g}..{self.timesteps[-1]:g}"
        return f"Schedule({self.name!r}, T={self.steps}{kept})"

    def __call__(self, t: ArrayLike) -> tuple[Array, Array]:
        """Return (alpha, sigma) at the timesteps t in [0, T-1], integers or between two, both with the shape of t."""
        t = np.asarray(t)
        if t.size and not (t.min() >= 0 and t.max() <= self.steps - 1):
            raise DuetError(f"schedule {self.name}: t must be in 0..{self.steps - 1}, not {t.ravel()[:5]}")
        below = np.floor(t).astype(np.int64)
        fraction = t - below
        if not np.any(fraction):
            return self.alpha[below], self.sigma[below]
        above = np.minimum(below + 1, self.steps - 1)
        no_signal = self.alpha[above] == 0
        with np.errstate(divide="ignore", invalid="ignore"):
            mixed = self.log_ratio[below] + fraction * (self.log_ratio[above] - self.log_ratio[below])
            ratio = np.where(no_signal, (1.0 - fraction) * self.alpha[below] / self.sigma[below], np.exp(-mixed))
        norm = (1.0 - fraction) * self.norm(self.alpha[below], self.sigma[below])
        norm = norm + fraction * self.norm(self.alpha[above], self.sigma[above])
        scale = norm / self.norm(ratio, np.ones_like(ratio))
        fractional = fraction > 0
        return (
            np.where(fractional, scale * ratio, self.alpha[below]),
            np.where(fractional, scale, self.sigma[below]),
        )

    def network_t(self, t: ArrayLike) -> Array:
        """Return the timesteps that the network receives at t, integers or between two, with the shape of t."""
        return np.asarray(t) if self.timesteps is None else np.interp(t, np.arange(self.steps), self.timesteps)

    def respaced(self, kept: NDArray[np.int64]) -> Schedule:
        """Return the table of some of the levels, whose network receives the same timesteps as before."""
        return Schedule(self.name, self.alpha[kept], self.sigma[kept], np.asarray(self.network_t(kept), np.float64))

    def t_at_log_ratio(self, log_ratio: ArrayLike) -> Array:
        """Return the t, integer or fractional, at which log(sigma/alpha) has these values: the inverse of a call.

        Raises:
            DuetError: for more or less noise than the schedule has.
        """
        wanted = np.asarray(log_ratio, dtype=np.float64)
        table = self.log_ratio
        slack = 1e-9 * max(1.0, abs(table[0]), abs(table[-2]))
        if wanted.size and not (wanted.min() >= table[0] - slack and wanted.max() <= table[-1] + slack):
            raise DuetError(
                f"schedule {self.name}: sigma/alpha {np.exp(wanted.min()):.6g} .. {np.exp(wanted.max()):.6g} was "
                f"given; the schedule has {np.exp(table[0]):.6g} .. {np.exp(table[-1]):.6g}"
            )
        levels = np.arange(self.steps, dtype=np.float64)
        if np.isfinite(table[-1]):
            return np.interp(wanted, table, levels)
        ratio = self.alpha[-2] / self.sigma[-2]
        last = self.steps - 1 - np.exp(-wanted) / ratio
        return np.where(wanted > table[-2], last, np.interp(wanted, table[:-1], levels[:-1]))

    @cached_property
    def log_ratio(self) -> Array:
        """log(sigma/alpha) of each level, rising, with shape (T,); inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.sigma) - np.log(self.alpha)

    @property
    def log_ratio_range(self) -> tuple[float, float]:
        """The smallest and the largest log(sigma/alpha); inf where alpha is 0."""
        return float(self.log_ratio[0]), float(self.log_ratio[-1])

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest t."""
        return 0.0, float(self.steps - 1)

    @property
    def is_table(self) -> bool:
        """Whether the schedule is a table of timesteps: yes."""
        return True

    @property
    def difference_step(self) -> float:
        """The difference of t for numerical derivatives: one timestep."""
        return 1.0

    @property
    def length(self) -> float:
        """The length of the whole time, T."""
        return float(self.steps)

    def even_timesteps(self, n: int) -> NDArray[np.int64]:
        """Return n integer timesteps at about equal distances from 0 to T-1; for n = 1 the least noisy, 0."""
        return np.linspace(0, self.steps - 1, n).astype(np.int64)

    def shift_log_snr(self, by: float) -> Schedule:
        """Return the schedule with `by` added to its log-SNR at every level; see `with_log_snr_shift`."""
        alpha = np.exp(0.5 * by) * self.alpha
        scale = self.norm(self.alpha, self.sigma) / self.norm(alpha, self.sigma)
        return Schedule(self.name, scale * alpha, scale * self.sigma, self.timesteps)

    @cached_property
    def norm(self) -> Callable[[Array, Array], Array]:
        """The function of (alpha, sigma) that is 1 at every level; for any other schedule, `numpy.hypot`."""
        norms = (np.hypot, np.add, lambda alpha, sigma: alpha)
        return next((n for n in norms if np.allclose(n(self.alpha, self.sigma), 1.0, rtol=0, atol=1e-12)), np.hypot)

    @property
    def steps(self) -> int:
        """T, the number of levels."""
        return len(self.alpha)

    @property
    def log_snr(self) -> Array:
        """log(alpha^2 / sigma^2) of each level, with shape (T,); -inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return 2.0 * (np.log(self.alpha) - np.log(self.sigma))

    def plot(self, axes: Any = None) -> Any:
        """Draw alpha, sigma and the log-SNR over t with matplotlib; return the axes. See `plot.plot_schedule`."""
        return plot_schedule(self, axes)

    @property
    def snr(self) -> Array:
        """The signal-to-noise ratio alpha^2 / sigma^2 of each level, with shape (T,)."""
        return np.square(self.alpha / self.sigma)

    @property
    def alphas_cumprod(self) -> Array:
        """alpha^2 of each level, the cumulative product of 1 - beta, with shape (T,).

        Raises:
            DuetError: for a schedule that does not preserve variance, which has no betas.
        """
        if not self.variance_preserving:
            raise DuetError(
                f"schedule {self.name}: alphas_cumprod is for schedules with alpha^2 + sigma^2 = 1; use alpha and sigma"
            )
        return np.square(self.alpha)

    @property
    def betas(self) -> Array:
        """beta of each level, with shape (T,); an error for a schedule that does not preserve variance.

        Example:
            >>> from_betas([0.1, 0.5]).betas.round(12).tolist()
            [0.1, 0.5]
        """
        signal = self.alphas_cumprod
        return 1.0 - signal / np.append(1.0, signal[:-1])

    @property
    def variance_preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1 at every level."""
        return bool(np.allclose(self.alpha**2 + self.sigma**2, 1.0, rtol=0, atol=1e-12))


def from_betas(betas: ArrayLike, name: str = "betas") -> Schedule:
    """Return the variance-preserving schedule with these betas, with shape (T,), each in (0, 1).

    Example:
        >>> from_betas([0.1, 0.5]).alphas_cumprod.round(12).tolist()
        [0.9, 0.45]
    """
    try:
        betas = np.asarray(betas, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DuetError(
            f"schedule {name}: betas {betas!r} were given; they must be numbers, with shape (T,)"
        ) from error
    if betas.ndim != 1:
        raise DuetError(f"schedule {name}: betas with shape {betas.shape} were given; they must be (T,)")
    if not np.all((betas > 0) & (betas < 1)):
        raise DuetError(
            f"schedule {name}: betas {betas.min():g} .. {betas.max():g} were given; every beta must be in (0, 1)"
        )
    log_alphas_cumprod = np.cumsum(np.log1p(-betas))
    return Schedule(name, np.exp(0.5 * log_alphas_cumprod), np.sqrt(-np.expm1(log_alphas_cumprod)))


def from_alphas_cumprod(
    alphas_cumprod: Callable[[Array], Array], T: int, name: str, max_beta: float = 0.999
) -> Schedule:
    """Return the schedule whose betas follow from alphas_cumprod as a function of t/T on [0, 1], cut at `max_beta`."""
    levels = alphas_cumprod(np.arange(T + 1, dtype=np.float64) / T)
    return from_betas(np.clip(1.0 - levels[1:] / levels[:-1], 1e-12, max_beta), name)

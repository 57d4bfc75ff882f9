r"""Noise schedules: how much signal and how much noise there is at a time t.

    x_t = alpha_t x_0 + sigma_t eps,      eps ~ N(0, 1)

A *schedule* is a table of T levels, ``t in {0 .. T-1} -> (alpha, sigma)``, where **t = 0 means one noise step**, not
clean data; or it is a law of continuous time, see `continuous`. Both have the same face, and `make_schedule` makes
either. The discrete schedules of DDPM are given by their betas,

    alphas_cumprod_t = prod_{i <= t} (1 - beta_i),    alpha_t^2 = alphas_cumprod_t,   sigma_t^2 = 1 - alphas_cumprod_t

and are accumulated as ``log(1 - beta)``, which keeps ``1 - alphas_cumprod`` exact to a few units in the
last place where the plain product loses five digits. Every table is float64 and is cast only by its user.

Between two levels, at a fractional t, log(sigma/alpha) is linear in t and the level stays on the schedule's curve
(alpha^2 + sigma^2 = 1, alpha + sigma = 1 or alpha = 1), as k-diffusion and diffusers have it where a solver visits
noise levels of its own. Next to a level without signal, where the logarithm is infinite, alpha/sigma is linear instead.

Two transformations fit every schedule, in this order, as options of `make_schedule` beside the schedule's own:

    log_snr_shift, shift_from, shift_to    log(alpha^2/sigma^2) + shift + 2 log(from/to)
    zero_terminal_snr                      alpha stretched so that alpha_0 stays and alpha_{T-1} = 0

The shift comes first, so that alpha_0 is the shifted one and the last level is noise alone either way.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), https://arxiv.org/abs/2102.09672
    Scalable Adaptive Computation for Iterative Generation (Jabri et al., 2022), https://arxiv.org/abs/2212.11972
    Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    Deep Unsupervised Learning using Nonequilibrium Thermodynamics (Sohl-Dickstein et al., 2015),
    https://arxiv.org/abs/1503.03585
    GeoDiff: a Geometric Diffusion Model for Molecular Conformation Generation (Xu et al., 2022),
    https://arxiv.org/abs/2203.02923
    Improved Noise Schedule for Diffusion Training (Hang et al., 2024), https://arxiv.org/abs/2407.03297
    simple diffusion: End-to-end diffusion for high resolution images (Hoogeboom et al., 2023),
    https://arxiv.org/abs/2301.11093
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
    https://arxiv.org/abs/2403.03206
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023), https://arxiv.org/abs/2305.08891
    The code of DDPM (hojonathanho/diffusion, diffusion_tf/diffusion_utils_2.py, get_beta_schedule) and diffusers 0.42.1
    (betas_for_alpha_bar, DDPMScheduler)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.registry import build
from diffusion_core.diffusion.continuous import CONTINUOUS, ContinuousSchedule, straight_line

__all__ = [
    "SCHEDULES",
    "AnySchedule",
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "flow",
    "straight_line",
    "from_alphas_cumprod",
    "from_betas",
    "jsd",
    "laplace",
    "linear",
    "make_schedule",
    "plain_as_written",
    "quadratic",
    "scaled_linear",
    "sigmoid",
    "sigmoid_betas",
    "transformed",
    "warmup10",
    "warmup50",
    "with_log_snr_shift",
    "with_zero_terminal_snr",
]

Array = NDArray[np.float64]
# A table of more would fill the memory.
MOST_LEVELS = 1_000_000


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
        """(alpha, sigma) at the levels t, in [0, T-1]; between two of them where t is fractional."""
        t = np.asarray(t)
        if t.size and not (t.min() >= 0 and t.max() <= self.steps - 1):
            raise DuetError(f"schedule {self.name}: t must be in 0..{self.steps - 1}, not {t.ravel()[:5]}")
        below = np.floor(t).astype(np.int64)
        share = t - below
        if not np.any(share):
            return self.alpha[below], self.sigma[below]
        above = np.minimum(below + 1, self.steps - 1)
        silent = self.alpha[above] == 0
        with np.errstate(divide="ignore", invalid="ignore"):
            mixed = self.log_ratio[below] + share * (self.log_ratio[above] - self.log_ratio[below])
            ratio = np.where(silent, (1.0 - share) * self.alpha[below] / self.sigma[below], np.exp(-mixed))
        norm = (1.0 - share) * self.curve(self.alpha[below], self.sigma[below])
        norm = norm + share * self.curve(self.alpha[above], self.sigma[above])
        scale = norm / self.curve(ratio, np.ones_like(ratio))
        fractional = share > 0
        return (
            np.where(fractional, scale * ratio, self.alpha[below]),
            np.where(fractional, scale, self.sigma[below]),
        )

    def t_at_log_ratio(self, log_ratio: ArrayLike) -> Array:
        """The t, whole or fractional, whose log(sigma/alpha) is given: the inverse of a call.

        Raises:
            DuetError: for more or less noise than the schedule has.
        """
        wanted = np.asarray(log_ratio, dtype=np.float64)
        table = self.log_ratio
        slack = 1e-9 * max(1.0, abs(table[0]), abs(table[-2]))
        if wanted.size and not (wanted.min() >= table[0] - slack and wanted.max() <= table[-1] + slack):
            raise DuetError(
                f"schedule {self.name}: sigma/alpha {np.exp(wanted.min()):.6g} .. {np.exp(wanted.max()):.6g} was "
                f"asked for; it has {np.exp(table[0]):.6g} .. {np.exp(table[-1]):.6g}"
            )
        levels = np.arange(self.steps, dtype=np.float64)
        if np.isfinite(table[-1]):
            return np.interp(wanted, table, levels)
        ratio = self.alpha[-2] / self.sigma[-2]
        last = self.steps - 1 - np.exp(-wanted) / ratio
        return np.where(wanted > table[-2], last, np.interp(wanted, table[:-1], levels[:-1]))

    @cached_property
    def log_ratio(self) -> Array:
        """log(sigma/alpha) per level, rising; inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.sigma) - np.log(self.alpha)

    @property
    def ends(self) -> tuple[float, float]:
        """log(sigma/alpha) at the first and at the last level; inf where alpha is 0."""
        return float(self.log_ratio[0]), float(self.log_ratio[-1])

    @property
    def span(self) -> tuple[float, float]:
        """The least and the noisiest t."""
        return 0.0, float(self.steps - 1)

    @property
    def is_table(self) -> bool:
        """Whether there are levels to count."""
        return True

    @property
    def tick(self) -> float:
        """The difference of t over which a slope is measured: one level."""
        return 1.0

    @property
    def length(self) -> float:
        """The difference of t that is the whole time, T."""
        return float(self.steps)

    def even_timesteps(self, n: int) -> NDArray[np.int64]:
        """So many levels from the cleanest to the noisiest, whole and as even as may be; of one the cleanest."""
        return np.linspace(0, self.steps - 1, n).astype(np.int64)

    def shift_log_snr(self, by: float) -> Schedule:
        """The schedule with `by` added to its log-SNR at every level; see `with_log_snr_shift`."""
        alpha = np.exp(0.5 * by) * self.alpha
        scale = self.curve(self.alpha, self.sigma) / self.curve(alpha, self.sigma)
        return Schedule(self.name, scale * alpha, scale * self.sigma)

    @cached_property
    def curve(self) -> Callable[[Array, Array], Array]:
        """What is 1 along the schedule's curve, and is linear in t between two levels of any other schedule."""
        norms = (np.hypot, np.add, lambda alpha, sigma: alpha)
        return next((n for n in norms if np.allclose(n(self.alpha, self.sigma), 1.0, rtol=0, atol=1e-12)), np.hypot)

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


AnySchedule = Schedule | ContinuousSchedule


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


def warmup10(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas on a line over the first tenth of the levels, then constant (the code of DDPM)."""
    return _warmup(T, beta_start, beta_end, T // 10, "warmup10")


def warmup50(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas on a line over the first half of the levels, then constant (the code of DDPM)."""
    return _warmup(T, beta_start, beta_end, T // 2, "warmup50")


def _warmup(T: int, beta_start: float, beta_end: float, rising: int, name: str) -> Schedule:
    betas = np.full(T, beta_end, dtype=np.float64)
    betas[:rising] = np.linspace(beta_start, beta_end, rising)
    return from_betas(betas, name)


def constant(T: int = 1000, beta: float = 0.02) -> Schedule:
    """The same beta at every level; "const" in the code of DDPM, where it is called beta_end."""
    return from_betas(np.full(T, beta), "constant")


def jsd(T: int = 1000) -> Schedule:
    """Betas 1/T, 1/(T-1), .. 1, so that alphas_cumprod = 1 - (t + 1)/T is a line that ends in noise alone.

    Each level erases the same share 1/T of the signal's power (Sohl-Dickstein et al., 2015, section 2.4.1, where it
    is for binomial data); the name is that of the code of DDPM. As alpha_{T-1} = 0, prediction eps is not defined.
    """
    levels = np.arange(T + 1, dtype=np.float64)
    return Schedule("jsd", np.sqrt(levels[-2::-1] / T), np.sqrt(levels[1:] / T))


def sigmoid_betas(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Betas along the logistic function of -6 .. 6 (Xu et al., 2022); diffusers has it as "sigmoid"."""
    return from_betas(beta_start + (beta_end - beta_start) * _logistic(np.linspace(-6, 6, T)), "sigmoid_betas")


def exponential(T: int = 1000, rate: float = 12.0) -> Schedule:
    """alphas_cumprod = exp(-rate u) at u = (t + 1)/T; the betas are constant, 1 - exp(-rate/T).

    It is "exp" of `betas_for_alpha_bar` in diffusers, whose cut of the betas at 0.999 is not reached from T = 2 on.
    """
    return from_betas(np.full(T, -np.expm1(-rate / T)), "exponential")


def laplace(T: int = 1000, mu: float = 0.0, b: float = 0.5, power: float = 0.5, max_beta: float = 0.999) -> Schedule:
    """The log-SNR of u, uniform in [0, 1], has Laplace's distribution around mu with scale b (Hang et al., 2024).

        lambda = mu - b sign(1/2 - u) log(1 - 2 |1/2 - u| + 1e-6)
        alphas_cumprod = (e^lambda / (1 + e^lambda))^power, divided by its value at u = 0

    The paper's alphas_cumprod has power 1. "laplace" of diffusers takes the root of it, the paper's alpha, as
    alphas_cumprod: power 1/2, the default here, so that the name means the same in both.

    Raises:
        DuetError: for a b or a power that is not positive.
    """
    if not (b > 0 and power > 0):
        raise DuetError(f"schedule laplace: b {b:g} and power {power:g} were given; both must be positive")

    def law(u: Array) -> Array:
        tail = np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
        return _logistic(mu - b * np.where(u <= 0.5, tail, -tail)) ** power

    return from_alphas_cumprod(law, T, "laplace", max_beta)


def _logistic(v: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-v))


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alphas_cumprod = cos^2((t + s)/(1 + s) pi/2) (Nichol & Dhariwal, 2021, eq. 17)."""
    return from_alphas_cumprod(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, T, "cosine", max_beta)


def sigmoid(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """alphas_cumprod falls from 1 to 0 along a sigmoid (Jabri et al., 2022, algorithm 2)."""

    def law(u: Array) -> Array:
        first, last = _logistic(np.array([start, end]) / tau)
        return (last - _logistic((start + u * (end - start)) / tau)) / (last - first)

    return from_alphas_cumprod(law, T, "sigmoid", max_beta)


def flow(T: int = 1000) -> Schedule:
    """`straight_line` tabulated at (t + 1)/T, so that the last level is noise alone (alpha = 0)."""
    alpha, sigma = straight_line(np.arange(1, T + 1) / T)
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
    "warmup10": warmup10,
    "warmup50": warmup50,
    "constant": constant,
    "jsd": jsd,
    "sigmoid_betas": sigmoid_betas,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "laplace": laplace,
    "exponential": exponential,
    "flow": flow,
    "plain_as_written": plain_as_written,
}


def with_log_snr_shift(schedule: AnySchedule, by: float) -> AnySchedule:
    """The schedule with `by` added to its log-SNR at every t (Hoogeboom et al., 2023).

    With ``by = 2 log(base/size)`` an image of `size` pixels a side, averaged down to `base` pixels, is as noisy as one
    of `base` pixels was before. Only alpha/sigma is given by that; the level stays on its curve, alpha + sigma where
    that is 1 at every level (the shift of Esser et al., 2024, section 5.3.2), alpha alone where that is, and
    alpha^2 + sigma^2 otherwise. A shift of 0 gives the very same schedule.

    Raises:
        DuetError: for a shift outside -100 .. 100.
    """
    if not -100 <= by <= 100:
        raise DuetError(f"schedule {schedule.name}: a log-SNR shift of {by:g} was given; it must be in -100 .. 100")
    return schedule.shift_log_snr(by) if by else schedule


def with_zero_terminal_snr(schedule: AnySchedule) -> Schedule:
    """The schedule whose last level is noise alone, and whose first keeps its alpha (Lin et al., 2023, algorithm 1).

        alpha'_t = alpha_0 (alpha_t - alpha_{T-1}) / (alpha_0 - alpha_{T-1}),    sigma'_t^2 = 1 - alpha'_t^2

    A schedule that ends in noise alone already is returned as it is. Prediction eps is not defined for the result.

    Raises:
        DuetError: for one that neither does nor preserves variance.
    """
    first, alpha, last = schedule.alpha[0], schedule.alpha, schedule.alpha[-1]
    if last == 0:
        return schedule
    if not schedule.variance_preserving or schedule.steps < 2:
        raise DuetError(
            f"schedule {schedule.name}: zero_terminal_snr was given; it is for schedules of at least 2 levels "
            "with alpha^2 + sigma^2 = 1"
        )
    stretched = first * ((alpha - last) / (first - last))
    # 1 - alpha'^2 as sigma^2 + (alpha - alpha') (alpha + alpha'), where nothing cancels next to a small sigma.
    lost = last * ((first - alpha) / (first - last))
    return Schedule(schedule.name, stretched, np.sqrt(schedule.sigma**2 + lost * (alpha + stretched)))


def transformed(
    schedule: AnySchedule,
    log_snr_shift: float = 0.0,
    shift_from: int | None = None,
    shift_to: int | None = None,
    zero_terminal_snr: bool = False,
) -> AnySchedule:
    """The schedule after the options that every schedule takes: first the shift, then the end.

    Args:
        schedule: what to transform.
        log_snr_shift: see `with_log_snr_shift`.
        shift_from: pixels a side that the schedule was made for.
        shift_to: pixels a side of the images at hand; adds ``2 log(shift_from / shift_to)`` to the shift.
        zero_terminal_snr: see `with_zero_terminal_snr`.

    Raises:
        DuetError: if a transformation refuses, or one of the two sizes is missing or below 1.
    """
    if (shift_from is None) != (shift_to is None):
        raise DuetError(
            f"schedule.shift_from: {shift_from} was given with shift_to {shift_to}; a shift for resolution has both"
        )
    if shift_from is not None and shift_to is not None:
        if min(shift_from, shift_to) < 1:
            raise DuetError(
                f"schedule.shift_from: {shift_from} was given with shift_to {shift_to}; both must be at least 1 pixel"
            )
        log_snr_shift += float(2.0 * np.log(shift_from / shift_to))
    shifted = with_log_snr_shift(schedule, log_snr_shift)
    return with_zero_terminal_snr(shifted) if zero_terminal_snr else shifted


def make_schedule(name: str, **options: object) -> AnySchedule:
    """The schedule of that name, a table or continuous, with its own options and those of `transformed`.

    Raises:
        DuetError: for a name or an option that does not exist, or a T below 2 or above `MOST_LEVELS`.
    """
    laws = SCHEDULES | CONTINUOUS
    T = options.get("T", 2)
    if isinstance(T, int) and not 2 <= T <= MOST_LEVELS:
        raise DuetError(f"schedule.T: {T} was given; a schedule has at least 2 levels, and at most {MOST_LEVELS}")
    shared = list(inspect.signature(transformed).parameters)[1:]
    own = {option: value for option, value in options.items() if option not in shared}
    if name in laws:
        allowed = [*inspect.signature(laws[name]).parameters, *shared]
        for option in own.keys() - allowed:
            raise one_of(f"option of schedule {name!r}", option, allowed)
    schedule = build("schedule", laws, name, own)
    rest = {option: value for option, value in options.items() if option in shared}
    return build("schedule", {name: transformed}, name, rest, schedule)

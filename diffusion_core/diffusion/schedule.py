r"""Noise schedules: the scale of the signal and of the noise at each timestep t.

    x_t = alpha_t x_0 + sigma_t eps,      eps ~ N(0, 1)

A *schedule* is a table of T noise levels, ``t in {0 .. T-1} -> (alpha, sigma)``, where **t = 0 means one noise step**,
not clean data; or it is a function of continuous time, see `continuous`. Both have the same methods, and
`make_schedule` makes either. The class of tables, and how they follow from betas, is in `table`; here are the named
ones. Every table is float64.

Three transformations apply to every schedule, in this order; they are further options of `make_schedule`:

    log_snr_shift, shift_from, shift_to    log(alpha^2/sigma^2) + shift + 2 log(from/to)
    zero_terminal_snr                      alpha stretched so that alpha_0 stays and alpha_{T-1} = 0
    respacing                              some of the levels of a table only, see `respacing`

The shift comes first, so that alpha_0 is the shifted one and the last level is pure noise in any case. After respacing
the process has the levels that are kept, t = 0 .. n-1, and the network receives their timesteps in the whole table.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.registry import build, check_options
from diffusion_core.common.synonyms import OPTIONS
from diffusion_core.diffusion.continuous import CONTINUOUS, straight_line
from diffusion_core.diffusion.continuous_schedule import ContinuousSchedule
from diffusion_core.diffusion.respacing import Respacing, kept_timesteps
from diffusion_core.diffusion.table import Schedule, from_alphas_cumprod, from_betas

__all__ = [
    "LISTED",
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
    "listed",
    "make_schedule",
    "plain_as_written",
    "quadratic",
    "same_levels",
    "scaled_linear",
    "sigmoid",
    "sigmoid_betas",
    "transformed",
    "warmup10",
    "warmup50",
    "with_log_snr_shift",
    "with_respacing",
    "with_zero_terminal_snr",
]

Array = NDArray[np.float64]
# A larger table would not fit in memory.
MAX_LEVELS = 1_000_000


AnySchedule = Schedule | ContinuousSchedule


def listed(betas: Sequence[float], T: int | None = None) -> Schedule:
    """Return the schedule with these betas, as a file of another project may state them ("trained_betas").

    The last beta may be 1, which leaves no signal.

    Raises:
        DuetError: if T is given and differs from their number, or a beta is not in (0, 1).
    """
    if isinstance(betas, (str, Mapping)) or not (isinstance(betas, Sequence) or np.ndim(betas) == 1):
        raise DuetError(f"schedule.betas: {betas!r} was given; it must be a list of numbers in (0, 1)")
    if T is not None and len(betas) != T:
        raise DuetError(f"schedule.T: {T} was given with {len(betas)} betas; leave T out, or give as many betas")
    if not 2 <= len(betas) <= MAX_LEVELS:
        raise DuetError(
            f"schedule.betas: {len(betas)} betas were given; it must have at least 2 and at most {MAX_LEVELS}"
        )
    if betas[-1] == 1.0:
        rest = from_betas(betas[:-1], "betas")
        return Schedule("betas", np.append(rest.alpha, 0.0), np.append(rest.sigma, 1.0))
    return from_betas(betas, "betas")


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, rescaled: bool = False) -> Schedule:
    """Return the schedule with betas on a line (Ho et al., 2020, section 4).

    Args:
        T: the number of levels.
        beta_start: the first beta.
        beta_end: the last beta.
        rescaled: whether the betas are multiplied by 1000/T, so that any T ends at about the same noise, as "linear" of
            guided-diffusion and denoising-diffusion-pytorch; by default a T below 1000 ends with less noise.
    """
    factor = 1000.0 / T if rescaled else 1.0
    return from_betas(np.linspace(factor * beta_start, factor * beta_end, T), "linear")


def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """Return the schedule with square roots of the betas on a line, with the defaults of latent diffusion."""
    return _from_roots(T, beta_start, beta_end, "scaled_linear")


def quadratic(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Return the schedule with square roots of the betas on a line, with the range of DDPM."""
    return _from_roots(T, beta_start, beta_end, "quadratic")


def _from_roots(T: int, beta_start: float, beta_end: float, name: str) -> Schedule:
    if min(beta_start, beta_end) <= 0:
        raise DuetError(
            f"schedule {name}: betas {beta_start:g} .. {beta_end:g} were given; every beta must be in (0, 1)"
        )
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2, name)


def warmup10(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Return the schedule with betas on a line over the first tenth of the levels, then constant (DDPM's code)."""
    return _warmup(T, beta_start, beta_end, T // 10, "warmup10")


def warmup50(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Return the schedule with betas on a line over the first half of the levels, then constant (DDPM's code)."""
    return _warmup(T, beta_start, beta_end, T // 2, "warmup50")


def _warmup(T: int, beta_start: float, beta_end: float, rising: int, name: str) -> Schedule:
    betas = np.full(T, beta_end, dtype=np.float64)
    betas[:rising] = np.linspace(beta_start, beta_end, rising)
    return from_betas(betas, name)


def constant(T: int = 1000, beta: float = 0.02) -> Schedule:
    """Return the schedule with the same beta at every level; "const" in DDPM's code, which calls beta beta_end."""
    return from_betas(np.full(T, beta), "constant")


def jsd(T: int = 1000) -> Schedule:
    """Return the schedule with betas 1/T, 1/(T-1), .. 1: alphas_cumprod = 1 - (t + 1)/T, a line down to pure noise.

    Each level erases the same fraction 1/T of the signal's power (Sohl-Dickstein et al., 2015, section 2.4.1, there for
    binomial data); the name is from DDPM's code. As alpha_{T-1} = 0, prediction eps is not defined.
    """
    levels = np.arange(T + 1, dtype=np.float64)
    return Schedule("jsd", np.sqrt(levels[-2::-1] / T), np.sqrt(levels[1:] / T))


def sigmoid_betas(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Return the schedule with betas along a logistic function of -6 .. 6 (Xu et al., 2022), "sigmoid" in diffusers."""
    return from_betas(beta_start + (beta_end - beta_start) * _logistic(np.linspace(-6, 6, T)), "sigmoid_betas")


def exponential(T: int = 1000, rate: float = 12.0) -> Schedule:
    """Return the schedule alphas_cumprod = exp(-rate u) at u = (t + 1)/T, with constant betas 1 - exp(-rate/T).

    This is "exp" of `betas_for_alpha_bar` in diffusers, where the limit of 0.999 on betas has no effect for T >= 2.
    """
    return from_betas(np.full(T, -np.expm1(-rate / T)), "exponential")


def laplace(T: int = 1000, mu: float = 0.0, b: float = 0.5, power: float = 0.5, max_beta: float = 0.999) -> Schedule:
    """Return the schedule whose log-SNR has a Laplace distribution with mean mu and scale b (Hang et al., 2024).

    For a uniform u in [0, 1]:

        lambda = mu - b sign(1/2 - u) log(1 - 2 |1/2 - u| + 1e-6)
        alphas_cumprod = (e^lambda / (1 + e^lambda))^power, divided by its value at u = 0

    The paper's alphas_cumprod has power 1. "laplace" of diffusers uses its root, the paper's alpha, as alphas_cumprod:
    power 1/2, the default here, so that the name means the same in both.

    Raises:
        DuetError: for a b or a power that is not positive.
    """
    if not (b > 0 and power > 0):
        raise DuetError(f"schedule laplace: b {b:g} and power {power:g} were given; both must be positive")

    def alphas_cumprod(u: Array) -> Array:
        tail = np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
        return _logistic(mu - b * np.where(u <= 0.5, tail, -tail)) ** power

    return from_alphas_cumprod(alphas_cumprod, T, "laplace", max_beta)


def _logistic(v: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-v))


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Return the schedule alphas_cumprod = cos^2((t + s)/(1 + s) pi/2) (Nichol & Dhariwal, 2021, eq. 17)."""
    return from_alphas_cumprod(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, T, "cosine", max_beta)


def sigmoid(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """Return the schedule whose alphas_cumprod falls from 1 to 0 along a sigmoid (Jabri et al., 2022, algorithm 2)."""

    def alphas_cumprod(u: Array) -> Array:
        first, last = _logistic(np.array([start, end]) / tau)
        return (last - _logistic((start + u * (end - start)) / tau)) / (last - first)

    return from_alphas_cumprod(alphas_cumprod, T, "sigmoid", max_beta)


def flow(T: int = 1000) -> Schedule:
    """Return `straight_line` tabulated at (t + 1)/T, so that the last level is pure noise (alpha = 0)."""
    alpha, sigma = straight_line(np.arange(1, T + 1) / T)
    return Schedule("flow", alpha, sigma)


def plain_as_written(T: int = 1000) -> Schedule:
    """Return a schedule with alphas_cumprod itself on a line, from 0.02 at t = 0 down to 1e-4 at t = T-1.

    A widespread mistake: the range of DDPM's betas, ``linspace(1e-4, 0.02)``, is used as alphas_cumprod, here in the
    order in which noise rises with t. Already t = 0 is almost pure noise (alpha 0.14, sigma 0.99), so no level contains
    more than a trace of the image, and the last sampling step has to produce all of it. The schedule exists to
    reproduce experiments with this mistake; `linear` is what they intended.
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
# Schedules that are nothing without their options.
LISTED: dict[str, Callable[..., Schedule]] = {"betas": listed}


def with_log_snr_shift(schedule: AnySchedule, by: float) -> AnySchedule:
    """Return the schedule with `by` added to its log-SNR at every t (Hoogeboom et al., 2023).

    With ``by = 2 log(base/size)`` an image of `size` pixels a side, averaged down to `base` pixels, is as noisy as an
    image of `base` pixels was before. This determines alpha/sigma only; the schedule's norm is preserved: alpha + sigma
    if that is 1 at every level (the shift of Esser et al., 2024, section 5.3.2), alpha if that is 1, and
    alpha^2 + sigma^2 otherwise. A shift of 0 returns the schedule itself.

    Raises:
        DuetError: for a shift outside -100 .. 100.
    """
    if not -100 <= by <= 100:
        raise DuetError(f"schedule {schedule.name}: a log-SNR shift of {by:g} was given; it must be in -100 .. 100")
    return schedule.shift_log_snr(by) if by else schedule


def with_zero_terminal_snr(schedule: AnySchedule) -> Schedule:
    """Return the schedule stretched so that its last level is pure noise (Lin et al., 2023, algorithm 1).

    The first level keeps its alpha:

        alpha'_t = alpha_0 (alpha_t - alpha_{T-1}) / (alpha_0 - alpha_{T-1}),    sigma'_t^2 = 1 - alpha'_t^2

    A schedule that already ends in pure noise is returned unchanged. Prediction eps is not defined for the result.

    Raises:
        DuetError: for any other schedule that does not preserve variance.
    """
    first, alpha, last = schedule.alpha[0], schedule.alpha, schedule.alpha[-1]
    if last == 0:
        return schedule
    if not schedule.variance_preserving or schedule.steps < 2:
        raise DuetError(
            f"schedule {schedule.name}: zero_terminal_snr was given; it needs at least 2 levels and "
            "alpha^2 + sigma^2 = 1"
        )
    stretched = first * ((alpha - last) / (first - last))
    # 1 - alpha'^2 as sigma^2 + (alpha - alpha') (alpha + alpha'): accurate for a small sigma.
    lost = last * ((first - alpha) / (first - last))
    sigma = np.sqrt(schedule.sigma**2 + lost * (alpha + stretched))
    return Schedule(schedule.name, stretched, sigma, schedule.timesteps)


def transformed(
    schedule: AnySchedule,
    log_snr_shift: float = 0.0,
    shift_from: int | None = None,
    shift_to: int | None = None,
    zero_terminal_snr: bool = False,
    respacing: Respacing = None,
) -> AnySchedule:
    """Return the schedule after the transformations that every schedule takes: shift, stretch and respacing.

    Args:
        schedule: to transform.
        log_snr_shift: see `with_log_snr_shift`.
        shift_from: image size in pixels for which the schedule was made.
        shift_to: image size in pixels of the data; adds ``2 log(shift_from / shift_to)`` to the shift.
        zero_terminal_snr: see `with_zero_terminal_snr`.
        respacing: the levels of a table to keep, see `respacing.kept_timesteps`; None keeps all.

    Raises:
        DuetError: if a transformation does not apply, or one of the two sizes is missing or below 1.
    """
    if (shift_from is None) != (shift_to is None):
        raise DuetError(
            f"schedule.shift_from: {shift_from} was given with shift_to {shift_to}; a shift by image size needs both"
        )
    if shift_from is not None and shift_to is not None:
        if min(shift_from, shift_to) < 1:
            raise DuetError(
                f"schedule.shift_from: {shift_from} was given with shift_to {shift_to}; both must be at least 1 pixel"
            )
        log_snr_shift += float(2.0 * np.log(shift_from / shift_to))
    if zero_terminal_snr and not schedule.is_table:
        raise DuetError(
            f"schedule.zero_terminal_snr: true was given for {schedule.name}, but its time is continuous; use a table, "
            "such as linear or cosine"
        )
    shifted = with_log_snr_shift(schedule, log_snr_shift)
    stretched = with_zero_terminal_snr(shifted) if zero_terminal_snr else shifted
    return stretched if respacing is None else with_respacing(stretched, respacing)


def with_respacing(schedule: AnySchedule, respacing: Respacing, key: str = "schedule.respacing") -> Schedule:
    """Return the table of some of the levels (Nichol & Dhariwal, 2021, section 4).

    Args:
        schedule: a table.
        respacing: see `respacing.kept_timesteps`.
        key: the configuration key, for messages.

    Raises:
        DuetError: for a continuous schedule, fewer than two levels, or numbers that do not fit the table.

    Example:
        >>> schedule = with_respacing(linear(), 4)
        >>> schedule
        Schedule('linear', T=4, timesteps=0..999)
        >>> schedule.network_t([0, 1.5]).tolist()
        [0.0, 499.5]
    """
    if not schedule.is_table:
        raise DuetError(
            f"{key}: {respacing} was given; it keeps some timesteps of a table, but the time of {schedule.name} is "
            "continuous; leave it out"
        )
    kept = kept_timesteps(schedule.steps, respacing, key)
    if len(kept) < 2:
        raise DuetError(f"{key}: {respacing} was given; a process needs at least 2 timesteps")
    return schedule.respaced(kept)


def same_levels(one: AnySchedule, other: AnySchedule) -> bool:
    """Return whether two schedules have the same noise level at every t, however each was written.

    Example:
        >>> same_levels(make_schedule("linear"), make_schedule("linear", T=1000, beta_start=1e-4))
        True
    """
    if one.is_table != other.is_table or (one.steps != other.steps if one.is_table else one.span != other.span):
        return False
    low, high = one.span
    t = np.linspace(low, high, 2 * one.steps - 1 if one.is_table else 257)  # on a table, also between two levels
    same_input = np.array_equal(one.network_t(t), other.network_t(t))
    return same_input and bool(np.allclose(one(t), other(t), rtol=1e-12, atol=0))


# The ranges of the numbers of schedules: the values allowed, and how to say so.
_BETA = (lambda v: 0 < v < 1, "every beta must be in (0, 1)")
_POSITIVE = (lambda v: 1e-3 <= v <= 1e3, "it must be positive, from 0.001 to 1000")
_LOG_SNR = (lambda v: -100 <= v <= 100, "it must be in -100 .. 100")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("beta", "beta_start", "beta_end", "max_beta"), _BETA),
    **dict.fromkeys(("tau", "t_max"), _POSITIVE),
    **dict.fromkeys(("b", "power"), (lambda v: v <= 1000, "it must be at most 1000")),
    "rate": (lambda v: 0 < v <= 1000, "it must be positive and at most 1000, as every beta must be in (0, 1)"),
    "s": (lambda v: 0 <= v <= 1, "it must be at least 0 and at most 1"),
    **dict.fromkeys(("mu", "start", "end"), _LOG_SNR),
}


def _check_values(name: str, options: Mapping[str, Any]) -> None:
    """Refuse numbers of a schedule that are not finite, outside their range, or in the wrong order."""
    for option, value in options.items():
        if name not in CONTINUOUS and isinstance(value, float) and not np.isfinite(value):
            raise DuetError(f"schedule {name}: {option} {value} was given; it must be finite")
        allowed, words = _RANGES.get(option, (None, ""))
        if allowed is not None and not allowed(value):
            raise DuetError(f"schedule {name}: {option} {value:g} was given; {words}")
    defaults = inspect.signature((SCHEDULES | CONTINUOUS | LISTED)[name]).parameters
    for first, last in (("beta_start", "beta_end"), ("start", "end")):
        if first in defaults and last in defaults:
            low, high = (options.get(option, defaults[option].default) for option in (first, last))
            if low > high or (low == high and first == "start"):
                raise DuetError(
                    f"schedule {name}: {first} {low:g} and {last} {high:g} were given; the first must be the smaller"
                )


def make_schedule(name: str, **options: object) -> AnySchedule:
    """Make a schedule, a table or continuous, by its name.

    Args:
        name: a name of `SCHEDULES` or `CONTINUOUS`, or "betas" for a list of betas.
        options: of the schedule, such as T, and those of `transformed`.

    Raises:
        DuetError: for an unknown name or option, or a T below 2 or above `MAX_LEVELS`.

    Example:
        >>> make_schedule("cosine", T=500)
        Schedule('cosine', T=500)
        >>> make_schedule("edm", sigma_max=100.0)
        ContinuousSchedule('edm', t=0.002..100)
        >>> make_schedule("linear", zero_terminal_snr=True).alpha[-1].item()
        0.0
    """
    known = SCHEDULES | CONTINUOUS | LISTED
    T = options.get("T", 2)
    if isinstance(T, int) and not 2 <= T <= MAX_LEVELS:
        raise DuetError(f"schedule.T: {T} was given; it must be at least 2 and at most {MAX_LEVELS}")
    shared = list(inspect.signature(transformed).parameters)[1:]
    own = {option: value for option, value in options.items() if option not in shared}
    if name in known:
        allowed = [*inspect.signature(known[name]).parameters, *shared]
        for option in own.keys() - allowed:
            raise one_of(f"option of schedule {name!r}", option, allowed, OPTIONS["schedule"])
    check_options("schedule", known, name, own)
    _check_values(name, own)
    schedule = build("schedule", known, name, own)
    rest = {option: value for option, value in options.items() if option in shared}
    return replace(build("schedule", {name: transformed}, name, rest, schedule), options={"name": name, **options})

r"""Which of the trained timesteps a sampler uses, from the noisiest down: of a table of T, or of continuous time.

`steps` says how many, and `spacing` where; either may say both. With one number of steps, N:

    leading    0, k, 2k, ...  with k = floor(T / N)       starts below T-1 and ends at t = 0
    linspace   N timesteps from 0 to T-1, rounded         starts at T-1 and ends at t = 0
    half_open  linspace with N + 1, without the last      starts at T-1 and ends above t = 0
    trailing   T-1, T-1-T/N, ...  rounded                 starts at T-1 and ends above t = 0

The default is leading; half_open is what diffusers' multistep schedulers call linspace. steps = null means every
timestep. The following forms determine both:

    steps = [a, b, ...], "a,b,..."    counts for as many equal sections of the table, the least noisy first; each from
                                      the first to the last timestep of its section, with a rounded stride
    steps = "ddimN"                   0, k, 2k, ... below T, with the smallest integer k that gives N timesteps
    spacing = [t, s, ...]             these timesteps, decreasing, integers or between two; steps is null or their count

Sections and "ddimN" are guided-diffusion's `timestep_respacing`, where text with one number, such as "250", is one
section. A section with a count of one uses its least noisy timestep. If the number of sections does not divide T, the
first sections are larger by one. Every row is explicit: the level after that of row i is that of row i+1, never
``t - T/N``.

In continuous time, from t_min to t_max, a number of steps is required, and no time is rounded:

    linspace   t_max .. t_min                           N points with both ends; the default there
    trailing   t_max - i (t_max - t_min)/N              starts at t_max and ends above t_min; half_open is the same
    leading    t_min + (N - 1 - i) (t_max - t_min)/N    starts below t_max and ends at t_min

or the times themselves. There are no sections and no "ddimN".

With a noisy end e of the last step (`grid`), the N timesteps are above it: linspace has N + 1 from e to T-1 without e,
leading e + k .. e + N k with k = floor((T - e) / (N + 1)), and trailing N with steps of (T - e)/N; likewise in
continuous time. steps = null means every timestep above e.

References:
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023), table 2,
    https://arxiv.org/abs/2305.08891
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), section 4,
    https://arxiv.org/abs/2102.09672
    Denoising Diffusion Implicit Models (Song et al., 2020), appendix D.2, https://arxiv.org/abs/2010.02502
    guided-diffusion (openai/guided-diffusion, guided_diffusion/respace.py, space_timesteps)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.respacing import are_whole, is_whole, kept_timesteps
from diffusion_core.diffusion.schedule import MAX_LEVELS

__all__ = ["SPACINGS", "Spacing", "Steps", "table_timesteps", "continuous_timesteps"]

Steps = int | str | list[int] | None
# A mapping is the name and the options of a grid of noise levels, see `grid`.
Spacing = str | list[int] | list[float] | NDArray | Mapping[str, object] | None


def _leading(T: int, steps: int, end: float | None) -> NDArray:
    if end is not None:
        return np.round(end + np.arange(1, steps + 1) * ((T - end) // (steps + 1)))
    return np.arange(steps) * (T // steps)


def _linspace(T: int, steps: int, end: float | None) -> NDArray:
    if end is not None:
        return np.round(np.linspace(end, T - 1, steps + 1))[1:]
    return np.round(np.linspace(0, T - 1, steps)) if steps > 1 else np.array([T - 1])


def _half_open(T: int, steps: int, end: float | None) -> NDArray:
    if steps == T:
        return np.arange(T)  # no level is left to leave out
    return np.round(np.linspace(end or 0, T - 1, steps + 1))[1:]


def _trailing(T: int, steps: int, end: float | None) -> NDArray:
    return np.round(T - np.arange(steps) * ((T - (end or 0)) / steps))[::-1] - 1


SPACINGS = {"leading": _leading, "linspace": _linspace, "half_open": _half_open, "trailing": _trailing}


def table_timesteps(T: int, steps: Steps, spacing: Spacing = None, end: float | None = None) -> NDArray:
    """Return timesteps of a table, decreasing, with shape (N,).

    Args:
        T: the number of timesteps of the table.
        steps: how many to use: a number, counts per section, ``"ddimN"``, or None for all of them.
        spacing: where they lie: a name of `SPACINGS`, or the timesteps themselves; None for leading.
        end: the timestep at which the last step ends, an integer or between two, above which a number of steps lies;
            None for clean data.

    Raises:
        DuetError: for an unknown spacing, timesteps or counts beyond T, or a steps and a spacing that contradict.

    Example:
        >>> table_timesteps(1000, 4, "leading").tolist()
        [750, 500, 250, 0]
        >>> table_timesteps(1000, [3, 2]).tolist()
        [999, 500, 499, 250, 0]
    """
    if isinstance(spacing, str) and spacing not in SPACINGS:
        raise one_of("sampler.spacing", spacing, SPACINGS)
    if spacing is not None and not isinstance(spacing, str):
        return _listed(T, steps, spacing)
    if steps is None:
        # Every timestep, or every one above the end.
        steps, spacing = T if end is None else T - 1 - math.floor(end), spacing if end is None else "linspace"
    if is_whole(steps):
        if not 1 <= steps <= T:
            raise DuetError(f"sampler.steps: {steps} was given; a schedule with {T} timesteps takes 1 to {T} steps")
        rising = SPACINGS[spacing or "leading"](T, int(steps), end)
        if end is not None and not (rising[0] > end and np.all(np.diff(rising) > 0)):
            raise DuetError(
                f"sampler.steps: {steps} was given, but only {T - 1 - math.floor(end)} of the {T} timesteps lie above "
                f"the end at t = {end:g}; use fewer steps, or spacing=linspace"
            )
        return _falling(rising)
    rising = kept_timesteps(T, steps, "sampler.steps")
    if spacing is not None:
        raise DuetError(
            f"sampler.spacing: {spacing} was given with steps {steps}, which determine it; use spacing=null"
        )
    return _falling(rising)


def continuous_timesteps(
    span: tuple[float, float], steps: Steps, spacing: Spacing = None, end: float | None = None
) -> NDArray[np.float64]:
    """Return times of a continuous schedule, decreasing, with shape (N,).

    Args:
        span: the smallest and the largest time.
        steps: the number of times.
        spacing: where they lie: a name of `SPACINGS`, or the times themselves; None for linspace.
        end: the time at which the last step ends; None for clean data.

    Raises:
        DuetError: for an unknown spacing, times outside the span, or a `steps` that is not a number.

    Example:
        >>> continuous_timesteps((0.0, 1.0), 5).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    low, high = span
    if isinstance(spacing, np.ndarray):
        spacing = spacing.tolist()
    if spacing is not None and not isinstance(spacing, str):
        times = np.asarray(spacing)
        real = times.ndim == 1 and times.size > 0 and times.dtype.kind in "if"
        if not real or not (high >= times[0] and times[-1] >= low) or not np.all(np.diff(times) < 0):
            raise DuetError(
                f"sampler.spacing: {spacing!r} was given; it must be one of {', '.join(SPACINGS)}, "
                f"or a list of decreasing times in {low:g}..{high:g}"
            )
        if steps is not None and (not is_whole(steps) or steps != len(times)):
            raise DuetError(f"sampler.steps: {steps} was given with a list of {len(times)} times; use steps=null")
        return times.astype(np.float64)
    if spacing not in (None, *SPACINGS):
        raise one_of("sampler.spacing", spacing, SPACINGS)
    if not is_whole(steps) or not 1 <= steps <= MAX_LEVELS:
        raise DuetError(
            f"sampler.steps: {steps!r} was given; in continuous time it must be a whole number, at least 1 and at most "
            f"{MAX_LEVELS}"
        )
    # With an end there are `steps` times above it.
    steps, low = int(steps), low if end is None else end
    if spacing in (None, "linspace"):
        return np.linspace(high, low, steps) if end is None else np.linspace(high, low, steps + 1)[:-1]
    if spacing in ("trailing", "half_open"):
        return high - np.arange(steps) * ((high - low) / steps)
    above = np.arange(steps) if end is None else np.arange(1, steps + 1)
    return low + above[::-1] * ((high - low) / (steps + (end is not None)))


def _listed(T: int, steps: Steps, timesteps: Sequence[float]) -> NDArray:
    """Return the listed timesteps, integers or between two."""
    if isinstance(timesteps, np.ndarray):
        timesteps = timesteps.tolist()
    real = isinstance(timesteps, (list, tuple)) and all(is_whole(v) or isinstance(v, float) for v in timesteps)
    if not real or not timesteps or timesteps[0] > T - 1 or timesteps[-1] < 0 or not np.all(np.diff(timesteps) < 0):
        raise DuetError(
            f"sampler.spacing: {timesteps!r} was given; it must be one of {', '.join(SPACINGS)}, "
            f"or a list of decreasing timesteps in 0..{T - 1}"
        )
    if steps is not None and (not is_whole(steps) or steps != len(timesteps)):
        raise DuetError(f"sampler.steps: {steps} was given with a list of {len(timesteps)} timesteps; use steps=null")
    return np.array(timesteps, dtype=np.int64 if are_whole(timesteps) else np.float64)


def _falling(rising: NDArray) -> NDArray[np.int64]:
    return rising.astype(np.int64)[::-1].copy()

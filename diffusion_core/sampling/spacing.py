r"""Which of the trained levels a sampler visits, from the noisiest down: of a table of T, or of continuous time.

`steps` says how many, and `spacing` where; either may say both. With one number of steps, N:

    leading    0, k, 2k, ...  with k = floor(T / N)       starts below T-1 and ends at t = 0
    linspace   N levels from 0 to T-1, rounded            starts at T-1 and ends at t = 0
    trailing   T-1, T-1-T/N, ...  rounded                 starts at T-1 and ends above t = 0

Leading is the default. No number, null, is every level. The other ways leave no choice of spacing:

    steps = [a, b, ...], "a,b,..."    that many in each of as many equal sections, the first the cleanest; from the
                                      first to the last level of a section by a rounded stride
    steps = "ddimN"                   0, k, 2k, ... below T, by the smallest whole k that visits N levels
    spacing = [t, s, ...]             these levels, falling, whole or between two; steps is null or their number

Sections and "ddimN" are guided-diffusion's `timestep_respacing`, where text of one number, such as "250", is one
section. A section of one level has its cleanest, and sections whose size T does not share out evenly are the earlier
ones by one level larger. Every row is explicit: the level after the one at row i is the one at row i+1, never
``t - T/N``.

In continuous time, from t_min to t_max, a number of steps must be given, and no level is rounded,

    linspace   t_max .. t_min                           N points with both ends; the default there
    trailing   t_max - i (t_max - t_min)/N              starts at t_max and ends above t_min
    leading    t_min + (N - 1 - i) (t_max - t_min)/N    starts below t_max and ends at t_min

or the times themselves. There are no sections and no "ddimN".

References:
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023), table 2,
    https://arxiv.org/abs/2305.08891
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), section 4,
    https://arxiv.org/abs/2102.09672
    Denoising Diffusion Implicit Models (Song et al., 2020), appendix D.2, https://arxiv.org/abs/2010.02502
    guided-diffusion (openai/guided-diffusion, guided_diffusion/respace.py, space_timesteps)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["SPACINGS", "Spacing", "Steps", "table_timesteps", "continuous_timesteps"]

Steps = int | str | list[int] | None
# A mapping is a grid of noise levels with its options, see `grid`.
Spacing = str | list[int] | list[float] | Mapping[str, object] | None


def _leading(T: int, steps: int) -> NDArray:
    return np.arange(steps) * (T // steps)


def _linspace(T: int, steps: int) -> NDArray:
    return np.round(np.linspace(0, T - 1, steps)) if steps > 1 else np.array([T - 1])


def _trailing(T: int, steps: int) -> NDArray:
    return np.round(T - np.arange(steps) * (T / steps))[::-1] - 1


SPACINGS = {"leading": _leading, "linspace": _linspace, "trailing": _trailing}


def table_timesteps(T: int, steps: Steps, spacing: Spacing = None) -> NDArray:
    """The visited levels, falling, with shape (N,).

    Args:
        T: how many levels there are.
        steps: how many are visited: a number, counts per section, ``"ddimN"``, or None for all of them.
        spacing: where they lie: a name of `SPACINGS`, or the levels themselves; None is leading.

    Raises:
        DuetError: for an unknown spacing, levels or counts that T does not have, or two answers to one question.
    """
    if isinstance(spacing, str) and spacing not in SPACINGS:
        raise one_of("sampler.spacing", spacing, SPACINGS)
    if spacing is not None and not isinstance(spacing, str):
        return _listed(T, steps, spacing)
    if steps is None:
        steps = T
    if _is_whole(steps):
        if not 1 <= steps <= T:
            raise DuetError(f"sampler.steps: {steps} was given; a schedule of {T} levels has 1 to {T} steps")
        return _falling(SPACINGS[spacing or "leading"](T, steps))
    if stride := re.fullmatch(r"ddim(\d+)", str(steps)):
        rising = _strided(T, int(stride[1]))
    else:
        rising = _sections(T, _counts(steps))
    if spacing is not None:
        raise DuetError(f"sampler.spacing: {spacing} was given with steps {steps}, which has its own; use spacing=null")
    return _falling(rising)


def continuous_timesteps(span: tuple[float, float], steps: Steps, spacing: Spacing = None) -> NDArray[np.float64]:
    """The visited times of continuous time, falling, with shape (N,).

    Args:
        span: the least and the largest time.
        steps: how many are visited.
        spacing: where they lie: a name of `SPACINGS`, or the times themselves; None is linspace.

    Raises:
        DuetError: for an unknown spacing, times outside the span, or a `steps` that is no number.
    """
    low, high = span
    if spacing is not None and not isinstance(spacing, str):
        times = np.asarray(spacing)
        real = times.ndim == 1 and times.size > 0 and times.dtype.kind in "if"
        if not real or not (high >= times[0] and times[-1] >= low) or np.any(np.diff(times) >= 0):
            raise DuetError(
                f"sampler.spacing: {spacing!r} was given; it must be one of {', '.join(SPACINGS)}, "
                f"or a list of falling times in {low:g}..{high:g}"
            )
        if steps is not None and (not _is_whole(steps) or steps != len(times)):
            raise DuetError(f"sampler.steps: {steps} was given with a list of {len(times)} times; use steps=null")
        return times.astype(np.float64)
    if spacing not in (None, *SPACINGS):
        raise one_of("sampler.spacing", spacing, SPACINGS)
    if not _is_whole(steps) or steps < 1:
        raise DuetError(f"sampler.steps: {steps!r} was given; in continuous time it is a whole number, at least 1")
    if spacing in (None, "linspace"):
        return np.linspace(high, low, steps)
    even = np.arange(steps) * ((high - low) / steps)
    return high - even if spacing == "trailing" else low + even[::-1]


def _listed(T: int, steps: Steps, levels: Sequence[float]) -> NDArray:
    """Levels that are given, whole or between two."""
    real = isinstance(levels, (list, tuple)) and all(_is_whole(v) or isinstance(v, float) for v in levels)
    if not real or not levels or levels[0] > T - 1 or levels[-1] < 0 or np.any(np.diff(levels) >= 0):
        raise DuetError(
            f"sampler.spacing: {levels!r} was given; it must be one of {', '.join(SPACINGS)}, "
            f"or a list of falling levels in 0..{T - 1}"
        )
    if steps is not None and (not _is_whole(steps) or steps != len(levels)):
        raise DuetError(f"sampler.steps: {steps} was given with a list of {len(levels)} levels; use steps=null")
    return np.array(levels, dtype=np.int64 if _are_whole(levels) else np.float64)


def _strided(T: int, steps: int) -> NDArray:
    """Every k-th level, so many in all."""
    if not 1 <= steps <= T:
        raise DuetError(f"sampler.steps: ddim{steps} was given; a schedule of {T} levels has 1 to {T} steps")
    # A stride k visits ceil(T/k) levels: the smallest k that visits no more than so many is ceil(T/steps).
    stride = -(-T // steps)
    rising = np.arange(0, T, stride)
    if len(rising) != steps:
        raise DuetError(
            f"sampler.steps: ddim{steps} was given; no whole stride visits {steps} of {T} levels, "
            f"but ddim{len(rising)} and ddim{-(-T // (stride - 1))} fit"
        )
    return rising


def _sections(T: int, counts: list[int]) -> NDArray:
    """So many levels in each section, the first the cleanest."""
    sizes = [T // len(counts) + (i < T % len(counts)) for i in range(len(counts))]
    for i, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if not 0 <= count <= size:
            raise DuetError(
                f"sampler.steps: {count} was given for section {i + 1} of {len(counts)}; "
                f"it has {size} of the {T} levels"
            )
    if not any(counts):
        raise DuetError(f"sampler.steps: {counts} was given; at least one section must have a step")
    visited = []
    for start, size, count in zip(np.cumsum([0, *sizes]), sizes, counts, strict=False):
        stride = (size - 1) / (count - 1) if count > 1 else 0.0
        # Summed up step by step, as guided-diffusion does: where a multiple ends in a half, that decides the rounding.
        visited.append(start + np.round(np.cumsum([0.0] + [stride] * (count - 1))[:count]))
    return np.concatenate(visited)


def _counts(steps: object) -> list[int]:
    """Counts per section as they were written."""
    if isinstance(steps, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", steps):
        return [int(count) for count in steps.split(",")]
    if not isinstance(steps, str) and _are_whole(steps) and steps:
        return list(steps)
    raise DuetError(
        f"sampler.steps: {steps!r} was given; it must be a whole number, whole numbers per section ([10, 10, 20]), "
        "ddimN (ddim25), or null for every level"
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _are_whole(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(map(_is_whole, values))


def _falling(rising: NDArray) -> NDArray[np.int64]:
    return rising.astype(np.int64)[::-1].copy()

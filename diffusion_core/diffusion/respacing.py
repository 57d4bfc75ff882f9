r"""Subsets of the timesteps of a table: counts per section, or a stride.

    [10, 10, 20]    the number of timesteps in each of three equal sections, the least noisy section first; they are the
                    first and the last of a section and others at equal distances, rounded; n is one section, [n]
    ddim25          every k-th timestep, with the k that gives 25 of them

A table of alpha and sigma at a subset is again a diffusion process, with betas of its own. A network that was trained
on all timesteps receives those that are kept, `Schedule.timesteps`, and so does a network that is trained on the
subset.

References:
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), section 4,
    https://arxiv.org/abs/2102.09672, with its code (openai/improved-diffusion, improved_diffusion/respace.py)
    Denoising Diffusion Implicit Models (Song et al., 2020), section 4.2, the stride, https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

import re
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError

__all__ = ["Respacing", "are_whole", "is_whole", "kept_timesteps", "per_section", "strided"]

Respacing = int | str | list[int] | None


def kept_timesteps(T: int, respacing: Respacing, key: str) -> NDArray[np.int64]:
    """Return the timesteps of a table that a respacing keeps, rising, with shape (n,).

    Args:
        T: the number of timesteps of the table.
        respacing: a number, numbers per section (a list, or text with commas), or ``"ddimN"``.
        key: the configuration key, for messages.

    Raises:
        DuetError: for another form, or more timesteps than there are.

    Example:
        >>> kept_timesteps(1000, 4, "schedule.respacing").tolist()
        [0, 333, 666, 999]
        >>> kept_timesteps(1000, "3,2", "schedule.respacing").tolist()
        [0, 250, 499, 500, 999]
        >>> kept_timesteps(1000, "ddim4", "schedule.respacing").tolist()
        [0, 250, 500, 750]
    """
    if is_whole(respacing):
        return per_section(T, [int(respacing)], key)  # type: ignore[arg-type]
    if stride := re.fullmatch(r"ddim(\d+)", str(respacing)):
        return strided(T, int(stride[1]), key)
    return per_section(T, _counts(respacing, key), key)


def strided(T: int, steps: int, key: str) -> NDArray[np.int64]:
    """Return every k-th timestep, `steps` in all, rising."""
    if not 1 <= steps <= T:
        raise DuetError(f"{key}: ddim{steps} was given; a schedule with {T} timesteps takes 1 to {T} steps")
    # A stride k gives ceil(T/k) timesteps; the smallest k that gives at most `steps` of them is ceil(T/steps).
    stride = -(-T // steps)
    rising = np.arange(0, T, stride)
    if len(rising) != steps:
        raise DuetError(
            f"{key}: ddim{steps} was given; no integer stride gives {steps} of {T} timesteps, "
            f"but ddim{len(rising)} and ddim{-(-T // (stride - 1))} fit"
        )
    return rising


def per_section(T: int, counts: list[int], key: str) -> NDArray[np.int64]:
    """Return timesteps with these counts in equal sections, the least noisy first, rising."""
    sizes = [T // len(counts) + (i < T % len(counts)) for i in range(len(counts))]
    for i, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if not 0 <= count <= size:
            raise DuetError(
                f"{key}: {count} was given for section {i + 1} of {len(counts)}; it has {size} of the {T} timesteps"
            )
    if not any(counts):
        raise DuetError(f"{key}: {counts} was given; at least one count must be positive")
    parts = []
    for start, size, count in zip(np.cumsum([0, *sizes]), sizes, counts, strict=False):
        stride = (size - 1) / (count - 1) if count > 1 else 0.0
        # Summed step by step, as guided-diffusion does: this decides the rounding of multiples that end in a half.
        parts.append(start + np.round(np.cumsum([0.0] + [stride] * (count - 1))[:count]))
    return np.concatenate(parts).astype(np.int64)


def _counts(respacing: object, key: str) -> list[int]:
    """Return the counts per section."""
    if isinstance(respacing, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", respacing):
        return [int(count) for count in respacing.split(",")]
    if not isinstance(respacing, str) and are_whole(respacing) and respacing:
        return list(respacing)  # type: ignore[call-overload]
    raise DuetError(
        f"{key}: {respacing!r} was given; it must be a whole number, whole numbers per section ([10, 10, 20]), "
        "ddimN (ddim25), or null for every timestep"
    )


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def are_whole(values: object) -> bool:
    """Return whether a value is a list or tuple of whole numbers."""
    return isinstance(values, (list, tuple)) and all(map(is_whole, values))

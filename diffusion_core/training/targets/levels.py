r"""Noise levels in a target: their columns, and the steps that estimate x_0 at one.

A level with the name s has the columns ``alpha.s``, ``sigma.s``, ``c_skip.s``, ``c_out.s``, ``c_in.s`` and the time
``c_noise.s``; the estimate at it is D = c_skip x + c_out F(c_in x, c_noise). A teacher may have a process of its own:
it sees the same image at its own level of the same sigma/alpha, x alpha_T/alpha.

The deterministic step of the probability-flow ODE from a level t to a level s, with an exact estimate exact, is

    x_s = sigma_s/sigma_t x_t + (alpha_s - alpha_t sigma_s/sigma_t) D
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import Pass, Sum
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import same_levels
from diffusion_core.training.targets.method import TrainedNetwork

__all__ = [
    "COLUMNS",
    "at_ratio",
    "estimate",
    "karras_ratio",
    "level",
    "names",
    "noised",
    "ode_step",
    "pair",
    "taught",
]

Array = NDArray[np.float64]
COLUMNS = ("alpha", "sigma", "c_skip", "c_out", "c_in")


def names(*levels: str) -> tuple[str, ...]:
    """Return the names of the columns of some levels."""
    return tuple(f"{column}.{name}" for name in levels for column in COLUMNS)


def level(process: Process, t: NDArray, name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return (columns, times) of a level at the times t, which may lie outside the span of a continuous schedule."""
    t = np.asarray(t)
    alpha, sigma = process.schedule(t) if process.schedule.is_table else process.schedule.alpha_sigma(t)
    made = process.columns_at(t, alpha, sigma)
    values = (alpha, sigma, made.c_skip, made.c_out, made.c_in)
    table = {f"{column}.{name}": np.asarray(value, np.float64) for column, value in zip(COLUMNS, values, strict=True)}
    return table, {f"c_noise.{name}": made.c_noise}


def pair(process: Process, t: NDArray, s: NDArray) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return (columns, times) of two levels, with the names t and s."""
    (columns, times), (lower, lower_times) = level(process, t, "t"), level(process, s, "s")
    return columns | lower, times | lower_times


def taught(
    teacher: TrainedNetwork, process: Process, t: NDArray, at: Mapping[str, Array], of: str, name: str
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return (columns, times) of the teacher's level with the same sigma/alpha as a level of the student.

    Args:
        teacher: the teacher.
        process: the student's.
        t: the student's times.
        at: the columns of the student's level.
        of: its name.
        name: of the teacher's level.
    """
    if not same_levels(process.schedule, teacher.process.schedule):
        ratio = np.log(at[f"sigma.{of}"]) - np.log(at[f"alpha.{of}"])
        t = teacher.process.schedule.t_at_log_ratio(ratio)
    columns, times = level(teacher.process, t, name)
    scale = columns[f"alpha.{name}"] / at[f"alpha.{of}"]
    for column in ("c_skip", "c_in"):
        columns[f"{column}.{name}"] = columns[f"{column}.{name}"] * scale
    return columns, times


def noised(name: str, at: str) -> Sum:
    """Return x = alpha x_0 + sigma eps at a level."""
    return Sum(name, ((f"alpha.{at}", "images"), (f"sigma.{at}", "noise")))


def estimate(name: str, network: str, x: str, at: str, gradient: bool = False) -> tuple[Sum | Pass, ...]:
    """Return the steps of the estimate D of x_0 from x at a level."""
    return (
        Sum(f"{name}.input", ((f"c_in.{at}", x),)),
        Pass(f"{name}.output", network, f"{name}.input", f"c_noise.{at}", gradient=gradient),
        Sum(name, ((f"c_skip.{at}", x), (f"c_out.{at}", f"{name}.output"))),
    )


def ode_step(at: Mapping[str, Array], start: str, end: str) -> tuple[Array, Array]:
    """Return (the weight of x, the weight of D) in the step between two levels."""
    ratio = at[f"sigma.{end}"] / at[f"sigma.{start}"]
    return ratio, at[f"alpha.{end}"] - at[f"alpha.{start}"] * ratio


def karras_ratio(fraction: NDArray, low: float, high: float, rho: float) -> Array:
    """Return sigma/alpha at a fraction of the way from `high` (0) to `low` (1), even in its root (Karras et al.)."""
    root = 1.0 / rho
    return (high**root + np.asarray(fraction) * (low**root - high**root)) ** rho


def at_ratio(process: Process, ratio: NDArray) -> Array:
    """Return the t at which sigma/alpha has these values."""
    return process.schedule.t_at_log_ratio(np.log(ratio))

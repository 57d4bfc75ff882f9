r"""Hyper-parameters that no list has: solved for from the updates.

With the numbers x of a rule (momentum, decays of the moments, epsilon, weight decay, the limit of clipping) its
predictions leave a residual r(x), each parameter's relative to its updates. Damped steps of Gauss and Newton,

    x <- x - (J^T J + damping)^-1 J^T r,      J = dr/dx by differences,

lead to the numbers, if the form of the rule is right. Where gradients are clipped, epsilon is taken as it is: only its
ratio to the limit shows. Decays of moments are sought as log(1 - b), epsilon and limits
by their logarithms. The shortest decimal that explains as much is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.update_rules import FIELDS, Rule

__all__ = ["solve_numbers"]

_PLAIN = ("momentum", "dampening", "decay")
_OF_ONE = ("beta1", "beta2")
_LOGARITHM = ("epsilon", "limit")
_STEP = 1e-6


def solve_numbers(rule: Rule, residual: Callable[[Rule], NDArray | None], steps: int = 12) -> Rule:
    """Return the rule with those numbers that leave the smallest residual near the given ones.

    Args:
        rule: the first guess, of the right form.
        residual: what a rule leaves of the updates, as a vector; None if it cannot be computed.
        steps: how many at most.
    """
    names = [n for n in (*FIELDS[rule.method], "decay", "limit") if n in (*_PLAIN, *_OF_ONE, *_LOGARITHM)]
    names = [n for n in names if n != "dampening" or rule.momentum]
    names = [n for n in names if n != "epsilon" or not rule.clip]
    names = [n for n in names if n not in _LOGARITHM or getattr(rule, n) > 0]
    x = np.array([_to(n, getattr(rule, n)) for n in names])
    best = residual(rule)
    if best is None or not names:
        return rule
    for _ in range(steps):
        columns = []
        for i in range(len(x)):
            moved = residual(_with(rule, names, x + _STEP * np.eye(len(x))[i]))
            columns.append(np.zeros_like(best) if moved is None else (moved - best) / _STEP)
        jacobian = np.stack(columns, axis=1)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ best
        for damping in (1e-12, 1e-4, 1e-2, 1.0, 100.0):
            diagonal = np.diag(normal.diagonal() * damping + 1e-300)
            move = np.clip(-np.linalg.lstsq(normal + diagonal, slope, rcond=1e-14)[0], -2.0, 2.0)
            trial = residual(_with(rule, names, x + move))
            if trial is not None and trial @ trial < best @ best:
                break
        else:
            break
        better = trial @ trial < 0.99 * (best @ best)
        x, best = x + move, trial
        if not better:
            break
    return _rounded(_with(rule, names, x), rule, names, residual, float(best @ best))


def _rounded(
    found: Rule, first: Rule, names: Sequence[str], residual: Callable[[Rule], NDArray | None], left: float
) -> Rule:
    """Return a rule with each number as short as it can be: the first guess, or few digits."""
    for name in names:
        value = getattr(found, name)
        for short in (getattr(first, name), 0.0, *(float(f"{value:.{digits}g}") for digits in range(1, 7))):
            trial = replace(found, **{name: short})
            r = residual(trial)
            if r is not None and r @ r <= 4 * left + 1e-12 * r.size:
                found = trial
                break
    return found


def _with(rule: Rule, names: Sequence[str], x: NDArray) -> Rule:
    return replace(rule, **{n: _from(n, float(v)) for n, v in zip(names, x, strict=True)})


def _to(name: str, value: float) -> float:
    if name in _OF_ONE:
        return float(np.log(max(1 - value, 1e-9)))
    return float(np.log(max(value, 1e-300))) if name in _LOGARITHM else value


def _from(name: str, x: float) -> float:
    if name in _OF_ONE:
        return float(1 - np.exp(min(x, 0.0)))
    return float(np.exp(min(x, 3.0))) if name in _LOGARITHM else x

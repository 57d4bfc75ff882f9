"""Weights: where they start, and whether some given ones fit a program.

A weight is a function of (seed, parameter name) alone: two networks that share a name and a shape
share the bits, in every framework. They are drawn in float64 and cast once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.networks.blocks import Parameter
from diffusion_core.networks.program import Program

__all__ = ["Weights", "check_numbers", "check_weights", "count", "hash_weights", "initial_weights", "shape_misfits"]

Weights = dict[str, NDArray]


def hash_weights(weights: Weights) -> str:
    """The hash of names and bits."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(np.ascontiguousarray(weights[name]))
    return found.hexdigest()


def initial_weights(program: Program, seed: int, dtype: DTypeLike = np.float64) -> Weights:
    """The weights that training starts from, by full name."""
    return {p.name: _draw(p, seed).astype(dtype) for p in program.parameters}


def _draw(parameter: Parameter, seed: int) -> NDArray[np.float64]:
    law, size = parameter.init
    stream = Stream(seed, f"weights/{parameter.name}")
    if law == "constant":
        return np.full(parameter.shape, size)
    if law == "uniform":
        values = stream.uniform([0], int(np.prod(parameter.shape)))
        return (size * (2.0 * values - 1.0)).reshape(parameter.shape)
    if law == "normal":
        return size * stream.normal([0], parameter.shape)[0]
    raise DuetError(f"{parameter.name}: unknown initialiser {law!r}")


def count(program: Program) -> int:
    """The number of trained numbers."""
    return sum(int(np.prod(p.shape)) for p in program.trained)


def shape_misfits(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, NDArray]) -> list[str]:
    """What is missing of the wanted names, then what has another shape, a line each."""
    misfits = [
        f"{name}: the network needs shape {shape}, but it is missing"
        for name, shape in wanted.items()
        if name not in given
    ]
    return misfits + [
        f"{name}: the network needs shape {shape}, but {tuple(given[name].shape)} was given"
        for name, shape in wanted.items()
        if name in given and tuple(given[name].shape) != shape
    ]


def check_weights(
    program: Program, weights: Mapping[str, NDArray], source: str = "weights", trained: bool = False
) -> None:
    """Refuse weights that do not fit the program exactly.

    Args:
        source: what errors call them.
        trained: whether they are of the trained parameters alone, as gradients are.

    Raises:
        DuetError: names the first misfit (a missing name, a name that is not used, or a shape) and counts the rest.
    """
    wanted = {p.name: p.shape for p in (program.trained if trained else program.parameters)}
    misfits = shape_misfits(wanted, weights)
    misfits += [f"{name}: no parameter of the network has this name" for name in weights if name not in wanted]
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise DuetError(f"{source}: {misfits[0]}{more}")


def check_numbers(weights: Mapping[str, NDArray], source: str = "weights", finite: bool = True) -> None:
    """Refuse weights that are no floating numbers or not finite: a network computes nothing from them.

    Args:
        source: what errors call them.
        finite: False takes those that are not finite.

    Raises:
        DuetError: names the first such weight and counts its numbers and the other weights of the kind.
    """
    types = {
        name: value.dtype for name, value in sorted(weights.items()) if value.dtype not in (np.float32, np.float64)
    }
    for name, dtype in types.items():
        raise DuetError(f"{source}: {name} is of type {dtype}; weights are float32 or float64")
    if not finite:
        return
    lost = {name: value.size - int(np.count_nonzero(np.isfinite(value))) for name, value in sorted(weights.items())}
    if lost := {name: number for name, number in lost.items() if number}:
        name, number = next(iter(lost.items()))
        more = f", and so are some of {len(lost) - 1} more" if len(lost) > 1 else ""
        raise DuetError(f"{source}: {number} of the {weights[name].size} numbers of {name} are not finite{more}")

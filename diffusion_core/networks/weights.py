"""Initial weights, and checks that weights fit a program.

An initial weight depends on (seed, parameter name) alone: two networks with a parameter of the same name and shape
start with the same bits, in every framework. Weights are drawn in float64 and cast at the end.
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

__all__ = [
    "Weights",
    "check_finite",
    "check_weights",
    "hash_weights",
    "initial_weights",
    "parameter_count",
    "shape_mismatches",
]

Weights = dict[str, NDArray]


def hash_weights(weights: Weights) -> str:
    """Return the SHA-256 hash of names and bits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]))
    return digest.hexdigest()


def initial_weights(program: Program, seed: int, dtype: DTypeLike = np.float64) -> Weights:
    """Return the weights that training starts from, by full name.

    Example:
        >>> from diffusion_core.networks import PlainSpec, lower
        >>> program = lower(PlainSpec(image_size=8, channels=(4,), bottleneck=8))
        >>> initial_weights(program, seed=0)["out.weight"].shape
        (3, 4, 1, 1)
    """
    return {p.name: _draw(p, seed).astype(dtype) for p in program.parameters}


def _draw(parameter: Parameter, seed: int) -> NDArray[np.float64]:
    distribution, size = parameter.init
    stream = Stream(seed, f"weights/{parameter.name}")
    if distribution == "constant":
        return np.full(parameter.shape, size)
    if distribution == "uniform":
        values = stream.uniform([0], int(np.prod(parameter.shape)))
        return (size * (2.0 * values - 1.0)).reshape(parameter.shape)
    if distribution == "normal":
        return size * stream.normal([0], parameter.shape)[0]
    raise DuetError(f"{parameter.name}: unknown initial distribution {distribution!r}")


def parameter_count(program: Program) -> int:
    """Return the number of trained elements."""
    return sum(p.size for p in program.trained)


def shape_mismatches(wanted: Mapping[str, tuple[int, ...]], arrays: Mapping[str, NDArray]) -> list[str]:
    """Return one line per wanted name that is missing, then one per array of another shape."""
    lines = [
        f"{name}: the network needs shape {shape}, but it is missing"
        for name, shape in wanted.items()
        if name not in arrays
    ]
    return lines + [
        f"{name}: the network needs shape {shape}, but {tuple(arrays[name].shape)} was given"
        for name, shape in wanted.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]


def check_weights(
    program: Program, weights: Mapping[str, NDArray], source: str = "weights", trained: bool = False
) -> None:
    """Check that weights fit a program exactly.

    Args:
        program: the network.
        weights: by full name.
        source: what the message calls them.
        trained: whether they belong to the trained parameters only, as gradients do.

    Raises:
        DuetError: names the first mismatch (a missing name, an unused name or a shape) and counts the rest.
    """
    wanted = {p.name: p.shape for p in (program.trained if trained else program.parameters)}
    mismatches = shape_mismatches(wanted, weights)
    mismatches += [f"{name}: no parameter of the network has this name" for name in weights if name not in wanted]
    if mismatches:
        more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
        raise DuetError(f"{source}: {mismatches[0]}{more}")


def check_finite(weights: Mapping[str, NDArray], source: str = "weights", require_finite: bool = True) -> None:
    """Check that weights are float32 or float64 and finite.

    Args:
        weights: by full name.
        source: what the message calls them.
        require_finite: False allows values that are not finite.

    Raises:
        DuetError: names the first bad weight, and counts its values and the other bad weights.
    """
    types = {
        name: value.dtype for name, value in sorted(weights.items()) if value.dtype not in (np.float32, np.float64)
    }
    for name, dtype in types.items():
        raise DuetError(f"{source}: {name} has the type {dtype}; it must be float32 or float64")
    if not require_finite:
        return
    bad = {name: value.size - int(np.count_nonzero(np.isfinite(value))) for name, value in sorted(weights.items())}
    if bad := {name: number for name, number in bad.items() if number}:
        name, number = next(iter(bad.items()))
        more = f", and so are values of {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DuetError(f"{source}: {number} of the {weights[name].size} values of {name} are not finite{more}")

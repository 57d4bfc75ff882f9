"""Initial weights, and checks that weights fit a program.

An initial weight depends on (seed, parameter name) alone: two networks with a parameter of the same name and shape
start with the same bits, in every framework. Weights are drawn in float64 and cast at the end.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Container, Mapping

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.common.text import join_some
from diffusion_core.networks.program import Program
from diffusion_core.networks.registry import Parameter

__all__ = [
    "Weights",
    "check_finite",
    "check_weights",
    "describe_mismatches",
    "describe_non_finite",
    "hash_weights",
    "initial_weights",
    "parameter_count",
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
    """Return the weights that training starts from, by full name: drawn, or those that an own network came with.

    Example:
        >>> from diffusion_core.networks import PlainSpec, lower
        >>> program = lower(PlainSpec(image_size=8, channels=(4,), bottleneck=8))
        >>> initial_weights(program, seed=0)["out.weight"].shape
        (3, 4, 1, 1)
    """
    given = {
        f"{node.name}.{p.name}": node.block.given(p.name)
        for node in program.nodes
        for p in node.block.parameters()
        if p.init[0] == "given"
    }
    return {p.name: (given[p.name] if p.name in given else _draw(p, seed)).astype(dtype) for p in program.parameters}


def _draw(parameter: Parameter, seed: int) -> NDArray[np.float64]:
    distribution, size = parameter.init
    stream = Stream(seed, f"weights/{parameter.name}")
    if distribution == "constant":
        return np.full(parameter.shape, size)
    if distribution == "uniform":
        values = stream.uniform([0], int(np.prod(parameter.shape)))
        return (size * (2.0 * values - 1.0)).reshape(parameter.shape)
    if distribution == "positive":
        return size * stream.uniform([0], int(np.prod(parameter.shape))).reshape(parameter.shape)
    if distribution == "normal":
        return size * stream.normal([0], parameter.shape)[0]
    raise DuetError(f"{parameter.name}: unknown initial distribution {distribution!r}")


def parameter_count(program: Program) -> int:
    """Return the number of trained elements."""
    return sum(p.size for p in program.trained)


def describe_mismatches(
    wanted: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, NDArray],
    extras: Container[str] = (),
    unused: str = "no parameter of the network has this name",
    floating: bool = False,
) -> str:
    """Return how arrays differ from what a network needs, in one line; empty if they fit.

    Each kind of mismatch (a missing name, another shape, no floating-point values, an unused name) is shown by its
    first case with the number of others. A missing and an unused name come with the most similar name of the other
    kind, since the two are often one name in two spellings.

    Args:
        wanted: the shapes by name.
        arrays: the arrays by name.
        extras: names that may be present and are not needed.
        unused: what is said of a name that is not needed.
        floating: whether integers are a mismatch.
    """
    missing = [name for name in wanted if name not in arrays]
    spare = [name for name in arrays if name not in wanted and name not in extras]
    kinds = [
        [f"{name}: the network needs shape {wanted[name]}, but it is missing" for name in missing],
        [
            f"{name}: the network needs shape {shape}, but {tuple(arrays[name].shape)} was given"
            for name, shape in wanted.items()
            if name in arrays and tuple(arrays[name].shape) != tuple(shape)
        ],
        [
            f"{name}: the network needs floating-point values, but {arrays[name].dtype} was given"
            for name in wanted
            if floating and name in arrays and arrays[name].dtype.kind != "f"
        ],
        [f"{name}: {unused}" for name in spare],
    ]
    hints = [_nearest(missing, spare, "unused"), "", "", _nearest(spare, missing, "missing")]
    return "; ".join(
        f"{lines[0]}{hint}" + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")
        for lines, hint in zip(kinds, hints, strict=True)
        if lines
    )


def _nearest(names: list[str], others: list[str], kind: str) -> str:
    """Return a hint at the name among `others` that is most similar to the first of `names`; empty without one."""
    near = difflib.get_close_matches(names[0], others, n=1) if names else []
    return f" (the nearest {kind} name is {near[0]})" if near else ""


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
        DuetError: names the first mismatch of each kind and counts the others, see `describe_mismatches`.
    """
    wanted = {p.name: p.shape for p in (program.trained if trained else program.parameters)}
    if mismatches := describe_mismatches(wanted, weights):
        raise DuetError(f"{source}: {mismatches}")


def describe_non_finite(arrays: Mapping[str, NDArray], shown: int = 5) -> str:
    """Return the names of the arrays that hold NaN or infinity, with how many of their values; empty if none does."""
    counts = {
        name: a.size - int(np.count_nonzero(np.isfinite(a))) for name, a in arrays.items() if a.dtype.kind in "fc"
    }
    bad = [f"{name} ({count} of {arrays[name].size} values)" for name, count in counts.items() if count]
    return join_some(bad, shown)


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

"""What the foreign formats share: which arrays a parameter is made of, and in which layout they lie.

A *name map* says for every parameter of a program under which names another project keeps it. A *layout* is a pair
of functions, from the foreign arrays to Duet's one and back, so that one map serves for reading and for writing.

    Duet (the axes of PyTorch)        elsewhere
    convolution   o i kh kw           kh kw i o in TensorFlow
    dense         o i                 i o in TensorFlow
    1 x 1         o i 1 1             a dense layer o i, i o, or a one-dimensional convolution o i 1
    q, k and v    one 1 x 1           three dense layers

Reading is strict: nothing may be missing, of another shape, or left over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import Node, Program, UNetSpec
from diffusion_core.networks.blocks import ATTENTION_ORDERS, Attention
from diffusion_core.networks.weights import Weights, shape_mismatches

__all__ = [
    "CONV1D",
    "DDPM",
    "DENSE_1X1",
    "HWIO",
    "SAME",
    "TRANSPOSED",
    "TRANSPOSED_1X1",
    "Arrays",
    "Entry",
    "Imported",
    "Layout",
    "NameMap",
    "expand",
    "name_map",
    "prefixes",
    "make_model",
    "qkv",
    "read_weights",
    "write_weights",
]

Arrays = Mapping[str, NDArray]
# What these files were trained with, where they do not say it themselves.
DDPM: Mapping[str, Any] = {"schedule": {"name": "linear", "T": 1000}, "prediction": "eps"}
ASSUMED = "DDPM's, assumed, as these files do not say it; process=NAME gives another"
_WHOLE = "start from a whole process, as process=eps_linear"


@dataclass(frozen=True, eq=False)
class Imported:
    """What a foreign file is to Duet.

    Args:
        model: network and process.
        weights: the last weights.
        ema: their moving average; the same where the source has one set of weights.
        note: what a person should know of it, in one line.
        whose: where its process is from, in words.
    """

    model: DiffusionModel
    weights: Weights
    ema: Weights
    note: str
    whose: str


def make_model(
    spec: UNetSpec,
    process: Mapping[str, Any] | None,
    own: Mapping[str, Any] | None = None,
    variance: str = "fixed",
) -> tuple[DiffusionModel, str]:
    """(problem, where its process is from): what a person gave, else what the source says, else DDPM's.

    Args:
        process: what was given: the arguments of `DiffusionModel` beside the network, with schedule and prediction.
        own: the same of the source.
        variance: what the source says of the second half of the output; it holds where none of them says another.

    Raises:
        DuetError: names what is missing, unknown or does not fit.
    """
    if process is None:
        found, whose = (own, "its own") if own else (DDPM, ASSUMED)
        return DiffusionModel(spec, **{"variance": variance, **found}), whose
    known = [field.name for field in fields(DiffusionModel) if field.name != "spec"]
    for name in process:
        if name not in known:
            raise one_of("process, of an import", name, known)
    for name in ("schedule", "prediction"):
        if not process.get(name):
            raise DuetError(f"process.{name}: no value was given; {_WHOLE}")
    if not isinstance(process["schedule"], Mapping) or "name" not in process["schedule"]:
        raise DuetError(f"process.schedule: {process['schedule']!r} was given; it has a name and options; {_WHOLE}")
    given = {"variance": variance, **process}
    if "value_range" in given:
        given["value_range"] = _pair(given["value_range"])
    try:
        return DiffusionModel(spec, **given), "as given"
    except TypeError as error:  # null or text where there must be a number
        raise DuetError(f"process: a value has the wrong type ({error}); {_WHOLE}") from error


def _pair(given: Any) -> tuple[float, ...]:
    if not isinstance(given, (list, tuple)) or not all(type(value) in (int, float) for value in given):
        raise DuetError(f"process.value_range: {given!r} was given; it is (black, white), as in [-1, 1]")
    return tuple(map(float, given))


@dataclass(frozen=True)
class Layout:
    """How a parameter lies elsewhere.

    Args:
        take: Duet's array of the foreign ones.
        give: the foreign arrays of Duet's; the inverse of `take`.
    """

    take: Callable[..., NDArray]
    give: Callable[[NDArray], tuple[NDArray, ...]]


SAME = Layout(lambda a: a, lambda a: (a,))
TRANSPOSED = Layout(np.transpose, lambda a: (a.T,))
HWIO = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a: (a.transpose(2, 3, 1, 0),))
DENSE_1X1 = Layout(lambda a: a[:, :, None, None], lambda a: (a[:, :, 0, 0],))
TRANSPOSED_1X1 = Layout(lambda a: a.T[:, :, None, None], lambda a: (a[:, :, 0, 0].T,))
CONV1D = Layout(lambda a: a[:, :, :, None], lambda a: (a[:, :, :, 0],))


def qkv(layout: Layout, attention: Attention) -> Layout:
    """Three arrays q, k and v, each of `layout`, as the rows that an attention reads in its order."""
    order = ATTENTION_ORDERS[attention.order]
    options = {"three": 3, "n": attention.heads}

    def take(q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        rows = np.stack([layout.take(a) for a in (q, k, v)])
        return rearrange(rows, f"three (n d) ... -> ({order}) ...", **options)

    def give(rows: NDArray) -> tuple[NDArray, ...]:
        parts = rearrange(rows, f"({order}) ... -> three (n d) ...", **options)
        return tuple(layout.give(part)[0] for part in parts)

    return Layout(take, give)


@dataclass(frozen=True)
class Entry:
    """Where one parameter is: the names of the foreign arrays, and their layout."""

    names: tuple[str, ...]
    layout: Layout = SAME


NameMap = dict[str, Entry]


def prefixes(units: Mapping[str, str], leaves: Mapping[str, str]) -> dict[str, str]:
    """The foreign module of every node of some units (residual blocks, attentions), each with the same leaves."""
    return {f"{ours}.{a}": f"{theirs}{b}" for ours, theirs in units.items() for a, b in leaves.items()}


def expand(module: str, *leaves: str) -> tuple[str, ...]:
    """Several modules beside each other, as q, k and v are: the last word of `module` is replaced by each leaf."""
    return tuple(re.sub(r"\w+$", leaf, module) for leaf in leaves)


def name_map(
    program: Program, modules: Mapping[str, str], spell: Callable[[Node, str, str], Entry], source: str
) -> NameMap:
    """The name map of a program.

    Args:
        modules: the foreign module of each node; nodes that the program does not have are left out.
        spell: the entry of (node, name of its parameter, foreign module).
        source: the format, for errors.

    Raises:
        DuetError: if the program has a part that the format has no name for.
    """
    found = {}
    for node in program.nodes:
        for parameter in node.block.parameters():
            if node.name not in modules:
                raise DuetError(f"{source}: it has no name for {node.name}, which this network has")
            found[f"{node.name}.{parameter.name}"] = spell(node, parameter.name, modules[node.name])
    return found


def read_weights(names: NameMap, program: Program, arrays: Arrays, source: str, extras: Iterable[str] = ()) -> Weights:
    """Duet's weights of foreign arrays: float64 where they are, else float32.

    Args:
        source: what errors call the arrays.
        extras: names that may be there and are not read.

    Raises:
        DuetError: names the first misfit (a missing name, a shape, or a name that is not used) and counts the rest.
    """
    wanted = {
        name: array.shape
        for p in program.parameters
        for name, array in zip(names[p.name].names, names[p.name].layout.give(_nothing(p.shape)), strict=True)
    }
    misfits = shape_mismatches(wanted, arrays)
    misfits += [
        f"{name}: the network needs numbers with a fraction, but {arrays[name].dtype} was given"
        for name in wanted
        if name in arrays and arrays[name].dtype.kind != "f"
    ]
    misfits += [
        f"{name}: no parameter of the network is made of it" for name in arrays if name not in {*wanted, *extras}
    ]
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise DuetError(f"{source}: {misfits[0]}{more}")
    weights = {}
    for p in program.parameters:
        array = names[p.name].layout.take(*[_widened(arrays[name]) for name in names[p.name].names])
        weights[p.name] = np.ascontiguousarray(array)
    return weights


def write_weights(names: NameMap, weights: Weights) -> dict[str, NDArray]:
    """The foreign arrays of Duet's weights: the inverse of `read_weights`."""
    return {
        name: np.ascontiguousarray(array)
        for ours, entry in names.items()
        for name, array in zip(entry.names, entry.layout.give(weights[ours]), strict=True)
    }


def _nothing(shape: tuple[int, ...]) -> NDArray:
    """An array of that shape that takes no memory."""
    return np.broadcast_to(np.float32(0.0), shape)


def _widened(array: NDArray) -> NDArray:
    return array if array.dtype == np.float64 else array.astype(np.float32)

"""Name maps and layouts, which all formats of other projects share.

A *name map* says for every parameter of a program under which names another project stores it. A *layout* is a pair of
functions, from the foreign arrays to Duet's array and back, so that one map serves for reading and writing.

    Duet (the axes of PyTorch)        elsewhere
    convolution   o i kh kw           kh kw i o in TensorFlow
    dense         o i                 i o in TensorFlow
    1 x 1         o i 1 1             a dense layer o i, i o, or a one-dimensional convolution o i 1
    q, k and v    one 1 x 1           three dense layers

Reading is strict: no array may be missing, have another shape, or be left over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import NetworkSpec, Node, Program
from diffusion_core.networks.blocks import ATTENTION_ORDERS, Attention
from diffusion_core.networks.weights import Weights, describe_mismatches, describe_non_finite

__all__ = [
    "CONV1D",
    "DDPM",
    "DENSE_1X1",
    "HWIO",
    "SAME",
    "TRANSPOSED",
    "TRANSPOSED_1X1",
    "WITH_BATCH",
    "Arrays",
    "Entry",
    "Imported",
    "Layout",
    "NameMap",
    "count_numbers",
    "join_names",
    "make_model",
    "name_map",
    "qkv",
    "read_weights",
    "shape_of",
    "siblings",
    "write_weights",
]

Arrays = Mapping[str, NDArray]
# The process of files that do not state theirs.
DDPM: Mapping[str, Any] = {"schedule": {"name": "linear", "T": 1000}, "prediction": "eps"}
ASSUMED = "assumed to be DDPM's, since these files do not say it; set process=NAME for another"
_COMPLETE = "start from a complete process, as in process=eps_linear"


@dataclass(frozen=True, eq=False)
class Imported:
    """An imported file.

    Args:
        model: the network and the process.
        weights: the last weights.
        ema: their moving average; equal to `weights` if the source has one set of weights.
        note: one line about the source, for the terminal.
        process_source: where the process comes from, for the terminal.
        sampler: name and options of the sampler that the source names; None if it names none.
        objective: options of the training objective that the source has otherwise than Duet's defaults.
    """

    model: DiffusionModel
    weights: Weights
    ema: Weights
    note: str
    process_source: str
    sampler: Mapping[str, Any] | None = None
    objective: Mapping[str, Any] = field(default_factory=dict)


def count_numbers(arrays: Iterable[str], pattern: str) -> int:
    """Return one more than the largest number that a pattern finds at the start of the names; 0 if it finds none."""
    return 1 + max((int(found.group(1)) for name in arrays if (found := re.match(pattern, name))), default=-1)


def shape_of(arrays: Arrays, name: str, axes: int, source: str, what: str) -> tuple[int, ...]:
    """Return the shape of an array with this number of axes.

    Raises:
        DuetError: if there is none, so that `source` is not `what`.
    """
    if name not in arrays or arrays[name].ndim != axes:
        raise DuetError(f"{source}: {name} is missing or has other axes; this is not {what}")
    return arrays[name].shape


def make_model(
    spec: NetworkSpec,
    process: Mapping[str, Any] | None,
    own: Mapping[str, Any] | None = None,
    variance: str = "fixed",
) -> tuple[DiffusionModel, str]:
    """Return (model, where its process comes from): the user's process, else that of the source, else DDPM's.

    Args:
        spec: the network.
        process: the user's arguments of `DiffusionModel` except the network, with schedule and prediction, or None.
        own: the same of the source, or None.
        variance: the meaning of the second half of the output according to the source; the process may override it.

    Raises:
        DuetError: if an argument is missing, unknown or not allowed; the message names it.
    """
    if process is None:
        arguments, origin = (own, "that of the source") if own else (DDPM, ASSUMED)
        return DiffusionModel(spec, **{"variance": variance, **arguments}), origin
    known = [field.name for field in fields(DiffusionModel) if field.name != "spec"]
    for name in process:
        check_choice("process, for an import", name, known)
    for name in ("schedule", "prediction"):
        if not process.get(name):
            raise DuetError(f"process.{name}: no value was given; {_COMPLETE}")
    if not isinstance(process["schedule"], Mapping) or "name" not in process["schedule"]:
        raise DuetError(
            f"process.schedule: {process['schedule']!r} was given; it must have a name and options; {_COMPLETE}"
        )
    arguments = {"variance": variance, **process}
    if "value_range" in arguments:
        arguments["value_range"] = _pair(arguments["value_range"])
    try:
        return DiffusionModel(spec, **arguments), "set by the user"
    except TypeError as error:  # null or text instead of a number
        raise DuetError(f"process: a value has the wrong type ({error}); {_COMPLETE}") from error


def _pair(value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or not all(type(number) in (int, float) for number in value):
        raise DuetError(f"process.value_range: {value!r} was given; it must be (black, white), as in [-1, 1]")
    return tuple(map(float, value))


@dataclass(frozen=True)
class Layout:
    """How another project stores a parameter.

    Args:
        to_duet: returns Duet's array, given the foreign arrays.
        from_duet: returns the foreign arrays, given Duet's array; the inverse of `to_duet`.
    """

    to_duet: Callable[..., NDArray]
    from_duet: Callable[[NDArray], tuple[NDArray, ...]]


SAME = Layout(lambda a: a, lambda a: (a,))
TRANSPOSED = Layout(np.transpose, lambda a: (a.T,))
HWIO = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a: (a.transpose(2, 3, 1, 0),))
DENSE_1X1 = Layout(lambda a: a[:, :, None, None], lambda a: (a[:, :, 0, 0],))
TRANSPOSED_1X1 = Layout(lambda a: a.T[:, :, None, None], lambda a: (a[:, :, 0, 0].T,))
CONV1D = Layout(lambda a: a[:, :, :, None], lambda a: (a[:, :, :, 0],))
WITH_BATCH = Layout(lambda a: a[0], lambda a: (a[None],))


def qkv(layout: Layout, attention: Attention) -> Layout:
    """Return the layout of three arrays q, k and v, each with `layout`, as rows in the order of an attention."""
    order = ATTENTION_ORDERS[attention.order]
    options = {"three": 3, "n": attention.heads}

    def to_duet(q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        rows = np.stack([layout.to_duet(a) for a in (q, k, v)])
        return rearrange(rows, f"three (n d) ... -> ({order}) ...", **options)

    def from_duet(rows: NDArray) -> tuple[NDArray, ...]:
        parts = rearrange(rows, f"({order}) ... -> three (n d) ...", **options)
        return tuple(layout.from_duet(part)[0] for part in parts)

    return Layout(to_duet, from_duet)


@dataclass(frozen=True)
class Entry:
    """The location of one parameter: the names of the foreign arrays, and their layout."""

    names: tuple[str, ...]
    layout: Layout = SAME


NameMap = dict[str, Entry]


def join_names(units: Mapping[str, str], leaves: Mapping[str, str]) -> dict[str, str]:
    """Return the foreign module of every node of the units (residual blocks, attentions), which share their leaves."""
    return {f"{ours}.{a}": f"{theirs}{b}" for ours, theirs in units.items() for a, b in leaves.items()}


def siblings(module: str, *leaves: str) -> tuple[str, ...]:
    """Return sibling modules, such as q, k and v: the last word of `module` is replaced by each leaf."""
    return tuple(re.sub(r"\w+$", leaf, module) for leaf in leaves)


def name_map(
    program: Program, modules: Mapping[str, str], make_entry: Callable[[Node, str, str], Entry], source: str
) -> NameMap:
    """Return the name map of a program.

    Args:
        program: the network.
        modules: the foreign module of each node; it may have more nodes than the program.
        make_entry: returns the entry of (node, name of its parameter, foreign module).
        source: the format, for errors.

    Raises:
        DuetError: if the format has no name for a part of the program.
    """
    names = {}
    for node in program.nodes:
        for parameter in node.block.parameters():
            if node.name not in modules:
                raise DuetError(f"{source}: this format has no name for {node.name} of the network")
            names[f"{node.name}.{parameter.name}"] = make_entry(node, parameter.name, modules[node.name])
    return names


def read_weights(names: NameMap, program: Program, arrays: Arrays, source: str, extras: Iterable[str] = ()) -> Weights:
    """Return Duet's weights from foreign arrays; float64 arrays stay float64, all others become float32.

    Args:
        names: the name map.
        program: the network.
        arrays: the foreign arrays by name.
        source: what errors call the arrays.
        extras: names that may be present and are not read.

    Raises:
        DuetError: names the first mismatch of each kind (a missing name, a shape, a type, an unused name) and counts
            the others, or names the arrays that hold NaN or infinity.
    """
    wanted = {
        name: array.shape
        for p in program.parameters
        for name, array in zip(names[p.name].names, names[p.name].layout.from_duet(_empty(p.shape)), strict=True)
    }
    unused = "no parameter of the network uses it"
    if mismatches := describe_mismatches(wanted, arrays, frozenset(extras), unused, floating=True):
        raise DuetError(f"{source}: {mismatches}")
    if bad := describe_non_finite({name: arrays[name] for name in wanted}):
        raise DuetError(f"{source}: these arrays hold NaN or infinity: {bad}; import another file")
    weights = {}
    for p in program.parameters:
        array = names[p.name].layout.to_duet(*[_at_least_float32(arrays[name]) for name in names[p.name].names])
        weights[p.name] = np.asarray(array, order="C")
    return weights


def write_weights(names: NameMap, weights: Weights) -> dict[str, NDArray]:
    """Return the foreign arrays of Duet's weights; the inverse of `read_weights`."""
    return {
        name: np.asarray(array, order="C")
        for ours, entry in names.items()
        for name, array in zip(entry.names, entry.layout.from_duet(weights[ours]), strict=True)
    }


def _empty(shape: tuple[int, ...]) -> NDArray:
    """Return an array of this shape that takes no memory."""
    return np.broadcast_to(np.float32(0.0), shape)


def _at_least_float32(array: NDArray) -> NDArray:
    return array if array.dtype == np.float64 else array.astype(np.float32)

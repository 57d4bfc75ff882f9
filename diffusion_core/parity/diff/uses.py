"""What a parameter is used for: the operation that reads it, and what each of its axes means there.

The axes of a kernel have *roles*: "i" is summed over (input channels), "o" is kept (output channels), "0", "1", "2" are
axes of the space. They follow from the operation that reads the kernel, through transpositions on the way, and say how
one side's kernel is written in the order of the other's where no value says it:

    OIHW -> o i 0 1      HWIO -> 0 1 i o      x @ W -> i o      W x -> o i      "abc,cde->abde" -> i o o

A depthwise kernel HWIM has two axes of outputs, 0 1 o o, which OIHW merges into one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.layouts import Layout
from diffusion_core.parity.diff.recording import Operation, Pass

__all__ = ["Entry", "entries", "layout_by_roles", "prefix"]

_PURPOSES = {
    "scale": ("gamma", "scale", "g", "gain"),
    "shift": ("bias", "beta", "shift", "b", "offset"),
    "mean": ("running_mean", "moving_mean", "mean"),
    "variance": ("running_var", "moving_variance", "moving_var", "var", "variance"),
    "kernel": ("kernel", "w", "pointwise_kernel"),
    "depthwise": ("depthwise_kernel",),
    "recurrent": ("recurrent_kernel",),
    "table": ("embeddings", "embedding"),
}
_BY_NAME = {name: purpose for purpose, names in _PURPOSES.items() for name in names}
_BY_KIND = {
    **dict.fromkeys(("conv", "conv_transpose", "matmul", "einsum"), "kernel"),
    **dict.fromkeys(("add", "bias_add", "subtract"), "shift"),
    **dict.fromkeys(("multiply", "divide"), "scale"),
    "gather": "table",
}
_BY_INPUT = {"gamma": "scale", "beta": "shift", "mean": "mean", "variance": "variance"}


@dataclass(frozen=True, eq=False)
class Entry:
    """One parameter or buffer of a side.

    Attributes:
        name: as the side names it.
        array: its values in the pass.
        number: its value number.
        buffer: whether it is no parameter.
        order: its place among all entries, in the order in which operations read them.
        purpose: "kernel", "scale", "shift", "mean", "variance", "table" ... or "" where nothing says it.
        roles: the role of each axis, or None.
        gradient: of the loss of the recording, if there is one.
    """

    name: str
    array: NDArray
    number: int
    buffer: bool
    order: int
    purpose: str
    roles: tuple[str, ...] | None
    gradient: NDArray | None = None
    words: frozenset[str] = field(default_factory=frozenset)

    @property
    def constant(self) -> bool:
        """Whether all its numbers are one, so that its values say nothing about its partner."""
        return self.array.size < 3 or bool(np.all(self.array == self.array.reshape(-1)[0]))


def prefix(name: str) -> str:
    """Return the layer or module of a parameter by its name."""
    parts = re.split(r"[./]", name.removesuffix(":0"))
    return "/".join(parts[:-1])


def entries(record: Pass) -> list[Entry]:
    """Return the parameters and buffers of a pass, in the order in which operations read them."""
    readers: dict[int, list[tuple[int, Operation]]] = {}
    for at, operation in enumerate(record.operations):
        for number in dict.fromkeys(operation.inputs):
            readers.setdefault(number, []).append((at, operation))
    found = []
    named: list[tuple[str, int, bool]] = [(name, number, False) for name, number in record.parameters.items()]
    named += [(name, number, True) for name, number in record.buffers.items()]
    for name, number, buffer in named:
        if number not in record.values:
            continue
        array = record.values[number]
        at, purpose, roles = _use(number, array.shape, readers, record)
        last = re.split(r"[./]", name.removesuffix(":0"))[-1]
        by_name = _BY_NAME.get(last, "")
        if last == "weight":
            by_name = "scale" if array.ndim == 1 else "" if purpose == "table" else "kernel"
        # "ln_g", "w5": what the last word says, where nothing else does.
        word = re.split("_", last.rstrip("0123456789"))[-1]
        purpose = by_name or purpose or _BY_NAME.get(word, "")
        found.append((at, name, array, number, buffer, purpose, roles))
    found.sort(key=lambda item: item[0])
    return [
        Entry(name, array, number, buffer, order, purpose, roles, record.gradients.get(number), _words(name))
        for order, (_, name, array, number, buffer, purpose, roles) in enumerate(found)
    ]


def _words(name: str) -> frozenset[str]:
    """Return the words of a name, numbers included: "layer1.0.conv_b" gives layer, 1, 0, conv, b."""
    return frozenset(re.findall(r"[a-z]+|[A-Z][a-z]*|\d+", name.removesuffix(":0")))


def _use(
    number: int, shape: tuple[int, ...], readers: Mapping[int, list[tuple[int, Operation]]], record: Pass
) -> tuple[float, str, tuple[str, ...] | None]:
    """Return when an operation first reads a value, for what purpose, and the roles of its axes."""
    first = readers[number][0][0] if readers.get(number) else math.inf
    axes: list[tuple[int, ...]] | None = [(i,) for i in range(len(shape))]
    for _ in range(8):
        if not readers.get(number):
            return first, "", None
        operation = readers[number][0][1]
        kind, attributes = operation.kind, operation.attributes
        if kind == "transpose" and axes is not None:
            axes = [axes[i] for i in attributes["axes"]]
        elif kind == "reshape":
            after = record.values.get(operation.outputs[0])
            axes = None if axes is None or after is None else _merge(axes, shape, after.shape)
        elif kind not in ("identity", "cast", "expand"):
            break
        number = operation.outputs[0]
    else:
        return first, "", None
    place = operation.inputs.index(number)
    roles = None if axes is None else _spread(axes, _roles(operation, place, len(axes)), len(shape))
    return first, _purpose(operation, place), roles


def _purpose(operation: Operation, place: int) -> str:
    has = operation.attributes.get("has")
    if has and place < len(has):
        return _BY_INPUT.get(has[place], "")
    if operation.kind in ("conv", "conv_transpose") and place == 2:
        return "shift"
    return _BY_KIND.get(operation.kind, "")


def _merge(axes: list[tuple[int, ...]], shape: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """Follow axes through a reshape that merges neighbours, or adds and removes axes of length 1."""
    lengths = [math.prod(shape[i] for i in group) for group in axes]
    merged, at = [], 0
    for length in after:
        group: tuple[int, ...] = ()
        while at < len(axes) and math.prod(shape[i] for i in group) < length:
            group += axes[at]
            at += 1
        if math.prod(shape[i] for i in group) != length:
            return None
        merged.append(group)
    return merged if all(n == 1 for n in lengths[at:]) else None


def _spread(axes: list[tuple[int, ...]], roles: tuple[str, ...] | None, rank: int) -> tuple[str, ...] | None:
    if roles is None:
        return None
    found = dict.fromkeys(range(rank), "")
    for group, role in zip(axes, roles, strict=True):
        found.update(dict.fromkeys(group, role))
    return tuple(found[i] for i in range(rank))


def _roles(operation: Operation, place: int, rank: int) -> tuple[str, ...] | None:
    """Return the roles of the axes of an operation's input."""
    kind, attributes = operation.kind, operation.attributes
    if kind in ("conv", "conv_transpose") and place == 1:
        letters = attributes["kernel"]
        space = [str(i) for i in range(rank - 2)]
        ends = ["o" if c in "OM" or "M" in letters else "i" for c in letters if c not in "HW"]
        return tuple([*ends, *space] if letters.endswith("W") else [*space, *ends])
    if kind == "matmul" and rank >= 2:
        swapped = bool(attributes.get("transpose_b" if place else "transpose_a"))
        last = ("i", "o") if (place == 1) != swapped else ("o", "i")
        return tuple([*("" for _ in range(rank - 2)), *last])
    if kind == "einsum":
        inputs, _, output = attributes["equation"].replace(" ", "").partition("->")
        terms = inputs.split(",")
        if place < len(terms) and len(terms[place]) == rank and terms[place].isalpha():
            return tuple("o" if c in output else "i" for c in terms[place])
    if kind == "gather" and place == 0:
        return tuple("r" if i == attributes.get("axis", 0) else "d" for i in range(rank))
    return None


def layout_by_roles(a: Entry, b: Entry) -> Layout | None:
    """Return the layout that leads from a's axes to b's by their roles, or None where that says nothing."""
    if a.roles is None or b.roles is None:
        return None
    axes_a = [(role, n) for role, n in zip(a.roles, a.array.shape, strict=True) if n != 1]
    axes_b = [(role, n) for role, n in zip(b.roles, b.array.shape, strict=True) if n != 1]
    if any(not role for role, _ in (*axes_a, *axes_b)):
        return None
    factors: dict[str, list[int]] = {}
    for role in {role for role, _ in (*axes_a, *axes_b)}:
        mine, other = ([n for r, n in axes if r == role] for axes in (axes_a, axes_b))
        if math.prod(mine) != math.prod(other) or (mine != other and min(len(mine), len(other)) > 1):
            return None
        factors[role] = max(mine, other, key=len)

    def split(axes: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return the factors of all axes as (role, which factor of that role)."""
        used, result = dict.fromkeys(factors, 0), []
        for role, length in axes:
            count = 1 if factors[role][used[role]] == length else len(factors[role])
            result += [(role, used[role] + i) for i in range(count)]
            used[role] += count
        return result

    first, second = split(axes_a), split(axes_b)
    sizes = tuple(factors[role][i] for role, i in first)
    return Layout(a.array.shape, b.array.shape, sizes, tuple(first.index(item) for item in second))

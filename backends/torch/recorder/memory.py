"""Which value of a recording a tensor holds, where several tensors share memory and are written in place.

Each memory (a storage of PyTorch) has a *whole*: a tensor that covers it. A write through one tensor makes the others
stale. A stale tensor that is read gets a new value: the whole with the writes since put into it, and then a view of
that. All of this is written to the recording as operations that only move numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Memory", "Moves"]

Layout = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


class Moves(Protocol):
    """What writes operations into the recording; each returns the number of its result."""

    def move(self, kind: str, inputs: list[int], **attributes: Any) -> int:
        """Write an operation that moves numbers."""

    def constant(self, array: NDArray) -> int:
        """Write an array of the code."""


@dataclass
class _Region:
    """One memory: the current values by layout, and the writes that its whole has not yet seen."""

    whole: Layout
    number: int
    version: int = 0
    current: dict[Layout, int] = field(default_factory=dict)
    pending: list[tuple[Layout, int]] = field(default_factory=list)
    shared: set[int] = field(default_factory=set)


def _layout(tensor: Tensor) -> Layout:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _places(layout: Layout) -> NDArray:
    """Return where in its memory each element lies."""
    offset, shape, strides, _ = layout
    places = np.full(shape, offset, np.int64)
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        places += np.arange(size).reshape([-1 if i == axis else 1 for i in range(len(shape))]) * stride
    return places


class Memory:
    """The values that tensors hold now, with what is needed to read their numbers and gradients afterwards."""

    def __init__(self, moves: Moves) -> None:
        self.moves = moves
        self.regions: dict[int, _Region] = {}
        self.numbers: dict[int, tuple[int, int, int]] = {}  # of tensors: value, memory and its version
        self.kept: list[Tensor] = []  # so that no identity is used twice
        self.data: dict[int, Tensor] = {}
        self.holders: dict[int, Tensor] = {}
        self.edges: dict[int, Any] = {}

    def number(self, tensor: Tensor) -> int | None:
        """Return the number of the value that a tensor holds, or None if it is not known."""
        key = tensor.untyped_storage()._cdata
        region, held = self.regions.get(key), self.numbers.get(id(tensor))
        if held is not None and held[1] == key and (region is None or held[2] == region.version):
            return held[0]
        if region is None:
            return None
        layout = _layout(tensor)
        if layout not in region.current:
            number = self._derive(region, tensor, layout)
            if number is None:
                return None
            region.current[layout] = number
            self._hold(region, tensor, number)
        number = region.current[layout]
        self.numbers[id(tensor)] = number, key, region.version
        self.kept.append(tensor)
        return number

    def bind(self, tensor: Tensor, number: int, written: bool = False) -> None:
        """Say which value a tensor holds; `written`: its memory has been written through it."""
        key, layout = tensor.untyped_storage()._cdata, _layout(tensor)
        region = self.regions.get(key)
        if region is None:
            region = self.regions[key] = _Region(layout, number)
        if written:
            region.version += 1
            region.current = {layout: number}
            if layout == region.whole:
                region.number, region.pending = number, []
            else:
                region.pending.append((layout, number))
        else:
            region.current.setdefault(layout, number)
        self.numbers[id(tensor)] = number, key, region.version
        self.kept.append(tensor)
        self._hold(region, tensor, number)

    def _hold(self, region: _Region, tensor: Tensor, number: int) -> None:
        self.data[number] = tensor.detach()
        self.holders[number] = tensor
        region.shared.add(number)

    def freeze(self, tensor: Tensor) -> None:
        """Keep the numbers and gradients of all values in a memory that is about to be written."""
        region = self.regions.get(tensor.untyped_storage()._cdata)
        if region is None:
            return
        for number in region.shared:
            self.data[number] = self.data[number].clone()
            holder = self.holders.pop(number, None)
            if holder is not None and holder.requires_grad:
                self.edges[number] = torch.autograd.graph.get_gradient_edge(holder)
        region.shared.clear()

    def _derive(self, region: _Region, tensor: Tensor, layout: Layout) -> int | None:
        """Write the operations that take the value of a stale tensor out of the whole of its memory."""
        if layout[3] != region.whole[3]:
            return None
        places = _places(region.whole).ravel()
        if len(places) == 0:
            return None
        flat = np.full(places.max() + 1, -1, np.int64)
        flat[places] = np.arange(len(places))

        def within(other: Layout) -> NDArray | None:
            wanted = _places(other)
            if wanted.size and wanted.max() >= len(flat):
                return None
            found = flat[wanted]
            return None if (found < 0).any() else found

        for written, number in region.pending:
            target = within(written)
            if target is None or written[3] != region.whole[3]:
                return None
            region.number = self._put(region.number, number, region.whole[1], target)
        if region.pending:
            offset, shape, strides, _ = region.whole
            self.data[region.number] = tensor.detach().as_strided(shape, strides, offset).clone()
            region.pending = []
            region.current.setdefault(region.whole, region.number)
        if layout == region.whole:
            return region.number
        wanted = within(layout)
        return None if wanted is None else self._take(region.number, region.whole[1], wanted)

    def _put(self, whole: int, part: int, shape: tuple[int, ...], target: NDArray) -> int:
        """Return the number of the whole with a part at these places."""
        move = self.moves.move
        if target.size == int(np.prod(shape)) and (target.ravel() == np.arange(target.size)).all():
            return move("reshape", [part], shape=list(shape))
        if block := _block(shape, target):
            axis, start, stop, inner = block
            pieces = []
            sizes = [(0, start), (start, stop), (stop, shape[axis])]
            for i, (first, last) in enumerate(sizes):
                if i == 1:
                    pieces.append(move("reshape", [part], shape=inner))
                elif last > first:
                    pieces.append(move("slice", [whole], **_along(shape, axis, first, last)))
            return move("concat", pieces, axis=axis)
        size = int(np.prod(shape))
        order = np.arange(size)
        order[target.ravel()] = size + np.arange(target.size)
        both = move("concat", [move("reshape", [n], shape=[-1]) for n in (whole, part)], axis=0)
        taken = move("gather", [both, self.moves.constant(order)], axis=0)
        return move("reshape", [taken], shape=list(shape))

    def _take(self, whole: int, shape: tuple[int, ...], wanted: NDArray) -> int:
        """Return the number of the numbers of the whole at these places."""
        move = self.moves.move
        if wanted.size == int(np.prod(shape)) and (wanted.ravel() == np.arange(wanted.size)).all():
            return move("reshape", [whole], shape=list(wanted.shape))
        if block := _block(shape, wanted):
            axis, start, stop, _ = block
            part = move("slice", [whole], **_along(shape, axis, start, stop))
            return move("reshape", [part], shape=list(wanted.shape))
        flat = move("reshape", [whole], shape=[-1])
        return move("gather", [flat, self.moves.constant(wanted)], axis=0)


def _along(shape: tuple[int, ...], axis: int, start: int, stop: int) -> dict[str, list[int]]:
    starts, stops = [0] * len(shape), list(shape)
    starts[axis], stops[axis] = start, stop
    return {"start": starts, "stop": stops, "step": [1] * len(shape)}


def _block(shape: tuple[int, ...], target: NDArray) -> tuple[int, int, int, list[int]] | None:
    """Return axis, start, stop and shape of a block of neighbours along one axis, if places are one in its order."""
    if target.size == 0:
        return None
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    first = np.unravel_index(int(target.min()), shape)
    last = np.unravel_index(int(target.max()), shape)
    partial = [axis for axis, size in enumerate(shape) if first[axis] != 0 or last[axis] != size - 1]
    if len(partial) != 1:
        return None
    (axis,) = partial
    start, stop = int(first[axis]), int(last[axis]) + 1
    block = whole[tuple(slice(start, stop) if i == axis else slice(None) for i in range(len(shape)))]
    return (axis, start, stop, list(block.shape)) if np.array_equal(block.ravel(), target.ravel()) else None

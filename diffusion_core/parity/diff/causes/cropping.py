"""Causes in which part of an array is kept: crops, pools at the edges, a cropped upsampling, one entry of an axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.layout import POOLS, of_kind, padding_words, with_attributes
from diffusion_core.parity.diff.recording import Operation


@cause(
    "crop_offset",
    "the part of an axis that is kept",
    "x[..., 2:-2, 2:-2] keeps the middle, Cropping2D(2) too; write the same numbers before and after",
)
def crop_offset(suspect: Suspect) -> Iterator[Change]:
    """Keep the beginning, the middle or the end of cropped axes; frameworks slice several axes one after the other."""
    graph = suspect.graph
    for i, operation in of_kind(suspect, "slice"):
        chain = [operation]
        while (before := graph.producer.get(chain[0].inputs[0])) is not None and len(chain) < 6:
            if graph.operations[before].kind != "slice" or before not in suspect.region:
                break
            chain.insert(0, graph.operations[before])
        if any(step != 1 for each in chain for step in each.attributes["step"]):
            continue
        whole, kept = suspect.read(chain[0].inputs[0]).shape, suspect.read(operation.outputs[0]).shape
        starts = [sum(each.attributes["start"][axis] for each in chain) for axis in range(len(whole))]
        now = [_kept(*sizes) for sizes in zip(starts, kept, whole, strict=True)]
        for where in ("beginning", "middle", "end"):
            then = {"beginning": lambda n, m: 0, "middle": lambda n, m: (m - n) // 2, "end": lambda n, m: m - n}[where]
            moved = [then(n, m) for n, m in zip(kept, whole, strict=True)]
            if moved != starts:
                here = next(word for word, n, m in zip(now, kept, whole, strict=True) if n != m)
                there = f"the {where} is kept"
                yield Change("crop_offset", i, _cropped(chain[0], moved, kept), f"the {here} is kept", there, 0)


def _kept(start: int, kept: int, whole: int) -> str:
    """Say which part of an axis a slice keeps."""
    ends = {0: "beginning", whole - kept: "end", (whole - kept) // 2: "middle"}
    return ends.get(start, f"part from {start} on")


def _cropped(first: Operation, starts: Sequence[int], sizes: Sequence[int]) -> Any:
    part = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    return lambda read: (read(first.inputs[0])[part],)


@cause(
    "pool_padding",
    "the padding of a pool and what it counts",
    'write ZeroPadding2D(1) and padding="valid" in Keras for padding=1 in torch; "same" pads after the end of even '
    "sizes and leaves the padding out of an average",
)
def pool_of_the_other_side(suspect: Suspect) -> Iterator[Change]:
    """Pad and count as a pool of the other side does."""
    names = ("padding", "count_include_pad", "ceil_mode")
    for i, operation in of_kind(suspect, *POOLS):
        for j in suspect.other_region:
            other = suspect.other.operations[j]
            axes = len(operation.attributes["padding"])
            if other.kind != operation.kind or len(other.attributes["padding"]) != axes:
                continue
            then = {name: other.attributes[name] for name in names if name in other.attributes}
            if sum(then[name] != operation.attributes.get(name) for name in then) > 1:
                words = [_pool_words(each) for each in (operation.attributes, then)]
                yield Change("pool_padding", i, with_attributes(operation, **then), *words, 0)


def _pool_words(attributes: Any) -> str:
    words = f"the pool pads {padding_words(attributes['padding'])}"
    if "count_include_pad" in attributes:
        words += f" and {'counts' if attributes['count_include_pad'] else 'leaves out'} the padding"
    return words + (" and rounds its size up" if attributes.get("ceil_mode") else "")


@cause(
    "interpolation_scale",
    "an upsampling by a factor and a crop, against one to the size that is wanted",
    "pass size= to F.interpolate, or crop after UpSampling2D on both sides",
)
def interpolation_scale(suspect: Suspect) -> Iterator[Change]:
    """Resize to the size that a crop leaves, or to a multiple and crop."""
    graph = suspect.graph
    for i, operation in of_kind(suspect, "slice"):
        first = operation
        while (before := graph.producer.get(first.inputs[0])) is not None and graph.operations[before].kind == "slice":
            first = graph.operations[before]
        if before is None or graph.operations[before].kind != "resize":
            continue
        resize = graph.operations[before]
        kept = suspect.read(operation.outputs[0]).shape
        space = kept[1:-1] if resize.attributes["layout"] == "channels_last" else kept[2:]
        yield Change(
            "interpolation_scale",
            i,
            _resized(resize, list(space)),
            "the image is resized to a multiple of its size and cropped",
            "the image is resized to the size that is wanted",
            0,
        )


def _resized(resize: Operation, size: Sequence[int]) -> Any:
    def compute(read: Read) -> Any:
        attributes = {**resize.attributes, "size": list(size), "scale": None}
        return rules.evaluate(replace(resize, attributes=attributes), [read(resize.inputs[0])])

    return compute


@cause(
    "pooling",
    "what stands for an axis: its first or last entry, or its mean",
    "x[:, 0] takes the class token, x[:, -1] the last position, x.mean(1) the mean of all: do the same on both sides",
)
def pooling(suspect: Suspect) -> Iterator[Change]:
    """Take one entry of an axis in place of its mean or maximum, or the other way round."""
    for i, operation in of_kind(suspect, "mean", "sum", "max", "min"):
        axes, source = operation.attributes["axes"], operation.inputs[0]
        if len(axes) == 1:
            here = f"the {_REDUCED[operation.kind]} of an axis is taken"
            for index, there in ((0, "its first entry is taken"), (-1, "its last entry is taken")):
                keep = bool(operation.attributes["keepdims"])
                yield Change("pooling", i, _entry(source, axes[0], index, keep), here, there, 1)
    for i, operation in of_kind(suspect, "slice"):
        whole, kept = (suspect.read(n).shape for n in (operation.inputs[0], operation.outputs[0]))
        axes = [axis for axis, (n, m) in enumerate(zip(whole, kept, strict=True)) if n != m]
        if len(axes) == 1 and kept[axes[0]] == 1:
            start = operation.attributes["start"][axes[0]]
            here = f"entry {start} of an axis is taken"
            for index in {0, -1} - {start, start - whole[axes[0]]}:
                there = f"the {'first' if index == 0 else 'last'} entry is taken"
                yield Change("pooling", i, _entry(operation.inputs[0], axes[0], index, True), here, there, 1)
            for kind, function in (("mean", np.mean), ("max", np.max), ("sum", np.sum)):
                compute = _reduced(operation.inputs[0], axes[0], function)
                yield Change("pooling", i, compute, here, f"the {_REDUCED[kind]} of the axis is taken", 1)


_REDUCED = {"mean": "mean", "sum": "sum", "max": "maximum", "min": "minimum"}


def _entry(number: int, axis: int, index: int, keep: bool) -> Any:
    return lambda read: (np.take(read(number), [index] if keep else index, axis),)


def _reduced(number: int, axis: int, function: Any) -> Any:
    return lambda read: (function(read(number), axis=axis, keepdims=True),)


@cause(
    "dilation",
    "the dilation of a convolution and the padding for it",
    "dilation= in torch, dilation_rate= in Keras; a causal padding is dilation * (taps - 1)",
)
def dilation(suspect: Suspect) -> Iterator[Change]:
    """Use a usual dilation, with the padding that keeps the size: its own, or that of a pad before it.

    `window_step` tries those of the other side, but TensorFlow writes a dilated convolution in other operations.
    """
    graph = suspect.graph
    for i, operation in of_kind(suspect, "conv"):
        now = list(operation.attributes["dilation"])
        before = graph.producer.get(operation.inputs[0])
        pad = None if before is None or graph.operations[before].kind != "pad" else graph.operations[before]
        if not now or len(set(now)) > 1 or (pad is None and not np.any(operation.attributes["padding"])):
            continue
        for other in dict.fromkeys([now[0] * 2, now[0] // 2, 1, 2, 4]):
            if other != now[0] and other > 0:
                words = (f"the dilation is {d}" for d in (now[0], other))
                yield Change("dilation", i, _dilated(operation, pad, now[0], other), *words, 1)


def _dilated(operation: Operation, pad: Operation | None, now: int, other: int) -> Any:
    """Return a convolution with another dilation whose padding is scaled with it."""

    def scaled(padding: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[side * other // now for side in pair] for pair in padding]

    attributes = {**operation.attributes, "dilation": [other] * len(operation.attributes["dilation"])}
    if pad is None:
        attributes["padding"] = scaled(operation.attributes["padding"])

    def compute(read: Read) -> Any:
        inputs = [read(n) for n in operation.inputs]
        if pad is not None:
            wider = replace(pad, attributes={**pad.attributes, "padding": scaled(pad.attributes["padding"])})
            inputs[0] = rules.evaluate(wider, [read(pad.inputs[0])])[0]
        return rules.evaluate(replace(operation, attributes=attributes), inputs)

    return compute

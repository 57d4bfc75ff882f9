"""Causes of place: padding, windows, resizing, concatenation (`layout_order` has those of the order of numbers).

Frameworks mean different things by one word. "SAME" padding of a stride of 2 pads (0, 1) on an even size in TensorFlow,
where `padding=1` pads (1, 1) in PyTorch; a flattened image has its channels first in one and last in the other; a
resized one has its corners or its pixels aligned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.recording import Operation

POOLS = ("max_pool", "avg_pool")
CONVOLUTIONS = ("conv", "conv_transpose")


def of_kind(suspect: Suspect, *kinds: str) -> Iterator[tuple[int, Operation]]:
    """Return the operations of the region that have one of some kinds."""
    for i in suspect.region:
        operation = suspect.graph.operations[i]
        if operation.kind in kinds and i not in suspect.graph.opaque:
            yield i, operation


def with_attributes(operation: Operation, **attributes: Any) -> Any:
    """Return a function that computes an operation with other attributes."""
    other = replace(operation, attributes={**operation.attributes, **attributes})

    def compute(read: Read) -> Sequence[NDArray]:
        return rules.evaluate(other, [read(number) for number in operation.inputs])

    return compute


def _there(suspect: Suspect, name: str, *kinds: str) -> list[Any]:
    """Return the values that an attribute has at operations of the other side's region."""
    found = [
        suspect.other.operations[i].attributes[name]
        for i in suspect.other_region
        if suspect.other.operations[i].kind in kinds and name in suspect.other.operations[i].attributes
    ]
    return [value for i, value in enumerate(found) if value not in found[:i]]


def padding_words(padding: Sequence[Sequence[int]]) -> str:
    """Say how many pixels a padding has before and after each axis."""
    pairs = [tuple(pair) for pair in padding]
    if len(set(pairs)) == 1:
        return f"{pairs[0][0]} before and {pairs[0][1]} after"
    return " and ".join(f"{before} before and {after} after" for before, after in pairs)


def _paddings(suspect: Suspect, operation: Operation) -> Iterator[tuple[list[list[int]], int]]:
    """Yield paddings that could have been meant, and what trying them costs: those of the other side come first."""
    own = [list(pair) for pair in operation.attributes["padding"]]
    seen = [own]
    for padding in _there(suspect, "padding", operation.kind):
        pairs = [list(pair) for pair in padding]
        if len(pairs) == len(own) and pairs not in seen:
            seen.append(pairs)
            yield pairs, 0
    size = operation.attributes.get("window") or _kernel_space(suspect, operation)
    reach = max((n - 1) * d for n, d in zip(size, operation.attributes["dilation"], strict=True))
    for before, after in itertools.product(range(min(reach, 6) + 1), repeat=2):
        pairs = [[before, after]] * len(own)
        if pairs not in seen:
            yield pairs, 1


def _kernel_space(suspect: Suspect, operation: Operation) -> list[int]:
    shape = suspect.read(operation.inputs[1]).shape
    return [n for n, letter in zip(shape, kernel_letters(operation, len(shape)), strict=True) if letter == "."]


def kernel_letters(operation: Operation, axes: int) -> str:
    """Return the axes of a kernel with a dot for each axis of the space."""
    text = operation.attributes["kernel"].replace("HW", ".")
    return text.replace(".", "." * (axes - 2))


def _padded(kind: str, kinds: Sequence[str], strided: bool | None) -> Any:
    def function(suspect: Suspect) -> Iterator[Change]:
        for i, operation in of_kind(suspect, *kinds):
            steps = max(operation.attributes["strides"]) > 1
            if strided is not None and steps != strided:
                continue
            here = f"the padding is {padding_words(operation.attributes['padding'])}"
            for padding, cost in _paddings(suspect, operation):
                yield Change(
                    kind,
                    i,
                    with_attributes(operation, padding=padding),
                    here,
                    f"the padding is {padding_words(padding)}",
                    cost,
                )

    return function


_PADS = (
    'Keras\'s padding="same" with a stride pads after the end of even sizes; write ZeroPadding2D(1) and '
    'padding="valid", or F.pad(x, (0, 1, 0, 1)) and padding=0 in torch'
)
cause("same_padding_stride", "the side of the padding of a convolution with a stride", _PADS)(
    _padded("same_padding_stride", ["conv"], True)
)
cause("padding", "the padding of a convolution", "padding= in both, or an explicit padding before it")(
    _padded("padding", ["conv"], False)
)
cause("same_padding_pool", "the padding of a pool", _PADS)(_padded("same_padding_pool", POOLS, None))
cause(
    "transposed_padding",
    "the crop of a transposed convolution",
    'padding= and output_padding= in torch; Keras\'s padding="same" crops after the end: crop by slices instead',
)(_padded("transposed_padding", ["conv_transpose"], None))


def _toggled(kind: str, kinds: Sequence[str], name: str, words: dict[bool, str]) -> Any:
    def function(suspect: Suspect) -> Iterator[Change]:
        for i, operation in of_kind(suspect, *kinds):
            now = bool(operation.attributes.get(name))
            yield Change(kind, i, with_attributes(operation, **{name: not now}), words[now], words[not now], 0)

    return function


cause(
    "ceil_mode", "the rounding of the output size of a pool", "ceil_mode= in torch; Keras rounds down without padding"
)(
    _toggled(
        "ceil_mode",
        POOLS,
        "ceil_mode",
        {True: "the size is rounded up (ceil_mode)", False: "the size is rounded down"},
    )
)
cause(
    "count_include_pad",
    "whether an average pool counts its padding",
    'count_include_pad=False in torch is what Keras\'s padding="same" does',
)(
    _toggled(
        "count_include_pad",
        ["avg_pool"],
        "count_include_pad",
        {True: "the padding is counted", False: "the padding is not counted"},
    )
)


@cause(
    "interpolation_mode",
    "the mode of a resize",
    "mode= and align_corners= of F.interpolate; interpolation= of UpSampling2D, method= of tf.image.resize",
)
def interpolation(suspect: Suspect) -> Iterator[Change]:
    """Resize in another mode, or with other corners."""
    modes = ("nearest", "bilinear", "bicubic", "nearest-exact", "area")
    for i, operation in of_kind(suspect, "resize"):
        now = {name: operation.attributes.get(name) for name in ("mode", "align_corners", "half_pixel", "antialias")}
        for mode, corners, half, smooth in itertools.product(modes, (False, True), (True, False), (False, True)):
            then = {"mode": mode, "align_corners": corners, "half_pixel": half, "antialias": smooth}
            differs = [name for name in then if then[name] != now[name]]
            if differs and not (corners and half):
                here, there = (", ".join(_resize_words(n, which[n]) for n in differs) for which in (now, then))
                compute = with_attributes(operation, **then)
                words = f"the resize has {here}", f"the resize has {there}"
                yield Change("interpolation_mode", i, compute, *words, min(2, len(differs) - 1))


def _resize_words(name: str, value: Any) -> str:
    words = {
        "mode": f"the mode {value}",
        "align_corners": "corners aligned" if value else "corners not aligned",
        "half_pixel": "pixel centres at one half" if value else "pixel centres at whole numbers",
        "antialias": "antialiasing" if value else "no antialiasing",
    }
    return words[name]


@cause("concat_order", "the order of what is concatenated", "put the inputs of the concatenation in the same order")
def concat_order(suspect: Suspect) -> Iterator[Change]:
    """Concatenate in another order."""
    graph = suspect.graph
    for i, operation in of_kind(suspect, "concat", "stack"):
        count = len(operation.inputs)
        made = {graph.operations[graph.producer[n]].kind for n in operation.inputs if n in graph.producer}
        if made == {"sin", "cos"}:
            continue  # a timestep embedding has a cause of its own
        for order in itertools.permutations(range(count)) if 2 <= count <= 4 else ():
            if list(order) != list(range(count)):
                inputs = tuple(operation.inputs[k] for k in order)
                names = " ".join(str(k + 1) for k in order)
                usual = " ".join(str(k + 1) for k in range(count))
                yield Change(
                    "concat_order",
                    i,
                    lambda read, operation=operation, inputs=inputs: rules.evaluate(
                        operation, [read(n) for n in inputs]
                    ),
                    f"inputs are concatenated in the order {usual}",
                    f"inputs are concatenated in the order {names}",
                    -1,
                )


@cause("concat_axis", "the axis of a concatenation", "dim= in torch, axis= in TensorFlow")
def concat_axis(suspect: Suspect) -> Iterator[Change]:
    """Concatenate along another axis."""
    for i, operation in of_kind(suspect, "concat"):
        for axis in range(suspect.read(operation.inputs[0]).ndim):
            if axis != operation.attributes["axis"]:
                here = f"the concatenation is along axis {operation.attributes['axis']}"
                yield Change(
                    "concat_axis",
                    i,
                    with_attributes(operation, axis=axis),
                    here,
                    f"the concatenation is along axis {axis}",
                )


@cause(
    "stride_offset",
    "the pixel at which a stride begins",
    "x[:, :, ::2, ::2] keeps the even pixels, as a strided convolution of 1 x 1 without padding does",
)
def stride_offset(suspect: Suspect) -> Iterator[Change]:
    """Begin slices at another place of their steps; frameworks slice several axes one after the other."""
    graph = suspect.graph
    for i, operation in of_kind(suspect, "slice"):
        chain = [operation]
        while (before := graph.producer.get(chain[0].inputs[0])) is not None:
            if graph.operations[before].kind != "slice":
                break
            chain.insert(0, graph.operations[before])
        steps = [abs(step) for each in chain for step in each.attributes["step"] if abs(step) > 1]
        begins = [
            start
            for each in chain
            for start, step in zip(each.attributes["start"], each.attributes["step"], strict=True)
            if abs(step) > 1
        ]
        for shift in range(1, max(steps, default=1)):
            first = (begins[0] + shift) % steps[0]
            here, there = (f"the slice begins at {n} of every {steps[0]}" for n in (begins[0], first))
            yield Change("stride_offset", i, _shifted(chain, shift), here, there, 0)


def _shifted(chain: Sequence[Operation], shift: int) -> Any:
    """Return a function that takes slices one after the other, each beginning later by a shift."""

    def compute(read: Read) -> Sequence[NDArray]:
        x = read(chain[0].inputs[0])
        for each in chain:
            steps = each.attributes["step"]
            starts = [
                (start + shift) % abs(step) if abs(step) > 1 else start
                for start, step in zip(each.attributes["start"], steps, strict=True)
            ]
            moved = replace(each, attributes={**each.attributes, "start": starts})
            x = rules.evaluate(moved, [x])[0]
        return (x,)

    return compute


@cause(
    "padding_mode",
    "the mode or the value of a padding",
    "mode= and value= of F.pad; mode= and constant_values= of tf.pad",
)
def padding_mode(suspect: Suspect) -> Iterator[Change]:
    """Pad with other numbers."""
    for i, operation in of_kind(suspect, "pad"):
        now = operation.attributes.get("mode", "constant")
        here = f"the padding has the mode {now}" + (
            f" with {operation.attributes.get('value', 0):g}" if now == "constant" else ""
        )
        for mode in ("constant", "reflect", "replicate", "circular"):
            if mode != now:
                yield Change(
                    "padding_mode",
                    i,
                    with_attributes(operation, mode=mode, value=0),
                    here,
                    f"the padding has the mode {mode}",
                )
        for value in (0.0, float("-inf"), 1.0, -1.0):
            if now == "constant" and value != operation.attributes.get("value", 0):
                yield Change(
                    "padding_mode",
                    i,
                    with_attributes(operation, value=value),
                    here,
                    f"the padding has the mode constant with {value:g}",
                )


@cause(
    "padding_side", "the side on which a padding is", "write the same numbers before and after each axis on both sides"
)
def padding_side(suspect: Suspect) -> Iterator[Change]:
    """Move a padding to the other end, or to both."""
    for i, operation in of_kind(suspect, "pad"):
        now = [list(pair) for pair in operation.attributes["padding"]]
        moved = [[after, before] for before, after in now]
        even = [[(before + after) // 2, (before + after + 1) // 2] for before, after in now]
        for other in (moved, even, [pair[::-1] for pair in even]):
            if other != now:
                here = f"the padding is {padding_words([pair for pair in now if any(pair)])}"
                there = f"the padding is {padding_words([pair for pair in other if any(pair)])}"
                yield Change("padding_side", i, with_attributes(operation, padding=other), here, there)


@cause(
    "window_step",
    "the stride or the dilation of a window",
    "stride= and dilation= in torch, strides= and dilation_rate= in Keras",
)
def window_step(suspect: Suspect) -> Iterator[Change]:
    """Take the stride or the dilation of the other side."""
    for i, operation in of_kind(suspect, *CONVOLUTIONS, *POOLS):
        for name in ("strides", "dilation"):
            now = operation.attributes[name]
            for value in (_as_many(each, len(now)) for each in _there(suspect, name, operation.kind)):
                if value is not None and list(value) != list(now):
                    noun = "stride" if name == "strides" else name
                    here, there = (f"the {noun} is {' x '.join(map(str, each))}" for each in (now, value))
                    yield Change("window_step", i, with_attributes(operation, **{name: value}), here, there, 0)
                    if name == "dilation" and operation.kind in CONVOLUTIONS:
                        yield from _dilated(suspect, i, value, here, there)


def _as_many(value: Sequence[int], count: int) -> Sequence[int] | None:
    """Return numbers per axis for so many axes; one-dimensional windows are often written as two-dimensional ones."""
    if len(value) <= count:
        return [1] * (count - len(value)) + list(value)
    return list(value[-count:]) if all(n == 1 for n in value[:-count]) else None


def _dilated(suspect: Suspect, i: int, dilation: Sequence[int], here: str, there: str) -> Iterator[Change]:
    """Yield another dilation with the padding that keeps the length: code often pads by dilation * (k - 1) before."""
    operation = suspect.graph.operations[i]
    letters = kernel_letters(operation, suspect.read(operation.inputs[1]).ndim)
    sizes = [suspect.read(operation.inputs[1]).shape[axis] for axis, letter in enumerate(letters) if letter == "."]
    more = [(d - old) * (k - 1) for d, old, k in zip(dilation, operation.attributes["dilation"], sizes, strict=True)]
    for before in (more, [n // 2 for n in more], [0] * len(more)):

        def compute(read: Read, before: Sequence[int] = before) -> Sequence[NDArray]:
            inputs = [read(number) for number in operation.inputs]
            first = 2 if operation.attributes["layout"] == "channels_first" else 1
            for axis, (total, lead) in enumerate(zip(more, before, strict=True), first):
                inputs[0] = _longer(inputs[0], axis, lead, total - lead)
            return rules.evaluate(replace(operation, attributes={**operation.attributes, "dilation": dilation}), inputs)

        yield Change("window_step", i, compute, here, there, 0)


def _longer(x: NDArray, axis: int, before: int, after: int) -> NDArray:
    """Return an array with zeros added at both ends of an axis, or with its ends cut off where a number is negative."""
    wide = [(0, 0)] * x.ndim
    wide[axis] = (max(before, 0), max(after, 0))
    end = x.shape[axis] + sum(wide[axis]) - max(-after, 0)
    return np.take(np.pad(x, wide), range(max(-before, 0), end), axis)

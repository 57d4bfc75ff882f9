"""TensorFlow's operations that only move numbers, in the vocabulary of `duet diff`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from backends.tf.recorder.native import Native, Value, translates

__all__ = ["space_to_batch_steps"]


@translates("Reshape", "ExpandDims", "Squeeze")
def _reshape(native: Native) -> None:
    (result,) = native.outputs
    if result.shape == native.inputs[0].shape:
        native.inputs = native.inputs[:1]
        native.alias()
    else:
        native.emit("reshape", native.inputs[:1], [result], shape=list(result.shape))


@translates("Transpose")
def _transpose(native: Native) -> None:
    axes = native.numbers(1)
    if axes == sorted(axes):
        native.inputs = native.inputs[:1]
        native.alias()
    else:
        native.emit("transpose", native.inputs[:1], native.outputs, axes=axes)


@translates("BroadcastTo")
def _expand(native: Native) -> None:
    native.emit("expand", native.inputs[:1], native.outputs, shape=list(native.outputs[0].shape))


@translates("ConcatV2")
def _concat(native: Native) -> None:
    (axis,) = native.axes(-1, native.outputs[0].shape.rank)
    parts = [each for each in native.inputs[:-1] if each.shape.num_elements() or each.shape.rank > 1]
    native.emit("concat", parts, native.outputs, axis=axis)


@translates("Pack")
def _stack(native: Native) -> None:
    native.emit("stack", native.inputs, native.outputs, axis=native["axis"] % native.outputs[0].shape.rank)


@translates("Unpack")
def _unstack(native: Native) -> None:
    native.emit("unstack", native.inputs, native.outputs, axis=native["axis"] % native.inputs[0].shape.rank)


@translates("Split", "SplitV")
def _split(native: Native) -> None:
    x, place = (native.inputs[1], 0) if native.name == "Split" else (native.inputs[0], 2)
    (axis,) = native.axes(place, x.shape.rank)
    native.emit("split", [x], native.outputs, axis=axis, sizes=[each.shape[axis] for each in native.outputs])


def _emit_slice(native: Native, x: Value, shape: Sequence[int], slices: Sequence[slice], result: tf.Tensor) -> None:
    """Write a slice of an array of this shape, and a change of shape where axes come or go."""
    bounds = [each.indices(n) for each, n in zip(slices, shape, strict=True)]
    lengths = [len(range(*each)) for each in bounds]
    whole = lengths == list(shape) and all(step > 0 for _, _, step in bounds)
    final = lengths == list(result.shape)
    if not whole:
        x = native.emit(
            "slice",
            [x],
            [result] if final else None,
            start=[start for start, _, _ in bounds],
            stop=[None if step < 0 and stop < 0 else stop for _, stop, step in bounds],
            step=[step for _, _, step in bounds],
        )
    if not final:
        native.emit("reshape", [x], [result], shape=list(result.shape))
    elif whole:
        native.sink.alias(result, native.number(x))


@translates("Slice")
def _slice(native: Native) -> None:
    x, (result,) = native.inputs[0], native.outputs
    start = native.numbers(1)
    slices = [slice(i, i + n) for i, n in zip(start, result.shape, strict=True)]
    _emit_slice(native, x, list(x.shape), slices, result)


@translates("StridedSlice")
def _strided_slice(native: Native) -> None:
    x, (result,) = native.inputs[0], native.outputs
    begin, end, step = (native.numbers(i) for i in (1, 2, 3))
    masks = {key: native[f"{key}_mask"] for key in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    has = lambda key, i: bool(masks[key] >> i & 1)  # noqa: E731
    real = [i for i in range(len(begin)) if not has("ellipsis", i) and not has("new_axis", i)]
    slices: list[slice] = []
    for i in range(len(begin)):
        if has("ellipsis", i):
            slices += [slice(None)] * (x.shape.rank - len(real))
        elif has("new_axis", i):
            continue
        elif has("shrink_axis", i):
            place = begin[i] % x.shape[len(slices)]
            slices.append(slice(place, place + 1))
        else:
            first = None if has("begin", i) else begin[i]
            slices.append(slice(first, None if has("end", i) else end[i], step[i]))
    slices += [slice(None)] * (x.shape.rank - len(slices))
    _emit_slice(native, x, list(x.shape), slices, result)


@translates("Pad", "PadV2", "MirrorPad")
def _pad(native: Native) -> None:
    padding = np.asarray(native.inputs[1].numpy()).tolist()
    mode = {"REFLECT": "reflect", "SYMMETRIC": "symmetric"}.get(native.attributes.get("mode", ""), "constant")
    value = native.scalar(native.inputs[2]) if native.name == "PadV2" else 0.0
    if mode == "symmetric":
        if any(max(pair) > 1 for pair in padding):
            return native.opaque()
        mode = "replicate"  # one row of the edge
    native.emit("pad", native.inputs[:1], native.outputs, padding=padding, mode=mode, value=value)


@translates("ReverseV2")
def _flip(native: Native) -> None:
    native.emit("flip", native.inputs[:1], native.outputs, axes=native.axes(1, native.inputs[0].shape.rank))


@translates("Roll")
def _roll(native: Native) -> None:
    axes = native.axes(2, native.inputs[0].shape.rank)
    native.emit("roll", native.inputs[:1], native.outputs, shifts=native.numbers(1), axes=axes)


@translates("Tile")
def _tile(native: Native) -> None:
    native.emit("tile", native.inputs[:1], native.outputs, repeats=native.numbers(1))


@translates("GatherV2")
def _gather(native: Native) -> None:
    x, indices = native.inputs[:2]
    (axis,) = native.axes(2, x.shape.rank)
    batch = native.attributes.get("batch_dims", 0) % max(indices.shape.rank, 1)
    if not batch:
        native.emit("gather", [x, indices], native.outputs, axis=axis)
    elif batch == axis == x.shape.rank - 1 == indices.shape.rank - 1:
        native.emit("take_along", [x, indices], native.outputs, axis=axis)
    else:
        native.opaque()


@translates("GatherNd")
def _gather_points(native: Native) -> None:
    x, indices = native.inputs
    if indices.shape[-1] != 1:
        return native.opaque()
    flat = native.emit("reshape", [indices], shape=list(indices.shape[:-1]))
    native.emit("gather", [x, flat], native.outputs, axis=0)


@translates("OneHot")
def _one_hot(native: Native) -> None:
    (result,) = native.outputs
    axis = native["axis"] % result.shape.rank
    on, off = (native.scalar(each) for each in native.inputs[2:])
    if on is None or off is None:
        return native.opaque()
    x = native.emit("one_hot", native.inputs[:1], size=result.shape[axis], axis=axis)
    if (on, off) != (1, 0):
        places = native.emit("not_equal", [x], scalar=0, reverse=False)
        x = native.emit("where", [places], scalars=[on, off])
    native.emit("cast", [x], [result], dtype=result.dtype.name)


@translates("DepthToSpace", "SpaceToDepth")
def _blocks(native: Native) -> None:
    kind = "depth_to_space" if native.name == "DepthToSpace" else "space_to_depth"
    layout = "channels_first" if native["data_format"] == "NCHW" else "channels_last"
    native.emit(kind, native.inputs, native.outputs, block=native["block_size"], order="DCR", layout=layout)


@translates("SpaceToBatchND")
def _space_to_batch(native: Native) -> None:
    # Until `BatchToSpaceND` comes: then the recorder writes a dilated convolution as one operation, if it is one.
    padding = np.asarray(native.inputs[2].numpy()).tolist()
    native.emit("opaque", native.inputs[:1], native.outputs, block=native.numbers(1), padding=padding)


def space_to_batch_steps(shape: Sequence[int], block: Sequence[int], padding: Sequence) -> list[tuple[str, dict]]:
    """Return `SpaceToBatchND` of an array of this shape as (kind, attributes) of simple operations in a row."""
    rank, space = len(shape), len(block)
    pads = [[0, 0], *(list(pair) for pair in padding), *([0, 0] for _ in range(rank - 1 - space))]
    sizes = [n + before + after for n, (before, after) in zip(shape, pads, strict=True)]
    split = [sizes[0]]
    for n, factor in zip(sizes[1:], block, strict=False):
        split += [n // factor, factor]
    axes = [2 + 2 * i for i in range(space)] + [0] + [1 + 2 * i for i in range(space)]
    rest = list(range(1 + 2 * space, rank + space))
    within = [n // factor for n, factor in zip(sizes[1:], block, strict=False)]
    final = [sizes[0] * int(np.prod(block)), *within, *sizes[1 + space :]]
    return [
        ("pad", {"padding": pads, "mode": "constant", "value": 0.0}),
        ("reshape", {"shape": split + sizes[1 + space :]}),
        ("transpose", {"axes": axes + rest}),
        ("reshape", {"shape": final}),
    ]


@translates("BatchToSpaceND")
def _batch_to_space(native: Native) -> None:
    x, (result,) = native.inputs[0], native.outputs
    block, crops = native.numbers(1), np.asarray(native.inputs[2].numpy()).tolist()
    space, shape = len(block), list(x.shape)
    batch = shape[0] // int(np.prod(block))
    axes = [space]
    for i in range(space):
        axes += [space + 1 + i, i]
    split = native.emit("reshape", [x], shape=[*block, batch, *shape[1:]])
    turned = native.emit("transpose", [split], axes=axes + list(range(1 + 2 * space, len(shape) + space)))
    sizes = [batch, *(n * factor for n, factor in zip(shape[1:], block, strict=False)), *shape[1 + space :]]
    if sizes == list(result.shape):
        native.emit("reshape", [turned], [result], shape=sizes)
        return
    whole = native.emit("reshape", [turned], shape=sizes)
    pads = [[0, 0], *crops, *([0, 0] for _ in range(len(shape) - 1 - space))]
    start, stop = [before for before, _ in pads], [n - after for n, (_, after) in zip(sizes, pads, strict=True)]
    native.emit("slice", [whole], [result], start=start, stop=stop, step=[1] * len(sizes))

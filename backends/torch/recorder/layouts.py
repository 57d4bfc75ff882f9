"""PyTorch's operations that only move numbers, in the vocabulary of `duet diff`.

Those without a word of their own are tried on the places of the numbers: applied to 0, 1, 2 ... they say which number
comes where, and become a "gather" of these places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backends.torch.recorder.native import TRANSLATIONS, Native, Unknown, translates

__all__: list[str] = []


@translates(
    "view", "_unsafe_view", "_reshape_alias", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "view_copy"
)
def _reshape(native: Native) -> None:
    if native.results[0].dtype != native.x.dtype:
        raise Unknown
    native.give("reshape", [native.x], shape=list(native.results[0].shape))


@translates("t", "transpose", "permute", "numpy_T", "adjoint", "swapaxes", "movedim")
def _transpose(native: Native) -> None:
    ndim = native.x.ndim
    axes = list(range(ndim))
    if native.name == "permute":
        axes = [axis % ndim for axis in native["dims"]]
    elif native.name == "transpose":
        a, b = native["dim0"] % max(ndim, 1), native["dim1"] % max(ndim, 1)
        if ndim:
            axes[a], axes[b] = axes[b], axes[a]
    else:
        axes = axes[::-1]
    native.give("transpose", [native.x], axes=axes)


@translates("expand", "expand_as", "broadcast_to")
def _expand(native: Native) -> None:
    native.give("expand", [native.x], shape=list(native.results[0].shape))


@translates("cat")
def _cat(native: Native) -> None:
    # Empty vectors may stand among tensors of any rank.
    tensors = [each for each in native["tensors"] if each.numel() or each.ndim == native.results[0].ndim]
    inputs = [native.read(each, native.dtype) for each in tensors]
    native.give("concat", inputs, axis=native.axis(native["dim"], native.results[0]))


@translates("stack")
def _stack(native: Native) -> None:
    inputs = [native.read(each, native.dtype) for each in native["tensors"]]
    native.give("stack", inputs, axis=native.axis(native["dim"], native.results[0]))


@translates("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk")
def _split(native: Native) -> None:
    axis = native.axis(native["dim"])
    native.give("split", [native.x], every=True, axis=axis, sizes=[each.shape[axis] for each in native.results])


@translates("unbind")
def _unbind(native: Native) -> None:
    native.give("unstack", [native.x], every=True, axis=native.axis(native["dim"]))


@translates("slice", "narrow")
def _slice(native: Native) -> None:
    axis, size = native.axis(native["dim"]), native.x.shape[native["dim"]]
    start, stop, step = native.get("start", 0), native.get("end", size), native.get("step", 1)
    if native.name == "narrow":
        stop = start + native["length"]
    start, stop = (min(max(each + size if each < 0 else each, 0), size) for each in (start, stop))
    whole = {"start": [0] * native.x.ndim, "stop": list(native.x.shape), "step": [1] * native.x.ndim}
    for name, value in (("start", start), ("stop", max(start, stop)), ("step", step)):
        whole[name][axis] = int(value)
    native.give("slice", [native.x], **whole)


@translates("select")
def _select(native: Native) -> None:
    axis, size = native.axis(native["dim"]), native.x.shape[native["dim"]]
    whole = {"start": [0] * native.x.ndim, "stop": list(native.x.shape), "step": [1] * native.x.ndim}
    whole["start"][axis] = native["index"] % size
    whole["stop"][axis] = native["index"] % size + 1
    part = native.emit("slice", [native.x], **whole)
    native.give("reshape", [part], shape=list(native.results[0].shape))


@translates("flip")
def _flip(native: Native) -> None:
    native.give("flip", [native.x], axes=native.axes(native["dims"]))


@translates("roll")
def _roll(native: Native) -> None:
    shifts, dims = list(native["shifts"]), list(native["dims"] or [])
    if dims:
        native.give("roll", [native.x], shifts=shifts, axes=[native.axis(dim) for dim in dims])
        return
    flat = native.emit("reshape", [native.x], shape=[native.x.numel()])
    native.give("reshape", [native.emit("roll", [flat], shifts=shifts, axes=[0])], shape=list(native.x.shape))


@translates("repeat")
def _repeat(native: Native) -> None:
    repeats, x = list(native["repeats"]), native.read(native.x)
    if more := len(repeats) - native.x.ndim:
        x = native.emit("reshape", [x], shape=[1] * more + list(native.x.shape))
    native.give("tile", [x], repeats=repeats)


@translates("embedding")
def _embedding(native: Native) -> None:
    native.give("gather", [native["weight"], native["indices"]], axis=0)


@translates("index_select")
def _index_select(native: Native) -> None:
    native.give("gather", [native.x, native["index"]], axis=native.axis(native["dim"]))


@translates("gather")
def _gather(native: Native) -> None:
    if any(
        a != b
        for i, (a, b) in enumerate(zip(native.x.shape, native["index"].shape, strict=True))
        if i != native.axis(native["dim"])
    ):
        _by_places(native)
        return
    native.give("take_along", [native.x, native["index"]], axis=native.axis(native["dim"]))


@translates("index")
def _index(native: Native) -> None:
    given = [(axis, each) for axis, each in enumerate(native["indices"]) if each is not None]
    if len(given) == 1 and given[0][1].dtype not in (torch.bool, torch.uint8) and (given[0][1] >= 0).all():
        native.give("gather", [native.x, given[0][1]], axis=given[0][0])
        return
    _by_places(native)


@translates("constant_pad_nd")
def _pad(native: Native) -> None:
    _padding(native, "constant", native.get("value", 0))


@translates("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflect(native: Native) -> None:
    _padding(native, "reflect", 0)


@translates("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replicate(native: Native) -> None:
    _padding(native, "replicate", 0)


def _padding(native: Native, mode: str, value: float) -> None:
    flat = list(native.get("pad") or native.get("padding"))
    pairs = [[0, 0] for _ in native.x.shape]
    for i in range(len(flat) // 2):
        pairs[-1 - i] = [int(flat[2 * i]), int(flat[2 * i + 1])]
    x = native.read(native.x)
    if any(n < 0 for pair in pairs for n in pair):  # negative padding cuts
        sizes = native.x.shape
        x = native.emit(
            "slice",
            [x],
            start=[max(-a, 0) for a, _ in pairs],
            stop=[size - max(-b, 0) for size, (_, b) in zip(sizes, pairs, strict=True)],
            step=[1] * len(pairs),
        )
        pairs = [[max(a, 0), max(b, 0)] for a, b in pairs]
    native.give("pad", [x], padding=pairs, mode=mode, value=value)


@translates("pixel_shuffle")
def _pixel_shuffle(native: Native) -> None:
    native.give("depth_to_space", [native.x], block=native["upscale_factor"], order="CRD", layout="channels_first")


@translates("pixel_unshuffle")
def _pixel_unshuffle(native: Native) -> None:
    native.give("space_to_depth", [native.x], block=native["downscale_factor"], order="CRD", layout="channels_first")


@translates("im2col")
def _im2col(native: Native) -> None:
    if native.x.ndim != 4:
        raise Unknown
    native.give(
        "unfold",
        [native.x],
        window=list(native["kernel_size"]),
        strides=list(native["stride"]),
        padding=[[p, p] for p in native["padding"]],
        dilation=list(native["dilation"]),
    )


@translates("tril", "triu")
def _triangle(native: Native) -> None:
    kept = native.function(torch.ones_like(native.x, dtype=torch.bool), native["diagonal"])
    native.give("where", [native.constant(kept.cpu().numpy()), native.x], scalars=[None, 0])


@translates(
    "unfold", "as_strided", "diagonal", "take", "rot90", "channel_shuffle", "native_channel_shuffle",
    "masked_select", "repeat_interleave", "permute_copy",
)  # fmt: skip
def _by_places(native: Native) -> None:
    _places(native, [next(iter(native.arguments))])


@translates("index_put", "index_copy", "scatter", "masked_scatter", "slice_scatter", "select_scatter", "index_fill")
def _put(native: Native) -> None:
    if native.get("accumulate") or native.get("reduce"):
        raise Unknown
    others = [name for name in ("values", "src", "source", "value") if name in native.arguments]
    _places(native, ["self", *others[:1]])


def _places(native: Native, names: list[str]) -> None:
    """Write a call as the numbers of its named arguments in the order that it gives their places."""
    arguments, inputs, start = dict(native.arguments), [], 0
    for name in names:
        value = native[name]
        if isinstance(value, Tensor):
            if value.dtype != native.dtype:
                raise Unknown
            inputs.append(native.emit("reshape", [value], shape=[value.numel()]))
            size = value.numel()
            places: Any = torch.arange(start, start + size, device=value.device).reshape(value.shape)
            if name == "self" and native.name == "as_strided":
                if value.storage_offset() or not value.is_contiguous():
                    raise Unknown
                arguments["storage_offset"] = native.get("storage_offset", 0)
        else:
            inputs.append(native.constant(torch.full((1,), value, dtype=native.dtype).numpy()))
            size, places = 1, start
        arguments[name] = places
        start += size
    schema = native.function._schema.arguments
    args = [arguments[each.name] for each in schema if not each.kwarg_only]
    named = {each.name: arguments[each.name] for each in schema if each.kwarg_only and not each.is_out}
    order = native.function(*args, **named).cpu().numpy()
    flat = inputs[0] if len(inputs) == 1 else native.emit("concat", inputs, axis=0)
    native.give("gather", [flat, native.constant(order)], axis=0)


TRANSLATIONS["_index_put_impl"] = _put

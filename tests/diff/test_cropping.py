"""Crops, pools at the edges and orders of numbers: found also where only what follows shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from written import Tape, both, weights

from diffusion_core.parity.diff.comparison import compare_pass, with_moves
from diffusion_core.parity.diff.graph import adapted_shape, to_graph

IMAGE = weights("image", 2, 3, 10, 12)
WINDOW = {"window": [3, 3], "strides": [2, 2], "dilation": [1, 1], "layout": "channels_first"}
RESIZE = {"mode": "bilinear", "align_corners": False, "half_pixel": True, "antialias": False, "scale": None}


def crop(tape: Tape) -> int:
    x = tape.input(IMAGE)
    top, left = tape.get("at", (2, 1))
    x = tape("slice", x, start=[0, 0, top, 0], stop=[2, 3, top + 6, 12], step=[1] * 4)
    x = tape("slice", x, start=[0, 0, 0, left], stop=[2, 3, 6, left + 10], step=[1] * 4)
    return tape("sigmoid", x)


def pool(tape: Tape) -> int:
    counts, padding = tape.get("pool", (True, [[1, 1], [1, 1]]))
    x = tape("avg_pool", tape.input(IMAGE), padding=padding, count_include_pad=counts, ceil_mode=False, **WINDOW)
    return tape("tanh", x)


def upsample(tape: Tape) -> int:
    x = tape.input(IMAGE)
    size = [20, 24] if tape.get("crop") else [19, 23]
    x = tape("resize", x, size=size, layout="channels_first", **RESIZE)
    if tape.get("crop"):
        x = tape("slice", x, start=[0] * 4, stop=[2, 3, 19, 23], step=[1] * 4)
    return tape("tanh", x)


def shuffle(tape: Tape) -> int:
    x = tape.input(weights("channels", 2, 12, 4, 4))
    x = tape("depth_to_space", x, block=2, order=tape.get("order", "CRD"), layout="channels_first")
    return tape("sigmoid", x)


def unflatten(tape: Tape) -> int:
    x = tape.input(weights("vector", 2, 24))
    if tape.get("last"):
        x = tape("transpose", tape("reshape", x, shape=[2, 2, 3, 4]), axes=[0, 3, 1, 2])
    else:
        x = tape("reshape", x, shape=[2, 4, 2, 3])
    return tape("conv", x, tape.parameter("w", weights("w", 5, 4, 1, 1)), strides=[1, 1], padding=[[0, 0], [0, 0]],
                dilation=[1, 1], groups=1, layout="channels_first", kernel="OIHW")  # fmt: skip


def depthwise(tape: Tape) -> int:
    w = weights("kernel", 3, 2, 1, 3, 3)
    w = w.swapaxes(0, 1) if tape.get("swapped") else w
    x = tape("conv", tape.input(IMAGE), tape.parameter("w", w.reshape(6, 1, 3, 3)), strides=[1, 1],
             padding=[[0, 0], [0, 0]], dilation=[1, 1], groups=3, layout="channels_first", kernel="OIHW")  # fmt: skip
    return tape("tanh", x)


def token(tape: Tape) -> int:
    x = tape.input(weights("tokens", 2, 5, 6))
    if tape.get("index") is None:
        x = tape("mean", x, axes=[1], keepdims=False)
    else:
        index = tape.get("index")
        x = tape("slice", x, start=[0, index, 0], stop=[2, index + 1, 6], step=[1] * 3)
        x = tape("reshape", x, shape=[2, 6])
    return tape.linear(x, "head", 4)


def causal(tape: Tape) -> int:
    d, x = tape.get("dilation", 4), tape.input(weights("sequence", 2, 3, 12))
    x = tape("pad", x, padding=[[0, 0], [0, 0], [2 * d, 0]], mode="constant", value=0.0)
    x = tape("conv", x, tape.parameter("w", weights("w", 4, 3, 3)), strides=[1], padding=[[0, 0]], dilation=[d],
             groups=1, layout="channels_first", kernel="OIHW")  # fmt: skip
    return tape("tanh", x)


def rounded_up(tape: Tape) -> int:
    """A pool, a norm over groups of channels, and an upsampling that hides the size."""
    x = tape.input(weights("odd", 2, 4, 5, 7))
    options = {**WINDOW, "window": [2, 2], "padding": [[0, 0], [0, 0]], "ceil_mode": tape.get("up", True)}
    x = tape("max_pool", x, **options)
    shape = list(tape.values[x].shape)
    y = tape("reshape", x, shape=[2, 2, 2, *shape[2:]])
    y = tape("subtract", y, tape("mean", y, axes=[2, 3, 4], keepdims=True))
    x = tape("tanh", tape("reshape", y, shape=shape))
    return tape("sigmoid", tape("resize", x, size=[5, 7], layout="channels_first", **RESIZE))


CASES: list[tuple[Callable[[Tape], int], dict[str, Any], str]] = [
    (crop, {"at": (0, 0)}, "crop_offset"),
    (pool, {"pool": (False, [[0, 1], [0, 1]])}, "pool_padding"),
    (upsample, {"crop": True}, "interpolation_scale"),
    (shuffle, {"order": "DCR"}, "depth_to_space_order"),
    (unflatten, {"last": True}, "flatten_order"),
    (depthwise, {"swapped": True}, "kernel_order"),
    (causal, {"dilation": 2}, "window_step"),
    (rounded_up, {"up": False}, "ceil_mode"),
    (token, {"index": 0}, "pooling"),
    (token, {"index": 4}, "pooling"),
]


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(("model", "options", "kind"), CASES, ids=[f"{kind}-{i}" for i, (*_, kind) in enumerate(CASES)])
def test_the_cause_is_found_and_verified(
    model: Callable[[Tape], int], options: dict[str, Any], kind: str, side: str
) -> None:
    a, b = both(model, options if side == "a" else {}, options if side == "b" else {})
    (finding,) = compare_pass(a, b, None, "forward").findings
    assert (finding.kind, finding.status) == (kind, "verified")
    assert finding.left < 1e-12


def test_the_place_of_a_change_of_order_is_where_the_order_is_made() -> None:
    (finding,) = compare_pass(*both(shuffle, {}, {"order": "DCR"}), None, "forward").findings
    assert finding.a.native == finding.b.native == "depth_to_space"


def test_the_middle_of_an_image_is_told_from_its_beginning() -> None:
    (finding,) = compare_pass(*both(crop, {}, {"at": (0, 0)}), None, "forward").findings
    assert "middle" in finding.a_does and "beginning" in finding.b_does
    assert np.isfinite(finding.error)


def test_what_moves_a_parameter_belongs_to_no_region() -> None:
    tape = Tape()
    x = tape("reshape", tape.input(weights("x", 2, 6)), shape=[2, 2, 3])
    bias = tape("reshape", tape("reshape", tape.parameter("b", weights("b", 3)), shape=[1, 3]), shape=[1, 1, 3])
    graph = to_graph(tape.record(tape("add", x, bias)))
    (add,) = (i for i, operation in enumerate(graph.operations) if operation.kind == "add")
    region = with_moves(graph, [add])
    assert [graph.operations[i].inputs for i in region] == [tuple(graph.record.inputs), graph.operations[add].inputs]


@pytest.mark.parametrize(
    ("before", "after", "now", "shape"),
    [
        ((2, 24, 4, 5), (2, 4, 6, 20), (2, 24, 5, 6), [2, 4, 6, 30]),
        ((2, 4, 6, 4, 5), (2, 24, 4, 5), (2, 4, 6, 5, 6), [2, 24, 5, 6]),
        ((2, 3), (2, 3, 1, 1), (2, 5), [2, 5, 1, 1]),
        ((2, 3, 1, 1), (2, 3), (4, 3, 1, 1), [4, 3]),
    ],
)
def test_a_reshape_of_an_array_of_another_size_splits_and_merges_the_same_axes(before, after, now, shape) -> None:
    assert adapted_shape(before, after, now) == shape


def test_a_split_axis_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="was split"):
        adapted_shape((2, 24), (2, 4, 6), (2, 30))

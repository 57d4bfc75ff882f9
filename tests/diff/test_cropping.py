"""Crops, pools at the edges and orders of numbers: found also where only what follows shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from written import Tape, both, weights

from diffusion_core.parity.diff.comparison import compare_pass

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


CASES: list[tuple[Callable[[Tape], int], dict[str, Any], str]] = [
    (crop, {"at": (0, 0)}, "crop_offset"),
    (pool, {"pool": (False, [[0, 1], [0, 1]])}, "pool_padding"),
    (upsample, {"crop": True}, "interpolation_scale"),
    (shuffle, {"order": "DCR"}, "depth_to_space_order"),
    (unflatten, {"last": True}, "flatten_order"),
    (depthwise, {"swapped": True}, "kernel_order"),
    (causal, {"dilation": 2}, "dilation"),
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

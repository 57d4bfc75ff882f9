"""ONNX's elementwise operators, reductions and rearrangements in the vocabulary of `duet diff`."""

from __future__ import annotations

import math

import numpy as np

from experiments.model_diff.onnx_node import TRANSLATIONS, Node, Value, short, translates

__all__: list[str] = []

TRANSLATIONS |= {
    name: lambda node, kind=kind: node.end(kind, node.inputs[0])
    for name, kind in {
        "Neg": "negative", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Abs": "abs",
        "Sign": "sign", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Tanh": "tanh", "Sinh": "sinh", "Cosh": "cosh",
        "Atan": "arctan", "Erf": "erf", "Sigmoid": "sigmoid", "Relu": "relu", "Softsign": "softsign", "Mish": "mish",
        "HardSwish": "hardswish", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Not": "logical_not",
        "IsNaN": "isnan", "Identity": "identity", "Dropout": "identity",
    }.items()
}  # fmt: skip
TRANSLATIONS |= {
    name: lambda node, kind=kind: node.binary(kind, *node.inputs, node.outputs) and None
    for name, kind in {
        "Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Pow": "power", "Equal": "equal",
        "Less": "less", "LessOrEqual": "less_equal", "Greater": "greater", "GreaterOrEqual": "greater_equal",
        "And": "logical_and", "Or": "logical_or",
    }.items()
}  # fmt: skip


@translates("Mod")
def _modulo(node: Node) -> None:
    if node.get("fmod", 0):
        node.end("opaque", *node.inputs)
    else:
        node.binary("modulo", *node.inputs, node.outputs)


@translates("Max", "Min", "Sum", "Mean")
def _of_several(node: Node) -> None:
    kind = {"Max": "maximum", "Min": "minimum"}.get(node.type, "add")
    total: Value = node.inputs[0]
    for i, value in enumerate(node.inputs[1:], 2):
        last = i == len(node.inputs) and node.type != "Mean"
        total = node.binary(kind, total, value, node.outputs if last else None)
    if node.type == "Mean":
        node.end("divide", total, scalar=float(len(node.inputs)), reverse=False)
    elif len(node.inputs) == 1:
        node.end("identity", total)


@translates("LeakyRelu", "Elu", "Celu")
def _with_slope(node: Node) -> None:
    name, default = {"LeakyRelu": ("slope", 0.01), "Elu": ("alpha", 1.0), "Celu": ("alpha", 1.0)}[node.type]
    kind = {"LeakyRelu": "leaky_relu", "Elu": "elu", "Celu": "celu"}[node.type]
    node.end(kind, node.inputs[0], **{name: short(node.get("alpha", default))})


@translates("Selu")
def _selu(node: Node) -> None:
    node.end("selu" if not node.attributes else "opaque", node.inputs[0])


@translates("HardSigmoid")
def _hard_sigmoid(node: Node) -> None:
    slope = node.emit("multiply", [node.inputs[0]], scalar=short(node.get("alpha", 0.2)), reverse=False)
    shifted = node.emit("add", [slope], scalar=short(node.get("beta", 0.5)), reverse=False)
    node.end("clip", shifted, low=0.0, high=1.0)


@translates("Softplus")
def _softplus(node: Node) -> None:
    node.end("softplus", node.inputs[0], beta=1.0, threshold=math.inf)


@translates("PRelu")
def _prelu(node: Node) -> None:
    x, slope = node.inputs
    below = node.emit("multiply", [node.emit("clip", [x], low=None, high=0.0), slope])
    node.end("add", node.emit("relu", [x]), below)


@translates("Gelu")
def _gelu(node: Node) -> None:
    node.end("gelu", node.inputs[0], approximate=node.get("approximate", "none"))


@translates("Swish")
def _swish(node: Node) -> None:
    alpha = short(node.get("alpha", 1.0))
    if alpha == 1:
        node.end("silu", node.inputs[0])
    else:
        gate = node.emit("sigmoid", [node.emit("multiply", node.inputs[:1], scalar=alpha, reverse=False)])
        node.end("multiply", node.inputs[0], gate)


@translates("Clip")
def _clip(node: Node) -> None:
    low, high = node.get("min"), node.get("max")
    bounds = [None if bound is None else short(bound) for bound in (low, high)]
    for i in (0, 1):
        if node.has(i + 1):
            array = node.array(i + 1)
            if array is None:
                return node.end("opaque", *(x for x in node.inputs if x))
            bounds[i] = array.item()
    node.end("clip", node.inputs[0], low=bounds[0], high=bounds[1])


@translates("Cast")
def _cast(node: Node) -> None:
    from onnx.helper import tensor_dtype_to_np_dtype

    node.end("cast", node.inputs[0], dtype=np.dtype(tensor_dtype_to_np_dtype(node.get("to"))).name)


@translates("CastLike")
def _cast_like(node: Node) -> None:
    node.end("identity", node.inputs[0])


@translates("Where")
def _where(node: Node) -> None:
    condition, *branches = node.inputs
    fixed = [node.array(i) for i in (1, 2)]
    scalars = [None if a is None or a.size != 1 else a.item() for a in fixed]
    inputs = [x for x, scalar in zip(branches, scalars, strict=True) if scalar is None]
    node.end("where", condition, *inputs, scalars=scalars)


# Reductions.


@translates("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
def _reduce(node: Node) -> None:
    if node.get("noop_with_empty_axes", 0) and not node.has(1) and node.get("axes") is None:
        return node.end("identity", node.inputs[0])
    kind = node.type.removeprefix("Reduce").lower()
    node.end(kind, node.inputs[0], axes=node.axes(), keepdims=bool(node.get("keepdims", 1)))


@translates("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
def _reduce_of(node: Node) -> None:
    options = {"axes": node.axes(), "keepdims": bool(node.get("keepdims", 1))}
    x = node.inputs[0]
    if node.type == "ReduceL2":
        node.end("norm", x, order=2, **options)
    elif node.type == "ReduceLogSum":
        node.end("log", node.emit("sum", [x], **options))
    else:
        node.end("sum", node.emit("abs" if node.type == "ReduceL1" else "square", [x]), **options)


@translates("ArgMax", "ArgMin")
def _arg(node: Node) -> None:
    axis = node.get("axis", 0) % node.rank
    node.end(node.type.lower(), node.inputs[0], axes=[axis], keepdims=bool(node.get("keepdims", 1)))


@translates("Softmax", "LogSoftmax")
def _softmax(node: Node) -> None:
    axis = node.get("axis", 1 if node.opset < 13 else -1) % node.rank
    known = node.opset >= 13 or axis == node.rank - 1
    kind = "softmax" if node.type == "Softmax" else "log_softmax"
    node.end(kind if known else "opaque", node.inputs[0], **({"axis": axis} if known else {}))


@translates("CumSum")
def _cumsum(node: Node) -> None:
    axis = int(node.array(1).item()) % node.rank
    options = {"exclusive": bool(node.get("exclusive", 0)), "reverse": bool(node.get("reverse", 0))}
    node.end("cumsum", node.inputs[0], axis=axis, **options)


# Operators that only move numbers.


@translates("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(node: Node) -> None:
    node.end("reshape", node.inputs[0], shape=list(node.sink.shape(node.outputs[0])))


@translates("Transpose")
def _transpose(node: Node) -> None:
    node.end("transpose", node.inputs[0], axes=list(node.get("perm", range(node.rank)[::-1])))


@translates("Expand")
def _expand(node: Node) -> None:
    node.end("expand", node.inputs[0], shape=list(node.sink.shape(node.outputs[0])))


@translates("Concat")
def _concat(node: Node) -> None:
    node.end("concat", *node.inputs, axis=node.get("axis") % node.rank)


@translates("Split")
def _split(node: Node) -> None:
    axis = node.get("axis", 0) % node.rank
    sizes = [node.sink.shape(name)[axis] for name in node.outputs]
    node.emit("split", node.inputs[:1], node.outputs, axis=axis, sizes=sizes)


@translates("Slice")
def _slice(node: Node) -> None:
    shape = node.shape()
    starts, ends = (
        node.get(name) if node.get(name) is not None else node.array(i) for i, name in ((1, "starts"), (2, "ends"))
    )
    axes = node.get("axes") if node.get("axes") is not None else node.array(3)
    steps = node.array(4)
    axes = range(len(starts)) if axes is None else [int(axis) % len(shape) for axis in axes]
    start, stop, step = [0] * len(shape), list(shape), [1] * len(shape)
    for i, axis in enumerate(axes):
        n = shape[axis]
        by = int(steps[i]) if steps is not None else 1
        first, last, _ = slice(int(starts[i]), int(ends[i]), by).indices(n)
        start[axis], stop[axis], step[axis] = first, None if last < 0 else last, by
    node.end("slice", node.inputs[0], start=start, stop=stop, step=step)


@translates("Gather")
def _gather(node: Node) -> None:
    node.end("gather", *node.inputs, axis=node.get("axis", 0) % node.rank)


@translates("GatherElements")
def _take_along(node: Node) -> None:
    node.end("take_along", *node.inputs, axis=node.get("axis", 0) % node.rank)


@translates("Pad")
def _pad(node: Node) -> None:
    pads = node.get("pads") if node.get("pads") is not None else node.array(1)
    value = node.array(2).item() if node.array(2) is not None else float(node.get("value", 0.0))
    axes = [int(axis) % node.rank for axis in node.array(3)] if node.array(3) is not None else range(node.rank)
    pairs = [[0, 0] for _ in range(node.rank)]
    for i, axis in enumerate(axes):
        pairs[axis] = [int(pads[i]), int(pads[i + len(axes)])]
    mode = {"edge": "replicate", "wrap": "circular"}.get(node.get("mode", "constant"), node.get("mode", "constant"))
    if any(n < 0 for pair in pairs for n in pair):
        shape = node.shape()
        cut = node.emit(
            "slice",
            node.inputs[:1],
            start=[max(-a, 0) for a, _ in pairs],
            stop=[n - max(-b, 0) for n, (_, b) in zip(shape, pairs, strict=True)],
            step=[1] * len(shape),
        )
        pairs = [[max(a, 0), max(b, 0)] for a, b in pairs]
        return node.end("pad", cut, padding=pairs, mode=mode, value=value)
    node.end("pad", node.inputs[0], padding=pairs, mode=mode, value=value)


@translates("Tile")
def _tile(node: Node) -> None:
    node.end("tile", node.inputs[0], repeats=[int(n) for n in node.array(1)])


@translates("DepthToSpace", "SpaceToDepth")
def _blocks(node: Node) -> None:
    kind = "depth_to_space" if node.type == "DepthToSpace" else "space_to_depth"
    block, order = node.get("blocksize"), node.get("mode", "DCR")
    node.end(kind, node.inputs[0], block=block, order=order, layout="channels_first")


@translates("OneHot")
def _one_hot(node: Node) -> None:
    values, depth = node.array(2), node.array(1)
    if values is None or depth is None or list(values) != [0, 1]:
        return node.end("opaque", *node.inputs)
    node.end("one_hot", node.inputs[0], size=int(depth.item()), axis=node.get("axis", -1) % (node.rank + 1))

"""Fused operations as simple ones, so that a normalisation written by hand and one of a framework have the same parts.

    group_norm, layer_norm, rms_norm, batch_norm    y = gamma (x - m) / sqrt(v + epsilon) + beta
    attention                                       y = softmax(scale q k^T + mask) v

with the mean m and the biased variance v over the axes of each norm; `batch_norm` reads them when it is not in
training. The role of each part is its name in these formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusion_core.parity.diff.operations.registry import Unsupported
from diffusion_core.parity.diff.recording import Operation

__all__ = ["lower", "with_mask_type"]


class _Parts:
    """Simple operations that are collected for a fused one."""

    def __init__(self, operation: Operation, fresh: Callable[[], int]) -> None:
        self.operation, self.fresh = operation, fresh
        self.operations: list[Operation] = []

    def add(self, kind: str, inputs: Sequence[int], role: str, **attributes: Any) -> int:
        """Add a part, and return the number of its result."""
        whole, output = self.operation, self.fresh()
        self.operations.append(
            Operation(
                kind,
                tuple(inputs),
                (output,),
                attributes,
                whole.native,
                whole.layer,
                whole.source,
                whole.code,
                role,
                whole.kind,
            )
        )
        return output

    def finished(self, output: int) -> list[Operation]:
        """Return the parts; the last one writes the output of the fused operation."""
        last = self.operations[-1]
        fields = {**last.__dict__, "outputs": (output,)}
        return [*self.operations[:-1], Operation(**fields)]


def lower(operation: Operation, fresh: Callable[[], int], shapes: Callable[[int], tuple[int, ...]]) -> list[Operation]:
    """Return simple operations that compute what a fused one does.

    Args:
        operation: of a kind in `vocabulary.COMPOSITE`.
        fresh: gives numbers for values that are new.
        shapes: gives the shape of a value that the operation reads or writes.

    Raises:
        Unsupported: if the operation has a form that is not known here.
    """
    return _LOWERED[operation.kind](operation, fresh, shapes)


def with_mask_type(operation: Operation, is_boolean: Callable[[int], bool]) -> Operation:
    """Return an attention that says whether its mask is boolean, rather than numbers to add."""
    inputs = _named(operation, ("q", "k", "v", "mask")) if operation.kind == "attention" else {}
    if "mask" not in inputs:
        return operation
    attributes = {**operation.attributes, "boolean": is_boolean(inputs["mask"])}
    return Operation(**{**operation.__dict__, "attributes": attributes})


def _named(operation: Operation, names: Sequence[str]) -> dict[str, int]:
    """Return the inputs of an operation by name; those that are there are listed in the attribute `has`."""
    has = operation.attributes.get("has", names[: len(operation.inputs)])
    return dict(zip(has, operation.inputs, strict=True))


def _normalised(parts: _Parts, centred: int, variance: int, epsilon: float) -> int:
    """Divide centred numbers by the root of their variance."""
    safe = parts.add("add", [variance], "epsilon", scalar=epsilon, reverse=False)
    root = parts.add("sqrt", [safe], "root")
    return parts.add("divide", [centred, root], "normalised")


def _scaled(parts: _Parts, x: int, inputs: dict[str, int], shape: Sequence[int]) -> int:
    """Multiply by gamma and add beta, each written so that it broadcasts."""
    for name, kind, role in (("gamma", "multiply", "scale"), ("beta", "add", "shift")):
        if name in inputs:
            weight = parts.add("reshape", [inputs[name]], role, shape=list(shape))
            x = parts.add(kind, [x, weight], role)
    return x


def _statistics(parts: _Parts, x: int, axes: Sequence[int]) -> tuple[int, int]:
    mean = parts.add("mean", [x], "mean", axes=list(axes), keepdims=True)
    centred = parts.add("subtract", [x, mean], "centred")
    return centred, parts.add("variance", [x], "variance", axes=list(axes), keepdims=True, ddof=0)


def _along(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [n if i in axes else 1 for i, n in enumerate(shape)]


def _group_norm(
    operation: Operation, fresh: Callable[[], int], shapes: Callable[[int], tuple[int, ...]]
) -> list[Operation]:
    inputs = _named(operation, ("x", "gamma", "beta"))
    shape, axis = shapes(inputs["x"]), operation.attributes["axis"]
    groups = operation.attributes["groups"]
    parts = _Parts(operation, fresh)
    split = [*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]]
    x = parts.add("reshape", [inputs["x"]], "groups", shape=split)
    centred, variance = _statistics(parts, x, [i for i in range(1, len(split)) if i != axis])
    y = _normalised(parts, centred, variance, operation.attributes["epsilon"])
    y = parts.add("reshape", [y], "groups", shape=list(shape))
    _scaled(parts, y, inputs, _along(shape, [axis]))
    return parts.finished(operation.outputs[0])


def _layer_norm(
    operation: Operation, fresh: Callable[[], int], shapes: Callable[[int], tuple[int, ...]]
) -> list[Operation]:
    inputs = _named(operation, ("x", "gamma", "beta"))
    axes, shape = operation.attributes["axes"], shapes(inputs["x"])
    parts = _Parts(operation, fresh)
    centred, variance = _statistics(parts, inputs["x"], axes)
    y = _normalised(parts, centred, variance, operation.attributes["epsilon"])
    _scaled(parts, y, inputs, _along(shape, axes))
    return parts.finished(operation.outputs[0])


def _rms_norm(
    operation: Operation, fresh: Callable[[], int], shapes: Callable[[int], tuple[int, ...]]
) -> list[Operation]:
    inputs = _named(operation, ("x", "gamma"))
    axes, shape = operation.attributes["axes"], shapes(inputs["x"])
    parts = _Parts(operation, fresh)
    square = parts.add("square", [inputs["x"]], "square")
    mean = parts.add("mean", [square], "variance", axes=list(axes), keepdims=True)
    y = _normalised(parts, inputs["x"], mean, operation.attributes["epsilon"])
    _scaled(parts, y, inputs, _along(shape, axes))
    return parts.finished(operation.outputs[0])


def _batch_norm(
    operation: Operation, fresh: Callable[[], int], shapes: Callable[[int], tuple[int, ...]]
) -> list[Operation]:
    inputs = _named(operation, ("x", "gamma", "beta", "mean", "variance"))
    shape, axis = shapes(inputs["x"]), operation.attributes["axis"]
    parts = _Parts(operation, fresh)
    if operation.attributes["training"]:
        centred, variance = _statistics(parts, inputs["x"], [i for i in range(len(shape)) if i != axis])
    else:
        if not {"mean", "variance"} <= set(inputs):
            raise Unsupported("a batch_norm in evaluation needs a mean and a variance")
        mean = parts.add("reshape", [inputs["mean"]], "mean", shape=_along(shape, [axis]))
        centred = parts.add("subtract", [inputs["x"], mean], "centred")
        variance = parts.add("reshape", [inputs["variance"]], "variance", shape=_along(shape, [axis]))
    y = _normalised(parts, centred, variance, operation.attributes["epsilon"])
    _scaled(parts, y, inputs, _along(shape, [axis]))
    return parts.finished(operation.outputs[0])


def _attention(
    operation: Operation, fresh: Callable[[], int], shapes: Callable[[int], tuple[int, ...]]
) -> list[Operation]:
    inputs = _named(operation, ("q", "k", "v", "mask"))
    parts = _Parts(operation, fresh)
    logits = parts.add("matmul", [inputs["q"], inputs["k"]], "logits", transpose_a=False, transpose_b=True)
    scores = parts.add("multiply", [logits], "scaled", scalar=operation.attributes["scale"], reverse=False)
    masked = "mask" in inputs or bool(operation.attributes.get("causal"))
    if operation.attributes.get("causal"):
        rows, columns = shapes(inputs["q"])[-2], shapes(inputs["k"])[-2]
        seen = parts.add("causal_mask", [], "mask", rows=rows, columns=columns)
        scores = parts.add("where", [seen, scores], "mask", scalars=[None, float("-inf")])
    if "mask" in inputs:
        if operation.attributes.get("boolean"):
            scores = parts.add("where", [inputs["mask"], scores], "mask", scalars=[None, float("-inf")])
        else:
            scores = parts.add("add", [scores, inputs["mask"]], "mask")
    axis = len(shapes(inputs["q"])) - 1
    shares = parts.add("softmax", [scores], "softmax", axis=axis, **({"safe": True} if masked else {}))
    parts.add("matmul", [shares, inputs["v"]], "values", transpose_a=False, transpose_b=False)
    return parts.finished(operation.outputs[0])


_LOWERED = {
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "batch_norm": _batch_norm,
    "attention": _attention,
}

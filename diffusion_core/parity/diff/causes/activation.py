"""Causes in functions of one number: another activation or form of it, one missing or too many, one in another place.

A function is recognised by value: it is evaluated on a value of this side, and its results are looked for on both
sides. So it does not matter of how many operations it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff import operations as rules
from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.functions import FUNCTIONS, family_of
from diffusion_core.parity.diff.causes.view import ELEMENTWISE, View, moments, near, shown, view
from diffusion_core.parity.diff.vocabulary import UNARY

_MOST_SOURCES, _MOST_RUNS = 24, 300
_PLAIN = ("clip", "cast", "identity", "stop_gradient", "isnan", "isfinite", "isinf", "logical_not")


def sources(here: View, parameters: bool = True) -> list[int]:
    """Return values of floats from which the region starts or that it makes, the earliest first."""
    numbers = [*here.entries, *(n for _, o in here.operations for n in o.outputs[:1])]
    kept = [n for n in numbers if here.number(n) is not None and (parameters or not here.is_parameter(n))]
    return kept[:_MOST_SOURCES]


def results(function: Callable[[NDArray], NDArray], x: NDArray) -> NDArray | None:
    """Return a function of an array, or None if it is not finite there."""
    with np.errstate(all="ignore"):
        y = np.asarray(function(x))
    return y if np.isfinite(y).all() else None


@cause("gelu_form", "the form of GELU", 'approximate="none" | "tanh" in torch, approximate=False | True in Keras')
@cause("swish_beta", "the beta of Swish", "x * sigmoid(beta * x) with the same beta; SiLU has 1")
@cause(
    "hard_sigmoid_form",
    "the form of the hard sigmoid",
    "relu6(x + 3) / 6 in torch and Keras 3; older Keras: 0.2 x + 0.5",
)
@cause("activation_bound", "the bound of a ReLU", "nn.ReLU6 in torch, ReLU(max_value=6) in Keras")
@cause("function", "another function of one number", "call the same function on both sides")
@cause(
    "activation",
    "another activation function",
    "the activation of the layer, or the function called on its result",
)
def activation(suspect: Suspect) -> Iterator[Change]:
    """Find a function of a value that this side makes, and another function of it that the other side makes."""
    here = view(suspect)
    if len(here.operations) > _MOST_RUNS:
        return
    for x in sources(here):
        array = here.number(x)
        if array is None:
            continue
        made = [i for i in here.after([x]) if here.output(i) is not None]
        made = [i for i in made if here.output(i).shape == array.shape]  # type: ignore[union-attr]
        if not made or (array.size < 4 and not here.is_parameter(x)):
            continue
        mine: list[tuple[int, str]] = []
        there: list[str] = []
        for name, function in FUNCTIONS.items():
            y = results(function.compute, array)
            if y is None or np.array_equal(y, array):
                continue
            mine += [
                (i, name)
                for i in made[:16]
                if _called(here, i) in (None, name) and _nearly(here.output(i), y)  # type: ignore[arg-type]
            ]
            if here.found(y):
                there.append(name)
        yield from _replacements(here, x, mine, there)


def _nearly(mine: NDArray, y: NDArray) -> bool:
    """Return whether a value is a function's, but for constants that frameworks keep in float32."""
    return np.allclose(mine, y, rtol=1e-6, atol=1e-7 * float(np.max(np.abs(y), initial=0.0)))


def _called(here: View, i: int) -> str | None:
    """Return the name of the function that an operation is by its kind; None if only its numbers tell."""
    operation = here.graph.operations[i]
    return name_of(operation.kind, operation.attributes) if operation.kind in UNARY else None


def _replacements(here: View, x: int, mine: list[tuple[int, str]], there: list[str]) -> Iterator[Change]:
    """Yield what makes a function that this side applies to a value one of those that the other side applies to it."""
    names = {name for _, name in mine}
    last = {name: max(i for i, n in mine if n == name) for name in names}
    for name, i in last.items():
        for other in there:
            if other not in names:
                compute = FUNCTIONS[other].compute
                yield Change(
                    family_of(name, other),
                    i,
                    lambda read, f=compute: (results_of(f, read(x)),),
                    here=f"the function is {FUNCTIONS[name].words}",
                    there=f"the function is {FUNCTIONS[other].words}",
                    cost=0,
                )
    # What this side applies in one step may be what the other applies in several: forms of one family are tried anyway.
    for name, i in last.items():
        family = FUNCTIONS[name].family
        for other, function in FUNCTIONS.items():
            if family and function.family == family and other != name and other not in there:
                yield Change(
                    family_of(name, other),
                    i,
                    lambda read, f=function.compute: (results_of(f, read(x)),),
                    here=f"the function is {FUNCTIONS[name].words}",
                    there=f"the function is {function.words}",
                )


def results_of(function: Callable[[NDArray], NDArray], x: NDArray) -> NDArray:
    """Return a function of an array in the type of the array."""
    with np.errstate(all="ignore"):
        return np.asarray(function(x)).astype(x.dtype, copy=False)


def missing_kind(name: str) -> str:
    """Return the kind of the cause where a function is missing."""
    if FUNCTIONS[name].activation:
        return "missing_activation"
    if name in ("exp", "half_exp", "exp2"):
        return "missing_exp"
    return "missing_function"


@cause(
    "missing_activation",
    "an activation that one side does not have",
    "call the activation, or leave it out, on one side",
)
@cause(
    "missing_exp",
    "an exponential that one side does not have",
    "apply exp (torch.exp, tf.exp) to the parameter that is kept as a logarithm",
)
@cause(
    "missing_function",
    "a function of one number that one side does not apply",
    "apply it on both sides or on neither",
)
def missing(suspect: Suspect) -> Iterator[Change]:
    """Find a function of a value that only one side applies."""
    here = view(suspect)
    for i, operation in here.operations:
        if not operation.inputs or len(operation.outputs) != 1:
            continue
        x, y = here.number(operation.inputs[0]), here.output(i)
        if x is None or y is None or x.shape != y.shape or operation.kind in _PLAIN:
            continue
        if operation.kind in UNARY:
            name = name_of(operation.kind, operation.attributes)
            words = FUNCTIONS[name].words if name else operation.kind.replace("_", " ")
            kind = missing_kind(name) if name else "missing_function"
            yield Change(
                kind,
                i,
                lambda read, n=operation.inputs[0]: (read(n),),
                f"{words} is applied",
                f"{words} is not applied",
                0,
            )
    yield from _removed(here)
    yield from _inserted(here)


def _removed(here: View) -> Iterator[Change]:
    """Yield functions of several operations that this side applies and that the other may not have."""
    for x in sources(here, parameters=False)[:12]:
        array = here.number(x)
        if array is None or array.size < 4:
            continue
        made = [i for i in here.after([x]) if (y := here.output(i)) is not None and y.shape == array.shape]
        for function in FUNCTIONS.values():
            if not function.activation or not made:
                continue
            y = results(function.compute, array)
            if y is None or np.array_equal(y, array):
                continue
            for i in made[:12]:
                operation = here.graph.operations[i]
                if operation.kind not in UNARY and np.allclose(here.output(i), y, rtol=1e-9, atol=1e-12):  # type: ignore[arg-type]
                    yield Change(
                        "missing_activation",
                        i,
                        lambda read, x=x: (read(x),),
                        f"{function.words} is applied",
                        f"{function.words} is not applied",
                    )


def _inserted(here: View) -> Iterator[Change]:
    """Yield functions that the other side applies to a value and this side does not."""
    for x in sources(here):
        array = here.number(x)
        readers = here.readers(x)
        if array is None or not readers:
            continue
        small = array.size < 4 and not here.is_parameter(x)
        mine = [here.moments(n) for n in here.made if here.number(n) is not None]
        for name, function in FUNCTIONS.items():
            y = results(function.compute, array)
            if y is None or np.array_equal(y, array) or not here.found(y):
                continue
            if any(m is not None and near_one(m, y) for m in mine):
                continue
            plus = here.is_parameter(x) and name in ("one_plus", "minus_one")
            kind = "norm_scale" if plus else missing_kind(name)
            words = function.words.replace("it", here.parameter(x) or "it") if plus else function.words
            yield from _insertions(here, x, function.compute, kind, words, 1 if small else 0)


def near_one(known: NDArray, array: NDArray) -> bool:
    """Return whether an array has these moments."""
    return bool(near(moments(array), known.reshape(1, -1))[0])


def _insertions(
    here: View, x: int, function: Callable[[NDArray], NDArray], kind: str, words: str, cost: int
) -> Iterator[Change]:
    """Yield a function applied to a value where it is made, and where each single operation reads it."""
    name = here.parameter(x)
    what = f" to {name}" if name else ""
    if x in here.made:
        i = here.made[x]
        yield Change(
            kind,
            i,
            here.with_output(i, lambda y: results_of(function, y)),
            f"{words} is not applied{what}",
            f"{words} is applied{what}",
            cost,
        )
    for i in here.readers(x):
        for position, number in enumerate(here.graph.operations[i].inputs):
            if number == x:
                yield Change(
                    kind,
                    i,
                    here.with_input(i, position, lambda y: results_of(function, y)),
                    f"{name} is used as it is" if name else f"{words} is not applied",
                    f"{words} is applied{what}",
                    cost,
                )


def name_of(kind: str, attributes: object) -> str | None:
    """Return the name in the table of functions of a kind of the vocabulary."""
    values = attributes if isinstance(attributes, dict) else dict(attributes)  # type: ignore[call-overload]
    if kind == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(values.get("approximate", "none"), "gelu_sigmoid")
    if kind in ("leaky_relu", "elu", "celu"):
        number = values.get("slope", values.get("alpha", 1.0))
        name = {"leaky_relu": "leaky"}.get(kind, kind) + f"{number:g}"
        return name if name in FUNCTIONS else None
    return kind if kind in FUNCTIONS else None


# Attributes of activations that are numbers, with the family of the cause and the usual numbers.
_ATTRIBUTES = {
    "leaky_relu": ("slope", "activation_slope", "the slope of the leaky ReLU", (0.01, 0.2, 0.3, 0.1)),
    "elu": ("alpha", "activation_alpha", "alpha of the ELU", (1.0, 0.1, 0.5)),
    "celu": ("alpha", "activation_alpha", "alpha of the CELU", (1.0, 0.1, 0.5)),
    "softplus": ("beta", "softplus_form", "beta of softplus", (1.0, 2.0, 0.5, 5.0, 10.0)),
}


@cause(
    "activation_slope",
    "the slope of a leaky ReLU",
    "negative_slope= of torch (default 0.01), negative_slope= of Keras (0.3), alpha= of tf.nn.leaky_relu (0.2)",
)
@cause("activation_alpha", "the alpha of an ELU, SELU or CELU", "alpha= of the activation")
@cause("softplus_form", "the form of softplus", "beta= and threshold= of torch's softplus; Keras has neither")
def attributes(suspect: Suspect) -> Iterator[Change]:
    """Try other numbers of activations that have one."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind not in _ATTRIBUTES:
            continue
        attribute, kind, words, usual = _ATTRIBUTES[operation.kind]
        mine = operation.attributes.get(attribute)
        known = [
            suspect.other.operations[j].attributes[attribute]
            for j in suspect.other_region
            if attribute in suspect.other.operations[j].attributes
        ]
        known += here.numbers_there("multiply")
        for number in dict.fromkeys([*known, *usual]):
            if number == mine or not isinstance(number, int | float):
                continue
            yield Change(
                kind,
                i,
                here.with_attributes(i, **{attribute: number}),
                f"{words} is {shown(float(mine))}" if mine is not None else f"{words} is the default",
                f"{words} is {shown(float(number))}",
                0 if number in known else 1,
            )


@cause(
    "activation_position",
    "an activation in another place",
    "call the activation before or after the sum, the normalisation or the layer, as the other side does",
)
@cause("operation_position", "an operation in another place", "do the steps in the same order on both sides")
def position(suspect: Suspect) -> Iterator[Change]:
    """Move an elementwise operation of one input down or up within the region."""
    here = view(suspect)
    runs = 0
    for j, operation in here.operations:
        if not _moves(operation.kind, operation.inputs) or here.output(j) is None:
            continue
        name = name_of(operation.kind, operation.attributes) if operation.kind in UNARY else None
        kind = "activation_position" if name and FUNCTIONS[name].activation else "operation_position"
        words = operation.kind.replace("_", " ")
        source, result = operation.inputs[0], operation.outputs[0]
        apply = _apply(here, j)
        later = [i for i in here.after([result]) if i != j][:12]
        # Later: leave it out here, run on, and apply it to the result of a later operation.
        for i in later:
            runs += 1
            if runs > _MOST_RUNS:
                return

            def moved_down(read: Read, i: int = i, result: int = result, source: int = source, apply=apply) -> tuple:
                outputs = here.rerun(read, {result: read(source)}, i)
                return (apply(outputs[0]), *outputs[1:])

            where = here.graph.operations[i].kind.replace("_", " ")
            yield from _proposed(
                here,
                kind,
                i,
                moved_down,
                f"the {words} comes before the {where}",
                f"the {words} comes after the {where}",
            )
        # Earlier: apply it to what an earlier operation reads, and leave it out here.
        before = here.before(source)
        earlier = [i for i, o in here.operations if i < j and o.outputs[0] in before][-8:]
        for i in [*earlier, j]:
            for k, number in enumerate(here.graph.operations[i].inputs):
                array = here.number(number)
                if array is None or i == j or here.is_parameter(number):
                    continue
                runs += 1
                if runs > _MOST_RUNS:
                    return

                def moved_up(read: Read, i: int = i, j: int = j, k: int = k, apply=apply) -> tuple:
                    inputs = [read(n) for n in here.graph.operations[i].inputs]
                    inputs[k] = apply(inputs[k])
                    outputs = here.graph.evaluate(i, inputs)
                    given = dict(zip(here.graph.operations[i].outputs, outputs, strict=False))
                    return tuple(here.rerun(read, given, j, left_out=(j,)))

                where = here.graph.operations[i].kind.replace("_", " ")
                yield from _proposed(
                    here,
                    kind,
                    j,
                    moved_up,
                    f"the {words} comes after the {where}",
                    f"the {words} comes before the {where}",
                )


def _moves(kind: str, inputs: tuple[int, ...]) -> bool:
    return kind in ELEMENTWISE and len(inputs) == 1 and kind not in _PLAIN


def _apply(here: View, j: int) -> Callable[[NDArray], NDArray]:
    operation = here.graph.operations[j]
    bare = replace(operation)
    return lambda x: np.asarray(rules.evaluate(bare, [x])[0])


def _proposed(
    here: View, kind: str, i: int, compute: Callable[[Read], tuple], mine: str, there: str
) -> Iterator[Change]:
    """Yield a change if its result is on the other side."""
    try:
        with np.errstate(all="ignore"):
            y = np.asarray(compute(here.suspect.read)[0])
    except (ValueError, IndexError, KeyError, TypeError, rules.Unsupported):
        return
    if y.dtype.kind == "f" and y.size and here.found(y):
        yield Change(kind, i, compute, mine, there, 0 if kind == "activation_position" else 1)

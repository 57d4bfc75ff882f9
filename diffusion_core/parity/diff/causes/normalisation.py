"""Causes in a normalisation ``y = (x - mean) / sqrt(var + epsilon) * gamma + beta``.

Single numbers (epsilon and its place, the divisor of the variance) are changed where they stand. What changes the form
(groups, axes, whether the mean is removed, which statistics) is found by computing the whole normalisation in every
usual form from what the region reads, and looking which one is this side's and which the other's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.change import Change, Read, Suspect, cause
from diffusion_core.parity.diff.causes.constants import is_epsilon, number_of
from diffusion_core.parity.diff.causes.view import View, moments, near, shown, view

_USUAL = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 1e-7, 1e-4, 1e-2, 1e-10, 1e-16, 0.0)
_REDUCING = ("mean", "variance", "std", "sum", "norm", "square", "multiply")


def epsilons_there(suspect: Suspect) -> list[float]:
    """Return the small numbers of the other side's region."""
    found = []
    for i in suspect.other_region:
        operation = suspect.other.operations[i]
        number = operation.attributes.get("low") if operation.kind == "clip" else number_of(operation)
        if operation.kind in ("add", "maximum", "clip") and isinstance(number, int | float) and 0 <= number <= 0.11:
            found.append(float(number))
    return list(dict.fromkeys(found))


# Where epsilon stands, for what is read next to the number e: x itself may be a norm or a sum of squares.
_FORMS: dict[str, tuple[str, Callable[[NDArray, float], NDArray]]] = {
    "added": ("is added", lambda x, e: x + e),
    "maximum": ("is the least value (maximum)", lambda x, e: np.maximum(x, e)),
    "under": ("is added under the root", lambda x, e: np.sqrt(x * x + e)),
    "least_under": ("is the least value under the root", lambda x, e: np.sqrt(np.maximum(x * x, e))),
    "outside": ("is added outside the root", lambda x, e: np.square(np.sqrt(np.maximum(x, 0)) + e)),
    "least_outside": ("is the least value outside the root", lambda x, e: np.maximum(x, e * e)),
}


@cause(
    "norm_epsilon",
    "the epsilon of a normalisation, or its place",
    "eps= in torch (1e-5), epsilon= in Keras (1e-3); F.normalize takes the maximum with it",
)
@cause("epsilon", "a small number for safety", "add the same number on both sides")
def epsilon(suspect: Suspect) -> Iterator[Change]:
    """Try other numbers, then other places."""
    here = view(suspect)
    known = epsilons_there(suspect)
    for i, operation in here.operations:
        if not is_epsilon(here, i):
            continue
        number = operation.attributes.get("low") if operation.kind == "clip" else operation.attributes.get("scalar")
        if not isinstance(number, int | float):
            continue
        mine = "added" if operation.kind == "add" else "maximum"
        roots = ("sqrt", "rsqrt", "power", "norm", "std", "variance")
        kind = "norm_epsilon" if here.leads_to(i, roots, 3) or here.comes_from(i, roots, 3) else "epsilon"
        x = operation.inputs[0]
        for value, (form, (words, compute)) in itertools.product(
            dict.fromkeys([*known, number, *_USUAL]), _FORMS.items()
        ):
            if form == mine and value == number:
                continue
            if form == mine:
                texts = f"epsilon is {shown(number)}", f"epsilon is {shown(value)}"
            else:
                texts = f"epsilon {shown(number)} {_FORMS[mine][0]}", f"epsilon {shown(value)} {words}"
            yield Change(
                kind,
                i,
                lambda read, v=value, f=compute, x=x: (f(read(x), v).astype(read(x).dtype, copy=False),),
                *texts,
                cost=0 if value in known else 1,
            )
    yield from _missing_epsilon(here, known)


def _missing_epsilon(here: View, known: Sequence[float]) -> Iterator[Change]:
    """Yield an epsilon where this side has none, and one that stands after the root on the other side."""
    for i, operation in here.operations:
        if operation.kind not in ("sqrt", "rsqrt", "divide", "reciprocal", "power", "log", "norm", "std"):
            continue
        k = len(operation.inputs) - 1
        if (
            operation.kind == "divide"
            and operation.attributes.get("scalar") is not None
            and not operation.attributes.get("reverse")
        ):
            continue
        for value in dict.fromkeys([*known, 1e-5, 1e-6, 1e-12, 1e-8, 1e-3]):
            cost = 0 if value in known else 1
            if operation.kind in ("norm", "std", "sqrt"):
                yield Change(
                    "norm_epsilon",
                    i,
                    here.with_output(i, lambda y, v=value: y + y.dtype.type(v)),
                    "epsilon is not added to the root",
                    f"epsilon {shown(value)} is added to the root",
                    cost,
                )
                yield Change(
                    "norm_epsilon",
                    i,
                    here.with_output(i, lambda y, v=value: np.sqrt(np.square(y) + y.dtype.type(v))),
                    "epsilon is not added under the root",
                    f"epsilon {shown(value)} is added under the root",
                    cost,
                )
            if operation.kind != "norm":
                for words, there, function in (
                    ("epsilon is not added", f"epsilon is {shown(value)}", lambda x, v=value: x + x.dtype.type(v)),
                    (
                        "a least value is not set",
                        f"the least value is {shown(value)}",
                        lambda x, v=value: np.maximum(x, x.dtype.type(v)),
                    ),
                ):
                    if operation.kind != "std":
                        yield Change("norm_epsilon", i, here.with_input(i, k, function), words, there, cost)


@cause(
    "variance_bias",
    "a variance divided by n or by n - 1",
    "torch.var and std divide by n - 1 (correction=0 for n), tf.math.reduce_variance and Keras by n",
)
def variance_bias(suspect: Suspect) -> Iterator[Change]:
    """Divide by n - 1 in place of n, or the other way round."""
    here = view(suspect)
    names = {0: "by n (biased)", 1: "by n - 1 (unbiased)"}
    for i, operation in here.operations:
        if operation.kind in ("variance", "std"):
            mine = int(operation.attributes.get("ddof", 0))
            yield Change(
                "variance_bias",
                i,
                here.with_attributes(i, ddof=1 - min(mine, 1)),
                f"the sum of squares is divided {names.get(mine, f'by n - {mine}')}",
                f"the sum of squares is divided {names[1 - min(mine, 1)]}",
                0,
            )
        elif operation.kind == "mean" and (
            getattr(operation, "role", "") == "variance"
            or here.comes_from(i, ("square", "multiply", "power", "abs"), 2)
        ):
            x, y = here.number(operation.inputs[0]), here.output(i)
            n = x.size // y.size if x is not None and y is not None and y.size else 1
            if n > 1:
                yield Change(
                    "variance_bias",
                    i,
                    here.with_output(i, lambda y, n=n: y * (n / (n - 1))),
                    f"the sum of squares is divided {names[0]}",
                    f"the sum of squares is divided {names[1]}",
                    0,
                )
        elif operation.kind in ("divide", "multiply") and here.comes_from(i, ("sum", "mean", "variance"), 2):
            number = number_of(operation)
            ratio = (
                1 / (1 - 1 / (number if operation.kind == "multiply" else 1 / number))
                if number and number != 1
                else 0.0
            )
            if ratio > 1.5 and abs(ratio - round(ratio)) < 1e-6 and here.comes_from(i, ("square", "variance"), 3):
                yield Change(
                    "variance_bias",
                    i,
                    here.with_attributes(i, scalar=1.0),
                    f"the sum of squares is divided {names[1]}",
                    f"the sum of squares is divided {names[0]}",
                    0,
                )
            if number:
                n = round(number if operation.kind == "divide" else 1 / number)
                for other in (n - 1, n + 1):
                    if other > 0:
                        value = float(other) if operation.kind == "divide" else 1 / other
                        yield Change(
                            "variance_bias",
                            i,
                            here.with_attributes(i, scalar=value),
                            f"the divisor is {n}",
                            f"the divisor is {other}",
                        )


@cause(
    "norm_scale", "the scale of a normalisation, used in another way", "y * gamma, or y * (1 + gamma), on both sides"
)
def scale(suspect: Suspect) -> Iterator[Change]:
    """Leave a parameter out that multiplies, or use one plus it."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind not in ("multiply", "divide") or len(operation.inputs) != 2:
            continue
        for k, n in enumerate(operation.inputs):
            name, other, y = here.parameter(n), here.number(operation.inputs[1 - k]), here.output(i)
            if name is None or other is None or y is None or other.shape != y.shape:
                continue
            yield Change(
                "norm_scale",
                i,
                lambda read, m=operation.inputs[1 - k]: (read(m),),
                f"the factor is {name}",
                f"{name} is not used",
                0,
            )
            for words, function in (
                (f"1 + {name}", lambda g: 1 + g),
                (f"{name} - 1", lambda g: g - 1),
                (f"the absolute value of {name}", np.abs),
            ):
                yield Change(
                    "norm_scale",
                    i,
                    here.with_input(i, k, function),
                    f"the factor is {name}",
                    f"the factor is {words}",
                    1,
                )


@dataclass(frozen=True)
class Norm:
    """One form of a normalisation, without scale and shift.

    Attributes:
        axes: whose mean and variance are taken.
        groups: of the channels, or 1.
        interleaved: whether a group is every groups-th channel, rather than neighbours.
        channel: the axis of channels.
        centred: whether the mean is removed.
        epsilon: added to the variance.
        ddof: 1 for an unbiased variance.
    """

    axes: tuple[int, ...]
    groups: int
    interleaved: bool
    channel: int
    centred: bool
    epsilon: float
    ddof: int = 0

    def __call__(self, x: NDArray) -> NDArray:
        """Return the normalised array, in the shape of x."""
        c, g = x.shape[self.channel], self.groups
        split = (c // g, g) if self.interleaved else (g, c // g)
        shape = (*x.shape[: self.channel], *split, *x.shape[self.channel + 1 :])
        kept = self.channel + 1 if self.interleaved else self.channel
        axes = tuple(a if a < self.channel else a + 1 for a in self.axes if a != self.channel)
        if self.channel in self.axes:
            axes = (*axes, self.channel if self.interleaved else self.channel + 1)
            if g == 1:
                axes = tuple(dict.fromkeys((*axes, kept)))
        elif g > 1:
            raise ValueError("groups of channels that are not averaged over")
        grouped = x.reshape(shape)
        mean = grouped.mean(axis=axes, keepdims=True)
        centred = grouped - mean if self.centred else grouped
        count = grouped.size // mean.size
        var = np.square(centred).sum(axis=axes, keepdims=True) / max(count - self.ddof, 1)
        return (centred / np.sqrt(var + self.epsilon)).reshape(x.shape)

    def words(self, ndim: int) -> str:
        """Say what is averaged over."""
        space = tuple(a for a in range(1, ndim) if a != self.channel)
        mean = "" if self.centred else ", and is not subtracted"
        if self.groups > 1:
            return (
                f"over {self.groups} groups of {'interleaved' if self.interleaved else 'neighbouring'} channels{mean}"
            )
        if set(self.axes) == {self.channel}:
            return f"over the channels of each position{mean}"
        if set(self.axes) == {*space, self.channel}:
            return f"over all channels and positions of an example{mean}"
        if set(self.axes) == set(space):
            return f"over the positions of each channel{mean}"
        if set(self.axes) == {0, *space}:
            return f"over the batch and the positions of each channel{mean}"
        return f"over axes {', '.join(map(str, self.axes))}{mean}"


def forms(x: NDArray, numbers: Sequence[float]) -> Iterator[Norm]:
    """Go through the usual forms of a normalisation of an array."""
    for channel in dict.fromkeys((x.ndim - 1, 1)):
        c = x.shape[channel]
        space = tuple(a for a in range(1, x.ndim) if a != channel)
        axes_sets = [(channel,), (*space, channel), space, (0, *space)]
        axes_sets += [(a,) for a in range(x.ndim)]
        for number, centred in itertools.product(numbers, (True, False)):
            for axes in dict.fromkeys(tuple(sorted(a)) for a in axes_sets if a):
                yield Norm(axes, 1, False, channel, centred, number)
            for g in range(2, min(c, 64) + 1):
                if c % g == 0 and centred:
                    yield Norm((*space, channel), g, False, channel, centred, number)
                    if g < c:
                        yield Norm((*space, channel), g, True, channel, centred, number)


def norm_sources(here: View) -> dict[int, set[int]]:
    """Return values that a normalisation of the region may start from, with their reshaped forms.

    They are what it averages over, before it is reshaped.
    """
    found: dict[int, set[int]] = {}
    for i, operation in here.operations:
        if operation.kind not in _REDUCING and not (operation.kind == "subtract" and len(operation.inputs) == 2):
            continue
        n = operation.inputs[0]
        chain: set[int] = set()
        for _ in range(4):
            array = here.number(n)
            chain.add(n)
            if array is not None and array.ndim >= 2 and not here.is_parameter(n):
                found[n] = found.get(n, set()) | chain
            i = here.graph.producer.get(n, -1)
            if i < 0 or here.graph.operations[i].kind not in ("reshape", "square", "cast", "identity"):
                break
            n = here.graph.operations[i].inputs[0]
    first = sorted(found, key=lambda n: here.graph.producer.get(n, -1))
    return {n: found[n] for n in first[:4]}


def affine_forms(here: View, x: NDArray) -> list[tuple[str, Callable[[NDArray, Read, int], NDArray]]]:
    """Return ways to scale and shift a normalised array by parameters that the region reads."""
    factors, terms = [], []
    for _, operation in here.operations:
        for n in operation.inputs:
            array = here.number(n)
            if here.is_parameter(n) and array is not None and max(array.shape, default=0) == array.size > 1:
                if operation.kind in ("multiply", "divide"):
                    factors.append(n)
                elif operation.kind in ("add", "subtract"):
                    terms.append(n)

    def along(read: Read, n: int, axis: int) -> NDArray:
        array = np.asarray(read(n)).reshape(-1)
        return array.reshape([-1 if a == axis else 1 for a in range(x.ndim)])

    ways: list[tuple[str, Callable[[NDArray, Read, int], NDArray]]] = [("", lambda y, read, axis: y)]
    for g in dict.fromkeys(factors):
        ways.append((f"*{g}", lambda y, read, axis, g=g: y * along(read, g, axis)))
        for b in dict.fromkeys(terms):
            ways.append((f"*{g}+{b}", lambda y, read, axis, g=g, b=b: y * along(read, g, axis) + along(read, b, axis)))
    for b in dict.fromkeys(terms):
        ways.append((f"+{b}", lambda y, read, axis, b=b: y + along(read, b, axis)))
    return ways[:12]


@cause("group_count", "the number of groups of a GroupNorm", "num_groups in torch, groups= in Keras")
@cause(
    "group_layout",
    "which channels form a group of a GroupNorm",
    "reshape c to (groups, c // groups), not the other way round",
)
@cause("norm_axes", "the axes of a normalisation", "normalized_shape in torch, axis= in Keras")
@cause("norm_mean", "a normalisation that removes the mean, or does not", "LayerNorm removes it, RMSNorm does not")
def form(suspect: Suspect) -> Iterator[Change]:
    """Compute the normalisation in every usual form, and find those of both sides."""
    here = view(suspect)
    scalars = [number_of(o) for i, o in here.operations if is_epsilon(here, i)]
    numbers = list(dict.fromkeys([s for s in scalars if s is not None] + epsilons_there(suspect)))[:3] or [1e-5, 1e-6]
    for n, reshaped in norm_sources(here).items():
        x = here.number(n)
        if x is None or x.ndim > 5 or x.size > 500_000:
            continue
        after = [i for i in here.after(reshaped) if (y := here.output(i)) is not None and y.size == x.size]
        own = [(i, here.moments(here.graph.operations[i].outputs[0])) for i in after]
        ways = affine_forms(here, x)
        hits: dict[str, tuple[list[tuple[int, Norm]], list[Norm]]] = {}
        for norm in forms(x, numbers):
            with np.errstate(all="ignore"):
                y = norm(x)
            for name, way in ways:
                try:
                    z = way(y, suspect.read, norm.channel)
                except ValueError:
                    continue
                if z.shape != x.shape:
                    continue
                mine, theirs = hits.setdefault(name, ([], []))
                known = moments(z)
                mine += [(i, norm) for i, m in own if m is not None and near(known, m.reshape(1, -1))[0]]
                if here.found(z):
                    theirs.append(norm)
        for name, (mine, theirs) in hits.items():
            way = dict(ways)[name]
            targets = mine or [(i, None) for i in after[-3:]]
            for (i, norm), other in itertools.product(targets, theirs):
                if norm is None or _same(norm, other, x):
                    continue
                yield _reformed(here, n, i, norm, other, way, x.ndim)


def _same(one: Norm, other: Norm, x: NDArray) -> bool:
    """Return whether two forms are the same for an array, such as groups of one channel and each channel alone."""
    return np.allclose(one(x), other(x), rtol=1e-9, atol=1e-12)


def _reformed(
    here: View, n: int, i: int, mine: Norm, other: Norm, way: Callable[[NDArray, Read, int], NDArray], ndim: int
) -> Change:
    """Return the change from one form to another."""
    number = here.graph.operations[i].outputs[0]

    def compute(read: Read) -> tuple[NDArray]:
        y = way(other(read(n)), read, other.channel)
        return (y.reshape(read(number).shape).astype(read(number).dtype, copy=False),)

    if mine.centred != other.centred:
        kind = "norm_mean"
    elif mine.groups > 1 and other.groups > 1:
        kind = "group_count" if mine.groups != other.groups else "group_layout"
    elif (mine.groups > 1) != (other.groups > 1) and set(mine.axes) == set(other.axes):
        kind = "group_count"
    elif mine.axes == other.axes and mine.channel == other.channel:
        kind = "norm_epsilon"
    else:
        kind = "norm_axes"
    return Change(kind, i, compute, f"the mean is {mine.words(ndim)}", f"the mean is {other.words(ndim)}", 0)


@cause(
    "norm_statistics",
    "statistics of the batch in place of running ones, or the other way round",
    "model.eval() in torch, training=False in Keras; track_running_stats=",
)
def statistics(suspect: Suspect) -> Iterator[Change]:
    """Normalise by the statistics of the batch in place of two vectors, or by two vectors in place of the batch."""
    here = view(suspect)
    numbers = [number_of(o) for i, o in here.operations if is_epsilon(here, i)] + epsilons_there(suspect)
    epsilons = list(dict.fromkeys(x for x in numbers if x is not None))[:3] or [1e-5, 1e-3]
    vectors = [n for n in here.graph.names if (a := here.number(n)) is not None and a.ndim == 1 and a.size > 1]
    for x in [
        n for n in here.entries if (a := here.number(n)) is not None and a.ndim >= 2 and not here.is_parameter(n)
    ][:3]:
        array = here.number(x)
        if array is None or np.ptp(array) == 0:  # of zeros, any statistics give the shift
            continue
        after = [i for i in here.after([x]) if (y := here.output(i)) is not None and y.shape == array.shape]
        for channel, e in itertools.product(dict.fromkeys((array.ndim - 1, 1)), epsilons):
            batch = Norm(tuple(a for a in range(array.ndim) if a != channel), 1, False, channel, True, e)
            fits = [n for n in vectors if here.number(n).size == array.shape[channel]]  # type: ignore[union-attr]
            read_here = [n for n in fits if any(n in o.inputs or n in here.entries for _, o in here.operations)]
            for _, way in affine_forms(here, array):
                try:
                    z = way(batch(array), suspect.read, channel)
                except ValueError:
                    continue
                if z.shape == array.shape and here.found(z):
                    for i in after[::-1][:4]:
                        yield Change(
                            "norm_statistics",
                            i,
                            lambda read, w=way, b=batch, c=channel, n=x: (w(b(read(n)), read, c),),
                            "running statistics are used",
                            "statistics of the batch are used",
                            0,
                        )
            if len(read_here) < 2 and len(fits) >= 2:
                yield from _running(here, x, array, channel, e, fits, after)


def _running(
    here: View, x: int, array: NDArray, channel: int, e: float, vectors: Sequence[int], after: Sequence[int]
) -> Iterator[Change]:
    """Yield a normalisation by two vectors that this side does not use."""
    shape = [-1 if a == channel else 1 for a in range(array.ndim)]
    for m, v in itertools.permutations(vectors[:12], 2):
        variance = here.number(v)
        if variance is None or variance.min() <= 0:
            continue

        def normalised(read: Read, m: int = m, v: int = v) -> NDArray:
            mean, var = np.asarray(read(m)).reshape(shape), np.asarray(read(v)).reshape(shape)
            return (read(x) - mean) / np.sqrt(var + e)

        for _, way in affine_forms(here, array):
            try:
                z = way(normalised(here.suspect.read), here.suspect.read, channel)
            except ValueError:
                continue
            if z.shape == array.shape and here.found(z):
                for i in after[::-1][:4]:
                    yield Change(
                        "norm_statistics",
                        i,
                        lambda read, w=way, f=normalised: (w(f(read), read, channel),),
                        "statistics of the batch are used",
                        f"{here.parameter(m)} and {here.parameter(v)} are used",
                        0,
                    )

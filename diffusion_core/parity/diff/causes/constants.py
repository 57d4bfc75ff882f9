"""Causes that are a number: another one, a factor or an offset that one side lacks, a bias twice or not at all.

A factor or an offset is solved for: if the other side makes the same numbers times c, or plus c, their moments say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from diffusion_core.parity.diff.causes.change import Change, Suspect, cause
from diffusion_core.parity.diff.causes.view import Moments, View, shown, view
from diffusion_core.parity.diff.recording import Operation

_ARITHMETIC = ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "modulo", "floor_divide")
_COMPARE = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
_PASSING = (
    "reshape",
    "transpose",
    "add",
    "multiply",
    "divide",
    "subtract",
    "where",
    "cast",
    "expand",
    "identity",
    "clip",
)
_ROOTS = ("sqrt", "rsqrt")
# The number with which an operation does nothing, and the kind of a cause that leaves it out.
_NEUTRAL = {"add": 0.0, "subtract": 0.0, "multiply": 1.0, "divide": 1.0, "power": 1.0}
_MISSING = {
    "add": "offset",
    "subtract": "offset",
    "multiply": "factor",
    "divide": "factor",
    "power": "missing_function",
}


def number_of(operation: Operation) -> float | None:
    """Return the number that is the second operand of an operation, or None."""
    number = operation.attributes.get("scalar")
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return float(number)


def is_epsilon(here: View, i: int) -> bool:
    """Return whether an operation adds a small number for safety, or takes the maximum with one."""
    operation = here.graph.operations[i]
    number = number_of(operation)
    if getattr(operation, "role", "") == "epsilon":
        return True
    if operation.kind == "clip":
        low = operation.attributes.get("low")
        number = float(low) if isinstance(low, int | float) else None
    if operation.kind not in ("add", "maximum", "clip") or number is None or not 0 <= number <= 0.11:
        return False
    through = ("reshape", "expand", "transpose", "multiply", *_ROOTS)
    return here.leads_to(i, (*_ROOTS, "divide", "power", "reciprocal", "log"), 3, through)


def is_attention_scale(here: View, i: int) -> bool:
    """Return whether an operation scales what a softmax reads."""
    operation = here.graph.operations[i]
    if operation.kind not in ("multiply", "divide"):
        return False
    if getattr(operation, "role", "") == "scale" and here.leads_to(i, ("softmax",), 8):
        return True
    through = (*_PASSING, "matmul", "einsum", "maximum")
    soft = ("softmax", "log_softmax", "exp")
    if not here.leads_to(i, soft, 7, through):
        return False
    matmul = ("matmul", "einsum")
    return here.comes_from(i, matmul, 3, _PASSING) or here.leads_to(i, matmul, 4, _PASSING)


def scale_words(number: float, operation: str = "multiply") -> str:
    """Say what scores are multiplied or divided by, as a root where it is one."""
    inverse = number if operation == "divide" else (1 / number if number else math.inf)
    square = inverse * inverse
    if math.isfinite(square) and abs(square - round(square)) < 1e-6 * square and 1 < round(square) <= 65536:
        root = math.isqrt(round(square))
        known = f"the root of {round(square)}"
        return f"{known} ({root})" if root * root == round(square) else known
    return shown(inverse)


def scores(here: View, i: int) -> bool:
    """Return whether an operation makes scores that a softmax reads, or is that softmax."""
    products, soft = ("matmul", "einsum"), ("softmax", "log_softmax")
    kind = here.graph.operations[i].kind
    before = kind in products or here.comes_from(i, products, 3, _PASSING)
    return before and (kind in soft or here.leads_to(i, soft, 4, _PASSING))


def is_frequency(here: View, i: int) -> bool:
    """Return whether an operation leads to a sine and a cosine, as in a timestep embedding."""
    through = (*_PASSING, "exp", "power", "divide", "reciprocal", "bias_add")
    return here.leads_to(i, ("sin",), 6, through) and here.leads_to(i, ("cos",), 6, through)


def variants(number: float) -> list[float]:
    """Return numbers that are easily taken for a number."""
    usual = [0.0, 1.0, -number, 2 * number, number / 2, number**2, number * math.sqrt(2), number / math.sqrt(2)]
    if number > 0:
        usual += [math.sqrt(number), 1 / number, 1 / math.sqrt(number)]
    usual += [number + 1, number - 1, 1 - number, 0.5, 2.0, math.pi, 2 * math.pi]
    return [x for x in dict.fromkeys(usual) if x != number and math.isfinite(x)]


# Bases of the frequencies of sinusoidal and rotary positions.
_BASES = (1e2, 1e3, 1e4, 1e5, 5e5, 1e6, 5e6)


@cause("constant", "a number in the code", "write the same number on both sides")
@cause(
    "time_embedding_frequency",
    "the frequencies of a sinusoidal embedding",
    "diffusers' downscale_freq_shift: the exponent is divided by half - 1 (shift 1) or by half (shift 0)",
)
def constant(suspect: Suspect) -> Iterator[Change]:
    """Try other numbers, those of the other side first."""
    here = view(suspect)
    for i, operation in here.operations:
        mine = number_of(operation)
        if mine is None or operation.kind not in (*_ARITHMETIC, *_COMPARE):
            continue
        if is_epsilon(here, i) or is_attention_scale(here, i):
            continue
        kind = "time_embedding_frequency" if is_frequency(here, i) else "constant"
        known = numbers_for(here, operation.kind)
        usual = [*variants(mine), *(frequencies(here, i) if kind != "constant" else [])]
        if operation.kind == "power" and operation.attributes.get("reverse"):
            usual = [*_BASES, *usual]
            kind = "time_embedding_frequency" if mine >= _BASES[0] else kind
        for number in dict.fromkeys([*known, *usual]):
            if number == mine or (number == 0 and operation.kind in ("divide", "modulo", "floor_divide")):
                continue
            neutral = number == _NEUTRAL.get(operation.kind) and not operation.attributes.get("reverse")
            yield Change(
                _MISSING[operation.kind] if neutral and kind == "constant" else kind,
                i,
                here.with_attributes(i, scalar=number),
                words_of(operation, mine),
                words_of(operation, number) if not neutral else missing_words(operation),
                0 if number in known and not neutral else 1,
            )


def numbers_for(here: View, kind: str) -> list[float]:
    """Return the numbers of the other side for an operation of a kind, also where it is written by its inverse."""
    known = here.numbers_there(kind)
    if kind in ("multiply", "divide"):
        other = "divide" if kind == "multiply" else "multiply"
        known += [1 / x for x in here.numbers_there(other) if x]
    if kind in ("add", "subtract"):
        known += [-x for x in here.numbers_there("subtract" if kind == "add" else "add")]
    return known


# What an operation does with its number; the second of two is for the number in front.
_SUBJECTS = {
    "add": ("the number added is", "the number added is"),
    "subtract": ("the number subtracted is", "the number from which it is subtracted is"),
    "multiply": ("the factor is", "the factor is"),
    "divide": ("the divisor is", "the number that is divided is"),
    "power": ("the exponent is", "the base of the power is"),
    "maximum": ("the lower bound is", "the lower bound is"),
    "minimum": ("the upper bound is", "the upper bound is"),
}
_NOUNS = {"add": "number", "subtract": "number", "multiply": "factor", "divide": "divisor", "power": "power"}


def words_of(operation: Operation, number: float) -> str:
    """Say which number an operation has."""
    usual = f"the number of the {operation.kind.replace('_', ' ')} is"
    subject = _SUBJECTS.get(operation.kind, (usual, usual))[bool(operation.attributes.get("reverse"))]
    return f"{subject} {shown(number)}"


def missing_words(operation: Operation) -> str:
    """Say that an operation with a number is not there."""
    noun = _NOUNS.get(operation.kind, operation.kind)
    return f"no {noun} is {'added' if operation.kind == 'add' else 'there'}"


def frequencies(here: View, i: int) -> list[float]:
    """Return factors of an exponent that others use for sinusoidal embeddings with as many frequencies."""
    y = here.output(i)
    if y is None or y.ndim == 0:
        return []
    half = y.shape[-1]
    steps = [n for n in (half, half - 1, 2 * half, 2 * half - 1, half / 2) if n > 0]
    found = []
    for base in (1e4, 1e5, 1e3, 500.0):
        for n in steps:
            found += [-math.log(base) / n, math.log(base) / n, base ** (-1 / n), base ** (1 / n), 1 / n, -1 / n]
        found += [base, -math.log(base), math.log(base)]
    return [*found, *map(float, steps)]


def factor(mine: Moments, theirs: Moments) -> float | None:
    """Return c if the other numbers can be c times these."""
    if mine[2] < 1e-300 or theirs[2] < 1e-300 or mine[5] or theirs[5]:
        return None
    for sign in (1.0, -1.0):
        c = sign * theirs[2] / mine[2]
        low, high = (mine[3], mine[4]) if sign > 0 else (mine[4], mine[3])
        wanted = np.array([c * mine[0], abs(c) * mine[1], abs(c) * mine[2], c * low, c * high])
        if np.abs(wanted - theirs[:5]).max() <= 1e-8 * max(abs(theirs[3]), abs(theirs[4])):
            return float(c)
    return None


def offset(mine: Moments, theirs: Moments) -> float | None:
    """Return d if the other numbers can be these plus d."""
    if mine[5] or theirs[5]:
        return None
    d = theirs[0] - mine[0]
    square = mine[2] ** 2 + 2 * d * mine[0] + d * d
    size = max(abs(theirs[3]), abs(theirs[4]), abs(d), 1e-300)
    fits = abs(mine[3] + d - theirs[3]) <= 1e-8 * size and abs(mine[4] + d - theirs[4]) <= 1e-8 * size
    return float(d) if fits and abs(square - theirs[2] ** 2) <= 1e-8 * size * size else None


def affine(mine: Moments, theirs: Moments) -> tuple[float, float] | None:
    """Return c and d if the other numbers can be c times these plus d."""
    if mine[5] or theirs[5]:
        return None
    spread, wanted = mine[4] - mine[3], theirs[4] - theirs[3]
    if spread <= 0 or wanted <= 0:
        return None
    for c in (wanted / spread, -wanted / spread):
        d = theirs[0] - c * mine[0]
        ends = sorted((c * mine[3] + d, c * mine[4] + d))
        size = max(abs(theirs[3]), abs(theirs[4]))
        square = c * c * mine[2] ** 2 + 2 * c * d * mine[0] + d * d
        if np.abs(np.array(ends) - theirs[3:5]).max() <= 1e-8 * size and abs(square - theirs[2] ** 2) <= 1e-8 * size**2:
            return float(c), float(d)
    return None


def tidy(number: float) -> float:
    """Return the number that was meant: rounded where that changes it by less than the moments can tell."""
    if number == 0 or not math.isfinite(number):
        return number
    for text in (f"{number:.6g}", f"{number:.9g}"):
        if abs(float(text) - number) <= 3e-9 * abs(number):
            return float(text)
    for power, root in ((2, math.sqrt), (1, float)):
        for value, back in ((abs(number), 1), (1 / abs(number), -1)):
            whole = round(value**power)
            if 1 <= whole <= 10**7 and abs(value**power - whole) <= 1e-8 * whole:
                return math.copysign(root(whole) ** back, number)
    for below in range(2, 1025):
        above = round(number * below)
        if above and abs(number * below - above) <= 3e-9 * abs(above) and abs(above) <= 4096:
            return above / below
    return number


@cause("factor", "a factor that one side lacks", "multiply by it on both sides or on neither")
@cause("offset", "a number that only one side adds", "add it on both sides or on neither")
@cause("affine", "a factor and an offset that one side lacks", "scale and shift on both sides or on neither")
@cause("input_scaling", "the range of the inputs", "divide by 255, or bring to -1 .. 1, on both sides or on neither")
def solved(suspect: Suspect) -> Iterator[Change]:
    """Solve for a factor and an offset between a value of this side and one of the other."""
    here = view(suspect)
    inputs = set(here.graph.record.inputs)
    for x in [*here.entries, *here.made]:
        mine, array = here.moments(x), here.number(x)
        if mine is None or array is None or array.size < 4 or mine[4] == mine[3]:
            continue
        places: list[tuple[int, int | None]] = [(here.made[x], None)] if x in here.made else []
        for i in here.readers(x):
            places += [(i, k) for k, n in enumerate(here.graph.operations[i].inputs) if n == x]
        scaling = "input_scaling" if x in inputs else ""
        seen: list[Moments] = []
        for _, theirs in here.theirs(array):
            if any(np.array_equal(theirs, other) for other in seen):
                continue
            seen.append(theirs)
            c, d, both = factor(mine, theirs), offset(mine, theirs), affine(mine, theirs)
            if c is not None and abs(c - 1) > 1e-7:
                yield from _scaled(here, places, scaling or "factor", tidy(c), 0.0)
            if d is not None and abs(d) > 1e-7 * mine[2]:
                yield from _scaled(here, places, scaling or "offset", 1.0, tidy(d))
            if both is not None and c is None and d is None and abs(both[0] - 1) + abs(both[1]) > 1e-6:
                yield from _scaled(here, places, scaling or "affine", tidy(both[0]), tidy(both[1]))


def _scaled(here: View, places: list[tuple[int, int | None]], kind: str, c: float, d: float) -> Iterator[Change]:
    """Yield a value times c plus d, where it is made and where each operation reads it."""
    parts = [f"a factor of {shown(c)} is applied"] * (c != 1) + [f"an offset of {shown(d)} is added"] * (d != 0)
    nouns = ["factor"] * (c != 1) + ["offset"] * (d != 0)

    def function(x: np.ndarray) -> np.ndarray:
        return (x * c + d).astype(x.dtype, copy=False)

    for i, position in places:
        compute = here.with_output(i, function) if position is None else here.with_input(i, position, function)
        if d == 0 and c and scores(here, i):
            yield Change(
                "attention_scale", i, compute, "scores are not scaled", f"scores are divided by {scale_words(c)}"
            )
            continue
        yield Change(kind, i, compute, f"no {' and no '.join(nouns)} is applied", " and ".join(parts), 1)


@cause("missing_bias", "a bias that one side does not add", "bias= in torch, use_bias= in Keras")
@cause(
    "doubled_bias", "a bias that is added twice", "one of two biases of torch's recurrent layers; use_bias= in Keras"
)
@cause("bias_sign", "the sign of a bias", "add it, or subtract it, on both sides")
def bias(suspect: Suspect) -> Iterator[Change]:
    """Leave a parameter that is added out, or add it once more."""
    here = view(suspect)
    for i, operation in here.operations:
        if operation.kind not in ("add", "subtract", "bias_add") or len(operation.inputs) != 2:
            continue
        for k, n in enumerate(operation.inputs):
            name = here.parameter(n)
            other = here.number(operation.inputs[1 - k])
            y = here.output(i)
            if name is None or other is None or y is None or other.shape != y.shape:
                continue
            near_by = [*here.neighbours(i, False, 2), *here.neighbours(i, True, 2)]
            twice = any(n in o.inputs and o.kind == operation.kind for o in near_by)
            yield Change(
                "doubled_bias" if twice else "missing_bias",
                i,
                lambda read, m=operation.inputs[1 - k]: (read(m),),
                f"{name} is added twice" if twice else f"{name} is added",
                f"{name} is added once" if twice else f"{name} is not added",
                0,
            )
            yield Change(
                "doubled_bias",
                i,
                here.with_input(i, k, lambda b: 2 * b),
                f"{name} is added once",
                f"{name} is added twice",
                0,
            )
            yield Change(
                "doubled_bias",
                i,
                here.with_input(i, k, lambda b: b / 2),
                f"{name} is added as it is",
                f"half of {name} is added",
            )
            yield Change(
                "bias_sign", i, here.with_input(i, k, np.negative), f"{name} is added", f"{name} is subtracted"
            )

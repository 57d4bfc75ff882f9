"""The loss and the gradients of the first training step on both sides: the same, or the same up to what?

A factor common to all gradients is the reduction of the loss, or the number of accumulated batches; one factor per
variable is clipping by the norm of each; limited elements are clipping by value; a multiple of the weights is a penalty
in the loss; no gradient at all is a frozen parameter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.alignment import Alignment
from diffusion_core.parity.diff.causes.rule_words import ADVICE, TITLES
from diffusion_core.parity.diff.causes.update_history import History, effective_gradients
from diffusion_core.parity.diff.causes.update_rules import Rule, clip_words
from diffusion_core.parity.diff.findings import Finding, Place

__all__ = ["first_gradients"]

Arrays = Mapping[str, NDArray]
# Gradients agree to so much of the largest number of a parameter, and to so much of the largest of all.
_OWN, _ALL = {8: 1e-9, 4: 1e-3}, {8: 1e-11, 4: 1e-5}


def first_gradients(
    one: History, other: History, rule_a: Rule | None, rule_b: Rule | None, parameters: Alignment, random: bool
) -> list[Finding]:
    """Compare loss and gradients of the first update; both sides have the same parameters there.

    Args:
        one, other: the histories of A and B.
        rule_a, rule_b: the rules that explain them, if any.
        parameters: the alignment.
        random: whether the passes draw random numbers, so that gradients differ by chance.
    """
    sides = [effective_gradients(h, r or Rule()) for h, r in ((one, rule_a), (other, rule_b))]
    firsts = [next((k for k, g in enumerate(side) if g), None) for side in sides]
    if firsts[0] is None or firsts[1] is None:
        return _loss(one, other) if not random else []
    found: list[Finding] = []
    if firsts[0] != firsts[1]:
        words = [
            f"parameters move at every {k + 1}. step: gradients are accumulated"
            if k
            else "parameters move at every step"
            for k in firsts
        ]
        return [_finding("gradient_accumulation", *words, 1.0, "verified")]
    first = firsts[0]
    a, b = sides[0][first], sides[1][first]
    size = min(one.size, other.size)
    pairs, found = _paired(a, b, one, other, parameters, size)
    if random:
        return found
    if not pairs:
        return found or _loss(one, other)
    top = max(float(np.max(np.abs(x), initial=0)) for pair in pairs.values() for x in pair)
    off = {n: _off(x, y, top, size) for n, (x, y) in pairs.items()}
    wrong = {n: e for n, e in off.items() if e > 0}
    if not wrong:
        return found + (_loss(one, other) if first == 0 else [])
    return [*found, _explained(pairs, wrong, one, other, rule_a, rule_b, parameters, first, size)]


def _paired(
    a: Arrays, b: Arrays, one: History, other: History, parameters: Alignment, size: int
) -> tuple[dict[str, tuple[NDArray, NDArray]], list[Finding]]:
    """Return gradients of both sides in B's layout, and parameters that only one side trains."""
    pairs, only = {}, ([], [])
    for name in other.start:
        mine, theirs = b.get(name), parameters.to_b(name, a, True)
        if mine is not None and theirs is not None:
            pairs[name] = (np.asarray(theirs, np.float64), np.asarray(mine, np.float64))
        elif parameters.to_b(name, one.start) is None or (mine is None and theirs is None):
            continue
        elif mine is None:
            only[0].append(name)
        elif all(source not in a for source in _sources(name, parameters)):
            only[1].append(name)
    found = []
    for side, names in enumerate(only):
        # A parameter that the other side never moves although it has a gradient here.
        names = [n for n in names if _moves(n, (one, other)[side], side, parameters)]
        if names:
            listed = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
            words = (f"{listed} is trained", f"{listed} has no gradient")
            pair = words if side == 0 else words[::-1]
            source = (_sources(names[0], parameters) or ("",))[0]
            found.append(_finding("frozen_parameter", *pair, 1.0, "verified", names=(source, names[0])))
    # Parameters whose gradient is all zero on one side only are frozen there as well.
    return pairs, found


def _sources(name: str, parameters: Alignment) -> tuple[str, ...]:
    derived = [s for d in parameters.derived if d.side == "b" and d.name == name for s in d.sources]
    return (*derived, *(pair.a_name for pair in parameters.of_b(name)))


def _moves(name: str, history: History, side: int, parameters: Alignment) -> bool:
    names = _sources(name, parameters) if side == 0 else (name,)
    return any(n in history.start and np.any(history.after[-1][n] != history.start[n]) for n in names)


def _off(a: NDArray, b: NDArray, top: float, size: int) -> float:
    if a.shape != b.shape:
        return np.inf
    away = float(np.max(np.abs(a - b), initial=0.0))
    own = max(float(np.max(np.abs(a), initial=0.0)), float(np.max(np.abs(b), initial=0.0)))
    return away / own if away > _OWN[size] * own + _ALL[size] * top else 0.0


def _explained(
    pairs: Mapping[str, tuple[NDArray, NDArray]],
    wrong: Mapping[str, float],
    one: History,
    other: History,
    rule_a: Rule | None,
    rule_b: Rule | None,
    parameters: Alignment,
    step: int,
    size: int,
) -> Finding:
    error = max(wrong.values())
    factors = {}
    left = 0.0
    for name, (x, y) in pairs.items():
        whole = float(np.sum(x * x))
        factors[name] = float(np.sum(x * y)) / whole if whole else 1.0
        scale = max(float(np.max(np.abs(y), initial=0)), 1e-300)
        if name in wrong:
            left = max(left, float(np.max(np.abs(y - factors[name] * x), initial=0)) / scale)
    values = np.array([factors[n] for n in pairs])
    clips = [_clip_of(h, r, step, i, pairs) for i, (h, r) in enumerate(((one, rule_a), (other, rule_b)))]
    tight = 10 * _OWN[size]
    if left < tight:
        return _scaled(values, clips, rule_a, rule_b, one, other, step, error, left)
    for i, (kind, limit) in enumerate(clips):
        if kind == "value" and all(
            np.allclose(p[i], np.clip(p[1 - i] * _inner(p, i, limit), -limit, limit), atol=tight * limit)
            for p in pairs.values()
        ):
            words = [clip_words(*clip) for clip in clips]
            return _finding("gradient_clipping", *words, error, "verified")
    penalty = _penalty(pairs, one, other, parameters, step, tight)
    if penalty is not None:
        return penalty
    if clips[0] != clips[1] and "value" in (clips[0][0], clips[1][0]):
        return _finding("gradient_clipping", *(clip_words(*clip) for clip in clips), error, "likely", left)
    worst = max(wrong, key=lambda n: wrong[n])
    words = tuple(f"the gradient of {worst} is up to {np.max(np.abs(g)):.6g}" for g in pairs[worst])
    return _finding(
        "step_gradient", *words, error, "unknown", error, (next(iter(_sources(worst, parameters)), ""), worst)
    )


def _inner(pair: tuple[NDArray, NDArray], i: int, limit: float) -> float:
    """Return the factor between the elements that are not limited."""
    free = np.abs(pair[i]) < limit * (1 - 1e-9)
    x = pair[1 - i][free]
    whole = float(np.sum(x * x))
    return float(np.sum(x * pair[i][free])) / whole if whole else 1.0


def _scaled(
    values: NDArray,
    clips: list[tuple[str, float]],
    rule_a: Rule | None,
    rule_b: Rule | None,
    one: History,
    other: History,
    step: int,
    error: float,
    left: float,
) -> Finding:
    """Explain gradients that differ by factors."""
    factor = float(np.median(values))
    reported = _loss(one, other) if abs(factor - 1) < 2e-5 and step == 0 else []
    if reported and reported[0].status == "verified":
        return reported[0]
    words = [clip_words(*clip) for clip in clips]
    if np.ptp(values) > 1e-7 * abs(factor):
        status = "verified" if clips[0] != clips[1] else "likely"
        return _finding("gradient_clipping", *words, error, status, left)
    if abs(factor - 1) < 2e-5 and any(kind == "global norm" for kind, _ in clips):
        small = ("the norm is divided by itself", "the norm plus 1e-6")
        pair = small if factor < 1 else small[::-1]
        return _finding("clip_norm_epsilon", *pair, error, "verified", left, benign=True)
    losses = [h.losses[step] for h in (one, other)]
    ratio = losses[1] / losses[0] if losses[0] else 0.0
    first_losses = tuple(f"the first loss is {loss:.8g}" for loss in losses)
    if abs(ratio - factor) < 1e-5 * abs(factor):
        return _finding(
            "loss_reduction",
            first_losses[0],
            f"{first_losses[1]}: {factor:.6g} times that, as are the gradients",
            error,
            "verified",
            left,
        )
    if step > 0:
        batches = step + 1
        for many in (float(batches), 1.0 / batches):
            if abs(factor - many) < 1e-6 * many:
                pair = ("the mean of the gradients is taken", "the sum of the gradients is taken")
                pair = pair if many > 1 else pair[::-1]
                return _finding("gradient_accumulation", *pair, error, "verified", left)
    if clips[0] != clips[1]:
        return _finding("gradient_clipping", *words, error, "verified", left)
    told = "the losses agree" if abs(ratio - 1) < 1e-6 else f"the losses differ by {ratio:.6g}"
    parts = max(factor, 1 / factor) if factor > 0 else 0.0
    if parts > 1.5 and abs(parts - round(parts)) < 1e-6 and abs(ratio - 1) < 1e-6:
        told += f", as if {parts:.0f} parts of a batch were summed on one side and averaged on the other"
    words = ("gradients as they are", f"gradients are {factor:.6g} times as large; {told}")
    return _finding("gradient_scale", *words, error, "verified", left)


def _clip_of(
    history: History, rule: Rule | None, step: int, side: int, pairs: Mapping[str, tuple[NDArray, NDArray]]
) -> tuple[str, float]:
    """Return how the gradients of a side were clipped, by the optimiser or before it received them."""
    if rule is not None and rule.clip:
        return rule.clip, rule.limit
    norms = []
    several = [g for g in history.gradients[: step + 8] if g]
    for gradients in several:
        each = [float(np.sqrt(np.sum(np.square(g, dtype=np.float64)))) for g in gradients.values()]
        norms.append(each)
    peaks = [np.concatenate([np.abs(g).reshape(-1) for g in gradients.values()]) for gradients in several]
    close = 1e-5
    highest = max(float(p.max(initial=0)) for p in peaks)
    if highest and sum(int(np.sum(p >= highest * (1 - 1e-7))) for p in peaks) > max(2, len(peaks)):
        return "value", float(f"{highest:.7g}")
    tops = [max(each) for each in norms]
    limit = max(tops)
    if limit and sum(n >= limit * (1 - close) for each in norms for n in each) > max(1, len(norms)):
        return "norm", float(f"{limit:.4g}")
    whole = [float(np.sqrt(sum(n * n for n in each))) for each in norms]
    limit = max(whole)
    round_number = abs(float(f"{limit:.3g}") - limit) < 1e-4 * limit
    repeated = len(whole) > 1 and sum(n >= limit * (1 - close) for n in whole) > 1
    if limit and (repeated or (round_number and abs(float(f"{limit:.2g}") - limit) < close * limit)):
        return "global norm", float(f"{limit:.4g}")
    return "", 0.0


def _penalty(
    pairs: Mapping[str, tuple[NDArray, NDArray]],
    one: History,
    other: History,
    parameters: Alignment,
    step: int,
    tight: float,
) -> Finding | None:
    """Find gradients that differ by a multiple of the weights."""
    rates, names = [], []
    for name, (x, y) in pairs.items():
        p = np.asarray(other.before(step)[name], np.float64)
        whole = float(np.sum(p * p))
        rate = float(np.sum((y - x) * p)) / whole if whole else 0.0
        scale = max(float(np.max(np.abs(x), initial=0)), float(np.max(np.abs(y), initial=0)))
        if np.max(np.abs(y - x - rate * p), initial=0) > tight * scale:
            return None
        if abs(rate) * np.max(np.abs(p), initial=0) > tight * scale:
            rates.append(rate)
            names.append(name)
    if not rates or np.ptp(rates) > 1e-5 * abs(rates[0]):
        return None
    rate = rates[0]
    words = ("the loss has no penalty", f"the loss has {abs(rate) / 2:.6g} times the squares of {', '.join(names[:4])}")
    pair = words if rate > 0 else words[::-1]
    return _finding("weight_decay_in_loss", *pair, abs(rate), "verified")


def _loss(one: History, other: History) -> list[Finding]:
    """Compare the first losses where the gradients agree."""
    x, y = one.losses[0], other.losses[0]
    size = max(abs(x), abs(y))
    if not size or abs(x - y) <= {8: 1e-9, 4: 1e-4}[min(one.size, other.size)] * size:
        return []
    many = max(abs(x / y), abs(y / x)) if x and y else 0.0
    if many > 1.5 and abs(many - round(many)) < 1e-7 * many:
        words = tuple(f"the first loss is {loss:.8g}" for loss in (x, y))
        words = (words[0], f"{words[1]}: a sum of {many:.0f} on one side, and a mean on the other; gradients agree")
        return [_finding("loss_reduction", *words, abs(x - y) / size, "verified")]
    words = (f"the first loss is {x:.8g}", f"the first loss is {y:.8g}, and the gradients agree")
    return [_finding("step_loss", *words, abs(x - y) / size, "unknown", 1.0)]


def _finding(
    kind: str,
    a_does: str,
    b_does: str,
    error: float,
    status: str,
    left: float = 0.0,
    names: tuple[str, str] = ("", ""),
    benign: bool = False,
) -> Finding:
    places = [Place(kind="training step", parameter=name) for name in names]
    return Finding(
        "steps", kind, status, TITLES[kind], *places, a_does, b_does, error, left, ADVICE.get(kind, ""), benign
    )

"""Causes in training steps: from the loss to the moving averages, in the order in which a step computes them.

    loss -> gradients -> accumulation and clipping -> learning rate -> update rule, weight decay -> moving averages

What an optimiser does is found on each side from its own numbers (`update_history`), so that a difference at one stage
is not mistaken for one at the next. A difference of two rules is *verified* if each explains its own side to rounding;
its error is what that one difference alone changes in A's updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.alignment import Alignment
from diffusion_core.parity.diff.causes.averages import average_findings
from diffusion_core.parity.diff.causes.rule_words import ADVICE, KINDS, TITLES, rate_words, rule_words
from diffusion_core.parity.diff.causes.step_gradients import first_gradients
from diffusion_core.parity.diff.causes.update_history import (
    EXACT,
    NEAR,
    Explained,
    History,
    Updates,
    described,
    explain_updates,
    make_history,
    predict,
)
from diffusion_core.parity.diff.causes.update_rules import FIELDS, Rule
from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.recording import Recording

__all__ = ["step_findings"]

Arrays = Mapping[str, NDArray]

# What is told although the parameters agree: the rate that an author reports, and what is not trained.
SEEN_ANYWAY = ("learning_rate", "learning_rate_schedule", "learning_rate_off_by_one", "frozen_parameter")


def step_findings(a: Recording, b: Recording, parameters: Alignment) -> list[Finding]:
    """Return where the training steps of two recordings differ, and why; the first finding is the first cause.

    Args:
        a, b: recordings with steps.
        parameters: which parameter of A is which of B.
    """
    if not a.steps or not b.steps:
        return []
    one, other = make_history(a), make_history(b)
    told_a, told_b = described(one), described(other)
    rule_a = explain_updates(one, told_b)
    rule_b = explain_updates(other, rule_a.rule if rule_a and rule_a.error < NEAR[one.size] else told_a)
    if rule_a and rule_b and rule_b.error < NEAR[one.size] <= rule_a.error:
        rule_a = explain_updates(one, rule_b.rule)
    findings: list[Finding] = []
    random = any(_random(side) for side in (a, b)) and not _same_loss(one, other)
    findings += first_gradients(one, other, rule_a and rule_a.rule, rule_b and rule_b.rule, parameters, random)
    findings += doubled(one, other, parameters)
    if rule_a and rule_b:
        findings += rates(one, rule_a, rule_b)
        findings += rules(one, other, rule_a, rule_b, parameters)
        findings += unexplained(one, other, rule_a, rule_b)
    elif not findings:
        findings += moves(one, other, parameters)
    if any(f.kind not in SEEN_ANYWAY and not f.benign for f in findings) and same_course(one, other, parameters):
        findings = [f for f in findings if f.kind in SEEN_ANYWAY or f.benign]
    findings += average_findings(a, b, one.start, other.start, parameters.to_b)
    return findings


def same_course(one: History, other: History, parameters: Alignment) -> bool:
    """Return whether losses and parameters agree to rounding at every step.

    Then the sides make the same updates, whatever an optimiser receives: one may add its weight decay to the gradient
    itself, and several optimisers may follow several rules.
    """
    if min(one.size, other.size) < 8 or len(one.after) != len(other.after):
        return False
    x, y = (np.array(side.losses, np.float64) for side in (one, other))
    if x.shape != y.shape or not np.all(np.abs(x - y) <= EXACT[8] * np.maximum(np.abs(x), np.abs(y))):
        return False
    for k, after in enumerate(other.after):
        for name, start in other.start.items():
            mine = after[name] - other.before(k)[name]
            there, theirs = (parameters.to_b(name, arrays) for arrays in (one.before(k), one.after[k]))
            if there is None or theirs is None or np.shape(theirs) != mine.shape:
                if np.any(mine):
                    return False
                continue
            noise = 8 * np.finfo(mine.dtype).eps * float(np.max(np.abs(start), initial=0))
            away = float(np.max(np.abs(mine - (theirs - there)), initial=0))
            if not away <= noise + EXACT[8] * float(np.max(np.abs(mine), initial=0)):
                return False
    return True


def _random(side: Recording) -> bool:
    """Return whether a pass in training mode draws random numbers."""
    passes = [p for name, p in side.passes.items() if name.startswith("train")]
    return any(o.kind == "random" for p in passes for o in p.operations)


def _same_loss(one: History, other: History) -> bool:
    """Return whether the first losses agree so closely that nothing random was in them."""
    x, y = one.losses[0], other.losses[0]
    return abs(x - y) <= {8: 1e-9, 4: 1e-5}[min(one.size, other.size)] * max(abs(x), abs(y))


def finding(
    kind: str,
    a_does: str,
    b_does: str,
    error: float,
    status: str,
    left: float = 0.0,
    names: tuple[str, str] = ("", ""),
    benign: bool = False,
) -> Finding:
    """Return a finding in the steps."""
    places = [Place(kind="optimiser", parameter=name) for name in names]
    title, advice = TITLES[kind], ADVICE.get(kind, "")
    return Finding("steps", kind, status, title, *places, a_does, b_does, error, left, advice, benign)


def rates(one: History, a: Explained, b: Explained) -> list[Finding]:
    """Compare the learning rates."""
    x, y = (np.array(side.rates[: min(len(a.rates), len(b.rates))]) for side in (a, b))
    largest = float(max(np.max(np.abs(x), initial=0), np.max(np.abs(y), initial=0)))
    away = np.abs(x - y) / largest if largest else np.zeros(len(x))
    exact = 1e-7 if a.solved or b.solved else 1e-12
    if one.size == 4:
        exact = 1e-3 if a.solved or b.solved else 1e-6
    if not np.any(away > exact):
        return []
    first = int(np.argmax(away > exact))
    told = tuple(rate_words(v, first) for v in (x, y))
    error = float(np.max(away))
    if error < 2e-7:
        return [finding("float32_learning_rate", *told, error, "verified", benign=True)]
    kind = "learning_rate_schedule"
    moving = np.ptp(x) > 1e-6 * largest or np.ptp(y) > 1e-6 * largest
    if len(x) > 1 and moving and (_equal(x[1:], y[:-1]) or _equal(y[1:], x[:-1])):
        kind = "learning_rate_off_by_one"
    elif np.all(x != 0) and np.all(y != 0) and np.ptp(y / x) < 1e-6 * abs(y[0] / x[0]):
        kind = "learning_rate"
    good = max(a.error, b.error) < NEAR[one.size]
    return [finding(kind, *told, error, "verified" if good else "likely")]


def _equal(x: NDArray, y: NDArray) -> bool:
    return bool(np.all(np.abs(x - y) <= 1e-6 * max(float(np.max(np.abs(x))), 1e-300)))


def rules(one: History, other: History, a: Explained, b: Explained, parameters: Alignment) -> list[Finding]:
    """Compare the update rules field by field; a field whose exchange changes no update is no difference."""
    limit = NEAR[one.size]
    explained = max(a.error, b.error)
    status = "verified" if explained < limit else "likely" if explained < 0.1 else "unknown"
    if a.rule.method != b.rule.method:
        swap = replace(b.rule, undecayed=_names_in_a(b.rule.undecayed, parameters))
        effect = difference(one, a, swap)
        return [finding("optimiser", *map(whole_words, (a.rule, b.rule)), effect, status, explained)]
    found: list[Finding] = []
    b = replace(b, rule=_like(a, b))
    for names in _groups(a.rule, b.rule):
        changes = {n: getattr(b.rule, n) for n in names}
        if "undecayed" in changes:
            changes["undecayed"] = _names_in_a(b.rule.undecayed, parameters)
        if all(changes[n] == getattr(a.rule, n) for n in names):
            continue
        effect = difference(one, a, replace(a.rule, **changes))
        if effect <= (1e-11 if one.size == 8 else EXACT[4]):
            continue
        kind = _kind(names, a.rule, b.rule)
        if _rounding(a.rule, b.rule, names):
            kind = "float32_hyper_parameters"
        benign = kind == "float32_hyper_parameters"
        words = tuple(rule_words(rule, names) for rule in (a.rule, b.rule))
        if kind == "weight_decay_exclusion":
            words = tuple(_decay_words(r.undecayed, h) for r, h in ((a.rule, one), (b.rule, other)))
        found.append(finding(kind, *words, effect, status, explained, benign=benign))
    return sorted(found, key=lambda f: f.benign)


def _like(a: Explained, b: Explained) -> Rule:
    """Return B's rule with its decay written as A's: at a constant rate, a decay with and without it are the same."""
    forms, rates = {a.rule.decay_at, b.rule.decay_at}, [r for r in b.rates if r]
    one_rate = bool(rates) and np.ptp(rates) <= 1e-6 * abs(rates[0])
    if forms != {"before", "before without rate"} or a.rule.decay == b.rule.decay or not one_rate or not a.rule.decay:
        return b.rule
    factor = 1 / rates[0] if b.rule.decay_at == "before without rate" else rates[0]
    return replace(b.rule, decay=float(f"{b.rule.decay * factor:.9g}"), decay_at=a.rule.decay_at)


def _groups(a: Rule, b: Rule) -> list[tuple[str, ...]]:
    """Return fields that are exchanged together."""
    groups: list[tuple[str, ...]] = [(name,) for name in FIELDS[a.method]]
    if a.decay and b.decay:
        groups += [("decay",), ("decay_at",), ("undecayed",)]
    else:
        groups += [("decay", "decay_at", "undecayed")]
    return [*groups, ("rounded",)]


def _rounding(a: Rule, b: Rule, names: Sequence[str]) -> bool:
    """Return whether the numbers of two rules differ as much as in float32 only."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in names if getattr(a, name) != getattr(b, name)]
    return all(
        isinstance(x, float) and isinstance(y, float) and abs(x - y) <= 2.0**-23 * max(abs(x), abs(y)) for x, y in pairs
    )


def _kind(names: Sequence[str], a: Rule, b: Rule) -> str:
    if names[0] == "decay_at":
        places = {a.decay_at, b.decay_at}
        if "gradient" in places:
            return "weight_decay_coupling"
        return "weight_decay_rate" if "before without rate" in places else "weight_decay_order"
    return KINDS[names[0]]


def whole_words(rule: Rule) -> str:
    """Say what the optimiser is."""
    return f"the optimiser is {rule_words(rule)}"


def _decay_words(undecayed: frozenset[str], history: History) -> str:
    if not undecayed:
        return "every parameter decays"
    listed = sorted(undecayed)
    return f"{', '.join(listed[:4])}{' ...' if len(listed) > 4 else ''} do not decay"


def _names_in_a(names: frozenset[str], parameters: Alignment) -> frozenset[str]:
    return frozenset(pair.a_name for pair in parameters.pairs if pair.b_name in names)


def difference(history: History, explained: Explained, rule: Rule) -> float:
    """Return how far another rule is from the one that explains a history, relative to the updates."""
    data = Updates(history)
    mine, _ = predict(explained.rule, data, explained.rates)
    theirs, _ = predict(rule, data, explained.rates)
    worst = 0.0
    for x, y, before in zip(mine, theirs, data.before, strict=True):
        away, size = data.largest(x - y), np.maximum(data.largest(x - before), data.largest(y - before))
        seen = away > 1e-13 * data.largest(before)
        worst = max(worst, float(np.max(away[seen] / size[seen], initial=0.0)))
    return worst


def doubled(one: History, other: History, parameters: Alignment) -> list[Finding]:
    """Find parameters that one side holds as a sum of two, each of which moves: the sum moves twice as far."""
    found = []
    for item in parameters.derived:
        sources, own = (one, other) if item.side == "b" else (other, one)
        if len(item.sources) != 2 or not all(s in sources.start for s in item.sources) or item.name not in own.start:
            continue
        step = next(
            (k for k in range(len(own.after)) if np.any(own.after[k][item.name] != own.before(k)[item.name])), None
        )
        if step is None or "+" not in item.words:
            continue
        move = item.compute(sources.after[step]) - item.compute(sources.before(step))
        mine = own.after[step][item.name] - own.before(step)[item.name]
        whole = float(np.sum(mine * mine))
        ratio = float(np.sum(move * mine)) / whole if whole else 1.0
        left = float(np.max(np.abs(move - ratio * mine)) / max(float(np.max(np.abs(move))), 1e-300))
        if abs(ratio - 1) < 1e-3:
            continue
        words = (
            f"{' and '.join(item.sources)} are two parameters and their sum moves {ratio:.3g} times as far",
            f"{item.name} is one parameter",
        )
        status = "verified" if abs(ratio - 2) < 1e-4 and left < NEAR[one.size] else "likely"
        if item.side == "a":
            words = words[::-1]
        found.append(finding("doubled_bias", *words, abs(ratio - 1), status, left, (item.sources[0], item.name)))
    return found[:1]


def unexplained(one: History, other: History, a: Explained, b: Explained) -> list[Finding]:
    """Say which side's updates follow no known rule."""
    words, worst = [], 0.0
    for side, history in ((a, one), (b, other)):
        if side.error > 0.01 and history.names:
            name = max(side.errors, key=lambda n: side.errors[n])
            words.append(f"the updates of {name} follow no known rule (nearest: {rule_words(side.rule)})")
            worst = max(worst, side.error)
        else:
            words.append(whole_words(side.rule))
    return [finding("optimiser_unknown", *words, worst, "unknown", worst)] if worst else []


def moves(one: History, other: History, parameters: Alignment) -> list[Finding]:
    """Compare the parameters after each step, where no rule can be found."""
    for k in range(min(len(one.after), len(other.after))):
        for name in other.start:
            start, after = parameters.to_b(name, one.before(k)), parameters.to_b(name, one.after[k])
            if start is None or after is None:
                continue
            mine, theirs = other.after[k][name] - other.before(k)[name], after - start
            size = max(float(np.max(np.abs(mine), initial=0)), float(np.max(np.abs(theirs), initial=0)))
            away = float(np.max(np.abs(mine - theirs), initial=0))
            noise = 8 * np.finfo(mine.dtype).eps * float(np.max(np.abs(start), initial=0))
            if size and away > noise + NEAR[one.size] * size:
                words = (
                    f"{name} moves by up to {np.max(np.abs(theirs)):.4g} at step {k + 1}",
                    f"{name} moves by up to {np.max(np.abs(mine)):.4g} at step {k + 1}",
                )
                return [finding("optimiser_unknown", *words, away / size, "unknown", 1.0, ("", name))]
    return []

"""What one side's optimiser read and wrote, and the rule that explains it.

A rule is found by recomputation: every update is computed again from the recorded parameters before it and the recorded
gradients, and compared with the recorded parameters after it. The hyper-parameters that the optimiser names give the
first guess; fields of the rule are then exchanged one by one as long as that explains more. So a loop written by hand
is understood as well, and a hyper-parameter that has no effect is not believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.causes.update_numbers import solve_numbers
from diffusion_core.parity.diff.causes.update_rules import FIELDS, METHODS, Rule, clipped, make_state, update
from diffusion_core.parity.diff.recording import Recording

__all__ = [
    "EXACT",
    "NEAR",
    "Explained",
    "History",
    "Updates",
    "described",
    "effective_gradients",
    "explain_updates",
    "make_history",
    "predict",
]

Arrays = dict[str, NDArray]

# Of each parameter so many elements are looked at: every rule works on each element alone, apart from norms.
_ELEMENTS = 512
# An update is explained to rounding, or up to hyper-parameters that pass through float32.
EXACT, NEAR = {8: 1e-9, 4: 2e-4}, {8: 2e-5, 4: 2e-3}


@dataclass(frozen=True)
class History:
    """The steps of one side.

    Attributes:
        start: parameters before the first step.
        gradients: as the optimiser received them, step by step; empty where it was not called.
        after: parameters after each step.
        rates: learning rates; None where unknown.
        losses: of each step.
        description: class and hyper-parameters of the optimiser.
        framework: "torch", "tensorflow", ...
        size: bytes of the numbers.
    """

    start: Arrays
    gradients: tuple[Arrays, ...]
    after: tuple[Arrays, ...]
    rates: tuple[float | None, ...]
    losses: tuple[float, ...]
    description: Mapping[str, Any]
    framework: str
    size: int = 8

    def before(self, k: int) -> Arrays:
        """Return the parameters before step k = 0, 1, ..."""
        return self.start if k == 0 else self.after[k - 1]

    @property
    def names(self) -> list[str]:
        """Names of the parameters that move or have a gradient."""
        names = [name for name in self.start if all(name in after for after in self.after)]
        return [
            name
            for name in names
            if any(name in g for g in self.gradients) or np.any(self.after[-1][name] != self.start[name])
        ]


@dataclass(frozen=True)
class Explained:
    """A rule, how much of the updates it leaves unexplained by parameter, and the learning rates it goes with."""

    rule: Rule
    errors: Mapping[str, float]
    rates: tuple[float, ...]
    solved: bool = False

    @property
    def error(self) -> float:
        """The largest error relative to the updates of a parameter."""
        return max(self.errors.values(), default=0.0)


def make_history(side: Recording) -> History:
    """Return the history of a recording with steps."""
    after = tuple({name: np.asarray(v) for name, v in step.parameters.items()} for step in side.steps)
    sizes = [v.dtype.itemsize for v in after[0].values() if v.dtype.kind == "f"]
    size = 8 if max(sizes, default=8) == 8 else 4
    order = ("float64", "train64", "float32", "train32") if size == 8 else ("float32", "train32", "float64", "train64")
    passes = [side.passes[name] for name in order if name in side.passes]
    start = {}
    for name in after[0]:
        found = next((p.values[p.parameters[name]] for p in passes if name in p.parameters), None)
        if found is not None and found.dtype.kind == "f":
            start[name] = np.asarray(found).astype(after[0][name].dtype)
    gradients = tuple({name: np.asarray(v) for name, v in step.gradients.items()} for step in side.steps)
    losses = tuple(step.loss for step in side.steps)
    rates = tuple(step.learning_rate for step in side.steps)
    return History(start, gradients, after, rates, losses, side.optimiser, side.framework.split()[0].lower(), size)


def described(history: History) -> Rule | None:
    """Return the rule that the hyper-parameters name, in the form of their framework."""
    told = _flat(history.description)
    name = str(told.get("class", "")).lower().replace("_", "")
    method = next((m for m in ("adamax", "nadam", "adam", "rmsprop", "adagrad", "lion", "sgd") if m in name), None)
    if method is None:
        return None
    keras = "torch" not in history.framework
    betas = told.get("betas") or (told.get("beta_1", 0.9), told.get("beta_2", 0.999))
    decay = float(told.get("weight_decay") or 0.0)
    decoupled = keras or "adamw" in name or method == "lion" or bool(told.get("decoupled_weight_decay"))
    clip, limit = "", 0.0
    for key, kind in (("clipnorm", "norm"), ("global_clipnorm", "global norm"), ("clipvalue", "value")):
        if told.get(key):
            clip, limit = kind, float(told[key])
    places = {"adam": "hat", "rmsprop": "inside", "adagrad": "inside"} if keras else {"adamax": "inside"}
    smoothing = told.get("rho", told.get("alpha", 0.9 if keras else 0.99))
    accumulator = told.get("initial_accumulator_value", 0.1 if keras else 0.0)
    return Rule(
        method,
        momentum=float(told.get("momentum") or 0.0),
        dampening=float(told.get("dampening") or 0.0),
        nesterov=bool(told.get("nesterov")),
        rate_inside=keras,
        beta1=float(betas[0]),
        beta2=float(smoothing if method == "rmsprop" else betas[1]),
        epsilon=float(told.get("epsilon", told.get("eps", 1e-7 if keras else 1e-8)) or 0.0),
        epsilon_at=places.get(method, "outside"),
        amsgrad=bool(told.get("amsgrad")),
        centred=bool(told.get("centered")),
        accumulator=float(accumulator or 0.0),
        decay=decay,
        decay_at="before" if decoupled else "gradient",
        clip=clip,
        limit=limit,
        every=int(told.get("gradient_accumulation_steps") or 1),
        rounded=keras,
    )


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters by name; of several groups of parameters, the largest weight decay."""
    told = dict(description)
    groups = told.get("groups") or told.get("param_groups") or ()
    for group in groups if isinstance(groups, (list, tuple)) else ():
        for key, value in group.items():
            if key == "weight_decay":
                told[key] = max(float(told.get(key) or 0.0), float(value or 0.0))
            else:
                told.setdefault(key, value)
    return told


class Updates:
    """The updates of a history as vectors: some elements of every parameter, one parameter after the other.

    Attributes:
        history: where they come from.
        names: the parameters, in order; `starts` are their first places.
        before, after: the parameters of each step.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.names = history.names
        self._most = max(8, min(_ELEMENTS, 20_000 // max(len(self.names), 1)))
        self.sizes = [self._sample(history.start[name]).size for name in self.names]
        self.starts = np.cumsum([0, *self.sizes[:-1]]) if self.names else np.zeros(0, int)
        self.before = [self._vector(history.before(k)) for k in range(len(history.after))]
        self.after = [self._vector(after) for after in history.after]
        self._effective: dict[tuple, list[tuple[NDArray, NDArray] | None]] = {}

    def _sample(self, array: NDArray) -> NDArray:
        flat = array.reshape(-1)
        return flat[:: max(1, flat.size // self._most)].astype(np.float64)

    def _vector(self, arrays: Mapping[str, NDArray]) -> NDArray:
        return np.concatenate([self._sample(arrays[name]) for name in self.names])

    def effective(self, rule: Rule) -> list[tuple[NDArray, NDArray] | None]:
        """Return the gradient of each update, and where there is one; None where there is no update."""
        key = (rule.clip, rule.limit, rule.every, rule.total)
        if key not in self._effective:
            self._effective[key] = [
                (
                    np.concatenate(
                        [
                            self._sample(g[n]) if n in g else np.zeros(m)
                            for n, m in zip(self.names, self.sizes, strict=True)
                        ]
                    ),
                    self.spread([n in g for n in self.names]),
                )
                if g
                else None
                for g in effective_gradients(self.history, rule)
            ]
        return self._effective[key]

    def spread(self, each: Sequence[bool]) -> NDArray:
        """Return one thing of each parameter at each of its elements."""
        return np.repeat(np.asarray(each), self.sizes)

    def largest(self, vector: NDArray) -> NDArray:
        """Return the largest size of the elements of each parameter."""
        return np.maximum.reduceat(np.abs(vector), self.starts)


def effective_gradients(history: History, rule: Rule) -> list[Arrays]:
    """Return what goes into the moments at each step, before weight decay: accumulated and clipped gradients."""
    result: list[Arrays] = []
    held: Arrays = {}
    for k, gradients in enumerate(history.gradients):
        if rule.every > 1:
            held = {n: held[n] + g if n in held else g for n, g in gradients.items()}
            if (k + 1) % rule.every:
                result.append({})
                continue
            gradients = {n: g if rule.total else g / rule.every for n, g in held.items()}
            held = {}
        result.append(clipped(gradients, rule.clip, rule.limit))
    return result


def predict(rule: Rule, data: Updates, rates: Sequence[float | None]) -> tuple[list[NDArray], tuple[float, ...]]:
    """Return the parameters after each step by a rule, each from the recorded ones before it, and the rates.

    A rate that is None is solved for: the update of every rule is linear in it.
    """
    state = make_state(rule, data.before[0])
    decays = data.spread([name not in rule.undecayed for name in data.names]) if rule.undecayed else True
    result: list[NDArray] = []
    used: list[float] = []
    count = 0
    for k, found in enumerate(data.effective(rule)):
        rate = rates[k] if k < len(rates) else None
        if found is None:
            result.append(data.before[k])
            used.append(0.0 if rate is None else rate)
            continue
        gradient, there = found
        p = data.before[k]
        count += 1
        if rate is None:
            zero, one = (update(rule, p, gradient, r, count, state, decays)[0] for r in (0.0, 1.0))
            along = np.where(there & np.isfinite(one - zero), one - zero, 0.0)
            whole = float(along @ along)
            rate = float(along @ (data.after[k] - zero)) / whole if whole else 0.0
        new, state = update(rule, p, gradient, rate, count, state, decays)
        result.append(np.where(there, new, p))
        used.append(rate)
    return result, tuple(used)


def errors_of(rule: Rule, data: Updates, rates: Sequence[float | None]) -> Explained:
    """Return how far a rule is from the recorded updates, by parameter, relative to the updates."""
    predicted, used = predict(rule, data, rates)
    unit = 2.0**-52 if data.history.size == 8 else 2.0**-23
    worst = np.zeros(len(data.names))
    for p, before, after in zip(predicted, data.before, data.after, strict=True):
        size = np.maximum(data.largest(after - before), data.largest(np.nan_to_num(p - before)))
        away = data.largest(np.where(np.isfinite(p), p - after, np.inf))
        away = np.maximum(away - 4 * unit * data.largest(before), 0.0)
        worst = np.maximum(worst, away / np.where(size > 0, size, 1.0))
    return Explained(rule, dict(zip(data.names, map(float, worst), strict=True)), used)


_NUMBERS: dict[str, tuple[float, ...]] = {
    "momentum": (0.0, 0.9, 0.99, 0.95, 0.5, 0.1),
    "dampening": (0.0, 0.1, 0.9),
    "beta1": (0.9, 0.0, 0.5, 0.95, 0.99, 0.8),
    "beta2": (0.999, 0.99, 0.9, 0.95, 0.98, 0.9999),
    "epsilon": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-10, 1e-12, 0.0),
    "accumulator": (0.0, 0.1, 1.0),
    "decay": (0.0, 0.01, 1e-4, 5e-4, 1e-3, 0.004, 0.05, 0.1, 2e-4),
}
_FORMS: dict[str, tuple[Any, ...]] = {
    "nesterov": (False, True),
    "rate_inside": (False, True),
    "epsilon_at": ("outside", "hat", "inside"),
    "correction": ("both", "none", "first", "second"),
    "amsgrad": (False, True),
    "centred": (False, True),
    "count_from": (1, 2),
    "decay_at": ("gradient", "before", "after", "before without rate"),
    "rounded": (False, True),
    "total": (False, True),
}


def explain_updates(history: History, told_there: Rule | None = None) -> Explained | None:
    """Return the rule that explains the recorded updates best, or None if nothing can be said.

    Args:
        history: of one side.
        told_there: the rule that the other side names, whose numbers are tried as well.
    """
    data = Updates(history)
    if not data.names or not any(history.gradients):
        return None
    told = described(history)
    rates = _usable(history.rates)
    starts = [told] if told else []
    there = replace(told_there, rounded=False, undecayed=frozenset(), clip="", every=1) if told_there else None
    starts += [there] if there else []
    starts += [Rule(m, epsilon_at="inside" if m == "adamax" else "outside") for m in METHODS]
    best: Explained | None = None
    for used in dict.fromkeys((rates, (None,) * len(rates))):
        tried = [errors_of(start, data, used) for start in dict.fromkeys(starts)]
        for found in sorted(tried, key=lambda each: (each.rule not in (told, there), _total(each))):
            found = _improved(found, data, used, told_there)
            if best is None or found.error < 0.5 * best.error:
                best = replace(found, solved=used != rates or None in rates)
            if best.error < NEAR[history.size]:
                return best
        found = _solved(best, data, used, told_there)
        if found.error < 0.5 * best.error:
            best = replace(found, solved=used != rates or None in rates)
        if best.error < NEAR[history.size]:
            return best
    return best


def _usable(rates: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if rate is None or not np.isfinite(rate) else float(rate) for rate in rates)


def _improved(found: Explained, data: Updates, rates: Sequence[float | None], there: Rule | None) -> Explained:
    """Exchange fields of a rule one by one as long as that explains more."""
    exact = EXACT[data.history.size]
    found = _decaying(found, data, rates)
    for _ in range(6):
        if found.error < exact:
            break
        better = found
        for changes in _options(found.rule, data.history, there):
            trial = _decaying(errors_of(replace(found.rule, **changes), data, rates), data, rates)
            if _total(trial) < _total(better) - 0.2:
                better = trial
        if better is found:
            break
        found = better
    return found


def _solved(found: Explained, data: Updates, rates: Sequence[float | None], there: Rule | None) -> Explained:
    """Solve for the numbers of a rule in some forms, if none of the usual ones explains the updates."""

    def residual(rule: Rule) -> NDArray | None:
        predicted, _ = predict(rule, data, rates)
        away = [
            (p - after) / data.spread(np.maximum(data.largest(after - before), 1e-300))
            for p, before, after in zip(predicted, data.before, data.after, strict=True)
        ]
        vector = np.concatenate(away)
        return vector if np.all(np.isfinite(vector)) else None

    best = found
    bases = [
        Rule(m, epsilon=1e-4, epsilon_at=at) for m, at in (("adam", "outside"), ("adam", "hat"), ("sgd", "outside"))
    ]
    bases = [replace(rule, momentum=0.9 * (rule.method == "sgd"), beta2=0.99) for rule in bases]
    likely = [found.rule, *([replace(there, undecayed=frozenset(), every=found.rule.every)] if there else [])]
    ways = ("gradient", "before")
    forms = [replace(found.rule, decay_at=at) for at in dict.fromkeys((found.rule.decay_at, *ways))]
    forms += [replace(rule, decay_at=at) for rule in bases for at in ways]
    # By a limit that is below most gradients, so that it can be solved for.
    sizes = [np.linalg.norm(gradient) for each in data.effective(Rule()) if each for gradient in each[:1]]
    limit = 0.3 * float(np.median(sizes)) if sizes else 0.0
    forms += [replace(rule, clip=kind, limit=limit) for rule in likely for kind in ("global norm", "norm") if limit]
    plain = frozenset(n for n in data.names if data.history.start[n].ndim < 2)  # what people leave out of the decay
    for rule in [r for form in forms for r in (form, *([replace(form, undecayed=plain)] if form.decay else []))]:
        trial = _decaying(errors_of(solve_numbers(rule, residual), data, rates), data, rates)
        if trial.error < 0.1 * best.error:
            best = trial
        if best.error < NEAR[data.history.size]:
            break
    return best


def _total(found: Explained) -> float:
    """Return the mean logarithm of the errors, in which progress on one parameter is progress."""
    logs = [min(np.log10(max(error, 1e-13)), 3.0) for error in found.errors.values()]
    return float(np.mean(logs)) if logs else -13.0


def _decaying(found: Explained, data: Updates, rates: Sequence[float | None]) -> Explained:
    """Leave out of the weight decay what is explained better without it."""
    if not found.rule.decay or found.error < EXACT[data.history.size]:
        return found
    every = errors_of(replace(found.rule, undecayed=frozenset()), data, rates)
    none = errors_of(replace(found.rule, undecayed=frozenset(data.names)), data, rates)
    out = frozenset(n for n in data.names if none.errors[n] < 0.1 * every.errors[n])
    if not out or len(out) == len(data.names):
        return found
    trial = errors_of(replace(found.rule, undecayed=out), data, rates)
    return trial if trial.error < found.error else found


def _options(rule: Rule, history: History, there: Rule | None) -> list[dict[str, Any]]:
    """Return other values for fields of a rule."""
    names = [*FIELDS[rule.method], "decay", "decay_at", "rounded"]
    if rule.every > 1:
        names.append("total")
    options: list[dict[str, Any]] = []
    for name in names:
        known = [getattr(there, name)] if there is not None else []
        values = [*known, *_NUMBERS.get(name, ()), *_FORMS.get(name, ())]
        options += [{name: value} for value in dict.fromkeys(values) if value != getattr(rule, name)]
    # A decay in the wrong place explains nothing, nor does an epsilon.
    decays = dict.fromkeys((*([there.decay] if there else []), *_NUMBERS["decay"]))
    options += [{"decay": d, "decay_at": at} for at in _FORMS["decay_at"] for d in decays if d and not rule.decay]
    if "epsilon" in names and "epsilon_at" in names:
        numbers = dict.fromkeys((rule.epsilon, *([there.epsilon] if there else []), *_NUMBERS["epsilon"]))
        options += [{"epsilon": e, "epsilon_at": at} for at in _FORMS["epsilon_at"][1:] for e in numbers]
    if not rule.clip:
        limits = {0.01, 0.1, 0.5, 1.0, 5.0, 10.0} | ({there.limit} if there and there.limit else set())
        kinds = ("value", "norm", "global norm")
        options += [{"clip": kind, "limit": limit} for kind in kinds for limit in sorted(limits)]
    pause = _pause(history)
    if pause > 1 and rule.every == 1 and any(history.gradients[:1]):
        options += [{"every": pause, "total": total} for total in (False, True)]
    return options


def _pause(history: History) -> int:
    """Return at which step the parameters move for the first time."""
    for k, after in enumerate(history.after):
        before = history.before(k)
        if any(np.any(before[n] != after[n]) for n in history.names):
            return k + 1
    return 1

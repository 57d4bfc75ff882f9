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

from diffusion_core.parity.diff.causes.update_rules import FIELDS, METHODS, Rule, clipped, make_state, update
from diffusion_core.parity.diff.recording import Recording

__all__ = ["Explained", "History", "described", "explain_updates", "make_history", "predict"]

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


def _sampled(array: NDArray) -> NDArray:
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // _ELEMENTS)].astype(np.float64)


class _Data:
    """A history with a sample of the elements; gradients clipped once for each way of clipping."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.names = history.names
        self.before = [{n: _sampled(history.before(k)[n]) for n in self.names} for k in range(len(history.after))]
        self.after = [{n: _sampled(after[n]) for n in self.names} for after in history.after]
        self._effective: dict[tuple, list[Arrays]] = {}

    def effective(self, rule: Rule) -> list[Arrays]:
        """Return the gradients of each update after accumulation and clipping; empty where there is no update."""
        key = (rule.clip, rule.limit, rule.every, rule.total)
        if key not in self._effective:
            found = effective_gradients(self.history, rule)
            self._effective[key] = [{n: _sampled(g) for n, g in each.items()} for each in found]
        return self._effective[key]


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


def predict(rule: Rule, data: _Data | History, rates: Sequence[float | None]) -> tuple[list[Arrays], tuple[float, ...]]:
    """Return the parameters after each step by a rule, each from the recorded ones before it, and the rates.

    A rate that is None is solved for: the update of every rule is linear in it.
    """
    data = data if isinstance(data, _Data) else _Data(data)
    states = {name: make_state(rule, data.before[0][name]) for name in data.names}
    result: list[Arrays] = []
    used: list[float] = []
    count = 0
    for k, gradients in enumerate(data.effective(rule)):
        count += bool(gradients)

        def step(name: str, rate: float, gradients: Arrays = gradients, k: int = k, count: int = count):
            return update(
                rule, data.before[k][name], gradients[name], rate, count, states[name], name not in rule.undecayed
            )

        moving = [name for name in data.names if name in gradients]
        rate = rates[k] if k < len(rates) else None
        if rate is None:
            rate = _solved(moving, step, data.after[k])
        moved = {name: step(name, rate) for name in moving}
        states.update({name: state for name, (_, state) in moved.items()})
        result.append({name: moved[name][0] if name in moved else data.before[k][name] for name in data.names})
        used.append(rate)
    return result, tuple(used)


def _solved(names: Sequence[str], step, after: Arrays) -> float:  # noqa: ANN001 - a function of name and rate
    along, whole = 0.0, 0.0
    for name in names:
        zero, one = step(name, 0.0)[0], step(name, 1.0)[0]
        direction = one - zero
        if np.all(np.isfinite(direction)):
            along += float(np.sum(direction * (after[name] - zero)))
            whole += float(np.sum(direction * direction))
    return along / whole if whole else 0.0


def errors_of(rule: Rule, data: _Data, rates: Sequence[float | None]) -> Explained:
    """Return how far a rule is from the recorded updates, by parameter, relative to the updates."""
    predicted, used = predict(rule, data, rates)
    unit = 2.0**-52 if data.history.size == 8 else 2.0**-23
    errors = {}
    for name in data.names:
        worst = 0.0
        for k in range(len(predicted)):
            p, after, before = predicted[k][name], data.after[k][name], data.before[k][name]
            moved = np.max(np.abs(after - before), initial=0.0)
            rounding = 4 * unit * np.max(np.abs(before), initial=0.0)
            size = max(moved, float(np.max(np.abs(p - before), initial=0.0)))
            away = np.max(np.abs(p - after), initial=0.0)
            away = max(float(away) - rounding, 0.0) if np.isfinite(away) else np.inf
            worst = max(worst, away / size if size > 0 else 0.0)
        errors[name] = worst
    return Explained(rule, errors, used)


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
    data = _Data(history)
    if not data.names or not any(history.gradients):
        return None
    told = described(history)
    rates = _usable(history.rates)
    starts = [told] if told else []
    starts += [replace(told_there, rounded=False)] if told_there else []
    starts += [Rule(m, epsilon_at="inside" if m == "adamax" else "outside") for m in METHODS]
    best: Explained | None = None
    for used in dict.fromkeys((rates, (None,) * len(rates))):
        for start in dict.fromkeys(starts):
            if best is not None and best.error < NEAR[history.size] and start is not told:
                continue
            found = _improved(errors_of(start, data, used), data, used, told_there)
            if best is None or found.error < 0.5 * best.error:
                best = replace(found, solved=used != rates or None in rates)
        if best is not None and best.error < NEAR[history.size]:
            return best
    return best


def _usable(rates: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(None if rate is None or not np.isfinite(rate) else float(rate) for rate in rates)


def _improved(found: Explained, data: _Data, rates: Sequence[float | None], there: Rule | None) -> Explained:
    """Exchange fields of a rule one by one as long as that explains more."""
    exact = EXACT[data.history.size]
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


def _total(found: Explained) -> float:
    """Return the mean logarithm of the errors, in which progress on one parameter is progress."""
    logs = [min(np.log10(max(error, 1e-13)), 3.0) for error in found.errors.values()]
    return float(np.mean(logs)) if logs else -13.0


def _decaying(found: Explained, data: _Data, rates: Sequence[float | None]) -> Explained:
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
    if not rule.decay:  # a decay alone may be in the wrong place for it to explain anything
        options += [{"decay": d, "decay_at": at} for d in _decays(there) for at in _FORMS["decay_at"] if d]
    if not rule.clip:
        limits = {0.01, 0.1, 0.5, 1.0, 5.0, 10.0} | ({there.limit} if there and there.limit else set())
        kinds = ("value", "norm", "global norm")
        options += [{"clip": kind, "limit": limit} for kind in kinds for limit in sorted(limits)]
    pause = _pause(history)
    if pause > 1 and rule.every == 1 and any(history.gradients[:1]):
        options += [{"every": pause, "total": total} for total in (False, True)]
    return options


def _decays(there: Rule | None) -> tuple[float, ...]:
    return tuple(dict.fromkeys((*([there.decay] if there else []), *_NUMBERS["decay"])))


def _pause(history: History) -> int:
    """Return at which step the parameters move for the first time."""
    for k, after in enumerate(history.after):
        before = history.before(k)
        if any(np.any(before[n] != after[n]) for n in history.names):
            return k + 1
    return 1

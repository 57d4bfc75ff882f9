r"""Moving averages of the weights (EMA): which rule each side follows.

    e_k = d_k e_{k-1} + (1 - d_k) x_k,      x_k = the weights after update k, or those before it

The decay d_k of every update is solved for from the recorded averages and weights; what is left shows whether the
average has this form at all. A first decay of 0 copies the weights; decays (1 + k) / (10 + k) are a warm-up;
d (1 - d^(k-1)) / (1 - d^k) is an average that starts from zero and is divided by 1 - d^k; a decay of 1 leaves the
average as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.parity.diff.findings import Finding, Place
from diffusion_core.parity.diff.recording import Recording

__all__ = ["AverageRule", "average_findings", "average_rule"]

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True)
class AverageRule:
    """The decays of an average.

    Attributes:
        decays: d_k of each update.
        source: "after" or "before": which weights go in.
        from_zero: the average starts from zero instead of the initial weights.
        left: what the form leaves unexplained, relative to the moves of the average.
    """

    decays: tuple[float, ...]
    source: str
    from_zero: bool
    left: float


def average_rule(start: Arrays, after: Sequence[Arrays], averages: Sequence[Arrays]) -> AverageRule | None:
    """Return the rule of an average, or None if there is none."""
    names = [n for n in averages[0] if n in start and all(n in a for a in (*after, *averages))]
    if not names:
        return None

    def flat(arrays: Arrays) -> NDArray:
        return np.concatenate([np.asarray(arrays[n], np.float64).reshape(-1) for n in names])

    weights, kept = [flat(a) for a in (start, *after)], [flat(a) for a in averages]
    best = None
    for from_zero in (False, True):
        for source in ("after", "before"):
            decays, left = [], 0.0
            earlier = np.zeros_like(weights[0]) if from_zero else weights[0]
            for k, average in enumerate(kept):
                x = weights[k + 1] if source == "after" else weights[k]
                span = earlier - x
                whole = float(span @ span)
                d = float(span @ (average - x)) / whole if whole > 0 else 1.0
                size = max(float(np.max(np.abs(span))), float(np.max(np.abs(average - earlier))), 1e-300)
                rounding = 16 * np.finfo(np.asarray(next(iter(averages[0].values()))).dtype).eps * np.max(np.abs(x))
                residual = float(np.max(np.abs(average - x - d * span)))
                left = max(left, max(residual - rounding, 0.0) / size)
                decays.append(d)
                earlier = average
            # An average in which each step's weights come from another source is none of this form.
            if best is None or left < 0.5 * best.left:
                best = AverageRule(tuple(decays), source, from_zero, left)
    return best


def average_findings(
    a: Recording, b: Recording, start_a: Arrays, start_b: Arrays, to_b: Callable[[str, Arrays], NDArray | None]
) -> list[Finding]:
    """Compare the moving averages of the weights on both sides."""
    has = [any(step.averages for step in side.steps) for side in (a, b)]
    if not any(has):
        return []
    if not all(has):
        words = ("a moving average of the weights is kept", "no moving average is kept")
        return [_finding("ema_missing", words if has[0] else words[::-1], 1.0, "unknown")]
    rules = []
    for side, start in ((a, start_a), (b, start_b)):
        averages = [_named(step.averages, start) for step in side.steps]
        rules.append(average_rule(start, [step.parameters for step in side.steps], averages))
    findings = _names(a, b, start_a, start_b, to_b)
    one, other = rules
    if one is None or other is None:
        return findings
    limit = 1e-9 if next(iter(a.steps[0].averages.values())).dtype.itemsize == 8 else 1e-4
    wide = max(limit, 1e-5)
    same = [abs(x - y) <= wide for x, y in zip(one.decays, other.decays, strict=False)]
    if (one.source, one.from_zero) == (other.source, other.from_zero) and all(same):
        exact = all(abs(x - y) <= 1e-9 for x, y in zip(one.decays, other.decays, strict=False))
        if not exact and limit < 1e-6 and max(one.left, other.left) < limit:
            words = tuple(_words(rule) for rule in rules)
            error = max(abs(x - y) for x, y in zip(one.decays, other.decays, strict=False))
            findings.append(_finding("ema_rounding", words, error, "verified", True))
        return findings
    status = (
        "verified" if max(one.left, other.left) < wide else "likely" if max(one.left, other.left) < 0.1 else "unknown"
    )
    kind = _kind(one, other)
    first = same.index(False) if False in same else 0
    words = tuple(_words(rule) for rule in rules)
    error = abs(one.decays[first] - other.decays[first]) or 1.0
    return [*findings, _finding(kind, words, error, status)]


def _named(averages: Arrays, start: Arrays) -> dict[str, NDArray]:
    """Return averages by the names of the parameters, which they may have with a prefix."""
    named = {}
    for name, array in averages.items():
        short = next((n for n in start if n == name), None)
        short = short or next((n for n in start if name.endswith(("." + n, "/" + n))), None)
        if short:
            named[short] = array
    if not named and len(averages) == len(start):
        shapes = [np.shape(x) for x in averages.values()] == [np.shape(x) for x in start.values()]
        named = dict(zip(start, averages.values(), strict=True)) if shapes else {}
    return named


def _kind(one: AverageRule, other: AverageRule) -> str:
    if one.source != other.source:
        return "ema_off_by_one"
    if one.from_zero != other.from_zero:
        return "ema_start"
    a, b = np.array(one.decays), np.array(other.decays)
    if any(np.any(np.abs(d - 1) < 1e-9) and np.any(np.abs(d - 1) > 1e-9) for d in (a, b)):
        return "ema_interval"
    if (abs(a[0]) < 1e-9) != (abs(b[0]) < 1e-9) and np.allclose(a[1:], b[1:], atol=1e-5):
        return "ema_start"
    zeros = [int(np.argmax(np.abs(d) > 1e-9)) for d in (a, b)]
    if zeros[0] != zeros[1] and _flat(a[zeros[0] :]) and _flat(b[zeros[1] :]):
        return "ema_start"
    if len(a) > 2 and not _flat(a) and (np.allclose(a[1:], b[:-1], atol=1e-5) or np.allclose(b[1:], a[:-1], atol=1e-5)):
        return "ema_off_by_one"
    if _flat(a[1:]) != _flat(b[1:]):
        return "ema_warmup"
    return "ema_start" if zeros[0] != zeros[1] else "ema_decay"


def _flat(decays: NDArray) -> bool:
    return bool(np.ptp(decays) < 1e-5) if len(decays) else True


def _words(rule: AverageRule) -> str:
    decays = np.array(rule.decays)
    start = "starts from zero" if rule.from_zero else "starts from the initial weights"
    if abs(decays[0]) < 1e-9 and not rule.from_zero:
        copies = int(np.argmax(np.abs(decays) > 1e-9)) if np.any(np.abs(decays) > 1e-9) else len(decays)
        start = "copies the weights at the first update" if copies == 1 else f"copies the weights for {copies} updates"
        decays = decays[copies:]
    told = (
        f"decay {decays[0]:.6g}"
        if len(decays) and _flat(decays)
        else "decays " + ", ".join(f"{d:.4g}" for d in decays[:4])
    )
    when = "" if rule.source == "after" else ", and takes the weights before the update"
    return f"the average {start}, {told}{when}"


def _names(
    a: Recording, b: Recording, start_a: Arrays, start_b: Arrays, to_b: Callable[[str, Arrays], NDArray | None]
) -> list[Finding]:
    """Find parameters that only one side averages."""
    kept_a, kept_b = (_named(s.steps[-1].averages, t) for s, t in ((a, start_a), (b, start_b)))
    names = [n for n in start_b if to_b(n, start_a) is not None]
    only_a = [n for n in names if n not in kept_b and to_b(n, kept_a) is not None]
    only_b = [n for n in names if n in kept_b and to_b(n, kept_a) is None]
    if not kept_a or not kept_b or not (only_a or only_b):
        return []
    listed = ", ".join((only_a or only_b)[:4])
    words = (f"{listed} has an average", f"{listed} has none")
    return [_finding("ema_which", words if only_a else words[::-1], 1.0, "verified")]


TITLES = {
    "ema_missing": "a moving average of the weights",
    "ema_which": "which weights are averaged",
    "ema_rounding": "the decay of the moving average in float32",
    "ema_off_by_one": "which update or which weights the moving average starts with",
    "ema_start": "the start of the moving average",
    "ema_interval": "how often the moving average is updated",
    "ema_warmup": "the warm-up of the moving average",
    "ema_decay": "the decay of the moving average",
}
_ADVICE = (
    "write e = d e + (1 - d) p after each update; torch's AveragedModel and Keras's use_ema copy the weights at the "
    "first one"
)


def _finding(kind: str, words: Sequence[str], error: float, status: str, benign: bool = False) -> Finding:
    place = Place(kind="moving average")
    return Finding("steps", kind, status, TITLES[kind], place, place, words[0], words[1], error, 0.0, _ADVICE, benign)

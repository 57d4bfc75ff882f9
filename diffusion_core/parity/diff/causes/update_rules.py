r"""Update rules of optimisers, as the frameworks and hand-written loops really compute them.

With the gradient g (clipped, accumulated), the parameter p, the learning rate r and the number k = 1, 2, ... of the
update, a `Rule` is one of

    sgd        v <- mu v + (1 - dampening) g             p <- p - r v         (the rate outside the velocity: torch)
               v <- mu v - r g                           p <- p + v           (the rate inside: Keras)
    adam       m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
               p <- p - r m/c1 / (sqrt(v)/sqrt(c2) + eps)                     eps outside (torch)
               p <- p - r sqrt(c2)/c1 m / (sqrt(v) + eps)                     "epsilon hat" (Keras)
               p <- p - r m/c1 / sqrt(v/c2 + eps)                             eps inside the root
    rmsprop    v <- b2 v + (1 - b2) g^2,  u = g / (sqrt(v) + eps) or g / sqrt(v + eps); momentum as for sgd
    adagrad    v <- v + g^2,              u likewise
    adamax     u <- max(b2 u, |g|)        lion, nadam: as published

where c1 = 1 - b1^k and c2 = 1 - b2^k are the bias corrections. Weight decay w is added to the gradient (coupled) or
taken from the parameter (decoupled), before or after the step, times the rate or not.

References:
    Adam: A Method for Stochastic Optimization (Kingma & Ba, 2014), https://arxiv.org/abs/1412.6980
    On the Convergence of Adam and Beyond (Reddi et al., 2018), https://arxiv.org/abs/1904.09237
    Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2017), https://arxiv.org/abs/1711.05101
    Symbolic Discovery of Optimization Algorithms (Chen et al., 2023), https://arxiv.org/abs/2302.06675
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIELDS", "METHODS", "Rule", "clipped", "clip_words", "make_state", "update"]

METHODS = ("sgd", "adam", "rmsprop", "adagrad", "adamax", "nadam", "lion")

# The fields of a rule that mean something for each method, besides decay and clipping.
FIELDS = {
    "sgd": ("momentum", "dampening", "nesterov", "rate_inside"),
    "adam": ("beta1", "beta2", "epsilon", "epsilon_at", "correction", "amsgrad", "count_from"),
    "rmsprop": ("beta2", "epsilon", "epsilon_at", "centred", "momentum", "rate_inside"),
    "adagrad": ("epsilon", "epsilon_at", "accumulator"),
    "adamax": ("beta1", "beta2", "epsilon", "epsilon_at"),
    "nadam": ("beta1", "beta2", "epsilon"),
    "lion": ("beta1", "beta2"),
}


@dataclass(frozen=True)
class Rule:
    """What an optimiser does with a gradient; see the module.

    Attributes:
        method: one of `METHODS`.
        momentum, dampening, nesterov: of sgd and rmsprop.
        rate_inside: the learning rate is inside the velocity.
        beta1, beta2: decays of the moments; beta2 is also that of rmsprop.
        epsilon, epsilon_at: the number, and "outside", "hat" or "inside".
        correction: which moments are corrected: "both", "first", "second" or "none".
        amsgrad: the largest second moment so far is used.
        centred: rmsprop subtracts the square of the mean gradient.
        accumulator: what adagrad starts from.
        count_from: the number k of the first update in the bias corrections.
        decay, decay_at: weight decay: "gradient", "before", "after" (both times the rate) or "before without rate".
        undecayed: names of parameters that do not decay.
        clip, limit: what is limited within the optimiser: "", "value", "norm" (of each variable) or "global norm".
        every, total: gradients of so many steps make one update; their sum instead of their mean.
        rounded: betas pass through float32, as in Keras.
    """

    method: str = "sgd"
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    rate_inside: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    epsilon_at: str = "outside"
    correction: str = "both"
    amsgrad: bool = False
    centred: bool = False
    accumulator: float = 0.0
    count_from: int = 1
    decay: float = 0.0
    decay_at: str = "gradient"
    undecayed: frozenset[str] = frozenset()
    clip: str = ""
    limit: float = 0.0
    every: int = 1
    total: bool = False
    rounded: bool = False


State = dict[str, NDArray]


def make_state(rule: Rule, parameter: NDArray) -> State:
    """Return the state of a parameter before the first update."""
    zero = np.zeros_like(parameter)
    return {"m": zero, "v": zero + rule.accumulator if rule.method == "adagrad" else zero, "top": zero, "mean": zero}


def clipped(gradients: Mapping[str, NDArray], kind: str, limit: float) -> dict[str, NDArray]:
    """Return gradients limited in one of the ways of `Rule.clip`."""
    if kind == "value":
        return {name: np.clip(g, -limit, limit) for name, g in gradients.items()}
    if not kind:
        return dict(gradients)
    norms = {name: float(np.sqrt(np.sum(np.square(g, dtype=np.float64)))) for name, g in gradients.items()}
    if kind == "global norm":
        whole = float(np.sqrt(sum(norm**2 for norm in norms.values())))
        norms = dict.fromkeys(norms, whole)
    return {name: g * (limit / norms[name]) if norms[name] > limit else g for name, g in gradients.items()}


def clip_words(kind: str, limit: float) -> str:
    """Say how gradients are clipped."""
    words = {
        "": "gradients are not clipped",
        "value": "each number of a gradient is clipped to {:g}",
        "norm": "the gradient of each variable is clipped to the norm {:g}",
        "global norm": "gradients are clipped to the global norm {:g}",
    }
    return words[kind].format(limit)


def update(
    rule: Rule, p: NDArray, g: NDArray, rate: float, k: int, state: State, decays: bool | NDArray = True
) -> tuple[NDArray, State]:
    """Return a parameter and its state after update number k = 1, 2, ... with a clipped gradient.

    `decays` says whether the parameter decays, or which of its elements do.
    """
    if not rule.decay:
        return _STEPS[rule.method](rule, p, g, rate, k, state)
    decay = np.where(decays, rule.decay, 0.0)
    if rule.decay_at == "gradient":
        g = g + decay * p
    if rule.decay_at == "before":
        p = p - p * decay * rate
    if rule.decay_at == "before without rate":
        p = p - p * decay
    new, state = _STEPS[rule.method](rule, p, g, rate, k, state)
    if rule.decay_at == "after":
        new = new - new * decay * rate
    return new, state


def _sgd(rule: Rule, p: NDArray, g: NDArray, rate: float, k: int, state: State) -> tuple[NDArray, State]:
    if not rule.momentum:
        return p - rate * g, state
    return _with_momentum(rule, p, g, rate, k, state)


def _with_momentum(rule: Rule, p: NDArray, u: NDArray, rate: float, k: int, state: State) -> tuple[NDArray, State]:
    """Move along a velocity; `u` is the gradient or what rmsprop makes of it."""
    mu = float(np.float32(rule.momentum)) if rule.rounded else rule.momentum
    if rule.rate_inside:
        velocity = mu * state["m"] - rate * u
        move = mu * velocity - rate * u if rule.nesterov else velocity
        return p + move, {**state, "m": velocity}
    velocity = u if k == 1 and rule.method == "sgd" else mu * state["m"] + (1 - rule.dampening) * u
    move = u + mu * velocity if rule.nesterov else velocity
    return p - rate * move, {**state, "m": velocity}


def _adam(rule: Rule, p: NDArray, g: NDArray, rate: float, k: int, state: State) -> tuple[NDArray, State]:
    m = state["m"] + (1 - rule.beta1) * (g - state["m"])
    v = state["v"] + (1 - rule.beta2) * (g * g - state["v"])
    top = np.maximum(state["top"], v) if rule.amsgrad else v
    c1, c2 = _corrections(rule, k + rule.count_from - 1)
    with np.errstate(all="ignore"):
        if rule.epsilon_at == "hat":
            new = p - rate * np.sqrt(c2) / c1 * m / (np.sqrt(top) + rule.epsilon)
        elif rule.epsilon_at == "inside":
            new = p - rate / c1 * m / np.sqrt(top / c2 + rule.epsilon)
        else:
            new = p - rate / c1 * m / (np.sqrt(top) / np.sqrt(c2) + rule.epsilon)
    return new, {**state, "m": m, "v": v, "top": top}


def _corrections(rule: Rule, k: int) -> tuple[float, float]:
    b1, b2 = (float(np.float32(b)) if rule.rounded else b for b in (rule.beta1, rule.beta2))
    first = 1 - b1**k if rule.correction in ("both", "first") else 1.0
    second = 1 - b2**k if rule.correction in ("both", "second") else 1.0
    return first, second


def _adaptive(rule: Rule, p: NDArray, g: NDArray, rate: float, k: int, state: State) -> tuple[NDArray, State]:
    """Take a step of rmsprop or adagrad."""
    mean = state["mean"]
    if rule.method == "adagrad":
        v = state["v"] + g * g
    else:
        v = rule.beta2 * state["v"] + (1 - rule.beta2) * g * g
        mean = rule.beta2 * mean + (1 - rule.beta2) * g
    under = v - mean * mean if rule.centred else v
    with np.errstate(all="ignore"):
        root = np.sqrt(under + rule.epsilon) if rule.epsilon_at == "inside" else np.sqrt(under) + rule.epsilon
        u = g / root
    state = {**state, "v": v, "mean": mean}
    return _with_momentum(rule, p, u, rate, k, state) if rule.momentum else (p - rate * u, state)


def _adamax(rule: Rule, p: NDArray, g: NDArray, rate: float, k: int, state: State) -> tuple[NDArray, State]:
    m = rule.beta1 * state["m"] + (1 - rule.beta1) * g
    inside = rule.epsilon if rule.epsilon_at == "inside" else 0.0
    v = np.maximum(rule.beta2 * state["v"], np.abs(g) + inside)
    correction, _ = _corrections(rule, k)
    return p - rate * m / (correction * (v + (rule.epsilon - inside))), {**state, "m": m, "v": v}


def _nadam(rule: Rule, p: NDArray, g: NDArray, rate: float, k: int, state: State) -> tuple[NDArray, State]:
    m = rule.beta1 * state["m"] + (1 - rule.beta1) * g
    v = rule.beta2 * state["v"] + (1 - rule.beta2) * g * g
    mus = [rule.beta1 * (1 - 0.5 * 0.96 ** (i * 0.004 if not rule.rounded else i)) for i in range(1, k + 2)]
    now, following = float(np.prod(mus[:-1])), float(np.prod(mus))
    step = mus[-1] * m / (1 - following) + (1 - mus[-2]) * g / (1 - now)
    new = p - rate * step / (np.sqrt(v / (1 - rule.beta2**k)) + rule.epsilon)
    return new, {**state, "m": m, "v": v}


def _lion(rule: Rule, p: NDArray, g: NDArray, rate: float, k: int, state: State) -> tuple[NDArray, State]:
    new = p - rate * np.sign(rule.beta1 * state["m"] + (1 - rule.beta1) * g)
    return new, {**state, "m": rule.beta2 * state["m"] + (1 - rule.beta2) * g}


_STEPS = {
    "sgd": _sgd,
    "adam": _adam,
    "rmsprop": _adaptive,
    "adagrad": _adaptive,
    "adamax": _adamax,
    "nadam": _nadam,
    "lion": _lion,
}

"""Exercises about updates of the weights: their moving average, and Adam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.optim.adam import Adam, adam_update
from diffusion_core.optim.ema import ema_update as core_ema_update
from duet.exercises.definition import Solution, add, distance, normal

Array = NDArray[np.float64]

_E, _P = normal("ema average", 3, 4), normal("ema weights", 3, 4)


def ema_update(average, weights, decay):
    """Return the exponential moving average of the weights after one update, with the shape of both arrays.

        average <- decay average + (1 - decay) weights

    Return a new array; average and weights stay as they are.
    """
    return core_ema_update({"w": average}, {"w": weights}, decay)["w"]


add(
    ema_update,
    title="The moving average of the weights",
    source="Ho et al., 2020, appendix B, https://arxiv.org/abs/2006.11239",
    cases={
        "decay = 0.9": {"average": _E, "weights": _P, "decay": 0.9},
        "decay = 0.25": {"average": _E, "weights": _P, "decay": 0.25},
        "decay = 0, the weights themselves": {"average": _E, "weights": _P, "decay": 0.0},
    },
    laws={
        "Where the average equals the weights, it stays.": lambda f: distance(f(_P, _P, 0.7), _P),
        "decay = 0 returns the weights, and decay = 1 the average.": lambda f: max(
            distance(f(_E, _P, 0.0), _P), distance(f(_E, _P, 1.0), _E)
        ),
        "The distance to the weights shrinks by the factor decay.": lambda f: distance(
            f(_E, _P, 0.8) - _P, 0.8 * (_E - _P)
        ),
    },
    mistakes={
        "decay_exchanged": (
            "decay and 1 - decay are exchanged: decay belongs to the average, which changes slowly.",
            lambda e, p, d: (1 - d) * e + d * p,
        ),
        "decay_of_the_average_only": (
            "The weights are added in full; they must be multiplied by 1 - decay.",
            lambda e, p, d: d * e + p,
        ),
        "decay_of_the_weights_only": (
            "The average is kept in full; it must be multiplied by decay.",
            lambda e, p, d: e + (1 - d) * p,
        ),
        "decay_twice": ("Both terms are multiplied by decay; the weights have 1 - decay.", lambda e, p, d: d * (e + p)),
        "sign": (
            "The average moves away from the weights: it is average + (1 - decay) (weights - average).",
            lambda e, p, d: e + (1 - d) * (e - p),
        ),
        "mean": ("The result is the mean of both.", lambda e, p, d: (e + p) / 2),
        "not_averaged": ("The result is the weights themselves.", lambda e, p, d: p * 1.0),
        "unchanged": ("The average does not change.", lambda e, p, d: e * 1.0),
    },
)


def adam_step(p, g, m, v, k, lr, beta1, beta2, eps, weight_decay):
    """Return the parameters and both moments after update k of Adam with decoupled weight decay: (p, m, v).

        p <- p - lr weight_decay p
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr m_hat / (sqrt(v_hat) + eps),      m_hat = m / (1 - beta1^k),   v_hat = v / (1 - beta2^k)

    p, the gradient g, m and v are arrays of one shape; k = 1, 2, ... counts the updates, and the rest are numbers. The
    moments that are returned are m and v without correction. Return new arrays.
    """
    adam = Adam(beta1, beta2, eps, weight_decay, clip=None)
    updated = adam_update(adam, {"w": p}, {"w": m}, {"w": v}, {"w": g}, k, lr, frozenset(["w"]))
    return tuple(arrays["w"] for arrays in updated)


def _adam(
    step: Callable[..., Array] = lambda m, v, c1, c2, eps: m / c1 / (np.sqrt(v / c2) + eps),
    count: Callable[[int], int] = lambda k: k,
    square: Callable[[Array], Array] = np.square,
    decay: str = "decoupled",
    moments: Callable[..., tuple[Array, Array]] | None = None,
    kept: Callable[..., tuple[Array, Array]] = lambda m, v, c1, c2: (m, v),
    sign: float = -1.0,
) -> Solution:
    """Return an update with one thing changed."""

    def solution(p, g, m, v, k, lr, beta1, beta2, eps, weight_decay):
        if decay == "gradient":
            g = g + weight_decay * p
        elif decay == "gradient subtracted":
            g = g - weight_decay * p
        if moments:
            m, v = moments(m, v, g, beta1, beta2)
        else:
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * square(g)
        c1, c2 = 1 - beta1 ** count(k), 1 - beta2 ** count(k)
        if decay == "decoupled":
            p = p * (1 - lr * weight_decay)
        elif decay == "without lr":
            p = p * (1 - weight_decay)
        elif decay == "growth":
            p = p * (1 + lr * weight_decay)
        new = p + sign * lr * step(m, v, c1, c2, eps)
        if decay == "after":
            new = new * (1 - lr * weight_decay)
        return (new, *kept(m, v, c1, c2))

    return solution


def _adam_case(k: int, weight_decay: float, scale: float = 1.0, shape: tuple[int, ...] = (3, 2)) -> dict:
    m = 0.2 * normal(f"adam m {k}", *shape) * (k > 1)
    v = 0.2 * normal(f"adam v {k}", *shape) ** 2 * (k > 1)
    return {
        "p": normal("adam p", *shape), "g": scale * normal(f"adam g {k}", *shape), "m": m, "v": v, "k": k, "lr": 0.1,
        "beta1": 0.9, "beta2": 0.99, "eps": 0.05, "weight_decay": weight_decay,
    }  # fmt: skip


_FIRST = {**_adam_case(1, 0.0), "eps": 1e-8}

add(
    adam_step,
    title="One update of Adam, with decoupled weight decay (AdamW)",
    source="Kingma & Ba, 2014, https://arxiv.org/abs/1412.6980; Loshchilov & Hutter, 2017, https://arxiv.org/abs/1711.05101",
    cases={
        "the first update, k = 1": _adam_case(1, 0.3),
        "update k = 4": _adam_case(4, 0.3),
        "update k = 20 without weight decay": _adam_case(20, 0.0),
    },
    laws={
        "The first update from zero moments has the length lr in every number, against the gradient.": lambda f: (
            distance(f(*_FIRST.values())[0] - _FIRST["p"], -0.1 * np.sign(_FIRST["g"]))
        ),
        "Weight decay multiplies p by 1 - lr weight_decay, whatever the gradient's size.": lambda f: distance(
            f(*_adam_case(4, 0.3).values())[0] - f(*_adam_case(4, 0.0).values())[0], -0.03 * _FIRST["p"]
        ),
        "Without gradient and moments, only weight decay acts.": lambda f: distance(
            f(_P, 0 * _P, 0 * _P, 0 * _P, 3, 0.1, 0.9, 0.99, 0.05, 0.5)[0], 0.95 * _P
        ),
    },
    mistakes={
        "correction_forgotten": (
            "The moments are not corrected: m_hat = m / (1 - beta1^k), v_hat = v / (1 - beta2^k).",
            _adam(lambda m, v, c1, c2, eps: m / (np.sqrt(v) + eps)),
        ),
        "first_correction_forgotten": (
            "m is not corrected: m_hat = m / (1 - beta1^k).",
            _adam(lambda m, v, c1, c2, eps: m / (np.sqrt(v / c2) + eps)),
        ),
        "second_correction_forgotten": (
            "v is not corrected: v_hat = v / (1 - beta2^k).",
            _adam(lambda m, v, c1, c2, eps: m / c1 / (np.sqrt(v) + eps)),
        ),
        "correction_counts_from_zero": (
            "The correction has the power k - 1; updates count from 1, so it is k.",
            _adam(count=lambda k: k - 1),
        ),
        "correction_one_too_late": (
            "The correction has the power k + 1; k counts from 1 already.",
            _adam(count=lambda k: k + 1),
        ),
        "correction_without_power": (
            "The correction is 1 - beta at every update; it is 1 - beta^k.",
            _adam(count=lambda k: 1),
        ),
        "eps_under_the_root": (
            "eps is added under the root; it is added to the root, sqrt(v_hat) + eps.",
            _adam(lambda m, v, c1, c2, eps: m / c1 / np.sqrt(v / c2 + eps)),
        ),
        "eps_inside_the_correction": (
            "eps is added before the correction, as Keras does: sqrt(v) + eps; here it is sqrt(v_hat) + eps.",
            _adam(lambda m, v, c1, c2, eps: m * np.sqrt(c2) / c1 / (np.sqrt(v) + eps)),
        ),
        "eps_forgotten": ("eps is missing.", _adam(lambda m, v, c1, c2, eps: m / c1 / np.sqrt(v / c2))),
        "root_forgotten": (
            "m_hat is divided by v_hat; it must be the square root.",
            _adam(lambda m, v, c1, c2, eps: m / c1 / (v / c2 + eps)),
        ),
        "gradient_not_squared": ("v averages g; it must average g^2.", _adam(square=lambda g: g), _adam(square=np.abs)),
        "betas_exchanged": (
            "The betas are exchanged: beta1 belongs to m and beta2 to v.",
            _adam(moments=lambda m, v, g, b1, b2: (b2 * m + (1 - b2) * g, b1 * v + (1 - b1) * g * g)),
        ),
        "one_minus_beta_exchanged": (
            "beta and 1 - beta are exchanged in the moments: beta belongs to the old value.",
            _adam(moments=lambda m, v, g, b1, b2: ((1 - b1) * m + b1 * g, (1 - b2) * v + b2 * g * g)),
        ),
        "sign": ("The step is added; it goes against the gradient.", _adam(sign=1.0)),
        "decay_in_the_gradient": (
            "Weight decay is added to the gradient (L2 regularisation), so Adam rescales it; decoupled decay acts on "
            "p alone.",
            _adam(decay="gradient"),
        ),
        "decay_without_lr": ("p decays by weight_decay; it must be lr weight_decay.", _adam(decay="without lr")),
        "decay_after_the_step": (
            "Weight decay acts on the parameters after the step; it acts on those before it.",
            _adam(decay="after"),
        ),
        "decay_sign": ("Weight decay makes the weights grow: its sign is reversed.", _adam(decay="growth")),
        "decay_forgotten": ("Weight decay is missing.", _adam(decay="none")),
        "corrected_moments_returned": (
            "The corrected moments are returned; m and v themselves are kept for the next update.",
            _adam(kept=lambda m, v, c1, c2: (m / c1, v / c2)),
        ),
    },
)

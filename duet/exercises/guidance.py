"""Exercises about guidance: the guided prediction, and the labels that are dropped in training for it."""

from __future__ import annotations

import numpy as np

from diffusion_core.sampling.guidance import convert
from duet.exercises.definition import add, distance, normal

_X, _EPS = normal("guidance conditional", 2, 3, 2), normal("guidance unconditional", 2, 3, 2)


def guidance(conditional, unconditional, w):
    """Return the guided prediction of classifier-free guidance, with the shape of both predictions.

        guided = unconditional + w (conditional - unconditional)

    w = 0 is unconditional, w = 1 is conditional, and w > 1 guides.
    """
    w = float(convert(w, "from_null"))
    return unconditional + w * (conditional - unconditional)


_GUIDED = {"conditional": _X, "unconditional": _EPS}

add(
    guidance,
    title="Classifier-free guidance",
    source="Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598; the convention of Saharia et al., 2022",
    cases={
        "w = 3": {**_GUIDED, "w": 3.0},
        "w = 0.25": {**_GUIDED, "w": 0.25},
        "w = 1, no guidance": {**_GUIDED, "w": 1.0},
    },
    laws={
        "w = 1 returns the conditional prediction.": lambda f: distance(f(_X, _EPS, 1.0), _X),
        "w = 0 returns the unconditional prediction.": lambda f: distance(f(_X, _EPS, 0.0), _EPS),
        "Where both predictions agree, nothing changes.": lambda f: distance(f(_X, _X, 4.0), _X),
    },
    mistakes={
        "weight_convention": (
            "The weight is that of the other convention, (1 + w) conditional - w unconditional, where w = 0 means no "
            "guidance; here w = 1 does.",
            lambda c, u, w: (1 + w) * c - w * u,
        ),
        "sign": (
            "The sign of the guidance is reversed: it must lead from the unconditional towards the conditional "
            "prediction.",
            lambda c, u, w: u - w * (c - u),
        ),
        "exchanged": (
            "The conditional and the unconditional prediction are exchanged.",
            lambda c, u, w: c + w * (u - c),
        ),
        "added": (
            "The conditional prediction itself is added; it must be its difference from the unconditional one.",
            lambda c, u, w: u + w * c,
        ),
        "unconditional_ignored": ("The unconditional prediction is ignored.", lambda c, u, w: w * c),
        "average": (
            "The result is a mean with w/2 of each; the weights must add up to 1.",
            lambda c, u, w: w * (c + u) / 2,
        ),
    },
)


def label_dropout(labels, u, p, null_label):
    """Return the labels with some replaced by "no class", whole numbers with shape (B,).

    Label i becomes null_label where u[i] < p, and stays where not. labels are whole numbers with shape (B,), u holds
    uniform random numbers in [0, 1) with shape (B,), p is the probability, and null_label is a whole number.
    """
    return np.where(np.asarray(u) < p, null_label, labels)


_LABELS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
_U = np.array([0.1, 0.7, 0.4, 0.9, 0.2, 0.6, 0.3, 0.8])

add(
    label_dropout,
    title="Label dropout, for classifier-free guidance",
    source="Ho & Salimans, 2022, algorithm 1, https://arxiv.org/abs/2207.12598",
    cases={
        "p = 0.25, the third u is p itself": {
            "labels": _LABELS,
            "u": np.array([0.125, 0.5, 0.25, 0.875, 0.0625, 0.75, 0.1875, 0.5]),
            "p": 0.25,
            "null_label": 10,
        },
        "p = 0.75": {
            "labels": _LABELS,
            "u": np.array([0.9, 0.1, 0.8, 0.3, 0.6, 0.2, 0.97, 0.5]),
            "p": 0.75,
            "null_label": 12,
        },
        "p = 0": {
            "labels": _LABELS,
            "u": np.array([0.0, 0.1, 0.8, 0.3, 0.6, 0.2, 0.97, 0.5]),
            "p": 0.0,
            "null_label": 10,
        },
    },
    laws={
        "p = 0 keeps every label.": lambda f: distance(f(_LABELS, _U, 0.0, 10), _LABELS),
        "p = 1 drops every label.": lambda f: distance(f(_LABELS, _U, 1.0, 10), 10),
        "Every image is decided by its own u.": lambda f: distance(
            f(_LABELS[::-1].copy(), _U[::-1].copy(), 0.5, 10), np.asarray(f(_LABELS, _U, 0.5, 10))[::-1]
        ),
    },
    mistakes={
        "kept_for_dropped": (
            "p is used as the probability to keep a label; it is that of dropping it.",
            lambda labels, u, p, null: np.where(u < p, labels, null),
            lambda labels, u, p, null: np.where(u > p, null, labels),
        ),
        "whole_batch": (
            "One random number decides for the whole batch; every image has its own u.",
            lambda labels, u, p, null: np.where(u[0] < p, null, labels) + 0 * labels,
        ),
        "zero_for_no_class": (
            "Dropped labels become 0, which is a class; they must become null_label.",
            lambda labels, u, p, null: np.where(u < p, 0, labels),
        ),
        "minus_one_for_no_class": (
            "Dropped labels become -1; they must become null_label.",
            lambda labels, u, p, null: np.where(u < p, -1, labels),
        ),
        "equal_counts_too": (
            "Labels with u = p are dropped too; u < p is asked for, so that p = 0 drops none.",
            lambda labels, u, p, null: np.where(u <= p, null, labels),
        ),
        "removed": (
            "The dropped labels are removed from the batch; they must be replaced.",
            lambda labels, u, p, null: labels[u >= p],
        ),
        "null_added": (
            "null_label is added to the dropped labels; it must replace them.",
            lambda labels, u, p, null: labels + null * (u < p),
        ),
        "always": ("Every label is dropped.", lambda labels, u, p, null: np.full_like(labels, null)),
        "never": ("No label is dropped.", lambda labels, u, p, null: labels.copy()),
    },
)

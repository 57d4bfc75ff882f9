"""The ladder notices mistakes in the blocks, the network and the training of EDM2, as other code makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.reference import losses
from diffusion_core.networks import Program, lower
from diffusion_core.networks.blocks import SiLU
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.normalisation import normalise, normalise_weights
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.ladder import check

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]

CASES = {case.name: case for case in cases.BLOCKS}
Fault = Callable[[Program, Weights], tuple[Program, Weights]]


def block(kind: str, change: Callable[[Any], Any]) -> Fault:
    """Another block for the first of a kind."""

    def fault(program: Program, weights: Weights) -> tuple[Program, Weights]:
        at = next(i for i, node in enumerate(program.nodes) if node.kind == kind)
        nodes = list(program.nodes)
        nodes[at] = replace(nodes[at], block=change(nodes[at].block))
        return replace(program, nodes=tuple(nodes)), weights

    return fault


def option(kind: str, **options: Any) -> Fault:
    return block(kind, lambda old: replace(old, **options))


def weight(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """Other weights where a name has a part."""
    return lambda program, weights: (program, {n: change(v) if part in n else v for n, v in weights.items()})


def as_q_k_v(rows: np.ndarray) -> np.ndarray:
    """Rows (head, channel, qkv) where the layer holds q, then k, then v."""
    return rows.reshape(3, 2, 4, *rows.shape[1:]).transpose(1, 2, 0, *range(3, rows.ndim + 2)).reshape(rows.shape)


BLOCKS: dict[str, tuple[str, Fault]] = {
    "no eps in a weight": ("MPConv 1x1, large eps", option("MPConv", eps=0.0)),
    "eps beside the sum of squares": ("PixelNorm, MPSiLU", option("PixelNorm", eps=0.1**2)),
    "a gain of 1": ("MPConv 3x3 with a gain", weight("gain", np.ones_like)),
    "SiLU without its divisor": ("PixelNorm, MPSiLU", block("MPSiLU", lambda old: SiLU())),
    "shares swapped in a sum": ("MPSum, Clip", option("MPSum", t=0.7)),
    "another bound": ("MPSum, Clip", option("Clip", bound=0.7 + 1e-9)),
    "shares swapped in a concatenation": ("MPConcat, WithConstant", option("MPConcat", t=0.6)),
    "a constant of 1 for 1.5": ("MPConcat, WithConstant", option("WithConstant", value=1.0)),
    "q, k and v in blocks": ("MPAttention", weight("pre.", as_q_k_v)),
    "one head for two": ("MPAttention", option("MPAttention", heads=1)),
    "phases of sines": ("MPFourier, MPLinear with a gain", weight("phases", lambda v: v - np.pi / 2)),
    "frequencies without 2 pi": ("MPFourier, MPLinear with a gain", weight("frequencies", lambda v: v / (2 * np.pi))),
    "a label of size 1": ("OneHot, MPLinear, MPGate", option("OneHot", scale=1.0)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_rung_2_notices(exact, name):
    case, fault = CASES[BLOCKS[name][0]], BLOCKS[name][1]
    weights = cases.scattered_weights(case.program)
    batch = cases.noise_batch(case.program, case.shape)
    assert rungs.forward_error(exact, case.program, weights, batch) < 1e-14
    other, other_weights = fault(case.program, weights)
    got = exact.network(other, other_weights).forward(batch.images, batch.c_noise, batch.label, batch.features)
    wanted = reference.forward(case.program, weights, batch.images, batch.c_noise, batch.label, batch.features)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert not check(2, name, "float64", "this", "block", error).passed


def test_rung_2_notices_a_training_pass_at_the_weights_themselves(exact, monkeypatch):
    case = CASES["MPConv 1x1, large eps"]
    weights, batch = cases.scattered_weights(case.program), cases.noise_batch(case.program, case.shape)
    assert max(rungs.training_errors(exact, case.program, weights, batch).values()) < 1e-14
    monkeypatch.setattr(losses, "normalise_weights", lambda weights, rules: dict(weights))
    assert min(rungs.training_errors(exact, case.program, weights, batch).values()) > 1e-3


SPEC = cases.NETWORKS["EDM2"]
NETWORKS = {
    "a clip of 256": {"clip": 256.0}, "balances of 0.5": {"residual_balance": 0.5}, "the mean for the filter":
    {"resample_filter": (1.0, 1.0)}, "the class as strong as the noise level": {"label_balance": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_rung_3_notices(exact, name):
    program, told = lower(SPEC), lower(replace(SPEC, **NETWORKS[name]))
    weights, batch = cases.scattered_weights(program), cases.noise_batch(program, SPEC.image_shape)
    error = rungs.forward_error(exact, told, weights, batch, expected=program)
    assert not check(3, name, "float64", "this", "network", error).passed


def whole(weights: Weights, rules: dict[str, float]) -> Weights:
    """Normalise each array as a whole instead of each row."""
    return {n: normalise(w, tuple(range(w.ndim)), rules[n]) if n in rules else w for n, w in weights.items()}


FORMULAS: dict[str, Callable[[Weights, dict[str, float]], Weights]] = {
    "none": normalise_weights,
    "no normalisation": lambda weights, rules: weights,
    "normalised twice": lambda weights, rules: normalise_weights(normalise_weights(weights, rules), rules),
    "without eps": lambda weights, rules: normalise_weights(weights, dict.fromkeys(rules, 0.0)),
    "the array as a whole": whole,
    "gains too": lambda weights, rules: {
        n: w if w.ndim else np.sign(w) for n, w in normalise_weights(weights, rules).items()
    },
}


@pytest.mark.parametrize("name", FORMULAS)
def test_rung_5_notices_another_normalisation(exact, name):
    measured = trace.Trace("this", "float64")
    rungs.forced_normalisation(exact, measured, formula=FORMULAS[name])
    passed = {c.name: c.passed for c in measured.checks}
    assert passed.pop("normalised weights changed by an update that is not finite")
    assert set(passed.values()) == {name == "none"}

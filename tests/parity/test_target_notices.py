"""The ladder notices mistakes in targets that need the network; each is one that a port of some method could make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.backend.reference.target import target_losses
from diffusion_core.backend.target import Direction, Pass, Sum, Target, Unit
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import target_cases
from diffusion_core.parity.ladder import TOLERANCES, relative

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]

CASES = {case.name: case for case in target_cases.CASES}


def changed(target: Target, name: str, change: Callable[[Any], Any]) -> Target:
    """Return the target with one step changed."""
    assert any(step.name == name for step in target.steps)
    return replace(target, steps=tuple(change(step) if step.name == name else step for step in target.steps))


def column(batch: TrainBatch, target: Target, name: str, change: Callable[[np.ndarray], np.ndarray]) -> TrainBatch:
    """Return the batch with one column changed."""
    columns = batch.columns.copy()
    columns[:, target.columns.index(name)] = change(columns[:, target.columns.index(name)])
    return replace(batch, columns=columns)


def as_given(target: Target, batch: TrainBatch) -> tuple[Target, TrainBatch]:
    return target, batch


# By case: what the backend is told instead of the target.
FAULTS: dict[str, dict[str, Callable[[Target, TrainBatch], tuple[Target, TrainBatch]]]] = {
    "consistency distillation": {
        "none": as_given,
        "the trained network for the average": lambda t, b: (
            changed(t, "target.output", lambda s: replace(s, network="trained")), b,
        ),
        "Euler's step for Heun's": lambda t, b: (
            changed(t, "x_s", lambda s: Sum("x_s", (("step.x", "x_t"), ("step.D", "taught_t")))), b,
        ),
        "c_out without the boundary": lambda t, b: (t, column(b, t, "c_out.s", lambda c: c + 0.002)),
        "the student's c_in for the teacher's": lambda t, b: (
            changed(t, "taught_s.input", lambda s: Sum(s.name, (("c_in.t", "euler"),))), b,
        ),
    },
    "sCT": {
        "none": as_given,
        "a tangent that is not normalised": lambda t, b: (
            changed(t, "tangent", lambda s: Sum(s.name, ((1.0, "g"),))), b,
        ),
        "the mean for the sum in the norm": lambda t, b: (changed(t, "tangent", lambda s: replace(s, mean=True)), b),
        "no constant beside the norm": lambda t, b: (changed(t, "tangent", lambda s: replace(s, c=0.0)), b),
        "the derivative at fixed noise": lambda t, b: (
            t, replace(b, times=b.times * np.where(np.array(t.times) == "dc_noise", 0.0, 1.0)),
        ),
        "no warm-up": lambda t, b: (
            t, column(column(b, t, "of_rate", lambda c: 2 * c), t, "of_y", lambda c: 2 * c),
        ),
        "the opposite tangent": lambda t, b: (
            changed(t, "moved", lambda s: Sum(s.name, ((1.0, "F"), (-1.0, "tangent")))), b,
        ),
        "no uncertainty": lambda t, b: (changed(t, "F", lambda s: replace(s, uncertainty=False)), b),
    },
    "MeanFlow": {
        "none": as_given,
        "r moves along with t": lambda t, b: (
            changed(t, "u", lambda s: replace(s, direction=Direction("v_guided", "dt", "zero"))), b,
        ),
        "the derivative along the velocity without guidance": lambda t, b: (
            changed(t, "u", lambda s: replace(s, direction=Direction("v", "dt", "dt"))), b,
        ),
        "plus the derivative": lambda t, b: (t, column(b, t, "length", np.negative)),
        "guidance in training mode": lambda t, b: (
            changed(t, "v_null", lambda s: replace(s, evaluation=False)), b,
        ),
        "the class for no class": lambda t, b: (changed(t, "v_null", lambda s: replace(s, null_label=False)), b),
    },
    "shortcut": {
        "none": as_given,
        "a target without bounds": lambda t, b: (
            changed(t, "two_steps", lambda s: replace(s, bounds=(-0.1, 0.1))), b,
        ),
        "the length of the whole step": lambda t, b: (
            changed(changed(t, "first.class", lambda s: replace(s, second_time="d")), "second.class",
                    lambda s: replace(s, second_time="d")), b,
        ),
        "the time of the start for the second step": lambda t, b: (
            changed(t, "second.class", lambda s: replace(s, c_noise="t")), b,
        ),
        "another image of each group for the composed one": lambda t, b: (
            t, column(b, t, "composed", lambda c: np.roll(c, 1)),
        ),
        "a network that moves in training mode": lambda t, b: (
            changed(t, "first.class", lambda s: replace(s, evaluation=False, rows=None)), b,
        ),
    },
}  # fmt: skip


def slope_error(gradients: dict[str, np.ndarray], target: Target, batch: TrainBatch) -> float:
    """Return the relative error of gradients along a direction of all weights."""
    weights = target_cases.WEIGHTS
    along = {name: np.ones_like(weight) for name, weight in weights.items()}
    ends = (
        target_losses(
            target_cases.PROGRAM, {n: w + sign * 1e-4 * along[n] for n, w in weights.items()}, batch, target,
            target_cases.AVERAGE, weights,
        )[0]
        for sign in (1, -1)
    )  # fmt: skip
    ahead, behind = (np.mean(batch.importance * end) for end in ends)
    return relative(sum(gradients[n].sum() for n in along), (ahead - behind) / 2e-4)


@pytest.mark.parametrize("name, fault", [(name, fault) for name, faults in FAULTS.items() for fault in faults])
def test_the_loss_and_its_gradient_notice_another_target(kept, name, fault):
    backend, case = kept("float64"), CASES[name]
    target, batch = case.target, case.batch(size=8)
    told, given = FAULTS[name][fault](target, batch)
    state = replace(TrainerState.fresh(target_cases.WEIGHTS, 2), averages=(target_cases.WEIGHTS, target_cases.AVERAGE))
    tensors = backend.losses.batch_tensors(given, backend.context)
    made = backend.trainer(target_cases.PROGRAM, state, Adam(), told)
    got = float(backend.own.to_array(backend.losses.target_tensors(made.networks, tensors, told)[0]))
    losses, _ = target_losses(target_cases.PROGRAM, target_cases.WEIGHTS, batch, target, target_cases.AVERAGE)
    error = relative(got, np.mean(batch.importance * losses))
    if fault == "the opposite tangent":  # whose loss is the same
        error = max(error, slope_error(made.gradients(given)[1], target, batch))
    kind = "pullback" if name in ("MeanFlow", "sCT") else "loss"
    assert (error <= TOLERANCES[kind].float64) == (fault == "none"), error


def test_every_kind_of_step_is_on_the_ladder():
    steps = [step for case in target_cases.CASES if case.name in target_cases.TRAINED for step in case.target.steps]
    passes = [step for step in steps if isinstance(step, Pass)]
    assert {step.network for step in passes} == {"trained", "average", "teacher"}
    assert any(step.direction for step in passes) and any(step.null_label for step in passes)
    assert any(isinstance(step, Sum) and step.bounds for step in steps)
    assert any(isinstance(step, Unit) for step in steps) and any(step.uncertainty for step in passes)
    assert {case.options["name"] for case in target_cases.CASES} == set(target_cases.METHODS)

"""Rung 2 notices mistakes in blocks that compute something else in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planted import (
    CASES,
    LEFT_OUT,
    Fault,
    Told,
    assert_noticed,
    batch_norm_like,
    dropout_like,
    halved,
    plant_formula,
    told_batch,
    told_block,
    told_weights,
)

from diffusion_core.backend.interface import TrainBatch, TrainerState
from diffusion_core.networks import Program
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases, rungs
from diffusion_core.parity.ladder import Check, check

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]


def told_trainer(fault: Fault) -> dict[str, Callable]:
    """A trainer of another program or of other weights."""

    def told(program: Program, state: TrainerState, *rest: Any) -> tuple:
        program, weights = fault(program, state.weights)
        return program, replace(state, weights=weights), *rest

    return {"trainer": told}


def told_step(**change: Callable[[TrainBatch], np.ndarray]) -> dict[str, Callable]:
    return {"trainer.step": lambda batch, *rest: (*told_batch(**change)(batch), *rest)}


def training_checks(backend: Any, name: str) -> dict[str, Check]:
    """The checks of rung 2 in training of one case, as `rungs.blocks` does them."""
    case, precision = CASES[name], backend.config.precision
    weights = cases.scattered_weights(case.program, case.gain)
    batch = cases.cast(cases.noise_batch(case.program, case.shape), backend.config.host_dtype)
    errors = rungs.training_errors(backend, case.program, weights, batch)
    return {what: check(2, f"{name}, {what}", precision, "this", "block", error) for what, error in errors.items()}


LOSS, MEAN, VARIANCE = "loss in training", "running mean", "running variance"
TRAINING_FAULTS: dict[str, tuple[str, dict[str, Callable], tuple[str, ...]]] = {
    "momentum as the share of the old": ("BatchNorm", told_trainer(told_block(momentum=0.99)), (MEAN, VARIANCE)),
    "momentum 0.1 for 0.5": (
        "BatchNorm, small eps, quick statistics", told_trainer(told_block(momentum=0.1)), (MEAN, VARIANCE)
    ),
    "batch norm, eps 1e-5 for 1e-3": ("BatchNorm", told_trainer(told_block(eps=1e-5)), (LOSS,)),
    "running deviation for variance": (
        "BatchNorm", told_trainer(told_weights("block.variance", np.sqrt)), (VARIANCE,)
    ),
    "a vector's running mean from 0": (
        "BatchNorm of a vector", told_trainer(told_weights("block2.mean", np.zeros_like)), (MEAN,)
    ),
    "statistics of half a batch": (
        "BatchNorm", told_step(images=halved("images"), noise=halved("noise")), (LOSS, MEAN, VARIANCE)
    ),
    "dropout left out": ("Dropout", told_trainer(LEFT_OUT), (LOSS,)),
    "dropout not rescaled": ("Dropout", told_trainer(told_weights("pre.", lambda w: 0.7 * w)), (LOSS,)),
    "probability of keeping for that of dropping": (
        "Dropout of almost all", told_trainer(told_block(rate=0.1)), (LOSS,)
    ),
    "another row": ("Dropout", told_trainer(told_block(row=0)), (LOSS,)),
    "another row for a vector": ("Dropout of a vector", told_trainer(told_block("block1", row=0)), (LOSS,)),
    "another key": ("Dropout", told_step(dropout_key=lambda b: b.dropout_key ^ 1), (LOSS,)),
    "words of the key swapped": ("Dropout", told_step(dropout_key=lambda b: b.dropout_key[::-1]), (LOSS,)),
    "positions of the next images": ("Dropout", told_step(positions=lambda b: b.positions + 1), (LOSS,)),
    "high word of a position": ("Dropout", told_step(positions=lambda b: b.positions + 2**32), (LOSS,)),
}  # fmt: skip


@pytest.mark.parametrize("name, faults, names", TRAINING_FAULTS.values(), ids=TRAINING_FAULTS)
def test_rung_2_notices_in_training(exact, name, faults, names):
    assert_noticed(training_checks(Told(exact, faults), name), *names)


@pytest.fixture(scope="module")
def stepped(exact) -> Callable[[str], Any]:
    """Return by case a backend that caches its first step, since the faults are in the reference only."""

    @cache
    def remembered(name: str) -> Any:
        case = CASES[name]
        weights = cases.scattered_weights(case.program, case.gain)
        trainer = exact.trainer(case.program, TrainerState.fresh(weights), Adam(), "mse")
        result = trainer.step(cases.noise_batch(case.program, case.shape), 0.0, (0.0,))
        state = trainer.state()
        taken = SimpleNamespace(step=lambda *_: result, state=lambda: state)
        return SimpleNamespace(config=exact.config, trainer=lambda *_: taken)

    return remembered


FORMULAS_IN_TRAINING: dict[str, tuple[str, partial, tuple[str, ...]]] = {
    "biased running variance": ("BatchNorm", partial(batch_norm_like, biased=True), (VARIANCE,)),
    "biased running variance of a vector": (
        "BatchNorm of a vector", partial(batch_norm_like, biased=True), (VARIANCE,)
    ),
    "momentum of Keras": ("BatchNorm", partial(batch_norm_like, keeps=True), (MEAN, VARIANCE)),
    "running statistics at rest": ("BatchNorm", partial(batch_norm_like, still=True), (MEAN, VARIANCE)),
    "running statistics in training": ("BatchNorm", partial(batch_norm_like, own=False), (LOSS,)),
    "running statistics of a vector in training": (
        "BatchNorm of a vector", partial(batch_norm_like, own=False), (LOSS,)
    ),
    "eps of a batch norm outside the root": ("BatchNorm", partial(batch_norm_like, eps_outside=True), (LOSS,)),
    "statistics of each image": ("BatchNorm", partial(batch_norm_like, axes=(1, 2)), (LOSS,)),
    "dropout not rescaled": ("Dropout", partial(dropout_like, rescaled=False), (LOSS,)),
    "a vector's dropout not rescaled": ("Dropout of a vector", partial(dropout_like, rescaled=False), (LOSS,)),
    "elements counted as c h w": ("Dropout", partial(dropout_like, order=(0, 3, 1, 2)), (LOSS,)),
    "elements counted as w h c": ("Dropout", partial(dropout_like, order=(0, 2, 1, 3)), (LOSS,)),
    "one mask for all images": ("Dropout", partial(dropout_like, one_mask=True), (LOSS,)),
    "whole channels dropped": ("Dropout", partial(dropout_like, whole_channels=True), (LOSS,)),
    "dropped above the rate": ("Dropout", partial(dropout_like, high=True), (LOSS,)),
    "half of them kept": ("Dropout of almost all", partial(dropout_like, rate=0.5), (LOSS,)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({name for name, _, _ in FORMULAS_IN_TRAINING.values()}))
def test_what_others_write_of_training_is_the_reference_where_nothing_is_changed(stepped, name, monkeypatch):
    for formula in (batch_norm_like, dropout_like):
        plant_formula(monkeypatch, partial(formula))
    assert all(c.passed for c in training_checks(stepped(name), name).values())


@pytest.mark.parametrize("name, formula, names", FORMULAS_IN_TRAINING.values(), ids=FORMULAS_IN_TRAINING)
def test_rung_2_notices_another_formula_in_training(stepped, name, formula, names, monkeypatch):
    plant_formula(monkeypatch, formula)
    assert_noticed(training_checks(stepped(name), name), *names)

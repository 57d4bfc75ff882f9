"""Rungs 0, 1 and 4 notice mistakes in tables, batches, losses and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted import BATCH_FAULTS, Told, assert_noticed, by, climbed, told_batch

from diffusion_core.backend import reference
from diffusion_core.backend.interface import SELF_CONDITIONING, VARIATIONAL, TrainBatch, TrainerState
from diffusion_core.diffusion.process import Columns, Process
from diffusion_core.networks import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.compare import compare_arrays
from diffusion_core.parity.ladder import check, relative

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]


def next_level_like(
    process: Process, t: np.ndarray, sound: Callable, *, to: int = 1, clean: bool = True, swapped: bool = False
) -> Columns:
    """Return the columns of a network that predicts `to` levels ahead, as other code defines them."""
    after = np.maximum(t - to, 0)
    alpha, sigma = process.schedule(after)
    if clean:
        alpha, sigma = np.where(t < to, 1.0, alpha), np.where(t < to, 0.0, sigma)
    columns = sound(process, t)
    if swapped:
        columns = replace(columns, c_skip=columns.c_out, c_out=columns.c_skip)
    return replace(columns, target_x0=alpha, target_eps=sigma)


NEXT_LEVEL_FAULTS: dict[str, dict[str, Any]] = {
    "the level itself for the next": {"to": 0}, "the level after the next": {"to": 2},
    "noise left at the end": {"clean": False}, "c_skip for c_out": {"swapped": True},
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, *NEXT_LEVEL_FAULTS.values()], ids=["none", *NEXT_LEVEL_FAULTS])
def test_rung_0_notices_other_columns_of_the_next_level(exact, options, monkeypatch):
    """The comparison that the exchange makes of tables, with faults in their NumPy."""
    sound = Process.columns

    def columns(process: Process, t: np.ndarray) -> Columns:
        if process.prediction != "next_level":
            return sound(process, t)
        return next_level_like(process, t, sound, **options)

    tables, others = trace.Trace("this", "float64"), trace.Trace("this", "float64")
    rungs.tables(exact, tables)
    monkeypatch.setattr(Process, "columns", columns)
    rungs.tables(exact, others)
    checks = {c.name: c for c in compare_arrays(tables.arrays, others.arrays, "float64", "this–this") if c.rung == 0}
    assert [name for name, c in checks.items() if not c.passed] == (["process"] if options else [])


EDM_FAULTS: dict[str, Callable[[Columns], dict[str, np.ndarray]]] = {
    "none": lambda c: {},
    "the logarithm without its quarter": lambda c: {"c_noise": 4 * c.c_noise},
    "the logarithm of base 2": lambda c: {"c_noise": c.c_noise / np.log(2)},
    "a target that is not scaled": lambda c: {"target_x0": np.ones_like(c.c_in), "c_out": np.ones_like(c.c_in)},
    "c_in off by 1e-15": lambda c: {"c_in": c.c_in * (1 + 1e-15)},
}


@pytest.mark.parametrize("fault", EDM_FAULTS.values(), ids=EDM_FAULTS)
def test_rung_0_notices_other_columns_of_edm(exact, fault, monkeypatch):
    """Tables, plans and batches all depend on these."""
    sound = Process.columns

    def columns(process: Process, t: np.ndarray) -> Columns:
        made = sound(process, t)
        return replace(made, **fault(made)) if process.prediction == "edm" else made

    tables, others = trace.Trace("this", "float64"), trace.Trace("this", "float64")
    rungs.tables(exact, tables)
    monkeypatch.setattr(Process, "columns", columns)
    rungs.tables(exact, others)
    checks = {c.name: c for c in compare_arrays(tables.arrays, others.arrays, "float64", "this–this") if c.rung == 0}
    failed = [name for name, c in checks.items() if not c.passed]
    assert failed == (["process", "batch"] if fault is not EDM_FAULTS["none"] else [])


@pytest.mark.parametrize("name", BATCH_FAULTS)
def test_rung_1_notices(exact, name):
    fault, names = BATCH_FAULTS[name]
    checks = climbed(rungs.forward_noising, exact, {"noised": fault, "trainer.gradients": fault})
    assert_noticed(checks, *names)
    if name != "alpha squared":  # that of EDM is 1
        assert_noticed(checks, *(f"{check}, EDM" for check in names))


@pytest.mark.parametrize("wanted, other", [("mse", "huber"), ("l1", "mse"), ("huber", "l1"), ("pseudo_huber", "l1")])
def test_rung_1_notices_another_distance(exact, wanted, other):
    def swap(program: Program, state: TrainerState, adam: Adam, distance: str) -> tuple:
        return program, state, adam, other if distance == wanted else distance

    checks = climbed(rungs.forward_noising, exact, {"trainer": swap})
    assert [name for name, c in checks.items() if not c.passed] == [f"loss {wanted}", f"loss {wanted}, EDM"]


def told_column(name: str, change: Callable[[np.ndarray], np.ndarray | float], field: str = "") -> Callable:
    """A batch whose column of this name, of the bound or else of self-conditioning, is another one, if it has it."""
    field = field or ("variational" if name in VARIATIONAL else "self_conditioning")
    at = {"variational": VARIATIONAL, "self_conditioning": SELF_CONDITIONING}[field].index(name)

    def fault(batch: TrainBatch) -> tuple[TrainBatch]:
        if (table := getattr(batch, field)) is not None:
            table = table.copy()
            table[:, at] = change(table[:, at])
        return (replace(batch, **{field: table}),)

    return fault


# Faults of the batch for the loss that has every part.
LOSS_FAULTS = {
    "none": lambda batch: (batch,),
    "the bound in nats": told_column("weight", by(np.log(2))),
    "the bound not times T": told_column("weight", by(0.25)),
    "a range from beta down": told_column("scale", by(-1)),
    "a range of half the width": told_column("scale", by(0.5)),
    "another variance of the posterior": told_column("offset", lambda column: column + 1e-8),
    "an error off by 1e-8": told_column("error", by(1 + 1e-8)),
    "bins of twice the width": told_column("half_bin", by(2)),
    "a divergence for the decoder": told_column("half_bin", by(0)),
    "a closed bin for black": told_column("lowest", lambda column: -2.0),
    "a closed bin for white": told_column("highest", lambda column: 2.0),
    "the importance left out": lambda batch: (replace(batch, importance=np.ones_like(batch.importance)),),
    "an estimate for every image": told_column("keep", lambda column: 1.0),
    "an estimate for none": told_column("keep", by(0)),
    "F for the estimate": told_column("c_out", lambda column: 1.0),
    "an estimate beyond white": told_column("highest", lambda column: 9.0, "self_conditioning"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_loss(exact) -> tuple[Any, TrainBatch, float]:
    """Return a trainer with learning rate 0 and the loss that has every part, its batch, and the expected result."""
    case = cases.LOSSES[-1]
    weights = cases.scattered_weights(case.program)
    trainer = exact.trainer(case.program, TrainerState.fresh(weights), Adam(), "mse")
    return trainer, case.batch, reference.loss(case.program, weights, case.batch, "mse")


@pytest.mark.parametrize("name", LOSS_FAULTS)
def test_rung_1_notices_other_losses(whole_loss, name):
    trainer, batch, wanted = whole_loss
    got = float(trainer.step(*LOSS_FAULTS[name](batch), 0.0, (0.0,)).loss)
    assert check(1, name, "float64", "this", "loss", relative(got, wanted)).passed == (name == "none")


def test_rungs_1_to_6_detect_a_missing_term_of_a_loss_or_a_network(exact):
    """Faults that no loss shows: the gradients of one record stop at another place."""
    sound = trace.Trace("this", "float64")
    case = cases.LOSSES[-1]
    rungs.losses(exact, sound, [case])
    turned = told_column("mean_gradient", lambda column: 1.0 - column)

    def certain(program: Program, *rest: Any) -> tuple:
        return replace(program, uncertainty=False), *rest

    def deaf(program: Program, weights: Weights) -> tuple[Program, Weights]:
        kernel = weights["conv0.weight"].copy()
        kernel[:, 2:] = 0.0  # the channels of the estimate
        return program, weights | {"conv0.weight": kernel}

    def brighter(x: np.ndarray, *rest: Any) -> tuple:
        return x + 1e-10, *rest

    for faults, own, compared in (
        ({"trainer.gradients": turned}, (), ("", ", worst tensor")),
        ({"network": deaf}, (", validation loss", ", given an estimate", ", DDPM-4"), ()),
        ({"network.forward": brighter}, (", validation loss", ", given an estimate"), ()),
        ({"trainer": certain}, (", loss in training", ", loss of each image"), (", loss", "", ", worst tensor")),
    ):
        other = trace.Trace("this", "float64")
        rungs.losses(Told(exact, faults), other, [case])
        assert [c.name for c in other.checks if not c.passed] == [case.name + what for what in own]
        checks = [c for c in compare_arrays(sound.arrays, other.arrays, "float64", "this–this") if case.name in c.name]
        assert [c.name for c in checks if not c.passed] == [case.name + what for what in compared]


def in_micro_batches(**change: Callable[[TrainBatch], np.ndarray]) -> Callable:
    """Change the batch if it is computed in micro-batches."""
    return lambda batch, *rest: (*(told_batch(**change)(batch) if rest[-1:] == (2,) else (batch,)), *rest)


PIECES_FAULTS = {
    "sums not shared out": in_micro_batches(importance=lambda b: 2 * b.importance),
    "the last piece alone": in_micro_batches(importance=lambda b: b.importance * (np.arange(4) // 2)),
    "pieces counted alike": in_micro_batches(importance=lambda b: np.repeat(b.importance.reshape(2, 2).mean(1), 2)),
    "dropout by the place in a piece": in_micro_batches(positions=lambda b: b.positions % 2),
}


@pytest.mark.parametrize("fault", [None, *PIECES_FAULTS.values()], ids=["none", *PIECES_FAULTS])
def test_rungs_1_and_4_notice_other_sums_of_pieces(exact, fault):
    checks = climbed(rungs.micro_batches, exact, {"trainer.gradients": fault, "trainer.step": fault} if fault else {})
    noticed = [checks[name].passed for name in ("gradients in pieces", "in pieces, loss in training")]
    assert noticed == [fault is None] * 2

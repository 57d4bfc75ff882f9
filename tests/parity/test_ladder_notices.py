"""Every rung of the ladder can fail: known mistakes are planted, and the rung's own check must report them.

A mistake is planted by telling the backend something else than the rung says: another program, another plan,
another batch. What no telling can say, such as another approximation, is said to the reference instead: that is
another formula for the block, and the difference is the same. Each mistake has cost somebody a wrong result; most
are what another library does by default.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import SELF_CONDITIONING, VARIATIONAL, TrainBatch, TrainerState
from diffusion_core.backend.reference import blocks as reference_blocks
from diffusion_core.common.random import random_words
from diffusion_core.diffusion.process import Columns, Process
from diffusion_core.networks import Node, Program, lower
from diffusion_core.networks.blocks import GELU, Add, AvgPool, GroupNorm, SiLU
from diffusion_core.networks.program import Training
from diffusion_core.networks.weights import Weights, initial_weights
from diffusion_core.optim import ema_update
from diffusion_core.optim.adam import Adam, adam_update, clip_factor, global_norm
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.compare import compare_arrays, differing
from diffusion_core.parity.ladder import Check, check, l2_of_all, relative
from diffusion_core.parity.rungs import sampling_runs
from diffusion_core.sampling import SamplerPlan
from diffusion_core.sampling.linear_operators import LinearOperator
from diffusion_core.sampling.measurement import Measurement

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]

CASES = {case.name: case for case in cases.BLOCKS}


class Told:
    """An object that changes the arguments of its methods.

    Args:
        sound: the backend, or a network or a trainer that it made.
        faults: per method, a function from the arguments as given to those that arrive, as in ``"trainer.update"``.
    """

    def __init__(self, sound: Any, faults: Mapping[str, Callable], part: str = "") -> None:
        self._sound, self._faults, self._part = sound, faults, part

    def __getattr__(self, name: str) -> Any:
        value, fault = getattr(self._sound, name), self._faults.get(self._part + name)
        if not self._part and name in ("network", "trainer"):
            return lambda *args: Told(value(*(fault(*args) if fault else args)), self._faults, f"{name}.")
        return (lambda *args: value(*fault(*args))) if fault else value


@pytest.fixture(scope="module")
def exact(kept) -> Any:
    return kept("float64")


def climbed(rung: Callable, backend: Any, faults: Mapping[str, Callable], **options: Any) -> dict[str, Check]:
    """The checks of a rung by name, measured on a backend with faults."""
    measured = trace.Trace("this", backend.config.precision)
    with np.errstate(all="ignore"):
        rung(Told(backend, faults), measured, **options)
    return {c.name: c for c in measured.checks}


def assert_noticed(checks: Mapping[str, Check], *names: str) -> None:
    for name in names:
        assert not checks[name].passed, f"{name}: {checks[name].error:.3g} <= {checks[name].tolerance:.3g}"


# Rung 0: tables


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


# Rung 1: batches


def shifted(batch: TrainBatch) -> tuple[TrainBatch]:
    """Every column of an image's neighbour."""
    columns = ("alpha", "sigma", "target_x0", "target_eps", "c_in", "c_noise", "weight", "label")
    return (replace(batch, **{name: np.roll(getattr(batch, name), 1) for name in columns}),)


def told_batch(**change: Callable[[TrainBatch], np.ndarray]) -> Callable[[TrainBatch], tuple[TrainBatch]]:
    return lambda batch: (replace(batch, **{name: f(batch) for name, f in change.items()}),)


LOSSES = tuple(f"loss {distance}" for distance in ("mse", "l1", "huber", "pseudo_huber"))
BATCH_FAULTS = {
    "target with flipped sign": (told_batch(target_eps=lambda b: -b.target_eps), ("target", *LOSSES)),
    "x_0 for eps": (
        told_batch(target_x0=lambda b: b.target_eps, target_eps=lambda b: b.target_x0), ("target", *LOSSES)
    ),
    "alpha for sigma": (told_batch(alpha=lambda b: b.sigma, sigma=lambda b: b.alpha), ("x_t", *LOSSES)),
    "the level itself for a target": (
        told_batch(target_x0=lambda b: b.alpha, target_eps=lambda b: b.sigma), ("target", *LOSSES)
    ),
    "alpha squared": (told_batch(alpha=lambda b: b.alpha**2), ("x_t", *LOSSES)),
    "sigma off by 1e-8": (told_batch(sigma=lambda b: b.sigma * (1 + 1e-8)), ("x_t", *LOSSES)),
    "columns of the neighbour": (shifted, ("x_t", *LOSSES)),
    "weight left out": (told_batch(weight=lambda b: np.ones_like(b.weight)), LOSSES),
    "c_in left out": (told_batch(c_in=lambda b: np.ones_like(b.c_in)), LOSSES),
}  # fmt: skip


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


def by(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda column: factor * column


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


# Rung 2: blocks


Fault = Callable[[Program, Weights], tuple[Program, Weights]]


def told_block(name: str = "block", **options: Any) -> Fault:
    """The block of this name with other options."""
    return told_node(name, lambda node: replace(node, block=replace(node.block, **options)))


def told_node(name: str, change: Callable[[Node], Node]) -> Fault:
    def fault(program: Program, weights: Weights) -> tuple[Program, Weights]:
        nodes = tuple(change(node) if node.name == name else node for node in program.nodes)
        assert nodes != program.nodes
        return replace(program, nodes=nodes), weights

    return fault


def told_weights(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """Change the weights whose name starts with a prefix."""

    def fault(program: Program, weights: Weights) -> tuple[Program, Weights]:
        assert any(key.startswith(name) for key in weights)
        return program, {key: change(value) if key.startswith(name) else value for key, value in weights.items()}

    return fault


def queries(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The change, made to the first third: those that give q."""
    return lambda array: np.concatenate([change(array[: len(array) // 3]), array[len(array) // 3 :]])


def interleaved(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Channels in the order of an attention whose heads are innermost."""
    order = np.arange(24).reshape(3, heads, -1).swapaxes(1, 2).reshape(-1)
    return lambda array: array[order]


def channels_first(height: int, width: int, axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """A dense layer for vectors h w c, as one for c h w would meet them."""

    def change(weight: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(weight, axis, -1)
        shaped = moved.reshape(*moved.shape[:-1], -1, height, width)
        return np.moveaxis(np.moveaxis(shaped, -3, -1).reshape(moved.shape), -1, axis)

    return change


def told_instead(name: str, block: Any) -> Fault:
    """Another block of the same parameters and inputs."""
    return told_node(name, lambda node: replace(node, block=block))


LEFT_OUT = told_node("block", lambda node: Node("block", Add(0.5), ("pre", "pre")))
STRIDED, FOUR_HEADS = "Conv 3x3 stride 2, padding (1, 1)", "Attention of 4 heads"
SIN_FIRST, COS_FIRST = "Sinusoid sin first, half - 1; Linear", "Sinusoid cos first, half; Linear without bias"
CHAIN, SUMS = "Tokens: concatenation and slices", "Tokens: sums with a vector"
SLICES = "Slice of the channels of an image and of a vector"


def across(side: int) -> Callable[[np.ndarray], np.ndarray]:
    """The rows of a table of tokens, column by column."""
    return lambda w: w.reshape(side, side, -1).swapaxes(0, 1).reshape(w.shape)


BLOCK_FAULTS: dict[str, tuple[str, Fault]] = {
    "padding (0, 1) for (1, 1)": (STRIDED, told_block(padding=(0, 1, 0, 1))),
    "padding (1, 1) for (0, 1)": ("Conv 3x3 stride 2, padding (0, 1)", told_block(padding=(1, 1, 1, 1))),
    "padding (0, 1) for (1, 0)": ("Conv 3x3 stride 2, padding (1, 0)", told_block(padding=(0, 1, 0, 1))),
    "padding (0, 2) for (1, 1)": ("Conv 4x4 stride 2, padding (1, 1)", told_block(padding=(0, 2, 0, 2))),
    "rows for columns of a kernel": ("Conv 3x3", told_weights("block.weight", lambda w: w.swapaxes(2, 3))),
    "outputs for inputs of a kernel": (STRIDED, told_weights("block.weight", lambda w: w.swapaxes(0, 1))),
    "kernel flipped": ("Conv 3x3", told_weights("block.weight", lambda w: w[:, :, ::-1, ::-1])),
    "bias left out": ("Conv 1x1", told_weights("block.bias", np.zeros_like)),
    "dense layer transposed": ("Modulate", told_weights("block1.weight", np.transpose)),
    "eps 1e-3 for 1e-5": ("GroupNorm of 8 groups", told_block(eps=1e-3)),
    "eps 1e-5 for 1e-6": ("GroupNorm of 1 group", told_block(eps=1e-5)),
    "eps through float32": ("GroupNorm of 4 groups, large eps", told_block(eps=float(np.float32(0.1)))),
    "4 groups for 8": ("GroupNorm of 8 groups", told_block(groups=4)),
    "unbiased variance": (
        "GroupNorm of 1 group", told_weights("block.weight", lambda w: w * np.sqrt(1 - 1 / (64 * 16)))
    ),
    "SiLU left out": ("SiLU", LEFT_OUT),
    "1 head for 4": (FOUR_HEADS, told_block(heads=1)),
    "2 heads for 4": (FOUR_HEADS, told_block(heads=2)),
    "logits over the root of all channels": (FOUR_HEADS, told_weights("pre.", queries(lambda w: w * np.sqrt(2 / 8)))),
    "logits not divided": ("Attention of 1 head", told_weights("pre.", queries(lambda w: w * np.sqrt(8)))),
    "k, v, q for q, k, v": ("Attention of 1 head", told_weights("pre.", lambda w: np.roll(w, 8, axis=0))),
    "heads innermost": (FOUR_HEADS, told_weights("pre.", interleaved(4))),
    "scale of a sum left out": ("Add of images, scaled", told_block(scale=1.0)),
    "scale of a sum through float32": ("Add of images, scaled", told_block(scale=float(np.float32(2.0**-0.5)))),
    "concatenated the other way": ("Concat", told_node("block", lambda node: replace(node, inputs=("x", "pre")))),
    "cos first for sin first": (SIN_FIRST, told_block("block0", sin_first=False)),
    "sin first for cos first": (COS_FIRST, told_block("block0", sin_first=True)),
    "divisor half for half - 1": (SIN_FIRST, told_block("block0", divisor=8.0)),
    "divisor half - 1 for half": (COS_FIRST, told_block("block0", divisor=7.0)),
    "frequencies through float32": (SIN_FIRST, told_block("block0", max_period=10000.0 * (1 + 1e-7))),
    "the next row of a table": ("Embedding", told_weights("block0.weight", lambda w: np.roll(w, 1, axis=0))),
    "shift, scale for scale, shift": ("Modulate", told_weights("block1.", lambda w: np.roll(w, 8, axis=0))),
    "random features, cos first for sin first": ("Fourier sin first", told_block("block0", sin_first=False)),
    "random features, sin first for cos first": ("Fourier cos first", told_block("block0", sin_first=True)),
    "random features without 2 pi": ("Fourier sin first", told_weights("block0.", lambda w: w / (2 * np.pi))),
    "random frequencies through float32": ("Fourier cos first", told_weights("block0.", lambda w: np.float32(w) * 1.0)),
    "number not scaled": ("Number", told_block("block0", scale=1.0)),
    "vector in front of the pixel": (
        "Number to every pixel", told_weights("back0.weight", partial(np.roll, shift=-1, axis=1))
    ),
    "features in another order": ("Features", told_weights("block0.weight", lambda w: w[:, ::-1])),
    "the next row of a table with zero": (
        "Embedding with zero", told_weights("block0.", lambda w: np.roll(w, 1, axis=0))
    ),
    "vector added for multiplied": ("Multiply by a vector", told_instead("join", Add(1.0))),
    "images added for multiplied": ("Multiply of images", told_instead("block", Add(1.0))),
    "transposed kernel flipped": (
        "ConvTranspose 4x4 stride 2", told_weights("block.weight", lambda w: w[:, :, ::-1, ::-1])
    ),
    "rows for columns of a transposed kernel": (
        "ConvTranspose 2x2 stride 2", told_weights("block.weight", lambda w: w.swapaxes(2, 3))
    ),
    "outputs for inputs of a transposed kernel": (
        "ConvTranspose 3x3 stride 1 without bias", told_weights("block.weight", lambda w: w.swapaxes(0, 1))
    ),
    "bias of a transposed convolution left out": (
        "ConvTranspose 4x4 stride 2", told_weights("block.bias", np.zeros_like)
    ),
    "vector norm, eps 1e-5 for 1e-3": ("LayerNorm of a vector", told_block("block2", eps=1e-5)),
    "channels of the whole image for those of a pixel": (
        "LayerNorm of channels", told_instead("block", GroupNorm(16, 1, 1e-3))
    ),
    "channels norm, eps 1e-5 for 1e-3": ("LayerNorm of channels", told_block(eps=1e-5)),
    "image norm, eps 1e-6 for 1e-5": ("LayerNorm of images", told_block(eps=1e-6)),
    "rows for columns of an image's scale": (
        "LayerNorm of images", told_weights("block.weight", lambda w: w.swapaxes(1, 2))
    ),
    "h w c for c h w of an image's shift": (
        "LayerNorm of images", told_weights("block.bias", lambda w: w.reshape(8, 8, 16).transpose(2, 0, 1))
    ),
    "batch norm, eps 1e-5 for 1e-3": ("BatchNorm", told_block(eps=1e-5)),
    "batch norm, eps 1e-3 for 1e-5": ("BatchNorm, small eps, quick statistics", told_block(eps=1e-3)),
    "running deviation for variance": ("BatchNorm", told_weights("block.variance", np.sqrt)),
    "running mean left out": ("BatchNorm", told_weights("block.mean", np.zeros_like)),
    "ReLU left out": ("ReLU", LEFT_OUT),
    "SiLU for GELU": ("GELU", told_instead("block", SiLU())),
    "GELU for ReLU": ("ReLU", told_instead("block", GELU())),
    "sigmoid left out": ("Sigmoid", LEFT_OUT),
    "q, k, v for head by head": ("Attention, head by head", told_block(order="qkv")),
    "interleaved for head by head": ("Attention, head by head", told_block(order="interleaved")),
    "head by head for interleaved": ("Attention, interleaved", told_block(order="heads")),
    "head by head for q, k, v": (FOUR_HEADS, told_block(order="heads")),
    "mean for largest": ("MaxPool", told_instead("block", AvgPool())),
    "corners in line for centres": ("Resample bilinear", told_block(rule="bilinear_corners")),
    "centres in line for corners": ("Resample bilinear, corners in line", told_block(rule="bilinear")),
    "filter not normalised": ("Resample down with a filter", told_weights("pre.", lambda w: 64 * w)),
    "filter not doubled on the way up": ("Resample up with a filter", told_weights("pre.", lambda w: w / 4)),
    "taps 1, 2, 2, 1 for 1, 3, 3, 1": ("Resample down, widened before", told_block(taps=(1.0, 2.0, 2.0, 1.0))),
    "mean for a filter": ("Resample down with a filter", told_block(taps=(0.0, 1.0, 1.0, 0.0))),
    "nearest for a filter": ("Resample up with a filter", told_block(taps=(0.0, 1.0, 1.0, 0.0))),
    "c h w for h w c of a flat image": ("Flatten, Unflatten", told_weights("back0.weight", channels_first(8, 8, 1))),
    "c h w for h w c on the way back": ("Flatten, Unflatten", told_weights("back0.", channels_first(4, 4, 0))),
    "channel slowest in a patch": ("Patchify, Unpatchify", told_weights("back0.weight", channels_first(2, 2, 1))),
    "channel slowest in a patch on the way back": (
        "Patchify, Unpatchify", told_weights("back1.weight", channels_first(2, 2, 0))
    ),
    "columns for rows of patches": ("SinePositions", told_weights("table.table", across(4))),
    "cosines before sines of a position": (
        "SinePositions", told_weights("table.table", lambda w: w.reshape(16, 2, 2, 2)[:, :, ::-1].reshape(16, 8))
    ),
    "rows before columns of a position": (
        "SinePositions", told_weights("table.table", lambda w: np.roll(w, 4, axis=1))
    ),
    "a learned position left out": (CHAIN, told_weights("table.", np.zeros_like)),
    "tokens concatenated the other way": (
        CHAIN, told_node("wide", lambda node: replace(node, inputs=node.inputs[::-1]))
    ),
    "the next tokens": (CHAIN, told_block("image", start=3)),
    "the channels before": (CHAIN, told_block("part", start=2)),
    "the channels of an image before": (SLICES, told_block("part", start=3)),
    "the channels of a vector before": (SLICES, told_block("v8", start=4)),
    "scale, shift for shift, scale": ("Modulate, shift first", told_block("join", shift_first=False)),
    "scale, shift for shift, scale of tokens": (SUMS, told_block("modulate", shift_first=False)),
    "gate added for multiplied": (SUMS, told_instead("gate", Add(1.0))),
    "scale of a sum with tokens left out": (SUMS, told_block("add", scale=1.0)),
    "exact GELU for that by tanh": ("GELU by tanh", told_block(tanh=False)),
    "exact GELU of tokens": ("Tokens: norms and activations", told_block("act", tanh=False)),
    "norm without scale and shift, eps 1e-5 for 1e-6": ("LayerNorm of channels, not affine", told_block(eps=1e-5)),
    "1 head for 2 of cross-attention": ("CrossAttention", told_block("attend", heads=1)),
    "v, k for k, v": ("CrossAttention", told_weights("kv.", lambda w: np.roll(w, 8, axis=0))),
    "head by head of tokens": ("Attention of tokens, large logits", told_block("attend", order="heads")),
}  # fmt: skip


def block_check(backend: Any, name: str, faults: Mapping[str, Callable]) -> Check:
    """The check of rung 2 of one case."""
    case, precision = CASES[name], backend.config.precision
    weights = cases.scattered_weights(case.program, case.gain)
    batch = cases.cast(cases.noise_batch(case.program, case.shape), backend.config.host_dtype)
    error = rungs.forward_error(Told(backend, faults), case.program, weights, batch)
    return check(2, name, precision, "this", f"block{case.kind}", error)


@pytest.mark.parametrize("name, fault", BLOCK_FAULTS.values(), ids=BLOCK_FAULTS)
def test_rung_2_notices(exact, name, fault):
    assert block_check(exact, name, {}).passed
    assert not block_check(exact, name, {"network": fault}).passed


FINE = {
    "eps 1e-5 for 1e-6", "eps through float32", "scale of a sum through float32", "frequencies through float32",
    "random frequencies through float32", "image norm, eps 1e-6 for 1e-5",
    "norm without scale and shift, eps 1e-5 for 1e-6",
}  # fmt: skip


@pytest.mark.parametrize("title", sorted(BLOCK_FAULTS.keys() - FINE))
def test_rung_2_notices_in_float32(kept, title):
    name, fault = BLOCK_FAULTS[title]
    assert not block_check(kept("float32"), name, {"network": fault}).passed


@pytest.mark.parametrize("name", CASES)
def test_rung_2_notices_a_hair_in_every_case(exact, name):
    """One weight with an error of 1e-9 of the largest: every case depends on the input of its block."""
    assert not block_check(exact, name, {"network": told_weights("pre.weight", hair)}).passed


def hair(array: np.ndarray, size: float = 1e-9) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[-1] += size * np.abs(array).max()
    return changed


@pytest.mark.parametrize("name", [SIN_FIRST, COS_FIRST, "Modulate", "Fourier sin first", "Number to every pixel"])
def test_rung_2_notices_a_time_shifted_by_one(exact, name):
    late = {"network.forward": lambda x, c_noise, *rest: (x, c_noise + 1, *rest)}
    assert not block_check(exact, name, late).passed


def test_rung_2_notices_a_time_in_float32_at_half_a_step(exact):
    rounded = {"network.forward": lambda x, c_noise, *rest: (x, c_noise * (1 + 2.0**-24), *rest)}
    assert not block_check(exact, SIN_FIRST, rounded).passed


INPUT_FAULTS: dict[str, tuple[str, Callable]] = {
    "features left out": ("Features", lambda x, t, label, features: (x, t, label, None)),
    "features of the neighbour": (
        "Features", lambda x, t, label, features: (x, t, label, np.roll(features, 1, axis=0))
    ),
    "the last row for no class": (
        "Embedding with zero", lambda x, t, label, features: (x, t, np.minimum(label, 3), features)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name, fault", INPUT_FAULTS.values(), ids=INPUT_FAULTS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_rung_2_notices_other_inputs(kept, name, fault, precision):
    assert not block_check(kept(precision), name, {"network.forward": fault}).passed


# Rung 2 again: blocks as other code writes them


def normalised(x: np.ndarray, axes: tuple[int, ...], eps: float, eps_outside: bool = False) -> np.ndarray:
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return centred / (np.sqrt(variance) + eps if eps_outside else np.sqrt(variance + eps))


def gelu_like(b: Any, x: np.ndarray, *, tanh: bool = False, root: float = np.sqrt(2.0)) -> np.ndarray:
    """GELU as other code writes it."""
    if tanh:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return reference_blocks._gelu(b, x * np.sqrt(2.0) / root) * root / np.sqrt(2.0)


def layer_norm_like(
    b: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, axes: tuple[int, ...] | None = None,
    eps_outside: bool = False,
) -> np.ndarray:  # fmt: skip
    """Layer normalisation as other code writes it."""
    if weight.ndim == 3:
        weight, bias = weight.transpose(1, 2, 0), bias.transpose(1, 2, 0)
    return normalised(x, axes or tuple(range(-weight.ndim, 0)), b.eps, eps_outside) * weight + bias


def batch_norm_like(
    b: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray, name: str,
    training: Training | None, *, biased: bool = False, keeps: bool = False, eps_outside: bool = False,
    own: bool | None = None, axes: tuple[int, ...] = (), still: bool = False,
) -> np.ndarray:  # fmt: skip
    """Batch normalisation as other code writes it."""
    axes = axes or tuple(range(x.ndim - 1))
    n = np.prod([x.shape[axis] for axis in axes])
    share = 1 - b.momentum if keeps else b.momentum
    moved = {"mean": mean + share * (x.mean(axis=axes) - mean),
             "variance": variance + share * (x.var(axis=axes) * (1 if biased else n / (n - 1)) - variance)}  # fmt: skip
    if training is not None:
        old = {"mean": mean, "variance": variance}
        training.statistics |= {f"{name}.{key}": value for key, value in (old if still else moved).items()}
    if own if own is not None else training is not None:
        return normalised(x, axes, b.eps, eps_outside) * weight + bias
    root = np.sqrt(variance) + b.eps if eps_outside else np.sqrt(variance + b.eps)
    return (x - mean) / root * weight + bias


def dropout_like(
    b: Any, x: np.ndarray, name: str, training: Training | None, *, always: bool = False, rescaled: bool = True,
    order: tuple[int, ...] = (0, 1, 2, 3), one_mask: bool = False, whole_channels: bool = False,
    rate: float | None = None, high: bool = False,
) -> np.ndarray:  # fmt: skip
    """Dropout as other code writes it; `order` is that in which elements are counted."""
    if training is None and not always:
        return x
    batch = cases.noise_batch(CASES["ReLU"].program, CASES["ReLU"].shape)
    key, positions = (batch.dropout_key, batch.positions) if training is None else (training.key, training.positions)
    pluralize = x.transpose(order[: x.ndim])
    shape = (len(x), 1, 1, x.shape[-1]) if whole_channels else pluralize.shape
    drawn = random_words(tuple(map(int, key)), positions * (not one_mask), int(np.prod(shape[1:])), b.row).reshape(
        shape
    )
    threshold = b.threshold if rate is None else round(rate * 2**32)
    kept = drawn < 2**32 - threshold if high else drawn >= threshold
    if not whole_channels:
        kept = kept.transpose(np.argsort(order[: x.ndim]))
    return np.where(kept, x / (1 - b.rate if rescaled else 1), 0.0)


def conv_transpose_like(
    b: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0, *, before: int = 1
) -> np.ndarray:
    """A transposed convolution that crops what it must, `before` on the first sides and the rest on the last."""
    wide = reference_blocks._conv_transpose(replace(b, crop=0), x, weight, bias)
    rows, columns = (size - 2 * b.crop for size in wide.shape[1:3])
    return wide[:, before : before + rows, before : before + columns]


def zero_embedding_like(b: Any, label: np.ndarray, weight: np.ndarray, *, last: bool = False) -> np.ndarray:
    """A table without a row for no class: with a row of zeros, or as an index that is clipped."""
    return weight[np.minimum(label, b.count - 1)] * (1.0 if last else (label < b.count)[:, None])


def filtered(b: Any, x: np.ndarray, *, by: int = 0) -> np.ndarray:
    """Resampling of an image moved by some pixels."""
    return reference_blocks._resample(b, np.roll(x, by, axis=(1, 2)))


FORMULAS: dict[str, Callable] = {
    "GELU": gelu_like, "LayerNorm": layer_norm_like, "BatchNorm": batch_norm_like, "Dropout": dropout_like,
    "ConvTranspose": conv_transpose_like, "Embedding": zero_embedding_like, "Resample": filtered,
}  # fmt: skip
OTHER_FORMULAS: dict[str, tuple[str, Callable]] = {
    "GELU by tanh": ("GELU", partial(gelu_like, tanh=True)),
    "root of 2 through float32": ("GELU", partial(gelu_like, root=float(np.float32(np.sqrt(2.0))))),
    "eps of a vector's norm outside the root": ("LayerNorm of a vector", partial(layer_norm_like, eps_outside=True)),
    "eps of a layer norm outside the root": ("LayerNorm of channels", partial(layer_norm_like, eps_outside=True)),
    "channels of each row for those of a pixel": ("LayerNorm of channels", partial(layer_norm_like, axes=(2, 3))),
    "vectors of the whole batch": ("LayerNorm of a vector", partial(layer_norm_like, axes=(0, 1))),
    "pixels for images": ("LayerNorm of images", partial(layer_norm_like, axes=(3,))),
    "channels of an image one by one": ("LayerNorm of images", partial(layer_norm_like, axes=(1, 2))),
    "eps of a batch norm outside the root": ("BatchNorm", partial(batch_norm_like, eps_outside=True)),
    "statistics of the batch in evaluation": ("BatchNorm", partial(batch_norm_like, own=True)),
    "a vector's statistics of the batch in evaluation": ("BatchNorm of a vector", partial(batch_norm_like, own=True)),
    "dropout in evaluation": ("Dropout", partial(dropout_like, always=True)),
    "a vector's dropout in evaluation": ("Dropout of a vector", partial(dropout_like, always=True)),
    "cropped before alone": ("ConvTranspose 4x4 stride 2", partial(conv_transpose_like, before=2)),
    "cropped after alone": ("ConvTranspose 4x4 stride 2", partial(conv_transpose_like, before=0)),
    "cropped after alone, stride 1": (
        "ConvTranspose 3x3 stride 1 without bias", partial(conv_transpose_like, before=0)
    ),
    "the last row for no class": ("Embedding with zero", partial(zero_embedding_like, last=True)),
    "filter one pixel late": ("Resample down with a filter", partial(filtered, by=1)),
    "filter one pixel late on the way up": ("Resample up with a filter", partial(filtered, by=-1)),
}  # fmt: skip


def plant_formula(monkeypatch: pytest.MonkeyPatch, formula: partial) -> None:
    """Replace the reference function of its kind by this formula."""
    (kind,) = (kind for kind, plain in FORMULAS.items() if plain is formula.func)
    monkeypatch.setitem(reference.BLOCK_FUNCTIONS, kind, formula)


@pytest.mark.parametrize("name", sorted({name for name, _ in OTHER_FORMULAS.values()}))
def test_what_others_write_of_a_block_is_the_reference_where_nothing_is_changed(exact, name, monkeypatch):
    for formula in FORMULAS.values():
        plant_formula(monkeypatch, partial(formula))
    assert block_check(exact, name, {}).passed


@pytest.mark.parametrize("name, formula", OTHER_FORMULAS.values(), ids=OTHER_FORMULAS)
def test_rung_2_notices_another_formula(exact, name, formula, monkeypatch):
    plant_formula(monkeypatch, formula)
    assert not block_check(exact, name, {}).passed


# Rung 2 in training: blocks with a training mode


def halved(of: str) -> Callable[[TrainBatch], np.ndarray]:
    """The first half of the images twice."""
    return lambda batch: np.concatenate([getattr(batch, of)[: batch.size // 2]] * 2)


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


# Rungs 3 and 4: whole networks and gradients


TITLE, ADM = "time added, strided", "ADM, learned variance"


def reversed_inputs(name: str) -> Fault:
    return told_node(name, lambda node: replace(node, inputs=node.inputs[::-1]))


DIT, SIT = "DiT, learned variance", "SiT of diffusers' embedding, no null row"
NETWORK_FAULTS: dict[str, tuple[str, dict[str, Callable]]] = {
    "skip connection first": (TITLE, {"network": reversed_inputs("up.0.0.concat")}),
    "one weight off by 1e-9": (TITLE, {"network": told_weights("conv_in.weight", partial(hair, size=1e-9))}),
    "no class for every class": (
        TITLE, {"network.forward": lambda x, t, label, features: (x, t, np.full_like(label, 10), features)}
    ),
    "variance for mean": (ADM, {"network": told_weights("out.conv.", partial(np.roll, shift=3, axis=0))}),
    "a class for no class": (
        ADM, {"network.forward": lambda x, t, label, features: (x, t, np.minimum(label, 9), features)}
    ),
    "skip scale left out": ("DDPM++", {"network": told_block("mid.block1.sum", scale=1.0)}),
    "q, k, v for interleaved": ("DDPM++", {"network": told_block("mid.attn.attend", order="qkv")}),
    "augmentation label left out": (
        "DDPM++", {"network.forward": lambda x, t, label, features: (x, t, label, None)}
    ),
    "cos first for sin first": ("NCSN++", {"network": told_block("embed.features", sin_first=False)}),
    "another filter of the image": (
        "NCSN++", {"network": told_block("down.0.image.filter", taps=(0.0, 1.0, 1.0, 0.0))}
    ),
    "corners not in line": ("landscape", {"network": told_block("up.0.resize", rule="bilinear")}),
    "skip connection behind": ("double_conv_attention", {"network": reversed_inputs("up.0.concat")}),
    "running variance of one norm": ("simple", {"network": told_weights("down.0.norm0.variance", np.ones_like)}),
    "time added for multiplied": ("sixteen_step", {"network": told_instead("down.0.multiply", Add(1.0))}),
    "time not scaled": ("plain", {"network": told_block("in.time", scale=1.0)}),
    "sigmoid left out": ("denoising_autoencoder", {"network": told_instead("out_act", SiLU())}),
    "scale, shift for shift, scale": (DIT, {"network": told_block("block.0.attn.modulate", shift_first=False)}),
    "gate of the MLP for that of the attention": (DIT, {"network": told_block("block.1.attn.gate", start=5 * 16)}),
    "shift of the attention for that of the MLP": (DIT, {"network": told_block("block.1.mlp.shift_scale", start=0)}),
    "exact GELU": (DIT, {"network": told_block("block.0.mlp.act", tanh=False)}),
    "sines before cosines of the time": (DIT, {"network": told_block("embed.features", sin_first=True)}),
    "rows for columns of the positions": (DIT, {"network": told_weights("positions.table", across(4))}),
    "rows for columns of a patch": (
        DIT, {"network": told_weights("final.dense.weight", across(2))}
    ),
    "the last channels for the first": (SIT, {"network": told_block("final.kept", start=2)}),
    "eps 1e-6 for 1e-5 before an MLP": (SIT, {"network": told_block("block.0.mlp.norm", eps=1e-6)}),
    "divisor half for half - 1": (SIT, {"network": told_block("embed.features", divisor=8.0)}),
}  # fmt: skip


@pytest.mark.parametrize("title, faults", NETWORK_FAULTS.values(), ids=NETWORK_FAULTS)
def test_rung_3_notices(exact, title, faults):
    spec = cases.NETWORKS[title]
    program = lower(spec)
    batch = cases.noise_batch(program, spec.image_shape)
    error = rungs.forward_error(Told(exact, faults), program, cases.scattered_weights(program), batch)
    assert not check(3, title, "float64", "this", "network", error).passed


GRADIENT_FAULTS: dict[str, tuple[str, dict[str, Callable]]] = {
    "target with flipped sign": ("Conv 3x3", {"trainer.gradients": BATCH_FAULTS["target with flipped sign"][0]}),
    "weight left out": ("Conv 3x3", {"trainer.gradients": BATCH_FAULTS["weight left out"][0]}),
    "t shifted by one": ("Modulate", {"trainer.gradients": told_batch(c_noise=lambda b: b.c_noise + 1)}),
    "another distance": ("Conv 1x1", {"trainer": lambda program, state, adam, _: (program, state, adam, "l1")}),
    "dropout of the next image": ("Dropout", {"trainer.gradients": told_batch(positions=lambda b: b.positions + 1)}),
    "features of the neighbour": (
        "Features", {"trainer.gradients": told_batch(features=lambda b: np.roll(b.features, 1, axis=0))}
    ),
    "statistics of half a batch": (
        "BatchNorm", {"trainer.gradients": told_batch(images=halved("images"), noise=halved("noise"))}
    ),
    "another row for a vector": (
        "Dropout of a vector", {"trainer": lambda p, *rest: (told_block("block1", row=0)(p, {})[0], *rest)}
    ),
    "padding (0, 1) for (1, 1)": (
        STRIDED, {"trainer": lambda p, *rest: (told_block(padding=(0, 1, 0, 1))(p, {})[0], *rest)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name, faults", GRADIENT_FAULTS.values(), ids=GRADIENT_FAULTS)
def test_gradients_notice(exact, name, faults, monkeypatch):
    """The comparison that the exchange makes, here of a backend with itself."""
    monkeypatch.setattr(cases, "BLOCKS", (CASES[name],))
    monkeypatch.setattr(cases, "NETWORKS", {})
    sound, faulty = trace.Trace("this", "float64"), trace.Trace("this", "float64")
    rungs.blocks(exact, sound)
    rungs.blocks(Told(exact, faults), faulty)

    def gradient_check(other: trace.Trace) -> Check:
        checks = compare_arrays(sound.arrays, other.arrays, "float64", "this–this")
        return {c.name: c for c in checks}[f"{name}, gradient"]

    assert gradient_check(sound).passed
    assert not gradient_check(faulty).passed


# Rung 5: optimiser


def adam_like(
    adam: Adam, weights: Weights, moment1: Weights, moment2: Weights, gradients: Weights, update: int, lr: float,
    decays: frozenset[str], *, eps_inside: bool = False, coupled: bool = False, decay_last: bool = False,
    clip: str = "torch", corrected: bool = True,
) -> tuple[Weights, Weights, Weights]:  # fmt: skip
    """Adam as other code writes it."""
    norm = global_norm(gradients)
    factor = {"torch": clip_factor(norm, adam.clip), "none": 1.0, "tensorflow": min(1.0, adam.clip / norm),
              "value": None}[clip]  # fmt: skip
    correction1, correction2 = adam.bias_corrections(update) if corrected else (1.0, 1.0)
    results: tuple[Weights, Weights, Weights] = {}, {}, {}
    for name, gradient in gradients.items():
        g = np.clip(gradient, -adam.clip, adam.clip) if factor is None else gradient * factor
        p, rate = weights[name], lr * adam.weight_decay * (name in decays)
        if coupled:
            g = g + rate / lr * p
        elif not decay_last:
            p = p * (1 - rate)
        m = adam.beta1 * moment1[name] + (1 - adam.beta1) * g
        v = adam.beta2 * moment2[name] + (1 - adam.beta2) * g * g
        if eps_inside:
            p = p - lr * correction2 / correction1 * m / (np.sqrt(v) + adam.eps)
        else:
            p = p - lr / correction1 * m / (np.sqrt(v) / correction2 + adam.eps)
        for result, value in zip(results, (p * (1 - rate) if decay_last else p, m, v), strict=True):
            result[name] = value
    return results


def other_adam(**changes: Any) -> Callable:
    """The reference with other settings."""
    return lambda adam, *rest: adam_update(replace(adam, **changes), *rest)


def every_parameter_decays(adam, weights, m, v, gradients, update, lr, decays):
    return adam_update(adam, weights, m, v, gradients, update, lr, frozenset(weights))


def update_counted_from_0(adam, weights, m, v, gradients, update, lr, decays):
    return adam_update(adam, weights, m, v, gradients, update + 1, lr, decays)


WEIGHTS, AVERAGE, SECOND = (f"{what} after 3 steps" for what in ("weights", "moving average", "second average"))
OPTIMISER_FAULTS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "eps inside the correction, as in Keras": (partial(adam_like, eps_inside=True), (WEIGHTS, AVERAGE)),
    "eps 1e-7, the default of Keras": (other_adam(eps=1e-7), (WEIGHTS, AVERAGE)),
    "weight decay in the gradient": (partial(adam_like, coupled=True), (WEIGHTS,)),
    "weight decay after the step": (partial(adam_like, decay_last=True), (WEIGHTS,)),
    "weight decay 0.004": (other_adam(weight_decay=0.004), (WEIGHTS,)),
    "weight decay of biases too": (every_parameter_decays, (WEIGHTS,)),
    "no clip": (partial(adam_like, clip="none"), ("clipped first moment", WEIGHTS)),
    "clip without 1e-6": (partial(adam_like, clip="tensorflow"), (WEIGHTS,)),
    "clip by value": (partial(adam_like, clip="value"), (WEIGHTS,)),
    "no correction of the bias": (partial(adam_like, corrected=False), (WEIGHTS,)),
    "updates counted from 0": (update_counted_from_0, (WEIGHTS,)),
    "beta2 0.99": (other_adam(beta2=0.99), (WEIGHTS,)),
    "beta2 through float32": (other_adam(beta2=float(np.float32(0.999))), (WEIGHTS,)),
}


def test_what_others_write_is_the_reference_where_nothing_is_changed(exact):
    assert all(c.passed for c in climbed(rungs.optimiser, exact, {}, steps=3, formula=adam_like).values())


@pytest.mark.parametrize("formula, names", OPTIMISER_FAULTS.values(), ids=OPTIMISER_FAULTS)
def test_rung_5_notices_another_formula(exact, formula, names):
    checks = climbed(rungs.optimiser, exact, {}, steps=3, formula=formula)
    # The clip alone is measured against its own formula, not against the optimiser's.
    assert_noticed(checks, *(name for name in names if name != "clipped first moment"))


UPDATE_FAULTS: dict[str, tuple[dict[str, Callable], tuple[str, ...]]] = {
    "decays of the averages off by 1e-6": (
        {"trainer.update": lambda g, lr, decays: (g, lr, [d + 1e-6 for d in decays])}, (AVERAGE, SECOND)
    ),
    "the first average copies the weights": ({"trainer.update": lambda g, lr, d: (g, lr, (0.0, d[1]))}, (AVERAGE,)),
    "both averages have the decay of the first": (
        {"trainer.update": lambda g, lr, d: (g, lr, (d[0], d[0]))}, (SECOND,)
    ),
    "averages swapped": ({"trainer.update": lambda g, lr, d: (g, lr, d[::-1])}, (AVERAGE, SECOND)),
    "learning rate through float32": (
        {"trainer.update": lambda g, lr, decay: (g, float(np.float32(lr)), decay)}, (WEIGHTS, AVERAGE)
    ),
    "no clip": ({"trainer": lambda p, s, adam, d: (p, s, replace(adam, clip=None), d)}, ("clipped first moment",)),
    "clip at 0.999": ({"trainer": lambda p, s, adam, d: (p, s, replace(adam, clip=0.999), d)},
                      ("clipped first moment",)),
    "gradients of one parameter left out of the norm": (
        {"trainer.update": lambda g, lr, decay: (g | {"a.bias": np.zeros_like(g["a.bias"])}, lr, decay)},
        ("global norm", "clipped first moment", WEIGHTS),
    ),
    "a gradient of zeros for one that is not finite": (
        {"trainer.update": lambda g, lr, decay: ({n: np.nan_to_num(x) for n, x in g.items()}, lr, decay)},
        ("changed by updates that are not finite",),
    ),
    "one gradient transposed": (
        {"trainer.update": lambda g, lr, decay: (g | {"a.weight": g["a.weight"].swapaxes(2, 3)}, lr, decay)},
        ("clipped first moment", WEIGHTS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("faults, names", UPDATE_FAULTS.values(), ids=UPDATE_FAULTS)
def test_rung_5_notices(exact, faults, names):
    assert_noticed(climbed(rungs.optimiser, exact, faults, steps=3), *names)


# Rung 6: samplers


def with_tables(plan: SamplerPlan, **tables: Any) -> SamplerPlan:
    """The plan with other tables, unchecked: a plan refuses most mistakes when it is made."""
    changed = copy.copy(plan)
    for name, table in tables.items():
        object.__setattr__(changed, name, table)
    return changed


def told_plan(change: Callable[[SamplerPlan], dict[str, Any]]) -> dict[str, Callable]:
    return {"sample": lambda network, plan, *rest: (network, with_tables(plan, **change(plan)), *rest)}


def told_noise(change: Callable[[Callable[[int], np.ndarray]], Callable[[int], np.ndarray]]) -> dict[str, Callable]:
    return {
        "sample": lambda network, plan, start, label, noise, *callback: (
            network,
            plan,
            start,
            label,
            change(noise),
            *callback,
        )
    }


def off(name: str, row: int = -1) -> dict[str, Callable]:
    """One row of a table, off by a relative 1e-8."""

    def change(plan: SamplerPlan) -> dict[str, np.ndarray]:
        table = getattr(plan, name).copy()
        assert np.any(table[row])
        table[row] *= 1 + 1e-8
        return {name: table}

    return told_plan(change)


REGISTERS, GUIDED, LARGE = "two registers, three estimates", "DDIM-20, eta 0.5, guidance 2", "DDPM-20, large variance"
HEUN, LMS = "Heun, churn in 8 steps", "LMS-4 in 16 steps"
PLAN_FAULTS: dict[str, tuple[str, dict[str, Callable]]] = {
    "state off by 1e-8": (REGISTERS, off("state")),
    "denoised off by 1e-8": (REGISTERS, off("denoised")),
    "noise off by 1e-8": (REGISTERS, off("noise")),
    "c_skip off by 1e-8": (REGISTERS, off("c_skip")),
    "c_out off by 1e-8": (REGISTERS, off("c_out")),
    "c_in off by 1e-8": (REGISTERS, off("c_in")),
    "c_noise off by 1e-8": (REGISTERS, off("c_noise", 0)),
    "guidance off by 1e-8": (REGISTERS, off("guidance_scale", -1)),
    "state off by 1e-8, in the first row": (REGISTERS, off("state", 0)),
    "denoised off by 1e-8, DDPM": (LARGE, off("denoised")),
    "t shifted by one": (REGISTERS, told_plan(lambda p: {"c_noise": p.c_noise + 1})),
    "t not rescaled": (REGISTERS, told_plan(lambda p: {"c_noise": np.arange(p.rows)[::-1].astype(float)})),
    "clip missing": (LARGE, told_plan(lambda p: {"clip": None})),
    "noise in the last row": (LARGE, told_plan(lambda p: {"noise": np.where(p.noise == 0, 1e-3, p.noise)})),
    "small variance for large": (LARGE, told_plan(lambda p: {"noise": p.noise * 0.99})),
    "guidance (1 + w) c - w u": (GUIDED, told_plan(lambda p: {"guidance_scale": p.guidance_scale + 1})),
    "guidance left out": (REGISTERS, told_plan(lambda p: {"guidance_scale": np.ones(p.rows)})),
    "registers swapped": (REGISTERS, told_plan(lambda p: {"state": p.state.swapaxes(1, 2)})),
    "oldest estimate first": (REGISTERS, told_plan(lambda p: {"denoised": p.denoised[:, :, ::-1]})),
    "estimates not remembered": (REGISTERS, told_plan(lambda p: {"denoised": p.denoised * [1.0, 0.0, 0.0]})),
    "where a step of Heun's began is forgotten": (HEUN, told_plan(lambda p: {"state": p.state * [1.0, 0.0]})),
    "no churn": (HEUN, told_plan(lambda p: {"noise": 0 * p.noise})),
    "older slopes in another order": (
        LMS, told_plan(lambda p: {"state": np.concatenate([p.state[..., :1], p.state[..., :0:-1]], axis=2)})
    ),
    "noise of the next row": (REGISTERS, told_noise(lambda noise: lambda row: noise(row + 1))),
    "noise of the next sample": (REGISTERS, told_noise(lambda noise: lambda row: np.roll(noise(row), 1, axis=0))),
    "the same noise in every row": (REGISTERS, told_noise(lambda noise: lambda row: noise(0))),
    "start of the next sample": (
        REGISTERS, {"sample": lambda n, p, start, *rest: (n, p, np.roll(start, 1, axis=0), *rest)}
    ),
    "start not scaled": (REGISTERS, {"sample": lambda n, p, start, *rest: (n, p, start / p.start_scale, *rest)}),
    "label of the next sample": (
        REGISTERS, {"sample": lambda n, p, start, label, *rest: (n, p, start, np.roll(label, 1), *rest)}
    ),
    "another null label": (
        GUIDED, {"network": lambda program, weights: (replace(program, null_label=0), weights)}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected_once() -> Iterator[None]:
    """The images of the reference, computed once per plan: since the faults are in the backend only."""
    images: dict[int, np.ndarray] = {}
    compute = rungs.reference_images

    def remembered(plan: SamplerPlan, *rest: Any) -> np.ndarray:
        if id(plan) not in images:
            images[id(plan)] = compute(plan, *rest)
        return images[id(plan)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_runs, "reference_images", remembered)
        yield


@pytest.mark.usefixtures("expected_once")
@pytest.mark.parametrize("name", [REGISTERS, LARGE, GUIDED, HEUN, LMS])
def test_rung_6_passes_without_a_fault(exact, name):
    checks = climbed(rungs.sampler_update, exact, {}, plans={name: cases.PLANS[name]})
    assert [c.passed for c in checks.values()] == [True]


@pytest.mark.usefixtures("expected_once")
@pytest.mark.parametrize("name, faults", PLAN_FAULTS.values(), ids=PLAN_FAULTS)
def test_rung_6_notices(exact, name, faults):
    assert_noticed(climbed(rungs.sampler_update, exact, faults, plans={name: cases.PLANS[name]}), f"{name}, untrained")


IN_USE_FAULTS: dict[str, tuple[str, dict[str, Callable]]] = {
    "variance for mean": (ADM, NETWORK_FAULTS["variance for mean"][1]),
    "a class for no class": (
        ADM, {"sample": lambda n, plan, start, label, *rest: (n, plan, start, np.minimum(label, 9), *rest)}
    ),
    "noise of the next row": ("denoising_autoencoder", told_noise(lambda noise: lambda row: noise(row + 1))),
    "t shifted by one": ("simple", told_plan(lambda p: {"c_noise": p.c_noise + 1})),
}  # fmt: skip


@pytest.mark.parametrize("title, faults", IN_USE_FAULTS.values(), ids=IN_USE_FAULTS)
def test_rung_6_notices_in_every_network(exact, title, faults):
    assert_noticed(climbed(rungs.forward_and_sample, exact, faults, title=title), f"{title}, DDIM-4")


def told_learned(change: Callable[[np.ndarray], np.ndarray | None]) -> dict[str, Callable]:
    return told_plan(lambda p: {"learned": None if p.learned is None else change(p.learned)})


LEARNED_FAULTS: dict[str, dict[str, Callable]] = {
    "the small variance alone": told_learned(lambda ab: ab * [1.0, 0.0]),
    "variance for standard deviation": told_learned(lambda ab: 2 * ab),
    "bounds changed over": told_learned(lambda ab: ab * [1.0, -1.0]),
    "fixed": told_learned(lambda ab: None),
    "variance of another channel": {"network": told_weights("out.conv.", partial(np.roll, shift=1, axis=0))},
}


@pytest.mark.parametrize("faults", LEARNED_FAULTS.values(), ids=LEARNED_FAULTS)
def test_rung_6_notices_in_a_learned_variance(exact, faults):
    assert_noticed(climbed(rungs.forward_and_sample, exact, faults, title=ADM), f"{ADM}, DDPM-4, learned variance")


def told_steering(**changes: Any) -> dict[str, Callable]:
    return {"sample": lambda *given: (*given[:-1], replace(given[-1], **changes))}


STEERING_FAULTS: dict[str, dict[str, Callable]] = {
    "no class for the guide": told_steering(guide=None),
    "no classifier": {
        "sample": lambda net, plan, *given: (
            net,
            replace(plan, classifier=None),
            *given[:-1],
            replace(given[-1], classifier=None),
        )
    },
    "climbed a little less": told_plan(lambda p: {"classifier": 0.9999 * p.classifier}),
    "climbed away": told_plan(lambda p: {"classifier": -p.classifier}),
    "sigma for sigma^2": told_plan(lambda p: {"classifier": p.classifier / p.sigma[:-1]}),
    "nothing known": told_steering(mask=None, known=None),
    "the other half known": {"sample": lambda *given: (*given[:-1], replace(given[-1], mask=1 - given[-1].mask))},
    "known at the level after": {
        "sample": lambda *given: (*given[:-1], replace(given[-1], known=lambda row: given[-1].known(row + 1)))
    },
    "not rescaled": told_plan(lambda p: {"rescale": 0.0}),
    "rescaled wholly": told_plan(lambda p: {"rescale": 1.0}),
    "one bound for all": told_plan(lambda p: {"threshold": None}),
    "a quantile of fewer": told_plan(lambda p: {"threshold": 0.89}),
    "bounded by another clip": told_plan(lambda p: {"clip": 0.99}),
    "guided less": told_plan(lambda p: {"guidance_scale": p.guidance_scale - 0.01}),
}


def test_rung_6_passes_steered_without_a_fault(exact):
    assert climbed(rungs.guidance, exact, {})["steered"].passed


@pytest.mark.parametrize("faults", STEERING_FAULTS.values(), ids=STEERING_FAULTS)
def test_rung_6_notices_steered(exact, faults):
    assert_noticed(climbed(rungs.guidance, exact, faults), "steered")


def told_measurement(change: Callable[[Measurement], dict[str, Any]]) -> dict[str, Callable]:
    """Change the measurement, without the checks that would refuse the change."""

    def told(*given: Any) -> tuple:
        measurement = copy.copy(given[-1].measurement)
        vars(measurement).update(change(measurement))
        return (*given[:-1], replace(given[-1], measurement=measurement))

    return {"sample": told}


def with_pseudo_inverse(operator: LinearOperator) -> LinearOperator:
    """Return the operator of `rungs.posterior` with 4 A^T, which repeats each mean of four pixels, for A^T."""
    return replace(operator, adjoint=lambda y: 4 * operator.adjoint(y))


POSTERIOR_FAULTS: dict[str, tuple[dict[str, Callable], tuple[str, ...]]] = {
    "nothing measured": (told_steering(measurement=None), ("mmps", "pigdm", "dps")),
    "y a little larger": (told_measurement(lambda m: {"y": 1.001 * m.y}), ("mmps", "pigdm", "dps")),
    "variance for standard deviation": (told_measurement(lambda m: {"noise": m.noise**2}), ("mmps", "pigdm")),
    "followed a little less": (told_measurement(lambda m: {"scale": 0.9999}), ("mmps", "pigdm", "dps")),
    "one conjugate gradient less": (told_measurement(lambda m: {"iterations": 2}), ("mmps",)),
    "the pseudo-inverse for the adjoint": (
        told_measurement(lambda m: {"operator": with_pseudo_inverse(m.operator)}),
        ("mmps", "pigdm", "dps"),
    ),
    "another method": (told_measurement(lambda m: {"method": "pigdm"}), ("mmps", "dps")),
    "bounded before the shift": (told_plan(lambda p: {"clip": 0.99}), ("mmps", "dps")),
    "guided less": (told_plan(lambda p: {"guidance_scale": p.guidance_scale - 0.01}), ("mmps", "dps")),
}


@pytest.mark.parametrize("method", cases.MEASURED_PLANS)
def test_rung_6_passes_posterior_sampling_without_a_fault(exact, method):
    assert climbed(rungs.posterior, exact, {})[f"posterior, {method}"].passed


@pytest.mark.parametrize("faults, methods", POSTERIOR_FAULTS.values(), ids=POSTERIOR_FAULTS)
def test_rung_6_notices_in_posterior_sampling(exact, faults, methods):
    checks = climbed(rungs.posterior, exact, faults)
    assert_noticed(checks, *(f"posterior, {method}" for method in methods))


UNCLIPPED = "DDIM-10, eps of the network, dynamic threshold at most 2"
CLIPPING_FAULTS: dict[str, dict[str, Callable]] = {
    "no limit of the threshold": told_plan(lambda p: {"threshold_max": None}),
    "another limit": told_plan(lambda p: {"threshold_max": 1.9}),
    "eps of the clipped estimate": told_plan(
        lambda p: {"denoised": p.denoised + p.unclipped[..., None], "clipped": None, "unclipped": None}
    ),
    "a little less of the unclipped estimate": told_plan(lambda p: {"unclipped": 0.999 * p.unclipped}),
}


def test_rung_6_passes_with_the_eps_of_the_network(exact):
    plans = {UNCLIPPED: cases.PLANS[UNCLIPPED]}
    assert climbed(rungs.sampler_update, exact, {}, plans=plans)[f"{UNCLIPPED}, untrained"].passed


@pytest.mark.parametrize("faults", CLIPPING_FAULTS.values(), ids=CLIPPING_FAULTS)
def test_rung_6_notices_another_clip(exact, faults):
    checks = climbed(rungs.sampler_update, exact, faults, plans={UNCLIPPED: cases.PLANS[UNCLIPPED]})
    assert_noticed(checks, f"{UNCLIPPED}, untrained")


# Rungs 4 and 6: vector-Jacobian product and likelihood


def pulling(**changed: Callable) -> dict[str, Callable]:
    """A vector-Jacobian product with a changed x, c_noise, label or cotangent."""
    names = ("x", "c_noise", "label", "cotangent")
    return {"network.vjp": lambda *g: [changed.get(n, lambda v: v)(v) for n, v in zip(names, g, strict=True)]}


PULLBACK_FAULTS: dict[str, Mapping[str, Callable]] = {
    "a cotangent for all images": pulling(cotangent=lambda v: np.broadcast_to(v.mean(axis=0), v.shape)),
    "a cotangent with height for width": pulling(cotangent=lambda v: v.swapaxes(1, 2)),
    "a sum instead of a product": pulling(cotangent=np.ones_like),
    "an image next to it": pulling(x=lambda v: v + 1e-6),
    "another level": pulling(c_noise=lambda v: v + 1e-4),
    "another class": pulling(label=np.zeros_like),
}
BOUND_FAULTS: dict[str, Mapping[str, Callable]] = {
    "another level": {"network.forward": lambda x, c, label: (x, c + 1e-6, label)},
    "another class": {"network.forward": lambda x, c, label: (x, c, np.zeros_like(label))},
    "images rounded to float32": {"network.forward": lambda x, c, label: (x.astype(np.float32), c, label)},
}


@pytest.mark.parametrize("faults", PULLBACK_FAULTS.values(), ids=PULLBACK_FAULTS)
def test_rung_4_notices_another_pullback(exact, faults):
    assert_noticed(climbed(rungs.likelihoods, exact, faults), "pullback")


@pytest.mark.parametrize("faults", BOUND_FAULTS.values(), ids=BOUND_FAULTS)
def test_rung_6_notices_another_bound(exact, faults):
    checks = climbed(rungs.likelihoods, exact, faults)
    assert checks["pullback"].passed
    assert_noticed(checks, "bound, every term")


# Rungs 7 and 8: training and hand-over


DECAYS = (0.99, 0.9)


def trained(backend: Any, state: TrainerState, first: int, last: int) -> TrainerState:
    """The state after steps `first` to `last` with prescribed gradients."""
    trainer = backend.trainer(CASES["Modulate"].program, state, Adam(), "mse")
    gradients = rungs.prescribed_gradients(CASES["Modulate"].program)
    for step in range(1, last + 1):
        arrays = {n: v.astype(backend.config.host_dtype) for n, v in next(gradients).items()}
        if step >= first:
            trainer.update(arrays, 1e-3, DECAYS)
    return trainer.state()


def zeros(arrays: Weights) -> Weights:
    return {name: np.zeros_like(value) for name, value in arrays.items()}


def told_slots(state: TrainerState, **slots: Weights) -> TrainerState:
    return replace(state, slots={**state.slots, **slots})


HANDOVER_FAULTS: dict[str, Callable[[TrainerState], TrainerState]] = {
    "moments dropped": lambda s: told_slots(s, moment1=zeros(s.slots["moment1"]), moment2=zeros(s.slots["moment2"])),
    "second moment dropped": lambda s: told_slots(s, moment2=zeros(s.slots["moment2"])),
    "moments swapped": lambda s: told_slots(s, moment1=s.slots["moment2"], moment2=s.slots["moment1"]),
    "updates reset": lambda s: replace(s, updates=0),
    "updates one less": lambda s: replace(s, updates=s.updates - 1),
    "average for weights": lambda s: replace(s, weights=s.ema),
    "a kernel transposed": lambda s: told_slots(
        s, moment1=s.slots["moment1"] | {"block1.weight": s.slots["moment1"]["block1.weight"].T}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(open_backend) -> Callable[[str], tuple[Any, TrainerState, TrainerState]]:
    """(backend, state after 4 steps, state after 5)."""

    @cache
    def made(precision: str) -> tuple[Any, TrainerState, TrainerState]:
        backend = open_backend(precision)
        weights = initial_weights(CASES["Modulate"].program, cases.SEED, backend.config.host_dtype)
        middle = trained(backend, TrainerState.fresh(weights, len(DECAYS)), 1, 4)
        return backend, middle, trained(backend, middle, 5, 5)

    return made


def handover_checks(runs: Callable, precision: str, fault: Callable[[TrainerState], TrainerState]) -> list[Check]:
    """The bits of the state, and the weights one step later, as `compare_handover` measures them."""
    backend, middle, whole = runs(precision)
    state = fault(middle)
    error = l2_of_all(trained(backend, state, 5, 5).weights, whole.weights)
    bits = differing(*(rungs.state_arrays("", s) for s in (middle, state)))
    return [
        check(8, "state taken over", precision, "this", "bits", bits),
        check(8, "weights one step later", precision, "this", "next step", error),
    ]


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_rung_8_passes_without_a_fault(runs, precision):
    assert all(c.passed for c in handover_checks(runs, precision, lambda state: state))


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("fault", HANDOVER_FAULTS.values(), ids=HANDOVER_FAULTS)
def test_rung_8_notices(runs, fault, precision):
    assert not any(c.passed for c in handover_checks(runs, precision, fault))


AVERAGES_FAULTS: dict[str, Callable[[TrainerState], tuple[Weights, ...]]] = {
    "the first restarted": lambda s: (ema_update(s.ema, s.weights, 0.0), s.averages[1]),
    "the second restarted": lambda s: (s.ema, ema_update(s.ema, s.weights, 0.0)),
    "swapped": lambda s: s.averages[::-1],
    "the second lost": lambda s: s.averages[:1],
    "the first for both": lambda s: (s.ema, s.ema),
}


@pytest.mark.parametrize("fault", AVERAGES_FAULTS.values(), ids=AVERAGES_FAULTS)
def test_changed_averages_of_a_hand_over_are_detected_by_their_bits(runs, fault):
    """After one step the weights do not show them; the state after the hand-over does."""
    _, middle, _ = runs("float64")
    state = replace(middle, averages=fault(middle))
    assert differing(*(rungs.state_arrays("", s) for s in (middle, state))) > 0

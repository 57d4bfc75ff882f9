"""Every rung of the ladder can fail: known mistakes are planted, and the rung's own check must report them.

A mistake is planted by telling the backend something else than the rung says: another program, another plan,
another batch. What no telling can say, such as another approximation, is said to the reference instead: that is
another formula for the block, and the difference is the same. Each mistake has cost somebody a wrong result; most
are what another library does by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch
from diffusion_core.backend.reference import blocks as reference_blocks
from diffusion_core.common.random import random_words
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import Add, SiLU
from diffusion_core.networks.program import Training
from diffusion_core.networks.weights import Weights
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.ladder import Check, check

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


def climbed(rung: Callable, backend: Any, faults: Mapping[str, Callable], **options: Any) -> dict[str, Check]:
    """The checks of a rung by name, measured on a backend with faults."""
    measured = trace.Trace("this", backend.config.precision)
    with np.errstate(all="ignore"):
        rung(Told(backend, faults), measured, **options)
    return {c.name: c for c in measured.checks}


def assert_noticed(checks: Mapping[str, Check], *names: str) -> None:
    for name in names:
        assert not checks[name].passed, f"{name}: {checks[name].error:.3g} <= {checks[name].tolerance:.3g}"


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


def by(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda column: factor * column


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


def told_instead(name: str, block: Any) -> Fault:
    """Another block of the same parameters and inputs."""
    return told_node(name, lambda node: replace(node, block=block))


LEFT_OUT = told_node("block", lambda node: Node("block", Add(0.5), ("pre", "pre")))
STRIDED, FOUR_HEADS = "Conv 3x3 stride 2, padding (1, 1)", "Attention of 4 heads"


def across(side: int) -> Callable[[np.ndarray], np.ndarray]:
    """The rows of a table of tokens, column by column."""
    return lambda w: w.reshape(side, side, -1).swapaxes(0, 1).reshape(w.shape)


def block_check(backend: Any, name: str, faults: Mapping[str, Callable]) -> Check:
    """The check of rung 2 of one case."""
    case, precision = CASES[name], backend.config.precision
    weights = cases.scattered_weights(case.program, case.gain)
    batch = cases.cast(cases.noise_batch(case.program, case.shape), backend.config.host_dtype)
    error = rungs.forward_error(Told(backend, faults), case.program, weights, batch)
    return check(2, name, precision, "this", f"block{case.kind}", error)


def hair(array: np.ndarray, size: float = 1e-9) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[-1] += size * np.abs(array).max()
    return changed


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


def plant_formula(monkeypatch: pytest.MonkeyPatch, formula: partial) -> None:
    """Replace the reference function of its kind by this formula."""
    (kind,) = (kind for kind, plain in FORMULAS.items() if plain is formula.func)
    monkeypatch.setitem(reference.BLOCK_FUNCTIONS, kind, formula)


def halved(of: str) -> Callable[[TrainBatch], np.ndarray]:
    """The first half of the images twice."""
    return lambda batch: np.concatenate([getattr(batch, of)[: batch.size // 2]] * 2)


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

"""Rungs 3 and 4 notice mistakes in whole networks and in gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from planted import BATCH_FAULTS, CASES, NETWORK_FAULTS, STRIDED, Told, halved, told_batch, told_block

from diffusion_core.networks import lower
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.compare import compare_arrays
from diffusion_core.parity.ladder import Check, check

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]


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

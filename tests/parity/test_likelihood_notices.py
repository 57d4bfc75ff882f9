"""Rungs 4 and 6 notice mistakes in a vector-Jacobian product and in a likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from planted import assert_noticed, climbed

from diffusion_core.parity import rungs

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]


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

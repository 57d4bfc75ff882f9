"""Rung 6 notices mistakes in plans, guidance, posterior sampling and learned variances."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from planted import ADM, NETWORK_FAULTS, assert_noticed, climbed, told_weights

from diffusion_core.parity import cases, rungs
from diffusion_core.parity.rungs import sampling_runs
from diffusion_core.sampling import SamplerPlan
from diffusion_core.sampling.linear_operators import LinearOperator
from diffusion_core.sampling.measurement import Measurement

# The faults concern comparisons, which both backends share, so one backend is enough.
pytestmark = [pytest.mark.backend, pytest.mark.either]


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

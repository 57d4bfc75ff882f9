"""The ladder on a CUDA device, against the same reference and within the same tolerances: `pytest -m gpu`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_core import reference
from diffusion_core.backend import TrainerState
from diffusion_core.optimiser import Adam
from diffusion_core.parity import cases, trace
from diffusion_core.parity.ladder import check, l2, l2_of_all
from diffusion_core.unet import lower
from diffusion_core.weights import initial_weights

pytestmark = [pytest.mark.backend, pytest.mark.gpu]

RUNGS = (trace.forward_noising, trace.blocks, trace.networks, trace.optimiser, trace.sampler_update)


@pytest.fixture(params=["float64", "float32"])
def cuda(request, open_backend) -> Any:
    return open_backend(request.param, device="cuda", threads=None)


def parity_trainer(backend: Any, state: TrainerState | None = None) -> Any:
    weights = initial_weights(cases.PARITY.program, cases.SEED, backend.settings.host_dtype)
    return backend.trainer(
        cases.PARITY.program, state or TrainerState.fresh(weights, len(trace.AVERAGES)), Adam(), "mse"
    )


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.__name__)
def test_the_ladder_holds_on_the_device(cuda, rung):
    assert not cuda.describe().device.startswith("cpu")
    measured = trace.Trace(cuda.describe().backend, cuda.settings.precision)
    rung(cuda, measured)
    assert measured.checks
    failed = [f"{c.name}: {c.error:.3g} > {c.tolerance:.3g}" for c in measured.checks if not c.passed]
    assert not failed


def test_training_on_the_device_is_training_on_the_cpu(cuda, open_backend):
    """Rung 7 between the devices of one framework."""
    here, there = parity_trainer(open_backend(cuda.settings.precision)), parity_trainer(cuda)
    for step in range(1, 11):
        losses = [
            trace.training_step(b, t, step) for b, t in ((open_backend(cuda.settings.precision), here), (cuda, there))
        ]
        error = abs(losses[1] - losses[0]) / losses[0]
        assert check(7, "", cuda.settings.precision, "", "training loss, 10 steps", error).passed
    for part in ("weights", "ema", "ema1"):
        error = l2_of_all(there.state().parts[part], here.state().parts[part])
        assert check(7, part, cuda.settings.precision, "", "training weights, 10 steps", error).passed


def test_a_repeated_run_has_the_same_bits(cuda):
    runs = []
    for _ in range(2):
        trainer = parity_trainer(cuda)
        losses = [trace.training_step(cuda, trainer, step) for step in range(1, 6)]
        runs.append((losses, trainer.state()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].weights.items():
        np.testing.assert_array_equal(value, runs[1][1].weights[name], err_msg=name)


def test_a_state_goes_from_the_device_to_the_cpu_and_back(cuda, open_backend):
    trainer = parity_trainer(cuda)
    for step in range(1, 4):
        trace.training_step(cuda, trainer, step)
    cpu = parity_trainer(open_backend(cuda.settings.precision), trainer.state())
    back = parity_trainer(cuda, cpu.state())
    assert trace.training_step(cuda, back, 4) == trace.training_step(cuda, trainer, 4)
    for name, value in trainer.state().weights.items():
        np.testing.assert_array_equal(back.state().weights[name], value, err_msg=name)


def test_bfloat16_on_the_device_is_near_the_reference_and_learns(open_backend):
    backend = open_backend("bf16", device="cuda", threads=None)
    spec = cases.NETWORKS["time added, strided"]
    program = lower(spec)
    weights, batch = (
        cases.scattered_weights(program),
        cases.cast(cases.noise_batch(program, spec.image_shape), np.float32),
    )
    got = backend.network(program, weights).forward(batch.images, batch.c_noise, batch.label)
    wanted = reference.forward(program, weights, batch.images, batch.c_noise, batch.label)
    assert 1e-4 < l2(got, wanted) < 2e-2
    trainer = backend.trainer(program, TrainerState.fresh(weights), Adam(), "mse")
    losses = [float(trainer.step(batch, 1e-3, (0.9,)).loss) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_memory_is_that_of_the_device(cuda):
    parity_trainer(cuda)
    assert 0 < cuda.peak_memory_mib() < 1e6

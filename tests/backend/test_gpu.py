"""The ladder on a CUDA device, against the same reference and within the same tolerances: `pytest -m gpu`.

What was measured, each check with its error, its tolerance and its mode, is written as JSON when the last test is done:
to the file that DUET_GPU_JSON names, else to outputs/gpu-BACKEND.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainerState
from diffusion_core.networks import Node, Program, lower
from diffusion_core.networks.blocks import Conv, Linear, Mean
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases, rungs, trace
from diffusion_core.parity.ladder import Check, check, l2, l2_of_all
from diffusion_core.runs.run_directory import describe_environment, write_json

pytestmark = [pytest.mark.backend, pytest.mark.gpu]


def networks(backend: Any, measured: trace.Trace) -> None:
    rungs.networks(backend, measured, cases.NETWORKS)


def few_networks(backend: Any, measured: trace.Trace) -> None:
    rungs.networks(backend, measured, (*cases.FEW_NETWORKS, "ADM, learned variance", "landscape"))


def few_samplers(backend: Any, measured: trace.Trace) -> None:
    few = ("two registers, three estimates", "DDIM-20, eta 0.5, guidance 2", "DPM-Solver++ 3M-SDE-20")
    rungs.sampler_update(backend, measured, {name: cases.PLANS[name] for name in few})


def training_step(backend: Any, measured: trace.Trace) -> None:
    """Return the errors of the losses of a training step against the reference."""
    for title in cases.FEW_NETWORKS:
        spec, program = cases.NETWORKS[title], lower(cases.NETWORKS[title])
        batch = cases.cast(cases.noise_batch(program, spec.image_shape), backend.config.host_dtype)
        errors = rungs.training_errors(backend, program, cases.scattered_weights(program), batch)
        for what, error in errors.items():
            measured.add_check(1, f"{title}, {what}", "loss", error)


RUNGS = (
    rungs.forward_noising,
    rungs.losses,
    rungs.blocks,
    networks,
    rungs.optimiser,
    rungs.guidance,
    rungs.posterior,
    rungs.likelihoods,
)
# In bfloat16 there is no tolerance for the samples of an untrained network.
CLIMBED = [(precision, False, rung) for precision in ("float64", "float32", "bf16") for rung in RUNGS]
CLIMBED += [(precision, False, rungs.sampler_update) for precision in ("float64", "float32")]
# Compiling takes many seconds per network, and with XLA per plan, so test a few of each.
COMPILED = [(p, True, rung) for p in ("float32", "bf16") for rung in (few_networks, training_step, rungs.optimiser)]
COMPILED += [("float32", True, few_samplers)]
MODES = pytest.mark.parametrize("compile", (False, True), ids=("plain", "compiled"))


class Measurement:
    """The measurements of this file.

    Args:
        checks: all of them, passed or not, as plain data, each with its mode.
        devices: a line about each backend in a precision and a mode.
    """

    def __init__(self) -> None:
        self.checks: list[dict[str, Any]] = []
        self.devices: dict[str, str] = {}

    def add(self, backend: Any, *checks: Check) -> None:
        """Record checks, then assert that they pass."""
        told = backend.describe()
        self.devices[f"{told.precision}, {told.mode}"] = told.line()
        self.checks += [one.to_dict() | {"mode": told.mode} for one in checks]
        failed = [f"{c.name}: {c.error:.3g} > {c.tolerance:.3g} {c.unit}" for c in checks if not c.passed]
        assert checks and not failed

    def write(self, path: Path) -> None:
        """Return plain data."""
        told = {"environment": describe_environment(), "devices": self.devices}
        write_json(path, told | {"checks": self.checks})


@pytest.fixture(scope="module")
def measured(backend_name) -> Iterator[Measurement]:
    made = Measurement()
    yield made
    if made.checks:
        made.write(Path(os.environ.get("DUET_GPU_JSON", f"outputs/gpu-{backend_name}.json")))


@pytest.fixture(params=["float64", "float32"])
def cuda(request, open_backend) -> Any:
    return open_backend(request.param, device="cuda", threads=None)


def parity_trainer(backend: Any, state: TrainerState | None = None) -> Any:
    weights = initial_weights(cases.PARITY.program, cases.SEED, backend.config.host_dtype)
    return backend.trainer(
        cases.PARITY.program, state or TrainerState.fresh(weights, len(rungs.AVERAGES)), Adam(), "mse"
    )


@pytest.mark.parametrize(
    ("precision", "compile", "rung"),
    [
        pytest.param(*one, id=f"{one[0]}-{'compiled' if one[1] else 'plain'}-{one[2].__name__}")
        for one in CLIMBED + COMPILED
    ],
)
def test_the_ladder_holds_on_the_device(open_backend, measured, precision, compile, rung):
    backend = open_backend(precision, device="cuda", threads=None, compile=compile)
    assert not backend.describe().on_cpu
    made = trace.Trace(backend.describe().backend, precision)
    rung(backend, made)
    measured.add(backend, *made.checks)


@MODES
def test_gradients_in_bfloat16_match_float32(open_backend, measured, compile):
    title = cases.FEW_NETWORKS[0]
    spec, program = cases.NETWORKS[title], lower(cases.NETWORKS[title])
    weights, batch = (
        cases.scattered_weights(program),
        cases.cast(cases.noise_batch(program, spec.image_shape), np.float32),
    )
    modes = ("bf16", compile), ("float32", False)
    backends = [open_backend(precision, device="cuda", threads=None, compile=mode) for precision, mode in modes]
    gradients = [rungs.compute_gradients(backend, program, weights, batch)[1] for backend in backends]
    name = backends[0].describe().backend
    measured.add(backends[0], check(4, title, "bf16", name, "gradient", l2_of_all(*gradients)))


def test_tf32_is_off(open_backend, measured):
    """TF32 is off: a wide product and a wide convolution are those of float64, where ten bits would show as 3e-4."""
    program = Program(
        (
            Node("conv", Conv(512, 512, 3, 1, (1, 1, 1, 1), False, 1.0), ("x",)),
            Node("mean", Mean(), ("conv",)),
            Node("linear", Linear(512, 512, False, 1.0), ("mean",)),
        )
    )
    weights = {name: value.astype(np.float32) for name, value in cases.scattered_weights(program).items()}
    batch = cases.cast(cases.noise_batch(program, (8, 8, 512)), np.float32)
    backend = open_backend("float32", device="cuda", threads=None)
    for last in (1, len(program.nodes)):
        part = Program(program.nodes[:last])
        error = rungs.forward_error(backend, part, {p.name: weights[p.name] for p in part.parameters}, batch)
        name = backend.describe().backend
        measured.add(backend, check(3, f"512 channels to {part.nodes[-1].name}", "float32", name, "network", error))


@pytest.mark.parametrize(
    ("precision", "compile"),
    (("float64", False), ("float32", False), ("float32", True)),
    ids=("float64-plain", "float32-plain", "float32-compiled"),
)
def test_training_on_the_device_matches_training_on_the_cpu(open_backend, measured, precision, compile):
    """Rung 7 between the devices of one framework; on the CPU nothing is compiled."""
    cpu, cuda = open_backend(precision), open_backend(precision, device="cuda", threads=None, compile=compile)

    def checked(name: str, kind: str, error: float) -> Check:
        return check(7, f"{name}, by the CPU's", precision, cuda.describe().backend, kind, error)

    here, there = parity_trainer(cpu), parity_trainer(cuda)
    for step in range(1, 11):
        losses = [rungs.training_step(b, t, step) for b, t in ((cpu, here), (cuda, there))]
        error = abs(losses[1] - losses[0]) / losses[0]
        measured.add(cuda, checked(f"loss of step {step}", "training loss, 10 steps", error))
    for part in ("weights", "ema", "ema1"):
        error = l2_of_all(there.state().parts[part], here.state().parts[part])
        measured.add(cuda, checked(f"{part} after 10 steps", "training weights, 10 steps", error))


def test_a_repeated_run_has_the_same_bits(cuda):
    runs = []
    for _ in range(2):
        trainer = parity_trainer(cuda)
        losses = [rungs.training_step(cuda, trainer, step) for step in range(1, 6)]
        runs.append((losses, trainer.state()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].weights.items():
        np.testing.assert_array_equal(value, runs[1][1].weights[name], err_msg=name)


def test_a_state_goes_from_the_device_to_the_cpu_and_back(cuda, open_backend):
    trainer = parity_trainer(cuda)
    for step in range(1, 4):
        rungs.training_step(cuda, trainer, step)
    cpu = parity_trainer(open_backend(cuda.config.precision), trainer.state())
    back = parity_trainer(cuda, cpu.state())
    assert rungs.training_step(cuda, back, 4) == rungs.training_step(cuda, trainer, 4)
    for name, value in trainer.state().weights.items():
        np.testing.assert_array_equal(back.state().weights[name], value, err_msg=name)


@MODES
def test_bfloat16_on_the_device_learns(open_backend, compile):
    backend = open_backend("bf16", device="cuda", threads=None, compile=compile)
    spec = cases.NETWORKS["time added, strided"]
    program = lower(spec)
    weights, batch = (
        cases.scattered_weights(program),
        cases.cast(cases.noise_batch(program, spec.image_shape), np.float32),
    )
    got = backend.network(program, weights).forward(batch.images, batch.c_noise, batch.label)
    wanted = reference.forward(program, weights, batch.images, batch.c_noise, batch.label)
    assert l2(got, wanted) > 1e-4  # it is bfloat16 at all; how near it must be says the ladder
    trainer = backend.trainer(program, TrainerState.fresh(weights), Adam(), "mse")
    losses = [float(trainer.step(batch, 1e-3, (0.9,)).loss) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_peak_memory_is_that_of_the_device(cuda):
    parity_trainer(cuda)
    assert 0 < cuda.peak_memory_mib() < 1e6

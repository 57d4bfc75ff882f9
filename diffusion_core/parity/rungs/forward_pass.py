"""Rungs 2, 3 and 4: blocks and networks, forward, in training and with their gradients."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Backend, Network, TrainBatch, TrainerState
from diffusion_core.model.generate import noise_source, start_noise
from diffusion_core.networks import Program, lower
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import relative
from diffusion_core.parity.trace import Trace

__all__ = [
    "blocks",
    "compute_gradients",
    "forward_and_sample",
    "forward_error",
    "networks",
    "training_errors",
]


def forward_error(
    backend: Backend,
    program: Program,
    weights: Weights,
    batch: TrainBatch,
    expected: Program | None = None,
    network: Network | None = None,
    estimate: NDArray | None = None,
) -> float:
    """Return the relative error of a forward pass, against the reference of the same program or of `expected`."""
    inputs = batch.images, batch.c_noise, batch.label, batch.features
    if estimate is not None:
        inputs += (estimate,)
    got = (network or backend.network(program, weights)).forward(*inputs)
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    return relative(got, reference.forward(expected or program, rounded, *inputs))


def compute_gradients(
    backend: Backend, program: Program, weights: Weights, batch: TrainBatch, distance: str = "mse"
) -> tuple[float, Weights]:
    """Return the loss and the gradients of a program."""
    return backend.trainer(program, TrainerState.fresh(weights), Adam(), distance).gradients(batch)


def training_errors(
    backend: Backend,
    program: Program,
    weights: Weights,
    batch: TrainBatch,
    expected: TrainBatch | None = None,
    distance: str = "mse",
) -> dict[str, float]:
    """Return the errors of a training step against the reference: its losses and its running statistics."""
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    expected = expected or batch
    losses, statistics = reference.per_image_losses(program, rounded, expected, distance)
    trainer = backend.trainer(program, TrainerState.fresh(rounded), Adam(), distance)
    result = trainer.step(batch, 0.0, (0.0,))
    errors = {
        "loss in training": relative(float(result.loss), np.mean(expected.importance * losses)),
        "loss of each image": relative(result.losses(), losses),
    }
    after = trainer.state().weights
    for name, value in statistics.items():
        errors[f"running {name.rsplit('.', 1)[1]}"] = relative(after[name], value)
    return errors


def blocks(backend: Backend, trace: Trace, of: Iterable[cases.BlockCase] | None = None) -> None:
    """Rung 2: the forward pass of every block against the reference; its gradients are recorded."""
    for case in cases.BLOCKS if of is None else of:
        weights = cases.scattered_weights(case.program, case.gain)
        batch = cases.cast(cases.noise_batch(case.program, case.shape), backend.config.host_dtype)
        trace.add_check(2, case.name, f"block{case.kind}", forward_error(backend, case.program, weights, batch))
        if case.has_training_mode:
            for what, error in training_errors(backend, case.program, weights, batch).items():
                trace.add_check(2, f"{case.name}, {what}", "block", error)
        _, gradients = compute_gradients(backend, case.program, weights, batch)
        for name, gradient in gradients.items():
            trace.arrays[f"2/{case.name}/{name}"] = gradient


def forward_and_sample(backend: Backend, trace: Trace, title: str) -> tuple[Weights, TrainBatch]:
    """Rungs 3 and 6 of one network: a forward pass and a short sampling run."""
    spec, dtype = cases.NETWORKS[title], backend.config.host_dtype
    program = lower(spec)
    weights = cases.scattered_weights(program)
    batch = cases.cast(cases.noise_batch(program, spec.image_shape), dtype)
    network = backend.network(program, weights)
    trace.add_check(3, title, "network", forward_error(backend, program, weights, batch, network=network))
    index = np.arange(batch.size)
    rounded = {name: value.astype(dtype) for name, value in weights.items()}
    plans = {"DDIM-4": cases.SHORT}
    if spec.out_channels == 2 * spec.in_channels:
        plans["DDPM-4, learned variance"] = cases.LEARNED
    for name, plan in plans.items():
        start = start_noise(plan, cases.SEED, index, spec.image_shape, dtype)
        noise = noise_source(cases.SEED, index, spec.image_shape, dtype)
        got = backend.sample(network, plan, start, batch.label, noise)
        wanted = reference.sample(program, rounded, plan, start, batch.label, noise)
        trace.add_check(6, f"{title}, {name}", "sampling", np.abs(got - wanted).max())
    return weights, batch


def networks(backend: Backend, trace: Trace, titles: Iterable[str]) -> None:
    """Rungs 3, 4 and 6: networks, forward and sampling, against the reference; their gradients are recorded."""
    for title in titles:
        weights, batch = forward_and_sample(backend, trace, title)
        loss, gradients = compute_gradients(backend, lower(cases.NETWORKS[title]), weights, batch)
        trace.arrays[f"4/{title}, loss"] = np.float64(loss)
        for name, gradient in gradients.items():
            trace.arrays[f"4/{title}/{name}"] = gradient

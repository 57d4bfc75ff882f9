"""Rungs 0, 1 and 4: tables, noised images, and every loss with its gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np

from diffusion_core.backend import reference
from diffusion_core.backend.interface import DISTANCES, Backend, Network, TrainBatch, TrainerState
from diffusion_core.backend.reference.target import target_losses
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.process import PREDICTIONS, Process, unsupported_reason
from diffusion_core.diffusion.schedule import SCHEDULES, make_schedule
from diffusion_core.model.generate import noise_source, start_noise
from diffusion_core.networks import Program
from diffusion_core.networks.weights import Weights, initial_weights
from diffusion_core.optim import PROFILES, Ema, make_profile
from diffusion_core.optim.adam import Adam
from diffusion_core.parity import cases, target_cases
from diffusion_core.parity.ladder import relative, worst
from diffusion_core.parity.rungs.forward_pass import compute_gradients, forward_error, training_errors
from diffusion_core.parity.rungs.lock_step import BATCH, STEPS
from diffusion_core.parity.trace import Trace
from diffusion_core.sampling import make_plan

__all__ = [
    "forward_noising",
    "losses",
    "micro_batches",
    "tables",
    "targets",
    "validation_error",
]


def tables(backend: Backend, trace: Trace) -> None:
    """Rung 0: every table and stream, as this environment's NumPy computes them."""
    for name in (*SCHEDULES, *CONTINUOUS):
        schedule = make_schedule(name)
        t = schedule.even_timesteps(1000)
        trace.arrays[f"0/schedule {name}"] = np.stack(schedule(t))
        for prediction in PREDICTIONS:
            if unsupported_reason(schedule, prediction):
                continue
            columns = Process(schedule, prediction).columns(t)
            trace.arrays[f"0/process {prediction}, {name}"] = np.stack(list(vars(columns).values()))
    for name, plan in cases.PLANS.items():
        for table, values in plan.tables().items():
            trace.arrays[f"0/plan {name}, {table}"] = values
    edm = cases.edm_batch(cases.PARITY.program, cases.PARITY.spec.image_shape, BATCH)
    for title, exact in (("", cases.digits_batch(1000, BATCH)), ("EDM, ", edm)):
        for name, values in cases.cast(exact, backend.config.host_dtype).arrays.items():
            if values.size:  # the parity network has no features
                trace.arrays[f"0/batch {title}{name}"] = values
    weights = initial_weights(cases.PARITY.program, cases.SEED, backend.config.host_dtype)
    for name, values in weights.items():
        trace.arrays[f"0/weights {name}"] = values
    steps = range(1, STEPS + 1)
    for name in PROFILES:
        ema = Ema((make_profile(name),))
        trace.arrays[f"0/decays {name}"] = np.array([ema.decays(step, step * BATCH, BATCH)[0] for step in steps])
    trace.arrays["0/data order"] = Stream(cases.SEED, "data/order").permutation(1437)


def forward_noising(backend: Backend, trace: Trace) -> None:
    """Rung 1: x_t, target and loss for every distance, on discrete levels and in continuous time."""
    case = cases.BLOCKS[0]
    weights = cases.scattered_weights(case.program)
    state = TrainerState.fresh(weights)
    trainers = {distance: backend.trainer(case.program, state, Adam(), distance) for distance in DISTANCES}
    for title, make in (("", cases.noise_batch), (", EDM", cases.edm_batch)):
        batch = cases.cast(make(case.program, case.shape), backend.config.host_dtype)
        for name, got, wanted in zip(("x_t", "target"), backend.noised(batch), reference.noised(batch), strict=True):
            trace.add_check(1, f"{name}{title}", "noised", relative(got, wanted))
        for distance, trainer in trainers.items():
            loss, _ = trainer.gradients(batch)
            wanted = reference.loss(case.program, weights, batch, distance)
            trace.add_check(1, f"loss {distance}{title}", "loss", relative(loss, wanted))


def losses(backend: Backend, trace: Trace, of: Iterable[cases.LossCase] = cases.LOSSES) -> None:
    """Rungs 1, 3, 4 and 6: every loss with more than a pixel distance; its gradients are recorded."""
    for case in of:
        weights, batch = cases.scattered_weights(case.program), cases.cast(case.batch, backend.config.host_dtype)
        distance = case.objective.distance
        for what, error in training_errors(backend, case.program, weights, batch, distance=distance).items():
            trace.add_check(1, f"{case.name}, {what}", "loss", error)
        network = backend.network(case.program, weights)
        error = validation_error(network, case.program, weights, batch, distance)
        trace.add_check(1, f"{case.name}, validation loss", "loss", error)
        loss, gradients = compute_gradients(backend, case.program, weights, batch, distance)
        trace.arrays[f"4/{case.name}, loss"] = np.float64(loss)
        for name, gradient in gradients.items():
            trace.arrays[f"4/{case.name}/{name}"] = gradient
        if case.program.self_conditioned:
            error = forward_error(backend, case.program, weights, batch, estimate=batch.noise)
            trace.add_check(3, f"{case.name}, given an estimate", "network", error)
            plan = make_plan(case.objective.process, "ddpm", variance="learned_range")
            index, dtype = np.arange(case.size), backend.config.host_dtype
            start = start_noise(plan, cases.SEED, index, batch.images.shape[1:], dtype)
            noise = noise_source(cases.SEED, index, batch.images.shape[1:], dtype)
            got = backend.sample(network, plan, start, batch.label, noise)
            rounded = {name: value.astype(dtype) for name, value in weights.items()}
            wanted = reference.sample(case.program, rounded, plan, start, batch.label, noise)
            trace.add_check(6, f"{case.name}, DDPM-4", "sampling", np.abs(got - wanted).max())


def targets(backend: Backend, trace: Trace) -> None:
    """Rungs 0, 1 and 4: the columns of every method, its loss and the loss of each image; gradients are recorded.

    A loss with a derivative is compared with one whose derivative is a difference quotient of the reference.
    """
    dtype, program = backend.config.host_dtype, target_cases.PROGRAM
    weights, average = (
        {name: value.astype(dtype) for name, value in values.items()}
        for values in (target_cases.WEIGHTS, target_cases.AVERAGE)
    )
    state = replace(TrainerState.fresh(weights, 2), averages=(weights, average))
    every = [("every kind of step", target_cases.TARGET, target_cases.batch(dtype))]
    every += [(case.name, case.target, case.batch(dtype)) for case in target_cases.CASES]
    for name, target, batch in every:
        trace.arrays[f"0/batch target {name}, columns"] = batch.columns
        trace.arrays[f"0/batch target {name}, times"] = batch.times
        if name not in (*target_cases.TRAINED, "every kind of step"):
            continue
        loss, gradients = backend.trainer(program, state, Adam(), target).gradients(batch)
        losses, _ = target_losses(program, weights, batch, target, average)
        has_derivative = any(step.direction is not None for step in target.passes)
        kind = "pullback" if has_derivative else "loss"
        trace.add_check(1, f"target {name}", kind, relative(loss, np.mean(batch.importance * losses)))
        trace.arrays[f"4/target {name}, loss"] = np.float64(loss)
        for parameter, gradient in gradients.items():
            trace.arrays[f"4/target {name}/{parameter}"] = gradient


def validation_error(network: Network, program: Program, weights: Weights, batch: TrainBatch, distance: str) -> float:
    """Return the relative error of the loss of each image in evaluation mode, against the reference."""
    rounded = {name: value.astype(batch.images.dtype) for name, value in weights.items()}
    got, _ = reference.evaluation_pass(network.forward, program, batch, distance)
    wanted, _ = reference.evaluation_pass(partial(reference.forward, program, rounded), program, batch, distance)
    return relative(got, wanted)


def micro_batches(backend: Backend, trace: Trace, count: int = 2) -> None:
    """Rungs 1 and 4: micro-batches; losses against the reference, gradients against those of the undivided batch."""
    case = next(case for case in cases.BLOCKS if case.name == cases.MICRO_BATCHED)
    weights = {n: v.astype(backend.config.host_dtype) for n, v in cases.scattered_weights(case.program).items()}
    batch = cases.cast(cases.noise_batch(case.program, case.shape), backend.config.host_dtype)
    # All images have different importance, so that one micro-batch cannot stand for another.
    batch = replace(batch, importance=batch.weight)
    losses, _ = reference.per_image_losses(case.program, weights, batch, "mse")
    trainer = backend.trainer(case.program, TrainerState.fresh(weights), Adam(), "mse")
    (_, undivided), (_, summed) = trainer.gradients(batch), trainer.gradients(batch, count)
    trace.add_check(4, "gradients in pieces", "gradient, worst tensor", worst(summed, undivided))
    result = trainer.step(batch, 0.0, (0.0,), count)
    wanted = np.mean(batch.importance * losses)
    trace.add_check(1, "in pieces, loss in training", "loss", relative(float(result.loss), wanted))
    trace.add_check(1, "in pieces, loss of each image", "loss", relative(result.losses(), losses))

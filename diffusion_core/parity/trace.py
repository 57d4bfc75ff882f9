"""The climb of one backend: checks against the reference, and a record that the other framework must match.

A record is a dictionary of arrays whose names start with their rung, as in ``"4/time added, strided/conv_in.weight"``.
It is written as `.npz` files without pickle, one per precision, so the two frameworks never share a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.backend.interface import (
    DISTANCES,
    Backend,
    Guidance,
    Network,
    NoiseSource,
    StepCallback,
    TrainBatch,
    Trainer,
    TrainerState,
)
from diffusion_core.backend.reference_target import target_losses
from diffusion_core.common.random import Stream
from diffusion_core.data import to_uint8
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.diffusion.process import PREDICTIONS, Process, unsupported_reason
from diffusion_core.diffusion.schedule import SCHEDULES, make_schedule
from diffusion_core.likelihood import dequantize, flow_density, variational_bound
from diffusion_core.model.generate import noise_source, start_noise
from diffusion_core.networks import Node, Program, lower
from diffusion_core.networks.blocks import Conv
from diffusion_core.networks.weights import Weights, initial_weights
from diffusion_core.optim import PROFILES, Ema, Power, Warmup, ema_update, make_profile
from diffusion_core.optim.adam import Adam, LearningRate, adam_update, clip_factor, global_norm
from diffusion_core.optim.normalisation import normalise_weights
from diffusion_core.parity import cases, edm2, target_cases
from diffusion_core.parity.ladder import TOLERANCES, Check, check, relative, worst
from diffusion_core.parity.normalisation import Formula, update_errors
from diffusion_core.parity.optimisers import OPTIMISERS, optimiser_errors
from diffusion_core.parity.posterior import posterior_errors
from diffusion_core.sampling import SamplerPlan, make_plan

__all__ = [
    "AVERAGES",
    "BATCH",
    "HANDOVER_STEP",
    "STEPS",
    "Trace",
    "continue_training",
    "sample_floats",
    "record",
    "sample_images",
]

Arrays = dict[str, NDArray]

STEPS, HANDOVER_STEP, BATCH = 100, 50, 16
SAMPLES = 8
_MARKS = (1, 10, STEPS)
# Steps and weights of a fourth-order difference quotient in float64.
_QUOTIENT = {h * 1e-3: w / 12e-3 for h, w in ((2, -1), (1, 8), (-1, -8), (-2, 1))}
# The averages of the parity training: their names in the record, and their profiles.
AVERAGES = {"average": Warmup(0.99), "second average": Power(0.1)}
_LR = LearningRate(1e-3)


@dataclass
class Trace:
    """The measurements of one backend in one precision.

    Args:
        backend: the name of the backend.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``.
        checks: the checks against the reference.
        arrays: values to compare with the other framework.
        states: trainer states by step, for the hand-over.
    """

    backend: str
    precision: str
    checks: list[Check] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    states: dict[int, TrainerState] = field(default_factory=dict)

    def add_check(self, rung: int, name: str, kind: str, error: float) -> None:
        """Add a check against the reference, if its kind has a tolerance in this precision."""
        if TOLERANCES[kind].allowed(self.precision) is not None:
            self.checks.append(check(rung, name, self.precision, self.backend, kind, error))


# What each part of `record` measures, in order.
PARTS = {
    "tables": "tables and random streams (rung 0)",
    "forward_noising": "forward noising, targets and losses (rung 1)",
    "losses": "losses of more than a distance (rungs 1, 3, 4, 6)",
    "targets": "targets that need the network (rungs 0, 1, 4)",
    "blocks": "every block kind (rung 2)",
    "micro_batches": "micro-batches (rungs 1, 4)",
    "optimiser": "optimiser, clip and averages (rung 5)",
    "optimisers": "every optimiser (rung 5)",
    "forced_normalisation": "forced weight normalisation (rung 5)",
    "guidance": "guidance (rungs 3, 6)",
    "posterior": "posterior sampling (rung 6)",
    "likelihoods": "likelihoods (rungs 4, 6)",
    "training": "training in lock step (rung 7)",
    "edm2_training": "training of EDM2 in lock step (rung 7)",
    "sampler_update": "sampler updates (rung 6)",
    "networks": "networks, forward and gradients (rungs 3, 4, 6)",
    "sampling": "trajectories and images (rung 6)",
}


def record(
    backend: Backend,
    titles: Iterable[str] = tuple(cases.NETWORKS),
    plans: Iterable[str] = tuple(cases.PLANS),
    around: Callable[[str, Trace], AbstractContextManager[None]] = lambda part, trace: nullcontext(),
) -> Trace:
    """Climb the ladder with one backend, in the precision of its configuration.

    Args:
        backend: the backend.
        titles: titles of the networks.
        plans: names of the plans to sample with, including DDIM-50; the tables of all plans are recorded.
        around: returns a context manager for each part, given its description and the record so far.
    """
    trace = Trace(backend.describe().backend, backend.config.precision)
    selected = {name: cases.PLANS[name] for name in plans}
    measures: dict[str, Callable[[], None]] = {
        part.__name__: partial(part, backend, trace)
        for part in (
            tables, forward_noising, losses, targets, blocks, micro_batches, optimiser, optimisers,
            forced_normalisation, guidance, posterior, likelihoods, training, edm2_training,
        )
    }  # fmt: skip
    measures["sampler_update"] = lambda: sampler_update(backend, trace, selected)
    measures["networks"] = lambda: networks(backend, trace, titles)
    measures["sampling"] = lambda: sampling(backend, trace, trace.states[STEPS].ema, selected)
    for part, measure in measures.items():
        with around(PARTS[part], trace):
            measure()
    return trace


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


def validation_error(network: Network, program: Program, weights: Weights, batch: TrainBatch, distance: str) -> float:
    """Return the relative error of the loss of each image in evaluation mode, against the reference."""
    rounded = {name: value.astype(batch.images.dtype) for name, value in weights.items()}
    got, _ = reference.evaluation_pass(network.forward, program, batch, distance)
    wanted, _ = reference.evaluation_pass(partial(reference.forward, program, rounded), program, batch, distance)
    return relative(got, wanted)


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


def prescribed_gradients(program: Program) -> Iterator[Weights]:
    """Yield one set of gradients per step, of sizes 1 to 1e-7 per parameter, equal in both frameworks."""
    sizes = dict(zip((p.name for p in program.parameters), np.logspace(0, -7, len(program.parameters)), strict=True))
    step = 0
    while True:
        yield {
            p.name: sizes[p.name] * Stream(cases.SEED, f"parity/gradient/{p.name}").normal([0], p.shape, row=step)[0]
            for p in program.parameters
        }
        step += 1


_OPTIMISER = Program(
    (
        Node("a", Conv(4, 4, 3, 1, (1, 1, 1, 1), True, 1.0), ("x",)),
        Node("b", Conv(4, 4, 3, 1, (1, 1, 1, 1), True, 1.0), ("a",)),
    )
)


def optimiser(backend: Backend, trace: Trace, steps: int = 1000, formula: Callable = adam_update) -> None:
    """Rung 5: clip, AdamW and two averages with prescribed gradients, against `formula` in NumPy float64."""
    # The norms are about 12, so that the clip acts in some steps, including the first, but not in all.
    adam, lr, decays = Adam(weight_decay=0.01, clip=11.6), 1e-3, {"moving average": 0.9, "second average": 0.99}
    weights = {name: 0.1 * value for name, value in cases.scattered_weights(_OPTIMISER).items()}
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    trainer = backend.trainer(_OPTIMISER, TrainerState.fresh(rounded, len(decays)), adam, "mse")
    state = TrainerState.fresh({name: value.astype(np.float64) for name, value in rounded.items()})
    zeros = {name: np.zeros_like(value) for name, value in state.weights.items()}
    expected, averages = (state.weights, zeros, zeros), [state.ema for _ in decays]
    decaying = frozenset(p.name for p in _OPTIMISER.parameters if p.decay)
    for step, exact in zip(range(1, steps + 1), prescribed_gradients(_OPTIMISER), strict=False):
        gradients = {name: value.astype(backend.config.host_dtype) for name, value in exact.items()}
        norm = trainer.update(gradients, lr, tuple(decays.values()))
        wide = {name: value.astype(np.float64) for name, value in gradients.items()}
        expected = formula(adam, *expected, wide, step, lr, decaying)
        averages = [ema_update(average, expected[0], d) for average, d in zip(averages, decays.values(), strict=True)]
        if step in (1, steps):
            got, kind = trainer.state(), "optimiser, 1 step" if step == 1 else "optimiser, 1000 steps"
            plural = "" if step == 1 else "s"
            trace.add_check(
                5, f"weights after {step} step{plural}", kind, _largest_difference(got.weights, expected[0]) / lr
            )
            for name, average, wanted in zip(decays, got.averages, averages, strict=True):
                trace.add_check(5, f"{name} after {step} step{plural}", kind, _largest_difference(average, wanted) / lr)
            if step == 1:
                wanted = global_norm(wide)
                trace.add_check(5, "global norm", "loss", relative(norm, wanted))
                clipped = clip_factor(wanted, adam.clip)
                moment = {name: (1 - adam.beta1) * clipped * value for name, value in wide.items()}
                error = max(relative(got.slots["moment1"][name], moment[name]) for name in moment)
                trace.add_check(5, "clipped first moment", "loss", error)
    before, bad = trainer.state(), {name: value.copy() for name, value in gradients.items()}
    bad["a.bias"][0] = np.nan
    for update in (bad, gradients):  # the second is finite, but must have no effect before `clear_non_finite`
        trainer.update(update, lr, tuple(decays.values()))
    trace.add_check(5, "changed by updates that are not finite", "bits", _changed(before, trainer.state()))
    trainer.clear_non_finite()
    trainer.update(gradients, lr, tuple(decays.values()))
    expected = formula(adam, *expected, wide, steps + 3, lr, decaying)
    trace.add_check(
        5,
        "weights after the next",
        "optimiser, 1000 steps",
        _largest_difference(trainer.state().weights, expected[0]) / lr,
    )


def optimisers(backend: Backend, trace: Trace, titles: Iterable[str] = tuple(OPTIMISERS)) -> None:
    """Rung 5: updates of every optimiser, against its formula in NumPy float64."""
    for title in titles:
        for name, kind, error in optimiser_errors(backend, title):
            trace.add_check(5, name, kind, error)


def forced_normalisation(backend: Backend, trace: Trace, formula: Formula = normalise_weights) -> None:
    """Rung 5: updates of parameters that are normalised by force, against `formula` and Adam in NumPy float64."""
    for name, kind, error in update_errors(backend, formula=formula):
        trace.add_check(5, name, kind, error)


def _changed(a: TrainerState, b: TrainerState) -> float:
    """Return the number of values that differ between two states."""
    pairs = [(a.parts[part][name], b.parts[part][name]) for part in a.parts for name in a.parts[part]]
    return float(sum(np.count_nonzero(one != other) for one, other in pairs))


def _largest_difference(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    return max(float(np.max(np.abs(a[name] - b[name]))) for name in b)


def sample_floats(
    backend: Backend, network: Network, plan: SamplerPlan, count: int = SAMPLES, callback: StepCallback | None = None
) -> NDArray:
    """Return samples of the parity network as floats."""
    return backend.sample(network, plan, *_sample_inputs(plan, backend.config.host_dtype, count), callback)


def _reference_images(plan: SamplerPlan, weights: Weights, dtype: type, count: int) -> NDArray:
    return reference.sample(cases.PARITY.program, weights, plan, *_sample_inputs(plan, dtype, count))


def _sample_inputs(plan: SamplerPlan, dtype: type, count: int) -> tuple[NDArray, NDArray, NoiseSource]:
    """Return starting noise, labels and fresh noise, equal for a backend and the reference."""
    index, shape = np.arange(count), cases.PARITY.spec.image_shape
    start = start_noise(plan, cases.SEED, index, shape, dtype)
    return start, (index % 10).astype(np.int32), noise_source(cases.SEED, index, shape, dtype)


def sampler_update(
    backend: Backend, trace: Trace, plans: Mapping[str, SamplerPlan] = cases.PLANS, count: int = 2
) -> None:
    """Rung 6, first half: short plans with untrained weights against the reference."""
    weights = cases.scattered_weights(cases.PARITY.program)
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    network = backend.network(cases.PARITY.program, weights)
    for name, plan in plans.items():
        if plan.rows <= 20:
            wanted = _reference_images(cases.PLANS[name], rounded, backend.config.host_dtype, count)
            got = sample_floats(backend, network, plan, count)
            trace.add_check(6, f"{name}, untrained", "sampling", np.abs(got - wanted).max())


def guidance(backend: Backend, trace: Trace, count: int = 2) -> None:
    """Rungs 3 and 6: a classifier, and inpainting guided by it and by a weaker network."""
    program, plan, dtype = cases.PARITY.program, cases.GUIDED, backend.config.host_dtype
    weights, weaker = (
        {name: value.astype(dtype) for name, value in cases.scattered_weights(program, gain).items()}
        for gain in (1.0, 0.7)
    )
    start, label, noise = _sample_inputs(plan, dtype, count)
    stream, shape = Stream(cases.SEED, "parity/known"), cases.PARITY.spec.image_shape
    mask = (np.arange(shape[1]) < shape[1] // 2)[None, None, :, None] * np.ones((count, *shape), dtype)

    def known(row: int) -> NDArray:
        return stream.normal(np.arange(count), shape, row, dtype)

    classifier_program = lower(cases.CLASSIFIER)
    logits = {name: value.astype(dtype) for name, value in cases.scattered_weights(classifier_program).items()}
    classifier, batch = (
        backend.network(classifier_program, logits),
        cases.cast(cases.noise_batch(classifier_program, shape), dtype),
    )
    trace.add_check(
        3, "classifier", "network", forward_error(backend, classifier_program, logits, batch, network=classifier)
    )
    all_guidance = Guidance(guide=backend.network(program, weaker), classifier=classifier, mask=mask, known=known)
    got = backend.sample(backend.network(program, weights), plan, start, label, noise, None, all_guidance)
    wanted = reference.sample(
        program, weights, plan, start, label, noise, guide=partial(reference.forward, program, weaker),
        grad_log_prob=partial(reference.grad_log_prob, classifier_program, logits), mask=mask, known=known,
    )  # fmt: skip
    trace.add_check(6, "steered", "sampling", np.abs(got - wanted).max())


def posterior(backend: Backend, trace: Trace) -> None:
    """Rung 6: posterior sampling from a linear measurement, by each method."""
    for method, error in posterior_errors(backend).items():
        trace.add_check(6, f"posterior, {method}", "sampling", error)


def likelihoods(backend: Backend, trace: Trace) -> None:
    """Rungs 4 and 6: a vector-Jacobian product, the variational bound and the density of the flow, untrained.

    The product is checked against a difference quotient of the reference along one direction, the bound against the
    reference. The reference has no vector-Jacobian product, so the product and the density are recorded.
    """
    program, dtype = cases.PARITY.program, backend.config.host_dtype
    weights = {name: value.astype(dtype) for name, value in cases.scattered_weights(program).items()}
    network = backend.network(program, weights)
    batch = cases.cast(cases.noise_batch(program, cases.PARITY.spec.image_shape), dtype)
    inputs = batch.c_noise, batch.label
    cotangent, direction = (
        Stream(cases.SEED, f"parity/{name}").normal(np.arange(batch.size), batch.images.shape[1:], dtype=dtype)
        for name in ("cotangent", "direction")
    )
    output, pulled = network.vjp(batch.images, *inputs, cotangent)
    trace.add_check(
        4, "pullback, output", "network", relative(output, reference.forward(program, weights, batch.images, *inputs))
    )
    grad_log_prob = sum(
        weight * reference.forward(program, weights, batch.images + h * np.float64(direction), *inputs)
        for h, weight in _QUOTIENT.items()
    )
    grad_log_prob = np.sum(cotangent * grad_log_prob, axis=(1, 2, 3))
    trace.add_check(
        4, "pullback", "pullback", relative(np.sum(pulled * np.float64(direction), axis=(1, 2, 3)), grad_log_prob)
    )
    trace.arrays["4/pullback/images"] = pulled

    u8, index = to_uint8(batch.images), np.arange(batch.size)
    inputs = cases.FEW_LEVELS, u8, batch.label, index, cases.SEED
    bound = variational_bound(network.forward, *inputs, batch=batch.size)
    wanted = variational_bound(partial(reference.forward, program, weights), *inputs)
    trace.add_check(6, "bound, every term", "likelihood", relative(bound.terms, wanted.terms))
    respaced, wanted = (
        variational_bound(forward, *inputs, variance="fixed_large", respacing=5, batch=batch.size)
        for forward in (network.forward, partial(reference.forward, program, weights))
    )
    trace.add_check(6, "bound of a respaced process", "likelihood", relative(respaced.terms, wanted.terms))
    y = dequantize(u8, index, cases.SEED, cases.PARITY.value_range)
    density = flow_density(network.vjp, cases.FEW_LEVELS, y, *inputs[2:], steps=6, method="heun", probes=2)
    trace.arrays["6/likelihood/bound"] = bound.terms
    trace.arrays["6/likelihood/density"] = np.stack([density.prior, density.volume])


def training(backend: Backend, trace: Trace) -> None:
    """Rung 7: lock-step training of the parity network; losses and weights are recorded, states are kept for rung 8."""
    weights = initial_weights(cases.PARITY.program, cases.SEED, backend.config.host_dtype)
    trainer = backend.trainer(cases.PARITY.program, TrainerState.fresh(weights, len(AVERAGES)), Adam(), "mse")
    losses = []
    for step in range(1, STEPS + 1):
        losses.append(training_step(backend, trainer, step))
        if step in (*_MARKS, HANDOVER_STEP, HANDOVER_STEP + 1):
            trace.states[step] = trainer.state()
    trace.arrays["7/losses"] = np.array(losses)
    for step in _MARKS:
        trace.arrays[f"7/validation {step}"] = validation_losses(backend, trace.states[step])
    for step in _MARKS:
        for name, value in trace.states[step].weights.items():
            trace.arrays[f"7/weights {step}/{name}"] = value
        for title, average in zip(AVERAGES, trace.states[step].averages, strict=True):
            trace.arrays |= {f"7/{title} {step}/{name}": value for name, value in average.items()}
    for name, value in trace.states[HANDOVER_STEP + 1].weights.items():
        trace.arrays[f"8/uninterrupted/{name}"] = value
    trace.arrays |= _state_arrays("8/handed over", trace.states[HANDOVER_STEP])


def edm2_training(backend: Backend, trace: Trace) -> None:
    """Rung 7: lock-step training of a small EDM2; its losses, its last weights and a state for rung 8 are recorded."""
    trace.arrays |= edm2.record_training(backend)


def validation_losses(backend: Backend, state: TrainerState) -> NDArray[np.float64]:
    """Return the validation losses of the weights and of each average, over all noise levels and at each of them."""
    validation = cases.validation(backend.config.host_dtype)
    network, numbers = backend.network(cases.PARITY.program, state.weights), []
    for weights in (state.weights, *state.averages):
        network.load(weights)
        numbers += validation.measure(network.forward).values()
    return np.array(numbers)


def training_step(backend: Backend, trainer: Trainer, step: int) -> float:
    """Run step 1, 2, ... of the parity training."""
    batch = cases.cast(cases.digits_batch((step - 1) * BATCH, BATCH), backend.config.host_dtype)
    decays = Ema(tuple(AVERAGES.values())).decays(step, step * BATCH, BATCH)
    return float(trainer.step(batch, _LR(step * BATCH), decays).loss)


def sampling(backend: Backend, trace: Trace, weights: Weights, plans: Mapping[str, SamplerPlan] = cases.PLANS) -> None:
    """Rung 6, second half: trajectories of trained weights and their final uint8 images are recorded."""
    trace.arrays |= sample_images(backend, weights, plans)


def sample_images(backend: Backend, weights: Weights, plans: Mapping[str, SamplerPlan] = cases.PLANS) -> Arrays:
    """Return the final images of the plans as floats and uint8, and the states of two samples along DDIM-50."""
    network = backend.network(cases.PARITY.program, weights)
    paths: dict[str, list[NDArray]] = {name: [] for name in plans}
    arrays = {}
    for name, plan in plans.items():
        images = sample_floats(
            backend, network, plan, callback=StepCallback(lambda row, x, estimate, to=name: paths[to].append(x[:2]))
        )
        arrays[f"6/{name}/images"] = images
        arrays[f"6/{name}/pixels"] = to_uint8(images)
    return arrays | {"6/DDIM-50/trajectory": np.stack(paths["DDIM-50"])}


def continue_training(backend: Backend, state: TrainerState) -> Arrays:
    """Rung 8: continue from the other framework's state at the hand-over to the end.

    Returns:
        the arrays to record: the state after the hand-over, the weights after one step, and the final weights.
    """
    trainer = backend.trainer(cases.PARITY.program, state, Adam(), "mse")
    arrays = _state_arrays("8/taken over", trainer.state())
    losses = []
    for step in range(HANDOVER_STEP + 1, STEPS + 1):
        losses.append(training_step(backend, trainer, step))
        if step == HANDOVER_STEP + 1:
            arrays |= {f"8/next step/{name}": value for name, value in trainer.state().weights.items()}
    arrays["8/losses"] = np.array(losses)
    final = trainer.state()
    arrays |= {f"8/final weights/{name}": value for name, value in final.weights.items()}
    for title, average in zip(AVERAGES, final.averages, strict=True):
        arrays |= {f"8/final {title}/{name}": value for name, value in average.items()}
    return arrays


def _state_arrays(prefix: str, state: TrainerState) -> Arrays:
    arrays = {f"{prefix}/updates": np.int64(state.updates)}
    for part, values in state.parts.items():
        arrays |= {f"{prefix}/{part}/{name}": value for name, value in values.items()}
    return arrays

"""Measuring one backend: checks against the reference, and a record of what the other framework must match.

A record is a dictionary of arrays whose names start with their rung, as in ``"4/time added, strided/conv_in.weight"``.
It is written as `.npz` files without pickle, one per precision, so the two frameworks never share a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import TOLERANCES, Check, check, relative, worst
from diffusion_core.sampling import SamplerPlan, make_plan

__all__ = [
    "AVERAGES",
    "BATCH",
    "HANDOVER_STEP",
    "STEPS",
    "Trace",
    "continue_training",
    "images_of",
    "record",
    "sample_images",
]

Arrays = dict[str, NDArray]

STEPS, HANDOVER_STEP, BATCH = 100, 50, 16
SAMPLES = 8
_MARKS = (1, 10, STEPS)
# Steps and weights of a difference quotient of fourth order, for float64.
_QUOTIENT = {h * 1e-3: w / 12e-3 for h, w in ((2, -1), (1, 8), (-1, -8), (-2, 1))}
# The name in the record, and the profile, of each average that the parity training keeps.
AVERAGES = {"average": Warmup(0.99), "second average": Power(0.1)}
_LR = LearningRate(1e-3)


@dataclass
class Trace:
    """What was measured in one precision.

    Args:
        backend: its name.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``.
        checks: against the reference, done.
        arrays: to be compared with the other framework.
        states: trainer states by step, for the hand-over.
    """

    backend: str
    precision: str
    checks: list[Check] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    states: dict[int, TrainerState] = field(default_factory=dict)

    def judge(self, rung: int, name: str, kind: str, error: float) -> None:
        """Add a check against the reference, if a claim is made of its kind in this precision."""
        if TOLERANCES[kind].of(self.precision) is not None:
            self.checks.append(check(rung, name, self.precision, self.backend, kind, error))


def record(
    backend: Backend, titles: Iterable[str] = tuple(cases.NETWORKS), plans: Iterable[str] = tuple(cases.PLANS)
) -> Trace:
    """Climb the ladder with one backend, whose settings say the precision.

    Args:
        backend: what climbs.
        titles: of the networks.
        plans: names of the plans that are sampled with, DDIM-50 among them; the tables of all are recorded.
    """
    trace = Trace(backend.describe().backend, backend.config.precision)
    chosen = {name: cases.PLANS[name] for name in plans}
    for rung in (tables, forward_noising, losses, blocks, micro_batches, optimiser, steered, likelihoods, training):
        rung(backend, trace)
    sampler_update(backend, trace, chosen)
    networks(backend, trace, titles)
    sampling(backend, trace, trace.states[STEPS].ema, chosen)
    return trace


def tables(backend: Backend, trace: Trace) -> None:
    """Rung 0: every table and stream, as this environment's NumPy makes them."""
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
            if values.size:  # the parity network takes no features
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
    """Rung 1: x_t, target and loss, for every distance, of levels of a table and in continuous time."""
    case = cases.BLOCKS[0]
    weights = cases.scattered_weights(case.program)
    state = TrainerState.fresh(weights)
    trainers = {distance: backend.trainer(case.program, state, Adam(), distance) for distance in DISTANCES}
    for title, make in (("", cases.noise_batch), (", EDM", cases.edm_batch)):
        batch = cases.cast(make(case.program, case.shape), backend.config.host_dtype)
        for name, got, wanted in zip(("x_t", "target"), backend.noised(batch), reference.noised(batch), strict=True):
            trace.judge(1, f"{name}{title}", "noised", relative(got, wanted))
        for distance, trainer in trainers.items():
            loss, _ = trainer.gradients(batch)
            wanted = reference.loss(case.program, weights, batch, distance)
            trace.judge(1, f"loss {distance}{title}", "loss", relative(loss, wanted))


def losses(backend: Backend, trace: Trace, of: Iterable[cases.LossCase] = cases.LOSSES) -> None:
    """Rungs 1, 3, 4 and 6: every loss of more than a distance; its gradients are recorded."""
    for case in of:
        weights, batch = cases.scattered_weights(case.program), cases.cast(case.batch, backend.config.host_dtype)
        distance = case.objective.distance
        for what, error in training_errors(backend, case.program, weights, batch, distance=distance).items():
            trace.judge(1, f"{case.name}, {what}", "loss", error)
        loss, gradients = gradients_of(backend, case.program, weights, batch, distance)
        trace.arrays[f"4/{case.name}, loss"] = np.float64(loss)
        for name, gradient in gradients.items():
            trace.arrays[f"4/{case.name}/{name}"] = gradient
        if case.program.self_conditioned:
            error = forward_error(backend, case.program, weights, batch, estimate=batch.noise)
            trace.judge(3, f"{case.name}, given an estimate", "network", error)
            plan = make_plan(case.objective.process, "ddpm", variance="learned_range")
            index, dtype = np.arange(case.size), backend.config.host_dtype
            start = start_noise(plan, cases.SEED, index, batch.images.shape[1:], dtype)
            noise = noise_source(cases.SEED, index, batch.images.shape[1:], dtype)
            got = backend.sample(backend.network(case.program, weights), plan, start, batch.label, noise)
            rounded = {name: value.astype(dtype) for name, value in weights.items()}
            wanted = reference.sample(case.program, rounded, plan, start, batch.label, noise)
            trace.judge(6, f"{case.name}, DDPM-4", "sampling", np.abs(got - wanted).max())


def forward_error(
    backend: Backend,
    program: Program,
    weights: Weights,
    batch: TrainBatch,
    expected: Program | None = None,
    network: Network | None = None,
    estimate: NDArray | None = None,
) -> float:
    """Relative difference of a forward pass from the reference's, of the same program unless `expected` is given."""
    inputs = batch.images, batch.c_noise, batch.label, batch.features
    if estimate is not None:
        inputs += (estimate,)
    got = (network or backend.network(program, weights)).forward(*inputs)
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    return relative(got, reference.forward(expected or program, rounded, *inputs))


def gradients_of(
    backend: Backend, program: Program, weights: Weights, batch: TrainBatch, distance: str = "mse"
) -> tuple[float, Weights]:
    """Loss and gradients of a program."""
    return backend.trainer(program, TrainerState.fresh(weights), Adam(), distance).gradients(batch)


def training_errors(
    backend: Backend,
    program: Program,
    weights: Weights,
    batch: TrainBatch,
    expected: TrainBatch | None = None,
    distance: str = "mse",
) -> dict[str, float]:
    """What a step of training computes against the reference: losses, and the running statistics that it leaves."""
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    expected = expected or batch
    losses, moved = reference.per_image_losses(program, rounded, expected, distance)
    trainer = backend.trainer(program, TrainerState.fresh(rounded), Adam(), distance)
    result = trainer.step(batch, 0.0, (0.0,))
    errors = {
        "loss in training": relative(float(result.loss), np.mean(expected.importance * losses)),
        "loss of each image": relative(result.losses(), losses),
    }
    after = trainer.state().weights
    for name, value in moved.items():
        errors[f"running {name.rsplit('.', 1)[1]}"] = relative(after[name], value)
    return errors


def blocks(backend: Backend, trace: Trace, of: Iterable[cases.BlockCase] | None = None) -> None:
    """Rung 2: the forward pass of every block against the reference; its gradients are recorded."""
    for case in cases.BLOCKS if of is None else of:
        weights = cases.scattered_weights(case.program, case.gain)
        batch = cases.cast(cases.noise_batch(case.program, case.shape), backend.config.host_dtype)
        trace.judge(2, case.name, f"block{case.kind}", forward_error(backend, case.program, weights, batch))
        if case.has_training_mode:
            for what, error in training_errors(backend, case.program, weights, batch).items():
                trace.judge(2, f"{case.name}, {what}", "block", error)
        _, gradients = gradients_of(backend, case.program, weights, batch)
        for name, gradient in gradients.items():
            trace.arrays[f"2/{case.name}/{name}"] = gradient


def micro_batches(backend: Backend, trace: Trace, count: int = 2) -> None:
    """Rungs 1 and 4: a batch in pieces; its losses against the reference, its gradients against those of the whole."""
    case = next(case for case in cases.BLOCKS if case.name == cases.MICRO_BATCHED)
    weights = {n: v.astype(backend.config.host_dtype) for n, v in cases.scattered_weights(case.program).items()}
    batch = cases.cast(cases.noise_batch(case.program, case.shape), backend.config.host_dtype)
    # No two images count alike, so that one piece cannot stand for the other.
    batch = replace(batch, importance=batch.weight)
    losses, _ = reference.per_image_losses(case.program, weights, batch, "mse")
    trainer = backend.trainer(case.program, TrainerState.fresh(weights), Adam(), "mse")
    (_, whole), (_, added) = trainer.gradients(batch), trainer.gradients(batch, count)
    trace.judge(4, "gradients in pieces", "gradient, worst tensor", worst(added, whole))
    result = trainer.step(batch, 0.0, (0.0,), count)
    wanted = np.mean(batch.importance * losses)
    trace.judge(1, "in pieces, loss in training", "loss", relative(float(result.loss), wanted))
    trace.judge(1, "in pieces, loss of each image", "loss", relative(result.losses(), losses))


def in_use(backend: Backend, trace: Trace, title: str) -> tuple[Weights, TrainBatch]:
    """Rungs 3 and 6 of one network: its forward pass, and a short run of a sampler with it."""
    spec, dtype = cases.NETWORKS[title], backend.config.host_dtype
    program = lower(spec)
    weights = cases.scattered_weights(program)
    batch = cases.cast(cases.noise_batch(program, spec.image_shape), dtype)
    network = backend.network(program, weights)
    trace.judge(3, title, "network", forward_error(backend, program, weights, batch, network=network))
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
        trace.judge(6, f"{title}, {name}", "sampling", np.abs(got - wanted).max())
    return weights, batch


def networks(backend: Backend, trace: Trace, titles: Iterable[str]) -> None:
    """Rungs 3, 4 and 6: whole networks, forward and sampling, against the reference; their gradients are recorded."""
    for title in titles:
        weights, batch = in_use(backend, trace, title)
        loss, gradients = gradients_of(backend, lower(cases.NETWORKS[title]), weights, batch)
        trace.arrays[f"4/{title}, loss"] = np.float64(loss)
        for name, gradient in gradients.items():
            trace.arrays[f"4/{title}/{name}"] = gradient


def prescribed_gradients(program: Program) -> Iterator[Weights]:
    """Gradients of a size per parameter, 1 down to 1e-7, the same in both frameworks, a set per step."""
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
    """Rung 5: prescribed gradients through clip, AdamW and two averages, against `formula` in NumPy float64."""
    # The norms lie around 12, so that the clip takes hold at some steps, the first among them, and not at others.
    adam, lr, decays = Adam(weight_decay=0.01, clip=11.6), 1e-3, {"moving average": 0.9, "second average": 0.99}
    weights = {name: 0.1 * value for name, value in cases.scattered_weights(_OPTIMISER).items()}
    rounded = {name: value.astype(backend.config.host_dtype) for name, value in weights.items()}
    trainer = backend.trainer(_OPTIMISER, TrainerState.fresh(rounded, len(decays)), adam, "mse")
    state = TrainerState.fresh({name: value.astype(np.float64) for name, value in rounded.items()})
    expected, averages = (state.weights, state.moment1, state.moment2), [state.ema for _ in decays]
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
            trace.judge(5, f"weights after {step} step{plural}", kind, _apart(got.weights, expected[0]) / lr)
            for name, average, wanted in zip(decays, got.averages, averages, strict=True):
                trace.judge(5, f"{name} after {step} step{plural}", kind, _apart(average, wanted) / lr)
            if step == 1:
                wanted = global_norm(wide)
                trace.judge(5, "global norm", "loss", relative(norm, wanted))
                clipped = clip_factor(wanted, adam.clip)
                moment = {name: (1 - adam.beta1) * clipped * value for name, value in wide.items()}
                error = max(relative(got.moment1[name], moment[name]) for name in moment)
                trace.judge(5, "clipped first moment", "loss", error)
    before, lost = trainer.state(), {name: value.copy() for name, value in gradients.items()}
    lost["a.bias"][0] = np.nan
    for one in (lost, gradients):  # of which the second is sound, but is not taken before the first is forgiven
        trainer.update(one, lr, tuple(decays.values()))
    trace.judge(5, "changed by updates that are not finite", "bits", _changed(before, trainer.state()))
    trainer.clear_non_finite()
    trainer.update(gradients, lr, tuple(decays.values()))
    expected = formula(adam, *expected, wide, steps + 3, lr, decaying)
    trace.judge(5, "weights after the next", "optimiser, 1000 steps", _apart(trainer.state().weights, expected[0]) / lr)


def _changed(a: TrainerState, b: TrainerState) -> float:
    """How many numbers of two states differ."""
    pairs = [(a.parts[part][name], b.parts[part][name]) for part in a.parts for name in a.parts[part]]
    return float(sum(np.count_nonzero(one != other) for one, other in pairs))


def _apart(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    return max(float(np.max(np.abs(a[name] - b[name]))) for name in b)


def images_of(
    backend: Backend, network: Network, plan: SamplerPlan, count: int = SAMPLES, callback: StepCallback | None = None
) -> NDArray:
    """Samples of the parity network, as floats."""
    return backend.sample(network, plan, *_sample_inputs(plan, backend.config.host_dtype, count), callback)


def _reference_images(plan: SamplerPlan, weights: Weights, dtype: type, count: int) -> NDArray:
    return reference.sample(cases.PARITY.program, weights, plan, *_sample_inputs(plan, dtype, count))


def _sample_inputs(plan: SamplerPlan, dtype: type, count: int) -> tuple[NDArray, NDArray, NoiseSource]:
    """Starting noise, labels and fresh noise: the same for a backend and for the reference."""
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
            got = images_of(backend, network, plan, count)
            trace.judge(6, f"{name}, untrained", "sampling", np.abs(got - wanted).max())


def steered(backend: Backend, trace: Trace, count: int = 2) -> None:
    """Rungs 3 and 6: a classifier; sampling that is led by it and by a weaker network, over a picture known in part."""
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

    telling = lower(cases.CLASSIFIER)
    logits = {name: value.astype(dtype) for name, value in cases.scattered_weights(telling).items()}
    classifier, batch = backend.network(telling, logits), cases.cast(cases.noise_batch(telling, shape), dtype)
    trace.judge(3, "classifier", "network", forward_error(backend, telling, logits, batch, network=classifier))
    guidance = Guidance(guide=backend.network(program, weaker), classifier=classifier, mask=mask, known=known)
    got = backend.sample(backend.network(program, weights), plan, start, label, noise, None, guidance)
    wanted = reference.sample(
        program, weights, plan, start, label, noise, guide=partial(reference.forward, program, weaker),
        grad_log_prob=partial(reference.grad_log_prob, telling, logits), mask=mask, known=known,
    )  # fmt: skip
    trace.judge(6, "steered", "sampling", np.abs(got - wanted).max())


def likelihoods(backend: Backend, trace: Trace) -> None:
    """Rungs 4 and 6: a pullback, the bound and the density of the flow, of untrained weights.

    The pullback is held to a difference quotient of the reference along one direction, and the bound to the
    reference; as it has no pullback, that and the density are recorded.
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
    trace.judge(
        4, "pullback, output", "network", relative(output, reference.forward(program, weights, batch.images, *inputs))
    )
    grad_log_prob = sum(
        weight * reference.forward(program, weights, batch.images + h * np.float64(direction), *inputs)
        for h, weight in _QUOTIENT.items()
    )
    grad_log_prob = np.sum(cotangent * grad_log_prob, axis=(1, 2, 3))
    trace.judge(
        4, "pullback", "pullback", relative(np.sum(pulled * np.float64(direction), axis=(1, 2, 3)), grad_log_prob)
    )
    trace.arrays["4/pullback/images"] = pulled

    u8, index = to_uint8(batch.images), np.arange(batch.size)
    inputs = cases.FEW_LEVELS, u8, batch.label, index, cases.SEED
    bound = variational_bound(network.forward, *inputs, batch=batch.size)
    wanted = variational_bound(partial(reference.forward, program, weights), *inputs)
    trace.judge(6, "bound, every term", "likelihood", relative(bound.terms, wanted.terms))
    y = dequantize(u8, index, cases.SEED, cases.PARITY.value_range)
    density = flow_density(network.vjp, cases.FEW_LEVELS, y, *inputs[2:], steps=6, method="heun", probes=2)
    trace.arrays["6/likelihood/bound"] = bound.terms
    trace.arrays["6/likelihood/density"] = np.stack([density.prior, density.volume])


def training(backend: Backend, trace: Trace) -> None:
    """Rung 7: lock-step training of the parity network; losses and weights are recorded, states kept for rung 8."""
    weights = initial_weights(cases.PARITY.program, cases.SEED, backend.config.host_dtype)
    trainer = backend.trainer(cases.PARITY.program, TrainerState.fresh(weights, len(AVERAGES)), Adam(), "mse")
    losses = []
    for step in range(1, STEPS + 1):
        losses.append(training_step(backend, trainer, step))
        if step in (*_MARKS, HANDOVER_STEP, HANDOVER_STEP + 1):
            trace.states[step] = trainer.state()
    trace.arrays["7/losses"] = np.array(losses)
    for step in _MARKS:
        for name, value in trace.states[step].weights.items():
            trace.arrays[f"7/weights {step}/{name}"] = value
        for title, average in zip(AVERAGES, trace.states[step].averages, strict=True):
            trace.arrays |= {f"7/{title} {step}/{name}": value for name, value in average.items()}
    for name, value in trace.states[HANDOVER_STEP + 1].weights.items():
        trace.arrays[f"8/uninterrupted/{name}"] = value
    trace.arrays |= _state_arrays("8/handed over", trace.states[HANDOVER_STEP])


def training_step(backend: Backend, trainer: Trainer, step: int) -> float:
    """Step 1, 2, ... of the parity training."""
    batch = cases.cast(cases.digits_batch((step - 1) * BATCH, BATCH), backend.config.host_dtype)
    decays = Ema(tuple(AVERAGES.values())).decays(step, step * BATCH, BATCH)
    return float(trainer.step(batch, _LR(step * BATCH), decays).loss)


def sampling(backend: Backend, trace: Trace, weights: Weights, plans: Mapping[str, SamplerPlan] = cases.PLANS) -> None:
    """Rung 6, second half: whole trajectories of trained weights, with their final uint8 images, are recorded."""
    trace.arrays |= sample_images(backend, weights, plans)


def sample_images(backend: Backend, weights: Weights, plans: Mapping[str, SamplerPlan] = cases.PLANS) -> Arrays:
    """Final images of the plans as floats and as uint8, and the states of two samples along DDIM-50, one of them."""
    network = backend.network(cases.PARITY.program, weights)
    paths: dict[str, list[NDArray]] = {name: [] for name in plans}
    arrays = {}
    for name, plan in plans.items():
        images = images_of(
            backend, network, plan, callback=StepCallback(lambda row, x, estimate, to=name: paths[to].append(x[:2]))
        )
        arrays[f"6/{name}/images"] = images
        arrays[f"6/{name}/pixels"] = to_uint8(images)
    return arrays | {"6/DDIM-50/trajectory": np.stack(paths["DDIM-50"])}


def continue_training(backend: Backend, state: TrainerState) -> Arrays:
    """Rung 8: go on from the other framework's state at the hand-over to the end.

    Returns:
        what is recorded: the state as it was taken over, the weights after one step, and the final ones.
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

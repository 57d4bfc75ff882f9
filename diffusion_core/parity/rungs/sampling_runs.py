"""Rungs 3, 4 and 6: sampling with and without guidance, posterior sampling and likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Backend, Guidance, Network, NoiseSource, StepCallback
from diffusion_core.common.random import Stream
from diffusion_core.data import to_uint8
from diffusion_core.likelihood import dequantize, flow_density, variational_bound
from diffusion_core.model.generate import noise_source, start_noise
from diffusion_core.networks import lower
from diffusion_core.networks.weights import Weights
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import relative
from diffusion_core.parity.posterior import posterior_errors
from diffusion_core.parity.rungs.forward_pass import forward_error
from diffusion_core.parity.trace import Arrays, Trace
from diffusion_core.sampling import SamplerPlan

__all__ = [
    "SAMPLES",
    "guidance",
    "likelihoods",
    "posterior",
    "reference_images",
    "sample_floats",
    "sample_images",
    "sample_inputs",
    "sampler_update",
    "sampling",
]


SAMPLES = 8


# Steps and weights of a fourth-order difference quotient in float64.
_QUOTIENT = {h * 1e-3: w / 12e-3 for h, w in ((2, -1), (1, 8), (-1, -8), (-2, 1))}


def sample_floats(
    backend: Backend, network: Network, plan: SamplerPlan, count: int = SAMPLES, callback: StepCallback | None = None
) -> NDArray:
    """Return samples of the parity network as floats."""
    return backend.sample(network, plan, *sample_inputs(plan, backend.config.host_dtype, count), callback)


def reference_images(plan: SamplerPlan, weights: Weights, dtype: type, count: int) -> NDArray:
    """Return the samples of the parity network by the reference."""
    return reference.sample(cases.PARITY.program, weights, plan, *sample_inputs(plan, dtype, count))


def sample_inputs(plan: SamplerPlan, dtype: type, count: int) -> tuple[NDArray, NDArray, NoiseSource]:
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
            wanted = reference_images(cases.PLANS[name], rounded, backend.config.host_dtype, count)
            got = sample_floats(backend, network, plan, count)
            trace.add_check(6, f"{name}, untrained", "sampling", np.abs(got - wanted).max())


def guidance(backend: Backend, trace: Trace, count: int = 2) -> None:
    """Rungs 3 and 6: a classifier, and inpainting guided by it and by a weaker network."""
    program, plan, dtype = cases.PARITY.program, cases.GUIDED, backend.config.host_dtype
    weights, weaker = (
        {name: value.astype(dtype) for name, value in cases.scattered_weights(program, gain).items()}
        for gain in (1.0, 0.7)
    )
    start, label, noise = sample_inputs(plan, dtype, count)
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

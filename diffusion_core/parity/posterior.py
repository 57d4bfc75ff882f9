"""The rung of posterior sampling: each method against the reference, whose derivatives are differences."""

from __future__ import annotations

import numpy as np

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Backend, Guidance
from diffusion_core.common.random import Stream
from diffusion_core.model.generate import noise_source, start_noise
from diffusion_core.networks import lower
from diffusion_core.parity import cases
from diffusion_core.sampling.linear_operators import blur, downsample
from diffusion_core.sampling.measurement import Measurement, observe

__all__ = ["posterior_errors"]


def posterior_errors(backend: Backend, count: int = 2) -> dict[str, float]:
    """Return by method the largest error of samples, given a measurement by a blur and a block mean."""
    spec, dtype, index = cases.MEASURED, backend.config.host_dtype, np.arange(count)
    program, shape, label = lower(spec), spec.image_shape, index.astype(np.int32)
    weights = {name: value.astype(dtype) for name, value in cases.scattered_weights(program, 0.5).items()}
    network, operator = backend.network(program, weights), downsample(shape, 2) @ blur(shape, 0.8)
    y = observe(operator, Stream(cases.SEED, "parity/measured").normal(index, shape), 0.1, cases.SEED, index)
    noise, errors = noise_source(cases.SEED, index, shape, dtype), {}
    for method, plan in cases.MEASURED_PLANS.items():
        measurement = Measurement(operator, y, 0.1, shape, method, iterations=3 if method == "mmps" else None)
        start = start_noise(plan, cases.SEED, index, shape, dtype)
        got = backend.sample(network, plan, start, label, noise, None, Guidance(measurement=measurement))
        wanted = reference.sample(program, weights, plan, start, label, noise, measurement=measurement)
        errors[method] = float(np.abs(got - wanted).max())
    return errors

"""Posterior sampling in both frameworks: exact posteriors by own networks, and the same samples as the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gaussian import DENOISER, Gaussian, affine_moments, errors, unit_starts

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Guidance
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.model.generate import generate, noise_source, start_noise
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.parity import cases
from diffusion_core.sampling import make_plan
from diffusion_core.sampling.edit import posterior
from diffusion_core.sampling.linear_operators import blur, downsample, mask
from diffusion_core.sampling.measurement import Measurement, observe
from experiments.runtime import own_networks

pytestmark = pytest.mark.backend

DATA = Gaussian.random((4, 4, 1), 2)
OPERATORS = {"downsample": downsample(DATA.shape, 2), "mask": mask(DATA.shape, np.eye(4)[..., None])}


def own_denoiser(backend_name: str) -> Any:
    """Return the exact denoiser of `DATA` as a network of the framework, in float64."""
    variances, directions = DATA.axes
    if backend_name == "torch":
        import torch

        class TorchDenoiser(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.directions = torch.nn.Parameter(torch.tensor(directions))
                self.register_buffer("variances", torch.tensor(variances))
                self.register_buffer("mean", torch.tensor(DATA.mean))

            def forward(self, x: Any, t: Any) -> Any:
                away = (x.reshape(len(x), -1) - self.mean) @ self.directions
                gain = self.variances / (self.variances + t[:, None] ** 2)
                return (self.mean + (gain * away) @ self.directions.T).reshape(x.shape)

        return TorchDenoiser()
    import tensorflow as tf

    class Denoiser(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.directions = tf.Variable(directions)

        def __call__(self, x: Any, t: Any) -> Any:
            away = (tf.reshape(x, [-1, 16]) - DATA.mean) @ self.directions
            gain = variances / (variances + tf.cast(t, tf.float64)[:, None] ** 2)
            flat = DATA.mean + tf.matmul(gain * away, self.directions, transpose_b=True)
            return tf.reshape(flat, tf.shape(x))

    return Denoiser()


def moments(network: Any, operator: Any, y: np.ndarray, noise: float, plan: Any, **options: Any) -> tuple:
    own = own_networks.adapt(network)
    shape = (1, 4, 4) if own.layout == "channels_first" else (4, 4, 1)
    spec = own.spec(shape, classes=0, with_label=False, conditions=())
    starts = unit_starts(DATA.shape, plan.start_scale)
    measurement = Measurement(operator, np.repeat(y, len(starts), axis=0), noise, DATA.shape, **options)
    made, labels = replace(posterior(plan, measurement), start=starts), np.zeros(len(starts), np.int32)
    return affine_moments(generate(own.open(False), own.build(spec, False), plan, DATA.shape, labels, 0, edit=made))


@pytest.mark.parametrize("name", OPERATORS)
def test_moment_matching_with_an_own_network_samples_the_exact_posterior(open_backend, backend_name, name):
    open_backend()  # TensorFlow takes its number of threads once
    operator, plan = OPERATORS[name], make_plan(DENOISER, "heun", steps=50)
    y = observe(operator, DATA.draw(5), 0.2, 0, np.arange(1))
    got = moments(own_denoiser(backend_name), operator, y, 0.2, plan, iterations=4)  # as many as numbers are measured
    assert max(errors(got, DATA.posterior(operator, y, 0.2))) < 0.02


def test_an_own_network_is_led_as_the_same_function_of_numpy_arrays(open_backend, backend_name):
    open_backend()
    operator, network = blur(DATA.shape, 0.5), own_denoiser(backend_name)
    y = observe(operator, DATA.draw(5), 0.2, 0, np.arange(1))
    for method, sampler in (("mmps", "heun"), ("pigdm", "heun"), ("dps", "euler")):
        plan, options = make_plan(DENOISER, sampler, steps=6), {"iterations": 3} if method == "mmps" else {}
        both = (moments(one, operator, y, 0.2, plan, method=method, **options) for one in (network, DATA.denoise))
        for one, other in zip(*both, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


# What the small network of the ladder has not: self-conditioning, a learned variance and features.
WIDE = lower(UNetSpec(4, 1, 2, 4, (1,), 1, (), norm_groups=2, zero_init=False, self_conditioning=True))


def test_a_learned_variance_and_self_conditioning_agree_with_the_reference(open_backend):
    backend, index, shape = open_backend("float64"), np.arange(2), (4, 4, 1)
    plan = make_plan(Process(linear(20, 1e-3, 0.4), "v", 50.0), "ddpm", steps=3, variance="learned_range")
    operator, weights = mask(shape, np.eye(4)[..., None]), cases.scattered_weights(WIDE, 0.5)
    y, network = (
        observe(operator, Stream(0, "measured").normal(index, shape), 0.1, 0, index),
        backend.network(WIDE, weights),
    )
    given = plan, start_noise(plan, 3, index, shape, float), index, noise_source(3, index, shape, float)
    for options in ({}, {"method": "pigdm"}, {"method": "pigdm", "adaptive": True}, {"method": "dps"}):
        measurement = Measurement(operator, y, 0.1, shape, **options)
        got = backend.sample(network, *given, None, Guidance(measurement=measurement))
        assert np.abs(got - reference.sample(WIDE, weights, *given, measurement=measurement)).max() <= 1e-10


@pytest.mark.slow
def test_compiled_posterior_samples_agree_with_the_reference(open_backend):
    from diffusion_core.parity import rungs, trace

    climbed = trace.Trace("this", "float64")
    rungs.posterior(open_backend("float64", compile=True), climbed)
    assert all(one.error <= one.tolerance for one in climbed.checks) and len(climbed.checks) == 3

"""Networks that read a second time, and derivatives of a network along a direction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.reference.target import derivative
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.model.generate import noise_source, start_noise
from diffusion_core.networks import DiTSpec, UNetSpec, lower
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import relative
from diffusion_core.sampling import make_plan

pytestmark = pytest.mark.backend

SPEC = UNetSpec(
    image_size=8, in_channels=1, out_channels=1, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1,
    attention_resolutions=(), norm_groups=4, num_classes=3, second_time=True,
)  # fmt: skip
PROGRAM = lower(SPEC)
WEIGHTS = cases.scattered_weights(PROGRAM)
TIMES, SECOND, LABELS = np.array([0.3, 0.7, 1.0]), np.array([0.2, 0.0, 0.9]), np.array([0, 1, 3])
IMAGES, DIRECTION = (Stream(0, name).normal(np.arange(3), (8, 8, 1)) for name in ("images", "direction"))
ROUNDING = {"float64": 1e-12, "float32": 5e-6}


@pytest.fixture(params=["float64", "float32"], scope="module")
def backend(request, open_backend) -> Any:
    return open_backend(request.param)


@pytest.fixture(scope="module")
def network(backend) -> Any:
    return backend.network(PROGRAM, WEIGHTS)


@pytest.fixture(scope="module")
def rounded(backend) -> Any:
    return {name: value.astype(backend.config.host_dtype) for name, value in WEIGHTS.items()}


def test_the_second_time_reaches_the_network_and_counts_as_zero_if_it_is_missing(backend, network, rounded):
    dtype, bound = backend.config.host_dtype, ROUNDING[backend.config.precision]
    x = IMAGES.astype(dtype)
    for second in (SECOND, None):
        got = network.forward(x, TIMES, LABELS, second_time=second)
        wanted = reference.forward(PROGRAM, rounded, x, TIMES, LABELS, second_time=second)
        assert relative(got, wanted) <= bound
    zeros = network.forward(x, TIMES, LABELS, second_time=np.zeros(3))
    np.testing.assert_array_equal(zeros, network.forward(x, TIMES, LABELS))
    assert relative(network.forward(x, TIMES, LABELS, second_time=SECOND), zeros) > 1e-2


def test_the_derivative_along_a_direction_is_that_of_the_reference(backend, network, rounded):
    dtype, bound = backend.config.host_dtype, ROUNDING[backend.config.precision]
    x, direction = (
        IMAGES.astype(dtype),
        (DIRECTION.astype(dtype), np.array([1.0, 0.5, -2.0]), np.array([1.0, 0.0, 3.0])),
    )
    output, rate = network.jvp(x, TIMES, LABELS, direction, second_time=SECOND)
    wanted = derivative(
        lambda *at: reference.forward(PROGRAM, rounded, at[0], at[1], LABELS, second_time=at[2]), (x, TIMES, SECOND),
        direction,
    )  # fmt: skip
    assert relative(output, network.forward(x, TIMES, LABELS, second_time=SECOND)) <= bound
    assert relative(rate, wanted) <= max(bound, 1e-9)


def test_the_derivative_of_a_transformer_is_that_of_the_reference(backend):
    """Through norms without scale and shift, modulation, attention on tokens and GELU by tanh, as MeanFlow needs it."""
    spec = DiTSpec(8, 1, 1, num_classes=3, patch_size=4, channels=8, depth=1, heads=2, second_time=True)
    program, dtype = lower(spec), backend.config.host_dtype
    weights = {name: value.astype(dtype) for name, value in cases.scattered_weights(program).items()}
    direction = DIRECTION.astype(dtype), np.array([1.0, 0.5, -2.0]), np.array([1.0, 0.0, 3.0])
    x = IMAGES.astype(dtype)
    output, rate = backend.network(program, weights).jvp(x, TIMES, LABELS, direction, second_time=SECOND)

    def function(x, t, second):
        return reference.forward(program, weights, x, t, LABELS, second_time=second)

    bound = ROUNDING[backend.config.precision]
    assert relative(output, function(x, TIMES, SECOND)) <= bound
    assert relative(rate, derivative(function, (x, TIMES, SECOND), direction)) <= max(bound, 1e-9)


def test_both_products_with_the_jacobian_agree(backend, network):
    """<c, J d> = <J^T c, d>."""
    dtype, zeros = backend.config.host_dtype, np.zeros(3)
    x, d, c = (array.astype(dtype) for array in (IMAGES, DIRECTION, IMAGES[::-1].copy()))
    _, rate = network.jvp(x, TIMES, LABELS, (d, zeros, zeros), second_time=SECOND)
    _, pulled = network.vjp(x, TIMES, LABELS, c, second_time=SECOND)
    assert relative(np.sum(c * rate), np.sum(pulled * d)) <= 10 * ROUNDING[backend.config.precision]


def test_a_plan_passes_a_second_time_in_each_row(backend, network, rounded):
    dtype = backend.config.host_dtype
    plan = make_plan(cases.PARITY.process, "ddim", steps=3, eta=0.5)
    plan = replace(plan.with_guidance(2.0), second_time=np.array([0.9, 0.5, 0.1]))
    index, shape = np.arange(3), IMAGES.shape[1:]
    start, noise = start_noise(plan, 0, index, shape, dtype), noise_source(0, index, shape, dtype)
    got = backend.sample(network, plan, start, LABELS, noise)
    wanted = reference.sample(PROGRAM, rounded, plan, start, LABELS, noise)
    assert np.abs(got - wanted).max() <= 10 * ROUNDING[backend.config.precision]
    without = backend.sample(network, replace(plan, second_time=None), start, LABELS, noise)
    assert np.abs(got - without).max() > 1e-2
    with pytest.raises(DuetError, match=r"second_time has shape \(2,\); it must be \(3,\)"):
        replace(plan, second_time=np.zeros(2))


def test_an_exported_network_reads_the_second_time(backend, network, tmp_path):
    backend.export(network, tmp_path / "network", (8, 8, 1))
    loaded = backend.load_export(PROGRAM, tmp_path / "network")
    x = IMAGES.astype(backend.config.host_dtype)
    for second in (SECOND, None):
        expected = network.forward(x, TIMES, LABELS, second_time=second)
        got = loaded(x, TIMES, LABELS, second_time=second)
        assert relative(got, expected) <= ROUNDING[backend.config.precision]


def test_a_missing_second_time_is_the_default_of_the_program(open_backend, tmp_path):
    """In a forward pass, in derivatives, in a plan of one time and in an exported file."""
    small = lower(DiTSpec(8, 1, 1, num_classes=3, patch_size=4, channels=8, depth=1, heads=2, second_time=True))
    backend, program = open_backend("float64"), replace(small, default_second_time=3.0)
    weights = cases.scattered_weights(program)
    network, three, zeros = backend.network(program, weights), np.full(3, 3.0), np.zeros(3)
    wanted = network.forward(IMAGES, TIMES, LABELS, second_time=three)
    np.testing.assert_array_equal(network.forward(IMAGES, TIMES, LABELS), wanted)
    assert relative(reference.forward(program, weights, IMAGES, TIMES, LABELS), wanted) <= 1e-12
    for given in ("jvp", "vjp"):
        along = (DIRECTION, zeros, zeros) if given == "jvp" else DIRECTION
        pairs = (getattr(network, given)(IMAGES, TIMES, LABELS, along, second_time=s)[1] for s in (None, three))
        np.testing.assert_array_equal(*pairs)
    plan, shape = make_plan(cases.PARITY.process, "ddim", steps=2), IMAGES.shape[1:]
    noise = noise_source(0, np.arange(3), shape, np.float64)
    plans = (plan, replace(plan, second_time=np.full(2, 3.0)))
    got, explicit = (backend.sample(network, p, IMAGES, LABELS, noise) for p in plans)
    np.testing.assert_allclose(got, explicit, rtol=0, atol=1e-14)
    backend.export(network, tmp_path / "network", (8, 8, 1))
    loaded = backend.load_export(program, tmp_path / "network")
    assert relative(loaded(IMAGES, TIMES, LABELS), wanted) <= 1e-12

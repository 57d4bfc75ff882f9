"""Sampling: sample k is the same image in any batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_core.backend import reference
from diffusion_core.backend.interface import BackendConfig, Guidance, StepCallback
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import flow, linear
from diffusion_core.model.generate import check_labels, generate, noise_source, start_noise
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.networks.weights import initial_weights
from diffusion_core.sampling.ddim import ddim

PROGRAM = lower(UNetSpec(4, 1, 1, 4, (1,), 1, (4,), norm_groups=2, num_classes=3, zero_init=False))
BLIND = replace(PROGRAM, null_label=None, classes=0)
WEIGHTS = initial_weights(PROGRAM, 0)
PLAN = ddim(Process(linear(), "eps"), 3, eta=1.0).with_guidance([1.0, 2.0, 1.0])
SHAPE = (4, 4, 1)


class Reference:
    """The reference with the interface of a backend."""

    config = BackendConfig(precision="float64")

    def sample(self, network, plan, start, label, noise, callback=None, guidance=None):
        return reference.sample(network.program, WEIGHTS, plan, start, label, noise, callback, guidance.guide)


def images(labels, **options):
    return generate(Reference(), SimpleNamespace(program=PROGRAM), PLAN, SHAPE, labels, seed=5, **options)


def test_a_sample_is_the_same_in_any_batch():
    labels = np.array([0, 1, 2, 3, 0])
    together = images(labels)
    assert together.shape == (5, *SHAPE)
    for batch in (1, 2, 4):
        np.testing.assert_allclose(images(labels, batch=batch), together, rtol=0, atol=1e-13)
    np.testing.assert_allclose(images(labels[3:], first=3), together[3:], rtol=0, atol=1e-13)
    assert np.abs(together[0] - together[4]).max() > 0.01


def test_progress_and_step_callback():
    seen, rows = [], []
    images(
        np.zeros(5, int),
        batch=2,
        progress=seen.append,
        callback=StepCallback(lambda row, x, estimate: rows.append(len(x))),
    )
    assert seen == [2, 4, 5] and rows == [2, 2, 2]


def test_no_labels_give_no_images():
    assert images(np.zeros(0, int)).shape == (0, *SHAPE)


def test_streams_are_the_documented_ones():
    plan = ddim(Process(flow(), "v"), 4)
    start = start_noise(plan, 5, np.array([7, 8]), SHAPE, np.float64)
    np.testing.assert_array_equal(start, plan.start_scale * Stream(5, "sample/start").normal([7, 8], SHAPE))
    noise = noise_source(5, np.array([7]), SHAPE, np.float32)
    np.testing.assert_array_equal(noise(2), Stream(5, "sample/noise").normal([7], SHAPE, 2).astype(np.float32))
    assert noise(2).dtype == np.float32 and not np.array_equal(noise(1), noise(2))


def test_labels_are_checked_against_the_network():
    assert check_labels([0, 3], PROGRAM, PLAN).dtype == np.int32
    for labels, wrong in (([0, 4], 4), ([-1], -1)):
        with pytest.raises(DuetError, match=f"label {wrong}: the network has classes 0..2, and 3 for no class"):
            check_labels(labels, PROGRAM, PLAN)
    with pytest.raises(DuetError, match=r"sampler.guidance_scale: 2 was given, but the network has no classes; use 1"):
        check_labels([0], BLIND, PLAN)
    np.testing.assert_array_equal(check_labels([5, 6], BLIND, PLAN.with_guidance(1.0)), [0, 0])
    np.testing.assert_array_equal(check_labels([5, 6], BLIND, PLAN, has_guide=True), [0, 0])


def test_a_guide_guides_every_batch():
    def led(label, **options):
        guide = partial(reference.forward, PROGRAM, {name: 0.5 * value for name, value in WEIGHTS.items()})
        return images(np.full(3, label), guidance=Guidance(guide=guide), **options)

    np.testing.assert_allclose(led(1, batch=2), led(1), rtol=0, atol=1e-13)
    assert np.all(np.abs(led(1) - images(np.full(3, 1))).max(axis=(1, 2, 3)) > 1e-3)

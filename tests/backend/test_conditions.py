"""A network that is told conditions in training is told them in sampling, from Python and by name."""

from __future__ import annotations

import numpy as np
import pytest

import duet
from diffusion_core.common.errors import DuetError
from experiments.sampling.options import sample_features

pytestmark = pytest.mark.either

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(backend_name):
    """A short run on images whose brightness is their condition."""
    light = RNG.uniform(-1, 1, 64)
    images = np.clip(light[:, None, None, None] + 0.05 * RNG.normal(size=(64, 8, 8, 1)), -1, 1)
    data = duet.load_dataset(
        images, value_range=(-1, 1), conditions=np.stack([light, -light], axis=1), condition_names=["light", "dark"]
    )
    network = duet.network(
        "digits",
        num_classes=0,
        augment_dim=2,
        channels=8,
        norm_groups=4,
        channel_multipliers=[1],
        blocks_per_resolution=1,
        attention_resolutions=[],
    )
    model = duet.Model(network, schedule="cosine", prediction="x0")
    return duet.train(
        model,
        data,
        images=320,
        batch=16,
        lr=1e-2,
        ema=duet.make_ema("fixed", decay=0.0),
        samples=4,
        backend=backend_name,
        quiet=True,
    )


def draw(run, **options):
    return duet.sample(run, 3, sampler="ddim", steps=8, precision="float32", **options)


def test_samples_follow_their_conditions(run):
    bright, dark = draw(run, conditions={"light": 0.8, "dark": -0.8}), draw(run, conditions=[-0.8, 0.8])
    assert bright.mean() > dark.mean() + 0.2
    mixed = draw(run, conditions=[[0.8, -0.8], [-0.8, 0.8], [0.8, -0.8]])
    np.testing.assert_allclose(mixed[[0, 2]], bright[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(mixed[1], dark[1], atol=1e-5)
    np.testing.assert_allclose(draw(run), draw(run, conditions=[0, 0]), atol=1e-5)
    np.testing.assert_allclose(draw(run, conditions={"light": 0.5}), draw(run, conditions=[0.5, 0]), atol=1e-5)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"lihgt": 1}, "'lihgt' was given; it must be one of light, dark. Did you mean 'light'"),
        ([1, 2, 3], "it must be 2 numbers, a list of such vectors, or numbers by name"),
        ("bright", "it must be 2 numbers"),
        ([float("nan"), 0], "it must be 2 numbers"),
    ],
)
def test_conditions_that_the_network_does_not_know_are_refused(run, conditions, message):
    with pytest.raises(DuetError, match=message):
        draw(run, conditions=conditions)


def test_a_network_without_features_takes_no_conditions_and_augmented_ones_end_with_zeros(run):
    program = run.model.program
    with pytest.raises(DuetError, match="the network takes no conditions"):
        plain = duet.Model(duet.network("digits"), "cosine", "v").program
        sample_features([1.0], 2, plain)
    wide = duet.Model(duet.network("digits", augment_dim=11), "cosine", "v").program
    np.testing.assert_array_equal(sample_features([1, 2], 3, wide), [[1, 2, *[0] * 9]] * 3)
    assert sample_features(None, 3, program) is None and run.training.data.condition_names == ("light", "dark")

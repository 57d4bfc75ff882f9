"""`duet.loss` of a plain function of NumPy arrays: a float, without gradients."""

from __future__ import annotations

import numpy as np
import pytest

import duet

CLEAN = np.random.default_rng(0).normal(size=(64, 2))


def network(prediction):
    """Return a process, and the denoiser D(x_t) = x_t/2 as a network with its prediction."""
    process = duet.process("cosine", prediction)

    def output(x, t):
        columns = process.columns(t)
        return (x / 2 - columns.c_skip[:, None] * x) / columns.c_out[:, None]

    return output, process


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_with_one_weighting_the_loss_of_a_denoiser_does_not_depend_on_its_prediction(prediction):
    options = {"seed": 1, "step": 3, "value_range": (-3.0, 3.0)}
    loss, expected = (
        duet.loss(output, CLEAN, process, weighting="snr", **options)
        for output, process in (network(prediction), network("eps"))
    )
    assert isinstance(loss, float) and loss == pytest.approx(expected, rel=1e-10)
    output, process = network(prediction)
    assert duet.loss(output, CLEAN, process, **options) != pytest.approx(expected)


def test_it_is_the_mean_squared_error_of_the_target():
    process = duet.process("cosine", "eps")
    losses = [duet.loss(lambda x, t: 0 * x, CLEAN, process, step=step) for step in range(60)]
    assert np.mean(losses) == pytest.approx(1, abs=0.05)  # the target is normal noise, and each step draws another
    assert len(set(losses)) == 60


def test_a_loop_of_ones_own_trains_on_pairs():
    """For the exact student of pairs, v = image - noise, the loss on them is zero; with drawn noise it is not."""
    noise = np.random.default_rng(1).normal(size=CLEAN.shape)
    data = duet.load_dataset(CLEAN, noise=noise, value_range=(-3.0, 3.0))
    process = duet.process("flow_continuous", "velocity")
    options = {"value_range": (-3.0, 3.0)}
    for one in duet.batches(data, batch=16, images=32, precision="float64", value_range=(-3.0, 3.0)):
        np.testing.assert_array_equal(one.noise, noise[[np.argmin(np.abs(CLEAN - x).sum(axis=1)) for x in one.images]])

        def student(x, t, one=one):
            return one.noise - one.images

        assert duet.loss(student, one.images, process, noise=one.noise, step=one.step, **options) < 1e-25
        assert duet.loss(student, one.images, process, step=one.step, **options) > 0.5
    with pytest.raises(duet.DuetError, match=r"noise: shape \(3, 2\) was given; it must be that of the images"):
        duet.loss(student, CLEAN[:4], process, noise=noise[:3], **options)

"""`duet.denoise`: a network's estimate of the images behind noise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import duet
from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainerState
from diffusion_core.networks.weights import initial_weights

RNG = np.random.default_rng(0)
NOISY, T, LABELS = RNG.normal(size=(5, 8, 8, 1)), np.array([0, 3, 400, 998, 999]), [0, 1, 2, 9, 4]


@cache
def checkpoint(prediction: str = "v", classes: int = 10):
    spec = duet.network("digits", channels=8, norm_groups=4, attention_resolutions=[], num_classes=classes)
    model = duet.Model(spec, "linear", prediction)
    weights = initial_weights(model.program, 0)
    # Every weight matters, also those that start at zero.
    weights = {name: value + 0.05 * RNG.normal(size=value.shape) for name, value in weights.items()}
    return duet.Checkpoint(0, model, 0, TrainerState.fresh(weights), {})


def expected(loaded, labels):
    columns, program = loaded.model.process.columns(T), loaded.model.program
    c_in, c_skip, c_out = (column[:, None, None, None] for column in (columns.c_in, columns.c_skip, columns.c_out))
    output = reference.forward(program, loaded.state.weights, c_in * NOISY, columns.c_noise, np.array(labels, np.int32))
    return c_skip * NOISY + c_out * output


@pytest.mark.backend
@pytest.mark.parametrize(("prediction", "labels", "batch"), [("v", LABELS, 3), ("edm", None, 256)])
def test_the_estimate_is_that_of_the_reference_whatever_the_network_predicts(prediction, labels, batch, backend_name):
    loaded, options = checkpoint(prediction), {"backend": backend_name, "device": "cpu", "precision": "float64"}
    got = duet.denoise(loaded, NOISY, T, labels=labels, batch=batch, **options)
    np.testing.assert_allclose(got, expected(loaded, labels or [10] * 5), rtol=1e-10, atol=1e-12)


@pytest.mark.backend
@pytest.mark.either
@pytest.mark.filterwarnings("ignore:weights")  # the network is untrained
def test_the_estimate_is_the_one_that_sampling_uses(backend_name):
    seen = []
    loaded, options = checkpoint(), {"backend": backend_name, "device": "cpu", "precision": "float64"}
    duet.sample(
        loaded, 3, sampler="ddim", steps=4, clip=None, callback=lambda *step: seen.append(step[1:]),
        weights="ema", **options,
    )  # fmt: skip
    plan = duet.make_plan(loaded.model.process, "ddim", steps=4, clip=None)
    states, estimates = np.concatenate([step[0] for step in seen[:3]]), np.concatenate([step[1] for step in seen[1:]])
    got = duet.denoise(loaded, states, plan.t[1:].repeat(3), labels=[0, 1, 2] * 3, **options)
    np.testing.assert_allclose(got, estimates, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NOISY[0], 3), r"x: an array of shape \(8, 8, 1\) was given; it must be \(N, 8, 8, 1\), N at least"),
        ((NOISY[..., :0], 3), "x: an array of shape"),
        ((NOISY, [1, 2]), r"t: \(2,\) times were given for 5 images"),
        ((NOISY, 1000), "1000"),
        ((NOISY, 3, [1, 2]), "labels: 2 were given for 5 images"),
        ((NOISY, 3, 11), "labels: 11 was given"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    x, t, *labels = arguments
    with pytest.raises(duet.DuetError, match=message):
        duet.denoise(checkpoint(), x, t, labels=labels[0] if labels else None)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(duet.DuetError, match="batch: 0 was given"):
        duet.denoise(checkpoint(), NOISY, T, batch=0)


@pytest.mark.backend
def test_the_estimate_of_an_own_network_has_the_shape_of_its_data(backend_name):
    points, process = np.tanh(RNG.normal(size=(32, 2))).astype(np.float32), duet.process("cosine", "v")
    if backend_name == "torch":
        network = pytest.importorskip("torch").nn.Linear(2, 2)
        network = duet.adapt(network, inputs="x")
    else:
        keras = pytest.importorskip("keras")
        network = duet.adapt(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), inputs="x")
    run = duet.train(network, process, points, images=32, batch=32, quiet=True)
    kernel, bias = sorted(run.state.ema.values(), key=lambda array: -array.ndim)
    kernel = kernel.T if backend_name == "torch" else kernel
    x, columns = RNG.normal(size=(5, 2)), process.columns(T)
    expected = columns.c_skip[:, None] * x + columns.c_out[:, None] * (x @ kernel + bias)
    np.testing.assert_allclose(duet.denoise(run, x, T), expected, rtol=1e-4, atol=1e-5)

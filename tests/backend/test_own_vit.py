"""The same transformer in PyTorch, in Keras and in NumPy gives the same samples, losses and training.

NumPy's function is run by the reference; each environment holds its own module to it, so both agree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_vit as vit
import pytest

import duet
from diffusion_core.data import Dataset, Loader
from diffusion_core.data.pixels import to_uint8
from diffusion_core.optim.adam import adam_update
from experiments.runtime.own_networks import building

pytestmark = pytest.mark.backend

PROCESS = duet.process("cosine", "v", T=16)
PLANS = {
    "guided": duet.samplers.dpm_solver(PROCESS, steps=4, guidance=2.0),
    "ancestral": duet.samplers.ddpm(PROCESS, steps=4),
    "continuous": duet.samplers.heun(duet.process("flow_continuous", "flow"), steps=3),
}
QUICK = {"samples": 1, "sampler": {"name": "ddim", "steps": 3}, "quiet": True, "compile": False}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 2), np.uint8)
DATA = Dataset(IMAGES, np.arange(12) % 3, ("a", "b", "c"), "noise")


@pytest.fixture(scope="module")
def networks(backend_name: str, open_backend: Callable[..., Any]) -> Callable[[str], Any]:
    """Return a function of the precision that makes the module of the framework."""
    open_backend("float64")  # it sets the threads before the framework starts
    made = {
        precision: duet.adapt(vit.BUILD[backend_name](vit.vit_weights(), precision), classes=3, name="vit")
        for precision in ("float64", "float32")
    }
    return made.__getitem__


@pytest.mark.parametrize("name", PLANS)
def test_a_module_samples_as_the_function_of_numpy(name: str, networks: Any, backend_name: str) -> None:
    options = {"labels": vit.LABELS, "seed": 5}
    wanted = duet.sample(vit.vit_numpy(vit.vit_weights()), PLANS[name], shape=(3, 4, 4, 2), classes=3, **options)
    for precision in ("float64", "float32"):
        got = duet.sample(networks(precision), PLANS[name], shape=vit.own_shape(backend_name, 3), **options)
        got = vit.to_last(got, backend_name)
        if precision == "float64":
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(to_uint8(got), to_uint8(wanted))


def loss_and_gradients(name: str, network: Any, *arguments: Any, **options: Any) -> tuple[float, list[np.ndarray]]:
    """Return `duet.loss` and its gradients, as an own loop computes them in a framework."""
    if name == "torch":
        network.zero_grad()
        loss = duet.loss(network, *arguments, **options)
        loss.backward()
        return float(loss.detach()), [parameter.grad.numpy().copy() for parameter in network.parameters()]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = duet.loss(network, *arguments, **options)
    gradients = tape.gradient(loss, network.trainable_variables)
    return float(loss), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def variables(name: str, network: Any) -> list[Any]:
    return list(network.parameters()) if name == "torch" else network.trainable_variables


def values_of(name: str, network: Any) -> list[np.ndarray]:
    return [(v.detach() if name == "torch" else v).numpy().copy() for v in variables(name, network)]


def assign(variable: Any, value: np.ndarray) -> None:
    if hasattr(variable, "assign"):
        variable.assign(value)
    else:
        variable.data.copy_(variable.data.new_tensor(value))


@pytest.mark.parametrize(
    "options", ({}, {"weighting": {"name": "min_snr"}, "distance": "huber"}), ids=("plain", "more")
)
def test_the_loss_of_a_module_is_that_of_the_function_of_numpy(options: Any, networks: Any, backend_name: str) -> None:
    images = DATA.images.astype(np.float64) / 127.5 - 1.0
    given = {"labels": DATA.labels, "seed": 3, "step": 2, **options}
    wanted = float(duet.loss(vit.vit_numpy(vit.vit_weights()), images, PROCESS, classes=3, **given))
    own = np.moveaxis(images, -1, 1) if backend_name == "torch" else images
    got = duet.loss(networks("float64"), own, PROCESS, **given)
    assert float(got.detach() if backend_name == "torch" else got) == pytest.approx(wanted, rel=1e-12)


def test_an_own_loop_takes_the_steps_of_duet_train(backend_name: str, open_backend: Any, tmp_path: Path) -> None:
    open_backend("float64")
    network = vit.BUILD[backend_name](vit.vit_weights(), "float64")
    before = values_of(backend_name, network)
    # The gradient of the bias of the keys is rounding noise, which a small eps would amplify.
    adam, batch, seed = duet.Adam(clip=1.0, eps=1e-4), 4, 7
    run = duet.train(
        network, PROCESS, DATA, images=3 * batch, batch=batch, lr=1e-2, optimiser=adam, seed=seed,
        out=tmp_path / "run", classes=3, **QUICK,
    )  # fmt: skip
    for value, old in zip(values_of(backend_name, network), before, strict=True):
        np.testing.assert_array_equal(value, old)  # the network that was given is not changed
    loader = Loader(DATA, seed, dtype=np.float64)
    moments = [{str(i): np.zeros_like(v) for i, v in enumerate(before)} for _ in range(2)]
    weights = {str(i): v for i, v in enumerate(before)}
    for step in range(3):
        read = loader.batch(step * batch, batch)
        images = np.moveaxis(read.pixels, -1, 1) if backend_name == "torch" else read.pixels
        options = {"labels": read.labels, "seed": seed, "step": step, "classes": 3}
        _, gradients = loss_and_gradients(backend_name, network, images, PROCESS, **options)
        named = {str(i): g for i, g in enumerate(gradients)}
        weights, *moments = adam_update(adam, weights, *moments, named, step + 1, 1e-2)
        for variable, value in zip(variables(backend_name, network), weights.values(), strict=True):
            assign(variable, value)
    names = [p.name for p in run.model.program.trained]
    for name, value in zip(names, weights.values(), strict=True):
        np.testing.assert_allclose(run.state.weights[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


def test_a_run_resumes_bit_for_bit_and_samples(backend_name: str, open_backend: Any, tmp_path: Path) -> None:
    open_backend("float64")
    options = {"batch": 4, "lr": 1e-2, "classes": 3, "seed": 2, **QUICK}

    def make() -> Any:
        return vit.BUILD[backend_name](vit.vit_weights(), "float32")

    whole = duet.train(make(), PROCESS, DATA, images=16, checkpoint_images=8, out=tmp_path / "whole", **options)
    half = tmp_path / "whole" / "checkpoints" / f"{8:012d}"
    parts = duet.train(make(), PROCESS, DATA, images=16, out=tmp_path / "parts", resume=half, **options)
    for part, arrays in whole.state.parts.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(parts.state.parts[part][name], array, err_msg=f"{part} {name}")
    loaded = duet.load(tmp_path / "parts", network=make())
    np.testing.assert_array_equal(loaded.sample(3, sampler="ddim", steps=3), whole.sample(3, sampler="ddim", steps=3))


def test_first_weights_follow_from_the_seed_alone(backend_name: str, open_backend: Callable[..., Any]) -> None:
    open_backend("float64")

    def draw(seed: int) -> np.ndarray:
        with building(backend_name, "float32", seed):
            if backend_name == "torch":
                import torch

                return torch.nn.Linear(3, 2).weight.detach().numpy()
            import keras

            layer = keras.layers.Dense(2)
        layer(np.zeros((1, 3)))  # Keras draws in the first call
        return layer.kernel.numpy()

    first = draw(4)
    np.testing.assert_array_equal(draw(4), first)
    assert np.any(draw(5) != first)

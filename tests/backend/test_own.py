"""An own network samples, trains and is judged as the network of Duet that it computes.

The own networks are programs of Duet dressed as modules, see `own_twins`. So each plan, with each of its options, must
give what the executor gives for the program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import own_twins as twins
import pytest

import duet
from diffusion_core.backend.interface import Guidance, StepCallback
from diffusion_core.data.pixels import to_uint8
from diffusion_core.likelihood import flow_density
from diffusion_core.model.generate import generate
from diffusion_core.sampling import SAMPLERS
from diffusion_core.sampling.edit import Edit, add_start_noise

pytestmark = pytest.mark.backend

PROCESS = duet.process("cosine", "v", T=16)
OPTIONS: dict[str, dict[str, Any]] = {
    "next_level": {},
    "repaint": {"steps": 4, "jump": 2, "resamples": 2},
    "plms": {"steps": 8},
    "pndm": {"steps": 8},
}
# Options that change a row's formula, with one or more networks.
PLANS: dict[str, dict[str, Any]] = {
    "guidance with a null label": {"guidance": 2.0},
    "guidance in an interval, rescaled": {"guidance": 3.0, "interval": (3, 12), "rescale": 0.7},
    "dynamic threshold": {"guidance": 4.0, "threshold": 0.9},
    "clipped, stochastic": {"eta": 1.0, "clip": 0.5},
    "given noise levels": {"spacing": None, "steps": None, "sigmas": [9.0, 2.0, 0.5, 0.0]},
}


def process_of(sampler: str) -> Any:
    return duet.process("cosine", "next_level", T=16) if sampler == "next_level" else PROCESS


@pytest.fixture(scope="module")
def networks(backend_name: str, open_backend: Callable[..., Any]) -> Callable[..., tuple[Any, Any, Any]]:
    """Return a function of (precision, spec, gain): the backend, an own network and that of Duet."""
    made: dict[Any, Any] = {}

    def network(precision: str = "float64", spec: Any = twins.SPEC, gain: float = 1.0) -> tuple[Any, Any, Any]:
        key = (precision, spec, gain)
        if key not in made:
            backend = open_backend(precision)
            made[key] = (backend, *twins.make(backend_name, backend, spec, gain))
        return made[key]

    return network


@pytest.fixture(scope="module")
def own_sample(backend_name: str) -> Callable[..., np.ndarray]:
    """Return `duet.sample` of three samples, with images b h w c as a result."""

    def sample(network: Any, plan: Any, **options: Any) -> np.ndarray:
        shape = (3, 2, 4, 4) if backend_name == "torch" else (3, 4, 4, 2)
        options = {"classes": 3, "labels": twins.LABELS, "seed": 5, **options}
        result = np.asarray(duet.sample(network, plan, shape=shape, **options))
        return np.moveaxis(result, 1, -1) if backend_name == "torch" else result

    return sample


def duets(backend: Any, network: Any, plan: Any, **options: Any) -> np.ndarray:
    """Return what Duet's executor gives for the program."""
    return generate(backend, network, plan, (4, 4, 2), twins.LABELS, 5, **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_samples_an_own_network_as_that_of_duet(sampler: str, networks: Any, own_sample: Any) -> None:
    plan = getattr(duet.samplers, sampler)(process_of(sampler), **OPTIONS.get(sampler, {"steps": 4}))
    backend, own, network = networks()
    np.testing.assert_allclose(own_sample(own, plan), duets(backend, network, plan), rtol=1e-12, atol=1e-12)
    backend, own, network = networks("float32")
    np.testing.assert_array_equal(to_uint8(own_sample(own, plan)), to_uint8(duets(backend, network, plan)))


@pytest.mark.parametrize("name", PLANS)
def test_every_option_of_a_plan_holds_for_an_own_network(name: str, networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddim(PROCESS, **{"steps": 4, **PLANS[name]})
    backend, own, network = networks()
    np.testing.assert_allclose(own_sample(own, plan), duets(backend, network, plan), rtol=1e-12, atol=1e-12)


def test_a_learned_variance_is_read_from_the_second_half_of_the_channels(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddpm(PROCESS, steps=4, variance="learned_range", guidance=2.0)
    backend, own, network = networks(spec=twins.LEARNED)
    np.testing.assert_allclose(own_sample(own, plan), duets(backend, network, plan), rtol=1e-12, atol=1e-12)
    # A plan with a fixed variance uses the first half only.
    plan = duet.samplers.ddim(PROCESS, steps=4)
    np.testing.assert_allclose(own_sample(own, plan), duets(backend, network, plan), rtol=1e-12, atol=1e-12)


def test_a_second_own_network_guides(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.heun(PROCESS, steps=4, guidance=2.0)
    (backend, own, network), (_, own_guide, guide) = networks(), networks(gain=0.7)
    wanted = duets(backend, network, plan, guidance=Guidance(guide=guide))
    np.testing.assert_allclose(own_sample(own, plan, guide=own_guide), wanted, rtol=1e-12, atol=1e-12)


def test_an_own_classifier_guides(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddim(PROCESS, steps=4, eta=0.5, classifier=1.5)
    (backend, own, network), (_, own_classifier, classifier) = networks(), networks(spec=twins.CLASSIFIER)
    wanted = duets(backend, network, plan, guidance=Guidance(classifier=classifier))
    got = own_sample(own, plan, classifier=duet.adapt(own_classifier, inputs="x, t, label"))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_a_known_part_is_kept_and_a_start_is_taken(networks: Any, own_sample: Any, backend_name: str) -> None:
    plan, index = duet.samplers.ddim(PROCESS, steps=4, eta=1.0), np.arange(3)
    backend, own, network = networks()
    known = np.random.default_rng(0).normal(size=(3, 4, 4, 2))
    mask = np.zeros((3, 4, 4, 1))
    mask[:, :2] = 1
    edit = Edit(plan, index, mask=mask, images=known)
    given = {"known": twins.to_layout(known, backend_name), "mask": twins.to_layout(mask, backend_name)}
    got = own_sample(own, plan, **given)
    np.testing.assert_allclose(got, duets(backend, network, plan, edit=edit), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got[:, :2], known[:, :2], rtol=1e-12)
    start = add_start_noise(plan, known, index, 5)
    got = own_sample(own, plan, start=twins.to_layout(start, backend_name))
    wanted = duets(backend, network, plan, edit=Edit(plan, index, start=start))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_batches_and_the_first_index_select_the_same_samples(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddim(PROCESS, steps=4, eta=1.0)
    backend, own, network = networks()
    whole = duets(backend, network, plan)
    np.testing.assert_allclose(own_sample(own, plan, batch=2), whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        own_sample(own, plan, first=7), duets(backend, network, plan, first=7), rtol=1e-12, atol=1e-12
    )


def test_the_callback_and_the_progress_follow_the_plan(networks: Any, own_sample: Any, backend_name: str) -> None:
    plan, seen, own_seen, done = duet.samplers.ddim(PROCESS, steps=3), [], [], []
    backend, own, network = networks()
    duets(backend, network, plan, callback=StepCallback(lambda *row: seen.append(row)))
    own_sample(own, plan, batch=2, callback=lambda *row: own_seen.append(row), progress=done.append)
    assert done == [2, 3]
    assert [row for row, _, _ in own_seen] == [row for row, _, _ in seen]
    for (_, x, estimate), (_, own_x, own_estimate) in zip(seen, own_seen, strict=True):
        for wanted, got in ((x, own_x), (estimate, own_estimate)):
            np.testing.assert_allclose(got, twins.to_layout(wanted, backend_name)[:2], rtol=1e-12, atol=1e-12)


def test_the_likelihood_by_the_flow_is_that_of_the_program(networks: Any, backend_name: str) -> None:
    _, own, network = networks()
    images = np.random.default_rng(1).normal(size=(3, 4, 4, 2))
    labels = np.array(twins.LABELS)
    wanted = flow_density(network.vjp, PROCESS, images, labels.astype(np.int32), np.arange(3), 5, steps=3).log_density
    given = twins.to_layout(images, backend_name)
    got = duet.log_likelihood(own, given, PROCESS, labels=labels, classes=3, seed=5, steps=3, batch=2)
    np.testing.assert_allclose(got, wanted, rtol=1e-10)
    exact = [
        duet.log_likelihood(own, given[:1], PROCESS, labels=0, classes=3, steps=3, divergence="exact")[0],
        flow_density(
            network.vjp, PROCESS, images[:1], labels[:1].astype(np.int32), [0], 0, steps=3, divergence="exact"
        ).log_density[0],
    ]
    np.testing.assert_allclose(*exact, rtol=1e-10)
    with pytest.raises(duet.DuetError, match="process: it is missing"):
        duet.log_likelihood(own, given)

"""An own network samples, trains and is judged as the network of Duet that it computes.

The own networks are programs of Duet dressed as modules, see `own_twins`. So each plan, with each of its options, must
give what the NumPy reference gives for the program; in float32, the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import own_twins as twins
import pytest

import duet
from diffusion_core.backend.interface import Guidance, StepCallback
from diffusion_core.backend.numpy_backend import NumpyBackend
from diffusion_core.data.pixels import to_uint8
from diffusion_core.likelihood import flow_density
from diffusion_core.model.generate import generate
from diffusion_core.networks import lower
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
# One of each kind of step: stochastic, two evaluations, several estimates, several registers.
FLOAT32 = ("ddpm", "heun", "unipc", "dpmpp_sde")
# Options that change a row's formula, with one or more networks.
PLANS: dict[str, dict[str, Any]] = {
    "guidance with a null label": {"guidance": 2.0},
    "guidance in an interval, rescaled": {"guidance": 3.0, "interval": (3, 12), "rescale": 0.7},
    "dynamic threshold": {"guidance": 4.0, "threshold": 0.9},
    "clipped, stochastic": {"eta": 1.0, "clip": 0.5},
    "given noise levels": {"spacing": None, "steps": None, "sigmas": [9.0, 2.0, 0.5, 0.0]},
}


def process_of(sampler: str) -> Any:
    if sampler in ("sit_ode", "sit_sde"):  # of a continuous time alone
        return duet.process("cosine_continuous", "v")
    if sampler == "rectified_flow":
        return duet.process("flow_continuous", "velocity_to_data", t_min=1e-12)
    return duet.process("cosine", "next_level", T=16) if sampler == "next_level" else PROCESS


@pytest.fixture(scope="module")
def networks(backend_name: str, open_backend: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Return a function of (precision, spec, gain): an own network, and the program in the NumPy reference."""

    @cache
    def network(precision: str = "float64", spec: Any = twins.SPEC, gain: float = 1.0) -> tuple[Any, Any]:
        backend, program = open_backend(precision), lower(spec)
        arrays = twins.weights(program, gain)
        own = twins.AS_OWN[backend_name](program, arrays, backend)
        # Adapted once, so that what a framework traces is kept from one test to the next.
        return duet.adapt(own, classes=3), NumpyBackend().network(program, arrays)

    return network


@pytest.fixture(scope="module")
def own_sample(backend_name: str) -> Callable[..., np.ndarray]:
    """Return `duet.sample` of three samples, with images b h w c as a result."""

    def sample(network: Any, plan: Any, **options: Any) -> np.ndarray:
        shape = (3, 2, 4, 4) if backend_name == "torch" else (3, 4, 4, 2)
        options = {"labels": twins.LABELS, "seed": 5, **options}
        result = np.asarray(duet.sample(network, plan, shape=shape, **options))
        return np.moveaxis(result, 1, -1) if backend_name == "torch" else result

    return sample


def reference(network: Any, plan: Any, **options: Any) -> np.ndarray:
    """Return what the NumPy reference gives for the program."""
    return generate(NumpyBackend(), network, plan, (4, 4, 2), twins.LABELS, 5, **options)


# mean_flow and shortcut sample networks of two times; see tests/core/test_own.py.
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("mean_flow", "shortcut")])
def test_every_sampler_samples_an_own_network_as_that_of_duet(sampler: str, networks: Any, own_sample: Any) -> None:
    plan = getattr(duet.samplers, sampler)(process_of(sampler), **OPTIONS.get(sampler, {"steps": 4}))
    own, network = networks()
    wanted = reference(network, plan)
    np.testing.assert_allclose(own_sample(own, plan), wanted, rtol=1e-12, atol=1e-12)
    if sampler in FLOAT32:
        np.testing.assert_array_equal(to_uint8(own_sample(networks("float32")[0], plan)), to_uint8(wanted))


@pytest.mark.parametrize("name", PLANS)
def test_every_option_of_a_plan_holds_for_an_own_network(name: str, networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddim(PROCESS, **{"steps": 4, **PLANS[name]})
    own, network = networks()
    np.testing.assert_allclose(own_sample(own, plan), reference(network, plan), rtol=1e-12, atol=1e-12)


def test_a_learned_variance_is_read_from_the_second_half_of_the_channels(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddpm(PROCESS, steps=4, variance="learned_range", guidance=2.0)
    own, network = networks(spec=twins.LEARNED)
    np.testing.assert_allclose(own_sample(own, plan), reference(network, plan), rtol=1e-12, atol=1e-12)
    # A plan with a fixed variance uses the first half only.
    plan = duet.samplers.ddim(PROCESS, steps=4)
    np.testing.assert_allclose(own_sample(own, plan), reference(network, plan), rtol=1e-12, atol=1e-12)


def test_a_second_own_network_guides(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.heun(PROCESS, steps=4, guidance=2.0)
    (own, network), (own_guide, guide) = networks(), networks(gain=0.7)
    wanted = reference(network, plan, guidance=Guidance(guide=guide))
    np.testing.assert_allclose(own_sample(own, plan, guide=own_guide), wanted, rtol=1e-12, atol=1e-12)


def test_an_own_classifier_guides(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddim(PROCESS, steps=4, eta=0.5, classifier=1.5)
    (own, network), (own_classifier, classifier) = networks(), networks(spec=twins.CLASSIFIER)
    wanted = reference(network, plan, guidance=Guidance(classifier=classifier))
    got = own_sample(own, plan, classifier=duet.adapt(own_classifier, inputs="x, t, label"))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_a_known_part_is_kept_and_a_start_is_taken(networks: Any, own_sample: Any, backend_name: str) -> None:
    plan, index = duet.samplers.ddim(PROCESS, steps=4, eta=1.0), np.arange(3)
    own, network = networks()
    known = np.random.default_rng(0).normal(size=(3, 4, 4, 2))
    mask = np.zeros((3, 4, 4, 1))
    mask[:, :2] = 1
    edit = Edit(plan, index, mask=mask, images=known)
    given = {"known": twins.to_layout(known, backend_name), "mask": twins.to_layout(mask, backend_name)}
    got = own_sample(own, plan, **given)
    np.testing.assert_allclose(got, reference(network, plan, edit=edit), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got[:, :2], known[:, :2], rtol=1e-12)
    start = add_start_noise(plan, known, index, 5)
    got = own_sample(own, plan, start=twins.to_layout(start, backend_name))
    wanted = reference(network, plan, edit=Edit(plan, index, start=start))
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_batches_and_the_first_index_select_the_same_samples(networks: Any, own_sample: Any) -> None:
    plan = duet.samplers.ddim(PROCESS, steps=4, eta=1.0)
    own, network = networks()
    whole = reference(network, plan)
    np.testing.assert_allclose(own_sample(own, plan, batch=2), whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        own_sample(own, plan, first=7), reference(network, plan, first=7), rtol=1e-12, atol=1e-12
    )


def test_the_callback_and_the_progress_follow_the_plan(networks: Any, own_sample: Any, backend_name: str) -> None:
    plan, seen, own_seen, done = duet.samplers.ddim(PROCESS, steps=3), [], [], []
    own, network = networks()
    reference(network, plan, callback=StepCallback(lambda *row: seen.append(row)))
    own_sample(own, plan, batch=2, callback=lambda *row: own_seen.append(row), progress=done.append)
    assert done == [2, 3]
    assert [row for row, _, _ in own_seen] == [row for row, _, _ in seen]
    for (_, x, estimate), (_, own_x, own_estimate) in zip(seen, own_seen, strict=True):
        for wanted, got in ((x, own_x), (estimate, own_estimate)):
            np.testing.assert_allclose(got, twins.to_layout(wanted, backend_name)[:2], rtol=1e-12, atol=1e-12)


def test_the_likelihood_by_the_flow_is_that_of_the_program(
    networks: Any, backend_name: str, open_backend: Callable[..., Any]
) -> None:
    own, program = networks()
    network = open_backend("float64").network(program.program, program.weights())
    images, labels = np.random.default_rng(1).normal(size=(3, 4, 4, 2)), np.array(twins.LABELS, np.int32)
    options = {"steps": 2, "method": "heun"}
    wanted = flow_density(network.vjp, PROCESS, images, labels, np.arange(3), 5, **options).log_density
    given = twins.to_layout(images, backend_name)
    got = duet.log_likelihood(own, given, PROCESS, labels=labels, seed=5, batch=2, **options)
    np.testing.assert_allclose(got, wanted, rtol=1e-11)
    with pytest.raises(duet.DuetError, match="process: it is missing"):
        duet.log_likelihood(own, given)


def test_the_likelihood_takes_the_classes_of_the_data_for_either_null_label(networks: Any, backend_name: str) -> None:
    own, given = networks()[0], twins.to_layout(np.random.default_rng(1).normal(size=(2, 4, 4, 2)), backend_name)
    options = {"steps": 1, "method": "heun"}
    wanted = duet.log_likelihood(own, given, PROCESS, labels=[1, 2], **options)
    counted_from_one = duet.adapt(own, classes=3, null_label=0)
    got = duet.log_likelihood(counted_from_one, given, PROCESS, labels=[0, 1], **options)
    # Two networks are two graphs, whose sums over several threads may differ in the last place.
    np.testing.assert_allclose(got, wanted, rtol=1e-14)


def test_classes_as_vectors_are_those_of_the_reference_for_either_null_label(backend_name: str) -> None:
    plan = duet.samplers.ddim(PROCESS, steps=2, guidance=2.0)

    def network(x: Any, t: Any, c: Any) -> Any:
        return x * (c[:, :1] + 2 * c[:, 1:2] + 3 * c[:, 2:3])

    for null_label, labels in ((None, [0, 1, 2]), (0, [1, 2, 3])):
        options = {"labels": labels, "inputs": "x, t, c=one_hot", "classes": 3, "null_label": null_label}
        found, wanted = (
            np.asarray(duet.sample(network, plan, shape=(3, 5), framework=framework, **options))
            for framework in (backend_name, "numpy")
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("framework", ["numpy", None])
def test_a_network_may_change_its_inputs_in_place(backend_name: str, framework: str | None) -> None:
    """What guidance, a guide and later rows take must stay as it was."""

    def changing(x: Any, t: Any, c: Any, text: Any) -> Any:
        x *= 0.5
        t *= 2
        c *= 3
        text *= 4
        return x + t[:, None] + c[:, :1] + text

    def pure(x: Any, t: Any, c: Any, text: Any) -> Any:
        return 0.5 * x + 2 * t[:, None] + 3 * c[:, :1] + 4 * text

    def sample(network: Any, guide: Any) -> np.ndarray:
        call = {"inputs": "x, t, c=one_hot, text=text", "classes": 3, "framework": framework or backend_name}
        options: dict[str, Any] = {"shape": (3, 1), "labels": twins.LABELS, "conditions": {"text": np.ones((3, 1))}}
        guide = guide and duet.adapt(guide, **call)
        plan = duet.samplers.ddim(PROCESS, steps=2, guidance=2.0, clip=None)
        return np.asarray(duet.sample(network, plan, guide=guide, **options, **call))

    for guide in (None, changing):
        np.testing.assert_array_equal(sample(changing, guide), sample(pure, guide and pure))

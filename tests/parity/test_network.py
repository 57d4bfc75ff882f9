"""Networks at full size: the check of one framework's record against the other's, and the forward pass itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import composed

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.networks import lower
from diffusion_core.parity import cases
from diffusion_core.parity.ladder import TOLERANCES, relative
from diffusion_core.parity.network import compare_network, network_inputs, record_network
from diffusion_core.parity.rungs import training_errors
from experiments.config.build import network_spec

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# SiT is the network of DiT, whose last channels it cuts off.
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml") if not path.stem.startswith("sit_"))
SPEC = cases.NETWORKS["simple"]


def differing(record: dict, name: str, by: float) -> dict:
    """Return the record with one element of one array changed by a fraction of its largest element."""
    moved = np.array(record[name], np.float64)
    moved.flat[0] += by * np.abs(moved).max()
    return record | {name: moved}


@pytest.fixture(scope="module")
def records(open_backend):
    """Two records of one backend."""
    return [record_network(open_backend("float64"), SPEC, 2, gradients=True) for _ in range(2)]


@pytest.mark.backend
def test_a_record_agrees_with_itself(records):
    checks, _ = compare_network(*records, "float64", "this–other")
    assert [(c.name, c.error) for c in checks] == [
        ("output", 0), ("loss", 0), ("gradient", 0), ("gradient, worst tensor", 0)
    ]  # fmt: skip


@pytest.mark.backend
@pytest.mark.parametrize("name, noticed", [
    ("output", {"output"}),
    ("loss", {"loss"}),
    ("gradient/in.weight", {"gradient", "gradient, worst tensor"}),
])  # fmt: skip
def test_a_difference_is_detected_and_named(records, name, noticed):
    one, other = records
    checks, where = compare_network(differing(one, name, 1e-10), other, "float64", "this–other")
    assert {c.name for c in checks if not c.passed} == noticed
    if "gradient" in noticed:
        assert where == "in.weight"


@pytest.mark.backend
def test_records_of_different_networks_are_not_compared(records, open_backend):
    other = record_network(open_backend("float64"), replace(SPEC, norm_eps=1e-5), 2, gradients=False)
    with pytest.raises(DuetError, match="the records belong to different networks"):
        compare_network(records[0], other, "float64", "this–other")


@pytest.mark.backend
def test_records_with_and_without_gradients_are_not_compared(records):
    without = {name: value for name, value in records[0].items() if name in ("output", "program")}
    for pair in ((records[0], without), (without, records[0])):
        with pytest.raises(DuetError, match="only one record has gradients"):
            compare_network(*pair, "float64", "this–other")
    assert len(compare_network(without, without, "float64", "this–other")[0]) == 1


@pytest.mark.backend
@pytest.mark.parametrize("precision, dtype", [("float32", np.float32), ("float64", np.float64)])
def test_a_network_with_loaded_weights_equals_a_new_one(open_backend, precision, dtype):
    backend, program = open_backend(precision), lower(SPEC)
    one, batch = network_inputs(SPEC, dtype, 2)
    other = {name: 1.25 * value + dtype(0.125) for name, value in one.items()}
    inputs = batch.images, batch.c_noise, batch.label
    network, fresh = backend.network(program, one), backend.network(program, other)
    before = network.forward(*inputs)  # traces the network
    network.load(other)
    np.testing.assert_array_equal(network.forward(*inputs), fresh.forward(*inputs))
    assert all(np.array_equal(value, other[name]) for name, value in network.weights().items())
    assert not np.array_equal(before, network.forward(*inputs))
    with pytest.raises(DuetError, match="the network needs"):
        network.load({name: value[..., None] for name, value in other.items()})


@pytest.mark.backend
def test_batch_norm_of_a_single_vector_is_finite(open_backend):
    """BatchNorm of a single value per channel: the biased variance is zero, and nothing becomes infinite."""
    case = next(case for case in cases.BLOCKS if case.name == "BatchNorm of a vector")
    batch = cases.noise_batch(case.program, case.shape, 1)
    errors = training_errors(open_backend("float64"), case.program, cases.scattered_weights(case.program), batch)
    assert len(errors) == 4 and max(errors.values()) <= TOLERANCES["block"].float64


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_forward_pass_of_every_model_at_full_size(open_backend, model):
    """Some take minutes in NumPy, and ADM at 256 x 256 about 15 GB."""
    spec = network_spec(composed("networks", f"model={model}", "out=."))
    backend = open_backend("float32")
    weights, batch = network_inputs(spec, np.float32, 1)
    got = record_network(backend, spec, 1, gradients=False)["output"]
    wanted = reference.forward(lower(spec), weights, batch.images, batch.c_noise, batch.label, batch.features)
    error = relative(got, wanted)
    print(f"{model}: {error:.1e}")
    assert np.std(wanted) > 0 and error <= TOLERANCES["network"].float32

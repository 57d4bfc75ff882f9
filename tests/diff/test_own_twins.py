"""A fault planted in one of Duet's own twins is found where it was planted, and nothing is found without one."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.networks import Program, UNetSpec, lower
from diffusion_core.networks.blocks import GroupNorm
from diffusion_core.parity import cases
from diffusion_core.parity.diff.recording import Recording
from diffusion_core.runtime.distributed import ProcessGroup

pytestmark = pytest.mark.backend

PROGRAM = lower(UNetSpec(8, 2, 1, 8, (1, 2), 1, (), middle_attention=True, norm_groups=4))
WEIGHTS = cases.scattered_weights(PROGRAM)
NORM = next(node.name for node in PROGRAM.nodes if isinstance(node.block, GroupNorm) and node.name.startswith("mid"))


@pytest.fixture(scope="module")
def record(backend_name):
    """Return a function that records a program of this backend; the comparison is imported here, as the recorder is."""
    pytest.importorskip("diffusion_core.parity.diff.comparison")
    recorder = pytest.importorskip(f"backends.{backend_name}.recorder")
    network = import_module(f"backends.{backend_name}.network")
    device = import_module(f"backends.{backend_name}.device")
    sides = import_module(f"backends.{backend_name}.run_model")
    context = device.prepare(BackendConfig("cpu", "float64"), ProcessGroup())
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 8, 2))
    if recorder.LAYOUT == "channels_first":
        images = images.transpose(0, 3, 1, 2)

    def recorded(program: Program = PROGRAM) -> Recording:
        model = sides.RunModel(network.Network(program, WEIGHTS, context), ("x", "c_noise"))
        found = recorder.record_pass(recorder.prepare(model, "float64"), (images, np.array([3.0, 700.0])), "float64")
        return Recording(backend_name, recorder.version(), {"float64": found}, layout=recorder.LAYOUT)

    return recorded


def first(a: Recording, b: Recording):
    found = import_module("diffusion_core.parity.diff.comparison").compare(a, b, modes=("forward",))
    return found.findings[0] if found.findings else None


def test_a_network_equals_itself(record):
    assert first(record(), record()) is None


def test_an_epsilon_is_found_with_its_value(record):
    nodes = [
        replace(node, block=replace(node.block, eps=1e-3)) if node.name == NORM else node for node in PROGRAM.nodes
    ]
    finding = first(record(), record(replace(PROGRAM, nodes=tuple(nodes))))
    assert (finding.kind, finding.status) == ("norm_epsilon", "verified")
    assert finding.b.layer.endswith(NORM)
    assert "0.001" in finding.b_does


def test_a_padding_is_found_where_it_is(record, backend_name, monkeypatch):
    clean = record()
    network = import_module(f"backends.{backend_name}.network")
    convolve = network.convolve

    def shifted(x, weight, bias, stride, padding):
        top, bottom, left, right = padding
        padding = (top + bottom, 0, left + right, 0) if stride == 2 else padding
        return convolve(x, weight, bias, stride, padding)

    monkeypatch.setattr(network, "convolve", shifted)
    finding = first(clean, record())
    strided = [node.name for node in PROGRAM.nodes if getattr(node.block, "stride", 1) == 2]
    assert any(finding.b.layer.endswith(name) for name in strided)
    assert (finding.status, finding.kind[:7]) == ("verified", "padding")

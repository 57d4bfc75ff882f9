"""The workloads of a backend and their parts alone."""

from __future__ import annotations

import ast
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from commands import composed

import benchmarks.products
from benchmarks import work
from benchmarks.contestants import BACKENDS
from benchmarks.convolutions import convolutions
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec, lower
from diffusion_core.networks.flops import multiply_adds
from experiments.config.build import network_spec

FILES = {name: Path(benchmarks.products.__file__).parent / f"{name}.py" for name in BACKENDS}


def signatures(path: Path) -> dict[str, list[str]]:
    """The public functions of a file with their parameters, in order."""
    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return {node.name: [a.arg for a in node.args.args] for node in functions if not node.name.startswith("_")}


def test_every_backend_has_a_file_with_the_same_functions():
    first, *others = (list(signatures(path).items()) for path in FILES.values())
    assert first and all(one == first for one in others)


@pytest.mark.parametrize("name", ("digits", "simple", "sixteen_step", "plain"))
def test_convolutions_use_each_weight_once_per_pixel(name: str):
    spec = network_spec(composed("train", f"model={name}"))
    program, image = lower(spec), spec.image_shape
    weights = [math.prod(p.shape) for p in program.parameters if p.axes.endswith("kh kw")]
    found = convolutions(program, image)
    assert [c.multiply_adds / (c.size // c.stride) ** 2 for c in found] == weights
    assert 0.8 < sum(c.multiply_adds for c in found) / multiply_adds(program, image) <= 1


@pytest.mark.backend
def test_each_workload_counts_its_images_and_the_parts_change_no_weight(open_backend, backend_name, monkeypatch):
    monkeypatch.setitem(work.MATRIX, "cpu", work.MatrixProducts(8, 3))
    backend, products = open_backend("float32"), import_module(f"benchmarks.products.{backend_name}")
    spec = UNetSpec(8, 1, 1, 8, (1,), 1, (), middle_attention=False, norm_groups=4, norm_eps=1e-5)
    model = DiffusionModel(spec, {"name": "linear", "T": 4}, "eps")
    trainers, networks, make_trainer, make_network = [], [], backend.trainer, backend.network
    monkeypatch.setattr(backend, "trainer", lambda *given: trainers.append(make_trainer(*given)) or trainers[0])
    monkeypatch.setattr(backend, "network", lambda *given: networks.append(make_network(*given)) or networks[0])
    workloads = work.make_workloads(backend, products, model, batch=2, steps=3, images=5, ddim_steps=2)
    assert {*workloads} == {*work.WORK, *(part for parts in work.PARTS.values() for part in parts)}
    images = {"train": 6, "ddim": 5, "ddpm": 5, "evaluations": 5, "passes": 2, "convolutions": 2, "matrix": 3}
    assert {name: run() for name, run in workloads.items()} == images
    (trainer,), (network,) = trainers, networks  # built once, and used by every round
    state = trainer.state()
    assert state.updates == 3
    for name in ("evaluations", "passes", "convolutions", "matrix"):
        workloads[name]()
    same = trainer.state()
    assert all(np.array_equal(same.weights[name], value) for name, value in state.weights.items())
    assert workloads["train"]() == 6 and trainer.state().updates == 6
    assert any(np.any(trainer.state().weights[name] != value) for name, value in state.weights.items())
    calls, call = [], network.call
    monkeypatch.setattr(network, "call", lambda *given: calls.append(given) or call(*given))
    workloads["evaluations"]()
    assert len(calls) == 2

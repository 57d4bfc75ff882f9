"""A step that is not finite: training stops with one line, and the stored step is computed again."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from commands import call
from safetensors.numpy import load_file, save_file

from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import list_checkpoints
from diffusion_core.runs.failure_bundle import load_bundle
from diffusion_core.runs.run_directory import read_metrics
from experiments.runtime.backends import BackendSetup
from experiments.training import replay
from experiments.training.resume import compiled_in

# The smallest network, on eight images of 8x8; the first update makes its weights huge.
SMALL = [
    *("experiment=plain", "model.image_size=8", "model.channels=[4]", "model.bottleneck=8", "data.options.size=8"),
    *("data.options.count=8", "process.schedule.T=6", "+process.schedule.beta_start=0.05"),
    *("+process.schedule.beta_end=0.6", "trainer.images=32", "trainer.batch=4", "trainer.sample_images=0"),
    *("trainer.log_images=32", "backend.threads=1", "backend.device=cpu", "precision=float64"),
    *("lr.peak=1e200", "lr.decay=steps", "lr.factor=0.5", "lr.every_images=4", "optimiser.clip=null"),
    "trainer.micro_batch=2",
]

EAGER = {"torch": "eager", "tf": "tf.function"}

pytestmark = pytest.mark.either


@pytest.fixture(scope="module")
def refused(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that stopped, and its error."""
    directory = tmp_path_factory.mktemp("replay") / "run"
    code, _, said = call("train", f"backend={backend_name}", f"hydra.run.dir={directory}", *SMALL)
    assert code == 2
    return directory, said


def test_a_non_finite_step_stops_the_run_and_is_stored(refused, backend_name):
    directory, said = refused
    assert len(said.strip().splitlines()) == 1 and "trainer.non_finite=skip" in said
    bundle = directory / "non_finite" / re.search(r"bundle=\S*/(\d{12})$", said.strip())[1]
    found = load_bundle(bundle)
    # The first update was finite and the second was not; six more were made before the losses were read.
    assert (found.moment.images_seen, found.moment.state.updates) == (4, 1)
    assert not np.isfinite(found.grad_norm) and found.moment.notes["backend"] == backend_name
    assert all(np.isfinite(value).all() for value in found.moment.state.weights.values())
    assert list_checkpoints(directory / "checkpoints") == []
    assert [line["images_seen"] for line in read_metrics(directory / "metrics.jsonl")] == [4]


def test_the_step_is_replayed_and_the_first_non_finite_place_is_named(refused, backend_name, tmp_path):
    (bundle,) = (refused[0] / "non_finite").iterdir()
    code, said, _ = call("replay", f"backend={backend_name}", f"bundle={bundle}", "backend.threads=1")
    report = read_json(bundle / f"replay-{backend_name}-float64.json")
    assert code == 0 and "it happens again" in said and report["reproduced"]
    assert report["loss"] == report["then"]["loss"]
    # auto does not compile a short run.
    assert load_bundle(bundle).moment.notes["compile"] is False and report["backend"]["mode"] == EAGER[backend_name]
    kinds = ("batch", "weights", "block", "loss", "gradient")
    first = report["first"]
    assert first["kind"] in kinds[2:] and f"first: {first['kind']} {first['name']}" in said
    file = shutil.copytree(bundle, tmp_path / "changed") / "batch.safetensors"
    save_file({**load_file(file), "noise": load_file(file)["noise"] * np.nan}, file)
    code, _, said = call("replay", f"backend={backend_name}", f"bundle={file.parent}")
    assert code == 2 and "batch.safetensors: it is corrupt" in said


def test_the_step_is_replayed_in_its_micro_batches(refused, backend_name, monkeypatch):
    (bundle,) = (refused[0] / "non_finite").iterdir()
    trainer, given = import_module(f"backends.{backend_name}.trainer").Trainer, []
    gradients = trainer.gradients
    monkeypatch.setattr(trainer, "gradients", lambda self, *args: given.append(args[1:]) or gradients(self, *args))
    found = load_bundle(bundle)
    assert found.micro_batches == 2
    assert call("replay", f"backend={backend_name}", f"bundle={bundle}", "backend.threads=1").code == 0
    assert given == [(2,)]


def test_the_step_is_replayed_in_the_mode_of_its_run(refused, backend_name, monkeypatch):
    """The mode of another backend is ignored, and so is an invalid one."""
    (path,) = (refused[0] / "non_finite").iterdir()
    bundle, taken = load_bundle(path), []
    own = {**bundle.moment.notes, "compile": True}

    def choose_mode(setup, backend, calls, resumed):
        taken.append(resumed)
        return backend

    monkeypatch.setattr(BackendSetup, "choose_mode", choose_mode)
    monkeypatch.setattr(replay, "load_bundle", lambda path: replace(bundle, moment=replace(bundle.moment, notes=own)))
    assert call("replay", f"backend={backend_name}", f"bundle={path}", "backend.threads=1").code == 0
    assert taken == [True]
    for other in ({"backend": "another"}, {"compile": "yes"}, {"compile": None}):
        assert compiled_in(replace(bundle.moment, notes=own | other), backend_name) is None

"""The validation loss of a run: it changes no number of the training, and is in every record of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import call

import duet
from diffusion_core.data import load_dataset
from diffusion_core.data.store import save_store
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import find_checkpoint, load_checkpoint
from diffusion_core.runs.run_directory import read_metrics
from diffusion_core.training.validation import metric_name

# Five steps on points in the plane.
TOY = (
    "experiment=toy", "model.channels=8", "trainer.images=80", "trainer.batch=16", "trainer.log_images=16",
    "lr.warmup_images=0", "lr.decay=constant", "sample.count=4", "sampler.steps=2", "ema.extra=[{name: power}]",
    "backend.threads=1", "backend.device=cpu", "trainer.sample_images=32",
)  # fmt: skip


def trained(run: Path, backend: str, *words: str) -> Path:
    code, _, err = call("train", f"backend={backend}", f"hydra.run.dir={run}", *TOY, *words)
    assert code == 0, err
    return run


@pytest.fixture(scope="module")
def run(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that validates every second step."""
    return trained(tmp_path_factory.mktemp("validated") / "run", backend_name, "trainer.validation_images=32")


@pytest.mark.backend
@pytest.mark.either
def test_the_training_has_the_same_bits_with_and_without_it(run, backend_name, tmp_path):
    without = trained(tmp_path / "without", backend_name, "validation.part=none")
    lines = [list(read_metrics(path / "metrics.jsonl")) for path in (run, without)]
    assert [line["images_seen"] for line in lines[0] if "validation_loss" in line] == [32, 64, 80]
    assert not any("validation_loss" in line for line in lines[1])
    stripped = [{k: v for k, v in line.items() if not k.startswith("validation_")} for line in lines[0]]
    assert stripped == lines[1]
    files = [read_json(find_checkpoint(path) / "state.json")["files"] for path in (run, without)]
    assert files[0] == files[1]
    assert "validation_loss" not in read_json(without / "result.json")
    assert read_json(without / "environment.json")["validation"] is None


@pytest.mark.backend
@pytest.mark.either
def test_every_record_of_the_run_has_it_for_the_weights_and_each_average(run):
    last = list(read_metrics(run / "metrics.jsonl"))[-1]
    names = [
        f"validation_loss{w}{k}" for w in ("", "_ema", "_ema1") for k in ("", *(f"_level{i}" for i in range(1, 5)))
    ]
    assert [name for name in last if name.startswith("validation")] == names
    result, notes = read_json(run / "result.json"), load_checkpoint(run).notes
    assert {name: result[name] for name in names} == {name: last[name] for name in names} == notes["validation"]
    assert len({last[name] for name in ("validation_loss", "validation_loss_ema", "validation_loss_ema1")}) == 3
    assert read_json(run / "environment.json")["validation"]["part"] == "held_out"


@pytest.mark.backend
@pytest.mark.either
def test_python_takes_held_out_images(backend_name):
    spec = duet.network("plain", image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
    model = duet.Model(spec, schedule="cosine", prediction="v")
    data, held_out = (duet.load_dataset("digits", part=part) for part in ("train", "held_out"))
    options = {"images": 32, "batch": 16, "backend": backend_name, "device": "cpu", "quiet": True, "samples": 1}
    checkpoint = duet.train(model, data, validation=held_out, **options)
    assert np.isfinite(checkpoint.notes["validation"]["validation_loss_ema"])
    assert "validation" not in duet.train(model, data, **options).notes
    with pytest.raises(duet.DuetError, match="holds the training images"):
        duet.train(model, data, validation=data, **options)


@pytest.mark.backend
@pytest.mark.either
@pytest.mark.parametrize("weights", ["weights", "ema1"])
def test_the_evaluation_of_a_checkpoint_gives_the_number_that_the_run_logged(run, backend_name, tmp_path, weights):
    """The held-out points are those after the 4,096 of the training set."""
    points = load_dataset("toy", count=4096 + 1024).select(np.arange(4096, 4096 + 1024))
    save_store(points, tmp_path / "store")
    words = [
        f"backend={backend_name}", "backend.device=cpu", "backend.threads=1", f"checkpoint={run}", "data=store",
        f"data.options.directory={tmp_path / 'store'}", "loss=validation", f"weights={weights}",
    ]  # fmt: skip
    code, out, err = call("evaluate", *words, f"out={tmp_path / 'out'}")
    assert code == 0, err
    logged = read_json(run / "result.json")
    found = read_json(tmp_path / "out/evaluation.json")
    assert found["loss"]["loss"] == logged[metric_name(weights)]
    values = [number["value"] for number in found["numbers"]["loss"].values()]
    assert values == [logged[metric_name(weights, level=k)] for k in (None, 1, 2, 3, 4)]
    assert "validation loss" in out

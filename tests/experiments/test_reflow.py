"""Reflow by configuration: a teacher's pairs of noise and image, and a student that is trained on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call

import duet
from diffusion_core.common.random import Stream
from diffusion_core.data import load_dataset
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.checkpoint import load_checkpoint, weights_hash
from diffusion_core.runs.run_directory import read_samples

TINY = (
    "model=plain model.image_size=8 model.in_channels=1 model.out_channels=1 model.channels=[4] model.bottleneck=4 "
    "process=rectified_flow sampler=rectified_flow sampler.steps=3 sample.count=4 backend.threads=1 backend.device=cpu "
    "trainer.images=32 trainer.batch=16 trainer.log_images=16"
)


def start(module: str, *words: str) -> str:
    code, out, err = call(module, *words)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def teacher(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "teacher"
    start("train", f"backend={backend_name}", f"hydra.run.dir={directory}", *TINY.split())
    return directory


@pytest.fixture(scope="module")
def drawn(backend_name: str, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "out"
    words = (
        f"checkpoint={teacher}",
        f"out={out}",
        "sample.count=20",
        "sample.seed=7",
        "pairs=true",
        "save_images=false",
    )
    start("sample", f"backend={backend_name}", *words, "backend.threads=1", "backend.device=cpu")
    return out


@pytest.mark.backend
@pytest.mark.either
def test_pairs_are_the_samples_with_the_bits_of_their_noise(teacher: Path, drawn: Path) -> None:
    pairs = load_dataset("store", directory=str(drawn / "pairs"))
    np.testing.assert_array_equal(
        np.asarray(pairs.noise), Stream(7, "sample/start").normal(np.arange(20), (8, 8, 1), dtype=np.float32)
    )
    images, *_ = read_samples(drawn / "samples.npz")
    np.testing.assert_array_equal(pairs.pictures(), images)
    assert pairs.value_range == (-1.0, 1.0) and pairs.class_names == ("all",)
    made = read_json(drawn / "pairs" / "data.json")["made"]
    assert made["teacher"]["weights_sha256"] == weights_hash(str(teacher), made["teacher"]["weights"])
    assert made["sampler"]["name"] == "rectified_flow" and made["seed"] == 7
    assert pairs.sha256 in (drawn / "pairs" / "README.md").read_text()
    same = duet.sample(str(teacher), 20, seed=7, pairs=True)
    np.testing.assert_array_equal(same.noise, np.asarray(pairs.noise))
    np.testing.assert_allclose(same.images, np.asarray(pairs.images), rtol=0, atol=1e-5)


@pytest.mark.backend
@pytest.mark.either
def test_a_student_is_trained_on_pairs_and_samples_in_one_step(backend_name: str, drawn: Path, tmp_path: Path) -> None:
    data = ("data=store", f"data.options.directory={drawn / 'pairs'}")
    schedule = "process.timestep_sampling={name: evenly_spaced, count: 1}"
    words = (f"backend={backend_name}", f"hydra.run.dir={tmp_path / 'run'}", *TINY.split(), *data, schedule)
    said = start("train", *words, "sampler.steps=1")
    assert "data: pairs, 20 images, 1 class, with the noise of each image" in said
    record = load_checkpoint(tmp_path / "run").notes["trained_for"]
    assert record["process.timestep_sampling"] == {"name": "evenly_spaced", "count": 1}
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["data"]["sha256"] == read_json(drawn / "pairs" / "data.json")["sha256"]
    for change, message in (
        ("process.value_range=[0.0,1.0]", r"process.value_range: [0, 1] was given, but the images of the pairs"),
        ("process.coupling.name=optimal_transport", r"process.coupling: optimal_transport was given"),
        ("data.flip=true", r"data.flip: true was given, but data pairs are pairs of noise and image"),
        ("model.image_size=16", r"model.image_size"),
    ):
        code, _, err = call("train", *words, f"hydra.run.dir={tmp_path / 'other'}", change)
        assert code == 2 and message in err and err.count("\n") == 1, err
    start("train", *words, f"hydra.run.dir={tmp_path / 'fresh'}", "data.options.pairs=false", "data.flip=true")


@pytest.mark.backend
@pytest.mark.either
def test_samples_that_make_no_pairs_are_refused_before_anything_is_drawn(
    backend_name: str, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / "pairs").mkdir(parents=True)
    (tmp_path / "other" / "pairs" / "notes.txt").write_text("mine")
    for words, message in (
        (("sampler.noise=0.5", f"out={tmp_path / 'out'}"), "which adds fresh noise"),
        (("sampler.steps=1", f"out={tmp_path / 'other'}"), "pairs are not written over others"),
    ):
        code, _, err = call("sample", f"backend={backend_name}", f"checkpoint={teacher}", "pairs=true", *words)
        assert code == 2 and message in err and err.count("\n") == 1, err
        assert not list(tmp_path.rglob("samples.npz"))

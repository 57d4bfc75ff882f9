"""A run on a folder of splits whose samples are files, and their evaluation: every number counts the same images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image

from diffusion_core.data import load_dataset
from diffusion_core.metrics.files import read_sample_set
from diffusion_core.runs.run_directory import read_samples

CLASSES = ("Coast", "Forest", "50% sea")
# The network of `landscape`: label 0 is "no class", 1..3 are the classes.
TINY = (
    "model.num_classes=3 model.image_size=16 model.channels=4 model.channel_multipliers=[1,2] model.embedding=8 "
    "model.heads=2 data.options.size=16 trainer.images=20 trainer.batch=10 trainer.sample_images=10 "
    "process.schedule.T=4 ema.start=0 sample.count=12 sample.files=png backend.threads=1 backend.device=cpu"
)


def start(module: str, *words: str) -> str:
    code, out, err = call(module, *words)
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "archive"
    for split, count in (("Training Data", 5), ("Testing Data", 2)):
        for k, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(10 * k + i).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"img{i}.png")
    return root


@pytest.fixture(scope="module")
def run(backend_name: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("run") / "run"
    words = ("experiment=landscape", f"data.options.path={folder}", f"hydra.run.dir={directory}", *TINY.split())
    return directory, start("train", f"backend={backend_name}", *words)


@pytest.mark.backend
@pytest.mark.either
def test_a_run_trains_on_the_training_split_and_writes_its_samples_as_files(run: tuple[Path, str]) -> None:
    directory, said = run
    assert "'Training Data' is train (15 images)" in said and "part train is used, of train, test" in said
    images, labels, facts = read_samples(directory / "samples" / "samples.npz")
    assert facts["class_names"] == {str(k): name for k, name in enumerate(sorted(CLASSES), 1)}
    for name in ("samples", f"samples-{10:012d}"):
        assert len(list((directory / "samples" / name).rglob("*.png"))) == 12
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder_name = facts["class_names"][str(label)].replace("%", "%25")
        file = directory / "samples" / "samples" / folder_name / f"{index:05d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)


@pytest.mark.backend
@pytest.mark.either
def test_files_and_arrays_of_samples_are_evaluated_alike(run: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    directory, _ = run
    data = ("data=image_folder", f"data.options.path={folder}", "data.options.size=16", "metrics=[spread,colour]")
    code, _, err = call("evaluate", f"samples={directory}", *data, f"out={tmp_path / 'none'}")
    assert code == 2 and "data.options.part: none was given" in err and "train, test" in err
    found = {}
    for name, path in (("arrays", directory), ("files", directory / "samples" / "samples")):
        words = (f"samples={path}", *data, "data.options.part=train", f"out={tmp_path / name}", "sets=3")
        start("evaluate", *words)
        found[name] = json.loads((tmp_path / name / "evaluation.json").read_text())
    numbers = [{m: {k: v["value"] for k, v in n.items()} for m, n in one["numbers"].items()} for one in found.values()]
    assert numbers[0]["spread"] == pytest.approx(numbers[1]["spread"], rel=1e-12)
    assert numbers[0]["colour"] == pytest.approx(numbers[1]["colour"], rel=1e-12)
    reference = found["files"]["samples"]["reference"]
    train = load_dataset("image_folder", path=str(folder), size=16, part="train")
    assert (reference["count"], reference["split"], reference["sha256"]) == (15, "train", train.sha256)


@pytest.mark.backend
@pytest.mark.either
def test_samples_of_a_checkpoint_are_files_and_never_replace_others(
    run: tuple[Path, str], backend_name: str, tmp_path: Path
) -> None:
    words = (f"backend={backend_name}", f"checkpoint={run[0]}", f"out={tmp_path / 'out'}", "save_images=false")
    words += ("sample.count=4", "sample.labels=[1,3]", "sampler.guidance_scale=1", "backend.device=cpu")
    (tmp_path / "out" / "samples").mkdir(parents=True)
    (tmp_path / "out" / "samples" / "mine.png").write_bytes(b"mine")
    code, _, err = call("sample", *words, "sample.files=png")
    assert code == 2 and "exists already and is left as it is" in err
    (tmp_path / "out" / "samples" / "mine.png").unlink()
    start("sample", *words, "sample.files=png")
    found = read_sample_set(tmp_path / "out" / "samples")
    assert found.classes == ("50% sea", "Forest") and len(found) == 4
    code, _, err = call("sample", *words, "sample.files=jpeg", "out=elsewhere")
    assert code == 2 and "sample.files: 'jpeg' was given; it must be png" in err

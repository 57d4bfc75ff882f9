"""Plausible inputs that could be read as something else: each is refused in one line with what to type instead."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image

import duet
from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import describe_folder
from diffusion_core.data import load_dataset
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runs.checkpoint import Checkpoint, find_checkpoint, save_checkpoint
from diffusion_core.sampling import SAMPLERS, make_plan
from duet.api.options import check_types
from experiments.evaluation.samples import SampleEvaluator
from experiments.runtime.data import check_data, count_classes
from experiments.sampling.classes import named_labels
from experiments.sampling.guidance import GuidanceModels
from experiments.training.lengths import _of_other_decays

TINY = ["model.channels=8", "model.norm_groups=4", "model.attention_resolutions=[]", "model.middle_attention=false"]


def refused(module: str, *words: str) -> str:
    """Check that a command refuses its arguments in one line; return the line."""
    code, _, err = call(module, *words)
    assert code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("error: "), err
    return err.strip()


def checkpoint(seed: int = 0) -> Checkpoint:
    spec = UNetSpec(
        image_size=8, in_channels=1, out_channels=1, channels=8, channel_multipliers=(1,), blocks_per_resolution=1,
        attention_resolutions=(), middle_attention=False, norm_groups=4, num_classes=10,
    )  # fmt: skip
    model = DiffusionModel(spec, {"name": "linear", "T": 10}, "eps")
    state = TrainerState.fresh(initial_weights(model.program, seed))
    return Checkpoint(0, model, 0, state, {"sampler": {"name": "ddim", "steps": 2}, "sample": {"weights": "weights"}})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    save_checkpoint(path / "checkpoints", checkpoint())
    (path / "config.yaml").write_text("seed: 0\n")
    (path / "environment.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sample", ["checkpoint=RUN"]),
        ("edit", ["checkpoint=RUN", "data=digits", "mode=image_to_image"]),
        ("evaluate", ["samples=RUN", "data=digits", "features=digits"]),
        ("compare", ["runs=[RUN,RUN]"]),
        ("gallery", ["checkpoint=RUN"]),
        ("inspect", ["data=digits"]),
        ("networks", ["model=digits"]),
    ],
)
def test_results_are_never_written_into_a_run(run: Path, command: str, words: list[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = refused(command, *(word.replace("RUN", str(run)) for word in words), f"out={run}")
    assert "holds a run, whose config.yaml and environment.json would be overwritten" in line and "out=DIR" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["process.schedule=cosine"], ["process.schedule: 'cosine'", "process.schedule.name=cosine"]),
        (["process.weighting=min_snr"], ["process.weighting.name=min_snr"]),
        (["process.timestep_sampling=uniform"], ["process.timestep_sampling.name=uniform"]),
        (["data.options=8"], ["data.options: '8'", "data.options.NAME=VALUE"]),
        (["metrics.frechet=5", "features=digits"], ["metrics.frechet: 5", "options of 'frechet'"]),
        (["sampler.guidance_scale=nan"], ["sampler.guidance_scale: nan", "finite"]),
        (["sampler.guidance_scale=true"], ["sampler.guidance_scale: True"]),
        (["sampler.classifier=nan"], ["sampler.classifier: nan", "finite"]),
        (["sampler.guidance_interval=[1,2]"], ["Did you mean sampler.interval?"]),
        (["data.options.size=8.0"], ["data.options.size: 8.0"]),
        (["data.options.part=tain"], ["data.options.part: 'tain'", "Did you mean 'train'?"]),
        (["data.options.part=null"], ["data.options.part: None"]),
        (["data=npz", "data.store=null"], ["data.store is null"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_training_names_the_key_and_what_to_type(tmp_path: Path, words: list[str], named: list[str]) -> None:
    line = refused("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, "trainer.images=128", "sampler.steps=2", *words)
    for part in named:
        assert part in line


def test_a_folder_of_numbered_folders_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "12").mkdir()
    with pytest.raises(DuetError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    saved = save_checkpoint(tmp_path, checkpoint())
    assert find_checkpoint(tmp_path) == saved


def test_a_guide_that_is_the_network_itself_is_announced() -> None:
    own, sampler = checkpoint(), {"name": "ddim", "steps": 2, "guidance_scale": 2.0}
    for seed, expected in ((1, []), (0, ["guide: its weights (weights) are those that are sampled from (weights)"])):
        models = GuidanceModels(guide=checkpoint(seed), guide_weights="weights")
        lines = models.check_training(own, models.plan(own.model, sampler), "weights")
        assert [line.partition(", so")[0] for line in lines if line.startswith("guide:")] == expected


def test_data_that_do_not_fit_a_trained_network_are_not_blamed_on_the_network() -> None:
    digits, spec = load_dataset("digits", size=8, classes=[0, 1]), checkpoint().model.spec
    with pytest.raises(DuetError, match="2 classes, but the network has 10; choose the data"):
        check_data(digits, spec)
    with pytest.raises(DuetError, match=r"set model\.num_classes=2"):
        check_data(digits, spec, is_trained=False)
    with pytest.raises(DuetError, match=r"set data\.options\.size=8"):
        check_data(load_dataset("digits", size=16), spec)


# Arrays

UINT8 = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


@pytest.mark.parametrize(
    ("images", "remedy"),
    [
        (UINT8 / 255.0, r"floats from 0 to 0\.\d+, .* set data\.options\.value_range=\[0, 1\] for pixels"),
        (UINT8.astype(np.float32), r"set data\.options\.value_range=\[0, 255\] for pixels"),
        (UINT8.astype(np.int64), r"give images\.astype\(np\.uint8\)"),
        (np.concatenate([UINT8, UINT8[..., :1]], 3), r"give images\[\.\.\., :3\]"),
        (UINT8[0], r"looks like one image, which is given as images\[None\]"),
        (UINT8[:0], "the array is empty"),
    ],
    ids=["0..1", "0..255", "int64", "RGBA", "one image", "empty"],
)
def test_an_array_with_two_readings_says_what_to_give(tmp_path: Path, images: np.ndarray, remedy: str) -> None:
    np.savez(tmp_path / "a.npz", images=images)
    np.save(tmp_path / "a.npy", images)
    for name, file in (("npz", "a.npz"), ("array", "a.npy"), ("arrays", "a.npz"), ("arrays", "a.npy")):
        with pytest.raises(DuetError, match=remedy):
            load_dataset(name, path=str(tmp_path / file), size=4)


def test_labels_under_another_name_are_never_dropped_in_silence(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=UINT8, y=np.array([0, 1]))
    options = {"path": str(tmp_path / "a.npz"), "size": 4, "images": "x"}
    with pytest.raises(DuetError, match=r"has no array 'images'; it has x, y; .*data\.options\.labels=NAME"):
        load_dataset("npz", **options | {"images": "images"})
    with pytest.raises(
        DuetError, match=r"data\.options\.labels: 'yy' was given; it must be one of y\. Did you mean 'y'"
    ):
        load_dataset("npz", **options, labels="yy")
    assert load_dataset("npz", **options, labels="y").num_classes == 2
    (said,) = load_dataset("npz", **options).reading.lines
    assert "no array 'labels', so all images are of one class" in said and said.endswith("of y")


# Folders


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(UINT8[0]).save(root / name)
    return root


def test_classes_below_the_splits_of_folders_are_not_lost(tmp_path: Path) -> None:
    names = [f"{version}/{split}/{label}/x.png" for version in "vw" for split in ("train", "test") for label in "ab"]
    root = fill(tmp_path / "versions", *names)
    with pytest.raises(DuetError, match=r"the folders in v, w are splits .* hold folders of equal names \(a, b\)"):
        load_dataset("image_folder", path=str(root), size=4)
    deep = fill(tmp_path / "deep", "v/train/1/x.png", "v/test/2/x.png", "w/train/3/x.png", "w/test/4/x.png")
    assert load_dataset("image_folder", path=str(deep), size=4, part="train").class_names == ("v", "w")


def test_train_prints_the_classes_that_it_found(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", "images/1.png", "images/2.png", "masks/1.png", "masks/2.png")
    assert count_classes(load_dataset("image_folder", path=str(root), size=4)) == "2 classes: images, masks"
    assert count_classes(load_dataset("digits", size=8)) == "10 classes"


# Python


def test_a_function_of_duet_refuses_arguments_of_another_type() -> None:
    @check_types
    def function(
        path: str | Path, count: int = 1, *, weight: float | None = None, loud: bool = False, **more: int
    ) -> int:
        return count

    assert function("x", np.int64(3), weight=np.float32(1), more="text") == 3 and function(Path(), weight=2) == 1
    for arguments, words, expected in (
        ((5,), {}, "path: 5 was given; it must be text or a path"),
        (("x", 2.0), {}, "count: 2.0 was given; it must be a whole number"),
        (("x", True), {}, "count: True was given; it must be a whole number"),
        (("x",), {"weight": "1"}, "weight: '1' was given; it must be a number or None"),
        (("x",), {"loud": 1}, "loud: 1 was given; it must be True or False"),
    ):
        with pytest.raises(DuetError, match=re.escape(expected)):
            function(*arguments, **words)
    with pytest.raises(TypeError, match="missing"):
        function()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"count": 2.0}, "count: 2.0"),
        ({"count": 0}, "count: 0 was given; it must be at least 1"),
        ({"batch": 0}, "batch: 0 was given; it must be at least 1"),
        ({"sampler": 5}, "sampler: 5 was given"),
        ({"sampler": {"name": "huen"}}, "Did you mean 'heun'?"),
        ({"threads": "two"}, "threads: 'two' was given"),
        ({"seed": None}, "seed: None was given"),
        ({"checkpoint": None}, "checkpoint: None was given"),
    ],
    ids=str,
)
def test_sampling_in_python_refuses(words: dict, expected: str) -> None:
    with pytest.raises(DuetError, match=re.escape(expected)):
        duet.sample(**{"checkpoint": checkpoint(), **words})
    with pytest.raises(DuetError, match="it must be the path of a run"):
        find_checkpoint(5)


@pytest.mark.parametrize("schedule", [{"name": "linear", "T": 20}, {"name": "vp_sde"}, {"name": "edm"}], ids=str)
@pytest.mark.parametrize(
    "option",
    [{"steps": 10**30}, {"guidance_convention": []}, {"classifier": 10**40}, {"spacing": {}}, {"classifier": np.nan}],
    ids=str,
)
def test_options_of_a_strange_size_or_type_are_refused_by_every_sampler(schedule: dict, option: dict) -> None:
    process = DiffusionModel(checkpoint().model.spec, schedule, "edm" if schedule["name"] == "edm" else "eps").process
    for name in SAMPLERS:
        with pytest.raises(DuetError):
            make_plan(process, name, **{"steps": 4, **option})


# Training and evaluation


def test_a_number_is_no_truth_value(tmp_path: Path) -> None:
    words = [f"hydra.run.dir={tmp_path / 'run'}", *TINY, "trainer.images=128", "sampler.steps=2"]
    assert "data.flip: 2 was given; it must be true or false" in refused("train", *words, "data.flip=2")
    assert "sampler.steps: 0" in refused("train", *words, "data.flip=1", "sampler.steps=0")


def test_a_confidence_is_checked_before_anything_is_evaluated() -> None:
    reference = SampleSet({"images": UINT8}, {"name": "x"})
    for confidence in (0.0, 1.0, float("nan"), 95):
        with pytest.raises(DuetError, match=r"confidence: .* it must lie between 0 and 1"):
            SampleEvaluator(None, {}, reference, confidence=confidence)


def test_the_same_samples_are_not_counted_twice(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", images=images)
    words = [f"samples=[{tmp_path / 'a.npz'},{tmp_path / 'b.npz'}]", "data=digits", "features=digits"]
    line = refused("evaluate", *words, f"out={tmp_path / 'out'}")
    assert "b.npz holds the same samples as" in line and "give each of them once" in line


def test_options_of_another_decay_are_announced() -> None:
    assert list(_of_other_decays(LearningRate(1e-3))) == []
    assert list(_of_other_decays(LearningRate(1e-3, decay="cosine", total_images=64))) == []
    for options, key in (({"total_images": 64}, "total_images"), ({"decay": "cosine", "factor": 0.5}, "factor")):
        (line,) = _of_other_decays(LearningRate(1e-3, **options))
        assert line.startswith(f"lr.{key}: ") and "has no effect" in line


@pytest.mark.parametrize("word", ["all", "None", "random"])
def test_words_for_every_class_are_answered_with_null(word: str) -> None:
    with pytest.raises(DuetError, match=r"give sample\.labels=null for every class in turn"):
        named_labels("sample.labels", word, {0: "Coast", 1: "Forest"})
    assert named_labels("sample.labels", word, {0: word, 1: "Forest"}) == 0


def test_a_pipeline_without_its_scheduler_and_a_name_of_a_hub_say_what_to_give(tmp_path: Path) -> None:
    assert "nothing is downloaded here" in describe_folder(Path("google/ddpm-cifar10-32"))
    out = tmp_path / "pipeline"
    assert call("export_weights", f"checkpoint={saved(tmp_path)}", "target=diffusers", f"out={out}").code == 0
    (out / "scheduler" / "scheduler_config.json").unlink()
    line = refused("import_weights", "source=diffusers", f"path={out}", f"out={tmp_path / 'imported'}")
    assert "scheduler_config.json is missing" in line and f"path={out / 'unet'} process=eps_linear" in line


def saved(folder: Path) -> Path:
    own = checkpoint()
    model = DiffusionModel(own.model.spec, {"name": "linear", "T": 1000}, "eps")
    return save_checkpoint(folder / "linear" / "checkpoints", Checkpoint(0, model, 0, own.state, own.notes))

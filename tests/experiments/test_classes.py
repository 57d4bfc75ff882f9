"""Classes by name, and weights that were never trained for what they are asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.data.reading import Reading
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import profile_options
from diffusion_core.optim.ema import Fixed, Warmup
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import read_samples
from diffusion_core.runs.training_record import DataRecord, TrainingRecord
from diffusion_core.training.training_config import TrainingConfig
from duet.api.sampling import sample
from experiments.editing.setup import EditContext, EditSetup, SourceImages
from experiments.evaluation.context import EvaluationContext
from experiments.evaluation.likelihood import LIKELIHOOD_METHODS
from experiments.evaluation.setup import EvaluationSetup
from experiments.runtime.data import DataSource, check_data, describe_data
from experiments.sampling.classes import describe_classes, label_names, named_labels
from experiments.sampling.conditions import check_class_names, check_guided, check_labels_trained, describe_weights
from experiments.sampling.gallery import GallerySetup, draw_gallery
from experiments.sampling.options import SampleOptions, sample_labels
from experiments.sampling.run import describe_samples
from experiments.sampling.sheet import sample_sheet, sheet_columns
from experiments.training.run import train
from experiments.training.setup import TrainingSetup

NAMES = ("Coast", "Desert", "forest", "Forest")
SPEC = UNetSpec(4, 1, 1, 4, (1,), 1, (), middle_attention=False, norm_groups=2, num_classes=4)
MODEL = DiffusionModel(SPEC, {"name": "cosine", "T": 10}, "v")
DATA = DataRecord("landscapes", "0" * 64, 8, NAMES, (2, 2, 2, 2))


def checkpoint(dropped: int | None = 0, images_seen: int = 80, updates: int = 10, **changes: Any) -> Checkpoint:
    state = TrainerState.fresh(initial_weights(MODEL.program, 0, np.float32))
    record = TrainingRecord(**({"data": DATA, "dropped_labels": dropped} | changes.pop("record", {})))
    notes = changes.pop("notes", {"sampler": {"name": "ddim", "steps": 2}})
    return Checkpoint(
        images_seen, MODEL, 0, replace(state, updates=updates), notes, training=changes.pop("training", record)
    )  # fmt: skip


LABELS = label_names(MODEL.program, NAMES)


def test_names_become_the_labels_of_the_network():
    assert LABELS == {0: "Coast", 1: "Desert", 2: "forest", 3: "Forest", 4: "no class"}
    for given, expected in (
        ("Coast", 0), ("coast", 0), ("DESERT", 1), ("forest", 2), ("Forest", 3), ("no class", 4), ("3", 3), (3, 3),
        (None, None), ([0, 1], [0, 1]), (["Forest", 0, "desert"], [3, 0, 1]), (range(2), range(2)),
    ):  # fmt: skip
        assert named_labels("sample.labels", given, LABELS) == expected
    assert named_labels("labels", "cafe\u0301", {0: "Caf\u00e9"}) == 0  # one name in two forms of Unicode


@pytest.mark.parametrize(
    ("given", "names", "said"),
    [
        ("Coats", LABELS, r"sample.labels: 'Coats' was given; the classes are Coast, .*Did you mean 'Coast'\?"),
        (["Coast", "deserd"], LABELS, r"'deserd' was given.*Did you mean 'Desert'\?"),
        ("FOREST", LABELS, r"fits several classes: 'forest' \(2\), 'Forest' \(3\); give the number"),
        ("Coast", {}, "does not know the names of its classes; give their numbers"),
        ("x", {k: f"n{k}" for k in range(1000)}, r"n0, n1, .* and 988 more"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(given, names, said):
    with pytest.raises(DuetError, match=said):
        named_labels("sample.labels", given, names)


def test_training_names_its_part_and_classes_that_the_network_is_not_told():
    data = Dataset(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2, ("Coast", "Forest"), "photos")
    assert describe_data(data, 2) == "data: photos, 4 images, 2 classes: Coast, Forest"
    test = replace(data, reading=Reading(part="test", parts=("train", "test")))
    first, second = describe_data(test, 0).split("\n")
    assert first == "data: photos, test, 4 images, 2 classes: Coast, Forest"
    assert second.startswith("model.num_classes=0: ") and "model.num_classes=2 trains with classes" in second
    alone = replace(data, labels=np.zeros(4, int), class_names=("all",))
    assert describe_data(alone, 0) == "data: photos, 4 images, 1 class"


def test_samples_and_columns_of_a_class_stand_below_each_other():
    assert [sheet_columns(classes) for classes in (0, 1, 3, 4, 7, 10, 11, 1000)] == [10, 10, 9, 8, 7, 10, 10, 10]


def test_labels_that_a_small_count_leaves_out_are_said():
    said = describe_samples(SampleOptions(2, [0, 1, 2, 0], 0), (), checkpoint())
    assert said.endswith("\nsample.count: 2 is less than the 4 labels; the last 2 are not drawn")
    assert "sample.count" not in describe_samples(SampleOptions(4, [0, 1, 2, 0], 0), (), checkpoint())
    assert "sample.count" not in describe_samples(SampleOptions(1, 3, 0), (), checkpoint())


def test_data_of_one_class_need_no_classes():
    data = Dataset(np.zeros((4, 4, 4, 1), np.uint8), np.zeros(4, int), ("Coast",), "Coast")
    with pytest.raises(DuetError, match=r"1 class, but the network has 4; set model.num_classes=0"):
        check_data(data, checkpoint().model.spec, is_trained=False)


def test_the_classes_that_are_drawn_are_described():
    assert describe_classes([3, 0, 3], LABELS) == "classes: Coast 1, Forest 2"
    assert describe_classes([3, 0], {}) == ""


def test_the_grid_has_a_row_for_each_class_with_its_name():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    labels = np.array([0, 3, 0, 3, 0, 3])
    titled = sample_sheet(images, labels, LABELS)
    for line in titled:  # an image of class 0 (values 0, 2, 4) never stands beside one of class 3 (1, 3, 5)
        assert not {0, 2, 4} & {*line.ravel().tolist()} or not {1, 3, 5} & {*line.ravel().tolist()}
    assert titled.shape[1] > sample_sheet(images, labels, {}, 3).shape[1]
    many = {k: f"cl\udc80ss {k}" * 9 for k in range(200)}
    assert sample_sheet(images, labels, many).shape[0] > 0
    np.testing.assert_array_equal(sample_sheet(images, np.arange(6), {0: "a"}, 3), sample_sheet(images, labels, {}, 3))


PLAN, GUIDED = (MODEL.plan("ddim", steps=2, guidance_scale=scale) for scale in (1.0, 3.0))


def test_guidance_needs_images_without_a_class():
    with pytest.raises(
        DuetError, match=r"guidance_scale: 3 was given, but no image was ever trained without its class"
    ):
        check_guided(checkpoint(0), GUIDED)
    for fine in (checkpoint(1), checkpoint(None), checkpoint(training=None)):
        assert check_guided(fine, GUIDED) == []
    assert check_guided(checkpoint(0), PLAN) == [] and check_guided(checkpoint(0), GUIDED, has_guide=True) == []
    old = checkpoint(training=None, notes={"trained_for": {"process.label_dropout": 0.0}})
    assert "trained no image without its class" in check_guided(old, GUIDED)[0]


def test_labels_that_no_image_had_are_refused():
    with pytest.raises(
        DuetError, match=r"sample.labels: 4, no class, was given, but no image was ever trained without"
    ):
        check_labels_trained(checkpoint(0), [0, 4])
    with pytest.raises(DuetError, match=r"labels: 0 was given, but every image was trained without its class"):
        check_labels_trained(checkpoint(80), [0, 4], "labels")
    assert check_labels_trained(checkpoint(80), [4]) == check_labels_trained(checkpoint(8), range(5)) == []
    empty = checkpoint(8, record={"data": replace(DATA, class_images=(2, 0, 3, 3))})
    assert check_labels_trained(empty, [0, 2]) == []
    assert "no image of Desert" in check_labels_trained(empty, [0, 1])[0]


def test_classes_of_other_names_are_refused():
    check_class_names("data", checkpoint(), NAMES, "")
    check_class_names("data", checkpoint(), ("0", "1", "2", "3"), "")  # no names of their own
    check_class_names("data", checkpoint(training=None), NAMES[::-1], "")
    with pytest.raises(
        DuetError, match=r"data: its class 2 is 'Forest', but .* 'forest' as class 2 \(and 1 more differ\)"
    ):
        check_class_names("data", checkpoint(), ("Coast", "Desert", "Forest", "forest"), "")


@pytest.mark.parametrize(
    ("profile", "updates", "said"),
    [
        (Fixed(0.9999), 10, "ema is still 99.9 % of what it began with, after 10 updates"),
        (Fixed(0.9999), 101, ""),
        (Fixed(0.9999, start=100), 101, "99.99 %"),
        (Fixed(0.9999, start=100), 50, ""),
        (Warmup(0.9999), 1, ""),
    ],
)
def test_an_average_that_is_mostly_its_start_is_announced(profile, updates, said):
    found = checkpoint(updates=updates, images_seen=8 * updates, notes={"averages": [profile_options(profile)]})
    lines = describe_weights(found, "ema")
    assert said in lines[0] if said else lines == []
    assert describe_weights(found, "weights") == []


def test_untrained_weights_are_announced_but_imported_ones_are_not():
    assert "untrained" in describe_weights(checkpoint(images_seen=0, updates=0), "weights")[0]
    assert describe_weights(checkpoint(images_seen=0, updates=0, notes={"source": "edm"}), "ema") == []
    assert "99.5 %" in describe_weights(checkpoint(updates=0, notes={"initial_weight": 0.995}), "ema")[0]


def landscape(label_dropout: float = 0.0, **options: Any) -> TrainingSetup:
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
    data, config = Dataset(images, np.arange(8) % 4, NAMES, "landscapes"), TrainingConfig(images=16, batch=8)
    options = {"sampler": {"name": "ddim", "steps": 2}} | options
    return TrainingSetup.create(MODEL, data, config, objective={"label_dropout": label_dropout}, **options)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that trained no image without its class."""
    save_checkpoint(tmp_path / "run" / "checkpoints", checkpoint(0))
    return tmp_path / "run"


def test_the_samples_of_a_run_are_named_by_class():
    made = landscape(sample=SampleOptions(4, labels=["forest", "COAST"], weights="ema"))
    assert made.sample.labels == [2, 0] and made.label_names == LABELS
    with pytest.raises(DuetError, match=r"Did you mean 'Desert'"):
        landscape(sample=SampleOptions(4, labels="dessert", weights="ema"))


def test_edits_and_galleries_are_named_by_class(run):
    def labels(**options: Any) -> SourceImages:
        return EditContext(
            EditSetup(
                str(run), DataSource("npz", {"path": str(file), "size": 4, "channels": 1}), images=[0, 1], **options
            )
        ).sources

    np.savez(file := run / "data.npz", images=np.zeros((4, 4, 4, 1), np.uint8), labels=np.arange(4))
    assert labels(labels="Forest").labels.tolist() == [3, 3] and labels().labels.tolist() == [0, 1]
    with pytest.raises(DuetError, match=r"^labels: 'Forst' was given.*Did you mean 'forest'"):
        labels(labels="Forst")
    with pytest.raises(DuetError, match=r"^labels: 4, no class, was given, but no image"):
        labels(labels="no class")
    with pytest.raises(DuetError, match=r"Did you mean 'Coast'"):
        draw_gallery(GallerySetup(str(run), sample=SampleOptions(2, labels="Caost")), run / "gallery")
    with pytest.raises(DuetError, match=r"no image was ever trained without its class"):
        draw_gallery(GallerySetup(str(run), guidance_scale=2.0, reference_steps=5, budgets=[2]), run / "gallery")


def test_a_likelihood_without_classes_needs_images_without_a_class(run):
    np.savez(run / "data.npz", images=np.zeros((4, 4, 4, 1), np.uint8), labels=np.arange(4))
    data = DataSource("npz", {"path": str(run / "data.npz"), "size": 4, "channels": 1})
    for classes in (True, False):
        context = EvaluationContext(EvaluationSetup(checkpoint=str(run), data=data))
        if classes:
            LIKELIHOOD_METHODS["vlb"](context, classes=classes)
            continue
        with pytest.raises(DuetError, match=r"likelihood.classes: false was given, but no image"):
            LIKELIHOOD_METHODS["vlb"](context, classes=classes)


def test_a_run_whose_own_samples_need_the_null_class_is_refused_before_it_writes(tmp_path):
    guided = {"sampler": {"name": "ddim", "steps": 2, "guidance_scale": 2.0}}
    with pytest.raises(DuetError, match=r"guidance_scale: 2 was given, but no image"):
        train(landscape(**guided), tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.backend
@pytest.mark.either
def test_sampling_by_name(run, backend_name, tmp_path):
    words = (f"checkpoint={run}", f"backend={backend_name}", "backend.threads=1", "backend.device=cpu")
    done = call("sample", *words, f"out={tmp_path / 'out'}", "sample.count=4", "sample.labels=[Forest, coast, 1]")
    assert done.code == 0, done.err
    assert "classes: Coast 1, Desert 1, Forest 2" in done.out
    _, labels, facts = read_samples(tmp_path / "out" / "samples.npz")
    assert labels.tolist() == [3, 0, 1, 3] and facts["class_names"] == {"0": "Coast", "1": "Desert", "3": "Forest"}
    for word, said in (
        ("sample.labels=Coats", "Did you mean 'Coast'?"),
        ("sample.labels=4", "no class, was given, but no image"),
        ("sampler.guidance_scale=3", "no image was ever trained without its class"),
    ):
        refused = call("sample", *words, f"out={tmp_path / 'no'}", word)
        assert refused.code == 2 and said in refused.err, refused.err
    images = sample(run, 4, labels=["Forest", "coast", 1], backend=backend_name, device="cpu", threads=1)
    np.testing.assert_array_equal(images, read_samples(tmp_path / "out" / "samples.npz")[0])
    with pytest.raises(DuetError, match="Did you mean 'Desert'"):
        sample(run, 4, labels="dessert")
    with pytest.raises(DuetError, match="guidance leads away"):
        sample(run, 4, guidance_scale=2)


def test_classes_without_images_are_not_sampled_by_default():
    data = replace(DATA, class_images=(2, 0, 3, 0))
    options = SampleOptions(count=4).for_checkpoint(checkpoint(record={"data": data}))
    assert sample_labels(options.labels, 4, MODEL).tolist() == [0, 2, 0, 2]
    assert SampleOptions(count=4).for_checkpoint(checkpoint()).labels is None
    assert SampleOptions(labels=1).for_checkpoint(checkpoint(record={"data": data})).labels == 1
    # What an earlier data set taught counts.
    earlier = checkpoint(record={"data": data, "earlier_data": (DATA,)})
    assert SampleOptions(count=4).for_checkpoint(earlier).labels is None
    images = np.zeros((4, 4, 4, 1), np.uint8)
    dataset = Dataset(images, np.array([0, 2, 2, 0]), NAMES, "part of landscapes")
    setup = TrainingSetup.create(
        MODEL, dataset, TrainingConfig(images=8, batch=4), sampler={"name": "ddim", "steps": 2}
    )
    assert setup.sample.labels == [0, 2]

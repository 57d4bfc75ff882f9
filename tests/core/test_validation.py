"""The validation loss: fixed and stratified draws, the mean of the training loss, and only held-out images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from commands import composed

from diffusion_core.backend import reference
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Loader, load_dataset
from diffusion_core.data.held_out import choose_held_out
from diffusion_core.data.store import save_store
from diffusion_core.images import render
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import Ema, Warmup
from diffusion_core.optim.adam import LearningRate
from diffusion_core.parity import cases
from diffusion_core.parity.compare import compare_arrays
from diffusion_core.runs.run_directory import RunDirectory, read_metrics
from diffusion_core.runtime.distributed import Collective, ProcessGroup
from diffusion_core.training.events import Record, TrainingCallbacks
from diffusion_core.training.loop import train
from diffusion_core.training.objective import Objective
from diffusion_core.training.training_config import TrainingConfig
from diffusion_core.training.validation import Validation, metric_name
from experiments.config import build
from experiments.runtime.data import DataSource, HeldOut
from experiments.training.validation import ValidationOptions, make_validation

SPEC = PlainSpec(image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=4)
MODEL = DiffusionModel(SPEC, {"name": "cosine", "T": 100}, "eps")
HELD_OUT = load_dataset("digits", part="held_out")
WEIGHTS = initial_weights(MODEL.program, 0, np.float64)
FORWARD = partial(reference.forward, MODEL.program, WEIGHTS)


def validation(count: int = 64, batch: int = 16, **options: object) -> Validation:
    objective = Objective.for_model(MODEL, seed=3, **options)
    return Validation(MODEL, objective, HELD_OUT, "held_out", count, batch, np.float64)


def test_every_evaluation_has_the_same_draws_whatever_the_batch_and_the_number_of_processes():
    numbers = validation().measure(FORWARD)
    assert numbers == validation().measure(FORWARD)
    for batch in (5, 64, 1000):
        other = validation(batch=batch).measure(FORWARD)
        assert all(np.isclose(other[name], numbers[name], rtol=1e-12) for name in numbers)
    parts = []
    for rank in range(3):  # a sum over the processes, as an all-reduce
        collective = Collective(ProcessGroup(rank, 3, kind="ddp"), lambda array: array)
        parts.append(validation().values(FORWARD, collective)["loss"])
    np.testing.assert_array_equal(sum(parts), validation().values(FORWARD)["loss"])


def test_the_noise_levels_are_stratified_and_the_bins_have_equal_sizes():
    own = validation(count=100, batch=100)
    np.testing.assert_array_equal(np.sort(own.timesteps), np.arange(100))  # T = 100: each timestep once
    assert np.bincount(own.draw_levels).tolist() == [25] * 4
    assert [level["t"] for level in own.facts()["levels"]] == [[0, 24], [25, 49], [50, 74], [75, 99]]
    numbers = own.measure(FORWARD)
    levels = [numbers[metric_name(level=k)] for k in (1, 2, 3, 4)]
    assert np.mean(levels) == pytest.approx(numbers["validation_loss"], rel=1e-12)
    assert len(set(own.indices)) == 100  # no image twice while there are others
    assert np.bincount(validation(count=720).indices).tolist() == [2] * 360


def test_it_is_the_expected_training_loss_on_the_held_out_images():
    """With as many draws as it takes, the mean of training batches on the same images has the same value."""
    options = {"weighting": {"name": "min_snr"}, "distance": "huber"}
    own = validation(count=720, **options)
    objective = own.objective
    pixels = HELD_OUT.images / 127.5 - 1.0
    losses = []
    for first in range(0, 1440, 360):
        batch = objective.batch(pixels, HELD_OUT.labels, np.arange(first, first + 360), np.float64)
        losses.append(reference.per_image_losses(MODEL.program, WEIGHTS, batch, "huber")[0])
    losses = np.concatenate(losses)
    error = losses.std() / np.sqrt(len(losses))
    assert abs(own.measure(FORWARD)["validation_loss"] - losses.mean()) < 4 * error


def test_nothing_random_of_training_is_in_it():
    """Dropped labels, perturbed inputs and the adaptation of timesteps are of training only, and so are its streams."""
    plain = validation().measure(FORWARD)
    options = {"input_perturbation": 0.1, "timestep_sampling": {"name": "loss_second_moment"}}
    assert validation(**options).measure(FORWARD) == plain
    assert validation(offset_noise=0.1).measure(FORWARD) != plain  # is part of the noise
    case = cases.PARITY
    objective = Objective.for_model(case, 3)
    dropping = replace(objective, label_dropout=0.9)
    one, two = (Validation(case, o, HELD_OUT, "held_out", 64, 64, np.float64)._batch(0) for o in (objective, dropping))
    np.testing.assert_array_equal(one.label, two.label)
    assert len(set(one.label)) == 10
    training = objective.batch(one.images, one.label, one.positions, np.float64)
    assert not np.any(training.noise == one.noise)


@pytest.mark.parametrize("case", cases.LOSSES, ids=lambda case: case.name)
def test_in_evaluation_mode_the_loss_has_every_term_of_training(case):
    """A network whose statistics are those of the batch has the training loss, term by term."""
    weights = cases.scattered_weights(case.program)
    losses, statistics = reference.per_image_losses(case.program, weights, case.batch, case.objective.distance)
    batch, name = case.batch, "norm"
    momentum = next(node.block for node in case.program.nodes if node.name == name).momentum
    n = batch.size * np.prod(batch.images.shape[1:3])
    if case.program.self_conditioned:
        return  # its two passes have different statistics; the backends hold it, see parity.trace
    old = {p: weights[f"{name}.{p}"] for p in ("mean", "variance")}
    own = {p: old[p] + (statistics[f"{name}.{p}"] - old[p]) / momentum for p in old}
    own["variance"] *= (n - 1) / n
    frozen = weights | {f"{name}.{p}": value for p, value in own.items()}
    got, _ = reference.evaluation_pass(partial(reference.forward, case.program, frozen), case.program, batch,
                                       case.objective.distance)  # fmt: skip
    np.testing.assert_allclose(got, losses, rtol=1e-9)


def test_the_loop_logs_it_with_the_step_and_leaves_the_steps_alone(tmp_path):
    class Counting:
        steps = 0

        def step(self, batch, lr, decays, micro_batches=1, may_repeat=False):
            self.steps += 1
            return type("Result", (), {"loss": 1.0 / self.steps, "grad_norm": 1.0})()

    loader = Loader(load_dataset("digits", part="train"), seed=0)
    written = {}
    for interval in (None, 24):
        records: list[Record] = []
        asked: list[int] = []

        def measure(images_seen: int, asked: list[int] = asked) -> dict[str, float]:
            asked.append(images_seen)
            return {"validation_loss": float(images_seen)}

        train(
            Counting(), loader, Objective.for_model(MODEL), LearningRate(0.1), Ema((Warmup(0.9),)),
            TrainingConfig(80, 8, log_images=40, validation_images=interval),
            TrainingCallbacks(
                on_log=lambda new, speed, records=records: records.extend(new),
                on_validation=measure if interval else None,
            ),
        )  # fmt: skip
        assert asked == ([24, 48, 72, 80] if interval else [])
        written[interval] = [record.metrics for record in records]
    with_loss = [line["images_seen"] for line in written[24] if "validation_loss" in line]
    assert with_loss == [24, 48, 72, 80]
    for line in written[24]:
        line.pop("validation_loss", None)
    assert written[24] == written[None]


def test_trackers_get_it_beside_the_training_loss(tmp_path):
    class Kept:
        def __init__(self):
            self.values = []

        def log_scalars(self, values, images_seen):
            self.values.append((images_seen, dict(values)))

        def close(self, failed=False):
            pass

    run = RunDirectory(tmp_path / "run")
    run._trackers = [tracker := Kept()]
    record = Record(8, 0.5, 1.0, 0.1, (0.9,))
    run.log([record, replace(record, images_seen=16, validation={"validation_loss": 0.7})], 10.0)
    assert tracker.values[0][1].keys() == {"train/loss", "train/grad_norm", "train/lr", "train/ema_decay"}
    assert tracker.values[1][1]["validation/loss"] == 0.7 and "train/validation_loss" not in tracker.values[1][1]
    lines = list(read_metrics(run.metrics))
    assert "validation_loss" not in lines[0] and lines[1]["validation_loss"] == 0.7


@pytest.mark.parametrize(
    "parts, trained, part, chosen",
    [
        (["train", "test"], "train", "auto", "test"),
        (["train", "test", "validation"], "train", "auto", "validation"),
        (["train", "val", "test"], "train", "auto", "val"),
        (["train", "test", "held_out"], "train", "auto", "held_out"),
        (["Training Data", "Validation Data", "Testing Data"], "Training Data", "auto", "Validation Data"),
        (["Training Data", "Validation Data", "Testing Data"], None, "auto", "Validation Data"),
        (["train", "extra"], "train", "auto", None),
        (["all"], None, "auto", None),
        (["train", "test"], "all", "auto", None),
        (["train", "test"], "test", "auto", None),
        (["train", "held_out"], "held_out", "auto", None),
        (["train", "val", "test"], "train", "test", "test"),
        ([], None, "auto", None),
    ],
)
def test_the_held_out_part_is_found_by_its_name_and_is_never_trained_on(parts, trained, part, chosen):
    assert choose_held_out("birds", parts, trained, part) == chosen


def test_a_part_that_does_not_exist_or_is_trained_on_is_refused():
    with pytest.raises(DuetError, match=r"validation.part: 'vall' was given; it must be one of auto, none, val"):
        choose_held_out("birds", ["train", "val"], "train", "vall")
    with pytest.raises(DuetError, match=r"validation.part: 'train' was given, but birds is trained on it"):
        choose_held_out("birds", ["train", "val"], "train", "train")


@pytest.mark.parametrize("name, options", [
    ("toy", {"kind": "moons", "count": 50}), ("shapes", {"count": 60, "size": 8, "classes": [0, 1, 2]}),
    ("gaussian_mixture", {"count": 40}),
])  # fmt: skip
def test_generated_data_are_validated_on_the_items_after_those_of_training(name, options):
    source = DataSource(name, options)
    held_out, trained = source.load_held_out(), source.load()
    assert held_out.part == "held_out" and held_out.dataset.class_names == trained.class_names
    seen = {image.tobytes() for image in trained.images}
    assert np.mean([image.tobytes() in seen for image in held_out.dataset.images]) < 0.1  # toys have few bytes
    assert held_out.dataset.sha256 != trained.sha256


def test_a_store_is_validated_on_its_own_part(tmp_path):
    for part in ("train", "test", "val"):
        count = {"train": 5, "test": 3, "val": 4}[part]
        save_store(replace(HELD_OUT.select(np.arange(count)), name="small"), tmp_path / part)
    source = DataSource("store", {"directory": str(tmp_path), "part": "train"})
    assert source.load_held_out().part == "val" and len(source.load_held_out().dataset) == 4
    assert source.load_held_out("test").dataset.sha256 == HELD_OUT.select(np.arange(3)).sha256
    assert source.load_held_out("none") is None and source.load_held_out(None) is None
    (tmp_path / "val" / "labels.npy").write_bytes(b"no")
    with pytest.raises(DuetError, match=r"validation.part=none trains without it"):
        source.load_held_out()


def test_only_the_images_that_are_needed_are_read_of_a_folder(tmp_path, monkeypatch):
    for part, count in (("train", 3), ("test", 7)):
        for kind in ("a", "b"):
            (tmp_path / part / kind).mkdir(parents=True)
            for k in range(count):
                render.save_png(tmp_path / part / kind / f"{k}.png", HELD_OUT.images[k])
    options = {"path": str(tmp_path), "part": "train", "size": 8, "channels": 1}
    source = DataSource("image_folder", options)
    assert len(source.load_held_out().dataset) == 14
    monkeypatch.setattr("experiments.runtime.data.HELD_OUT_COUNT", 5)
    few, more = source.load_held_out(), source.load_held_out(count=9)
    assert (len(few.dataset), len(more.dataset)) == (5, 9) and few.part == "test"
    assert few.dataset.class_names == ("a", "b") and few.dataset.sha256 == source.load_held_out().dataset.sha256
    only_b = replace(source, options=options | {"classes": ["b"]}).load_held_out(count=100).dataset
    assert only_b.class_names == ("b",) and len(only_b) == 7


def test_data_without_a_held_out_part_train_without_it(tmp_path):
    np.savez(tmp_path / "d.npz", images=HELD_OUT.images[:4], labels=HELD_OUT.labels[:4])
    source = DataSource("npz", {"path": str(tmp_path / "d.npz"), "size": 8, "channels": 1, "part": None})
    assert source.load_held_out() is None


def test_classes_are_matched_by_name_and_the_training_images_are_refused():
    model = cases.PARITY
    objective, options = Objective.for_model(model, 0), ValidationOptions(count=32)
    trained = load_dataset("digits", part="train")
    order = list(reversed(HELD_OUT.class_names))
    other = HELD_OUT.select_classes(order)
    made = make_validation(model, objective, trained, HeldOut("held_out", other), options, np.float64)
    names = [made.dataset.class_names[k] for k in made.dataset.labels]
    assert made.dataset.class_names == trained.class_names
    assert names == [other.class_names[k] for k in other.labels]
    unknown = replace(HELD_OUT, class_names=(*HELD_OUT.class_names[:-1], "ten"))
    with pytest.raises(DuetError, match="has the class 'ten'"):
        make_validation(model, objective, trained, HeldOut("val", unknown), options, np.float64)
    with pytest.raises(DuetError, match="holds the training images"):
        make_validation(model, objective, trained, HeldOut("val", trained), options, np.float64)


def test_the_default_interval_falls_on_the_log_and_is_cheap():
    own = validation(count=512)
    for images, log, averages in ((25_600, 1280, 1), (5_000_000, 1000, 1), (640, 64, 3), (128_000, 6400, 2)):
        interval = own.interval(images, log, averages)
        assert interval % log == 0
        moments = images // interval
        assert moments <= 100 and moments * 512 * (1 + averages) <= 0.1 * 3 * images


def test_a_configuration_validates_by_default_unless_it_says_none():
    tiny = ("experiment=digits", "trainer.images=640", "trainer.batch=64", "lr.decay=constant")
    setup = build.training_setup(composed("train", *tiny))
    assert setup.validation.part == "held_out" and len(setup.validation.dataset) == 360
    assert build.training_setup(composed("train", *tiny, "validation.part=none")).validation is None
    assert build.training_setup(composed("train", *tiny, "debug=overfit")).validation is None
    with pytest.raises(DuetError, match=r"trainer.validation_images: -1 was given"):
        build.training_setup(composed("train", *tiny, "trainer.validation_images=-1"))


def test_the_comparison_of_two_frameworks_holds_it_to_the_tolerance_of_the_loss():
    one = {"7/validation 1": np.array([0.5, 0.25, 0.125])}
    for precision, fault in (("float64", 1e-11), ("float32", 1e-5)):

        def checks(two: dict, precision: str = precision) -> dict:
            found = compare_arrays(one, two, precision, "torch–tf")
            return {c.name: c for c in found if c.name.startswith("validation loss")}

        assert checks(dict(one))["validation loss after 1 steps"].passed
        wrong = {"7/validation 1": np.array([0.5, 0.25, 0.125 * (1 + fault)])}
        assert not checks(wrong)["validation loss after 1 steps"].passed  # the smallest number counts like the largest
        assert not checks({})["validation loss after 1 steps"].passed


def test_a_held_out_part_without_classes_validates_networks_without_classes_alone(tmp_path, capsys):
    for folder in ("train/a", "train/b", "test"):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(2):
            render.save_png(tmp_path / folder / f"{k}.png", HELD_OUT.images[k + 2 * len(folder)])
    source = DataSource("image_folder", {"path": str(tmp_path), "part": "train", "size": 8, "channels": 1})
    trained, held_out = source.load(), source.load_held_out()
    assert (
        held_out.dataset.class_names == ("unlabelled",) and "networks without classes alone" in capsys.readouterr().out
    )
    given = trained, held_out, ValidationOptions(count=4), np.float64
    for classes, is_validated in ((2, False), (0, True)):
        spec = replace(cases.PARITY.spec, num_classes=classes)
        model = replace(cases.PARITY, spec=spec)
        validation = make_validation(model, Objective.for_model(model, 0), *given)
        assert (validation is not None) == is_validated


def test_a_data_set_without_files_ignores_the_missing_path_of_an_experiment():
    # experiment=double_conv_attention data=digits: the experiment sets data.options.path=null for its folder.
    source = DataSource("digits", {"path": None, "size": 8, "part": "train"})
    assert len(source.load(announce=False)) == 1437
    with pytest.raises(DuetError, match=r"option of data 'digits': 'path'"):
        DataSource("digits", {"path": "folder"}).load(announce=False)
    with pytest.raises(DuetError, match=r"data\.options\.path is null"):
        DataSource("image_folder", {"path": None, "size": 8}).load(announce=False)

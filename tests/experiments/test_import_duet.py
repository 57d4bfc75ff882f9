"""`import duet`: light until used, complete, documented, and the same in every environment."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import duet
from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError, name_arguments, name_keys
from diffusion_core.diffusion.continuous import CONTINUOUS
from diffusion_core.parity.cases import scattered_weights
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import read_samples
from duet.api.training import make_setup
from experiments.runtime.backends import BackendSetup
from experiments.runtime.options import CONFIGS


@pytest.fixture(autouse=True)
def keys_again():
    """Messages name arguments once duet is used; the other tests expect configuration keys."""
    name_arguments()
    yield
    name_keys()


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tiny():
    """A model of a few hundred parameters, and its data."""
    network = duet.network(
        "digits", channels=8, channel_multipliers=(1,), attention_resolutions=(), middle_attention=False, norm_groups=4
    )
    return duet.Model(network, schedule="cosine", prediction="v"), duet.load_dataset("digits", part="train")


def test_importing_duet_loads_nothing_else():
    code = "import sys, importlib; before = set(sys.modules); import duet; print(sorted(set(sys.modules) - before))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "['duet']\n"


def test_every_public_name_exists_and_its_docstring_says_what_it_is():
    for name in duet.__all__:
        value = getattr(duet, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert len(inspect.getdoc(value)) > 40, name


def test_every_public_function_and_class_has_an_example():
    without = [
        name
        for name in duet.__all__
        if (inspect.isclass(getattr(duet, name)) or inspect.isfunction(getattr(duet, name)))
        and "Example:" not in (getattr(duet, name).__doc__ or "")
    ]
    assert set(without) <= {"DuetError", "Scores"}, without


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = duet.trian


def test_the_representation_of_an_object_is_one_short_line(tiny):
    model, digits = tiny
    plan = duet.make_plan(model.process, "heun", steps=5)
    for value in (model, digits, plan, model.process, model.process.schedule, duet.Adam(), duet.LearningRate(1e-3)):
        assert "\n" not in repr(value) and len(repr(value)) < 160, repr(value)


def test_a_preset_is_the_network_of_its_file_with_the_requested_changes():
    assert duet.Model(duet.network("digits"), "cosine", "v").program.sha256 != ""
    assert duet.network("digits", num_classes=0).num_classes == 0
    with pytest.raises(duet.DuetError, match=r"network: 'digit' was given.*Did you mean 'digits'"):
        duet.network("digit")
    with pytest.raises(duet.DuetError, match="chanels"):
        duet.network("digits", chanels=8)


def test_an_option_that_does_not_exist_names_the_argument_and_the_nearest(tiny):
    model, digits = tiny
    with pytest.raises(duet.DuetError, match=r"'label_droput' was given.*Did you mean 'label_dropout'"):
        duet.train(model, digits, images=64, batch=64, label_droput=0.1, backend="none")
    with pytest.raises(duet.DuetError, match=r"'imges' was given.*Did you mean 'images'"):
        duet.train(model, digits, imges=64, backend="none")
    with pytest.raises(duet.DuetError, match=r"'labls' was given.*Did you mean 'labels'"):
        duet.sample("nowhere", labls=3)
    with pytest.raises(duet.DuetError, match=r"^part: 'trian' was given.*Did you mean 'train'"):
        duet.load_dataset("digits", part="trian")
    with pytest.raises(duet.DuetError, match=r"^checkpoint: 'nowhere' does not exist"):
        duet.sample("nowhere")


def test_metrics_that_cannot_be_measured_are_refused_or_listed():
    digits = duet.load_dataset("digits", part="held_out")
    with pytest.raises(duet.DuetError, match=r"^features: metric 'frechet' needs a feature network; give features='di"):
        duet.evaluate(digits.images, digits, metrics=["frechet"])
    with pytest.raises(
        duet.DuetError, match=r"^metrics: 'fid' was given; .* FID is 'frechet' with features='inception'"
    ):
        duet.evaluate(digits.images, digits, metrics=["fid"])
    assert "skipped frechet: it needs features" in repr(
        duet.evaluate(digits.images, digits, metrics=["frechet", "colour"])
    )


def test_an_error_names_the_argument_in_python_and_the_key_on_the_command_line():
    with pytest.raises(DuetError) as raised:
        duet.TrainingConfig(images=100, batch=0)
    assert str(raised.value).startswith("batch: 0 was given")
    name_keys()
    assert str(raised.value).startswith("trainer.batch: 0 was given")


@pytest.mark.parametrize("message, wanted", [
    ("set model.num_classes=10 or process.label_dropout=0", "set num_classes=10 or label_dropout=0"),
    ("data.options.size: 7 was given", "size: 7 was given"),
    ("sampler.name: 'ddimm' was given", "sampler: 'ddimm' was given"),
    ("model.npz: it is corrupted", "model.npz: it is corrupted"),
    ("weights/model.safetensors and a.model.b stay", "weights/model.safetensors and a.model.b stay"),
])  # fmt: skip
def test_only_configuration_keys_are_shortened(message, wanted):
    assert str(DuetError(message)) == wanted


@pytest.fixture(scope="module")
def trained(tiny, backend_name):
    """What was trained without a directory, and the arguments."""
    given = {"images": 128, "batch": 64, "label_dropout": 0.1, "backend": backend_name, "threads": 1, "quiet": True}
    return duet.train(*tiny, **given), given


@pytest.mark.backend
def test_python_trains_as_the_same_seed_does_with_a_directory(tiny, trained, backend_name, tmp_path):
    run, given = trained
    kept = duet.train(*tiny, out=tmp_path / "run", samples=4, **given)
    assert kept.images_seen == run.images_seen == 128
    for name, value in kept.state.weights.items():
        np.testing.assert_array_equal(run.state.weights[name], value)
    images, labels, _ = read_samples(tmp_path / "run" / "samples" / "samples.npz")
    drawn = duet.sample(tmp_path / "run", 4, batch=4, backend=backend_name, threads=1)
    np.testing.assert_array_equal(drawn, images)
    assert duet.load(tmp_path / "run").images_seen == 128 and labels.tolist() == [0, 1, 2, 3]


@pytest.mark.backend
def test_a_callback_sees_every_row_and_a_plan_may_be_given(tiny, trained, backend_name):
    (model, _), (run, _) = tiny, trained
    rows = []
    plan = model.plan("ddim", steps=5)
    images = duet.sample(
        run, 3, sampler=plan, backend=backend_name, threads=1, callback=lambda row, x, estimate: rows.append(row)
    )
    assert rows == list(range(5)) and images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(duet.sample(run, 3, sampler="ddim", steps=5, backend=backend_name, threads=1), images)
    lists, arrays = (
        duet.sample(run, 3, sampler="heun", sigmas=sigmas, end=0.1, backend=backend_name, threads=1)
        for sigmas in ([20.0, 3.0, 0.5], np.array([20.0, 3.0, 0.5]))
    )
    np.testing.assert_array_equal(lists, arrays)


def test_frechet_distance_of_digits_with_themselves_is_small_and_has_an_interval():
    digits = duet.load_dataset("digits", part="train")
    scores = duet.evaluate(digits.images, digits, features="digits")
    (number,) = scores.values()
    assert abs(number.value) < 1e-6 and number.interval is not None
    assert repr(scores).startswith("Scores(digits Fréchet distance")


def test_names_of_other_libraries_are_translated(tiny):
    model, digits = tiny
    with pytest.raises(DuetError, match="'batch_size' was given; Duet calls it 'batch'"):
        duet.train(model, digits, images=64, batch_size=64, backend="none")
    with pytest.raises(DuetError, match="'epsilon' was given; Duet calls it 'eps'"):
        duet.Model(model.spec, "cosine", "epsilon")
    with pytest.raises(DuetError, match=r"optimiser: 0\.1 was given; it must be a duet\.Optimiser or text or None"):
        duet.train(model, digits, images=64, batch=64, optimiser=0.1, backend="none")
    with pytest.raises(DuetError, match=r"optimiser: 'lionn' was given; it must be one of .* Did you mean 'lion'"):
        duet.train(model, digits, images=64, batch=64, optimiser="lionn", backend="none")


def test_an_average_by_name_is_the_one_of_the_configuration(tiny):
    model, digits = tiny
    common = {"images": 64, "batch": 64, "lr": 1e-3, "sampler": None, "samples": 1, "optimiser": None, "seed": 0}
    common |= {"backend": BackendSetup("none"), "flip": False, "augment": 0.0}
    assert make_setup(model, digits, ema="warmup", **common).ema == make_setup(model, digits, ema=None, **common).ema


def test_a_run_stores_arrays_and_numbers_of_numpy_as_plain_values(tiny):
    sampler = {"name": "heun", "sigmas": np.array([9.0, 0.5]), "steps": np.int64(2), "guidance_scale": (np.float32(2),)}
    setup = make_setup(
        *tiny, images=64, batch=64, lr=1e-3, ema="fixed", sampler=sampler, samples=1, optimiser=None,
        backend=BackendSetup("none"), seed=0, flip=False, augment=0.0,
    )  # fmt: skip
    stored = {"name": "heun", "sigmas": [9.0, 0.5], "steps": 2, "guidance_scale": [2.0]}
    assert repr({key: setup.sampler[key] for key in stored}) == repr(stored)


def test_loading_a_folder_warns_of_what_was_left_out_and_chosen(tmp_path):
    for part, name in (("train", "a"), ("train", "b"), ("test", "a")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / name / "1.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("notes")
    with pytest.warns(UserWarning) as caught:
        data = duet.load_dataset("image_folder", path=str(tmp_path), size=8, part="test")
    said = "\n".join(str(one.message) for one in caught)
    assert len(data) == 1 and "a/notes.txt" in said and "test has no image of b" in said
    with pytest.warns(UserWarning, match="part train is used, of train, test; choose with part="):
        duet.load_dataset("image_folder", path=str(tmp_path), size=8)


def test_images_are_saved_as_files_and_evaluated_from_them(tmp_path):
    digits = duet.load_dataset("digits", part="held_out")
    images, labels = digits.images[:60], digits.labels[:60]
    out = duet.save_images(tmp_path / "out", images, labels, digits.class_names)
    metrics = ["colour", "spread"]
    from_files, from_arrays = (
        duet.evaluate(given, digits, metrics=metrics, **more)
        for given, more in ((out, {}), (images, {"labels": labels}))
    )
    assert {name: number.value for name, number in from_files.items()} == pytest.approx(
        {name: number.value for name, number in from_arrays.items()}, rel=1e-12
    )
    with pytest.raises(duet.DuetError, match="exists already and is left as it is"):
        duet.save_images(out, images)
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.warns(UserWarning, match="mean and covariance of 64 features"):
        scores = duet.evaluate(out, tmp_path / "stats.npz", metrics=["frechet", "kernel"], features="digits")
    assert list(scores) == ["digits Fréchet distance"] and set(scores.skipped) == {"kernel"}
    other = duet.save_images(tmp_path / "other", images, labels % 2, ["odd", "even"])
    with pytest.warns(UserWarning, match="the reference has no class 'even', 'odd'"):
        duet.evaluate(other, digits, metrics=["colour"])


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONFIGS / "process").glob("*.yaml"))])
def test_every_process_of_the_configuration_is_one_in_python(name):
    options = yaml.safe_load((CONFIGS / "process" / f"{name}.yaml").read_text())
    if name in duet.SCHEDULES or name in CONTINUOUS:  # the schedule of this name
        return
    given = {"shift_to": 64} if name == "v_cosine_shifted" else {}
    made = duet.process(name, **given)
    assert made.prediction == options["prediction"] and made.schedule.options["name"] == options["schedule"]["name"]
    assert made.time_scale == options.get("time_scale", 1.0) and made.boundary == options.get("boundary", 0.0)


def test_options_take_the_place_of_those_of_a_process_by_name():
    with pytest.raises(DuetError, match="shift_to: nothing was given; it is that of the network"):
        duet.process("v_cosine_shifted")
    made = duet.process("shortcut", time_scale=2.0, t_min=1e-3)
    assert (made.prediction, made.time_scale, made.time_offset) == ("velocity_to_data", 2.0, 1.0)
    assert made.schedule.options["t_min"] == 1e-3


def test_a_model_takes_a_process_as_a_whole():
    spec, process = duet.network("toy"), duet.process("sit")
    model = duet.Model(spec, process)
    assert model == duet.Model(
        spec, dict(process.schedule.options), process.prediction, time_scale=process.time_scale,
        time_offset=process.time_offset,
    )  # fmt: skip
    assert model.process.time_offset == process.time_offset
    with pytest.raises(DuetError, match="prediction: v was given beside a process"):
        duet.Model(spec, process, "v")
    with pytest.raises(DuetError, match="prediction: nothing was given"):
        duet.Model(spec, "cosine")


def test_an_operator_needs_the_shape_of_an_image():
    with pytest.raises(DuetError, match="shape: 2 was given; it must be that of an image"):
        duet.operators.downsample(2)
    assert duet.operators.downsample([4, 4, 1], factor=2).forward(np.ones((1, 4, 4, 1))).shape == (1, 2, 2, 1)


@pytest.mark.backend
def test_weights_are_written_and_read_again(tmp_path, backend_name):
    spec = duet.network("dit_digits", channels=8, depth=1, heads=2)
    model = duet.Model(spec, duet.process("cosine", "v"))
    state = TrainerState.fresh(scattered_weights(model.program, dtype=np.float32))
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(0, model, 0, state, {}))
    state_dict = duet.export_weights(
        tmp_path / "run", "state_dict", tmp_path / "net.safetensors", project="dit", backend=backend_name
    )
    run = duet.import_weights("dit", state_dict, tmp_path / "again", process=duet.process("cosine", "v"), heads=2)
    for name, array in state.parts["weights"].items():
        np.testing.assert_array_equal(run.state.parts["weights"][name], array)
    assert run.model.process.prediction == "v"
    with pytest.raises(DuetError, match="holds checkpoints already"):
        duet.import_weights("dit", state_dict, tmp_path / "again")
    with pytest.raises(DuetError, match=r"source.*: .dti. was given"):
        duet.import_weights("dti", state_dict, tmp_path / "new")
    if backend_name == "torch":
        assert duet.export_weights(tmp_path / "run", "torch", tmp_path / "net2.safetensors").exists()

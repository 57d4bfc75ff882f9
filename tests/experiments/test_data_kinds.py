"""Data of every kind through training, validation and evaluation: what fits a network, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from commands import call, composed
from PIL import Image

import duet
from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec, UNetSpec
from diffusion_core.runs.run_directory import write_samples
from diffusion_core.training.training_config import TrainingConfig
from experiments.config.arguments import read_arguments
from experiments.config.build import data_source
from experiments.data.inspection import InspectionSetup, inspect_dataset
from experiments.evaluation.context import dataset_reference
from experiments.runtime.data import DataSource, check_data, describe_clip, describe_data
from experiments.training.setup import TrainingSetup

FLOATS = np.random.default_rng(1).normal(size=(12, 8, 8, 1))
VECTORS = load_dataset(FLOATS, conditions=np.arange(24.0).reshape(12, 2), condition_names=["age", "size"])


def unet(features: int) -> DiffusionModel:
    spec = UNetSpec(
        image_size=8, in_channels=1, out_channels=1, channels=8, channel_multipliers=(1,), blocks_per_resolution=1,
        norm_groups=4, attention_resolutions=(), augment_dim=features,
    )  # fmt: skip
    return DiffusionModel(spec, "cosine", "v")


def setup(dataset, model, **options):
    return TrainingSetup.create(model, dataset, TrainingConfig(images=16, batch=2), **options)


def test_conditions_are_the_features_of_the_network_or_are_said_not_to_be():
    assert setup(VECTORS, unet(2)).objective.features == 2
    assert "2 conditions of each image (age, size): the features of the network" in describe_data(VECTORS, 0, 2)
    assert "not used; model.augment_dim=2 trains with them" in describe_data(VECTORS, 0, 0)
    setup(VECTORS, unet(0))
    with pytest.raises(DuetError, match=r"has 2 conditions, but the network takes 9 features .*augment_dim=2, or 0"):
        setup(VECTORS, unet(9))
    assert setup(VECTORS, unet(11), augment=0.1).loader.batch(0, 3).features.shape == (3, 11)
    with pytest.raises(DuetError, match=r"not the 2 conditions of data arrays and the 9 .* model\.augment_dim=11"):
        setup(VECTORS, unet(9), augment=0.1)


def test_a_sampler_that_cuts_the_values_of_the_data_is_named():
    bytes_ = load_dataset(np.full((3, 8, 8, 1), 255, np.uint8))
    inside = load_dataset(np.linspace(-1, 1, 192).reshape(3, 8, 8, 1))
    assert describe_clip(VECTORS, 1.0, (-1, 1)).startswith("sampler.clip=1 bounds the samples to -1 to 1, but the data")
    assert describe_clip(VECTORS, 0.5, (0, 4)).startswith("sampler.clip=0.5 bounds the samples to 1 to 3,")
    quiet = [(VECTORS, None, (-1, 1)), (VECTORS, 9.0, (-1, 1)), (bytes_, 0.5, (-1, 1)), (inside, 1.0, (-1, 1))]
    assert not any(describe_clip(*given) for given in quiet)


def test_a_bound_on_bytes_is_not_trained_on_floats():
    spec = PlainSpec(8, 1, 2, channels=(4,), bottleneck=4)
    with pytest.raises(DuetError, match=r"process\.variance: learned was given, but .* of bytes, .* is float64; use"):
        setup(VECTORS, DiffusionModel(spec, "cosine", "v", variance="learned"))


@pytest.mark.parametrize(
    ("shape", "is_trained", "message"),
    [
        ((8, 4, 1), False, r"are \(8, 4, 1\), .* takes \(8, 8, 1\) .* a network of your own that takes \(8, 4, 1\)"),
        ((4, 4, 3), False, r"set model\.image_size=4 model\.in_channels=3 model\.out_channels=3"),
        ((8, 4, 1), True, r"set data\.options\.size=8 data\.options\.channels=1"),
        ((6,), False, r"are \(6,\), but the network takes \(8, 8, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_a_network_are_refused_with_what_to_change(shape, is_trained, message):
    data = load_dataset(np.zeros((3, *shape)), value_range=(-1, 1), layout="channels_last")
    with pytest.raises(DuetError, match=message):
        check_data(data, PlainSpec(8, 1, 1, channels=(4,), bottleneck=4), is_trained)


# From the command line


def loaded(*words: str):
    """Return the data set that a training with these words reads."""
    return data_source(composed("train", *words).data).load(announce=False)


@pytest.mark.parametrize(("size", "folder"), [("[6,10]", "6x10"), ("null", "original"), ("6", "6")])
def test_images_of_any_aspect_ratio_are_prepared_and_read(tmp_path, monkeypatch, size, folder):
    monkeypatch.setenv("DUET_DATA", str(tmp_path / "data"))
    (tmp_path / "wide").mkdir()
    for k in range(5):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (12, 20, 3), np.uint8)).save(
            tmp_path / f"wide/{k}.png"
        )
    words = ["data=image_folder", f"data.options.size={size}"]
    with pytest.raises(DuetError, match=r"python3 -m duet prepare data=image_folder data\.options\.path=PATH") as error:
        loaded(*words)
    assert size == "null" or f"data.options.size={size}" in str(error.value)
    code, out, err = call("prepare", *words, f"data.options.path={tmp_path / 'wide'}", "workers=1")
    assert (code, err) == (0, "") and f"prepared: {tmp_path / 'data' / f'image_folder-{folder}'}" in out
    shape = {"[6,10]": (6, 10, 3), "null": (12, 20, 3), "6": (6, 6, 3)}[size]
    prepared, direct = loaded(*words), loaded(*words, f"data.options.path={tmp_path / 'wide'}")
    assert prepared.shape == direct.shape == shape and prepared.sha256 == direct.sha256


def test_arrays_are_prepared_and_read_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_DATA", str(tmp_path))
    np.savez(tmp_path / "own.npz", z=FLOATS, kind=np.arange(12) % 2, age=np.arange(12.0))
    words = ["data=arrays", "data.options.images=z", "data.options.labels=kind", "data.options.conditions=age"]
    words += ["data.options.condition_names=[age]", "data.options.class_names=[cat,dog]"]
    code, out, err = call("prepare", *words, f"data.options.path={tmp_path / 'own.npz'}", "workers=1")
    assert (code, err) == (0, "") and "1 condition of each image: age" in out
    prepared, direct = loaded(*words), loaded(*words, f"data.options.path={tmp_path / 'own.npz'}")
    assert prepared.sha256 == direct.sha256 in out
    np.testing.assert_array_equal(prepared.images, FLOATS)
    assert prepared.class_names == ("cat", "dog") and prepared.condition_names == ("age",)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("pets.zip", "data=zip data.options.path="),
        ("pets.npz", "data=arrays data.options.path="),
        ("pets/x.png", "data=image_folder data.options.path="),
        ("pets/train-00000-of-00001.parquet", "data=hf_folder data.options.path="),
        ("pets/train/data.json", "data=store data.options.directory="),
    ],
)
def test_a_path_in_place_of_a_name_says_which_data_read_it(tmp_path, made, words):
    (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / made).touch()
    path = tmp_path / made.split("/")[0]
    with pytest.raises(DuetError, match=re.escape(f"write {words}{path}")):
        read_arguments([f"data={path}"], "train")


# Pages and references

PIXELS = np.random.default_rng(3).integers(0, 256, (9, 12, 20, 3), np.uint8)
KINDS = {
    "wide images": (PIXELS, {}, ["12 x 20 pixels, colour", "near-duplicate"], {"means", "samples"}),
    "wide images as floats": (
        PIXELS / 255, {"value_range": [0, 1]}, ["12 x 20 pixels, colour", "near-duplicate"], {"means", "samples"},
    ),
    "latents": (
        np.random.default_rng(0).normal(size=(9, 8, 8, 4)), {}, ["9 arrays of 8 x 8 x 4 float64", "channel 3"],
        {"samples"},
    ),
    "vectors": (np.random.default_rng(0).normal(size=(9, 20)), {}, ["9 arrays of 20 float64", "values"], set()),
    "one value": (np.full((9, 2, 2, 2), 7.0), {"layout": "channels_last"}, ["2 x 2 x 2 float64"], {"samples"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_inspect_shows_data_of_every_kind(tmp_path, kind):
    values, options, said, sheets = KINDS[kind]
    np.savez(tmp_path / "x.npz", x=values, y=np.arange(9) % 2, conditions=np.arange(18.0).reshape(9, 2))
    source = DataSource("arrays", {"path": str(tmp_path / "x.npz"), **options})
    page = inspect_dataset(InspectionSetup(source), tmp_path / "out").read_text()
    for text in [*said, "2 conditions", "condition 1"]:
        assert text in page
    assert {file.stem.partition("-")[0] for file in (tmp_path / "out").glob("*.png")} == {"levels", *sheets}
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]["all"]
    assert facts["conditions"]["condition 0"] == {"mean": 8.0, "std": pytest.approx(np.arange(0, 18, 2).std())}
    scale = 255 if values.dtype == np.uint8 else 1
    channels = values.reshape(-1, values.shape[-1] if values.ndim > 2 else 1) / scale
    np.testing.assert_allclose(facts["mean"], channels.mean(axis=0), atol=0.003 if "floats" in kind else 1e-12)
    np.testing.assert_allclose(facts["std"], channels.std(axis=0), atol=0.003 if "floats" in kind else 1e-7)


def test_data_that_are_no_pictures_are_evaluated_by_their_values(tmp_path):
    rng = np.random.default_rng(7)
    data = load_dataset(rng.normal(size=(400, 2, 2, 5)))
    same, other = rng.normal(size=(100, 2, 2, 5)), 1 + rng.normal(size=(100, 2, 2, 5))
    near, far = (duet.evaluate(x, data, features="values")["values Fréchet distance"].value for x in (same, other))
    exact = frechet_distance(other.reshape(100, -1), data.images.reshape(400, -1))
    assert far == pytest.approx(exact, rel=1e-9) and far > near + 15
    # A file of a run has the values beside a view of their first channel.
    write_samples(tmp_path / "run.npz", np.zeros((100, 2, 2, 1), np.uint8), np.zeros(100, int), other)
    read = duet.evaluate(tmp_path / "run.npz", data, features="values")["values Fréchet distance"].value
    assert read == pytest.approx(far, rel=1e-6)
    with pytest.raises(DuetError, match=r"digits was given, which reads images, .* use features=values"):
        duet.evaluate(other, data, features="digits")
    with pytest.raises(DuetError, match=r"samples: they are images, but .* holds values of other shapes"):
        duet.evaluate(np.repeat(PIXELS, 2, axis=0), data, features="values")
    with pytest.raises(DuetError, match=r"or features='values' for data without one"):
        duet.evaluate(other, data)
    with pytest.raises(DuetError, match=r"they are 2 x 2 x 4; .* 2 x 2 x 5"):
        duet.evaluate(other[..., :4], data, features="values")


def test_a_reference_is_whatever_holds_data():
    rng = np.random.default_rng(8)
    values, samples = rng.normal(size=(60, 12)), rng.normal(size=(30, 12))
    holders = (values, load_dataset(values), iter(list(values)))
    scores = [duet.evaluate(samples, one, features="values")["values Fréchet distance"].value for one in holders]
    assert scores[0] == scores[1] == scores[2]


def test_pixels_as_floats_are_compared_as_the_bytes_that_they_are():
    floats, ours = load_dataset(PIXELS / 255, value_range=(0, 1)), load_dataset(PIXELS)
    for data in (floats, ours):
        reference = dataset_reference(data, {}, data)
        np.testing.assert_array_equal(reference.arrays["images"], PIXELS)
        np.testing.assert_array_equal(reference.arrays["training"], PIXELS)

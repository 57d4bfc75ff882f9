"""Saved samples evaluated by `experiments.evaluate` and at the end of a training, and evaluations compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from commands import call, composed
from PIL import Image

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Description, TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.data import load_dataset
from diffusion_core.metrics.digits import layers
from diffusion_core.metrics.evaluate import METRICS, metric_options, random_sets
from diffusion_core.metrics.evaluate import evaluate as evaluate_sets
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.metrics.metric import SampleSet
from diffusion_core.metrics.protocol import Number, read_numbers
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import Program, UNetSpec
from diffusion_core.networks.weights import Weights, initial_weights
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import read_samples, write_samples
from diffusion_core.runtime.distributed import Collective
from diffusion_core.statistics import Interval, wilson_interval
from experiments.evaluation.context import EvaluationContext
from experiments.evaluation.setup import EvaluationSetup
from experiments.evaluation.table import number_table
from experiments.features import FEATURES
from experiments.runtime.backends import BackendSetup
from experiments.studies.plan import Metric
from experiments.studies.results import Outcome, check_protocol, value

CPU = ("backend.threads=1", "backend.device=cpu")
ON_DIGITS = ("data=digits", "data.options.part=held_out", "features=digits")


# The distances of the samples below, in every environment.
EVERYWHERE = {"frechet": 17.507410096101097, "spatial": 30.206739468461564, "kernel": 0.8545731259112307}


def run(command: str, *words: str) -> tuple[str, str]:
    """Run a command; return what it printed, and its error message."""
    _, out, err = call(command, *words)
    return out, err


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Forty images of digits, of which ten are inverted, as the saved samples of a run."""
    data = load_dataset("digits", part="train", size=16)
    images = data.images[:40].copy()
    images[:10] = 255 - images[:10]
    path = tmp_path / "run" / "samples" / "samples.npz"
    write_samples(path, images, data.labels[:40], plan="ddim-4", seed=3, conditional=True)
    return path


@pytest.mark.backend  # in both environments, for the same numbers
def test_saved_samples_are_evaluated_by_every_metric_without_a_framework(samples, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runtime.backends.load_backend", mock.Mock(side_effect=AssertionError))
    out = tmp_path / "out"
    words = (*ON_DIGITS, "data.options.size=16", "data@training=digits", "training.options={size: 16, part: train}")
    output, error = run("evaluate", f"samples={tmp_path}/run", *words, f"out={out}", "sets=4", "keep_features=true")
    assert error == ""
    images, held_out = read_samples(samples)[0], load_dataset("digits", part="held_out", size=16)
    expected = frechet_distance(*(layers(x)["features"] for x in (images, held_out.images)))
    facts = json.loads((out / "evaluation.json").read_text())
    assert set(facts["numbers"]) == set(METRICS) - {"cmmd", "frechet_infinity"} and facts["samples"]["left_out"] == {}
    number = facts["numbers"]["frechet"]["distance"]
    assert number["name"] == "digits Fréchet distance" and number["better"] == "lower"
    assert number["value"] == pytest.approx(expected, rel=1e-9) and len(number["without"]) == 4
    assert number["interval"]["low"] < expected < number["interval"]["high"]
    assert number["protocol"]["reference"]["sha256"] == held_out.sha256
    assert number["protocol"]["reference"]["split"] == "held_out"
    assert facts["samples"]["samples"]["made"] == {"plan": "ddim-4", "seed": 3, "conditional": True}
    assert facts["numbers"]["memorisation"]["copies"]["value"] == 0.75  # the samples are training digits
    assert facts["numbers"]["agreement"]["rate"]["value"] >= 0.75
    for metric, expected_value in EVERYWHERE.items():
        assert facts["numbers"][metric]["distance"]["value"] == pytest.approx(expected_value, rel=1e-9)
    line = next(line for line in output.splitlines() if line.startswith("digits Fréchet distance"))
    assert f"{expected:9.4f}  [{number['interval']['low']:.4f}, {number['interval']['high']:.4f}]" in line
    assert "FID" not in output and Image.open(out / "memorisation.png").size[0] > 500
    assert np.load(out / "evaluation.npz")["memorisation/index"].shape == (40, 2)
    # The saved features, without images and without their network, give the same numbers and protocols.
    kept = (f"samples={out}/features/samples.npz", f"reference={out}/features/reference.npz", "sets=4")
    output, error = run("evaluate", *kept, f"out={tmp_path}/kept")
    assert error == "" and "skipped: colour: it needs images" in output
    again = {n.name: n for n in read_numbers(tmp_path / "kept")}
    assert set(again) < {n.name for n in read_numbers(out)}
    assert all(n == again[n.name] for n in read_numbers(out) if n.name in again) and len(again) == 10


def test_compare_puts_only_numbers_of_one_protocol_into_a_row(samples, tmp_path):
    base = (f"samples={samples}", *ON_DIGITS, "data.options.size=16", "metrics=[frechet,colour]")
    for name, words in (("a", ()), ("b", ()), ("c", ("count=30",))):
        assert run("evaluate", *base, *words, f"out={tmp_path}/{name}")[1] == ""
    given = ",".join(str(tmp_path / name) for name in "abc")
    output, error = run("compare", f"evaluations=[{given}]", f"out={tmp_path}/report")
    assert error == "" and "No verdict: no tolerance is published for evaluations." in output
    quality = json.loads((tmp_path / "report" / "report.json").read_text())["quality"]
    rows = [row for row in quality["rows"] if row["name"].startswith("digits Fréchet distance")]
    assert [row["name"].partition(" (")[2] for row in rows] == [
        "samples.count 40, samples.sets.count 20)",
        "samples.count 30, samples.sets.count 15)",
    ]
    filled = [[value is not None for value in row["values"]] for row in rows]
    assert filled == [[True, True, False], [False, False, True]]
    assert re.search(r"^digits Fréchet distance \(.*b minus .*: 0, \[0, 0\]$", output, re.MULTILINE)
    (apart,) = rows[0]["differences"]  # the same samples twice: the interval of the difference is a point
    assert apart["value"] == 0 and apart["interval"] == [0, 0] and rows[1]["differences"] == []
    page = (tmp_path / "report" / "report.html").read_text()
    assert "b minus " in page and "as many images of the reference itself" in page
    assert "samples.count 30" in page and f", {rows[0]['intervals'][0][1]:.3f}"[:6] in page


def test_study_refuses_numbers_of_different_protocols(samples, tmp_path):
    base = (f"samples={samples}", *ON_DIGITS, "data.options.size=16", "metrics=[colour]")
    for name, words in (("a", ()), ("b", ()), ("c", ("data.options.part=train",))):
        assert run("evaluate", *base, *words, f"out={tmp_path}/{name}")[1] == ""
    a, b, c = (Outcome(mock.Mock(), (tmp_path / name,)) for name in "abc")
    metric = Metric("colour", "colour", read="evaluation.numbers.colour.distance")
    assert value(a, metric) == read_numbers(tmp_path / "a")[0].value
    check_protocol(metric, [a, b])
    with pytest.raises(
        DuetError, match=r"different protocols and cannot be compared \(reference.split: held_out, train;"
    ):
        check_protocol(metric, [a, b, c])


def test_likelihood_has_an_interval_over_sets_of_its_images(tmp_path, monkeypatch):
    asked, images = [], []

    def forward(program: Program, weights: Weights, x: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
        images.append(len(x))
        return reference.forward(program, weights, x, *inputs)

    backend = SimpleNamespace(
        collective=Collective(),
        describe=lambda: Description("reference", "cpu", "float64", 1, "eager"),
        network=lambda *network: SimpleNamespace(forward=partial(forward, *network)),
    )
    monkeypatch.setattr(BackendSetup, "open", lambda setup, calls: asked.append(calls) or backend)
    spec = UNetSpec(8, 1, 1, 8, (1, 2), 1, (), middle_attention=False, norm_groups=4, norm_eps=1e-5)
    model = DiffusionModel(spec, {"name": "linear", "T": 20}, "eps")
    state = TrainerState.fresh(initial_weights(model.program, 0, np.float32))
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(128, model, 0, state, {}))
    words = ("data=digits", "likelihood=vlb", "likelihood.levels=2", "likelihood.count=12", "sets=3")
    output, error = run("evaluate", f"checkpoint={tmp_path}/run", *words, f"out={tmp_path}/out")
    assert error == ""
    number = read_numbers(tmp_path / "out")[0]
    # compile=auto decided by the number of calls that were then made.
    assert asked == [-(-sum(images) // 128)]
    totals = np.load(tmp_path / "out" / "likelihood.npz")["total"]
    without = [np.delete(totals, some).mean() for some in random_sets(12, 3, 0).members]
    assert number.value == pytest.approx(totals.mean()) and number.without == pytest.approx(without)
    assert number.interval.low < number.value < number.interval.high
    assert number.error == pytest.approx(totals.std(ddof=1) / np.sqrt(12))
    assert number.protocol["data"]["split"] == "train" and "checkpoint" not in str(number.protocol)
    other = next(n for n in read_numbers(tmp_path / "out") if n.name == "likelihood, vlb, variance fixed_large")
    assert number.protocol["variance"] == "fixed_small" and other.protocol["variance"] == "fixed_large"
    assert np.isfinite(other.value) and other.value != number.value and other.name in output
    assert "bits/dim" in output


def test_the_accuracy_of_a_checkpoint_has_wilsons_interval():
    correct = np.ones(50, bool)
    number = EvaluationContext(EvaluationSetup()).mean_number("accuracy", correct, "t = 0", {}, "higher")
    expected = wilson_interval(50, 50)
    assert (number.interval.low, number.interval.high) == (expected.low, 1.0) and number.trials == 50
    assert number_table([number])[-1] == "fractions of independent samples have Wilson's interval"


def test_the_table_says_what_an_interval_is_for_and_what_a_value_means():
    protocol = {"metric": "frechet", "number": "distance", "samples": {"count": 40, "sets": {"count": 20}}}
    number = Number(
        "FID", 3.0, protocol | {"reference": {}}, Interval(2.0, 4.0, 0.95), interval_both=Interval(1.5, 4.5, 0.95),
        floor=1.25, corrected=1.75,
    )  # fmt: skip
    value, details, note = number_table([number])
    assert value.split() == ["FID", "3.0000", "[2.0000,", "4.0000]"]
    for part in ("[1.5000, 4.5000] over draws of the reference too", "1.2500 for 40 images of the reference itself",
                 "1.7500 without the bias of 40 samples"):  # fmt: skip
        assert part in details
    assert "from 20 disjoint sets; they hold the expected value at this number of samples for this reference" in note
    assert "too few for these features" in number_table([replace(number, corrected=None)])[1]


def test_features_in_files_are_called_by_their_network(tmp_path):
    rng = np.random.default_rng(0)
    for name, width in (("a", 24), ("b", 24), ("c", 23)):
        np.savez(tmp_path / f"{name}.npz", features=rng.normal(size=(40, width)).astype(np.float32))
    words = ("features.width=24", "metrics=[frechet,cmmd]", "floors=1", f"reference={tmp_path}/b.npz")
    for features, names in (
        ("clip", {"CLIP of width 24 Fréchet distance", "CLIP of width 24 Gaussian kernel distance"}),
        ("dinov2", {"DINOv2 of width 24 Fréchet distance", "DINOv2 of width 24 Gaussian kernel distance"}),
    ):
        out = tmp_path / features
        assert run("evaluate", f"samples={tmp_path}/a.npz", f"features={features}", *words, f"out={out}")[1] == ""
        assert {number.name for number in read_numbers(out)} == names
    error = run("evaluate", f"samples={tmp_path}/c.npz", "features=clip", *words, f"out={tmp_path}/c")[1]
    assert "23 features were given, but CLIP has 24" in error


def test_published_names_belong_to_the_network_of_published_numbers():
    for title, width, metric, name in (
        ("DINOv2", 1024, "frechet", "FD-DINOv2"), ("CLIP", 768, "cmmd", "CMMD"), ("DINOv2", 5, "frechet", None),
    ):  # fmt: skip
        kind = FEATURES["given"](title=title, width=width, unit_length=title == "CLIP").kind
        rng = np.random.default_rng(0)
        a, b = (SampleSet({"features": rng.normal(size=(8, 5))}, {}, kind) for _ in range(2))
        (number,) = evaluate_sets({metric: {}}, a, random_sets(8, 3, 0), b).numbers
        assert number.name == (name or "DINOv2 of width 5 Fréchet distance")
    vectors = FEATURES["given"](title="CLIP", unit_length=True).compute(rng.normal(size=(4, 7)))["features"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-12)


def test_several_sample_files_are_the_sets(samples, tmp_path):
    images, labels, _ = read_samples(samples)
    for k in range(3):
        write_samples(tmp_path / f"{k}.npz", images[12 * k : 12 * k + 12], labels[12 * k : 12 * k + 12])
    files = ",".join(str(tmp_path / f"{k}.npz") for k in range(3))
    words = (*ON_DIGITS, "data.options.size=16", "metrics=[frechet]")
    assert run("evaluate", f"samples=[{files}]", *words, f"out={tmp_path}/out")[1] == ""
    (number,) = read_numbers(tmp_path / "out")
    assert number.protocol["samples"] == {"count": 36, "sets": {"by": "given", "count": 3, "sizes": [12, 12, 12]}}
    real = layers(load_dataset("digits", part="held_out", size=16).images)["features"]
    assert number.without[0] == pytest.approx(frechet_distance(layers(images[12:36])["features"], real))


def test_every_metric_has_a_configuration_file_with_all_its_options():
    from omegaconf import OmegaConf

    configs = Path(__file__).resolve().parents[2] / "configs" / "metrics"
    found = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in configs.glob("*.yaml")}
    assert found == {name: {name: pytest.approx(metric_options(metric))} for name, metric in METRICS.items()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("samples=SAMPLES", *ON_DIGITS), "they are 16 x 16 x 1; the images of digits are 8 x 8 x 1"),
        (ON_DIGITS, "nothing was requested; add samples=RUN, or checkpoint=RUN with one of likelihood=vlb"),
        (("samples=nowhere.npz", *ON_DIGITS), "samples: 'nowhere.npz' was given, which does not exist"),
        (("samples=SAMPLES", "features=digits"), "data: none was given"),
        (("samples=SAMPLES", "data=shapes", "features=inception"), "no weights were given; give torch-fidelity's file"),
        (
            ("samples=SAMPLES", "data=shapes", "features=inception", "features.weights=no.pth"),
            "features.weights: 'no.pth' was given, which does not exist",
        ),
        (("samples=SAMPLES", "data=shapes", "features=inception", "features.resise=x"), "Did you mean features.resize"),
        (("samples=SAMPLES", "data=shapes", "features=onnx"), "add features.path=VALUE"),
        (("samples=SAMPLES", "data=shapes", "metrics=[frechet,fid]"), "'fid' was given; it must be one of agreement"),
        (("samples=SAMPLES", *ON_DIGITS, "data.options.size=16", "sets=21"), "21 sets of at least 2 need 42"),
        (("samples=SAMPLES", *ON_DIGITS, "data.options.size=16", "count=41"), "count must be 1 to 40"),
        (("samples=SAMPLES", *ON_DIGITS, "reference=SAMPLES"), "a file and data were given"),
        (
            ("samples=SAMPLES", "reference=SAMPLES", "metrics=[frechet]"),
            "no metric can be computed: frechet: it needs features; set",
        ),
    ],
)
def test_invalid_requests_are_one_line_and_write_nothing(samples, words, message, tmp_path):
    given = [word.replace("SAMPLES", str(samples)) for word in words]
    _, error = run("evaluate", *given, f"out={tmp_path}/out")
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_training_ends_with_the_configured_metrics(tmp_path):
    words = (
        "experiment=double_conv_attention", "features=digits", f"hydra.run.dir={tmp_path}", "trainer.images=10",
        "trainer.batch=10", "trainer.log_images=10", "trainer.checkpoint_images=10", "sample.count=6",
        "model.image_size=16", "model.channels=4", "model.channel_multipliers=[1,2]", "model.embedding=8",
        "model.heads=2",
        "data.fallback.size=16", "data.fallback.count=20", "process.schedule.T=4",
    )  # fmt: skip
    output, error = run("train", *words, *CPU)
    assert error == ""
    number = json.loads((tmp_path / "result.json").read_text())["evaluation"]["numbers"]["frechet"]["distance"]
    fallback = load_dataset("shapes", count=20, size=16, channels=1)
    images, _, _ = read_samples(tmp_path / "samples" / "samples.npz")
    expected = frechet_distance(*(layers(x)["features"] for x in (images, fallback.images)))
    assert number["value"] == pytest.approx(expected) and number["protocol"]["samples"]["count"] == 6
    assert f"digits Fréchet distance  {expected:9.4f}" in output


def test_inception_resizes_as_published_numbers_unless_the_original_project_did_otherwise():
    asked = {
        word: composed("train", word).features for word in ("features=inception", "experiment=double_conv_attention")
    }
    assert [(one.name, one.resize) for one in asked.values()] == [
        ("inception", "tensorflow1"),
        ("inception", "antialias"),
    ]


def test_training_whose_samples_cannot_be_evaluated_is_refused_before_it_starts(tmp_path):
    words = ("experiment=double_conv_attention", f"hydra.run.dir={tmp_path}/run", "data.fallback.count=20")
    for word, message in (
        ("features.weights=no.pth", "features.weights: 'no.pth' was given, which does not exist"),
        ("sample.count=1", "3 sets of at least 2 need 6"),
    ):
        _, error = run("train", *words, *CPU, "features=digits" if "count" in word else "features=inception", word)
        assert message in error and not (tmp_path / "run" / "config.yaml").exists()


def test_small_numbers_are_printed_with_significant_digits():
    interval = Interval(3.125e-4, 7.7e-4, 0.95)
    output = number_table([Number("KID", 5.2e-4, {}, interval, error=1.2e-4), Number("FID", 17.50741, {})])
    assert output[:2] == ["KID    0.00052  [0.0003125, 0.00077]  ± 0.00012", "FID    17.5074"]

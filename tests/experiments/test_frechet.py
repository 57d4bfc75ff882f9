"""The Fréchet distance of saved samples to a data set, by `experiments.evaluate` and at the end of a training."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from diffusion_core.data import load_dataset
from diffusion_core.metrics.digits import fit_judge
from diffusion_core.metrics.frechet import frechet_distance
from diffusion_core.run import read_samples, write_samples

CPU = ("backend.threads=1", "backend.device=cpu")
ON_DIGITS = ("data=digits", "data.options.part=held_out", "frechet=digits")


def start(module: str, *given: str) -> tuple[str, str]:
    """Run an entry point in this process; gives what was printed, and the error in one line."""
    main = importlib.import_module(f"experiments.{module}").main
    out, err = io.StringIO(), io.StringIO()
    GlobalHydra.instance().clear()
    with (
        mock.patch.object(sys, "argv", [f"experiments.{module}", *given, *CPU]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.suppress(SystemExit),
    ):
        main()
    return out.getvalue(), err.getvalue()


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Forty pictures of digits, of which some are spoilt, as saved samples."""
    images = load_dataset("digits", part="train", size=16).images[:40].copy()
    images[:10] = 255 - images[:10]
    write_samples(tmp_path / "samples.npz", images, np.zeros(40, np.int32), plan="ddim-4", seed=3)
    return tmp_path / "samples.npz"


@pytest.mark.backend
def test_saved_samples_are_compared_with_the_part_of_the_data_that_was_asked_for(samples, backend_name, tmp_path):
    said, error = start(
        "evaluate", f"backend={backend_name}", f"samples={samples}", "data.options.size=16", *ON_DIGITS,
        f"out={tmp_path}/out",
    )  # fmt: skip
    assert error == ""
    judge, images = fit_judge(), read_samples(samples)[0]
    held_out = load_dataset("digits", part="held_out", size=16)
    expected = frechet_distance(judge.features(images), judge.features(held_out.images))
    facts = json.loads((tmp_path / "out" / "evaluation.json").read_text())["frechet"]
    assert facts["value"] == pytest.approx(expected, rel=1e-9) and expected > 0.01
    assert facts["score"] == "digits Fréchet" and facts["quantised"] == "uint8"
    assert facts["references"]["sha256"] == held_out.sha256 and facts["references"]["options"]["part"] == "held_out"
    assert facts["samples"]["images"] == 40 and facts["samples"]["made"] == {"plan": "ddim-4", "seed": 3}
    assert f"digits Fréchet (40 samples, 360 references)  {expected:9.4f}" in said and "FID" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("samples=SAMPLES", *ON_DIGITS), "the samples are (16, 16, 1) (h, w, c) and the pictures of digits (8, 8, 1)"),
        (ON_DIGITS, "samples: none were given; add samples=RUN/samples/samples.npz"),
        (("samples=nowhere.npz", *ON_DIGITS), "nowhere.npz: it is not a file of samples"),
        (("samples=SAMPLES", "frechet=digits"), "data: none was given"),
        (("samples=SAMPLES", "data=shapes", "frechet=inception"), "no weights were given; name torch-fidelity's file"),
        (
            ("samples=SAMPLES", "data=shapes", "frechet=inception", "frechet.weights=no.pth"),
            "no.pth: it cannot be read",
        ),
        (("samples=SAMPLES", "data=shapes", "frechet=inception", "frechet.resise=x"), "Did you mean frechet.resize?"),
        (("samples=SAMPLES", "data=shapes", "frechet=onnx"), "add frechet.path=VALUE"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(samples, words, message, tmp_path):
    given = [word.replace("SAMPLES", str(samples)) for word in words]
    _, error = start("evaluate", *given, f"out={tmp_path}/out")
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_training_ends_with_the_score_that_it_was_told(tmp_path):
    words = (
        "experiment=double_conv_attention", "frechet=digits", f"hydra.run.dir={tmp_path}", "trainer.images=10",
        "trainer.batch=10", "trainer.log_images=10", "trainer.checkpoint_images=10", "sample.count=6",
        "model.image_size=16", "model.channels=4", "model.multipliers=[1,2]", "model.embedding=8", "model.heads=2",
        "data.stand_in.size=16", "data.stand_in.count=20", "process.schedule.T=4",
    )  # fmt: skip
    said, error = start("train", *words)
    assert error == ""
    facts = json.loads((tmp_path / "result.json").read_text())["frechet"]
    judge, stand_in = fit_judge(), load_dataset("shapes", count=20, size=16, channels=1)
    images, _, _ = read_samples(tmp_path / "samples" / "samples.npz")
    assert facts["value"] == pytest.approx(frechet_distance(judge.features(images), judge.features(stand_in.images)))
    assert "digits Fréchet (6 samples, 20 references): " in said


def test_a_training_that_cannot_be_scored_is_refused_before_it_starts(tmp_path):
    words = ("experiment=double_conv_attention", f"hydra.run.dir={tmp_path}/run", "data.stand_in.count=20")
    for word, message in (
        ("frechet.weights=no.pth", "no.pth: it cannot be read"),
        ("sample.count=1", "1 samples were given"),
    ):
        _, error = start("train", *words, "frechet=digits" if "count" in word else "frechet=inception", word)
        assert message in error and not (tmp_path / "run" / "config.yaml").exists()

"""Moving averages from the command line: configured, stored, resumed, reconstructed and sampled from."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.weights import Weights
from diffusion_core.optim import Power
from diffusion_core.runs.checkpoint import load_checkpoint, save_checkpoint, weights_hash
from diffusion_core.runs.ema_snapshots import find_snapshots
from diffusion_core.runs.run_directory import read_metrics, read_samples
from experiments.sampling.options import choose_weights

# The smallest network, on eight images of 8x8, for 32 updates of 4 images.
SMALL = [
    *("experiment=plain", "model.image_size=8", "model.channels=[4]", "model.bottleneck=8", "data.options.size=8"),
    *("data.options.count=8", "process.schedule.T=6", "+process.schedule.beta_start=0.05"),
    *("+process.schedule.beta_end=0.6", "trainer.images=128", "trainer.batch=4", "trainer.log_images=4"),
    *("trainer.checkpoint_images=64", "trainer.keep_checkpoints=null", "trainer.sample_images=0", "lr.peak=0.01"),
    *("sample.count=2", "sample.batch=2", "backend.threads=1", "backend.device=cpu", "precision=float64"),
]
THIRD = "ema.extra=[{name: power, sigma_rel: 0.1}, {name: power, sigma_rel: 0.07}]"
POST_HOC = ["ema=post_hoc", THIRD, "ema.snapshot_images=16"]
HALF = f"checkpoints/{64:012d}"


def start(module: str, *words: str) -> str:
    """Run a command and return its output, or its error output if it was refused."""
    code, out, err = call(module, *words)
    assert code in (0, 2)
    return err if code else out


def train(directory: Path, backend: str, *words: str) -> str:
    return start("train", f"backend={backend}", f"hydra.run.dir={directory}", *SMALL, *words)


def distance(a: Weights, b: Weights) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in b)


@pytest.fixture(scope="module")
def finished(backend_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that stored three averages."""
    directory = tmp_path_factory.mktemp("averages") / "run"
    train(directory, backend_name, *POST_HOC)
    return directory


@pytest.mark.backend
def test_a_run_stores_the_snapshots_of_its_averages(finished):
    found = find_snapshots(finished)
    assert [(one.images_seen, one.profile) for one in found] == [
        (n, Power(sigma_rel)) for n in range(16, 129, 16) for sigma_rel in (0.05, 0.1, 0.07)
    ]
    checkpoint = load_checkpoint(finished)
    for i in range(3):
        assert distance(found[i - 3].weights(), checkpoint.state.averages[i]) == 0
    lines = list(read_metrics(finished / "metrics.jsonl"))
    for name, sigma_rel in {"ema": 0.05, "ema1": 0.1, "ema2": 0.07}.items():
        logged = [line[f"{name}_decay"] for line in lines]
        np.testing.assert_allclose(logged, (1 - 1 / np.arange(1, 33)) ** (Power(sigma_rel).gamma + 1), rtol=1e-12)


@pytest.mark.backend
def test_a_resumed_run_equals_the_uninterrupted_one_with_its_averages_and_snapshots(finished, backend_name, tmp_path):
    train(tmp_path, backend_name, *POST_HOC, "trainer.images=72")
    # As if it had been killed before its last checkpoint: a snapshot is later than the checkpoint that is resumed.
    late = tmp_path / "snapshots" / f"{72:012d}-ema.safetensors"
    assert late.exists()
    (tmp_path / "checkpoints" / f"{72:012d}").rename(tmp_path / "gone")
    train(tmp_path, backend_name, *POST_HOC, "resume=latest")
    assert not late.exists()
    whole, resumed = load_checkpoint(finished), load_checkpoint(tmp_path)
    assert list(whole.state.parts) == ["weights", "ema", "ema1", "ema2", "moment1", "moment2"]
    for part, arrays in whole.state.parts.items():
        for name, value in arrays.items():
            np.testing.assert_array_equal(resumed.state.parts[part][name], value, err_msg=f"{part} {name}")
    one, other = find_snapshots(finished), find_snapshots(tmp_path)
    assert [snapshot.header["sha256"] for snapshot in one] == [snapshot.header["sha256"] for snapshot in other]


@pytest.mark.backend
def test_a_reconstructed_average_is_near_the_tracked_one(finished, tmp_path):
    (tmp_path / "snapshots").mkdir()
    for file in (finished / "snapshots").glob("*"):
        if "ema2" not in file.name:
            shutil.copy(file, tmp_path / "snapshots")
    tracked = load_checkpoint(finished).state.averages
    printed = start("reconstruct_ema", f"run={tmp_path}", f"out={tmp_path / 'made'}", "ema.sigma_rel=0.07")
    made = load_checkpoint(tmp_path / "made")
    assert "power, sigma_rel 0.07, at 128 images: 16 of 16 snapshots, residual" in printed
    assert made.notes["profile_error"] < 0.02
    error = distance(made.state.ema, tracked[2])
    assert 0 < error < 0.05 * min(distance(tracked[i], tracked[2]) for i in (0, 1))
    start("reconstruct_ema", f"run={tmp_path}", f"out={tmp_path / 'theirs'}", "ema.sigma_rel=0.07", "fit=power")
    theirs = load_checkpoint(tmp_path / "theirs").notes
    assert made.notes["profile_error"] < theirs["profile_error"] < 0.1 and theirs["fit"] == "power"


@pytest.mark.backend
def test_a_reconstructed_average_is_sampled_from(finished, backend_name, tmp_path):
    start("reconstruct_ema", f"run={finished}", f"out={tmp_path / 'made'}", "ema.sigma_rel=0.1", "images=128")
    drawn = {}
    for name, words in {"made": [f"checkpoint={tmp_path / 'made'}"],
                        "stored": [f"checkpoint={finished}", "sample.weights=ema1"]}.items():  # fmt: skip
        out = tmp_path / f"from {name}"
        start("sample", f"backend={backend_name}", *words, f"out={out}", "sample.count=2",
              "save_images=false", "backend.threads=1", "backend.device=cpu", "precision=float64")  # fmt: skip
        drawn[name], _, facts = read_samples(out / "samples.npz")
        assert facts["plan"].startswith("ddpm")  # the sampler of the run is also that of the reconstructed checkpoint
    np.testing.assert_array_equal(drawn["made"], drawn["stored"])
    assert weights_hash(tmp_path / "made") == weights_hash(finished, "ema1") != weights_hash(finished)


@pytest.mark.backend
def test_samples_use_the_weights_that_their_run_uses_by_default(finished, backend_name, tmp_path):
    """The run of this test samples with the weights themselves, not with an average."""
    found = load_checkpoint(finished)
    old = save_checkpoint(tmp_path / "run", replace(found, notes={}))  # its notes do not name any weights
    for run, words, which in (
        (finished, [], "weights"), (finished, ["sample.weights=ema1"], "ema1"), (old, ["sampler=ddim"], "ema"),
    ):  # fmt: skip
        out = tmp_path / f"out{which}"
        start("sample", f"backend={backend_name}", f"checkpoint={run}", f"out={out}", *words, "sampler.steps=2",
              "sample.count=1", "save_images=false", "backend.threads=1", "backend.device=cpu")  # fmt: skip
        assert read_samples(out / "samples.npz")[2]["weights_sha256"] == weights_hash(finished, which)


@pytest.mark.backend
def test_weights_are_chosen_by_name_or_by_the_notes_of_the_run(finished):
    found = load_checkpoint(finished)
    for notes, given, which in (
        ({}, None, "ema"), ({"weights": "ema1"}, None, "ema1"), ({"weights": "ema1"}, "weights", "weights"),
    ):  # fmt: skip
        assert choose_weights("weights", given, replace(found, notes=notes)) == which
    for notes, given in (({"weights": ["x"]}, None), ({}, "ema7")):
        with pytest.raises(DuetError, match=r"weights: .* was given; it must be one of ema, ema1"):
            choose_weights("weights", given, replace(found, notes=notes))
    for words in (["edit"], ["evaluate"], ["export_weights", "target=native"]):
        assert composed(*words).weights is None
    assert composed("gallery").sample.weights is composed("sample").sample.weights is None


@pytest.mark.backend
@pytest.mark.parametrize("words, message", [
    (["ema=power"], "the checkpoint keeps 3 averages of the weights, but ema and ema.extra give 1"),
    ([*POST_HOC, "ema.sigma_rel=0.06"], "'sigma_rel': 0.06"),
    ([*POST_HOC, "trainer.batch=8"], "has seen 64 images in 16 updates, but the batch is 8"),
])  # fmt: skip
def test_resuming_with_other_averages_is_refused(finished, backend_name, tmp_path, words, message):
    line = train(tmp_path / "run", backend_name, f"resume={finished / HALF}", *words)
    assert line.startswith("error: resume: ") and line.count("\n") == 1 and message in line


@pytest.mark.parametrize("words, message", [
    (["run=nowhere", "out=made"], "run: nowhere does not exist"),
    (["run=", "out=made"], "run: nothing was given"),
    (["run=.", "out=made", "ema=post_hoc"], "ema.extra: 1 given, but one average is made at a time"),
    (["run=.", "out=made", "fit=powers"], "fit: 'powers' was given; it must be one of steps, power."),
])  # fmt: skip
def test_reconstruction_refuses_wrong_options(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    line = start("reconstruct_ema", *words)
    assert line.startswith(f"error: {message}") and line.count("\n") == 1
    assert os.listdir(tmp_path) == []

"""User mistakes: one line that names what was given and what would fit, exit code 2, and no data lost.

None of these needs a framework: they are refused before one is loaded.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from commands import call
from PIL import Image

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.files.lock import LOCK, lock_directory
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diffusion_core.runs.run_directory import exclusive_directory
from experiments.config.safe_yaml import read_config

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model.channels=8 model.norm_groups=4 model.attention_resolutions=[] model.middle_attention=false "
    "trainer.images=128"
)


def start(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, and wait for it."""
    command = [sys.executable, "-m", f"experiments.{module}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def refused(module: str, *words: str) -> str:
    """Check that a command refuses its arguments in one line; return the line."""
    code, out, err = call(module, *words)
    lines = err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert out == ""
    return lines[0]


def test_invalid_input_is_a_one_line_error_with_exit_code_2(tmp_path: Path) -> None:
    done = start("train", f"hydra.run.dir={tmp_path}", "sampler.steps=1001")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sampler.steps: 1001 was given; a schedule with 1000 timesteps takes 1 to 1000 steps\n"


def test_an_option_with_dashes_is_shown_without_them(tmp_path: Path) -> None:
    done = start("train", "--batch", "32")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --batch: options have no dashes: trainer.batch=32\n"


def train(tmp_path: Path, *words: str) -> str:
    """Check that training refuses its arguments and leaves no file; return the line."""
    line = refused("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY.split(), *words)
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert left == []
    return line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["trainer.batchh=3"], ["trainer.batchh: there is no such key. Did you mean trainer.batch?"]),
        (["bacth=3"], ["bacth: there is no such key. Did you mean trainer.batch?"]),
        (["optimizer.lr=3"], ["optimizer.lr: there is no such key. Did you mean lr.peak?"]),
        (["optimiser.lr=3"], ["Did you mean lr.peak?"]),
        (["optimizer.beta1=3"], ["Did you mean optimiser.beta1?"]),
        (["modle=digits"], ["modle: there is no such key. Did you mean model?"]),
        (["backend.precision=bf16"], ["backend.precision: there is no such key. Did you mean precision?"]),
        (["device=cuda"], ["device: train has no such group; did you mean backend.device?"]),
        (["lr=1"], ["lr: '1' was given; it is a group of keys", "lr.NAME=VALUE"]),
        (["change_objective=maybe"], ["change_objective: 'maybe' was given; it must be true or false"]),
        (["+trainer.batch=4"], ["trainer.batch: it exists already; give it without the +"]),
        (["trainer.batch=abc"], ["trainer.batch: 'abc' was given; it must be a whole number"]),
        (["backend=troch"], ["backend: 'troch' was given; it must be one of tf, torch. Did you mean 'torch'?"]),
        (
            ["sampler=huen"],
            ["sampler: 'huen' was given; it must be one of adams_bashforth, consistency, ddim", "mean 'heun'?"],
        ),
        (["sampler.stepps=3"], ["sampler.stepps", "sampler.steps"]),
        (["sampler.steps=1001"], ["1001", "1 to 1000"]),
        (["sampler.steps=many"], ["sampler.steps", "many", "whole number"]),
        (["sampler.eta=2"], ["sampler.eta", "between 0"]),
        (["sampler.classifier=1"], ["sampler.classifier", "without a classifier", "classifier=RUN"]),
        (["sampler=ddim_inversion"], ["ddim_inversion", "up to noise", "such as ddim"]),
        (["sampler.spacing=leding"], ["leding", "leading", "trailing"]),
        (["process.schedule.name=lineer"], ["lineer", "linear", "cosine"]),
        (["+process.schedule.betta=1"], ["betta", "beta_end"]),
        (["process.prediction=epsilon"], ["epsilon", "Duet calls it 'eps'"]),
        (["process.distance=l3"], ["l3", "mse"]),
        (["process=v_flow", "process.prediction=eps"], ["alpha is 0", "v or x0"]),
        (["model.out_channels=3"], ["out_channels", "in_channels"]),
        (["model.norm_groups=5"], ["5 groups", "channels; give a divisor of"]),
        (["model.channel_multipliers=[1,2,2,2,2]"], ["8 pixels", "16"]),
        (["model.num_classes=7"], ["10 classes", "7"]),
        (["data=shapes"], ["32", "model.image_size=32"]),
        (["data.name=digit"], ["digit", "Did you mean 'digits'?"]),
        (["+data.options.colour=red"], ["colour", "size"]),
        (["data=image_folder"], ["path"]),
        (["data=mnist"], ["mnist-28", "duet prepare data=mnist"]),
        (
            ["data=image_folder", "data.options.size=12"],
            ["image_folder-12", "duet prepare data=image_folder data.options.path=PATH data.options.size=12"],
        ),
        (["data.augment=0.12"], ["data.augment: 0.12", "model.augment_dim=9"]),
        (["data.augment=2", "model.augment_dim=9"], ["data.augment: 2", "probability"]),
        (["data.workers=-1"], ["data.workers: -1"]),
        (["data.loader=grian"], ["data.loader", "grian", "grain"]),
        (["data=image_folder", "data.options.path=nowhere"], ["nowhere"]),
        (["sample.labels=10000"], ["10000", "0..9"]),
        (["sample.labels=[1,-2]"], ["sample.labels: -2 was given", "0..9"]),
        (["sample.count=0"], ["sample.count", "at least 1"]),
        (["sample.weights=average"], ["average", "ema, weights"]),
        (["precision=float16"], ["float16", "float64, float32, bf16"]),
        (["backend.device=tpu"], ["tpu", "auto, cpu, cuda"]),
        (["backend.threads=0"], ["threads", "at least 1"]),
        (["trainer.images=100"], ["100", "multiple of trainer.batch=128"]),
        (["lr.peak=-1"], ["-1", "positive"]),
        (["lr.decay=cosin"], ["cosin", "cosine"]),
        (["ema.decay=1"], ["ema.decay", "[0, 1)"]),
        (["ema.sigma_rel=0.1"], ["ema.sigma_rel"]),
        (["ema=power", "ema.sigma_rel=0.5"], ["ema.sigma_rel", "0.5", "0.2887"]),
        (["ema=powr"], ["ema: 'powr'", "Did you mean 'power'?"]),
        (["ema.extra=[{name: powr}]"], ["powr", "Did you mean 'power'?"]),
        (["ema.snapshot_images=-1"], ["ema.snapshot_images", "-1", "0 for never"]),
        (["sample.weights=ema1"], ["ema1", "ema, weights"]),
        (["resume=latest"], ["no checkpoint", "hydra.run.dir=RUN"]),
        (["resume=nowhere"], ["resume: 'nowhere' does not exist"]),
        (["model.num_classes=0", "process.label_dropout=0.1"], ["label_dropout", "num_classes"]),
        (["model.num_classes=0", "sampler.guidance_scale=2"], ["guidance", "classes"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_training_refuses(tmp_path: Path, words: list[str], named: list[str]) -> None:
    line = train(tmp_path, *words)
    for part in named:
        assert part in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["model.dropot=0.1"], ["model.dropot", "Did you mean model.dropout?"]),
        (["model=simple", "model.dropout=0.1"], ["model.dropout: there is no such key in architecture 'simple'"]),
        (["model=simple", "model.channels=3"], ["model.channels", "list"]),
        (["model=plain", "model.bottleneck=wide"], ["model.bottleneck: 'wide' was given; it must be a whole number"]),
        (["model=sixteen_step", "+model.skip_scale=1"], ["sixteen_step", "skip_scale", "channels"]),
        (["model.architecture=plain"], ["plain", "channel_multipliers", "bottleneck"]),
        (["model.architecture=unnet"], ["unnet", "Did you mean 'unet'?"]),
        (["model=landscapes"], ["model: 'landscapes'", "Did you mean 'landscape'?"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_a_key_that_the_network_does_not_have_is_refused(tmp_path: Path, words: list[str], named: list[str]) -> None:
    line = refused("train", f"hydra.run.dir={tmp_path}", *words)
    for part in named:
        assert part in line
    if "dropout" in words[-1]:  # a key of other networks is no misspelling
        assert "Did you mean" not in line


SAME_NETWORK = ("model.norm_eps=1e-5",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny network that has seen 128 images, made without training."""
    spec = UNetSpec(8, 1, 1, 8, (1, 2), 1, (), middle_attention=False, norm_groups=4, num_classes=10, norm_eps=1e-5)
    model = DiffusionModel(spec, {"name": "linear", "T": 1000}, "eps")
    state = TrainerState.fresh(initial_weights(model.program, 0, np.float32))
    run = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(run / "checkpoints", Checkpoint(128, model, 0, state, {}))
    return run


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    line = train(tmp_path, f"resume={checkpoint}", "model.channels=16")
    assert "another network" in line and "model.channels 8 (given: 16)" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data=digits"], ["nothing was requested", "likelihood=vlb", "likelihood=ode"]),
        (["likelihood=vlb"], ["data: none was given", "data=NAME"]),
        (["likelihood=vlb", "data=digits", "checkpoint=null"], ["checkpoint: none was given"]),
        (["likelihood=vlb", "data=digits", "likelihood.levels=1000"], ["1 to 999 for 1000 timesteps"]),
        (["likelihood=vlb", "data=digits", "likelihood.variance=learned"], ["1 output channels", "fixed_small"]),
        (["likelihood=vlb", "data=digits", "likelihood.distribution=odd"], ["likelihood.distribution", "importance"]),
        (["likelihood=vlb", "data=digits", "likelihood.count=0"], ["likelihood.count", "1 to 1437"]),
        (["likelihood=vlb", "data=digits", "likelihood.step=3"], ["likelihood.step", "likelihood.steps"]),
        (["likelihood=vlb", "data=shapes"], ["32", "8"]),
        (["likelihood=ode", "data=digits", "likelihood.method=rk5"], ["rk5", "heun, rk4"]),
        (["likelihood=ode", "data=digits", "likelihood.steps=0"], ["likelihood.steps: 0"]),
        (["likelihood=ode", "data=digits", "likelihood.batch=0"], ["likelihood.batch", "at least 1"]),
        (["likelihood=ode", "data=digits", "weights=average"], ["average"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_evaluation_refuses(tmp_path: Path, checkpoint: Path, words: list[str], named: list[str]) -> None:
    line = refused("evaluate", f"checkpoint={checkpoint}", f"out={tmp_path}", *words)
    for part in named:
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_a_bound_with_another_variance_than_the_trained_one_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    found = load_checkpoint(checkpoint).model
    model = replace(found, spec=replace(found.spec, out_channels=2), variance="learned")
    state = TrainerState.fresh(initial_weights(model.program, 0, np.float32))
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(128, model, 0, state, {}))
    words = [f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "likelihood=vlb", "data=digits"]
    line = refused("evaluate", *words, "likelihood.variance=learned_range")
    assert "likelihood.variance: learned_range was given" in line and "trained with learned" in line


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    line = train(tmp_path, f"resume={checkpoint}", "seed=4", "trainer.images=256", *SAME_NETWORK)
    assert "seed: 4 was given, but the checkpoint used seed 0; add seed=0" in line


def test_a_checkpoint_of_another_process_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    line = train(tmp_path, f"resume={checkpoint}", "process=v_cosine", "trainer.images=256", *SAME_NETWORK)
    assert "linear" in line and "cosine" in line and "give what it was trained with, or start a new run" in line


def test_a_checkpoint_of_another_objective_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    found = load_checkpoint(checkpoint)
    save_checkpoint(
        tmp_path / "other",
        replace(found, notes={"trained_for": {"process.label_dropout": 0.0, "process.distance": "l1"}}),
    )
    line = train(tmp_path, f"resume={tmp_path / 'other'}", "trainer.images=256", *SAME_NETWORK)
    assert "process.distance l1" in line and "mse was given" in line and "change_objective=true" in line


def test_resuming_does_not_overwrite_another_run(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious")
    words = [f"resume={checkpoint}", f"hydra.run.dir={tmp_path}", *TINY.split(), *SAME_NETWORK, "trainer.images=256"]
    assert "holds a run already" in refused("train", *words)
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


def test_an_earlier_checkpoint_is_not_resumed_among_later_ones(tmp_path: Path, checkpoint: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(checkpoint, run)
    shutil.copytree(run / "checkpoints" / "000000000128", run / "checkpoints" / "000000000256")
    words = [f"resume={run / 'checkpoints' / '000000000128'}", f"hydra.run.dir={run}", *TINY.split(), *SAME_NETWORK]
    assert "000000000256" in refused("train", *words, "trainer.images=512")


def test_a_finished_run_is_not_trained_further(tmp_path: Path, checkpoint: Path) -> None:
    line = train(tmp_path, f"resume={checkpoint}", *SAME_NETWORK)
    assert "already trained to 128 images; set trainer.images above that to continue" in line


def test_comparing_refuses_what_is_no_list_of_runs(tmp_path: Path) -> None:
    line = refused("compare", "runs=RUN", f"out={tmp_path / 'out'}")
    assert "runs: 'RUN' was given; it must be a list, as in runs=[RUN,RUN]" in line
    line = refused("compare", f"runs=[{tmp_path}/nowhere,{tmp_path}/nowhere2]", f"out={tmp_path / 'out'}")
    assert "nowhere' does not exist" in line


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "state"])
def test_a_corrupted_checkpoint_is_refused(tmp_path: Path, checkpoint: Path, damage: str) -> None:
    run = tmp_path / "copy"
    shutil.copytree(checkpoint, run)
    part = run / "checkpoints" / "000000000128" / ("state.json" if damage == "state" else "ema.safetensors")
    content = bytearray(part.read_bytes())
    if damage == "missing":
        part.unlink()
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    else:
        part.write_bytes(content[: len(content) // 2])
    line = refused("sample", f"checkpoint={run}", f"out={tmp_path / 'out'}")
    assert str(part) in line
    assert not (tmp_path / "out" / "samples.npz").exists()


def test_sampling_from_noise_refuses_a_sampler_from_images_to_noise(tmp_path: Path, checkpoint: Path) -> None:
    for options in ([], ["sampler.ask=current"], ["sampler.steps=1"]):
        words = [f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "sampler=ddim_inversion", *options]
        line = refused("sample", *words)
        assert "ddim_inversion was given, which leads images up to noise" in line
        assert "mode=interpolate of experiments.edit encodes with it" in line


def test_sampling_refuses_an_option_that_the_sampler_does_not_have(tmp_path: Path, checkpoint: Path) -> None:
    line = refused("sample", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "sampler.guidence=2")
    assert "ddim" in line and "guidence" in line and "Did you mean 'guidance_scale'?" in line


def test_sampling_refuses_a_label_out_of_range(tmp_path: Path, checkpoint: Path) -> None:
    line = refused("sample", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", "sample.labels=11")
    assert "11" in line and "0..9" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["guide=SAME"], ["nothing is guided", "sampler.guidance_scale"]),
        (["guide=SAME", "guide_weights=mean", "sampler.guidance_scale=2"], ["guide_weights", "mean", "ema"]),
        (["guide=COSINE", "sampler.guidance_scale=2"], ["guide", "eps on cosine", "eps on linear"]),
        (
            ["sampler.guidance_scale={first: 2}", "sampler.guidance_convention=difference"],
            ["sampler.guidance_scale", "a ramp"],
        ),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_sampling_refuses_guidance(tmp_path: Path, checkpoint: Path, words: list[str], named: list[str]) -> None:
    model = replace(load_checkpoint(checkpoint).model, schedule={"name": "cosine"})
    state = TrainerState.fresh(initial_weights(model.program, 0, np.float32))
    save_checkpoint(tmp_path / "cosine" / "checkpoints", Checkpoint(0, model, 0, state, {}))
    words = [word.replace("SAME", str(checkpoint)).replace("COSINE", str(tmp_path / "cosine")) for word in words]
    line = refused("sample", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", *words)
    for part in named:
        assert part in line
    assert not (tmp_path / "out" / "samples.npz").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["mode=inpaint"], ["data=digits", "path=FILE"]),
        (["data=digits", "mode=interpolate", "images=[1,2,3]"], ["pairs"]),
        (["data=digits", "mode=inpaint", "sampler=heun"], ["inpainting", "repaint"]),
        (["data=digits", "mode=image_to_image", "sampler=ddim_inversion"], ["ddim_inversion", "up to noise"]),
        (["data=digits", "mode=inpaint", "sampler=ddim_inversion"], ["ddim_inversion", "up to noise"]),
        (["data=digits", "mode=inpaint", "mode.known=lft"], ["mode.known", "Did you mean 'left'"]),
        (["data=digits", "mode=posterior", "mode.operator=blr"], ["mode.operator", "Did you mean 'blur'"]),
        (["data=digits", "mode=posterior", "mode.operator={name:blur,wdth:1}"], ["mode.operator", "'width'"]),
        (["data=digits", "mode=posterior", "mode.operator={name:mask,known:tp}"], ["mode.operator.known", "'top'"]),
        (["data=digits", "mode=posterior", "mode.operator={name:downsample,factor:3}"], ["factor", "divide", "8 x 8"]),
        (["data=digits", "mode=posterior", "mode.operator=[]"], ["mode.operator", "at least"]),
        (["data=digits", "mode=posterior", "mode.method=mps"], ["mode.method", "Did you mean 'mmps'"]),
        (["data=digits", "mode=posterior", "mode.noise=-1"], ["mode.noise: -1"]),
        (["data=digits", "mode=posterior", "mode.method=dps", "sampler=heun"], ["dps moves x", "mode.method=mmps"]),
        (["data=digits", "mode=posterior", "sampler=ddim_inversion"], ["ddim_inversion", "up to noise"]),
        (["data=digits", "mode=posterior", "mode.measurement=y.npy"], ["mode.measurement", "leave out data and path"]),
        (["mode=posterior", "mode.measurement=y.txt"], ["mode.measurement", ".npy"]),
        (["mode=posterior"], ["data=digits", "path=FILE"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_editing_refuses(tmp_path: Path, checkpoint: Path, words: list[str], named: list[str]) -> None:
    line = refused("edit", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", *words)
    for part in named:
        assert part in line


def test_a_mistyped_run_is_answered_with_the_run_that_exists(tmp_path: Path, checkpoint: Path) -> None:
    run = tmp_path / "2026-11-28-torch-seed0"
    shutil.copytree(checkpoint, run)
    for key in ("checkpoint", "from"):
        line = refused("sample", f"{key}={tmp_path}/2026-11-28-torch-sed0", f"out={tmp_path / 'out'}")
        assert line.endswith(f"Did you mean '{run}'?")
    line = refused("sample", f"checkpoint={tmp_path}/2026-11-28-torch-sed0/checkpoints", f"out={tmp_path / 'out'}")
    assert line.endswith(f"Did you mean '{run / 'checkpoints'}'?")
    assert "Did you mean" not in refused("sample", "checkpoint=/nowhere/at/all", f"out={tmp_path / 'out'}")


def test_sampling_needs_a_checkpoint_and_a_directory(tmp_path: Path) -> None:
    assert "checkpoint=RUN" in refused("sample", f"out={tmp_path}")
    assert "out=DIR" in refused("sample", f"checkpoint={tmp_path}")
    assert "no checkpoint" in refused("sample", f"checkpoint={tmp_path}", f"out={tmp_path / 'out'}")


def test_samples_are_not_overwritten(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(b"precious")
    assert "already contains samples" in refused("sample", f"checkpoint={checkpoint}", f"out={tmp_path}")
    assert (tmp_path / "samples.npz").read_bytes() == b"precious"


_WRITE = ("sample", "edit", "gallery", "evaluate", "networks batch=0", "inspect data=digits max_distance=-1")


@pytest.mark.parametrize("entry", _WRITE)
def test_a_directory_that_another_process_writes_is_refused(tmp_path: Path, entry: str) -> None:
    words = [*entry.split(), f"out={tmp_path}"]
    with lock_directory(tmp_path):
        assert f"{tmp_path}: it is in use by process {os.getpid()}" in refused(*words)
    assert "in use" not in refused(*words) and not (tmp_path / LOCK).exists()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("precious")
    assert "holds a run already" in refused("train", f"hydra.run.dir={tmp_path}", *TINY.split())
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused("train", f"hydra.run.dir={tmp_path / 'file' / 'run'}", *TINY.split())
    assert str(tmp_path / "file") in line


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the system does not say which file could not be written."""

    def full(cfg: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("experiments.config.build.training_setup", full)
    line = refused("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY.split())
    assert line == "error: a file cannot be written (No space left on device)"


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("none here")
    line = train(tmp_path, "data=image_folder", f"data.options.path={tmp_path / 'images'}")
    assert str(tmp_path / "images") in line and ".png" in line


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"\x89PNG not really")
    line = train(tmp_path, "data=image_folder", f"data.options.path={tmp_path / 'images'}")
    assert "bad.png" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "nothing was given"),
        (["runs=[x]"], "1 directory was given"),
        (["traces=[x]"], "1 directory was given"),
        (["traces=[x,y]"], "x"),
        (["runs=[x,y]"], "x"),
        (["a=x", "b=y"], "use runs=[RUN,RUN]"),
        (["evaluations=[x]", "crossed=[y]"], "add runs="),
    ],
)
def test_comparing_refuses(tmp_path: Path, words: list[str], named: str) -> None:
    assert named in refused("compare", f"out={tmp_path}", *words)


def test_one_process_writes_a_report_or_a_parity_record_and_no_report_is_overwritten(tmp_path: Path) -> None:
    with exclusive_directory(tmp_path):
        assert "in use by process" in refused("compare", f"out={tmp_path}", "traces=[x,y]")
    (tmp_path / "report.html").write_text("")
    assert "already contains a report" in refused("compare", f"out={tmp_path}", "traces=[x,y]")
    with exclusive_directory(tmp_path / "float32"):
        assert "in use by process" in refused("trace", f"out={tmp_path}", "precisions=[float32]", "backend=torch")
    assert not (tmp_path / "float32.json").exists()


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for precision in ("float64", "float32"):
            whole = json.dumps({"checks": []})
            (tmp_path / name / f"{precision}.json").write_text("{" if name == "b" else whole)
    line = refused("compare", f"out={tmp_path}", f"traces=[{tmp_path / 'a'},{tmp_path / 'b'}]")
    assert str(tmp_path / "b" / "float64.json") in line and "not JSON" in line


@pytest.mark.parametrize("group", ["sampler", "ema", "data.options", "process.schedule", "tracker", "features"])
def test_duet_calls_nothing_that_a_configuration_names_as_a_target(tmp_path: Path, group: str) -> None:
    assert "_target_" in train(tmp_path, "tracker=wandb", "features=digits", f"+{group}._target_=os.system")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x: !!python/object/apply:os.system ['touch EVIL']", "could not determine a constructor for the tag"),
        ("a: [1\n b", "while parsing a flow sequence"),
        ("seed: 1\nseed: 2", "while constructing a mapping"),
    ],
    ids=["tag", "cut", "twice"],
)
def test_a_configuration_file_that_is_not_plain_yaml_is_refused_in_one_line(
    tmp_path: Path, text: str, named: str
) -> None:
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    file = tmp_path / "configs" / "experiment" / "theirs.yaml"
    file.write_text("# @package _global_\n" + text.replace("EVIL", str(tmp_path / "evil")))
    words = [f"--config-dir={tmp_path / 'configs'}", f"hydra.run.dir={tmp_path / 'run'}", "experiment=theirs"]
    assert named in refused("train", *words)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sampler.guidance=2", "sampler.guidance_scale"),
        ("process.levels={name: uniform}", "process.timestep_sampling"),
        ("process.levels.name=uniform", "process.timestep_sampling.name"),
        ("+model.multipliers=[1,2]", "model.channel_multipliers"),
        ("data.stand_in={}", "data.fallback"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_its_present_name(tmp_path: Path, old: str, new: str) -> None:
    key = old.split("=")[0].lstrip("+")
    assert train(tmp_path, old) == f"error: {key}: this key was renamed; use {new}"


def test_a_key_of_an_earlier_version_in_a_file_is_refused_with_its_present_name(tmp_path: Path) -> None:
    (folder := tmp_path / "configs" / "experiment").mkdir(parents=True)
    (folder / "theirs.yaml").write_text("# @package _global_\nprocess: {levels: {name: uniform}}")
    words = [f"--config-dir={tmp_path / 'configs'}", f"hydra.run.dir={tmp_path / 'run'}", "experiment=theirs"]
    assert refused("train", *words).endswith("Did you mean process.timestep_sampling?")


@pytest.mark.parametrize(
    "text",
    [
        "seed: ${oc.env:HOME}",
        "seed: !!python/object/apply:os.getcwd []",
        "[1, 2]",
        "seed: 1\nseed: 2",
        "a: &a [*a]",
        "\0",
        "a: [1\n b",
        "a: " + "[" * 5000,
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrst")),
    ],
    ids=["interpolation", "tag", "list", "twice", "recursive", "binary", "cut", "deep", "aliases"],
)
def test_the_configuration_of_a_run_must_be_plain_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DuetError, match=r"config\.yaml: "):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("seed: 1\nmodel: {rate: 1e-3}\n")
    assert read_config(tmp_path / "config.yaml") == {"seed": 1, "model": {"rate": 1e-3}}

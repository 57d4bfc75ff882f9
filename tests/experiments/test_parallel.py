"""Several processes compute a run as one process would, and none is left running when one dies.

    pytest -m slow tests/experiments/test_parallel.py

tries 2 and 4 processes in both precisions, from the first step, and lets one die in each framework.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed

from diffusion_core.parity.ladder import l2_of_all
from diffusion_core.runs.checkpoint import find_checkpoint, load_checkpoint
from diffusion_core.runs.run_directory import read_metrics, read_samples
from experiments.runtime.launch import environments, run_together, visible_gpus

pytestmark = pytest.mark.backend

ROOT = Path(__file__).resolve().parents[2]
# Timesteps drawn by loss, noise coupled with the whole batch, parts of 4 and 3 images, and a last batch of samples that
# is smaller than the others.
WORDS = (
    "experiment=toy", "model.channels=8", "model.norm_groups=2", "model.blocks_per_resolution=1",
    "data.options.count=64",
    "backend.threads=1", "backend.device=cpu", "trainer.images=56", "trainer.batch=7", "trainer.log_images=7",
    "trainer.checkpoint_images=28", "lr.warmup_images=0", "lr.decay=constant", "sample.count=11", "sample.batch=3",
    "sampler.steps=3", "process.schedule.T=4", "process.timestep_sampling.name=loss_second_moment",
    "process.coupling.name=optimal_transport",
    "+process.timestep_sampling.history=1",
)  # fmt: skip
KIND = {"torch": "ddp", "tf": "multiworker"}
WORKERS = ["-m", "experiments.workers", "{size}"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node={size}"]
ROUNDING = {"float64": 1e-12, "float32": 1e-6}


def words(backend: str, run: Path, precision: str, *more: str) -> list[str]:
    return [*WORDS, f"backend={backend}", f"precision={precision}", f"hydra.run.dir={run}", *more]


def together(size: int, backend: str, *given: str, entry: str = "train", launcher: Sequence[str] = WORKERS) -> None:
    """Run a command in several processes, started as the documentation says."""
    command = [*(word.format(size=size) for word in launcher), "-m", f"experiments.{entry}"]
    done = subprocess.run(
        [sys.executable, *command, *given, f"parallel={KIND[backend]}"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("float64, ") + done.stdout.count("float32, ") == 1, "one process alone speaks"


def alone(backend: str, run: Path, precision: str, *more: str) -> Path:
    done = call("train", *words(backend, run, precision, *more))
    assert done.code == 0, done.err
    return run


def assert_same_run(one: Path, other: Path, precision: str, after: int = 0) -> None:
    """Check losses, weights and samples; a checkpoint does not depend on the number of processes."""
    a, b = (
        [line for line in read_metrics(run / "metrics.jsonl") if line["images_seen"] > after] for run in (one, other)
    )
    assert [line["images_seen"] for line in a] == [line["images_seen"] for line in b] and a
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(*([line[name] for line in run] for run in (a, b)), rtol=ROUNDING[precision])
    names = [name for name in a[-1] if name.startswith("validation_loss")]
    assert names, "the run is validated"
    for name in names:
        np.testing.assert_allclose(a[-1][name], b[-1][name], rtol=10 * ROUNDING[precision], err_msg=name)
    states = [load_checkpoint(find_checkpoint(run)) for run in (one, other)]
    for part, arrays in states[0].state.parts.items():
        assert l2_of_all(arrays, states[1].state.parts[part]) <= 10 * ROUNDING[precision], part
    np.testing.assert_array_equal(states[0].history.counts, states[1].history.counts)
    told = [json.loads((find_checkpoint(run) / "state.json").read_text()) for run in (one, other)]
    assert told[0].keys() == told[1].keys() and told[0]["notes"].keys() == told[1]["notes"].keys()
    pictures = [read_samples(run / "samples/samples.npz")[0] for run in (one, other)]
    if precision == "float64":
        np.testing.assert_array_equal(*pictures)
    assert np.std(pictures[0]) > 10


def test_two_processes_resume_the_run_of_one_and_draw_its_samples(tmp_path, backend_name):
    one, two = alone(backend_name, tmp_path / "one", "float64"), tmp_path / "two"
    together(2, backend_name, *words(backend_name, two, "float64", f"resume={one}/checkpoints/{28:012d}"))
    assert_same_run(one, two, "float64", after=28)
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == [f"{56:012d}"]


@pytest.mark.slow
def test_torchrun_can_start_the_processes_of_pytorch(tmp_path, backend_name):
    if KIND[backend_name] == "ddp":
        together(2, backend_name, *words(backend_name, tmp_path / "run", "float64"), launcher=TORCHRUN)
        assert len(read_samples(tmp_path / "run/samples/samples.npz")[0]) == 11


@pytest.mark.slow
@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_train_as_one_and_one_process_resumes_them(tmp_path, backend_name, size, precision):
    one, several = alone(backend_name, tmp_path / "one", precision), tmp_path / "several"
    together(size, backend_name, *words(backend_name, several, precision))
    assert_same_run(one, several, precision)
    rest = alone(backend_name, tmp_path / "rest", precision, f"resume={several}/checkpoints/{28:012d}")
    assert_same_run(one, rest, precision, after=28)


@pytest.mark.slow
def test_two_processes_compute_the_samples_and_likelihoods_of_one(tmp_path, backend_name):
    run = alone(backend_name, tmp_path / "run", "float64")
    common = [
        f"checkpoint={run}",
        f"backend={backend_name}",
        "precision=float64",
        "backend.threads=1",
        "backend.device=cpu",
    ]
    likelihood = ["data=toy", "data.options.count=23", "likelihood=ode", "likelihood.batch=4", "likelihood.steps=3"]
    for entry, given, files in (
        ("sample", ["sample.count=11", "sample.batch=3"], ["samples.npz", "samples.png"]),
        ("evaluate", likelihood, ["likelihood.npz", "evaluation.json"]),
    ):
        one, two = tmp_path / f"{entry}1", tmp_path / f"{entry}2"
        assert call(entry, *common, *given, f"out={one}").code == 0
        together(2, backend_name, *common, *given, f"out={two}", entry=entry)
        for name in files:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, backend_name):
    code, said = interrupted(backend_name, tmp_path / "run", signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and said.count("stopped by SIGTERM") == 2 and "Traceback" not in said, said
    images_seen = [line["images_seen"] for line in read_metrics(tmp_path / "run/metrics.jsonl")][-1]
    assert load_checkpoint(find_checkpoint(tmp_path / "run")).images_seen == images_seen


@pytest.mark.slow
@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_signal_during_the_last_samples_stops_all_processes_and_the_run_resumes(tmp_path, backend_name, all_of_them):
    long = ("trainer.images=7", "trainer.sample_images=0", "sample.count=90000")
    code, said = interrupted(backend_name, tmp_path / "run", signal.SIGTERM, "training: 7/7", long, all_of_them)
    assert code == 128 + signal.SIGTERM and "lost contact" not in said and "Traceback" not in said, said
    assert said.count("stopped by SIGTERM") == 2 and "its last checkpoint is at 7 of 7 images" in said, said
    assert not (tmp_path / "run/samples/samples.npz").exists()
    alone(backend_name, tmp_path / "run", "float32", *long[:2], "resume=latest")
    assert len(read_samples(tmp_path / "run/samples/samples.npz")[0]) == 11


def interrupted(
    backend: str, run: Path, number: int, at: str = "samples-", more: Sequence[str] = (), all_of_them: bool = False
) -> tuple[int, str]:
    """The exit code and the words of two processes of which the second is sent a signal in the middle of a run.

    Args:
        backend: of both.
        run: their directory.
        number: of the signal.
        at: how the line begins after which it is sent; of samples it is printed after the checkpoint of their moment.
        more: of the configuration.
        all_of_them: whether the signal is sent to who started them, and so to both.
    """
    given = words(
        backend,
        run,
        "float32",
        "sample.count=1",
        f"parallel={KIND[backend]}",
        "trainer.images=700000",
        "trainer.sample_images=28",
        *more,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.workers", "2", "-m", "experiments.train", *given], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(at):
            second = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[1]
            os.kill(process.pid if all_of_them else int(second), number)
            break
    rest, _ = process.communicate(timeout=100)
    return process.returncode, "".join(said) + rest


@pytest.mark.either
def test_when_a_process_dies_the_others_end_with_one_line_and_a_complete_checkpoint(tmp_path, backend_name):
    code, said = interrupted(backend_name, tmp_path / "run", signal.SIGKILL)
    # Of the one that was killed, or of the one that lost it, whichever is seen to have ended first.
    assert code in (128 + signal.SIGKILL, 2) and "Traceback" not in said, said
    assert "error: parallel: process 0 of 2 lost contact with another process" in said and "resume=latest" in said
    assert load_checkpoint(find_checkpoint(tmp_path / "run")).images_seen >= 28


@pytest.mark.slow
def test_in_either_framework(tmp_path, backend_name):
    test_when_a_process_dies_the_others_end_with_one_line_and_a_complete_checkpoint(tmp_path, backend_name)


def test_options_that_do_not_fit_several_processes_are_refused(tmp_path, backend_name, monkeypatch):
    other = next(kind for name, kind in KIND.items() if name != backend_name)
    for environ in environments([1, 2], {})[:1]:
        for name in ("TF_CONFIG", "RANK", "WORLD_SIZE"):
            monkeypatch.setenv(name, environ[name])
    done = call("train", *words(backend_name, tmp_path / "a", "float64", f"parallel={other}"))
    assert done.code == 2 and f"parallel: {other} was given, but" in done.err and KIND[backend_name] in done.err
    done = call("train", *words(backend_name, tmp_path / "b", "float64"))
    assert done.code == 2 and f"add parallel={KIND[backend_name]}," in done.err and done.err.count("\n") == 1


CODES = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"


@pytest.mark.either
def test_workers_end_together_and_each_gets_its_rank():
    assert run_together([sys.executable, "-c", "pass"], environments([1, 2, 3], os.environ)) == 0
    assert run_together([sys.executable, "-c", CODES], environments([1, 2, 3], os.environ)) == 3
    told = environments([5, 6], {"HOME": "here"}, gpus=["0"])
    assert [json.loads(one["TF_CONFIG"])["task"]["index"] for one in told] == [0, 1]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in told} == {"0"} and told[0]["HOME"] == "here"
    assert composed("train", "parallel=ddp").parallel.name == "ddp"


@pytest.mark.either
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("4,5", ["4", "5", "4"]),
        ("GPU-a, GPU-b,GPU-c", ["GPU-a", "GPU-b", "GPU-c"]),
        ("7,-1,3", ["7", "7", "7"]),
        ("", ["", "", ""]),
        ("-1", ["-1", "-1", "-1"]),
        (None, ["0", "1", "0"]),
    ],
)
def test_workers_use_only_the_visible_gpus(tmp_path, monkeypatch, given, shown):
    """On a machine with two GPUs."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0: one\necho GPU 1: another\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    environ = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    told = environments([5, 6, 7], environ, visible_gpus(environ))
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == shown
    assert {one["LOCAL_RANK"] for one in told} == ({"0"} if shown[0] not in ("", "-1") else {"0", "1", "2"})

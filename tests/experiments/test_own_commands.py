"""Own networks in the commands around a run: guidance, replay, its page, and what needs the blocks of a network."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed
from own_scale import WORDS, write

import benchmarks.schema  # noqa: F401  (registers the schema of bench)
from benchmarks.own import build_model, make_request, placeholder
from benchmarks.work import make_workloads
from diffusion_core.backend.interface import BackendConfig
from diffusion_core.runs.run_directory import read_samples
from experiments.config.convert import plain

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def named(folder, backend_name) -> tuple[str, str]:
    return f"backend={backend_name}", f"network={folder}/scale_{backend_name}.py:Scale"


@pytest.fixture(scope="module")
def run(folder, named) -> Path:
    done = call("train", *named, *WORDS, "trainer.checkpoint_images=16", f"hydra.run.dir={folder / 'run'}")
    assert done.code == 0, done.err
    return folder / "run"


def test_an_earlier_checkpoint_of_the_same_network_guides(run, named, tmp_path):
    words = ("checkpoint=" + str(run), f"guide={run}/checkpoints/{16:012d}", "sample.count=4", "backend.device=cpu")
    drawn = []
    for scale in (2, 3):
        out = tmp_path / str(scale)
        done = call("sample", *named, *words, f"sampler.guidance_scale={scale}", f"out={out}")
        assert done.code == 0, done.err
        drawn.append(read_samples(out / "samples.npz")[0])
    assert np.any(drawn[0] != drawn[1])
    done = call("sample", named[0], *words, "sampler.guidance_scale=2", f"out={tmp_path / 'x'}")
    assert done.code == 2 and f"add {named[1]}" in done.err


def test_the_commands_of_the_page_name_the_network_and_run(run, named, tmp_path):
    page = (run / "report.html").read_text()
    shown = [shlex.split(line) for line in re.findall(r"python3 -m duet ([^<\n]+)", page)]
    assert not any("model=own" in words for words in shown)
    sample = next(words for words in shown if words[0] == "sample")
    assert named[1] in sample
    done = call(*[f"out={tmp_path / 'more'}" if word.startswith("out=") else word for word in sample])
    assert done.code == 0, done.err
    longer = next(words for words in shown if words[0] == "train" and "resume=latest" in words)
    assert named[1] in longer and "trainer.images=64" in longer


def test_saved_samples_are_evaluated_without_the_network(run, named, tmp_path):
    words = (named[0], f"from={run}", "features=none", f"out={tmp_path / 'scores'}")
    assert "network" not in call("evaluate", *words).err
    done = call("evaluate", *words, "likelihood=vlb")
    assert done.code == 2 and f"add {named[1]}" in done.err


@pytest.mark.parametrize(
    ("command", "words"),
    [("export_weights", ("checkpoint={run}", "target=onnx", "out={out}")), ("networks", ("from={run}", "out={out}"))],
)
def test_what_needs_the_blocks_of_a_network_says_so(run, named, tmp_path, command, words):
    done = call(command, named[0], *(word.format(run=run, out=tmp_path / "out") for word in words))
    assert done.code == 2 and "own network" in done.err and "blocks are unknown" in done.err
    assert done.err.count("\n") == 1 and not list((tmp_path / "out").glob("*"))


def test_a_step_that_is_not_finite_is_replayed_with_the_network(named, tmp_path, backend_name):
    run, words = tmp_path / "run", [word for word in WORDS if not word.startswith("trainer.log")]
    done = call("train", *named, *words, "lr.peak=1e30", "trainer.log_images=16", f"hydra.run.dir={run}")
    assert done.code == 2 and named[1] in done.err, done.err
    shown = shlex.split(done.err.rpartition("python3 -m duet ")[2])
    done = call(*(word for word in shown if not word.startswith("network=")))
    assert done.code == 2 and f"add {named[1]}" in done.err
    done = call(*shown)
    assert done.code == 0 and "it happens again" in done.out, done.err
    (report,) = (run / "non_finite").glob(f"*/replay-{backend_name}-*.json")
    assert json.loads(report.read_text())["first"] is not None


def test_a_bench_measures_an_own_network(named, folder, backend_name, open_backend, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    cfg = composed("bench", "out=x", f"network=scale_{backend_name}:Scale", "shape=[4,6,2]")
    request, backend = make_request(cfg), open_backend("float32")
    model = placeholder(request, plain(cfg.process)).to_dict()
    made = build_model(request, backend_name, BackendConfig("cpu"), model)
    assert made.spec.image_shape == (4, 6, 2) and len(made.program.parameters) == 1
    work = make_workloads(backend, None, made, batch=4, steps=2, images=3, ddim_steps=2)
    assert (work["train"](), work["ddim"]()) == (8, 3)

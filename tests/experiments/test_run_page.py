"""The page of a run: it says how the run ended, shows what its directory holds, and needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call
from made_up import write_training

from experiments.report import run as report
from experiments.report.curves import Curve, Panel, curve_chart
from experiments.report.run_facts import RunFacts
from experiments.training.page import page_at_the_end

TOTAL = 2560
CONFIG = {"trainer": {"images": TOTAL, "batch": 64}, "backend": {"name": "torch", "title": "PyTorch"},
          "data": {"name": "bars"}, "sample": {"weights": "ema"}}  # fmt: skip
LEVELS = [{"t": [0, 24], "sigma_over_alpha": [0.01, 0.5]}, {"t": [25, 99], "sigma_over_alpha": [0.5, None]}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A made-up run of 40 steps that is complete."""
    write_training(tmp_path / "run", 0, "torch")
    return tmp_path / "run"


def change(file: Path, **content: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | content))


def page(run: Path, config: dict = CONFIG, **facts: str) -> str:
    return report.write(RunFacts(run, config, **facts)).read_text()


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


def validate(run: Path, suffix: str = "") -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[9::10]:
        names = [f"validation_loss{w}{k}" for w in ("", "_ema") for k in ("", "_level1", "_level2")]
        line |= dict.fromkeys(names, 1.0 / line["images_seen"])
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(run / "environment.json", validation={"part": "val", "images": 8, "of_images": 8, "levels": LEVELS})


def test_a_complete_run_shows_every_part_and_refers_to_nothing_outside(run):
    validate(run)
    change(run / "environment.json", labels={str(k): f"kind {k}" for k in range(10)})
    samples = dict(np.load(run / "samples/samples.npz"))
    facts = json.loads(str(samples["facts"])) | {"conditional": True}
    np.savez(run / "samples/samples.npz", **samples | {"facts": np.array(json.dumps(facts))})
    numbers = {"frechet": {"distance": {"name": "digits Fréchet distance", "value": 2.5, "better": "lower",
                                        "interval": {"low": 2.0, "high": 3.0, "confidence": 0.95}}}}  # fmt: skip
    change(run / "result.json", evaluation={"numbers": numbers, "left_out": {"kernel": "too few"}})
    made = page(run, config_text="seed: 0\n")
    assert sections(made) == ["samples", "loss", "levels", "rate", "quality", "cost", "experiment", "environment",
                              "commands", "configuration"]  # fmt: skip
    for shown in ("Complete: 2,560 images seen", "kind 7", "digits Fréchet distance", "[2, 3]", "too few", "300.0",
                  "σ/α below 0.5", "σ/α above 0.5", "validation, average", "PyTorch"):  # fmt: skip
        assert shown in made, shown
    assert f"checkpoint={run}" not in made  # it has no checkpoint to sample from
    assert not re.search(r"(src|href)=\"(?!data:|#)", made) and "http" not in re.sub(r"http-equiv", "", made)
    assert len(made) < 300_000


def test_the_command_to_train_longer_names_the_length_once(run):
    command = "python3 -m duet train from=R trainer.images=2560 resume=latest hydra.run.dir=R"
    made = page(run, resume_command=command)
    assert "train from=R resume=latest hydra.run.dir=R trainer.images=5120" in made


def test_a_run_that_continues_another_is_drawn_from_there_on():
    seen, values = np.arange(1616.0, 2001.0, 16.0), np.ones(25)
    ways = [curve_chart("loss", s, 2000, [Panel("a", "a", [Curve("a", "s0", values)])]) for s in (seen, seen - 1600)]
    lefts = [float(re.match(r"M([\d.]+)", chart.plots[0].paths[0].d).group(1)) for chart in ways]
    assert lefts[0] == 40.0 and lefts[1] == 8.0  # of 1000: after 16 of 400, and after 16 of 2000, images


def test_a_run_that_did_not_end_says_so_and_how_to_continue(run):
    (run / "result.json").unlink()
    (run / "checkpoints/000000001280").mkdir(parents=True)
    (run / "checkpoints/000000001280/state.json").write_text("{}")
    made = page(run, CONFIG | {"trainer": {"images": 10 * TOTAL, "batch": 64}})
    assert "Not complete: 2,560 of 25,600 images seen" in made and "checkpoint is at 1,280 images" in made
    assert f"train from={run} resume=latest hydra.run.dir={run}" in made and "cost" not in sections(made)
    # The command that the run itself knows is better.
    assert "duet train x=1 resume=latest" in page(run, resume_command="python3 -m duet train x=1 resume=latest")


def test_a_result_of_before_the_run_was_made_longer_does_not_count(run):
    change(run / "result.json", images_seen=64)
    assert "Not complete" in page(run)


def test_an_error_is_shown_as_text(run):
    made = page(run, problem="the loss is <nan> & the norm 3")
    assert "Stopped by an error" in made and "the loss is &lt;nan&gt; &amp; the norm 3" in made


def test_what_a_run_does_not_have_is_left_out(run):
    for name in ("result.json", "metrics.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "samples")
    change(run / "environment.json", data=None, versions=None)
    assert sections(page(run, {})) == ["experiment", "environment", "commands"]


def test_points_of_the_plane_are_a_scatter_plot(run):
    images = np.array([[0, 0, 128], [255, 128, 128]], np.uint8).reshape(2, 1, 1, 3)
    facts = np.array(json.dumps({"plan": "ddim", "seed": 0, "conditional": False}))
    np.savez(run / "samples/samples.npz", images=images, labels=np.zeros(2, int), facts=facts)
    made = page(run)
    assert "M0 1000h0M1000 498h0" in made and "<img" not in made[made.index('id="samples"') : made.index('id="loss"')]


def test_samples_of_several_moments_show_the_training(run):
    for seen in (640, 1280, 5120):  # the last one is of a later moment than the run has reached
        shutil.copy(run / "samples/samples.npz", run / f"samples/samples-{seen:012d}.npz")
    made = page(run)
    assert "progress" in sections(made) and "1,280 images" in made and "5,120 images" not in made


def test_the_command_writes_the_page_and_refuses_another_folder(run, tmp_path):
    done = call("page", f"run={run}")
    assert done.code == 0 and (run / "report.html").is_file() and f"page: {run}/report.html" in done.out
    (tmp_path / "empty").mkdir()
    refused = call("page", f"run={tmp_path / 'empty'}")
    assert refused.code == 2 and "holds no run" in refused.err


def test_a_page_that_cannot_be_made_hides_no_error_of_the_run(run, capsys):
    (run / "metrics.jsonl").write_text("no\nno\n")
    with pytest.raises(RuntimeError, match="of the run"), page_at_the_end(run, "", CONFIG, lambda: ""):
        raise RuntimeError("of the run")
    with page_at_the_end(run, "", CONFIG, lambda: ""):
        pass
    assert capsys.readouterr().out.count("report.html could not be written (DuetError") == 2


TOY = (
    "experiment=toy", "model.channels=8", "trainer.images=80", "trainer.batch=16", "trainer.log_images=16",
    "lr.warmup_images=0", "lr.decay=constant", "sample.count=8", "sampler.steps=2",
    "backend.threads=1", "backend.device=cpu",
)  # fmt: skip


@pytest.mark.backend
@pytest.mark.either
def test_a_training_writes_it_at_the_end_and_after_an_error(backend_name, tmp_path):
    words = [f"backend={backend_name}", *TOY]
    done = call("train", *words, f"hydra.run.dir={tmp_path / 'run'}")
    made = (tmp_path / "run/report.html").read_text()
    assert done.out.count("images/s, done") == 0 and len(re.findall(r"^trained in .* images/s", done.out, re.M)) == 1
    assert done.code == 0 and f"page: {tmp_path}/run/report.html" in done.out and "Complete: 80 images seen" in made
    assert "trainer.images=160" in made and "validation, average" in made
    failed = call("train", *words, "lr.peak=1e30", "optimiser.clip=null", f"hydra.run.dir={tmp_path / 'bad'}")
    made = (tmp_path / "bad/report.html").read_text()
    assert failed.code == 2 and "Stopped by an error" in made and "the gradient norm" in made

"""A run directory of an earlier version is resumed, compared and evaluated.

`tests/core/test_old_files.py` says how the run was made; here it has the configuration keys of that version.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call

from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.run_directory import read_json, read_metrics, write_json

RUN = Path(__file__).parent.parent / "data" / "run_v1"
# The options of the run under their present names.
OPTIONS = (
    "experiment=digits", "process=v_cosine_uncertain", "ema=post_hoc", "model.channels=8", "model.norm_groups=4",
    "model.channel_multipliers=[1]", "model.attention_resolutions=[]", "model.heads=1", "trainer.batch=64",
    "trainer.log_images=64", "trainer.checkpoint_images=128", "trainer.keep_checkpoints=1", "lr.warmup_images=64",
    "ema.snapshot_images=128", "sample.count=2", "sampler.steps=2", "backend.threads=1", "backend.device=cpu",
)  # fmt: skip


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """Return a copy of the old run."""
    return shutil.copytree(RUN, tmp_path / "run")


@pytest.mark.backend
def test_an_old_run_is_resumed_from_its_checkpoint(old_run, backend_name):
    before = list(read_metrics(old_run / "metrics.jsonl"))
    done = call("train", f"backend={backend_name}", *OPTIONS, "trainer.images=384", "resume=latest",
                f"hydra.run.dir={old_run}")  # fmt: skip
    assert done.code == 0, done.err
    lines = list(read_metrics(old_run / "metrics.jsonl"))
    assert [line["images_seen"] for line in lines] == [64, 128, 192, 256, 320, 384]
    assert lines[:4] == before and all(np.isfinite(line["loss"]) for line in lines)
    found = load_checkpoint(old_run)
    assert (found.images_seen, found.state.updates, len(found.state.averages)) == (384, 6, 2)
    assert read_json(old_run / "result.json")["images_seen"] == 384


@pytest.mark.backend
def test_an_old_run_is_resumed_only_with_its_own_objective(old_run, backend_name):
    done = call("train", f"backend={backend_name}", *OPTIONS, "trainer.images=384", "resume=latest",
                "process.label_dropout=0.2", f"hydra.run.dir={old_run}")  # fmt: skip
    assert done.code == 2 and "process.label_dropout 0.1, but 0.2 was given" in done.err


def test_old_runs_are_compared(old_run, tmp_path):
    facts = read_json(old_run / "environment.json")
    write_json(old_run / "environment.json", facts | {"started": "2026-11-28T18:00:00+00:00"})  # no longer a copy
    done = call("compare", f"runs=[{RUN},{old_run}]", f"out={tmp_path / 'report'}")
    assert done.code == 0 and "(rungs 6 and 7; rungs 0 to 5 and 8 were not run); 2 runs of PyTorch agree" in done.out
    assert (tmp_path / "report" / "report.html").exists()


def test_runs_with_few_samples_are_compared_without_their_quality(old_run, tmp_path):
    """Intervals need six samples; with fewer, the losses are compared all the same, and the page says what is not."""
    few = shutil.copytree(old_run, tmp_path / "few")
    for run, hour in ((old_run, 18), (few, 19)):
        facts = read_json(run / "environment.json")
        write_json(run / "environment.json", facts | {"started": f"2026-11-28T{hour}:00:00+00:00"})
        with np.load(run / "samples" / "samples.npz") as file:
            kept = {name: file[name][:4] if file[name].ndim else file[name] for name in file.files}
        np.savez(run / "samples" / "samples.npz", **kept)
    done = call("compare", f"runs=[{old_run},{few}]", f"out={tmp_path / 'report'}")
    assert done.code == 0, done.err
    tiles = {tile["label"]: tile for tile in read_json(tmp_path / "report" / "report.json")["headlines"]}
    assert tiles["quality of the samples"]["note"] == "4 samples of a run; intervals need 6"


def test_the_samples_of_an_old_run_are_evaluated(old_run, tmp_path):
    done = call("evaluate", f"samples={old_run}", "data=digits", f"out={tmp_path / 'evaluation'}")
    assert done.code == 0, done.err
    assert (tmp_path / "evaluation" / "evaluation.json").exists()

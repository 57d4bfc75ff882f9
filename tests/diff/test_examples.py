"""The examples of docs/diff_examples.md give what the page says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from duet.cli.backends import backends
from duet.cli.environments import environment_exists

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/diff"
PAGE = (ROOT / "docs/diff_examples.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.together


@pytest.fixture(autouse=True)
def environments() -> None:
    """The commands would build what is missing, or point a shared environment to this checkout; a test must not."""
    missing = [name for name, backend in backends().items() if not environment_exists(backend)]
    assert not missing, f"no environment of {', '.join(missing)} for this checkout; set DUET_<NAME>_PYTHON"


def duet(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "duet", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compared(out: Path, *words: str) -> tuple[int, dict]:
    """Return the exit code of a comparison and its report."""
    words = ("-m", "duet", "diff", *words, "--out", str(out))
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for finding in report["findings"]:
        assert not finding["kind"] or finding["benign"] or finding["title"] in PAGE
    return done.returncode, report


def kinds(report: dict) -> list[str]:
    return [f["kind"] for f in report["findings"] if not f["benign"]]


CLASSIFIERS = (
    "examples/diff/keras_classifier.py:build",
    "examples/diff/torch_classifier.py:build",
    "--copy-weights",
    "a-to-b",
)


def test_two_mistakes_of_a_port_are_found_in_one_run(tmp_path):
    code, report = compared(tmp_path / "out", *CLASSIFIERS)
    assert code == 1 and kinds(report) == ["same_padding_stride", "flatten_order", "bn_running_var_bias"]
    assert [f["b"]["layer"] for f in report["findings"]][:2] == ["conv1", "dense1"]
    assert all(f["status"] == "verified" for f in report["findings"] if not f["benign"])


@pytest.mark.slow
def test_the_mended_port_is_equal_but_for_what_is_accepted(tmp_path):
    mended = ("--b-options", "padding=end", "flatten=channels_last")
    accepted = ("--accept", "examples/diff/classifier_accepted.json")
    code, report = compared(tmp_path / "out", *CLASSIFIERS, *mended, *accepted)
    assert code == 0 and kinds(report) == ["bn_running_var_bias"]


@pytest.mark.slow
def test_a_network_of_diffusers_and_duets_in_tensorflow(tmp_path):
    duet("run", "torch", "--", "examples/diff/diffusers_unet.py", str(tmp_path / "unet"))
    duet("import_weights", "source=diffusers", f"path={tmp_path / 'unet'}", f"out={tmp_path / 'run'}")
    sides = ("examples/diff/diffusers_unet.py:build", str(tmp_path / "run"), "--b-python", "tf")
    accepted = ("--accept", "examples/diff/unet_accepted.json")
    code, report = compared(tmp_path / "equal", *sides, *accepted)
    assert code == 0 and kinds(report) == ["time_embedding_precision"]
    code, report = compared(tmp_path / "other", *sides, *accepted, "--a-options", "norm_eps=0.001")
    assert code == 1 and kinds(report) == ["norm_epsilon", "time_embedding_precision"]
    assert report["findings"][0]["a_does"] == "epsilon is 0.001" and not report["findings"][0]["accepted"]

"""`duet diff` on the command line and in Python: what it reads, prints and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import duet
from diffusion_core.common.errors import DuetError
from duet.cli import diff as command
from duet.cli.completion import complete
from duet.cli.main import main
from duet.cli.sides import Interpreter
from duet.cli.terminal import Stop
from experiments.model_diff.compare import MODES

ROOT = Path(__file__).resolve().parents[2]


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def requested(monkeypatch):
    """Return a function that gives what the comparison would be asked to do."""
    monkeypatch.setattr(command, "find_interpreter", lambda label, side, python: Interpreter(python or "py", label))
    monkeypatch.setattr(command, "any_environment", lambda: "python")
    monkeypatch.setattr(command, "replace_process", lambda words, env: words)

    def read(*args: str) -> dict:
        words = command.diff_command(list(args))
        assert words[:3] == ["python", "-m", "experiments.diff"]
        return json.loads(words[3])

    return read


def test_the_defaults(requested):
    request = requested("a.py:build", "b.py:build")
    assert request["a"] == {"reference": "a.py:build", "python": "py", "backend": "A", "options": {}}
    assert (request["mode"], request["steps"], request["weights"], request["inputs"]) == ("all", 0, "map", None)
    assert request["command"] == "python3 -m duet diff a.py:build b.py:build"


def test_options_of_a_side_may_stand_anywhere(requested):
    request = requested(
        "--a-options", "fault=gn_eps", "n=3", "a.py:build", "--b-options", "on=true", "xs=[1, 2]", "b.py:build",
        "--b-options=text=1e", "--b-python", "/usr/bin/python3", "--steps", "20",
    )  # fmt: skip
    assert request["a"]["options"] == {"fault": "gn_eps", "n": 3}
    assert request["b"]["options"] == {"on": True, "xs": [1, 2], "text": "1e"}
    assert request["b"]["python"] == "/usr/bin/python3" and request["steps"] == 20


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a.py:build"], "required: B.*--help"),
        (["a", "b", "--mode", "grad"], "--mode: 'grad' was given; .*forward, gradient, train, all"),
        (["a", "b", "--copy-weights", "b2a"], "--copy-weights: 'b2a' was given; it must be one of a-to-b, b-to-a"),
        (["a", "b", "--precision", "float16"], "--precision: 'float16'"),
        (["a", "b", "--steps", "-1"], "--steps: -1"),
        (["a", "b", "--seed", "x"], "--seed: invalid int value: 'x'"),
        (["a", "b", "--a-options", "fault"], "--a-options"),
        (["a", "b", "--a-options=fault"], "--a-options: 'fault' was given; it must be KEY=VALUE"),
        (["a", "b", "--input", "x.npz"], "unrecognized arguments: --input"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(requested, args, said):
    with pytest.raises(Stop, match=said) as error:
        requested(*args)
    assert error.value.code == 2 and "\n" not in str(error.value)


def test_the_help_describes_every_option_and_the_overview_the_command(capsys):
    assert main(["diff", "--help"]) == 0
    text = capsys.readouterr().out
    options = {option for action in command.make_parser()._actions for option in action.option_strings}
    assert all(option in text for option in options) and "def inputs(seed)" in text and "exit code" in text
    assert max(map(len, text.splitlines())) <= 120
    assert main(["--help"]) == 0
    assert "diff" in capsys.readouterr().out


def test_the_tab_key_completes_options_and_their_values():
    assert "--copy-weights" in complete(["diff", "a.py:f", "b.py:f", "--co"])
    assert complete(["diff", "a.py:f", "b.py:f", "--mode", "g"]) == ["gradient"]
    assert "diff" in complete(["di"])


def test_the_command_knows_every_mode():
    assert tuple(MODES) == command.MODES


# --- a whole comparison --------------------------------------------------------------------------------------------

SIDE = """
import numpy as np
def build(slope=0.5):
    def net(x):
        return x @ np.arange(6.0).astype(x.dtype).reshape(3, 2) * slope
    return net
def inputs(seed): return np.random.default_rng(seed).standard_normal((4, 3))
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the comparison of two files, and gives its exit code and what it printed."""
    (tmp_path / "a.py").write_text(SIDE)
    (tmp_path / "b.py").write_text(SIDE.replace("def inputs", "def other"))
    side = {"python": sys.executable, "backend": "", "options": {}}

    def compared(options: dict | None = None, **changes: object) -> tuple[int, str, str]:
        request = {
            "a": {**side, "reference": "a.py:build"},
            "b": {**side, "reference": "b.py:build", "options": options or {}},
            **{"inputs": None, "seed": 0, "mode": "all", "steps": 0, "weights": "map", "copy_weights": ""},
            **{"precision": "float64", "accept": None, "out": "out", "json": False, "command": "duet diff"},
            **changes,
        }
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "experiments.diff", json.dumps(request)]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return compared


def test_equal_models_end_with_0_and_other_models_with_1(run, tmp_path):
    pytest.importorskip("diffusion_core.parity.diff.comparison")
    code, out, err = run()
    assert (code, err) == (0, "") and out.startswith("equal to rounding: ") and "report: out/report.html" in out
    code, out, err = run({"slope": 0.7}, out="other", json=True)
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "other/report.json").read_text())
    assert not report["equal"] and report["findings"][0]["b"]["source"] == "b.py:4"
    assert report["command"] == "duet diff" and report["options"]["b_options"] == {"slope": 0.7}


def test_a_report_is_not_overwritten_and_errors_end_with_2(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.json").write_text("kept")
    code, out, err = run()
    assert (code, out) == (2, "") and err.startswith("error: --out: out already contains a report")
    assert (tmp_path / "out/report.json").read_text() == "kept"
    (tmp_path / "b.py").write_text("def build():\n    return 1 / 0")
    code, out, err = run(out="new")
    assert (code, out) == (2, "") and not (tmp_path / "new").exists()
    assert err.endswith("error: B: b.py:build: ZeroDivisionError: division by zero (b.py, line 2)\n")
    (tmp_path / "b.py").write_text(SIDE.replace("default_rng(seed)", "default_rng(seed + 1)"))
    code, out, err = run(out="new")
    assert code == 2 and "inputs(0)[0]: A (shape (4, 3)) and B (shape (4, 3)) hold other numbers" in err
    for path in (tmp_path / "a.py", tmp_path / "b.py"):
        path.write_text(SIDE.replace("def inputs", "def other"))
    code, out, err = run(out="new")
    assert code == 2 and "write a function inputs(seed)" in err and "--inputs FILE.npz" in err


def test_both_sides_are_compared_in_float32_where_one_has_no_float64(run, tmp_path):
    (tmp_path / "b.py").write_text(
        SIDE.replace("return x @", "return x.astype(np.float32) @").replace("x.dtype", "'f4'")
    )
    code, out, err = run()
    assert (code, err) == (0, "") and "(float32)" in out and "float64 is not possible" in out
    code, out, err = run({"slope": 0.7}, out="other")
    assert code == 1 and "(float32)" in out


def test_objects_are_compared_in_python():
    pytest.importorskip("diffusion_core.parity.diff.comparison")
    x = np.random.default_rng(0).standard_normal((3, 4))
    same = duet.diff(np.tanh, lambda x: np.sinh(x) / np.cosh(x), inputs=x)
    assert same.equal and repr(same).startswith("equal to rounding")
    other = duet.diff(np.tanh, np.sinh, inputs={"x": x}, mode="forward")
    assert not other.equal and len(other.findings) == 1
    assert other._repr_html_().startswith("<iframe") and "notes" in other.report


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "grad"}, "mode: 'grad'"),
        ({"precision": "half"}, "precision: 'half'"),
        ({"weights": "all"}, "map, copy, or a JSON file"),
        ({"copy_weights": "both"}, "a-to-b or b-to-a"),
        ({"a_python": "python3"}, "a_python: A is an object of this process"),
        ({"inputs": "missing.npz"}, "missing.npz"),
        ({"steps": -2}, "steps: -2"),
        ({"accept": [{"knd": "gelu_form"}]}, "accept: entry 1: 'knd' was given"),
        ({"accept": [{"kind": "gelu_form"}]}, "accept: entry 1 has no reason"),
    ],
)
def test_arguments_in_python_are_checked(changes, said):
    with pytest.raises(DuetError, match=said):
        duet.diff(np.tanh, np.sinh, **changes)

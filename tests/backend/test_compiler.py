"""Where nothing can be compiled, compile=true is refused in one line and compile=auto computes without."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core.backend.interface import BackendConfig, load_backend
from diffusion_core.common.errors import DuetError
from experiments.runtime import backends
from experiments.runtime.backends import BackendSetup

pytestmark = pytest.mark.backend
ROOT = Path(__file__).resolve().parents[2]
CONFIG = BackendConfig("cpu", threads=1)
REASON = "no compiler was found; install one"


@pytest.fixture
def without_compiler(backend_name, monkeypatch, open_backend):
    """The backend's name, where its compiler does not work."""
    open_backend("float32")
    compiler = importlib.import_module(f"backends.{backend_name}.compiler")
    monkeypatch.setattr(compiler, "compile_obstacle", lambda device: REASON)
    backends._say_once.cache_clear()
    return backend_name


def test_true_is_refused_wherever_a_backend_is_opened(without_compiler):
    wanted = rf"backend\.compile: true was given, but {REASON}; or set backend\.compile=false"
    for opened in (lambda: load_backend(without_compiler, BackendConfig("cpu", threads=1, compile=True)),
                   lambda: BackendSetup(without_compiler, CONFIG, True).open(1),
                   lambda: BackendSetup(without_compiler, CONFIG, True).load()):  # fmt: skip
        with pytest.raises(DuetError, match=wanted):
            opened()


@pytest.mark.parametrize("resumed", [None, True])
def test_auto_computes_without_compiling_and_says_so_once(without_compiler, capsys, resumed):
    setup = BackendSetup(without_compiler, CONFIG, "auto", {"cpu": 1, "cuda": 1})
    backend = setup.open(1000, resumed)
    assert not backend.config.compile and not backend.context.compile
    assert not setup.choose_mode(backend, 1000, resumed).config.compile
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # this one and the line of the backend
    assert lines[0].startswith(f"backend.compile=auto: computing without compiling, since {REASON}")
    assert ("last bits may differ" in lines[0]) is bool(resumed)


def test_a_backend_that_does_not_compile_does_not_look_for_a_compiler(backend_name, monkeypatch, open_backend):
    open_backend("float32")
    compiler = importlib.import_module(f"backends.{backend_name}.compiler")
    monkeypatch.setattr(compiler, "compile_obstacle", lambda device: pytest.fail("it looked"))
    assert BackendSetup(backend_name, CONFIG, "auto", {"cpu": 10}).open(5).config.compile is False


@pytest.fixture
def find_obstacle(backend_name):
    if backend_name != "torch":
        pytest.skip("XLA needs no compiler on a CPU")
    from backends.torch.compiler import compile_obstacle

    return compile_obstacle


@pytest.mark.parametrize("cxx, words", [
    ("", r"no C\+\+ compiler was found \(CXX is empty\)"),
    ("/nonexistent/g++ -O1", r"no C\+\+ compiler was found \(/nonexistent/g\+\+ -O1\)"),
    ("false", r"the C\+\+ compiler false does not work \(exit code 1\)"),
])  # fmt: skip
def test_a_missing_and_a_broken_compiler_are_named(find_obstacle, monkeypatch, cxx, words):
    monkeypatch.setenv("CXX", cxx)
    assert re.match(words + r"; install one \(.*g\+\+.*\) or name it in CXX", find_obstacle("cpu"))


def test_a_compiler_that_cannot_be_found_on_the_path(find_obstacle, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_obstacle("cpu").startswith("no C++ compiler was found (")
    monkeypatch.delenv("CC", raising=False)
    assert find_obstacle("cuda").startswith(("no C compiler was found (", "the package triton is not installed"))


def test_the_command_is_refused_in_one_line_before_it_writes_anything(find_obstacle, tmp_path):
    """A process of its own, whose PATH leads nowhere."""
    words = "data=shapes data.options.size=8 model=plain model.image_size=8 model.channels=[4] model.bottleneck=4 "
    words += "trainer.images=64 trainer.batch=16 sample.count=4 sampler.steps=4 backend.device=cpu backend.compile=true"
    environment = {key: value for key, value in os.environ.items() if key not in ("CC", "CXX")}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *words.split(), f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=ROOT, env=environment | {"PATH": "/nonexistent"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: backend.compile: true was given, but no C++ compiler was found")
    assert line.endswith("or set backend.compile=false")
    assert not {path.name for path in (tmp_path / "run").glob("*")} & {"config.yaml", "environment.json", "checkpoints"}


def test_an_error_of_the_compiler_is_told_from_others(backend_name, open_backend):
    """What `FirstCall` turns into one line; an error of the computation itself keeps its traceback."""
    open_backend("float32")
    explain = importlib.import_module(f"backends.{backend_name}.compiler").explain
    failure = FAILURES[backend_name]()
    assert explain(failure) == "no ptxas was found for XLA"
    assert explain(ValueError("no ptxas was found for XLA")) is None


def failure_of_torch() -> Exception:
    import torch

    def refuse(graph, inputs):
        raise RuntimeError("no ptxas was found for XLA\nand a long explanation")

    with pytest.raises(RuntimeError) as caught:
        torch.compile(torch.sin, backend=refuse)(torch.ones(2))
    return caught.value


def failure_of_tensorflow() -> Exception:
    import tensorflow as tf

    return tf.errors.InternalError(None, None, "no ptxas was found for XLA\nand a long explanation")


FAILURES = {"torch": failure_of_torch, "tf": failure_of_tensorflow}

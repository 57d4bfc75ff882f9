"""The launcher: its functions, and sweeps of a small program with two fake environments that record their calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffusion_core.common.errors import DuetError
from hydra_plugins.duet_launcher.launcher import (
    LaunchError,
    backend_python,
    entry_command,
    inherited_overrides,
    read_objective,
    run_dir_override,
    source_flags,
)

ROOT = Path(__file__).resolve().parents[2]


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- which Python -------------------------------------------------------------------------------------------------


def test_the_python_comes_from_configuration_then_variable_then_environment(tmp_path):
    venv = executable(tmp_path / ".venvs/tf/bin/python")
    by_variable, by_config = executable(tmp_path / "variable"), executable(tmp_path / "config")
    backend = {"name": "tf", "environment": ".venvs/tf"}
    variable = {"DUET_TF_PYTHON": str(by_variable), "DUET_TORCH_PYTHON": str(by_config)}
    assert backend_python(backend, {}, tmp_path) == venv
    assert backend_python(backend, variable, tmp_path) == by_variable
    assert backend_python({**backend, "python": "config"}, variable, tmp_path) == by_config
    assert backend_python({**backend, "python": None}, {}, tmp_path) == venv


def test_a_link_to_a_python_is_not_resolved(tmp_path):
    real, link = executable(tmp_path / "real"), tmp_path / ".venvs/tf/bin/python"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    assert backend_python({"name": "tf", "environment": ".venvs/tf"}, {}, tmp_path) == link


def test_a_missing_python_names_the_setup_command(tmp_path):
    with pytest.raises(DuetError, match=r"python3 -m duet setup tf"):
        backend_python({"name": "tf", "environment": ".venvs/tf"}, {}, tmp_path)
    with pytest.raises(DuetError, match=r"DUET_MY_OWN_PYTHON: there is no Python at .*/nowhere"):
        backend_python({"name": "my-own"}, {"DUET_MY_OWN_PYTHON": "nowhere"}, tmp_path)
    with pytest.raises(DuetError, match=r"backend\.environment, backend\.python or DUET_TF_PYTHON"):
        backend_python({"name": "tf"}, {}, tmp_path)
    with pytest.raises(DuetError, match=r"backend\.name"):
        backend_python({"environment": ".venvs/tf"}, {}, tmp_path)


def test_an_installed_package_runs_jobs_in_its_own_python_unless_the_framework_is_missing(tmp_path):
    backend = {"name": "tf", "environment": ".venvs/tf", "packages": ["json", "keras"]}
    assert backend_python(backend, {}, installed=True) == Path(sys.executable)
    chosen = executable(tmp_path / "python")
    assert backend_python(backend, {"DUET_TF_PYTHON": str(chosen)}, installed=True) == chosen
    with pytest.raises(DuetError, match=r"backend tf: nowhere is not installed in .*; install it there, .*DUET_TF_P"):
        backend_python({**backend, "packages": ["nowhere"]}, {}, installed=True)


# --- which command ------------------------------------------------------------------------------------------------


def main_module(spec: str | None = None, file: str | None = None) -> ModuleType:
    module = ModuleType("__main__")
    module.__spec__ = spec and ModuleSpec(spec, None)
    if file:
        module.__file__ = file
    return module


def test_a_job_starts_the_program_as_the_sweep_was_started():
    def task() -> None: ...

    task.__module__ = "__main__"
    assert entry_command(main_module("experiments.train"), task) == ["-m", "experiments.train"]
    assert entry_command(main_module("experiments.__main__"), task) == ["-m", "experiments"]
    assert entry_command(main_module(file="/a/train.py"), task) == ["/a/train.py"]
    with pytest.raises(DuetError, match="python3 -m duet train"):
        entry_command(main_module(), task)
    task.__module__ = "experiments.train"
    assert entry_command(main_module(file="/usr/bin/script"), task) == ["-m", "experiments.train"]


def test_a_job_inherits_the_overrides_that_are_not_the_sweeps_own():
    own = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=x", "hydra.sweep.subdir=y", "hydra/launcher=duet", "hydra.run.dir=z"]
    own += ["hydra/sweeper=optuna", "+hydra.launcher.n=1", "hydra.sweeper.n_trials=3", "++hydra.sweeper.params={a:1}"]
    others = ["hydra.verbose=true", "hydra.job.chdir=true", "hydra.runtime.x=1", "+hydra.job.env_set.A=b"]
    assert inherited_overrides([*own, *others]) == others


def test_config_sources_become_flags():
    hydra = {"provider": "hydra", "schema": "pkg", "path": "hydra.conf"}
    main = {"provider": "main", "schema": "file", "path": "/c"}
    extra = {"provider": "command-line", "schema": "file", "path": "/d"}
    schema = {"provider": "schema", "schema": "structured", "path": ""}
    flags = ["--config-name", "n", "--config-path", "/c", "--config-dir", "/d"]
    assert source_flags("n", [hydra, main, extra, schema]) == flags
    assert source_flags(None, [{"provider": "main", "schema": "pkg", "path": "a.b"}]) == ["--config-path", "pkg://a.b"]


@pytest.mark.parametrize("path", ["/a/b", "/a b/c", "/backend=tf,seed=1/0", "/it's", "/[x]{y}(z)", "/a:b"])
def test_any_run_directory_survives_hydras_grammar(path):
    (override,) = OverridesParser.create().parse_overrides([run_dir_override(Path(path))])
    assert (override.key_or_group, override.value()) == ("hydra.run.dir", path)


def test_the_objective_is_a_number_in_result_json(tmp_path):
    assert read_objective(tmp_path) is None
    for text, value in [('{"objective": 2}', 2.0), ('{"objective": null}', None), ("{}", None)]:
        (tmp_path / "result.json").write_text(text)
        assert read_objective(tmp_path) == value
    for text in ['{"objective": "good"}', "[1]", "{"]:
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(DuetError, match=r"result\.json"):
            read_objective(tmp_path)


# --- whole sweeps -------------------------------------------------------------------------------------------------

ENTRY = """
import json, os, sys
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(cfg):
    run = HydraConfig.get()
    out = Path(run.runtime.output_dir)
    job = {"owner": os.environ["OWNER"], "backend": cfg.backend.name, "seed": cfg.seed, "mode": run.mode.name}
    (out / "job.json").write_text(json.dumps(job))
    if cfg.seed == 13:
        sys.exit(7)

if __name__ == "__main__":
    main()
"""

CONFIG = """
defaults: [{backend: torch}, {override hydra/launcher: duet}, _self_]
seed: 0
"""


@pytest.fixture
def program(tmp_path):
    """A package `small` with a configuration, and a "Python" per backend that sets OWNER and calls the real Python."""
    for backend in ("torch", "tf"):
        script = f'#!/bin/sh\nOWNER={backend} exec "{sys.executable}" "$@"\n'
        python = executable(tmp_path / f"{backend}-python", script)
        text = f"name: {backend}\npython: {python}\n"
        executable(tmp_path / "small/configs/backend" / f"{backend}.yaml", text)
    (tmp_path / "small/configs/config.yaml").write_text(CONFIG)
    (tmp_path / "small/entry.py").write_text(ENTRY)
    return tmp_path


def sweep(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    env.pop("HYDRA_FULL_ERROR", None)
    command = [sys.executable, "-m", "small.entry", "-m", "hydra.sweep.dir=a sweep", *overrides]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_each_job_runs_as_a_single_run_with_the_python_of_its_backend(program):
    result = sweep(program, "backend=torch,tf", "seed=2")
    assert result.returncode == 0, result.stderr
    jobs = [json.loads((program / "a sweep" / str(n) / "job.json").read_text()) for n in range(2)]
    assert jobs == [{"owner": b, "backend": b, "seed": 2, "mode": "RUN"} for b in ("torch", "tf")]


def test_a_failed_job_fails_the_sweep_after_the_others_ran(program):
    result = sweep(program, "backend=tf", "seed=13,1")
    assert result.returncode == 1
    assert "job 0 (backend=tf seed=13) failed with exit code 7" in result.stderr
    assert "Traceback" not in result.stderr
    assert (program / "a sweep/1/job.json").exists()


def test_no_job_runs_if_one_lacks_its_python(program):
    (program / "tf-python").unlink()
    result = sweep(program, "backend=torch,tf")
    assert result.returncode == 1
    assert "run `python3 -m duet setup tf`" in result.stderr and "Traceback" not in result.stderr
    assert not list(program.glob("a sweep/*/job.json"))


def test_a_launch_error_is_a_duet_error():
    assert issubclass(LaunchError, DuetError)

"""The command `duet`, run as a user runs it, with a fake Python that records what it is asked to do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from duet.cli.experiments import experiments

ROOT = Path(__file__).resolve().parents[2]


# --- every Python -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", [*sorted((ROOT / "duet").glob("cli/*.py")), ROOT / "duet" / "layout.py"], ids=lambda file: file.stem
)
def test_the_command_has_no_syntax_that_python_3_7_cannot_read(file):
    assert ast.get_docstring(ast.parse(file.read_text(), feature_version=(3, 7)))


def test_newer_syntax_is_noticed():
    with pytest.raises(SyntaxError):
        ast.parse("if (a := 1): pass", feature_version=(3, 7))


@pytest.mark.parametrize("file", ["__init__.py", "__main__.py"])
def test_the_door_has_no_syntax_that_python_2_cannot_read(file):
    nodes = [type(node).__name__ for node in ast.walk(ast.parse((ROOT / "duet" / file).read_text()))]
    assert not {"JoinedStr", "AnnAssign", "NamedExpr", "Nonlocal", "AsyncFunctionDef"} & set(nodes)
    assert "annotations" not in (ROOT / "duet" / file).read_text()


def test_importing_duet_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import duet; print(sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "hydra", "torch", "diffusion_core", "subprocess", "duet.cli"} & set(
        ast.literal_eval(result.stdout)
    )


def test_the_command_loads_the_standard_library_only():
    code = "import sys, duet.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name for name in result.stdout.split() if not name.startswith(("_", "sitecustom", "usercustom"))}
    assert loaded - set(sys.stdlib_module_names) <= {"duet", "distutils-precedence"}


def test_a_public_name_is_imported_when_it_is_used():
    import duet
    from diffusion_core.common.errors import DuetError

    assert duet.DuetError is DuetError and "DuetError" in dir(duet)
    assert {name for name in dir(duet) if not name.startswith("__")} == set(duet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = duet.nothing


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["stup"], ["'stup'", "demo, test, setup, run", "Did you mean 'setup'?"]),
        (["trian"], ["'trian'", "Did you mean 'train'?"]),
        (["setup", "jax"], ["'jax'", "torch, tf"]),
        (["train", "backend=tff"], ["backend: 'tff' was given", "Did you mean 'tf'?"]),
        (["run"], ["run torch"]),
        (["run", "tensorflow", "--", "x"], ["'tensorflow'", "torch, tf"]),
        (["demo", "here"], ["'here'", "--out DIR"]),
        (["launch", "two", "train"], ["launch 2 train"]),
        (["launch", "2", "compare"], ["launch: 'compare' was given", "train"]),
        (["completion", "fish"], ["'fish'", "bash, zsh"]),
        (["completion"], ["completion bash"]),
    ],
)
def test_an_argument_that_does_not_fit_is_one_clear_line(checkout, one_line, args, fragments):
    result = checkout.duet(*args)
    assert result.returncode == 2 and checkout.calls() == []
    assert all(fragment in one_line(result) for fragment in fragments), result.stderr


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command_in_one_line_and_sets_nothing_up(checkout, flag):
    result = checkout.duet(flag)
    assert result.returncode == 0 and checkout.calls() == []
    tools = ("setup", "run", "test", "demo", "launch", "diff", "completion")
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if re.match(r"    [a-z_]+  +\S", line)}
    assert lines.keys() == {*tools, *experiments()}
    assert {"train", "sample", "evaluate", "compare", "study", "bench"} <= lines.keys()


@pytest.mark.parametrize("command", ["setup", "run", "test", "demo", "launch", "completion"])
def test_help_of_a_command_shows_its_usage_and_sets_nothing_up(checkout, command):
    result = checkout.duet(command, "--help")
    assert result.returncode == 0 and checkout.calls() == []
    assert "usage: " in result.stdout and f"duet {command}" in result.stdout


def test_help_of_an_experiment_needs_no_environment_and_adds_that_of_hydra_where_there_is_one(checkout):
    result = checkout.duet("train", "--help")
    assert result.returncode == 0 and checkout.calls() == []
    assert "Train a diffusion model." in result.stdout and "duet setup" in result.stdout
    checkout.duet("setup", "torch")
    checkout.calls()
    checkout.duet("train", "--help", "backend=tf")  # an environment that exists, and nothing is set up
    assert checkout.calls() == ["torch|-m experiments.train --help backend=tf"]


# --- which environment --------------------------------------------------------------------------------------------


def test_run_passes_arguments_and_exit_code(checkout):
    result = checkout.duet("run", "tf", "--", "-m", "thing", "--", "a b", FAKE_BREAKS="thing", FAKE_CODE="7")
    assert result.returncode == 7
    assert checkout.calls() == ["venv", "pip", "tf|-m thing -- a b"]


def test_a_command_sets_up_the_environment_of_its_backend_and_passes_arguments_and_exit_code(checkout):
    result = checkout.duet("train", "backend=tf", "experiment=digits", FAKE_BREAKS="digits", FAKE_CODE="7")
    assert result.returncode == 7
    assert checkout.calls() == ["venv", "pip", "tf|-m experiments.train backend=tf experiment=digits"]


@pytest.mark.parametrize(
    ("args", "owner"),
    [
        (["train"], "torch"),  # the default of configs/train.yaml
        (["train", "backend=torch", "backend=tf"], "tf"),  # Hydra takes the last
        (["sample", "backend=tf"], "tf"),
        (["train", "backend=tf", "backend.threads=1", "data=digits"], "tf"),
        (["train", "-m", "backend=tf,torch"], "tf"),
        (["train", "--multirun", "backend=choice(tf, torch)"], "torch"),
        (["train", "-m", "backend=glob(*)"], "torch"),
        (["compare"], "torch"),
    ],
)
def test_a_command_runs_in_the_environment_of_its_backend(checkout, args, owner):
    checkout.duet("setup")
    checkout.calls()
    assert checkout.duet(*args).returncode == 0
    assert checkout.calls() == [f"{owner}|-m experiments.{' '.join(args)}"]


def test_a_sweep_sets_up_the_environments_of_all_its_backends(checkout):
    assert checkout.duet("train", "-m", "backend=tf,torch").returncode == 0
    assert checkout.calls() == ["venv", "pip"] * 2 + ["tf|-m experiments.train -m backend=tf,torch"]


@pytest.mark.parametrize("command", ["compare", "inspect", "prepare", "study", "reconstruct_ema"])
def test_a_command_without_a_backend_runs_in_any_environment_that_exists(checkout, command):
    checkout.duet("setup", "tf")
    checkout.calls()
    assert checkout.duet(command, "out=x").returncode == 0
    assert checkout.calls() == [f"tf|-m experiments.{command} out=x"]


def test_the_command_line_can_name_the_interpreter_and_then_sets_nothing_up(checkout, one_line):
    assert checkout.duet("train", "backend=tf", f"backend.python={checkout.python}").returncode == 0
    assert checkout.calls() == [f"own|-m experiments.train backend=tf backend.python={checkout.python}"]
    result = checkout.duet("train", "backend=tf", "backend.python=/nowhere")
    assert result.returncode == 2 and "backend.python: '/nowhere' was given" in one_line(result)


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]])
def test_a_folder_of_configurations_may_add_a_backend(checkout, flag):
    (checkout.root / "mine/backend").mkdir(parents=True)
    (checkout.root / "mine/backend/jax.yaml").write_text(f"name: jax\npython: {checkout.python}\n")
    assert checkout.duet("train", *flag, "backend=jax").returncode == 0
    assert checkout.calls() == [f"own|-m experiments.train {' '.join(flag)} backend=jax"]


def test_launch_starts_several_processes_with_the_backends_own_way_to_join_them(checkout):
    checkout.duet("setup")
    checkout.calls()
    for backend, parallel in (("torch", "ddp"), ("tf", "multiworker")):
        assert checkout.duet("launch", "2", "train", f"backend={backend}", "seed=1").returncode == 0
        words = f"-m experiments.workers 2 -m experiments.train backend={backend} seed=1 parallel={parallel}"
        assert checkout.calls() == [f"{backend}|{words}"]
    assert checkout.duet("launch", "3", "sample", "parallel=none").returncode == 0
    assert checkout.calls() == ["torch|-m experiments.workers 3 -m experiments.sample parallel=none"]


def test_a_command_runs_in_the_folder_where_it_was_called_and_finds_this_checkout(checkout):
    checkout.duet("setup", "torch")
    python = checkout.venv("torch") / "bin/python"
    python.write_text(python.read_text().replace('echo "$owner|$*"', 'echo "$PWD|$PYTHONPATH|$PYTHONSAFEPATH"'))
    checkout.calls()
    folder = checkout.root / "elsewhere"
    folder.mkdir()
    process = checkout.popen("train", cwd=folder)
    process.communicate(timeout=60)
    assert checkout.calls() == [f"{folder}|{checkout.root}:{checkout.root}|1"]


def test_an_installed_package_runs_commands_in_its_own_environment(checkout):
    checkout.as_package(torch="json", tf="json")
    assert checkout.duet("train", "backend=tf").returncode == 0
    assert checkout.duet("compare").returncode == checkout.duet("train").returncode == 0
    assert checkout.calls() == [
        "own|-m experiments.train backend=tf", "own|-m experiments.compare", "own|-m experiments.train",
    ]  # fmt: skip


def test_an_installed_package_shows_its_packages_to_no_other_python(checkout):
    """PYTHONPATH with site-packages would mix two environments."""
    checkout.as_package(torch="json", tf="nowhere")
    own = checkout.root / "own" / "python"
    own.parent.mkdir()
    own.write_text(checkout.python.read_text().replace('echo "$owner|$*"', 'echo "$PYTHONPATH|$PYTHONSAFEPATH"'))
    own.chmod(0o755)
    variables = {"DUET_TF_PYTHON": str(own), "PYTHONPATH": f"{checkout.root}:/a/b"}
    assert checkout.duet("train", "backend=tf", **variables).returncode == 0
    assert checkout.calls() == [f"{checkout.root}:/a/b|1"]  # as the user gave it


def test_an_installed_package_takes_the_backend_whose_framework_it_has(checkout, one_line):
    checkout.as_package(torch="nowhere", tf="json")
    result = checkout.duet("train", "seed=1")
    assert result.returncode == 0 and "backend=tf, since" in result.stdout and "no nowhere" in result.stdout
    launched = checkout.duet("launch", "2", "train")
    assert launched.returncode == 0
    assert checkout.calls() == [
        "own|-m experiments.train seed=1 backend=tf",
        "own|-m experiments.workers 2 -m experiments.train backend=tf parallel=multiworker",
    ]
    for words in (("train", "backend=torch"), ("run", "torch", "--", "x.py"), ("demo",)):
        result = checkout.duet(*words)
        assert result.returncode == 2 and checkout.calls() == []
        assert "no nowhere, but what backend=tf needs" in one_line(result) and "DUET_TORCH_PYTHON=PATH" in result.stderr


def test_an_installed_package_has_nothing_to_set_up(checkout, one_line):
    checkout.as_package(torch="nowhere", tf="json")
    result = checkout.duet("setup")
    assert result.returncode == 0 and "torch: " in result.stdout and "has no nowhere" in result.stdout
    assert f"tf: {checkout.python}" in result.stdout
    assert checkout.duet("setup", "tf").returncode == 2
    assert "installed as a package" in one_line(checkout.duet("setup", "--cpu"))
    assert "installed as a package" in checkout.duet("--help").stdout and checkout.calls() == []
    script = checkout.duet("completion", "bash").stdout
    assert "PYTHONPATH" not in script and f"{checkout.python} -m duet" in script


def test_an_installed_package_has_no_tests_and_writes_the_demo_where_it_is_called(checkout, one_line):
    checkout.as_package(torch="json", tf="json")
    result = checkout.duet("test")
    assert result.returncode == 2 and "run it in the repository" in one_line(result) and checkout.calls() == []
    folder = checkout.root / "elsewhere"
    folder.mkdir()
    checkout.popen("demo", cwd=folder).communicate(timeout=60)
    assert (folder / "outputs/demo/.duet-demo").exists()


def test_a_pipe_that_is_closed_ends_the_command_without_a_message(checkout):
    command = f"{sys.executable} -m duet --help | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stderr == "" and result.returncode in (0, 141)


def test_every_experiment_is_a_module_with_a_configuration_and_a_line_of_help():
    found = experiments()
    assert {"train", "sample", "edit", "evaluate", "gallery", "prepare", "inspect", "compare", "study", "trace"} < {
        *found
    }
    assert {"replay", "import_weights", "export_weights", "reconstruct_ema", "networks", "bench"} < {*found}
    for name, command in found.items():
        assert command.config.is_file() and 10 < len(command.summary) < 120, name

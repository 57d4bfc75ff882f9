"""`duet setup`, run as a user runs it, with a fake Python that records what it is asked to do."""

from __future__ import annotations

import fcntl
import os
import re
import sys

import pytest

from duet.cli import environments


def test_set_up_builds_every_environment_once(checkout):
    assert checkout.duet("setup").returncode == 0
    assert sorted(checkout.calls()) == ["pip", "pip", "venv", "venv"]  # both at the same time
    assert checkout.finished("torch") and checkout.finished("tf")
    assert checkout.duet("setup").returncode == 0
    assert checkout.calls() == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints-tf.txt"])
def test_an_outdated_environment_is_updated_in_place(checkout, changed):
    checkout.duet("setup", "tf")
    checkout.calls()
    (checkout.root / changed).write_text("changed")
    (checkout.venv("tf") / "kept").touch()
    assert checkout.duet("setup", "tf").returncode == 0
    assert checkout.calls() == ["pip"]
    assert checkout.finished("tf") and (checkout.venv("tf") / "kept").exists()


def test_the_constraints_of_another_backend_do_not_outdate_an_environment(checkout):
    checkout.duet("setup", "tf")
    checkout.calls()
    (checkout.root / "constraints-torch.txt").write_text("changed")
    checkout.duet("setup", "tf")
    assert checkout.calls() == []


def test_another_python_version_outdates_an_environment(checkout):
    checkout.duet("setup", "tf")
    checkout.calls()
    checkout.duet("setup", "tf", FAKE_VERSION="3 12 2")
    assert checkout.calls() == ["pip"]


@pytest.mark.parametrize("damage", ["unfinished", "no pip", "no python", "old python"])
def test_an_incomplete_environment_is_built_again(checkout, damage):
    checkout.duet("setup", "tf")
    checkout.calls()
    venv = checkout.venv("tf")
    (venv / "left-over").touch()
    if damage == "unfinished":
        (venv / "duet-stamp").write_text("unfinished")
    elif damage == "no pip":
        (venv / "duet-stamp").unlink()
        (venv / "bin" / "no-pip").touch()
    elif damage == "no python":
        (venv / "bin" / "python").unlink()
    else:
        (venv / "bin" / "python").write_text("#!/bin/sh\necho 3 10 1 1\n")
    assert checkout.duet("setup", "tf").returncode == 0
    assert checkout.calls() == ["venv", "pip"]
    assert checkout.finished("tf") and not (venv / "left-over").exists()


def test_a_failed_first_build_does_not_count_as_complete(checkout, one_line):
    result = checkout.duet("setup", "tf", FAKE_PIP_CODE="1", FAKE_PIP="ERROR: this went wrong\\n")
    assert result.returncode == 1 and "ERROR: this went wrong" in result.stdout
    assert str(checkout.root / ".venvs" / "tf.log") in one_line(result)
    checkout.calls()
    assert checkout.duet("setup", "tf").returncode == 0
    assert checkout.calls() == ["venv", "pip"]


@pytest.mark.parametrize(("output", "kept"), [("ERROR: no\\n", True), ("Installing collected packages: a\\n", False)])
def test_a_failed_update_keeps_an_environment_that_pip_did_not_change(checkout, output, kept):
    checkout.duet("setup", "tf")
    (checkout.root / "pyproject.toml").write_text("changed")
    assert checkout.duet("setup", "tf", FAKE_PIP_CODE="1", FAKE_PIP=output).returncode == 1
    checkout.calls()
    checkout.duet("setup", "tf")
    assert checkout.calls() == (["pip"] if kept else ["venv", "pip"])


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution",
            "no network",
        ),
        ("ERROR: No matching distribution found for torch==9", "no matching version"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full"),
    ],
)
def test_the_error_names_the_cause_of_a_failed_set_up(checkout, one_line, output, cause):
    result = checkout.duet("setup", "tf", FAKE_PIP_CODE="1", FAKE_PIP=output.replace("\n", "\\n"))
    assert result.returncode == 1 and cause in one_line(result)


def test_a_real_pip_without_network_is_reported_as_such(checkout, one_line):
    text = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n[project]\nname = "x"\n'
    (checkout.root / "pyproject.toml").write_text(text)
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    result = checkout.duet("setup", "tf", **unreachable, FAKE_REAL=sys.executable, PIP_DRY_RUN="1")
    assert result.returncode == 1 and "no network" in one_line(result)
    assert "hatchling" in result.stdout


def test_an_unsupported_python_is_one_clear_line(checkout, one_line):
    result = checkout.duet("setup", PATH="/nonexistent", FAKE_VERSION="3 8 18")
    assert result.returncode == 2 and "3.8.18" in one_line(result) and "python3.11" in result.stderr


def test_a_supported_python_on_path_builds_the_environment(checkout):
    folder = checkout.root / "bin"
    folder.mkdir()
    (folder / "python3.12").write_text(checkout.python.read_text().replace("${FAKE_VERSION:-3 12 1}", "3 12 1"))
    (folder / "python3.12").chmod(0o755)
    result = checkout.duet("setup", "tf", PATH=f"{folder}:/bin:/usr/bin", FAKE_VERSION="3 14 0")
    assert result.returncode == 0, result.stderr
    assert str(folder / "python3.12") in result.stdout


def test_a_python_without_venv_is_reported_with_the_package_to_install(checkout, one_line):
    result = checkout.duet("setup", PATH="/nonexistent", FAKE_VENV="0")
    assert result.returncode == 2 and "python3.12-venv" in one_line(result)
    assert not checkout.venv("torch").exists()


def test_an_environment_variable_chooses_the_interpreter(checkout, one_line):
    own = {"DUET_TF_PYTHON": str(checkout.python)}
    result = checkout.duet("run", "tf", "--", "-m", "x", **own)
    assert result.returncode == 0 and checkout.calls() == ["own|-m x"]
    result = checkout.duet("setup", "tf", DUET_TF_PYTHON="/nonexistent/python")
    assert result.returncode == 2 and "DUET_TF_PYTHON: '/nonexistent/python'" in one_line(result)


def test_a_second_set_up_waits_for_the_first(checkout):
    checkout.duet("setup", "tf")
    checkout.calls()
    stamp = checkout.venv("tf") / "duet-stamp"
    built = stamp.read_text()
    stamp.write_text("unfinished")  # as another set-up leaves it while it works
    with open(checkout.root / ".venvs" / "tf.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = checkout.popen("setup", "tf")
        assert "waiting" in process.stdout.readline()
        stamp.write_text(built)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert checkout.calls() == []


def test_each_backend_gets_the_extras_of_its_configuration(checkout):
    fake = checkout.root / "pip"
    fake.write_text('#!/bin/sh\necho "$*" >> "$FAKE_LOG.pip"\n')
    fake.chmod(0o755)
    checkout.duet("setup", FAKE_REAL=str(fake))
    installed = sorted((checkout.root / "calls.txt.pip").read_text().splitlines())
    base = "-m pip install --no-input --no-compile -e "
    assert installed == [
        f"{base}.[tf,tensorboard,dev] -c constraints-tf.txt",
        f"{base}.[torch,peers,metrics,tensorboard,docs,dev] -c constraints-torch.txt",
    ]


def test_a_third_backend_is_set_up_from_its_configuration_alone(checkout):
    configs = checkout.root / "configs"
    configs.unlink()
    (configs / "backend").mkdir(parents=True)
    (configs / "train.yaml").write_text("defaults:\n  - backend: torch\n")
    for name in ("torch", "tf", "jax"):
        (configs / "backend" / f"{name}.yaml").write_text(f"name: {name}\nenvironment: .venvs/my-{name}\n")
    assert checkout.duet("setup", "jax").returncode == 0
    assert (checkout.root / ".venvs/my-jax/duet-stamp").read_text() != "unfinished"
    checkout.calls()
    assert checkout.duet("train", "backend=jax").returncode == 0
    assert checkout.calls() == ["my-jax|-m experiments.train backend=jax"]


def test_a_set_up_that_ends_before_pip_starts_leaves_the_environment_as_it_was(checkout):
    checkout.duet("setup", "tf")
    (checkout.root / "pyproject.toml").write_text("changed")
    stamp = (checkout.venv("tf") / "duet-stamp").read_text()
    process = checkout.popen("setup", "tf")
    process.stdout.close()  # the first line that it prints then ends it
    process.wait(timeout=60)
    process.stderr.close()
    assert (checkout.venv("tf") / "duet-stamp").read_text() == stamp
    checkout.calls()
    assert checkout.duet("setup", "tf").returncode == 0
    assert checkout.calls() == ["pip"] and checkout.finished("tf")


def test_an_installation_that_takes_long_shows_time_and_the_last_line_of_its_log(tmp_path, monkeypatch):
    """The command ends once something was said."""
    told, said = tmp_path / "told", []

    def say(line: str) -> None:
        said.append(line)
        if "Downloading" in line:
            told.touch()

    monkeypatch.setattr(environments, "say", say)
    code = (
        "import pathlib, sys, time; print('Downloading x', flush=True)\nwhile not pathlib.Path(sys.argv[1]).exists(): "
    )
    with open(tmp_path / "log", "w+") as log:
        command = [sys.executable, "-c", code + "time.sleep(0.01)", str(told)]
        assert environments.run_logged(command, log, "torch", every=0.05)
        assert not environments.run_logged([sys.executable, "-c", "raise SystemExit(3)"], log, "torch")
    assert re.fullmatch(r"torch: \d:\d\d:\d\d, Downloading x", said[-1])


# --- builds for CPUs, and extras ----------------------------------------------------------------------------------

EXTRAS = """[project.optional-dependencies]
torch = [
    "torch>=2.11",   # the backend
    "torchvision>=0.26",
]
peers = []
tf-cpu = [
    "tensorflow-cpu>=2.20,<2.23; sys_platform != 'darwin'",
]
jupyter = [
    "jupyterlab>=4",
]
"""


@pytest.fixture
def installed(checkout):
    """Return a function that sets up and returns what pip was asked to install, with the constraints."""
    (checkout.root / "pyproject.toml").write_text(EXTRAS)
    (checkout.root / "constraints-torch.txt").write_text("# tested\nnumpy==2.4.6\ntorch==2.14.1\ntorchvision==0.29.2\n")
    pip = checkout.root / "pip"
    pip.write_text('#!/bin/sh\necho "$*" >> "$FAKE_LOG.pip"\n')
    pip.chmod(0o755)

    def run(*args, **versions):
        answers = {f"FAKE_VERSIONS_{name}": text for name, text in versions.items()}
        result = checkout.duet("setup", *args, FAKE_REAL=str(pip), **answers)
        assert result.returncode == 0, result.stderr
        log = checkout.root / "calls.txt.pip"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        constraints = checkout.venv("torch") / "constraints.txt"
        pins = constraints.read_text().split() if constraints.exists() else []
        return [line.removeprefix("-m pip install --no-input --no-compile -e ") for line in lines], pins, result.stdout

    return run


@pytest.mark.parametrize(
    ("versions", "pins", "said"),
    [
        (
            ("2.15.0, 2.14.1+cpu, 2.14.1, 2.13.0+cpu", "0.29.2+cpu, 0.29.2"),
            ["torch==2.14.1+cpu", "torchvision==0.29.2+cpu"],
            "builds for CPUs: torch 2.14.1+cpu, torchvision 0.29.2+cpu\n",
        ),
        (
            ("2.15.0+cpu, 2.13.1+cpu, 2.13.0+cpu, 2.9.0+cpu", "0.28.0+cpu, 0.27.0+cpu"),  # none belongs to 2.15
            ["torch==2.13.1+cpu", "torchvision==0.28.0+cpu"],
            "torch 2.13.1+cpu, torchvision 0.28.0+cpu; the tested versions are torch 2.14.1, torchvision 0.29.2\n",
        ),
        (
            ("2.14.1, 2.13.0+cpu", "0.29.2, 0.28.0"),  # a build of one does not load with a CUDA build of the other
            ["torch==2.14.1", "torchvision==0.29.2"],
            "no build for CPUs of torchvision that fits; the plain build is installed",
        ),
        (
            ("2.14.1, 2.9.0+cpu", ""),
            ["torch==2.14.1", "torchvision==0.29.2"],
            "of torch and torchvision that fits; the plain",
        ),
    ],
)
def test_builds_for_cpus_that_belong_together_are_installed_where_the_index_has_them(installed, versions, pins, said):
    answers = {
        name: f"Available versions: {text}" for name, text in zip(("torch", "torchvision"), versions, strict=True)
    }
    (line,), constraints, output = installed("--cpu", "torch", **answers)
    assert line.startswith(".[torch,peers,metrics,tensorboard,docs,dev] -c ") and line.endswith("constraints.txt")
    assert constraints[2:] == ["numpy==2.4.6", *pins]
    assert said in output


def test_a_package_of_its_own_for_cpus_takes_the_place_of_the_plain_one(installed):
    (line,), _, said = installed("--cpu", "tf")
    assert line.startswith(".[tf-cpu,tensorboard,dev] -c ") and "has no build" not in said


def test_an_environment_keeps_to_its_options_until_they_are_forgotten(installed, checkout):
    (line,), _, _ = installed("--cpu", "--extra", "jupyter", "tf")
    assert line.startswith(".[tf-cpu,tensorboard,jupyter,dev] ")
    assert installed("tf")[0] == [] and installed("--cpu", "tf")[0] == []
    (checkout.root / "constraints-tf.txt").write_text("changed")
    (line,), _, _ = installed("tf")
    assert line.startswith(".[tf-cpu,tensorboard,jupyter,dev] ")
    checkout.calls()
    (line,), _, said = installed("--default", "tf")
    assert line == ".[tf,tensorboard,dev] -c constraints-tf.txt" and "for another device" in said
    assert checkout.calls() == ["venv"]  # made anew, since pip would leave packages of the other kind in it


def test_an_extra_is_added_in_place(installed, checkout):
    installed("tf")
    checkout.calls()
    (line,), _, _ = installed("--extra=jupyter", "tf")
    assert line == ".[tf,tensorboard,jupyter,dev] -c constraints-tf.txt" and checkout.calls() == []


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (
            ["--extra", "jupiter"],
            "--extra: 'jupiter' was given; it must be one of jupyter, peers, tf-cpu, torch. Did",
        ),
        (["--extra"], "--extra: no name was given; it is one of jupyter, "),
        (["--cpus"], "setup: '--cpus' was given; it must be one of --cpu, --extra, --default. Did you mean '--cpu'?"),
    ],
)
def test_an_option_of_set_up_that_does_not_exist_is_refused(checkout, one_line, args, fragment):
    (checkout.root / "pyproject.toml").write_text(EXTRAS)
    result = checkout.duet("setup", *args)
    assert result.returncode == 2 and fragment in one_line(result) and checkout.calls() == []


def test_an_interpreter_of_the_user_gets_no_options(checkout):
    (checkout.root / "pyproject.toml").write_text(EXTRAS)
    result = checkout.duet("setup", "--cpu", "tf", DUET_TF_PYTHON=str(checkout.python))
    assert result.returncode == 0 and "an interpreter of your own, in which nothing is installed" in result.stdout
    assert not (checkout.root / ".venvs" / "tf.json").exists()

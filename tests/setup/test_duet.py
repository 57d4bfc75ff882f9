"""`duet.py`: run as a person runs it, beside a fake pyproject and with a fake Python that notes what it is asked."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parents[2]

# Stands for a Python: answers the probe, makes a "virtual environment" that holds itself, and plays pip's part.
FAKE = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
  "-c "*) echo "${FAKE_VERSION:-3 12 1} ${FAKE_VENV:-1}"; exit 0 ;;
  "-m venv "*) echo "venv" >> "$FAKE_LOG"; mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit 0 ;;
  "-m pip --version") [ ! -e "$here/no-pip" ]; exit ;;
  "-m pip install "*) [ -n "$FAKE_REAL" ] && exec "$FAKE_REAL" "$@"
    echo "pip" >> "$FAKE_LOG"; printf '%b' "$FAKE_PIP"; exit "${FAKE_PIP_CODE:-0}" ;;
esac
echo "$DUET_BACKEND|$*" >> "$FAKE_LOG"
case "$*" in *"$FAKE_BREAKS"*) [ -n "$FAKE_BREAKS" ] && exit "${FAKE_CODE:-9}" ;; esac
case "$*" in *experiments.compare*) page="$FAKE_OUT" ;; *experiments.study*) page="$FAKE_OUT/study" ;; *) page= ;; esac
[ -n "$FAKE_OUT" ] && [ -n "$page" ] && mkdir -p "$page" && touch "$page/report.html"
exit 0
"""

# duet.py in a process that believes the fake to be its own interpreter.
DRIVER = "import sys, duet; sys.executable = sys.argv[1]; sys.exit(duet.main(sys.argv[2:]))"


class Checkout:
    """A folder with duet.py and the files that it reads."""

    def __init__(self, root: Path):
        self.root, self.log, self.python = root, root / "calls.txt", root / "python"
        (root / "duet.py").write_text((ROOT / "duet.py").read_text())
        for name in ("pyproject.toml", "constraints-torch.txt", "constraints-tf.txt"):
            (root / name).write_text("")
        self.python.write_text(FAKE)
        self.python.chmod(0o755)
        self.env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "FAKE_LOG": str(self.log)}

    def popen(self, *args: str, **env: str) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, str(self.python), *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, env={**self.env, **env}, stdout=pipe, stderr=pipe, text=True)

    def duet(self, *args: str, **env: str) -> subprocess.CompletedProcess:
        process = self.popen(*args, **env)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def calls(self) -> list[str]:
        """What the fake was asked to do since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def venv(self, backend: str) -> Path:
        return self.root / ".venvs" / backend

    def finished(self, backend: str) -> bool:
        return bool(re.fullmatch("[0-9a-f]{64}", (self.venv(backend) / "duet-stamp").read_text()))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture(scope="module")
def duet():
    spec = importlib.util.spec_from_file_location("duet", ROOT / "duet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_line(result: subprocess.CompletedProcess) -> str:
    """The only line on stderr."""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("duet: "), result.stderr
    return result.stderr


# --- set-up -------------------------------------------------------------------------------------------------------


def test_setup_builds_both_once(checkout):
    assert checkout.duet("setup").returncode == 0
    assert checkout.calls() == ["venv", "pip"] * 2
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


def test_the_other_constraints_do_not_outdate(checkout):
    checkout.duet("setup", "tf")
    checkout.calls()
    (checkout.root / "constraints-torch.txt").write_text("changed")
    checkout.duet("setup", "tf")
    assert checkout.calls() == []


def test_another_python_version_outdates(checkout):
    checkout.duet("setup", "tf")
    checkout.calls()
    checkout.duet("setup", "tf", FAKE_VERSION="3 12 2")
    assert checkout.calls() == ["pip"]


@pytest.mark.parametrize("damage", ["unfinished", "no pip", "no python", "old python"])
def test_a_half_built_environment_is_made_anew(checkout, damage):
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


def test_a_failed_first_build_is_not_taken_for_whole(checkout):
    result = checkout.duet("setup", "tf", FAKE_PIP_CODE="1", FAKE_PIP="ERROR: this went wrong\\n")
    assert result.returncode == 1 and "ERROR: this went wrong" in result.stdout
    assert str(checkout.root / ".venvs" / "tf.log") in one_line(result)
    checkout.calls()
    assert checkout.duet("setup", "tf").returncode == 0
    assert checkout.calls() == ["venv", "pip"]


@pytest.mark.parametrize(("output", "kept"), [("ERROR: no\\n", True), ("Installing collected packages: a\\n", False)])
def test_a_failed_update_keeps_what_it_did_not_touch(checkout, output, kept):
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
def test_the_last_line_names_the_cause(checkout, output, cause):
    result = checkout.duet("setup", "tf", FAKE_PIP_CODE="1", FAKE_PIP=output.replace("\n", "\\n"))
    assert result.returncode == 1 and cause in one_line(result)


def test_a_real_pip_that_reaches_no_index_says_so(checkout):
    text = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n[project]\nname = "x"\n'
    (checkout.root / "pyproject.toml").write_text(text)
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    result = checkout.duet("setup", "tf", **unreachable, FAKE_REAL=sys.executable, PIP_DRY_RUN="1")
    assert result.returncode == 1 and "no network" in one_line(result)
    assert "hatchling" in result.stdout


def test_unsupported_python_is_one_clear_line(checkout):
    result = checkout.duet("setup", PATH="/nonexistent", FAKE_VERSION="3 8 18")
    assert result.returncode == 2 and "3.8.18" in one_line(result) and "python3.11" in result.stderr


def test_a_supported_python_on_path_is_used(checkout):
    folder = checkout.root / "bin"
    folder.mkdir()
    (folder / "python3.12").write_text(FAKE.replace("${FAKE_VERSION:-3 12 1}", "3 12 1"))
    (folder / "python3.12").chmod(0o755)
    result = checkout.duet("setup", "tf", PATH=f"{folder}:/bin:/usr/bin", FAKE_VERSION="3 14 0")
    assert result.returncode == 0, result.stderr
    assert str(folder / "python3.12") in result.stdout


def test_missing_venv_names_the_package(checkout):
    result = checkout.duet("setup", PATH="/nonexistent", FAKE_VENV="0")
    assert result.returncode == 2 and "python3.12-venv" in one_line(result)
    assert not checkout.venv("torch").exists()


def test_an_interpreter_of_ones_own(checkout):
    own = {"DUET_TF_PYTHON": str(checkout.python)}
    result = checkout.duet("run", "tf", "--", "-m", "x", **own)
    assert result.returncode == 0 and checkout.calls() == ["|-m x"]
    result = checkout.duet("setup", "tf", DUET_TF_PYTHON="/nonexistent/python")
    assert result.returncode == 2 and "DUET_TF_PYTHON: '/nonexistent/python'" in one_line(result)


def test_a_second_setup_waits_for_the_first(checkout):
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


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["stup"], ["'stup'", "setup, run, test, demo", "Did you mean 'setup'?"]),
        (["setup", "jax"], ["'jax'", "torch, tf"]),
        (["run"], ["run torch"]),
        (["run", "tensorflow", "--", "x"], ["'tensorflow'", "torch, tf"]),
        (["demo", "here"], ["'here'", "--out DIR"]),
    ],
)
def test_what_does_not_fit_is_one_clear_line(checkout, args, words):
    result = checkout.duet(*args)
    assert result.returncode == 2 and checkout.calls() == []
    assert all(word in one_line(result) for word in words), result.stderr


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["setup", "--help"], ["test", "-h"], ["demo", "--help"]])
def test_help(checkout, args):
    result = checkout.duet(*args)
    assert result.returncode == 0 and checkout.calls() == []
    assert all(f"duet.py {command} " in result.stdout for command in ("setup", "run", "test", "demo"))


def test_run_passes_arguments_and_exit_code(checkout):
    result = checkout.duet("run", "tf", "--", "-m", "thing", "--", "a b", FAKE_BREAKS="thing", FAKE_CODE="7")
    assert result.returncode == 7
    assert checkout.calls() == ["venv", "pip", "|-m thing -- a b"]


def stages(checkout: Checkout) -> list[str]:
    """The calls of a test run, with the exchange folder as X."""
    return [re.sub(r"/\S*?duet-exchange-\w+", "X", line) for line in checkout.calls() if line not in ("venv", "pip")]


def traced(backend, other=""):
    """The commands that climb the ladder with a backend, one per precision."""
    handover = f" handover=X/trace/{other}" if other else ""
    return {
        f"{backend}|-m experiments.trace backend={backend} precisions=[{precision}] backend.threads=N "
        f"out=X/trace/{backend}{handover}"
        for precision in ("float64", "float32")
    }


def test_test_runs_every_stage_in_order(checkout):
    (checkout.root / "browser").write_text("")
    (checkout.root / "browser").chmod(0o755)
    result = checkout.duet("test", DUET_BROWSER=str(checkout.root / "browser"))
    assert result.returncode == 0, result.stderr
    ran = [re.sub(r"threads=\d+", "threads=N", line) for line in stages(checkout)]
    assert set(ran[:4]) == {
        "torch|-m pytest -m not backend and not together and not exchange and not slow and not gpu",
        "tf|-m pytest -m backend and not either and not recorded and not slow and not gpu",
        "torch|-m pytest -m backend and not recorded and not slow and not gpu",
        "torch|-m pytest -m together and not slow",
    }
    assert set(ran[4:8]) == traced("torch") | traced("tf")
    assert set(ran[8:12]) == traced("torch", "tf") | traced("tf", "torch")
    assert ran[12:] == ["torch|-m pytest -m exchange"]
    assert result.stdout.count("passed") == 4 and "NOT RUN" not in result.stdout


def test_without_a_browser_its_tests_are_left_out_and_that_is_said(checkout):
    result = checkout.duet("test", DUET_BROWSER="none")
    assert result.returncode == 0 and sum(line.endswith(" and not browser") for line in stages(checkout)) == 4
    assert result.stdout.count("tests marked `browser` are NOT RUN") == 2
    assert "NOT RUN" in result.stdout.splitlines()[-1]
    assert "'a-browser' was given" in one_line(checkout.duet("test", DUET_BROWSER="a-browser"))


def test_one_failed_stage_fails_the_test_run_and_is_named(checkout):
    result = checkout.duet("test", FAKE_BREAKS="backend=tf precisions=[float32]")
    assert result.returncode == 1
    summary = [line for line in result.stdout.splitlines() if line.endswith(" s")][-4:]
    assert ["FAILED (exit code 9)" in line for line in summary] == [False, True, True, False]


def test_what_runs_side_by_side_is_printed_under_its_backend(duet, capsys):
    code = "import sys; print('hello'); sys.exit(int(sys.argv[1]))"

    def jobs(*codes):
        return [(b, [sys.executable, "-c", code, c], None) for b, c in zip(("torch", "tf"), codes, strict=True)]

    assert duet.side_by_side(jobs("0", "3")) == 3
    assert sorted(capsys.readouterr().out.splitlines()) == ["   tf | hello", "torch | hello"]
    # Where one selects no test, a failure of the other is the worse.
    assert [duet.side_by_side(jobs(*codes)) for codes in (("5", "0"), ("1", "5"), ("5", "5"))] == [5, 1, 5]


@pytest.mark.parametrize(("extra", "code"), [([], 1), (["-k", "x"], 0)])
def test_an_empty_selection_passes_only_where_a_person_selected(checkout, extra, code):
    assert checkout.duet("test", *extra, FAKE_BREAKS="pytest", FAKE_CODE="5").returncode == code


def test_code_5_of_a_stage_without_pytest_is_a_failure(checkout):
    assert checkout.duet("test", "-k", "x", FAKE_BREAKS="experiments", FAKE_CODE="5").returncode == 1


def test_extra_arguments_reach_each_pytest(checkout):
    checkout.duet("test", "-k", "a or b")
    assert sum(line.endswith(" -k a or b") for line in stages(checkout)) == 5


# --- demo ---------------------------------------------------------------------------------------------------------


def test_demo_runs_its_commands_and_says_where_the_report_is(checkout):
    out = checkout.root / "outputs" / "demo"
    result = checkout.duet("demo", FAKE_OUT=str(out))
    assert result.returncode == 0, result.stderr
    assert all(str(out / name) in result.stdout.splitlines()[-1] for name in ("report.html", "study/report.html"))
    ran = stages(checkout)
    printed = re.findall(r"duet.py run (\w+) -- (.*)", result.stdout)
    assert sorted(f"{backend}|{line}".replace("'", "") for backend, line in printed) == sorted(ran) and len(ran) == 14
    kinds = [re.search(r"experiments\.(\w+)", line).group(1) for line in ran]
    assert kinds == ["train"] * 2 + ["sample"] * 2 + ["trace"] * 8 + ["compare", "study"]


def test_demo_stops_at_the_first_failure(checkout):
    result = checkout.duet("demo", FAKE_BREAKS="experiments.trace backend=torch")
    assert result.returncode == 1 and "exit code 9" in one_line(result) and "parity ladder" in result.stderr
    assert "experiments.compare" not in "".join(checkout.calls())


def test_demo_without_a_report_is_a_failure(checkout):
    result = checkout.duet("demo")
    assert result.returncode == 1 and "report.html" in one_line(result)


def test_demo_overwrites_nothing(checkout):
    mine = checkout.root / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    result = checkout.duet("demo", "--out", "mine")
    assert result.returncode == 2 and str(mine) in one_line(result)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"] and checkout.calls() == []


def test_the_demo_of_before_moves_aside(checkout):
    out = checkout.root / "it"
    assert checkout.duet("demo", "--out", "it", FAKE_OUT=str(out)).returncode == 0
    (out / "first").touch()
    assert checkout.duet("demo", "--out", "it", FAKE_OUT=str(out)).returncode == 0
    (aside,) = checkout.root.glob("it-*")
    assert (aside / "first").exists() and not (out / "first").exists()


@pytest.mark.parametrize("folder", ["plain/path-1.0", "with space", "a=b,c", "[x]{y}(z)", "back\\slash", "co:lon"])
def test_a_folder_survives_hydras_grammar(duet, folder):
    parser = OverridesParser.create()
    (override,) = parser.parse_overrides(duet.words("out={x}/torch", {"x": folder}))
    assert override.value() == f"{folder}/torch"
    (override,) = parser.parse_overrides(duet.words("traces=[{x}/torch,{x}/tf]", {"x": folder}))
    assert override.value() == [f"{folder}/torch", f"{folder}/tf"]


def test_every_command_of_the_tables_runs_in_the_environment_of_its_backend(duet):
    for _, jobs, template in (*duet.TESTS, *duet.DEMO):
        assert {backend for backend, _ in jobs} <= set(duet.DOWNLOAD)
        assert set(re.findall(r"\bbackend=(\S+)", template)) <= {"{b}"}
        assert ("{p}" in template) == all(part for _, part in jobs)

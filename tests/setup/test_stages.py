"""`duet test` and `duet demo`, run with a fake Python that records what it is asked to do."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from duet.cli import demo, testing
from duet.cli.backends import ROOT, backends
from duet.cli.stages import Job, Stage, run_jobs, split_template
from duet.cli.terminal import duration


def recorded(checkout) -> list[str]:
    """Return the calls of a test run, with the exchange folder as X."""
    return [re.sub(r"/\S*?duet-exchange-\w+", "X", line) for line in checkout.calls() if line not in ("venv", "pip")]


def traced(backend, other=""):
    """Return the commands that climb the ladder with a backend, one per precision."""
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
    ran = [re.sub(r"threads=\d+", "threads=N", line) for line in recorded(checkout)]
    unit = {
        *(
            "torch|-m pytest -m not backend and not together and not exchange and not notebook and not slow and not "
            f"gpu --part {i}/3"
            for i in (1, 2, 3)
        ),
        *(f"{name}|-m pytest -m notebook and not slow" for name in ("torch", "tf")),
        "tf|-m pytest -m backend and not either and not recorded and not slow and not gpu",
        "torch|-m pytest -m backend and not recorded and not slow and not gpu",
        "torch|-m pytest -m together and not slow",
    }
    exchange = {"torch|-m pytest -m exchange"}
    ladder, hand_over = traced("torch") | traced("tf"), traced("torch", "tf") | traced("tf", "torch")
    assert set(ran) == unit | exchange | ladder | hand_over and len(ran) == 17
    # What needs the files of others comes after them.
    assert max(map(ran.index, ladder)) < min(map(ran.index, hand_over))
    assert max(map(ran.index, hand_over)) < min(map(ran.index, exchange))
    assert result.stdout.count("passed") == 6 and "NOT RUN" not in result.stdout


def test_without_a_browser_its_tests_are_left_out_with_a_notice(checkout, one_line):
    result = checkout.duet("test", DUET_BROWSER="none")
    assert result.returncode == 0 and sum(" and not browser" in line for line in recorded(checkout)) == 6
    assert result.stdout.count("tests marked `browser` are NOT RUN") == 2
    assert "NOT RUN" in result.stdout.splitlines()[-1]
    assert "'a-browser' was given" in one_line(checkout.duet("test", DUET_BROWSER="a-browser"))


def test_one_failed_stage_fails_the_test_run_and_is_named(checkout):
    result = checkout.duet("test", FAKE_BREAKS="backend=tf precisions=[float32]")
    assert result.returncode == 1
    summary = [line for line in result.stdout.splitlines() if re.search(r"(passed|FAILED).* \d:\d\d:\d\d$", line)]
    assert ["FAILED (exit code 9)" in line for line in summary] == [True, False, False, True, False, False]


def job(code: str, backend: str = "torch", title: str = "a", after: tuple[str, ...] = ()) -> Job:
    return Job(Stage(title, (), "", after), backend, "typed", [sys.executable, "-c", code], None)


def test_output_of_parallel_jobs_is_printed_after_the_name_of_their_backend(capsys):
    run_jobs([job("print('hello')"), job("print('hello')", "tf")])
    assert sorted(capsys.readouterr().out.splitlines()) == ["   tf | hello", *["duet: a: typed"] * 2, "torch | hello"]


@pytest.mark.parametrize(("codes", "worst"), [("03", 3), ("50", 5), ("15", 1), ("55", 5), ("00", 0)])
def test_the_code_of_a_stage_is_the_worst_of_its_jobs(codes, worst):
    results = run_jobs([job(f"raise SystemExit({code})") for code in codes])
    assert {title: result.code for title, result in results.items()} == {"a": worst}


def test_a_stage_starts_after_the_stages_that_it_needs_and_others_fill_the_time(capsys):
    slow, quick = "import time; time.sleep(0.6); print(1)", "print(1)"
    jobs = [job(slow, title="a"), job(quick, title="b", after=("a",)), job(quick, title="c")]
    results = run_jobs(jobs)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("duet")]
    assert said == ["duet: a: typed", "duet: c: typed", "duet: b: typed"]
    assert all(result.code == 0 for result in results.values()) and results["a"].seconds > 0.5


def test_a_test_run_that_is_stopped_ends_its_processes(checkout):
    checkout.duet("setup")
    pids = checkout.root / "pids"
    for backend in backends():
        python = checkout.venv(backend) / "bin/python"
        wait = f'*experiments.trace*) echo $$ >> {pids}; exec sleep 60 ;;\n  "-c "*)'
        python.write_text(python.read_text().replace('"-c "*)', wait, 1))
    process = checkout.popen("test")
    while process.poll() is None and (not pids.exists() or len(pids.read_text().split()) < 2):
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            for _ in range(100):
                os.kill(int(pid), 0)
                time.sleep(0.05)


def test_a_job_that_cannot_start_is_a_failure(tmp_path):
    broken = job("")._replace(command=[str(tmp_path / "nothing")])
    assert run_jobs([broken, job("", title="b")])["a"].code == 1


@pytest.mark.parametrize(("extra", "code"), [([], 1), (["-k", "x"], 0)])
def test_an_empty_selection_passes_only_where_the_user_selected_tests(checkout, extra, code):
    assert checkout.duet("test", *extra, FAKE_BREAKS="pytest", FAKE_CODE="5").returncode == code


def test_code_5_of_a_stage_without_pytest_is_a_failure(checkout):
    assert checkout.duet("test", "-k", "x", FAKE_BREAKS="experiments", FAKE_CODE="5").returncode == 1


def test_extra_arguments_reach_each_pytest(checkout):
    checkout.duet("test", "-k", "a or b")
    assert sum(line.endswith(" -k a or b") for line in recorded(checkout)) == 9


# --- demo ---------------------------------------------------------------------------------------------------------


def test_demo_runs_its_commands_and_prints_where_the_reports_are(checkout):
    out = checkout.root / "outputs" / "demo"
    result = checkout.duet("demo", FAKE_OUT=str(out))
    assert result.returncode == 0, result.stderr
    reports = [f"duet: report: {out / name}" for name in ("report.html", "study/report.html")]
    assert result.stdout.splitlines()[-2:] == reports
    ran = recorded(checkout)
    printed = re.findall(r"^duet: [\w' -]+: python3 -m duet (\w+) (.*)", result.stdout, re.MULTILINE)
    typed = [f"-m experiments.{name} {args}".replace("'", "") for name, args in printed]
    assert sorted(typed) == sorted(line.split("|", 1)[1] for line in ran) and len(ran) == 14
    kinds = [re.search(r"experiments\.(\w+)", line).group(1) for line in ran]
    assert kinds == ["train"] * 2 + ["sample"] * 2 + ["trace"] * 8 + ["compare", "study"]


def test_demo_stops_at_the_first_failure(checkout, one_line):
    result = checkout.duet("demo", FAKE_BREAKS="experiments.trace backend=torch")
    assert result.returncode == 1 and "exit code 9" in one_line(result) and "parity ladder" in result.stderr
    assert "experiments.compare" not in "".join(checkout.calls())


def test_demo_without_a_report_is_a_failure(checkout, one_line):
    result = checkout.duet("demo")
    assert result.returncode == 1 and "report.html" in one_line(result)


def test_demo_overwrites_nothing(checkout, one_line):
    mine = checkout.root / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    result = checkout.duet("demo", "--out", "mine")
    assert result.returncode == 2 and str(mine) in one_line(result)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"] and checkout.calls() == []


def test_an_earlier_demo_is_renamed(checkout):
    out = checkout.root / "it"
    assert checkout.duet("demo", "--out", "it", FAKE_OUT=str(out)).returncode == 0
    (out / "first").touch()
    assert checkout.duet("demo", "--out", "it", FAKE_OUT=str(out)).returncode == 0
    (aside,) = checkout.root.glob("it-*")
    assert (aside / "first").exists() and not (out / "first").exists()


@pytest.mark.parametrize("folder", ["plain/path-1.0", "with space", "a=b,c", "[x]{y}(z)", "back\\slash", "co:lon"])
def test_a_folder_survives_hydras_grammar(folder):
    parser = OverridesParser.create()
    (override,) = parser.parse_overrides(split_template("out={x}/torch", {"x": folder}))
    assert override.value() == f"{folder}/torch"
    (override,) = parser.parse_overrides(split_template("traces=[{x}/torch,{x}/tf]", {"x": folder}))
    assert override.value() == [f"{folder}/torch", f"{folder}/tf"]


def test_every_command_of_the_tables_runs_in_the_environment_of_its_backend():
    titles = {name: backend.title for name, backend in backends().items()}
    for _, jobs, template, _ in (*testing.stages(list(titles)), *demo.stages(titles)):
        assert {backend for backend, _ in jobs} <= set(titles)
        assert set(re.findall(r"\bbackend=(\S+)", template)) <= {"{b}"}
        assert ("{p}" in template) == all(part for _, part in jobs)


def test_a_third_backend_is_tested_and_takes_part_in_the_demo():
    ladder, own, _, hand_over, _, _ = testing.stages(["a", "b", "c"])
    assert [backend for backend, tests in own.jobs if "'backend and not recorded" in tests] == ["a"]
    assert [backend for backend, tests in own.jobs if "not either" in tests] == ["b", "c"]
    assert {backend for backend, _ in ladder.jobs} == {backend for backend, _ in hand_over.jobs} == {"a", "b", "c"}
    compare = next(stage for stage in demo.stages({"a": "A", "b": "B", "c": "C"}) if stage.title == "compare")
    assert "traces=[{x}/trace/a,{x}/trace/b,{x}/trace/c]" in compare.template


def test_a_duration_is_written_as_hours_minutes_and_seconds():
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 36_000)] == [
        "0:00:00",
        "0:01:00",
        "0:59:59",
        "1:00:00",
        "10:00:00",
    ]


@pytest.fixture
def selection(request) -> SimpleNamespace:
    """What `tests/conftest.py` decides before a file is imported."""
    plugins = request.config.pluginmanager.get_plugins()
    (conftest,) = [one for one in plugins if getattr(one, "__file__", "") == str(ROOT / "tests" / "conftest.py")]
    return conftest


def test_the_parts_of_the_tests_are_all_of_them(tmp_path, selection):
    """Seven files, from the smallest to the largest, one of which has no test of the selection."""
    files = [tmp_path / "tests" / f"test_{i}.py" for i in range(8)]
    files[0].parent.mkdir()
    for i, file in enumerate(files):
        file.write_text("#" * i)
    files[7].write_text("pytestmark = pytest.mark.slow")

    def part(given: str | None, *named: str) -> list[int]:
        """Return the files that are imported and whose tests are kept."""
        options = {"-m": "not slow", "--part": given}
        dropped, kept = [], [SimpleNamespace(path=file) for file in files]
        config = SimpleNamespace(
            rootpath=tmp_path,
            option=SimpleNamespace(file_or_dir=list(named)),
            getoption=options.get,
            hook=SimpleNamespace(pytest_deselected=lambda items: dropped.extend(items)),
        )
        read = [file for file in files if not selection.pytest_ignore_collect(file, config)]
        selection.pytest_collection_modifyitems(config, kept)
        assert len(dropped) + len(kept) == len(files)
        assert read == (files if named else [test.path for test in kept if test.path != files[7]])
        return [files.index(test.path) for test in kept]

    assert [part(f"{i}/3") for i in (1, 2, 3)] == [part(f"{i}/3", "tests") for i in (1, 2, 3)] == [
        [0, 3, 6], [2, 5], [1, 4],
    ]  # fmt: skip
    assert part(None) == part(None, "tests") == list(range(8))  # pytest itself deselects


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("def test(): ...", {"not backend"}),
        ("@pytest.mark.backend", {"not backend", "backend", "backend and not slow"}),
        ("pytestmark = pytest.mark.backend", {"backend", "backend and not slow"}),
        ("pytestmark = [pytest.mark.backend, pytest.mark.slow]", {"backend", "backend and slow"}),
        ("pytestmark = [\n    pytest.mark.backend,\n    pytest.mark.slow,\n]", {"backend", "backend and slow"}),
        (
            "pytestmark = [\n    pytest.mark.backend,\n]\n@pytest.mark.slow",
            {"backend", "backend and not slow", "backend and slow"},
        ),
        ("pytest.param(1, marks=pytest.mark.slow)", {"not backend"}),
    ],
)  # fmt: skip
def test_a_file_is_read_where_a_test_of_it_may_be_selected(selection, text, selected):
    every = {"backend", "not backend", "backend and not slow", "backend and slow", "backend and slow and gpu"}
    assert {marks for marks in every if selection.may_select(marks, text)} == selected
    assert selection.may_select("", text)

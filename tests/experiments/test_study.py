"""Studies: the plan of a study file, and jobs that run once, resume and fail, with a stand-in for Python."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins
from made_up import HAND_OVER, write_fake_python

from diffusion_core.common.errors import DuetError
from diffusion_core.files.lock import lock_directory
from diffusion_core.runs.run_directory import exclusive_directory
from experiments import study as entry_point
from experiments.studies import figures, jobs
from experiments.studies.energy import read_counters, spent
from experiments.studies.jobs import perform
from experiments.studies.plan import Plan, make_plan, make_study, merge
from experiments.studies.results import check_reads

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

STUDY: dict[str, Any] = {
    "name": "small",
    "title": "Does it matter?",
    "seeds": [0, 1],
    "common": ["backend.threads=1"],
    **HAND_OVER,
    "metrics": {"loss": {"read": "result.objective", "scale": "ratio", "margin": 1.01}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    options = copy.deepcopy(STUDY)
    *parents, last = path.split("/")
    node = options
    for name in parents:
        node = node[name]
    node[last] = value
    return options


def plan_of(options: dict[str, Any] = STUDY) -> Plan:
    return make_plan(make_study(options))


# --- the plan -----------------------------------------------------------------------------------------------------


def test_runs_that_begin_alike_share_their_first_jobs():
    plan = plan_of()
    assert [len(wave) for wave in plan.waves] == [4, 6]  # the hand-over begins as PyTorch does
    by_arm = {(run.arm.name, run.seed): run for run in plan.runs}
    for seed in (0, 1):
        torch, handed = by_arm["PyTorch", seed], by_arm["hand-over", seed]
        assert torch.jobs[0] is not handed.jobs[0] and torch.jobs[0].identity == handed.jobs[0].identity
        assert torch.jobs[1].identity != handed.jobs[1].identity
    assert len({job.name for job in plan.jobs}) == 10


def test_the_identity_of_a_job_depends_on_its_overrides_alone():
    first = plan_of()
    renamed = changed("title", "Another title")
    renamed["factors"]["framework"] = dict(reversed(renamed["factors"]["framework"].items()))
    renamed["stages"] = {name.upper(): stage for name, stage in renamed["stages"].items()}
    renamed["factors"]["framework"]["hand-over"] = {"FIRST HALF": ["backend=torch"], "SECOND HALF": ["backend=tf"]}
    assert {j.identity for j in plan_of(renamed).jobs} == {j.identity for j in first.jobs}
    wider = plan_of(changed("seeds", [0, 1, 2]))
    assert {j.identity for j in wider.jobs} > {j.identity for j in first.jobs}
    other = plan_of(changed("common", ["backend.threads=2"]))
    assert not {j.identity for j in other.jobs} & {j.identity for j in first.jobs}


def test_later_overrides_win():
    assert merge(["a=1", "+b=2"], ["a=3", "~c"], ["b=4"]) == ("a=3", "~c", "b=4")
    options = changed("stages/first half/overrides", ["experiment=digits", "backend.threads=9", "seed=7"])
    job = plan_of(options).jobs[0]
    assert "backend.threads=1" in job.overrides and "seed=0" in job.overrides
    assert not {"backend.threads=9", "seed=7"} & set(job.overrides)


def test_each_stage_continues_the_one_before():
    options = changed("stages/samples", {"entry": "sample", "overrides": ["sample.count=20"]})
    options["stages"]["scores"] = {"entry": "evaluate", "overrides": ["frechet=digits"]}
    options["common"] = []
    run = plan_of(options).runs[0]
    first, second, drawn, scored = (job.arguments(Path("/runs")) for job in run.jobs)
    names = [job.name for job in run.jobs]
    assert f"hydra.run.dir='/runs/{names[0]}'" in first and not any(word.startswith("resume") for word in first)
    assert f"resume='/runs/{names[0]}'" in second
    assert f"checkpoint='/runs/{names[1]}'" in drawn and f"out='/runs/{names[2]}'" in drawn
    assert "sample.seed=0" in drawn and "seed=0" not in drawn
    assert f"samples='/runs/{names[2]}/samples.npz'" in scored and f"checkpoint='/runs/{names[1]}'" in scored


def test_a_baseline_of_one_factor_matches_the_settings_of_the_others():
    options = changed("factors/steps", {"10": ["sampler.steps=10"], "20": ["sampler.steps=20"]})
    pairs = {arm.name: other.name for arm, other in plan_of(options).comparisons()}
    assert pairs == {
        f"{arm}, {steps}": f"PyTorch, {steps}" for arm in ("TensorFlow", "hand-over") for steps in ("10", "20")
    }
    options["baseline"]["steps"] = "20"
    assert set(dict(make_plan(make_study(options)).comparisons()).values()) == {plan_of(options).arms[1]}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seeds", [], r"study\.seeds: nothing was given"),
        ("seeds", [1, 1], r"they must be distinct"),
        ("stages/first half/entry", "trian", r"study\.stages\.first half\.entry.*Did you mean 'train'"),
        ("stages/first half/overrides", "experiment=digits", r"must be a list of overrides"),
        ("factors/framework/hand-over", {"first haf": []}, r"Did you mean 'first half'"),
        ("factors/other", {"a": ["backend=tf"]}, r"framework and other both set backend"),
        ("factors/framework/again", ["backend=torch"], r"arms 'PyTorch' and 'again' have the same overrides"),
        ("factors/framework", {"PyTorch": ["backend=torch"]}, r"a comparison needs a second setting"),
        ("baseline", {"framework": "Torch"}, r"study\.baseline\.framework.*Did you mean 'PyTorch'"),
        ("baseline", {"frame": "PyTorch"}, r"Did you mean 'framework'"),
        ("metrics/loss/margin", 0.99, r"scale ratio it must be above 1"),
        ("metrics/loss/better", "less", r"one of higher, lower"),
        ("metrics/loss/mragin", 1.1, r"Did you mean 'margin'"),
        ("metrics/loss/read", "", r"study\.metrics\.loss\.read: nothing was given"),
        ("alpha", 0.7, r"study\.alpha: 0\.7"),
        ("looks", [5, 2], r"study\.looks: \[5, 2\].*ascending numbers of seeds"),
        ("looks", [1, 2], r"study\.looks: \[1, 2\].*at least 2"),
        ("spending", "pocok", r"study\.spending.*Did you mean 'pocock'"),
    ],
)
def test_an_invalid_study_is_refused(path, value, message):
    with pytest.raises(DuetError, match=message):
        plan_of(changed(path, value))


# --- whole studies, with a stand-in -------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Calls `experiments.study` on a small study; returns exit code and output."""
    options = copy.deepcopy(STUDY)
    del options["common"]
    # Not as an override, so that equal configurations of several tests are composed once.
    for backend in ("TORCH", "TF"):
        monkeypatch.setenv(f"DUET_{backend}_PYTHON", str(write_fake_python(tmp_path)))
    files = tmp_path / "files" / "study"
    files.mkdir(parents=True)
    (files / "halves.yaml").write_text(json.dumps(options))
    del options["stages"]["first half"], options["factors"]["framework"]["hand-over"]
    (files / "small.yaml").write_text(json.dumps(options))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "files", lambda name, draw, rows: {})  # figures are tested elsewhere

    def call(*words: str, name: str = "small") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["study", "--config-dir", "files", f"study={name}", "out=out", *words])
        try:
            entry_point.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        seen = capsys.readouterr()
        return code, seen.out + seen.err

    return call


def calls(folder: Path) -> list[str]:
    file = folder / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


def launched(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, int]]:
    """The calls of a launcher from now on: the launcher and the number of jobs."""
    noted: list[tuple[Any, int]] = []
    owner = Plugins.instance().class_name_to_class[name]  # Hydra loads plugins as its own modules
    launch = owner.launch
    monkeypatch.setattr(
        owner, "launch", lambda self, *given: noted.append((self, len(given[0]))) or launch(self, *given)
    )
    return noted


def test_a_dry_run_prints_the_table_and_writes_nothing(study, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, output = study("dry_run=true", name="halves")
    assert code == 0 and "6 runs of 10 jobs, 2 shared between arms: 10 missing" in output
    assert output.count("hand-over") == 2 and sorted(tmp_path.rglob("*")) == before


def test_completed_jobs_are_not_repeated(study, tmp_path, monkeypatch):
    assert study("study.seeds=[0]")[0] == 0
    assert len(set(calls(tmp_path))) == 2
    noted = launched(monkeypatch, "hydra_plugins.duet_launcher.local.LocalLauncher")
    assert study("hydra.launcher.workers=2")[0] == 0  # one seed more
    assert [(launcher.workers, jobs) for launcher, jobs in noted] == [(2, 2)]
    new = calls(tmp_path)[2:]
    assert len(new) == 2 and all("seed=1" in call for call in new)
    marker = next(tmp_path.glob("out/runs/*/done.json"))
    facts = json.loads(marker.read_text())
    marker.write_text(json.dumps(facts | {"identity": "of another job"}))
    assert study()[0] == 0 and len(calls(tmp_path)) == 5


def test_a_failed_job_is_reported_and_the_others_run(study, tmp_path):
    (tmp_path / "fail").write_text("0")
    words = ["~study.factors.framework.TensorFlow"]
    code, output = study(*words, name="halves")
    assert code == 1 and output.count("exit code 3: error: the loss is nan") == 1
    done = [json.loads(path.read_text())["command"] for path in tmp_path.glob("out/runs/*/done.json")]
    assert len(done) == 3 and all("seed=1" in command for command in done)
    assert len(calls(tmp_path)) == 4  # no second half was started after a first half that failed
    (tmp_path / "fail").unlink()
    assert study(*words, name="halves")[0] == 0 and len(calls(tmp_path)) == 7


def test_an_interrupted_training_resumes_from_its_checkpoint(study, tmp_path):
    (tmp_path / "cut").touch()
    assert study("study.seeds=[0]")[0] == 1
    (tmp_path / "cut").unlink()
    assert study("study.seeds=[0]")[0] == 0
    assert sum("resume=latest" in call for call in calls(tmp_path)) == 2 and len(calls(tmp_path)) == 4
    assert all(json.loads(path.read_text())["resumed"] for path in tmp_path.glob("out/runs/*/done.json"))


def test_a_job_that_another_process_runs_is_not_touched(tmp_path, monkeypatch):
    job, runs = plan_of().jobs[0], tmp_path / "runs"
    (runs / job.name).mkdir(parents=True)
    monkeypatch.setattr(jobs, "job_command", lambda job, runs: pytest.fail("it was about to start"))
    with lock_directory(runs, f".{job.name}.lock"), pytest.raises(DuetError, match="in use by process"):
        perform(job, runs)
    # A training that outlived its study keeps its directory.
    monkeypatch.setattr(jobs, "job_command", lambda job, runs: [])
    (runs / job.name / "metrics.jsonl").write_text("precious")
    with exclusive_directory(runs / job.name), pytest.raises(DuetError, match="in use by process"):
        perform(job, runs)
    assert (runs / job.name / "metrics.jsonl").read_text() == "precious"


def test_one_job_can_be_run_by_its_name(study, tmp_path):
    output = study("dry_run=true", "study.seeds=[0]", name="halves")[1]
    first, second = (next(w for w in output.split() if w.startswith(half)) for half in ("first-", "second-"))
    code, output = study(f"job={first}x", name="halves")
    assert code == 2 and f"Did you mean '{first}'" in output
    code, output = study(f"job={second}", name="halves")
    assert code == 2 and "which is not done; run that job first" in output
    assert study(f"job={first}", name="halves")[0] == 0 and len(calls(tmp_path)) == 1
    assert study(f"job={second}", name="halves")[0] == 0 and len(calls(tmp_path)) == 2


def test_hydras_own_launcher_works_too(study, tmp_path, monkeypatch):
    noted = launched(monkeypatch, "hydra._internal.core_plugins.basic_launcher.BasicLauncher")
    assert study("hydra/launcher=basic", "study.seeds=[0]")[0] == 0 and len(calls(tmp_path)) == 2
    assert [jobs for _, jobs in noted] == [2]


def test_an_invalid_setting_is_refused_before_any_job_runs(study, tmp_path):
    code, output = study("study.common=['trainer.imags=1']")
    assert code == 2 and "second half" in output and "imags" in output and not calls(tmp_path)
    assert not (tmp_path / "out").exists()


# --- shipped studies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml")))
def test_every_shipped_study_has_a_plan_that_composes(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["study", f"study={name}", "study.seeds=[0]", "dry_run=true"]
    monkeypatch.setattr(sys, "argv", words)
    entry_point.main()
    assert "missing" in capsys.readouterr().out
    file = (CONFIGS / "study" / f"{name}.yaml").read_text()
    assert file.startswith(f"# python3 -m duet study study={name}\n")


def test_the_documentation_lists_every_study_and_its_example_is_valid():
    page = (CONFIGS.parent / "docs" / "studies.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml"))
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL).group(1))
    study = make_study(example)
    check_reads(study)
    assert [len(wave) for wave in make_plan(study).waves] == [10, 20]


# --- energy -------------------------------------------------------------------------------------------------------


def test_energy_is_the_difference_of_counters_that_wrap_around(tmp_path):
    for zone, joules in (("intel-rapl:0", 90), ("intel-rapl:0:0", 7), ("intel-rapl:1", 5)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{joules}000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("100000000\n")
    before = {name: value for name, value in read_counters(tmp_path).items() if "rapl" in name}
    assert before == {"intel-rapl:0": (90.0, 100.0), "intel-rapl:1": (5.0, 100.0)}
    after = {"intel-rapl:0": (10.0, 100.0), "intel-rapl:1": (6.5, 100.0)}
    assert spent(before, after) == pytest.approx(20 + 1.5)
    assert spent({}, after) is None and spent(before, {}) is None

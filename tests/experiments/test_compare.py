"""`experiments.compare` on runs that were made up (`made_up.py`): PyTorch and TensorFlow differ by a millionth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import call
from made_up import losses, write_training

from diffusion_core.parity.compare import PRECISIONS, compare_records
from diffusion_core.parity.ladder import check
from experiments.comparison import build
from experiments.comparison.build import different_draws
from experiments.config.backends import BackendInfo, read_backends

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Runs of two backends and a second one of the first, all of seed 0."""
    found = {"torch": tmp_path / "one", "tf": tmp_path / "two", "again": tmp_path / "three"}
    for name, path in found.items():
        write_training(path, 0, "tf" if name == "tf" else "torch")
    return found


def compare(tmp_path: Path, *runs: Path, code: int = 0) -> tuple[str, dict[str, Any]]:
    """Output of the command and its report."""
    words = ",".join(map(str, runs))
    called = call("compare", f"runs=[{words}]", f"out={tmp_path / 'report'}")
    assert called.code == code, called.err
    return called.out, json.loads((tmp_path / "report/report.json").read_text())


def test_two_runs_are_checked_against_each_other(runs: dict[str, Path], tmp_path: Path) -> None:
    out, report = compare(tmp_path, runs["torch"], runs["tf"])
    checks = [check for rung in report["rungs"] for check in rung["checks"]]
    assert [check["backend"] for check in checks] == [
        "torch–tf"
    ] and "1 of 1 check passed (rung 7; rungs 0 to 6 and 8 were not run)" in out
    assert "PyTorch and TensorFlow agree" in out and report["verdict"]["subject"] == "PyTorch and TensorFlow"
    a, b = (np.array(losses(0, backend)) for backend in ("torch", "tf"))
    assert report["loss"]["relative_difference"] == pytest.approx((np.abs(a - b) / a).tolist())
    assert checks[0]["error"] == pytest.approx(max(report["loss"]["relative_difference"]))
    assert [tile["value"] for tile in report["headlines"] if "pixels" in tile["label"]] == ["1 of 1,280"]
    assert [backend["name"] for backend in report["backends"]] == ["torch", "tf"]


def test_every_pair_of_three_runs_is_checked(runs: dict[str, Path], tmp_path: Path) -> None:
    _, report = compare(tmp_path, *runs.values())
    assert [run["label"] for run in report["runs"]] == ["PyTorch a", "TensorFlow", "PyTorch b"]
    checks = [check for rung in report["rungs"] for check in rung["checks"]]
    pairs = ["torch a–tf", "torch a–torch b", "tf–torch b"]
    assert [check["backend"] for check in checks if check["rung"] == 7] == pairs
    # Both runs of PyTorch hold the same weights, so their samples must be equal.
    assert [(c["backend"], c["error"]) for c in checks if c["rung"] == 6] == [("torch a–torch b", 0.0)]
    page = (tmp_path / "report/report.html").read_text()
    assert all(label in page for label in ("PyTorch a", "PyTorch b")) and page.count('class="cost-row"') == 4
    assert set(report["loss"]["runs"]) == {"torch a", "tf", "torch b"}


def test_a_run_with_different_losses_fails_the_comparison_and_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    file = runs["again"] / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["loss"] *= 1.01
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, report = compare(tmp_path, *runs.values(), code=1)
    failed = {c["backend"] for rung in report["rungs"] for c in rung["checks"] if not c["passed"]}
    assert failed == {"torch a–torch b", "tf–torch b"} and "DO NOT agree" in out
    assert report["loss"]["relative_difference"][3] == pytest.approx(0.01, rel=1e-3)


def validated(run: Path, *losses: float, part: str = "held_out") -> None:
    """Give a made-up run validation losses at its last steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line, loss in zip(lines[-len(losses) :], losses, strict=True):
        line |= {"validation_loss": loss, "validation_loss_ema": 2 * loss}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"validation": {"part": part}}))


def validation_checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for rung in report["rungs"] for c in rung["checks"] if "validation loss" in c["name"]]


def test_validation_losses_are_held_to_the_tolerance_of_the_loss(runs: dict[str, Path], tmp_path: Path) -> None:
    validated(runs["torch"], 0.5, 0.25)
    validated(runs["tf"], 0.5, 0.25 * (1 + 1e-6))
    validated(runs["again"], 0.5, 0.25 * (1 + 1e-3))
    _, report = compare(tmp_path, *runs.values(), code=1)
    assert report["validation"]["images_seen"] == [64 * 39, 64 * 40]
    assert report["validation"]["relative_difference"] == pytest.approx([0.0, 1e-3], rel=1e-3)
    assert 'id="validation"' in (tmp_path / "report/report.html").read_text()
    checks = {c["backend"]: c for c in validation_checks(report)}
    assert [c["passed"] for c in checks.values()] == [True, False, False] and len(checks) == 3
    assert checks["torch a–tf"]["error"] == pytest.approx(1e-6, rel=1e-3) and checks["torch a–tf"]["rung"] == 7


def test_runs_that_were_validated_on_other_images_or_at_other_moments(runs: dict[str, Path], tmp_path: Path) -> None:
    validated(runs["torch"], 0.5, 0.25)
    validated(runs["tf"], 0.25)  # a moment that one run does not have fails
    validated(runs["again"], 0.5, 0.25, part="test")  # other images are not compared
    _, report = compare(tmp_path, *runs.values(), code=1)
    assert [(c["backend"], c["passed"]) for c in validation_checks(report)] == [("torch a–tf", False)]
    assert "validation" not in report


@pytest.mark.parametrize("facts, reason", [
    ({"seed": 4}, "the noise differs: seeds 0 and 4"), ({"plan": "ddim-9"}, "the sampler differs: ddim and ddim-9"),
    ({"plan_sums": {"guidance_scale": 2.0}}, "the sampler differs: ddim with other guidance_scale"),
    ({"plan_sums": {"guidance_scale": 1.0 + 1e-12}}, ""), ({}, ""),
])  # fmt: skip
def test_samples_of_other_noise_or_another_sampler_are_told_apart(facts: dict[str, Any], reason: str) -> None:
    drawn = {"seed": 0, "plan": "ddim", "plan_sums": {"guidance_scale": 1.0}}
    assert different_draws(drawn, drawn | facts) == reason
    assert not different_draws({"seed": 0, "plan": "ddim"}, drawn)  # as earlier versions wrote them


def test_pixels_of_other_noise_are_not_checked(runs: dict[str, Path], tmp_path: Path) -> None:
    file = runs["again"] / "samples/samples.npz"
    with np.load(file) as kept:
        arrays = dict(kept)
    arrays["facts"] = np.array(json.dumps(json.loads(str(arrays["facts"])) | {"seed": 4}))
    np.savez(file, **arrays)
    _, report = compare(tmp_path, runs["torch"], runs["again"])
    assert [check["rung"] for rung in report["rungs"] for check in rung["checks"]] == [7]
    said = [tile["note"] for tile in report["headlines"] if tile["value"] == "not run"]
    assert said == ["the noise differs: seeds 0 and 4"]


def test_runs_of_different_experiments_are_not_checked(runs: dict[str, Path], tmp_path: Path) -> None:
    write_training(runs["tf"], 1, "tf")
    out, report = compare(tmp_path, runs["torch"], runs["tf"])
    reason = "runs differ in seed (0, 1). The tables below describe them; they test nothing."
    assert f"No verdict: the {reason}" in out and report["verdict"]["sentence"] == f"The {reason}"
    assert report["verdict"]["agree"] is None and "loss" not in report
    page = (tmp_path / "report/report.html").read_text()
    assert "not run" not in page and "of 0" not in page and not any("ladder" in t["label"] for t in report["headlines"])


def test_runs_of_one_backend_are_called_runs_not_frameworks(runs: dict[str, Path], tmp_path: Path) -> None:
    out, report = compare(tmp_path, runs["torch"], runs["again"])
    page = (tmp_path / "report/report.html").read_text()
    assert report["title"] == "Comparison of 2 runs"
    assert "2 runs of PyTorch agree" in out and "2 runs of PyTorch agree" in page
    assert [sample["title"] for sample in report["samples"]] == ["each run's own checkpoint, the same noise"]
    assert "run against run" in page and "the other run" in page and "against the other framework" not in page
    assert 'class="bar s' not in page and 'class="bar pair"' in page


@pytest.mark.parametrize("key", ["runs", "traces", "evaluations"])
def test_nothing_is_compared_with_itself(key: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """Not under the same name, another name of the directory, nor as a copy."""
    link, copy = tmp_path / "link", shutil.copytree(runs["tf"], tmp_path / "copy")
    link.symlink_to(runs["tf"])
    same, copied = "the same directory as", "a copy of"
    for other, relation in ((runs["tf"], same), (link, same), (copy, copied)):
        called = call("compare", f"{key}=[{runs['tf']},{other}]", f"out={tmp_path / 'report'}")
        assert called.code == 2 and f"{key}: {other} is {relation} {runs['tf']}" in called.err
    assert not (tmp_path / "report" / "report.html").exists()


def test_every_backend_has_a_title_and_two_colours() -> None:
    backends = read_backends()
    assert sorted(backends) == sorted(path.stem for path in (CONFIGS / "backend").glob("*.yaml"))
    for name, backend in backends.items():
        options = yaml.safe_load((CONFIGS / "backend" / f"{name}.yaml").read_text())
        assert backend == BackendInfo(name, options["title"], options["colour"])
        assert set(backend.colour) == {"light", "dark"}
    assert BackendInfo.from_options({"name": "jax"}).title == "jax"


def test_each_hand_over_of_three_records_is_compared_with_the_state_that_was_taken_over(tmp_path: Path) -> None:
    names, source = ("a", "b", "c"), {"a": "c", "b": "a", "c": "b"}
    states = {name: np.full(3, k + 1.0) for k, name in enumerate(names)}
    for name in names:
        for precision in PRECISIONS:
            (tmp_path / name / "handover").mkdir(parents=True, exist_ok=True)
            np.savez(tmp_path / name / f"{precision}.npz", **{"8/handed over/w": states[name]})
            taken = {"8/taken over/w": states[source[name]]}
            np.savez(tmp_path / name / "handover" / f"{precision}.npz", **taken)
    checks = compare_records([tmp_path / name for name in names], names)
    taken_over = [(c.backend, c.error) for c in checks if c.name == "state taken over" and c.precision == "float64"]
    assert taken_over == [("b–c", 0.0), ("a–b", 0.0), ("c–a", 0.0)]
    pairs = {c.backend for c in checks if c.rung == 0}
    assert pairs == {"a–b", "a–c", "b–c"}
    np.savez(tmp_path / "b/handover/float64.npz", **{"8/taken over/w": states["a"] + 1e-9})
    checks = compare_records([tmp_path / name for name in names], names)
    assert [c.passed for c in checks if c.name == "state taken over"][:3] == [True, False, True]


def test_the_tally_of_checks_has_thousands_separators(monkeypatch) -> None:
    checks = [check(0, f"table {i}", "float64", "this", "bits", 0.0) for i in range(1262)]
    monkeypatch.setattr(build, "_trace_checks", lambda paths: checks)
    assert build.compare().report["headlines"][0]["value"] == "1,262 of 1,262"

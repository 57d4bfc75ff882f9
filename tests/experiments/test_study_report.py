"""The report of a study: its numbers are those of its runs, it is self-contained, and its controls work.

The runs are made up (`made_up.py`): PyTorch and TensorFlow differ by a millionth of the loss and in one pixel.
"""

from __future__ import annotations

import base64
import copy
import csv
import html
import io
import itertools
import json
import math
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up import HAND_OVER, losses, make_up
from scipy import stats

from diffusion_core.common.errors import DuetError
from experiments.report.study import render
from experiments.studies import figures
from experiments.studies.figures import files as drawn
from experiments.studies.plan import Plan, make_plan, make_study
from experiments.studies.report import build, report
from experiments.studies.results import check_reads, digits_floor, outcomes

SEEDS = [0, 1, 2, 3]
STUDY: dict[str, Any] = {
    "name": "small",
    "title": "Does <it> matter?",
    "question": "One percent of the loss would not.",
    "seeds": SEEDS,
    **HAND_OVER,
    "metrics": {
        "loss": {"title": "loss at the end", "read": "result.objective", "scale": "ratio", "margin": 1.01},
        "agreement": {"read": "digits.agreement", "better": "higher", "margin": 0.02},
        "speed": {"read": "cost.images_per_second", "better": "higher", "scale": "ratio", "margin": 1.05},
        "parameters": {"read": "result.sampled"},
    },
}


def made(folder: Path, options: dict[str, Any] = STUDY, failing: Any = lambda job: False) -> tuple[Plan, Path]:
    plan = make_plan(make_study(options))
    make_up(plan, folder / "runs", failing)
    return plan, folder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, dict[str, Any], str]:
    """The folder of a study, its report.json and its page."""
    plan, folder = made(tmp_path_factory.mktemp("study"))
    page, _ = report(plan, outcomes(plan, folder / "runs"), folder)
    return folder, json.loads((folder / "report.json").read_text()), page.read_text()


def comparison(content: dict[str, Any], metric: str, arm: str = "TensorFlow") -> dict[str, Any]:
    finding = next(f for f in content["findings"] if f["name"] == metric)
    return next(c for c in finding["comparisons"] if c["arm"] == arm)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_a_comparison_is_the_paired_test_of_the_runs(study):
    ends = {b: np.array([np.mean(losses(seed, b)[-10:]) for seed in SEEDS]) for b in ("torch", "tf")}
    expected = stats.ttest_1samp(np.log(ends["tf"] / ends["torch"]), 0)
    found = comparison(study[1], "loss")
    assert found["differences"] == pytest.approx(np.log(ends["tf"] / ends["torch"]), abs=1e-15)
    assert found["mean"] / (found["std"] / 2) == pytest.approx(expected.statistic, rel=1e-6)  # of tiny differences
    assert found["interval"] == pytest.approx(expected.confidence_interval(0.95), rel=1e-6)
    assert found["p"] == pytest.approx(min(1.0, 2 * expected.pvalue), rel=1e-6)  # Holm, of two equal ones
    assert found["margin"] == math.log(1.01) and found["answer"] == "equivalent"
    assert abs(found["excluded"]) < 1e-5


def test_the_answers(study):
    content = study[1]
    assert comparison(content, "agreement")["identical"] and comparison(content, "agreement")["answer"] == "identical"
    speed = comparison(content, "speed")
    assert speed["answer"] == "different" and speed["mean"] == pytest.approx(math.log(211.5 / 301.5), rel=1e-3)
    assert comparison(content, "parameters")["answer"] == "identical"
    assert content["verdict"]["counts"] == {
        "equivalent": 2, "within margin": 0, "identical": 4, "different": 2, "constant": 0, "undecided": 0,
        "incomplete": 0, "no pairs": 0,
    }  # fmt: skip
    assert content["verdict"]["claim"] == "The arms differ in speed"


def without(*metrics: str, **changed: Any) -> dict[str, Any]:
    options = copy.deepcopy(STUDY) | changed
    for name in metrics:
        del options["metrics"][name]
    return options


def test_the_claim_of_equivalence_needs_every_comparison_within_its_margin(tmp_path):
    options = without("speed", "parameters", seeds=SEEDS[:2])
    plan, folder = made(tmp_path, options)
    runs = outcomes(plan, folder / "runs")
    assert build(plan, runs)[0]["verdict"]["claim"] == "The arms are equivalent within the stated margins"
    del options["metrics"]["loss"]
    plan = make_plan(make_study(options))
    claim = build(plan, outcomes(plan, folder / "runs"))[0]["verdict"]["claim"]
    assert claim == "The arms give identical results in 2 of 2 pairs"
    options["metrics"]["loss"] = STUDY["metrics"]["loss"] | {"margin": 1 + 1e-8}
    plan = make_plan(make_study(options))
    content = build(plan, outcomes(plan, folder / "runs"))[0]
    assert content["verdict"]["claim"] == "The study leaves its question open"
    text = next(line["text"] for line in content["excludes"] if line["metric"] == "loss at the end")
    assert "equivalence is not shown" in text and "seeds would show it" in text


def test_a_metric_without_a_margin_takes_no_part_in_the_claim(study):
    options = without("parameters")
    options["metrics"]["speed"].pop("margin")
    plan = make_plan(make_study(options))
    verdict = build(plan, outcomes(plan, study[0] / "runs"))[0]["verdict"]
    assert verdict["claim"] == "The arms are equivalent within the stated margins" and verdict["style"] == "agree"
    assert "a difference is shown in speed (paired t tests, adjusted by Holm over the study)" in verdict["sentence"]


def test_the_sentence_states_extremes_and_margins_without_p_values(study):
    plan = make_plan(make_study(without("speed", "parameters")))
    content = build(plan, outcomes(plan, study[0] / "runs"))[0]
    sentence = content["verdict"]["sentence"]
    largest = max(abs(d) for c in content["findings"][0]["comparisons"] for d in c["differences"])
    assert re.fullmatch(
        r"In four paired runs with shared streams the largest difference was (\S+) % of loss at the end; agreement was "
        r"identical in all four \(at level 0\.05 up to 53 % of seeds could still differ\); every margin is met by both "
        r"one-sided tests \(n = 4, alpha 0\.05\)\. Of 4 comparisons over 4 pairs of runs: .*", sentence,
    )  # fmt: skip
    assert float(sentence.split(" % of")[0].split()[-1]) == pytest.approx(100 * math.expm1(largest), rel=0.05)
    assert "p <" not in sentence and "any difference is excluded" not in json.dumps(content)


def test_a_failed_run_is_reported_and_nothing_is_claimed(tmp_path):
    plan, folder = made(tmp_path, failing=lambda job: job.seed == 1 and "backend=tf" in job.overrides)
    content, images, _ = build(plan, outcomes(plan, folder / "runs"))
    assert content["verdict"]["broken"] == 2 and content["verdict"]["style"] == "differ"
    assert content["verdict"]["claim"] == "No claim: 2 of 12 planned runs have no result"
    found = comparison(content, "loss")
    assert found["seeds"] == [0, 2, 3] and found["missing"] == 1 and found["answer"] == "incomplete"
    assert found["p"] is found["tost_p"] is found["excluded"] is None and found["interval"][0] is not None
    page = render(content, images, {})
    assert page.count("the loss is nan</span>") == 2 and "2 of 12 runs have no result" in page


def test_runs_that_end_in_nan_are_counted_as_an_outcome(tmp_path):
    """Three of four TensorFlow runs finish with a loss that is not finite: the page is not green, and says so."""
    plan, folder = made(tmp_path, without("speed", "parameters", "agreement"))
    for run in plan.runs:
        if run.arm.name == "TensorFlow" and run.seed > 0:
            file = folder / "runs" / run.jobs[-1].name / "result.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"objective": None}))
    content, images, _ = build(plan, outcomes(plan, folder / "runs"))
    assert content["verdict"]["style"] == "differ" and content["verdict"]["claim"].startswith("No claim: 3 of 12")
    assert comparison(content, "loss")["answer"] == "incomplete" and comparison(content, "loss")["missing"] == 3
    ending = next(one for one in content["endings"] if one["arm"] == "TensorFlow")
    assert ending["counts"] == {"finished": 1, "diverged": 3, "failed": 0, "unfinished": 0}
    assert ending["only_arm"] == 3 and ending["p"] == 2 / 8
    expected = stats.binomtest(3, 4).proportion_ci(0.95, "exact")
    assert ending["diverged"] == pytest.approx([expected.low, expected.high])
    sentence = "TensorFlow: of 4 planned runs 1 finished, 3 diverged (diverging: 19 to 99 % of seeds"
    assert any(remark.startswith(sentence) for remark in content["remarks"])
    assert "its loss is not finite" in render(content, images, {}) and "of 4 planned runs" in render(
        content, images, {}
    )


def test_the_curve_of_an_arm_ends_where_a_run_diverges(tmp_path):
    plan, folder = made(tmp_path, without("speed", "parameters", "agreement"))
    job = next(run for run in plan.runs if run.arm.name == "TensorFlow" and run.seed == 2).jobs[-1]
    file = folder / "runs" / job.name / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["loss"] = None  # a skipped update
    for line in lines[10:]:
        line["loss"] = None
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    content, images, drawings = build(plan, outcomes(plan, folder / "runs"))
    series = content["curves"]["series"]
    assert series["TensorFlow"]["x"][-1] == 64 * 30 and series["PyTorch"]["x"][-1] == 64 * 40
    assert np.isfinite(series["TensorFlow"]["mean"] + series["TensorFlow"]["low"]).all()
    assert "TensorFlow" in render(content, images, {}) and drawings["curves"][0]()


def test_p_values_are_adjusted_over_all_metrics_of_the_study(study):
    both = build(make_plan(make_study(STUDY)), outcomes(make_plan(make_study(STUDY)), study[0] / "runs"))[0]
    plan = make_plan(make_study(without("speed")))
    one = build(plan, outcomes(plan, study[0] / "runs"))[0]
    alone, together = comparison(one, "loss")["p"], comparison(both, "loss")["p"]
    assert together == pytest.approx(alone)  # the two of speed are rejected first
    speed = comparison(both, "speed")["p"]
    raw = stats.ttest_1samp(comparison(both, "speed")["differences"], 0).pvalue
    assert speed / raw > 2.9  # of four tests in all


# --- looks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(figures, "files", lambda name, draw, rows: {})


def looked_at(folder: Path, count: int, **options: Any) -> dict[str, Any]:
    plan, _ = made(folder, without("speed", "parameters", "agreement", seeds=SEEDS[:count], **options))
    return report(plan, outcomes(plan, folder / "runs"), folder)[1]


def test_a_planned_look_spends_a_part_of_the_level(tmp_path, undrawn):
    first = looked_at(tmp_path, 2, looks=[2, 4])
    assert 0.02 < first["look"]["equivalence"] < 0.05 and "Look 1, at 2 of at most 4 seeds" in first["remarks"][0]
    again = looked_at(tmp_path, 2, looks=[2, 4])
    assert again["look"] == first["look"]
    turned = make_plan(make_study(without("speed", "parameters", "agreement", seeds=SEEDS[1::-1], looks=[2, 4])))
    assert report(turned, outcomes(turned, tmp_path / "runs"), tmp_path)[1]["look"] == first["look"]
    with pytest.raises(DuetError, match=r"study\.alpha: 0\.1 was given, but the first look had 0\.05"):
        looked_at(tmp_path, 2, looks=[2, 4], alpha=0.1)
    last = looked_at(tmp_path, 4, looks=[2, 4])
    assert last["look"]["counts"] == [2, 4] and 0.02 < last["look"]["equivalence"] < 0.05
    assert last["verdict"]["claim"] == "The arms are equivalent within the stated margins"
    looks = json.loads((tmp_path / "looks.json").read_text())
    assert [one["seeds"] for one in looks["looks"]] == [[0, 1], [0, 1, 2, 3]] and looks["planned"] == 4
    with pytest.raises(DuetError, match=r"study\.looks: \[2, 6\].*the first look planned up to 4 seeds"):
        looked_at(tmp_path, 4, looks=[2, 6])


@pytest.mark.parametrize("recorded", [True, False])
def test_seeds_added_without_a_plan_allow_no_claim(tmp_path, recorded, undrawn):
    first = looked_at(tmp_path, 2)
    assert first["look"]["equivalence"] == 0.05 and first["remarks"] == []
    if not recorded:  # a study of an earlier version has its report alone
        (tmp_path / "looks.json").unlink()
    more = looked_at(tmp_path, 3)
    assert more["verdict"]["claim"] == "No claim: this look was not planned" and more["verdict"]["style"] == "unknown"
    assert "there were looks at 2, and 2 seeds were planned" in more["remarks"][0]
    assert comparison(more, "loss")["answer"] == "undecided" and comparison(more, "loss")["tost_p"] is None


def test_a_margin_that_was_changed_after_the_first_look_is_named(tmp_path, undrawn):
    looked_at(tmp_path, 2)
    plan = make_plan(make_study(without("speed", "parameters", "agreement", seeds=SEEDS[:2])
        | {"metrics": {"loss": STUDY["metrics"]["loss"] | {"margin": 1.5}}}))  # fmt: skip
    content = report(plan, outcomes(plan, tmp_path / "runs"), tmp_path)[1]
    assert "The margin of loss at the end was 1.01 at the first look and is now 1.5" in content["remarks"][0]


def test_one_seed_gives_no_standard_deviation(tmp_path):
    plan, folder = made(tmp_path, STUDY | {"seeds": [0]})
    content, images, _ = build(plan, outcomes(plan, folder / "runs"))
    found = comparison(content, "loss")
    assert found["interval"] == [None, None] and found["tost_p"] is None and found["answer"] == "undecided"
    assert "nothing is excluded" in render(content, images, {})


def test_a_study_without_runs_has_a_report(tmp_path):
    plan = make_plan(make_study(STUDY))
    content, images, _ = build(plan, outcomes(plan, tmp_path / "runs"))
    assert content["verdict"]["counts"]["no pairs"] == 8 and "no pairs" in render(content, images, {})


def test_curves_join_the_stages_and_average_over_seeds(study):
    series = study[1]["curves"]["series"]
    expected = np.mean([losses(seed, "torch") for seed in SEEDS], axis=0)
    assert series["PyTorch"]["mean"] == pytest.approx(expected) and series["PyTorch"]["x"][-1] == 2560
    handed = np.mean([losses(s, "torch")[:20] + losses(s, "tf")[20:] for s in SEEDS], axis=0)
    assert series["hand-over"]["mean"] == pytest.approx(handed, rel=1e-12)
    assert np.all(np.array(series["PyTorch"]["low"]) < expected)


def test_cost_sums_all_stages_and_energy_is_not_estimated(study):
    cells = {row["arm"]: row["cells"] for row in study[1]["cost"]["rows"]}
    assert cells["PyTorch"]["seconds"]["mean"] == pytest.approx(2 * 41.5)
    assert cells["hand-over"]["images_per_second"]["mean"] == pytest.approx((301.5 + 211.5) / 2)
    assert all(row["joules"] is None for row in cells.values()) and study[2].count("not reported</span>") == 3


def test_a_metric_with_an_unknown_source_is_refused_before_any_run():
    for read, message in (
        ("results.objective", "Did you mean 'result'"),
        ("cost.memory", "it must be one of images_per"),
    ):
        with pytest.raises(DuetError, match=message):
            check_reads(make_study(STUDY | {"metrics": {"x": {"read": read}}}))


def test_distances_of_different_numbers_of_samples_are_not_compared(tmp_path):
    options = without("speed", "parameters", "loss", "agreement")
    options["metrics"]["distance"] = {"read": "digits.frechet"}
    plan, folder = made(tmp_path, options)
    remark = build(plan, outcomes(plan, folder / "runs"))[0]["remarks"][-1]
    assert remark.startswith(
        f"distance of 20 digits drawn from the training digits themselves: {digits_floor(20):.2f}."
    )
    assert 0.8 < digits_floor(500) < 0.9  # 0.84
    job = plan.runs[-1].jobs[-1]
    file = folder / "runs" / job.name / "samples" / "samples.npz"
    with np.load(file) as found:
        arrays = dict(found)
    np.savez(file, **arrays | {name: arrays[name][:12] for name in ("images", "labels")})
    with pytest.raises(DuetError, match=r"20 in .*12 in 'hand-over'.*sample\.count"):
        build(plan, outcomes(plan, folder / "runs"))


@pytest.mark.parametrize(("key", "meant"), [("objectve", ".*Did you mean 'objective'"), ("validation_lsos", "")])
def test_a_missing_key_of_a_file_is_named(study, key, meant):
    plan = make_plan(make_study(STUDY | {"metrics": {"x": {"read": f"result.{key}"}}}))
    with pytest.raises(DuetError, match=rf"result\.json: key: '{key}'{meant}"):
        build(plan, outcomes(plan, study[0] / "runs"))


# --- the page and its files ---------------------------------------------------------------------------------------


def test_the_page_links_to_nothing_but_its_runs(study):
    links = re.findall(r'(?:href|src)="([^"]*)"', study[2])
    outside = [link for link in links if not link.startswith(("#", "data:", "runs/"))]
    assert outside == [] and sum(link.startswith("runs/") for link in links) == 24
    assert all((study[0] / link).is_dir() for link in links if link.startswith("runs/"))
    assert "Does &lt;it&gt; matter?" in study[2] and "<it>" not in study[2]


def test_every_figure_can_be_downloaded_as_data_and_as_an_image(study):
    folder, content, page = study
    held = dict(re.findall(r'download="([^"]+)" href="data:[^;"]+(?:;charset=utf-8)?;base64,([^"]+)"', page))
    names = {name for f in content["findings"] for name in f["figures"]} | {"curves", "cost"}
    kinds = ("csv", "json", "svg", "png")
    assert set(held) == {f"{name}.{kind}" for name in names for kind in kinds} | {"appendix.txt"}
    for name, kind in itertools.product(names, kinds):
        data = base64.b64decode(held[f"{name}.{kind}"])
        assert data == (folder / "figures" / f"{name}.{kind}").read_bytes()
        if kind == "svg":
            assert ElementTree.fromstring(data).tag.endswith("svg")
        elif kind == "png":
            assert data.startswith(b"\x89PNG")
        else:
            rows = json.loads(data) if kind == "json" else list(csv.DictReader(io.StringIO(data.decode())))
            assert len(rows) == len(json.loads((folder / "figures" / f"{name}.json").read_bytes())) > 0
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(held["differences-loss.csv"]).decode())))
    assert float(rows[0]["mean"]) == comparison(content, "loss")["mean"]
    assert base64.b64decode(held["appendix.txt"]).decode() == content["appendix"]


def test_the_same_runs_give_the_same_files(study):
    plan = make_plan(make_study(STUDY))
    _, _, drawings = build(plan, outcomes(plan, study[0] / "runs"))
    for name in ("curves", "differences-loss"):
        files = drawn(name, *drawings[name])
        assert {file: (study[0] / "figures" / file).read_bytes() for file in files} == files


def test_the_appendix_states_how_the_numbers_were_made(study):
    text = study[1]["appendix"]
    for part in (
        "Seeds: 0, 1, 2, 3", "Baseline: framework = PyTorch", "\n  cpu, float32, a processor, 2 cores",
        "TensorFlow 2.21.0", "PyTorch 2.14.1", "margin 1.01", "sha256 000", "Energy: not reported", "commit abc1234",
        "hand-over: first half: backend=torch; second half: backend=tf",
    ):  # fmt: skip
        assert part in text, part
    assert text.count("  python3 -m duet train") == 4 * 5  # each shared job once


# --- its controls -------------------------------------------------------------------------------------------------

OPERATE = """
const found = {};
const text = (id) => document.getElementById(id).textContent;
const pixels = (id) => {
  const canvas = document.getElementById(id);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return [canvas.width, canvas.height, ...data.filter((_, i) => i % 4 === 0)];
};
const turn = (id, value) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
};
found.errors = window.errors;
turn("walk-step", "0");
found.first = [text("walk-text"), text("walk-a-name"), pixels("walk-a")];
turn("walk-step", "9");
found.last = [text("walk-text"), text("walk-b-name"), pixels("walk-a"), pixels("walk-b"), pixels("walk-d")];
turn("walk-right", "0");
found.same = [text("walk-text"), Math.max(...pixels("walk-d").slice(2))];
turn("walk-what", "estimate");
found.estimate = pixels("walk-a");

const table = document.querySelector("#runs table");
const column = (k) => [...table.tBodies[0].rows].map((row) => row.cells[k].textContent);
const button = (k) => table.tHead.rows[0].cells[k].querySelector("button");
button(2).click();
found.up = [column(2), table.tHead.rows[0].cells[2].getAttribute("aria-sort")];
button(2).click();
found.down = [column(2), table.tHead.rows[0].cells[2].getAttribute("aria-sort")];
button(0).click();
found.arms = [column(0), table.tHead.rows[0].cells[2].getAttribute("aria-sort")];

const paper = () => getComputedStyle(document.body).backgroundColor;
found.theme = [paper()];
document.getElementById("theme").click();
found.theme.push(paper());
document.getElementById("theme").click();
found.theme.push(paper());

const figure = document.querySelector(".figure.loss");
const box = figure.querySelector("svg").getBoundingClientRect();
const at = (x) => new PointerEvent("pointermove", { clientX: x, clientY: box.top + 5, bubbles: true });
figure.dispatchEvent(at(box.left + box.width / 2));
found.hover = [figure.querySelector(".readout").textContent, figure.querySelector(".readout").hidden];
figure.dispatchEvent(new PointerEvent("pointerleave"));
found.left = figure.querySelector(".readout").hidden;
found.width = [document.documentElement.scrollWidth, innerWidth];
document.documentElement.dataset.found = JSON.stringify(found);
"""
LISTEN = "window.errors = []; addEventListener('error', (event) => window.errors.push(event.message));"


def operated(page: str, folder: Path, size: str = "1440,900") -> dict[str, Any]:
    """The findings of a script that operates a copy of the page in a headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.fail("no Chromium is on PATH; install one, or skip these tests with -m 'not browser'")
    for script in (LISTEN, OPERATE):
        policy = base64.b64encode(sha256(script.encode()).digest()).decode()
        page = page.replace("script-src 'sha256-", f"script-src 'sha256-{policy}' 'sha256-", 1)
    page = page.replace("</head>", f"<script>{LISTEN}</script></head>").replace(
        "</body>", f"<script>{OPERATE}</script></body>"
    )
    (folder / "operated.html").write_text(page)
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size}", "--dump-dom", f"file://{folder / 'operated.html'}",
    ]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r'<html[^>]* data-found="([^"]*)"', dumped.stdout)
    assert found, f"the page could not be operated: {dumped.stderr[-2000:]} {dumped.stdout[:500]}"
    return json.loads(html.unescape(found.group(1)))


@pytest.fixture(scope="module")
def found(study, tmp_path_factory) -> dict[str, Any]:
    return operated(study[2], tmp_path_factory.mktemp("browser"))


@pytest.mark.browser
def test_the_script_raises_no_error_and_the_page_fits_its_window(found):
    assert found["errors"] == [] and found["width"][0] <= found["width"][1]


@pytest.mark.browser
def test_the_slider_shows_the_states_of_both_arms(study, found):
    """The pixels on the canvases are those of trajectory.npz, and the difference is theirs."""
    plan = make_plan(make_study(STUDY))
    states = {}
    for outcome in outcomes(plan, study[0] / "runs"):
        if outcome.run.seed == 0:
            states[outcome.run.arm.name] = outcome.trajectory

    def shown(values: np.ndarray) -> list[int]:
        """Ten images of 8 x 8 on a canvas of five columns, one empty pixel (0) apart."""
        canvas = np.zeros((17, 44), int)
        for k, image in enumerate(values[..., 0]):
            canvas[9 * (k // 5) : 9 * (k // 5) + 8, 9 * (k % 5) : 9 * (k % 5) + 8] = image
        return [44, 17, *canvas.ravel().tolist()]

    a, b = states["PyTorch"]["x"].astype(int), states["TensorFlow"]["x"].astype(int)
    apart = np.abs(a[-1] - b[-1])
    assert found["first"] == ["all 640 values are equal", "PyTorch: row 1", shown(a[0])]
    text, name, *canvases = found["last"]
    assert text == "1 of 640 values differ, by at most 1 of 255" and name == "TensorFlow: row 10"
    assert canvases == [shown(a[-1]), shown(b[-1]), shown(np.minimum(255, 64 * apart))]
    assert found["same"] == ["all 640 values are equal", 0]
    assert found["estimate"] == shown(states["PyTorch"]["estimate"][-1])


@pytest.mark.browser
def test_a_table_sorts_by_the_clicked_column(study, found):
    values = sorted(run["values"]["loss"] for run in study[1]["runs"])
    up, down = ([float(text) for text in found[way][0]] for way in ("up", "down"))
    assert up == sorted(up) == [float(f"{v:.4f}") for v in values] and down == up[::-1]
    assert [found["up"][1], found["down"][1]] == ["ascending", "descending"]
    assert found["arms"] == [["hand-over"] * 4 + ["PyTorch"] * 4 + ["TensorFlow"] * 4, "none"]


@pytest.mark.browser
def test_the_theme_button_switches_and_switches_back(found):
    first, second, third = found["theme"]
    assert first == third != second


@pytest.mark.browser
def test_curves_show_their_values_under_the_pointer(study, found):
    text, hidden = found["hover"]
    series = study[1]["curves"]["series"]
    middle = series["PyTorch"]["mean"][series["PyTorch"]["x"].index(1280)]
    assert text.startswith("1,280 images · PyTorch ") and f"{middle:.4f}" in text and not hidden and found["left"]


@pytest.mark.browser
def test_the_page_fits_a_telephone(study, tmp_path):
    found = operated(study[2], tmp_path, "390,844")
    assert found["errors"] == [] and found["width"][0] <= found["width"][1]

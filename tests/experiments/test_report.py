"""The comparison report: self-contained, honest about failures, safe with any text, for any number of backends."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffusion_core.common.errors import DuetError
from experiments.report import render, write
from experiments.report.data import write as write_data
from experiments.report.figures import Axis, Series, decimate, loss_chart, smooth

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = "<script>alert('x')</script>\"' onload=\"y & </style></title>\ud800\x00"


# --- a made-up report -------------------------------------------------------------------------------------------


def _ladder() -> list[dict]:
    """Nine rungs whose errors are planted: rounding of the precision times a growth with the rung."""
    titles = [
        ("schedule, process and plan tables", "NumPy reference", "bit-equal", ["schedules", "plans"]),
        ("forward noising, target, loss", "NumPy reference", "relative", ["forward noising", "target v", "loss huber"]),
        ("every block kind", "NumPy reference", "relative", ["conv 3x3", "group norm", "attention", "resample up"]),
        ("whole network forward", "NumPy reference", "relative", ["unet forward", "unet guided"]),
        ("gradient of every parameter", "other framework", "relative", ["all 112 gradients"]),
        ("optimiser, EMA, clip", "NumPy reference", "relative", ["AdamW step", "power EMA", "clip"]),
        ("sampler trajectory and final images", "other framework", "relative", ["DDIM 50 rows", "DPM-Solver++ 2M"]),
        ("lock-step training", "other framework", "relative", ["1,200 steps of loss"]),
        ("train here, continue there", "uninterrupted run", "relative", ["torch to tf to torch"]),
    ]
    wobble = np.random.default_rng(5)
    rungs = []
    for rung, (title, against, unit, names) in enumerate(titles):
        backends = ["torch", "tf"] if against == "NumPy reference" else ["torch–tf"]
        checks = []
        for name in names:
            for precision, rounding in (("float64", 2.2e-16), ("float32", 1.2e-7)):
                for backend in backends:
                    error = rounding * 3.0 ** (rung / 2) * float(wobble.uniform(0.5, 6)) if rung else 0.0
                    tolerance = rounding * 10.0 ** (2 + rung // 3) if rung else 0.0
                    checks.append(
                        {
                            "name": name,
                            "precision": precision,
                            "backend": backend,
                            "error": error,
                            "tolerance": float(f"{tolerance:.0e}"),
                            "unit": unit,
                            "passed": True,
                        }
                    )
        reason = "Rounding of one sum of 576 terms, times the depth of the network; eight times the worst seen."
        rungs.append({"rung": rung, "title": title, "against": against, "reason": reason, "checks": checks})
    return rungs


def _loss(steps: int = 1200) -> dict:
    """A falling loss with noise, and a difference that grows from exact zeros as rounding does."""
    noise = np.random.default_rng(3).normal(size=steps)
    k = np.arange(steps)
    torch = (0.06 + 0.95 / (1 + k / 12)) * np.exp(0.16 * noise)
    difference = np.where(k < 40, 0.0, 6e-8 * (1 + k / 60) * np.exp(np.random.default_rng(4).normal(size=steps)))
    return {
        "images_seen": (128 * (k + 1)).tolist(),
        "runs": {"torch": torch.tolist(), "tf": (torch * (1 + difference)).tolist()},
        "relative_difference": difference.tolist(),
    }


def _run(label: str, backend: str, rate: float) -> dict:
    return {
        "label": label,
        "backend": backend,
        "device": "cpu, 2 threads",
        "precision": "float32",
        "seed": 0,
        "command": f"python3 -m duet train backend={backend} data=digits model=small images=153600 seed=0",
        "commit": "abc1234",
        "versions": {"python": "3.11.7", "numpy": "2.3.5", backend: "2.14.1", "einops": "0.8.1"},
        "images_per_second": rate,
        "peak_memory_mib": 812.0,
        "wall_seconds": 91.2,
        "parameters": 431_000,
        "images_seen": 153_600,
        "quality": {"class agreement": 0.982, "digits Fréchet": 0.31},
    }


def fake_report(fails: bool = False) -> dict:
    rungs = _ladder()
    if fails:
        for rung, index, error in ((3, 1, 4.1e-5), (4, 1, 9.9e-3), (6, 0, math.nan)):
            rungs[rung]["checks"][index] |= {"error": error, "passed": False}
    total = sum(len(rung["checks"]) for rung in rungs)
    sentence = (
        "The PyTorch and TensorFlow runs start from the same bits, see the same images and noise, and stay within "
        "the published tolerance of every rung; their final images are identical."
    )
    return {
        "title": "Digits in two frameworks",
        "backends": [
            {"name": "torch", "title": "PyTorch", "colour": {"light": "#c2570c", "dark": "#f2a65a"}},
            {"name": "tf", "title": "TensorFlow", "colour": {"light": "#1f5fbf", "dark": "#82b4ff"}},
        ],
        "created": "2026-11-21T22:30:00+00:00",
        "commit": "abc1234",
        "command": "python3 -m duet demo",
        "verdict": {
            "agree": not fails,
            "passed": total - 3 * fails,
            "total": total,
            "sentence": "The forward pass of TensorFlow departs from the reference." if fails else sentence,
        },
        "headlines": [
            {"label": "largest relative loss difference", "value": "3.1e-06", "note": "over 1,200 lock-step steps"},
            {"label": "final pixels that differ", "value": "0", "note": "of 32,000, own checkpoints, same noise"},
            {"label": "whole network, float64", "value": "2.1e-15", "note": "relative, against the reference"},
            {"label": "class agreement", "value": "98.2 % / 97.8 %", "note": "500 guided samples each"},
            {"label": "images per second", "value": "1,234 / 1,101", "note": "PyTorch / TensorFlow, 2 threads"},
            {"label": "digits Fréchet distance", "value": "0.31 / 0.31", "note": "real data floor 0.12"},
        ],
        "rungs": rungs,
        "runs": [_run("PyTorch", "torch", 1234.5), _run("TensorFlow", "tf", 1101.25)],
        "loss": _loss(),
        "samples": [
            {
                "title": "each framework's own checkpoint, the same noise",
                "left": "samples_torch",
                "right": "samples_tf",
                "difference": "samples_difference",
                "caption": "0 of 32,000 pixels differ",
                "left_label": "PyTorch",
                "right_label": "TensorFlow",
            }
        ],
        "pictures": [
            {"title": "forward noising", "picture": "noising", "caption": "x_t at ten times, left to right"},
            {"title": "generation", "picture": "generation", "caption": "all 50 rows of the plan"},
            {"title": "nearest training images", "picture": "nearest", "caption": "sample above, neighbour below"},
        ],
        "quality": {
            "columns": ["PyTorch", "TensorFlow", "real data floor"],
            "rows": [
                {
                    "name": "class agreement of 500 guided samples",
                    "values": [0.9824, 0.978, 0.994],
                    "format": "percent",
                    "better": "higher",
                },
                {
                    "name": "digits Fréchet distance",
                    "values": [0.3127, None, 0.12],
                    "format": "number",
                    "better": "lower",
                },
            ],
            "note": "Floor: one half of the real images against the other.",
        },
        "cost": {
            "rows": [
                {"name": "training, images per second", "values": {"torch": 1234.5, "tf": 1101.25}, "better": "higher"},
                {"name": "peak memory, MiB", "values": {"torch": 812.0, "tf": 1024.0}, "better": "lower"},
            ]
        },
        "environment": {"platform": "Linux 6.1, x86-64", "cpu": "two cores", "blas threads": 2},
    }


def _encoded(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", **options)
    return file.getvalue()


def fake_images() -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:100, 0:100]
    grid = (127 + 120 * np.sin(x / 3.1) * np.cos(y / 4.7)).astype(np.uint8)
    grid[::10], grid[:, ::10] = 255, 255
    frames = [Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)) for _ in range(3)]
    gif = io.BytesIO()
    frames[0].save(gif, format="gif", save_all=True, append_images=frames[1:], duration=200, loop=0)
    return {
        "samples_torch": _encoded(grid),
        "samples_tf": _encoded(grid),
        "samples_difference": _encoded(np.zeros_like(grid)),
        "noising": _encoded(rng.integers(0, 255, (20, 110), dtype=np.uint8)),
        "generation": gif.getvalue(),
        "nearest": _encoded(grid[:40]),
    }


# --- reading the page -------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Checks that tags balance, and keeps what the tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"{tag} repeats an attribute"
        self.tags.append((tag, values))
        self.ids += [values["id"]] if "id" in values else []
        self.references += [values[key] for key in ("src", "href", "srcset", "data", "action") if key in values]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return fake_images()


@pytest.fixture(scope="module")
def page(images: dict[str, bytes]) -> str:
    return render(fake_report(), images)


# --- the page ---------------------------------------------------------------------------------------------------


def test_page_is_self_contained(page: str) -> None:
    read = _Page(page)
    own = {f"#{key}" for key in read.ids}
    assert all(r in own or r.startswith("data:") for r in read.references)
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_tags_balance_ids_are_unique_and_labels_resolve(page: str) -> None:
    read = _Page(page)
    assert len(read.ids) == len(set(read.ids))
    named = [key for _, values in read.tags for key in (values.get("aria-labelledby") or "").split()]
    assert named and set(named) <= set(read.ids)


def test_page_is_accessible_to_screen_readers(page: str) -> None:
    read = _Page(page)
    assert all(values.get("alt") for tag, values in read.tags if tag == "img")
    assert all(values.get("scope") in ("row", "col") for tag, values in read.tags if tag == "th")
    assert read.headings[0] == 1 and read.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(read.headings, read.headings[1:], strict=False))


def test_every_check_appears_with_its_numbers(page: str) -> None:
    rows = re.findall(r"<tr[^>]*>.*?</tr>", page, re.DOTALL)
    for rung in fake_report()["rungs"]:
        for check in rung["checks"]:
            error = f"{check['error']:.1e}".split("e") if check["error"] else None
            shown = f"{error[0].removesuffix('.0')}e{int(error[1])}" if error else "0"
            wanted = [check["name"], f"<td>{check['precision']}</td>", f"</i>{check['backend']}</td>", f">{shown}</td>"]
            assert any(all(w in row for w in wanted) and "✓ pass" in row for row in rows), check


def test_every_number_of_quality_cost_and_runs_appears(page: str) -> None:
    text = _Page(page).text
    for shown in ("98.2 %", "0.3127", "–", "1,234", "1,101", "431,000", "153,600", "2.14.1", "higher is better"):
        assert shown in text
    assert text.count("0 of 32,000 pixels differ") == 1


def test_images_are_embedded_unchanged(page: str, images: dict[str, bytes]) -> None:
    held = {base64.b64decode(data) for data in re.findall(r"data:image/\w+;base64,([^\"]+)", page)}
    assert held == set(images.values())
    assert 'width="300" height="300"' in page  # 100 pixels, magnified by a whole factor


# --- the verdict ------------------------------------------------------------------------------------------------


def test_agreement_and_failure_are_stated_in_words(page: str, images: dict[str, bytes]) -> None:
    good, bad = _Page(page), _Page(render(fake_report(fails=True), images))
    assert "The frameworks agree" in good.text and "FAIL" not in good.text and "NOT" not in good.text
    assert "The frameworks do NOT agree" in bad.text and "The frameworks agree" not in bad.text


def test_failures_come_first_in_order_of_rung(images: dict[str, bytes]) -> None:
    page = render(fake_report(fails=True), images)
    listed = page[page.index('class="failures"') : page.index('class="tiles"')]
    rows = re.findall(r'<tr class="failed">.*?</tr>', listed, re.DOTALL)
    assert len(rows) == 3
    assert [re.search(r'at-rung">(\d)</td>', row).group(1) for row in rows] == ["3", "4", "6"]
    assert "unet forward" in rows[0] and "4.1e-5" in rows[0] and "over" in rows[0]
    assert "NaN" in rows[2]


def test_failing_rungs_are_open_and_list_failures_first(images: dict[str, bytes]) -> None:
    page = render(fake_report(fails=True), images)
    rungs = re.findall(r"<details class=\"rung.*?</details>", page, re.DOTALL)
    assert [" open" in rung[:60] for rung in rungs] == [k in (3, 4, 6) for k in range(9)]
    first = re.search(r"<tbody>\s*<tr.*?</tr>", rungs[3], re.DOTALL).group(0)
    assert "✗ FAIL" in first


def test_a_verdict_cannot_claim_more_than_the_checks_show(images: dict[str, bytes]) -> None:
    report = fake_report()
    report["rungs"][2]["checks"][0]["error"] = 1.0  # still says passed
    text = _Page(render(report, images)).text
    assert "do NOT agree" in text and "but 1 check did not pass" in text
    report = fake_report()
    report["verdict"]["passed"] -= 1
    assert "do NOT agree" in render(report, images)
    report = fake_report()
    report["verdict"] |= {"agree": False}
    assert "do NOT agree" in render(report, images)


def test_a_mark_lies_left_of_the_tolerance_exactly_if_the_check_passes(images: dict[str, bytes]) -> None:
    for fails in (False, True):
        page = render(fake_report(fails=fails), images)
        sides = []
        for lane in re.findall(r'<span class="track".*?</span>', page, re.DOTALL):
            line = float(re.search(r'class="beyond" style="left:([\d.]+)%', lane).group(1))
            marks = [float(m) for m in re.findall(r'class="dot \w+" style="left:([\d.]+)%', lane)]
            sides += [mark > line for mark in marks]
        assert sum(sides) == (3 if fails else 0) and len(sides) > 20


# --- any input --------------------------------------------------------------------------------------------------


def _hostile(value: object) -> object:
    if isinstance(value, dict):
        return {key: _hostile(item) if key not in ("runs", "values") else item for key, item in value.items()}
    if isinstance(value, list):
        return [_hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(images: dict[str, bytes], tmp_path) -> None:
    report = _hostile(fake_report(fails=True))
    report["runs"] = [_hostile(run) for run in fake_report()["runs"]]
    page = render(report, images)
    read = _Page(page)
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert not any("onload" in values for _, values in read.tags)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    write(report, images, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["title"].startswith("<script>")


def test_hostile_text_stays_text_on_the_page_of_a_data_set(images: dict[str, bytes], tmp_path) -> None:
    part = {
        "pictures": 10, "size": 8, "channels": 1, "sha256": "0" * 64, "classes": {HOSTILE: 10}, "mean": [0.5],
        "std": [0.2], "histograms": [[1] * 256],
    }  # fmt: skip
    pair = {"first": HOSTILE, "second": HOSTILE, "classes": [HOSTILE] * 2, "same": False, "distance": 1.0}
    pairs = [{"parts": ["train"] * 2, "count": 1, "nearest": [pair]}]
    report = {
        "title": HOSTILE, "environment": {"command": HOSTILE}, "parts": {"train": part}, "seed": 0,
        "card": {"title": HOSTILE, "licence": HOSTILE},
        "near": {"within": 4.0, "compared": {"train": 10}, "pairs": pairs},
    }  # fmt: skip
    sheets = {"means, train": images["noising"], "pairs, train, train": images["noising"]}
    page = write_data(report, {"train": np.ones((1, 256), np.int64)}, sheets, tmp_path).read_text()
    assert page.count("<script") == 1 and "&lt;script&gt;alert" in page and ' onload="' not in page


def test_each_section_may_be_missing(images: dict[str, bytes]) -> None:
    full = fake_report()
    # Where a part is missing, two others can stand in for it: the machine, and what the runs measured.
    also = {"runs": "environment", "quality": "runs"}
    for key in full:
        page = _Page(render({k: v for k, v in full.items() if k not in (key, also.get(key))}, images))
        section = {"rungs": "#ladder"}.get(key, f"#{key}")
        assert section not in page.references
        assert len(page.references) >= 5
    text = _Page(render({}, {})).text
    assert "No verdict" in text and "agree" not in text
    empty = {key: type(value)() for key, value in full.items()}
    assert "No verdict" in _Page(render(empty, {})).text


def test_missing_values_are_dashes(images: dict[str, bytes]) -> None:
    report = copy.deepcopy(fake_report())
    for rung in report["rungs"]:
        rung["checks"] = [{"name": "bare", "passed": True}]
    report["cost"]["rows"][0]["values"]["tf"] = None
    report["samples"] = [{"title": "bare", "left": "nowhere"}]
    report["runs"] = [{"label": "bare"}]
    text = _Page(render(report, images)).text
    assert "– no image" in text and "✓ pass bare – –" in text


def test_values_that_are_not_finite_break_neither_page_nor_json(images: dict[str, bytes], tmp_path) -> None:
    report = fake_report(fails=True)
    report["loss"]["runs"]["torch"][5:9] = [math.nan, math.inf, -math.inf, None]
    report["loss"]["relative_difference"][700] = math.inf
    report["quality"]["rows"][1]["values"] = [math.nan, math.inf, np.float32(0.5)]
    report["cost"]["rows"][0]["values"]["tf"] = math.nan
    written = write(report, images, tmp_path / "new" / "place")
    assert not re.search(r"[\"ML ](nan|inf)[\" L%]", written.read_text(encoding="utf-8"))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    back = json.loads((written.parent / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert back["loss"]["runs"]["torch"][5:9] == [None] * 4
    assert back["quality"]["rows"][1]["values"] == [None, None, 0.5]
    assert back["rungs"][6]["checks"][0]["error"] is None
    assert "do NOT agree" in render(back, images)


def test_report_round_trips_through_json(images: dict[str, bytes], tmp_path) -> None:
    written = write(fake_report(), images, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    back = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert back == fake_report()
    assert render(back, images) == written.read_text(encoding="utf-8")


def test_invalid_input_is_named_before_anything_is_written(images: dict[str, bytes], tmp_path) -> None:
    write(fake_report(), images, tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    short = fake_report()
    short["loss"]["runs"]["tf"].pop()
    with pytest.raises(DuetError, match=r"loss\.runs\.tf: 1199 values"):
        write(short, images, tmp_path)
    short["loss"]["images_seen"][7] = None
    with pytest.raises(DuetError, match=r"images_seen: step 7 has no count"):
        write(short, images, tmp_path)
    with pytest.raises(DuetError, match=r"noising.*PNG, GIF or JPEG"):
        write(fake_report(), images | {"noising": b"text"}, tmp_path)
    with pytest.raises(DuetError, match=r"report\.environment\.cpu: a set was given"):
        write(fake_report() | {"environment": {"cpu": {1}}}, images, tmp_path)
    with pytest.raises(DuetError, match="is a file"):
        write(fake_report(), images, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


# --- the figures ------------------------------------------------------------------------------------------------


def test_decimation_keeps_the_extremes_of_every_segment() -> None:
    y = np.random.default_rng(0).normal(size=7919)
    y[4321], y[1234] = 50.0, np.nan
    kept = decimate(y, 100)
    assert len(kept) <= 202 and 4321 in kept and kept[0] == 0 and kept[-1] == 7918
    for part in np.array_split(np.arange(len(y)), 100):
        assert np.nanmax(y[part]) == np.nanmax(y[np.intersect1d(part, kept)])
        assert np.nanmin(y[part]) == np.nanmin(y[np.intersect1d(part, kept)])


@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_smoothing_keeps_a_constant_and_averages_finite_values(window: int) -> None:
    y = np.full(40, 3.25)
    y[10:13] = np.nan
    mean = smooth(y, window)
    np.testing.assert_allclose(mean[np.isfinite(mean)], 3.25, rtol=1e-14)
    assert np.isnan(mean[11]) == (window <= 2)
    ramp = np.arange(50.0)
    odd = window | 1
    np.testing.assert_allclose(smooth(ramp, odd)[odd:-odd], ramp[odd:-odd], rtol=1e-12)


@pytest.mark.parametrize(
    "axis", [Axis(0, 153_600), Axis(-2.5, 3.1), Axis(0.05, 1.2, True), Axis(1e-17, 1.0, True), Axis(0.31, 0.32, True)]
)
def test_ticks_lie_on_the_axis_in_order(axis: Axis) -> None:
    places = axis.position(np.array(axis.ticks(5)))
    assert 1 <= len(places) <= 6 and np.all(np.diff(places) > 0)
    assert axis.position(axis.low) == 0 and axis.position(axis.high) == 1


SERIES = {"torch": Series("PyTorch", "s0"), "tf": Series("TensorFlow", "s1")}


def test_values_under_the_pointer_are_those_of_the_step() -> None:
    loss = _loss(300)
    points = loss_chart(loss, SERIES).points
    assert len(points) == 300 and points[-1][0] == 1.0
    last = points[-1][1]
    assert last.startswith("38,400 images · PyTorch 0.0") and f"{loss['runs']['torch'][-1]:.5f}" in last
    assert all(a[0] < b[0] for a, b in itertools.pairwise(points))


def test_a_loss_at_a_single_moment_is_a_dot_between_ticks_that_differ() -> None:
    runs = {"torch": [0.25442724], "tf": [0.254427241]}
    tall, low = loss_chart({"images_seen": [2000], "runs": runs, "relative_difference": [4e-9]}, SERIES).plots
    assert [path.name for path in tall.paths if path.name.startswith("points")] == ["points s0", "points s1"]
    assert low.paths[-1].name == "points gap" and low.paths[-1].d.startswith("M1000.0 ")
    labels = [tick.label for tick in tall.y_ticks]
    assert len(labels) > 1 and len(set(labels)) == len(labels)


def test_runs_that_continue_another_are_drawn_from_there_on() -> None:
    loss = {"images_seen": [1616, 1632, 2000], "runs": {"torch": [1.0, 2.0, 1.5]}}
    assert loss_chart(loss, SERIES).points[0][0] == 0.04


def _gap(loss: dict) -> tuple[list[float], str]:
    """Heights of the curve of differences, and its description."""
    plot = loss_chart(loss, SERIES).plots[1]
    (path,) = (path for path in plot.paths if path.name == "raw gap")
    return [float(height) for height in re.findall(r"[ML][\d.]+ ([\d.]+)", path.d)], plot.description


def test_exact_zeros_lie_on_the_floor_below_every_other_difference() -> None:
    loss = _loss(300)
    heights, description = _gap(loss)
    assert heights[:40] == [1000.0] * 40 and max(heights[40:]) < 1000
    assert "exactly zero at 40 of 300 steps" in description
    heights, _ = _gap(loss | {"relative_difference": [0.0] * 10 + [1e-8] * 290})  # a whole decade
    assert heights[:10] == [1000.0] * 10 and max(heights[10:]) < 1000
    assert "exactly zero at 300 of 300 steps" in _gap(loss | {"relative_difference": [0.0] * 300})[1]


# --- any number of backends -------------------------------------------------------------------------------------


def test_a_third_backend_has_its_own_title_colour_and_mark(images: dict[str, bytes]) -> None:
    report = fake_report()
    report["backends"].append({"name": "jax", "title": "JAX", "colour": {"light": "#123456", "dark": "#abcdef"}})
    report["runs"].append(_run("JAX", "jax", 1500.0))
    report["loss"]["runs"]["jax"] = report["loss"]["runs"]["torch"]
    report["cost"]["rows"][0]["values"]["jax"] = 1500.0
    report["rungs"][1]["checks"].append(report["rungs"][1]["checks"][0] | {"backend": "jax"})
    page = render(report, images)
    assert "--s2:light-dark(#123456, #abcdef)" in page
    assert all(f'class="{kind} s2"' in page for kind in ("dot", "stroke", "line", "bar"))
    assert "the others are drawn as thin lines inside the wide line of PyTorch" in page


def test_an_invalid_colour_is_replaced_by_one_of_the_palette(images: dict[str, bytes]) -> None:
    report = fake_report()
    report["backends"][0]["colour"] = {"light": "red; background: url(x)", "dark": "#000000"}
    report["backends"][1].pop("colour")
    page = render(report, images)
    assert "url(" not in page and '<body class="agree">' in page

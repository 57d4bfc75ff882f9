"""The bench: statistics against closed forms, rows from invented rounds, and one short run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from commands import call, composed

from benchmarks import contestants
from benchmarks.bench import VARIED, list_modes, list_points
from benchmarks.contestants import BACKENDS, Contestant, Mode, interleave, start
from benchmarks.figures import draw_bars, draw_growth
from benchmarks.peers import PEERS, nearest_width
from benchmarks.table import compare_times, make_rows, make_table, median_interval
from diffusion_core.common.errors import DuetError
from experiments.config.build import make_model

ROUNDS = {"batch": 8, "steps": 2, "images": 4, "ddim_steps": 5}


@pytest.mark.parametrize("n", (3, 6, 10, 25))
def test_the_interval_covers_the_median_with_its_confidence(n: int):
    low, high = median_interval(np.random.default_rng(n).permutation(n).astype(float))
    # It misses the median if fewer than `low + 1` of n fair coins fall on either side.
    missed = 2 * sum(math.comb(n, i) for i in range(int(low) + 1)) / 2**n if low else 2 * 0.5**n
    assert low + high == n - 1
    if n >= 6:
        assert missed <= 0.05 < 2 * sum(math.comb(n, i) for i in range(int(low) + 2)) / 2**n
    else:
        assert low == 0


@pytest.fixture(scope="module")
def model():
    return make_model(composed("bench", "out=x"))


@pytest.fixture
def two_contestants() -> list[Contestant]:
    """One that takes twice as long as the other, on a machine that is five times slower in every other round."""
    load = np.array([1, 5, 1, 5, 1, 5, 1, 5, 5])
    both = []
    for name, seconds in (("torch", 0.1 * load), ("diffusers", 0.2 * load)):
        one = Contestant(Mode(name, "float32", False), None, {"parameters": 1, "matrix": 2048}, 5.0, 20.0)
        one.seconds = {"train": list(seconds), "convolutions": list(seconds / 2), "matrix": list(seconds)}
        one.seconds |= {"passes": list(0.75 * seconds), "ddim": list(seconds), "evaluations": list(seconds / 1.25)}
        both.append(one)
    return both


def test_a_ratio_is_taken_within_a_round(two_contestants, model):
    first, second = make_rows(two_contestants, "train", model, ROUNDS)
    assert (first["ratio"], second["ratio"]) == (1.0, pytest.approx(2.0))
    assert second["ratio_low"] == second["ratio_high"] == pytest.approx(2.0)
    assert second["milliseconds"] == pytest.approx(1e3 * 8 * 0.2 * 5)  # per step; the median round is a slow one
    assert (second["ready_seconds"], second["compile_seconds"]) == (5.0, pytest.approx(20.0 - 16 * 1.0))


def test_a_workload_is_compared_with_its_parts(two_contestants, model):
    first, second = make_rows(two_contestants, "train", model, ROUNDS)
    assert 0.5 < first["share_of_convolutions"] < 0.55  # the digits network is nearly all convolutions
    assert first["gflops"] == pytest.approx(2 * second["gflops"])
    assert first["share_beside_passes_low"] == pytest.approx(0.25) and first["by_evaluations"] is None
    rows = make_rows(two_contestants, "ddim", model, ROUNDS)
    assert [row["by_evaluations"] for row in rows] == pytest.approx([1.25] * 2)


def test_results_become_a_table_and_figures(two_contestants, model):
    rows = make_rows(two_contestants, "train", model, ROUNDS)
    assert make_table(rows, ROUNDS, "title").row_count == 2
    assert sorted(name.rsplit(".")[1] for name in draw_bars(rows, ROUNDS)) == ["csv", "json", "png", "svg"]
    points = [row | {"batch": b, "peak_memory_mib": 10.0 * b} for b in (1, 2) for row in rows]
    assert "growth-train-by-batch.svg" in draw_growth("batch", points, ROUNDS)


def test_only_the_varied_key_is_set():
    cfg = composed("bench", "out=x", "model=simple", "vary=image_size", "values=[8,16]")
    assert [make_model(point).spec.image_size for point in list_points(cfg)] == [8, 16]
    for name in VARIED:
        points = list_points(composed("bench", "out=x", f"vary={name}", "values=[8,16]"))
        assert points[0] != points[1] and len(points) == 2


def test_device_cuda_sets_a_larger_workload_that_other_arguments_override():
    plain, gpu = (composed("bench", "out=x", f"device={name}") for name in ("cpu", "cuda"))
    assert plain == composed("bench", "out=x") and plain.device == "cpu"
    assert (gpu.device, gpu.model.channels, gpu.batch, gpu.at_once) == ("cuda", 128, 128, 1)
    assert [mode.name for mode in list_modes(gpu)][:4] == [
        "torch",
        "torch compiled",
        "torch bf16",
        "torch bf16 compiled",
    ]
    assert {mode.contestant for mode in list_modes(gpu)} == {*BACKENDS, *PEERS}
    assert composed("bench", "device=cuda").out == "outputs/bench-cuda"
    cfg = composed("bench", "out=x", "device=cuda", "model=digits", "batch=3", "compile=[true]", "at_once=null")
    assert cfg.out == "x" and (cfg.device, cfg.model.channels, cfg.batch, cfg.at_once) == ("cuda", 24, 3, None)
    assert cfg.compile == [True] and cfg.precisions == gpu.precisions


def test_a_peer_takes_the_nearest_width():
    assert nearest_width(lambda width: width**2, 1000, 8, 8) == 32
    assert nearest_width(lambda width: width**2, 600, 8, 8) == 24
    assert nearest_width(lambda width: width**2, 1, 8, 8) == 8


def test_a_contestant_that_fails_is_left_out_and_the_others_continue():
    class Stub(Contestant):
        def round(self, work: str) -> tuple[float, float, float]:
            if self.mode.contestant == "keras":
                raise DuetError("keras: out of memory")
            return 2.0, 0.5, 10.0 if work == "train" else 99.0

    both = [Stub(Mode(name, "float32", False), None, {"work": ["train", "matrix"]}, 1.0) for name in ("torch", "keras")]
    interleave(both, ["train", "matrix"], 3)
    torch, keras = both
    assert keras.left_out and not keras.seconds
    assert torch.seconds == {"train": [0.5] * 3, "matrix": [0.5] * 3}
    assert (torch.ready, torch.first, torch.memory) == (1.0, 2.0, 10.0)  # of the first round of the first workload


def test_a_contestant_that_fails_at_a_part_keeps_its_workload(model):
    class Stub(Contestant):
        def round(self, work: str) -> tuple[float, float, float]:
            if work == "convolutions" or (self.seconds.get("matrix") and self.mode.compile):
                raise DuetError("out of memory")
            return 2.0, 0.5, 10.0

    work = ["train", "convolutions", "matrix"]
    both = [Stub(Mode("torch", "float32", mode), None, {"work": work, "parameters": 1}) for mode in (False, True)]
    interleave(both, work, 3)
    kept, failed = both
    assert kept.seconds == {"train": [0.5] * 3, "matrix": [0.5] * 3}
    assert kept.left_out == failed.left_out == "out of memory (at convolutions)"
    assert "train" not in failed.seconds  # it failed there in a later round, which discards the earlier ones
    (row,) = make_rows(both, "train", model, ROUNDS)
    assert row["images_per_second"] == 2 and row["share_of_convolutions"] is None


def test_the_order_within_a_round_is_random():
    """With a rotating order, every contestant but one would always follow the same other one."""
    order: list[str] = []

    class Stub(Contestant):
        def round(self, work: str) -> tuple[float, float, float]:
            order.append(self.mode.contestant)
            return 1.0, 1.0, 1.0

    names = ["torch", "tf", "keras", "diffusers"]
    interleave([Stub(Mode(name, "float32", False), None, {"work": ["train"]}) for name in names], ["train"], 11)
    rounds = [order[k : k + 4] for k in range(0, len(order), 4)]
    assert len(rounds) == 12 and all(sorted(one) == sorted(names) for one in rounds)
    before_tf = [one[one.index("tf") - 1] for one in rounds if one[0] != "tf"]
    assert len(set(before_tf)) == 3


def test_rounds_that_are_not_interleaved_have_the_wider_interval():
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert compare_times(ours, theirs, True) == (0.5, 0.5, 0.5)
    assert compare_times(ours, theirs, False) == (0.5, 1 / 6, 1.5)


def test_a_contestant_that_hangs_is_ended():
    process = subprocess.Popen([sys.executable, "-c", "input(); input()"], text=True, stdin=PIPE, stdout=PIPE)
    one = Contestant(Mode("torch", "float32", False), process, {"work": ["train"]}, limit=0.2)
    interleave([one], ["train"], 3)
    one.stop()
    assert (
        one.left_out == "bench: torch was ended after limit_s=0.2 seconds; its output is above (at train)"
        and not one.seconds
    )


def test_a_contestant_that_raises_any_exception_is_left_out_with_the_reason(monkeypatch, tmp_path, model):
    monkeypatch.setattr(contestants, "backend_python", lambda *_: Path(sys.executable))
    one = start(Mode("torch", "float32", False), model, ROUNDS | {"batch": None}, "cpu", 1, 60, tmp_path)
    try:
        interleave([one], ["train"], 1)
    finally:
        one.stop()
    assert "TypeError" in one.left_out and not one.seconds

    def fail(*_: object) -> Path:
        raise DuetError("there is no environment of torch here")

    monkeypatch.setattr(contestants, "backend_python", fail)
    one = start(Mode("torch", "float32", False), model, ROUNDS, "cpu", 1, 60, tmp_path)
    one.stop()
    assert one.left_out == "bench: torch: there is no environment of torch here"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["work=[wrk]"], "wrk"),
        (["contestants=[jax]"], "jax"),
        (["precisions=[float16]"], "float16"),
        (["vary=colour", "values=[1]"], "colour"),
        (["values=[1]"], "add vary=KEY, of batch, images, ddim_steps, image_size"),
        (["steps=0"], "steps: 0"),
        (["at_once=0"], "at_once: 0"),
        (["device=gpu"], "cpu, cuda"),
        (["network=my_file:build"], "shape: [] was given"),
        (["network=my_file:build", "shape=[8,8,1]", "contestants=[diffusers]"], "is measured in torch or tf"),
        (["network=my_file:build", "shape=[8,8,1]", "vary=image_size", "values=[8]"], "an own network has one shape"),
        (["shape=[8,8,1]"], "without a network"),
    ],
)
def test_invalid_input_is_a_one_line_error_and_nothing_starts(tmp_path: Path, words: list[str], named: str) -> None:
    done = call("benchmarks.bench", f"out={tmp_path}", *words)
    assert done.code == 2 and done.out == ""
    assert done.err.count("\n") == 1 and done.err.startswith("error: ") and named in done.err


@pytest.mark.together
def test_both_backends_and_a_peer_compete(tmp_path: Path):
    words = ("model.channels=8", "batch=4", "steps=1", "images=2", "ddim_steps=2", "repeats=1", "threads=1")
    done = call("benchmarks.bench", f"out={tmp_path}", "contestants=[torch,tf,diffusers]", "work=[train]", *words)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "bench.json").read_text())
    assert not report["left_out"]
    rows = {row["contestant"]: row for row in report["rows"]}
    assert set(rows) == {"torch", "tf", "diffusers"} and all(row["images_per_second"] > 0 for row in rows.values())
    assert rows["torch"]["share_of_convolutions"] > 0 and rows["diffusers"]["share_of_convolutions"] is None
    assert 0.9 < rows["diffusers"]["parameters"] / rows["torch"]["parameters"] < 1.1


@pytest.mark.slow
@pytest.mark.together
def test_every_contestant_runs_every_workload(tmp_path: Path):
    """With `pip install -e .[bench]`: pytest -m slow tests/benchmarks/test_bench.py"""
    words = ("batch=4", "steps=1", "images=2", "ddim_steps=2", "repeats=1", "process.schedule.T=20")
    done = call("benchmarks.bench", f"out={tmp_path}", "work=[train,ddim,ddpm]", "compile=[false,true]", *words)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "bench.json").read_text())
    assert not report["left_out"]
    assert len(report["rows"]) == 3 * 10

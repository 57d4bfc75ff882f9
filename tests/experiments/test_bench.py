"""The bench: its statistics by their closed forms, its rows from rounds that are made up, and one short run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from commands import call, composed

from diffusion_core.errors import DuetError
from experiments.bench import VARIED, _points
from experiments.benchmark.contestants import Contestant, Mode, interleave
from experiments.benchmark.figures import bars, growth
from experiments.benchmark.table import median_interval, rows
from experiments.common import problem_of
from peers import nearest

ROUNDS = {"batch": 8, "steps": 2, "images": 4, "ddim_steps": 5}


@pytest.mark.parametrize("n", (3, 6, 10, 25))
def test_the_interval_holds_the_median_as_often_as_it_says(n: int):
    low, high = median_interval(np.random.default_rng(n).permutation(n).astype(float))
    # It misses where fewer than `low + 1` of n fair coins fall on either side.
    missed = 2 * sum(math.comb(n, i) for i in range(int(low) + 1)) / 2**n if low else 2 * 0.5**n
    assert low + high == n - 1
    if n >= 6:
        assert missed <= 0.05 < 2 * sum(math.comb(n, i) for i in range(int(low) + 2)) / 2**n
    else:
        assert low == 0


def test_a_ratio_is_taken_within_a_round():
    # The machine is five times slower in every other round: the medians say nothing, the ratios do.
    load = np.array([1, 5, 1, 5, 1, 5, 1, 5, 5])
    contestants = []
    for name, seconds in (("torch", 0.1 * load), ("diffusers", 0.2 * load[::1])):
        one = Contestant(Mode(name, "float32", False), None, {"parameters": 1}, 5.0)
        one.seconds = {"train": list(seconds), "convolutions": list(seconds / 2), "matrix": list(seconds)}
        contestants.append(one)
    problem = problem_of(composed("bench", "out=x"))
    first, second = rows(contestants, "train", problem, ROUNDS)
    assert (first["ratio"], second["ratio"]) == (1.0, pytest.approx(2.0))
    assert second["ratio_low"] == second["ratio_high"] == pytest.approx(2.0)
    assert second["milliseconds"] == pytest.approx(1e3 * 8 * np.median(0.2 * load))
    assert second["first_seconds"] == 5.0
    assert 0.5 < first["share_of_convolutions"] < 0.55  # the digits network is nearly all convolutions
    assert first["gflops"] == pytest.approx(2 * second["gflops"])
    drawn = bars([first, second], ROUNDS)
    assert sorted(name.rsplit(".")[1] for name in drawn) == ["csv", "json", "png", "svg"]
    points = [row | {"batch": b, "peak_memory_mib": 10.0 * b} for b in (1, 2) for row in (first, second)]
    assert "growth-train-by-batch.svg" in growth("batch", points, ROUNDS)


def test_what_varies_is_set_alone():
    cfg = composed("bench", "out=x", "model=simple", "vary=image_size", "values=[8,16]")
    assert [problem_of(point).spec.image_size for point in _points(cfg)] == [8, 16]
    for name in VARIED:
        points = _points(composed("bench", "out=x", f"vary={name}", "values=[8,16]"))
        assert points[0] != points[1] and len(points) == 2


def test_a_peer_takes_the_nearest_width():
    assert nearest(lambda width: width**2, 1000, 8, 8) == 32
    assert nearest(lambda width: width**2, 600, 8, 8) == 24
    assert nearest(lambda width: width**2, 1, 8, 8) == 8


def test_who_fails_is_left_out_and_the_others_go_on():
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
    assert (torch.first, torch.memory) == (3.0, 10.0)  # of the first round, and of the first work


@pytest.mark.together
def test_both_backends_and_a_peer_compete(tmp_path: Path):
    words = ("model.channels=8", "batch=4", "steps=1", "images=2", "ddim_steps=2", "repeats=1", "threads=1")
    done = call("bench", f"out={tmp_path}", "contestants=[torch,tf,diffusers]", "work=[train]", *words)
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "bench.json").read_text())
    assert not told["left_out"]
    rows = {row["contestant"]: row for row in told["rows"]}
    assert set(rows) == {"torch", "tf", "diffusers"} and all(row["images_per_second"] > 0 for row in rows.values())
    assert rows["torch"]["share_of_convolutions"] > 0 and rows["diffusers"]["share_of_convolutions"] is None
    assert 0.9 < rows["diffusers"]["parameters"] / rows["torch"]["parameters"] < 1.1


@pytest.mark.slow
@pytest.mark.together
def test_every_contestant_does_every_work(tmp_path: Path):
    """With `pip install -e .[bench]`: pytest -m slow tests/experiments/test_bench.py"""
    words = ("batch=4", "steps=1", "images=2", "ddim_steps=2", "repeats=1", "process.schedule.T=20")
    done = call("bench", f"out={tmp_path}", "work=[train,ddim,ddpm,forward]", "compile=[false,true]", *words)
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "bench.json").read_text())
    assert not told["left_out"]
    assert len(told["rows"]) == 3 * 10 + 4

"""The bench: its statistics by their closed forms, its rows from rounds that are made up, and one short run."""

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

from diffusion_core.common.errors import DuetError
from benchmarks.bench import VARIED, _modes, _points
from benchmarks.contestants import Contestant, Mode, interleave, start
from benchmarks.figures import bars, growth
from benchmarks.table import compared, median_interval, rows
from benchmarks.targets import targets
from experiments.common import make_model
from benchmarks.peers import PEERS, nearest

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
        one = Contestant(Mode(name, "float32", False), None, {"parameters": 1, "matrix": 2048}, 5.0, 20.0)
        one.seconds = {"train": list(seconds), "convolutions": list(seconds / 2), "matrix": list(seconds)}
        one.seconds |= {"passes": list(0.75 * seconds), "ddim": list(seconds), "evaluations": list(seconds / 1.25)}
        contestants.append(one)
    model = make_model(composed("bench", "out=x"))
    first, second = rows(contestants, "train", model, ROUNDS)
    assert (first["ratio"], second["ratio"]) == (1.0, pytest.approx(2.0))
    assert second["ratio_low"] == second["ratio_high"] == pytest.approx(2.0)
    assert second["milliseconds"] == pytest.approx(1e3 * 8 * np.median(0.2 * load))
    assert (second["ready_seconds"], second["compile_seconds"]) == (5.0, pytest.approx(20.0 - 16 * 1.0))
    assert 0.5 < first["share_of_convolutions"] < 0.55  # the digits network is nearly all convolutions
    assert first["gflops"] == pytest.approx(2 * second["gflops"])
    assert first["share_beside_passes_low"] == pytest.approx(0.25) and first["by_evaluations"] is None
    assert [row["by_evaluations"] for row in rows(contestants, "ddim", model, ROUNDS)] == pytest.approx([1.25] * 2)
    drawn = bars([first, second], ROUNDS)
    assert sorted(name.rsplit(".")[1] for name in drawn) == ["csv", "json", "png", "svg"]
    points = [row | {"batch": b, "peak_memory_mib": 10.0 * b} for b in (1, 2) for row in (first, second)]
    assert "growth-train-by-batch.svg" in growth("batch", points, ROUNDS)


def test_what_varies_is_set_alone():
    cfg = composed("bench", "out=x", "model=simple", "vary=image_size", "values=[8,16]")
    assert [make_model(point).spec.image_size for point in _points(cfg)] == [8, 16]
    for name in VARIED:
        points = _points(composed("bench", "out=x", f"vary={name}", "values=[8,16]"))
        assert points[0] != points[1] and len(points) == 2


def test_a_gpu_is_given_work_that_fills_it_unless_told_otherwise():
    plain, gpu = (composed("bench", "out=x", f"device={name}") for name in ("cpu", "cuda"))
    assert plain == composed("bench", "out=x") and plain.device == "cpu"
    assert (gpu.device, gpu.model.channels, gpu.batch, gpu.at_once) == ("cuda", 128, 128, 1)
    assert [mode.name for mode in _modes(gpu)][:4] == ["torch", "torch compiled", "torch bf16", "torch bf16 compiled"]
    assert {mode.contestant for mode in _modes(gpu)} == {"torch", "tf", *PEERS}
    assert composed("bench", "device=cuda").out == "outputs/bench-cuda"
    told = composed("bench", "out=x", "device=cuda", "model=digits", "batch=3", "compile=[true]", "at_once=null")
    assert told.out == "x" and (told.device, told.model.channels, told.batch, told.at_once) == ("cuda", 24, 3, None)
    assert told.compile == [True] and told.precisions == gpu.precisions


def made_row(name: str, what: str, milliseconds: float, *, memory: float = 100.0, **told) -> dict:
    """A row of three rounds, of which the machine is five times slower in the second."""
    who, *words = name.split()
    columns = {"share_of_convolutions": "convolutions", "share_of_matrix": "matrix"}
    columns |= {"share_beside_passes": "beside", "by_evaluations": "evaluations"}
    shares = {f"{name}{end}": told.get(key) for name, key in columns.items() for end in ("", "_low", "_high")}
    return shares | {
        "work": what, "contestant": name, "who": who, "compiled": "compiled" in words, "milliseconds": milliseconds,
        "parameters": told.get("parameters", 1),
        "precision": "bf16" if "bf16" in words else "float32", "peak_memory_mib": memory,
        "seconds_per_image": [milliseconds * load for load in (1, 5, 1)], "together": True,
    }  # fmt: skip


def test_a_target_is_met_missed_or_not_there():
    rows = [
        made_row("torch", "train", 90, convolutions=0.6), made_row("torch compiled", "train", 95, convolutions=0.9),
        made_row("torch bf16", "train", 1, convolutions=0.1),  # other work: it counts on a GPU alone
        made_row("tf compiled", "train", 110, convolutions=0.4, memory=120), made_row("diffusers", "train", 100),
        made_row("torch", "ddim", 80), made_row("diffusers", "ddim", 100), made_row("diffusers compiled", "ddim", 70),
        made_row("tf", "ddim", 50, evaluations=1.02), made_row("torch compiled", "ddim", 71, evaluations=1.2),
    ]  # fmt: skip
    found = {one.name: one for one in targets(rows, "cpu", ROUNDS | {"ddim_steps": 50})}
    wanted = {
        "training step by the fastest peer of the framework: torch by diffusers": (0.9, True),
        "training step, slower backend by the faster: tf compiled by torch": (110 / 90, False),
        "training step, share of convolutions measured in float32: torch": (0.6, True),
        "training step, share of convolutions measured in float32: tf compiled": (0.4, False),
        "DDIM-50, by evaluations measured in float32: torch compiled": (1.2, False),
        "DDIM-50, by evaluations measured in float32: tf": (1.02, True),
        "DDIM-50: torch by diffusers": (0.8, True),
        "DDIM-50: torch compiled by diffusers": (0.71, False),
        "peak memory in training by the leanest peer: torch by diffusers": (1.0, True),
        "peak memory in training by the leanest peer: tf compiled by diffusers": (1.2, False),
    }
    # Neither keras nor denoising_diffusion_pytorch took part, nor tf compiled in sampling.
    assert {name: (pytest.approx(one.measured), one.met) for name, one in found.items()} == wanted
    assert all(one.resolved and one.low == pytest.approx(one.high) for one in found.values())
    few = targets(rows, "cpu", ROUNDS)
    assert [one.name for one in few] == [name for name in wanted if not name.startswith("DDIM")]
    assert not targets([], "cpu", ROUNDS) and not targets([], "cuda", ROUNDS)


def test_what_is_beside_the_passes_is_judged_in_large_networks():
    def found(parameters: int) -> list:
        row = made_row("torch", "train", 90, beside=0.04, parameters=parameters)
        return [(one.name, one.measured, one.met) for one in targets([row], "cpu", ROUNDS)]

    name = "training step, share beside passes measured in float32: torch"
    assert found(400_000) == [] and found(36_000_000) == [(name, 0.04, True)]


def test_the_targets_of_a_gpu_are_for_the_fastest_mode():
    rows = [made_row("torch", "train", 90, matrix=0.7), made_row("torch bf16 compiled", "train", 30, matrix=0.2)]
    rows += [made_row("diffusers", "train", 100), made_row("diffusers bf16 compiled", "train", 33)]
    faster, equal, share = targets(rows, "cuda", ROUNDS)
    assert faster.name == "training step: torch bf16 compiled by diffusers"
    assert (faster.wanted, faster.measured, faster.met) == (0.5, pytest.approx(0.3), True)
    assert (equal.wanted, equal.measured, equal.met) == (pytest.approx(1 / 1.2), pytest.approx(30 / 33), False)
    assert share.name.endswith("share of matrix measured in bf16: torch bf16 compiled")
    assert (share.measured, share.wanted, share.met, share.resolved) == (0.2, None, None, None)
    assert {"name", "wanted", "measured", "low", "high", "met", "resolved"} <= set(faster.to_dict())


def test_a_median_with_both_sides_in_its_interval_is_not_resolved():
    near = made_row("torch", "ddim", 84) | {"seconds_per_image": [80.0, 84.0, 90.0]}
    rival = made_row("diffusers", "ddim", 100) | {"seconds_per_image": [100.0, 100.0, 100.0]}
    (found,) = targets([near, rival], "cpu", ROUNDS | {"ddim_steps": 50})
    assert found.met and not found.resolved and (found.low, found.high) == (0.8, 0.9)


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
    assert (torch.ready, torch.first, torch.memory) == (1.0, 2.0, 10.0)  # of the first round of the first work


def test_who_fails_beside_its_work_keeps_it():
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
    assert "train" not in failed.seconds  # it failed there in a later round, and what it did before does not count
    (row,) = rows(both, "train", make_model(composed("bench", "out=x")), ROUNDS)
    assert row["images_per_second"] == 2 and row["share_of_convolutions"] is None


def test_the_order_of_a_round_is_drawn():
    """With one that turns, each contestant but one always follows the same other one."""
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


def test_rounds_that_were_not_together_have_the_wider_interval():
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert compared(ours, theirs, True) == (0.5, 0.5, 0.5)
    assert compared(ours, theirs, False) == (0.5, 1 / 6, 1.5)


def test_who_hangs_is_ended():
    process = subprocess.Popen([sys.executable, "-c", "input(); input()"], text=True, stdin=PIPE, stdout=PIPE)
    one = Contestant(Mode("torch", "float32", False), process, {"work": ["train"]}, limit=0.2)
    interleave([one], ["train"], 3)
    one.stop()
    assert one.left_out == "bench: torch was ended after 0.2 s; its output is above (at train)" and not one.seconds


def test_a_process_that_breaks_off_is_left_out_and_says_why(monkeypatch, tmp_path):
    """It is not the error of a person, and not one that Duet raises: whatever a framework may say."""
    model = make_model(composed("bench", "out=x"))
    monkeypatch.setattr("benchmarks.contestants.backend_python", lambda *_: Path(sys.executable))
    one = start(Mode("torch", "float32", False), model, ROUNDS | {"batch": None}, "cpu", 1, 60, tmp_path)
    try:
        interleave([one], ["train"], 1)
    finally:
        one.stop()
    assert "TypeError" in one.left_out and not one.seconds

    def nowhere(*_: object) -> Path:
        raise DuetError("there is no environment of torch here")

    monkeypatch.setattr("benchmarks.contestants.backend_python", nowhere)
    one = start(Mode("torch", "float32", False), model, ROUNDS, "cpu", 1, 60, tmp_path)
    one.stop()
    assert one.left_out == "bench: torch: there is no environment of torch here"


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
    done = call("bench", f"out={tmp_path}", "work=[train,ddim,ddpm]", "compile=[false,true]", *words)
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "bench.json").read_text())
    assert not told["left_out"]
    assert len(told["rows"]) == 3 * 10

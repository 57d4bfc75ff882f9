"""The gallery of samplers: its samples, its errors and its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import enter

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.images.render import png_bytes
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.parity.cases import scattered_weights
from diffusion_core.runs.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.sampling import METHODS
from experiments.report.gallery import curves, write
from experiments.sampling.gallery import method_plan, plan_entries

SPEC = UNetSpec(8, channels=8, channel_multipliers=(1, 2), blocks_per_resolution=1, norm_groups=4)
SCHEDULE = {"name": "linear", "T": 100, "beta_end": 0.1}
MODEL = DiffusionModel(SPEC, SCHEDULE, "v")


def run(*words: str) -> None:
    """Run the command in this process."""
    enter("gallery", *words)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gallery") / "run"
    weights = scattered_weights(MODEL.program, 0.5, dtype=np.float32)
    save_checkpoint(path / "checkpoints", Checkpoint(256, MODEL, 0, TrainerState.fresh(weights), {}))
    return path


@pytest.mark.backend
def test_one_command_draws_and_measures(checkpoint, backend_name, tmp_path, capsys):
    run(
        f"backend={backend_name}", "backend.threads=1", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}",
        "methods=[DDIM,DPM-Solver++ 2M,DDPM]", "budgets=[4,8,16]", "reference_steps=64", "sample.count=2", "shown=2",
        "precision=float64",
    )  # fmt: skip
    assert "9 plans of 3 methods" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "gallery.json").read_text())["methods"]
    errors = {name: [m["error"] for m in found if m["name"] == name] for name in ("DDIM", "DPM-Solver++ 2M", "DDPM")}
    assert errors["DDPM"] == [None] * 3
    # Twice the evaluations at least halve the error of a first-order method.
    for name in ("DDIM", "DPM-Solver++ 2M"):
        assert all(b < 0.6 * a for a, b in zip(errors[name], errors[name][1:], strict=False)), errors
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert all(name in page for name in errors) and "currentColor" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for name in ("gallery.png", "curves.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        run(f"backend={backend_name}", f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}")
    assert "already contains a gallery" in capsys.readouterr().err


@pytest.mark.parametrize("model", [
    MODEL, DiffusionModel(SPEC, {"name": "edm"}, "edm"), DiffusionModel(SPEC, {"name": "flow"}, "flow")
], ids=lambda p: p.schedule["name"])  # fmt: skip
def test_every_method_has_a_plan_within_each_budget_or_a_reason(model):
    options = {"spacing": "log_snr"}
    entries, left_out = plan_entries(model, [], [5, 9], options)
    assert {e.method for e in entries} | left_out.keys() == METHODS.keys()
    for one in entries:
        assert one.plan.rows <= one.budget
        steps = next(n for n in range(1, 12) if method_plan(model, METHODS[one.method], n, options).rows > one.budget)
        assert method_plan(model, METHODS[one.method], steps - 1, options).rows == one.plan.rows
    first = {e.plan.alpha[0] for e in entries if not METHODS[e.method].stochastic}
    assert max(first) - min(first) < 1e-9  # all start from the same noise level


def test_a_named_method_must_be_defined_for_the_process():
    with pytest.raises(DuetError, match=r"methods: 'ddimm' was given; it must be one of .*; .* Did you mean 'DDIM'"):
        plan_entries(MODEL, ["ddimm"], [5], {"spacing": None})


def test_curves_have_a_panel_per_order_and_no_stochastic_line():
    methods = [
        {"name": name, "order": order, "stochastic": error is None, "budget": n, "evaluations": n, "error": error}
        for name, order, error in (("first", 1, 0.1), ("second", 2, 0.01), ("noisy", 1, None))
        for n in (5, 10)
    ]
    text = curves(methods, "svg").decode()
    assert "order 1" in text and "order 2" in text and "first" in text and "noisy" not in text
    assert curves(methods, "svg") == curves(methods, "svg")


@pytest.mark.parametrize("orders, named", [(1, 1), (2, 2), (3, 2), (4, 2)])
def test_the_lowest_panel_of_every_column_has_its_numbers(orders, named):
    methods = [
        {
            "name": f"of {order}",
            "order": order,
            "stochastic": False,
            "budget": n,
            "evaluations": n,
            "error": 3.0**-order,
        }
        for order in range(1, orders + 1)
        for n in (77, 177)
    ]
    assert len(re.findall(r">177</text>", curves(methods, "svg").decode())) == named


def test_methods_that_draw_noise_alone_make_a_page_without_curves(tmp_path):
    one = {"name": "DDPM", "order": 1, "stochastic": True, "budget": 5, "evaluations": 5, "error": None}
    here = {"backend": "reference", "device": "cpu", "precision": "float64", "command": "it"}
    report = {"methods": [one], "samples": 1, "seed": 0, "environment": here, "images_seen": 1, "left_out": {}}
    report |= {"reference": {"method": "DDIM", "steps": 9}, "options": {"spacing": "log_snr"}}
    page = write(report, png_bytes(np.zeros((4, 4, 1), np.uint8)), tmp_path).read_text()
    assert "DDPM" in page and "Error against" not in page and not list(tmp_path.glob("curves*"))

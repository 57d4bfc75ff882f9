"""Every sampler on one checkpoint: pictures and errors against the number of network evaluations.

    python3 -m duet gallery checkpoint=outputs/demo/torch out=outputs/gallery
    python3 -m duet gallery backend=tf checkpoint=RUN out=DIR methods=[DDIM,Heun] budgets=[10,20,50]

All methods start from the same noise on the same grid of noise levels (`spacing`), without a clip, so that the
deterministic ones have one common limit: the probability flow's, which `reference` draws in `reference_steps` steps.
Their error is the root of the mean square over pixels and samples, in units of the data range [-1, 1]. A method that
draws fresh noise has no such limit, and its pictures are shown alone. Writes gallery.png, curves.png and .svg,
gallery.json and gallery.html.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from diffusion_core.backend.interface import Backend, Network
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.data import to_uint8
from diffusion_core.images import render
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate
from diffusion_core.runs.checkpoint import load_checkpoint, weights_hash
from diffusion_core.runs.run_directory import describe_environment, write_json
from diffusion_core.sampling import METHODS, Method, SamplerPlan
from experiments.common import check_sample, open_backend, sample_labels, sampling_calls, weights_of, which_of
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.report.gallery import write
from experiments.runtime.progress import Counter


@dataclass(frozen=True, eq=False)
class Entry:
    """One method with one number of steps.

    Args:
        method: its name in `METHODS`.
        budget: the evaluations that it was allowed.
        plan: its rows.
    """

    method: str
    budget: int
    plan: SamplerPlan


@command("gallery", result=("gallery.json", "a gallery"))
def main(cfg: DictConfig) -> None:
    """Draw with every method, and write pictures, numbers and the page."""
    found = load_checkpoint(cfg.checkpoint)
    model, out = found.model, Path(cfg.out)
    cfg.sample.weights = which_of("sample.weights", cfg.sample.weights, found)
    check_sample(cfg.sample, model, len(found.state.averages))
    if not cfg.budgets or min(cfg.budgets) < 1:
        raise DuetError(f"budgets: {list(cfg.budgets)} was given; it must be numbers of evaluations, at least 1")
    options = {"spacing": plain(cfg.spacing), "guidance_scale": cfg.guidance_scale}
    entries, left_out = planned(model, list(cfg.methods), sorted(set(cfg.budgets)), options)
    check_method("reference", cfg.reference)
    reference = plan_of(model, METHODS[cfg.reference], cfg.reference_steps, options)
    drawn = [(plan, cfg.sample.count) for plan in (*(one.plan for one in entries), reference)]
    backend = open_backend(cfg, sampling_calls(drawn, cfg.sample.batch))
    network = backend.network(model.program, weights_of(found.state, cfg.sample.weights))
    images = _drawn(cfg, backend, network, model, entries, reference)
    limit = images.pop()
    half = (model.value_range[1] - model.value_range[0]) / 2
    errors = [float(np.sqrt(np.mean(np.square((image - limit) / half)))) for image in images]
    report = {
        "checkpoint": str(cfg.checkpoint),
        "weights_sha256": weights_hash(cfg.checkpoint, cfg.sample.weights),
        "images_seen": found.images_seen,
        "samples": cfg.sample.count,
        "seed": cfg.sample.seed,
        "options": options,
        "reference": {"method": cfg.reference, "steps": cfg.reference_steps},
        "environment": describe_environment(backend.describe()),
        "left_out": left_out,
        "methods": [
            {
                "name": one.method,
                "order": METHODS[one.method].order,
                "stochastic": METHODS[one.method].stochastic,
                "budget": one.budget,
                "evaluations": one.plan.rows,
                "error": None if METHODS[one.method].stochastic else error,
            }
            for one, error in zip(entries, errors, strict=True)
        ],
    }
    sheet = sheet_of(report["methods"], [to_uint8(i[: cfg.shown], model.value_range) for i in images])
    page = write(report, render.png_bytes(sheet), out)
    write_json(out / "gallery.json", report)
    methods = pluralize(len({one.method for one in entries}), "method")
    print(f"{pluralize(len(entries), 'plan')} of {methods}: {page}")


def plan_of(model: DiffusionModel, method: Method, steps: int, options: dict[str, Any]) -> SamplerPlan:
    """The plan of a method in so many steps, without a clip."""
    return model.plan(method.sampler, steps=steps, clip=None, **(options | dict(method.options)))


def check_method(key: str, name: str) -> None:
    """Refuse a method that does not exist; names hold commas, so they are told apart by semicolons."""
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), {known.lower(): known for known in METHODS}, n=1)
        meant = next((f" Did you mean '{known}'?" for known in METHODS if known.lower() in near), "")
        raise DuetError(f"{key}: '{name}' was given; it must be one of {'; '.join(METHODS)}.{meant}")


def planned(
    model: DiffusionModel, names: list[str], budgets: list[int], options: dict[str, Any]
) -> tuple[list[Entry], dict[str, str]]:
    """The most steps of each method within each budget, and why some methods have none.

    Raises:
        DuetError: for a method that does not exist, or one that was asked for and is not defined here.
    """
    for name in names:
        check_method("methods", name)
    entries, left_out = [], {}
    for name in names or METHODS:
        method = METHODS[name]
        try:
            made = [within(model, method, budget, options) for budget in budgets]
        except DuetError as error:
            if names:
                raise
            left_out[name] = str(error)
            continue
        entries += [Entry(name, budget, plan) for budget, plan in zip(budgets, made, strict=True) if plan is not None]
    if not entries:
        raise DuetError(f"methods: none is defined for this checkpoint's process; {left_out}")
    return entries, left_out


def within(model: DiffusionModel, method: Method, budget: int, options: dict[str, Any]) -> SamplerPlan | None:
    """The plan with the most steps in at most `budget` rows; None where one step has more."""
    for steps in range(-(-(budget + 1) // method.evaluations), 0, -1):
        plan = plan_of(model, method, steps, options)
        if plan.rows <= budget:
            return plan
    return None


def _drawn(
    cfg: DictConfig,
    backend: Backend,
    network: Network,
    model: DiffusionModel,
    entries: list[Entry],
    reference: SamplerPlan,
) -> list[NDArray]:
    """The samples of every plan, those of the reference last."""
    labels, plans = sample_labels(cfg.sample.labels, cfg.sample.count, model), [*(e.plan for e in entries), reference]
    drawn = []
    with Counter("drawing", sum(plan.rows for plan in plans), "network evaluations") as progress:
        for i, plan in enumerate(plans):
            drawn.append(
                generate(
                    backend, network, plan, model.spec.image_shape, labels, cfg.sample.seed, batch=cfg.sample.batch
                ).astype(np.float64)
            )
            progress(sum(p.rows for p in plans[: i + 1]), plan.name)
    return drawn


def sheet_of(methods: list[dict[str, Any]], shown: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The picture: methods down, budgets across, with evaluations and error under the samples."""
    names = list(dict.fromkeys(one["name"] for one in methods))
    budgets = sorted({one["budget"] for one in methods})
    cells: dict[tuple[str, int], tuple[NDArray[np.uint8], str]] = {}
    for one, images in zip(methods, shown, strict=True):
        error = "stochastic" if one["error"] is None else f"error {one['error']:.2g}"
        fewer = f"{pluralize(one['evaluations'], 'evaluation')}, " if one["evaluations"] != one["budget"] else ""
        cells[one["name"], one["budget"]] = images, fewer + error
    return render.table(
        [[cells.get((name, budget)) for budget in budgets] for name in names],
        [f"{name}, order {next(m['order'] for m in methods if m['name'] == name)}" for name in names],
        [pluralize(budget, "evaluation") for budget in budgets],
        scale=max(1, 64 // shown[0].shape[1]),
    )


if __name__ == "__main__":
    main()

"""Every sampler on one checkpoint, and its error against the number of network evaluations.

All methods start from the same noise on the same grid of noise levels, without a clip, so the deterministic ones have
one common limit: the solution of the probability flow ODE, which a reference method approximates in many steps.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.interface import Backend, Network
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.data import to_uint8
from diffusion_core.images import render
from diffusion_core.images.points import is_point, point_coordinates, scatter
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate
from diffusion_core.runs.checkpoint import load_checkpoint, weights_hash
from diffusion_core.runs.run_directory import describe_environment, write_json
from diffusion_core.sampling import METHODS, Method, SamplerPlan
from experiments.report.gallery import write
from experiments.runtime.backends import BackendSetup, sampling_calls
from experiments.runtime.latents import find_decoder
from experiments.runtime.own_networks import OwnNetwork, with_network
from experiments.runtime.progress import Counter
from experiments.sampling.classes import describe_classes, names_of_checkpoint
from experiments.sampling.conditions import check_guided, check_labels_trained, describe_weights
from experiments.sampling.options import SampleOptions, sample_labels

__all__ = ["GallerySetup", "draw_gallery", "method_plan", "plan_entries"]


@dataclass(frozen=True)
class GallerySetup:
    """A request for a gallery.

    Args:
        checkpoint: a run directory or one of its checkpoints.
        methods: names in `METHODS`; empty for all that the process allows.
        budgets: numbers of network evaluations.
        spacing: the grid of noise levels, name or name with options.
        guidance_scale: of all methods.
        reference: the method whose samples the errors are measured against.
        reference_steps: its number of steps.
        shown: samples per method and budget in the figure.
        sample: number, classes, seed and weights of the samples.
        backend: what computes.
    """

    checkpoint: str
    methods: Sequence[str] = ()
    budgets: Sequence[int] = (5, 8, 12, 20, 50, 100)
    spacing: str | Mapping[str, Any] = field(default_factory=lambda: {"name": "log_snr"})
    guidance_scale: float = 1.0
    reference: str = "DPM-Solver++ 3M, exact"
    reference_steps: int = 500
    shown: int = 3
    sample: SampleOptions = field(default_factory=lambda: SampleOptions(count=16))
    backend: BackendSetup = field(default_factory=BackendSetup)
    network: OwnNetwork | None = None

    def __post_init__(self) -> None:
        if not self.budgets or min(self.budgets) < 1:
            raise DuetError(f"budgets: {list(self.budgets)} was given; it must be numbers of evaluations, at least 1")
        _check_method("reference", self.reference)

    @property
    def options(self) -> dict[str, Any]:
        """The sampler options that all methods share."""
        return {"spacing": self.spacing, "guidance_scale": self.guidance_scale}


@dataclass(frozen=True, eq=False)
class GalleryEntry:
    """One method with one number of steps.

    Args:
        method: its name in `METHODS`.
        budget: the network evaluations that it may use.
        plan: its plan.
    """

    method: str
    budget: int
    plan: SamplerPlan


def draw_gallery(setup: GallerySetup, out: Path) -> tuple[Path, list[GalleryEntry]]:
    """Draw samples with every method, and write figures, numbers and the page into the directory `out`.

    Returns:
        The page and what was drawn.

    Raises:
        DuetError: if an option does not fit the checkpoint, or a named method is not defined for its process.
    """
    checkpoint = with_network(load_checkpoint(setup.checkpoint), setup.network, setup.checkpoint)
    model, sample = checkpoint.model, setup.sample.for_checkpoint(checkpoint)
    sample.check(model, len(checkpoint.state.averages))
    labels = sample_labels(sample.labels, sample.count, model)
    unknown = None if checkpoint.training else model.spec.in_channels
    latents = checkpoint.training and checkpoint.training.data.latents
    decoder = find_decoder(latents, sample.autoencoder, unknown, sample.latent_scaling)
    entries, left_out = plan_entries(model, setup.methods, sorted(set(setup.budgets)), setup.options)
    reference = method_plan(model, METHODS[setup.reference], setup.reference_steps, setup.options)
    plans = [*(entry.plan for entry in entries), reference]
    notes = [
        *check_guided(checkpoint, reference),
        *check_labels_trained(checkpoint, labels),
        *describe_weights(checkpoint, sample.weights),
        *filter(None, [describe_classes(labels, names_of_checkpoint(checkpoint))]),
    ]
    for note in notes:
        print(note, flush=True)
    backend = setup.backend.open(sampling_calls([(plan, sample.count) for plan in plans], sample.batch))
    network = backend.network(model.program, checkpoint.state.parts[sample.weights])
    *images, limit = _draw(sample, backend, network, model, plans)
    half = (model.value_range[1] - model.value_range[0]) / 2
    errors = [float(np.sqrt(np.mean(np.square((image - limit) / half)))) for image in images]
    report = {
        "checkpoint": str(setup.checkpoint),
        "weights_sha256": weights_hash(setup.checkpoint, sample.weights),
        "images_seen": checkpoint.images_seen,
        "samples": sample.count,
        "seed": sample.seed,
        "options": setup.options,
        "reference": {"method": setup.reference, "steps": setup.reference_steps},
        "environment": describe_environment(backend.describe()),
        "left_out": left_out,
        "methods": [_describe(entry, error) for entry, error in zip(entries, errors, strict=True)],
    }
    if decoder is None:
        shown = [_shown(setup.shown, sample, model, image) for image in images]
    else:
        shown = [decoder.decode(image[: setup.shown], backend) for image in images]
    sheet = _sheet(report["methods"], shown)
    page = write(report, render.png_bytes(sheet), out)
    write_json(out / "gallery.json", report)
    return page, entries


def _describe(entry: GalleryEntry, error: float) -> dict[str, Any]:
    method = METHODS[entry.method]
    return {
        "name": entry.method,
        "order": method.order,
        "stochastic": method.stochastic,
        "budget": entry.budget,
        "evaluations": entry.plan.rows,
        "error": None if method.stochastic else error,
    }


def method_plan(model: DiffusionModel, method: Method, steps: int, options: Mapping[str, Any]) -> SamplerPlan:
    """Return the plan of a method with this number of steps, without a clip."""
    return model.plan(method.sampler, steps=steps, clip=None, **{**options, **method.options})


def _check_method(key: str, name: str) -> None:
    """Refuse a method that does not exist. Names contain commas, so semicolons separate them in the message."""
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), {known.lower(): known for known in METHODS}, n=1)
        hint = next((f" Did you mean '{known}'?" for known in METHODS if known.lower() in near), "")
        raise DuetError(f"{key}: '{name}' was given; it must be one of {'; '.join(METHODS)}.{hint}")


def plan_entries(
    model: DiffusionModel, names: Sequence[str], budgets: Sequence[int], options: Mapping[str, Any]
) -> tuple[list[GalleryEntry], dict[str, str]]:
    """Return the plan with the most steps of each method within each budget, and why some methods have none.

    Raises:
        DuetError: if a method in `names` does not exist or is not defined for this model, or no method is.
    """
    for name in names:
        _check_method("methods", name)
    entries, left_out = [], {}
    for name in names or METHODS:
        try:
            plans = [_plan_within(model, METHODS[name], budget, options) for budget in budgets]
        except DuetError as error:
            if names:
                raise
            left_out[name] = str(error)
            continue
        entries += [GalleryEntry(name, budget, plan) for budget, plan in zip(budgets, plans, strict=True) if plan]
    if not entries:
        raise DuetError(f"methods: none is defined for this checkpoint's process; {left_out}")
    return entries, left_out


def _plan_within(model: DiffusionModel, method: Method, budget: int, options: Mapping[str, Any]) -> SamplerPlan | None:
    """Return the plan with the most steps in at most `budget` rows; None if one step has more rows."""
    for steps in range(-(-(budget + 1) // method.evaluations), 0, -1):
        plan = method_plan(model, method, steps, options)
        if plan.rows <= budget:
            return plan
    return None


def _draw(
    sample: SampleOptions, backend: Backend, network: Network, model: DiffusionModel, plans: Sequence[SamplerPlan]
) -> list[NDArray[np.float64]]:
    """Return the samples of every plan, each with shape (N, H, W, C)."""
    labels, shape, drawn, done = sample_labels(sample.labels, sample.count, model), model.spec.image_shape, [], 0
    with Counter("drawing", sum(plan.rows for plan in plans), "network evaluations") as progress:
        for plan in plans:
            images = generate(backend, network, plan, shape, labels, sample.seed, batch=sample.batch)
            drawn.append(images.astype(np.float64))
            done += plan.rows
            progress(done, plan.name)
    return drawn


def _shown(count: int, sample: SampleOptions, model: DiffusionModel, images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return what a cell of the figure shows: the first samples side by side, or all points of the plane at once."""
    if not is_point(images.shape):
        return to_uint8(images[:count], model.value_range)
    labels = sample_labels(sample.labels, len(images), model)
    points = point_coordinates(to_uint8(images, model.value_range))
    return scatter(points, labels, size=140, legend=False)[None]


def _sheet(methods: Sequence[Mapping[str, Any]], images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return the figure: methods down, budgets across, with evaluations and error under the samples."""
    names = list(dict.fromkeys(method["name"] for method in methods))
    budgets = sorted({method["budget"] for method in methods})
    cells: dict[tuple[str, int], tuple[NDArray[np.uint8], str]] = {}
    for method, drawn in zip(methods, images, strict=True):
        error = "stochastic" if method["error"] is None else f"error {method['error']:.2g}"
        is_less = method["evaluations"] != method["budget"]
        fewer = f"{pluralize(method['evaluations'], 'evaluation')}, " if is_less else ""
        cells[method["name"], method["budget"]] = drawn, fewer + error
    return render.table(
        [[cells.get((name, budget)) for budget in budgets] for name in names],
        [f"{name}, order {next(m['order'] for m in methods if m['name'] == name)}" for name in names],
        [pluralize(budget, "evaluation") for budget in budgets],
        scale=max(1, 64 // images[0].shape[1]),
    )

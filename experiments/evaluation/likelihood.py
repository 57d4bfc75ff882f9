"""Bits per dimension of images of a data set: the group `likelihood` of `experiments.evaluate`.

    none    not measured
    vlb     the variational bound with its terms, see `diffusion_core.likelihood.bound`
    ode     the density of the deterministic flow at dequantised images, see `diffusion_core.likelihood.flow`

Each bounds from above the bits that a lossless code needs, with another model: `vlb` that of ancestral sampling, `ode`
that of the deterministic flow, down to the least noisy level.

`count` images are drawn from the data set without replacement, by the stream "likelihood/images"; each keeps its
place in the data set as its counter in every stream, so an image's numbers do not depend on which others are measured.
The standard error is that of the mean over images, and holds what noise, drawn levels and probes add to it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset
from diffusion_core.files.atomic import write_atomically
from diffusion_core.likelihood import bits_per_dimension, dequantize, flow_density, variational_bound
from diffusion_core.likelihood.bound import check_variance
from diffusion_core.likelihood.flow import ODE_METHODS
from diffusion_core.training.objective import network_labels
from experiments.evaluation.context import EvaluationContext, Measure, Measurement, mean_number, write_arrays
from experiments.runtime.data import check_data
from experiments.runtime.progress import Counter

__all__ = ["METHODS"]

Array = NDArray[np.float64]


def _vlb(
    given: EvaluationContext,
    *,
    count: int | None = None,
    classes: bool = True,
    batch: int = 128,
    variance: str | None = None,
    levels: int | None = None,
    distribution: str = "importance",
    clip: bool = True,
) -> Measure:
    """The variational bound.

    Args:
        count: how many images; None is all of them.
        classes: whether the network is told the class of each; else it gets its label of no class.
        batch: evaluations at once.
        variance: see `likelihood.bound`; None is that which was trained, or fixed_small where none was.
        levels: see `likelihood.variational_bound`, as are law and clip.
    """
    model = given.checkpoint.model
    variance = variance or ("fixed_small" if model.variance == "fixed" else model.variance)
    check_variance(variance, model.spec.in_channels, model.spec.out_channels)
    model.check_learned("likelihood.variance", variance)
    chosen, label = _images(given, count, classes, batch)

    def bound(forward: Callable[..., NDArray], some: slice, progress: Callable[[int], None] | None = None) -> Any:
        return variational_bound(
            forward, model.process, given.dataset.images[chosen[some]], label[some], chosen[some], given.seed,
            variance=variance, levels=levels, distribution=distribution, clip=clip, value_range=model.value_range, batch=batch,
            progress=progress,
        )  # fmt: skip

    bound(lambda *inputs: None, slice(0, 0))  # the core checks its options on no image at all
    given.asks(len(chosen) * (1 + (levels or model.process.schedule.steps - 1)), batch)

    def measure(out: Path) -> Measurement:
        forward, T = given.network.forward, model.process.schedule.steps
        mine = given.backend.collective.group.slice_of(len(chosen), batch)
        with Counter("bound", (mine.stop - mine.start) * (1 + (levels or T - 1)), unit="evaluations") as progress:
            found = _whole(given, bound(forward, mine, progress), len(chosen), batch)
        per_level = {
            name: found.at_levels(values, T)
            for name, values in (("bits_per_dim", found.terms), ("x0_mse", found.x0_mse), ("eps_mse", found.eps_mse))
        }
        parts = {"prior": found.prior, "steps": found.steps, "decoder": found.decoder}
        _draw_terms(out / "likelihood.png", per_level)
        write_arrays(out / "likelihood.npz", index=chosen, total=found.total, **parts, **per_level)
        options = {
            "variance": variance,
            "levels": levels or T - 1,
            "law": distribution if levels else None,
            "clip": clip,
        }
        return _measured(given, "vlb", found.total, parts, options | _protocol(given, chosen, classes))

    return measure


def _ode(
    given: EvaluationContext,
    *,
    count: int | None = None,
    classes: bool = True,
    batch: int = 128,
    steps: int = 50,
    method: str = "rk4",
    divergence: str = "hutchinson",
    probes: int = 1,
) -> Measure:
    """The density of the deterministic flow, with uniform dequantisation.

    Args:
        count: how many images; None is all of them.
        classes: whether the network is told the class of each; else it gets its label of no class.
        batch: images at once.
        steps: see `likelihood.flow_density`, as are method, divergence and probes.
    """
    model = given.checkpoint.model
    chosen, label = _images(given, count, classes, batch)
    outputs = model.spec.out_channels + model.uncertainty
    value_range, dimensions = model.value_range, given.dataset.images[0].size

    def density(vjp: Callable[..., Any], some: slice, progress: Callable[[int], None] | None = None) -> Any:
        y = dequantize(given.dataset.images[chosen[some]], chosen[some], given.seed, value_range)
        return flow_density(
            vjp, model.process, y, label[some], chosen[some], given.seed,
            steps=steps, method=method, divergence=divergence, probes=probes, outputs=outputs,
            batch=batch, progress=progress,
        )  # fmt: skip

    density(lambda *inputs: None, slice(0, 0))
    vectors = probes if divergence == "hutchinson" else dimensions
    pullbacks = steps * len(ODE_METHODS[method].nodes) * vectors
    given.asks(2 * len(chosen) * pullbacks, batch)  # each forward and backward

    def measure(out: Path) -> Measurement:
        vjp = given.network.vjp
        mine = given.backend.collective.group.slice_of(len(chosen), batch)
        with Counter("flow", mine.stop - mine.start) as progress:
            found = _whole(given, density(vjp, mine, progress), len(chosen), batch)
        in_bits = -1.0 / (dimensions * np.log(2.0))
        total = bits_per_dimension(found.log_density, dimensions, value_range)
        parts = {"prior": in_bits * found.prior, "volume": in_bits * found.volume}
        # What is left are numbers of the range and the first level alone: the bins, and the way to the state.
        parts["scale"] = bits_per_dimension(found.scale, dimensions, value_range)
        write_arrays(out / "likelihood.npz", index=chosen, total=total, **parts)
        options = {"steps": steps, "solver": method, "divergence": divergence, "dequantisation": "uniform"}
        options["probes"] = vectors
        return _measured(given, "ode", total, parts, options | _protocol(given, chosen, classes))

    return measure


def _whole(given: EvaluationContext, found: Any, count: int, batch: int) -> Any:
    """What all processes found, each of its share of so many images."""
    gather = given.backend.collective.gather
    return type(found)(**{name: gather(values, count, batch) for name, values in vars(found).items()})


def _draw_terms(path: Path, per_level: Mapping[str, Array]) -> None:
    """The bound's terms and the errors that they come from, level by level, as PNG."""
    from matplotlib.figure import Figure

    titles = {
        "bits_per_dim": "term of the bound, bits/dim", "x0_mse": r"mean of $(x_0 - D)^2$",
        "eps_mse": r"mean of $(\epsilon - \hat\epsilon)^2$",
    }  # fmt: skip
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = per_level[name]
        t = np.flatnonzero(np.isfinite(values))
        axes.plot(t, values[t], ".-" if len(t) < 100 else "-", color="#1f5f8b", linewidth=1.2, markersize=4)
        axes.set_xlabel("t")
        axes.set_title(title, fontsize=10)
        axes.set_yscale("log")
        axes.grid(color="0.9")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_atomically(path, buffer.getvalue())


def _measured(
    given: EvaluationContext, method: str, total: Array, terms: Mapping[str, Array], facts: Mapping[str, Any]
) -> Measurement:
    """The mean over images of the total and of each of its terms."""
    means = {name: _summary(values) for name, values in terms.items()}
    protocol = {"metric": "likelihood", "method": method, **facts}
    rows = {f"likelihood, {method}": ("bits_per_dim", total)}
    rows |= {f"likelihood, {method}: {name}": (name, values) for name, values in terms.items()}
    numbers = (
        mean_number(given, name, values, key, protocol, "lower", "bits/dim") for name, (key, values) in rows.items()
    )
    return Measurement(
        {"method": method, **_summary(total), "terms": means, **facts, **given.checkpoint_facts()}, tuple(numbers)
    )


def _images(
    given: EvaluationContext, count: int | None, classes: bool, batch: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Which images of the data set are measured, in rising order, and the network's label of each."""
    model, dataset = given.checkpoint.model, given.dataset
    model.check_generates()
    program = model.program
    check_data(dataset, model.spec)
    if count is not None and not 1 <= count <= len(dataset):
        raise DuetError(f"likelihood.count: {count} was given; the data set has 1 to {len(dataset)} images, or null")
    if batch < 1:
        raise DuetError(f"likelihood.batch: {batch} was given; it must be at least 1")
    if not classes and program.classes and program.null_label is None:
        raise DuetError("likelihood.classes: false was given, but the network has no label for no class; use true")
    order = Stream(given.seed, "likelihood/images").permutation(len(dataset))
    chosen = np.sort(order[:count])
    return chosen, _labels(dataset, program, chosen, classes)


def _labels(dataset: Dataset, program: Any, chosen: NDArray, classes: bool) -> NDArray[np.int32]:
    if not classes:
        return np.full(len(chosen), program.null_label or 0, np.int32)
    return network_labels(dataset.labels[chosen], program.classes, program.null_label)


def _summary(values: Array) -> dict[str, float]:
    """Mean over images with its standard error; NaN of a single one."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"bits_per_dim": float(values.mean()), "standard_error": float(error)}


def _protocol(given: EvaluationContext, chosen: NDArray, classes: bool) -> dict[str, Any]:
    conditional = bool(classes and given.checkpoint.model.program.classes)
    return {
        "count": len(chosen),
        "conditional": conditional,
        "seed": given.seed,
        "data": given.data_facts(),
    }


METHODS: Mapping[str, Callable[..., Measure]] = {"vlb": _vlb, "ode": _ode}

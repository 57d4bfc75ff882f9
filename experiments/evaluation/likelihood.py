"""Bits per dimension of the images of a data set: the group `likelihood` of `duet evaluate`.

    none    not measured
    vlb     the variational bound with its terms, see `diffusion_core.likelihood.bound`
    ode     the density of the deterministic flow at dequantised images, see `diffusion_core.likelihood.flow`

Both are upper bounds on the bits of a lossless code, but for different models: `vlb` for that of ancestral sampling,
`ode` for that of the deterministic flow, down to the least noisy level.

`count` images are drawn from the data set without replacement, by the stream "likelihood/images". The index of an image
in the data set is its counter in every stream, so its numbers do not depend on which other images are measured. The
standard error is that of the mean over images; it includes the contribution of random noise, levels and probes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset
from diffusion_core.diffusion.respacing import Respacing
from diffusion_core.diffusion.schedule import with_respacing
from diffusion_core.files.atomic import write_atomically
from diffusion_core.likelihood import bits_per_dimension, dequantize, flow_density, variational_bound
from diffusion_core.likelihood.bound import FIXED, check_variance, with_fixed_variance
from diffusion_core.likelihood.flow import ODE_METHODS
from diffusion_core.runs.run_directory import write_arrays
from diffusion_core.training.labels import network_labels
from experiments.evaluation.context import EvaluationContext, Measure, Measurement
from experiments.runtime.data import check_data
from experiments.runtime.progress import Counter
from experiments.sampling.conditions import check_class_names, check_labels_trained

__all__ = ["LIKELIHOOD_METHODS"]

Array = NDArray[np.float64]


def _vlb(
    context: EvaluationContext,
    *,
    count: int | None = None,
    classes: bool = True,
    batch: int = 128,
    variance: str | None = None,
    levels: int | None = None,
    respacing: Respacing = None,
    distribution: str = "importance",
    clip: bool = True,
) -> Measure:
    """Measure the variational bound.

    Args:
        context: the checkpoint and the data.
        count: the number of images; None means all.
        classes: whether to condition the network on the class of each image; otherwise it gets its null label.
        batch: evaluations per batch.
        variance: see `likelihood.bound`; None means the trained variance, or fixed_small if none was trained. Of
            the two fixed variances, the bound with the other one is a further number, without further evaluations.
        levels: see `likelihood.variational_bound`, as for respacing, distribution and clip.
    """
    model = context.checkpoint.model
    variance = variance or ("fixed_small" if model.variance == "fixed" else model.variance)
    check_variance(variance, model.spec.in_channels, model.spec.out_channels)
    model.check_learned("likelihood.variance", variance)
    indices, label = _images(context, count, classes, batch)

    def bound(forward: Callable[..., NDArray], part: slice, progress: Callable[[int], None] | None = None) -> Any:
        return variational_bound(
            forward, model.process, context.dataset.images[indices[part]], label[part], indices[part], context.seed,
            variance=variance, levels=levels, respacing=respacing, distribution=distribution, clip=clip,
            value_range=model.value_range, batch=batch, progress=progress,
        )  # fmt: skip

    bound(lambda *inputs: None, slice(0, 0))  # checks the options, without images
    schedule = model.process.schedule
    T = (schedule if respacing is None else with_respacing(schedule, respacing, "likelihood.respacing")).steps
    context.plan_calls(len(indices) * (1 + (levels or T - 1)), batch)

    def measure(out: Path) -> Measurement:
        forward = context.network.forward
        own = context.backend.collective.group.slice_of(len(indices), batch)
        with Counter("bound", (own.stop - own.start) * (1 + (levels or T - 1)), unit="evaluations") as progress:
            result = _gather(context, bound(forward, own, progress), len(indices), batch)
        per_level = {
            name: result.at_levels(values, T)
            for name, values in (("bits_per_dim", result.terms), ("x0_mse", result.x0_mse), ("eps_mse", result.eps_mse))
        }
        parts = {"prior": result.prior, "steps": result.steps, "decoder": result.decoder}
        _draw_terms(out / "likelihood.png", per_level)
        write_arrays(out / "likelihood.npz", index=indices, total=result.total, **parts, **per_level)
        options = {
            "variance": variance,
            "levels": levels or T - 1,
            "law": distribution if levels else None,
            "clip": clip,
        } | ({} if respacing is None else {"respacing": respacing})
        others = {
            f"variance {other}": (
                with_fixed_variance(result, model.process, other, respacing).total,
                {"variance": other},
            )
            for other in FIXED
            if variance in FIXED and other != variance
        }
        facts = options | _protocol(context, indices, classes)
        return _measurement(context, "vlb", result.total, parts, facts, others)

    return measure


def _ode(
    context: EvaluationContext,
    *,
    count: int | None = None,
    classes: bool = True,
    batch: int = 128,
    steps: int = 50,
    method: str = "rk4",
    divergence: str = "hutchinson",
    probes: int = 1,
) -> Measure:
    """Measure the density of the deterministic flow, with uniform dequantisation.

    Args:
        context: the checkpoint and the data.
        count: the number of images; None means all.
        classes: whether to condition the network on the class of each image; otherwise it gets its null label.
        batch: images per batch.
        steps: see `likelihood.flow_density`, as for method, divergence and probes.
    """
    model = context.checkpoint.model
    indices, label = _images(context, count, classes, batch)
    outputs = model.spec.out_channels + model.uncertainty
    value_range, dimensions = model.value_range, context.dataset.images[0].size

    def density(vjp: Callable[..., Any], part: slice, progress: Callable[[int], None] | None = None) -> Any:
        y = dequantize(context.dataset.images[indices[part]], indices[part], context.seed, value_range)
        return flow_density(
            vjp, model.process, y, label[part], indices[part], context.seed,
            steps=steps, method=method, divergence=divergence, probes=probes, outputs=outputs,
            batch=batch, progress=progress,
        )  # fmt: skip

    density(lambda *inputs: None, slice(0, 0))
    vectors = probes if divergence == "hutchinson" else dimensions
    vjps = steps * len(ODE_METHODS[method].nodes) * vectors
    context.plan_calls(2 * len(indices) * vjps, batch)  # each is a forward and a backward pass

    def measure(out: Path) -> Measurement:
        vjp = context.network.vjp
        own = context.backend.collective.group.slice_of(len(indices), batch)
        with Counter("flow", own.stop - own.start) as progress:
            result = _gather(context, density(vjp, own, progress), len(indices), batch)
        in_bits = -1.0 / (dimensions * np.log(2.0))
        total = bits_per_dimension(result.log_density, dimensions, value_range)
        parts = {"prior": in_bits * result.prior, "volume": in_bits * result.volume}
        # The rest depends on the value range and the first level alone: the bins, and the scale of the state.
        parts["scale"] = bits_per_dimension(result.scale, dimensions, value_range)
        write_arrays(out / "likelihood.npz", index=indices, total=total, **parts)
        options = {"steps": steps, "solver": method, "divergence": divergence, "dequantisation": "uniform"}
        options["probes"] = vectors
        return _measurement(context, "ode", total, parts, options | _protocol(context, indices, classes))

    return measure


def _gather(context: EvaluationContext, own_result: Any, count: int, batch: int) -> Any:
    """Gather the results of all images; every process has computed a part of them."""
    gather = context.backend.collective.gather
    return type(own_result)(**{name: gather(values, count, batch) for name, values in vars(own_result).items()})


def _draw_terms(path: Path, per_level: Mapping[str, Array]) -> None:
    """Draw the terms of the bound and the errors from which they come by noise level, as a PNG file."""
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


def _measurement(
    context: EvaluationContext, method: str, total: Array, terms: Mapping[str, Array], facts: Mapping[str, Any],
    others: Mapping[str, tuple[Array, Mapping[str, Any]]] = MappingProxyType({}),
) -> Measurement:  # fmt: skip
    """Return the mean over images of the total, of each term, and of other totals with the facts that they change."""
    means = {name: _summary(values) for name, values in terms.items()}
    protocol = {"metric": "likelihood", "method": method, **facts}
    rows = {f"likelihood, {method}": ("bits_per_dim", total)}
    rows |= {f"likelihood, {method}: {name}": (name, values) for name, values in terms.items()}
    numbers = [
        context.mean_number(name, values, key, protocol, "lower", "bits/dim") for name, (key, values) in rows.items()
    ]
    numbers += [
        context.mean_number(f"likelihood, {method}, {name}", values, name, protocol | changed, "lower", "bits/dim")
        for name, (values, changed) in others.items()
    ]
    means_of_others = {"others": {name: _summary(values) for name, (values, _) in others.items()}} if others else {}
    return Measurement(
        {"method": method, **_summary(total), "terms": means, **means_of_others, **facts, **context.checkpoint_facts()},
        tuple(numbers),
    )


def _images(
    context: EvaluationContext, count: int | None, classes: bool, batch: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the indices of the measured images, in ascending order, and the network label of each."""
    model, dataset = context.checkpoint.model, context.dataset
    model.check_generates()
    program = model.program
    check_data(dataset, model.spec)
    if not dataset.is_bytes:
        raise DuetError(
            f"likelihood: bits per dimension are those of bytes, but data {dataset.name} is {dataset.images.dtype}; "
            f"use data of uint8"
        )
    if classes:
        check_class_names("data", context.checkpoint, dataset.class_names, "use the data set of the run")
    if count is not None and not 1 <= count <= len(dataset):
        raise DuetError(f"likelihood.count: {count} was given; the data set has 1 to {len(dataset)} images, or null")
    if batch < 1:
        raise DuetError(f"likelihood.batch: {batch} was given; it must be at least 1")
    if not classes and program.classes and program.null_label is None:
        raise DuetError("likelihood.classes: false was context, but the network has no null label; use true")
    order = Stream(context.seed, "likelihood/images").permutation(len(dataset))
    indices = np.sort(order[:count])
    labels = _labels(dataset, program, indices, classes)
    context.note(check_labels_trained(context.checkpoint, labels, "likelihood.classes", "false was given"))
    return indices, labels


def _labels(dataset: Dataset, program: Any, indices: NDArray, classes: bool) -> NDArray[np.int32]:
    if not classes:
        return np.full(len(indices), program.null_label or 0, np.int32)
    return network_labels(dataset.labels[indices], program.classes, program.null_label)


def _summary(values: Array) -> dict[str, float]:
    """Return the mean over images with its standard error; NaN for a single image."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return {"bits_per_dim": float(values.mean()), "standard_error": float(error)}


def _protocol(context: EvaluationContext, indices: NDArray, classes: bool) -> dict[str, Any]:
    conditional = bool(classes and context.checkpoint.model.program.classes)
    return {
        "count": len(indices),
        "conditional": conditional,
        "seed": context.seed,
        "data": context.data_facts(),
    }


LIKELIHOOD_METHODS: Mapping[str, Callable[..., Measure]] = {"vlb": _vlb, "ode": _ode}

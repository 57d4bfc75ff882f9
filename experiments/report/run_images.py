"""The images on the page of a run: samples by class, samples during training, and how noise becomes images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import pluralize
from diffusion_core.images import render
from diffusion_core.images.points import class_colours, is_point, point_coordinates, scatter

from .run_facts import RunFacts, Samples
from .text import DASH

__all__ = ["generation", "progress", "samples", "samples_lead"]

_ROWS, _COLUMNS, _PLAIN = 12, 16, 80  # classes shown, samples of each, samples without classes
_MOMENTS = 6
_FIGURE_BYTES = 1 << 20


def _by_class(run: RunFacts, samples: Samples) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return class names with the first samples of each class; one row without a name if there are no classes."""
    if not samples.facts.get("conditional"):
        return [("", samples.images)]
    labels = list(dict.fromkeys(samples.labels.tolist()))
    return [(run.class_name(label), samples.images[samples.labels == label]) for label in sorted(labels)]


def samples(run: RunFacts) -> dict[str, Any] | None:
    """Return rows of samples, one for each class, or a scatter plot of points."""
    if not run.samples:
        return None
    last = run.samples[-1]
    if is_point(last.images.shape):
        return {"points": _points(run, last)}
    groups = _by_class(run, last)
    scale = max(1, 56 // last.images.shape[1])
    if groups[0][0] == "":
        return {"grid": render.png_bytes(render.grid(groups[0][1][:_PLAIN], min(_COLUMNS, len(last.images)), scale))}
    columns = min(_COLUMNS, max(len(images) for _, images in groups))
    rows = [(name, _strip(images, columns, scale)) for name, images in groups[:_ROWS]]
    return {"rows": rows, "more": max(0, len(groups) - _ROWS)}


def _strip(images: NDArray[np.uint8], columns: int, scale: int) -> bytes:
    """Return the first images in a row of this many places."""
    return render.png_bytes(render.grid(images[:columns], columns, scale))


def samples_lead(run: RunFacts) -> str:
    """Return how the samples were drawn."""
    if not run.samples:
        return ""
    last = run.samples[-1]
    weights = run.option("sample", "weights", default="ema")
    source = "the weights" if weights == "weights" else f"the moving average ({weights})"
    when = "" if run.is_complete else f" at {last.images_seen:,} images"
    shown = len(last.images) if is_point(last.images.shape) else min(len(last.images), _PLAIN)
    return f"Drawn with {source}{when} by {last.facts.get('plan', DASH)}, seed {last.facts.get('seed', DASH)}. " + (
        f"{pluralize(len(last.images), 'sample')}; the first are shown." if shown < len(last.images) else ""
    )


def _points(run: RunFacts, samples: Samples, most: int = 2000) -> list[dict[str, str]]:
    """Return name, colour and path of dots for the points of each class in [-1, 1]^2, as `scatter` colours them."""
    labels = samples.labels if samples.facts.get("conditional") else np.zeros(len(samples.images), int)
    colours, groups = class_colours(int(labels.max()) + 1), []
    for label in np.unique(labels):
        x, y = point_coordinates(samples.images[labels == label])[: most // len(np.unique(labels)) + 1].T
        dots = "".join(f"M{500 * (a + 1):.0f} {500 * (1 - b):.0f}h0" for a, b in zip(x, y, strict=True))
        name = run.class_name(int(label)) if samples.facts.get("conditional") else ""
        groups.append({"name": name, "colour": "rgb({}, {}, {})".format(*colours[label]), "dots": dots})
    return groups


def progress(run: RunFacts) -> dict[str, Any] | None:
    """Return the first samples of a few moments, or all points of each, if there are several."""
    moments = run.samples
    if len(moments) < 2:
        return None
    chosen = np.unique(np.linspace(0, len(moments) - 1, _MOMENTS).astype(int))
    if all(is_point(s.images.shape) for s in moments):
        shown = [moments[k] for k in chosen]
        plots = [scatter(point_coordinates(s.images), s.labels, size=240, legend=False) for s in shown]
        names = [f"{s.images_seen:,} images" for s in shown]
        return {"plots": [(name, render.png_bytes(plot)) for name, plot in zip(names, plots, strict=True)]}
    scale = max(1, 56 // moments[0].images.shape[1])
    columns = min(_COLUMNS, max(len(s.images) for s in moments))
    rows = [(f"{moments[k].images_seen:,} images", _strip(moments[k].images, columns, scale)) for k in chosen]
    return {"rows": rows}


def generation(run: RunFacts) -> list[dict[str, Any]] | None:
    """Return the figures of the folder of samples."""
    titles = {
        "denoising.png": ("Denoising", "The state and the estimate of the image along one trajectory."),
        "noising.png": ("Noising", "Three training images from clean to noise."),
    }
    if run.samples and is_point(run.samples[-1].images.shape):
        titles |= {
            "denoising.png": (
                "Denoising",
                "The states of the samples and the estimates of x_0 at falling noise levels.",
            ),
            "trajectories.png": (
                "Trajectories",
                "From noise (grey) to samples; at every level noise has unit variance.",
            ),
            "flow.png": ("Probability flow", "Its velocity at falling noise levels, for up to three classes."),
            "noising.png": ("Noising", "Points of the data at rising noise levels."),
        }
    found = []
    for name, (title, caption) in titles.items():
        data = run.figure(name) if name == "noising.png" or run.result else None
        if data and len(data) <= _FIGURE_BYTES:
            found.append({"title": title, "caption": caption, "data": data})
    return found

"""The curves on the page of a run: losses, validation by noise level, learning rate and gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_core.training.validation import metric_name

from .curves import Curve, Panel, curve_chart, curves_of
from .run_facts import RunFacts
from .text import number

__all__ = ["levels", "levels_lead", "loss", "loss_lead", "rate"]

_TRAINING = ("training", "s7")
_WEIGHTS = {"weights": ("validation, weights", "s0"), "ema": ("validation, average", "s1")}
_LEVELS = ("s2", "s5", "s3", "s6")  # from the least noise to the most


def _chart(run: RunFacts, key: str, panels: Sequence[Panel]) -> Any:
    return curve_chart(key, run.metrics.get("images_seen", np.zeros(0)), run.total, panels)


def _weights_curves(run: RunFacts, metric: str) -> list[Curve]:
    """Return a curve of the validation for the weights and each average."""
    extra = {f"ema{k}": (f"validation, average {k + 1}", f"s{k + 2}") for k in range(1, 5)}
    return curves_of(run.metrics, {metric_name(name, metric): style for name, style in (_WEIGHTS | extra).items()})


def loss(run: RunFacts) -> Any:
    """Return the chart of the losses and, for a classifier, of its accuracy; None without metrics."""
    loss = run.metrics.get("loss")
    if loss is None:
        return None
    validation = _weights_curves(run, "loss")
    label = "training and validation loss" if validation else "training loss"
    panels = [Panel("Loss", label, [Curve(*_TRAINING, loss, is_noisy=True), *validation])]
    accuracy = _weights_curves(run, "accuracy")
    panels.append(Panel("Validation accuracy", "validation accuracy", accuracy, is_low=True, is_log=False))
    return _chart(run, "loss", panels)


def loss_lead(run: RunFacts) -> str:
    """Return what the validation loss is measured on."""
    validation = run.environment.get("validation")
    if not validation or not run.weights():
        return ""
    images, of = validation.get("images", 0), validation.get("of_images", 0)
    which = f"{images:,} of {of:,}" if images < of else f"{of:,}"
    return (
        f"The validation loss is that of {which} held-out images ({validation.get('part')}), in evaluation mode, with "
        f"the same noise at every moment. A training loss that falls while it rises shows overfitting."
    )


def _level_names(run: RunFacts) -> tuple[str, list[tuple[str, str]]]:
    """Return the weights that the run samples with, and for each level the name and the range of its noise."""
    weights = run.option("sample", "weights", default="ema")
    weights = weights if weights in run.weights() else "weights"
    levels = (run.environment.get("validation") or {}).get("levels") or []
    last = len(levels) - 1
    ranges = [_range(level, k == 0, k == last) for k, level in enumerate(levels)]
    return weights, [(metric_name(weights, level=k + 1), name) for k, name in enumerate(ranges)]


def _range(level: Mapping[str, Any], is_first: bool, is_last: bool) -> str:
    """Return the range of noise over signal of a level; the first and the last are open."""
    low, high = (f"{end:.2g}" if isinstance(end, int | float) else "∞" for end in level["sigma_over_alpha"])
    return f"σ/α below {high}" if is_first else f"σ/α above {low}" if is_last else f"σ/α {low} to {high}"


def levels(run: RunFacts) -> Any:
    """Return the chart of the validation loss at each noise level; for a single moment, its numbers."""
    names = {name: (title, _LEVELS[k % 4]) for k, (name, title) in enumerate(_level_names(run)[1])}
    curves = curves_of(run.metrics, names)
    if curves and max(np.isfinite(curve.values).sum() for curve in curves) == 1:  # a chart needs a second moment
        return {"rows": [(curve.title, number(float(np.nansum(curve.values)))) for curve in curves]}
    return _chart(run, "levels", [Panel("Validation loss by noise level", "validation loss", curves)])


def levels_lead(run: RunFacts) -> str:
    """Return whose validation loss it is."""
    weights, _ = _level_names(run)
    which = "the weights" if weights == "weights" else f"the moving average ({weights})"
    return f"Of {which}; each level holds a quarter of the noise levels that training draws, σ/α is noise over signal."


def rate(run: RunFacts) -> Any:
    """Return the chart of learning rate and gradient."""
    panels = []
    for name, label, log in (
        ("lr", "learning rate", False),
        ("grad_norm", "norm of the gradient before its clip", True),
    ):
        if name in run.metrics:
            curve = Curve(label, "s4" if name == "lr" else "s7", run.metrics[name], is_noisy=name == "grad_norm")
            panels.append(Panel(label, label, [curve], is_low=True, is_log=log))
    return _chart(run, "rate", panels)

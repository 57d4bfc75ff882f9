"""What an `Objective` refuses: options out of range, and options that contradict each other.

The functions take the objective, which calls them; a message names the configuration key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from diffusion_core.backend.interface import CROSS_ENTROPY, DISTANCES
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.diffusion.variational import BOUNDS, CDFS, VARIANCES
from diffusion_core.training.labels import network_labels
from diffusion_core.training.targets.method import check_teacher, check_times

__all__ = ["check_options", "check_together"]

# Options of the regression, which a method of `targets` has in a way of its own or cannot have.
_OF_REGRESSION = (
    "distance", "first_t", "weighting", "timestep_sampling", "input_perturbation", "path_noise", "bound",
)  # fmt: skip


def check_options(objective: Any) -> None:
    """Refuse options that are out of range, and those that others ignore.

    Raises:
        DuetError: the message names the configuration key.
    """
    check_choice("process.distance", objective.distance, (*DISTANCES, CROSS_ENTROPY))
    if not 0 <= objective.label_dropout <= 1:
        raise DuetError(f"process.label_dropout: {objective.label_dropout} was given; it must be a probability, 0 to 1")
    if objective.label_dropout and objective.null_label is None:
        what = 'no label for "no class"' if objective.classes else "no classes to drop"
        instead = "model.null_class=last" if objective.classes else "model.num_classes"
        raise DuetError(f"process.label_dropout: the network has {what}; use 0, or set {instead}")
    if objective.classes < 0:
        raise DuetError(f"classes: {objective.classes} was given; it must be 0 or the number of classes")
    for name in ("offset_noise", "input_perturbation"):
        if not 0 <= getattr(objective, name) < np.inf:
            raise DuetError(f"process.{name}: {getattr(objective, name)} was given; it must be 0 or a positive number")
    network_labels([], objective.classes or objective.null_label or 0, objective.null_label)
    check_choice("process.variance", objective.variance, VARIANCES)
    if objective.variance != "fixed" and objective.input_perturbation:
        raise DuetError("process.input_perturbation: use 0 with the variational bound, which needs uint8 images")
    _check_bound(objective)
    if objective.is_vlb_only and (objective.uncertainty or objective.weighting.get("name") != "simple"):
        given = "uncertainty: true" if objective.uncertainty else f"weighting: {objective.weighting.get('name')}"
        what = f"process.{given}"
        raise DuetError(f"{what} was given, but process.bound={objective.bound} ignores it; use hybrid")
    _check_method(objective)


def check_together(objective: Any) -> None:
    """Refuse what was made of the options where it does not fit together.

    Raises:
        DuetError: the message names the configuration key.
    """
    if objective.variance != "fixed" and objective.around_path is not None:
        raise DuetError("process.path_noise: use none with the variational bound, which needs uint8 images")
    if objective.coupled.per_class and not (objective.classes or objective.null_label):
        raise DuetError("process.coupling.per_class: true was given, but the network has no classes; use false")
    if objective.needs_whole_batch and objective.variance != "fixed":
        raise DuetError(
            f"process.coupling: {objective.coupling['name']} was given with process.variance={objective.variance}, but "
            "the variational bound needs noise that is independent of the images; use independent, or variance=fixed"
        )


def _check_method(objective: Any) -> None:
    """Refuse a method on what it cannot be used on, and options of the regression beside it."""
    if (method := objective.training_method) is None:
        return
    name = objective.objective["name"]
    for option in _OF_REGRESSION:
        if (value := getattr(objective, option)) != _default(objective, option):
            value = value["name"] if isinstance(value, Mapping) else value
            raise DuetError(
                f"process.{option}: {value} was given with objective={name}, which has its own; leave it out, or "
                f"use the options of the objective"
            )
    for option, what, use in (
        ("uncertainty", "an uncertainty", "process.uncertainty=false, or model.logvar_channels=0 for EDM2"),
        ("self_conditioned", "self-conditioning", "model.self_conditioning=false"),
    ):
        if getattr(objective, option) and not (option == "uncertainty" and method.uses_uncertainty):
            raise DuetError(
                f"objective: {name} was given for a network with {what}, which it does not train; use {use}"
            )
    if objective.variance != "fixed":
        raise DuetError(f"process.variance: {objective.variance} was given with objective={name}; use fixed")
    if objective.setting is None:
        raise DuetError(f"objective: {name} needs the network; make it with Objective.for_model")
    check_teacher(method, objective.setting)
    method.check(objective.setting)
    check_times(method, objective.setting)


def _check_bound(objective: Any) -> None:
    """Refuse options of the variational bound that the loss would ignore."""
    check_choice("process.bound", objective.bound, BOUNDS)
    if objective.variance == "fixed" and objective.bound != "hybrid":
        raise DuetError(
            f"process.bound: {objective.bound} was given, but process.variance=fixed trains without the bound; use "
            "process.variance=fixed_small or fixed_large, or learned_range"
        )
    check_choice("process.bound_cdf", objective.bound_cdf, CDFS)
    if objective.bound_cdf != _default(objective, "bound_cdf") and objective.variance == "fixed":
        raise DuetError(
            f"process.bound_cdf: {objective.bound_cdf} was given, but process.variance=fixed trains without the bound; "
            "leave it out, or use process.variance=learned_range"
        )
    if objective.bound_weight != _default(objective, "bound_weight") and (
        objective.variance == "fixed" or objective.bound != "hybrid"
    ):
        what = "process.variance=fixed" if objective.variance == "fixed" else f"process.bound={objective.bound}"
        raise DuetError(
            f"process.bound_weight: {objective.bound_weight} was given, but {what} ignores it; leave it out, or use "
            "process.variance=learned_range process.bound=hybrid"
        )


def _default(objective: Any, option: str) -> Any:
    """Return the default of an option."""
    field = next(field for field in fields(objective) if field.name == option)
    return field.default_factory() if field.default is MISSING else field.default

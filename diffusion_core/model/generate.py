"""Sampling: sample k has the same noise in any batch, on any machine, in either framework.

Its starting noise is Stream(seed, "sample/start") at index k, the noise of row i is Stream(seed, "sample/noise") at
(index k, row i). Samples of the same index therefore differ between frameworks by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import Backend, Guidance, Network, NoiseSource, StepCallback
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import add_noise
from diffusion_core.networks.program import Program
from diffusion_core.runtime.distributed import Collective
from diffusion_core.sampling.edit import Edit
from diffusion_core.sampling.plan import SamplerPlan

__all__ = ["check_labels", "describe_labels", "generate", "known_labels", "noise_source", "start_noise"]


def start_noise(plan: SamplerPlan, seed: int, index: NDArray, shape: tuple[int, ...], dtype: type) -> NDArray:
    """Return the noise that samples start from, with shape (B, *shape)."""
    return (plan.start_scale * Stream(seed, "sample/start").normal(index, shape)).astype(dtype)


def noise_source(seed: int, index: NDArray, shape: tuple[int, ...], dtype: type) -> NoiseSource:
    """Return a function of the row: the fresh noise of the samples with these indices."""
    stream = Stream(seed, "sample/noise")
    return lambda row: stream.normal(index, shape, row, dtype)


def known_source(plan: SamplerPlan, images: NDArray, seed: int, index: NDArray, dtype: type) -> NoiseSource:
    """Return a function of the row: images with the noise of the level it leads to, from Stream(seed, "edit/known")."""
    stream = Stream(seed, "edit/known")

    def known(row: int) -> NDArray:
        eps = stream.normal(index, images.shape[1:], row)
        return add_noise(images.astype(np.float64), eps, plan.alpha[row + 1], plan.sigma[row + 1]).astype(dtype)

    return known


def check_labels(
    labels: ArrayLike,
    program: Program,
    plan: SamplerPlan,
    has_guide: bool = False,
    classifier: Program | None = None,
) -> NDArray[np.int32]:
    """Return labels as int32.

    Guidance without a guide needs a network with classes, as it uses the output without a class. With a classifier each
    label must be a class: one of the network, or of the classifier if the network has no classes.

    Args:
        labels: with any shape.
        program: the network to sample from.
        plan: its guidance determines which labels are valid.
        has_guide: whether a second network guides (autoguidance).
        classifier: the classifier that guides, if any.

    Raises:
        DuetError: for a label that does not exist, or guidance of a network without classes. The message lists the
            valid labels.
    """
    labels = np.asarray(labels)
    if np.any(plan.is_guided) and program.null_label is None and not has_guide:
        lacks = "was trained without a label for no class" if program.classes else "has no classes"
        raise DuetError(
            f"sampler.guidance_scale: {plan.guidance_scale.max():g} was given, but the network {lacks}; use 1"
        )
    if not program.classes and classifier is None:
        return np.zeros(labels.shape, np.int32)
    known = known_labels(program, classifier)
    wrong = labels[~np.isin(labels, known)]
    if wrong.size:
        raise DuetError(f"label {wrong[0]}: {describe_labels(program, classifier)}")
    return labels.astype(np.int32)


def known_labels(program: Program, classifier: Program | None = None) -> list[int]:
    """Return the labels that samples may have, rising; empty if neither network has classes."""
    if classifier is not None:
        return list(program.labels or classifier.labels)
    if program.null_label is None:
        return list(program.labels)
    return list(range(program.classes + 1))


def describe_labels(program: Program, classifier: Program | None = None) -> str:
    """Describe the valid labels in one phrase, for errors."""
    if classifier is not None:
        known = known_labels(program, classifier)
        return f"the classifier has classes {known[0]}..{known[-1]}"
    if not program.classes:
        return "the network has no classes"
    first, last = program.labels[0], program.labels[-1]
    none = "none" if program.null_label is None else program.null_label
    return f"the network has classes {first}..{last}, and {none} for no class"


def _rows_of_features(guidance: Guidance, rows: slice) -> Guidance:
    """Return the guidance of a batch of the samples."""
    if guidance.features is None:
        return guidance
    null = None if guidance.null_features is None else guidance.null_features[rows]
    return replace(guidance, features=guidance.features[rows], null_features=null)


def generate(
    backend: Backend,
    network: Network,
    plan: SamplerPlan,
    shape: tuple[int, int, int],
    labels: ArrayLike,
    seed: int,
    first: int = 0,
    batch: int = 64,
    callback: StepCallback | None = None,
    progress: Callable[[int], None] | None = None,
    guidance: Guidance | None = None,
    edit: Edit | None = None,
    collective: Collective | None = None,
    pause: Callable[[], None] | None = None,
) -> NDArray:
    """Sample images with the indices first, first + 1, ..., one for each label.

    Args:
        backend: runs the plan.
        network: the network to sample from.
        plan: see `SamplerPlan`.
        shape: of one image, (h, w, c).
        labels: one per sample, with shape (N,).
        seed: of the sampling streams.
        first: index of the first sample; an edit has its own indices.
        batch: number of samples to compute at once; affects only rounding.
        callback: see `backend.StepCallback`; called for the first batch only.
        progress: called after each batch with the number of samples done.
        guidance: networks that guide in addition to the plan; None for none.
        edit: what each sample starts from and keeps; None for sampling from noise.
        collective: the processes that share the batches; each of them returns all samples.
        pause: called by every process after each round of batches; an exception from it ends sampling.

    Returns:
        Images with shape (N, H, W, C) in the value range of the data, which they may exceed slightly.

    Raises:
        DuetError: for invalid labels, another number of labels than the edit has samples, or a plan of two times for
            a network of one.
    """
    guidance, collective = guidance or Guidance(), collective or Collective()
    classifier = None if guidance.classifier is None else guidance.classifier.program
    has_guide = guidance.guide is not None or guidance.null_features is not None
    labels = check_labels(labels, network.program, plan, has_guide, classifier)
    if plan.second_time is not None and not network.program.two_times:
        raise DuetError(
            f"sampler {plan.name}: its network reads the length of a step as a second time, which this network does "
            "not take; use another sampler, or a network of objective=mean_flow or shortcut; an own network takes it "
            "by inputs='x, t, h=second_time'"
        )
    dtype = backend.config.host_dtype
    if edit is not None and len(edit.index) != len(labels):
        raise DuetError(f"edit: it has {len(edit.index)} samples, but {len(labels)} labels were given")
    indices = first + np.arange(len(labels)) if edit is None else edit.index
    images = np.zeros((len(labels), *shape), dtype)
    for round_start in range(0, len(labels), batch * collective.group.size):  # one batch for each process
        at = round_start + batch * collective.group.rank
        if at < len(labels):
            rows = slice(at, at + batch)
            index, guides = indices[rows], guidance
            start = start_noise(plan, seed, index, shape, dtype)
            if edit is not None and edit.start is not None:
                start = edit.start[rows].astype(dtype)
            if edit is not None and edit.mask is not None:
                known = known_source(plan, edit.images[rows], seed, index, dtype)
                guides = replace(guidance, mask=edit.mask[rows].astype(dtype), known=known)
            if edit is not None and edit.measurement is not None:
                guides = replace(guides, measurement=edit.measurement.rows(rows))
            guides = _rows_of_features(guides, rows)
            noise = noise_source(seed, index, shape, dtype)
            images[rows] = backend.sample(
                network, plan, start, labels[rows], noise, callback if at == 0 else None, guides
            )
            if progress is not None:
                progress(at + len(index))
        if collective.group.size > 1:
            together = slice(round_start, round_start + batch * collective.group.size)
            images[together] = collective.all_reduce(images[together])
        if pause is not None:
            pause()
    return images

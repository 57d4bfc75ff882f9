"""Drawing samples: sample k is drawn from the same noise in any batch, on any machine, in either framework.

Its starting noise is Stream(seed, "sample/start") at index k, the noise of row i is Stream(seed, "sample/noise") at
(index k, row i). What the network makes of them differs by rounding alone.
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
    """The images that samples start from, with shape (B, *shape)."""
    return (plan.start_scale * Stream(seed, "sample/start").normal(index, shape)).astype(dtype)


def noise_source(seed: int, index: NDArray, shape: tuple[int, ...], dtype: type) -> NoiseSource:
    """The fresh noise of each row for the samples of these indices."""
    stream = Stream(seed, "sample/noise")
    return lambda row: stream.normal(index, shape, row, dtype)


def known_source(plan: SamplerPlan, pictures: NDArray, seed: int, index: NDArray, dtype: type) -> NoiseSource:
    """Pictures with the noise of the level that each row leads to, from Stream(seed, "edit/known")."""
    stream = Stream(seed, "edit/known")

    def known(row: int) -> NDArray:
        eps = stream.normal(index, pictures.shape[1:], row)
        return add_noise(pictures.astype(np.float64), eps, plan.alpha[row + 1], plan.sigma[row + 1]).astype(dtype)

    return known


def check_labels(
    labels: ArrayLike,
    program: Program,
    plan: SamplerPlan,
    has_guide: bool = False,
    classifier: Program | None = None,
) -> NDArray[np.int32]:
    """The network's labels as int32, or an error that says which there are.

    Guidance leads away from no class, unless there is another network that it leads away from. A classifier leads to a
    class, so that each label must be of one: the network's, or the classifier's own where the network knows none.
    """
    labels = np.asarray(labels)
    if np.any(plan.is_guided) and program.null_label is None and not has_guide:
        raise DuetError(
            f"sampler.guidance_scale: {plan.guidance_scale.max():g} needs classes, but the network has none; use 1"
        )
    if program.null_label is None and classifier is None:
        return np.zeros(labels.shape, np.int32)
    known = known_labels(program, classifier)
    wrong = labels[~np.isin(labels, known)]
    if wrong.size:
        raise DuetError(f"label {wrong[0]}: {describe_labels(program, classifier)}")
    return labels.astype(np.int32)


def known_labels(program: Program, classifier: Program | None = None) -> list[int]:
    """The labels that samples may have, rising; empty where nothing knows classes."""
    if classifier is not None:
        return list(program.labels or classifier.labels)
    return list(range(program.classes + 1)) if program.null_label is not None else []


def describe_labels(program: Program, classifier: Program | None = None) -> str:
    """Which labels there are, for people."""
    if classifier is not None:
        known = known_labels(program, classifier)
        return f"the classifier leads to classes {known[0]}..{known[-1]}"
    if not program.classes:
        return "the network has no classes"
    first, last = program.labels[0], program.labels[-1]
    return f"the network has classes {first}..{last}, and {program.null_label} for no class"


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
    """Samples first, first + 1, ... with one label each; images with shape (N, H, W, C) near the data's range.

    Args:
        shape: of one image, (h, w, c).
        labels: one class per sample, with shape (N,).
        seed: of the sampling streams.
        first: index of the first sample; those of an edit have their own.
        batch: how many are computed at once; changes no picture.
        callback: see `backend.StepCallback`; called for the first batch alone.
        progress: called with the number of samples done after each batch.
        guidance: what leads all of them; None is nothing beside the plan.
        edit: what each sample starts from and keeps, with the plan; None is noise, and nothing.
        collective: the processes that each draw some of the batches; all are given all samples.
        pause: called after each round of batches, by every process; what it raises ends the drawing.

    Raises:
        DuetError: for labels that the network does not have, or another number of them than the edit has samples.
    """
    guidance, collective = guidance or Guidance(), collective or Collective()
    classifier = None if guidance.classifier is None else guidance.classifier.program
    labels = check_labels(labels, network.program, plan, guidance.guide is not None, classifier)
    dtype = backend.config.host_dtype
    if edit is not None and len(edit.index) != len(labels):
        raise DuetError(f"edit: it has {len(edit.index)} samples, but {len(labels)} labels were given")
    indices = first + np.arange(len(labels)) if edit is None else edit.index
    images = np.zeros((len(labels), *shape), dtype)
    for met in range(0, len(labels), batch * collective.group.size):  # a round, of a batch for each process
        at = met + batch * collective.group.rank
        if at < len(labels):
            some = slice(at, at + batch)
            index, led = indices[some], guidance
            start = start_noise(plan, seed, index, shape, dtype)
            if edit is not None and edit.start is not None:
                start = edit.start[some].astype(dtype)
            if edit is not None and edit.mask is not None:
                known = known_source(plan, edit.images[some], seed, index, dtype)
                led = replace(guidance, mask=edit.mask[some].astype(dtype), known=known)
            noise = noise_source(seed, index, shape, dtype)
            images[some] = backend.sample(network, plan, start, labels[some], noise, callback if at == 0 else None, led)
            if progress is not None:
                progress(at + len(index))
        if collective.group.size > 1:
            together = slice(met, met + batch * collective.group.size)
            images[together] = collective.all_reduce(images[together])
        if pause is not None:
            pause()
    return images

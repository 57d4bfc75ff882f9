"""The likelihood of samples under a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import VJP
from diffusion_core.common.errors import DuetError
from diffusion_core.data.arrays import host_array
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range
from diffusion_core.diffusion.process import Process
from diffusion_core.likelihood import dequantize, flow_density
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.own_call import samples_to_images
from diffusion_core.networks.program import Program
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.training.labels import network_labels
from duet.api.options import check_types, unknown_option
from duet.api.own import CALL, check_has_labels, read_labels, split_call
from duet.api.runs import Run, load_run, run_setup
from experiments.runtime import own_files, own_networks
from experiments.runtime.own_networks import pack_conditions
from experiments.sampling.options import choose_weights

__all__ = ["log_likelihood"]


@check_types
def log_likelihood(
    source: Any,
    images: Any,
    process: Process | None = None,
    *,
    labels: ArrayLike | None = None,
    conditions: Mapping[str, Any] | None = None,
    steps: int = 50,
    method: str = "rk4",
    divergence: str = "hutchinson",
    probes: int = 1,
    seed: int = 0,
    first: int = 0,
    batch: int = 128,
    value_range: tuple[float, float] | None = None,
    weights: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    **call: Any,
) -> NDArray[np.float64]:
    """Return the log-density of samples under the deterministic flow of a network, in nats.

    The flow maps noise to samples without randomness, so its density is exact up to the error of the Runge-Kutta
    method in `steps`. The divergence is exact, or its unbiased estimate by random signs (Hutchinson).

    Args:
        source: a run or its path, or an own network, see `duet.adapt`.
        images: samples in the network's layout: numbers in the value range of the data, or uint8, to which uniform
            noise below one pixel step is added first. For a run of a network of Duet, with the channels last.
        process: of an own network, see `duet.process`; a run has its own.
        labels: one class for all samples or one for each, numbered from 0 as in the data, also where null_label=0;
            None is "no class" if the network has one.
        conditions: further inputs of an own network by name, each with one value per sample. Those of a run are zeros.
        steps: of the flow's path; each evaluates the network and its derivative once per stage and probe.
        method: ``"rk4"`` (four stages) or ``"heun"`` (two).
        divergence: ``"hutchinson"`` or ``"exact"``, which takes one derivative for each number of a sample.
        probes: vectors of signs over which the estimate is averaged.
        seed: of the signs and of the noise below one pixel step.
        first: the index of the first sample, which selects them.
        batch: samples per network call; it does not change the result beyond rounding.
        value_range: of the data; None is that of the run, or (-1, 1).
        weights: of a run, see `duet.sample`.
        backend: of a run, see `duet.sample`.
        device: of a run, see `duet.sample`.
        precision: of a run, see `duet.sample`.
        call: how an own network is called, see `duet.adapt`.

    Returns:
        The log-density of each sample at its values in the value range, with shape (N,). For uint8 images of d numbers,
        ``-(log_density + d * log((high - low) / 255)) / (d * log(2))`` is the number of bits per dimension.

    Raises:
        DuetError: for an option that does not exist or does not fit, or a function of NumPy arrays, which has no
            derivatives.

    Example:
        An own network, and a run::

            log_p = duet.log_likelihood(module, images, duet.process("cosine", "v"), steps=25)
            log_p = duet.log_likelihood("outputs/digits", test.images, labels=test.labels)
    """
    if batch < 1:
        raise DuetError(f"batch: {batch} was given; it must be at least 1")
    options = {"weights": weights, "backend": backend, "device": device, "precision": precision}
    if isinstance(source, Checkpoint) or (isinstance(source, str | Path) and not own_files.is_network(source)):
        if conditions is not None:
            raise DuetError(
                "conditions: they were given with a run, whose conditions are zeros here; give the network of the run, "
                "as in duet.log_likelihood(run.network(), images, process, conditions=...)"
            )
        for name, value in {"process": process, **call}.items():
            if value is not None:
                raise DuetError(f"{name}: it was given, but a run has its own; leave it out")
        subject = _of_run(load_run(source) if isinstance(source, str | Path) else source, images, labels, **options)
    else:
        for name, value in options.items():
            if value not in (None, "auto"):
                raise DuetError(
                    f"{name}: it is for a run; an own network is evaluated where and as it is; leave it out"
                )
        subject = _of_own(source, images, process, labels, conditions, call)
    array, index = subject.images, first + np.arange(len(subject.images))
    low, high = check_value_range(value_range or subject.value_range, "value_range")
    y = dequantize(array, index, seed, (low, high)) if array.dtype == np.uint8 else array.astype(np.float64)
    parts = [np.zeros(0)]
    for at in range(0, len(y), batch):
        rows = slice(at, at + batch)
        density = flow_density(
            subject.vjp(rows), subject.process, y[rows], subject.labels[rows], index[rows], seed, steps=steps,
            method=method, divergence=divergence, probes=probes, outputs=subject.outputs, batch=batch,
        )  # fmt: skip
        parts.append(density.log_density)
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Subject:
    """A network with the images to judge, b h w c, and everything that it is given with them."""

    network: Any
    process: Process
    images: NDArray
    labels: NDArray[np.int32]
    features: NDArray | None
    outputs: int
    value_range: tuple[float, float]

    def vjp(self, rows: slice) -> VJP:
        """Return the vector-Jacobian product for these images."""
        features = None if self.features is None else self.features[rows]
        return lambda *inputs: self.network.vjp(*inputs, features)


def _of_run(
    run: Checkpoint, images: Any, labels: ArrayLike | None, weights: str | None, backend: str | None, device: str,
    precision: str | None,
) -> _Subject:  # fmt: skip
    model, own = run.model, run.own if isinstance(run, Run) else None
    model.check_generates()
    array = _numbers(own.backend.own.to_array(images) if own else np.asarray(images))
    layout = own.layout if own else "channels_last"
    shape = model.spec.shape if isinstance(model.spec, OwnSpec) else model.spec.image_shape
    if array.shape[1:] != tuple(shape):
        raise DuetError(
            f"images: an array with shape {array.shape} was given; it must have (N, {', '.join(map(str, shape))})"
        )
    program = model.program
    numbers = _network_labels(None if labels is None else host_array(labels), len(array), program)
    opened = run_setup(run, backend, device, precision, compile=False).load()
    network = opened.network(program, run.state.parts[choose_weights("weights", weights, run)])
    outputs = model.spec.out_channels + model.uncertainty
    return _Subject(
        network, model.process, samples_to_images(array, layout), numbers, None, outputs, model.value_range
    )  # fmt: skip


def _of_own(
    source: Any, images: Any, process: Process | None, labels: ArrayLike | None, conditions: Mapping[str, Any] | None,
    call: dict[str, Any],
) -> _Subject:  # fmt: skip
    if process is None:
        raise DuetError("process: it is missing; give the process of the network, as in duet.process('cosine', 'v')")
    own = own_networks.adapt(source, **split_call(call))
    for name in call:
        raise unknown_option(log_likelihood, name, CALL)
    array = _numbers(own.backend.own.to_array(images))
    count = len(array)
    kinds, features = pack_conditions(conditions, count, own.backend.own.to_array)
    numbers = read_labels(own, labels, count)
    spec = own.spec(
        array.shape[1:], classes=own.known_classes(numbers), with_label=numbers is not None or None, conditions=kinds
    )
    network = own.build(spec)
    if network.program.null_label is None:
        check_has_labels(spec, numbers)
    numbers = _network_labels(numbers, count, network.program)
    return _Subject(
        network, process, samples_to_images(array, own.layout), numbers, features, spec.out_channels, VALUE_RANGE
    )


def _network_labels(labels: NDArray | None, count: int, program: Program) -> NDArray[np.int32]:
    """Return the network's label of each sample, for classes of the data or for none."""
    if labels is None:
        return np.full(count, program.null_label or 0, np.int32)
    if labels.dtype.kind not in "iu" or labels.shape not in ((), (count,)):
        raise DuetError(
            f"labels: {labels.dtype} with shape {labels.shape} was given; it must be one whole number, or one for each "
            f"of the {count} samples"
        )
    return network_labels(np.broadcast_to(labels, count), program.classes, program.null_label)


def _numbers(array: NDArray) -> NDArray:
    """Return an array of floats or uint8 with at least two axes; refuse any other."""
    if array.ndim < 2 or not (array.dtype.kind == "f" or array.dtype == np.uint8):
        raise DuetError(
            f"images: {array.dtype} with shape {array.shape} was given; it must be a batch of floats in the value "
            f"range, or of uint8"
        )
    return array

"""A training step whose loss or gradient was not finite, computed again: where does the first such number appear?

The step is computed as it was, in micro-batches that are no larger, and with ``compile="auto"`` in the mode of that
training if the backend is the same. Then its first non-finite images (or its first images, if all losses are finite)
are computed once more block by block, next to the NumPy reference in float64 if the network is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend import reference
from diffusion_core.backend.interface import TrainBatch, Trainer, TrainerState
from diffusion_core.backend.reference.target import target_activations
from diffusion_core.backend.target import Target
from diffusion_core.common.errors import DuetError
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import parameter_count
from diffusion_core.optim.adam import global_norm
from diffusion_core.runs.failure_bundle import (
    FailureBundle,
    FailureLocation,
    failure_locations,
    load_bundle,
    select_images,
)
from diffusion_core.runs.run_directory import write_json
from experiments.runtime.backends import BackendSetup
from experiments.runtime.own_networks import OwnNetwork, with_network
from experiments.training.resume import compiled_in

__all__ = ["Replay", "replay_step"]

# The reference computes networks with at most this many parameters within seconds.
_MAX_REFERENCE_PARAMETERS = 2_000_000


@dataclass(frozen=True, eq=False)
class Replay:
    """A replayed step.

    Args:
        bundle: the stored step.
        loss: of the batch, now.
        norm: of the gradient, now.
        first: the first place with a number that is not finite; None if there is none.
        values: the outputs of the blocks, by name.
        expected: those of the reference; empty for a large network.
        report: the file with the details.
    """

    bundle: FailureBundle
    loss: float
    norm: float
    first: FailureLocation | None
    values: Mapping[str, NDArray]
    expected: Mapping[str, NDArray]
    report: Path

    @property
    def is_reproduced(self) -> bool:
        """Whether the loss or the gradient is not finite again."""
        return not math.isfinite(self.loss + self.norm)

    def lines(self) -> Iterator[str]:
        """Yield the findings, one fact per line."""
        moment, bundle, first = self.bundle.moment, self.bundle, self.first
        yield (
            f"then, after {moment.images_seen:,} images, {moment.notes['backend']} in {moment.notes['precision']}: "
            f"loss {bundle.loss}, gradient norm {bundle.grad_norm}"
        )
        verdict = "it happens again" if self.is_reproduced else "it does not happen here"
        yield f"now: loss {self.loss}, gradient norm {self.norm}; {verdict}"
        if first is None:
            yield "every number of the step is finite"
        else:
            yield (
                f"first: {first.kind} {first.name}, where {first.lost:,} of {first.size:,} numbers are not finite; "
                f"the largest of the others is {first.largest:.3g}"
            )
        yield f"report: {self.report}"
        yield ""
        yield from self._table()

    def _table(self) -> Iterator[str]:
        """Yield a line per block: how many numbers are not finite, the largest one, and that of the reference."""
        width = max(map(len, self.values))
        yield f"{'block':<{width}}  not finite     largest" + ("   reference" if self.expected else "")
        for name, value in self.values.items():
            place = FailureLocation.from_array("block", name, value)
            other = f"  {np.abs(self.expected[name]).max():>10.3g}" if name in self.expected else ""
            yield f"{name:<{width}}  {place.lost:>10,}  {place.largest:>10.3g}{other}"


def replay_step(
    path: str | Path,
    backend: BackendSetup,
    precision: str | None = None,
    images: int = 4,
    network: Callable[[str], OwnNetwork | None] = lambda precision: None,
) -> Replay:
    """Compute a stored step again, and write ``replay-BACKEND-PRECISION.json`` into its bundle.

    Args:
        path: of the failure bundle.
        backend: what computes; its precision is replaced.
        precision: of the computation; None is that of the run.
        images: how many are examined block by block.
        network: returns the own network of the step in a precision.

    Raises:
        DuetError: if the bundle cannot be read, or `images` is below 1.
    """
    if images < 1:
        raise DuetError(f"images: {images} was given; it must be at least 1")
    bundle = load_bundle(path)
    precision = precision or str(bundle.moment.notes["precision"])
    moment = with_network(bundle.moment, network(precision), path)
    program, backend = moment.model.program, backend.with_precision(precision)
    distance = bundle.distance.whole() if isinstance(bundle.distance, Target) else bundle.distance
    bundle = replace(bundle, moment=moment, distance=distance)  # the images that are examined are not consecutive
    opened = backend.open(resumed=compiled_in(moment, backend.name))
    trainer = opened.trainer(program, moment.state, bundle.optimiser, bundle.distance)
    expected: Mapping[str, NDArray] = {}
    with np.errstate(all="ignore"):
        loss, gradients = trainer.gradients(bundle.batch, bundle.micro_batches)
        norm = global_norm(gradients)
        batch = select_images(bundle.batch, _choose_images(bundle, trainer, images))
        values = trainer.activations(batch)
        is_own = isinstance(moment.model.spec, OwnSpec)
        if not is_own and parameter_count(program) <= _MAX_REFERENCE_PARAMETERS:
            expected = _reference(program, moment.state, batch, bundle.distance)
        places = [place for place in failure_locations(bundle, values, loss, gradients) if place.lost]
    first = next(iter(places), None)
    report = Path(path) / f"replay-{backend.name}-{backend.precision}.json"
    replay = Replay(bundle, loss, norm, first, values, expected, report)
    facts = {
        "backend": asdict(opened.describe()), "reproduced": replay.is_reproduced, "first": first and asdict(first),
        "loss": str(loss), "grad_norm": str(norm), "then": {"loss": str(bundle.loss), "norm": str(bundle.grad_norm)},
        "positions": batch.positions, "places": [asdict(place) for place in places],
    }  # fmt: skip
    write_json(report, facts)
    return replay


def _reference(
    program: Program, state: TrainerState, batch: TrainBatch, distance: str | Target
) -> Mapping[str, NDArray]:
    """Return what the reference computes for the blocks and the loss of each image."""
    if isinstance(distance, Target):
        return target_activations(program, state.weights, batch, distance, state.averages[-1])
    return reference.activations(program, state.weights, batch, distance)


def _choose_images(bundle: FailureBundle, trainer: Trainer, most: int) -> NDArray[np.int64]:
    """Return the images to examine: the first whose loss is not finite, or else the first of the batch.

    With batch statistics it is the whole batch, since the images of a part would have other statistics.
    """
    everything = np.arange(bundle.batch.size)
    if bundle.moment.model.program.has_batch_statistics:
        return everything
    micro_batches = [select_images(bundle.batch, everything[start : start + most]) for start in everything[::most]]
    losses = np.concatenate([trainer.activations(micro_batch)["losses"] for micro_batch in micro_batches])
    is_lost = ~np.isfinite(losses)
    return (everything[is_lost] if is_lost.any() else everything)[:most]

"""Do a step again whose loss or gradient was not finite, in either framework, and say where that begins.

    python3 -m duet replay backend=torch bundle=outputs/RUN/non_finite/000000012800
    python3 -m duet replay backend=tf precision=float64 bundle=outputs/RUN/non_finite/000000012800

The bundle is what a training left behind (`diffusion_core.runs.failure_bundle`). The step is computed as it was, in pieces of no
more images, and where `backend.compile` is auto in the mode of that training, if it was of the same backend; then its
first images that are not finite, or its first ones, once more block by block, beside the NumPy reference in float64
where the network is small. What is found is printed and written to replay-BACKEND-PRECISION.json in the bundle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Trainer, load_backend
from diffusion_core.common.errors import DuetError
from diffusion_core.networks.weights import count
from diffusion_core.optim.adam import global_norm
from diffusion_core.runs.failure_bundle import (
    FailureBundle,
    FailureLocation,
    failure_locations,
    load_bundle,
    select_images,
)
from diffusion_core.runs.run_directory import write_json
from experiments.common import in_mode, settings_of
from experiments.config.entry import command
from experiments.resuming import mode_begun_in

# Parameters of a network that the reference computes in a moment.
_SMALL = 2_000_000


@command("replay")
def main(cfg: DictConfig) -> None:
    """Read the bundle, do its step, look for the first number that is not finite, and say so."""
    if cfg.images < 1:
        raise DuetError(f"images: {cfg.images} was given; it must be at least 1")
    bundle = load_bundle(cfg.bundle)
    precision, state = cfg.precision or str(bundle.moment.notes["precision"]), bundle.moment.state
    backend = load_backend(cfg.backend.name, settings_of(cfg, precision))
    backend = in_mode(backend, cfg, resumed=mode_begun_in(cfg, bundle.moment))
    print(backend.describe().line(), flush=True)
    program = bundle.moment.model.program
    trainer = backend.trainer(program, state, bundle.adam, bundle.distance)
    beside: Mapping[str, NDArray] = {}
    with np.errstate(all="ignore"):
        loss, gradients = trainer.gradients(bundle.batch, bundle.micro_batches)
        norm = global_norm(gradients)
        chosen = _chosen(bundle, trainer, cfg.images)
        batch = select_images(bundle.batch, chosen)
        values = trainer.activations(batch)
        if count(program) <= _SMALL:
            beside = reference.activations(program, state.weights, batch, bundle.distance)
        found = list(failure_locations(bundle, values, loss, gradients))
    first = next((place for place in found if place.lost), None)
    again = not math.isfinite(loss + norm)
    report = {
        "backend": asdict(backend.describe()), "reproduced": again, "first": first and asdict(first),
        "loss": str(loss), "grad_norm": str(norm), "then": {"loss": str(bundle.loss), "norm": str(bundle.grad_norm)},
        "positions": batch.positions, "places": [asdict(place) for place in found if place.lost],
    }  # fmt: skip
    file = Path(cfg.bundle) / f"replay-{cfg.backend.name}-{precision}.json"
    write_json(file, report)
    print("\n".join([*_said(bundle, loss, norm, again, first), f"report: {file}", "", *_table(values, beside)]))


def _chosen(bundle: FailureBundle, trainer: Trainer, most: int) -> NDArray[np.int64]:
    """The images to look into: the first whose loss is not finite, or the first; all where they share statistics."""
    everything = np.arange(bundle.batch.size)
    if bundle.moment.model.program.has_batch_statistics:
        return everything
    micro_batches = [select_images(bundle.batch, everything[start : start + most]) for start in everything[::most]]
    lost = ~np.isfinite(np.concatenate([trainer.activations(piece)["losses"] for piece in micro_batches]))
    return (everything[lost] if lost.any() else everything)[:most]


def _said(bundle: FailureBundle, loss: float, norm: float, again: bool, first: FailureLocation | None) -> Iterator[str]:
    moment = bundle.moment
    yield (
        f"then, after {moment.images_seen:,} images, {moment.notes['backend']} in {moment.notes['precision']}: loss "
        f"{bundle.loss}, gradient norm {bundle.grad_norm}"
    )
    yield f"now: loss {loss}, gradient norm {norm}; {'it happens again' if again else 'it does not happen here'}"
    if first is None:
        yield "every number of the step is finite"
    else:
        yield (
            f"first: {first.kind} {first.name}, where {first.lost:,} of {first.size:,} numbers are not finite; "
            f"the largest of the others is {first.largest:.3g}"
        )


def _table(values: Mapping[str, NDArray], beside: Mapping[str, NDArray]) -> Iterator[str]:
    """A line for each block: how many numbers are not finite, the largest, and that of the reference."""
    width = max(map(len, values))
    yield f"{'block':<{width}}  not finite     largest" + ("   reference" if beside else "")
    for name, value in values.items():
        place = FailureLocation.from_array("block", name, value)
        other = f"  {np.abs(beside[name]).max():>10.3g}" if name in beside else ""
        yield f"{name:<{width}}  {place.lost:>10,}  {place.largest:>10.3g}{other}"


if __name__ == "__main__":
    main()

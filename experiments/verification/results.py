"""The results of a run: the mean loss, the final samples drawn again, and their evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.files.safe_read import read_json
from diffusion_core.networks.weights import Weights
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.runs.run_directory import plain_data, read_samples
from experiments.runtime.processes import discard_output
from experiments.sampling import draw
from experiments.training.callbacks import sampling_backend
from experiments.training.evaluation import FinalEvaluation
from experiments.training.run import final_loss
from experiments.verification.compare import Difference
from experiments.verification.recorded import RecordedRun
from experiments.verification.replay import Opened, Twin

__all__ = ["evaluation_differences", "sample_differences", "stated_differences"]

# Metrics are sums in float64 over the same samples; another processor may add in another order.
_METRIC_BOUND = 1e-6
# A value at the border of two of the 256 levels may round to either; so few may do so beyond what the twins show.
_LEAST_PIXELS = 1e-4


def stated_differences(run: RecordedRun, opened: Opened) -> Iterator[Difference]:
    """Yield how result.json differs from the metrics that it sums up."""
    result = read_json(run.directory / "result.json")
    loss = final_loss(run.directory / "metrics.jsonl", opened.setup.training_config)
    if result.get("objective") != loss and not (loss != loss and result.get("objective") is None):
        size = abs((result.get("objective") or 0.0) - loss) / (abs(loss) or 1.0)
        detail = f"result.json has {result.get('objective')}, the metrics have {loss}"
        yield Difference("mean loss of the last steps", size, 0.0, detail)


def sample_differences(
    run: RecordedRun, opened: Opened, twins: int, margin: float, exact: bool
) -> Iterator[Difference]:
    """Draw the final samples again from the final weights, and yield how they differ from those that were kept.

    Args:
        run: the run.
        opened: the setup of its last part, and the backend.
        twins: how many times they are drawn from weights that are moved by one unit in the last place.
        margin: of the bound over these.
        exact: whether bits must be equal.
    """
    setup = opened.setup
    stored = read_samples(run.directory / "samples" / "samples.npz")[0]
    weights = load_checkpoint(run.directory).state.evaluated[setup.sample.weights]
    images = _draw(opened, weights)
    what = f"{len(stored):,} final samples"
    if images.shape != stored.shape:
        yield Difference(what, None, 0.0, f"{stored.shape} recorded, {images.shape} drawn")
        return
    differ = _fraction(images, stored)
    if not differ:
        return
    bound, detail = 0.0, f"{differ:.2%} of the pixels differ"
    if not exact:
        moved = [Twin(k, setup.backend.precision).weights(weights) for k in range(twins)]
        bound = max(margin * max(_fraction(_draw(opened, one), images) for one in moved), _LEAST_PIXELS)
        detail += f", the bound is {bound:.2%}"
    yield Difference(what, differ, bound, detail)


def _draw(opened: Opened, weights: Weights) -> NDArray[np.uint8]:
    """Return the final samples of a run with these weights."""
    setup, backend = opened.setup, sampling_backend(opened.setup, opened.backend)
    network = backend.network(setup.model.program, weights)
    with TemporaryDirectory(prefix="duet-verify-") as directory:
        return draw.save_samples(
            backend, network, setup.model, setup.plan, Path(directory), replace(setup.sample, files=None),
            figures=False, names=setup.label_names, condition_names=setup.loader.dataset.condition_names,
            decoder=setup.decoder,
        )  # fmt: skip


def _fraction(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    return float(np.mean(images != others))


def evaluation_differences(run: RecordedRun, evaluation: FinalEvaluation) -> Iterator[Difference]:
    """Evaluate the kept samples again, and yield the numbers that differ from those of result.json."""
    recorded = read_json(run.directory / "result.json").get("evaluation") or {}
    count = len(read_samples(run.directory / "samples" / "samples.npz")[0])
    with discard_output():
        found = plain_data(evaluation.run(Path(run.directory), count))
    theirs, mine = dict(_numbers(recorded["numbers"])), dict(_numbers(found["numbers"]))
    for name in dict.fromkeys((*theirs, *mine)):
        a, b = theirs.get(name), mine.get(name)
        if a is None or b is None:
            if a is not b:
                yield Difference(name, None, 0.0, f"{a} recorded, {b} computed")
        elif a != b:
            size = abs(a - b) / (max(abs(a), abs(b)) or 1.0)
            yield Difference(name, size, _METRIC_BOUND, f"{a} recorded, {b} computed")


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the values and intervals of an evaluation by their place in it."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ("value", "low", "high") and isinstance(value, int | float):
                yield f"{path.strip('.')}.{key}", float(value)
            else:
                yield from _numbers(value, f"{path}.{key}")

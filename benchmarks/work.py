"""The workloads that measure a backend of Duet, complete as a run performs them, and their parts alone.

train           steps of `diffusion_core.training.loop.train`: images of a data set, noise, forward, backward, clip,
                Adam, moving average
ddim, ddpm      samples from the shared streams to host arrays, with few network evaluations, or with one per step of
                the process
evaluations     the network evaluations of `ddim` alone, on images that are on the device
passes          the forward and the backward pass of one training step alone, on a batch that is on the device
convolutions    the convolutions of one training step alone, forward and backward
matrix          products of two square matrices, in the same types
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from benchmarks.convolutions import convolutions
from diffusion_core.backend.interface import Backend, Trainer, TrainerState
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, Loader
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import make_ema
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.training.loop import make_batch, train
from diffusion_core.training.objective import Objective
from diffusion_core.training.training_config import TrainingConfig

__all__ = ["MATRIX", "PARTS", "WORK", "make_workloads"]


class MatrixProducts(NamedTuple):
    """The size of square matrices, and the number of products in a round."""

    size: int
    products: int


WORK = ("train", "ddim", "ddpm")
# The parts of a workload that are also measured alone.
PARTS = {"train": ("passes", "convolutions", "matrix"), "ddim": ("evaluations",), "ddpm": ()}
# Products that measure the peak of a device: so large that starting one and waiting for it take no noticeable time.
MATRIX = {"cpu": MatrixProducts(2048, 1), "cuda": MatrixProducts(16384, 8)}
_IMAGES = 1024


def make_workloads(
    backend: Backend, products: ModuleType, model: DiffusionModel, batch: int, steps: int, images: int, ddim_steps: int
) -> dict[str, Callable[[], int]]:
    """Return the workloads by name; each runs one round and returns the number of images in it.

    Args:
        backend: the backend to measure.
        products: its module in `benchmarks.products`.
        model: the network and the process.
        batch: images per training step.
        steps: training steps per round.
        images: samples per round.
        ddim_steps: network evaluations of DDIM.
    """
    program, shape = model.program, model.spec.image_shape
    dtype = backend.config.host_dtype
    weights = initial_weights(program, 0, dtype)
    cache: dict[str, Any] = {}

    def once(name: str, make: Callable[[], Any]) -> Any:
        """Make something in the first round that needs it."""
        if name not in cache:
            cache[name] = make()
        return cache[name]

    def network() -> Any:
        return once("network", lambda: backend.network(program, weights))

    def training() -> _Training:
        return once("training", lambda: _Training(backend, model, TrainerState.fresh(weights)))

    def run_steps() -> int:
        training().run(batch, steps)
        return steps * batch

    def run_sampling(plan: Any) -> int:
        generate(backend, network(), plan, shape, np.resize(program.labels or [0], images), 0, batch=images)
        return images

    def run_evaluations() -> int:
        x = once("x", lambda: Stream(0, "bench/images").normal(np.arange(images), shape, dtype=dtype))
        label = np.resize(program.labels or [0], images)
        once("evaluations", lambda: products.evaluations(network(), x, label, ddim_steps))()
        return images

    def run_passes() -> int:
        own = training()
        once("passes", lambda: products.passes(own.trainer, make_batch(own.loader, own.objective, 0, batch)))()
        return batch

    def run_convolutions() -> int:
        layers = convolutions(program, shape)
        once("convolutions", lambda: products.convolutions(backend.context, layers, batch))()
        return batch

    def run_matrices() -> int:
        size, repeats = MATRIX[backend.config.device]
        multiply = once("matrix", lambda: products.matrices(backend.context, size))
        for _ in range(repeats):
            multiply()
        return repeats

    return {
        "train": run_steps,
        "ddim": lambda: run_sampling(once("ddim", lambda: ddim(model.process, ddim_steps))),
        "ddpm": lambda: run_sampling(once("ddpm", lambda: ddpm(model.process))),
        "evaluations": run_evaluations,
        "passes": run_passes,
        "convolutions": run_convolutions,
        "matrix": run_matrices,
    }


class _Training:
    """A training run that continues by some steps at a time."""

    def __init__(self, backend: Backend, model: DiffusionModel, state: TrainerState) -> None:
        program, shape = model.program, model.spec.image_shape
        self.objective = Objective(
            model.process, 0, null_label=program.null_label, features=program.features, classes=program.classes,
            variance=model.variance, uncertainty=model.uncertainty, self_conditioned=program.self_conditioned,
            value_range=model.value_range,
        )  # fmt: skip
        pixels = Stream(0, "bench/pixels").bits(np.arange(_IMAGES), int(np.prod(shape))) >> 24
        images = pixels.astype(np.uint8).reshape(_IMAGES, *shape)
        classes = max(program.classes, 1)
        dataset = Dataset(images, np.arange(_IMAGES) % classes, tuple(map(str, range(classes))), "bench")
        self.loader = Loader(dataset, 0, dtype=backend.config.host_dtype, value_range=model.value_range)
        self.trainer: Trainer = backend.trainer(program, state, Adam(), "mse")
        self.rate, self.ema = LearningRate(1e-4), make_ema("fixed", decay=0.999)
        self.images_seen = self.updates = 0

    def run(self, batch: int, steps: int) -> None:
        """Train for a number of steps."""
        config = TrainingConfig(self.images_seen + steps * batch, batch, log_images=steps * batch)
        train(
            self.trainer, self.loader, self.objective, self.rate, self.ema, config,
            images_seen=self.images_seen, updates=self.updates,
        )  # fmt: skip
        self.images_seen, self.updates = config.images, self.updates + steps

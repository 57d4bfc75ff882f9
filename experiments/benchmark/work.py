"""The rounds of work that a backend of Duet is measured by, whole as a run does them.

train           steps of `diffusion_core.training.loop.train`: pictures of a data set, noise, forward, backward, clip, Adam,
                moving average
ddim, ddpm      samples from the shared streams to host arrays, with few network evaluations or one per step of the
                process
evaluations     as many of the network as `ddim` does, and nothing else, of images that lie on the device
passes          those of one training step, forward and backward, and nothing else, of a batch that lies on the device
convolutions    those of one training step, forward and backward, and nothing else
matrix          products of two square matrices, in the same types
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion_core.backend.interface import Backend, Trainer, TrainerState
from diffusion_core.common.random import Stream
from diffusion_core.data import Dataset, Loader
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.model.generate import generate
from diffusion_core.networks.flops import convolutions
from diffusion_core.networks.weights import initial_weights
from diffusion_core.optim import make_ema
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.sampling.ddim import ddim
from diffusion_core.sampling.ddpm import ddpm
from diffusion_core.training.loop import TrainingConfig, make_batch, train
from diffusion_core.training.objective import Objective

__all__ = ["ALONE", "MATRIX", "WORK", "works"]


class Matrix(NamedTuple):
    """The size of square matrices, and how many products a round has."""

    size: int
    products: int


WORK = ("train", "ddim", "ddpm")
# What a work is compared with, done by itself.
ALONE = {"train": ("passes", "convolutions", "matrix"), "ddim": ("evaluations",), "ddpm": ()}
# The matrices whose products are the peak of a device: so large that to start one and to wait for it counts nothing.
MATRIX = {"cpu": Matrix(2048, 1), "cuda": Matrix(16384, 8)}
_PICTURES = 1024


def works(
    backend: Backend, model: DiffusionModel, batch: int, steps: int, images: int, ddim_steps: int
) -> dict[str, Callable[[], int]]:
    """What can be asked for; each does one round and gives the number of images in it."""
    program, shape = model.program, model.spec.image_shape
    weights = initial_weights(program, 0, backend.config.host_dtype)
    made: dict[str, Any] = {}

    def once(name: str, make: Callable[[], Any]) -> Any:
        """What is made in the first round that needs it."""
        if name not in made:
            made[name] = make()
        return made[name]

    def network() -> Any:
        return once("network", lambda: backend.network(program, weights))

    def run() -> _Run:
        return once("run", lambda: _Run(backend, model, TrainerState.fresh(weights)))

    def step() -> int:
        run().go_on(batch, steps)
        return steps * batch

    def sample(plan: Any) -> int:
        generate(backend, network(), plan, shape, np.resize(program.labels or [0], images), 0, batch=images)
        return images

    def evaluations() -> int:
        x = once(
            "x", lambda: Stream(0, "bench/images").normal(np.arange(images), shape, dtype=backend.config.host_dtype)
        )
        label = np.resize(program.labels or [0], images)
        once("evaluations", lambda: backend.evaluations_alone(network(), x, label, ddim_steps))()
        return images

    def passes() -> int:
        own = run()
        once("passes", lambda: backend.passes_alone(own.trainer, make_batch(own.loader, own.objective, 0, batch)))()
        return batch

    def products() -> int:
        once("convolutions", lambda: backend.convolutions_alone(convolutions(program, shape), batch))()
        return batch

    def matrix() -> int:
        size, products = MATRIX[backend.config.device]
        multiply = once("matrix", lambda: backend.matrices_alone(size))
        for _ in range(products):
            multiply()
        return products

    return {
        "train": step,
        "ddim": lambda: sample(once("ddim", lambda: ddim(model.process, ddim_steps))),
        "ddpm": lambda: sample(once("ddpm", lambda: ddpm(model.process))),
        "evaluations": evaluations,
        "passes": passes,
        "convolutions": products,
        "matrix": matrix,
    }


class _Run:
    """A training that goes on by some steps at a time."""

    def __init__(self, backend: Backend, model: DiffusionModel, state: TrainerState) -> None:
        program, (size, _, channels) = model.program, model.spec.image_shape
        self.objective = Objective(
            model.process, 0, null_label=program.null_label, features=program.features, classes=program.classes,
            variance=model.variance, uncertainty=model.uncertainty, self_conditioned=program.self_conditioned,
            value_range=model.value_range,
        )  # fmt: skip
        pixels = Stream(0, "bench/pixels").bits(np.arange(_PICTURES), size * size * channels) >> 24
        pictures = pixels.astype(np.uint8).reshape(_PICTURES, size, size, channels)
        classes = max(program.classes, 1)
        dataset = Dataset(pictures, np.arange(_PICTURES) % classes, tuple(map(str, range(classes))), "bench")
        self.loader = Loader(dataset, 0, dtype=backend.config.host_dtype, value_range=model.value_range)
        self.trainer: Trainer = backend.trainer(program, state, Adam(), "mse")
        self.rate, self.ema = LearningRate(1e-4), make_ema("fixed", decay=0.999)
        self.images_seen = self.updates = 0

    def go_on(self, batch: int, steps: int) -> None:
        training_config = TrainingConfig(self.images_seen + steps * batch, batch, log_images=steps * batch)
        given = (self.trainer, self.loader, self.objective, self.rate, self.ema, training_config)
        train(*given, images_seen=self.images_seen, updates=self.updates)
        self.images_seen, self.updates = training_config.images, self.updates + steps

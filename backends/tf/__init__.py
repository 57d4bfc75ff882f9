"""The TensorFlow backend: the seam of `diffusion_core.backend`, file by file the twin of `backends.torch`."""

from __future__ import annotations

from pathlib import Path

from numpy.typing import NDArray

from backends.tf import device  # first: it imports TensorFlow
from backends.tf.files import export, exported, read_arrays
from backends.tf.network import Network
from backends.tf.sampler import sample
from backends.tf.trainer import Trainer, noised
from diffusion_core.backend import Description, Forward, NoiseSource, Settings, TrainBatch, TrainerState, Watch
from diffusion_core.optimiser import Adam
from diffusion_core.sampling.plan import SamplerPlan
from diffusion_core.unet.program import Program
from diffusion_core.weights import Weights

__all__ = ["Backend"]


class Backend:
    """See `diffusion_core.backend.Backend`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.place = device.prepare(settings)

    def describe(self) -> Description:
        """Device, precision and versions."""
        return device.describe(self.place, self.settings)

    def network(self, program: Program, weights: Weights) -> Network:
        """Build a network for inference."""
        return Network(program, weights, self.place)

    def trainer(self, program: Program, state: TrainerState, adam: Adam, distance: str) -> Trainer:
        """Build a network for training, going on from `state`."""
        return Trainer(program, state, adam, distance, self.place)

    def noised(self, batch: TrainBatch) -> tuple[NDArray, NDArray]:
        """(x_t, target) of a batch, as the training step computes them."""
        return noised(batch, self.place)

    def sample(
        self,
        network: Network,
        plan: SamplerPlan,
        start: NDArray,
        label: NDArray,
        noise: NoiseSource,
        watch: Watch | None = None,
    ) -> NDArray:
        """Run a plan from `start` (B, H, W, C) and give register 0 after the last row."""
        return sample(network, plan, start, label, noise, watch)

    def read_arrays(self, path: Path) -> Weights:
        """The arrays in a file of the framework's own format, by the names that stand there; nothing is unpickled."""
        return read_arrays(path)

    def export(self, network: Network, path: Path, shape: tuple[int, int, int]) -> None:
        """Write a network in the framework's own form, for images of a shape (h, w, c)."""
        export(network, path, shape)

    def exported(self, program: Program, path: Path) -> Forward:
        """What `export` wrote, read back: a function that is called as `Network.forward` is."""
        return exported(program, path, self.place)

    def peak_memory_mib(self) -> float:
        """The most memory used so far: of the device where it has its own, else of the process."""
        return device.peak_memory_mib(self.place)

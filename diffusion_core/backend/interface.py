"""The backend interface: the data that the core passes to a backend, and the methods that a backend implements.

All tensors that cross it are NumPy arrays. Images are ``b h w c``; weights have the canonical axes of the manifest;
every column of numbers is computed in float64 and cast at most once. A backend holds no formula of diffusion theory: it
executes programs, training batches and sampler plans.

A backend is an entry point in the group ``duet.backends``, so other packages can add one; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from diffusion_core.backend.batch import (
    CROSS_ENTROPY,
    DISTANCES,
    MIN_PROBABILITY,
    PSEUDO_HUBER_C,
    SELF_CONDITIONING,
    VARIATIONAL,
    TrainBatch,
)
from diffusion_core.backend.config import DEVICES, PRECISIONS, BackendConfig, Description
from diffusion_core.backend.first_call import compile_error
from diffusion_core.backend.network import MIN_STD, VJP, Forward, Guidance, Network, NoiseSource, StepCallback
from diffusion_core.backend.out_of_memory import translate_out_of_memory
from diffusion_core.backend.state import StepResult, TrainerState, average_names
from diffusion_core.backend.target import Target
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.own import Manifest
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.normalisation import check_optimiser
from diffusion_core.optim.optimiser import Optimiser
from diffusion_core.runtime.distributed import Collective, ProcessGroup
from diffusion_core.sampling.plan import SamplerPlan

__all__ = [
    "CROSS_ENTROPY",
    "DEVICES",
    "DISTANCES",
    "MIN_PROBABILITY",
    "MIN_STD",
    "PRECISIONS",
    "PSEUDO_HUBER_C",
    "SELF_CONDITIONING",
    "VARIATIONAL",
    "VJP",
    "Backend",
    "BackendConfig",
    "Description",
    "Forward",
    "Guidance",
    "Network",
    "NoiseSource",
    "StepCallback",
    "StepResult",
    "TrainBatch",
    "Trainer",
    "TrainerState",
    "average_names",
    "backend_class",
    "load_backend",
    "translate_out_of_memory",
]


class Trainer(Protocol):
    """A network with its optimiser and its moving averages, each with its own decay.

    A batch may be split into equal micro-batches, whose losses and gradients are summed before the one update. The
    result is the same up to rounding and needs the memory of one micro-batch. Programs with batch statistics cannot be
    split.

    A parameter of `Program.normalised` is normalised by force (`diffusion_core.optim.normalisation`): losses,
    gradients and activations of a training pass are those at the normalised weights, whose size has no gradient; a pass
    leaves the weights as they are, and every update starts from the normalised weights.

    After a step whose loss or gradient is not finite the trainer ignores all updates, and only counts them, until
    `clear_non_finite` is called. A late check therefore finds the weights unchanged. The test for it runs on the device
    and does not wait for it.

    `networks` holds those of its target by name: ``"trained"``, and ``"average"`` and ``"teacher"`` if it uses them.
    """

    networks: Mapping[str, Network]

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, may_repeat: bool = False
    ) -> StepResult:
        """Run forward, backward, running statistics, clip, optimiser and averages.

        Args:
            batch: the inputs of the step.
            lr: learning rate.
            decays: one decay per moving average.
            micro_batches: number of equal parts that the batch is split into.
            may_repeat: whether the caller retries with more micro-batches when memory runs out in the loss or the
                gradients. A backend may then take a slower path, with other rounding.

        Raises:
            OutOfMemory: memory ran out before any change; the step may be repeated.
            DuetError: memory ran out during the update, part of which may have been applied.
        """

    def clear_non_finite(self) -> None:
        """Allow updates again after a step that was not finite."""

    def activations(self, batch: TrainBatch) -> dict[str, NDArray]:
        """Return the value of each block in the training pass of a batch by name, and as "losses" the loss per image.

        Nothing is changed. Images are b h w c. For a self-conditioned program the values are those of the second pass.
        """

    def gradients(self, batch: TrainBatch, micro_batches: int = 1) -> tuple[float, Weights]:
        """Return (loss, gradients by name) of the first half of a step, unclipped; change nothing."""

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """Apply the second half of a step with these gradients, and return their global norm."""

    def state(self) -> TrainerState:
        """Return all that is needed to resume exactly."""


class Backend:
    """A framework that executes programs and plans. A subclass names its modules as class attributes.

    Any class with the same methods is a backend too.

    Args:
        config: how it computes; some options apply to the whole process, so they cannot change later.
        group: the rank of this process and the number of processes; None means one process.

    Raises:
        DuetError: if `config.compile` is true, and nothing can be compiled here.
    """

    # The modules of a subclass, and the names that each must have.
    device: ClassVar[Any]  # DeviceContext.communicator, prepare, compile_obstacle, describe, peak_memory_mib
    files: ClassVar[Any]  # read_arrays, export, load_export, load_network
    losses: ClassVar[Any]  # noised, batch_tensors, loss_tensors
    networks: ClassVar[Any]  # Network
    own: ClassVar[Any]  # accepts, read_network, to_array, as_tensor, with_weights, to_own, from_own
    samplers: ClassVar[Any]  # sample, sample_tensors
    trainers: ClassVar[Any]  # Trainer

    def __init__(self, config: BackendConfig, group: ProcessGroup | None = None, context: Any = None) -> None:
        self.config = config
        self.context = self.device.prepare(config, group or ProcessGroup()) if context is None else context
        if config.compile and (obstacle := self.compile_obstacle()):
            raise compile_error(obstacle)

    def __repr__(self) -> str:
        description = self.describe()
        return f"Backend({description.backend}, {description.device}, {description.precision}, {description.mode})"

    @classmethod
    def for_network(cls, manifest: Manifest, compile: bool = False) -> Backend:
        """Return the backend that computes where and how an own network does; it sets no option of the framework.

        Args:
            manifest: what `own.read_network` returned.
            compile: whether to compile.
        """
        device = manifest.device.partition(":")[0]
        config = BackendConfig(device, manifest.precision, compile, deterministic=False)
        return cls(config, context=cls.device.live(manifest.device, config))

    @property
    def collective(self) -> Collective:
        """Communication with the other processes."""
        return Collective(self.context.communicator.group, self.context.communicator.all_reduce_array)

    def compile_obstacle(self) -> str | None:
        """Return why nothing can be compiled here, and what to install; None if it can."""
        return self.device.compile_obstacle(self.context)

    def in_mode(self, compile: bool) -> Backend:
        """Return the same backend with `compile` set to this value."""
        other = copy(self)
        other.config, other.context = (replace(part, compile=compile) for part in (self.config, self.context))
        return other

    def describe(self) -> Description:
        """Return the device, the precision and the versions."""
        return self.device.describe(self.context, self.config)

    @translate_out_of_memory
    def network(self, program: Program, weights: Weights) -> Network:
        """Build a network for inference.

        Raises:
            DuetError: if the weights do not fit the program.
            OutOfMemory: if the device has too little memory.
        """
        return self.networks.Network(program, weights, self.context)

    @translate_out_of_memory
    def trainer(self, program: Program, state: TrainerState, optimiser: Optimiser, distance: str | Target) -> Trainer:
        """Build a network for training that starts from `state`.

        Args:
            program: the network.
            state: its weights, averages and slots of the optimiser; a fresh state has none.
            optimiser: what a step does to each parameter.
            distance: one of `DISTANCES`, or `CROSS_ENTROPY` for a classifier; or a target that needs the network.

        Raises:
            DuetError: if the state does not fit the program or the optimiser.
            OutOfMemory: if the device has too little memory.
        """
        check_optimiser(program.normalised, optimiser)
        return self.trainers.Trainer(program, state, optimiser, distance, self.context)

    @translate_out_of_memory
    def noised(self, batch: TrainBatch) -> tuple[NDArray, NDArray]:
        """Return (x_t, target) of a batch, as the training step computes them."""
        return self.losses.noised(batch, self.context)

    @translate_out_of_memory
    def sample(
        self,
        network: Network,
        plan: SamplerPlan,
        start: NDArray,
        label: NDArray,
        noise: NoiseSource,
        callback: StepCallback | None = None,
        guidance: Guidance | None = None,
    ) -> NDArray:
        """Run a plan and return register 0 after the last row, with shape (B, H, W, C).

        Args:
            network: the network to sample.
            plan: the rows.
            start: register 0 before the first row, with shape (B, H, W, C).
            label: classes, with shape (B,).
            noise: returns the noise z of row i, with the shape of `start`.
            callback: called after the rows that it selects.
            guidance: further networks and images; None means the plan alone.

        Raises:
            DuetError: if the guidance does not fit the plan.
            OutOfMemory: if the device has too little memory.
        """
        guidance = guidance or Guidance()
        guidance.check(plan)
        return self.samplers.sample(network, plan, start, label, noise, callback, guidance)

    def tensor(self, array: NDArray) -> Any:
        """Return an array as a tensor of the framework on the device, in the number type of the backend."""
        return self.context.tensor(array)

    def read_arrays(self, path: Path) -> Weights:
        """Return the arrays of a file in the framework's own format, by their names there; no code is unpickled."""
        return self.files.read_arrays(path)

    def export(self, network: Network, path: Path, shape: tuple[int, int, int]) -> None:
        """Write a network in the framework's own format, for images of shape (h, w, c)."""
        self.files.export(network, path, shape)

    def load_export(self, program: Program, path: Path) -> Forward:
        """Load what `export` wrote, as a function with the signature of `Network.forward`."""
        return self.files.load_export(program, path, self.context)

    def peak_memory_mib(self) -> float:
        """Return the peak memory of a GPU, or of the process on a CPU, in MiB."""
        return self.device.peak_memory_mib(self.context)


def load_backend(name: str, config: BackendConfig, group: ProcessGroup | None = None) -> Any:
    """Load a backend by name. Its framework is imported here and nowhere else.

    Args:
        name: the name of an entry point in the group ``duet.backends``, as in "torch" or "tf".
        config: how it computes.
        group: the rank of this process and the number of processes; None means one process.

    Raises:
        DuetError: if no installed package provides the backend, or its framework cannot be imported in this Python.

    Example:
        >>> load_backend("torhc", BackendConfig())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        diffusion_core.common.errors.DuetError: backend: 'torhc' was given; it must be one of ...
    """
    factory = backend_class(name)
    return factory(config) if group is None else factory(config, group)


def backend_class(name: str) -> Any:
    """Return the class of a backend; arguments and errors as for `load_backend`."""
    backends = {entry.name: entry for entry in entry_points(group="duet.backends")}
    if not backends:
        raise DuetError("no backend is installed in this Python; run: python3 -m duet setup")
    if name not in backends:
        raise one_of("backend", name, sorted(backends))
    try:
        return backends[name].load()
    except ImportError as error:
        raise DuetError(
            f"backend {name}: it cannot be imported in this Python ({error}); "
            f"start it with: python3 -m duet COMMAND backend={name} ... or, for a script of yours: "
            f"python3 -m duet run {name} -- script.py"
        ) from error

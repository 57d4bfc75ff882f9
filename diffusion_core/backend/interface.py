"""The backend interface: the data that the core passes to a backend, and the methods that a backend implements.

All tensors that cross it are NumPy arrays. Images are ``b h w c``; weights have the canonical axes of the manifest;
every column of numbers is computed in float64 and cast at most once. A backend holds no formula of diffusion theory: it
executes programs, training batches and sampler plans.

A backend is an entry point in the group ``duet.backends``, so other packages can add one; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, SupportsFloat, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.first_call import compile_error
from diffusion_core.backend.target import Target
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.text import pluralize
from diffusion_core.networks.own import Manifest
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.normalisation import check_optimiser
from diffusion_core.optim.optimiser import Optimiser
from diffusion_core.runtime.distributed import Collective, ProcessGroup
from diffusion_core.sampling.measurement import Measurement
from diffusion_core.sampling.plan import SamplerPlan

__all__ = [
    "CROSS_ENTROPY",
    "DISTANCES",
    "MIN_STD",
    "PRECISIONS",
    "PSEUDO_HUBER_C",
    "SELF_CONDITIONING",
    "MIN_PROBABILITY",
    "VARIATIONAL",
    "Backend",
    "Forward",
    "Network",
    "NoiseSource",
    "VJP",
    "BackendConfig",
    "Guidance",
    "StepResult",
    "TrainBatch",
    "Trainer",
    "TrainerState",
    "StepCallback",
    "average_names",
    "backend_class",
    "load_backend",
    "translate_out_of_memory",
]

PRECISIONS = ("float64", "float32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
DISTANCES = ("mse", "l1", "huber", "pseudo_huber")
# The loss of a classifier, between its logits and the class.
CROSS_ENTROPY = "cross_entropy"
# The c of sqrt(r^2 + c^2) - c, in the units of the target, in which the noise has standard deviation 1.
PSEUDO_HUBER_C = 0.03
# The columns of `TrainBatch.variational` and of `TrainBatch.self_conditioning`.
VARIATIONAL = ("offset", "scale", "error", "half_bin", "lowest", "highest", "mean_gradient", "weight")
SELF_CONDITIONING = ("c_skip", "c_out", "keep", "lowest", "highest")
# Lower bound of the probability of a byte.
MIN_PROBABILITY = 1e-12

# Lower bound of the standard deviation that guidance rescaling divides by, so that an output of zeros stays zero.
MIN_STD = 1e-12

# A network's output F of (x, c_noise, label, features); see `Network.forward`.
Forward = Callable[..., NDArray]
# The same with a cotangent after the label, giving (F, J^T cotangent); see `Network.vjp`.
VJP = Callable[..., tuple[NDArray, NDArray]]
# z_i for row i of a plan, with the shape of the images.
NoiseSource = Callable[[int], NDArray]


@dataclass(frozen=True)
class StepCallback:
    """A callback on the state of sampling, as diffusers' `callback_on_step_end`.

    Args:
        function: called with (row, register 0, estimate of x_0); both arrays are NumPy arrays (B, H, W, C).
        rows: the rows of the plan after which it is called; None means every row. The rows between run as one segment.

    Example:
        >>> seen = []
        >>> callback = StepCallback(lambda row, x, estimate: seen.append(row), rows=(0, 2))
        >>> for row in range(3):
        ...     callback(row, np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3)))
        >>> seen
        [0, 2]
    """

    function: Callable[[int, NDArray, NDArray], None]
    rows: Collection[int] | None = None

    def __call__(self, row: int, x: NDArray, estimate: NDArray) -> None:
        """Call the function if `row` is one of the selected rows."""
        if self.rows is None or row in self.rows:
            self.function(row, x, estimate)

    def selected_rows(self, rows: int) -> Collection[int]:
        """Return the selected rows of a plan with this number of rows."""
        return range(rows) if self.rows is None else self.rows


@dataclass(frozen=True)
class BackendConfig:
    """How a backend computes. None of these options changes what is computed, except for rounding.

    Args:
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for CUDA if it is available.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"`` (weights and sums stay float32).
        compile: whether to compile, with `torch.compile` in PyTorch and XLA in TensorFlow.
        threads: number of CPU threads; None means the framework's default.
        deterministic: whether to use reproducible kernels only. TF32 is always off.

    Raises:
        DuetError: for an unknown device or precision, or fewer than one thread.

    Example:
        >>> BackendConfig(device="cpu", precision="float64").host_dtype
        <class 'numpy.float64'>
        >>> BackendConfig(precision="float16")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        diffusion_core.common.errors.DuetError: precision: 'float16' was given; it must be one of float64, ...
    """

    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    threads: int | None = None
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise one_of("backend.device", self.device, DEVICES)
        if self.precision not in PRECISIONS:
            raise one_of("precision", self.precision, PRECISIONS)
        if self.threads is not None and self.threads < 1:
            raise DuetError(f"backend.threads: {self.threads} was given; it must be at least 1, or null")

    @property
    def host_dtype(self) -> type[np.floating]:
        """The NumPy type of images and columns that are passed to a backend."""
        return np.float64 if self.precision == "float64" else np.float32


@dataclass(frozen=True, eq=False)
class TrainBatch:
    r"""All inputs of one training step; the step uses no other input.

    With ``x_t = alpha images + sigma noise``, ``target = target_x0 images + target_eps noise`` and the network's
    output ``F(c_in x_t, c_noise, label, features)``, restricted to the channels of the images::

        r    = F - target
        loss = mean_b importance_b (weight_b mean_pixels distance(r) [+ weight'_b mean_pixels bound])

    The bound needs variational columns. F2 is the second half of the output channels, or 0 without it. r~ equals r in
    value, but its gradient is multiplied by mean_gradient, weight' is the last variational column, and Phi is the
    normal distribution function::

        u     = offset + scale F2,    e = error r~
        bound = (u + exp(-u) - 1 + exp(-u) e^2) / 2                                          where half_bin is 0
        bound = -log(Phi((half_bin - e) exp(-u/2)) - Phi((-half_bin - e) exp(-u/2)))         elsewhere

    The first Phi is 1 if images > highest, the second is 0 if images < lowest, and their difference is at least
    `MIN_PROBABILITY`. A program with uncertainty has a last channel, whose mean over an image is s; it replaces the
    first term of the loss of an image by ``exp(-s) weight mean_pixels distance(r) + s``.

    A batch with self-conditioning columns takes two passes, the first without an estimate. The first pass has no
    gradient and does not update running statistics. The second pass reads::

        estimate = keep clip(c_skip x_t + c_out F, lowest, highest)

    Args:
        images: x_0 in the range of the data, with shape (B, H, W, C).
        noise: eps, with the same shape.
        label: int32 with shape (B,); the null label if the class is dropped.
        alpha: with shape (B,), like every column.
        sigma: standard deviation of the noise in x_t.
        c_in: factor of x_t at the input of the network.
        c_noise: the encoded noise level; float64 in every precision.
        target_x0: weight of x_0 in the target.
        target_eps: weight of eps in the target.
        weight: weight of the distance at this noise level.
        importance: importance weight of the whole loss of an image; 1 if noise levels are not drawn by importance.
        features: numbers in addition to the class, with shape (B, program.features).
        positions: each image's position in the run, its counter in the dropout stream, with shape (B,).
        dropout_key: the two words of the dropout stream.
        variational: the columns `VARIATIONAL`, with shape (B, 8); None for a loss without the bound.
        self_conditioning: the columns `SELF_CONDITIONING`, with shape (B, 5); None without self-conditioning.
        columns: the columns of a target that needs the network, with shape (B, K); see `target`. Then `weight` weights
            its distance, and the process columns describe the level of the prediction. None for a regression.
        times: its columns of times, float64 with shape (B, L).
    """

    images: NDArray
    noise: NDArray
    label: NDArray[np.int32]
    alpha: NDArray
    sigma: NDArray
    c_in: NDArray
    c_noise: NDArray[np.float64]
    target_x0: NDArray
    target_eps: NDArray
    weight: NDArray
    importance: NDArray
    features: NDArray
    positions: NDArray[np.int64]
    dropout_key: NDArray[np.int64]
    variational: NDArray | None = None
    self_conditioning: NDArray | None = None
    columns: NDArray | None = None
    times: NDArray[np.float64] | None = None

    @property
    def size(self) -> int:
        """The batch size B."""
        return len(self.label)

    @property
    def arrays(self) -> dict[str, NDArray]:
        """The fields by name, except those that are None."""
        return {name: array for name, array in vars(self).items() if array is not None}

    def rows(self, rows: slice) -> TrainBatch:
        """Return a part of the batch."""
        return replace(self, **{name: array[rows] for name, array in self.arrays.items() if name != "dropout_key"})


@dataclass(frozen=True, eq=False, repr=False)
class TrainerState:
    """The state of training: weights, moving averages and the slots of the optimiser, each by parameter name.

    Weights and averages have every name of the manifest, and so have slots with the shape of the parameters; those of
    parameters that are not trained stay as they started.

    Args:
        weights: the weights in the canonical axes, at which the network is evaluated.
        averages: the moving averages of the weights, at least one; sampling uses the first.
        slots: what the optimiser keeps, by slot and parameter; those of Adam are moment1 and moment2. Empty before the
            first update: a trainer then starts them, see `optim.optimiser.start_slots`.
        updates: number of optimiser steps so far.

    Example:
        >>> TrainerState.fresh({"w": np.ones((2, 3))})
        TrainerState(6 values, 1 average, 0 updates)
    """

    weights: Weights
    averages: tuple[Weights, ...]
    slots: Mapping[str, Weights] = field(default_factory=dict)
    updates: int = 0

    def __repr__(self) -> str:
        size = pluralize(sum(value.size for value in self.weights.values()), "value")
        averages, updates = pluralize(len(self.averages), "average"), pluralize(self.updates, "update")
        return f"TrainerState({size}, {averages}, {updates})"

    @staticmethod
    def fresh(weights: Weights, averages: int = 1) -> TrainerState:
        """Return the state before the first step, for any optimiser: averages equal to the weights, and no slots."""
        return TrainerState(weights, (weights,) * averages)

    @property
    def ema(self) -> Weights:
        """The moving average that sampling uses."""
        return self.averages[0]

    @property
    def evaluated(self) -> dict[str, Weights]:
        """What can be evaluated, by part: the weights, and ema (ema1, ema2 ... for further averages)."""
        return {"weights": self.weights, **dict(zip(average_names(len(self.averages)), self.averages, strict=True))}

    @property
    def parts(self) -> dict[str, Weights]:
        """All arrays by part: those of `evaluated`, and the slots of the optimiser."""
        return {**self.evaluated, **self.slots}

    @staticmethod
    def from_parts(parts: Mapping[str, Weights], updates: int) -> TrainerState:
        """Return the state with these `parts`."""
        names = [name for name in average_names(len(parts)) if name in parts]
        slots = {name: part for name, part in parts.items() if name not in ("weights", *names)}
        return TrainerState(parts["weights"], tuple(parts[name] for name in names), slots, updates)


def average_names(count: int) -> tuple[str, ...]:
    """Return the names of this many averages: ema, ema1, ema2 ..."""
    return tuple(f"ema{i}" if i else "ema" for i in range(count))


@dataclass(frozen=True, eq=False)
class StepResult:
    """The result of a training step. The numbers may still be on the device; ``float()`` waits for them.

    Args:
        loss: loss of the batch.
        grad_norm: global norm of the gradients before the clip.
        losses: returns the loss of each image without its importance weight, with shape (B,).
    """

    loss: SupportsFloat
    grad_norm: SupportsFloat
    losses: Callable[[], NDArray] = lambda: np.zeros(0)


@dataclass(frozen=True)
class Description:
    """What a backend runs on, for the terminal and for the run directory."""

    backend: str
    device: str
    precision: str
    threads: int
    mode: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU."""
        return self.device.startswith("cpu")

    def line(self) -> str:
        """Return one line with the device, the precision, the mode and the versions."""
        framework = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.backend}: {self.device}, {self.precision}, {self.mode} ({framework})"


class Network(Protocol):
    """A program built in a framework."""

    program: Program

    def forward(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        features: NDArray | None = None,
        estimate: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> NDArray:
        """Return the raw output F in evaluation mode.

        Args:
            x: images multiplied by c_in, with shape (B, H, W, C).
            c_noise: encoded noise levels, with shape (B,).
            label: classes, with shape (B,).
            features: with shape (B, program.features); None means zeros.
            estimate: an estimate of x_0 for a self-conditioned program, with the shape of x; None means zeros.
            second_time: for a program of two times, with shape (B,); None means `Program.default_second_time`.
        """

    def vjp(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        cotangent: NDArray,
        features: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Return (F, J^T cotangent), with J = dF/dx in evaluation mode.

        The images of a batch are independent, each with its own J. The cotangent has the shape of F, the product the
        shape of x.
        """

    def jvp(
        self,
        x: NDArray,
        c_noise: NDArray,
        label: NDArray,
        tangents: tuple[NDArray, NDArray, NDArray],
        features: NDArray | None = None,
        second_time: NDArray | None = None,
    ) -> tuple[NDArray, NDArray]:
        """Return (F, dF) in evaluation mode: the output, and its derivative along a direction.

        Args:
            x: as for `forward`, like the other arguments.
            c_noise: encoded noise levels.
            label: classes.
            tangents: the direction (of x, of c_noise, of second_time), each with the shape of its input.
            features: additional numbers.
            second_time: the second time.
        """

    def weights(self) -> Weights:
        """Return the weights by name, in the canonical axes."""

    def load(self, weights: Weights) -> None:
        """Replace the weights; traced and compiled functions stay valid."""


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


@dataclass(frozen=True, eq=False)
class Guidance:
    """The networks, images and conditions that guide sampling in addition to the plan; all are optional.

    Args:
        guide: the network that guided rows move away from, evaluated with the class (autoguidance); None means
            classifier-free guidance, away from the sampled network without a class.
        classifier: a network of logits (B, K); rows with a weight `SamplerPlan.classifier` follow the gradient of its
            log p(class | x).
        mask: 1 where the image is known and 0 elsewhere, with shape (B, H, W, 1) or (B, H, W, C).
        known: returns the known image at the noise level that row i leads to, with shape (B, H, W, C).
        features: numbers in addition to the class, with shape (B, program.features); None means zeros.
        null_features: the same for the evaluation without a class in classifier-free guidance; None means zeros.
        measurement: what the images agree with, and how; see `sampling.measurement`.
    """

    guide: Network | None = None
    classifier: Network | None = None
    mask: NDArray | None = None
    known: NoiseSource | None = None
    features: NDArray | None = None
    null_features: NDArray | None = None
    measurement: Measurement | None = None

    def check(self, plan: SamplerPlan) -> None:
        """Check that the guidance fits the plan.

        Raises:
            DuetError: for a classifier without a weight or a weight without a classifier, a mask without a known image
                or the reverse, a mask with a solver whose state is more than one image, or a measurement with a mask, a
                classifier or a plan for which its method is not defined.
        """
        if plan.classifier is not None and self.classifier is None:
            raise DuetError("sampler.classifier: a weight was given without a classifier; add classifier=RUN, or use 0")
        if plan.classifier is None and self.classifier is not None:
            raise DuetError(
                "classifier: a classifier was given with weight 0; add sampler.classifier=1, or leave it out"
            )
        if (self.mask is None) != (self.known is None):
            raise DuetError("inpainting: the mask or the known image is missing; give both, or neither")
        if self.mask is not None:
            plan.check_inpainting()
        if self.measurement is not None:
            self.measurement.check(plan)
            if self.mask is not None or self.classifier is not None:
                other = "a mask" if self.mask is not None else "a classifier"
                raise DuetError(f"posterior: a measurement was given with {other}; it takes neither, so leave one out")


_Method = TypeVar("_Method", bound=Callable[..., Any])


def translate_out_of_memory(method: _Method) -> _Method:
    """Make a method of an object with a `context` raise `OutOfMemory`, which says what to change, if memory runs out.

    Use it for methods that change nothing, since the caller may call them again.
    """

    @wraps(method)
    def translated(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.context.translate_out_of_memory():
            return method(self, *args, **kwargs)

    return translated  # type: ignore[return-value]


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

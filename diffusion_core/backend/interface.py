"""The seam: what crosses from the core to a backend, and what a backend must offer.

Only NumPy arrays cross it. Images are ``b h w c``; weights have the canonical axes of the manifest;
every column of numbers was computed in float64 and is cast at most once. A backend holds no formula of
diffusion theory: it multiplies what it is given.

A backend is found by its entry point in the group ``duet.backends``, so that a third party can add one.
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

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights
from diffusion_core.optim.adam import Adam
from diffusion_core.runtime.distributed import Collective, ProcessGroup
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
    "load_backend",
    "within_memory",
]

PRECISIONS = ("float64", "float32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
DISTANCES = ("mse", "l1", "huber", "pseudo_huber")
# The distance of a classifier's logits from the class.
CROSS_ENTROPY = "cross_entropy"
# The c of sqrt(r^2 + c^2) - c, in the unit of the target, of which the noise has standard deviation 1.
PSEUDO_HUBER_C = 0.03
# The columns of `TrainBatch.variational` and of `TrainBatch.self_conditioning`.
VARIATIONAL = ("offset", "scale", "error", "half_bin", "lowest", "highest", "mean_gradient", "weight")
SELF_CONDITIONING = ("c_skip", "c_out", "share", "lowest", "highest")
# The probability of a byte counts as at least this much.
MIN_PROBABILITY = 1e-12

# The least standard deviation that a guided output is divided by where it is rescaled: an output of zeros stays zeros.
MIN_STD = 1e-12

# A network's output F of (x, c_noise, label, features); see `Network.forward`.
Forward = Callable[..., NDArray]
# The same with a cotangent after the label, giving (F, J^T cotangent); see `Network.vjp`.
VJP = Callable[..., tuple[NDArray, NDArray]]
# z_i for row i of a plan, with the shape of the images.
NoiseSource = Callable[[int], NDArray]


@dataclass(frozen=True)
class StepCallback:
    """Somebody who looks at samples on their way.

    Args:
        see: called with (row, register 0, estimate of x_0) as host arrays.
        rows: after which rows of a plan; None is after each. What lies between them runs without a stop.
    """

    see: Callable[[int, NDArray, NDArray], None]
    rows: Collection[int] | None = None

    def __call__(self, row: int, x: NDArray, estimate: NDArray) -> None:
        """See the state after a row, if it is one of those that are looked at."""
        if self.rows is None or row in self.rows:
            self.see(row, x, estimate)

    def selected_rows(self, rows: int) -> Collection[int]:
        """Which of so many rows are looked at."""
        return range(rows) if self.rows is None else self.rows


@dataclass(frozen=True)
class BackendConfig:
    """How a backend computes; none of it changes what is computed.

    Args:
        device: ``"auto"`` takes CUDA where there is one.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"`` (weights and sums stay float32).
        compile: `torch.compile`, or XLA for TensorFlow.
        threads: CPU threads; None leaves the framework's choice.
        deterministic: only reproducible kernels, and TF32 off in any case.
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
        """The NumPy type in which images and columns are handed over."""
        return np.float64 if self.precision == "float64" else np.float32


@dataclass(frozen=True, eq=False)
class TrainBatch:
    r"""One step of training, whole: nothing is drawn or looked up after this.

    With ``x_t = alpha images + sigma noise``, ``target = target_x0 images + target_eps noise`` and the network's
    output ``F(c_in x_t, c_noise, label, features)``, of which the first channels, as many as the images have, count::

        r    = F - target
        loss = mean_b importance_b (weight_b mean_pixels distance(r) [+ weight'_b mean_pixels bound])

    The bound, of a batch with variational columns, takes as many channels more, F2; r~ is r as it stands, whose
    gradient is that of r times mean_gradient, and Phi is the normal distribution function::

        u     = offset + scale F2,    e = error r~
        bound = (u + exp(-u) - 1 + exp(-u) e^2) / 2                                          where half_bin is 0
        bound = -log(Phi((half_bin - e) exp(-u/2)) - Phi((-half_bin - e) exp(-u/2)))         elsewhere

    in which the first Phi is 1 where images > highest, the second 0 where images < lowest, and their difference at
    least `MIN_PROBABILITY`. A program with uncertainty has a last channel, whose mean over an image is v; the
    loss of the image is then ``exp(-v) weight mean_pixels distance(r) + v`` in place of the first term.

    A batch with the columns of self-conditioning is passed twice, the first time without an estimate. The second
    pass, in which nothing of the first has a gradient or counts for running statistics, is given::

        estimate = share clip(c_skip x_t + c_out F, lowest, highest)

    Args:
        images: x_0 in the range of the data, with shape (B, H, W, C).
        noise: eps, with the same shape.
        label: int32 with shape (B,); the null label where the class is dropped.
        alpha: with shape (B,), as are all the columns.
        weight: of the distance at this level.
        importance: of the whole loss of an image that is drawn more or less often than its law says; else 1.
        c_noise: float64, whatever the precision.
        features: numbers beside the class, with shape (B, program.features).
        positions: each image's position in the run, its counter in the dropout stream, with shape (B,).
        dropout_key: the two words of the dropout stream.
        variational: the columns `VARIATIONAL`, with shape (B, 8); None for a loss without the bound.
        self_conditioning: the columns `SELF_CONDITIONING`, with shape (B, 5), or None.
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

    @property
    def size(self) -> int:
        """B."""
        return len(self.label)

    @property
    def arrays(self) -> dict[str, NDArray]:
        """The fields by name, but for those that are None."""
        return {name: array for name, array in vars(self).items() if array is not None}


@dataclass(frozen=True, eq=False)
class TrainerState:
    """All that training must remember, by parameter name; `updates` counts optimiser steps.

    Every part has every name of the manifest; the moments of what is not trained stay zero.

    Args:
        averages: the moving averages of the weights, at least one; samples are drawn with the first.
    """

    weights: Weights
    averages: tuple[Weights, ...]
    moment1: Weights
    moment2: Weights
    updates: int = 0

    @staticmethod
    def fresh(weights: Weights, averages: int = 1) -> TrainerState:
        """The state before the first step: every average starts at the weights, the moments at zero."""
        zeros = {name: np.zeros_like(value) for name, value in weights.items()}
        return TrainerState(weights, (weights,) * averages, zeros, zeros)

    @property
    def ema(self) -> Weights:
        """The average that samples are drawn with."""
        return self.averages[0]

    @property
    def parts(self) -> dict[str, Weights]:
        """All arrays by the name of their part: weights, ema, ema1, ema2 ... for further averages, moment1, moment2."""
        averages = dict(zip(average_names(len(self.averages)), self.averages, strict=True))
        return {"weights": self.weights, **averages, "moment1": self.moment1, "moment2": self.moment2}

    @staticmethod
    def from_parts(parts: Mapping[str, Weights], updates: int) -> TrainerState:
        """The state with these `parts`."""
        averages = tuple(parts[name] for name in average_names(len(parts) - 3))
        return TrainerState(parts["weights"], averages, parts["moment1"], parts["moment2"], updates)


def average_names(count: int) -> tuple[str, ...]:
    """What that many averages are called: ema, ema1, ema2 ..."""
    return tuple(f"ema{i}" if i else "ema" for i in range(count))


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step reports; the numbers may still be on the device and are read by ``float()``.

    Args:
        loss: of the batch.
        grad_norm: before the clip.
        losses: reads the loss of each image, before its importance, with shape (B,).
    """

    loss: SupportsFloat
    grad_norm: SupportsFloat
    losses: Callable[[], NDArray] = lambda: np.zeros(0)


@dataclass(frozen=True)
class Description:
    """What a backend runs on, for people and for the run directory."""

    backend: str
    device: str
    precision: str
    threads: int
    mode: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the processor."""
        return self.device.startswith("cpu")

    def line(self) -> str:
        """One line that says which device, precision and mode are used."""
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
    ) -> NDArray:
        """The raw output F in evaluation, for images (B, H, W, C), numbers (B,), labels (B,) and features (B, F).

        Features that are not given are zeros, and so is the estimate of x_0, with the shape of x, that a
        self-conditioned program is given beside x.
        """

    def vjp(
        self, x: NDArray, c_noise: NDArray, label: NDArray, cotangent: NDArray, features: NDArray | None = None
    ) -> tuple[NDArray, NDArray]:
        """(F, J^T cotangent), with J the derivative of F by x in evaluation and the cotangent of F's shape.

        The images of a batch are independent: each is pulled back by its own J, and the result has the shape of x.
        """

    def weights(self) -> Weights:
        """The weights by name, in the canonical axes."""

    def load(self, weights: Weights) -> None:
        """Take other weights; what was traced or compiled is kept."""


class Trainer(Protocol):
    """A network with its optimiser and its moving averages, each of which takes a decay of its own.

    A batch may be computed in equal pieces, one after another, whose losses and gradients are added up before the one
    update: what is computed is the same but for rounding, and takes the memory of a piece. A program with batch
    statistics cannot be computed so.

    A step whose loss or gradient is not finite changes nothing but the number of updates, and nor do the steps after
    it until it is forgiven: what is not read before the next step is still there when it is. It is found on the device,
    without a wait for it.
    """

    def step(
        self, batch: TrainBatch, lr: float, decays: Sequence[float], micro_batches: int = 1, may_repeat: bool = False
    ) -> StepResult:
        """Forward, backward, running statistics, clip, optimiser, averages.

        Args:
            may_repeat: whether the step is to be tried again in more pieces where memory does not suffice for its loss
                and gradients. A backend may compute it slower then, and another way to rounding.

        Raises:
            OutOfMemory: nothing was changed, and the step may be tried again.
            DuetError: memory ended where part of an update may have been made.
        """

    def clear_non_finite(self) -> None:
        """Take updates again after one that was not finite."""

    def activations(self, batch: TrainBatch) -> dict[str, NDArray]:
        """The value of each block in the training pass of a batch, and the loss of each image as "losses", by name.

        Nothing is changed. Images are b h w c; of a self-conditioned program the second pass is seen.
        """

    def gradients(self, batch: TrainBatch, micro_batches: int = 1) -> tuple[float, Weights]:
        """The first half of a step: (loss, gradient by name), unclipped; nothing is changed."""

    def update(self, gradients: Weights, lr: float, decays: Sequence[float]) -> float:
        """The second half of a step, with given gradients; returns their global norm."""

    def state(self) -> TrainerState:
        """Everything that must be kept to go on exactly."""


@dataclass(frozen=True, eq=False)
class Guidance:
    """What leads sampling beside the plan; nothing of it is needed.

    Args:
        guide: the network that guided rows lead away from, with the class (autoguidance); None is the network that
            is sampled, without it.
        classifier: a network of logits (B, K) whose log p(class | x) is climbed where `SamplerPlan.classifier` says so.
        mask: where the picture is known, 1, or not, 0, with shape (B, H, W, 1) or (B, H, W, C).
        known: the known picture with the noise of the level that row i leads to, with shape (B, H, W, C).
    """

    guide: Network | None = None
    classifier: Network | None = None
    mask: NDArray | None = None
    known: NoiseSource | None = None

    def check(self, plan: SamplerPlan) -> None:
        """Refuse what does not go together.

        Raises:
            DuetError: for a classifier without a weight or a weight without one, half an inpainting, or a mask with a
                solver that keeps more pictures than the one it is laid over.
        """
        if plan.classifier is not None and self.classifier is None:
            raise DuetError("sampler.classifier: a weight was given, but no classifier; add classifier=RUN, or use 0")
        if plan.classifier is None and self.classifier is not None:
            raise DuetError("classifier: one was given with weight 0; add sampler.classifier=1, or leave it out")
        if (self.mask is None) != (self.known is None):
            raise DuetError("inpainting: a mask and the known picture go together; give both, or neither")
        if self.mask is not None:
            plan.check_inpainting()


_Method = TypeVar("_Method", bound=Callable[..., Any])


def within_memory(method: _Method) -> _Method:
    """A method of what has a `context`, where too little memory is one line that says what to change.

    It must change nothing that a second call would find.
    """

    @wraps(method)
    def limited(self: Any, *given: Any, **named: Any) -> Any:
        with self.context.within_memory():
            return method(self, *given, **named)

    return limited  # type: ignore[return-value]


class Backend:
    """A framework that executes programs and plans: one face for its modules, which a subclass names.

    Another class with the same methods is a backend too.

    Args:
        config: how it computes; they are fixed when it is made, as some are of the whole process.
        group: the place of this process among those that compute together.
    """

    device: ClassVar[Any]  # DeviceContext.communicator, prepare, describe, peak_memory_mib
    files: ClassVar[Any]  # read_arrays, export, exported
    networks: ClassVar[Any]  # Network
    samplers: ClassVar[Any]  # sample
    trainers: ClassVar[Any]  # Trainer, noised

    def __init__(self, config: BackendConfig, group: ProcessGroup | None = None) -> None:
        self.config = config
        self.context = self.device.prepare(config, group or ProcessGroup())

    @property
    def collective(self) -> Collective:
        """The processes that compute together."""
        return Collective(self.context.communicator.group, self.context.communicator.all_reduce_array)

    def in_mode(self, compile: bool) -> Backend:
        """The same backend with its functions compiled, or not."""
        other = copy(self)
        other.config, other.context = (replace(part, compile=compile) for part in (self.config, self.context))
        return other

    def describe(self) -> Description:
        """Device, precision and versions."""
        return self.device.describe(self.context, self.config)

    @within_memory
    def network(self, program: Program, weights: Weights) -> Network:
        """Build a network for inference."""
        return self.networks.Network(program, weights, self.context)

    @within_memory
    def trainer(self, program: Program, state: TrainerState, adam: Adam, distance: str) -> Trainer:
        """Build a network for training, going on from `state`."""
        return self.trainers.Trainer(program, state, adam, distance, self.context)

    @within_memory
    def noised(self, batch: TrainBatch) -> tuple[NDArray, NDArray]:
        """(x_t, target) of a batch, as the training step computes them."""
        return self.trainers.noised(batch, self.context)

    @within_memory
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
        """Run a plan from `start` (B, H, W, C) and give register 0 after the last row."""
        guidance = guidance or Guidance()
        guidance.check(plan)
        return self.samplers.sample(network, plan, start, label, noise, callback, guidance)

    def read_arrays(self, path: Path) -> Weights:
        """The arrays in a file of the framework's own format, by the names that stand there; nothing is unpickled."""
        return self.files.read_arrays(path)

    def export(self, network: Network, path: Path, shape: tuple[int, int, int]) -> None:
        """Write a network in the framework's own form, for images of a shape (h, w, c)."""
        self.files.export(network, path, shape)

    def exported(self, program: Program, path: Path) -> Forward:
        """What `export` wrote, read back: a function that is called as `Network.forward` is."""
        return self.files.exported(program, path, self.context)

    def peak_memory_mib(self) -> float:
        """The most memory used so far: of the device where it has its own, else of the process."""
        return self.device.peak_memory_mib(self.context)


def load_backend(name: str, config: BackendConfig, group: ProcessGroup | None = None) -> Any:
    """The backend of that name; the only place where one is chosen, and nothing is imported before.

    One that is to compute alone is made of its settings, without a `group`.

    Raises:
        DuetError: if no installed package offers it, or it cannot be imported here.
    """
    found = {entry.name: entry for entry in entry_points(group="duet.backends")}
    if not found:
        raise DuetError("no backend is installed in this Python; run: python3 -m duet setup")
    if name not in found:
        raise one_of("backend", name, sorted(found))
    try:
        factory = found[name].load()
    except ImportError as error:
        raise DuetError(
            f"backend {name}: it cannot be imported in this Python ({error}); "
            f"start it with: python3 -m duet COMMAND backend={name} ..."
        ) from error
    return factory(config) if group is None else factory(config, group)

"""What a training method declares: its options, its target, and the columns of a batch.

A method is a frozen dataclass whose fields are its options in a configuration. It answers three questions:

    target(setting)              which passes a step takes, see `backend.target`; the same for all batches
    draw(streams, ...)           the noise levels and what else is random, from named streams by position
    table(setting, draws, ...)   the columns of these draws; a function without randomness

so that draws of anybody else's code can be given to `table` in place of its own. `average_decay` is the decay of the
moving average that targets may be computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.backend.target import Distance, Target, Teacher
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.common.random import Stream
from diffusion_core.common.registry import build
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.second_time import SecondTime
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights, hash_weights

__all__ = ["METHODS", "Method", "Progress", "Setting", "Streams", "Table", "TrainedNetwork", "make_method", "method"]

Array = NDArray[np.float64]
# The random stream of a name, as in ``streams("t")``.
Streams = Callable[[str], Stream]


@dataclass(frozen=True)
class Progress:
    """Where in its run a step is: step k = 0, 1, ... of K."""

    step: int = 0
    steps: int = 1

    @staticmethod
    def end() -> Progress:
        """Return the end of a run of any length, after the last change of every method."""
        return Progress(2**20, 2**20)


@dataclass(frozen=True, eq=False, repr=False)
class TrainedNetwork:
    """A trained network with its process, as a teacher."""

    process: Process
    program: Program
    weights: Weights
    shape: tuple[int, ...]

    @cached_property
    def sha256(self) -> str:
        """The hash of its weights."""
        return hash_weights(self.weights)

    def __repr__(self) -> str:
        return f"TrainedNetwork({self.program!r}, {self.process!r})"


@dataclass(frozen=True, eq=False)
class Setting:
    """What a method is used on: the process, the network, the shape of an image (h, w, c), and the teacher."""

    process: Process
    program: Program
    shape: tuple[int, ...]
    teacher: TrainedNetwork | None = None

    @property
    def taught(self) -> Teacher | None:
        """The teacher as a part of a target."""
        return None if self.teacher is None else Teacher(self.teacher.program, self.teacher.weights)


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a batch.

    Args:
        columns: those of `TrainBatch.columns` by name, each with shape (B,).
        times: those of `TrainBatch.times` by name.
        weight: of the distance of each image.
        alpha: signal scale of the prediction's level.
        sigma: its noise scale.
        keeps_label: images whose class is not dropped, whatever the dropout drew; None means none.
    """

    columns: Mapping[str, Array]
    times: Mapping[str, Array]
    weight: Array
    alpha: Array
    sigma: Array
    keeps_label: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training method; each subclass declares one with `method`."""

    # The name in a configuration; what it needs; and where it is described.
    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = False
    takes_teacher: ClassVar[bool] = False
    two_times: ClassVar[bool] = False
    uses_uncertainty: ClassVar[bool] = False
    # Whether the second time is the length of a step, t - r.
    second_is_length: ClassVar[bool] = True
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    url: ClassVar[str] = ""
    code: ClassVar[str] = ""
    sampler: ClassVar[str] = ""

    @property
    def uses_average(self) -> bool:
        """Whether targets are computed with a moving average of the trained network."""
        return False

    @property
    def second_time(self) -> SecondTime | None:
        """What the second time of its network means; None for a method of one time, whose passes have none."""
        return None

    def check(self, setting: Setting) -> None:
        """Refuse a process, a network or a teacher that the method cannot be used on."""

    def target(self, setting: Setting) -> Target:
        """Return the passes of a step, and what is compared."""
        raise NotImplementedError

    def draw(self, streams: Streams, positions: NDArray, progress: Progress) -> dict[str, NDArray]:
        """Return what is random for the images at these positions of the run."""
        raise NotImplementedError

    def table(self, setting: Setting, draws: Mapping[str, NDArray], dropped: NDArray[np.bool_]) -> Table:
        """Return the columns of draws; `dropped` says which images are trained without their class."""
        raise NotImplementedError

    def average_decay(self, progress: Progress) -> float:
        """Return the decay of the moving average of targets at a step."""
        return 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The options, as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def method(cls: M) -> M:
    """Register a method under its name."""
    if cls.name in METHODS:
        raise DuetError(f"training method {cls.name}: it is declared twice; choose another name")
    METHODS[cls.name] = cls
    return cls


def make_method(name: str, **options: Any) -> Method:
    """Return a training method by name.

    Raises:
        DuetError: for a name or an option that does not exist, or a value of another type.
    """
    if name not in METHODS:
        raise one_of("objective.name", name, ("regression", *METHODS))
    return build("objective", METHODS, name, options)


def at_least(name: str, value: float, least: float) -> None:
    """Raise a `DuetError` for an option below its least value."""
    if isinstance(value, bool) or not value >= least or not np.isfinite(value):
        raise DuetError(f"objective.{name}: {value} was given; it must be at least {least:g}")


def positive(name: str, value: float) -> None:
    """Raise a `DuetError` for an option that is not above 0."""
    if not value > 0:
        raise DuetError(f"objective.{name}: {value} was given; it must be positive")


def image_distance(name: str, c: float | None, shape: tuple[int, ...]) -> Distance:
    """Return a distance; without a c, that of iCT for a pseudo-Huber distance or a norm: 0.00054 sqrt(pixels)."""
    if c is None:
        c = 0.00054 * float(np.sqrt(np.prod(shape))) if name in ("pseudo_huber", "norm") else 0.0
    return Distance(name, c)


def check_times(method: Method, setting: Setting) -> None:
    """Refuse a network that does not take the times of the method, or in a form that it cannot use.

    Raises:
        DuetError: for a network of one time, a derivative by times that are whole numbers, or a second time that is no
            difference of times.
    """
    if method.two_times and not setting.program.two_times:
        raise DuetError(
            f"objective: {method.name} was given for a network that reads one time; set model.second_time=true, choose "
            "another network that reads two, or name the second time in the call of an own network, as in "
            "network_call.inputs='x, t, h=second_time'"
        )
    if setting.program.rounds_times and any(step.direction for step in method.target(setting).passes):
        raise DuetError(
            f"objective: {method.name} differentiates by the times, but the network takes them as whole numbers; use "
            "network_call.time=float"
        )
    if setting.program.reads_end_time and not method.second_is_length:
        raise DuetError(
            f"objective: the second time of {method.name} is no difference of times, but the network takes the end of "
            "a step; use network_call.inputs='x, t, dt=second_time', with the name of its parameter"
        )


def check_teacher(method: Method, setting: Setting) -> None:
    """Refuse a missing teacher, and one that does not fit the student.

    Raises:
        DuetError: if the method needs a teacher and there is none, or shape, classes or noise levels differ.
    """
    teacher, program = setting.teacher, setting.program
    if teacher is None:
        if method.needs_teacher:
            raise DuetError(f"objective.teacher: nothing was given; {method.name} needs a run, objective.teacher=RUN")
        return
    if not (method.needs_teacher or method.takes_teacher):
        raise DuetError(f"objective.teacher: a run was given, but {method.name} uses no teacher; leave it out")
    if tuple(teacher.shape) != tuple(setting.shape):
        given, needed = ("x".join(map(str, shape)) for shape in (teacher.shape, setting.shape))
        raise DuetError(f"objective.teacher: its images are {given}, but those of the network are {needed}")
    own = teacher.program
    if own.classes and (own.classes != program.classes or own.labels != program.labels):
        raise DuetError(
            f"objective.teacher: it has {own.classes} classes, but the network has {program.classes}; use a network "
            f"with model.num_classes={own.classes}, or another teacher"
        )
    if own.features > program.features:
        raise DuetError(
            f"objective.teacher: it takes {own.features} features per image, but the network {program.features}"
        )
    if own.self_conditioned:
        raise DuetError("objective.teacher: it is self-conditioned, which a teacher cannot be")
    if method.needs_teacher:
        (low, high), (least, most) = (s.schedule.log_ratio_range for s in (setting.process, teacher.process))
        slack = 1e-9 * max(1.0, abs(least), abs(low))
        if low < least - slack or high > most + slack:
            levels = [f"{np.exp(a):.4g} to {np.exp(b):.4g}" for a, b in ((low, high), (least, most))]
            raise DuetError(
                f"objective.teacher: it knows sigma/alpha of {levels[1]}, but the process needs {levels[0]}; use the "
                f"process of the teacher, or a schedule within its range"
            )

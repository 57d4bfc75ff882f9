r"""Training targets that need the network, as data: a short list of steps that a backend runs.

The regression of `interface.TrainBatch` compares F with ``target_x0 x_0 + target_eps eps``. Consistency models,
MeanFlow, shortcut models and distillation compare it with something that a network computes. A `Target` says what, in
steps that each add a value with a name; ``images`` and ``noise`` are there from the start:

    Sum     name = bounded( sum of column * value )         a number for each image times earlier values
    Unit    name = value / (|value| + c)                    |.| the root of the sum, or mean, of the squares of an image
    Pass    name = F(x, c_noise, label, second_time)        of the trained network, of its average, or of a teacher
            name.rate = dF along (dx, dc_noise, dsecond_time)        if the pass has a direction
            name.uncertainty = u, the mean of F's last channel       if the pass has one

    loss = mean_b importance_b weight_b distance(prediction_b - target_b)
    loss = mean_b importance_b (exp(-u_b) weight_b distance(...) + u_b)          with an uncertainty

A pass may evaluate one image of each group of consecutive ones, `Rows`: the others of the group get its values, and the
columns of what reads them must be 0 there.

Only passes with `gradient` have one; the target never has. The derivative of a pass has none either: it is a part of
targets. All passes in training mode see the same dropout words; a teacher is in evaluation mode.

Every column is a number per image that the core computes in float64, in `TrainBatch.columns`; times stay float64 in
every precision, in `TrainBatch.times`. A backend holds no formula of a method.

With S the sum of the squared residuals of an image, the distances are

    mse, l1, huber, pseudo_huber        the mean over its pixels, as in `interface.DISTANCES`; pseudo_huber with c
    squares                             S
    norm                                sqrt(S + c^2) - c

and with a power p > 0 each is divided by (itself + eps)^p without gradient (adaptive weighting).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.program import Program
from diffusion_core.networks.weights import Weights

__all__ = [
    "DISTANCES", "MIN_SQUARES", "NETWORKS", "Direction", "Distance", "Pass", "Rows", "Sum", "Target", "Teacher", "Unit",
    "run",
]  # fmt: skip

NETWORKS = ("trained", "average", "teacher")
DISTANCES = ("mse", "l1", "huber", "pseudo_huber", "squares", "norm")
# Lower bound of a sum of squares whose root is taken, with an infinite derivative at 0.
MIN_SQUARES = 1e-24
# The values that are there before the first step.
GIVEN = ("images", "noise")


@dataclass(frozen=True)
class Sum:
    """A linear combination of values.

    Args:
        name: of the result.
        terms: (column, value) pairs; a number in place of a column is the same for every image.
        bounds: the result is bounded to them; None for no bounds.
    """

    name: str
    terms: tuple[tuple[str | float, str], ...]
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Unit:
    """A value divided by its norm over an image, so that it has nearly the norm 1.

    Args:
        name: of the result.
        value: that is divided.
        c: added to the norm.
        mean: whether the norm is the root of the mean of the squares, not of their sum.
    """

    name: str
    value: str
    c: float = 0.0
    mean: bool = False


@dataclass(frozen=True)
class Direction:
    """Along which a pass is differentiated: a value for x, and columns of times for c_noise and the second time.

    A network of one time has no second time here.
    """

    x: str
    c_noise: str
    second_time: str | None = None


@dataclass(frozen=True)
class Rows:
    """One image of every `every` consecutive ones: that at which a column is 1, while it is 0 at the others.

    A batch whose size is no multiple of `every` is evaluated whole, which gives the same loss.
    """

    column: str
    every: int


@dataclass(frozen=True)
class Pass:
    """An evaluation of a network.

    Args:
        name: of its output F, restricted to the channels of an image.
        network: one of `NETWORKS`: ``"average"`` is the last moving average of the trainer.
        x: the value that is the network's input, already multiplied by c_in.
        c_noise: a column of times.
        second_time: a column of times; None is the default of the network, `Program.default_second_time`.
        null_label: whether the network gets its label for "no class" in place of the batch's.
        gradient: whether the loss has a gradient through it; only of the trained network.
        direction: gives the derivative ``name.rate``; None for no derivative.
        evaluation: whether the network is in evaluation mode, as a teacher always is.
        uncertainty: whether the last channel of the output weights the loss; only with a gradient.
        rows: the images that are evaluated; None is all. Only in evaluation mode, without a gradient or a direction.
    """

    name: str
    network: str
    x: str
    c_noise: str
    second_time: str | None = None
    null_label: bool = False
    gradient: bool = False
    direction: Direction | None = None
    evaluation: bool = False
    uncertainty: bool = False
    rows: Rows | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the values that it adds."""
        has = {"rate": self.direction is not None, "uncertainty": self.uncertainty}
        return (self.name, *(f"{self.name}.{name}" for name, there in has.items() if there))

    @property
    def trains(self) -> bool:
        """Whether the network is in training mode."""
        return self.network != "teacher" and not self.evaluation


@dataclass(frozen=True)
class Distance:
    """The distance of an image: one of `DISTANCES` with its c, and the power and eps of its adaptive weighting."""

    name: str = "mse"
    c: float = 0.0
    power: float = 0.0
    eps: float = 0.0

    def __post_init__(self) -> None:
        check_choice("objective.distance", self.name, DISTANCES)
        for name in ("c", "power", "eps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DuetError(f"objective.{name}: {getattr(self, name)} was given; it must be 0 or a positive number")
        if self.name == "pseudo_huber" and not self.c:
            raise DuetError("objective.c: 0 was given; the pseudo-Huber distance needs a positive c, such as 0.03")


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    """A trained network that targets are computed with; it does not change."""

    program: Program
    weights: Weights

    def __repr__(self) -> str:
        return f"Teacher({self.program!r})"


@dataclass(frozen=True)
class Target:
    """A training target: the steps, and what is compared.

    Args:
        steps: in order.
        prediction: the value that is compared, through which gradients flow.
        target: the value that it is compared with.
        columns: the names of `TrainBatch.columns`.
        times: the names of `TrainBatch.times`.
        distance: of prediction and target.
        teacher: the network of passes of ``"teacher"``.

    Raises:
        DuetError: if a step reads what does not exist, a name is used twice, or no pass has a gradient.

    Example:
        The consistency loss between two noise levels, whose networks are the trained one and its average:

        >>> target = Target(
        ...     steps=(
        ...         Sum("x_t", (("alpha", "images"), ("sigma", "noise"))),
        ...         Pass("at_t", "trained", "x_t", "t", gradient=True),
        ...         Sum("x_r", (("alpha_r", "images"), ("sigma_r", "noise"))),
        ...         Pass("at_r", "average", "x_r", "r"),
        ...     ),
        ...     prediction="at_t",
        ...     target="at_r",
        ...     columns=("alpha", "sigma", "alpha_r", "sigma_r"),
        ...     times=("t", "r"),
        ... )
        >>> target.networks
        ('trained', 'average')
    """

    steps: tuple[Sum | Unit | Pass, ...]
    prediction: str
    target: str
    columns: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    distance: Distance = field(default_factory=Distance)
    teacher: Teacher | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        known = set(GIVEN)
        for step in self.steps:
            for value in _reads(step):
                _check(step.name, value, known, "no earlier value")
            if isinstance(step, Sum):
                for column in (column for column, _ in step.terms if isinstance(column, str)):
                    _check(step.name, column, self.columns, "no column")
            elif isinstance(step, Pass):
                self._check_pass(step)
            if step.name in known:
                raise DuetError(f"target: the name {step.name} is used twice")
            known |= set(step.outputs if isinstance(step, Pass) else (step.name,))
        for name in ("prediction", "target"):
            _check(name, getattr(self, name), known, "no value")
        if not any(step.gradient for step in self.passes):
            raise DuetError("target: no pass has a gradient, so nothing would be trained")
        if len([step for step in self.passes if step.uncertainty]) > 1:
            raise DuetError("target: two passes have an uncertainty; the loss has one weight")

    def _check_pass(self, step: Pass) -> None:
        direction = step.direction
        for column in (
            step.c_noise,
            step.second_time,
            direction and direction.c_noise,
            direction and direction.second_time,
        ):
            if column is not None:
                _check(step.name, column, self.times, "no column of times")
        check_choice(f"target: network of {step.name}", step.network, NETWORKS)
        if step.gradient and step.network != "trained":
            raise DuetError(f"target: {step.name} is a pass of {step.network}, which has no gradient")
        if step.rows is not None:
            _check(step.name, step.rows.column, self.columns, "no column")
            if step.gradient or step.trains or step.direction:
                raise DuetError(
                    f"target: {step.name} has rows, which only a pass in evaluation mode without a gradient or a "
                    "direction can have"
                )
        if step.uncertainty and not step.gradient:
            raise DuetError(f"target: {step.name} has an uncertainty and no gradient, so it would not be trained")

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The evaluations of networks."""
        return tuple(step for step in self.steps if isinstance(step, Pass))

    @property
    def uncertainty(self) -> str | None:
        """The value u that weights the loss; None for no such weight."""
        return next((step.outputs[-1] for step in self.passes if step.uncertainty), None)

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that it evaluates."""
        return tuple(name for name in NETWORKS if any(step.network == name for step in self.passes))

    @property
    def forwards(self) -> float:
        """The number of passes beside those with a gradient, for an estimate of the work of a step.

        A derivative along a direction counts as one more, and a pass of one image in n as 1/n.
        """
        parts = (1 if step.rows is None else 1 / step.rows.every for step in self.passes if not step.gradient)
        return sum(parts) + sum(step.direction is not None for step in self.passes)

    def whole(self) -> Target:
        """Return the target whose passes evaluate every image, for batches whose images are not consecutive."""
        steps = (replace(step, rows=None) if isinstance(step, Pass) else step for step in self.steps)
        return replace(self, steps=tuple(steps))


def _reads(step: Sum | Unit | Pass) -> tuple[str, ...]:
    """Return the names of the values that a step reads."""
    if isinstance(step, Sum):
        return tuple(value for _, value in step.terms)
    if isinstance(step, Unit):
        return (step.value,)
    return (step.x,) if step.direction is None else (step.x, step.direction.x)


def _check(who: str, name: str, known: Any, what: str) -> None:
    if name not in known:
        raise DuetError(f"target: {who} reads {name}, which is {what}")


def run(
    target: Target,
    given: Mapping[str, Any],
    combine: Callable[[Sum | Unit, Mapping[str, Any]], Any],
    evaluate: Callable[[Pass, Mapping[str, Any]], Iterable[Any]],
) -> dict[str, Any]:
    """Run the steps of a target; an executor needs no other loop.

    Args:
        target: the steps.
        given: the values of `GIVEN`.
        combine: computes a sum or a unit from the values so far.
        evaluate: computes the outputs of a pass from the values so far.
    """
    values = dict(given)
    for step in target.steps:
        if isinstance(step, Pass):
            values.update(zip(step.outputs, evaluate(step, values), strict=True))
        else:
            values[step.name] = combine(step, values)
    return values

r"""An optimiser as data: its state per parameter, the numbers of an update, and one formula for every framework.

Update k = 1, 2, ... has the learning rate lr. With the gradients g of all trained parameters::

    norm = sqrt(sum of g^2 over all parameters)
    g   <- g min(1, clip / (norm + 1e-6))                 if there is a clip
    (p, slots) <- update(ops, role, p, g, slots, scalars(k, lr))      for each parameter

`slots` states which named arrays an optimiser keeps for a parameter, with shape and start. `scalars` are float64
numbers that the host computes; only they depend on k and lr. `update` is written in the operations of `ArrayOps`, on
arrays with the canonical axes (``o i``, ``o i kh kw``); where `sees_axes` is false it treats all elements alike, and an
executor may store them in any order. A role says what a parameter is, from its axes in the manifest.

Some optimisers take the gradient at another point than the weights that they return, see `Optimiser.point`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.optim.ops import NUMPY, ArrayOps

__all__ = [
    "Optimiser",
    "Role",
    "Slot",
    "check_common",
    "check_range",
    "clip_factor",
    "correction",
    "describe_slots",
    "global_norm",
    "optimiser_update",
    "role_of",
    "start_slots",
]

Arrays = dict[str, NDArray]
Slots = dict[str, Arrays]

# What a parameter is, by its axes; of an own network, whose axes are not known, by their number.
_KINDS = {"o i": "matrix", "o i kh kw": "convolution", "i o kh kw": "convolution", "n o": "embedding"}
_OWN_KINDS = {2: "matrix", 3: "convolution", 4: "convolution", 5: "convolution"}


class Leaf(Protocol):
    """What an optimiser reads of a parameter of a manifest, see `networks.registry.Parameter`."""

    name: str
    shape: tuple[int, ...]
    axes: str
    decay: bool


@dataclass(frozen=True)
class Role:
    """What a parameter is to an optimiser.

    Args:
        name: of the parameter.
        shape: in the canonical axes.
        kind: ``"matrix"``, ``"convolution"``, ``"embedding"`` or ``"other"``.
        decays: whether weight decay applies to it.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "other"
    decays: bool = False


def role_of(parameter: Leaf, shape: tuple[int, ...] | None = None) -> Role:
    """Return the role of a parameter; `shape` is that of an own network's array in another order of its axes.

    Example:
        >>> from types import SimpleNamespace
        >>> role_of(SimpleNamespace(name="a.weight", shape=(8, 4), axes="o i", decay=True))
        Role(name='a.weight', shape=(8, 4), kind='matrix', decays=True)
    """
    kinds = _OWN_KINDS.get(len(parameter.shape), "other") if not parameter.axes else "other"
    return Role(
        parameter.name, tuple(shape or parameter.shape), _KINDS.get(parameter.axes, kinds), bool(parameter.decay)
    )


@dataclass(frozen=True)
class Slot:
    """An array that an optimiser keeps for a parameter.

    Args:
        shape: of the array; () for a number.
        start: ``"zeros"``, ``"weights"`` for a copy of the parameter, or ``"identity"`` for the identity matrix.
    """

    shape: tuple[int, ...]
    start: str = "zeros"

    def first(self, parameter: NDArray) -> NDArray:
        """Return its value before the first update, for a parameter in the canonical axes."""
        if self.start == "weights":
            return np.array(parameter)
        if self.start == "identity":
            return np.eye(self.shape[0], dtype=parameter.dtype)
        return np.zeros(self.shape, parameter.dtype)


class Optimiser(ABC):
    """The contract of an optimiser; subclasses are frozen dataclasses, whose fields are its options.

    A subclass has `clip`, the largest global norm of the gradient (None does not clip), and implements `slots`,
    `scalars` and `update`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Signs(Optimiser):
        ...     clip: float | None = None
        ...
        ...     def slots(self, role):
        ...         return {}
        ...
        ...     def scalars(self, update, lr):
        ...         return {"rate": lr}
        ...
        ...     def update(self, ops, role, p, g, slots, s):
        ...         return p - s["rate"] * ops.sign(g), {}
        >>> weights, gradients = {"w": np.array([1.0, 1.0])}, {"w": np.array([3.0, -0.2])}
        >>> optimiser_update(Signs(), {"w": Role("w", (2,))}, weights, {}, gradients, update=1, lr=0.5)[0]["w"]
        array([0.5, 1.5])
    """

    # Whether the formula looks at the axes of a parameter; else all elements are treated alike.
    sees_axes: ClassVar[bool] = False
    # Whether the gradient is taken at another point than the weights, see `point`.
    moves_point: ClassVar[bool] = False

    clip: float | None

    @abstractmethod
    def slots(self, role: Role) -> dict[str, Slot]:
        """Return the arrays that are kept for a parameter, by name and in order."""

    @abstractmethod
    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """Return the numbers of update k = 1, 2, ...; the names are the same for every update."""

    @abstractmethod
    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the parameter and its slots after an update.

        Args:
            ops: the operations of the framework.
            role: what the parameter is.
            p: the parameter.
            g: its gradient, clipped.
            slots: its slots by name.
            s: the `scalars` of this update.
        """

    def point(self, ops: ArrayOps, role: Role, p: Any, slots: Mapping[str, Any]) -> Any:
        """Return where the next gradient is taken, given the weights p; the weights themselves, as a rule."""
        return p


def check_range(**values: tuple[float, bool, str]) -> None:
    """Raise a `DuetError` for the first option of an optimiser that is out of range: name=(value, is right, what)."""
    for name, (value, is_right, allowed) in values.items():
        if not is_right:
            raise DuetError(f"optimiser.{name}: {value} was given; it must be {allowed}")


def check_common(betas: Mapping[str, float], eps: float, weight_decay: float, clip: float | None) -> None:
    """Check the options that most optimisers have."""
    check_range(**{name: (value, 0 <= value < 1, "in [0, 1)") for name, value in betas.items()})
    check_range(
        eps=(eps, eps > 0, "positive"),
        weight_decay=(weight_decay, weight_decay >= 0, "at least 0"),
        clip=(clip, clip is None or clip > 0, "positive, or null"),
    )


def correction(beta: float, update: int) -> float:
    """Return 1 - beta^k, accurate for betas near 1."""
    return -math.expm1(update * math.log(beta)) if beta else 1.0


def global_norm(gradients: Mapping[str, NDArray]) -> float:
    """Return the square root of the sum of squares over all arrays, in float64, summed per array first."""
    return math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values()))


def clip_factor(norm: float, clip: float | None) -> float:
    """Return the factor that limits gradients with this global norm to `clip`."""
    return 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))


def optimiser_update(
    optimiser: Optimiser,
    roles: Mapping[str, Role],
    weights: Arrays,
    slots: Slots,
    gradients: Arrays,
    update: int,
    lr: float,
) -> tuple[Arrays, Slots]:
    """Return (weights, slots) after one update of the parameters with a gradient; the reference for every backend.

    Args:
        optimiser: the optimiser.
        roles: of the parameters, by name.
        weights: parameters by name, in the canonical axes.
        slots: by slot and parameter, see `start_slots`.
        gradients: of the loss at `Optimiser.point`, before clipping.
        update: k = 1, 2, ...
        lr: learning rate of this update.
    """
    factor, scalars = clip_factor(global_norm(gradients), optimiser.clip), optimiser.scalars(update, lr)
    new_weights, new_slots = dict(weights), {slot: dict(arrays) for slot, arrays in slots.items()}
    for name, gradient in gradients.items():
        own = {slot: arrays[name] for slot, arrays in slots.items() if name in arrays}
        new_weights[name], changed = optimiser.update(
            NUMPY, roles[name], weights[name], gradient * factor, own, scalars
        )
        for slot, value in changed.items():
            new_slots[slot][name] = value
    return new_weights, new_slots


def describe_slots(optimiser: Optimiser, roles: Mapping[str, Role]) -> dict[str, dict[str, Slot]]:
    """Return the slots of an optimiser for these parameters, by slot and parameter, both in order."""
    table: dict[str, dict[str, Slot]] = {}
    for name, role in roles.items():
        for slot, value in optimiser.slots(role).items():
            table.setdefault(slot, {})[name] = value
    return table


def start_slots(
    optimiser: Optimiser, roles: Mapping[str, Role], weights: Mapping[str, NDArray], given: Mapping[str, Arrays]
) -> Slots:
    """Return the state that an optimiser starts from: what is given, or without it the state before the first update.

    Args:
        optimiser: the optimiser.
        roles: of all parameters, by name.
        weights: of the parameters, in the axes of the roles.
        given: by slot and parameter; empty for a fresh state.

    Raises:
        DuetError: if the given state is that of another optimiser or of other parameters.
    """
    wanted = describe_slots(optimiser, roles)
    if not given:
        return {
            slot: {name: value.first(weights[name]) for name, value in table.items()} for slot, table in wanted.items()
        }
    name = type(optimiser).__name__
    if set(given) != set(wanted):
        raise DuetError(
            f"optimiser: the state has the parts {_listed(given)}, but {name} keeps {_listed(wanted)}; it was trained "
            f"by another optimiser, so give that one, or start from its weights alone"
        )
    for slot, table in wanted.items():
        for parameter, value in table.items():
            found = given[slot].get(parameter)
            if found is None or tuple(found.shape) != value.shape:
                but = "it is missing" if found is None else f"{tuple(found.shape)} was given"
                raise DuetError(f"{slot}: {parameter}: the network needs shape {value.shape} for {name}, but {but}")
        if unknown := [parameter for parameter in given[slot] if parameter not in table]:
            raise DuetError(f"{slot}: {unknown[0]}: no parameter of the network that {name} keeps it for has this name")
    return {slot: {name: given[slot][name] for name in table} for slot, table in wanted.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"

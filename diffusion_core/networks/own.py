r"""Own networks: any callable of a framework as a network of Duet.

An own network is a program of one block, `Own`, which calls the user's object:

    F(c_in x_t, c_noise)  =  network(x, t)   or   network(x, t, label)   or any other order, keyword and layout

and with two times, as for MeanFlow, F(c_in x_t, c_noise, second_time) = network(x, t, h) or network(x, t, r = t - h),

so that samplers, training, moving averages, checkpoints and metrics do not tell it from a network of Duet. What needs
the blocks of a network (first weights drawn from the seed, the NumPy reference, a hand-over to the other framework,
ONNX) does not exist for it, and says so.

t is c_noise, as the process encodes it; see `diffusion.process`. `networks.own_call` has the inputs of a call and the
axes of a sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.networks.builder import NetworkSpec, lower
from diffusion_core.networks.own_call import LAYOUTS, SECOND_TIMES, TIMES, Arguments, CallNames, to_image_shape
from diffusion_core.networks.program import Node, Program
from diffusion_core.networks.registry import Block, Parameter, Shape, register

__all__ = ["ArraysByName", "Handle", "Manifest", "Own", "OwnSpec", "own_seed"]

NODE = "network"


class Handle:
    """Holds an object that is no data, such as a network; a copy of a handle holds the same object."""

    def __init__(self, held: Any = None) -> None:
        self.held = held

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        return self

    def __repr__(self) -> str:
        return f"Handle({type(self.held).__name__})"


class ArraysByName(Mapping[str, NDArray]):
    """Arrays that are read when they are asked for, since only training asks.

    Args:
        held: what holds each array, by name.
        read: returns the array that it holds.
    """

    def __init__(self, held: Mapping[str, Any], read: Callable[[Any], NDArray]) -> None:
        self._held, self._read = dict(held), read

    def __getitem__(self, name: str) -> NDArray:
        return self._read(self._held[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


@dataclass(frozen=True)
class Manifest:
    """What a backend reads off an own network.

    Args:
        parameters: (name, shape, whether it is trained) of each floating-point array, in the framework's order.
        values: the arrays by name.
        layout: where the framework's networks have their channels.
        inputs: (name, whether it must be given) of each parameter of a call; None if they are unknown.
        batch_statistics: whether the output for a sample depends, in training, on the others of its batch.
        precision: ``"float64"`` or ``"float32"``, by the type of the parameters.
        device: ``"cpu"`` or ``"cuda"``, where the parameters are.
        casts: whether the backend can compute with it in another precision than `precision`.
        class_rows: rows of its table of classes, if it has exactly one embedding or says its number of classes.
        one_hot: whether it takes the class as a vector, as networks with an attribute `label_dim` do.
        time: whether it takes t as a ``"float"`` or an ``"int"``, where the object says so.
        lazy: whether it makes its arrays in its first call, which has not been yet.
    """

    parameters: tuple[tuple[str, Shape, bool], ...]
    values: Mapping[str, NDArray]
    layout: str
    inputs: CallNames | None
    batch_statistics: bool = False
    precision: str = "float32"
    device: str = "cpu"
    casts: bool = True
    class_rows: int | None = None
    one_hot: bool = False
    time: str = "float"
    lazy: bool = False


def own_seed(key: Sequence[int], position: int) -> int:
    """Return the seed of what an own network draws in a training pass, from the dropout stream and the first image."""
    return int(np.random.SeedSequence([*key, position]).generate_state(1, np.uint64)[0] >> 1)


@register
@dataclass(frozen=True)
class Own(Block):
    """A network of the user's, called as it is.

    Args:
        reference: what it is called in messages and files, as in ``"my_package.my_file:build"``.
        shape: of one sample, in the network's own layout.
        layout: where its channels are, one of `LAYOUTS`.
        inputs: the arguments of a call, see `Arguments`.
        time: the type of t, one of `TIMES`.
        output: the attribute, key or position of the result that is the output; None for the result itself, its first
            element if it is a tuple or a list, or its attribute ``sample``.
        outputs: channels of the output.
        classes: number of classes; 0 without.
        first_label: the label of the first class: 1 where 0 means "no class".
        logits: whether the output is the logits of the classes, with shape (B, K), for a classifier.
        conditions: (name, shape, ``"float"`` or ``"int"``) of each further array that it takes for each sample.
        owned: (name, shape, whether it is trained) of its arrays; empty for a network that is called as it is, whose
            arrays Duet neither reads nor changes.
        batch_statistics: whether the output for a sample depends, in training, on its batch.
        network: holds the object; it does not take part in comparisons.
        values: holds the arrays by name that training starts from.
    """

    has_training_mode: ClassVar[bool] = True

    reference: str
    shape: tuple[int, ...]
    layout: str
    inputs: str
    time: str = "float"
    output: str | int | None = None
    outputs: int = 0
    classes: int = 0
    first_label: int = 0
    logits: bool = False
    conditions: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    owned: tuple[tuple[str, tuple[int, ...], bool], ...] = ()
    batch_statistics: bool = False
    network: Handle = field(default=Handle(), compare=False, repr=False)
    values: Handle = field(default=Handle(), compare=False, repr=False)

    def parameters(self) -> tuple[Parameter, ...]:
        """Return the arrays of the network; weight decay acts on those with at least two axes."""
        return tuple(
            Parameter(name, shape, "", ("given", 0.0), decay=trained and len(shape) > 1, trained=trained)
            for name, shape, trained in self.owned
        )

    def given(self, name: str) -> NDArray:
        """Return the value of an array when the network was handed over."""
        values = self.values.held
        if values is None:
            raise DuetError(f"network {self.reference}: the network itself is needed to start a training; give it")
        return values[name]

    def describe(self) -> dict[str, Any]:
        """Return the options as plain data, without the object and its name."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}
        del options["reference"]  # a file that is moved computes the same
        del options["first_label"]  # it follows from the null label, which a program describes
        return options

    @property
    def has_batch_statistics(self) -> bool:
        """Whether the output for a sample depends, in training, on its batch."""
        return self.batch_statistics

    @property
    def called(self) -> Callable[..., Any]:
        """The object itself.

        Raises:
            DuetError: if it was not given, as in a checkpoint, which keeps its name only.
        """
        if self.network.held is None:
            raise DuetError(
                f"network {self.reference}: a checkpoint keeps the weights and the name of an own network, not its "
                f"code; give it: network={self.reference} on the command line, duet.load(RUN, network=...) in Python"
            )
        return self.network.held

    @property
    def arguments(self) -> Arguments:
        """The arguments of a call."""
        return Arguments.parse(self.inputs, [name for name, _, _ in self.conditions])

    @property
    def feature_slices(self) -> dict[str, slice]:
        """Where each condition is in the vector of features."""
        ends = np.cumsum([0, *(int(np.prod(shape)) for _, shape, _ in self.conditions)]).tolist()
        return {name: slice(*ends[i : i + 2]) for i, (name, _, _) in enumerate(self.conditions)}

    @property
    def rounds_times(self) -> bool:  # type: ignore[override]
        """Whether it takes times as whole numbers."""
        return self.time == "int"

    @property
    def reads_end_time(self) -> bool:  # type: ignore[override]
        """Whether it takes the end of a step, t - second_time."""
        return "end_time" in self.arguments.values

    @staticmethod
    def times(c_noise: Any, second_time: Any = None) -> dict[str, Any]:
        """Return every time that the network can be given, in the precision of c_noise."""
        if second_time is None:
            return {"t": c_noise}
        return {"t": c_noise, "second_time": second_time, "end_time": c_noise - second_time}

    def call(self, network: Callable[..., Any], values: Mapping[str, Any]) -> Any:
        """Call a network with those of the values that it takes; return its output.

        An exception of the network stays as it is, with a note on what it was called with.
        """
        positional, keywords = self.arguments.bind(values)
        try:
            result = network(*positional, **keywords)
        except Exception as error:
            taken = [name for name in values if name in self.arguments.values]
            shown = ", ".join(f"{name} {values[name].dtype} {tuple(values[name].shape)}" for name in taken)
            error.add_note(
                f"Duet called network {self.reference} as ({self.inputs}) with {shown}; its layout is {self.layout}. "
                f"duet.adapt(network, inputs='x, t, label', layout=..., time='int' or 'column', framework=...) names "
                f"another call; one_hot in place of label is the class as a vector."
            )
            raise
        return self.result(result)

    def result(self, result: Any) -> Any:
        """Return the output among what a call returned.

        Raises:
            DuetError: if there is no such output.
        """
        if result is None:
            raise DuetError(f"network {self.reference}: it returned None; it must return its output")
        if self.output is None:
            if isinstance(result, (tuple, list)) and result:
                return result[0]
            if isinstance(result, Mapping) and "sample" not in result:
                if len(result) == 1:
                    return next(iter(result.values()))
                raise DuetError(
                    f"network {self.reference}: it returned {', '.join(map(str, result))}; say which is the output, as "
                    f"in duet.adapt(network, output={next(iter(result), None)!r})"
                )
            return result["sample"] if isinstance(result, Mapping) else getattr(result, "sample", result)
        try:
            if isinstance(self.output, int) or isinstance(result, Mapping):
                return result[self.output]
            return getattr(result, self.output)
        except (LookupError, AttributeError, TypeError) as error:
            raise DuetError(
                f"output: {self.output!r} was given, but the network returned a {type(result).__name__} without it"
            ) from error

    def check_output(self, shape: Sequence[int | None]) -> None:
        """Raise a `DuetError` if an output of this shape (with the batch) does not fit the samples.

        The output may have more channels than are used: with a fixed variance, those of a learned one are left out.
        """
        axis, rest = (-1, slice(None, -1)) if self.layout == "channels_last" else (0, slice(1, None))
        found, wanted = tuple(shape[1:]), tuple(self.shape)
        channels = wanted[axis]
        same_axes = len(found) == len(wanted) and found[rest] == wanted[rest]
        if same_axes and found[axis] == channels < self.outputs:
            raise DuetError(
                f"network {self.reference}: its output has {channels} channels, but a learned variance needs "
                f"{self.outputs}; use variance='fixed_small' in the plan, or a network with twice the channels"
            )
        if not same_axes or found[axis] not in (channels, 2 * channels):
            raise DuetError(
                f"network {self.reference}: its output has shape {found} for a sample of shape {wanted}; it must be "
                f"the same, or have twice the channels to predict a variance; the layout is {self.layout}"
            )

    def output_shape(self, x: Shape, c_noise: Shape, label: Shape, features: Shape, *second_time: Shape) -> Shape:
        """Return the shape of the output."""
        return (self.outputs,) if self.logits else (*x[:-1], self.outputs)

    def multiply_adds(self, x: Shape, c_noise: Shape, label: Shape, features: Shape, *second_time: Shape) -> int:
        """Raise a `DuetError`: an own network is called, not read."""
        raise DuetError(f"network {self.reference}: the multiply-adds of an own network are unknown")


def _tuples(value: Any) -> Any:
    """Return nested lists, as a file holds them, as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, repr=False)
class OwnSpec(NetworkSpec):
    """An own network as a spec: everything that a checkpoint keeps of it, and the object itself beside that.

    Args:
        image_size: the larger of height and width of a sample as an image.
        in_channels: channels of a sample.
        out_channels: channels of the output.
        num_classes: number of classes; 0 without.
        reference: see `Own`, like the following.
        shape: see `Own`.
        layout: see `Own`.
        inputs: see `Own`.
        time: see `Own`.
        output: see `Own`.
        null_label: the label that means "no class"; None is `num_classes`.
        conditions: see `Own`.
        logits: see `Own`.
        owned: see `Own`.
        batch_statistics: see `Own`.
        network: see `Own`.
        values: see `Own`.
    """

    configurable: ClassVar[bool] = False

    reference: str = field(default="", kw_only=True)
    shape: tuple[int, ...] = field(default=(), kw_only=True)
    layout: str = field(default="channels_last", kw_only=True)
    inputs: str = field(default="x, t", kw_only=True)
    time: str = field(default="float", kw_only=True)
    output: str | int | None = field(default=None, kw_only=True)
    null_label: int | None = field(default=None, kw_only=True)
    conditions: tuple[tuple[str, tuple[int, ...], str], ...] = field(default=(), kw_only=True)
    logits: bool = field(default=False, kw_only=True)
    owned: tuple[tuple[str, tuple[int, ...], bool], ...] = field(default=(), kw_only=True)
    batch_statistics: bool = field(default=False, kw_only=True)
    network: Handle = field(default=Handle(), kw_only=True, compare=False, repr=False)
    values: Handle = field(default=Handle(), kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("shape", "conditions", "owned"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("time", self.time, TIMES)
        arguments = Arguments.parse(self.inputs, [name for name, _, _ in self.conditions])
        if self.num_classes and not self.takes_label:
            raise DuetError(
                f"classes: {self.num_classes} classes were given, but the network takes ({arguments}) and no label; "
                f"add it, as in inputs='{arguments}, class_labels=label'"
            )
        self.check()

    @property
    def classifies(self) -> bool:  # type: ignore[override]
        """Whether the output is the logits of classes."""
        return self.logits

    @property
    def takes_label(self) -> bool:
        """Whether the call has a class."""
        values = Arguments.parse(self.inputs, [name for name, _, _ in self.conditions]).values
        return bool({"label", "one_hot"} & set(values))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of a sample as an image, (h, w, c)."""
        return to_image_shape(self.shape, self.layout)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one item of the data, with its channels last."""
        return (*self.shape[1:], self.shape[0]) if self.layout == "channels_first" else self.shape

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data, without the object."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}

    def with_network(self, other: OwnSpec) -> OwnSpec:
        """Return this spec, as a checkpoint holds it, with the object of another.

        Raises:
            DuetError: if the two do not have the same arrays; the message names the first difference.
        """
        if self.owned != other.owned:
            own, others = ({name: shape for name, shape, _ in spec.owned} for spec in (self, other))
            differ = [name for name in {**own, **others} if own.get(name) != others.get(name)]
            name = differ[0] if differ else "the order or kind of its arrays"
            raise DuetError(
                f"network: the checkpoint is of another network than {other.reference}: {name} has shape "
                f"{own.get(name, 'none')} there and {others.get(name, 'none')} here ({len(differ)} differ)"
            )
        return dataclasses.replace(self, network=other.network, values=other.values)

    def __repr__(self) -> str:
        arrays = f", {len(self.owned)} arrays" if self.owned else ""
        return f"OwnSpec({self.reference}, {self.shape} {self.layout}, call ({self.inputs}){arrays})"


@lower.register
def _(spec: OwnSpec) -> Program:
    names = [f.name for f in dataclasses.fields(Own) if f.name not in ("outputs", "classes", "first_label")]
    options = {name: getattr(spec, name) for name in names}
    first_label = int(spec.null_label == 0 and spec.num_classes > 0)
    block = Own(**options, outputs=spec.out_channels, classes=spec.num_classes, first_label=first_label)
    takes_label = spec.takes_label and spec.num_classes
    null_label = spec.num_classes if spec.null_label is None else spec.null_label
    features = max((piece.stop for piece in block.feature_slices.values()), default=0)
    times = ("second_time",) if set(SECOND_TIMES) & set(block.arguments.values) else ()
    node = Node(NODE, block, ("x", "c_noise", "label", "features", *times))
    return Program((node,), null_label if takes_label else None, spec.num_classes, features)

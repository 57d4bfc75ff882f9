"""Own networks of any framework: which backend runs them, and how they are called."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.interface import backend_class
from diffusion_core.backend.numpy_backend import NumpyBackend
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data import Dataset
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.variational import LEARNED
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import lower
from diffusion_core.networks.own import Handle, Manifest, OwnSpec
from diffusion_core.networks.own_call import CLASS_COUNTS, LAYOUTS, TIMES, Arguments, infer_inputs, to_image_shape
from diffusion_core.runs.checkpoint import Checkpoint
from diffusion_core.training.objective import REGRESSION
from diffusion_core.training.targets import METHODS
from experiments.runtime.options import CONFIGS
from experiments.runtime.own_files import open_network

__all__ = ["OwnNetwork", "adapt", "backend_of", "building", "own_model", "pack_conditions", "with_network"]

NUMPY = "numpy"


@dataclass(frozen=True, eq=False, repr=False)
class OwnNetwork:
    """An own network with everything that calling it needs; `adapt` makes one.

    Args:
        network: the object.
        framework: the name of its backend, or "numpy".
        backend: the class of that backend.
        manifest: what that backend read off the object.
        name: what it is called in messages and files.
        inputs: the arguments of a call; None infers them from the names of its parameters.
        layout: where its channels are.
        output: see `diffusion_core.networks.own.Own`.
        time: whether t is a ``"float"`` or an ``"int"``.
        classes: number of classes; None if it is not known.
        null_label: the label that means "no class"; None is `classes`.
    """

    network: Any
    framework: str
    backend: Any
    manifest: Manifest
    name: str
    inputs: str | None = None
    layout: str = "channels_last"
    output: str | int | None = None
    time: str = "float"
    classes: int | None = None
    null_label: int | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        inputs = self.inputs or "inferred"
        return f"OwnNetwork({self.name}, {self.framework}, inputs {inputs}, {self.layout})"

    @property
    def takes_label(self) -> bool | None:
        """Whether the call has a class; None if that is inferred."""
        if self.inputs is None:
            return True if self.classes else None
        return bool({"label", "one_hot"} & set(re.findall(r"\w+", re.sub(r"\w+\s*[=:]", "", self.inputs))))

    @property
    def knows_null_label(self) -> bool:
        """Whether the label that means "no class" is known."""
        return not (self.classes is None and self.null_label is None and self.manifest.class_rows is None)

    @property
    def can_take_label(self) -> bool:
        """Whether the call has a place for a class, which may be optional."""
        if self.inputs is not None:
            return bool(self.takes_label)
        try:
            return self.manifest.inputs is not None and "label" in infer_inputs(self.manifest.inputs, True)
        except DuetError:
            return False

    @property
    def known_labels(self) -> int | None:
        """How many labels the network knows, "no class" among them; None if it does not say."""
        return self.manifest.class_rows if self.classes is None else self.classes + 1

    def known_classes(self, labels: NDArray | None) -> int | None:
        """Return the number of classes: as given, as the network's table has them, or as many as the labels need."""
        if self.classes is not None or labels is None:
            return self.classes
        rows = self.manifest.class_rows
        if rows is None and "one_hot" in (self.inputs or ""):
            raise DuetError("classes: the network takes the class as a vector; give its length, as in classes=10")
        return rows - 1 if rows is not None and rows - 1 > labels.max(initial=0) else int(labels.max(initial=0)) + 1

    def spec(
        self,
        shape: tuple[int, ...],
        *,
        classes: int | None = None,
        with_label: bool | None = None,
        two_times: bool = False,
        conditions: tuple[tuple[str, tuple[int, ...], str], ...] = (),
        out_channels: int | None = None,
        learned: bool = False,
        logits: bool = False,
        owned: bool = False,
    ) -> OwnSpec:
        """Return the network as a spec.

        Args:
            shape: of one sample, in the network's layout.
            classes: number of classes, if the network was adapted without one.
            with_label: whether it is given a class; None if only where its signature demands it.
            two_times: whether it is given a second time even where its signature makes that optional.
            conditions: (name, shape, type) of further inputs.
            out_channels: channels of the output; None for those of a sample.
            learned: whether the output has as many channels again, for a learned variance.
            logits: whether it is a classifier.
            owned: whether Duet keeps its weights, to train it; otherwise it is called as it is.

        Raises:
            DuetError: if its arguments are not clear, or it has no weights to train.
        """
        names = [name for name, _, _ in conditions]
        inputs = self.inputs
        if inputs is None:
            known = self.manifest.inputs
            with_label = with_label if self.takes_label is None else self.takes_label
            inputs = infer_inputs(known and [pair for pair in known if pair[0] not in names], with_label, two_times)
        arguments = Arguments.parse(inputs, names)
        if self.inputs is None and self.manifest.one_hot:
            arguments = arguments.with_value("label", "one_hot")
        inputs = ", ".join([str(arguments), *(f"{name}={name}" for name in names if name not in arguments.values)])
        height, width, channels = to_image_shape(shape, self.layout)
        has_label = {"label", "one_hot"} & set(arguments.values)
        classes = (self.classes if classes is None else classes) if has_label else 0
        manifest = self.manifest
        if owned and manifest.lazy:
            called = dict(
                classes=classes, with_label=with_label, two_times=two_times, conditions=conditions,
                out_channels=out_channels,
            )  # fmt: skip
            self.build(self.spec(shape, logits=logits, **called))
            manifest = self.backend.own.read_network(self.network)
        if owned and not any(trained for _, _, trained in manifest.parameters):
            raise DuetError(f"network {self.name}: it has no weights that Duet can train; give a module of a framework")
        return OwnSpec(
            image_size=max(height, width),
            in_channels=channels,
            out_channels=out_channels or channels * (1 + learned),
            num_classes=classes or 0,
            reference=self.name,
            shape=tuple(shape),
            layout=self.layout,
            inputs=inputs,
            time=self.time,
            output=self.output,
            null_label=self.null_label,
            conditions=conditions,
            logits=logits,
            owned=manifest.parameters if owned else (),
            batch_statistics=manifest.batch_statistics,
            network=Handle(self.network),
            values=Handle(manifest.values),
        )

    def open(self, compile: bool = False) -> Any:
        """Return the backend that computes where and how the network does."""
        if compile not in self.cache:
            self.cache[compile] = self.backend.for_network(self.manifest, compile)
        return self.cache[compile]

    def try_out(self, spec: OwnSpec) -> None:
        """Call the network once on two samples of zeros, so that what does not fit is found before a run begins.

        Raises:
            DuetError: if its output does not fit. An exception of the network passes through.
        """
        height, width, channels = spec.image_shape
        network = self.build(replace(spec, owned=()))
        x, times = np.zeros((2, height, width, channels), self.open().config.host_dtype), np.zeros(2)
        network.forward(x, times, np.zeros(2, np.int32))

    def build(self, spec: OwnSpec, compile: bool = False) -> Any:
        """Return the network of a spec in its backend, called as it is; what was traced is kept."""
        key = (spec, compile)
        if key not in self.cache:
            self.cache[key] = self.open(compile).network(lower(spec), {})
        return self.cache[key]


@cache
def _packages_by_backend() -> dict[str, frozenset[str]]:
    """Return the packages whose objects belong to each installed backend, as its file in `configs` names them."""
    packages = {}
    for name in sorted(entry.name for entry in entry_points(group="duet.backends")):
        path = CONFIGS / "backend" / f"{name}.yaml"
        options = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        packages[name] = frozenset(options.get("packages", ()))
    return packages


def backend_of(network: Any, framework: str | None = None) -> tuple[str, Any]:
    """Return the name and the class of the backend whose framework an object belongs to; NumPy's for a function.

    Args:
        network: the object.
        framework: the name of the backend, for a function of tensors.

    Raises:
        DuetError: for an unknown framework, or an object that cannot be called.
    """
    installed = _packages_by_backend()
    if framework not in (None, NUMPY, *installed):
        raise one_of("framework", framework, [*sorted(installed), NUMPY])
    if framework is None:
        if inspect.isclass(network):
            raise DuetError(f"network: the class {network.__qualname__} was given; make an object of it, and give that")
        roots = {kind.__module__.partition(".")[0] for kind in type(_holder(network)).__mro__}
        framework = next((name for name, packages in installed.items() if roots & packages), None)
    if framework not in (None, NUMPY):
        return framework, backend_class(framework)
    if isinstance(network, Mapping):
        raise DuetError(
            "network: a mapping was given, as a state dict is one, which holds weights and no code; load it into the "
            "network, and give that"
        )
    if not callable(network):
        raise DuetError(
            f"network: an object of type {type(network).__name__} was given; it must be a module or a function "
            f"of a framework, for example an nn.Module, a keras.Model, or a function of NumPy arrays"
        )
    return NUMPY, NumpyBackend


@contextmanager
def building(framework: str, precision: str, seed: int) -> Iterator[None]:
    """Let the framework build networks that compute in a precision, with first weights that follow from a seed.

    What the user's code draws with `random` and `numpy.random` follows from it, too. The generators are put back.
    """
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002  user's code may draw from it
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with backend_class(framework).own.building(precision, seed):
            yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002


def _holder(network: Any) -> Any:
    """Return the object whose method it is, or that it calls with some arguments given."""
    while True:
        inner = getattr(network, "__self__", None)
        inner = network.func if isinstance(network, partial) else inner
        if inner is None or inspect.ismodule(inner):
            return network
        network = inner


def adapt(
    network: Any,
    *,
    inputs: str | None = None,
    layout: str | None = None,
    output: str | int | None = None,
    time: str | None = None,
    classes: int | None = None,
    null_label: int | None = None,
    framework: str | None = None,
    name: str | None = None,
) -> OwnNetwork:
    """Say how an own network is called; see `duet.adapt`."""
    if layout not in (None, *LAYOUTS):
        raise one_of("layout", layout, LAYOUTS)
    if time not in (None, *TIMES):
        raise one_of("time", time, TIMES)
    for key, value, least in (("classes", classes, 1), ("null_label", null_label, 0)):
        if value is not None and value < least:
            raise DuetError(f"{key}: {value} was given; it must be at least {least}, or left out")
    if classes is not None and null_label not in (None, 0, classes):
        raise DuetError(
            f"null_label: {null_label} was given with classes={classes}; it must be {classes}, the default, or "
            f"0 for a network whose classes are 1 to {classes}"
        )
    if isinstance(network, OwnNetwork):
        if framework not in (None, network.framework):
            raise DuetError(f"framework: {framework!r} was given, but {network.name} is of {network.framework}")
        given = {
            "inputs": inputs, "layout": layout, "output": output, "time": time, "classes": classes,
            "null_label": null_label, "name": name,
        }  # fmt: skip
        changes = {key: value for key, value in given.items() if value is not None}
        return replace(network, **changes, cache={}) if changes else network
    if isinstance(network, str | Path):
        name = name or str(network)
        return adapt(
            open_network(network), inputs=inputs, layout=layout, output=output, time=time, classes=classes,
            null_label=null_label, framework=framework, name=name,
        )  # fmt: skip
    framework, backend = backend_of(network, framework)
    manifest = backend.own.read_network(network)
    if time == "int" and not any(hasattr(network, name) for name in CLASS_COUNTS):
        manifest = replace(manifest, class_rows=None)  # its only embedding may be that of t
    kind = network if hasattr(network, "__qualname__") else type(network)
    return OwnNetwork(
        network=network, framework=framework, backend=backend, manifest=manifest,
        name=name or f"{kind.__module__}:{kind.__qualname__}", inputs=inputs, layout=layout or manifest.layout,
        output=output, time=time or manifest.time, classes=classes, null_label=null_label,
    )  # fmt: skip


def own_model(
    own: OwnNetwork,
    process: Process,
    dataset: Dataset,
    *,
    label_dropout: float = 0.0,
    objective: str = REGRESSION,
    **options: Any,
) -> DiffusionModel:
    """Return the model of an own network with a process, for training on a data set.

    Args:
        own: the network.
        process: made by name.
        dataset: its items must fit the network, and its classes if the network is given them.
        label_dropout: the fraction of images trained without their class, for which the network needs a label.
        objective: the name of the objective; some give the network a second time.
        options: `value_range`, `variance` and `uncertainty` of `DiffusionModel`.
    """
    last = dataset.shape
    shape = (last[-1], *last[:-1]) if own.layout == "channels_first" else last
    conditions = (("condition", (dataset.condition_size,), "float"),) if dataset.condition_size else ()
    rows, classes = own.manifest.class_rows, dataset.num_classes if own.classes is None else own.classes
    if own.can_take_label and classes != dataset.num_classes:
        raise DuetError(
            f"classes: {classes} was given, but data {dataset.name} has {dataset.num_classes}; leave it out, or give "
            f"{dataset.num_classes}: a network may know more labels than the data has classes"
        )
    needed = classes + bool(label_dropout)
    if own.can_take_label and rows is not None and rows < needed:
        without = ' and "no class" for label_dropout' if label_dropout else ""
        raise DuetError(
            f"network {own.name}: its embedding has {rows} rows, but the data has {classes} classes{without}; "
            f"{needed} are needed"
        )
    # A class that is optional in the call is given if the network has a table of classes, or if options name classes.
    named = own.classes is not None or bool(label_dropout) or rows is not None
    with_label = True if named and classes > 1 and own.can_take_label else None
    spec = own.spec(
        shape, classes=classes, with_label=with_label, conditions=conditions,
        two_times=objective in METHODS and METHODS[objective].two_times,
        learned=options.get("variance") in LEARNED, owned=True,
    )  # fmt: skip
    return DiffusionModel(spec, process, **options)


def pack_conditions(
    conditions: Mapping[str, ArrayLike] | None, count: int, to_array: Callable[[Any], NDArray]
) -> tuple[tuple[tuple[str, tuple[int, ...], str], ...], NDArray[np.float64] | None]:
    """Return the names, shapes and types of conditions, and their values as features with shape (count, F).

    Raises:
        DuetError: for a condition without one value for each sample, or of another type than numbers.
    """
    if not conditions:
        return (), None
    kinds, parts = [], []
    for name, value in conditions.items():
        array = to_array(value)
        if array.ndim < 1 or len(array) != count or array.dtype.kind not in "iufb":
            raise DuetError(
                f"conditions: {name} is {array.dtype} with shape {array.shape}; it must have numbers for each of the "
                f"{count} samples, with shape ({count}, ...)"
            )
        kinds.append((name, array.shape[1:], "float" if array.dtype.kind == "f" else "int"))
        parts.append(array.reshape(count, -1).astype(np.float64))
    return tuple(kinds), np.concatenate(parts, axis=1)


def with_network(checkpoint: Checkpoint, own: OwnNetwork | None, path: object) -> Checkpoint:
    """Return a checkpoint with the own network that it is of, which it does not hold itself.

    Args:
        checkpoint: as it was read.
        own: the network; None for a network of Duet.
        path: of the checkpoint, for errors.

    Raises:
        DuetError: if the checkpoint needs a network and there is none, or the reverse, or if it is of another one.
    """
    spec = checkpoint.model.spec
    if not isinstance(spec, OwnSpec):
        if own is not None:
            raise DuetError(f"network: {own.name} was given, but {path} is of a network of Duet; leave it out")
        return checkpoint
    if own is None:
        raise DuetError(
            f"network: {path} is of an own network, {spec.reference}, whose weights it keeps but not its code; add "
            f"network={spec.reference}"
        )
    given = replace(own, inputs=spec.inputs, layout=spec.layout, output=spec.output, time=spec.time, cache={})
    made = given.spec(spec.shape, classes=spec.num_classes or None, conditions=spec.conditions, owned=True)
    return replace(checkpoint, model=replace(checkpoint.model, spec=spec.with_network(made)))

"""Record what a PyTorch model computes, one operation at a time, for `duet diff`.

The model runs eagerly under a `TorchDispatchMode`, below its modules and below autograd. Operations in place, and views
of memory that was written, become operations of values that exist once; see `memory`. What nothing reads and
what is no output is left out: autograd and bookkeeping make such operations.

Gradients are those of the loss of `recording`. This module, the twin of `backends.tf.recorder`, needs NumPy and PyTorch
alone, because it runs in the interpreter of the model's author.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backends.torch.recorder.calls import CallStack, options_of, remember_lines, watch_calls
from backends.torch.recorder.memory import Memory
from backends.torch.recorder.model import (
    arguments,
    call_model,
    differ,
    eager,
    fixed_loss,
    flat_outputs,
    flat_tensors,
    only_reading,
)
from backends.torch.recorder.operations import EMPTY, MAKERS, RANDOM, TRANSLATIONS, Native, Unknown
from backends.torch.recorder.steps import record_steps
from backends.torch.recorder.variables import Named, cast, modules_of, named_variables, to_array, unwrapped
from diffusion_core.parity.diff.recording import Layer, Operation, Pass

__all__ = [
    "FRAMEWORK",
    "LAYOUT",
    "building",
    "layers",
    "prepare",
    "read_state",
    "record_pass",
    "record_steps",
    "version",
    "write_state",
]

FRAMEWORK = "torch"
LAYOUT = "channels_first"


def version() -> str:
    """Return the name and version of PyTorch."""
    return f"torch {torch.__version__.split('+')[0]}"


@contextmanager
def building(precision: str, seed: int) -> Iterator[None]:
    """Set the default float type and the seeds while the author's function builds the model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, precision))
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the author may draw from it
    random.seed(seed)
    try:
        with remember_lines():
            yield
    finally:
        torch.set_default_dtype(before)


def prepare(model: Any, precision: str) -> Any:
    """Return the model in a precision; the float32 model is the one that the author built.

    Raises:
        ValueError: if PyTorch cannot run it in float64; the message is one line.
    """
    model = model.module() if isinstance(model, torch.export.ExportedProgram) else unwrapped(model)
    if isinstance(model, type) or not callable(model):
        raise ValueError(f"this is {type(model).__name__}; it must be a model, or a function that returns one")
    for module in modules_of(model).values():
        for name, child in module.named_modules():
            if ".quantized" in type(child).__module__ and "qat" not in type(child).__module__:
                raise ValueError(f"the module {name or type(child).__name__} is quantised; duet diff records floats")
    cast(model, precision)
    return model


def read_state(model: Any) -> dict[str, NDArray]:
    """Return the parameters and buffers of a model by name."""
    return {name: np.array(to_array(each.tensor)) for name, each in named_variables(model).items()}


def write_state(model: Any, arrays: Mapping[str, NDArray]) -> None:
    """Write parameters and buffers into a model by name."""
    known = named_variables(model)
    for name, array in arrays.items():
        if name not in known:
            raise ValueError(f"the model has no parameter {name}; it has {', '.join(known) or 'none'}")
        if tuple(known[name].tensor.shape) != np.shape(array):
            raise ValueError(f"{name}: the model has {tuple(known[name].tensor.shape)}, the array {np.shape(array)}")
        with torch.no_grad():
            known[name].tensor.copy_(torch.from_numpy(np.array(array)))


def record_pass(
    model: Any, inputs: Sequence[NDArray] | Mapping[str, NDArray], name: str, gradients: str = "all"
) -> Pass:
    """Record one pass through a model; its state is the same before and after.

    A pass in training mode runs twice in a row for `buffers_after`; operations and gradients are those of the first.
    Gradients are of "all" values, of the "parameters" alone, or "none".
    """
    precision = "float64" if name.endswith("64") else "float32"
    training = name.startswith("train")
    with _refusing_precision(precision):
        with only_reading(model), eager(model, precision, seed=1):
            _set_mode(model, training)
            args, kwargs = arguments(model, inputs, precision)
            trial = None if training and not _is_lazy(model) else flat_outputs(call_model(model, args, kwargs))
        with only_reading(model), eager(model, precision):
            _set_mode(model, training)
            args, kwargs = arguments(model, inputs, precision)
            recorder = _Recorder(model, flat_tensors([args, kwargs]))
            result = recorder.run(lambda: call_model(model, args, kwargs), gradients)
            if not training and trial is not None and differ(trial, flat_outputs(result)):
                recorder.note("two passes with the same inputs differ: the model is random or keeps a state")
            after: tuple[Mapping[str, NDArray], ...] = ()
            if training:
                first = recorder.buffers()
                again = arguments(model, inputs, precision)
                call_model(model, *again)
                after = (first, recorder.buffers()) if first else ()
            return recorder.finished(name, result, after)


def layers(model: Any) -> dict[str, dict[str, Any]]:
    """Return the hyper-parameters of each layer or module by path."""
    return {
        ".".join(part for part in (prefix, name) if part): options_of(child)
        for prefix, module in modules_of(model).items()
        for name, child in module.named_modules()
    }


def _is_lazy(model: Any) -> bool:
    tensors = (each for module in modules_of(model).values() for each in [*module.parameters(), *module.buffers()])
    return any(nn.parameter.is_lazy(each) for each in tensors)


def _set_mode(model: Any, training: bool) -> None:
    """Put a model into the mode of a pass.

    A new module is in training mode, which its author need not have meant. A part that is in training mode although the
    whole is not was left there by its author, and stays.
    """
    for module in modules_of(model).values():
        if not (training or module.training):
            continue
        try:
            module.train(training)
        except NotImplementedError as error:  # of a program that torch.export made
            if training:
                raise ValueError("an exported program has the mode in which it was exported") from error


@contextmanager
def _refusing_precision(precision: str) -> Iterator[None]:
    """Say in one line that a model does not run in float64."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if precision != "float64" or not any(word in text for word in ("dtype", "Float", "scalar type", "Double")):
            raise
        raise ValueError(f"float64 is not possible: {text}") from error


class _Recorder(TorchDispatchMode):
    """The operations and values of one pass, as PyTorch dispatches them."""

    supports_higher_order_operators = True

    def __init__(self, model: Any, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.operations: list[Operation] = []
        self.variables: dict[str, Named] = {}
        self.first: dict[str, int] = {}
        self.layers: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.count = 0
        self.frame: Any = None
        self.native = ""
        self.place: tuple[str, str, str] = ("", "", "")
        self.composite: dict[Any, bool] = {}
        self.cut: dict[int, int] = {}  # values behind a stop_gradient
        self.memory = Memory(self)
        self.gradients: dict[int, NDArray] = {}
        self.stack = CallStack(self._entered, self._left)
        self.start: dict[int, Tensor] = {}  # parameters, buffers and constants, which may change later
        self.inputs = tuple(self._bound(tensor) for tensor in inputs)
        for name, each in named_variables(model).items():
            self._add_variable(name, each)

    def _add_variable(self, name: str, each: Named) -> None:
        self.variables[name] = each
        number = self.memory.number(each.tensor)
        if number is None:
            number = self._bound(each.tensor)
            self.start[number] = each.tensor.detach().clone()
        self.first[name] = number

    def _bound(self, tensor: Tensor) -> int:
        number = self._new()
        self.memory.bind(tensor, number)
        return number

    def _new(self) -> int:
        self.count += 1
        return self.count

    # What translations and the memory call; see `native.Sink` and `memory.Moves`.

    def read(self, tensor: Tensor) -> int:
        """Return the number of the value that a tensor holds; one that nothing made becomes a constant."""
        number = self.memory.number(tensor)
        if number is not None:
            return number
        if tensor.requires_grad and tensor.is_leaf:
            name = f"tensor{sum(each.startswith('tensor') for each in self.first)}"
            self._add_variable(name, Named(tensor, False, True))
            return self.first[name]
        number = self._bound(tensor)
        self.start[number] = tensor.detach().clone()
        self.operations.append(Operation("constant", (), (number,), {}, "tensor", *self.place))
        return number

    def write(self, kind: str, inputs: list[int], outputs: list[int] | None, attributes: dict[str, Any]) -> int:
        """Write an operation, with an output of its own if none is given; return the number of its first output."""
        outputs = [self._new()] if outputs is None else outputs
        self.operations.append(Operation(kind, tuple(inputs), tuple(outputs), attributes, self.native, *self.place))
        return outputs[0]

    def move(self, kind: str, inputs: list[int], **attributes: Any) -> int:
        """Write an operation that moves numbers; return the number of its result."""
        return self.write(kind, inputs, None, attributes)

    def constant(self, array: NDArray) -> int:
        """Write an array of the code; return its number."""
        number = self.write("constant", [], None, {})
        self.start[number] = torch.from_numpy(np.array(array))
        return number

    def note(self, text: str) -> None:
        """Say what could not be recorded."""
        if text not in self.notes:
            self.notes.append(text)

    # What PyTorch and the modules report.

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and record it."""
        kwargs = kwargs or {}
        if not isinstance(function, torch._ops.OpOverload):
            self.note(f"{function} is run as one operation: what it does inside is not recorded")
            return function(*args, **kwargs)
        name = function._schema.name.split("::")[-1]
        if self._is_composite(function, name):
            with self:
                return function.decompose(*args, **kwargs)
        given = _named(function, args, kwargs)
        read = flat_tensors(given)
        if any(each.layout != torch.strided or each.is_quantized for each in read):
            raise ValueError(f"{function}: sparse or quantised tensors; duet diff records plain ones only")
        written = _written(function, name, given)
        base = name if name.startswith("__") else name.rstrip("_")
        self.native = f"{function._schema.name.replace('::', '.')}"
        line = self.stack.line(self.frame)
        self.place = (self.stack.path, *line)
        is_cut = not torch.is_grad_enabled() and not written and any(each.requires_grad for each in read)
        if not torch.is_grad_enabled() and (custom := self.stack.function()):
            self.native += f" in {custom}"
            is_cut = False
        is_made = base in MAKERS and not isinstance(given.get("value"), Tensor)
        numbers = {} if is_made else {id(each): self.read(each) for each in read}
        for each in written:
            self.memory.freeze(each)
        result = function(*args, **kwargs)
        results = flat_tensors(result)
        results += [each for each in written if not any(each is other for other in results)]
        if not results:
            if read and base in ("_local_scalar_dense", "is_nonzero", "equal", "item"):
                self._read_as_number(read, line)
            return result
        if base in EMPTY:
            for each in results:
                each.zero_()
        outputs = [self._new() for _ in results]
        self._translate(base, function, given, read, numbers, results, outputs, is_cut)
        for each, number in zip(results, outputs, strict=True):
            self.memory.bind(each, number, any(each is other for other in written))
        return result

    def _is_composite(self, function: Any, name: str) -> bool:
        """Return whether PyTorch writes an operation as others, which it does by itself only above autograd."""
        if function not in self.composite:
            has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
            self.composite[function] = has_kernel(function.name(), "CompositeImplicitAutograd") and name not in (
                "lift_fresh",
                "scaled_dot_product_attention",
            )
        return self.composite[function]

    def _translate(
        self,
        base: str,
        function: Any,
        given: dict[str, Any],
        read: Sequence[Tensor],
        numbers: Mapping[int, int],
        results: Sequence[Tensor],
        outputs: list[int],
        is_cut: bool,
    ) -> None:
        """Write one operation of PyTorch in the words of the vocabulary."""
        is_made = base in MAKERS and not isinstance(given.get("value"), Tensor)
        if is_made or (base in RANDOM and not results[0].dtype.is_complex):
            if is_made:
                self.write("constant", [], outputs[:1], {})
            else:
                self.write("random", [], outputs[:1], _draw(base, given))
            return
        length, translation = len(self.operations), TRANSLATIONS.get(base)
        known = {**numbers}
        if is_cut:
            for each in read:
                if each.requires_grad:
                    known[id(each)] = self._behind_cut(numbers[id(each)])
            length = len(self.operations)
        native = Native(base, function, given, results, outputs, _Reader(self, known))
        try:
            if translation is None or any(each.is_complex() for each in [*read, *results]):
                raise Unknown
            translation(native)
        except Unknown:
            del self.operations[length:]
            self.write("opaque", [known[id(each)] for each in read], outputs, _plain_arguments(given))
            return
        made = {number for each in self.operations[length:] for number in each.outputs}
        if left := [number for number in outputs if number not in made]:
            self.write("opaque", [known[id(each)] for each in read], left, {})

    def _behind_cut(self, number: int) -> int:
        """Return the number of a value through which no gradient flows, because the code runs under no_grad."""
        if number not in self.cut:
            self.cut[number] = self.write("stop_gradient", [number], None, {})
        return self.cut[number]

    def _read_as_number(self, read: Sequence[Tensor], line: tuple[str, str]) -> None:
        where = f" at {line[0]}" if line[0] else ""
        self.note(f"the code reads a tensor as a Python number{where}: how the result depends on it is not recorded")

    def _entered(self, module: Any, path: str, given: Any) -> dict[str, Any]:
        call = {"path": path, "type": type(module).__name__, "options": options_of(module)}
        call["inputs"] = self._known(given)
        self.layers.append(call)
        return call

    def _left(self, call: dict[str, Any], result: Any) -> None:
        call["outputs"] = self._known(result)

    def _known(self, value: Any) -> tuple[int, ...]:
        numbers = [self.memory.number(each) for each in flat_tensors(value) if each.layout == torch.strided]
        return tuple(number for number in numbers if number is not None)

    # The pass.

    def run(self, call: Callable[[], Any], gradients: str) -> Any:
        """Run the model under the recorder, then take the gradients of the fixed loss."""
        self.frame = sys._getframe()
        with watch_calls(self.stack, modules_of(self.model)), self:
            result = call()
        self.outputs = {name: self.read(each) for name, each in flat_outputs(result).items()}
        floats = [each for each in flat_outputs(result).values() if each.is_floating_point() and each.requires_grad]
        if floats and gradients != "none":
            self.gradients = self._take_gradients(fixed_loss(floats), gradients == "all")
        return result

    def _take_gradients(self, loss: Tensor, of_all: bool) -> dict[int, NDArray]:
        sources = dict(self.memory.edges) if of_all else {}
        for number, holder in self.memory.holders.items():
            if of_all and holder.requires_grad and number not in sources:
                sources[number] = holder
        for name, number in self.first.items():
            if self.variables[name].tensor.requires_grad:
                sources[number] = self.variables[name].tensor
        try:
            found = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
        except RuntimeError as error:
            self.note(f"gradients are not recorded: {str(error).splitlines()[0]}")
            return {}
        return {
            number: to_array(gradient)
            for number, gradient in zip(sources, found, strict=True)
            if gradient is not None and gradient.layout == torch.strided
        }

    def buffers(self) -> dict[str, NDArray]:
        """Return the buffers as they are now."""
        return {
            name: np.array(to_array(each.tensor)) for name, each in named_variables(self.model).items() if each.buffer
        }

    def finished(self, name: str, result: Any, after: tuple[Mapping[str, NDArray], ...]) -> Pass:
        """Return the recording."""
        operations = self._live()
        if opaque := sorted({each.native for each in operations if each.kind == "opaque"}):
            self.note(f"compared by their values only: {', '.join(opaque)}")
        used = {*self.inputs, *self.outputs.values(), *self.first.values()}
        used |= {number for each in operations for number in (*each.inputs, *each.outputs)}
        tensors = {**self.memory.data, **self.start}
        values = {number: to_array(each) for number, each in tensors.items() if number in used}
        parameters = {key: number for key, number in self.first.items() if not self.variables[key].buffer}
        calls = [
            {**call, **{part: tuple(n for n in call.get(part, ()) if n in used) for part in ("inputs", "outputs")}}
            for call in self.layers
        ]
        return Pass(
            name,
            tuple(operations),
            values,
            self.inputs,
            self.outputs,
            parameters,
            {key: number for key, number in self.first.items() if self.variables[key].buffer},
            frozenset(key for key in parameters if not self.variables[key].trained),
            {number: each for number, each in self.gradients.items() if number in used},
            after,
            tuple(Layer(**call) for call in calls),
            tuple(self.notes),
        )

    def _live(self) -> list[Operation]:
        """Return the operations that lead to an output."""
        needed, kept = set(self.outputs.values()), []
        for each in reversed(self.operations):
            if needed.intersection(each.outputs):
                needed.update(each.inputs)
                kept.append(each)
        return kept[::-1]


class _Reader:
    """The recorder for one translation, which reads its arguments as they were before the operation."""

    def __init__(self, recorder: _Recorder, known: Mapping[int, int]) -> None:
        self.recorder, self.known = recorder, known
        self.write, self.constant = recorder.write, recorder.constant

    def read(self, tensor: Tensor) -> int:
        """Return the number of the value of an argument."""
        return self.known[id(tensor)]


def _named(function: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Return the arguments of an operation by name, with their defaults."""
    schema = function._schema.arguments
    given = {each.name: each.default_value for each in schema if each.has_default_value()}
    named = {**dict(zip((each.name for each in schema), args, strict=False)), **kwargs}
    return {each.name: named.get(each.name, given.get(each.name)) for each in schema}


def _written(function: Any, name: str, given: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes in place."""
    written = [
        tensor
        for each in function._schema.arguments
        if each.alias_info is not None and each.alias_info.is_write
        for tensor in flat_tensors(given[each.name])
    ]
    # PyTorch does not declare that these write the running statistics.
    if "batch_norm" in name and not written and given.get("training"):
        written = flat_tensors([given.get("running_mean"), given.get("running_var")])
    return written


def _draw(base: str, given: Mapping[str, Any]) -> dict[str, Any]:
    distribution = RANDOM[base]
    if distribution != "bernoulli":
        return {"distribution": distribution, "rate": None}
    kept = given.get("p")
    return {"distribution": distribution, "rate": None if not isinstance(kept, (int, float)) else 1 - kept}


def _plain_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are numbers or texts, for the report of an operation without a word."""

    def is_plain(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return all(is_plain(item) for item in value)
        return isinstance(value, (bool, int, float, str))

    return {name: value for name, value in given.items() if is_plain(value) and value != []}

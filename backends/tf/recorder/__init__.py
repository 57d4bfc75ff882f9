"""Record what a TensorFlow or Keras model computes, one operation at a time, for `duet diff`.

The model runs eagerly, also where it has tf.functions, and TensorFlow reports each operation to `_Recorder.saw`. What
depends on neither the model's inputs nor its weights is *fixed*: shapes and numbers in the code. It becomes attributes
of the operations that read it, and a "constant" only where an operation reads it as an array.

Gradients are those of the loss of `recording`. This module, the twin of `backends.torch.recorder`, needs NumPy and
TensorFlow alone, because it runs in the interpreter of the model's author.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework import op_callbacks
from tensorflow.python.ops import resource_variable_ops

from backends.tf.recorder.calls import CallStack, options_of, remember_lines, watch_calls
from backends.tf.recorder.graphs import graphs_run_by_node
from backends.tf.recorder.model import (
    arguments,
    call_model,
    differ,
    fixed_loss,
    flat_outputs,
    is_layer,
    only_reading,
    set_default,
)
from backends.tf.recorder.operations import (
    ALIASES,
    MAKERS,
    RANDOM,
    SHAPES,
    TRANSLATIONS,
    Native,
    Value,
    space_to_batch_steps,
)
from backends.tf.recorder.steps import record_steps
from backends.tf.recorder.variables import (
    Named,
    cast_keras,
    cast_module,
    modules_of,
    named_variables,
    to_array,
    unnamed,
)
from diffusion_core.parity.diff.generators import seed_generators
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

FRAMEWORK = "tf"
LAYOUT = "channels_last"


def version() -> str:
    """Return the names and versions of TensorFlow and, if it is loaded, Keras."""
    keras = sys.modules.get("keras")
    return f"tensorflow {tf.__version__}" + (f", keras {keras.__version__}" if keras else "")


@contextmanager
def building(precision: str, seed: int) -> Iterator[None]:
    """Set the default float type and the seeds while the author's function builds the model."""
    import keras

    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.utils.clear_session()
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    try:
        with remember_lines():
            yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def prepare(model: Any, precision: str) -> Any:
    """Return the model in a precision; the float32 model is the one that the author built.

    Raises:
        ValueError: if TensorFlow cannot run it in float64; the message is one line.
    """
    if isinstance(model, type) or not (callable(model) or hasattr(model, "signatures")):
        raise ValueError(f"this is {type(model).__name__}; it must be a model, or a function that returns one")
    if precision == "float64" or getattr(model, "_duet_cast", False):
        # Only what was cast before is cast back: a model of mixed precision is recorded as it is.
        if is_layer(model):
            cast_keras(model, precision)
        elif isinstance(model, tf.Module):
            cast_module(model, precision)
        if is_layer(model) or isinstance(model, tf.Module):
            object.__setattr__(model, "_duet_cast", precision == "float64")
    fixed = [name for name, each in named_variables(model).items() if each.variable.dtype in (tf.float32, tf.float16)]
    is_graph = hasattr(model, "signatures") or type(model).__name__ in ("TFSMLayer", "ConcreteFunction")
    if precision == "float64" and (fixed or is_graph):
        what = f"the variable {fixed[0]} is float32" if fixed and not is_graph else "a SavedModel has fixed types"
        raise ValueError(f"float64 is not possible: {what}; build it in the type of the argument `dtype`")
    return model


def read_state(model: Any) -> dict[str, NDArray]:
    """Return the parameters and buffers of a model by name."""
    return {name: to_array(each.variable) for name, each in named_variables(model).items() if not each.seed}


def write_state(model: Any, arrays: Mapping[str, NDArray]) -> None:
    """Write parameters and buffers into a model by name."""
    known = named_variables(model)
    for name, array in arrays.items():
        if name not in known:
            raise ValueError(f"the model has no variable {name}; it has {', '.join(known) or 'none'}")
        known[name].variable.assign(tf.cast(tf.constant(array), known[name].variable.dtype))


def record_pass(
    model: Any, inputs: Sequence[NDArray] | Mapping[str, NDArray], name: str, gradients: str = "all"
) -> Pass:
    """Record one pass through a model; its state is the same before and after.

    A pass in training mode runs twice in a row for `buffers_after`; operations and gradients are those of the first.
    Gradients are of "all" values, of the "parameters" alone, or "none".
    """
    precision = "float64" if name.endswith("64") else "float32"
    training = name.startswith("train")
    args, kwargs = arguments(model, inputs, precision)
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    default = set_default(precision)
    try:
        with only_reading(model), _refusing_precision(precision), graphs_run_by_node(lambda variable: None):
            seed_generators(1)
            trial = flat_outputs(call_model(model, args, kwargs, False))
        with only_reading(model):
            seed_generators(0)
            recorder = _Recorder(model, tf.nest.flatten([args, list(kwargs.values())]))
            result = recorder.run(lambda: call_model(model, args, kwargs, training), training, gradients)
            notes = list(recorder.notes)
            if not training and differ(trial, flat_outputs(result)):
                notes.append("two passes with the same inputs differ: the model is random or keeps a state")
            after: tuple[Mapping[str, NDArray], ...] = ()
            if training:
                first = recorder.buffers()
                call_model(model, args, kwargs, training)
                after = (first, recorder.buffers()) if first else ()
        return recorder.finished(name, result, after, notes)
    finally:
        set_default(default)
        tf.config.run_functions_eagerly(eager)


def layers(model: Any) -> dict[str, dict[str, Any]]:
    """Return the hyper-parameters of each layer or module by path."""
    if is_layer(model):
        return {each.path or each.name: options_of(each) for each in model._flatten_layers()}
    return {path: options_of(module) for path, module in modules_of(model).items()}


@contextmanager
def _refusing_precision(precision: str) -> Iterator[None]:
    """Say in one line that a model does not run in float64."""
    try:
        yield
    except (TypeError, ValueError, tf.errors.OpError) as error:
        if precision != "float64" or "duet diff" in str(error):
            raise
        raise ValueError(f"float64 is not possible: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the part of an error of TensorFlow or Keras that says what is wrong, in one line."""
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered")] or [type(error).__name__]
    return re.sub(r"\{\{function_node[^}]*\}\} ?| ?\[Op:.*", "", lines[0])


class _Recorder:
    """The operations and values of one pass, as TensorFlow reports them."""

    def __init__(self, model: Any, inputs: Sequence[tf.Tensor]) -> None:
        self.model = model
        self.operations: list[Operation] = []
        self.values: dict[int, NDArray] = {}
        self.tensors: dict[int, tf.Tensor] = {}  # of floats, for their gradients
        self.numbers: dict[int, int] = {}  # of the values of tensors
        self.kept: list[Any] = []
        self.variables: dict[str, Named] = {}
        self.current: dict[int, int | None] = {}  # the number of what a variable holds now, by its handle
        self.first: dict[str, int] = {}
        self.layers: list[dict[str, Any]] = []
        self.draws: dict[int, int] = {}  # uniform random values and the places of their operations
        self.notes: list[str] = []
        self.count = 0
        self.frame: Any = None
        self.tape: tf.GradientTape
        self.gradients: dict[int, NDArray] = {}
        self.stack = CallStack(self._entered, self._left)
        self.inputs = tuple(self._new(tensor) for tensor in inputs)
        self.given = list(inputs)
        for name, each in named_variables(model).items():
            self._add_variable(name, each)

    def _add_variable(self, name: str, each: Named) -> None:
        if each.seed:
            self.current[each.variable.handle._id] = None  # what it draws is recorded, not its state
            return
        while name in self.variables:
            name += "_"
        self.variables[name] = each
        self.count += 1
        self.first[name] = self.current[each.variable.handle._id] = self.count
        self.values[self.count] = to_array(each.variable)

    def _new(self, tensor: tf.Tensor | None) -> int:
        """Give a tensor a value of its own."""
        self.count += 1
        if tensor is not None:
            self.numbers[tensor._id] = self.count
            self.kept.append(tensor)
            self.values[self.count] = to_array(tensor)
            if tensor.dtype.is_floating:
                self.tensors[self.count] = tensor
        return self.count

    # What translations call; see `operations.Sink`.

    def read(self, tensor: tf.Tensor) -> int:
        """Return the number of the value of a tensor; a fixed one becomes a constant."""
        if tensor._id not in self.numbers:
            self._append(Operation("constant", (), (self._new(tensor),), {}, "Const", *self._place()))
        return self.numbers[tensor._id]

    def is_fixed(self, tensor: Value) -> bool:
        """Return whether a tensor depends on neither inputs nor weights."""
        return not isinstance(tensor, int) and tensor._id not in self.numbers

    def write(self, native: Native, kind: str, inputs: list[int], outputs: list[Value], attributes: dict) -> list[int]:
        """Write an operation."""
        numbers = [self._new(result) for result in outputs]
        operation = Operation(kind, tuple(inputs), tuple(numbers), attributes, native.name, *self._place())
        self._append(operation)
        return numbers

    def alias(self, tensor: tf.Tensor, number: int) -> None:
        """Let a tensor be a value that exists."""
        self.numbers[tensor._id] = number
        self.kept.append(tensor)

    def _append(self, operation: Operation) -> None:
        self.operations.append(operation)

    def _place(self) -> tuple[str, str, str]:
        return (self.stack.path, *self.stack.line(self.frame))

    # What TensorFlow and the layers report.

    def saw(
        self,
        op_type: Any,
        inputs: Sequence,
        attributes: Sequence,
        outputs: Sequence,
        op_name: Any = None,
        graph: Any = None,
    ) -> None:
        """Record one operation that ran."""
        if graph is not None and not isinstance(graph, type(None)) and not tf.executing_eagerly():
            return
        name = op_type.decode() if isinstance(op_type, bytes) else op_type
        pairs = dict(zip(attributes[::2], attributes[1::2], strict=True)) if attributes else {}
        self.kept.extend(inputs)
        self.kept.extend(outputs)
        for each in inputs:
            self._recognise(each)
        native = Native(self, name, inputs, pairs, outputs)
        if name == "ReadVariableOp":
            self._read_variable(native)
        elif name.startswith("Assign") and name.endswith("VariableOp"):
            self._assign(native)
        elif name in ("ResourceGather", "ResourceGatherNd"):
            self._gather(native)
        elif name in SHAPES or not outputs:
            return
        elif name.startswith(RANDOM):
            self._draw(native)
        elif all(self.is_fixed(each) for each in inputs):
            result = outputs[0]
            if result.dtype.is_floating and result.shape.rank and name not in MAKERS:
                self._translate(native)
        else:
            self._translate(native)

    def _recognise(self, tensor: Any) -> None:
        """Find the variable that a tensor is the value of.

        An operation that gets a variable in place of a tensor, as in ``tf.nn.conv2d(x, variable, ...)``, reads it
        without reporting it.
        """
        if not (isinstance(tensor, tf.Tensor) and tensor.dtype.is_floating and tensor.shape.rank):
            return
        if tensor._id in self.numbers:
            return
        for name, each in self.variables.items():
            variable = each.variable
            if (variable.shape, variable.dtype) != (tensor.shape, tensor.dtype) or name not in self.first:
                continue
            if self.current.get(variable.handle._id) == self.first[name] and np.array_equal(variable, tensor):
                self.alias(tensor, self.first[name])
                self.tensors.setdefault(self.first[name], tensor)
                return

    def _translate(self, native: Native) -> None:
        if native.name in ALIASES:
            native.alias()
        elif native.name in ("Mul", "Add", "AddV2", "GreaterEqual") and self._is_of_draw(native):
            return
        elif native.name == "BatchToSpaceND":
            if not self._is_dilated(native):
                self._write_space_to_batch()
                TRANSLATIONS[native.name](native)
        elif (translate := TRANSLATIONS.get(native.name)) is not None:
            translate(native)
        else:
            native.opaque()

    def _variable(self, handle: tf.Tensor) -> int | None:
        """Return the number of what the variable of a handle holds now; None for a random generator's state."""
        return self.current.get(handle._id)

    def _read_variable(self, native: Native) -> None:
        if (number := self._variable(native.inputs[0])) is not None:
            (result,) = native.outputs
            self.alias(result, number)
            if result.dtype.is_floating:
                self.tensors.setdefault(number, result)

    def _assign(self, native: Native) -> None:
        handle, value = native.inputs[:2]
        if (number := self._variable(handle)) is None:
            return
        kinds = {"AssignAddVariableOp": "add", "AssignSubVariableOp": "subtract"}
        if (kind := kinds.get(native.name)) is None:
            self.current[handle._id] = self.read(value)
        else:
            self.current[handle._id] = native.binary(kind, number, value)

    def _gather(self, native: Native) -> None:
        handle, indices = native.inputs
        if (number := self._variable(handle)) is not None and native.name == "ResourceGather":
            native.emit("gather", [number, indices], native.outputs, axis=0)
        else:
            native.opaque()

    def _draw(self, native: Native) -> None:
        (result, *_) = native.outputs
        if native.name.startswith("StatelessRandomGet"):
            return
        if not result.dtype.is_floating:
            distribution = "integers"
        else:
            distribution = "uniform" if "Uniform" in native.name else "normal"
        number = self.write(native, "random", [], [result], {"distribution": distribution, "rate": None})[0]
        if distribution == "uniform":
            self.draws[number] = len(self.operations) - 1

    def _is_of_draw(self, native: Native) -> bool:
        """Write what dropout does with uniform numbers, scaling by 1 and comparing with its rate, as one draw."""
        draw, other = native.inputs
        place = self.draws.get(self.numbers.get(draw._id, 0))
        if place is None or (number := native.scalar(other)) is None:
            return False
        if native.name == "GreaterEqual":
            self.operations[place] = None  # type: ignore[call-overload]
            self.write(native, "random", [], native.outputs, {"distribution": "bernoulli", "rate": number})
            return True
        if number == (1 if native.name == "Mul" else 0):
            self.alias(native.outputs[0], self.numbers[draw._id])
            return True
        return False

    def _is_dilated(self, native: Native) -> bool:
        """Write the operations that TensorFlow makes of a dilated convolution or pool as one."""
        before, inner = self.operations[-2:] if len(self.operations) > 1 else (None, None)
        number = self.numbers.get(native.inputs[0]._id)
        if before is None or before.native != "SpaceToBatchND" or inner.outputs != (number,):
            return False
        if before.outputs[0] != inner.inputs[0] or "strides" not in inner.attributes:
            return False
        block, crops = native.numbers(1), np.asarray(native.inputs[2].numpy()).tolist()
        pads = before.attributes["padding"]
        padding = [[p[0] - c[0], p[1] - c[1]] for p, c in zip(pads, crops, strict=True)]
        plain = (
            all(list(pair) == [0, 0] for pair in inner.attributes["padding"]) and max(inner.attributes["strides"]) == 1
        )
        if not plain or min(map(min, padding)) < 0 or len(block) != len(inner.attributes["strides"]):
            return False
        del self.operations[-2:]
        attributes = {**inner.attributes, "padding": padding, "dilation": block}
        native.name = inner.native
        self.write(native, inner.kind, [before.inputs[0], *inner.inputs[1:]], native.outputs, attributes)
        return True

    def _write_space_to_batch(self) -> None:
        """Write the operations that are left of a `SpaceToBatchND` as simple ones."""
        written: list[Operation] = []
        for each in self.operations:
            if each is None or each.native != "SpaceToBatchND" or each.kind != "opaque":
                written.append(each)
                continue
            x = each.inputs
            steps = space_to_batch_steps(self.values[x[0]].shape, each.attributes["block"], each.attributes["padding"])
            for i, (kind, attributes) in enumerate(steps):
                y = each.outputs if i == len(steps) - 1 else (self._new(None),)
                written.append(replace(each, kind=kind, inputs=x, outputs=y, attributes=attributes))
                x = y
        shift = len(written) - len(self.operations)
        if shift:  # places of earlier draws do not move, those of later ones do
            old = {id(each): i for i, each in enumerate(written)}
            self.draws = {number: old[id(self.operations[i])] for number, i in self.draws.items() if self.operations[i]}
        self.operations = written

    def _entered(self, layer: Any, path: str, arguments: Any) -> dict[str, Any]:
        inputs = [self.numbers[each._id] for each in tf.nest.flatten(arguments) if self._known(each)]
        call = {"path": path, "type": type(layer).__name__, "options": options_of(layer), "inputs": tuple(inputs)}
        self.layers.append(call)
        return call

    def _left(self, call: dict[str, Any], result: Any) -> None:
        flat = tf.nest.flatten(result)
        call["outputs"] = tuple(self.numbers[each._id] for each in flat if self._known(each))

    def _known(self, value: Any) -> bool:
        return isinstance(value, tf.Tensor) and hasattr(value, "_id") and value._id in self.numbers

    # The pass.

    def run(self, call: Callable[[], Any], training: bool, gradients: str) -> Any:
        """Run the model under the recorder, then take the gradients of the fixed loss."""
        self.frame = sys._getframe()
        floats = [each for each in self.given if each.dtype.is_floating]
        with tf.GradientTape() as tape:
            self.tape = tape
            tape.watch(floats)
            for each in self.variables.values():
                if each.trained:
                    tape.watch(each.variable)  # the graph of a SavedModel reads its handle only
            with watch_calls(self.stack, modules_of(self.model), training), self._variables_seen():
                op_callbacks.add_op_callback(self.saw)
                try:
                    result = call()
                finally:
                    op_callbacks.remove_op_callback(self.saw)
            outputs = [each for each in flat_outputs(result).values() if each.dtype.is_floating]
            loss = fixed_loss(outputs)
        if outputs and gradients != "none":
            self.gradients = self._take_gradients(tape, loss, gradients == "all")
        del self.tape
        return result

    @contextmanager
    def _variables_seen(self) -> Iterator[None]:
        """Add the variables that the pass reads and nothing of the model leads to."""
        owner = resource_variable_ops.BaseResourceVariable
        before = owner._read_variable_op
        recorder = self

        def seen(variable: tf.Variable) -> None:
            if variable.trainable:
                recorder.tape.watch(variable)  # in a graph only its handle is read
            if variable.handle._id not in recorder.current:
                recorder._add_variable(variable.name.split(":")[0], unnamed(variable))

        def read(variable: Any, *args: Any, **kwargs: Any) -> Any:
            seen(variable)
            return before(variable, *args, **kwargs)

        owner._read_variable_op = read
        try:
            with graphs_run_by_node(seen):
                yield
        finally:
            owner._read_variable_op = before

    def _take_gradients(self, tape: tf.GradientTape, loss: tf.Tensor, of_all: bool) -> dict[int, NDArray]:
        parameters = {self.first[name]: each.variable for name, each in self.variables.items()}
        floats = {number: each for number, each in parameters.items() if each.dtype.is_floating}
        sources = (self.tensors if of_all else {}) | floats
        try:
            found = tape.gradient(loss, list(sources.values()))
        except (LookupError, tf.errors.OpError, ValueError) as error:
            self.notes.append(f"gradients are not recorded: {_reason(error)}")
            return {}
        return {
            number: to_array(tf.convert_to_tensor(gradient))
            for number, gradient in zip(sources, found, strict=True)
            if gradient is not None
        }

    def buffers(self) -> dict[str, NDArray]:
        """Return the buffers as they are now."""
        return {name: to_array(each.variable) for name, each in self.variables.items() if each.buffer}

    def finished(self, name: str, result: Any, after: tuple[Mapping[str, NDArray], ...], notes: Sequence[str]) -> Pass:
        """Return the recording."""
        outputs = {key: self.read(tensor) for key, tensor in flat_outputs(result).items()}
        if opaque := sorted({each.native for each in self.operations if each is not None and each.kind == "opaque"}):
            notes = [*notes, f"compared by their values only: {', '.join(opaque)}"]
        parameters = {key: number for key, number in self.first.items() if not self.variables[key].buffer}
        return Pass(
            name,
            tuple(each for each in self.operations if each is not None),
            self.values,
            self.inputs,
            outputs,
            parameters,
            {key: number for key, number in self.first.items() if self.variables[key].buffer},
            frozenset(key for key in parameters if not self.variables[key].trained),
            self.gradients,
            after,
            tuple(Layer(**{"outputs": (), **call}) for call in self.layers),
            tuple(notes),
        )

"""Own networks in TensorFlow: any Keras model, `tf.Module`, SavedModel or function of tensors, as a block.

Duet keeps its own variables for the arrays of a network and calls the network with them. So a trainer, its moving
averages and a sampler have weights of their own, and the network that was given stays as it is. Keras reads the
variables of Duet during a call (`keras_reads`); of a `tf.Module` Duet calls a copy. A network without owned arrays is
called as it is, so that gradients reach its own variables.

What a network draws in training, as for dropout, follows the seeds of Keras's generators. Each pass sets them from the
dropout stream and the position of its first image, so a resumed run draws the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import GPUS, DeviceContext
from backends.tf.module import Module
from backends.tf.own_variables import (
    arrays_of,
    assigned_variable,
    call_inputs,
    check_precision,
    copy_module,
    copy_network,
    device_name,
    has_batch_statistics,
    is_layer,
    is_lazy,
    is_saved_model,
    keras_reads,
    layers_of,
    named_inputs,
    number_types,
    own_variable,
    regularised_layer,
    seed_states,
    signature_of,
    takes_mode,
    time_type,
    untrained_variables,
    variable_to_array,
    without_global_seed,
)
from backends.tf.random import random_words
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.networks.own import ArraysByName, Handle, Manifest
from diffusion_core.networks.own_call import class_rows, to_image_shape
from diffusion_core.networks.program import Node, Training

__all__ = ["Own", "to_own", "from_own", "accepts", "read_network", "to_array", "as_tensor", "with_weights", "building"]


class Own(Module):
    """A block that calls the user's object; see `diffusion_core.networks.own.Own`."""

    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        tf.Module.__init__(self)
        self.node, self.block, self.context = node, node.block, context
        self.called, self.arguments = Handle(node.block.called), node.block.arguments
        self.arrays: dict[str, tf.Variable] = {}
        owned = self.block.parameters()
        with tf.device(context.device):
            if is_lazy(self.called.held):
                self._call(*self._example(), training=None)
            if owned and isinstance(self.called.held, tf.Module):
                self.called = Handle(copy_module(self.called.held))
            found = arrays_of(self.called.held)
            if missing := [p.name for p in owned if p.name not in found]:
                raise DuetError(f"network {self.block.reference}: it has no array {missing[0]}; give the same network")
            found = {p.name: found[p.name] for p in owned}
            if found:
                check_precision(self.called.held, context)
            # In handles, since TensorFlow would count their variables among those of this module.
            self.found, self.seeds = Handle(found), Handle([])
            self.arrays = {name: own_variable(array, context.tensor(parameters[name])) for name, array in found.items()}
            # What a call may assign to: it starts from the arrays, and the update of a step takes what it becomes.
            self.assigned = {
                name: assigned_variable(a, self.arrays[name]) for name, a in found.items() if not a.trained
            }
            counters = [v for v in untrained_variables(self.called.held) if not v.dtype.is_floating] if found else []
            if found and (layer := regularised_layer(self.called.held)):
                warnings.warn(
                    f"network {self.block.reference}: the regularizer of its layer {layer} is no part of Duet's loss; "
                    f"use optimiser.weight_decay, or a loop of your own with duet.loss and model.losses",
                    stacklevel=2,
                )
            self.counters = Handle([(variable, tf.constant(variable.numpy())) for variable in counters])

    def tensors(self) -> dict[str, tf.Variable]:
        """Return the tensors by the names of the block's parameters."""
        return dict(self.arrays)

    def mode(self, training: Training | None) -> AbstractContextManager[None]:
        """Return a context that does nothing: a call has its mode as an argument."""
        return nullcontext()

    def __call__(
        self,
        x: tf.Tensor,
        c_noise: tf.Tensor,
        label: tf.Tensor,
        features: tf.Tensor,
        *second_time: tf.Tensor,
        training: Training | None,
    ) -> tf.Tensor:
        """Call the network; return its output as images b h w c."""
        output = tf.convert_to_tensor(self._call(x, c_noise, label, features, *second_time, training=training))
        if self.block.logits:
            return output
        if output.shape.rank is None or None in output.shape[1:]:  # the graph of a function may not know its shape
            output = tf.ensure_shape(output, [None, *self._output_shape()])
        self.block.check_output(output.shape)
        return from_own(output, self.block.shape, self.block.layout)[..., : self.block.outputs]

    def _example(self) -> tuple[tf.Tensor, ...]:
        """Return the inputs of a first call."""
        x = tf.zeros([1, *to_image_shape(self.block.shape, self.block.layout)], self.context.dtype)
        length = max((columns.stop for columns in self.block.feature_slices.values()), default=0)
        features, time = tf.zeros([1, length], self.context.dtype), tf.zeros([1], tf.float64)
        return x, time, tf.zeros([1], tf.int32), features, *([time] if "second_time" in self.node.inputs else [])

    def _output_shape(self) -> tuple[int, ...]:
        """Return the shape of the output for one sample, in the network's layout."""
        shape, outputs = self.block.shape, self.block.outputs
        return (outputs, *shape[1:]) if self.block.layout == "channels_first" else (*shape[:-1], outputs)

    def _values(
        self, x: tf.Tensor, label: tf.Tensor, features: tf.Tensor, times: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Return everything that the network can be given."""
        block, dtype = self.block, self.context.dtype
        values = {"x": to_own(x, block.shape, block.layout), "label": label}
        for name, t in times.items():
            t = tf.cast(tf.round(t), tf.int32) if block.time == "int" else tf.cast(t, dtype)
            values[name] = t[:, None] if block.time == "column" else t
        if "one_hot" in self.arguments.values:
            values["one_hot"] = tf.one_hot(label - block.first_label, block.classes, dtype=dtype)
        for (name, shape, kind), columns in zip(block.conditions, block.feature_slices.values(), strict=True):
            value = tf.reshape(features[:, columns], [-1, *shape])
            values[name] = value if kind == "float" else tf.cast(tf.round(value), tf.int32)
        return values

    def _call(
        self,
        x: tf.Tensor,
        c_noise: tf.Tensor,
        label: tf.Tensor,
        features: tf.Tensor,
        *second_time: tf.Tensor,
        training: Training | None,
    ) -> Any:
        """Return the output of the network, in its own layout."""
        values = self._values(x, label, features, self.block.times(c_noise, *second_time))

        def network(*positional: Any, **keywords: Any) -> Any:
            packed, training_mode = self.arguments.packed, training is not None
            return _call(self.called.held, positional, keywords, packed, training_mode)

        def call() -> Any:
            return self.block.call(network, values)

        seeds = [] if training is None else self._seeded(training)
        with _explain_errors(self.block.reference):
            if self.arrays:
                return self._call_owned(call, seeds, training)
            with keras_reads(seeds):
                return call()

    def _seeded(self, training: Training) -> list[tuple[Any, tf.Variable]]:
        """Return the state of each generator of Keras with a variable that holds its seed for a training pass."""
        with tf.init_scope(), tf.device(self.context.device):  # Keras may make a generator, which is no part of a graph
            states, seeds = seed_states(self.called.held), self.seeds.held
            seeds += [tf.Variable(tf.zeros_like(state.value), trainable=False) for state in states[len(seeds) :]]
        words = random_words(training.key, training.positions[:1], max(2 * len(states), 1), row=0)
        for i, (state, seed) in enumerate(zip(states, seeds, strict=False)):
            seed.assign(tf.cast(words[0, 2 * i : 2 * i + 2] // 2, state.dtype))
        return list(zip(states, seeds, strict=False))

    def _call_owned(
        self, call: Callable[[], Any], seeds: list[tuple[Any, tf.Variable]], training: Training | None
    ) -> Any:
        """Call the network with the owned arrays, and note the new values of those that are not trained."""
        found, reads = self.found.held, dict(self.arrays)
        for name, variable in self.assigned.items():
            if training is not None or not found[name].of_keras:
                variable.assign(self.arrays[name])
                reads[name] = variable
        for variable, value in self.counters.held:
            variable.assign(value)
        values = [(array.variable, reads[name]) for name, array in found.items() if array.of_keras]
        with tf.GradientTape() as tape, keras_reads(values + seeds), without_global_seed():
            result = call()
        self._check_read(tape.watched_variables())
        if training is not None:
            for name, variable in self.assigned.items():
                training.statistics[f"{self.node.name}.{name}"] = variable.read_value()
        return result

    def _check_read(self, variables: tuple[tf.Variable, ...]) -> None:
        """Raise a `DuetError` if the network read a variable that is not owned, and so would not be trained."""
        owned = {variable.ref() for variable in self.arrays.values()}
        if other := [variable.name for variable in variables if variable.ref() not in owned]:
            raise DuetError(
                f"network {self.block.reference}: it reads the variable {other[0]}, which is not among its weights and "
                f"would not be trained; make it with add_weight in a Keras layer or as an attribute of a tf.Module, "
                f"and leave out tf.function inside a Keras layer"
            )


def to_own(x: tf.Tensor, shape: tuple[int, ...], layout: str) -> tf.Tensor:
    """Return images b h w c as samples of this shape in this layout."""
    last = (*shape[1:], shape[0]) if layout == "channels_first" else shape
    x = x if len(shape) == 3 else tf.reshape(x, [-1, *last])
    return tf.transpose(x, [0, len(shape), *range(1, len(shape))]) if layout == "channels_first" else x


def from_own(y: tf.Tensor, shape: tuple[int, ...], layout: str) -> tf.Tensor:
    """Return samples in this layout as images b h w c; the channels may be more than those of the shape."""
    y = tf.transpose(y, [0, *range(2, len(shape) + 1), 1]) if layout == "channels_first" else y
    height, width, _ = to_image_shape(shape, layout)
    return y if len(shape) == 3 else tf.reshape(y, [-1, height, width, y.shape[-1]])


def accepts(network: Any) -> bool:
    """Return whether an object is a network of TensorFlow."""
    kinds = (tf.Module, tf.types.experimental.PolymorphicFunction, tf.types.experimental.ConcreteFunction)
    return isinstance(network, kinds) or is_layer(network) or is_saved_model(network)


def read_network(network: Any) -> Manifest:
    """Return what Duet must know of a network, see `Manifest`.

    Raises:
        DuetError: if it cannot be called, its weights are on several devices, or Keras computes with another framework.
    """
    if not callable(network) and signature_of(network) is None:
        raise DuetError(
            f"network: a {type(network).__name__} was given, which cannot be called; give it a method __call__(x, t)"
        )
    arrays, layers = arrays_of(network), layers_of(network)
    devices = sorted({device_name(array.variable) for array in arrays.values()})
    if len(devices) > 1:
        raise DuetError(f"network: its weights are on several devices, {', '.join(devices)}; move it to one")
    embeddings = [layer.input_dim for layer in layers if type(layer).__name__ == "Embedding"]
    return Manifest(
        parameters=tuple((name, tuple(array.variable.shape), array.trained) for name, array in arrays.items()),
        values=ArraysByName(arrays, lambda array: variable_to_array(array.variable)),
        layout="channels_last",
        inputs=call_inputs(network),
        batch_statistics=has_batch_statistics(network),
        precision="float64" if number_types(network) == {"float64"} else "float32",
        device=devices[0] if devices else "cuda:0" if GPUS else "cpu",
        casts=False,
        class_rows=class_rows(network, embeddings),
        time=time_type(network),
        lazy=is_lazy(network),
    )


def to_array(value: Any) -> NDArray:
    """Return a tensor, or anything like an array, as an array."""
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def as_tensor(value: Any, context: DeviceContext) -> tf.Tensor:
    """Return a tensor, or anything like an array, as a tensor of the context; one on the device stays there."""
    with tf.device(context.device):
        return tf.cast(tf.convert_to_tensor(value), context.dtype)


def with_weights(network: Any, arrays: Mapping[str, NDArray]) -> Any:
    """Return a copy of a network with other weights.

    Raises:
        DuetError: if Keras cannot make a copy.
    """
    copied = copy_network(network)
    found = arrays_of(copied)
    for name, array in arrays.items():
        found[name].variable.assign(array)
    return copied


@contextmanager
def building(precision: str, seed: int) -> Iterator[None]:
    """Return the context in which networks are built for a precision, since layers keep their type, and from a seed."""
    import keras  # here, since a backend need not load it

    dtype = "float64" if precision == "float64" else "float32"
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    tf.random.set_seed(seed)  # of tf.random; the initialisers of Keras draw their seeds from `random`
    try:
        yield
    finally:
        tf.random.set_seed(None)  # otherwise random numbers that are no part of a run would go unnoticed
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def _call(network: Any, positional: tuple[Any, ...], keywords: dict[str, Any], packed: bool, training: bool) -> Any:
    """Call a network of any kind; `training` is an argument where it takes one."""
    mode = {"training": training} if takes_mode(network) else {}
    names = named_inputs(network)
    if names is None or packed:
        return network(*positional, **keywords, **mode)
    values = dict(zip(names, positional, strict=False)) | keywords
    if values.keys() != set(names) or len(positional) > len(names):
        raise DuetError(
            f"network: it takes the inputs {', '.join(names)}, and is given {', '.join(values)}; name them, as in "
            f"duet.adapt(network, inputs='{names[0]}=x, {names[-1]}=t')"
        )
    if (signature := signature_of(network)) is not None:
        types = signature.structured_input_signature[1]
        return signature(**{name: tf.cast(value, types[name].dtype) for name, value in values.items()})
    if isinstance(network.input, dict):
        return network(values, **mode)
    return network([values[name] for name in names], **mode)


@contextmanager
def _explain_errors(reference: str) -> Iterator[None]:
    """Say what to change in a network that cannot be made into a graph or differentiated along a direction, or whose
    random numbers do not repeat.
    """
    try:
        yield
    except tf.errors.OperatorNotAllowedInGraphError as error:
        raise DuetError(
            f"network {reference}: Duet makes a graph of its call, in which Python cannot read the value of a tensor "
            f"({first_line(error)}); use tf.cond or tf.where, or decorate the function with tf.function"
        ) from error
    except RuntimeError as error:
        if "require a seed" not in str(error):
            raise
        raise DuetError(
            f"network {reference}: it draws random numbers without a seed, so a run could not be repeated; use "
            f"keras.layers.Dropout or keras.random, whose seeds Duet sets"
        ) from error
    except (AssertionError, LookupError, NotImplementedError, TypeError) as error:
        if not tf.config.functions_run_eagerly():  # as only `inlined_functions` does, in a derivative along a direction
            raise
        raise DuetError(
            f"network {reference}: the objective differentiates it along a direction, which a step of it does not "
            f"allow ({type(error).__name__}); leave out tf.cond, tf.map_fn and tf.recompute_grad"
        ) from error

"""What an own network of TensorFlow is made of: its kind, the names of its inputs and its variables.

A Keras layer or model lists its variables, under paths that Keras numbers through a whole process; here they are
numbered within the network. A `tf.Module` finds its variables by walking through its attributes, where Keras layers may
be too. A SavedModel or a function of tensors keeps its variables to itself.
"""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.networks.own_call import LABEL_NAMES, call_names, time_position

__all__ = [
    "Array",
    "arrays_of",
    "assigned_variable",
    "call_inputs",
    "check_precision",
    "copy_module",
    "copy_network",
    "device_name",
    "has_batch_statistics",
    "is_functional",
    "is_layer",
    "is_lazy",
    "is_saved_model",
    "keras_reads",
    "layers_of",
    "leaves",
    "named_inputs",
    "named_variables",
    "number_types",
    "own_variable",
    "regularised_layer",
    "seed_states",
    "signature_of",
    "takes_mode",
    "time_type",
    "type_name",
    "untrained_variables",
    "variable_to_array",
    "without_global_seed",
]

# Parameters of a call that say how to compute, and are not inputs.
_MODES = ("training", "mask")


class Array(NamedTuple):
    """A variable of a network, whether it is trained, and whether Keras made it."""

    variable: Any
    trained: bool
    of_keras: bool


def own_variable(array: Array, value: tf.Tensor) -> tf.Variable:
    """Return the variable that holds an array: that of a copied `tf.Module` if it is trained, or a new one."""
    if array.of_keras or not array.trained:
        return tf.Variable(value, trainable=array.trained)
    array.variable.assign(value)
    return array.variable


def assigned_variable(array: Array, own: tf.Variable) -> tf.Variable:
    """Return the variable that a call reads and may assign to in place of an array that is not trained."""
    return tf.Variable(own, trainable=False) if array.of_keras else array.variable


@contextmanager
def keras_reads(values: Sequence[tuple[Any, tf.Variable]]) -> Iterator[None]:
    """Let variables of Keras read and write others.

    `keras.StatelessScope` is the public way. But it hands tensors of one graph to the layers, which a `tf.function`
    within the network keeps and reuses in the next graph.
    """
    before = [variable._value for variable, _ in values]
    try:
        for variable, value in values:
            variable._value = value
        yield
    finally:
        for (variable, _), value in zip(values, before, strict=True):
            variable._value = value


def arrays_of(network: Any) -> dict[str, Array]:
    """Return the floating-point variables of a network by name, in order; a shared one has its first name."""
    found: dict[str, Array] = {}
    seen = set()
    for name, array in named_variables(network):
        if id(array.variable) not in seen and tf.as_dtype(type_name(array.variable)).is_floating:
            seen.add(id(array.variable))
            while name in found:
                name += "_"
            found[name] = array
    return found


def named_variables(network: Any) -> Iterator[tuple[str, Array]]:
    """Return all variables of a Keras layer or a `tf.Module` by name; other networks have none that are known."""
    if is_layer(network):
        trained = {id(variable) for variable in network.trainable_variables}
        for name, variable in _layer_variables(network):
            yield name, Array(variable, id(variable) in trained, True)
    for path, leaf in leaves(network):
        if isinstance(leaf, tf.Variable):
            yield path, Array(leaf, leaf.trainable, False)
        elif is_layer(leaf):
            yield from ((f"{path}/{name}", array) for name, array in named_variables(leaf))


def leaves(network: Any) -> Iterator[tuple[str, Any]]:
    """Return the variables, layers and generators in a `tf.Module`, with their paths of attributes."""
    if isinstance(network, tf.Module):
        keras = sys.modules.get("keras")
        kinds = (tf.Variable, *((keras.layers.Layer, keras.random.SeedGenerator) if keras else ()))
        for path, leaf in network._flatten(predicate=lambda leaf: isinstance(leaf, kinds), with_path=True):
            yield ".".join(map(str, path)), leaf


def is_lazy(network: Any) -> bool:
    """Return whether a network makes variables in its first call, which has not been yet."""
    unbuilt = any(not layer.built for layer in layers_of(network))
    return unbuilt or (isinstance(network, tf.Module) and not arrays_of(network))


def layers_of(network: Any) -> list[Any]:
    """Return all Keras layers of a network, with those within others."""
    outer = [network] if is_layer(network) else [leaf for _, leaf in leaves(network) if is_layer(leaf)]
    return list({id(each): each for layer in outer for each in layer._flatten_layers()}.values())


def regularised_layer(network: Any) -> str | None:
    """Return the name of a Keras layer that adds a penalty to the loss; None without one."""
    for layer in layers_of(network):
        if any(name.endswith("_regularizer") and value is not None for name, value in vars(layer).items()):
            return layer.name
    return None


def untrained_variables(network: Any) -> list[tf.Variable]:
    """Return the variables of a `tf.Module` that are not trained, of any type; a call may assign to them."""
    found = [array.variable for _, array in named_variables(network) if not (array.trained or array.of_keras)]
    return list({id(variable): variable for variable in found}.values())


@contextmanager
def without_global_seed() -> Iterator[None]:
    """Let draws without a seed of their own be refused, although the program has set one for all.

    Such draws follow from how often the graph has run, so a resumed run would draw others.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    seed = getattr(graph, "seed", None)
    if graph is not None:
        graph.seed = None
    try:
        yield
    finally:
        if graph is not None:
            graph.seed = seed


def seed_states(network: Any) -> list[Any]:
    """Return the state of each generator of Keras that a network can draw from; none without Keras."""
    if not (keras := sys.modules.get("keras")):
        return []
    states = [v for layer in layers_of(network) for v in layer.variables if v.name == "seed_generator_state"]
    states += [leaf.state for _, leaf in leaves(network) if isinstance(leaf, keras.random.SeedGenerator)]
    states.append(keras.src.random.seed_generator.global_seed_generator().state)  # of draws without a generator
    return list({id(state): state for state in states}.values())


def _layer_variables(layer: Any) -> Iterator[tuple[str, Any]]:
    """Return the variables of a Keras layer by path.

    Keras numbers the layers of a process, as in dense_7. Number those of one network instead: the names in a checkpoint
    must not depend on what was made before.
    """
    kinds = {each.name: _kind(each) for each in layer._flatten_layers()}
    counts: dict[str, int] = {}
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        kind = kinds.get(name)
        if name not in names and kind is not None and re.fullmatch(rf"{kind}(_\d+)?", name):
            counts[kind] = counts.get(kind, -1) + 1
            names[name] = f"{kind}_{counts[kind]}" if counts[kind] else kind
        return names.get(name, name)

    for variable in layer.variables:
        path = variable.path.removeprefix(f"{layer.name}/")
        yield "/".join(map(renamed, path.split("/"))), variable


def _kind(layer: Any) -> str:
    """Return the name that Keras numbers for a class, as in batch_normalization."""
    words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    return re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()


def copy_module(module: tf.Module) -> tf.Module:
    """Return a copy of a module with variables of its own; Keras layers are shared, since they read other values."""
    memo: dict[int, Any] = {id(leaf): leaf for _, leaf in leaves(module) if not isinstance(leaf, tf.Variable)}
    functions = {
        id(value): value
        for each in (module, *module.submodules)
        for value in vars(each).values()
        if isinstance(value, tf.types.experimental.PolymorphicFunction)
    }
    # The graph of a tf.function in an attribute reads the variables of the original, so make it anew.
    called: dict[int, Any] = {}
    for key in functions:
        memo[key] = tf.function(partial(lambda key, *args, **kwargs: called[key](*args, **kwargs), key))
    try:
        copied = copy.deepcopy(module, memo)
        called |= {key: copy.deepcopy(function.python_function, memo) for key, function in functions.items()}
    except Exception as error:  # whatever an attribute raises that cannot be copied
        raise DuetError(
            f"network: Duet calls a copy of a tf.Module, and this {type(module).__name__} cannot be copied "
            f"({first_line(error)}); keep what is no part of the network out of its attributes"
        ) from error
    return copied


def is_layer(network: Any) -> bool:
    """Return whether an object is a layer or a model of Keras.

    Raises:
        DuetError: if Keras computes with another framework.
    """
    keras = sys.modules.get("keras")  # loading it takes a second, and a network of Keras has loaded it
    if keras is None or not isinstance(network, keras.layers.Layer):
        return False
    if keras.config.backend() != "tensorflow":
        raise DuetError(f"network: Keras computes with {keras.config.backend()} here; set KERAS_BACKEND=tensorflow")
    return True


def is_functional(network: Any) -> bool:
    """Return whether an object is a functional model, which takes its inputs in one list or dict."""
    keras = sys.modules.get("keras")
    is_model = is_layer(network) and isinstance(network, keras.Model) and not isinstance(network, keras.Sequential)
    return is_model and bool(getattr(network, "inputs", None))


def is_saved_model(network: Any) -> bool:
    """Return whether an object is what `tf.saved_model.load` returns."""
    is_tracked = isinstance(network, tf.__internal__.tracking.AutoTrackable)
    return is_tracked and not isinstance(network, tf.Module) and hasattr(network, "signatures")


def signature_of(network: Any) -> Any:
    """Return a signature, or that of a SavedModel without a call; None for other networks."""
    if isinstance(network, tf.types.experimental.ConcreteFunction):
        return network
    if not is_saved_model(network) or callable(network):
        return None
    signatures = dict(network.signatures)
    if "serving_default" not in signatures:
        names = ", ".join(signatures) or "none"
        raise DuetError(f"network: this SavedModel has the signatures {names}; give one, as model.signatures[NAME]")
    return signatures["serving_default"]


def named_inputs(network: Any) -> tuple[str, ...] | None:
    """Return the names of the inputs of a signature or a functional model; None for other networks."""
    if (signature := signature_of(network)) is not None:
        names = list(signature.structured_input_signature[1])
    elif not is_functional(network):
        return None
    elif not isinstance(network.input, dict):
        return tuple(
            each.name if _made_name(each.name) is None else f"input_{i}"
            for i, each in enumerate(network.inputs, 1)  # Keras counts on with each model that a process builds
        )
    else:
        names = list(network.input)
    # These names have no order, unless Keras made them.
    return tuple(sorted(names, key=lambda name: ({"x": 0, "t": 1}.get(name, 2), _made_name(name) or 0)))


def _made_name(name: str) -> int | None:
    """Return the number of an input to which Keras gave its name, as in ``keras_tensor_3``; None for any other name."""
    found = re.fullmatch(r"keras_tensor(?:_(\d+))?", name)
    return found and int(found[1] or 0)


def call_inputs(network: Any) -> tuple[tuple[str, bool], ...] | None:
    """Return (name, whether it must be given) of each input of a call, see `Manifest.inputs`."""
    if (names := named_inputs(network)) is not None:
        return tuple((name, True) for name in names)
    known = call_names(network.call if is_layer(network) else network)
    return known and tuple(parameter for parameter in known if parameter[0] not in _MODES)


def time_type(network: Any) -> str:
    """Return the type in which a signature or a functional model takes t, one of `TIMES`."""
    names = named_inputs(network)
    if names is None or len(names) < 2:
        return "float"
    position = time_position(names)
    if (signature := signature_of(network)) is not None:
        t = signature.structured_input_signature[1][names[position]]
    else:
        t = network.input[names[position]] if isinstance(network.input, dict) else network.inputs[position]
    if tf.as_dtype(t.dtype).is_integer:
        return "int"
    return "column" if len(t.shape) == 2 else "float"


def takes_mode(network: Any) -> bool:
    """Return whether a call has an argument `training`; Keras hands it to the layers within, too."""
    return is_layer(network) or "training" in [name for name, *_ in call_names(network) or ()]


def has_batch_statistics(network: Any) -> bool:
    """Return whether a training pass can change arrays, as the statistics of batch normalisation."""
    if any(variable.dtype.is_floating for variable in untrained_variables(network)):
        return True
    constant = ("Normalization",)  # its statistics are those of the data
    return any(
        layer.trainable and type(layer).__name__ not in constant and tf.as_dtype(variable.dtype).is_floating
        for layer in layers_of(network)
        for variable in layer._non_trainable_variables
    )


def number_types(network: Any) -> set[str]:
    """Return the floating-point types that a network computes with and has its variables and inputs in."""
    types = {str(type_name(array.variable)) for array in arrays_of(network).values()}
    types |= {layer.compute_dtype for layer in layers_of(network) if not _only_passes_on(layer)}
    types |= {each.dtype for each in (network.inputs if is_functional(network) else ())}
    return {name for name in types if tf.as_dtype(name).is_floating}


def check_precision(network: Any, context: DeviceContext) -> None:
    """Raise a `DuetError` if a network does not compute in the type of the context; TensorFlow converts none."""
    types, wanted = number_types(network), context.dtype.name
    allowed = {wanted} if wanted == "float64" else {"float32", "float16", "bfloat16"}
    if other := sorted(types - allowed):
        raise DuetError(
            f"precision: {wanted} was given, but the network computes in {other[0]}, and TensorFlow converts no "
            f"network; build it after keras.config.set_floatx('{wanted}') and "
            f"keras.config.set_dtype_policy('{wanted}'), or give precision={other[0]}"
        )
    if context.compute != context.dtype and context.compute.name not in types:
        raise DuetError(
            "precision: bf16 was given, but the network computes in float32; build it after "
            "keras.config.set_dtype_policy('mixed_bfloat16'), or give precision=float32"
        )


def _only_passes_on(layer: Any) -> bool:
    """Return whether a layer hands values on as they are, so that its own number type does not count."""
    keras = sys.modules["keras"]
    return isinstance(layer, (keras.layers.InputLayer, keras.Sequential)) or is_functional(layer) or not layer.autocast


def copy_network(network: Any) -> Any:
    """Return a copy of a network with its own variables.

    Raises:
        DuetError: if Keras cannot make a copy, as of a class whose arguments it does not know.
    """
    if not layers_of(network):
        return copy_module(network)
    if not is_layer(network):
        raise DuetError(_NO_COPY.format("it is a tf.Module with layers of Keras"))
    try:
        copied = _build_again(network)
    except Exception as error:  # Keras and classes of users raise many types
        raise DuetError(_NO_COPY.format(first_line(error))) from error
    kinds = [
        {name: (tuple(array.variable.shape), type_name(array.variable)) for name, array in arrays_of(each).items()}
        for each in (network, copied)
    ]
    if kinds[0] != kinds[1]:
        raise DuetError(_NO_COPY.format("a new one has other arrays"))
    return copied


_NO_COPY = (
    "network: Keras cannot copy it ({}), so its weights cannot be given as a network; they are in run.state.ema by name"
)


def _build_again(network: Any) -> Any:
    """Return a new layer or model from the arguments that a class was called with, called once on zeros."""
    keras = sys.modules["keras"]
    if is_functional(network) or isinstance(network, keras.Sequential):
        return keras.models.clone_model(network)
    try:
        config = network.get_config()
    except NotImplementedError:  # Keras does not know the arguments; look for attributes of their names
        config = {name: value for name, value in vars(network).items() if name != "name"}
    names = inspect.signature(type(network)).parameters
    copied = type(network)(**{name: config[name] for name in names if name in config})
    shapes = network.get_build_config() or {}
    shapes = {name.removesuffix("_shape"): shape for name, shape in shapes.get("shapes_dict", shapes).items()}
    inputs = [name for name, needed, *_ in call_inputs(network) or () if needed]
    first = shapes.get("input", ())  # Keras may keep the shape of the first input only; the others are numbers
    given = {name: shapes.get(name, () if i else first) for i, name in enumerate(inputs)}
    copied(*(_zeros(name, shape) for name, shape in given.items()))
    return copied


def _zeros(name: str, shape: tuple[int | None, ...] | None) -> NDArray:
    """Return an input of a call by its name and its shape with the batch; a class is a whole number."""
    is_class = name in LABEL_NAMES and len(shape or ()) < 2
    return np.zeros([size or 1 for size in shape or (1,)], np.int32 if is_class else np.float64)


def type_name(variable: Any) -> str:
    """Return the number type of a variable of TensorFlow or Keras."""
    return tf.as_dtype(variable.dtype).name


def device_name(variable: Any) -> str:
    """Return ``"cpu"`` or ``"cuda:0"`` for the device of a variable."""
    device = tf.DeviceSpec.from_string((variable if isinstance(variable, tf.Variable) else variable.value).device)
    return f"cuda:{device.device_index}" if device.device_type == "GPU" else "cpu"


def variable_to_array(variable: Any) -> NDArray:
    """Return a copy of a variable, in float64 or float32."""
    array = np.array(variable.numpy())
    return array if array.dtype == np.float64 else array.astype(np.float32)

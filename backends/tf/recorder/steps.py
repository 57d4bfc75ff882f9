"""Training steps of a TensorFlow model, as its author wrote them, for `duet diff --steps`.

A step is any code of the author. Where it uses an optimiser of Keras, what `apply` receives is recorded; where it
updates variables by hand, the gradients are those of its last call of `GradientTape.gradient`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.recorder.calls import plain
from backends.tf.recorder.model import arguments, build, call_model, fixed_loss, flat_outputs, only_reading, set_default
from backends.tf.recorder.variables import named_variables, to_array
from diffusion_core.parity.diff.recording import Step, gradient_norm

__all__ = ["record_steps"]


def record_steps(
    model: Any, batches: Sequence[Any], training: Callable | None, optimizer: Callable | None, loss: Callable | None
) -> tuple[tuple[Step, ...], dict[str, Any]]:
    """Return the steps that the author's code made, and the class and hyper-parameters of the optimiser.

    Args:
        model: as the author's function returned it; its variables have their values back afterwards.
        batches: the inputs of each step, NumPy arrays as a tuple or by name.
        training: makes from the model a function that trains for one step and returns the loss, or a dict with
            "loss" and optionally "learning_rate" and "averages".
        optimizer: makes an optimiser of Keras from the model, if there is no `training`.
        loss: called with the outputs and the inputs; by default the loss of `recording`.
    """
    known = [each.variable for each in named_variables(model).values()]
    precision = "float64" if any(each.dtype == tf.float64 for each in known) else "float32"
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    default = set_default(precision)  # which the author's optimiser may ask for
    try:
        with only_reading(model), _Watch() as watch:
            args, kwargs = arguments(model, batches[0], precision)
            build(model, args, kwargs)
            step = training(model) if training else _step(model, optimizer, loss, watch)
            steps = tuple(_one(model, step, batch, precision, watch) for batch in batches)
            return steps, watch.description()
    finally:
        set_default(default)
        tf.config.run_functions_eagerly(eager)


def _step(model: Any, optimizer: Callable | None, loss: Callable | None, watch: _Watch) -> Callable:
    """Return one update with an optimiser, or that of a compiled model."""
    if optimizer is None:
        if not getattr(model, "compiled", False):
            raise ValueError("steps need a function training(model) or optimizer(model) beside the model's function")
        return lambda *inputs: model.train_on_batch(*_pair(inputs), return_dict=True)
    made = optimizer(model)
    watch.optimizer = made

    def step(*args: tf.Tensor, **kwargs: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = call_model(model, list(args), kwargs, True)
            if loss is not None:
                value = loss(outputs, *args, **kwargs)
            else:
                value = fixed_loss([each for each in flat_outputs(outputs).values() if each.dtype.is_floating])
        variables = [
            each.variable if each.keras is None else each.keras
            for each in named_variables(model).values()
            if each.trained
        ]
        values = [getattr(each, "_value", each) for each in variables]
        found = zip(tape.gradient(value, values), variables, strict=True)
        made.apply_gradients([(gradient, each) for gradient, each in found if gradient is not None])
        return value

    return step


def _pair(inputs: tuple) -> tuple[Any, Any]:
    if len(inputs) < 2:
        raise ValueError("a compiled model is trained on inputs and targets; write training(model) for its steps")
    *xs, y = inputs
    return (xs[0] if len(xs) == 1 else xs), y


def _one(model: Any, step: Callable, batch: Any, precision: str, watch: _Watch) -> Step:
    args, kwargs = arguments(model, batch, precision)
    watch.start()
    result = step(*args, **kwargs)
    content = result if isinstance(result, Mapping) else {"loss": result}
    variables = named_variables(model)
    names = {id(each.variable): name for name, each in variables.items()}
    gradients = {
        names.get(key, f"variable{key}"): to_array(tf.convert_to_tensor(gradient))
        for key, gradient in watch.gradients.items()
        if gradient is not None
    }
    rate = content.get("learning_rate", watch.learning_rate)
    averages = {name: to_array(value) for name, value in (content.get("averages") or {}).items()}
    return Step(
        float(np.mean(to_array(content["loss"]))),
        None if rate is None else float(to_array(rate)),
        gradient_norm(gradients),
        gradients,
        {name: to_array(each.variable) for name, each in variables.items() if not each.buffer and not each.seed},
        watch.state(names),
        averages or watch.averages(names),
    )


class _Watch:
    """What the optimiser and the gradient tape do during a step."""

    def __init__(self) -> None:
        self.optimizer: Any = None  # the first that was used
        self.others: list[Any] = []
        self.gradients: dict[int, Any] = {}
        self.learning_rate: Any = None
        self.applied = False

    def start(self) -> None:
        """Forget the last step."""
        self.gradients, self.learning_rate, self.applied = {}, None, False

    def __enter__(self) -> _Watch:
        self.scope = self._watching()
        self.scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.scope.__exit__(*error)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        keras = sys.modules.get("keras")
        owner = keras.optimizers.Optimizer if keras else None
        taken = tf.GradientTape.gradient

        def gradient(tape: tf.GradientTape, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
            result = taken(tape, target, sources, *args, **kwargs)
            if not self.applied:
                pairs = zip(tf.nest.flatten(sources), tf.nest.flatten(result), strict=False)
                held = [(getattr(each, "_value", each), value) for each, value in pairs]  # within a variable of Keras
                self.gradients = {id(each): value for each, value in held if isinstance(each, tf.Variable)}
            return result

        tf.GradientTape.gradient = gradient
        applied = owner.apply if owner else None

        def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
            grads = list(grads)
            variables = list(trainable_variables or optimizer._trainable_variables)
            if self.optimizer is None:
                self.optimizer = optimizer
            elif all(optimizer is not each for each in (self.optimizer, *self.others)):
                self.others.append(optimizer)
            if not self.applied:  # what the tape gave is replaced, what another optimiser received in this step is not
                self.gradients, self.applied = {}, True
                self.learning_rate = tf.identity(optimizer.learning_rate)
            for each, value in zip(variables, grads, strict=True):
                self.gradients[id(getattr(each, "_value", each))] = value
            return applied(optimizer, grads, trainable_variables)

        if owner:
            owner.apply = apply
        try:
            yield
        finally:
            tf.GradientTape.gradient = taken
            if owner:
                owner.apply = applied

    def state(self, names: Mapping[int, str]) -> dict[str, NDArray]:
        """Return the optimisers' variables, those of a parameter as "NAME/slot"."""
        if self.optimizer is None:
            return {}
        found: dict[str, NDArray] = {}
        for each in (*self.others, self.optimizer):  # the first wins where a name, such as "iteration", is of all
            found |= self._state_of(each, names)
        return found

    def _state_of(self, optimizer: Any, names: Mapping[int, str]) -> dict[str, NDArray]:
        trained = list(optimizer._trainable_variables)
        owned: dict[int, str] = {}
        for slots in vars(optimizer).values():
            # Moments are lists with one variable per parameter, each named PARAMETER_SLOT.
            if not isinstance(slots, (list, tuple)) or len(slots) != len(trained) or slots is trained:
                continue
            for parameter, slot in zip(trained, slots, strict=True):
                prefix = re.sub("[/:]", "_", getattr(parameter, "path", parameter.name)) + "_"
                if slot is not parameter and getattr(slot, "name", "").startswith(prefix):
                    owned[id(slot)] = f"{_name(parameter, names)}/{slot.name.removeprefix(prefix)}"
        return {owned.get(id(each), each.path.split("/")[-1]): to_array(each) for each in optimizer.variables}

    def averages(self, names: Mapping[int, str]) -> dict[str, NDArray]:
        """Return the moving averages that the optimiser keeps, if it does."""
        if not getattr(self.optimizer, "use_ema", False):
            return {}
        pairs = zip(self.optimizer._trainable_variables, self.optimizer._model_variables_moving_average, strict=True)
        return {_name(each, names): to_array(average) for each, average in pairs}

    def description(self) -> dict[str, Any]:
        """Return the class and the hyper-parameters of the optimiser that was seen."""
        if self.optimizer is None:
            return {}
        try:
            config = self.optimizer.get_config()
        except NotImplementedError:  # a schedule of the author's that cannot be written down
            config = {name: value for name, value in vars(self.optimizer).items() if not name.startswith("_")}
        found = {"class": type(self.optimizer).__name__, **_plain_config(config)}
        if self.others:
            found["others"] = [type(each).__name__ for each in self.others]
        return found


def _name(parameter: Any, names: Mapping[int, str]) -> str:
    """Return the name of a parameter of an optimiser, a variable of Keras or of TensorFlow."""
    return names.get(id(getattr(parameter, "_value", parameter)), parameter.name)


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and "class_name" in value:
            found[name] = {"class": value["class_name"], **_plain_config(value.get("config") or {})}
        elif isinstance(value, np.generic):
            found[name] = value.item()
        elif value is None or (value := plain(value)) is not None:
            found[name] = value
    return found

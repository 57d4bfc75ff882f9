"""Where an operation of a recording comes from: the Keras layer that called it and the line of the author's code.

The line is the innermost one outside TensorFlow, Keras and Python's library. A functional model calls its layers by
itself, so there the line is the one that made the layer; `remember_lines` notes it while the author's function runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusion_core.parity.diff import call_stack
from diffusion_core.parity.diff.call_stack import CodeLines, plain

__all__ = ["CallStack", "options_of", "plain", "remember_lines", "watch_calls"]

LINES = CodeLines(
    ("tensorflow", "keras", "tf_keras", "numpy", "einops", "IPython", "ipykernel", "absl", "wrapt", "optree")
)

_NOT_OPTIONS = ("name", "dtype", "trainable", "layers", "input_layers", "output_layers", "build_input_shape")


def options_of(layer: Any) -> dict[str, Any]:
    """Return the hyper-parameters of a layer that are plain values: those of `get_config`, or else its attributes."""
    found: Mapping[str, Any] = {}
    if hasattr(layer, "get_config") and not _is_container(layer):
        try:
            found = layer.get_config()
        except Exception:  # layers of authors raise many types where they cannot be written down
            found = {}
    if not set(found) - set(_NOT_OPTIONS):
        found = {name: value for name, value in getattr(layer, "__dict__", {}).items() if not name.startswith("_")}
    named = {name: plain(value) for name, value in found.items() if name not in _NOT_OPTIONS}
    options = {name: value for name, value in named.items() if value is not None}
    # Keras writes functions and initialisers as dicts; functions are hyper-parameters.
    for name, value in found.items():
        if callable(value) and getattr(value, "__name__", None) and name not in _NOT_OPTIONS:
            options[name] = value.__name__
    return options


@contextmanager
def remember_lines() -> Iterator[None]:
    """Remember, for each layer that is made, the author's line that made it."""
    keras = sys.modules.get("keras")
    if keras is None:
        import keras
    operation = keras.Operation
    before = operation.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        LINES.remember(self, sys._getframe(1))

    operation.__init__ = made
    try:
        yield
    finally:
        operation.__init__ = before


def _is_container(layer: Any) -> bool:
    """Return whether Keras calls the layers within a layer, as in a functional model, and not code of an author."""
    keras = sys.modules.get("keras")
    if keras is None:
        return False
    return isinstance(layer, keras.Sequential) or type(layer).__name__ in ("Functional", "Model")


class CallStack(call_stack.CallStack):
    """The layers that are being called, outermost first."""

    lines = LINES
    calls_by_itself = staticmethod(_is_container)

    def layer_path(self, layer: Any) -> str:
        """Return the path of a layer of Keras that is called now, as its variables have it."""
        if not self.layers and _is_container(layer) and not _is_sequential(layer):
            return ""
        if path := getattr(layer, "path", None):
            return path
        return f"{self.path}/{layer.name}" if self.path else layer.name


def _is_sequential(layer: Any) -> bool:
    return isinstance(layer, sys.modules["keras"].Sequential)


@contextmanager
def watch_calls(stack: CallStack, modules: Mapping[str, Any], training: bool) -> Iterator[None]:
    """Follow the calls of layers, and of the `tf.Module`s that are given by path.

    In training, layers that are called from code without an argument `training` get it.
    """
    undo: list[Callable[[], None]] = []
    paths = {id(module): path for path, module in modules.items()}

    def patch(owner: type, wrapped: Callable[[Callable], Callable]) -> None:
        before = owner.__call__
        own = "__call__" in vars(owner)
        owner.__call__ = wrapped(before)
        undo.append(lambda: setattr(owner, "__call__", before) if own else delattr(owner, "__call__"))

    if keras := sys.modules.get("keras"):

        def layer_call(before: Callable) -> Callable:
            def __call__(layer: Any, *args: Any, **kwargs: Any) -> Any:
                if training and not any(isinstance(each, keras.layers.Layer) for each in stack.layers):
                    kwargs.setdefault("training", True)
                return stack.call(before, layer, stack.layer_path(layer), args, kwargs)

            return __call__

        def operation_call(before: Callable) -> Callable:
            def __call__(operation: Any, *args: Any, **kwargs: Any) -> Any:
                if isinstance(operation, keras.layers.Layer):  # it has been entered
                    return before(operation, *args, **kwargs)
                return stack.call(before, operation, stack.layer_path(operation), args, kwargs)

            return __call__

        patch(keras.layers.Layer, layer_call)
        patch(keras.Operation, operation_call)

    def module_call(before: Callable) -> Callable:
        def __call__(module: Any, *args: Any, **kwargs: Any) -> Any:
            if (path := paths.get(id(module))) is None:
                return before(module, *args, **kwargs)
            return stack.call(before, module, path, args, kwargs)

        return __call__

    for owner in {type(each) for each in modules.values()}:
        if hasattr(owner, "__call__"):  # noqa: B004 - whether its instances are called
            patch(owner, module_call)
    try:
        yield
    finally:
        for step in reversed(undo):
            step()

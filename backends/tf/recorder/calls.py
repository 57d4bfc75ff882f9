"""Where an operation of a recording comes from: the Keras layer that called it and the line of the author's code.

The line is the innermost one outside TensorFlow, Keras and Python's library. A functional model calls its layers by
itself, so there the line is the one that made the layer; `remember_lines` notes it while the author's function runs.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["CallStack", "Line", "options_of", "plain", "remember_lines", "watch_calls"]

Line = tuple[str, str]
"""A line of code as ("file.py:31", its text)."""

_MADE: weakref.WeakKeyDictionary[Any, Line] = weakref.WeakKeyDictionary()

_PYTHON = tuple({str(Path(sysconfig.get_paths()[key]).resolve()) for key in ("stdlib", "platstdlib")})
_PACKAGES = tuple({str(Path(sysconfig.get_paths()[key]).resolve()) for key in ("purelib", "platlib")})
_FRAMEWORK = ("tensorflow", "keras", "tf_keras", "numpy", "einops", "IPython", "ipykernel", "absl", "wrapt", "optree")
_DUET = str(Path(__file__).resolve().parents[3])
_RECORDERS = ("backends/tf/recorde", "experiments/model_diff/", "diffusion_core/parity/diff/", "duet/api/")
_RANKS: dict[str, int] = {}

AUTHOR, PACKAGE, LIBRARY = 0, 1, 2


def _rank(filename: str) -> int:
    """Return whether a file is the author's, of some package, or of Python and the frameworks."""
    if filename not in _RANKS:
        _RANKS[filename] = _new_rank(filename)
    return _RANKS[filename]


def _new_rank(filename: str) -> int:
    if filename.startswith("<") and not filename.startswith("<ipython"):
        return LIBRARY
    path = str(Path(filename).resolve())
    for folder in _PACKAGES:
        if path.startswith(folder + "/"):
            return LIBRARY if path[len(folder) + 1 :].split("/")[0] in _FRAMEWORK else PACKAGE
    if path.startswith(tuple(folder + "/" for folder in _PYTHON)):
        return LIBRARY
    inner = path.removeprefix(_DUET + "/")
    return LIBRARY if inner != path and inner.startswith(_RECORDERS) else AUTHOR


def _line(frame: FrameType) -> Line:
    filename, number = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(filename).name}:{number}", linecache.getline(filename, number, frame.f_globals).strip()


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value if it is made of numbers, texts, lists and dicts only; None otherwise."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and depth < 3:
        items = [plain(item, depth + 1) for item in value]
        return items if all(new is not None or old is None for new, old in zip(items, value, strict=True)) else None
    return None


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
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and _rank(frame.f_code.co_filename) != AUTHOR:
            frame = frame.f_back
        if frame is not None:
            _MADE[self] = _line(frame)

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


class CallStack:
    """The layers that are being called, outermost first.

    Attributes:
        entered: called with (layer, path, its arguments) when a call begins, and returns what `left` is called with.
        left: called with that and the layer's result when a call ends.
    """

    def __init__(self, entered: Callable[[Any, str, Any], Any], left: Callable[[Any, Any], None]) -> None:
        self.entered, self.left = entered, left
        self.layers: list[Any] = []
        self.paths: list[str] = []
        self.frames: list[FrameType] = []

    @property
    def path(self) -> str:
        """The path of the innermost layer."""
        return self.paths[-1] if self.paths else ""

    def call(self, function: Callable, layer: Any, path: str, args: tuple, kwargs: dict) -> Any:
        """Call a layer and remember that its operations are its own."""
        self.layers.append(layer)
        self.paths.append(path)
        self.frames.append(sys._getframe())
        ticket = self.entered(layer, path, (args, kwargs))
        try:
            result = function(layer, *args, **kwargs)
        finally:
            self.layers.pop()
            self.paths.pop()
            self.frames.pop()
        self.left(ticket, result)
        return result

    def layer_path(self, layer: Any) -> str:
        """Return the path of a layer of Keras that is called now, as its variables have it."""
        if not self.layers and _is_container(layer) and not _is_sequential(layer):
            return ""
        if path := getattr(layer, "path", None):
            return path
        return f"{self.path}/{layer.name}" if self.path else layer.name

    def line(self, bound: FrameType) -> Line:
        """Return the author's line for the operation that runs now, called below this frame."""
        frame: FrameType | None = sys._getframe(1)
        depth, package = len(self.frames) - 1, None
        while frame is not None and frame is not bound:
            if depth >= 0 and frame is self.frames[depth]:
                layer, parent = self.layers[depth], self.layers[depth - 1] if depth else None
                if _is_container(parent) and (made := _made(layer)):
                    return made
                depth -= 1
            rank = _rank(frame.f_code.co_filename)
            if rank == AUTHOR:
                return _line(frame)
            if rank == PACKAGE and package is None:
                package = _line(frame)
            frame = frame.f_back
        return package or next((made for layer in reversed(self.layers) if (made := _made(layer))), ("", ""))


def _is_sequential(layer: Any) -> bool:
    return isinstance(layer, sys.modules["keras"].Sequential)


def _made(layer: Any) -> Line | None:
    try:
        return _MADE.get(layer)
    except TypeError:  # an object without weak references
        return None


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

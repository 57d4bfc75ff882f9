"""Files of `torch.save`, read without PyTorch and without running anything that they contain.

Such a file is a zip archive: NAME/data.pkl describes the object, and NAME/data/KEY holds the numbers of each storage.
The description is a pickle, a program for a small stack machine that can call any function. Here that machine builds
dictionaries, lists, tuples, text and numbers, and calls nothing: what a pickle would construct becomes an `_Object`
that remembers its name and its state, and only the constructors of tensors are known by name. So a state dict next to
other objects, as in the checkpoints of a training loop, is read, and so is a `torch.nn.Module`, as its state dict.

Files from before PyTorch 1.6 are no archives; `backends.torch.files` reads them.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors, max_unpacked, open_regular, read_member
from diffusion_core.files.small_floats import widen_bfloat16, widen_e4m3, widen_e5m2

__all__ = ["flatten", "is_torch_file", "read_torch_file"]

# A description with more operations or values than this is not one of a network.
_MAX_STEPS = 10_000_000
_DTYPES: dict[str, tuple[int, Callable[[bytes | memoryview], NDArray]]] = {
    name: (np.dtype(code).itemsize, lambda data, code=code: np.frombuffer(data, code))
    for name, code in {
        "float64": "<f8", "float32": "<f4", "float16": "<f2", "int64": "<i8", "int32": "<i4", "int16": "<i2",
        "int8": "i1", "uint8": "u1", "bool": "?", "complex64": "<c8", "complex128": "<c16",
    }.items()
} | {
    "bfloat16": (2, widen_bfloat16), "float8_e4m3fn": (1, widen_e4m3), "float8_e5m2": (1, widen_e5m2),
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip


def is_torch_file(path: Path) -> bool:
    """Return whether a file is an archive of `torch.save`."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return _description(archive) is not None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read_torch_file(path: str | Path) -> dict[str, NDArray]:
    """Return the tensors in a file that `torch.save` wrote, by name; see `flatten` for the names of nested ones.

    Numbers of 8 and 16 bits that NumPy does not have become float32 without rounding.

    Raises:
        DuetError: if the file cannot be read, or holds no tensors.
    """
    with file_errors(path, "it is not a file of torch.save"), open_regular(path) as file:
        limit = max_unpacked(Path(path).stat().st_size)
        with zipfile.ZipFile(file) as archive:
            name = _description(archive)
            if name is None:
                raise ValueError("it has no data.pkl")
            content = _Machine(archive, name.removesuffix("data.pkl"), limit).run(read_member(archive, name))
            arrays = flatten(content, lambda name, value: value if isinstance(value, np.ndarray) else None)
    if not arrays:
        raise DuetError(f"{path}: it holds no tensors; a state dict is a mapping of names to tensors")
    return arrays


def flatten(content: Any, to_array: Callable[[str, Any], NDArray | None]) -> dict[str, NDArray]:
    """Return the arrays in nested mappings and lists, under names joined by points; other values are left out.

    Args:
        content: what a file holds.
        to_array: returns the array of a tensor, given its name and the value, or None for another value.

    Raises:
        DuetError: if two arrays have one name, or the content is nested too deeply.

    Example:
        >>> flatten({"ema": {"w": 1.0}, "steps": [2.0]}, lambda name, value: value if type(value) is float else None)
        {'ema.w': 1.0, 'steps.0': 2.0}
    """
    arrays: dict[str, NDArray] = {}
    steps = 0

    def collect(name: str, value: Any, depth: int) -> None:
        nonlocal steps
        steps += 1
        if depth > 100 or steps > _MAX_STEPS:
            raise DuetError("it is nested too deeply for a state dict")
        if (array := to_array(name, value)) is not None:
            if name in arrays:
                raise DuetError(f"two of its tensors have the name {name}")
            arrays[name] = array
            return
        parts: Any = ()
        if isinstance(value, Mapping):
            parts = value.items()
        elif isinstance(value, list | tuple):
            parts = enumerate(value)
        elif isinstance(value, _Object):
            parts = value.parts()
        for key, part in parts:
            collect(f"{name}.{key}" if name else str(key), part, depth + 1)

    collect("", content, 0)
    return arrays


def _description(archive: zipfile.ZipFile) -> str | None:
    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    return names[0] if len(names) == 1 else None


class _Global:
    """The name of a function or class, which is never looked up."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Object:
    """What a pickle would have constructed: its state, and what was put into it."""

    def __init__(self, name: str) -> None:
        self.name, self.state = name, {}

    def parts(self) -> list[tuple[Any, Any]]:
        """Return the parameters, the buffers and the submodules of a torch.nn.Module, as its state dict does."""
        found: list[tuple[Any, Any]] = []
        if isinstance(self.state, dict):
            for group in ("_parameters", "_buffers", "_modules"):
                part = self.state.get(group)
                found += part.items() if isinstance(part, dict) else []
        return found


class _Storage:
    def __init__(self, data: bytes, dtype: str) -> None:
        self.data, self.dtype = data, dtype


class _Mark:
    """Where the values of the next collection begin on the stack."""


class _Machine:
    """The stack machine of pickles, without calls."""

    def __init__(self, archive: zipfile.ZipFile, root: str, limit: int) -> None:
        self.archive, self.root, self.limit = archive, root, limit
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, bytes] = {}

    def run(self, description: bytes) -> Any:
        """Return the object of a description."""
        for steps, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(description))):
            if steps > _MAX_STEPS:
                raise ValueError("its description is too long")
            if operation.name == "STOP":
                return self.stack.pop()
            self._do(operation.name, argument)
        raise EOFError("its description is cut short")

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(_Mark())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            values = self._to_mark()
            stack.append(values if name == "LIST" else tuple(values))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            values = tuple(stack[-count:])
            if len(values) < count:
                raise ValueError("its description is corrupt")
            del stack[-count:]
            stack.append(values)
        elif name == "DICT":
            values = self._to_mark()
            stack.append(dict(zip(map(_key, values[::2]), values[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [stack.pop()] if name == "APPEND" else self._to_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._to_mark()
            if isinstance(stack[-1], dict):
                stack[-1].update(zip(map(_key, values[::2]), values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "NEWOBJ_EX":
            del stack[-2:]
            stack.append(_Object(getattr(stack.pop(), "name", "")))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Object):
                # A pair is the state and the slots of an object.
                stack[-1].state = state[0] if isinstance(state, tuple) and state else state
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            raise ValueError(f"its description has the operation {name}")

    def _to_mark(self) -> list[Any]:
        """Return the values since the last mark, and remove them."""
        at = max(i for i, value in enumerate(self.stack) if isinstance(value, _Mark))
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _call(self, function: Any, arguments: Any) -> Any:
        """Return a tensor for the constructors of tensors, a dictionary for OrderedDict, or an `_Object`."""
        name = function.name if isinstance(function, _Global) else ""
        if name == "collections.OrderedDict" and arguments == ():
            return {}
        if name == "torch._utils._rebuild_tensor_v2":
            return self._tensor(*arguments[:4])
        if name == "torch._utils._rebuild_tensor_v3":
            return self._tensor(*arguments[:4], arguments[6].name.removeprefix("torch."))
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return arguments[0]
        return _Object(name)

    def _storage(self, identity: Any) -> _Storage:
        kind, storage, key, *_ = identity
        dtype = _STORAGES.get(storage.name.split(".")[-1])
        if kind != "storage" or dtype is None:
            raise ValueError(f"it has a storage of the type {storage.name}")
        if key not in self.storages:
            self.storages[key] = read_member(self.archive, f"{self.root}data/{key}")
        return _Storage(self.storages[key], dtype)

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str | None = None
    ) -> NDArray:
        dtype = dtype or storage.dtype
        if dtype not in _DTYPES:
            raise ValueError(f"it has a tensor of the type {dtype}")
        size, decode = _DTYPES[dtype]
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (count and (last + 1) * size > len(storage.data)):
            raise ValueError("a tensor reaches beyond its numbers")
        if count * size > self.limit:
            raise ValueError(f"a tensor would have {count * size} bytes")
        if not count:
            return np.zeros(shape, decode(b"").dtype)
        numbers = decode(memoryview(storage.data)[offset * size : (last + 1) * size])
        steps = [step * numbers.itemsize for step in strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers, shape, steps)).reshape(shape)


def _key(value: Any) -> Any:
    """Return a key of a dictionary; what cannot be one is kept apart from all others."""
    return value if isinstance(value, str | int | float | bytes | type(None)) else f"object {id(value)}"


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": list,
}  # fmt: skip
_LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
))  # fmt: skip

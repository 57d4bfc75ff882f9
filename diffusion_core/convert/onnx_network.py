"""Any ONNX file as a function of NumPy arrays, computed by onnxruntime on the CPU.

The file says what the network takes: the first input of numbers with at least two axes is x, and t is the first other
one whose name says so, or the next. Values are converted to the types of the inputs:

    x                 float16, float32 or float64
    t                 the same with shape (b,), (b, 1) or (), or a whole number, which is then never a fraction
    label             whole numbers with shape (b,), or a vector of numbers with shape (b, K), 1 at the class
    other inputs      conditions, by their names

A file that was written for one batch size is called as often as the batch needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.convert.onnx import open_session
from diffusion_core.networks.own_call import LABEL_NAMES

__all__ = ["OnnxNetwork", "open_onnx_network"]

_TYPES: Mapping[str, DTypeLike] = {
    "tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64,
    "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip
_TIME_NAMES = ("t", "time", "times", "timestep", "timesteps", "sigma", "sigmas", "c_noise", "noise_level", "temb")


@dataclass(frozen=True)
class _Input:
    """An input of the graph; an axis of unknown length is None."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]

    @property
    def is_float(self) -> bool:
        """Whether it takes numbers that may be fractions."""
        return self.dtype.kind == "f"

    def convert(self, value: NDArray) -> NDArray:
        """Return a value with one entry per sample in the type and the axes of this input."""
        rank = len(self.shape)
        if self.name in LABEL_NAMES and self.is_float and rank == 2 and value.ndim == 1:
            value = value[:, None] == np.arange(self.shape[1] or 0)
        if rank == 0 and value.ndim == 1:  # all samples have the same t in a row of a plan
            value = value[0]
        if rank == 2 and value.ndim == 1:
            value = value[:, None]
        return np.asarray(value, self.dtype)


class OnnxNetwork:
    """An ONNX file, called with arrays by position or by the names of its inputs.

    Args:
        session: of onnxruntime.
        name: what messages call it.

    Raises:
        DuetError: if it has an input of another type than numbers, or none that can be x or t.
    """

    def __init__(self, session: Any, name: str) -> None:
        self._session, self.name = session, name
        inputs = []
        for info in session.get_inputs():
            if info.type not in _TYPES:
                raise DuetError(f"{name}: its input {info.name} is of type {info.type}; Duet gives numbers only")
            shape = tuple(size if isinstance(size, int) and size > 0 else None for size in info.shape)
            inputs.append(_Input(info.name, np.dtype(_TYPES[info.type]), shape))
        self.inputs = {each.name: each for each in self._in_order(inputs)}
        self.outputs = [info.name for info in session.get_outputs()]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(key, kind) for key in map(_word, self.inputs)])

    def _in_order(self, inputs: list[_Input]) -> list[_Input]:
        """Return x, t and the rest."""
        x = next((each for each in inputs if each.is_float and len(each.shape) > 1), None)
        rest = [each for each in inputs if each is not x]
        t = next((each for each in rest if each.name in _TIME_NAMES), rest[0] if rest else None)
        if x is None or t is None:
            shown = ", ".join(f"{each.name} {each.dtype} {each.shape}" for each in inputs)
            raise DuetError(f"{self.name}: its inputs are {shown}; there must be one for x, of numbers, and one for t")
        return [x, t, *(each for each in rest if each is not t)]

    def __repr__(self) -> str:
        return f"OnnxNetwork({self.name}, {', '.join(self.inputs)})"

    @property
    def time(self) -> str:
        """Whether t is a ``"float"`` or an ``"int"``."""
        return "float" if list(self.inputs.values())[1].is_float else "int"

    @property
    def layout(self) -> str:
        """Where the channels are: last if the file says that the first two axes of x are equal, and not the others."""
        shape = next(iter(self.inputs.values())).shape[1:]
        if len(shape) > 2 and shape[-1] is not None:
            first_are_equal = shape[0] is not None and shape[0] == shape[-2] != shape[-1]
            only_last_is_known = shape[0] is None
            few = shape[0] is not None and shape[-1] < min(filter(None, shape[:-1]))
            if first_are_equal or only_last_is_known or few:
                return "channels_last"
        return "channels_first"

    @property
    def _batch(self) -> int | None:
        """The batch size that the file was written for; None for any."""
        return next(iter(self.inputs.values())).shape[0]

    def __call__(self, *positional: NDArray, **keywords: NDArray) -> Any:
        """Return the output, or several by their names."""
        names = {_word(name): name for name in self.inputs}
        values = dict(zip(self.inputs, positional, strict=False)) | {names[key]: keywords[key] for key in keywords}
        count = len(next(iter(values.values())))
        size = self._batch or count
        if count % size:
            raise DuetError(
                f"{self.name}: it was written for batches of {size}, which do not divide {count} samples; write it "
                f"again with a dynamic batch, or give another number of samples"
            )
        parts = [
            self._session.run(None, {n: self.inputs[n].convert(v[at : at + size]) for n, v in values.items()})
            for at in range(0, count, size)
        ]
        whole = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return whole[0] if len(whole) == 1 else dict(zip(self.outputs, whole, strict=True))


def _word(name: str) -> str:
    """Return the name of an input as a keyword."""
    word = "".join(letter if letter.isalnum() else "_" for letter in name)
    return word if word.isidentifier() else f"_{word}"


def open_onnx_network(path: str | Path, threads: int = 0) -> OnnxNetwork:
    """Return the network in an ONNX file.

    Raises:
        DuetError: if onnxruntime is missing, or cannot run the file.
    """
    try:
        session = open_session(Path(path), threads)
    except DuetError:
        raise
    except Exception as error:  # onnxruntime raises many types of its own
        raise DuetError(f"{path}: onnxruntime cannot run it ({first_line(error)})") from error
    return OnnxNetwork(session, str(path))

"""The parameters and buffers of a PyTorch model, by name, for `duet diff`: a module's, or what a function captured."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Named", "cast", "modules_of", "named_variables", "to_array", "unwrapped"]


@dataclass(frozen=True)
class Named:
    """A tensor that belongs to the model; a parameter that is not `trained` is frozen."""

    tensor: Tensor
    buffer: bool
    trained: bool


def unwrapped(model: Any) -> Any:
    """Return the module that torch.compile wrapped, or else the model."""
    return getattr(model, "_orig_mod", model)


def to_array(tensor: Any) -> NDArray:
    """Return the numbers of a tensor; half precision is widened to float32."""
    if not isinstance(tensor, Tensor):
        return np.asarray(tensor)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError("the model has sparse or quantised tensors; duet diff records plain ones only")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.numpy()


def modules_of(model: Any) -> dict[str, nn.Module]:
    """Return the outermost modules by the name under which the model holds them; "" is the model itself."""
    return {name: found for name, found in _held(unwrapped(model)) if isinstance(found, nn.Module)}


def named_variables(model: Any) -> dict[str, Named]:
    """Return the parameters and buffers by name; a tensor with two names has both."""
    result: dict[str, Named] = {}
    for prefix, found in _held(unwrapped(model)):
        if isinstance(found, Tensor):
            result[prefix] = Named(found, False, found.requires_grad)
            continue
        start = f"{prefix}." if prefix else ""
        for name, each in found.named_parameters(remove_duplicate=False):
            if not nn.parameter.is_lazy(each):
                result[start + name] = Named(each, False, each.requires_grad)
        for name, each in found.named_buffers(remove_duplicate=False):
            if not nn.parameter.is_lazy(each):
                result[start + name] = Named(each, True, False)
    return result


def _held(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules and tensors of floats that a model is or holds, with their names."""
    seen: set[int] = set()

    def search(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
        value = unwrapped(value)
        if id(value) in seen or depth > 4:
            return
        seen.add(id(value))
        if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_floating_point() and value.is_leaf):
            yield name, value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from search(f"{name}.{key}" if name else str(key), item, depth + 1)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                yield from search(f"{name}.{i}" if name else str(i), item, depth + 1)
        elif isinstance(value, functools.partial):
            yield from search(name, value.func, depth + 1)
            yield from search(name, list(value.args), depth + 1)
            yield from search(name, value.keywords, depth + 1)
        elif inspect.ismethod(value):
            yield from search(name, value.__self__, depth + 1)
        elif inspect.isfunction(value):
            used = inspect.getclosurevars(value) if depth < 3 else None
            defaults = {key: each.default for key, each in inspect.signature(value).parameters.items()}
            if used:
                for names in (used.nonlocals, used.globals):
                    held = {key: item for key, item in names.items() if not inspect.ismodule(item)}
                    for key, item in held.items():
                        yield from search(key, item, depth + 1)
            for key, item in defaults.items():
                yield from search(key, item, depth + 1)
        elif hasattr(value, "__dict__") and not inspect.isclass(value) and not inspect.ismodule(value) and depth < 3:
            for key, item in vars(value).items():
                yield from search(f"{name}.{key}" if name else key, item, depth + 1)

    yield from search("", model, 0)


def cast(model: Any, precision: str) -> None:
    """Cast the model's floats to float64, also tensors that its modules hold as plain attributes; or undo that."""
    tensors = [each.tensor for each in named_variables(model).values()]
    for module in modules_of(model).values():
        for child in module.modules():
            tensors += [each for each in vars(child).values() if isinstance(each, Tensor) and each.is_leaf]
    for tensor in {id(each): each for each in tensors}.values():
        if precision == "float64":
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                tensor._duet_type, gradient = tensor.dtype, tensor.grad
                tensor.grad = None
                tensor.data = tensor.data.double()
                tensor.grad = None if gradient is None else gradient.double()
        elif dtype := getattr(tensor, "_duet_type", None):
            gradient = tensor.grad
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
            tensor.grad = None if gradient is None else gradient.to(dtype)
            del tensor._duet_type

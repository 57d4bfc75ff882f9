"""How `duet diff` calls a PyTorch model: its arguments, its outputs, their loss, and its state before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backends.torch.recorder.variables import modules_of, named_variables, to_array, unwrapped
from diffusion_core.parity.diff.generators import keep_generators, seed_generators

__all__ = ["arguments", "call_model", "differ", "eager", "fixed_loss", "flat_outputs", "flat_tensors", "only_reading"]


def arguments(model: Any, inputs: Any, precision: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the inputs as tensors, in order and by name; floats in the pass's precision, or the model's own one."""
    floats = [each.tensor for each in named_variables(model).values() if each.tensor.is_floating_point()]
    dtype = torch.float64 if precision == "float64" else torch.float32
    types = {each.dtype for each in floats}
    if precision == "float32" and len(types) == 1:  # as its author built it, which may be in half precision or float64
        dtype = types.pop()
    device = floats[0].device if floats else torch.device("cpu")

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(convert(item) for item in value)
        if not isinstance(value, (np.ndarray, np.generic)):
            return value
        tensor = torch.from_numpy(np.array(value)).to(device)  # a copy, which the model may change
        if not tensor.is_floating_point():
            return tensor
        # A tensor that is computed may be changed in place, and a leaf with a gradient may not.
        return tensor.to(dtype).requires_grad_().clone()

    if isinstance(inputs, Mapping):
        return [], {str(key): convert(value) for key, value in inputs.items()}
    return [convert(value) for value in inputs], {}


def call_model(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call the model."""
    return unwrapped(model)(*args, **kwargs)


def flat_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested containers, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [each for item in value.values() for each in flat_tensors(item)]
    if isinstance(value, (list, tuple)):
        return [each for item in value for each in flat_tensors(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [each for item in vars(value).values() for each in flat_tensors(item)]
    return []


def flat_outputs(result: Any) -> dict[str, Tensor]:
    """Return the tensors that the model returned, by name: the key or place in their containers.

    Raises:
        ValueError: if there are none, or they are sparse or quantised.
    """
    found: dict[str, Tensor] = {}

    def collect(name: str, value: Any) -> None:
        start = f"{name}." if name else ""
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized:
                raise ValueError("the model returns sparse or quantised tensors; duet diff records plain ones only")
            found[name or "0"] = value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                collect(f"{start}{key}", item)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            for key, item in zip(value._fields, value, strict=True):
                collect(f"{start}{key}", item)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                collect(f"{start}{i}", item)
        elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
            for key, item in vars(value).items():
                collect(f"{start}{key}", item)

    collect("", result)
    if not found:
        raise ValueError(f"the model returned an object of type {type(result).__name__}; it must return tensors")
    return found


def fixed_loss(outputs: Sequence[Tensor]) -> Tensor:
    """Return the loss of `recording`, whose gradients are recorded."""
    wide = [y if y.dtype in (torch.float32, torch.float64) else y.float() for y in outputs]
    return sum((y.square() / 2 + torch.sin(2 * y) / 4).sum() / max(y.numel(), 1) for y in wide)


def differ(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether two results differ in any bit."""
    return a.keys() != b.keys() or any(
        not np.array_equal(x := to_array(a[name]), to_array(b[name]), equal_nan=x.dtype.kind in "fc") for name in a
    )


@contextmanager
def eager(model: Any, precision: str, seed: int = 0) -> Iterator[None]:
    """Run each operation by itself, with gradients, with the default type of a precision and seeded draws."""
    has_recurrent = any(
        isinstance(child, nn.RNNBase) for module in modules_of(model).values() for child in module.modules()
    )
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(getattr(torch, precision))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if has_recurrent:  # oneDNN runs whole layers in one operation
            stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
            torch._C._set_mkldnn_enabled(False)
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.jit.optimized_execution(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_AttentionInOne())
        torch.manual_seed(seed)
        seed_generators(seed)
        yield


class _AttentionInOne(TorchFunctionMode):
    """Let PyTorch compute attention as one operation also where its layout in memory would make it several."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention and len(args) >= 3:
            args = (*(each if each.stride(-1) == 1 else each.contiguous() for each in args[:3]), *args[3:])
        return function(*args, **kwargs)


@contextmanager
def only_reading(model: Any) -> Iterator[None]:
    """Give the model its parameters, buffers and modes back, and the random generators their states."""
    modules = [child for module in modules_of(model).values() for child in module.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules if type(module._buffers) is dict]
    tensors = {id(each.tensor): each.tensor for each in named_variables(model).values()}
    held = [(tensor, tensor.data, tensor.detach().clone(), tensor.grad) for tensor in tensors.values()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices), keep_generators():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, before in buffers:
            module._buffers.update(before)
        with torch.no_grad():
            for tensor, data, value, gradient in held:
                tensor.data = data
                tensor.data.copy_(value)
                tensor.grad = gradient

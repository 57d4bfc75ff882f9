"""Own networks in PyTorch: any `nn.Module`, or a function of tensors, as a block.

Duet keeps its own tensors for the arrays of a module and calls the module with them (`torch.func.functional_call`). So
a trainer, its moving averages and a sampler have weights of their own, and the module that was given stays as it is. A
network without owned arrays is called as it is, so that gradients reach its own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from backends.torch.device import DeviceContext
from backends.torch.network import Module
from diffusion_core.common.errors import DuetError
from diffusion_core.networks.own import Manifest, call_names, class_rows, own_seed, to_image_shape
from diffusion_core.networks.program import Node, Training

__all__ = ["Own", "to_own", "from_own", "accepts", "read_network", "to_array", "with_weights", "building"]


class Own(Module):
    """A block that calls the user's object; see `diffusion_core.networks.own.Own`."""

    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        nn.Module.__init__(self)
        self.node, self.block, self.context = node, node.block, context
        self.called, self.arguments = _plain(node.block.called), node.block.arguments
        self.names = {}
        for i, parameter in enumerate(self.block.parameters()):
            self.names[parameter.name] = f"array{i}"  # names of attributes have no dots
            tensor = context.tensor(parameters[parameter.name]).clone()
            if parameter.trained:
                self.register_parameter(f"array{i}", nn.Parameter(tensor))
            else:
                self.register_buffer(f"array{i}", tensor)
        self.constants = _constants(self.called, self.names, context) if self.names else {}
        self.dtype = context.dtype if self.names else _dtype(self.called, context.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names of the block's parameters."""
        return {name: getattr(self, attribute) for name, attribute in self.names.items()}

    @contextmanager
    def mode(self, training: Training | None) -> Iterator[None]:
        """Put the module into training or evaluation mode, with a seed for what it draws in training."""
        if not isinstance(self.called, nn.Module):
            yield
            return
        before = {module: module.training for module in self.called.modules()}
        self.called.train(training is not None)
        try:
            if training is None:
                yield
            else:
                devices = [self.context.device] if self.context.device.type == "cuda" else []
                with torch.random.fork_rng(devices):
                    torch.manual_seed(own_seed(training.key.tolist(), int(training.positions[0])))
                    yield
        finally:
            for module, was_training in before.items():
                module.training = was_training

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor, features: Tensor, training: Training | None) -> Tensor:
        """Call the network; return its output as images b c h w."""
        values = self._values(x, c_noise, label, features)
        positional, keywords = self.arguments.bind(values)
        if not self.names:
            result = self.called(*positional, **keywords)
        else:
            tensors = self.tensors()
            buffers = {name for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)}
            if training is not None:  # a module updates its buffers in place
                tensors |= {name: tensors[name].clone() for name in buffers}
            result = functional_call(self.called, {**self.constants, **tensors}, positional, keywords)
            if training is not None:
                training.statistics |= {f"{self.node.name}.{name}": tensors[name].detach() for name in buffers}
        output = self.block.result(result)
        if self.block.logits:
            return output
        self.block.check_output(output.shape)
        return from_own(output, self.block.shape, self.block.layout)

    def _values(self, x: Tensor, c_noise: Tensor, label: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Return everything that the network can be given."""
        block, taken = self.block, self.arguments.values
        t = c_noise.round().to(torch.int64) if block.time == "int" else c_noise.to(self.dtype)
        t = t[:, None] if block.time == "column" else t
        values = {"x": to_own(x, block.shape, block.layout).to(self.dtype), "t": t, "label": label}
        if "one_hot" in taken:
            values["one_hot"] = (label[:, None] == torch.arange(block.classes, device=label.device)).to(self.dtype)
        for (name, shape, kind), columns in zip(block.conditions, block.feature_slices.values(), strict=True):
            value = features[:, columns].reshape(len(x), *shape)
            values[name] = value.to(self.dtype) if kind == "float" else value.round().to(torch.int64)
        return values


def to_own(x: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    """Return images b c h w as samples of this shape in this layout."""
    if layout == "channels_first" and len(shape) == 3:
        return x.contiguous()
    last = (*shape[1:], shape[0]) if layout == "channels_first" else shape
    x = x.permute(0, 2, 3, 1).reshape(len(x), *last)
    return (x.movedim(-1, 1) if layout == "channels_first" else x).contiguous()


def from_own(y: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    """Return samples in this layout as images b c h w; the channels may be more than those of the shape."""
    if layout == "channels_first" and len(shape) == 3:
        return y
    height, width, _ = to_image_shape(shape, layout)
    y = y.movedim(1, -1) if layout == "channels_first" else y
    return y.reshape(len(y), height, width, -1).permute(0, 3, 1, 2)


def accepts(network: Any) -> bool:
    """Return whether an object is a network of PyTorch."""
    return isinstance(network, nn.Module)


def read_network(network: Any) -> Manifest:
    """Return what Duet must know of a network, see `Manifest`.

    Raises:
        DuetError: if its weights do not exist yet, or change in training in a way that cannot be kept.
    """
    if not isinstance(network, nn.Module):
        return Manifest((), {}, "channels_first", call_names(network))
    module = _plain(network)
    for name, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.momentum is None:
            raise DuetError(
                f"network: {name} has momentum=None, an average over all batches so far, which a checkpoint does not "
                f"keep; give a number, such as 0.1"
            )
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if lazy := [name for name, tensor in named.items() if nn.parameter.is_lazy(tensor)]:
        raise DuetError(f"network: {lazy[0]} has no shape yet; call the network once before it is given to Duet")
    kept = {name: tensor for name, tensor in named.items() if _is_kept(module, name, tensor)}
    types = {tensor.dtype for tensor in kept.values()}
    devices = {str(tensor.device) for tensor in named.values()}
    if len(devices) > 1:
        raise DuetError(f"network: its weights are on several devices, {', '.join(sorted(devices))}; move it to one")
    return Manifest(
        parameters=tuple((name, tuple(tensor.shape), tensor.requires_grad) for name, tensor in kept.items()),
        values={name: _to_array(tensor) for name, tensor in kept.items()},
        layout="channels_first",
        inputs=call_names(module.forward),
        batch_statistics=any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules()),
        precision="float64" if types == {torch.float64} else "float32",
        device=next(iter(devices), "cpu"),
        class_rows=class_rows(module, [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]),
    )


def to_array(value: Any) -> NDArray:
    """Return a tensor, or anything like an array, as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def with_weights(network: nn.Module, arrays: Mapping[str, NDArray]) -> nn.Module:
    """Return a copy of a network with other weights."""
    copied = deepcopy(_plain(network))
    tensors = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    with torch.no_grad():
        for name, array in arrays.items():
            tensors[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))
    return copied


@contextmanager
def building(precision: str) -> Iterator[None]:
    """Return the context in which networks are built for a precision: a module can be cast later, so any will do."""
    yield


def _plain(network: Callable[..., Any]) -> Callable[..., Any]:
    """Return the module that `torch.compile` wraps; Duet compiles by itself."""
    return getattr(network, "_orig_mod", network)


def _to_array(tensor: Tensor) -> NDArray:
    tensor = tensor.detach().cpu()
    return np.array((tensor if tensor.dtype == torch.float64 else tensor.float()).numpy(), order="C")


def _is_kept(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Return whether an array belongs to the weights: a floating-point one that a state dict holds."""
    *path, leaf = name.split(".")
    owner = module.get_submodule(".".join(path))
    return tensor.is_floating_point() and leaf not in owner._non_persistent_buffers_set


def _constants(module: nn.Module, kept: Mapping[str, str], context: DeviceContext) -> dict[str, Tensor]:
    """Return the buffers that are no weights, such as tables of positions, on the device and in its number type."""
    constants = {}
    for name, tensor in module.named_buffers():
        if name not in kept:
            dtype = context.dtype if tensor.is_floating_point() else tensor.dtype
            if tensor.is_complex():
                dtype = torch.complex128 if context.dtype == torch.float64 else torch.complex64
            constants[name] = tensor.to(context.device, dtype, copy=True)
    return constants


def _dtype(network: Any, default: torch.dtype) -> torch.dtype:
    """Return the number type of a network's parameters."""
    tensors = network.parameters() if isinstance(network, nn.Module) else ()
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), default)

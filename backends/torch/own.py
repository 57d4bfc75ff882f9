"""Own networks in PyTorch: any `nn.Module`, or a function of tensors, as a block.

Duet keeps its own tensors for the arrays of a module and calls the module with them (`torch.func.functional_call`). So
a trainer, its moving averages and a sampler have weights of their own, and the module that was given stays as it is. A
network without owned arrays is called as it is, so that gradients reach its own parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from backends.torch.device import DeviceContext
from backends.torch.module import Module
from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import first_line
from diffusion_core.networks.own import ArraysByName, Manifest, own_seed
from diffusion_core.networks.own_call import CallNames, call_names, class_rows, to_image_shape
from diffusion_core.networks.program import Node, Training

__all__ = ["Own", "to_own", "from_own", "accepts", "read_network", "to_array", "as_tensor", "with_weights", "building"]


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
        self.constants, self.ties = ({}, {}) if not self.names else _held_beside(self.called, self.names, context)
        self.is_checked = False
        self.dtype = context.dtype if self.names else _dtype(self.called, context.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names of the block's parameters."""
        return {name: getattr(self, attribute) for name, attribute in self.names.items()}

    @contextmanager
    def mode(self, training: Training | None) -> Iterator[None]:
        """Put the modules into training or evaluation mode, with a seed for what they draw in training."""
        modules = [child for module in _modules(self.called) for child in module.modules()]
        if not modules:
            yield
            return
        before = [(module, module.training) for module in modules]
        for module in _modules(self.called):
            with suppress(NotImplementedError):  # an exported program has one mode
                module.train(training is not None)
        try:
            with nullcontext() if training is None else _seeded(training, self.context):
                yield
        finally:
            for module, was_training in before:
                module.training = was_training

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor,
        features: Tensor,
        *second_time: Tensor,
        training: Training | None,
    ) -> Tensor:
        """Call the network; return its output as images b c h w."""
        values = self._values(x, label, features, self.block.times(c_noise, *second_time))
        if not self.names:
            # The loss of an own loop: the module is in the mode that its owner chose, and draws as `duet.train` does.
            draws = training is not None and any(module.training for module in _modules(self.called))
            with _seeded(training, self.context) if draws else nullcontext():
                output = self.block.call(self.called, values)
        else:
            with _explain_errors(self.block.reference):
                output = self._call_owned(values, training)
        if not isinstance(output, Tensor):
            raise DuetError(
                f"network {self.block.reference}: it returned an object of type {type(output).__name__}; it must "
                f"return a tensor"
            )
        if self.block.logits:
            return output
        self.block.check_output(output.shape)
        return from_own(output, self.block.shape, self.block.layout)[:, : self.block.outputs]

    def _call_owned(self, values: Mapping[str, Any], training: Training | None) -> Any:
        """Call the network with the owned arrays, and note the new values of those that are not trained."""
        tensors = self.tensors()
        buffers = [name for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter)]
        if training is not None:  # a module may update its buffers in place
            tensors |= {name: tensors[name].clone() for name in buffers}
        held = {**self.constants, **tensors}
        if training is not None and self.block.batch_statistics:  # their counter is updated in place, too
            held |= {name: tensor.clone() for name, tensor in self.constants.items() if not tensor.is_floating_point()}
        held |= {other: held[name] for other, name in self.ties.items()}
        checks = training is not None and not self.is_checked and not torch.compiler.is_compiling()
        before = {name: tensor.clone() for name, tensor in self.constants.items()} if checks else {}
        # Without ties of its own, the call writes buffers that the module replaced, rather than updated, into `held`.
        output = self.block.call(
            lambda *inputs, **named: functional_call(self.called, held, inputs, named, tie_weights=False), values
        )
        if training is not None:
            training.statistics |= {f"{self.node.name}.{name}": held[name].detach() for name in buffers}
        for name, tensor in before.items():
            if not name.endswith("num_batches_tracked") and not torch.equal(tensor, held[name]):
                raise DuetError(
                    f"network {self.block.reference}: it changes its buffer {name} in training, which a checkpoint "
                    f"does not keep, as it is {str(tensor.dtype).removeprefix('torch.')} or not persistent; make it a "
                    f"persistent buffer of floats"
                )
        self.is_checked = self.is_checked or checks
        return output

    def _values(self, x: Tensor, label: Tensor, features: Tensor, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the inputs that the network takes."""
        block, taken = self.block, self.arguments.values
        # In half precision, timesteps would be rounded.
        floats = torch.promote_types(self.dtype, torch.float32)
        values = {"x": to_own(x, block.shape, block.layout).to(self.dtype), "label": label}
        for name, t in times.items():
            t = t.round().to(torch.int64) if block.time == "int" else t.to(floats)
            values[name] = t[:, None] if block.time == "column" else t
        if "one_hot" in taken:
            classes = block.first_label + torch.arange(block.classes, device=label.device)
            values["one_hot"] = (label[:, None] == classes).to(self.dtype)
        for (name, shape, kind), columns in zip(block.conditions, block.feature_slices.values(), strict=True):
            value = features[:, columns].reshape(len(x), *shape)
            values[name] = value.to(self.dtype) if kind == "float" else value.round().to(torch.int64)
        # Copies, since a network may change its inputs in place, and other evaluations take them too.
        return {name: values[name].clone() for name in taken}


@contextmanager
def _explain_errors(reference: str) -> Iterator[None]:
    """Say what to change in a network that has no derivative along a direction."""
    try:
        yield
    except RuntimeError as error:
        if "functorch" not in str(error) and "forward AD" not in str(error):
            raise
        raise DuetError(
            f"network {reference}: the objective differentiates it along a direction, which a step of it does not "
            f"allow ({first_line(error)}); give a torch.autograd.Function the methods setup_context and jvp, and leave "
            f"out checkpointing"
        ) from error


@contextmanager
def _seeded(training: Training, context: DeviceContext) -> Iterator[None]:
    """Seed what is drawn in a training pass, as by dropout, and leave the state of PyTorch's generators as it was."""
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(own_seed(training.key.tolist(), int(training.positions[0])))
        yield


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
    network = _plain(network)
    modules = _modules(network)
    if network not in modules:
        return _read_function(network, modules)
    module = network
    if isinstance(module, torch.jit.ScriptModule):  # compiled code cannot be called with other weights
        return _read_function(module, [module])
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
    if "meta" in devices:
        raise DuetError("network: its weights are on the meta device, which holds no numbers; load them first")
    if len(devices) > 1:
        raise DuetError(f"network: its weights are on several devices, {', '.join(sorted(devices))}; move it to one")
    return Manifest(
        parameters=tuple((name, tuple(tensor.shape), tensor.requires_grad) for name, tensor in kept.items()),
        values=ArraysByName(kept, _to_array),
        layout="channels_first",
        inputs=_call_names(module),
        batch_statistics=any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules()),
        precision="float64" if types == {torch.float64} else "float32",
        device=next(iter(devices), "cpu"),
        class_rows=_class_rows(module),
        one_hot=_takes_one_hot(module),
    )


def _read_function(function: Callable[..., Any], modules: list[nn.Module]) -> Manifest:
    """Return what is known of a function: it computes where the modules are that it calls."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    devices = {str(tensor.device) for tensor in tensors}
    return Manifest(
        parameters=(),
        values={},
        layout="channels_first",
        inputs=_call_names(function) if isinstance(function, nn.Module) else call_names(function),
        precision="float64" if types == {torch.float64} else "float32",
        device=devices.pop() if len(devices) == 1 else "cpu",
        class_rows=_class_rows(modules[0]) if len(modules) == 1 else None,
        one_hot=len(modules) == 1 and _takes_one_hot(modules[0]),
    )


def to_array(value: Any) -> NDArray:
    """Return a tensor, or anything like an array, as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def as_tensor(value: Any, context: DeviceContext) -> Tensor:
    """Return a tensor, or anything like an array, as a tensor of the context; one on the device stays there."""
    return torch.as_tensor(value).to(context.device, context.dtype)


def with_weights(network: nn.Module, arrays: Mapping[str, NDArray]) -> nn.Module:
    """Return a copy of a network with other weights."""
    try:
        copied = deepcopy(_plain(network))
    except (TypeError, RuntimeError) as error:
        raise DuetError(
            f"network: it cannot be copied ({first_line(error)}); load the arrays of run.state into a network of yours"
        ) from error
    tensors = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    with torch.no_grad():
        for name, array in arrays.items():
            tensors[name].copy_(torch.from_numpy(np.asarray(array, order="C")))
    return copied


@contextmanager
def building(precision: str, seed: int) -> Iterator[None]:
    """Return the context in which networks are built from a seed; a module is cast later, so any precision will do."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _plain(network: Any) -> Any:
    """Return the module that `torch.compile` or `DataParallel` wraps, or of an exported program."""
    if isinstance(network, torch.export.ExportedProgram):
        return network.module()
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _plain(network.module)
    return getattr(network, "_orig_mod", network)


def _modules(network: Any, depth: int = 4) -> list[nn.Module]:
    """Return the modules that a network is or calls, as far as can be seen: in what a function or an object holds."""
    if isinstance(network, nn.Module):
        return [network]
    parts = _parts(network) if depth else []
    return list(dict.fromkeys(module for part in parts for module in _modules(part, depth - 1)))


def _parts(value: Any) -> Iterable[Any]:
    """Return what a value holds that a call of it may use: closure, defaults, attributes, items."""
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if inspect.isfunction(value):
        seen = inspect.getclosurevars(value)
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*seen.globals.values(), *seen.nonlocals.values(), *defaults]
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if inspect.isclass(value) or inspect.ismodule(value) or not hasattr(value, "__dict__"):
        return []
    call = vars(type(value)).get("__call__")
    return [*vars(value).values(), *([call] if inspect.isfunction(call) else [])]


def _call_names(module: nn.Module) -> CallNames | None:
    """Return the parameters of a call of a module."""
    if isinstance(module, torch.jit.ScriptModule):
        names = [argument.name for argument in module.forward.schema.arguments[1:]]
        required = [not argument.has_default_value() for argument in module.forward.schema.arguments[1:]]
        return tuple(zip(names, required, strict=True))
    return call_names(module.forward)


def _class_rows(module: nn.Module) -> int | None:
    embeddings = [child for child in module.modules() if isinstance(child, nn.Embedding)]
    return class_rows(module, [embedding.num_embeddings for embedding in embeddings])


def _takes_one_hot(module: nn.Module) -> bool:
    """Return whether it takes the class as a vector, as the networks of EDM do, which say its length."""
    length = getattr(module, "label_dim", None)
    return isinstance(length, int) and length > 0


def _to_array(tensor: Tensor) -> NDArray:
    tensor = tensor.detach().cpu()
    return np.array((tensor if tensor.dtype == torch.float64 else tensor.float()).numpy(), order="C")


def _is_kept(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Return whether an array belongs to the weights: a floating-point one that a state dict holds."""
    path, _, leaf = name.rpartition(".")
    owner = dict(module.named_modules())[path]
    return tensor.is_floating_point() and leaf not in getattr(owner, "_non_persistent_buffers_set", ())


def _held_beside(
    module: nn.Module, owned: Mapping[str, str], context: DeviceContext
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what a module holds beside the owned arrays.

    These are the buffers that are no weights, such as tables of positions, on the device and in its number type; and
    the further names of tensors that the module holds twice, each with its first name. A submodule that is reached by
    two paths has one name for each tensor: a call that replaced it twice would not put the first value back.
    """
    constants, ties, first, places = {}, {}, {}, set()
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    owners = dict(module.named_modules(remove_duplicate=False))
    for name, tensor in named:
        path, _, leaf = name.rpartition(".")
        place = (id(owners[path]), leaf)
        if place in places:
            continue
        places.add(place)
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        if name in owned:
            continue
        if isinstance(tensor, nn.Parameter):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise DuetError(
                f"network: its parameter {name} is {kind}; Duet trains real numbers, so keep it as floats, for example "
                f"by torch.view_as_real"
            )
        dtype = context.dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.is_complex():
            dtype = torch.complex128 if context.dtype == torch.float64 else torch.complex64
        constants[name] = tensor.to(context.device, dtype, copy=True)
    return constants, ties


def _dtype(network: Any, default: torch.dtype) -> torch.dtype:
    """Return the number type of a network's parameters."""
    tensors = (tensor for module in _modules(network) for tensor in module.parameters())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), default)

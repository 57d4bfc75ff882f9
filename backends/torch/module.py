"""The table of PyTorch modules by block kind, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.torch.device import DeviceContext
from diffusion_core.networks.program import Node, Training
from diffusion_core.networks.registry import BlockRules

__all__ = ["MODULES", "Module", "convolve"]

# One module class per block kind, which takes (node, parameters by name, context).
MODULES: BlockRules[type[Module]] = BlockRules("PyTorch module", "backends/torch/network.py")


class Module(nn.Module):
    """A block with its parameters. Each subclass enters `MODULES` under its own name, the name of a block kind."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        MODULES.add(cls.__name__, cls)

    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        super().__init__()
        self.node, self.block, self.context = node, node.block, context
        for parameter in self.block.parameters():
            tensor = context.tensor(parameters[parameter.name])
            # On the CPU the tensor may share the memory of the caller's array.
            tensor = tensor.clone(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)
            if parameter.trained:
                self.register_parameter(parameter.name, nn.Parameter(tensor))
            else:
                self.register_buffer(parameter.name, tensor)
        for name in ("weight", "bias"):
            if name not in self._parameters:
                self.register_parameter(name, None)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names of the block's parameters."""
        return {parameter.name: getattr(self, parameter.name) for parameter in self.block.parameters()}

    def mode(self, training: Training | None) -> AbstractContextManager[None]:
        """Return the context of a training or an evaluation pass; blocks of Duet need none."""
        return nullcontext()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int, int, int]) -> Tensor:
    """Return a convolution with zeros on (top, bottom, left, right)."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return F.conv2d(x, weight, bias, stride, (top, left))
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride)

"""Block kinds as PyTorch modules, and the network that runs a program with them.

Tensors are ``b c h w`` in channels_last, or ``b c``. Each class computes what the function of the same
kind in `diffusion_core.reference` defines; the numbers come from the block, none from a default.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.torch.device import Place
from diffusion_core.unet import blocks
from diffusion_core.unet.program import Program
from diffusion_core.weights import Weights, check_weights

__all__ = ["Network", "build", "read_parameters"]


class Module(nn.Module):
    """A block with its parameters."""

    def __init__(self, block: blocks.Block, parameters: Mapping[str, NDArray], place: Place) -> None:
        super().__init__()
        self.block, self.place = block, place
        for parameter in block.parameters():
            tensor = place.tensor(parameters[parameter.name])
            # On the CPU the tensor may be the array itself, which belongs to the caller.
            tensor = tensor.clone(memory_format=torch.channels_last if tensor.ndim == 4 else torch.contiguous_format)
            self.register_parameter(parameter.name, nn.Parameter(tensor))
        for name in ("weight", "bias"):
            if name not in self._parameters:
                self.register_parameter(name, None)


class Sinusoid(Module):
    def __init__(self, block: blocks.Sinusoid, parameters: Mapping[str, NDArray], place: Place) -> None:
        super().__init__(block, parameters, place)
        self.frequencies = place.tensor(np.array(block.frequencies()), torch.float64)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies
        parts = (angle.sin(), angle.cos()) if self.block.sin_first else (angle.cos(), angle.sin())
        return torch.cat(parts, dim=-1).to(self.place.dtype)


class Embedding(Module):
    def forward(self, label: Tensor) -> Tensor:
        return F.embedding(label, self.weight)


class Linear(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv(Module):
    def forward(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.block.padding
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, self.bias, self.block.stride, (top, left))
        return F.conv2d(F.pad(x, (left, right, top, bottom)), self.weight, self.bias, self.block.stride)


class GroupNorm(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.block.groups, self.weight, self.bias, self.block.eps)


class SiLU(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Attention(Module):
    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = rearrange(qkv, "b (three n d) h w -> three b n (h w) d", three=3, n=self.block.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return rearrange(mixed, "b n (h w) d -> b (n d) h w", h=qkv.shape[2])


def _to_pixels(vector: Tensor, like: Tensor) -> Tensor:
    return vector[:, :, None, None] if like.ndim > vector.ndim else vector


class Add(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x + _to_pixels(y, x)
        return total if self.block.scale == 1 else total * self.block.scale


class Modulate(Module):
    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = _to_pixels(vector, x).chunk(2, dim=1)
        return x * (1.0 + scale) + shift


class Concat(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=1)


class Upsample(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.block.factor, mode="nearest")


class AvgPool(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.block.factor)


def build(program: Program, weights: Mapping[str, NDArray], place: Place) -> dict[str, Module]:
    """One module per node, by name."""
    check_weights(program, weights)
    modules = {}
    for node in program.nodes:
        own = {p.name: weights[f"{node.name}.{p.name}"] for p in node.block.parameters()}
        modules[node.name] = globals()[node.kind](node.block, own, place)
    return modules


class Network(nn.Module):
    """A program built in PyTorch. Its `state_dict` has the names of the manifest."""

    def __init__(self, program: Program, weights: Mapping[str, NDArray], place: Place) -> None:
        super().__init__()
        self.program, self.place = program, place
        self.blocks = build(program, weights, place)
        for name, module in self.blocks.items():
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent._modules[part]
            parent.add_module(leaf, module)
        self.call = place.function(self.apply_program)

    def apply_program(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        """The raw output F of tensors, in the place's dtype."""
        with self.place.mixed():
            return self.program.run(self.blocks, x, c_noise, label).to(self.place.dtype)

    @torch.inference_mode()
    def forward(self, x: NDArray, c_noise: NDArray, label: NDArray) -> NDArray:
        """The raw output F for images (B, H, W, C), numbers (B,) and labels (B,)."""
        place = self.place
        c_noise, label = place.tensor(c_noise, torch.float64), place.tensor(label, torch.int64)
        return to_host(self.call(place.images(x), c_noise, label))

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The trained tensors under the names of the manifest."""
        return {p.name: self.get_parameter(p.name) for p in self.program.parameters}

    def weights(self) -> Weights:
        """The weights by name, in the canonical axes."""
        return read_parameters(self.parameters_by_name())


def read_parameters(tensors: Mapping[str, Tensor]) -> Weights:
    """Tensors as arrays in the canonical axes, copied."""
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in tensors.items()}


def to_host(images: Tensor) -> NDArray:
    """Images b c h w as an array b h w c, copied: on the CPU the tensor's own memory would be handed out."""
    return np.array(images.permute(0, 2, 3, 1).cpu().numpy(), order="C")

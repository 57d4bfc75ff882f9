"""Block kinds as PyTorch modules, and the network that runs a program.

Tensors are ``b c h w`` in channels_last, tokens ``b n c``, or vectors ``b c``. Each class computes what
the function of the same kind in `diffusion_core.backend.reference` defines; every number comes from the
block, none from a default of the framework. Kinds for tokens are in `tokens.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backends.torch import magnitude as _magnitude  # noqa: F401  fills MODULES
from backends.torch import tokens as _tokens  # noqa: F401  fills MODULES
from backends.torch.device import DeviceContext
from backends.torch.module import MODULES, Module, convolve
from backends.torch.random import random_words
from diffusion_core.backend.built_network import BuiltNetwork, build
from diffusion_core.networks.blocks import ATTENTION_ORDERS
from diffusion_core.networks.program import Node, Program, Training
from diffusion_core.networks.weights import Weights

__all__ = ["Network", "to_host"]


class Sinusoid(Module):
    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        super().__init__(node, parameters, context)
        self.frequencies = context.tensor(np.array(self.block.frequencies()), torch.float64)

    def forward(self, c_noise: Tensor) -> Tensor:
        return _sinusoids(c_noise[:, None] * self.frequencies, self.block.sin_first).to(self.context.dtype)


class Fourier(Module):
    def forward(self, c_noise: Tensor) -> Tensor:
        angle = (2.0 * np.pi) * c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        return _sinusoids(angle, self.block.sin_first).to(self.context.dtype)


def _sinusoids(angle: Tensor, sin_first: bool) -> Tensor:
    parts = (angle.sin(), angle.cos()) if sin_first else (angle.cos(), angle.sin())
    return torch.cat(parts, dim=-1)


class Number(Module):
    def forward(self, c_noise: Tensor) -> Tensor:
        return (self.block.scale * c_noise[:, None]).to(self.context.dtype)


class Embedding(Module):
    def forward(self, label: Tensor) -> Tensor:
        if not self.block.zero:
            return F.embedding(label, self.weight)
        known = label < self.block.count
        return F.embedding(label * known, self.weight) * known[:, None]


class Linear(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv(Module):
    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.block.stride, self.block.padding)


class ConvTranspose(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, self.block.stride, self.block.crop)


class GroupNorm(Module):
    def forward(self, x: Tensor) -> Tensor:
        # The CPU kernel for channels_last sums pixel by pixel, with an error of 6e-6 at 256 x 256 pixels; the other
        # kernel has an error of 1e-7.
        if x.device.type == "cpu" and x.shape[-2] * x.shape[-1] > 64 * 64:
            x = x.contiguous()
        return F.group_norm(x, self.block.groups, self.weight, self.bias, self.block.eps)


def _channels(x: Tensor) -> int:
    """Return the axis of the channels: that of an image comes first."""
    return 1 if x.ndim == 4 else -1


class LayerNorm(Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and len(self.block.shape) == 1:
            x = F.layer_norm(x.permute(0, 2, 3, 1), self.block.shape, self.weight, self.bias, self.block.eps)
            return x.permute(0, 3, 1, 2)
        return F.layer_norm(x, self.block.shape, self.weight, self.bias, self.block.eps)


class RMSNorm(Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.context.dtype)
        square, eps = x.square().sum(dim=_channels(x), keepdim=True), self.block.eps
        square = square + self.block.channels * eps if self.block.mean_square else square.clamp_min(eps**2)
        weight = self.weight[:, None, None] if x.ndim == 4 else self.weight
        return x * (torch.rsqrt(square) * self.block.channels**0.5) * weight


class BatchNorm(Module):
    def forward(self, x: Tensor, training: Training | None) -> Tensor:
        mean, variance = self.mean, self.variance
        if training is None:
            return F.batch_norm(x, mean, variance, self.weight, self.bias, False, eps=self.block.eps)
        mean, variance = mean.clone(), variance.clone()  # PyTorch updates them in place
        # PyTorch refuses a single value per channel; a copy of it leaves the mean and the variance as they are.
        batch = x if x.numel() > self.block.channels else torch.cat([x, x])
        y = F.batch_norm(batch, mean, variance, self.weight, self.bias, True, self.block.momentum, self.block.eps)
        training.statistics |= {f"{self.node.name}.mean": mean, f"{self.node.name}.variance": variance}
        return y[: len(x)]


class SiLU(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class ReLU(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class GELU(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh" if self.block.tanh else "none")


class Sigmoid(Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class Mish(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.mish(x)


class Attention(Module):
    def forward(self, qkv: Tensor) -> Tensor:
        order = ATTENTION_ORDERS[self.block.order]
        q, k, v = _split_heads(qkv, order, self.block.heads)
        return _join_heads(F.scaled_dot_product_attention(q, k, v), qkv)


def _split_heads(qkv: Tensor, order: str, heads: int) -> Tensor:
    """Return q, k and v (b n tokens d) of the pixels of an image, or of tokens."""
    axes, tokens = (f"b ({order}) h w", "(h w)") if qkv.ndim == 4 else (f"b t ({order})", "t")
    return rearrange(qkv, f"{axes} -> three b n {tokens} d", three=3, n=heads)


def _join_heads(mixed: Tensor, like: Tensor) -> Tensor:
    """Return values of heads (b n tokens d) as tokens, or as an image of the height and width of another value."""
    if like.ndim == 3:
        return rearrange(mixed, "b n t d -> b t (n d)")
    return rearrange(mixed, "b n (h w) d -> b (n d) h w", h=like.shape[2])


class MemoryAttention(Module):
    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = _with_memory(self, qkv)
        return _join_heads(F.scaled_dot_product_attention(q, k, v), qkv)


class LinearAttention(Module):
    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = _with_memory(self, qkv)
        context = k.softmax(dim=-2).transpose(-1, -2) @ v
        return _join_heads((q.softmax(dim=-1) * self.block.size**-0.5) @ context, qkv)


def _with_memory(module: Module, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v (b n tokens d), where k and v begin with the memory."""
    q, k, v = _split_heads(qkv, "three n d", module.block.heads)
    k, v = (
        torch.cat([first.to(rest.dtype).expand(len(rest), -1, -1, -1), rest], dim=2)
        for first, rest in zip(module.memory, (k, v), strict=True)
    )
    return q, k, v


class Dropout(Module):
    def forward(self, x: Tensor, training: Training | None) -> Tensor:
        if training is None:
            return x
        words = random_words(training.key, training.positions, x[0].numel(), self.block.row)
        kept = words >= self.block.threshold
        if x.ndim == 4:
            kept = rearrange(kept, "b (h w c) -> b c h w", h=x.shape[2], w=x.shape[3])
        return torch.where(kept.view_as(x) if x.ndim == 3 else kept, x * (1.0 / (1.0 - self.block.rate)), 0.0)


def _to_pixels(vector: Tensor, like: Tensor) -> Tensor:
    if like.ndim == vector.ndim:
        return vector
    return vector[:, :, None, None] if like.ndim == 4 else vector[:, None]


class Add(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x + _to_pixels(y, x)
        return total if self.block.scale == 1 else total * self.block.scale


class Multiply(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * _to_pixels(y, x)


class Modulate(Module):
    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        first, second = _to_pixels(vector, x).chunk(2, dim=_channels(x))
        scale, shift = (second, first) if self.block.shift_first else (first, second)
        return x * (1.0 + scale) + shift


class Concat(Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if y.ndim < x.ndim:
            y = _to_pixels(y, x)
            y = y.expand(-1, -1, *x.shape[2:]) if x.ndim == 4 else y.expand(-1, x.shape[1], -1)
        return torch.cat([x, y], dim=_channels(x))


class Upsample(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.block.factor, mode="nearest")


class AvgPool(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.block.factor)


class MaxPool(Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.block.factor)


class Resample(Module):
    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.context.tensor(self.block.matrix(size)).to(x.dtype) for size in x.shape[2:])
        return rows @ x @ columns.mT


class Mean(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3) if x.ndim == 4 else 1)


class Flatten(Module):
    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c h w -> b (h w c)" if x.ndim == 4 else "b n c -> b (n c)")


class Unflatten(Module):
    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b (h w c) -> b c h w", h=self.block.height, w=self.block.width)


def to_host(images: Tensor) -> NDArray:
    """Return images b c h w as an array b h w c, or vectors; always a copy, since CPU tensors share their memory."""
    return np.array((images.permute(0, 2, 3, 1) if images.ndim == 4 else images).cpu().numpy(), order="C")


class Network(BuiltNetwork, nn.Module):
    """A program built in PyTorch, whose `state_dict` has the names of the manifest."""

    zeros_like, no_gradients = staticmethod(torch.zeros_like), staticmethod(torch.inference_mode)
    to_host = staticmethod(to_host)

    def __init__(self, program: Program, weights: Mapping[str, NDArray], context: DeviceContext) -> None:
        nn.Module.__init__(self)
        self.program, self.context = program, context
        self.blocks = build(MODULES, program, weights, context)
        for name, module in self.blocks.items():
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                # Not add_module, which refuses names of attributes, as a node "context" has.
                parent = parent._modules.setdefault(part, nn.Module())
            parent._modules[leaf] = module
        self.call = context.function(self.apply_program)
        if context.compile:  # torch.compile fails on derivatives along a direction: this pass is as without it
            self.derivative = torch.compiler.disable(self.derivative)

    def _run(self, inputs: dict[str, Tensor], training: Training | None) -> Tensor:
        with self.context.mixed_precision():
            return self.program.run(self.blocks, inputs, training).to(self.context.dtype)

    def second_times(self, c_noise: Tensor) -> Tensor:
        """Return the second time of images for which none is given."""
        return torch.full_like(c_noise, self.program.default_second_time)

    def _pull_back(self, inputs: tuple[Tensor, ...], cotangent: Tensor) -> tuple[Tensor, Tensor]:
        images, *rest = inputs
        output = self.call(images.requires_grad_(), *rest)
        (pulled,) = torch.autograd.grad(output, images, cotangent)
        return output.detach(), pulled

    @torch.no_grad()
    def _derive(self, *given: object) -> tuple[Tensor, Tensor]:
        return self.derivative(*given)

    def derivative(
        self,
        at: tuple[Tensor, Tensor, Tensor],
        direction: tuple[Tensor, Tensor, Tensor],
        label: Tensor,
        features: Tensor,
        training: Training | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return F at (x, c_noise, second_time), and its derivative along a direction."""

        def output(x: Tensor, c_noise: Tensor, second_time: Tensor) -> Tensor:
            return self.apply_program(x, c_noise, label, features, None, second_time, training)

        # The fast kernels of attention have no derivative along a direction.
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(output, at, direction)

    @torch.inference_mode(False)
    def grad_log_prob(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        """Return the gradient with respect to x of log p(label | x), for a classifier with (B, K) logits."""
        # Tensors made in inference mode do not take part in autograd, so copy them.
        x, c_noise, label = x.clone().requires_grad_(), c_noise.clone(), label.clone()
        rest = torch.zeros_like(label), self.zero_features(len(x)), None
        log_p = F.log_softmax(self.call(x, c_noise, *rest), dim=1)
        return torch.autograd.grad(log_p.gather(1, label[:, None]).sum(), x)[0]

    def zero_features(self, batch: int) -> Tensor:
        """Return zeros as features, for images without any."""
        return torch.zeros((batch, self.program.features), dtype=self.context.dtype, device=self.context.device)

    def read(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return copies of tensors, by parameter, as arrays in the canonical axes."""
        return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in tensors.items()}

    @torch.no_grad()
    def _assign(self, tensor: Tensor, array: NDArray, axes: str) -> None:
        tensor.copy_(self.context.tensor(array))

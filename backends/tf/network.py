"""Block kinds as TensorFlow modules, and the network that runs a program with them.

Tensors are ``b h w c``, or ``b c``. Each class computes what the function of the same kind in
`diffusion_core.reference` defines; the numbers come from the block, none from a default.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from einops import rearrange, repeat
from numpy.typing import NDArray

from backends.tf.device import Place
from diffusion_core.unet import blocks
from diffusion_core.unet.program import Program
from diffusion_core.weights import Weights, check_weights

__all__ = ["Network", "build", "from_canonical", "read_parameters"]

# From the canonical axes of a parameter to those of TensorFlow's kernels; others are the same.
_NATIVE_AXES = {"o i kh kw": "kh kw i o", "o i": "i o"}


def from_canonical(array: NDArray, axes: str) -> NDArray:
    """An array in the axes of TensorFlow's kernels."""
    return rearrange(array, f"{axes} -> {_NATIVE_AXES.get(axes, axes)}")


class Module(tf.Module):
    """A block with its parameters."""

    def __init__(self, block: blocks.Block, parameters: Mapping[str, NDArray], place: Place) -> None:
        super().__init__()
        self.block, self.place = block, place
        self.weight = self.bias = None
        for parameter in block.parameters():
            tensor = place.tensor(from_canonical(parameters[parameter.name], parameter.axes))
            with tf.device(place.device):
                setattr(self, parameter.name, tf.Variable(tensor))


class Sinusoid(Module):
    def __init__(self, block: blocks.Sinusoid, parameters: Mapping[str, NDArray], place: Place) -> None:
        super().__init__(block, parameters, place)
        self.frequencies = place.tensor(np.array(block.frequencies()), tf.float64)

    def __call__(self, c_noise: tf.Tensor) -> tf.Tensor:
        angle = c_noise[:, None] * self.frequencies
        parts = (tf.sin(angle), tf.cos(angle)) if self.block.sin_first else (tf.cos(angle), tf.sin(angle))
        return tf.cast(tf.concat(parts, axis=-1), self.place.dtype)


class Embedding(Module):
    def __call__(self, label: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.weight, label)


class Linear(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x, weight = self.place.mixed(x, self.weight)
        y = tf.matmul(x, weight)
        return y if self.bias is None else y + tf.cast(self.bias, y.dtype)


class Conv(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        top, bottom, left, right = self.block.padding
        x, weight = self.place.mixed(x, self.weight)
        y = tf.nn.conv2d(x, weight, self.block.stride, [[0, 0], [top, bottom], [left, right], [0, 0]])
        return y if self.bias is None else tf.nn.bias_add(y, tf.cast(self.bias, y.dtype))


class GroupNorm(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, self.place.dtype)
        height, width, channels = x.shape[1:]
        grouped = tf.reshape(x, [-1, height * width, self.block.groups, channels // self.block.groups])
        normal = tf.reshape(_normalise(grouped, self.block.eps), [-1, height, width, channels])
        return normal * self.weight + self.bias


def _normalise(grouped: tf.Tensor, eps: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + eps) over axes 1 and 3, with its gradient written out: half the operations.

    Two passes: the mean of squares less the squared mean loses every digit at a large mean.
    """

    @tf.custom_gradient
    def normalise(x: tf.Tensor):
        centred = x - tf.reduce_mean(x, axis=[1, 3], keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=[1, 3], keepdims=True)
        scale = tf.math.rsqrt(variance + tf.constant(eps, x.dtype))
        normal = centred * scale

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            along = tf.reduce_mean(dy * normal, axis=[1, 3], keepdims=True)
            return scale * (dy - tf.reduce_mean(dy, axis=[1, 3], keepdims=True) - normal * along)

        return normal, gradient

    return normalise(grouped)


class SiLU(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.silu(x)


class Attention(Module):
    def __call__(self, qkv: tf.Tensor) -> tf.Tensor:
        (qkv,) = self.place.mixed(qkv)
        q, k, v = tf.unstack(rearrange(qkv, "b h w (three n d) -> three b n (h w) d", three=3, n=self.block.heads))
        size = self.block.channels // self.block.heads
        logits = tf.matmul(q * tf.constant(size**-0.5, q.dtype), k, transpose_b=True)
        mixed = tf.matmul(tf.nn.softmax(logits), v)
        return rearrange(mixed, "b n (h w) d -> b h w (n d)", h=qkv.shape[1])


def _to_pixels(vector: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(vector[:, None, None, :] if like.shape.rank > vector.shape.rank else vector, like.dtype)


class Add(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        total = x + _to_pixels(y, x)
        return total if self.block.scale == 1 else total * tf.constant(self.block.scale, total.dtype)


class Modulate(Module):
    def __call__(self, x: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        scale, shift = tf.split(_to_pixels(vector, x), 2, axis=-1)
        return x * (1.0 + scale) + shift


class Concat(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.concat([x, tf.cast(y, x.dtype)], axis=-1)


class Upsample(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        # Not tf.image.resize: its gradient has no XLA kernel on the CPU.
        return repeat(x, "b h w c -> b (h i) (w j) c", i=self.block.factor, j=self.block.factor)


class AvgPool(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.avg_pool2d(x, self.block.factor, self.block.factor, "VALID")


def build(program: Program, weights: Mapping[str, NDArray], place: Place) -> dict[str, Module]:
    """One module per node, by name."""
    check_weights(program, weights)
    modules = {}
    for node in program.nodes:
        own = {p.name: weights[f"{node.name}.{p.name}"] for p in node.block.parameters()}
        modules[node.name] = globals()[node.kind](node.block, own, place)
    return modules


class Network(tf.Module):
    """A program built in TensorFlow."""

    def __init__(self, program: Program, weights: Mapping[str, NDArray], place: Place) -> None:
        super().__init__()
        self.program, self.place = program, place
        self.blocks = build(program, weights, place)
        self.call = place.function(self.apply_program)

    def apply_program(self, x: tf.Tensor, c_noise: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """The raw output F of tensors, in the place's dtype."""
        return tf.cast(self.program.run(self.blocks, x, c_noise, label), self.place.dtype)

    def forward(self, x: NDArray, c_noise: NDArray, label: NDArray) -> NDArray:
        """The raw output F for images (B, H, W, C), numbers (B,) and labels (B,)."""
        place = self.place
        c_noise, label = place.tensor(c_noise, tf.float64), place.tensor(label, tf.int32)
        return to_host(self.call(place.images(x), c_noise, label))

    def parameters_by_name(self) -> dict[str, tf.Variable]:
        """The trained variables under the names of the manifest."""
        return {
            f"{node.name}.{p.name}": getattr(self.blocks[node.name], p.name)
            for node in self.program.nodes
            for p in node.block.parameters()
        }

    def weights(self) -> Weights:
        """The weights by name, in the canonical axes."""
        return read_parameters(self.program, self.parameters_by_name())


def read_parameters(program: Program, tensors: Mapping[str, tf.Tensor]) -> Weights:
    """Tensors as arrays in the canonical axes, copied."""
    return {
        p.name: np.array(
            rearrange(tensors[p.name].numpy(), f"{_NATIVE_AXES.get(p.axes, p.axes)} -> {p.axes}"), order="C"
        )
        for p in program.parameters
    }


def to_host(images: tf.Tensor) -> NDArray:
    """Images as an array b h w c, copied."""
    return images.numpy()

"""Block kinds as TensorFlow modules, and the network that runs a program.

Tensors are ``b h w c``, tokens ``b n c``, or vectors ``b c``. Each class computes what the function of
the same kind in `diffusion_core.backend.reference` defines; every number comes from the block, none
from a default of the framework. Kinds for tokens are in `tokens.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache

import numpy as np
import tensorflow as tf
from einops import rearrange, repeat
from numpy.typing import NDArray

from backends.tf import magnitude as _magnitude  # noqa: F401  fills MODULES
from backends.tf import tokens as _tokens  # noqa: F401  fills MODULES
from backends.tf.compiler import inlined_functions
from backends.tf.device import DeviceContext
from backends.tf.module import MODULES, Module, convolve, from_canonical, to_canonical
from backends.tf.random import random_words
from diffusion_core.backend.built_network import BuiltNetwork, build
from diffusion_core.networks.blocks import ATTENTION_ORDERS
from diffusion_core.networks.program import Node, Program, Training
from diffusion_core.networks.weights import Weights

__all__ = ["Network", "to_host"]


class Sinusoid(Module):
    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        super().__init__(node, parameters, context)
        self.frequencies = context.tensor(np.array(self.block.frequencies()), tf.float64)

    def __call__(self, c_noise: tf.Tensor) -> tf.Tensor:
        return tf.cast(_sinusoids(c_noise[:, None] * self.frequencies, self.block.sin_first), self.context.dtype)


class Fourier(Module):
    def __call__(self, c_noise: tf.Tensor) -> tf.Tensor:
        angle = (2.0 * np.pi) * c_noise[:, None] * tf.cast(self.frequencies, c_noise.dtype)
        return tf.cast(_sinusoids(angle, self.block.sin_first), self.context.dtype)


def _sinusoids(angle: tf.Tensor, sin_first: bool) -> tf.Tensor:
    parts = (tf.sin(angle), tf.cos(angle)) if sin_first else (tf.cos(angle), tf.sin(angle))
    return tf.concat(parts, axis=-1)


class Number(Module):
    def __call__(self, c_noise: tf.Tensor) -> tf.Tensor:
        return tf.cast(self.block.scale * c_noise[:, None], self.context.dtype)


class Embedding(Module):
    def __call__(self, label: tf.Tensor) -> tf.Tensor:
        if not self.block.zero:
            return tf.gather(self.weight, label)
        known = label < self.block.count
        row = tf.gather(self.weight, label * tf.cast(known, label.dtype))
        return row * tf.cast(known, row.dtype)[:, None]


class Linear(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x, weight = self.context.mixed_precision(x, self.weight)
        # The gradient of a product of tokens would be one matrix per image, summed afterwards.
        y = tf.matmul(x, weight) if x.shape.rank == 2 else tf.tensordot(x, weight, 1)
        return y if self.bias is None else y + tf.cast(self.bias, y.dtype)


class Conv(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x, weight = self.context.mixed_precision(x, self.weight)
        return convolve(x, weight, self.bias, self.block.stride, self.block.padding)


class ConvTranspose(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x, weight = self.context.mixed_precision(x, self.weight)
        stride, crop = self.block.stride, self.block.crop
        height, width = ((n - 1) * stride + self.block.kernel for n in x.shape[1:3])
        shape = [tf.shape(x)[0], height, width, self.block.outputs]
        y = tf.nn.conv2d_transpose(x, weight, shape, stride, "VALID")[:, crop : height - crop, crop : width - crop]
        return y if self.bias is None else tf.nn.bias_add(y, tf.cast(self.bias, y.dtype))


class GroupNorm(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, self.context.dtype)
        height, width, channels = x.shape[1:]
        grouped = tf.reshape(x, [-1, height, width, self.block.groups, channels // self.block.groups])
        normal = tf.reshape(_normalise(grouped, [2, 1, 4], self.block.eps), [-1, height, width, channels])
        return normal * self.weight + self.bias


class LayerNorm(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        axes = [-1] if len(self.block.shape) == 1 else [1, 2, 3]
        normal = _normalise(tf.cast(x, self.context.dtype), axes, self.block.eps)
        return normal * self.weight + self.bias if self.block.affine else normal


class RMSNorm(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, self.context.dtype)
        square = tf.reduce_sum(tf.square(x), -1, keepdims=True)
        least = self.block.channels * self.block.eps if self.block.mean_square else self.block.eps**2
        least = tf.constant(least, x.dtype)
        square = square + least if self.block.mean_square else tf.maximum(square, least)
        return x * (tf.math.rsqrt(square) * tf.constant(self.block.channels**0.5, x.dtype)) * self.weight


class BatchNorm(Module):
    def __call__(self, x: tf.Tensor, training: Training | None) -> tf.Tensor:
        x, eps = tf.cast(x, self.context.dtype), tf.constant(self.block.eps, self.context.dtype)
        if training is None:
            return (x - self.mean) * tf.math.rsqrt(self.variance + eps) * self.weight + self.bias
        axes = list(range(x.shape.rank - 1))[::-1]
        mean = _mean(x, axes)
        variance = tf.reshape(_mean(tf.square(x - mean), axes), [-1])
        mean = tf.reshape(mean, [-1])
        n = tf.cast(tf.size(x) // self.block.channels, x.dtype)
        unbiased = n / tf.maximum(n - 1, 1)
        momentum = tf.constant(self.block.momentum, x.dtype)
        training.statistics |= {
            f"{self.node.name}.mean": self.mean + momentum * (mean - self.mean),
            f"{self.node.name}.variance": self.variance + momentum * (variance * unbiased - self.variance),
        }
        return _normalise(x, axes, self.block.eps) * self.weight + self.bias


def _mean(x: tf.Tensor, axes: list[int]) -> tf.Tensor:
    """Return the mean over some axes, which stay with length 1.

    One axis at a time: over several axes at once TensorFlow sums element by element, which costs the fourth digit in
    float32 for a group of 500,000 elements. This keeps all digits and is faster.
    """
    for axis in axes:
        x = tf.reduce_mean(x, axis=axis, keepdims=True)
    return x


def _normalise(x: tf.Tensor, axes: list[int], eps: float) -> tf.Tensor:
    """Return (x - mean) / sqrt(variance + eps) over some axes, with an explicit gradient of half the operations.

    Two passes, because the mean of squares minus the squared mean loses all digits if the mean is large.
    """

    @tf.custom_gradient
    def normalise(x: tf.Tensor):
        centred = x - _mean(x, axes)
        variance = _mean(tf.square(centred), axes)
        scale = tf.math.rsqrt(variance + tf.constant(eps, x.dtype))
        normal = centred * scale

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            return scale * (dy - _mean(dy, axes) - normal * _mean(dy * normal, axes))

        return normal, gradient

    return normalise(x)


class SiLU(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.silu(x)


class ReLU(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(x)


class GELU(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        # Not tf.nn.gelu: its constants are float32 in float64 too.
        if self.block.tanh:
            inner = (x + x**3 * tf.constant(0.044715, x.dtype)) * tf.constant((2.0 / np.pi) ** 0.5, x.dtype)
            return 0.5 * x * (1.0 + tf.tanh(inner))
        return 0.5 * x * (1.0 + tf.math.erf(x * tf.constant(0.5**0.5, x.dtype)))


class Sigmoid(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(x)


class Mish(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return x * tf.tanh(tf.math.softplus(x))


class Attention(Module):
    def __call__(self, qkv: tf.Tensor) -> tf.Tensor:
        (qkv,) = self.context.mixed_precision(qkv)
        order = ATTENTION_ORDERS[self.block.order]
        q, k, v = tf.unstack(_split_heads(qkv, order, self.block.heads))
        size = self.block.channels // self.block.heads
        logits = tf.matmul(q * tf.constant(size**-0.5, q.dtype), k, transpose_b=True)
        return _join_heads(tf.matmul(tf.nn.softmax(logits), v), qkv)


def _split_heads(qkv: tf.Tensor, order: str, heads: int) -> tf.Tensor:
    """Return q, k and v (b n tokens d) of the pixels of an image, or of tokens."""
    axes, tokens = (f"b h w ({order})", "(h w)") if qkv.shape.rank == 4 else (f"b t ({order})", "t")
    return rearrange(qkv, f"{axes} -> three b n {tokens} d", three=3, n=heads)


def _join_heads(mixed: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Return values of heads (b n tokens d) as tokens, or as an image of the height and width of another value."""
    if like.shape.rank == 3:
        return rearrange(mixed, "b n t d -> b t (n d)")
    return rearrange(mixed, "b n (h w) d -> b h w (n d)", h=like.shape[1])


class MemoryAttention(Module):
    def __call__(self, qkv: tf.Tensor) -> tf.Tensor:
        q, k, v = _with_memory(self, qkv)
        logits = tf.matmul(q * tf.constant(self.block.size**-0.5, q.dtype), k, transpose_b=True)
        return _join_heads(tf.matmul(tf.nn.softmax(logits), v), qkv)


class LinearAttention(Module):
    def __call__(self, qkv: tf.Tensor) -> tf.Tensor:
        q, k, v = _with_memory(self, qkv)
        context = tf.matmul(tf.nn.softmax(k, axis=-2), v, transpose_a=True)
        return _join_heads(tf.matmul(tf.nn.softmax(q) * tf.constant(self.block.size**-0.5, q.dtype), context), qkv)


def _with_memory(module: Module, qkv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return q, k and v (b n tokens d), where k and v begin with the memory."""
    (qkv,) = module.context.mixed_precision(qkv)
    q, k, v = tf.unstack(_split_heads(qkv, "three n d", module.block.heads))
    k, v = (
        tf.concat([tf.repeat(tf.cast(first, rest.dtype)[None], tf.shape(rest)[0], axis=0), rest], axis=2)
        for first, rest in zip(tf.unstack(module.memory), (k, v), strict=True)
    )
    return q, k, v


class Dropout(Module):
    def __call__(self, x: tf.Tensor, training: Training | None) -> tf.Tensor:
        if training is None:
            return x
        words = random_words(training.key, training.positions, x.shape[1:].num_elements(), self.block.row)
        kept = tf.reshape(words >= self.block.threshold, tf.shape(x))
        return tf.where(kept, x * tf.constant(1.0 / (1.0 - self.block.rate), x.dtype), tf.zeros([], x.dtype))


def _to_pixels(vector: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    if like.shape.rank > vector.shape.rank:
        vector = vector[:, None, None, :] if like.shape.rank == 4 else vector[:, None]
    return tf.cast(vector, like.dtype)


class Add(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        total = x + _to_pixels(y, x)
        return total if self.block.scale == 1 else total * tf.constant(self.block.scale, total.dtype)


class Multiply(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return x * _to_pixels(y, x)


class Modulate(Module):
    def __call__(self, x: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        first, second = tf.split(_to_pixels(vector, x), 2, axis=-1)
        scale, shift = (second, first) if self.block.shift_first else (first, second)
        return x * (1.0 + scale) + shift


class Concat(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        if y.shape.rank < x.shape.rank:
            y = repeat(y, "b c -> b h w c", h=x.shape[1], w=x.shape[2]) if x.shape.rank == 4 else y
            y = repeat(y, "b c -> b n c", n=x.shape[1]) if x.shape.rank == 3 else y
        return tf.concat([x, tf.cast(y, x.dtype)], axis=-1)


class Upsample(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        # Not tf.image.resize: its gradient has no XLA kernel on the CPU.
        return repeat(x, "b h w c -> b (h i) (w j) c", i=self.block.factor, j=self.block.factor)


class AvgPool(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.avg_pool2d(x, self.block.factor, self.block.factor, "VALID")


class MaxPool(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return _max_pool(x, self.block.factor)


def _max_pool(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Return the maximum of each window; its gradient goes to the first maximum. XLA has no deterministic kernel."""

    @tf.custom_gradient
    def pool(x: tf.Tensor):
        largest = tf.nn.max_pool2d(x, factor, factor, "VALID")

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            parts, taken = [], tf.zeros_like(largest, tf.bool)
            for value in tf.unstack(rearrange(x, "b (h i) (w j) c -> (i j) b h w c", i=factor, j=factor)):
                first = (value == largest) & ~taken
                parts.append(tf.where(first, dy, tf.zeros([], dy.dtype)))
                taken |= first
            return rearrange(tf.stack(parts), "(i j) b h w c -> b (h i) (w j) c", i=factor, j=factor)

        return largest, gradient

    return pool(x)


class Resample(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        rows, columns = (tf.constant(self.block.matrix(size), x.dtype) for size in x.shape[1:3])
        return tf.einsum("Hh,bhWc->bHWc", rows, tf.einsum("bhwc,Ww->bhWc", x, columns))


class Mean(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(x, axis=[1, 2] if x.shape.rank == 4 else 1)


class Flatten(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return rearrange(x, "b h w c -> b (h w c)" if x.shape.rank == 4 else "b n c -> b (n c)")


class Unflatten(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return rearrange(x, "b (h w c) -> b h w c", h=self.block.height, w=self.block.width)


def to_host(images: tf.Tensor) -> NDArray:
    """Return images as an array b h w c, or vectors; always a copy."""
    return images.numpy()


class Network(BuiltNetwork, tf.Module):
    """A program built in TensorFlow."""

    zeros_like, no_gradients = staticmethod(tf.zeros_like), staticmethod(nullcontext)
    to_host = staticmethod(to_host)

    def __init__(self, program: Program, weights: Mapping[str, NDArray], context: DeviceContext) -> None:
        tf.Module.__init__(self)
        self.program, self.context = program, context
        self.blocks = build(MODULES, program, weights, context)
        self.call, self._derive = context.function(self.apply_program), context.function(self.derivative)
        # Returns make(network, *key), made once per key, since tracing takes seconds.
        self.make_once = cache(lambda make, *key: make(self, *key))

    def _run(self, inputs: dict[str, tf.Tensor], training: Training | None) -> tf.Tensor:
        return tf.cast(self.program.run(self.blocks, inputs, training), self.context.dtype)

    def second_times(self, c_noise: tf.Tensor) -> tf.Tensor:
        """Return the second time of images for which none is given."""
        return tf.fill(tf.shape(c_noise), tf.constant(self.program.default_second_time, c_noise.dtype))

    def _pull_back(self, inputs: tuple[tf.Tensor, ...], cotangent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs[0])
            output = self.call(*inputs)
        return output, tape.gradient(output, inputs[0], cotangent)

    def derivative(
        self,
        at: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
        direction: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
        label: tf.Tensor,
        features: tf.Tensor,
        training: Training | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return F at (x, c_noise, second_time), and its derivative along a direction."""
        with inlined_functions(), tf.autodiff.ForwardAccumulator(at, direction) as accumulator:
            output = self.apply_program(at[0], at[1], label, features, None, at[2], training)
        return output, accumulator.jvp(output, tf.UnconnectedGradients.ZERO)

    def grad_log_prob(self, x: tf.Tensor, c_noise: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Return the gradient with respect to x of log p(label | x), for a classifier with (B, K) logits."""
        # Inside another graph call the program directly: the gradient of a nested function gets dynamic shapes, which
        # XLA rejects.
        call = self.call if tf.executing_eagerly() else self.apply_program
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            rest = tf.zeros_like(label), self.zero_features(tf.shape(x)[0]), None
            log_p = tf.nn.log_softmax(call(x, c_noise, *rest), axis=1)
            total = tf.reduce_sum(tf.gather(log_p, label, axis=1, batch_dims=1))
        return tape.gradient(total, x)

    def zero_features(self, batch: int | tf.Tensor) -> tf.Tensor:
        """Return zeros as features, for images without any."""
        with tf.device(self.context.device):
            return tf.zeros([batch, self.program.features], self.context.dtype)

    def read(self, tensors: Mapping[str, tf.Tensor]) -> Weights:
        """Return copies of tensors, by parameter, as arrays in the canonical axes."""
        axes = {p.name: p.axes for p in self.program.parameters}
        return {name: np.array(to_canonical(t.numpy(), axes[name]), order="C") for name, t in tensors.items()}

    def _assign(self, tensor: tf.Variable, array: NDArray, axes: str) -> None:
        tensor.assign(self.context.tensor(from_canonical(array, axes)))

"""The magnitude-preserving block kinds as TensorFlow modules, see `diffusion_core.networks.blocks.magnitude`."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from einops import rearrange

from backends.tf.module import Module, convolve
from diffusion_core.networks.program import Training
from diffusion_core.optim.normalisation import MIN_SQUARE

__all__ = ["normalise", "normalise_weight"]


def normalise(x: tf.Tensor, axes: Sequence[int], eps: float) -> tf.Tensor:
    """Return x / (eps + rms(x)), with the root mean square over some axes."""
    square = tf.square(x)
    for axis in axes:  # one at a time, which keeps all digits of float32
        square = tf.reduce_mean(square, axis=axis, keepdims=True)
    return x / (tf.sqrt(tf.maximum(square, tf.constant(MIN_SQUARE, x.dtype))) + tf.constant(eps, x.dtype))


def normalise_weight(weight: tf.Tensor, eps: float) -> tf.Tensor:
    """Return a weight whose rows, all numbers of one output, have size 1."""
    return normalise(weight, range(len(weight.shape) - 1)[::-1], eps)


class MPFourier(Module):
    def __call__(self, c_noise: tf.Tensor) -> tf.Tensor:
        frequencies, phases = (tf.cast(each, c_noise.dtype) for each in (self.frequencies, self.phases))
        return tf.cast(tf.cos(c_noise[:, None] * frequencies + phases) * 2.0**0.5, self.context.dtype)


class OneHot(Module):
    def __call__(self, label: tf.Tensor) -> tf.Tensor:
        classes = tf.range(self.block.count, dtype=label.dtype)
        scale = tf.constant(self.block.scale, self.context.dtype)
        return tf.cast(label[:, None] == classes, self.context.dtype) * scale


def _rows(module: Module, training: Training | None) -> tf.Tensor:
    """Return the weight as it is used; in training, that of the normalised weight with the gradient taken there."""
    weight, eps = tf.convert_to_tensor(module.weight), module.block.eps
    if training is not None:
        weight = tf.stop_gradient(normalise_weight(weight, eps)) + (weight - tf.stop_gradient(weight))
    fan_in = weight.shape[:-1].num_elements()
    rows = normalise_weight(weight, eps) * tf.constant(fan_in**-0.5, weight.dtype)
    return rows * module.gain if module.block.gain else rows


class MPLinear(Module):
    def __call__(self, x: tf.Tensor, training: Training | None) -> tf.Tensor:
        return tf.matmul(*self.context.mixed_precision(x, _rows(self, training)))


class MPConv(Module):
    def __call__(self, x: tf.Tensor, training: Training | None) -> tf.Tensor:
        return convolve(*self.context.mixed_precision(x, _rows(self, training)), None, 1, self.block.padding)


class MPSiLU(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.silu(x) * tf.constant(1.0 / self.block.divisor, x.dtype)


class MPSum(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        first, second = (tf.constant(factor, x.dtype) for factor in self.block.factors)
        return x * first + tf.cast(y, x.dtype) * second


class MPConcat(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        first, second = (tf.constant(f, x.dtype) for f in self.block.factors(x.shape[-1], y.shape[-1]))
        return tf.concat([x * first, tf.cast(y, x.dtype) * second], axis=-1)


class MPGate(Module):
    def __call__(self, x: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        return x * (1.0 + tf.cast(vector[:, None, None, :], x.dtype))


class PixelNorm(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return normalise(tf.cast(x, self.context.dtype), (-1,), self.block.eps)


class MPAttention(Module):
    def __call__(self, qkv: tf.Tensor) -> tf.Tensor:
        height, heads = qkv.shape[1], self.block.heads
        qkv = rearrange(tf.cast(qkv, self.context.dtype), "b h w (n d three) -> three b n (h w) d", three=3, n=heads)
        q, k, v = tf.unstack(self.context.mixed_precision(normalise(qkv, (-1,), self.block.eps))[0])
        logits = tf.matmul(q * tf.constant(self.block.size**-0.5, q.dtype), k, transpose_b=True)
        mixed = tf.matmul(tf.nn.softmax(logits), v)
        return rearrange(mixed, "b n (h w) d -> b h w (n d)", h=height)


class WithConstant(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, 1]], constant_values=tf.constant(self.block.value, x.dtype))


class Clip(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        bound = tf.constant(self.block.bound, x.dtype)
        return tf.clip_by_value(x, -bound, bound)

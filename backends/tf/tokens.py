"""The block kinds of `diffusion_core.networks.blocks.tokens` as TensorFlow modules; tokens are ``b n c``."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
from einops import rearrange, repeat
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from backends.tf.module import Module
from backends.tf.random import random_words
from diffusion_core.networks.program import Node, Training

__all__ = [
    "ConcatTokens",
    "CrossAttention",
    "DropoutAttention",
    "LearnedPositions",
    "Patchify",
    "QKNorm",
    "Repeat",
    "RotaryPositions",
    "SinePositions",
    "Slice",
    "SwiGLU",
    "Unpatchify",
]


class Patchify(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=self.block.patch, q=self.block.patch)


class Unpatchify(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        block = self.block
        return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=block.height, p=block.patch, q=block.patch)


class Repeat(Module):
    def __call__(self, vector: tf.Tensor) -> tf.Tensor:
        return repeat(vector, "b c -> b n c", n=self.block.count)


class Slice(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        start, stop = self.block.start, self.block.stop
        return x[:, start:stop] if self.block.axis == "tokens" else x[..., start:stop]


class ConcatTokens(Module):
    def __call__(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.concat([x, tf.cast(y, x.dtype)], axis=1)


class SinePositions(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, self.context.dtype) + self.table


class LearnedPositions(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.cast(x, self.context.dtype) + self.table


class CrossAttention(Module):
    def __call__(self, q: tf.Tensor, kv: tf.Tensor) -> tf.Tensor:
        q, kv = self.context.mixed_precision(q, kv)
        q = rearrange(q, "b t (n d) -> b n t d", n=self.block.heads)
        k, v = tf.unstack(rearrange(kv, "b t (two n d) -> two b n t d", two=2, n=self.block.heads))
        size = self.block.channels // self.block.heads
        logits = tf.matmul(q * tf.constant(size**-0.5, q.dtype), k, transpose_b=True)
        return rearrange(tf.matmul(tf.nn.softmax(logits), v), "b n t d -> b t (n d)")


class SwiGLU(Module):
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        gate, value = tf.split(x, 2, axis=-1)
        return tf.nn.silu(gate) * value


class QKNorm(Module):
    def __call__(self, qkv: tf.Tensor) -> tf.Tensor:
        qkv = tf.cast(qkv, self.context.dtype)
        q, k, v = tf.unstack(rearrange(qkv, "b t (three n d) -> three b t n d", three=3, n=self.block.heads))
        q, k = (
            x
            * tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + tf.constant(self.block.eps, x.dtype))
            * g
            for x, g in ((q, self.query), (k, self.key))
        )
        return rearrange(tf.stack([q, k, v]), "three b t n d -> b t (three n d)")


class RotaryPositions(Module):
    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        super().__init__(node, parameters, context)
        self.cos, self.sin = map(context.tensor, self.block.rotation())

    def __call__(self, qkv: tf.Tensor) -> tf.Tensor:
        pairs = rearrange(qkv, "b t (three n d pair) -> pair b t three n d", three=3, n=self.block.heads, pair=2)
        a, b = tf.unstack(tf.cast(pairs, self.context.dtype))
        turned = tf.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos])
        return rearrange(turned, "pair b t three n d -> b t (three n d pair)")


class DropoutAttention(Module):
    def __call__(self, qkv: tf.Tensor, training: Training | None) -> tf.Tensor:
        (qkv,) = self.context.mixed_precision(qkv)
        q, k, v = tf.unstack(rearrange(qkv, "b t (three n d) -> three b n t d", three=3, n=self.block.heads))
        weights = tf.nn.softmax(tf.matmul(q * tf.constant(q.shape[-1] ** -0.5, q.dtype), k, transpose_b=True))
        if training is not None:
            words = random_words(training.key, training.positions, weights.shape[1:].num_elements(), self.block.row)
            kept = tf.reshape(words >= self.block.threshold, tf.shape(weights))
            scaled = weights * tf.constant(1.0 / (1.0 - self.block.rate), weights.dtype)
            weights = tf.where(kept, scaled, tf.zeros([], weights.dtype))
        return rearrange(tf.matmul(weights, v), "b n t d -> b t (n d)")

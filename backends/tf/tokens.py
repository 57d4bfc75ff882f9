"""The block kinds of `diffusion_core.networks.token_blocks` as TensorFlow modules; tokens are ``b n c``."""

from __future__ import annotations

import tensorflow as tf
from einops import rearrange, repeat

from backends.tf.module import Module

__all__ = [
    "ConcatTokens",
    "CrossAttention",
    "LearnedPositions",
    "Patchify",
    "Repeat",
    "SinePositions",
    "Slice",
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

"""A diffusion transformer with nothing but tf: one module that owns its variables, functions for the rest."""

import numpy as np
import tensorflow as tf
import weights as hp


def linear(x, w, b):
    return tf.linalg.matmul(x, w) + b


def layer_norm(x, epsilon=1e-6):
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + epsilon)


class Dit(tf.Module):
    def __init__(self, dtype, fault=None, variant=None):
        super().__init__(name="dit")
        self.dtype, self.fault, self.variant = tf.as_dtype(dtype), fault, variant
        self.w = {}
        for name, array in hp.make().items():
            if array.ndim == 2 and name not in ("position", "label"):
                array = array.T
            if name == "patch":  # rows in the order of patches cut from NHWC images: row, column, channel
                array = array.reshape(hp.CHANNELS, hp.PATCH, hp.PATCH, hp.DIM).transpose(1, 2, 0, 3)
                array = array.reshape(-1, hp.DIM)
            self.w[name] = tf.Variable(array, dtype=self.dtype, name=name, trainable=name != "position")
        if variant == "separate_qkv":
            for i in range(hp.DEPTH):
                for end in ("", ".b"):
                    whole = self.w.pop(f"b{i}.qkv{end}")
                    for letter, part in zip("qkv", tf.split(whole, 3, axis=-1), strict=True):
                        self.w[f"b{i}.{letter}{end}"] = tf.Variable(part, name=f"b{i}.{letter}{end}")

    def dense(self, x, name):
        return linear(x, self.w[name], self.w[f"{name}.b"])

    def time_embedding(self, t):
        half = hp.FREQUENCIES // 2
        kind = np.float32 if self.fault == "time_in_float32" else np.float64
        rates = np.exp(np.arange(half, dtype=kind) * kind(-np.log(10000.0) / half))
        angles = tf.cast(t, kind)[:, None] * tf.constant(rates)[None]
        parts = [tf.cos(angles), tf.sin(angles)]
        if self.fault == "sin_first":
            parts.reverse()
        x = tf.cast(tf.concat(parts, axis=-1), self.dtype)
        return self.dense(tf.nn.silu(self.dense(x, "t0")), "t2")

    def patchify(self, images):
        if self.variant == "conv_patches":
            kernel = tf.reshape(self.w["patch"], (hp.PATCH, hp.PATCH, hp.CHANNELS, hp.DIM))
            x = tf.nn.conv2d(images, kernel, hp.PATCH, "VALID") + self.w["patch.b"]
            return tf.reshape(x, (-1, hp.TOKENS, hp.DIM))
        side = hp.SIZE // hp.PATCH
        x = tf.reshape(images, (-1, side, hp.PATCH, side, hp.PATCH, hp.CHANNELS))
        order = (0, 1, 3, 5, 2, 4) if self.fault == "patch_channels_first" else (0, 1, 3, 2, 4, 5)
        x = tf.reshape(tf.transpose(x, order), (-1, hp.TOKENS, hp.PATCH**2 * hp.CHANNELS))
        return self.dense(x, "patch")

    def attention(self, x, i):
        if self.variant == "separate_qkv":
            q, k, v = (self.dense(x, f"b{i}.{letter}") for letter in "qkv")
        else:
            q, k, v = tf.split(self.dense(x, f"b{i}.qkv"), 3, axis=-1)
        width = hp.DIM // hp.HEADS
        q, k, v = (tf.reshape(z, (-1, hp.TOKENS, hp.HEADS, width)) for z in (q, k, v))
        scores = tf.einsum("bqhd,bkhd->bhqk", q, k) * width**-0.5
        mixed = tf.einsum("bhqk,bkhd->bqhd", tf.nn.softmax(scores), v)
        return self.dense(tf.reshape(mixed, (-1, hp.TOKENS, hp.DIM)), f"b{i}.o")

    def gelu(self, x):
        return 0.5 * x * (1.0 + tf.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x * x * x)))

    def block(self, x, c, i):
        chunks = tf.split(self.dense(c, f"b{i}.ada")[:, None], 6, axis=-1)
        if self.fault == "scale_shift_order":
            scale1, shift1, gate1, scale2, shift2, gate2 = chunks
        else:
            shift1, scale1, gate1, shift2, scale2, gate2 = chunks
        epsilon = 1e-3 if self.fault == "ln_eps" else 1e-6
        h = layer_norm(x, epsilon) * (1.0 + scale1) + shift1
        x += gate1 * self.attention(h, i)
        h = layer_norm(x, epsilon) * (1.0 + scale2) + shift2
        h = self.dense(self.gelu(self.dense(h, f"b{i}.m0")), f"b{i}.m2")
        return x + (h if self.fault == "no_gate" else gate2 * h)

    def __call__(self, images, t, y):
        x = self.patchify(images) + self.w["position"]
        c = tf.nn.silu(self.time_embedding(t) + tf.gather(self.w["label"], y))
        for i in range(hp.DEPTH):
            x = self.block(x, c, i)
        shift, scale = tf.split(self.dense(c, "end.ada")[:, None], 2, axis=-1)
        x = self.dense(layer_norm(x) * (1.0 + scale) + shift, "end")
        side = hp.SIZE // hp.PATCH
        x = tf.reshape(x, (-1, side, side, hp.PATCH, hp.PATCH, hp.CHANNELS))
        return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, hp.SIZE, hp.SIZE, hp.CHANNELS))


def build(fault=None, variant=None, dtype="float32"):
    return Dit(dtype, fault, variant)


def inputs(seed):
    x, t, y = hp.batch(seed)
    return x.transpose(0, 2, 3, 1), t, y

"""Keras on TensorFlow, as in its tutorials: a Model with `train_step`, `fit`, and a sampling loop of `predict`.

The network is that of the DDPM tutorial: blocks of GroupNormalization, swish and Conv2D with the time embedding added,
attention by einsum, strided convolutions to downsample, UpSampling2D and convolutions to upsample.
"""

from __future__ import annotations

import math
import resource
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from benchmarks.peers import BuiltContestant, Task, nearest_width

__all__ = ["build"]


class _Attention(layers.Layer):
    def __init__(self, units: int, groups: int) -> None:
        super().__init__()
        self.units = units
        self.norm = layers.GroupNormalization(groups)
        self.query, self.key, self.value, self.projection = (layers.Dense(units) for _ in range(4))

    def call(self, inputs: Any) -> Any:
        h, w = inputs.shape[1:3]
        x = self.norm(inputs)
        q, k, v = self.query(x), self.key(x), self.value(x)
        score = tf.einsum("bhwc,bHWc->bhwHW", q, k) * self.units**-0.5
        score = tf.reshape(tf.nn.softmax(tf.reshape(score, [-1, h, w, h * w])), [-1, h, w, h, w])
        return inputs + self.projection(tf.einsum("bhwHW,bHWc->bhwc", score, v))

    def build(self, shape: Any) -> None:
        for layer in (self.norm, self.query, self.key, self.value, self.projection):
            layer.build(shape)


class _Time(layers.Layer):
    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - 1)).astype(np.float32)

    def call(self, t: Any) -> Any:
        angles = tf.cast(t, tf.float32)[:, None] * self.frequencies[None]
        return tf.concat([tf.sin(angles), tf.cos(angles)], axis=-1)


def _network(task: Task, width: int) -> keras.Model:
    groups, widths = task.groups, [width * multiplier for multiplier in task.multipliers]

    def block(x: Any, units: int) -> Any:
        residual = x if x.shape[-1] == units else layers.Conv2D(units, 1)(x)
        added = layers.Dense(units)(keras.activations.swish(time))[:, None, None, :]
        x = layers.Conv2D(units, 3, padding="same")(keras.activations.swish(layers.GroupNormalization(groups)(x)))
        x = layers.Add()([x, added])
        x = layers.Conv2D(units, 3, padding="same")(keras.activations.swish(layers.GroupNormalization(groups)(x)))
        return layers.Add()([x, residual])

    def attend(x: Any, level: int) -> Any:
        return _Attention(x.shape[-1], groups)(x) if task.size >> level in task.attention else x

    image = keras.Input((task.size, task.size, task.channels))
    t = keras.Input((), dtype="int32")
    time = layers.Dense(4 * width)(layers.Dense(4 * width, activation="swish")(_Time(width)(t)))
    inputs = [image, t]
    if task.classes:
        label = keras.Input((), dtype="int32")
        inputs.append(label)
        time = layers.Add()([time, layers.Embedding(task.classes + 1, 4 * width)(label)])
    x = layers.Conv2D(width, 3, padding="same")(image)
    skips, deepest = [x], len(widths) - 1
    for level, units in enumerate(widths):
        for _ in range(task.blocks):
            x = attend(block(x, units), level)
            skips.append(x)
        if level != deepest:
            x = layers.Conv2D(units, 3, strides=2, padding="same")(x)
            skips.append(x)
    x = block(x, widths[-1])
    x = block(_Attention(widths[-1], groups)(x), widths[-1])
    for level, units in reversed(list(enumerate(widths))):
        for _ in range(task.blocks + 1):
            x = attend(block(layers.Concatenate()([x, skips.pop()]), units), level)
        if level:
            x = layers.Conv2D(units, 3, padding="same")(layers.UpSampling2D(2)(x))
    x = keras.activations.swish(layers.GroupNormalization(groups)(x))
    last = layers.Conv2D(task.channels, 3, padding="same", kernel_initializer="zeros", dtype="float32")
    return keras.Model(inputs, last(x))


class _Diffusion(keras.Model):
    """The model of the tutorial: the network, its moving average, and the schedule."""

    def __init__(self, task: Task, network: keras.Model, average: keras.Model) -> None:
        super().__init__()
        self.task, self.network, self.average = task, network, average
        self.betas = np.linspace(1e-4, 0.02, task.T)
        self.alphas_cumprod = np.cumprod(1 - self.betas)

    def train_step(self, data: Any) -> dict[str, Any]:
        images, labels = data
        t = tf.random.uniform([self.task.batch], 0, self.task.T, tf.int32)
        alpha = tf.gather(tf.constant(self.alphas_cumprod, tf.float32), t)[:, None, None, None]
        noise = tf.random.normal(tf.shape(images))
        with tf.GradientTape() as tape:
            noisy = tf.sqrt(alpha) * images + tf.sqrt(1 - alpha) * noise
            inputs = [noisy, t, labels] if self.task.classes else [noisy, t]
            loss = ops.mean(ops.square(noise - self.network(inputs, training=True)))
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        for weight, mean in zip(self.network.weights, self.average.weights, strict=True):
            mean.assign(0.999 * mean + 0.001 * weight)
        return {"loss": loss}


def build(task: Task) -> BuiltContestant:
    """Build the network and its workloads."""
    for gpu in tf.config.list_physical_devices("GPU"):  # otherwise TensorFlow takes all memory of the GPU
        tf.config.experimental.set_memory_growth(gpu, True)
    if task.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(task.threads)
        tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if task.bf16:
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    with tf.device("/GPU:0" if task.device == "cuda" else "/CPU:0"):
        width = nearest_width(lambda one: _network(task, one).count_params(), task.parameters, task.groups, task.groups)
        network, average = _network(task, width), _network(task, width)
        average.set_weights(network.get_weights())
        model = _Diffusion(task, network, average)
        model.compile(keras.optimizers.Adam(1e-4, global_clipnorm=1.0), jit_compile=task.compile)
        average.jit_compile = task.compile  # for `predict`
    shape = (task.batch, task.size, task.size, task.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(task.batch, dtype=np.int32) % max(task.classes, 1)

    def values(image: Any, label: Any) -> Any:
        return tf.cast(image, tf.float32) / 127.5 - 1.0, label

    data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().map(values, tf.data.AUTOTUNE)
    data = data.batch(task.batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    def train() -> int:
        model.fit(data, steps_per_epoch=task.steps, epochs=1, verbose=0)
        return task.steps * task.batch

    def draw(steps: int, eta: float) -> int:
        cumprod, times = model.alphas_cumprod, np.arange(task.T)[:: task.T // steps][:steps]
        x = np.random.default_rng(0).normal(size=(task.images, *shape[1:])).astype(np.float32)
        classes = np.arange(task.images, dtype=np.int32) % max(task.classes, 1)
        for k in reversed(range(steps)):
            now, before = cumprod[times[k]], cumprod[times[k - 1]] if k else 1.0
            t = np.full(task.images, times[k], np.int32)
            inputs = [x, t, classes] if task.classes else [x, t]
            eps = average.predict(inputs, batch_size=task.images, verbose=0)
            clean = np.clip((x - math.sqrt(1 - now) * eps) / math.sqrt(now), -1, 1)
            std = eta * math.sqrt((1 - before) / (1 - now) * (1 - now / before))
            x = math.sqrt(before) * clean + math.sqrt(max(1 - before - std**2, 0)) * eps
            if std:
                x = x + std * np.random.default_rng(k).normal(size=x.shape)
            x = x.astype(np.float32)
        np.clip(x * 127.5 + 127.5, 0, 255).astype(np.uint8)
        return task.images

    facts = {
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "parameters": network.count_params(),
    }
    work = {"train": train, "ddim": lambda: draw(task.ddim_steps, 0.0), "ddpm": lambda: draw(task.T, 1.0)}
    return BuiltContestant(facts, work, lambda: _peak_memory_mib(task.device))


def _peak_memory_mib(device: str) -> float:
    if device == "cuda":
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

"""Parts of a step or a sample alone, as fast as TensorFlow does them: what the whole cannot be faster than."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from backends.tf.network import Network, convolve
from backends.tf.trainer import Trainer, tensors
from diffusion_core.backend.interface import TrainBatch
from diffusion_core.networks.flops import Convolution

__all__ = ["convolutions", "evaluations", "matrices", "passes"]


def passes(trainer: Trainer, batch: TrainBatch) -> Callable[[], None]:
    """A function that passes a batch, which lies on the device, forward and backward, and waits."""
    given = tensors(batch, trainer.context)

    def run() -> None:
        _, _, gradients, _ = trainer.in_micro_batches(given, 1)
        tf.reshape(gradients[0], [-1])[0].numpy()

    return run


def evaluations(network: Network, images: NDArray, label: NDArray, count: int) -> Callable[[], None]:
    """A function that evaluates a network so many times on images, which lie on the device, and waits."""
    context = network.context
    x, label = context.images(images), context.tensor(label, tf.int32)
    with tf.device(context.device):
        c_noise, features = tf.zeros([len(x)], tf.float64), network.no_features(len(x))

    def run() -> None:
        for _ in range(count):
            output = network.call(x, c_noise, label, features, None)
        output[0, 0, 0, 0].numpy()

    return run


def convolutions(context: DeviceContext, shapes: Sequence[Convolution], batch: int) -> Callable[[], None]:
    """A function that does each convolution forward and backward once, for so many images, and waits for them."""
    prepared = []
    with tf.device(context.device):
        for shape in shapes:
            x = tf.cast(tf.random.normal([batch, shape.size, shape.size, shape.inputs]), context.compute)
            weight = tf.random.normal([shape.kernel, shape.kernel, shape.inputs, shape.outputs])
            prepared.append((x, tf.cast(weight, context.compute), shape))

    @context.function
    def all_of_them() -> tf.Tensor:
        done = []
        for x, weight, shape in prepared:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch((x, weight))
                y = convolve(x, weight, None, shape.stride, shape.padding)
            done += [tf.reduce_sum(one) for one in tape.gradient(y, (x, weight), tf.stop_gradient(y))]
        return tf.add_n(done)

    def run() -> None:
        all_of_them().numpy()

    return run


def matrices(context: DeviceContext, size: int) -> Callable[[], None]:
    """A function that multiplies two square matrices and waits for them."""
    with tf.device(context.device):
        a = tf.cast(tf.random.normal([size, size]), context.compute)

    def run() -> None:
        tf.linalg.matmul(a, a)[0, 0].numpy()

    return run

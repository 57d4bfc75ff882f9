"""Parts of a training step or of sampling alone, as fast as TensorFlow runs them: bounds for the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from backends.tf.loss import batch_tensors
from backends.tf.network import Network, convolve
from backends.tf.trainer import Trainer
from benchmarks.convolutions import Convolution
from diffusion_core.backend.interface import TrainBatch

__all__ = ["convolutions", "evaluations", "matrices", "passes"]


def passes(trainer: Trainer, batch: TrainBatch) -> Callable[[], None]:
    """Return a function that runs the forward and the backward pass of a batch on the device, and waits."""
    on_device = batch_tensors(batch, trainer.context)

    def run() -> None:
        _, _, gradients, _ = trainer.accumulate(on_device, 1)
        tf.reshape(gradients[0], [-1])[0].numpy()

    return run


def evaluations(network: Network, images: NDArray, label: NDArray, count: int) -> Callable[[], None]:
    """Return a function that evaluates a network `count` times on images on the device, and waits."""
    context = network.context
    x, label = context.images(images), context.tensor(label, tf.int32)
    with tf.device(context.device):
        c_noise, features = tf.zeros([len(x)], tf.float64), network.zero_features(len(x))

    def run() -> None:
        for _ in range(count):
            output = network.call(x, c_noise, label, features, None)
        output[0, 0, 0, 0].numpy()

    return run


def convolutions(context: DeviceContext, shapes: Sequence[Convolution], batch: int) -> Callable[[], None]:
    """Return a function that runs each convolution forward and backward for `batch` images, and waits."""
    prepared = []
    with tf.device(context.device):
        for shape in shapes:
            x = tf.random.stateless_normal([batch, shape.size, shape.size, shape.inputs], (0, 0))
            weight = tf.random.stateless_normal([shape.kernel, shape.kernel, shape.inputs, shape.outputs], (0, 0))
            prepared.append((tf.cast(x, context.compute), tf.cast(weight, context.compute), shape))

    @context.function
    def run_all() -> tf.Tensor:
        sums = []
        for x, weight, shape in prepared:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch((x, weight))
                y = convolve(x, weight, None, shape.stride, shape.padding)
            sums += [tf.reduce_sum(one) for one in tape.gradient(y, (x, weight), tf.stop_gradient(y))]
        return tf.add_n(sums)

    def run() -> None:
        run_all().numpy()

    return run


def matrices(context: DeviceContext, size: int) -> Callable[[], None]:
    """Return a function that multiplies two square matrices, and waits."""
    with tf.device(context.device):
        a = tf.cast(tf.random.stateless_normal([size, size], (0, 0)), context.compute)

    def run() -> None:
        tf.linalg.matmul(a, a)[0, 0].numpy()

    return run

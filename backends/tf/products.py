"""The products of a network alone, as fast as TensorFlow's own kernels do them: what no step can be faster than."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from backends.tf.device import Place
from backends.tf.network import convolve
from diffusion_core.unet.work import Convolution

__all__ = ["convolutions", "matrix_product"]


def convolutions(place: Place, shapes: Sequence[Convolution], batch: int) -> Callable[[], None]:
    """A function that does each convolution forward and backward once, for so many images, and waits for them."""
    prepared = []
    with tf.device(place.device):
        for shape in shapes:
            x = tf.cast(tf.random.normal([batch, shape.size, shape.size, shape.inputs]), place.compute)
            weight = tf.random.normal([shape.kernel, shape.kernel, shape.inputs, shape.outputs])
            prepared.append((x, tf.cast(weight, place.compute), shape))

    @place.function
    def all_of_them() -> tf.Tensor:
        done = []
        for x, weight, shape in prepared:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch((x, weight))
                y = convolve(x, weight, shape.stride, (shape.kernel // 2,) * 4)
            done += [tf.reduce_sum(one) for one in tape.gradient(y, (x, weight), tf.stop_gradient(y))]
        return tf.add_n(done)

    def run() -> None:
        all_of_them().numpy()

    return run


def matrix_product(place: Place, size: int) -> Callable[[], None]:
    """A function that multiplies two square matrices and waits for them."""
    with tf.device(place.device):
        a = tf.cast(tf.random.normal([size, size]), place.compute)

    def run() -> None:
        tf.linalg.matmul(a, a)[0, 0].numpy()

    return run

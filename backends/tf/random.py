"""The shared random stream as TensorFlow operations: bit for bit the words of
`diffusion_core.common.random`.

Words are stored in int64. The product of two words needs 64 unsigned bits. A signed product holds the same bits, so a
shift followed by a mask, which removes the sign, gives the upper word.
"""

from __future__ import annotations

from functools import partial

import tensorflow as tf

from diffusion_core.common.random import LOW, philox4x32

__all__ = ["random_words"]


def random_words(key: tf.Tensor, index: tf.Tensor, n: int, row: int) -> tf.Tensor:
    """Return random 32-bit words with shape (B, n); see `diffusion_core.common.random.random_words`."""
    return _random_words(key, index, n, tf.constant(row, tf.int64))


@partial(tf.function, autograph=False)
def _random_words(key: tf.Tensor, index: tf.Tensor, n: int, row: tf.Tensor) -> tf.Tensor:
    """Return the words from a graph of its own: of its 200 operations, each dropout of a network then traces one."""
    index = index[:, None]
    block = tf.range(-(-n // 4), dtype=tf.int64)[None, :]
    counter = (block, tf.fill(tf.shape(block), row), index & LOW, _high(index))
    words = philox4x32(counter, (key[0], key[1]), _high)
    return tf.reshape(tf.stack(words, axis=-1), [tf.shape(index)[0], -1])[:, :n]


def _high(product: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.right_shift(product, tf.constant(32, tf.int64)) & LOW

"""The shared random stream as TensorFlow operations: the words of `diffusion_core.common.random`, bit for bit.

Words are kept in int64. A product of two words needs 64 bits without a sign; the one with a sign holds the
same bits, so the upper word is what is left of a shift after its sign is masked away.
"""

from __future__ import annotations

import tensorflow as tf

from diffusion_core.common.random import LOW, philox4x32

__all__ = ["words"]


def words(key: tf.Tensor, index: tf.Tensor, n: int, row: int) -> tf.Tensor:
    """Random 32-bit words with shape (B, n); see `diffusion_core.common.random.words`."""
    index = index[:, None]
    block = tf.range(-(-n // 4), dtype=tf.int64)[None, :]
    counter = (block, tf.fill(tf.shape(block), tf.constant(row, tf.int64)), index & LOW, _high(index))
    made = philox4x32(counter, (key[0], key[1]), _high)
    return tf.reshape(tf.stack(made, axis=-1), [tf.shape(index)[0], -1])[:, :n]


def _high(product: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.right_shift(product, tf.constant(32, tf.int64)) & LOW

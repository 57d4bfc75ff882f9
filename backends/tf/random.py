"""The shared random stream as TensorFlow operations: the words of `diffusion_core.random`, bit for bit.

Words are kept in int64. A product of two words needs 64 bits without a sign; the one with a sign holds the
same bits, so the upper word is what is left of a shift after its sign is masked away.
"""

from __future__ import annotations

import tensorflow as tf

__all__ = ["words"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def words(key: tf.Tensor, index: tf.Tensor, n: int, row: int) -> tf.Tensor:
    """Random 32-bit words with shape (B, n); see `diffusion_core.random.words`."""
    index = index[:, None]
    c0 = tf.range(-(-n // 4), dtype=tf.int64)[None, :]
    c1 = tf.fill(tf.shape(c0), tf.constant(row, tf.int64))
    c2, c3 = index & _LOW, _high(index)
    k0, k1 = key[0], key[1]
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, p1 & _LOW, _high(p0) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return tf.reshape(tf.stack([c0, c1, c2, c3], axis=-1), [tf.shape(index)[0], -1])[:, :n]


def _high(product: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.right_shift(product, tf.constant(32, tf.int64)) & _LOW

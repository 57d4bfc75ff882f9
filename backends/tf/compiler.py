"""What XLA needs on this machine, and what its errors mean.

On a CPU XLA is complete in itself; on CUDA it calls ptxas and reads libdevice. The check compiles an exponential, which
needs both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import tensorflow as tf

from diffusion_core.common.text import first_line

__all__ = ["COMPILER", "compile_obstacle", "explain", "inlined_functions"]

COMPILER = "XLA"
# Words in the messages of errors that come from the compiler, not from the values of a computation.
_WORDS = ("xla", "compil", "libdevice", "ptxas", "jit")


@cache
def compile_obstacle(device: str) -> str | None:
    """Return why nothing can be compiled for a device, and what to install; None if it can."""
    try:
        with tf.device(device):
            tf.function(tf.exp, jit_compile=True, autograph=False)(tf.zeros([2]))
    except tf.errors.OpError as error:
        return (
            f"XLA does not work here ({first_line(error.message)}); install TensorFlow with its CUDA libraries "
            "(the extra tf-cuda)"
        )
    return None


def explain(error: Exception) -> str | None:
    """Return in a line why the compiler failed, or None if an exception is not the compiler's."""
    if not isinstance(error, tf.errors.OpError) or isinstance(error, tf.errors.ResourceExhaustedError):
        return None
    if not any(word in error.message.lower() for word in _WORDS):
        return None
    return first_line(error.message)


@contextmanager
def inlined_functions() -> Iterator[None]:
    """Trace a `tf.function` within a network as a part of its caller; alone it has no derivative along a direction."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)

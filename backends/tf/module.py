"""The table of TensorFlow modules by block kind, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import tensorflow as tf
from einops import rearrange
from numpy.typing import NDArray

from backends.tf.device import DeviceContext
from diffusion_core.networks.program import Node, Training
from diffusion_core.networks.registry import BlockRules, Parameter

__all__ = ["MODULES", "Module", "canonical_order", "convolve", "from_canonical", "to_canonical"]

# The axes that TensorFlow's kernels want, by the canonical axes of a parameter; other axes stay as they are.
_NATIVE_AXES = {"o i kh kw": "kh kw i o", "i o kh kw": "kh kw o i", "o i": "i o", "o h w": "h w o"}


def from_canonical(array: NDArray, axes: str) -> NDArray:
    """Return an array in the axes of TensorFlow's kernels."""
    return rearrange(array, f"{axes} -> {_NATIVE_AXES[axes]}") if axes in _NATIVE_AXES else array


def to_canonical(array: NDArray, axes: str) -> NDArray:
    """Return an array of TensorFlow in the canonical axes."""
    return rearrange(array, f"{_NATIVE_AXES[axes]} -> {axes}") if axes in _NATIVE_AXES else array


def canonical_order(parameter: Parameter) -> list[int]:
    """Return the order of the axes of a parameter's variable that makes them the canonical ones.

    The kernels of own networks end with inputs and outputs, as those of Keras; they become (o, i, ...).
    """
    axes, count = parameter.axes, len(parameter.shape)
    if not axes and count > 1:
        return [count - 1, count - 2, *range(count - 2)]
    names, native = axes.split(), _NATIVE_AXES.get(axes, axes).split()
    return [native.index(name) for name in names] if axes else list(range(count))


# One module class per block kind, which takes (node, parameters by name, context).
MODULES: BlockRules[type[Module]] = BlockRules("TensorFlow module", "backends/tf/network.py")


class Module(tf.Module):
    """A block with its parameters. Each subclass enters `MODULES` under its own name, the name of a block kind."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        MODULES.add(cls.__name__, cls)

    def __init__(self, node: Node, parameters: Mapping[str, NDArray], context: DeviceContext) -> None:
        super().__init__()
        self.node, self.block, self.context = node, node.block, context
        self.weight = self.bias = None
        for parameter in self.block.parameters():
            tensor = context.tensor(from_canonical(parameters[parameter.name], parameter.axes))
            with tf.device(context.device):
                setattr(self, parameter.name, tf.Variable(tensor, trainable=parameter.trained))

    def tensors(self) -> dict[str, tf.Variable]:
        """Return the tensors by the names of the block's parameters."""
        return {parameter.name: getattr(self, parameter.name) for parameter in self.block.parameters()}

    def mode(self, training: Training | None) -> AbstractContextManager[None]:
        """Return the context of a training or an evaluation pass; blocks of Duet need none."""
        return nullcontext()


def convolve(
    x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor | None, stride: int, padding: tuple[int, int, int, int]
) -> tf.Tensor:
    """Return a convolution with zeros on (top, bottom, left, right).

    On a CPU TensorFlow uses oneDNN, whose backward pass is twice as fast, only with the padding "SAME" or "VALID".
    """
    top, bottom, left, right = padding
    if (top, bottom, left, right) == (*_same(x.shape[1], weight, stride), *_same(x.shape[2], weight, stride)):
        y = tf.nn.conv2d(x, weight, stride, "SAME")
    else:
        x = tf.pad(x, [[0, 0], [top, bottom], [left, right], [0, 0]]) if any(padding) else x
        y = tf.nn.conv2d(x, weight, stride, "VALID")
    return y if bias is None else tf.nn.bias_add(y, tf.cast(bias, y.dtype))


def _same(size: int, weight: tf.Tensor, stride: int) -> tuple[int, int]:
    """Return the zeros (before, after) of TensorFlow's "SAME" padding."""
    total = max(0, (-(-size // stride) - 1) * stride + weight.shape[0] - size)
    return total // 2, total - total // 2

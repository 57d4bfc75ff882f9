"""Own networks from Python: how they are called."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.networks.own import OwnSpec
from duet.api.options import check_types
from experiments.runtime import own_networks
from experiments.runtime.own_networks import OwnNetwork

__all__ = ["CALL", "adapt", "check_has_labels", "read_labels", "split_call"]

# The keywords of `adapt`, which `sample` and `loss` take as well.
CALL = ("inputs", "layout", "output", "time", "classes", "null_label", "framework")


@check_types
def adapt(
    network: Any,
    *,
    inputs: str | None = None,
    layout: str | None = None,
    output: str | int | None = None,
    time: str | None = None,
    classes: int | None = None,
    null_label: int | None = None,
    framework: str | None = None,
    name: str | None = None,
) -> OwnNetwork:
    """Say how an own network is called, where that is not ``network(x, t)`` or ``network(x, t, label)``.

    `duet.sample`, `duet.loss` and `duet.train` take the result in place of the network. What was traced or compiled is
    kept with it.

    Args:
        network: an `nn.Module`, a `keras.Model`, a `tf.Module`, a `tf.function`, a function of NumPy arrays, or a
            function of tensors with its `framework`; or the path of an ONNX file, a SavedModel or a ``.keras`` file; or
            a reference to code, as in ``"my_package.my_file:build"`` or ``"path/to/my_file.py:build"``, which names the
            network itself, or a function or class without required arguments that makes it.
        inputs: the arguments of a call: ``x`` the noisy samples, ``t`` the noise level as the process encodes it,
            ``label`` the class, ``one_hot`` the class as a vector, or the name of a condition; each by position or by
            keyword, as in ``"x, t, class_labels=label"``; ``"[x, t]"`` for one list. None reads it from the names of
            the network's parameters.
        layout: ``"channels_first"`` or ``"channels_last"``; None is that of the framework.
        output: which part of the result is the output: an attribute, a key or a position. None takes the result, its
            first part if it has several, or its attribute ``sample``.
        time: whether t is a ``"float"``, an ``"int"``, or a ``"column"`` of floats with shape (B, 1). None is what an
            ONNX file says, and otherwise ``"float"``.
        classes: number of classes K; labels are 0 to K - 1.
        null_label: the label that stands for "no class" in guidance: K, which is None, or 0 for a network whose classes
            are 1 to K; class k of data is then label k + 1. ``one_hot`` is zeros for "no class".
        framework: the backend of a function of tensors, such as ``"torch"``.
        name: what messages and files call it; None is the name of its class.

    Raises:
        DuetError: for arguments that do not exist, or an object that cannot be called.

    Example:
        A network that takes NumPy arrays under names of its own:

        >>> import numpy as np
        >>> def halved(time, images):
        ...     return images / 2
        >>> adapt(halved, inputs="t, x", name="halved")
        OwnNetwork(halved, numpy, inputs t, x, channels_last)
    """
    return own_networks.adapt(
        network, inputs=inputs, layout=layout, output=output, time=time, classes=classes, null_label=null_label,
        framework=framework, name=name,
    )  # fmt: skip


def split_call(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the keywords of `adapt` from options and return them."""
    return {name: options.pop(name) for name in CALL if name in options}


def check_has_labels(spec: OwnSpec, labels: NDArray[np.int32] | None) -> None:
    """Raise a `DuetError` if a network takes a class and no labels were given: class 0 for all would be a guess."""
    if labels is None and spec.takes_label:
        raise DuetError(
            f"labels: the network takes a class in its call ({spec.inputs}); give one for each sample, such as "
            f"labels=[0, 1, 2]; a vector for each is a condition, as in conditions={{'NAME': vectors}}"
        )


def read_labels(own: OwnNetwork, labels: ArrayLike | None, count: int) -> NDArray[np.int32] | None:
    """Return one class for each of `count` samples as int32; None without classes.

    Raises:
        DuetError: for labels of another type or shape, or that the network does not know.
    """
    if labels is None:
        return None
    numbers = own.backend.own.to_array(labels)
    if numbers.ndim == 0:
        numbers = np.full(count, numbers)
    if numbers.dtype.kind not in "iu":
        raise DuetError(
            f"labels: {numbers.dtype} was given; they must be whole numbers, such as [0, 1, 2]; a vector per sample "
            f"is a condition, as in conditions={{'label': vectors}}"
        )
    if numbers.shape != (count,):
        raise DuetError(
            f"labels: an array with shape {numbers.shape} was given; it must be one number, or one for each of the "
            f"{count} samples"
        )
    known = own.known_labels
    wrong = numbers[(numbers < 0) | (numbers >= known)] if known is not None else numbers[numbers < 0]
    if wrong.size:
        valid = "at least 0" if known is None else f"0 to {known - 1}"
        raise DuetError(f"labels: {wrong[0]} was given; the network's labels are {valid}")
    return numbers.astype(np.int32)

"""A forward pass of a network in NumPy float64, and the gradient of a classifier by differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.backend.reference.table import BLOCK_FUNCTIONS, Array, log_softmax
from diffusion_core.networks.program import Program, Training
from diffusion_core.networks.registry import Block, kind_of
from diffusion_core.networks.weights import check_weights

__all__ = [
    "block_function",
    "forward",
    "grad_log_prob",
]


def block_function(name: str, block: Block, weights: Mapping[str, NDArray]) -> Callable[..., Array]:
    """Return the function of one block of a program with its weights, found by full name.

    Raises:
        DuetError: if its kind has no reference function.
    """
    own = {p.name: np.asarray(weights[f"{name}.{p.name}"], np.float64) for p in block.parameters()}
    own |= {"name": name} if block.has_training_mode else {}
    function = BLOCK_FUNCTIONS[kind_of(block)]

    # The weights are keyword arguments, so they may come after any number of inputs.
    return lambda *inputs, **training: function(block, *inputs, **own, **training)


def forward(
    program: Program,
    weights: Mapping[str, NDArray],
    x: NDArray,
    c_noise: ArrayLike,
    label: ArrayLike,
    features: ArrayLike | None = None,
    estimate: ArrayLike | None = None,
    second_time: ArrayLike | None = None,
    training: Training | None = None,
) -> Array:
    """Return the raw output F of a network.

    Args:
        program: the network.
        weights: by full name.
        x: images multiplied by c_in, with shape (B, H, W, C).
        c_noise: the network's noise-level input, with shape (B,).
        label: one class per image, with shape (B,).
        features: with shape (B, program.features); None means zeros.
        estimate: an estimate of x_0 for a self-conditioned network, with the shape of x; None means zeros.
        second_time: for a network of two times, with shape (B,); None means `Program.default_second_time`.
        training: None in evaluation mode; in training mode the running statistics are written to it.

    Example:
        >>> from diffusion_core.networks import Node, Program
        >>> from diffusion_core.networks.blocks import ReLU
        >>> program = Program((Node("act", ReLU(), ("x",)),))
        >>> forward(program, {}, np.array([-1.0, 2.0]).reshape(1, 1, 2, 1), [0.0], [0]).ravel()
        array([0., 2.])
    """
    check_weights(program, weights)
    functions = {node.name: block_function(node.name, node.block, weights) for node in program.nodes}
    features = np.zeros((len(x), program.features)) if features is None else np.asarray(features, np.float64)
    inputs = {
        "x": np.asarray(x, np.float64),
        "c_noise": np.asarray(c_noise, np.float64),
        "label": np.asarray(label),
        "features": features,
        "estimate": np.zeros(np.shape(x)) if estimate is None else np.asarray(estimate, np.float64),
        "second_time": np.full(len(x), program.default_second_time if second_time is None else second_time, np.float64),
    }
    return program.run(functions, inputs, training)


def grad_log_prob(
    program: Program, weights: Mapping[str, NDArray], x: NDArray, c_noise: NDArray, label: NDArray
) -> Array:
    """Return d log p(label | x) / dx of a classifier, with shape (B, H, W, C), by fourth-order differences."""
    h, gradient = 1e-3, np.zeros(x.shape)
    label, shape = np.asarray(label), x.shape[1:]
    pixels = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    for k, (image, noise_level, target) in enumerate(zip(np.asarray(x, np.float64), c_noise, label, strict=True)):
        total = np.zeros(len(pixels))
        for steps, weight in ((1, 8.0), (2, -1.0)):
            for side in (1, -1):
                shifted = image + side * steps * h * pixels
                levels, no_class = np.full(len(shifted), noise_level), np.zeros(len(shifted), np.int32)
                logits = forward(program, weights, shifted, levels, no_class)
                total += side * weight * log_softmax(logits)[:, target]
        gradient[k] = (total / (12 * h)).reshape(shape)
    return gradient

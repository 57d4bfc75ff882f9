"""The batch of a training step: every array that the step reads, and the loss that they define."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CROSS_ENTROPY",
    "DISTANCES",
    "MIN_PROBABILITY",
    "PSEUDO_HUBER_C",
    "SELF_CONDITIONING",
    "TrainBatch",
    "VARIATIONAL",
    "noised_and_target",
]


DISTANCES = ("mse", "l1", "huber", "pseudo_huber")
# The loss of a classifier, between its logits and the class.
CROSS_ENTROPY = "cross_entropy"
# The c of sqrt(r^2 + c^2) - c, in the units of the target, in which the noise has standard deviation 1.
PSEUDO_HUBER_C = 0.03
# The columns of `TrainBatch.variational` and of `TrainBatch.self_conditioning`.
VARIATIONAL = ("offset", "scale", "error", "half_bin", "lowest", "highest", "mean_gradient", "weight")
SELF_CONDITIONING = ("c_skip", "c_out", "keep", "lowest", "highest")
# Lower bound of the probability of a byte.
MIN_PROBABILITY = 1e-12


@dataclass(frozen=True, eq=False)
class TrainBatch:
    r"""All inputs of one training step; the step uses no other input.

    With ``x_t = alpha images + sigma noise``, ``target = target_x0 images + target_eps noise`` and the network's
    output ``F(c_in x_t, c_noise, label, features)``, restricted to the channels of the images::

        r    = F - target
        loss = mean_b importance_b (weight_b mean_pixels distance(r) [+ weight'_b mean_pixels bound])

    The bound needs variational columns. F2 is the second half of the output channels, or 0 without it. r~ equals r in
    value, but its gradient is multiplied by mean_gradient, weight' is the variational column weight, and Phi is the
    normal distribution function, or with a ninth column ``(1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))/2``::

        u     = offset + scale F2,    e = error r~
        bound = (u + exp(-u) - 1 + exp(-u) e^2) / 2                                          where half_bin is 0
        bound = -log(Phi((half_bin - e) exp(-u/2)) - Phi((-half_bin - e) exp(-u/2)))         elsewhere

    The first Phi is 1 if images > highest, the second is 0 if images < lowest, and their difference is at least
    `MIN_PROBABILITY`. A program with uncertainty has a last channel, whose mean over an image is s; it replaces the
    first term of the loss of an image by ``exp(-s) weight mean_pixels distance(r) + s``.

    A batch with self-conditioning columns takes two passes, the first without an estimate. The first pass has no
    gradient and does not update running statistics. The second pass reads::

        estimate = keep clip(c_skip x_t + c_out F, lowest, highest)

    Args:
        images: x_0 in the range of the data, with shape (B, H, W, C).
        noise: eps, with the same shape.
        label: int32 with shape (B,); the null label if the class is dropped.
        alpha: with shape (B,), like every column.
        sigma: standard deviation of the noise in x_t.
        c_in: factor of x_t at the input of the network.
        c_noise: the encoded noise level; float64 in every precision.
        target_x0: weight of x_0 in the target.
        target_eps: weight of eps in the target.
        weight: weight of the distance at this noise level.
        importance: importance weight of the whole loss of an image; 1 if noise levels are not drawn by importance.
        features: numbers in addition to the class, with shape (B, program.features).
        positions: each image's position in the run, its counter in the dropout stream, with shape (B,).
        dropout_key: the two words of the dropout stream.
        variational: the columns `VARIATIONAL`, with shape (B, 8), or (B, 9), see above; None for a loss without bound.
        self_conditioning: the columns `SELF_CONDITIONING`, with shape (B, 5); None without self-conditioning.
        columns: the columns of a target that needs the network, with shape (B, K); see `target`. Then `weight` weights
            its distance, and the process columns describe the level of the prediction. None for a regression.
        times: its columns of times, float64 with shape (B, L).
    """

    images: NDArray
    noise: NDArray
    label: NDArray[np.int32]
    alpha: NDArray
    sigma: NDArray
    c_in: NDArray
    c_noise: NDArray[np.float64]
    target_x0: NDArray
    target_eps: NDArray
    weight: NDArray
    importance: NDArray
    features: NDArray
    positions: NDArray[np.int64]
    dropout_key: NDArray[np.int64]
    variational: NDArray | None = None
    self_conditioning: NDArray | None = None
    columns: NDArray | None = None
    times: NDArray[np.float64] | None = None

    @property
    def size(self) -> int:
        """The batch size B."""
        return len(self.label)

    @property
    def arrays(self) -> dict[str, NDArray]:
        """The fields by name, except those that are None."""
        return {name: array for name, array in vars(self).items() if array is not None}

    def rows(self, rows: slice) -> TrainBatch:
        """Return a part of the batch."""
        return replace(self, **{name: array[rows] for name, array in self.arrays.items() if name != "dropout_key"})


def noised_and_target(b: Any) -> tuple[Any, Any]:
    """Return x_t and the target of a batch whose fields are arrays of any framework, with images on four axes."""
    alpha, sigma, target_x0, target_eps = (
        column[:, None, None, None] for column in (b.alpha, b.sigma, b.target_x0, b.target_eps)
    )
    return alpha * b.images + sigma * b.noise, target_x0 * b.images + target_eps * b.noise

r"""The coupling of noise and images within a batch: which noise belongs to which image.

Independent noise takes an image along a path x_t = alpha x_0 + sigma eps whose direction says little about the others.
A coupling re-orders the noise of a batch, so that paths are shorter and cross less. With the cost of n images x_j and n
noises eps_i,

    C_ij = |x_j - eps_i|^2,       plan P_ij >= 0 with rows and columns that sum to 1/n

    independent          eps_j for x_j
    optimal_transport    P minimises sum_ij P_ij C_ij; with equal weights it is a permutation divided by n
    sinkhorn             P minimises sum_ij P_ij C_ij + reg P_ij log P_ij, by Sinkhorn's iteration in logarithms

draw says how pairs follow from the plan: ``assignment`` gives each image the one noise of the permutation, so that the
batch keeps its images and its noises; ``replacement`` draws n pairs (i, j) from P with replacement, as torchcfm does,
so that an image may occur twice and another not at all. A factor of the noise would change no permutation, since it
only multiplies the part of the cost that depends on it, so one coupling serves every schedule.

Noise remains normal over all images. It does not remain normal given the class, as a class prefers the noise that is
near to it; sampling one class from any noise is then biased. `per_class` couples the images of each class with their
own noises only, which keeps it normal given the class too.

A coupling is a function of the images and the noise of a whole batch, and of numbers of its positions in
"train/coupling": the same in both frameworks, after a restart, for any number of processes and of micro-batches. It
does depend on the size of the batch.

References:
    Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (Tong et al., 2023), with
    its code (torchcfm, optimal_transport.py), https://arxiv.org/abs/2302.00482
    Multisample Flow Matching: Straightening Flows with Minibatch Couplings (Pooladian et al., 2023),
    https://arxiv.org/abs/2304.14772
    Sinkhorn Distances: Lightspeed Computation of Optimal Transport (Cuturi, 2013), https://arxiv.org/abs/1306.0895
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.registry import build

__all__ = [
    "COUPLINGS",
    "Coupling",
    "draw_pairs",
    "exact_plan",
    "independent",
    "make_coupling",
    "optimal_transport",
    "sinkhorn",
    "sinkhorn_plan",
    "transport_cost",
]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

DRAWS = ("assignment", "replacement")


@dataclass(frozen=True)
class Coupling:
    """How the noise of a batch is paired with its images.

    Args:
        plan: returns the plan of a cost, both with shape (n, n), noises by rows; None for independent noise.
        replacement: whether pairs are drawn from the plan with replacement; otherwise it is a permutation.
        per_class: whether only images of one class exchange their noise.
    """

    plan: Callable[[Array], Array] | None = None
    replacement: bool = False
    per_class: bool = False

    @property
    def is_independent(self) -> bool:
        """Whether each image keeps its own noise."""
        return self.plan is None

    def pairs(
        self, images: NDArray, noise: NDArray, labels: ArrayLike, u: Callable[[], Array]
    ) -> tuple[Indices, Indices]:
        """Return the indices (i, j) of the pairs: row k of the batch gets the noise i[k] and the image j[k].

        Args:
            images: of the whole batch, with shape (B, ...).
            noise: with the same shape.
            labels: the classes, with shape (B,).
            u: returns a uniform number in (0, 1) for each row, with shape (B,); called only for draws with replacement.
        """
        rows = np.arange(len(images))
        if self.plan is None:
            return rows, rows
        i, j = rows.copy(), rows.copy()
        numbers = u() if self.replacement else None
        labels = np.asarray(labels)
        for group in [rows[labels == label] for label in np.unique(labels)] if self.per_class else [rows]:
            plan = self.plan(transport_cost(noise[group], images[group]))
            if numbers is None:
                i[group] = group[plan.argmax(axis=0)]
            else:
                drawn = draw_pairs(plan, numbers[group])
                i[group], j[group] = group[drawn[0]], group[drawn[1]]
        return i, j


def transport_cost(noise: NDArray, images: NDArray) -> Array:
    """Return the squared distances of noises and images with shape (n, n), noises by rows.

    Images that are equal have equal costs bit by bit, so that the plan does not depend on how sums are rounded.
    """
    noise, flat = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (noise, images))
    squares = np.square(noise).sum(axis=1)[:, None] + np.square(flat).sum(axis=1)
    cost = np.maximum(squares - 2.0 * noise @ flat.T, 0.0)
    first: dict[bytes, int] = {}
    return cost[:, [first.setdefault(row.tobytes(), k) for k, row in enumerate(flat)]]


def exact_plan(cost: ArrayLike) -> Array:
    """Return the plan of least cost, with shape (n, n): a permutation, 1/n at each of its pairs.

    Example:
        >>> exact_plan([[4.0, 1.0], [2.0, 3.0]]).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and needed only here

    cost = np.asarray(cost, np.float64)
    plan = np.zeros_like(cost)
    plan[linear_sum_assignment(cost)] = 1.0 / len(cost)
    return plan


def sinkhorn_plan(cost: ArrayLike, reg: float = 0.05, iterations: int = 1000, tolerance: float = 1e-9) -> Array:
    """Return the plan with an entropy, by Sinkhorn's iteration; its rows sum to 1/n.

    It stops after an iteration 0, 10, 20 ... whose columns sum to 1/n up to `tolerance`, in the Euclidean norm, as the
    code of torchcfm does. The iteration runs in logarithms: where exp(-C/reg) underflows, as it does for images, that
    code falls back to independent pairs, and this one does not.

    Args:
        cost: with shape (n, n).
        reg: weight of the entropy.
        iterations: the largest number of iterations.
        tolerance: of the sums of columns.

    Example:
        >>> sinkhorn_plan([[0.0, 1.0], [1.0, 0.0]], reg=0.5).round(4).tolist()
        [[0.4404, 0.0596], [0.0596, 0.4404]]
    """
    log_kernel = -np.asarray(cost, np.float64) / reg
    n = len(log_kernel)
    log_share = -math.log(n)
    log_u = np.full(n, log_share)
    for k in range(iterations):
        log_v = log_share - _log_sum_exp(log_kernel + log_u[:, None], axis=0)
        log_u = log_share - _log_sum_exp(log_kernel + log_v, axis=1)
        if k % 10 == 0:
            columns = np.exp(_log_sum_exp(log_kernel + log_u[:, None], axis=0) + log_v)
            if np.linalg.norm(columns - 1.0 / n) < tolerance:
                break
    return np.exp(log_u[:, None] + log_kernel + log_v)


def _log_sum_exp(values: Array, axis: int) -> Array:
    most = values.max(axis=axis, keepdims=True)
    return np.log(np.exp(values - most).sum(axis=axis)) + np.squeeze(most, axis)


def draw_pairs(plan: ArrayLike, u: ArrayLike) -> tuple[Indices, Indices]:
    """Return the pairs (i, j) that numbers u in [0, 1) select from a plan, row by row, each with the shape of u.

    Example:
        >>> [index.tolist() for index in draw_pairs([[0.0, 0.5], [0.5, 0.0]], [0.2, 0.7, 0.9])]
        [[0, 1, 1], [1, 0, 0]]
    """
    plan = np.asarray(plan, np.float64)
    share = plan.ravel() / plan.sum()
    cumulative = np.cumsum(share)
    chosen = np.searchsorted(cumulative / cumulative[-1], u, side="right")
    return tuple(index.astype(np.int64) for index in np.divmod(chosen, plan.shape[1]))


def independent() -> Coupling:
    """Return independent noise: each image has its own."""
    return Coupling()


def optimal_transport(draw: str = "assignment", per_class: bool = False) -> Coupling:
    """Return the coupling of least squared distance within a batch (Tong et al.; Pooladian et al.).

    Args:
        draw: ``"assignment"``, each image with the noise of the optimal permutation; or ``"replacement"``, pairs drawn
            from it with replacement, as torchcfm does.
        per_class: whether only images of one class exchange their noise, for networks with classes.

    Raises:
        DuetError: for another draw.
    """
    check_choice("process.coupling.draw", draw, DRAWS)
    return Coupling(exact_plan, draw == "replacement", per_class)


def sinkhorn(
    reg: float = 0.05, normalise_cost: bool = False, iterations: int = 1000, per_class: bool = False
) -> Coupling:
    """Return pairs drawn with replacement from the plan with an entropy (Tong et al.; Cuturi).

    Args:
        reg: weight of the entropy: small is near to optimal_transport, large to independent pairs. Costs are squared
            distances, some hundreds to thousands for images.
        normalise_cost: whether costs are divided by the largest of the batch first, so that reg is a fraction of it.
        iterations: the largest number of Sinkhorn's iterations.
        per_class: whether only images of one class exchange their noise, for networks with classes.

    Raises:
        DuetError: for a reg that is not positive, or fewer than one iteration.
    """
    if not 0 < reg < math.inf:
        raise DuetError(f"process.coupling.reg: {reg} was given; it must be a positive number")
    if iterations < 1:
        raise DuetError(f"process.coupling.iterations: {iterations} was given; it must be at least 1")

    def plan(cost: Array) -> Array:
        most = cost.max() if normalise_cost else 1.0
        return sinkhorn_plan(cost / (most or 1.0), reg, iterations)

    return Coupling(plan, True, per_class)


COUPLINGS: Mapping[str, Callable[..., Coupling]] = {
    "independent": independent,
    "optimal_transport": optimal_transport,
    "sinkhorn": sinkhorn,
}


def make_coupling(name: str = "independent", **options: object) -> Coupling:
    """Return a coupling by name.

    Args:
        name: one of `COUPLINGS`.
        options: of the coupling.

    Raises:
        DuetError: for an unknown name or option, or a value that is out of range.

    Example:
        >>> coupling = make_coupling("optimal_transport")
        >>> images, noise = np.array([[0.0], [1.0], [2.0]]), np.array([[1.9], [0.1], [0.8]])
        >>> i, j = coupling.pairs(images, noise, [0, 0, 0], u=None)
        >>> noise[i].ravel().tolist(), j.tolist()
        ([0.1, 0.8, 1.9], [0, 1, 2])
    """
    return build("process.coupling", COUPLINGS, name, options)

r"""Adam with its conventions by name, one formula for every framework; and the learning rate.

With the clipped gradient g and the number k = 1, 2, ... of the update::

    p  <- p (1 - lr weight_decay)                         decay: decoupled, for parameters that decay
    g  <- g + weight_decay p                              decay: l2, instead
    m  <- beta1 m + (1 - beta1) g
    v  <- beta2 v + (1 - beta2) g^2
    p  <- p - lr/(1 - beta1^k) m / ( sqrt(v)/sqrt(1 - beta2^k) + eps )                  epsilon: torch
    p  <- p - lr sqrt(1 - beta2^k)/(1 - beta1^k) m / ( sqrt(v) + eps )                  epsilon: keras

PyTorch and optax add eps to the corrected root, Keras to the uncorrected one ("epsilon hat" of the paper), so no
constant eps makes the two equal. AMSGrad has another v in the last line: the largest v so far (amsgrad: torch, which is
also that of Keras), or the largest corrected v/(1 - beta2^k) so far (amsgrad: optax).

The two bias corrections are float64 numbers computed on the host.

The learning rate is a function of images seen, including the batch of the step itself, so the first step of a warm-up
has a rate above zero; only the rate of EDM2 leaves that batch out.

References:
    Adam: A Method for Stochastic Optimization (Kingma & Ba, 2014), https://arxiv.org/abs/1412.6980
    Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2017), https://arxiv.org/abs/1711.05101
    On the Convergence of Adam and Beyond (Reddi et al., 2018), https://arxiv.org/abs/1904.09237 (AMSGrad)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.optim.ops import ArrayOps
from diffusion_core.optim.optimiser import (
    Arrays,
    Optimiser,
    Role,
    Slot,
    check_common,
    clip_factor,
    correction,
    global_norm,
    optimiser_update,
)

__all__ = ["Adam", "LearningRate", "adam_update", "clip_factor", "global_norm"]


@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam (weight_decay = 0) and AdamW (Kingma & Ba, 2014; Loshchilov & Hutter, 2017), and AMSGrad.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.
        epsilon: what eps is added to: ``"torch"``, the bias-corrected root, or ``"keras"``, the uncorrected one.
        decay: ``"decoupled"`` weight decay, or ``"l2"``, which is added to the gradient.
        amsgrad: ``"none"``, ``"torch"`` (the largest second moment) or ``"optax"`` (the largest corrected one).

    Raises:
        DuetError: if a value is out of range.

    Example:
        >>> correction1, correction2 = Adam(beta1=0.9, beta2=0.999).bias_corrections(1)
        >>> round(correction1, 12), round(correction2**2, 12)
        (0.1, 0.001)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    epsilon: str = "torch"
    decay: str = "decoupled"
    amsgrad: str = "none"

    def __post_init__(self) -> None:
        check_common({"beta1": self.beta1, "beta2": self.beta2}, self.eps, self.weight_decay, self.clip)
        check_choice("optimiser.epsilon", self.epsilon, ("torch", "keras"))
        check_choice("optimiser.decay", self.decay, ("decoupled", "l2"))
        check_choice("optimiser.amsgrad", self.amsgrad, ("none", "torch", "optax"))
        if self.amsgrad == "optax" and self.epsilon == "keras":
            raise DuetError("optimiser.epsilon: keras was given with amsgrad optax, which needs epsilon torch")

    @property
    def is_adamw(self) -> bool:
        """Whether it is the AdamW of PyTorch, for which frameworks have fast kernels."""
        return (self.epsilon, self.decay, self.amsgrad) == ("torch", "decoupled", "none")

    def bias_corrections(self, update: int) -> tuple[float, float]:
        """Return (1 - beta1^k, sqrt(1 - beta2^k)) for update k = 1, 2, ..."""
        return correction(self.beta1, update), math.sqrt(correction(self.beta2, update))

    def slots(self, role: Role) -> dict[str, Slot]:
        """See `Optimiser.slots`."""
        names = ["moment1", "moment2"] + (["largest_moment2"] if self.amsgrad != "none" else [])
        return {name: Slot(role.shape) for name in names}

    def scalars(self, update: int, lr: float) -> dict[str, float]:
        """See `Optimiser.scalars`."""
        correction1, correction2 = self.bias_corrections(update)
        if self.epsilon == "keras":
            correction1, correction2 = correction1 / correction2, 1.0
        return {"shrink": 1.0 - lr * self.weight_decay, "rate": lr / correction1, "correction2": correction2}

    def update(
        self, ops: ArrayOps, role: Role, p: Any, g: Any, slots: Mapping[str, Any], s: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """See `Optimiser.update`."""
        p, g = decayed(self, role, p, g, s)
        m = self.beta1 * slots["moment1"] + (1.0 - self.beta1) * g
        v = self.beta2 * slots["moment2"] + (1.0 - self.beta2) * ops.square(g)
        new = {"moment1": m, "moment2": v}
        root = ops.sqrt(v) / s["correction2"]
        if self.amsgrad == "torch":
            new["largest_moment2"] = ops.maximum(slots["largest_moment2"], v)
            root = ops.sqrt(new["largest_moment2"]) / s["correction2"]
        elif self.amsgrad == "optax":
            new["largest_moment2"] = ops.maximum(slots["largest_moment2"], v / (s["correction2"] * s["correction2"]))
            root = ops.sqrt(new["largest_moment2"])
        return p - s["rate"] * m / (root + self.eps), new


def decayed(optimiser: Any, role: Role, p: Any, g: Any, s: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the parameter and its gradient with weight decay, decoupled or added to the gradient (l2).

    `optimiser` has `weight_decay` and `decay`; its scalars have shrink = 1 - lr weight_decay.
    """
    if not (optimiser.weight_decay and role.decays):
        return p, g
    return (p * s["shrink"], g) if optimiser.decay == "decoupled" else (p, g + optimiser.weight_decay * p)


def adam_update(
    adam: Adam,
    weights: Arrays,
    moment1: Arrays,
    moment2: Arrays,
    gradients: Arrays,
    update: int,
    lr: float,
    decays: frozenset[str] = frozenset(),
) -> tuple[Arrays, Arrays, Arrays]:
    """Return (weights, moment1, moment2) after one update of Adam; see `optimiser_update`.

    Args:
        adam: the options.
        weights: parameters by name, with any shape.
        moment1: first moments, like the weights.
        moment2: second moments, like the weights.
        gradients: of the loss, like the weights, before clipping.
        update: k = 1, 2, ...
        lr: learning rate of this update.
        decays: names of the parameters that weight decay applies to.
    """
    roles = {name: Role(name, np.shape(g), decays=name in decays) for name, g in gradients.items()}
    slots = {"moment1": moment1, "moment2": moment2}
    weights, slots = optimiser_update(adam, roles, weights, slots, gradients, update, lr)
    return weights, slots["moment1"], slots["moment2"]


DECAYS = ("constant", "linear", "cosine", "inverse_sqrt", "steps", "edm2")


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a function of images seen.

    Args:
        peak: the rate at the end of the warm-up.
        warmup_images: length of the linear warm-up.
        decay: ``"constant"``, ``"linear"``, ``"cosine"`` (both to `floor` at `total_images`),
            ``"inverse_sqrt"`` (``peak sqrt(start/images)`` after ``start = max(warmup_images, decay_start_images)``),
            ``"steps"`` (multiplied by `factor` every `every_images` after the warm-up, but not below `floor`), or
            ``"edm2"`` (``peak min(n/warmup_images, 1) / sqrt(max(n/decay_start_images, 1))`` with the images n seen
            *before* the step, as in the code of EDM2: with a warm-up the first step has the rate 0; without
            `decay_start_images` there is no decay).
        total_images: images seen at the end of linear and cosine decay; None is the length of the run, see `for_run`.
        floor: the lowest rate of linear, cosine and stepwise decay.
        decay_start_images: images seen at the start of inverse-square-root decay; in EDM2 this is written as
            `ref_batches` times the batch.
        factor: of each step of stepwise decay.
        every_images: images between two steps of stepwise decay.

    Raises:
        DuetError: if a value is out of range; the message names the key, as in ``lr.decay``.

    Example:
        >>> rate = LearningRate(peak=1e-3, warmup_images=100, decay="cosine", total_images=1100)
        >>> [round(rate(n), 9) for n in (50, 100, 600, 1100)]
        [0.0005, 0.001, 0.0005, 0.0]
    """

    peak: float
    warmup_images: int = 0
    decay: str = "constant"
    total_images: int | None = None
    floor: float = 0.0
    decay_start_images: int = 0
    factor: float = 1.0
    every_images: int = 0

    def __post_init__(self) -> None:
        check_choice("lr.decay", self.decay, DECAYS)
        if not (0 < self.peak < math.inf and self.warmup_images >= 0 and 0 <= self.floor <= self.peak):
            raise DuetError(
                f"lr: peak {self.peak} must be positive, warmup_images {self.warmup_images} at least 0, "
                f"and floor {self.floor} between 0 and the peak"
            )
        if self.decay_start_images < 0:
            raise DuetError(f"lr.decay_start_images: {self.decay_start_images} was given; it must be at least 0")
        if self.total_images == 0:  # earlier versions wrote 0 where no length was given
            object.__setattr__(self, "total_images", None)
        if self.is_finite and self.total_images is not None and self.total_images <= self.warmup_images:
            raise DuetError(
                f"lr: {self.decay} decay ends at total_images {self.total_images}, which must be more than "
                f"warmup_images {self.warmup_images}; set lr.total_images=null for the length of the run, or "
                f"lr.warmup_images below it, such as {max(self.total_images, 0) // 10}"
            )
        if self.decay == "steps" and not (0 < self.factor < 1 and self.every_images >= 1):
            raise DuetError(
                f"lr: steps decay has factor {self.factor} every {self.every_images} images; "
                f"factor must be between 0 and 1 and every_images at least 1"
            )

    @property
    def is_finite(self) -> bool:
        """Whether the schedule has an end, as linear and cosine decay have."""
        return self.decay in ("linear", "cosine")

    def for_run(self, images: int) -> LearningRate:
        """Return the schedule for a run of this length, which is where it ends unless `total_images` says otherwise.

        Raises:
            DuetError: if the warm-up leaves no image for the decay.

        Example:
            >>> LearningRate(1e-3, decay="cosine").for_run(1000).total_images
            1000
        """
        if not self.is_finite or self.total_images is not None:
            return self
        if images <= self.warmup_images:
            raise DuetError(
                f"lr.warmup_images: {self.warmup_images} was given for a run of {images} images, which leaves none for "
                f"{self.decay} decay; give fewer, such as {images // 10}, or lr.decay=constant"
            )
        return replace(self, total_images=images)

    def __call__(self, images_seen: int, batch: int = 0) -> float:
        """Return the rate of the step of `batch` images that ends at `images_seen`."""
        if self.is_finite and self.total_images is None:
            raise DuetError(
                f"lr.total_images: none was given, but {self.decay} decay needs an end; use for_run(images)"
            )
        if self.decay == "edm2":
            before, start = images_seen - batch, self.decay_start_images
            rising = min(before / self.warmup_images, 1.0) if self.warmup_images else 1.0
            return self.peak / math.sqrt(max(before / start, 1.0) if start else 1.0) * rising
        if images_seen < self.warmup_images:
            return self.peak * images_seen / self.warmup_images
        if self.decay == "constant":
            return self.peak
        if self.decay == "inverse_sqrt":
            start = max(self.warmup_images, self.decay_start_images, 1)
            return self.peak * min(1.0, math.sqrt(start / images_seen))
        if self.decay == "steps":
            # The step that ends exactly at a multiple of every_images still has the old rate.
            steps = max(0, images_seen - self.warmup_images - 1) // self.every_images
            return max(self.floor, self.peak * self.factor**steps)
        remaining = 1.0 - min(1.0, (images_seen - self.warmup_images) / (self.total_images - self.warmup_images))
        weight = remaining if self.decay == "linear" else 0.5 * (1.0 - math.cos(math.pi * remaining))
        return self.floor + (self.peak - self.floor) * weight

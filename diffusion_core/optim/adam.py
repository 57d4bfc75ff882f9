r"""Adam with decoupled weight decay, one formula for every framework.

With the gradient g and the number k = 1, 2, ... of the update::

    norm = sqrt(sum of g^2 over all parameters)
    g  <- g min(1, clip / (norm + 1e-6))                  if there is a clip
    p  <- p (1 - lr weight_decay)                         for parameters that decay
    m  <- beta1 m + (1 - beta1) g
    v  <- beta2 v + (1 - beta2) g^2
    p  <- p - lr/(1 - beta1^k) m / ( sqrt(v)/sqrt(1 - beta2^k) + eps )

The two bias corrections are float64 numbers computed on the host. The Adam of Keras is another formula: its eps is
inside the correction, so no constant eps makes the two equal.

The learning rate is a function of images seen, including the batch of the step itself, so the first step of a warm-up
has a rate above zero.

References:
    Adam: A Method for Stochastic Optimization (Kingma & Ba, 2014), https://arxiv.org/abs/1412.6980
    Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2017), https://arxiv.org/abs/1711.05101
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["Adam", "LearningRate", "adam_update", "clip_factor", "global_norm"]

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Adam:
    """The options of Adam (weight_decay = 0) and AdamW (Kingma & Ba, 2014; Loshchilov & Hutter, 2017).

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the bias-corrected root of the second moment.
        weight_decay: decoupled weight decay; applies only to the weights of dense layers and convolutions.
        clip: largest global norm of the gradient; None does not clip.

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

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise DuetError(f"optimiser: beta1 {self.beta1} and beta2 {self.beta2} were given; both must be in [0, 1)")
        if not (self.eps > 0 and self.weight_decay >= 0 and (self.clip is None or self.clip > 0)):
            raise DuetError(
                f"optimiser: eps {self.eps}, clip {self.clip} and weight_decay {self.weight_decay} were given; eps and "
                f"clip must be positive (or clip null), and weight_decay at least 0"
            )

    def bias_corrections(self, update: int) -> tuple[float, float]:
        """Return (1 - beta1^k, sqrt(1 - beta2^k)) for update k = 1, 2, ..."""
        return -math.expm1(update * math.log(self.beta1)) if self.beta1 else 1.0, math.sqrt(
            -math.expm1(update * math.log(self.beta2)) if self.beta2 else 1.0
        )


def global_norm(gradients: Arrays) -> float:
    """Return the square root of the sum of squares over all arrays, in float64, summed per array first."""
    return math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values()))


def clip_factor(norm: float, clip: float | None) -> float:
    """Return the factor that limits gradients with this global norm to `clip`."""
    return 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))


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
    """Return (weights, moment1, moment2) after one update; the reference for every backend.

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
    factor = clip_factor(global_norm(gradients), adam.clip)
    correction1, correction2 = adam.bias_corrections(update)
    new_weights, new_moment1, new_moment2 = {}, {}, {}
    for name, gradient in gradients.items():
        g = gradient * factor
        p = weights[name] * (1.0 - lr * adam.weight_decay) if name in decays else weights[name]
        m = adam.beta1 * moment1[name] + (1.0 - adam.beta1) * g
        v = adam.beta2 * moment2[name] + (1.0 - adam.beta2) * g * g
        new_weights[name] = p - lr / correction1 * m / (np.sqrt(v) / correction2 + adam.eps)
        new_moment1[name], new_moment2[name] = m, v
    return new_weights, new_moment1, new_moment2


DECAYS = ("constant", "linear", "cosine", "inverse_sqrt", "steps")


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a function of images seen.

    Args:
        peak: the rate at the end of the warm-up.
        warmup_images: length of the linear warm-up.
        decay: ``"constant"``, ``"linear"``, ``"cosine"`` (both to `floor` at `total_images`),
            ``"inverse_sqrt"`` (``peak sqrt(start/images)`` after ``start = max(warmup_images, decay_start_images)``)
            or ``"steps"`` (multiplied by `factor` every `every_images` after the warm-up, but not below `floor`).
        total_images: images seen at the end of linear and cosine decay; None is the length of the run, see `for_run`.
        floor: the lowest rate of linear, cosine and stepwise decay.
        decay_start_images: images seen at the start of inverse-square-root decay.
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
        if self.decay not in DECAYS:
            raise one_of("lr.decay", self.decay, DECAYS)
        if not (0 < self.peak < math.inf and self.warmup_images >= 0 and 0 <= self.floor <= self.peak):
            raise DuetError(
                f"lr: peak {self.peak} must be positive, warmup_images {self.warmup_images} at least 0, "
                f"and floor {self.floor} between 0 and the peak"
            )
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

    def __call__(self, images_seen: int) -> float:
        """Return the rate of the step that ends at `images_seen`."""
        if self.is_finite and self.total_images is None:
            raise DuetError(
                f"lr.total_images: none was given, but {self.decay} decay needs an end; use for_run(images)"
            )
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

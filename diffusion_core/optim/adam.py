r"""Adam with decoupled weight decay, one formula for every framework.

With the gradient g and the number k = 1, 2, ... of the update::

    norm = sqrt(sum of g^2 over all parameters)
    g  <- g min(1, clip / (norm + 1e-6))                  where a clip is given
    p  <- p (1 - lr weight_decay)                         for parameters that decay
    m  <- beta1 m + (1 - beta1) g
    v  <- beta2 v + (1 - beta2) g^2
    p  <- p - lr/(1 - beta1^k) m / ( sqrt(v)/sqrt(1 - beta2^k) + eps )

The two bias corrections are float64 numbers of the host. Frameworks differ here by more than the name:
in Keras, eps stands inside the correction, so no constant eps makes it equal to this form.

The learning rate is a function of images seen, counted with the step's own batch, so the first step of a
warm-up is not wasted on a rate of zero.

References:
    Adam: A Method for Stochastic Optimization (Kingma & Ba, 2014), https://arxiv.org/abs/1412.6980
    Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2017), https://arxiv.org/abs/1711.05101
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["Adam", "LearningRate", "adam_update", "clip_factor", "global_norm"]

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Adam:
    """Adam (weight_decay = 0) and AdamW.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the corrected root of the second moment.
        weight_decay: decoupled; applies to the weights of dense layers and convolutions alone.
        clip: largest global norm of the gradient, or None.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise DuetError(f"optimiser: betas ({self.beta1}, {self.beta2}) were given; both must be in [0, 1)")
        if not (self.eps > 0 and self.weight_decay >= 0 and (self.clip is None or self.clip > 0)):
            raise DuetError(
                f"optimiser: eps {self.eps} and clip {self.clip} must be positive, "
                f"weight_decay {self.weight_decay} at least 0"
            )

    def bias_corrections(self, update: int) -> tuple[float, float]:
        """(1 - beta1^k, sqrt(1 - beta2^k)) of update k = 1, 2, ..."""
        return -math.expm1(update * math.log(self.beta1)) if self.beta1 else 1.0, math.sqrt(
            -math.expm1(update * math.log(self.beta2)) if self.beta2 else 1.0
        )


def global_norm(gradients: Arrays) -> float:
    """The root of the sum of squares over all arrays, summed per array first."""
    return math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values()))


def clip_factor(norm: float, clip: float | None) -> float:
    """What gradients are multiplied by."""
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
    """The reference: (weights, moment1, moment2) after update k, by name.

    Args:
        update: k = 1, 2, ...
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
        peak: the rate after the warm-up.
        warmup_images: length of the linear warm-up.
        decay: ``"constant"``, ``"linear"``, ``"cosine"`` (both to `floor` at `total_images`),
            ``"inverse_sqrt"`` (``peak sqrt(start/images)`` after ``start = max(warmup_images, decay_start_images)``)
            or ``"steps"`` (times `factor` after every `every_images` since the warm-up, not below `floor`).
        total_images: where linear and cosine decay end.
        floor: the lowest rate of linear, cosine and stepwise decay.
        decay_start_images: where inverse-square-root decay starts.
        factor: what each step of stepwise decay multiplies the rate by.
        every_images: length of a stretch of constant rate in stepwise decay.
    """

    peak: float
    warmup_images: int = 0
    decay: str = "constant"
    total_images: int = 0
    floor: float = 0.0
    decay_start_images: int = 0
    factor: float = 1.0
    every_images: int = 0

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise one_of("lr.decay", self.decay, DECAYS)
        if not (0 < self.peak < math.inf and self.warmup_images >= 0 and 0 <= self.floor <= self.peak):
            raise DuetError(
                f"lr: peak {self.peak} must be positive, warmup_images {self.warmup_images} >= 0 "
                f"and floor {self.floor} between 0 and the peak"
            )
        if self.decay in ("linear", "cosine") and self.total_images <= self.warmup_images:
            shorter = f"or lr.warmup_images below it, such as {self.total_images // 10}"
            raise DuetError(
                f"lr: {self.decay} decay ends at total_images {self.total_images}, which must be more than "
                f"warmup_images {self.warmup_images}; set lr.total_images to the length of the run"
                f"{f', {shorter}' if self.total_images > 0 else ''}"
            )
        if self.decay == "steps" and not (0 < self.factor < 1 and self.every_images >= 1):
            raise DuetError(
                f"lr: steps decay has factor {self.factor} every {self.every_images} images; "
                f"factor must be between 0 and 1 and every_images at least 1"
            )

    def __call__(self, images_seen: int) -> float:
        """The rate of the step after which `images_seen` images have been seen."""
        if images_seen < self.warmup_images:
            return self.peak * images_seen / self.warmup_images
        if self.decay == "constant":
            return self.peak
        if self.decay == "inverse_sqrt":
            start = max(self.warmup_images, self.decay_start_images, 1)
            return self.peak * min(1.0, math.sqrt(start / images_seen))
        if self.decay == "steps":
            # The image that completes a stretch still belongs to it, so its step has the old rate.
            steps = max(0, images_seen - self.warmup_images - 1) // self.every_images
            return max(self.floor, self.peak * self.factor**steps)
        left = 1.0 - min(1.0, (images_seen - self.warmup_images) / (self.total_images - self.warmup_images))
        share = left if self.decay == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
        return self.floor + (self.peak - self.floor) * share

r"""The moving average of the weights that samples are drawn with.

    e <- e + (1 - d_k) (p - e),      e_0 = p_0

with update k = 1, 2, ... Without warm-up d_k is the given decay. With it, ``d_k = min(decay, (1+k)/(10+k))``,
so that the average forgets the initial weights early and samples are worth looking at from the start.
An average with a later start follows the weights before it, d = 0, and counts k from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from diffusion_core.errors import DuetError

__all__ = ["Ema", "ema_update", "shares"]


@dataclass(frozen=True)
class Ema:
    """The decay of each update.

    Args:
        decay: the final decay, 0 to 1.
        warmup: whether it is ramped up.
        start: the number of updates before the average begins; through them it equals the weights.
    """

    decay: float = 0.9999
    warmup: bool = True
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise DuetError(f"ema.decay: {self.decay} was given; it must be in [0, 1)")
        if self.start < 0:
            raise DuetError(f"ema.start: {self.start} was given; it is a number of updates, at least 0")

    def __call__(self, update: int) -> float:
        """The decay of update 1, 2, ... of the run."""
        k = update - self.start
        if k <= 0:
            return 0.0
        return min(self.decay, (1 + k) / (10 + k)) if self.warmup else self.decay


def shares(decays: Sequence[float], averages: int) -> list[float]:
    """1 - d of each average, the share of the new weights in it.

    Raises:
        DuetError: if there are not as many decays as averages.
    """
    if len(decays) != averages:
        raise DuetError(f"averages: {len(decays)} decays were given, but the trainer keeps {averages} averages")
    return [1.0 - decay for decay in decays]


def ema_update(ema: dict[str, NDArray], weights: dict[str, NDArray], decay: float) -> dict[str, NDArray]:
    """The reference: the average after one update, by name."""
    return {name: e + (1.0 - decay) * (weights[name] - e) for name, e in ema.items()}

"""The difference of two subjects in one number, with the interval of the difference itself.

Two overlapping intervals do not say that two models are equally good, and the interval of a difference is not their
sum: what both numbers share cancels. Numbers with one protocol were measured against the same reference, with samples
that were cut into the same sets. So the pseudo-values of set k of both are a pair: samples drawn from the same noise
differ by the models alone, and the draw of the reference acts on both numbers. For samples from other noise the pairs
are independent, and the interval is as wide as it has to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusion_core.metrics.intervals import difference_interval
from diffusion_core.metrics.protocol import Number, comparable_values
from diffusion_core.statistics.bootstrap import Interval

__all__ = ["Difference", "difference"]


@dataclass(frozen=True)
class Difference:
    """The second of two numbers minus the first.

    Args:
        name: the name of the numbers.
        value: the difference.
        interval: over draws of the samples, for this number of them and this reference; None if sets are missing.
        interval_both: over draws of the samples and of the reference; None if it was not measured.
    """

    name: str
    value: float
    interval: Interval | None
    interval_both: Interval | None

    @property
    def plain(self) -> dict[str, Any]:
        """The difference as plain data."""
        ends = {
            key: interval and [interval.low, interval.high]
            for key, interval in (("interval", self.interval), ("interval_both", self.interval_both))
        }
        return {"value": self.value} | ends


def difference(first: Number, second: Number) -> Difference:
    """Return how much larger the second number is.

    Args:
        first: the number of the baseline.
        second: a number with the same name and protocol.

    Raises:
        DuetError: the numbers differ in name or protocol.
    """
    a, b = comparable_values([first, second])
    confidence = next((n.interval.confidence for n in (first, second) if n.interval), 0.95)
    own, both = difference_interval(
        (a, b), (first.without, second.without), confidence, (first.without_reference, second.without_reference)
    )
    return Difference(first.name, b - a, own, both)

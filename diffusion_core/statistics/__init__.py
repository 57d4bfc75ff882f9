"""Statistics of results over seeds: bootstrap intervals, paired differences and equivalence within a margin.

May import: common.
"""

from diffusion_core.statistics.bootstrap import Interval, bootstrap_interval
from diffusion_core.statistics.paired import (
    SCALES,
    Equivalence,
    Paired,
    compare,
    equivalence_power,
    holm,
    pairs_needed,
)

__all__ = [
    "SCALES",
    "Equivalence",
    "Interval",
    "Paired",
    "bootstrap_interval",
    "compare",
    "equivalence_power",
    "holm",
    "pairs_needed",
]

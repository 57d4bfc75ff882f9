"""Statistics of results over seeds: intervals, paired differences, equivalence, fractions, and repeated looks.

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
    upper_std,
)
from diffusion_core.statistics.proportion import discordant_p_value, exact_interval, unseen_fraction, wilson_interval
from diffusion_core.statistics.sequential import SPENDING, look_levels
from diffusion_core.statistics.sign_flip import sign_flip_equivalence, sign_flip_floor, sign_flip_p_value

__all__ = [
    "SCALES",
    "SPENDING",
    "Equivalence",
    "Interval",
    "Paired",
    "bootstrap_interval",
    "compare",
    "discordant_p_value",
    "equivalence_power",
    "exact_interval",
    "holm",
    "look_levels",
    "pairs_needed",
    "sign_flip_equivalence",
    "sign_flip_floor",
    "sign_flip_p_value",
    "unseen_fraction",
    "upper_std",
    "wilson_interval",
]

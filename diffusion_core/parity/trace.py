"""A record of one backend: its checks against the reference, and arrays that the other framework must match.

The names of the arrays start with their rung, as in ``"4/time added, strided/conv_in.weight"``. A record is written as
`.npz` files without pickle, one per precision, so the two frameworks never share a process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from numpy.typing import NDArray

from diffusion_core.backend.interface import TrainerState
from diffusion_core.parity.ladder import TOLERANCES, Check, check

__all__ = [
    "Arrays",
    "Trace",
]


Arrays = dict[str, NDArray]


@dataclass
class Trace:
    """The measurements of one backend in one precision.

    Args:
        backend: the name of the backend.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``.
        checks: the checks against the reference.
        arrays: values to compare with the other framework.
        states: trainer states by step, for the hand-over.
    """

    backend: str
    precision: str
    checks: list[Check] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    states: dict[int, TrainerState] = field(default_factory=dict)

    def add_check(self, rung: int, name: str, kind: str, error: float) -> None:
        """Add a check against the reference, if its kind has a tolerance in this precision."""
        if TOLERANCES[kind].allowed(self.precision) is not None:
            self.checks.append(check(rung, name, self.precision, self.backend, kind, error))

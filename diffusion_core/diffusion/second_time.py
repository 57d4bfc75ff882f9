"""What the second time of a network means: it is declared by the method that trained it, and checked by samplers.

A network of two times F(x, t, s) was trained with one meaning of s. Only where s has its value `instant` is F the
prediction of the process at the time t, which every sampler of one time needs:

    length        s = h, the length of a step that ends at t - h       instant 0        MeanFlow
    log2_steps    s = d, the whole way has 2^d steps                   instant log2 M   shortcut models, at most M steps
    constant      s was the same in the whole training                 that value       a regression
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diffusion_core.common.errors import DuetError, one_of

__all__ = ["MEANINGS", "SecondTime"]

# By name: in words.
MEANINGS = {
    "length": "the length of a step",
    "log2_steps": "log2 of the number of steps",
    "constant": "a constant",
}


@dataclass(frozen=True)
class SecondTime:
    """The meaning of a second time, and its value where the output is the prediction of the process."""

    meaning: str
    instant: float = 0.0

    def __post_init__(self) -> None:
        if self.meaning not in MEANINGS:
            raise one_of("second_time.meaning", self.meaning, tuple(MEANINGS))

    @property
    def words(self) -> str:
        """The meaning in words."""
        return MEANINGS[self.meaning] + (f", {self.instant:g}" if self.meaning == "constant" else "")

    def check(self, sampler: str, meaning: str, largest: float) -> None:
        """Refuse a sampler whose second time means something else, or more steps than were trained.

        Args:
            sampler: its name, for the message.
            meaning: of its second time.
            largest: of its second times.

        Raises:
            DuetError: the message says which samplers fit.
        """
        if meaning != self.meaning:
            raise DuetError(
                f"sampler.name: {sampler} was given, whose second time is {MEANINGS[meaning]}, but the network was "
                f"trained with {self.words}; use {_FITTING[self.meaning]}"
            )
        if meaning == "log2_steps" and largest > self.instant:
            raise DuetError(
                f"sampler.steps: {2**largest:.0f} was given, but the network was trained for at most "
                f"{2**self.instant:.0f} steps (objective.steps); use {2**self.instant:.0f} or less"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for a checkpoint."""
        return asdict(self)

    @staticmethod
    def of_notes(notes: Mapping[str, Any]) -> SecondTime | None:
        """Return the meaning by the notes of an earlier checkpoint, whose model lacks it; None if unknown."""
        objective = notes.get("trained_for", {}).get("objective", {})
        if objective.get("name") == "mean_flow":
            return SecondTime("length")
        if objective.get("name") == "shortcut":
            return SecondTime("log2_steps", float(int(objective["steps"]).bit_length() - 1))
        return None


_ONE_TIME = "a sampler of one time such as flow_euler"
_FITTING = {
    "length": f"sampler=mean_flow, or {_ONE_TIME}",
    "log2_steps": f"sampler=shortcut, or {_ONE_TIME}",
    "constant": _ONE_TIME,
}

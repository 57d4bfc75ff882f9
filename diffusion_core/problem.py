"""A problem: the network and the process that it was trained for.

It is what a checkpoint must say of itself so that anyone can sample from it, in either framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from diffusion_core.errors import DuetError, one_of
from diffusion_core.process import Process
from diffusion_core.schedule import make_schedule
from diffusion_core.unet import Program, UNetSpec, lower

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """A network and a process.

    Args:
        spec: the network.
        schedule: name and options of the schedule, see `schedule.make_schedule`.
        prediction: the parameterisation.
    """

    spec: UNetSpec
    schedule: Mapping[str, Any]
    prediction: str

    def __post_init__(self) -> None:
        if self.spec.out_channels != self.spec.in_channels:
            raise DuetError(
                f"model.out_channels: {self.spec.out_channels} was given for {self.spec.in_channels} in_channels; "
                f"a prediction has the shape of its image, so both must be equal"
            )
        # Made at once, so that a mistake is found before anything is trained or written.
        _ = self.program, self.process

    @cached_property
    def program(self) -> Program:
        """The network as data."""
        return lower(self.spec)

    @cached_property
    def process(self) -> Process:
        """The schedule with its parameterisation."""
        return Process(make_schedule(**self.schedule), self.prediction)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"spec": asdict(self.spec), "schedule": dict(self.schedule), "prediction": self.prediction}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Problem:
        """The inverse of `to_dict`."""
        known = {field.name for field in fields(UNetSpec)}
        for name in data["spec"]:
            if name not in known:
                raise one_of("model", name, sorted(known))
        spec = {name: tuple(value) if isinstance(value, list) else value for name, value in data["spec"].items()}
        return Problem(UNetSpec(**spec), dict(data["schedule"]), data["prediction"])

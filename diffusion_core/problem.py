"""A problem: the network and the process that it was trained for.

It is what a checkpoint must say of itself so that anyone can sample from it, in either framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from diffusion_core.data.pixels import VALUE_RANGE, check_value_range
from diffusion_core.errors import DuetError
from diffusion_core.process import Process
from diffusion_core.sampling import SamplerPlan, make_plan
from diffusion_core.schedule import make_schedule
from diffusion_core.unet import ARCHITECTURES, NetworkSpec, Program, lower, make_spec

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """A network and a process.

    Args:
        spec: the network.
        schedule: name and options of the schedule, see `schedule.make_schedule`.
        prediction: the parameterisation.
        value_range: what black and white are to the network.
        time_scale: see `process.Process`; so is sigma_data.
    """

    spec: NetworkSpec
    schedule: Mapping[str, Any]
    prediction: str
    value_range: tuple[float, float] = VALUE_RANGE
    time_scale: float = 1.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        given, images = self.spec.out_channels, self.spec.in_channels
        if given not in (images, 2 * images):
            raise DuetError(
                f"model.out_channels: {given} was given for {images} in_channels; a prediction has the channels of its "
                f"image, {images}, or twice as many ({2 * images}) with a variance for each"
            )
        check_value_range(self.value_range)
        # Made at once, so that a mistake is found before anything is trained or written.
        _ = self.program, self.process

    @cached_property
    def program(self) -> Program:
        """The network as data."""
        return lower(self.spec)

    @cached_property
    def process(self) -> Process:
        """The schedule with its parameterisation."""
        return Process(make_schedule(**self.schedule), self.prediction, self.time_scale, self.sigma_data)

    def plan(self, sampler: str, **options: Any) -> SamplerPlan:
        """The plan of a sampler by name, whose clip is in the range of the values; see `sampling.make_plan`."""
        plan = make_plan(self.process, sampler, **options).within(self.value_range)
        if plan.learned is not None and self.spec.out_channels == self.spec.in_channels:
            raise DuetError(
                f"sampler.variance: {options['variance']} was given, but the network has no channels for it; "
                "use fixed_small or fixed_large"
            )
        return plan

    @property
    def architecture(self) -> str:
        """The name of the network's architecture."""
        return next(name for name, kind in ARCHITECTURES.items() if type(self.spec) is kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "architecture": self.architecture,
            "spec": asdict(self.spec),
            "schedule": dict(self.schedule),
            "prediction": self.prediction,
            "value_range": list(self.value_range),
            "time_scale": self.time_scale,
            "sigma_data": self.sigma_data,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Problem:
        """The inverse of `to_dict`."""
        spec = make_spec(data["architecture"], **data["spec"])
        value_range = tuple(data["value_range"])
        # Those that were written before there was an option do not say it.
        later = {name: data[name] for name in ("sigma_data",) if name in data}
        return Problem(spec, dict(data["schedule"]), data["prediction"], value_range, data["time_scale"], **later)

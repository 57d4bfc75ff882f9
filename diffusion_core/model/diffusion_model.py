"""A problem: the network and the process that it was trained for.

It is what a checkpoint must say of itself so that anyone can sample from it, in either framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion_core.backend.interface import CROSS_ENTROPY, DISTANCES
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.diffusion.variational import VARIANCES
from diffusion_core.model.old_names import NETWORK_KEYS, with_new_names
from diffusion_core.networks import ARCHITECTURES, NetworkSpec, Program, lower, make_spec, with_uncertainty
from diffusion_core.sampling import SamplerPlan, make_plan

__all__ = ["DiffusionModel"]


@dataclass(frozen=True)
class DiffusionModel:
    """A network and a process.

    Args:
        spec: the network.
        schedule: name and options of the schedule, see `schedule.make_schedule`.
        prediction: the parameterisation.
        value_range: what black and white are to the network.
        time_scale: see `process.Process`; so is sigma_data.
        variance: what the second half of an output of twice the channels says, ``"learned"`` or ``"learned_range"``,
            see `variational`; ``"fixed"`` makes no use of it.
        uncertainty: whether the network has one channel more that says how uncertain its loss is.
    """

    spec: NetworkSpec
    schedule: Mapping[str, Any]
    prediction: str
    value_range: tuple[float, float] = VALUE_RANGE
    time_scale: float = 1.0
    sigma_data: float = 0.5
    variance: str = "fixed"
    uncertainty: bool = False

    def __post_init__(self) -> None:
        given, images = self.spec.out_channels, self.spec.in_channels
        if self.classifies and self.uncertainty:
            raise DuetError("process.uncertainty: true was given; a classifier has logits alone, so use false")
        if not self.classifies and given not in (images, 2 * images):
            raise DuetError(
                f"model.out_channels: {given} was given for {images} in_channels; a prediction has the channels of its "
                f"image, {images}, or twice as many ({2 * images}) with a variance for each"
            )
        if self.variance not in VARIANCES:
            raise one_of("process.variance", self.variance, VARIANCES)
        if self.variance != "fixed" and given != 2 * images:
            raise DuetError(
                f"process.variance: {self.variance} needs a network with twice the channels of its image; "
                f"set model.out_channels={2 * images}"
            )
        check_value_range(self.value_range)
        # Made at once, so that a mistake is found before anything is trained or written.
        _ = self.program, self.process

    @property
    def classifies(self) -> bool:
        """Whether it is a classifier of noisy pictures: of the process it has the levels, c_in and c_noise."""
        return self.spec.classifies

    def check_distance(self, distance: str) -> None:
        """Refuse a distance of pixels for a classifier, and of logits for any other network."""
        if self.classifies != (distance == CROSS_ENTROPY):
            what = "a classifier" if self.classifies else "a network that is no classifier"
            fits = CROSS_ENTROPY if self.classifies else ", ".join(DISTANCES)
            raise DuetError(f"process.distance: {distance} was given for {what}; use {fits}")

    def check_generates(self) -> None:
        """Refuse a classifier where a network is needed that estimates pictures."""
        if self.classifies:
            raise DuetError(
                "checkpoint: it is of a classifier, which estimates no pictures; give it as classifier=RUN, with "
                "sampler.classifier=1, beside the checkpoint of a network that does"
            )

    @cached_property
    def program(self) -> Program:
        """The network as data."""
        program = lower(self.spec)
        if not self.uncertainty:
            return program
        # As many frequencies over the range of c_noise as over that of EDM's, log(sigma)/4, where theirs is 1.
        c_noise = self.process.columns(np.array(self.process.schedule.span)).c_noise
        return with_uncertainty(program, float(2.0 ** np.round(np.log2(2.65 / np.ptp(c_noise)))))

    @cached_property
    def process(self) -> Process:
        """The schedule with its parameterisation."""
        return Process(make_schedule(**self.schedule), self.prediction, self.time_scale, self.sigma_data)

    def plan(self, sampler: str, **options: Any) -> SamplerPlan:
        """The plan of a sampler by name, whose clip is in the range of the values; see `sampling.make_plan`."""
        self.check_generates()
        plan = make_plan(self.process, sampler, **options).with_value_range(self.value_range)
        if plan.learned is not None and self.spec.out_channels == self.spec.in_channels:
            raise DuetError(
                f"sampler.variance: {options['variance']} was given, but the network has no channels for it; "
                "use fixed_small or fixed_large"
            )
        if plan.learned is not None:
            self.check_learned("sampler.variance", options["variance"])
        return plan

    def check_learned(self, what: str, variance: str) -> None:
        """Refuse a variance of the steps that reads the network's second half as another one than was trained.

        Args:
            what: the option that says it.
            variance: one of `variational.STEP_VARIANCES`.
        """
        if self.variance != "fixed" and variance in VARIANCES and variance != self.variance:
            raise DuetError(
                f"{what}: {variance} was given, but the network was trained with {self.variance}; use {self.variance}, "
                "or fixed_small or fixed_large"
            )

    def check_guide(self, guide: DiffusionModel, plan: SamplerPlan) -> None:
        """Refuse a network that guided rows of this one's plan cannot lead away from.

        Raises:
            DuetError: for other images, other classes (none at all are fine), or other columns than those of the plan.
        """
        guide.check_generates()
        self._check_leader("guide", guide, plan, ("c_skip", "c_out", "c_in", "c_noise"))
        own, other = ((p.program.classes, p.program.null_label) for p in (self, guide))
        if guide.program.classes and own != other:
            raise DuetError(
                f"guide: it has {other[0]} classes, and {other[1]} for no class, but the network that is sampled has "
                f"{own[0]}, and {own[1]}; give one with the same, or with none"
            )

    def check_classifier(self, classifier: DiffusionModel, plan: SamplerPlan) -> None:
        """Refuse a network whose gradient cannot lead this one's plan.

        Raises:
            DuetError: for no classifier, other images, other classes, or other inputs than those of the plan.
        """
        if not classifier.classifies:
            raise DuetError("classifier: the checkpoint is of a network that is none; train one, see model=classifier")
        self._check_leader("classifier", classifier, plan, ("c_in", "c_noise"))
        own, other = self.program.classes, classifier.program.classes
        if own and own != other:
            raise DuetError(f"classifier: it knows {other} classes, but the network that is sampled has {own}")

    def _check_leader(self, what: str, leader: DiffusionModel, plan: SamplerPlan, names: Sequence[str]) -> None:
        """Refuse a network for other images, or whose levels or columns of these names are not those of the plan."""
        if leader.spec.image_shape != self.spec.image_shape:
            raise DuetError(
                f"{what}: its images are {leader.spec.image_shape}, but those of the network that is sampled are "
                f"{self.spec.image_shape} (h, w, c)"
            )
        wanted = [*self.process.schedule(plan.t), *(getattr(plan, name) for name in names)]
        try:
            columns = leader.process.columns(plan.t)
            found = [*leader.process.schedule(plan.t), *(getattr(columns, name) for name in names)]
        except DuetError:  # levels that it does not have
            found = []
        if leader.value_range != self.value_range or not all(map(np.array_equal, wanted, found)) or not found:
            raise DuetError(
                f"{what}: it was trained for another process, {leader._process_words()}, than the network that is "
                f"sampled, {self._process_words()}"
            )

    def _process_words(self) -> str:
        schedule = ", ".join(f"{key} {value}" for key, value in self.schedule.items() if key != "name")
        schedule = self.schedule["name"] + (f" ({schedule})" if schedule else "")
        low, high = self.value_range
        return f"{self.prediction} on {schedule}, time_scale {self.time_scale:g}, values {low:g} to {high:g}"

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
            "variance": self.variance,
            "uncertainty": self.uncertainty,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> DiffusionModel:
        """The inverse of `to_dict`."""
        spec = make_spec(data["architecture"], **with_new_names(data["spec"], NETWORK_KEYS))
        value_range = tuple(data["value_range"])
        # Those that were written before there was an option do not say it.
        later = {name: data[name] for name in ("sigma_data", "variance", "uncertainty") if name in data}
        return DiffusionModel(
            spec, dict(data["schedule"]), data["prediction"], value_range, data["time_scale"], **later
        )

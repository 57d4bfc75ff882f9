"""A diffusion model: a network and the process that it is trained for.

A checkpoint stores this description, so that either framework can sample from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from diffusion_core.backend.interface import CROSS_ENTROPY, DISTANCES
from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.registry import check_fields
from diffusion_core.common.text import pluralize
from diffusion_core.data.pixels import VALUE_RANGE, check_value_range
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule, same_levels
from diffusion_core.diffusion.second_time import SecondTime
from diffusion_core.diffusion.variational import LEARNED, VARIANCES
from diffusion_core.model.old_names import NETWORK_KEYS, with_new_names
from diffusion_core.networks import ARCHITECTURES, NetworkSpec, Program, lower, make_spec, with_uncertainty
from diffusion_core.networks.weights import parameter_count
from diffusion_core.sampling import SamplerPlan, make_plan

__all__ = ["DiffusionModel"]

# The numbers that a process has besides its schedule and its prediction, and those of them that are 0 for most.
_LATER_NUMBERS = ("time_offset", "t_floor", "boundary")
_PROCESS_NUMBERS = ("time_scale", "sigma_data", *_LATER_NUMBERS)


@dataclass(frozen=True, repr=False)
class DiffusionModel:
    """A network and the process that it is trained for.

    Args:
        spec: the network, see `networks.make_spec`.
        schedule: name and options of the schedule, see `diffusion.schedule.make_schedule`; a name alone is given the
            default options. Or a process whose schedule was made by name, which has the prediction and its numbers.
        prediction: the parameterisation, as in "eps" or "v", see `diffusion.process.Process`; None with a process.
        value_range: the values of black and white at the input of the network.
        time_scale: factor of t at the input of the network, see `diffusion.process.Process`.
        sigma_data: standard deviation of the data, for the parameterisation of EDM, see `diffusion.process.Process`.
        variance: that of the reverse steps in the variational bound, one of `diffusion.variational.VARIANCES`:
            ``"learned"`` or ``"learned_range"`` by the second half of the output channels, ``"fixed_small"`` or
            ``"fixed_large"`` without it; ``"fixed"`` trains without the bound.
        uncertainty: whether the network has an extra channel with the log-variance of its loss; true for a network
            that has this channel itself.
        time_offset: what is added to the scaled t, see `diffusion.process.Process`.
        t_floor: the least t that the velocity of prediction x0 is divided by, see `diffusion.process.Process`.
        boundary: the sigma/alpha at which the estimate of prediction edm is x itself, see `diffusion.process.Process`.
        second_time: what the second time of a network of two times means; None for other networks, and where it is not
            known. The method that trains the network sets it.

    Raises:
        DuetError: if the options do not fit together; the message names the configuration key.

    Example:
        >>> from diffusion_core.networks import make_spec
        >>> spec = make_spec("plain", image_size=8, in_channels=1, out_channels=1, channels=(4,), bottleneck=8)
        >>> model = DiffusionModel(spec, {"name": "cosine"}, "v")
        >>> model
        DiffusionModel(plain, 8x8x1, 1,681 parameters, v on cosine)
        >>> plan = model.plan("ddim", steps=10)
        >>> plan.rows
        10
    """

    spec: NetworkSpec
    schedule: str | Mapping[str, Any]
    prediction: str | None = None
    value_range: tuple[float, float] = VALUE_RANGE
    time_scale: float = 1.0
    sigma_data: float = 0.5
    variance: str = "fixed"
    uncertainty: bool = False
    time_offset: float = 0.0
    t_floor: float = 0.0
    boundary: float = 0.0
    second_time: SecondTime | None = None

    def __post_init__(self) -> None:
        if isinstance(self.schedule, Process):
            self._take_process(self.schedule)
        if self.prediction is None:
            raise DuetError("process.prediction: nothing was given; it is what the network predicts, such as v")
        if isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", {"name": self.schedule})
        if not isinstance(self.schedule, Mapping) or not isinstance(self.schedule.get("name"), str):
            raise DuetError(
                f"process.schedule: {self.schedule!r} was given; it must be a name with options, for example "
                "{name: linear, T: 1000}"
            )
        check_fields("process", self)
        if not isinstance(self.second_time, SecondTime | None):
            raise DuetError(
                f"second_time: {self.second_time!r} was given; it is what the method that trains the network says, a "
                "SecondTime of diffusion_core.diffusion.second_time, or None"
            )
        if self.spec.predicts_uncertainty:
            object.__setattr__(self, "uncertainty", True)
        channels, image_channels = self.spec.out_channels, self.spec.in_channels
        if self.classifies and self.uncertainty:
            raise DuetError("process.uncertainty: true was given; a classifier predicts logits only, so use false")
        if not self.classifies and channels not in (image_channels, 2 * image_channels):
            raise DuetError(
                f"model.out_channels: {channels} was given for {image_channels} in_channels; it must be "
                f"{image_channels}, or {2 * image_channels} to predict a variance per element"
            )
        check_choice("process.variance", self.variance, VARIANCES)
        if self.variance != "fixed" and self.classifies:
            raise DuetError(
                f"process.variance: {self.variance} was given; a classifier has no reverse steps, so use fixed"
            )
        if self.variance in LEARNED and channels != 2 * image_channels:
            raise DuetError(
                f"process.variance: {self.variance} needs a network with twice the channels of its image; "
                f"set model.out_channels={2 * image_channels}"
            )
        object.__setattr__(self, "value_range", check_value_range(self.value_range))
        # Build both now, so that mistakes are found before anything is trained or written.
        _ = self.program, self.process

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.spec.image_shape))
        size = pluralize(parameter_count(self.program), "parameter")
        return f"DiffusionModel({self.architecture}, {shape}, {size}, {self.prediction} on {self.schedule['name']})"

    def _take_process(self, process: Process) -> None:
        """Take schedule, prediction and numbers of a process.

        Raises:
            DuetError: if the schedule was not made by name, or a number was given too.
        """
        if process.schedule.options is None:
            raise DuetError(
                f"process: its schedule {process.schedule.name} was not made by name, so a checkpoint could not keep "
                f"it; use duet.process('cosine', 'v'), or the schedule 'betas' with a list of betas"
            )
        for name in ("prediction", *_PROCESS_NUMBERS):
            if (value := getattr(self, name)) != getattr(DiffusionModel, name):
                raise DuetError(f"process.{name}: {value} was given beside a process, which has its own; leave it out")
            object.__setattr__(self, name, getattr(process, name))
        object.__setattr__(self, "schedule", dict(process.schedule.options))

    @property
    def classifies(self) -> bool:
        """Whether it is a classifier of noisy images, which uses the noise levels, c_in and c_noise of the process."""
        return self.spec.classifies

    def check_distance(self, distance: str) -> None:
        """Raise a `DuetError` for a pixel distance with a classifier, or cross-entropy with any other network."""
        if self.classifies != (distance == CROSS_ENTROPY):
            network = "a classifier" if self.classifies else "a network that is not a classifier"
            allowed = CROSS_ENTROPY if self.classifies else ", ".join(DISTANCES)
            raise DuetError(f"process.distance: {distance} was given for {network}; use {allowed}")

    def check_generates(self) -> None:
        """Raise a `DuetError` if this is a classifier, which cannot generate images."""
        if self.classifies:
            raise DuetError(
                "checkpoint: this is a classifier, which cannot generate images; use the checkpoint of a diffusion "
                "model, and pass this one as classifier=RUN with sampler.classifier=1"
            )

    @cached_property
    def program(self) -> Program:
        """The network as data."""
        program = lower(self.spec)
        if self.second_time is not None:
            program = replace(program, default_second_time=self.second_time.instant)
        if program.uncertainty or not self.uncertainty:
            return program
        # Scale the frequencies to the range of c_noise; they are 1 for that of EDM, log(sigma)/4.
        c_noise = self.process.columns(np.array(self.process.schedule.span)).c_noise
        return with_uncertainty(program, float(2.0 ** np.round(np.log2(2.65 / np.ptp(c_noise)))))

    @cached_property
    def process(self) -> Process:
        """The schedule with its parameterisation."""
        options = {name: getattr(self, name) for name in _PROCESS_NUMBERS}
        return Process(make_schedule(**self.schedule), self.prediction, **options)

    def plan(self, sampler: str, **options: Any) -> SamplerPlan:
        """Return the plan of a sampler by name, with its clip in `value_range`; see `sampling.make_plan`.

        Raises:
            DuetError: for a classifier, unknown options, or a variance that the network does not predict.
        """
        self.check_generates()
        plan = make_plan(self.process, sampler, **options).with_value_range(self.value_range)
        self.check_second_time(plan)
        if (plan.guidance_channels or 0) > self.spec.in_channels:
            raise DuetError(
                f"sampler.guidance_channels: {plan.guidance_channels} was given, but the images have "
                f"{self.spec.in_channels}; use null for all"
            )
        if plan.learned is not None and self.spec.out_channels == self.spec.in_channels:
            raise DuetError(
                f"sampler.variance: {options['variance']} was given, but the network does not predict a variance; "
                "use fixed_small or fixed_large"
            )
        if plan.learned is not None:
            self.check_learned("sampler.variance", options["variance"])
        return plan

    def check_second_time(self, plan: SamplerPlan) -> None:
        """Raise a `DuetError` if the second time of a plan is not what the network was trained with."""
        if plan.second_time is None:
            return
        if not self.program.two_times:
            raise DuetError(
                f"sampler {plan.name}: its network reads the length of a step as a second time, which this network "
                "does not take; use another sampler, or a network of objective=mean_flow or shortcut"
            )
        if self.second_time is not None and plan.second_time_meaning is not None:
            self.second_time.check(plan.name.partition("-")[0], plan.second_time_meaning, plan.second_time.max())

    def check_learned(self, what: str, variance: str) -> None:
        """Raise a `DuetError` if a step variance interprets the network's output differently than training did.

        Args:
            what: the configuration key of the variance, for the message.
            variance: one of `variational.STEP_VARIANCES`.
        """
        if self.variance != "fixed" and variance in LEARNED and variance != self.variance:
            own = f"{self.variance}, or " if self.variance in LEARNED else ""
            raise DuetError(
                f"{what}: {variance} was given, but the network was trained with {self.variance}; use {own}fixed_small "
                "or fixed_large"
            )

    def check_guide(self, guide: DiffusionModel, plan: SamplerPlan) -> None:
        """Check that a network can be the guide of this model's plan.

        Raises:
            DuetError: if its images, its classes (if it has any) or its process differ from this model's.
        """
        guide.check_generates()
        self._check_same_process("guide", guide, plan, ("c_skip", "c_out", "c_in", "c_noise"))
        own, other = ((p.program.classes, p.program.null_label) for p in (self, guide))
        if guide.program.classes and own != other:
            raise DuetError(
                f"guide: it has {other[0]} classes and the null label {other[1]}, but the sampled network has {own[0]} "
                f"classes and the null label {own[1]}; use a guide with the same classes, or without classes"
            )

    def check_classifier(self, classifier: DiffusionModel, plan: SamplerPlan) -> None:
        """Check that a network can be the classifier of this model's plan.

        Raises:
            DuetError: if it is not a classifier, or its images, classes or inputs differ from this model's.
        """
        if not classifier.classifies:
            raise DuetError("classifier: this checkpoint is not a classifier; train one with model=digits_classifier")
        self._check_same_process("classifier", classifier, plan, ("c_in", "c_noise"))
        own, other = self.program.classes, classifier.program.classes
        if own and own != other:
            raise DuetError(f"classifier: it has {other} classes, but the sampled network has {own}")

    def _check_same_process(self, what: str, other: DiffusionModel, plan: SamplerPlan, names: Sequence[str]) -> None:
        """Check that another model has the same images, and the same noise levels and columns as the plan."""
        if other.spec.image_shape != self.spec.image_shape:
            raise DuetError(
                f"{what}: its images have shape {other.spec.image_shape}, but those of the sampled network have shape "
                f"{self.spec.image_shape} (h, w, c)"
            )
        expected = [*self.process.schedule(plan.t), *(getattr(plan, name) for name in names)]
        try:
            columns = other.process.columns(plan.t)
            actual = [*other.process.schedule(plan.t), *(getattr(columns, name) for name in names)]
        except DuetError:  # its schedule lacks some of these levels
            actual = []
        if other.value_range != self.value_range or not all(map(np.array_equal, expected, actual)) or not actual:
            raise DuetError(
                f"{what}: it was trained for another process ({other._describe_process()}) than the sampled network "
                f"({self._describe_process()}); use one of the same process"
            )

    def _describe_process(self) -> str:
        schedule = ", ".join(f"{key} {value}" for key, value in self.schedule.items() if key != "name")
        schedule = self.schedule["name"] + (f" ({schedule})" if schedule else "")
        low, high = self.value_range
        later = "".join(f", {name} {value:g}" for name in _LATER_NUMBERS if (value := getattr(self, name)))
        return f"{self.prediction} on {schedule}, time_scale {self.time_scale:g}{later}, values {low:g} to {high:g}"

    @property
    def architecture(self) -> str:
        """The name of the network's architecture."""
        return next(name for name, kind in ARCHITECTURES.items() if type(self.spec) is kind)

    def process_differences(self, other: DiffusionModel) -> dict[str, tuple[Any, Any]]:
        """Return by name the options of the process that differ, as (own, other's).

        Schedules are compared by their noise levels: two that are written differently may be equal.
        """
        names = [f.name for f in fields(self) if f.name not in ("spec", "schedule", "second_time")]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        if self.schedule != other.schedule and not same_levels(self.process.schedule, other.process.schedule):
            pairs = {"schedule": (dict(self.schedule), dict(other.schedule))} | pairs
        return {name: (own, others) for name, (own, others) in pairs.items() if own != others}

    def is_same_as(self, other: DiffusionModel) -> bool:
        """Return whether two models have the same network and the same process, however the process was written."""
        return self.spec == other.spec and not self.process_differences(other)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for a checkpoint."""
        return {
            "architecture": self.architecture,
            "spec": self.spec.to_dict(),
            "schedule": dict(self.schedule),
            "prediction": self.prediction,
            "value_range": list(self.value_range),
            "time_scale": self.time_scale,
            "sigma_data": self.sigma_data,
            "variance": self.variance,
            "uncertainty": self.uncertainty,
            **{name: getattr(self, name) for name in _LATER_NUMBERS},
            **({} if self.second_time is None else {"second_time": self.second_time.to_dict()}),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> DiffusionModel:
        """Return the model of the plain data that `to_dict` made."""
        spec = make_spec(data["architecture"], **with_new_names(data["spec"], NETWORK_KEYS))
        value_range = tuple(data["value_range"])
        # Older checkpoints lack these options.
        names = ("sigma_data", "variance", "uncertainty", *_LATER_NUMBERS)
        later = {name: data[name] for name in names if name in data}
        if "second_time" in data:
            later["second_time"] = SecondTime(**data["second_time"])
        return DiffusionModel(
            spec, dict(data["schedule"]), data["prediction"], value_range, data["time_scale"], **later
        )

"""The cases of the ladder for targets that need the network: one with every kind of step, and each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffusion_core.backend.interface import TrainBatch
from diffusion_core.backend.target import Direction, Distance, Pass, Sum, Target, Teacher, Unit
from diffusion_core.common.random import Stream
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import Add, Conv, Dropout, Embedding, Linear, Number, SiLU
from diffusion_core.parity import cases
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import METHODS, Setting, TrainedNetwork

__all__ = ["AVERAGE", "CASES", "DISTANCES", "METHODS", "PROGRAM", "TARGET", "TRAINED", "WEIGHTS", "TargetCase", "batch"]

SHAPE, CLASSES = (4, 4, 2), 3


def _conv(inputs: int, outputs: int) -> Conv:
    return Conv(inputs, outputs, 3, 1, (1, 1, 1, 1), True, 1.0)


# Two times, a class, dropout, and one more output channel than an image has: the uncertainty of its loss.
PROGRAM = Program(
    (
        Node("number", Number(1.0), ("c_noise",)),
        Node("time", Linear(1, 6, True, 1.0), ("number",)),
        Node("second_number", Number(1.0), ("second_time",)),
        Node("second", Linear(1, 6, True, 1.0), ("second_number",)),
        Node("class", Embedding(CLASSES + 1, 6), ("label",)),
        Node("times", Add(1.0), ("time", "second")),
        Node("embed", Add(1.0), ("times", "class")),
        Node("first", _conv(2, 6), ("x",)),
        Node("join", Add(1.0), ("first", "embed")),
        Node("act", SiLU(), ("join",)),
        Node("drop", Dropout(0.3, 0), ("act",)),
        Node("last", _conv(6, 3), ("drop",)),
    ),
    null_label=CLASSES,
    classes=CLASSES,
    uncertainty=True,
)
TEACHER = Program(
    (Node("conv", _conv(2, 2), ("x",)), Node("act", SiLU(), ("conv",)), Node("out", _conv(2, 2), ("act",))),
    null_label=CLASSES,
    classes=CLASSES,
)
WEIGHTS, AVERAGE = (cases.scattered_weights(PROGRAM, gain) for gain in (1.0, 0.7))
COLUMNS, TIMES = ("alpha", "sigma", "step", "mix"), ("t", "r", "h", "one")

TARGET = Target(
    steps=(
        Sum("x_t", (("alpha", "images"), ("sigma", "noise"))),
        Pass("taught", "teacher", "x_t", "t"),
        Pass("free", "trained", "x_t", "t", "h", null_label=True),
        Sum("moved", ((1.0, "x_t"), ("step", "taught"), (-0.5, "free")), bounds=(-1.5, 1.5)),
        Pass("averaged", "average", "moved", "r"),
        Pass(
            "u", "trained", "x_t", "t", "h", gradient=True, direction=Direction("moved", "one", "h"), uncertainty=True
        ),
        Sum("prediction", (("mix", "u"), ("sigma", "x_t"))),
        Unit("rate", "u.rate", 0.1, mean=True),
        Sum("target", (("mix", "averaged"), ("step", "rate"))),
    ),
    prediction="prediction",
    target="target",
    columns=COLUMNS,
    times=TIMES,
    teacher=Teacher(TEACHER, cases.scattered_weights(TEACHER)),
)
DISTANCES = {
    "mse": Distance(),
    "l1": Distance("l1"),
    "huber": Distance("huber"),
    "pseudo_huber": Distance("pseudo_huber", c=0.2),
    "norm": Distance("norm"),
    "norm with c": Distance("norm", c=0.3),
    "adaptive squares": Distance("squares", power=0.75, eps=0.01),
}


def batch(dtype: type = np.float64, size: int = 4) -> TrainBatch:
    """Return a batch for these targets."""
    plain = cases.noise_batch(PROGRAM, SHAPE, size)
    columns, times = (Stream(5, name).uniform(np.arange(size), 4) + 0.2 for name in ("columns", "times"))
    return cases.cast(replace(plain, columns=columns, times=times), dtype)


def with_distance(distance: Distance) -> Target:
    """Return the target with a distance."""
    return replace(TARGET, distance=distance)


@dataclass(frozen=True, eq=False)
class TargetCase:
    """A training method with the smallest network, for the ladder.

    Args:
        name: for display.
        process: what it is used on.
        options: name and options of the method.
        teacher_process: of the teacher; None without one.
    """

    name: str
    process: Process
    options: Mapping[str, Any]
    teacher_process: Process | None = None

    @property
    def objective(self) -> Objective:
        """The objective, halfway through a run of 400 images."""
        teacher = None
        if self.teacher_process is not None:
            teacher = TrainedNetwork(self.teacher_process, TEACHER, cases.scattered_weights(TEACHER), SHAPE)
        setting = Setting(self.process, PROGRAM, SHAPE, teacher)
        return Objective(
            self.process, cases.SEED, null_label=CLASSES, classes=CLASSES, label_dropout=0.3, objective=self.options,
            setting=setting, run_images=400, uncertainty=METHODS[self.options["name"]].uses_uncertainty,
        )  # fmt: skip

    @property
    def target(self) -> Target:
        """What is compared."""
        return self.objective.loss

    def batch(self, dtype: type = np.float64, size: int = 4) -> TrainBatch:
        """Return a batch of noise images in the middle of the run."""
        index, objective = 200 + np.arange(size), self.objective
        images = Stream(cases.SEED, "parity/targets").normal(index, SHAPE)
        return objective.batch(images, index % CLASSES, index, dtype, progress=objective.progress(200, size))


_EDM, _COSINE = Process(make_schedule("edm"), "edm"), Process(make_schedule("cosine_continuous"), "v", 1000.0)
_CONSISTENCY = Process(make_schedule("edm"), "edm", 1000.0, boundary=0.002)
_LINE = make_schedule("flow_continuous")
CASES = (
    TargetCase("consistency training", _CONSISTENCY, {"name": "consistency_training"}),
    TargetCase("consistency distillation", _CONSISTENCY, {"name": "consistency_distillation"}, _EDM),
    TargetCase("iCT", _CONSISTENCY, {"name": "improved_consistency_training"}),
    TargetCase(
        "sCT", Process(make_schedule("edm"), "trigflow"), {"name": "continuous_consistency_training", "warmup": 100},
    ),
    TargetCase(
        "sCD", Process(make_schedule("edm"), "trigflow"),
        {"name": "continuous_consistency_distillation", "warmup": 0, "norm": "mean"}, _EDM,
    ),
    TargetCase("ECT", _EDM, {"name": "easy_consistency_tuning"}),
    TargetCase("MeanFlow", Process(_LINE, "flow"), {"name": "mean_flow", "same_time": 0.25}),
    TargetCase(
        "shortcut", Process(_LINE, "velocity_to_data", -1.0, time_offset=1.0),
        {"name": "shortcut", "every": 2, "steps": 8, "guidance_scale": 1.5},
    ),
    TargetCase("progressive distillation", _COSINE, {"name": "progressive_distillation"}, _COSINE),
)  # fmt: skip
# Those that a trainer computes on the ladder; the others have the same kinds of steps, and their tables are compared.
TRAINED = ("consistency distillation", "sCT", "MeanFlow", "shortcut")

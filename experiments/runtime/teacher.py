"""The teacher of a training: a run whose network targets are computed with, or whose weights training starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import lower
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.weights import Weights
from diffusion_core.runs.checkpoint import load_checkpoint
from diffusion_core.training.objective import Objective
from diffusion_core.training.targets import TrainedNetwork
from experiments.runtime.own_networks import OwnNetwork, with_network

__all__ = ["STARTS", "TeacherRun", "load_teacher"]

# Where the weights of a student start: at those of its teacher, or as those of any new network.
STARTS = ("teacher", "fresh")


@dataclass(frozen=True, eq=False, repr=False)
class TeacherRun:
    """A run as a teacher.

    Args:
        path: the run or the checkpoint, as it was given.
        network: its network with its process.
        model: the same.
        weights: the name of its weights: ema, ema1 ... or weights.
        start: where the weights of the student start, one of `STARTS`; None is at the teacher's if the networks and
            their predictions are the same.
    """

    path: str
    network: TrainedNetwork
    model: DiffusionModel
    weights: str
    start: str | None = field(default=None)

    def __repr__(self) -> str:
        return f"TeacherRun({self.path!r}, {self.weights})"

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of the configuration."""
        return {"teacher": self.path, "teacher_weights": self.weights, "start": self.start}

    def check(self, model: DiffusionModel, objective: Objective) -> None:
        """Refuse a teacher without a use, and a start at the weights of another network.

        Raises:
            DuetError: the message says which.
        """
        if objective.training_method is None:
            raise DuetError(
                f"objective.teacher: {self.path} was given with objective=regression, which has no teacher; choose "
                f"another objective, or start from its weights with resume={self.path}"
            )
        if self.start is not None and self.start not in STARTS:
            raise one_of("objective.start", self.start, STARTS)
        if self.start == "teacher" and not self._is_like(model):
            raise DuetError(
                "objective.start: teacher was given, but the network of the teacher is another; use fresh, or the "
                "model of the teacher"
            )

    def _is_like(self, model: DiffusionModel) -> bool:
        """Whether the networks are the same, apart from the uncertainty that a process adds to its network."""
        return lower(self.model.spec).sha256 == lower(model.spec).sha256

    def start_weights(self, model: DiffusionModel) -> Weights | None:
        """Return the weights that a student starts from, without an uncertainty; None for those of a new network."""
        means_same = self.start == "teacher" or self.model.prediction == model.prediction
        return self.network.weights if self.start != "fresh" and self._is_like(model) and means_same else None


def load_teacher(
    path: str, weights: str | None = None, start: str | None = None, own: OwnNetwork | None = None
) -> TeacherRun:
    """Read the run of a teacher.

    Args:
        path: a run directory, or one of its checkpoints.
        weights: ``"ema"``, a further average or ``"weights"``; None is what the run samples with.
        start: see `TeacherRun`.
        own: the own network of the student, which a run of an own network needs, as it keeps no code.

    Raises:
        DuetError: if there is no such run, or it is of another own network or of a classifier.
    """
    try:
        checkpoint = load_checkpoint(path)
        if isinstance(checkpoint.model.spec, OwnSpec):
            checkpoint = with_network(checkpoint, own, path)
    except DuetError as error:
        raise DuetError(f"objective.teacher: {error}") from None
    model = checkpoint.model
    if model.classifies:
        raise DuetError(f"objective.teacher: {path} is a run of a classifier, which estimates no image")
    chosen = weights or checkpoint.notes.get("weights", "ema")
    parts = checkpoint.state.parts
    if chosen not in parts:
        raise one_of("objective.teacher_weights", chosen, [part for part in parts if not part.startswith("moment")])
    network = TrainedNetwork(model.process, model.program, parts[chosen], model.spec.image_shape)
    return TeacherRun(str(path), network, model, chosen, start)

"""Guidance by other networks: a weaker network (autoguidance) or a classifier, each from its own checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_core.backend.interface import Backend, Guidance, Network
from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.program import Program
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint
from diffusion_core.sampling import SamplerPlan
from experiments.runtime.own_networks import OwnNetwork, with_network
from experiments.sampling.conditions import check_class_names, check_guided
from experiments.sampling.options import check_weights_name, choose_weights
from experiments.sampling.plans import make_sampler_plan

__all__ = ["GuidanceModels"]


@dataclass(frozen=True, eq=False)
class GuidanceModels:
    """The checkpoints of the networks that guide sampling; see `diffusion_core.backend.interface.Guidance`.

    Args:
        guide: a weaker network of the same process, which guided rows move away from.
        guide_weights: which of its weights.
        classifier: a classifier trained on the same process.
        classifier_weights: which of its weights.
    """

    guide: Checkpoint | None = None
    guide_weights: str | None = None
    classifier: Checkpoint | None = None
    classifier_weights: str | None = None

    @staticmethod
    def load(
        guide: str | None = None,
        guide_weights: str | None = None,
        classifier: str | None = None,
        classifier_weights: str | None = None,
        own: OwnNetwork | None = None,
    ) -> GuidanceModels:
        """Read the checkpoints of these run directories, and choose their weights.

        A guide that is of an own network has the code of `own`, the network to sample from, with weights of its own.

        Raises:
            DuetError: if a checkpoint cannot be read, or does not have the named weights.
        """
        chosen: list[Any] = []
        for key, path, weights in (("guide", guide, guide_weights), ("classifier", classifier, classifier_weights)):
            checkpoint = None if path is None else load_checkpoint(path, key=key)
            if checkpoint is not None and isinstance(checkpoint.model.spec, OwnSpec):
                checkpoint = with_network(checkpoint, own, path)
            if checkpoint is not None:
                weights = choose_weights(f"{key}_weights", weights, checkpoint)
            elif weights is not None:
                check_weights_name(f"{key}_weights", weights, 1)
            chosen += [checkpoint, weights]
        return GuidanceModels(*chosen)

    def plan(self, model: DiffusionModel, sampler: Mapping[str, Any]) -> SamplerPlan:
        """Return the plan of a sampler for `model`, after checking that these networks fit both.

        Raises:
            DuetError: if they do not, or if the plan uses a guide or a classifier that is missing.
        """
        plan = make_sampler_plan(model, sampler, self.guide and self.guide.model)
        if self.guide is not None:
            model.check_guide(self.guide.model, plan)
            if not np.any(plan.is_guided):
                raise DuetError(
                    "guide: one was given, but nothing is guided; set sampler.guidance_scale, for example to 2"
                )
        Guidance(classifier=self.classifier and self.classifier.model).check(plan)
        if self.classifier is not None:
            model.check_classifier(self.classifier.model, plan)
        return plan

    def check_training(self, checkpoint: Checkpoint, plan: SamplerPlan, weights: str) -> list[str]:
        """Check that `checkpoint`, the network to sample from, was trained for this guidance, on the same classes.

        Args:
            checkpoint: the network to sample from.
            plan: of the sampler.
            weights: which weights of the checkpoint are sampled from.

        Returns:
            Lines to print where the training is not fully known, or the guide is the network itself.

        Raises:
            DuetError: if its output without a class was never trained, or the classes of the guide or the classifier
                have other names.
        """
        for key, other in (("guide", self.guide), ("classifier", self.classifier)):
            if other is not None and other.training is not None and other.model.program.classes:
                check_class_names(
                    key, checkpoint, other.training.class_names, "use one that was trained on the same data"
                )
        lines = check_guided(checkpoint, plan, self.guide is not None)
        if self.guide is not None and _are_equal(
            self.guide.state.parts[self.guide_weights], checkpoint.state.parts[weights]
        ):
            lines = [
                *lines,
                f"guide: its weights ({self.guide_weights}) are those that are sampled from ({weights}), so guidance "
                f"changes nothing; give a weaker network, such as an earlier checkpoint or one with fewer channels",
            ]
        return lines

    @property
    def classifier_program(self) -> Program | None:
        """The program of the classifier, whose classes samples may have; None without a classifier."""
        return None if self.classifier is None else self.classifier.model.program

    def build(self, backend: Backend) -> Guidance:
        """Build the networks in a backend."""
        return Guidance(
            guide=_network(backend, self.guide, self.guide_weights),
            classifier=_network(backend, self.classifier, self.classifier_weights),
        )


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sets of weights are the same."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _network(backend: Backend, checkpoint: Checkpoint | None, weights: str | None) -> Network | None:
    if checkpoint is None:
        return None
    return backend.network(checkpoint.model.program, checkpoint.state.parts[weights])

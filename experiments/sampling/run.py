"""Sampling from one checkpoint into a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.text import join_some
from diffusion_core.files.atomic import write_atomically
from diffusion_core.metrics.image_files import check_image_files
from diffusion_core.runs.checkpoint import Checkpoint, load_checkpoint, weights_hash
from diffusion_core.runs.run_directory import describe_environment, write_json
from diffusion_core.runtime import signals
from diffusion_core.sampling import SamplerPlan
from experiments.runtime.backends import BackendSetup, sampling_calls
from experiments.runtime.latents import LatentDecoder, clips_latents, find_decoder
from experiments.runtime.own_networks import OwnNetwork, with_network
from experiments.runtime.processes import stop_check
from experiments.sampling.classes import describe_classes, names_of_checkpoint
from experiments.sampling.conditions import check_labels_trained, describe_weights
from experiments.sampling.draw import save_samples
from experiments.sampling.guidance import GuidanceModels
from experiments.sampling.options import SampleOptions, sample_features, sample_labels
from experiments.sampling.pairs import check_directory, check_pairs, make_pairs, save_pairs
from experiments.sampling.plans import choose_sampler

__all__ = ["SamplingSetup", "describe_samples", "sample_checkpoint"]


@dataclass(frozen=True, eq=False)
class SamplingSetup:
    """A checked request for samples of a checkpoint; `SamplingSetup.create` makes one.

    Args:
        path: of the run directory or the checkpoint.
        checkpoint: what it holds.
        sampler: name and options of the sampler.
        lines: say which sampler and samples these are, and why.
        plan: of the sampler.
        options: number, classes, seed and weights of the samples.
        guidance: other networks that guide.
        backend: what computes.
        figures: whether the denoising strip, the animation and the states are written too.
        pairs: whether the samples are also written with their noise, as data to train on.
        decoder: makes images of the samples of a network of latents.
    """

    path: str
    checkpoint: Checkpoint
    sampler: Mapping[str, Any]
    lines: tuple[str, ...]
    plan: SamplerPlan
    options: SampleOptions
    guidance: GuidanceModels = field(default_factory=GuidanceModels)
    backend: BackendSetup = field(default_factory=BackendSetup)
    figures: bool = True
    pairs: bool = False
    decoder: LatentDecoder | None = None

    @staticmethod
    def create(
        path: str,
        sampler: Mapping[str, Any] | None = None,
        options: SampleOptions | None = None,
        guidance: GuidanceModels | None = None,
        backend: BackendSetup | None = None,
        figures: bool = True,
        network: OwnNetwork | None = None,
        pairs: bool = False,
    ) -> SamplingSetup:
        """Read the checkpoint, choose what was left open as its run would, and check that everything fits.

        Args:
            path: of a run directory or one of its checkpoints.
            sampler: name and options of a sampler; options alone change the sampler of the run.
            options: `SampleOptions`; by default 64 samples with the weights that the run samples with.
            guidance: other networks that guide.
            backend: by default PyTorch.
            figures: see `SamplingSetup`.
            network: the own network that the checkpoint is of.
            pairs: see `SamplingSetup`.

        Raises:
            DuetError: if the checkpoint cannot be read, or an option does not fit it.
        """
        checkpoint, guidance = with_network(load_checkpoint(path), network, path), guidance or GuidanceModels()
        chosen, line = choose_sampler(sampler or {}, checkpoint)
        plan = guidance.plan(checkpoint.model, chosen)
        given = options or SampleOptions()
        options = given.for_checkpoint(checkpoint, guidance.classifier)
        options.check(checkpoint.model, len(checkpoint.state.averages), guidance.classifier_program)
        labels = sample_labels(options.labels, options.count, checkpoint.model, guidance.classifier_program)
        if pairs:
            check_pairs(checkpoint.model, plan, labels)
        trained = checkpoint.training.data.condition_names if checkpoint.training else ()
        features = sample_features(options.conditions, options.count, checkpoint.model.program, trained)
        unknown = None if checkpoint.training else checkpoint.model.spec.in_channels
        latents = checkpoint.training and checkpoint.training.data.latents
        decoder = find_decoder(latents, options.autoencoder, unknown, options.latent_scaling)
        names = names_of_checkpoint(checkpoint, guidance.classifier)
        notes = [
            *clips_latents(decoder, plan),
            *guidance.check_training(checkpoint, plan, options.weights),
            *check_labels_trained(checkpoint, labels),
            *describe_weights(checkpoint, options.weights),
            *filter(None, [describe_conditions(trained, features)]),
            *filter(None, [describe_classes(labels, names)]),
        ]
        backend = backend or BackendSetup()
        lines = (line, describe_samples(options, given.left_open, checkpoint), *notes)
        return SamplingSetup(
            str(path), checkpoint, chosen, lines, plan, options, guidance, backend, figures, pairs, decoder
        )

    @property
    def choices(self) -> dict[str, Any]:
        """By configuration key, the values that may have been left open."""
        weights = {key: getattr(self.guidance, key) for key in ("guide_weights", "classifier_weights")}
        samples = {f"sample.{name}": value for name, value in asdict(self.options).items()}
        return {"sampler": dict(self.sampler), **samples, **weights}

    def provenance(self, backend: str) -> dict[str, Any]:
        """Return how these samples are made, as plain data: the teacher, its weights and its sampler."""
        model, weights = self.checkpoint.model, self.options.weights
        teacher = {"weights": weights, "weights_sha256": weights_hash(self.path, weights)}
        teacher |= {"program_sha256": model.program.sha256, "images_seen": self.checkpoint.images_seen}
        process = {key: value for key, value in model.to_dict().items() if key not in ("architecture", "spec")}
        guides = [name for name in ("guide", "classifier") if getattr(self.guidance, name) is not None]
        return {
            "teacher": teacher, "process": process, "sampler": dict(self.sampler), "plan": self.plan.name,
            "seed": self.options.seed, "guided_by": guides, "backend": backend, "precision": self.backend.precision,
        }  # fmt: skip


def describe_conditions(names: Sequence[str], features: NDArray | None) -> str | None:
    """Return a line if a network that was trained with conditions draws samples without any."""
    if not names or features is not None:
        return None
    return f"conditions: zeros, as none are given; sample.conditions sets {join_some(names, 5)}"


def describe_samples(options: SampleOptions, left_open: Sequence[str], checkpoint: Checkpoint) -> str:
    """Return a line on number, classes, seed and weights of samples, and which of them are those of the run."""
    every = "every class in turn" if checkpoint.model.program.classes else "no classes"
    labels = every if options.labels is None else f"labels {options.labels}"
    own = ", ".join(name for name in ("count", "labels", "seed", "weights") if name in left_open)
    origin = "from the run" if checkpoint.training else "defaults, as the checkpoint names none"
    text = f"samples: {options.count}, {labels}, seed {options.seed}, weights {options.weights}"
    text = f"{text} ({own}: {origin})" if own else text
    given = np.size(options.labels)
    if given > options.count:
        left = given - options.count
        text += f"\nsample.count: {options.count} is less than the {given} labels; the last {left} are not drawn"
    return text


@dataclass(frozen=True, eq=False)
class SamplingResult:
    """The samples as uint8 with shape (N, H, W, C), and the seconds that drawing them took."""

    images: NDArray[np.uint8]
    seconds: float


def sample_checkpoint(setup: SamplingSetup, out: Path, config: str | None = None) -> SamplingResult:
    """Draw the samples and write them into the directory `out`; of several processes, the main one writes.

    Args:
        setup: what to sample.
        out: gets samples.npz, samples.png, environment.json, result.json, the figures with `figures`, the folder
            samples with `SampleOptions.files`, and the store pairs with `pairs`.
        config: the configuration as YAML, kept as config.yaml.
    """
    checkpoint, weights = setup.checkpoint, setup.options.weights
    if setup.options.files is not None:
        check_image_files(out / "samples")
    if setup.pairs:
        check_directory(out / "pairs")
    calls = sampling_calls([(setup.plan, setup.options.count)], setup.options.batch)
    backend = setup.backend.open(calls)
    print("\n".join(setup.lines), flush=True)
    network = backend.network(checkpoint.model.program, checkpoint.state.parts[weights])
    is_main_process = backend.collective.group.is_main_process
    if is_main_process:
        if config is not None:
            write_atomically(out / "config.yaml", config.encode())
        write_json(out / "environment.json", describe_environment(backend.describe()))
    names = names_of_checkpoint(checkpoint, setup.guidance.classifier)
    condition_names = () if checkpoint.training is None else checkpoint.training.data.condition_names

    def write_pairs(samples: NDArray, labels: NDArray, features: NDArray | None) -> None:
        dtype, seed = backend.config.host_dtype, setup.options.seed
        save_pairs(
            make_pairs(
                samples, labels, features, model=checkpoint.model, plan=setup.plan, seed=seed, names=names,
                condition_names=condition_names, dtype=dtype,
                latents=checkpoint.training and checkpoint.training.data.latents,
            ),
            out / "pairs", setup.provenance(backend.describe().backend),
        )  # fmt: skip

    began = perf_counter()
    with signals.flag_on_signal() as stop, stop_check(backend.collective, stop) as pause:
        images = save_samples(
            backend, network, checkpoint.model, setup.plan, out, setup.options, figures=setup.figures,
            guidance=setup.guidance.build(backend), pause=pause,
            names=names, on_values=write_pairs if setup.pairs else None,
            images_seen=checkpoint.images_seen, weights_sha256=weights_hash(setup.path, weights),
            keep_values=checkpoint.training is not None and checkpoint.training.data.dtype != "uint8",
            condition_names=condition_names, decoder=setup.decoder,
        )  # fmt: skip
    seconds = perf_counter() - began
    if is_main_process:
        memory = backend.peak_memory_mib()
        result = {"sampled": len(images), "sample_seconds": seconds, "peak_memory_mib": memory}
        write_json(out / "result.json", result)
    return SamplingResult(images, seconds)

"""The keys and types of every command's configuration; Hydra refuses unknown keys and wrong types with them.

If the core has a dataclass for a group, the schema is derived from it, so a new field of the core is a new key of the
configuration. Networks have different keys, so each architecture has a schema of its own in the group `architecture`,
and a file in ``configs/model`` starts from the one that it fills in.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from diffusion_core.backend.compile_policy import AUTO
from diffusion_core.backend.interface import BackendConfig
from diffusion_core.convert import SOURCES
from diffusion_core.networks import ARCHITECTURES
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.training.loop import TrainingConfig
from experiments.export.targets import TARGETS
from experiments.sampling.options import RUN
from experiments.sampling.plans import shared_options

__all__ = ["MODELS", "SCHEMAS", "add_schema", "register"]


@functools.cache
def _dataclass_schema(cls: type, *excluded: str) -> type:
    """Return a mutable dataclass with the fields of a core dataclass; fields without a default are mandatory."""
    hints = typing.get_type_hints(cls)
    specified = []
    for f in dataclasses.fields(cls):
        if f.name in excluded:
            continue
        hint, default = hints[f.name], f.default
        tuples = [part for part in typing.get_args(hint) if typing.get_origin(part) is tuple]
        if typing.get_origin(hint) is tuple:
            default = field(default_factory=lambda value=default: list(value))
            hint = list[typing.get_args(hint)[0]]
        elif tuples:  # a tuple or null, or a tuple or one of its elements
            is_optional = type(None) in typing.get_args(hint)
            hint = list[typing.get_args(tuples[0])[0]] | None if is_optional else Any
        specified.append((f.name, hint, MISSING if default is dataclasses.MISSING else default))
    return dataclasses.make_dataclass(f"{cls.__name__}Schema", specified)


def _function_schema(function: Callable[..., Any]) -> type:
    """Return a mutable dataclass with a name, and the keyword-only arguments of the function that it selects."""
    hints = typing.get_type_hints(function)
    arguments = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = [(p.name, hints[p.name], MISSING if p.default is p.empty else p.default) for p in arguments]
    return dataclasses.make_dataclass(f"{function.__name__}_options", [("name", str, MISSING), *options])


@dataclass
class CompileAfterSchema:
    """The number of network calls beyond which `compile: auto` compiles, by device; null is never."""

    cpu: int | None = None
    cuda: int | None = None


@dataclass
class BackendSchema(_dataclass_schema(BackendConfig, "precision")):
    """Which framework computes, and how; `environment` or `python` selects the interpreter that runs it in a sweep.

    Only the command `duet` reads `extras` and `download`, which describe that environment. `parallel` says how
    processes of this backend are joined.

    `compile` is true, false or auto: auto compiles beyond `compile_after` network calls; see docs/speed.md.
    """

    name: str = MISSING
    title: str = MISSING
    colour: dict[str, str] = field(default_factory=dict)
    environment: str = MISSING
    python: str | None = None
    extras: str | None = None
    download: str | None = None
    parallel: str | None = None
    compile: Any = AUTO
    compile_after: CompileAfterSchema = field(default_factory=CompileAfterSchema)


@dataclass
class DataSchema:
    """A data set by name, with its options; `flip` mirrors half of the images, `augment` is EDM's probability.

    `workers` processes make batches ahead of time; with 0, a thread makes the next one. With `loader` grain, they are
    threads of grain.

    `experiments.prepare` writes the data set to `store`, from which it is read if options.path is null. If there is no
    store, the data set `fallback` (name and options) is used with `use_fallback`; otherwise that is an error.

    At most the fraction `max_unreadable` of the files of images may be unreadable; they are left out and listed.
    """

    name: str = MISSING
    flip: bool = False
    augment: float = 0.0
    loader: str = "duet"
    workers: int = 0
    store: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fallback: dict[str, Any] = field(default_factory=dict)
    use_fallback: bool = False
    max_unreadable: float = 0.01


@dataclass
class ProcessSchema:
    """The diffusion process and the training objective.

    `schedule`, `weighting` and `timestep_sampling` have a name and options. `first_t` is the lowest timestep that is
    trained. `sigma_data` is the standard deviation of the data, which prediction edm and weighting edm use.

    `variance` is that of the reverse steps in the variational `bound`; "fixed" trains without the bound. A network with
    twice the output channels can learn it (learned, learned_range) by the bound hybrid, which has the weight
    `bound_weight`, or by the bound alone (vlb, kl), which also trains a network with a fixed variance (fixed_small,
    fixed_large). With `uncertainty` it has one more output channel, for the uncertainty of its loss.
    """

    schedule: dict[str, Any] = field(default_factory=dict)
    prediction: str = "eps"
    distance: str = "mse"
    label_dropout: float = 0.0
    first_t: int = 0
    weighting: dict[str, Any] = field(default_factory=lambda: {"name": "simple"})
    timestep_sampling: dict[str, Any] = field(default_factory=lambda: {"name": "uniform"})
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    variance: str = "fixed"
    bound: str = "hybrid"
    bound_weight: float = 0.001
    uncertainty: bool = False
    value_range: list[float] = field(default_factory=lambda: [-1.0, 1.0])
    time_scale: float = 1.0
    sigma_data: float = 0.5


@dataclass
class ParallelSchema:
    """Whether several processes compute one run, and how long one waits for another that does not answer."""

    name: str = "none"
    timeout_seconds: float = 600.0


@dataclass
class SampleSchema:
    """What is sampled during and after a training; `files` png also writes one PNG file per sample, by class."""

    count: int = 64
    labels: Any = None
    seed: int = 0
    batch: int = 128
    weights: str = "ema"
    files: str | None = None


@dataclass
class ValidationSchema:
    """The validation loss: on which `part` of the data set, of how many images, and `batch` of them at a time.

    `part` is auto for the held-out part, the name of a part, or none. With fewer images than `count`, an image is
    evaluated several times, with other noise. `trainer.validation_images` is the interval.
    """

    part: str | None = "auto"
    count: int = 512
    batch: int = 128


@dataclass
class DrawSchema(SampleSchema):
    """What is sampled from a checkpoint; null, and the labels `run`, stand for the values of its run."""

    count: int | None = None
    labels: Any = RUN
    seed: int | None = None
    batch: int | None = None
    weights: str | None = None


@dataclass
class FromRunSchema:
    """The run that ``from=RUN`` names, whose configuration is the default of every other key."""

    from_run: str | None = None


@dataclass
class TrainSchema(FromRunSchema):
    """The configuration of `experiments.train`.

    `resume` is a run or a checkpoint to continue from, `latest` for the run in this directory, or `auto` for that run
    or, if there is none, a new one; `change_objective` lets a resumed run change its objective or its averages, and
    `change_data` its data, or the order or the names of its classes.
    """

    seed: int = 0
    precision: str = "float32"
    resume: str | None = None
    change_objective: bool = False
    change_data: bool = False
    backend: BackendSchema = field(default_factory=BackendSchema)
    parallel: ParallelSchema = field(default_factory=ParallelSchema)
    data: DataSchema = field(default_factory=DataSchema)
    model: Any = MISSING
    process: ProcessSchema = field(default_factory=ProcessSchema)
    optimiser: _dataclass_schema(Adam) = field(default_factory=_dataclass_schema(Adam))
    lr: _dataclass_schema(LearningRate) = field(default_factory=_dataclass_schema(LearningRate))
    ema: dict[str, Any] = field(default_factory=lambda: {"name": "warmup"})
    trainer: _dataclass_schema(TrainingConfig) = field(default_factory=_dataclass_schema(TrainingConfig))
    sampler: dict[str, Any] = field(default_factory=shared_options)
    sample: SampleSchema = field(default_factory=SampleSchema)
    validation: ValidationSchema = field(default_factory=ValidationSchema)
    features: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    metrics: dict[str, Any] = field(default_factory=dict)
    sets: int = 3
    confidence: float = 0.95
    tracker: dict[str, Any] = field(default_factory=lambda: {"name": "none"})


@dataclass
class GuidanceModelsSchema:
    """Checkpoints of networks that guide sampling, and their weights; null selects the weights that their run uses."""

    guide: str | None = None
    guide_weights: str | None = None
    classifier: str | None = None
    classifier_weights: str | None = None


@dataclass
class SampleRunSchema(GuidanceModelsSchema, FromRunSchema):
    """The configuration of `experiments.sample`."""

    checkpoint: str = MISSING
    out: str = MISSING
    precision: str = "float32"
    backend: BackendSchema = field(default_factory=BackendSchema)
    parallel: ParallelSchema = field(default_factory=ParallelSchema)
    sampler: dict[str, Any] = field(default_factory=dict)
    sample: DrawSchema = field(default_factory=DrawSchema)
    save_images: bool = True


@dataclass
class EditSchema(GuidanceModelsSchema, FromRunSchema):
    """The configuration of `experiments.edit`; `mode` has a name and options, `weights` null is the run's own."""

    checkpoint: str = MISSING
    out: str = MISSING
    weights: str | None = None
    seed: int = 0
    precision: str = "float32"
    backend: BackendSchema = field(default_factory=BackendSchema)
    data: DataSchema = field(default_factory=DataSchema)
    path: str | None = None
    images: Any = field(default_factory=lambda: [0, 1, 2, 3])
    labels: Any = None
    variants: int = 1
    batch: int = 64
    sampler: dict[str, Any] = field(default_factory=dict)
    mode: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluateSchema(FromRunSchema):
    """The configuration of `experiments.evaluate`.

    `samples` is a path or a list of paths, `reference` a path instead of data, `training` the data that the network was
    trained on if it is not `data`; `metrics` has the options of each metric by its name. `weights` null selects those
    that the run of the checkpoint samples with.
    """

    checkpoint: str | None = None
    out: str = MISSING
    weights: str | None = None
    seed: int = 0
    precision: str = "float32"
    backend: BackendSchema = field(default_factory=BackendSchema)
    parallel: ParallelSchema = field(default_factory=ParallelSchema)
    data: DataSchema = field(default_factory=DataSchema)
    training: DataSchema = field(default_factory=DataSchema)
    samples: Any = None
    reference: str | None = None
    count: int | None = None
    sets: int = 5
    confidence: float = 0.95
    keep_features: bool = False
    max_unreadable: float = "${data.max_unreadable}"
    features: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    likelihood: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)


@dataclass
class GallerySchema(FromRunSchema):
    """The configuration of `experiments.gallery`; empty `methods` selects all that the process allows."""

    checkpoint: str = MISSING
    out: str = MISSING
    precision: str = "float32"
    backend: BackendSchema = field(default_factory=BackendSchema)
    methods: list[str] = field(default_factory=list)
    budgets: list[int] = field(default_factory=lambda: [5, 8, 12, 20, 50, 100])
    spacing: Any = field(default_factory=lambda: {"name": "log_snr"})
    guidance_scale: float = 1.0
    reference: str = "DPM-Solver++ 3M, exact"
    reference_steps: int = 500
    shown: int = 3
    sample: DrawSchema = field(default_factory=lambda: DrawSchema(count=16))


@dataclass
class PrepareSchema:
    """The configuration of `experiments.prepare`; `split` has a name and options, `workers` null means one per core.

    At most the fraction `max_unreadable` of the images of a part may be unreadable; they are skipped.
    """

    data: DataSchema = field(default_factory=DataSchema)
    out: str | None = "${data.store}"
    archives: str = "${oc.env:DUET_DATA,data}/archives"
    download: bool = True
    workers: int | None = None
    max_unreadable: float = "${data.max_unreadable}"
    split: dict[str, Any] = field(default_factory=dict)


@dataclass
class InspectSchema(FromRunSchema):
    """The configuration of `experiments.inspect`; empty `parts` selects all prepared parts, or the part in `data`.

    Images whose thumbnails differ by at most `max_distance` are near; at most `max_compared` images of a part are
    compared.
    """

    out: str = MISSING
    data: DataSchema = field(default_factory=DataSchema)
    parts: list[str] = field(default_factory=list)
    max_distance: float = 4.0
    max_compared: int = 50_000
    pairs: int = 100
    samples: int = 10
    seed: int = 0


@dataclass
class TraceSchema:
    """The configuration of `experiments.trace`; `whole` false checks a few networks and plans instead of all."""

    out: str = MISSING
    handover: str | None = None
    whole: bool = True
    precisions: list[str] = field(default_factory=lambda: ["float64", "float32"])
    backend: BackendSchema = field(default_factory=BackendSchema)


@dataclass
class NetworksSchema(FromRunSchema):
    """The configuration of `experiments.networks`; `other` is the record that another backend wrote."""

    out: str = MISSING
    other: str | None = None
    precisions: list[str] = field(default_factory=lambda: ["float64", "float32"])
    gradients: bool = True
    batch: int = 1
    backend: BackendSchema = field(default_factory=BackendSchema)
    model: Any = MISSING


@dataclass
class CompareSchema:
    """The configuration of `experiments.compare`."""

    runs: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    out: str = MISSING
    title: str = ""  # by default, it says what is compared
    command: str | None = None


@dataclass
class ImportSchema:
    """The configuration of `experiments.import_weights`; `process` replaces the process that the source names."""

    path: str = MISSING
    out: str = MISSING
    source: Any = MISSING
    process: Any = None
    backend: BackendSchema = field(default_factory=BackendSchema)


@dataclass
class ReconstructSchema(FromRunSchema):
    """The configuration of `experiments.reconstruct_ema`; `images` null is the moment of the last snapshot."""

    run: str = MISSING
    out: str = MISSING
    images: int | None = None
    ema: dict[str, Any] = field(default_factory=dict)


@dataclass
class PageSchema:
    """The configuration of `experiments.page`; `run` is the directory of a run."""

    run: str = MISSING


@dataclass
class ExportSchema(FromRunSchema):
    """The configuration of `experiments.export_weights`; `weights` null selects those that the run samples with."""

    checkpoint: str = MISSING
    out: str = MISSING
    target: Any = MISSING
    weights: str | None = None
    precision: str = "float32"
    backend: BackendSchema = field(default_factory=BackendSchema)


@dataclass
class StudyFileSchema:
    """A study file; `experiments.studies.plan.Study` checks its nested parts."""

    name: str = MISSING
    title: str = ""
    question: str = ""
    seeds: list[int] = field(default_factory=list)
    common: list[str] = field(default_factory=list)
    stages: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    alpha: float = 0.05


@dataclass
class StudySchema:
    """The configuration of `experiments.study`; `job` runs one job of the plan, as a launcher requests it."""

    out: str = MISSING
    dry_run: bool = False
    job: str | None = None
    study: StudyFileSchema = field(default_factory=StudyFileSchema)


@dataclass
class ReplaySchema:
    """The configuration of `experiments.replay`; `precision` null is that of the run, `images` are examined."""

    bundle: str = MISSING
    precision: str | None = None
    images: int = 4
    backend: BackendSchema = field(default_factory=BackendSchema)


SCHEMAS = {
    "train": TrainSchema,
    "sample": SampleRunSchema,
    "edit": EditSchema,
    "gallery": GallerySchema,
    "evaluate": EvaluateSchema,
    "prepare": PrepareSchema,
    "inspect": InspectSchema,
    "trace": TraceSchema,
    "networks": NetworksSchema,
    "compare": CompareSchema,
    "import_weights": ImportSchema,
    "export_weights": ExportSchema,
    "reconstruct_ema": ReconstructSchema,
    "page": PageSchema,
    "study": StudySchema,
    "replay": ReplaySchema,
}


MODELS = {
    name: dataclasses.make_dataclass(
        f"{spec.__name__}Schema", [("architecture", str, field(default=name))], bases=(_dataclass_schema(spec),)
    )
    for name, spec in ARCHITECTURES.items()
}


def add_schema(name: str, schema: type) -> None:
    """Register the schema of a command outside `experiments`, whose file is ``configs/<name>.yaml``."""
    SCHEMAS[name] = schema
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)


@functools.cache
def register() -> None:
    """Give Hydra the schemas, under the names that the files in `configs` refer to."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        node = OmegaConf.structured(schema)
        if schema in (SampleRunSchema, EditSchema):
            # Without a name, these are options of the checkpoint's sampler, which checks them when it is built.
            OmegaConf.set_struct(node.sampler, False)
        if schema is TrainSchema:
            # Options of the named function, which checks them when it is called.
            for group in ("schedule", "weighting", "timestep_sampling"):
                OmegaConf.set_struct(node.process[group], False)
        store.store(name=f"{name}_schema", node=node)
    for name, schema in MODELS.items():
        store.store(group="architecture", name=name, node=schema)
    for group, functions in (("source", SOURCES), ("target", TARGETS)):
        for name, function in functions.items():
            store.store(group=group, name=name, node=_function_schema(function)(name=name))

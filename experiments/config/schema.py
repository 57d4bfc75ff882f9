"""The schema of the configuration: unknown keys and wrong types are refused before anything runs.

Where the core has a dataclass for a group, the schema is made from it, so a new field of the core is a new
key of the configuration and nothing is said twice. Networks differ in their keys, so each has a schema of its own
in the group `architecture`, and a file in ``configs/model`` starts from the one that it fills in.
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
from experiments.sampling.plans import shared_options

__all__ = ["MODELS", "SCHEMAS", "add_schema", "register"]


@functools.cache
def _schema_of(cls: type, *without: str) -> type:
    """A mutable dataclass with the fields of a core dataclass; fields without a default must be given."""
    hints = typing.get_type_hints(cls)
    made = []
    for f in dataclasses.fields(cls):
        if f.name in without:
            continue
        hint, default = hints[f.name], f.default
        if typing.get_origin(hint) is tuple:
            default = field(default_factory=lambda value=default: list(value))
            hint = list[typing.get_args(hint)[0]]
        made.append((f.name, hint, MISSING if default is dataclasses.MISSING else default))
    return dataclasses.make_dataclass(f"{cls.__name__}Schema", made)


def _options_of(function: Callable[..., Any]) -> type:
    """A mutable dataclass with the keyword-only arguments of a function that is chosen by name, and that name."""
    hints = typing.get_type_hints(function)
    arguments = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    made = [(p.name, hints[p.name], MISSING if p.default is p.empty else p.default) for p in arguments]
    return dataclasses.make_dataclass(f"{function.__name__}_options", [("name", str, MISSING), *made])


@dataclass
class CompileAfterSchema:
    """The number of network calls beyond which `compile: auto` compiles, by device; null is never."""

    cpu: int | None = None
    cuda: int | None = None


@dataclass
class BackendSchema(_schema_of(BackendConfig, "precision")):
    """Which framework computes, and how; `environment` or `python` says whose Python runs it in a sweep.

    The command `duet` alone reads `extras`, `download` and `parallel`: they describe that environment.

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
    """A data set by name with its own options; `flip` mirrors half of the images, `augment` is EDM's probability.

    `workers` processes make batches ahead; with 0 a thread makes one. `loader` is duet, or grain, whose threads do.

    `store` is where `experiments.prepare` puts it, and where it is read from where options.path is null.
    `fallback` is another one (name and options) that is used where that is not there either.
    """

    name: str = MISSING
    flip: bool = False
    augment: float = 0.0
    loader: str = "duet"
    workers: int = 0
    store: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fallback: dict[str, Any] = field(default_factory=dict)


@dataclass
class ProcessSchema:
    """Schedule (name and options), prediction, distance, label dropping, lowest level, range of values, scale of t.

    `sigma_data` is the standard deviation of the data, which prediction edm and weighting edm ask for.

    The weights of the levels and the law by which they are drawn have a name and options, as the schedule has.

    A network with twice the channels learns a `variance`, by a `bound` that in hybrid has the weight `bound_weight`;
    with `uncertainty` it gets one channel more for that of its loss.
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
    """Whether several processes compute one run together, and how long one waits for another that does not answer."""

    name: str = "none"
    timeout_seconds: float = 600.0


@dataclass
class SampleSchema:
    """What is sampled at the end of training, or by `experiments.sample`."""

    count: int = 64
    labels: Any = None
    seed: int = 0
    batch: int = 128
    weights: str = "ema"


@dataclass
class DrawSchema(SampleSchema):
    """What is sampled of a checkpoint; no `weights` are those that its run draws with."""

    weights: str | None = None


@dataclass
class TrainSchema:
    """Everything of `experiments.train`.

    `resume` is a run or a checkpoint to go on from, `latest` for the run in this directory, or `auto` for that one or,
    where there is none, a new one; `change_objective` lets a resumed run change its objective or averages.
    """

    seed: int = 0
    precision: str = "float32"
    resume: str | None = None
    change_objective: bool = False
    backend: BackendSchema = field(default_factory=BackendSchema)
    parallel: ParallelSchema = field(default_factory=ParallelSchema)
    data: DataSchema = field(default_factory=DataSchema)
    model: Any = MISSING
    process: ProcessSchema = field(default_factory=ProcessSchema)
    optimiser: _schema_of(Adam) = field(default_factory=_schema_of(Adam))
    lr: _schema_of(LearningRate) = field(default_factory=_schema_of(LearningRate))
    ema: dict[str, Any] = field(default_factory=lambda: {"name": "warmup"})
    trainer: _schema_of(TrainingConfig) = field(default_factory=_schema_of(TrainingConfig))
    sampler: dict[str, Any] = field(default_factory=shared_options)
    sample: SampleSchema = field(default_factory=SampleSchema)
    features: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    metrics: dict[str, Any] = field(default_factory=dict)
    sets: int = 3
    confidence: float = 0.95
    tracker: dict[str, Any] = field(default_factory=lambda: {"name": "none"})


@dataclass
class GuidanceModelsSchema:
    """Other networks that lead sampling: the checkpoint of each, and which of its weights; null are its run's own."""

    guide: str | None = None
    guide_weights: str | None = None
    classifier: str | None = None
    classifier_weights: str | None = None


@dataclass
class SampleRunSchema(GuidanceModelsSchema):
    """Everything of `experiments.sample`."""

    checkpoint: str = MISSING
    out: str = MISSING
    precision: str = "float32"
    backend: BackendSchema = field(default_factory=BackendSchema)
    parallel: ParallelSchema = field(default_factory=ParallelSchema)
    sampler: dict[str, Any] = field(default_factory=dict)
    sample: DrawSchema = field(default_factory=DrawSchema)
    save_images: bool = True


@dataclass
class EditSchema(GuidanceModelsSchema):
    """Everything of `experiments.edit`; a mode has a name and options, no `weights` are those the run draws with."""

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
class EvaluateSchema:
    """Everything of `experiments.evaluate`.

    `samples` is a path or a list of them, `reference` a path in the place of data, `training` what the network was
    trained on, where that is not the data; `metrics` has the options of each metric by its name. No `weights` are those
    that the run of the checkpoint draws with.
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
    features: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    likelihood: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)


@dataclass
class GallerySchema:
    """Everything of `experiments.gallery`; no `methods` means all that the process allows, in `budgets` evaluations."""

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
    """Everything of `experiments.prepare`; a split has a name and options, no `workers` means one per core.

    At most the fraction `max_unreadable` of the images of a part may be unreadable; they are skipped.
    """

    data: DataSchema = field(default_factory=DataSchema)
    out: str = "${data.store}"
    archives: str = "${oc.env:DUET_DATA,data}/archives"
    download: bool = True
    workers: int | None = None
    max_unreadable: float = 0.01
    split: dict[str, Any] = field(default_factory=dict)


@dataclass
class InspectSchema:
    """Everything of `experiments.inspect`; no `parts` means all that are prepared, or the one that data means.

    Images whose thumbnails differ by at most `max_distance` are near; at most `max_compared` images of a part are compared.
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
    """Everything of `experiments.trace`; not `whole` is the ladder with a few networks and plans instead of all."""

    out: str = MISSING
    handover: str | None = None
    whole: bool = True
    precisions: list[str] = field(default_factory=lambda: ["float64", "float32"])
    backend: BackendSchema = field(default_factory=BackendSchema)


@dataclass
class NetworksSchema:
    """Everything of `experiments.networks`; `other` is the record that another backend wrote."""

    out: str = MISSING
    other: str | None = None
    precisions: list[str] = field(default_factory=lambda: ["float64", "float32"])
    gradients: bool = True
    batch: int = 1
    backend: BackendSchema = field(default_factory=BackendSchema)
    model: Any = MISSING


@dataclass
class CompareSchema:
    """Everything of `experiments.compare`."""

    runs: list[str] = field(default_factory=list)
    crossed: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    out: str = MISSING
    title: str = "Do the frameworks agree?"
    command: str | None = None


@dataclass
class ImportSchema:
    """Everything of `experiments.import_weights`; a `process` that is given takes the place of the source's own."""

    path: str = MISSING
    out: str = MISSING
    source: Any = MISSING
    process: Any = None
    backend: BackendSchema = field(default_factory=BackendSchema)


@dataclass
class ReconstructSchema:
    """Everything of `experiments.reconstruct_ema`; no `images` means the last snapshot."""

    run: str = MISSING
    out: str = MISSING
    images: int | None = None
    ema: dict[str, Any] = field(default_factory=dict)


@dataclass
class ExportSchema:
    """Everything of `experiments.export_weights`; no `weights` are those that the run draws with."""

    checkpoint: str = MISSING
    out: str = MISSING
    target: Any = MISSING
    weights: str | None = None
    precision: str = "float32"
    backend: BackendSchema = field(default_factory=BackendSchema)


@dataclass
class StudyFileSchema:
    """A study file; see `experiments.studies.plan.Study`, which checks what is nested here."""

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
    """Everything of `experiments.study`; `job` performs one job of the plan alone, as a launcher asks for."""

    out: str = MISSING
    dry_run: bool = False
    job: str | None = None
    study: StudyFileSchema = field(default_factory=StudyFileSchema)


@dataclass
class ReplaySchema:
    """Everything of `experiments.replay`; `precision` null is that of the run, so many `images` are looked into."""

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
    "study": StudySchema,
    "replay": ReplaySchema,
}


MODELS = {
    name: dataclasses.make_dataclass(
        f"{spec.__name__}Schema", [("architecture", str, field(default=name))], bases=(_schema_of(spec),)
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
            # Whose options are given, where no sampler is named, only the checkpoint knows; `build` looks at them.
            OmegaConf.set_struct(node.sampler, False)
        store.store(name=f"{name}_schema", node=node)
    for name, schema in MODELS.items():
        store.store(group="architecture", name=name, node=schema)
    for group, functions in (("source", SOURCES), ("target", TARGETS)):
        for name, function in functions.items():
            store.store(group=group, name=name, node=_options_of(function)(name=name))

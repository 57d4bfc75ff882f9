"""The keys and types of every command's configuration; Hydra refuses unknown keys and wrong types with them.

If the core has a dataclass for a group, the schema is derived from it, so a new field of the core is a new key of the
configuration. Networks have different keys, so each architecture has a schema of its own in the group `architecture`,
and a file in ``configs/model`` starts from the one that it fills in.

`duet COMMAND --help` describes each key by the comment beside its field, or by the argument of that name in the
docstring of the core's dataclass or function.
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
from diffusion_core.optim.adam import LearningRate
from diffusion_core.training.training_config import TrainingConfig
from experiments.data.latents import LatentOptions
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
    schema = dataclasses.make_dataclass(f"{cls.__name__}Schema", specified)
    schema.__doc__ = cls.__doc__
    return schema


def _function_schema(function: Callable[..., Any]) -> type:
    """Return a mutable dataclass with a name, and the keyword-only arguments of the function that it selects."""
    hints = typing.get_type_hints(function)
    arguments = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = [(p.name, hints[p.name], MISSING if p.default is p.empty else p.default) for p in arguments]
    schema = dataclasses.make_dataclass(f"{function.__name__}_options", [("name", str, MISSING), *options])
    schema.__doc__ = function.__doc__
    return schema


@dataclass
class CompileAfterSchema:
    """The number of network calls beyond which `compile: auto` compiles, by device; null is never."""

    cpu: int | None = None  # on the CPU; null is never
    cuda: int | None = None  # on a GPU; null is never


@dataclass
class BackendSchema(_dataclass_schema(BackendConfig, "precision")):
    """Which framework computes, and how; `environment` or `python` selects the interpreter that runs it in a sweep.

    Only the command `duet` reads `extras` and `download`, which describe that environment. `parallel` says how
    processes of this backend are joined.

    `compile` is true, false or auto: auto compiles beyond `compile_after` network calls; see docs/speed.md.
    """

    name: str = MISSING  # of the backend, as in configs/backend
    title: str = MISSING  # its name for people
    colour: dict[str, str] = field(default_factory=dict)  # in reports: #rrggbb for the themes light and dark
    environment: str = MISSING  # folder of its virtual environment
    python: str | None = None  # an interpreter to use instead of that environment
    extras: str | None = None  # extras of pyproject.toml that `duet setup` installs
    download: str | None = None  # the size of these packages, for people
    parallel: str | None = None  # the option of the group parallel that joins its processes
    # whose objects are own networks of this backend; it needs the first
    packages: list[str] = field(default_factory=list)
    network_files: list[str] = field(default_factory=list)  # endings of files, and names of files in directories
    compile: Any = AUTO  # true, false or auto, which compiles long work; see docs/speed.md
    # network calls beyond which auto compiles, by device
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

    name: str = MISSING  # of the data set; data=NAME chooses it with its options
    flip: bool = False  # mirror half of the training images
    augment: float = 0.0  # probability of EDM's augmentations; needs model.augment_dim=9
    loader: str = "duet"  # duet, or grain (threads of the package grain)
    workers: int = 0  # processes that make batches ahead of time; 0 uses a thread
    store: str | None = None  # the directory that `prepare` writes, read if options.path is null
    options: dict[str, Any] = field(default_factory=dict)  # options of this data set
    fallback: dict[str, Any] = field(default_factory=dict)  # name and options of the data set that may take its place
    use_fallback: bool = False  # whether the fallback is used where the files are missing
    max_unreadable: float = 0.01  # largest fraction of the image files that may be unreadable


@dataclass
class ProcessSchema:
    """The diffusion process and the training objective.

    `schedule`, `weighting`, `timestep_sampling` and `coupling` have a name and options. `first_t` is the lowest
    timestep that is trained. `sigma_data` is the standard deviation of the data, which the predictions edm and
    trigflow and the weighting edm use.

    `variance` is that of the reverse steps in the variational `bound`; "fixed" trains without the bound. A network with
    twice the output channels can learn it (learned, learned_range) by the bound hybrid, which has the weight
    `bound_weight`, or by the bound alone (vlb, kl), which also trains a network with a fixed variance (fixed_small,
    fixed_large). With `uncertainty` it has one more output channel, for the uncertainty of its loss.
    """

    # the noise schedule: {name: linear, T: 1000} and its options
    schedule: dict[str, Any] = field(default_factory=dict)
    prediction: str = "eps"  # what the network predicts: eps, v, x0, score, flow, edm ...
    distance: str = "mse"  # of prediction and target: mse, l1, huber or pseudo_huber
    label_dropout: float = 0.0  # probability of training without the class, for guidance
    first_t: int = 0  # the lowest timestep that is trained
    # of the loss by noise level: {name: min_snr, gamma: 5} ...
    weighting: dict[str, Any] = field(default_factory=lambda: {"name": "simple"})
    # how timesteps are drawn: {name: uniform} ...
    timestep_sampling: dict[str, Any] = field(default_factory=lambda: {"name": "uniform"})
    offset_noise: float = 0.0  # standard deviation of a noise that is equal at all pixels
    input_perturbation: float = 0.0  # standard deviation of additional noise on the input only
    variance: str = "fixed"  # of the reverse steps: fixed, or learned_range ... for the bound
    bound: str = "hybrid"  # the variational bound in the loss: hybrid, vlb or kl
    bound_weight: float = 0.001  # weight of the bound in hybrid
    bound_cdf: str = "exact"  # the normal distribution function in the bound: exact, or tanh as in the code of DiT
    # whether the network also predicts the uncertainty of its loss; one of EDM2 does by model.logvar_channels
    uncertainty: bool = False
    # the values of black and white that the network sees
    value_range: list[float] = field(default_factory=lambda: [-1.0, 1.0])
    time_scale: float = 1.0  # factor of the timestep that the network sees
    sigma_data: float = 0.5  # standard deviation of the data, for prediction edm and trigflow, and weighting edm
    time_offset: float = 0.0  # added to the scaled timestep that the network sees; with time_scale -1, 1 is 1 - t
    # which noise of a batch belongs to which image: {name: optimal_transport} ...
    coupling: dict[str, Any] = field(default_factory=lambda: {"name": "independent"})
    # noise around the path of x_t: {name: constant, sigma: 0.1} ...
    path_noise: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    t_floor: float = 0.0  # the least t that the velocity of prediction x0 is divided by (flow_continuous)
    boundary: float = 0.0  # the sigma/alpha at which the estimate of prediction edm is x itself (consistency models)


@dataclass
class ParallelSchema:
    """Whether several processes compute one run, and how long one waits for another that does not answer."""

    name: str = "none"  # none, ddp (PyTorch) or multiworker (TensorFlow)
    timeout_seconds: float = 600.0  # how long a process waits for another one


@dataclass
class SampleSchema:
    """What is sampled during and after a training; `files` png also writes one PNG file per sample, by class."""

    count: int = 64  # number of samples
    labels: Any = None  # a class by number or name, a list of classes, or null for all in turn
    seed: int = 0  # of the noise
    batch: int = 128  # samples per network call; changes no sample
    weights: str = "ema"  # ema, another average (ema1 ...), or weights for the weights themselves
    files: str | None = None  # png: also one PNG file per sample, in a folder for each class
    conditions: Any = None  # of data with conditions: one vector, a list of vectors, or {NAME: NUMBER}; null is zeros
    autoencoder: str | None = None  # decodes samples of latents; null: the one that encoded the data
    latent_scaling: str = "autoencoder"  # of imported weights: how their latents are scaled, autoencoder or edm2


@dataclass
class ValidationSchema:
    """The validation loss: on which `part` of the data set, of how many images, and `batch` of them at a time.

    `part` is auto for the held-out part, the name of a part, or none. With fewer images than `count`, an image is
    evaluated several times, with other noise. `trainer.validation_images` is the interval.
    """

    part: str | None = "auto"  # auto, the name of a part of the data set, or none
    count: int = 512  # images and noise levels that are evaluated
    batch: int = 128  # images per network call


@dataclass
class DrawSchema(SampleSchema):
    """What is sampled from a checkpoint; null, and the labels `run`, stand for the values of its run."""

    count: int | None = None  # number of samples; null: as the run's
    labels: Any = RUN  # a class, a list of classes, null for all in turn, or run: as the run's
    seed: int | None = None  # of the noise; null: as the run's
    batch: int | None = None  # samples per network call; null: as the run's
    weights: str | None = None  # ema, ema1 ... or weights; null: as the run's


@dataclass
class FromRunSchema:
    """The run that ``from=RUN`` names, whose configuration is the default of every other key."""

    from_run: str | None = None  # written as from=RUN: a run or an import whose configuration is taken


@dataclass
class OwnNetworkSchema:
    """A network of your own, by the name of a function, class or object in your code; see docs/own_networks.md.

    `network` is ``my_package.my_file:build`` or ``path/to/file.py:build``, in the framework of the backend; for several
    backends it is a table by backend. `network_call` has the arguments of `duet.adapt`.
    """

    network: Any = None  # your own network, as in my_package.my_file:build, in place of a model
    network_options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of that function
    # how it is called, where that is not (x, t, label): inputs, layout, output, time, classes, null_label
    network_call: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainSchema(OwnNetworkSchema, FromRunSchema):
    """The configuration of `experiments.train`.

    `resume` is a run or a checkpoint to continue from, `latest` for the run in this directory, or `auto` for that run
    or, if there is none, a new one; `change_objective` lets a resumed run change its objective or its averages, and
    `change_data` its data, or the order or the names of its classes.
    """

    seed: int = 0  # of every random number of the run
    precision: str = "float32"  # float32, bf16 or float64
    resume: str | None = None  # a run or a checkpoint; latest, or auto, for that of hydra.run.dir
    change_objective: bool = False  # let a resumed run change its objective or its averages
    change_data: bool = False  # let a resumed run change its data or its classes
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework
    # several processes that compute one run; see docs/scaling.md
    parallel: ParallelSchema = field(default_factory=ParallelSchema)
    data: DataSchema = field(default_factory=DataSchema)  # what is trained on
    model: Any = None  # the network; null with network=
    process: ProcessSchema = field(default_factory=ProcessSchema)  # noise schedule, prediction and training objective
    # the training method: regression, or one whose target needs the network
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "regression"})
    # what a step does to each parameter: a name and options
    optimiser: dict[str, Any] = field(default_factory=lambda: {"name": "adam"})
    lr: _dataclass_schema(LearningRate) = field(default_factory=_dataclass_schema(LearningRate))  # the learning rate
    ema: dict[str, Any] = field(default_factory=lambda: {"name": "warmup"})  # the moving average of the weights
    # length of the run, batch, log, checkpoints
    trainer: _dataclass_schema(TrainingConfig) = field(default_factory=_dataclass_schema(TrainingConfig))
    sampler: dict[str, Any] = field(default_factory=shared_options)  # how samples are drawn at the end
    sample: SampleSchema = field(default_factory=SampleSchema)  # what is sampled at the end
    validation: ValidationSchema = field(default_factory=ValidationSchema)  # the validation loss
    # the network whose features the metrics compare
    features: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    # measures of the final samples; several as metrics=[frechet,kernel]
    metrics: dict[str, Any] = field(default_factory=dict)
    # disjoint sets that the samples are divided into, for the intervals; null: 20, or fewer for few samples
    sets: int | None = None
    confidence: float = 0.95  # of the intervals
    # a service that also gets metrics and images
    tracker: dict[str, Any] = field(default_factory=lambda: {"name": "none"})


@dataclass
class GuidanceModelsSchema:
    """Checkpoints of networks that guide sampling, and their weights; null selects the weights that their run uses."""

    guide: str | None = None  # checkpoint of a weaker network, away from which sampling is guided
    guide_weights: str | None = None  # its weights: ema or weights; null: as its run's
    classifier: str | None = None  # checkpoint of a classifier that guides towards its class
    classifier_weights: str | None = None  # its weights: ema or weights; null: as its run's


@dataclass
class SampleRunSchema(GuidanceModelsSchema, OwnNetworkSchema, FromRunSchema):
    """The configuration of `experiments.sample`."""

    checkpoint: str = MISSING  # a run, or one of its checkpoints
    out: str = MISSING  # the directory for the results
    precision: str = "float32"  # float32, bf16 or float64
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework
    parallel: ParallelSchema = field(default_factory=ParallelSchema)  # several processes; see docs/scaling.md
    sampler: dict[str, Any] = field(default_factory=dict)  # how samples are drawn; by default the run's own sampler
    sample: DrawSchema = field(default_factory=DrawSchema)  # what is sampled
    save_images: bool = True  # whether figures are written too
    pairs: bool = False  # whether OUT/pairs gets the samples with their noise, data to train on (reflow)


@dataclass
class EditSchema(GuidanceModelsSchema, OwnNetworkSchema, FromRunSchema):
    """The configuration of `experiments.edit`; `mode` has a name and options, `weights` null is the run's own."""

    checkpoint: str = MISSING  # a run, or one of its checkpoints
    out: str = MISSING  # the directory for the results
    weights: str | None = None  # ema, ema1 ... or weights; null: as the run's
    seed: int = 0  # of the noise
    precision: str = "float32"  # float32, bf16 or float64
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework
    data: DataSchema = field(default_factory=DataSchema)  # the data set whose images are edited
    path: str | None = None  # an image file or a folder to edit, instead of data
    images: Any = field(default_factory=lambda: [0, 1, 2, 3])  # numbers of the images in the data set, or a count
    labels: Any = None  # classes to edit towards; null: those of the images
    variants: int = 1  # results per image
    batch: int = 64  # images per network call
    sampler: dict[str, Any] = field(default_factory=dict)  # by default the run's own sampler
    mode: dict[str, Any] = field(default_factory=dict)  # what is done with the images


@dataclass
class EvaluateSchema(OwnNetworkSchema, FromRunSchema):
    """The configuration of `experiments.evaluate`.

    `samples` is a path or a list of paths, `reference` a path instead of data, `training` the data that the network was
    trained on if it is not `data`; `metrics` has the options of each metric by its name. `weights` null selects those
    that the run of the checkpoint samples with.
    """

    checkpoint: str | None = None  # a run or a checkpoint, for likelihood, accuracy and loss
    out: str = MISSING  # the directory for the results
    weights: str | None = None  # ema, ema1 ... or weights; null: as the run's
    seed: int = 0  # of every random number
    precision: str = "float32"  # float32, bf16 or float64
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework, for a checkpoint
    parallel: ParallelSchema = field(default_factory=ParallelSchema)  # several processes; see docs/scaling.md
    data: DataSchema = field(default_factory=DataSchema)  # the real images
    # what the network was trained on, if it is not data; chosen by data@training=NAME
    training: DataSchema = field(default_factory=DataSchema)
    samples: Any = None  # a run, an .npz file or a folder of images; a list is several sets
    reference: str | None = None  # a file or a folder of real images, features or statistics, instead of data
    count: int | None = None  # samples of each set that are judged; null: all
    sets: int | None = None  # sets that the samples of one path are divided into; null: 20, or fewer for few samples
    reference_sets: int | None = None  # sets of the reference, for intervals over its draw too; null: 20; 0: none
    floors: int = 5  # sets drawn from the reference, whose mean is the floor of a number; 0: none
    confidence: float = 0.95  # of the intervals
    keep_features: bool = False  # whether the features are written too
    max_unreadable: float = "${data.max_unreadable}"  # largest fraction of the image files that may be unreadable
    features: dict[str, Any] = field(default_factory=dict)  # the network whose features are compared
    metrics: dict[str, Any] = field(default_factory=dict)  # several as metrics=[frechet,kernel]
    likelihood: dict[str, Any] = field(default_factory=dict)  # bits per dimension of the data under the checkpoint
    accuracy: dict[str, Any] = field(default_factory=dict)  # of a classifier at each noise level
    loss: dict[str, Any] = field(default_factory=dict)  # the validation loss of the checkpoint


@dataclass
class GallerySchema(OwnNetworkSchema, FromRunSchema):
    """The configuration of `experiments.gallery`; empty `methods` selects all that the process allows."""

    checkpoint: str = MISSING  # a run, or one of its checkpoints
    out: str = MISSING  # the directory for the results
    precision: str = "float32"  # float32, bf16 or float64
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework
    methods: list[str] = field(default_factory=list)  # names of docs/methods.md; [] selects all that the process allows
    budgets: list[int] = field(default_factory=lambda: [5, 8, 12, 20, 50, 100])  # numbers of network evaluations
    spacing: Any = field(default_factory=lambda: {"name": "log_snr"})  # where the timesteps lie, for every method
    guidance_scale: float = 1.0  # weight of classifier-free guidance
    reference: str = "DPM-Solver++ 3M, exact"  # the method that stands for the exact solution
    reference_steps: int = 500  # its network evaluations
    shown: int = 3  # samples in the figure
    sample: DrawSchema = field(default_factory=lambda: DrawSchema(count=16))  # what is sampled


@dataclass
class PrepareSchema:
    """The configuration of `experiments.prepare`; `split` has a name and options, `workers` null means one per core.

    At most the fraction `max_unreadable` of the images of a part may be unreadable; they are skipped. With `features`,
    the mean and the covariance of the features of each part are written too, as references of Fréchet distances.
    """

    data: DataSchema = field(default_factory=DataSchema)  # the data set
    out: str | None = "${data.store}"  # the directory of the store; by default data.store
    archives: str = "${oc.env:DUET_DATA,data}/archives"  # the folder of downloaded files
    download: bool = True  # whether missing files are downloaded
    workers: int | None = None  # processes; null: one per core
    max_unreadable: float = "${data.max_unreadable}"  # largest fraction of a part that may be unreadable
    # the network whose mean and covariance are written for each part, as references of Fréchet distances
    features: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    split: dict[str, Any] = field(default_factory=dict)  # how further parts are made
    autoencoder: str | None = None  # the folder of an AutoencoderKL, or of a pipeline: latents are written
    latents: _dataclass_schema(LatentOptions) = field(default_factory=_dataclass_schema(LatentOptions))  # how
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework that encodes
    precision: str = "float32"  # of the encoder: float32, bf16 or float64


@dataclass
class InspectSchema(FromRunSchema):
    """The configuration of `experiments.inspect`; empty `parts` selects all prepared parts, or the part in `data`.

    Images whose thumbnails differ by at most `max_distance` are near; at most `max_compared` images of a part are
    compared.
    """

    out: str = MISSING  # the directory for the results
    data: DataSchema = field(default_factory=DataSchema)  # the data set
    parts: list[str] = field(default_factory=list)  # names of parts; [] selects all
    max_distance: float = 4.0  # largest difference of thumbnails that are near-duplicates
    max_compared: int = 50_000  # images of a part that are compared
    pairs: int = 100  # near-duplicates that are shown
    samples: int = 10  # random images that are shown per class
    seed: int = 0  # of what is drawn


@dataclass
class TraceSchema:
    """The configuration of `experiments.trace`; `whole` false checks a few networks and plans instead of all."""

    out: str = MISSING  # the directory for the record
    handover: str | None = None  # the record of another backend, whose files are read
    whole: bool = True  # whether all networks and plans are checked, not a few
    precisions: list[str] = field(default_factory=lambda: ["float64", "float32"])  # float64, float32
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework


@dataclass
class NetworksSchema(FromRunSchema):
    """The configuration of `experiments.networks`; `other` is the record that another backend wrote."""

    out: str = MISSING  # the directory for the record
    other: str | None = None  # the record that another backend wrote
    precisions: list[str] = field(default_factory=lambda: ["float64", "float32"])  # float64, float32
    gradients: bool = True  # whether gradients are computed too
    batch: int = 1  # images
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework
    model: Any = MISSING  # the network


@dataclass
class CompareSchema:
    """The configuration of `experiments.compare`."""

    runs: list[str] = field(default_factory=list)  # run directories, as [RUN,RUN]
    crossed: list[str] = field(default_factory=list)  # samples that one framework drew from another's checkpoint
    evaluations: list[str] = field(default_factory=list)  # directories of `evaluate`
    traces: list[str] = field(default_factory=list)  # directories of `trace`
    out: str = MISSING  # the directory for the page
    title: str = ""  # by default, it says what is compared
    command: str | None = None  # the command that the page names


@dataclass
class ImportSchema:
    """The configuration of `experiments.import_weights`; `process` replaces the process that the source names."""

    path: str = MISSING  # the file or folder to read
    out: str = MISSING  # the directory for the run
    source: Any = MISSING  # the project that the weights come from
    process: Any = None  # replaces the process that the source names
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework that reads its own formats


@dataclass
class ReconstructSchema(FromRunSchema):
    """The configuration of `experiments.reconstruct_ema`; `images` null is the moment of the last snapshot."""

    run: str = MISSING  # a run with EMA snapshots
    out: str = MISSING  # the directory for the new run
    images: int | None = None  # the moment, in images seen; null: the last snapshot
    ema: dict[str, Any] = field(default_factory=dict)  # the average to make
    fit: str = "steps"  # how coefficients are chosen: steps, or power as in EDM2's code


@dataclass
class PageSchema:
    """The configuration of `experiments.page`; `run` is the directory of a run."""

    run: str = MISSING  # a run directory


@dataclass
class ExportSchema(FromRunSchema):
    """The configuration of `experiments.export_weights`; `weights` null selects those that the run samples with."""

    checkpoint: str = MISSING  # a run, or one of its checkpoints
    out: str = MISSING  # the file or folder to write
    target: Any = MISSING  # the format
    weights: str | None = None  # ema, ema1 ... or weights; null: as the run's
    precision: str = "float32"  # float32, bf16 or float64
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework that writes its own formats


@dataclass
class StudyFileSchema:
    """A study file; `experiments.studies.plan.Study` checks its nested parts."""

    name: str = MISSING  # of the study
    title: str = ""  # for people
    question: str = ""  # what it answers
    seeds: list[int] = field(default_factory=list)  # of the repetitions
    common: list[str] = field(default_factory=list)  # overrides of every job
    stages: dict[str, Any] = field(default_factory=dict)  # the jobs of a run, in order
    factors: dict[str, Any] = field(default_factory=dict)  # what is compared, with its settings
    baseline: dict[str, Any] = field(default_factory=dict)  # the setting that others are compared with
    metrics: dict[str, Any] = field(default_factory=dict)  # what is measured, with margins
    alpha: float = 0.05  # significance level, of all looks together
    looks: list[int] | None = None  # the numbers of seeds at which the report may be made; null: a single look
    spending: str = "pocock"  # how alpha is spent over the looks: pocock or obrien_fleming


@dataclass
class StudySchema:
    """The configuration of `experiments.study`; `job` runs one job of the plan, as a launcher requests it."""

    out: str = MISSING  # the directory of the study
    dry_run: bool = False  # print the table of runs, and nothing else
    job: str | None = None  # run this job only, as a launcher requests it
    study: StudyFileSchema = field(default_factory=StudyFileSchema)  # the study


@dataclass
class ReplaySchema(OwnNetworkSchema):
    """The configuration of `experiments.replay`; `precision` null is that of the run, `images` are examined."""

    bundle: str = MISSING  # the folder non_finite/N of a run
    precision: str | None = None  # of the replay; null: as the run's
    images: int = 4  # images that are examined
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework


@dataclass
class CertifySchema:
    """The configuration of `experiments.certify`."""

    run: str = MISSING  # a run directory
    out: str | None = None  # the file of the certificate; null: certificate.json in the run directory


@dataclass
class DataPlaceSchema:
    """Where the data of a recorded run lie here."""

    store: str | None = None  # the directory of the prepared store; null: as the run's
    options: dict[str, Any] = field(default_factory=dict)  # options that differ here, such as path


@dataclass
class VerifySchema(OwnNetworkSchema):
    """The configuration of `experiments.verify`.

    `segments` is a number or all. `backend.threads` null and `backend.device` auto are those of the run.
    """

    run: str = MISSING  # a run directory, or the file of a certificate
    out: str | None = None  # the file of the verdict; null: a new one in RUN/verdicts
    segments: Any = 3  # segments that are computed again, or all
    draw_seed: int | None = None  # of the draw of the segments; null: a fresh one
    results: bool = True  # whether the final samples are drawn and evaluated again
    twins: int = 3  # twins that measure the bound where bits cannot be equal
    margin: float = 10.0  # of the bound over what the twins show
    teacher: str | None = None  # the teacher of the run, where it lies here; null: as the run's
    backend: BackendSchema = field(default_factory=BackendSchema)  # the framework
    parallel: ParallelSchema = field(default_factory=ParallelSchema)  # one process verifies
    data: DataPlaceSchema = field(default_factory=DataPlaceSchema)  # where the data lie


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
    "certify": CertifySchema,
    "verify": VerifySchema,
}


# The option of the group `model` that stands for an own network; `network=` chooses it.
OWN_MODEL = "own"
MODELS = {
    name: dataclasses.make_dataclass(
        f"{spec.__name__}Schema", [("architecture", str, field(default=name))], bases=(_dataclass_schema(spec),)
    )
    for name, spec in ARCHITECTURES.items()
    if spec.configurable
}


def add_schema(name: str, schema: type) -> None:
    """Register the schema of a command outside `experiments`, whose file is ``configs/<name>.yaml``."""
    SCHEMAS[name] = schema
    ConfigStore.instance().store(name=f"{name}_schema", node=_schema_node(schema))


def _schema_node(schema: type) -> Any:
    """Return the node of a schema; its keyword arguments of other functions may be any, which those check."""
    node = OmegaConf.structured(schema)
    if issubclass(schema, OwnNetworkSchema):
        OmegaConf.set_struct(node.network_options, False)
        OmegaConf.set_struct(node.network_call, False)
    return node


@functools.cache
def register() -> None:
    """Give Hydra the schemas, under the names that the files in `configs` refer to."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        node = _schema_node(schema)
        if schema in (SampleRunSchema, EditSchema):
            # Without a name, these are options of the checkpoint's sampler, which checks them when it is built.
            OmegaConf.set_struct(node.sampler, False)
        if schema is VerifySchema:
            OmegaConf.set_struct(node.data.options, False)
        if schema is TrainSchema:
            # Options of the named function, which checks them when it is called.
            for group in ("schedule", "weighting", "timestep_sampling", "coupling", "path_noise"):
                OmegaConf.set_struct(node.process[group], False)
        store.store(name=f"{name}_schema", node=node)
    for name, schema in MODELS.items():
        store.store(group="architecture", name=name, node=schema)
    store.store(group="model", name=OWN_MODEL, node={"architecture": OWN_MODEL})
    for group, functions in (("source", SOURCES), ("target", TARGETS)):
        for name, function in functions.items():
            store.store(group=group, name=name, node=_function_schema(function)(name=name))

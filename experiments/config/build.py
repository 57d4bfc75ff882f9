"""A composed configuration as the objects and frozen dataclasses that the applications take.

Each function reads one part of a configuration; nothing beyond this package and the commands sees a configuration.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import make_schedule
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import NetworkSpec, make_spec
from diffusion_core.optim import OPTIMISERS, Optimiser, make_ema, make_optimiser
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runs.checkpoint import list_checkpoints
from diffusion_core.runtime.distributed import ProcessGroup, find_parallel_launch
from diffusion_core.training.objective import REGRESSION
from diffusion_core.training.training_config import TrainingConfig
from experiments.config.convert import plain
from experiments.config.schema import OWN_MODEL, ProcessSchema
from experiments.data.inspection import InspectionSetup
from experiments.data.latents import LatentOptions, LatentSetup
from experiments.data.preparation import PreparationSetup
from experiments.editing.setup import EditSetup
from experiments.evaluation.context import dataset_reference
from experiments.evaluation.samples import SampleEvaluator, make_features
from experiments.evaluation.setup import EvaluationSetup
from experiments.export.importing import ImportSetup
from experiments.features import MissingWeights
from experiments.runtime.backends import BackendSetup
from experiments.runtime.data import DataSource
from experiments.runtime.own_files import open_network, user_code_error
from experiments.runtime.own_networks import OwnNetwork, adapt, building, own_model
from experiments.runtime.teacher import TeacherRun, load_teacher
from experiments.sampling.gallery import GallerySetup
from experiments.sampling.guidance import GuidanceModels
from experiments.sampling.options import SampleOptions
from experiments.sampling.run import SamplingSetup
from experiments.training.evaluation import FinalEvaluation, SkippedEvaluation
from experiments.training.setup import TrainingSetup
from experiments.training.validation import ValidationOptions

__all__ = [
    "backend_setup",
    "data_source",
    "directory",
    "edit_setup",
    "evaluation_setup",
    "final_evaluation",
    "gallery_setup",
    "guidance_models",
    "import_setup",
    "inspection_setup",
    "make_model",
    "network_spec",
    "new_checkpoint_directory",
    "open_own_network",
    "own_network",
    "latent_setup",
    "preparation_setup",
    "run_directory",
    "process_group",
    "sample_options",
    "sampling_setup",
    "training_setup",
]

# The options of a training objective in the group `process`.
_OBJECTIVE = (
    "distance", "label_dropout", "first_t", "weighting", "timestep_sampling", "offset_noise", "input_perturbation",
    "bound", "bound_weight", "bound_cdf", "coupling", "path_noise",
)  # fmt: skip


def _select(cfg: DictConfig, *keys: str) -> dict[str, Any]:
    """Return these keys of a configuration, as plain data."""
    return {key: plain(cfg[key]) if OmegaConf.is_config(cfg[key]) else cfg[key] for key in keys}


def process_group(cfg: DictConfig) -> ProcessGroup:
    """Return the rank and size of this process among those that compute together.

    Raises:
        DuetError: if `parallel` does not match how this process was started.
    """
    if "parallel" not in cfg:
        return ProcessGroup()
    name = cfg.parallel.name
    if name == "none" and (variable := find_parallel_launch(os.environ)):
        raise DuetError(
            f"parallel: none was given, but {variable} says that several processes were started, which would all do "
            f"the same work; add parallel={cfg.backend.parallel}, or unset {variable} to run a single process"
        )
    return ProcessGroup.from_environment(name, os.environ, cfg.parallel.timeout_seconds)


def backend_setup(cfg: DictConfig, precision: str | None = None) -> BackendSetup:
    """Return the backend that the configuration names, in `precision`, by default that of the configuration."""
    values = plain(cfg.backend)
    options = {f.name: values[f.name] for f in fields(BackendConfig) if f.name in values and f.name != "compile"}
    precision = cfg.precision if precision is None else precision
    return BackendSetup(
        values["name"], BackendConfig(precision=precision, **options), values["compile"], values["compile_after"],
        process_group(cfg),
    )  # fmt: skip


def network_spec(cfg: DictConfig) -> NetworkSpec:
    """Return the network of a configuration with the group `model`."""
    model = plain(cfg.model)
    if model.get("architecture") == OWN_MODEL:
        if "network" not in cfg:
            raise DuetError(
                f"model: {OWN_MODEL} was given, an own network, whose blocks are unknown; this command needs a network "
                f"of Duet, such as model=digits"
            )
        raise DuetError(f"model: {OWN_MODEL} was given, which is a network of yours; name it: network=my_file:build")
    if "architecture" not in model:
        raise DuetError(
            "model.architecture: no name was given; start the file from one, as configs/model/digits.yaml does"
        )
    return make_spec(**model)


def own_network(cfg: DictConfig, precision: str | None = None) -> OwnNetwork | None:
    """Return the own network that the key `network` names; None without one.

    It computes in `precision`, by default that of the configuration. This runs the user's code, and so imports its
    framework.

    Raises:
        DuetError: if there is no such network, it is of another framework than the backend, or a model was given too.
    """
    named = plain(cfg.network) if OmegaConf.is_config(cfg.network) else cfg.network
    if not named:
        for key in ("network_options", "network_call"):
            if cfg[key]:
                raise DuetError(f"{key}: {plain(cfg[key])} was given without a network; add network=my_file:build")
        return None
    backend = cfg.backend.name
    reference = named.get(backend) if isinstance(named, dict) else named
    if reference is None:
        raise DuetError(f"network: there is one for {', '.join(named)}, and none for backend={backend}; add one")
    setup = backend_setup(cfg, precision)
    return open_own_network(
        str(reference), setup, plain(cfg.network_options), plain(cfg.network_call), cfg.get("seed") or 0
    )


def open_own_network(
    reference: str, backend: BackendSetup, options: Mapping[str, Any], call: Mapping[str, Any], seed: int = 0
) -> OwnNetwork:
    """Return the own network of a reference, for a backend.

    Args:
        reference: see `experiments.runtime.own_files`.
        backend: what computes it, in its precision.
        options: keyword arguments of the function that is named.
        call: keyword arguments of `adapt`.
        seed: of the weights that it draws.

    Raises:
        DuetError: if there is no such network, or it is of another framework.
    """
    known = inspect.signature(adapt).parameters.keys() - {"network", "name"}
    for key in call:
        if key not in known:
            raise one_of("network_call", key, sorted(known))
    backend.load()  # first, since a framework takes threads and other processes only before it computes
    with _user_code(reference), building(backend.name, backend.precision, seed):
        built = open_network(reference, options)
    own = adapt(built, **call, name=reference)
    if own.framework != backend.name:
        names = ", ".join(inspect.signature(built).parameters) if inspect.isfunction(built) else ""
        taken = f"a function of ({names}), taken as a network" if names else "a network"
        makes = "; if it makes the network, give its arguments as network_options.NAME=VALUE" if names else ""
        raise DuetError(
            f"network: {reference} is {taken} of {own.framework}, not of {backend.name}; add backend={own.framework}"
            f"{makes}"
        )
    return own


@contextmanager
def _user_code(reference: str) -> Iterator[None]:
    """Turn an exception of the user's code into one line with its place in that code."""
    try:
        yield
    except DuetError:
        raise
    except (Exception, SystemExit) as error:
        raise user_code_error(reference, error) from error


def _process_options(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a process and those of a `DiffusionModel` beside it, from the group `process`."""
    process = plain(cfg.process)
    if "name" not in process["schedule"]:
        raise DuetError("process.schedule: no name was given; it is, for example, {name: linear, T: 1000}")
    names = ("prediction", "time_scale", "sigma_data", "time_offset", "t_floor", "boundary")
    rest = {"value_range": tuple(process["value_range"])} | {k: process[k] for k in ("variance", "uncertainty")}
    return {"schedule": process["schedule"], **{name: process[name] for name in names}}, rest


def make_model(cfg: DictConfig) -> DiffusionModel:
    """Return the network and the process of a configuration with the groups `model` and `process`."""
    spec = network_spec(cfg)
    process, rest = _process_options(cfg)
    return DiffusionModel(spec, **process, **rest)


def data_source(data: DictConfig) -> DataSource:
    """Return where the data set of a group `data` comes from."""
    return DataSource(
        data.name, plain(data.options), _store_path(data.store), plain(data.fallback), data.use_fallback,
        data.max_unreadable,
    )  # fmt: skip


def _store_path(store: str | None) -> str | None:
    """Return the path of a store whose name has a size in it: [32, 48] becomes 32x48, and no size is "original"."""
    if store is None:
        return None
    store = re.sub(r"\[(\d+), *(\d+)\]", r"\1x\2", store)
    return re.sub(r"-None$", "-original", store)


def sample_options(sample: DictConfig) -> SampleOptions:
    """Return the options of a group `sample`."""
    return SampleOptions(**plain(sample))


def guidance_models(cfg: DictConfig, own: OwnNetwork | None = None) -> GuidanceModels:
    """Read the checkpoints of the networks that guide sampling from a checkpoint, which may be of an own network."""
    values: dict[str, Any] = {f.name: cfg[f.name] for f in fields(GuidanceModels)}
    return GuidanceModels.load(**values, own=own)


def sampling_setup(cfg: DictConfig) -> SamplingSetup:
    """Return the checked request of a configuration of `experiments.sample`."""
    own = own_network(cfg)
    return SamplingSetup.create(
        cfg.checkpoint, plain(cfg.sampler), sample_options(cfg.sample), guidance_models(cfg, own), backend_setup(cfg),
        cfg.save_images, own, cfg.pairs,
    )  # fmt: skip


def gallery_setup(cfg: DictConfig) -> GallerySetup:
    """Return the request of a configuration of `experiments.gallery`."""
    options = _select(
        cfg, "checkpoint", "methods", "budgets", "spacing", "guidance_scale", "reference", "reference_steps", "shown"
    )
    return GallerySetup(
        **options, sample=sample_options(cfg.sample), backend=backend_setup(cfg), network=own_network(cfg)
    )


def edit_setup(cfg: DictConfig) -> EditSetup:
    """Return the request of a configuration of `experiments.edit`."""
    options = _select(
        cfg, "checkpoint", "path", "images", "labels", "variants", "batch", "seed", "weights", "sampler", "mode"
    )
    data, own = data_source(cfg.data) if "name" in cfg.data else None, own_network(cfg)
    return EditSetup(**options, data=data, guidance=guidance_models(cfg, own), backend=backend_setup(cfg), network=own)


def _optimiser(options: dict[str, Any]) -> Optimiser:
    """Return the optimiser of a configuration.

    Raises:
        DuetError: for options that do not fit; a name without its group leaves those of the optimiser before.
    """
    name = options.get("name", "adam")
    if name in OPTIMISERS:
        own, known = ({f.name for kind in kinds for f in fields(kind)} for kinds in (
            [OPTIMISERS[name]], OPTIMISERS.values()
        ))  # fmt: skip
        if others := [key for key in options if key in known - own]:
            raise DuetError(
                f"optimiser.{others[0]}: it was given with optimiser.name={name}, which has no such option; choose an "
                f"optimiser with its options by optimiser={name}"
            )
    return make_optimiser(**options)


def training_setup(cfg: DictConfig) -> TrainingSetup:
    """Return everything that a configuration of `experiments.train` describes, checked to fit together."""
    process, data, own = plain(cfg.process), cfg.data, own_network(cfg)
    objective = {"name": REGRESSION} | plain(cfg.objective)
    teacher = _teacher(objective, own)
    model = make_model(cfg) if own is None else None  # before the data are read, so that its mistakes come first
    source, validation = data_source(data), ValidationOptions(**plain(cfg.validation))
    dataset = source.load(process_group(cfg).is_main_process)
    if own is not None:
        arguments, rest = _process_options(cfg)
        made = Process(make_schedule(**arguments.pop("schedule")), **arguments)
        named = {"label_dropout": process["label_dropout"], "objective": objective["name"]}
        model = own_model(own, made, dataset, **named, **rest)
        with _user_code(own.name):
            own.try_out(model.spec)
    return TrainingSetup.create(
        model,
        dataset,
        TrainingConfig(**plain(cfg.trainer)),
        objective={key: process[key] for key in _OBJECTIVE} | {"objective": objective},
        teacher=teacher,
        optimiser=_optimiser(plain(cfg.optimiser)),
        learning_rate=LearningRate(**plain(cfg.lr)),
        ema=make_ema(**plain(cfg.ema)),
        sampler=plain(cfg.sampler),
        sample=sample_options(cfg.sample),
        backend=backend_setup(cfg),
        seed=cfg.seed,
        flip=data.flip,
        augment=data.augment,
        loader=data.loader,
        workers=data.workers,
        held_out=source.load_held_out(validation.part, validation.count, process_group(cfg).is_main_process),
        validation=validation,
        data_options=plain(data.options),
    )


def _teacher(objective: dict[str, Any], own: OwnNetwork | None) -> TeacherRun | None:
    """Return the teacher of a group `objective`, whose keys are removed from it."""
    path, weights, start = (objective.pop(key, None) for key in ("teacher", "teacher_weights", "start"))
    if path is not None:
        return load_teacher(path, weights, start, own)
    for key, value in (("teacher_weights", weights), ("start", start)):
        if value is not None:
            raise DuetError(f"objective.{key}: {value} was given without a teacher; add objective.teacher=RUN")
    return None


def final_evaluation(cfg: DictConfig, setup: TrainingSetup) -> FinalEvaluation | SkippedEvaluation | None:
    """Return how the final samples of a training are evaluated, why they are not, or None without an evaluation."""
    try:
        features = make_features(plain(cfg.features))
    except MissingWeights as reason:
        return SkippedEvaluation(str(reason))
    if features is None or setup.plan is None:
        return None
    reference = dataset_reference(setup.loader.dataset, plain(cfg.data.options))
    evaluator = SampleEvaluator(features, plain(cfg.metrics), reference, cfg.seed, cfg.confidence)
    evaluation = FinalEvaluation(evaluator, cfg.sets, cfg.seed)
    latents = setup.loader.dataset.latents
    evaluation.check(setup.model.spec.image_shape if latents is None else latents.image_shape, cfg.sample.count)
    return evaluation


def evaluation_setup(cfg: DictConfig) -> EvaluationSetup:
    """Return the request of a configuration of `experiments.evaluate`."""
    options = _select(
        cfg, "samples", "reference", "features", "metrics", "count", "sets", "reference_sets", "floors", "confidence",
        "keep_features", "checkpoint", "weights", "likelihood", "accuracy", "loss", "seed", "max_unreadable",
    )  # fmt: skip
    samples = options.pop("samples") or ()
    return EvaluationSetup(
        samples=(samples,) if isinstance(samples, str) else tuple(samples),
        data=data_source(cfg.data) if "name" in cfg.data else None,
        training=data_source(cfg.training) if "name" in cfg.training else None,
        backend=backend_setup(cfg),
        network=own_network(cfg),
        **options,
    )


def latent_setup(cfg: DictConfig) -> LatentSetup | None:
    """Return the request to encode images of a configuration of `experiments.prepare`; None without an autoencoder."""
    options = LatentOptions(**plain(cfg.latents))
    if cfg.autoencoder is None:
        if options != LatentOptions():
            raise DuetError("latents: options were given without autoencoder=DIR, the folder of an AutoencoderKL")
        return None
    source, out = data_source(cfg.data), _store_path(cfg.out)
    if out is None:
        raise DuetError("out: nothing was given; it is the directory to write the latents into")
    if out in (source.store, source.options.get("directory")):
        raise DuetError(f"out: {out} was given, where the images are; give another directory for their latents")
    if "name" not in cfg.backend:
        raise DuetError("backend: none was given; encoding images needs one, such as backend=torch")
    if plain(cfg.split).get("name", "none") != "none" or plain(cfg.features).get("name", "none") != "none":
        raise DuetError("split, features: they were given with an autoencoder; prepare the images with them first")
    return LatentSetup(source, out, cfg.autoencoder, options, backend_setup(cfg))


def preparation_setup(cfg: DictConfig) -> PreparationSetup:
    """Return the request of a configuration of `experiments.prepare`."""
    return PreparationSetup(
        cfg.data.name, _store_path(cfg.out), plain(cfg.data.options), cfg.archives, cfg.download, plain(cfg.split),
        cfg.workers, cfg.max_unreadable, plain(cfg.features),
    )  # fmt: skip


def inspection_setup(cfg: DictConfig) -> InspectionSetup:
    """Return the request of a configuration of `experiments.inspect`."""
    return InspectionSetup(
        data_source(cfg.data), tuple(cfg.parts), cfg.max_distance, cfg.max_compared, cfg.pairs, cfg.samples, cfg.seed
    )


def import_setup(cfg: DictConfig) -> ImportSetup:
    """Return the request of a configuration of `experiments.import_weights`."""
    # The source itself refuses a missing option, and names the others that it takes.
    options = {name: cfg.source[name] for name in cfg.source if not OmegaConf.is_missing(cfg.source, name)}
    directory(cfg, "path", "file or directory to read")
    process = None if cfg.process is None else _without_training(plain(cfg.process))
    return ImportSetup(cfg.path, options.pop("name"), options, process, backend_setup(cfg, "float32"))


def _without_training(process: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a process without those of training, which a file of ``configs/process`` may contain."""
    training = {field.name for field in fields(ProcessSchema)} - {field.name for field in fields(DiffusionModel)}
    return {name: value for name, value in process.items() if name not in training}


def directory(cfg: DictConfig, key: str, what: str) -> Path:
    """Return the path of a key, which must not be empty; `what` describes it in the error."""
    if not cfg[key]:
        raise DuetError(f"{key}: nothing was given; it is the {what}")
    return Path(cfg[key])


def new_checkpoint_directory(cfg: DictConfig) -> Path:
    """Return the directory `out`, which must not hold checkpoints already."""
    out = directory(cfg, "out", "directory to write")
    if list_checkpoints(out / "checkpoints"):
        raise DuetError(f"out: {cfg.out!r} was given and holds checkpoints already; give another directory")
    return out


def run_directory(cfg: DictConfig) -> Path:
    """Return the directory of the run in the key `run`.

    Raises:
        DuetError: if it does not hold a run.
    """
    path = directory(cfg, "run", "directory of a run").expanduser()
    if not (path / "environment.json").is_file():
        raise DuetError(f"run: {str(path)!r} holds no run (it has no environment.json); give the directory of a run")
    return path

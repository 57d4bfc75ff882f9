"""Training from Python."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset
from diffusion_core.diffusion.process import Process
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.optim import Ema, Optimiser, make_ema, make_optimiser
from diffusion_core.optim.adam import LearningRate
from diffusion_core.training.objective import OPTIONS, REGRESSION
from diffusion_core.training.training_config import TrainingConfig
from duet.api.backends import backend_setup
from duet.api.data import as_loaded
from duet.api.options import check_types, plain_values, unknown_option
from duet.api.own import CALL, split_call
from duet.api.runs import Run, load_run
from experiments.runtime import own_networks
from experiments.runtime.data import HeldOut
from experiments.runtime.options import read_option
from experiments.runtime.own_networks import OwnNetwork
from experiments.runtime.processes import discard_output
from experiments.runtime.teacher import TeacherRun, load_teacher
from experiments.sampling.options import SampleOptions
from experiments.training import run as runs
from experiments.training.setup import TrainingSetup

__all__ = ["train"]


@check_types
def train(
    model: Any,
    process: Any = None,
    dataset: Any = None,
    *,
    images: int = 128_000,
    batch: int = 128,
    lr: float | LearningRate = 1e-3,
    optimiser: Optimiser | str | None = None,
    ema: str | Ema | None = None,
    sampler: str | Mapping[str, Any] | None = None,
    samples: int = 64,
    flip: bool = False,
    augment: float = 0.0,
    seed: int = 0,
    backend: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    compile: bool | str = "auto",
    threads: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    change_objective: bool = False,
    change_data: bool = False,
    validation: Any = None,
    teacher: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Train a model, or an own network with a process, and return its last checkpoint.

    The names and defaults are those of ``configs/train.yaml``; the same arguments and seed give the same run as
    ``python3 -m duet train``. It is called as ``train(model, dataset)`` or ``train(network, process, dataset)``.

    An own network starts from its present weights and stays as it is; the trained weights are in the checkpoint, and
    ``run.network()`` returns the network with them. Its `precision` is that of its weights, unless one is given.

    Args:
        model: a `duet.Model`, or an own network, see `duet.adapt`.
        process: of an own network, see `duet.process`.
        dataset: see `duet.load_dataset`, or what that function takes; its images must have the shape that the network
            takes.
        images: length of the run in images seen; a multiple of `batch`.
        batch: images per step.
        lr: a number, or a learning-rate schedule.
        optimiser: such as `duet.Adam()`, or a name such as ``"lion"``; None is `Adam()`.
        ema: the moving average of the weights: a file of ``configs/ema`` by name, such as ``"warmup"`` (the default) or
            ``"power"``, or what `duet.make_ema` returns.
        sampler: the default sampler, for the samples in `out` and for `duet.sample`: a name, or a name with options.
        samples: number of final samples in `out`.
        flip: whether to mirror half of the images.
        augment: the probability of each change of EDM's augmentation.
        seed: of the weights, the data order, the noise and everything else that is random.
        backend: name of an installed backend; None takes the one that this Python can import.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"float64"``, ``"float32"`` or ``"bf16"``; None is ``"float32"``, or that of an own network.
        compile: True, False or ``"auto"``, which decides by the length of the run.
        threads: CPU threads; None leaves the framework's choice.
        out: a run directory for metrics, checkpoints and samples; None keeps nothing on disk.
        resume: a run or a checkpoint to continue from; ``"latest"`` is the run in `out`, and
            ``"auto"`` that run or, if there is none, a new one.
        change_objective: whether a resumed run may have another objective or other averages than before.
        change_data: whether a run that is resumed in its own directory may have other data than before.
        validation: held-out images with the classes of `dataset`, on which the loss is evaluated at intervals, see
            ``validation_images`` of `TrainingConfig`. ``checkpoint.notes["validation"]`` holds the last values, and
            `out` all of them.
        teacher: a run that the `objective` distils, or whose weights it starts from.
        quiet: suppress the progress output.
        options: of `Objective.for_model`, such as ``label_dropout=0.1``, ``weighting={"name": "min_snr"}``,
            ``objective={"name": "mean_flow"}``; and of
            `TrainingConfig`, such as ``micro_batch=32`` or ``checkpoint_images=64_000``. For an own network also those
            of `duet.adapt`, such as ``classes=10``, and `value_range`, `variance` and `uncertainty` of `duet.Model`.

    Raises:
        DuetError: for an option that does not exist or does not fit, a data set that the network cannot take, or a
            loss that is not finite.

    Example:
        A run of two steps::

            model = duet.Model(duet.network("digits"), schedule="cosine", prediction="v")
            checkpoint = duet.train(model, duet.load_dataset("digits"), images=128, batch=64)

        The same with a module of PyTorch or a model of Keras::

            run = duet.train(module, duet.process("cosine", "v"), duet.load_dataset("digits"), images=128, batch=64)
    """
    if isinstance(options.get("objective"), str):
        options["objective"] = {"name": options["objective"]}
    setup, own = prepare(
        model, process, dataset, options, images=images, batch=batch, lr=lr, optimiser=optimiser, ema=ema,
        sampler=sampler, samples=samples, flip=flip, augment=augment, seed=seed, validation=validation,
        teacher=teacher, backend=backend, device=device, precision=precision, compile=compile, threads=threads,
    )  # fmt: skip
    start = {"resume": resume and str(resume), "change_objective": change_objective, "change_data": change_data}
    with discard_output() if quiet else nullcontext():
        if out is not None:
            out = Path(out).expanduser()
            runs.train(setup, out, **start)
            return load_run(out, own)
        with tempfile.TemporaryDirectory(prefix="duet-run-") as directory:
            record = runs.RunRecord.from_setup(setup, is_temporary=True)
            runs.train(replace(setup, plan=None), directory, record=record, **start)
            return load_run(directory, own)


def prepare(
    model: Any,
    process: Any,
    dataset: Any,
    options: dict[str, Any],
    *,
    backend: str | None,
    device: str,
    precision: str | None,
    compile: bool | str,
    threads: int | None,
    validation: Any,
    teacher: str | Path | None,
    **arguments: Any,
) -> tuple[TrainingSetup, OwnNetwork | None]:
    """Return what `train` trains with these arguments, and the own network, if it is one."""
    own = None
    if isinstance(model, DiffusionModel):
        if dataset is not None:
            raise DuetError("process: a duet.Model has its process; call duet.train(model, dataset)")
        dataset = as_loaded(process)
    else:
        dataset = as_loaded(dataset)
        own = own_networks.adapt(model, **split_call(options))
        model = own_model(own, process, dataset, options)
        if backend not in (None, own.framework):
            raise DuetError(f"backend: {backend!r} was given, but the network is of {own.framework}; leave it out")
        own.try_out(model.spec)
        backend, precision = own.framework, precision or own.manifest.precision
    precision = precision or "float32"
    setup = make_setup(
        model, dataset, **arguments,
        validation=None if validation is None else as_loaded(validation),
        teacher=None if teacher is None else load_teacher(str(teacher), own=own),
        backend=backend_setup(backend, device, precision, compile, threads), **options,
    )  # fmt: skip
    return setup, own


# What other libraries call the arguments of `train`.
_OTHER_NAMES = {"learning_rate": "lr", "batch_size": "batch", "optimizer": "optimiser"}


# Options of `duet.Model` that `train` takes for an own network.
_MODEL_OPTIONS = ("value_range", "variance", "uncertainty")


def own_model(own: OwnNetwork, process: Process, dataset: Dataset, options: dict[str, Any]) -> DiffusionModel:
    """Return the model of an own network with a process for a data set; its options are removed from `options`."""
    if not isinstance(process, Process):
        raise DuetError(
            f"process: {process!r} was given; an own network needs a process, as in "
            f"duet.train(network, duet.process('cosine', 'v'), dataset)"
        )
    model_options = {name: options.pop(name) for name in _MODEL_OPTIONS if name in options}
    objective = options.get("objective", {}).get("name", REGRESSION)
    named = {"label_dropout": options.get("label_dropout", 0.0), "objective": objective}
    return own_networks.own_model(own, process, dataset, **named, **model_options)


def make_setup(
    model: DiffusionModel,
    dataset: Dataset,
    *,
    images: int,
    batch: int,
    lr: float | LearningRate,
    ema: str | Ema | None,
    sampler: str | Mapping[str, Any] | None,
    samples: int,
    optimiser: Optimiser | str | None,
    backend: Any,
    seed: int,
    flip: bool,
    augment: float,
    validation: Dataset | None = None,
    teacher: TeacherRun | None = None,
    **options: Any,
) -> TrainingSetup:
    """Return the setup of a run; see `train`. Its `options` belong to the loop or to the objective."""
    config_names = {f.name for f in fields(TrainingConfig)} - {"images", "batch"}
    objective_names = set(OPTIONS)
    if isinstance(optimiser, str):
        optimiser = make_optimiser(**read_option("optimiser", optimiser))
    for name in options:
        if name in _OTHER_NAMES:
            raise DuetError(f"option of train: {name!r} was given; Duet calls it {_OTHER_NAMES[name]!r}")
        if name not in config_names | objective_names:
            raise unknown_option(train, name, config_names | objective_names | set(CALL))
    config = TrainingConfig(images=images, batch=batch, **{k: v for k, v in options.items() if k in config_names})
    return TrainingSetup.create(
        model, dataset, config,
        objective={k: v for k, v in options.items() if k in objective_names},
        optimiser=optimiser, learning_rate=lr if isinstance(lr, LearningRate) else LearningRate(peak=lr),
        ema=make_ema(**read_option("ema", ema)) if isinstance(ema, str) else ema,
        sampler={"name": sampler} if isinstance(sampler, str) else plain_values(sampler),
        sample=SampleOptions(count=samples, weights="ema"), backend=backend, seed=seed, flip=flip, augment=augment,
        held_out=None if validation is None else HeldOut("validation", validation), teacher=teacher,
    )  # fmt: skip

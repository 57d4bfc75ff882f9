"""What a configuration of a training describes, as objects of the core."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from diffusion_core.backend.interface import Guidance
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data import Loader
from diffusion_core.data.augment import LABEL
from diffusion_core.data.grain import Grain
from diffusion_core.data.prefetch import Prefetch
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.optim import Ema, make_ema
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.runtime.distributed import ProcessGroup
from diffusion_core.sampling import SamplerPlan
from diffusion_core.training.loop import TrainingConfig
from diffusion_core.training.objective import Objective
from experiments import common
from experiments.config.build import process_group
from experiments.config.convert import plain

__all__ = ["LOADERS", "Experiment"]


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a configuration describes, as objects of the core."""

    model: DiffusionModel
    plan: SamplerPlan | None  # a classifier is not sampled
    objective: Objective
    loader: Loader
    ahead: AbstractContextManager[Loader | Prefetch | Grain]  # the same, made ahead
    adam: Adam
    learning_rate: LearningRate
    ema: Ema
    training_config: TrainingConfig
    group: ProcessGroup

    @property
    def training_steps(self) -> int:
        """Steps of the whole training, however many of them are left."""
        return -(-self.training_config.images // self.training_config.batch)

    @staticmethod
    def from_config(cfg: DictConfig) -> Experiment:
        """Make them all, so that a mistake anywhere is found at once."""
        group = process_group(cfg)
        model = common.make_model(cfg)
        model.check_distance(cfg.process.distance)
        plan = None if model.classifies else common.plan_of(model, plain(cfg.sampler))
        if plan is not None:
            Guidance().check(plan)  # samples of a training are led by nothing else
        ema = make_ema(**plain(cfg.ema))
        common.check_sample(cfg.sample, model, len(ema.profiles))
        program, process = model.program, cfg.process
        objective = Objective(
            model.process, cfg.seed, process.distance, program.null_label, process.label_dropout,
            features=program.features, classes=program.classes, first_t=process.first_t,
            weighting=plain(process.weighting), timestep_sampling=plain(process.timestep_sampling), offset_noise=process.offset_noise,
            input_perturbation=process.input_perturbation, variance=process.variance, bound=process.bound,
            bound_weight=process.bound_weight, uncertainty=process.uncertainty,
            self_conditioned=program.self_conditioned, value_range=model.value_range,
        )  # fmt: skip
        dataset = common.load_data(cfg.data)
        common.check_data(dataset, model.spec)
        _check_augment(cfg.data, model)
        training_config = TrainingConfig(**plain(cfg.trainer))
        training_config.check(program, group)
        dtype = common.settings_of(cfg, cfg.precision).host_dtype
        loader = Loader(dataset, cfg.seed, cfg.data.flip, dtype, model.value_range, cfg.data.augment)
        if cfg.data.loader not in LOADERS:
            raise one_of("data.loader", cfg.data.loader, LOADERS)
        return Experiment(
            model=model,
            plan=plan,
            objective=objective,
            loader=loader,
            ahead=LOADERS[cfg.data.loader](replace(loader, group=group), cfg.data.workers),
            adam=Adam(**plain(cfg.optimiser)),
            learning_rate=LearningRate(**plain(cfg.lr)),
            ema=ema,
            training_config=training_config,
            group=group,
        )


def _check_augment(data: DictConfig, model: DiffusionModel) -> None:
    """Refuse an augmentation that the network cannot be trained with."""
    if data.augment and model.program.features != LABEL:
        raise DuetError(
            f"data.augment: {data.augment} was given, but the network is told {model.program.features} numbers of an "
            f"image, not the {LABEL} of its augmentation; set model.augment_dim={LABEL}, or data.augment=0"
        )
    if data.augment and model.variance != "fixed":
        raise DuetError(
            "data.augment: it moves pictures off the bytes that a learned variance needs; use data.augment=0"
        )


def _in_order(loader: Loader, workers: int) -> AbstractContextManager[Loader | Prefetch]:
    """The loader as it is, whose next batch the training loop makes in a thread; or made ahead by processes."""
    return Prefetch(loader, workers) if workers else nullcontext(loader)


# By data.loader: what makes the batches of a loader ahead, with so many workers.
LOADERS = {"duet": _in_order, "grain": Grain}

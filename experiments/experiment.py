"""What a configuration of a training describes, as objects of the core."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from diffusion_core.backend.compile_policy import Work, training_work
from diffusion_core.backend.interface import Steering
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data import Loader
from diffusion_core.data.augment import LABEL
from diffusion_core.data.grain import Grain
from diffusion_core.data.prefetch import Prefetch
from diffusion_core.model.diffusion_model import Problem
from diffusion_core.optim import Ema, make_ema
from diffusion_core.optim.adam import Adam, LearningRate
from diffusion_core.runtime.distributed import World
from diffusion_core.sampling import SamplerPlan
from diffusion_core.training.loop import Course
from diffusion_core.training.objective import Objective
from experiments import common
from experiments.entry import plain
from experiments.processes import world_of

__all__ = ["LOADERS", "Experiment"]


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a configuration describes, as objects of the core."""

    problem: Problem
    plan: SamplerPlan | None  # a classifier is not sampled
    objective: Objective
    loader: Loader
    ahead: AbstractContextManager[Loader | Prefetch | Grain]  # the same, made ahead
    adam: Adam
    learning_rate: LearningRate
    ema: Ema
    course: Course
    world: World

    @property
    def training_work(self) -> Work:
        """What the whole course asks for, whatever of it is left: a run that is cut keeps its mode."""
        shape = self.problem.spec.image_shape
        return training_work(self.problem.program, shape, self.course.images, self.course.batch)

    @staticmethod
    def of(cfg: DictConfig) -> Experiment:
        """Make them all, so that a mistake anywhere is found at once."""
        world = world_of(cfg)
        problem = common.problem_of(cfg)
        problem.check_distance(cfg.process.distance)
        plan = None if problem.classifies else common.plan_of(problem, plain(cfg.sampler))
        if plan is not None:
            Steering().check(plan)  # samples of a training are led by nothing else
        ema = make_ema(**plain(cfg.ema))
        common.check_sample(cfg.sample, problem, len(ema.profiles))
        program, process = problem.program, cfg.process
        objective = Objective(
            problem.process, cfg.seed, process.distance, program.null_label, process.drop_label,
            features=program.features, classes=program.classes, first_t=process.first_t,
            weighting=plain(process.weighting), levels=plain(process.levels), offset_noise=process.offset_noise,
            input_perturbation=process.input_perturbation, variance=process.variance, bound=process.bound,
            bound_weight=process.bound_weight, uncertainty=process.uncertainty,
            self_conditioned=program.self_conditioned, value_range=problem.value_range,
        )  # fmt: skip
        dataset = common.load_data(cfg.data)
        common.check_data(dataset, problem.spec)
        _check_augment(cfg.data, problem)
        course = Course(**plain(cfg.trainer))
        course.check(program, world)
        dtype = common.settings_of(cfg, cfg.precision).host_dtype
        loader = Loader(dataset, cfg.seed, cfg.data.flip, dtype, problem.value_range, cfg.data.augment)
        if cfg.data.loader not in LOADERS:
            raise one_of("data.loader", cfg.data.loader, LOADERS)
        return Experiment(
            problem=problem,
            plan=plan,
            objective=objective,
            loader=loader,
            ahead=LOADERS[cfg.data.loader](replace(loader, world=world), cfg.data.workers),
            adam=Adam(**plain(cfg.optimiser)),
            learning_rate=LearningRate(**plain(cfg.lr)),
            ema=ema,
            course=course,
            world=world,
        )


def _check_augment(data: DictConfig, problem: Problem) -> None:
    """Refuse an augmentation that the network cannot be trained with."""
    if data.augment and problem.program.features != LABEL:
        raise DuetError(
            f"data.augment: {data.augment} was given, but the network is told {problem.program.features} numbers of an "
            f"image, not the {LABEL} of its augmentation; set model.augment_dim={LABEL}, or data.augment=0"
        )
    if data.augment and problem.variance != "fixed":
        raise DuetError(
            "data.augment: it moves pictures off the bytes that a learned variance needs; use data.augment=0"
        )


def _in_order(loader: Loader, workers: int) -> AbstractContextManager[Loader | Prefetch]:
    """The loader as it is, whose next batch the training loop makes in a thread; or made ahead by processes."""
    return Prefetch(loader, workers) if workers else nullcontext(loader)


# By data.loader: what makes the batches of a loader ahead, with so many workers.
LOADERS = {"duet": _in_order, "grain": Grain}

"""Several processes compute what one does. Threads stand for processes here, and a trainer has two weights."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffusion_core.backend.interface import BackendConfig, StepResult, TrainBatch
from diffusion_core.common.errors import DuetError
from diffusion_core.data import Dataset, Loader
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.likelihood import flow_density, variational_bound
from diffusion_core.metrics.accuracy import correct_predictions
from diffusion_core.model.generate import generate
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import BatchNorm
from diffusion_core.optim import Ema, Warmup
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runtime.distributed import LAUNCHERS, Collective, ProcessGroup, find_parallel_launch
from diffusion_core.sampling.ddim import ddim
from diffusion_core.training.events import TrainingCallbacks
from diffusion_core.training.loop import _agreed_micro_batch, make_batch, train
from diffusion_core.training.objective import Objective
from diffusion_core.training.training_config import TrainingConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (13, 2, 2, 1), np.uint8)
LOADER = Loader(Dataset(IMAGES, np.arange(13) % 3, ("a", "b", "c"), "toy"), seed=1, flip=True, dtype=np.float64)
# A timestep distribution that depends on the losses, which the processes must therefore exchange.
OBJECTIVE = Objective(Process(linear(4)), seed=1, timestep_sampling={"name": "loss_second_moment", "history": 1})
SIZES = [2, 3, 4]


@dataclass
class ThreadSum:
    """A sum over threads; with a fault, each thread gets its own array back."""

    size: int
    fault: bool = False
    held: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=120)

    def add(self, rank: int, array: np.ndarray) -> np.ndarray:
        self.held[rank] = array
        self.barrier.wait()
        total = array if self.fault else sum(self.held[k] for k in range(self.size))
        self.barrier.wait()
        return total


def together(size: int, task: Callable[[Collective], Any], fault: bool = False) -> list[Any]:
    """Run the task in `size` threads and return its results; raise the first exception."""
    total, results = ThreadSum(size, fault), [None] * size

    def work(rank: int) -> None:
        try:
            results[rank] = task(Collective(ProcessGroup(rank, size), partial(total.add, rank)))
        except BaseException as error:
            results[rank] = error
            total.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [one for one in results if isinstance(one, BaseException)]
    for error in sorted(errors, key=lambda one: isinstance(one, threading.BrokenBarrierError)):
        raise error
    return results


class Descent:
    """Gradient descent of F = w0 x + w1, which sums over processes as a backend does."""

    def __init__(self, collective: Collective) -> None:
        self.collective, self.weights, self.levels = collective, np.zeros(2), []

    def step(
        self, batch: TrainBatch, lr: float, decays: tuple[float, ...], micro_batches=1, may_repeat=False
    ) -> StepResult:
        residual = self.weights[0] * batch.images + self.weights[1] - batch.noise
        losses = np.mean(residual**2, axis=(1, 2, 3))
        slope = [np.mean(2 * residual * x, axis=(1, 2, 3)) for x in (batch.images, 1.0)]
        parts = np.array([np.mean(batch.importance * column) for column in (losses, *slope)])
        loss, *gradient = self.collective.all_reduce(parts)
        self.weights = self.weights - lr * np.array(gradient)
        self.levels.append(batch.c_noise)
        return StepResult(loss, np.linalg.norm(gradient), lambda: losses)


def trained(collective: Collective) -> tuple[list[float], np.ndarray]:
    """Return (losses, weights) of a short run."""
    losses: list[float] = []
    callbacks = TrainingCallbacks(on_log=lambda records, speed: losses.extend(record.loss for record in records))
    trainer, config = Descent(collective), TrainingConfig(100, 10, log_images=10)
    train(
        trainer,
        replace(LOADER, group=collective.group),
        OBJECTIVE,
        LearningRate(0.1),
        Ema((Warmup(0.9),)),
        config,
        callbacks,
        collective=collective,
    )
    return losses, trainer.weights


@pytest.mark.parametrize("size", SIZES)
def test_several_processes_train_as_one_does(size):
    losses, weights = trained(Collective())
    for found, reached in together(size, trained):
        np.testing.assert_allclose(found, losses, rtol=1e-12)
        np.testing.assert_allclose(reached, weights, rtol=1e-12)


def test_a_missing_sum_over_processes_is_detected():
    losses, _ = trained(Collective())
    found, _ = together(2, trained, fault=True)[0]
    assert np.max(np.abs(np.array(found) - losses)) > 1e-2


def test_the_stored_micro_batch_is_the_smallest_of_all_processes():
    config = TrainingConfig(24, 12, on_out_of_memory="halve")
    for halved, expected in (({2}, 2), ({1, 2}, 2), (set(), None)):
        assert (
            together(
                3,
                lambda collective, h=halved: _agreed_micro_batch(config, collective, 1 + (collective.group.rank in h)),
            )
            == [expected] * 3
        )


@pytest.mark.parametrize("size", SIZES)
def test_the_parts_of_all_processes_are_the_batch_and_their_losses_sum_to_its_loss(size):
    whole = make_batch(LOADER, OBJECTIVE, 20, 10)
    parts = [make_batch(replace(LOADER, group=ProcessGroup(rank, size)), OBJECTIVE, 20, 10) for rank in range(size)]
    for name in whole.arrays.keys() - {"importance", "dropout_key"}:
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    losses = np.square(whole.noise).mean(axis=(1, 2, 3))
    added = sum(np.mean(part.importance * np.square(part.noise).mean(axis=(1, 2, 3))) for part in parts)
    np.testing.assert_allclose(added, np.mean(whole.importance * losses), rtol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_samples_are_the_same_bits_and_each_batch_is_drawn_once(size):
    drawn, pauses = [], []

    def sample(network: Any, plan: Any, start: np.ndarray, label: np.ndarray, noise: Any, *rest: Any) -> np.ndarray:
        drawn.append(len(start))
        return start * len(start) + noise(0)  # depends on the size of the batch

    backend = SimpleNamespace(config=BackendConfig(precision="float64"), sample=sample)
    network, plan = SimpleNamespace(program=Program(())), ddim(Process(linear()), 2, eta=1.0)

    def all_of_them(collective: Collective) -> np.ndarray:
        pause = partial(pauses.append, collective.group.rank)
        return generate(
            backend, network, plan, (2, 2, 1), np.zeros(11, int), seed=3, batch=2, collective=collective, pause=pause
        )

    alone = all_of_them(Collective())
    assert pauses == [0] * 6
    drawn.clear(), pauses.clear()
    for found in together(size, all_of_them):
        np.testing.assert_array_equal(found, alone)
    assert sorted(drawn) == [1, 2, 2, 2, 2, 2]
    assert sorted(pauses) == sorted([*range(size)] * -(-6 // size))  # every process after every round


@pytest.mark.parametrize("count", [1, 4, 7, 64])
@pytest.mark.parametrize("size", [1, *SIZES])
def test_slices_are_in_order_and_differ_by_one_item_at_most(size, count):
    slices = [ProcessGroup(rank, size).slice_of(count) for rank in range(size)]
    assert [i for part in slices for i in range(count)[part]] == list(range(count))
    units = [ProcessGroup(rank, size).slice_of(count, 3) for rank in range(size)]
    assert [i for part in units for i in range(count)[part]] == list(range(count))
    assert all(part.start % 3 == 0 or part.start == count for part in units)
    lengths = [part.stop - part.start for part in slices]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_density_and_accuracy_are_measured_in_the_same_batches_and_the_bound_to_rounding(size):
    """The output of the networks depends on their batch, so another division would change it; the bound mixes pairs."""
    process, index, label = Process(linear(4)), np.arange(13), np.zeros(13, np.int32)

    def forward(x: np.ndarray, c_noise: np.ndarray, label: np.ndarray) -> np.ndarray:
        return np.sin(x) + c_noise[:, None, None, None]

    def vjp(x: np.ndarray, c_noise: np.ndarray, label: np.ndarray, cotangent: np.ndarray) -> tuple:
        return np.sin(x) + 0.01 * np.sin(x.sum()), np.cos(x) * cotangent

    def measure(collective: Collective) -> list[np.ndarray]:
        own = collective.group.slice_of(13, 2)
        given = label[own], index[own], 3
        bound = variational_bound(forward, process, IMAGES[own], *given, batch=2, clip=False)
        density = flow_density(vjp, process, IMAGES[own] / 255.0, *given, steps=2, batch=2)
        right = correct_predictions(
            lambda x, *_: np.sin(x + x.sum()).reshape(len(x), -1), process, IMAGES, LOADER.dataset.labels, [0, 3],
            3, 2, subset=own,
        )  # fmt: skip
        parts = [*vars(bound).values(), *vars(density).values(), right.T]
        return [collective.gather(part, 13, 2) for part in parts]

    alone = measure(Collective())
    for several in together(size, measure):
        for k, (one, other) in enumerate(zip(alone, several, strict=True)):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-12 if k < 6 else 0, atol=0)


def test_gather_and_any_exchange_values_between_processes():
    def task(collective: Collective) -> Any:
        mine = np.arange(7.0)[collective.group.slice_of(7)]
        return collective.gather(mine, 7), collective.any(collective.group.rank == 2), collective.any(False)

    for gathered, one, none in together(3, task):
        np.testing.assert_array_equal(gathered, np.arange(7.0))
        assert one and not none
    assert Collective().any(True) and not Collective().any(False)


def test_processes_with_different_configurations_stop_with_an_error():
    assert together(3, lambda collective: collective.require_equal("the seed", lambda: "same")) == [None] * 3
    with pytest.raises(DuetError, match="parallel: the seed of process 1 is not that of process 0"):
        together(3, lambda collective: collective.require_equal("the seed", lambda: str(collective.group.rank == 1)))


CONFIG = {"cluster": {"worker": ["a:1", "a:2", "b:1", "b:2"]}, "task": {"type": "worker", "index": 3}}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize("kind, environ, expected", [
    ("none", {"RANK": "1", "WORLD_SIZE": "2"}, (0, 1, 0)),
    ("ddp", {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 0)),
    ("ddp", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
    ("ddp", SLURM, (5, 8, 1)),
    ("multiworker", {"TF_CONFIG": json.dumps(CONFIG)}, (3, 4, 1)),
    ("multiworker", SLURM, (5, 8, 1)),
])  # fmt: skip
def test_a_process_reads_its_rank_from_the_variables_of_its_launcher(kind, environ, expected):
    group = ProcessGroup.from_environment(kind, environ)
    assert (group.rank, group.size, group.local_rank) == expected and group.kind == kind


@pytest.mark.parametrize("environ, variable", [
    ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE"),
    ({"TF_CONFIG": json.dumps(CONFIG)}, "TF_CONFIG"),
    (SLURM | {"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS"),
    ({}, None),
    ({"RANK": "0", "WORLD_SIZE": "1"}, None),
    ({"WORLD_SIZE": "many", "TF_CONFIG": "{"}, None),
    ({"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}})}, None),
    (SLURM | {"SLURM_PROCID": "0"}, None),  # the batch script of an allocation is one process
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),  # a job of submitit
])  # fmt: skip
def test_a_parallel_launch_is_recognised_by_its_variables(environ, variable):
    assert find_parallel_launch(environ) == variable


@pytest.mark.parametrize("kind, environ, message", [
    ("dpp", {}, "parallel: 'dpp' was given; .* Did you mean 'ddp'"),
    ("ddp", {}, "ddp was given, but .* start it as: python3 -m duet launch 2"),
    ("multiworker", {"RANK": "1", "WORLD_SIZE": "2"}, "multiworker was given, but .* duet launch 2"),
    ("ddp", {"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 of 2 processes was given; use 0 .. 1"),
    ("ddp", {"RANK": "one", "WORLD_SIZE": "2"}, "which are not whole numbers"),
    ("multiworker", {"TF_CONFIG": "{"}, "TF_CONFIG: it cannot be read"),
    ("multiworker", {"TF_CONFIG": json.dumps({**CONFIG, "task": {"type": "worker", "index": 4}})}, "cannot be read"),
    ("multiworker", {"TF_CONFIG": json.dumps({**CONFIG, "task": {"type": "ps", "index": 0}})}, "tasks other than"),
])  # fmt: skip
def test_missing_or_malformed_launcher_variables_are_refused(kind, environ, message):
    with pytest.raises(DuetError, match=message):
        ProcessGroup.from_environment(kind, environ)


@pytest.mark.parametrize("options, words", [
    ({"batch": 3}, "trainer.batch: 3 was given for 4 processes"),
    ({"batch": 12, "micro_batch": 6}, "trainer.micro_batch: 6 was given for a batch of 12 on 4 processes"),
    ({"batch": 12}, "parallel: ddp was given, but the network has batch statistics"),
])  # fmt: skip
def test_a_batch_that_cannot_be_divided_among_processes_is_refused(options, words):
    mixing = Program((Node("norm", BatchNorm(2, 1e-3, 0.1), ("x",)),))
    with pytest.raises(DuetError, match=words):
        TrainingConfig(12, **options).check(mixing, ProcessGroup(0, 4, kind="ddp"))
    assert TrainingConfig(12, 12, micro_batch=1).micro_batches(ProcessGroup(0, 4)) == 3
    assert set(LAUNCHERS) == {"none", "ddp", "multiworker"}


def test_an_array_of_the_main_process_reaches_all():
    arrays = together(3, lambda collective: collective.from_main(np.full(2, collective.group.rank + 0.1)))
    np.testing.assert_array_equal(arrays, np.full((3, 2), 0.1))

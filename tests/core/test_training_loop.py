"""The training loop: a resumed run equals the uninterrupted one, and callbacks are called at their moments."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import pytest

from diffusion_core.backend.interface import StepResult, TrainBatch
from diffusion_core.common.errors import DuetError, OutOfMemory
from diffusion_core.data import Dataset, Loader
from diffusion_core.diffusion.process import Process
from diffusion_core.diffusion.schedule import linear
from diffusion_core.diffusion.timestep_sampling import LossHistory
from diffusion_core.networks import Node, Program
from diffusion_core.networks.blocks import BatchNorm, GroupNorm
from diffusion_core.optim import Ema, Power, Warmup
from diffusion_core.optim.adam import LearningRate
from diffusion_core.runtime.distributed import Collective, ProcessGroup
from diffusion_core.training import loop as training
from diffusion_core.training.events import NonFiniteStep, Record, ResumeState, TrainingCallbacks
from diffusion_core.training.loop import make_batch, train
from diffusion_core.training.objective import Objective
from diffusion_core.training.training_config import TrainingConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (13, 2, 2, 1), np.uint8)
LOADER = Loader(Dataset(IMAGES, np.arange(13) % 3, ("a", "b", "c"), "toy"), seed=1, flip=True)
OBJECTIVE = Objective(Process(linear()), seed=1, null_label=3, label_dropout=0.3)
RATE = LearningRate(0.1, 20, "cosine", 64)
EMA = Ema((Warmup(0.9), Power(0.1)))


@dataclass
class Recorder:
    """A trainer that records its arguments; its loss at step k is losses(k)."""

    losses: object = lambda step: 1.0 / step
    per_image: object = lambda batch: np.zeros(0)
    room: int = 10**9  # the largest micro-batch that fits into its memory
    steps: list[tuple[bytes, float, tuple[float, ...]]] = field(default_factory=list)
    micro_batches: list[int] = field(default_factory=list)

    def step(
        self, batch: TrainBatch, lr: float, decays: tuple[float, ...], micro_batches=1, may_repeat=False
    ) -> StepResult:
        if batch.size // micro_batches > self.room:
            raise (OutOfMemory if may_repeat else DuetError)("out of memory")
        self.micro_batches.append(micro_batches)
        content = b"".join(np.ascontiguousarray(value).tobytes() for value in batch.arrays.values())
        self.steps.append((content, lr, decays))
        return StepResult(np.float32(self.losses(len(self.steps))), np.float32(2.0), lambda: self.per_image(batch))


def run(
    config: TrainingConfig,
    trainer: Recorder | None = None,
    callbacks: TrainingCallbacks | None = None,
    objective: Objective = OBJECTIVE,
    ema: Ema = EMA,
    **start: object,
) -> Recorder:
    trainer = trainer or Recorder()
    train(trainer, LOADER, objective, RATE, ema, config, callbacks, **start)
    return trainer


# Four timesteps, each of which soon has its two losses.
ADAPTIVE = Objective(Process(linear(4)), seed=1, timestep_sampling={"name": "loss_second_moment", "history": 2})


@pytest.mark.parametrize("cut", [4, 8, 28, 60])
def test_an_adaptive_timestep_distribution_is_resumed_from_its_history(cut):
    """The loss of an image is its timestep plus one, which decides the timesteps drawn later."""
    kept = {}
    callbacks = TrainingCallbacks(
        on_checkpoint=lambda images_seen, resume_state: kept.update({images_seen: resume_state.history})
    )

    def recorder() -> Recorder:
        return Recorder(per_image=lambda batch: batch.c_noise + 1.0)

    config = TrainingConfig(64, 4, checkpoint_images=4)
    whole = run(config, recorder(), callbacks, ADAPTIVE).steps
    rest = run(
        config, recorder(), None, ADAPTIVE, images_seen=cut, updates=cut // 4, resume_state=ResumeState(kept[cut])
    ).steps
    assert rest == whole[cut // 4 :]
    assert np.all(kept[64].counts == 2) and np.array_equal(kept[64].losses, np.arange(1.0, 5)[:, None] * [1, 1])
    if cut == 60:  # by then the history is full, and a run without it draws other timesteps
        assert run(config, recorder(), None, ADAPTIVE, images_seen=cut, updates=15).steps != rest


@pytest.mark.parametrize("cut", [4, 8, 28, 60])
def test_a_resumed_run_equals_the_uninterrupted_one(cut):
    whole = run(TrainingConfig(64, 4)).steps
    first = run(TrainingConfig(cut, 4)).steps
    rest = run(TrainingConfig(64, 4), images_seen=cut, updates=cut // 4).steps
    assert first + rest == whole and len(whole) == 16


def test_every_step_has_its_own_batch_learning_rate_and_decays():
    steps = run(TrainingConfig(64, 4)).steps
    assert len({content for content, _, _ in steps}) == 16
    assert [lr for _, lr, _ in steps] == [RATE(n) for n in range(4, 65, 4)]
    assert [decays for _, _, decays in steps] == [EMA.decays(k, 4 * k, 4) for k in range(1, 17)]


@pytest.mark.parametrize("log_images", [4, 8, 10, 12, 30, 60, 64, 100])
def test_the_steps_of_the_last_log_are_recognised(log_images):
    logs = []
    callbacks = TrainingCallbacks(on_log=lambda records, speed: logs.append([record.images_seen for record in records]))
    config = TrainingConfig(64, 4, log_images=log_images)
    run(config, callbacks=callbacks)
    # The first step, which is always logged alone, belongs to the first log.
    last = logs[0] + logs[1] if len(logs) == 2 else logs[-1]
    assert [n for n in range(4, 65, 4) if config.is_in_last_log(n)] == last


def test_batches_follow_the_order_of_the_data():
    batch = make_batch(LOADER, OBJECTIVE, 12, 4)
    images = LOADER.batch(12, 4)
    np.testing.assert_array_equal(batch.images, images.pixels)
    expected = OBJECTIVE.batch(images.pixels, images.labels, np.arange(12, 16), np.float32)
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(batch, name), value)
    content = b"".join(np.ascontiguousarray(value).tobytes() for value in batch.arrays.values())
    assert run(TrainingConfig(64, 4)).steps[3][0] == content


def test_the_batch_size_does_not_change_what_an_image_is_trained_with():
    for name, value in make_batch(LOADER, OBJECTIVE, 0, 12).arrays.items():
        parts = [make_batch(LOADER, OBJECTIVE, n, 3).arrays[name] for n in (0, 3, 6, 9)]
        if name == "dropout_key":  # of the run, not of an image
            assert all(np.array_equal(part, value) for part in parts)
        else:
            np.testing.assert_array_equal(np.concatenate(parts), value)


def test_a_finished_run_takes_no_steps():
    assert run(TrainingConfig(8, 4), images_seen=8).steps == []


def moments(config: TrainingConfig, ema: Ema = EMA, **start: int) -> dict[str, list]:
    happened: dict[str, list] = {"log": [], "checkpoint": [], "sample": [], "snapshot": [], "order": []}

    def record(event: str):
        def callback(images_seen: int, history: LossHistory | None = None, skipped: int = 0) -> None:
            happened[event].append(images_seen)
            happened["order"].append(event)

        return callback

    def log(records: list[Record], speed: float) -> None:
        happened["log"].append([record.images_seen for record in records])
        happened["order"].append("log")
        assert speed >= 0

    run(
        config,
        None,
        TrainingCallbacks(log, record("checkpoint"), record("sample"), record("snapshot")),
        ema=ema,
        **start,
    )
    return happened


def test_callbacks_are_called_at_their_intervals():
    happened = moments(TrainingConfig(40, 4, log_images=12, checkpoint_images=16, sample_images=20))
    assert happened["checkpoint"] == [16, 32, 40]
    assert happened["sample"] == [20, 40]
    # The first step is logged at once, so that a mistake shows early.
    assert happened["log"][0] == [4]
    assert [part[-1] for part in happened["log"]] == [4, 12, 16, 20, 24, 32, 36, 40]
    assert list(chain(*happened["log"])) == list(range(4, 41, 4))
    assert happened["order"][-3:] == ["log", "checkpoint", "sample"]


def test_snapshots_are_taken_at_their_interval_and_at_the_end_or_never():
    config = TrainingConfig(40, 4, log_images=1000, checkpoint_images=24)
    happened = moments(config, Ema(EMA.profiles, 12))
    assert happened["snapshot"] == [12, 24, 36, 40]
    # The losses are read before a snapshot, so that none is stored after a step that is not finite.
    assert [part[-1] for part in happened["log"]] == [4, 12, 24, 36, 40]
    assert happened["order"][-4:] == ["log", "snapshot", "checkpoint", "sample"]
    assert moments(config, Ema(EMA.profiles, 12), images_seen=24, updates=6)["snapshot"] == [36, 40]
    assert moments(config)["snapshot"] == []


def test_an_interval_that_ends_between_two_steps_takes_effect_after_the_later_step():
    assert moments(TrainingConfig(40, 4, checkpoint_images=10))["checkpoint"] == [12, 20, 32, 40]
    assert moments(TrainingConfig(40, 4, checkpoint_images=3))["checkpoint"] == list(range(4, 41, 4))


def test_without_an_interval_a_callback_is_called_at_the_end_only():
    happened = moments(TrainingConfig(40, 4, log_images=1000))
    assert happened["checkpoint"] == happened["sample"] == [40]


def test_intervals_do_not_depend_on_where_a_run_was_resumed():
    whole = moments(TrainingConfig(40, 4, log_images=12, checkpoint_images=16, sample_images=20))
    rest = moments(
        TrainingConfig(40, 4, log_images=12, checkpoint_images=16, sample_images=20), images_seen=16, updates=4
    )
    assert rest["checkpoint"] == [n for n in whole["checkpoint"] if n > 16]
    assert rest["sample"] == [n for n in whole["sample"] if n > 16]
    assert list(chain(*rest["log"])) == list(range(20, 41, 4))


def test_records_contain_the_numbers_of_their_steps():
    kept: list[Record] = []
    run(
        TrainingConfig(16, 4, log_images=16),
        callbacks=TrainingCallbacks(on_log=lambda records, speed: kept.extend(records)),
    )
    assert [record.loss for record in kept] == [float(np.float32(1 / k)) for k in (1, 2, 3, 4)]
    assert [record.lr for record in kept] == [RATE(n) for n in (4, 8, 12, 16)]
    assert {record.grad_norm for record in kept} == {2.0}
    assert [record.metrics["ema_decay"] for record in kept] == [2 / 11, 3 / 12, 4 / 13, 5 / 14]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_loss_that_is_not_finite_stops_the_run_before_anything_is_stored(bad, step):
    kept = []
    callbacks = TrainingCallbacks(
        lambda records, speed: kept.extend(r.images_seen for r in records), lambda n, *_: kept.append(n), kept.append
    )
    trainer = Recorder(lambda k: bad if k == step else 1.0)
    with pytest.raises(DuetError, match=f"the loss is {bad} and .* at {4 * step} images seen; a lower learning rate"):
        run(TrainingConfig(32, 4, log_images=16, checkpoint_images=16), trainer, callbacks)
    assert kept == list(range(4, 4 * step, 4))  # the steps logged before it


def test_a_gradient_that_is_not_finite_stops_the_run():
    class Exploding(Recorder):
        def step(self, batch, lr, decays, micro_batches, may_repeat):
            return StepResult(1.0, math.inf)

    with pytest.raises(DuetError, match="the gradient norm inf"):
        run(TrainingConfig(8, 4), Exploding())


@pytest.mark.parametrize("objective", ["plain", "adaptive"])
def test_a_step_that_is_not_finite_is_reported_with_the_state_before_it(objective):
    reported: list[NonFiniteStep] = []

    def report(step: NonFiniteStep) -> str:
        reported.append(step)
        return "; stored"

    def log(records: list[Record], speed: float) -> None:
        logged.extend(record.images_seen for record in records)

    logged: list[int] = []
    chosen = ADAPTIVE if objective == "adaptive" else OBJECTIVE
    trainer = Recorder(lambda k: math.nan if k >= 3 else 1.0, per_image=lambda batch: batch.c_noise)
    with pytest.raises(DuetError, match=r"the loss is nan .*non_finite=skip; stored"):
        run(
            TrainingConfig(32, 4, micro_batch=2, log_images=16),
            trainer,
            TrainingCallbacks(log, on_non_finite=report),
            chosen,
        )
    (found,) = reported
    assert logged == [4, 8]
    assert (found.images_seen, found.batch, found.updates, found.lr, found.micro_batches) == (8, 4, 2, RATE(12), 2)
    assert (found.history is None) == (objective == "plain") and found.decays == EMA.decays(3, 12, 4)


@dataclass
class Clearing(Recorder):
    """A trainer that records when it was cleared."""

    cleared: list[int] = field(default_factory=list)

    def clear_non_finite(self) -> None:
        self.cleared.append(len(self.steps))


def test_updates_that_are_not_finite_are_skipped_and_each_series_is_reported_once():
    kept, reported, notices = [], [], []
    callbacks = TrainingCallbacks(
        lambda records, speed: kept.extend(records),
        on_notice=notices.append,
        on_non_finite=lambda found: reported.append(found) or "",
    )
    bad = (2, 3, 6)
    trainer = Clearing(lambda k: math.inf if k in bad else 1.0)
    run(TrainingConfig(32, 4, log_images=16, non_finite="skip", max_skipped=2), trainer, callbacks)
    assert trainer.cleared == list(bad) and len(notices) == 3
    assert [record.metrics["skipped"] for record in kept] == [int(k in bad) for k in range(1, 9)]
    assert [found.images_seen for found in reported] == [4, 20]
    assert trainer.steps == run(TrainingConfig(32, 4)).steps  # skipped updates do not move batches, rates or decays


@pytest.mark.parametrize("most", [0, 1, 3])
def test_too_many_consecutive_skipped_updates_stop_the_run(most):
    config = TrainingConfig(64, 4, non_finite="skip", max_skipped=most)
    trainer = Clearing(lambda k: math.nan if 3 <= k <= 3 + most else 1.0)
    with pytest.raises(DuetError, match=r"the loss is nan .* at \d+ images seen"):
        run(config, trainer)
    assert len(trainer.steps) == 3 + most
    run(config, Clearing(lambda k: math.nan if 3 <= k < 3 + most else 1.0))


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_run_interrupted_within_a_series_of_skipped_updates_stops_where_the_uninterrupted_one_does(cut):
    bad, found = {2, 4, 5, 6, 7}, {}
    callbacks = TrainingCallbacks(
        on_checkpoint=lambda images_seen, resume_state: found.update({images_seen: resume_state.skipped})
    )

    def last(most: int, first: int = 0, **start: int) -> int | None:
        config = TrainingConfig(32, 4, checkpoint_images=4, non_finite="skip", max_skipped=most)
        try:
            run(config, Clearing(lambda k: math.nan if k + first in bad else 1.0), callbacks, **start)
        except DuetError as error:
            return int(re.search(r"at (\d+) images seen", str(error))[1])
        return None

    assert last(4) is None and [found[4 * k] for k in range(1, 9)] == [0, 1, 0, 1, 2, 3, 4, 0]
    skipped = found[4 * cut]
    assert last(3) == 28
    if cut < 7:
        assert last(3, cut, images_seen=4 * cut, updates=cut, resume_state=ResumeState(skipped=skipped)) == 28


def test_updates_skipped_before_a_run_stops_are_logged():
    kept, reported = [], []
    callbacks = TrainingCallbacks(
        lambda records, speed: kept.extend(records), on_non_finite=lambda found: reported.append(found) or ""
    )
    config = TrainingConfig(64, 4, log_images=64, non_finite="skip", max_skipped=2)
    with pytest.raises(DuetError, match="and 2 updates before it were skipped"):
        run(config, Clearing(lambda k: math.nan if k >= 3 else 1.0), callbacks)
    assert [(record.images_seen, record.skipped) for record in kept] == [(4, 0), (8, 0), (12, 1), (16, 1)]
    assert [(found.images_seen, found.stops_training) for found in reported] == [(8, False), (16, True)]


def test_an_adaptive_timestep_distribution_ignores_skipped_losses():
    def histories(bad: int) -> dict[int, LossHistory]:
        kept = {}
        callbacks = TrainingCallbacks(
            on_checkpoint=lambda images_seen, resume_state: kept.update({images_seen: resume_state.history})
        )
        trainer = Clearing(lambda k: math.nan if k == bad else 1.0, per_image=lambda batch: batch.positions + 1.0)
        run(TrainingConfig(32, 4, checkpoint_images=4, non_finite="skip"), trainer, callbacks, ADAPTIVE)
        return kept

    plain, skipped = histories(0), histories(3)
    assert np.array_equal(skipped[12].losses, plain[8].losses)
    assert not np.array_equal(plain[12].losses, plain[8].losses)


def test_a_batch_is_computed_in_micro_batches_of_the_given_size():
    assert run(TrainingConfig(24, 12, micro_batch=3)).micro_batches == [4, 4]
    assert run(TrainingConfig(24, 12)).micro_batches == [1, 1]


def test_the_micro_batch_is_halved_when_memory_runs_out_and_stays_so():
    notices = []
    config = TrainingConfig(36, 12, micro_batch=12, on_out_of_memory="halve")
    trainer = run(config, Recorder(room=3), TrainingCallbacks(on_notice=notices.append))
    assert trainer.micro_batches == [4, 4, 4] and trainer.steps == run(TrainingConfig(36, 12)).steps
    assert [line.split()[7] for line in notices] == ["6", "3"]
    with pytest.raises(OutOfMemory):  # three images cannot be halved
        run(config, Recorder(room=2))
    with pytest.raises(DuetError) as found:  # with "stop" the step may not be repeated
        run(replace(config, on_out_of_memory="stop"), Recorder(room=3))
    assert not isinstance(found.value, OutOfMemory)


def test_a_resumed_run_keeps_the_reduced_micro_batch():
    """Otherwise its sums would be taken in another order than those of the uninterrupted run."""
    kept, notices = {}, []
    config = TrainingConfig(36, 12, checkpoint_images=12, on_out_of_memory="halve")
    callbacks = TrainingCallbacks(
        on_checkpoint=lambda images_seen, resume_state: kept.update({images_seen: resume_state}),
        on_notice=notices.append,
    )
    run(config, Recorder(room=3), callbacks)
    assert [kept[n].reduced_micro_batch for n in (12, 24, 36)] == [3, 3, 3] and len(notices) == 2
    start = {"images_seen": 12, "updates": 1, "resume_state": kept[12]}
    assert run(config, Recorder(), callbacks, **start).micro_batches == [4, 4] and kept[36].reduced_micro_batch == 3
    assert notices[2:] == ["micro-batch: 3 images, as before the run was interrupted"]
    assert run(replace(config, micro_batch=2), Recorder(), **start).micro_batches == [
        6,
        6,
    ]  # the requested size is smaller
    assert run(replace(config, on_out_of_memory="stop"), Recorder(), callbacks, **start).micro_batches == [1, 1]
    assert kept[36].reduced_micro_batch is None
    run(config, Recorder(), callbacks)
    assert {resume_state.reduced_micro_batch for resume_state in kept.values()} == {None}


@pytest.mark.parametrize("options", [{"micro_batch": 4}, {"on_out_of_memory": "halve"}])
def test_a_network_with_batch_statistics_is_not_trained_in_micro_batches(options):
    mixing = Program((Node("norm", BatchNorm(2, 1e-3, 0.1), ("x",)),))
    TrainingConfig(24, 12).check(mixing)
    TrainingConfig(24, 12, **options).check(Program((Node("norm", GroupNorm(2, 1, 1e-3), ("x",)),)))
    with pytest.raises(DuetError, match=f"trainer.{next(iter(options))}: .* has batch statistics"):
        TrainingConfig(24, 12, **options).check(mixing)


def test_a_wrong_label_in_the_data_is_raised_by_the_loop():
    objective = Objective(Process(linear()), seed=1, null_label=2)
    with pytest.raises(DuetError, match="label 2 was given; it must be 0 to"):
        train(Recorder(), LOADER, objective, RATE, EMA, TrainingConfig(64, 16))


def test_the_summary_counts_only_the_time_of_steps():
    summary = train(Recorder(), LOADER, OBJECTIVE, RATE, EMA, TrainingConfig(16, 4))
    assert summary.keys() == {"images_per_second", "first_step_seconds", "seconds"}
    assert summary["images_per_second"] == pytest.approx(12 / summary["seconds"])


@pytest.mark.parametrize("options, message", [
    ({"images": 0}, "trainer.images: 0 was given"),
    ({"images": 128, "batch": 0}, "trainer.batch: 0"),
    ({"images": 128, "log_images": 0}, "trainer.log_images: 0"),
    ({"images": 128, "micro_batch": 48}, "trainer.micro_batch: 48 was given; it must divide the batch 128"),
    ({"images": 128, "micro_batch": 0}, "trainer.micro_batch: 0"),
    ({"images": 128, "non_finite": "skp"}, "trainer.non_finite: .* Did you mean 'skip'"),
    ({"images": 128, "max_skipped": -1}, "trainer.max_skipped: -1"),
    ({"images": 128, "on_out_of_memory": "half"}, "trainer.on_out_of_memory: .* Did you mean 'halve'"),
    ({"images": 130, "batch": 64}, "130 was given; it must be a multiple of trainer.batch=64, for example 128 or 192"),
    ({"images": 10, "batch": 64}, "10 was given; it must be a multiple of trainer.batch=64, for example 64"),
])  # fmt: skip
def test_training_options_out_of_range_are_refused(options, message):
    with pytest.raises(DuetError, match=message):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "rank", "size", "whole"),
    [(8, None, 0, 1, 1), (8, 2, 0, 1, 4), (8, None, 1, 2, 2), (8, 2, 1, 2, 4), (7, None, 0, 2, 7), (12, 3, 0, 2, 4)],
)
def test_a_stored_batch_has_micro_batches_no_larger_than_those_of_one_process(batch, micro_batch, rank, size, whole):
    config, group = TrainingConfig(batch, batch, micro_batch=micro_batch), ProcessGroup(rank, size)
    assert training._micro_batches_of_whole(config.micro_batches(group), config, Collective(group)) == whole


def test_reprs_are_one_short_line():
    step = NonFiniteStep(8, 4, 2, 0.1, (0.9,), math.nan, 1.0, ADAPTIVE.timestep_sampler.empty_history())
    state = ResumeState(ADAPTIVE.timestep_sampler.empty_history(), skipped=1)
    callbacks = TrainingCallbacks(on_log=lambda records, speed: None)
    assert repr(step) == "NonFiniteStep(images_seen=8, loss=nan, grad_norm=1.0)"
    assert repr(state) == "ResumeState(history=0 losses, skipped=1, reduced_micro_batch=None)"
    assert repr(callbacks) == "TrainingCallbacks(on_log)" and repr(OBJECTIVE).startswith("Objective(eps on linear")

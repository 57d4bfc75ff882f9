"""EMA snapshots are complete, exact and of one run; an average made from them is the one training would have given."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import UNetSpec
from diffusion_core.optim import Power, Profile, Warmup, ema_update
from diffusion_core.runs import checkpoint as files
from diffusion_core.runs.checkpoint import load_checkpoint, save_checkpoint
from diffusion_core.runs.ema_snapshots import (
    Snapshot,
    delete_snapshots_after,
    find_snapshots,
    reconstruct,
    save_snapshots,
)

SPEC = UNetSpec(4, 1, 1, 4, (1,), 1, (), middle_attention=False, norm_groups=2)
MODEL = DiffusionModel(SPEC, {"name": "linear", "T": 10}, "eps")
BATCH, LAST = 4, 60
PROFILES = (Power(0.05), Power(0.1))


def weights_after(update: int, dtype: type = np.float64) -> dict[str, np.ndarray]:
    """Return weights that approach a goal with noise, as a function of the update alone."""
    rng, goals = np.random.default_rng(update), np.random.default_rng(1000)
    return {
        p.name: (goals.normal(size=p.shape) + 3 * np.exp(-update / 20) + 0.1 * rng.normal(size=p.shape)).astype(dtype)
        for p in MODEL.program.parameters
    }


@cache
def states(profiles: tuple[Profile, ...] = PROFILES, dtype: type = np.float64) -> list[TrainerState]:
    """Return the state of a trainer before the first update and after each update."""
    state = TrainerState.fresh(weights_after(0, dtype), len(profiles))
    walked = [state]
    for k in range(1, LAST + 1):
        weights = weights_after(k, dtype)
        averages = tuple(
            {name: value.astype(dtype) for name, value in ema_update(a, weights, float(p(k, k * BATCH, BATCH))).items()}
            for a, p in zip(state.averages, profiles, strict=True)
        )
        state = TrainerState(weights, averages, state.slots, k)
        walked.append(state)
    return walked


WALK = states()


def stored(
    path, every: int, walk=WALK, profiles=PROFILES, batch: int = BATCH, seed: int = 3, model: DiffusionModel = MODEL
):
    """Return the snapshots of a run that stores one every `every` updates."""
    for k in range(every, LAST + 1, every):
        save_snapshots(path / "snapshots", k * batch, walk[k], profiles, batch, model, seed)
    return find_snapshots(path)


def distance(a, b) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_bit_survives_the_round_trip(tmp_path, dtype):
    walk = states(dtype=dtype)
    found = stored(tmp_path, 30, walk)
    assert sorted(os.listdir(tmp_path / "snapshots")) == [
        f"{n:012d}-{name}.safetensors" for n in (120, 240) for name in ("ema", "ema1")
    ]
    assert [(one.images_seen, one.updates, one.batch, one.seed) for one in found] == [
        (120, 30, 4, 3), (120, 30, 4, 3), (240, 60, 4, 3), (240, 60, 4, 3)
    ]  # fmt: skip
    assert [one.profile for one in found] == [*PROFILES, *PROFILES] and all(one.model == MODEL for one in found)
    for one in found:
        expected = walk[one.updates].averages[PROFILES.index(one.profile)]
        for name, value in one.weights().items():
            assert value.dtype == dtype and value.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_stored_average_is_reconstructed_bit_by_bit(tmp_path, dtype):
    walk = states(dtype=dtype)
    found = stored(tmp_path, 20, walk)
    for i, profile in enumerate(PROFILES):
        for updates in (20, 60):
            made, how = reconstruct(found, profile, updates * BATCH)
            assert made.images_seen == updates * BATCH and how.error == 0
            for name, value in walk[updates].averages[i].items():
                assert made.state.weights[name].tobytes() == value.tobytes() == made.state.ema[name].tobytes()
    assert reconstruct(found, PROFILES[0])[0].images_seen == LAST * BATCH


@pytest.mark.parametrize("profile", [Power(0.07), Power(0.15), Warmup(0.8)], ids=str)
def test_a_reconstructed_average_is_near_the_tracked_one_and_nearer_with_more_snapshots(tmp_path, profile):
    tracked = states((profile,))[-1].ema
    errors = []
    for every in (20, 10, 5):
        made, _ = reconstruct(stored(tmp_path / str(every), every), profile)
        errors.append(distance(made.state.ema, tracked))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.002 < 0.04 < min(distance(average, tracked) for average in WALK[-1].averages)


def test_an_average_wanted_between_two_snapshots_reports_its_larger_residual(tmp_path):
    found = stored(tmp_path, 5)
    reported, errors = {}, {}
    for k in (50, 52, 55):
        made, how = reconstruct(found, Power(0.07), k * BATCH)
        reported[k], errors[k] = how.error, distance(made.state.ema, states((Power(0.07),))[k].ema)
    assert max(reported[50], reported[55]) < 0.01 < 0.3 < reported[52] < 0.5
    assert max(errors[50], errors[55]) < 0.1 * errors[52]


def test_a_reconstructed_checkpoint_can_be_saved_and_loaded(tmp_path):
    made, how = reconstruct(stored(tmp_path, 20), Power(0.07))
    again = load_checkpoint(save_checkpoint(tmp_path / "checkpoints", made), MODEL.spec)
    assert again.model == MODEL and again.seed == 3 and again.state.updates == 0
    assert again.notes["average"] == {"name": "power", "sigma_rel": 0.07} and again.notes["profile_error"] == how.error
    assert sum(again.notes["coefficients"].values()) == pytest.approx(1)
    assert distance(again.state.ema, made.state.ema) == 0


def test_the_average_of_targets_is_not_written(tmp_path):
    """A training method may keep one more average, the last, which is none of the run's."""
    state = WALK[12]
    more = replace(state, averages=(*state.averages, weights_after(0)))
    for folder, given in (("one", state), ("other", more)):
        save_snapshots(tmp_path / folder / "snapshots", 48, given, PROFILES, BATCH, MODEL, 3)
    one, other = (sorted((tmp_path / folder / "snapshots").iterdir()) for folder in ("one", "other"))
    assert [path.name for path in one] == [path.name for path in other] and len(one) == 2
    for first, second in zip(one, other, strict=True):
        assert distance(load_file(first), load_file(second)) == 0


def test_only_later_snapshots_are_deleted(tmp_path):
    stored(tmp_path, 20)
    (tmp_path / "snapshots" / "notes.txt").write_text("unrelated")
    delete_snapshots_after(tmp_path / "snapshots", 160)
    assert [one.updates for one in find_snapshots(tmp_path)] == [20, 20, 40, 40]
    assert (tmp_path / "snapshots" / "notes.txt").exists()
    delete_snapshots_after(tmp_path / "nowhere", 0)


# Mistakes


def test_a_directory_without_snapshots_is_refused(tmp_path):
    with pytest.raises(
        DuetError, match=r"holds no snapshots; a run writes snapshots if ema\.snapshot_images is above 0"
    ):
        find_snapshots(tmp_path)
    with pytest.raises(DuetError, match="nowhere does not exist"):
        find_snapshots(tmp_path / "nowhere")
    stored(tmp_path, 30)
    assert len(find_snapshots(tmp_path / "snapshots")) == 4


@pytest.mark.parametrize("images", [-4, 0, 2, 6, 244])
def test_a_number_of_images_at_which_no_update_ends_is_refused(tmp_path, images):
    with pytest.raises(DuetError, match=f"images: {images} was given; it must be a multiple of the batch 4, up to 240"):
        reconstruct(stored(tmp_path, 30), Power(0.07), images)


def test_snapshots_of_two_runs_or_of_a_changed_batch_are_refused(tmp_path):
    stored(tmp_path, 30)
    for name, other in {"seed": {"seed": 4}, "model": {"model": replace(MODEL, prediction="v")}}.items():
        save_snapshots(
            tmp_path / "snapshots", 400, WALK[-1], PROFILES, **{"batch": 4, "model": MODEL, "seed": 3} | other
        )
        with pytest.raises(
            DuetError, match=f"000000000400-ema.safetensors: its {name} is not that of 000000000120-ema"
        ):
            find_snapshots(tmp_path)
    stored(tmp_path / "changed", 30)
    save_snapshots(tmp_path / "changed" / "snapshots", 300, WALK[-1], PROFILES, 4, MODEL, 3)
    with pytest.raises(DuetError, match="300 images in 60 updates show that the run changed its batch of 4"):
        find_snapshots(tmp_path / "changed")


def test_any_flipped_bit_is_detected(tmp_path):
    file = save_snapshots(tmp_path / "snapshots", 240, WALK[-1], PROFILES, BATCH, MODEL, 3)[0]
    content = file.read_bytes()
    somewhere = Stream(0, "positions").integers(range(40), len(content)).tolist()
    for at in sorted({0, 7, 8, 9, len(content) - 1, *somewhere}):
        changed = bytearray(content)
        changed[at] ^= 0x01
        file.write_bytes(changed)
        with pytest.raises(DuetError) as caught:
            [one.weights() for one in find_snapshots(tmp_path)]
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    for length in (0, 5, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(DuetError, match=r"ema\.safetensors: it is"):
            [one.weights() for one in find_snapshots(tmp_path)]


@pytest.mark.parametrize("key", ["format", "updates", "average", "seed", "sha256"])
def test_a_header_without_one_of_its_facts_is_refused(tmp_path, key):
    """The order of facts in a header is arbitrary, so the flipped bits of the test above do not always hit a key."""
    file = save_snapshots(tmp_path / "snapshots", 240, WALK[-1], PROFILES, BATCH, MODEL, 3)[0]
    content = file.read_bytes()
    file.write_bytes(content.replace(f'"{key}":'.encode(), f'"{key.upper()}":'.encode(), 1))
    with pytest.raises(DuetError, match=r"000000000240-ema\.safetensors: it is"):
        find_snapshots(tmp_path)


def test_an_invalid_profile_is_reported_with_its_file(tmp_path):
    file = save_snapshots(tmp_path / "snapshots", 240, WALK[-1], PROFILES, BATCH, MODEL, 3)[0]
    content = file.read_bytes()
    digit = re.search(rb'sigma_rel\\": (0)\.', content).start(1)
    file.write_bytes(content[:digit] + b"1" + content[digit + 1 :])
    with pytest.raises(DuetError, match=r"000000000240-ema\.safetensors: ema\.sigma_rel: 1\.05 was given"):
        find_snapshots(tmp_path)


def test_a_failed_write_leaves_no_part_of_a_snapshot(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(DuetError, match=r"000000000240-ema\.safetensors: it cannot be written \(No space left"):
        save_snapshots(tmp_path, 240, WALK[-1], PROFILES, BATCH, MODEL, 3)
    assert os.listdir(tmp_path) == []


def test_a_snapshot_that_has_disappeared_is_named(tmp_path):
    found = stored(tmp_path, 60)
    found[0].path.unlink()
    assert isinstance(found[0], Snapshot)
    with pytest.raises(DuetError, match=r"000000000240-ema\.safetensors: it cannot be read \(No such file"):
        reconstruct(found, PROFILES[0])

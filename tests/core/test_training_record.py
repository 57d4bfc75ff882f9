"""A checkpoint keeps what gives its weights their meaning."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec
from diffusion_core.networks.weights import initial_weights
from diffusion_core.runs.checkpoint import Checkpoint, hash_entries, load_checkpoint, save_checkpoint
from diffusion_core.runs.training_record import DataRecord, TrainingRecord

DATA = DataRecord(
    "pets", "0" * 64, 3, ("bird", "cät\udcff"), (1, 2), part="train", options={"size": 8, "path": None}, flip=True
)
RECORD = TrainingRecord(
    DATA,
    process={"value_range": [0.0, 1.0], "schedule": {"name": "cosine"}},
    label_dropout=0.1,
    dropped_labels=7,
    earlier_data=(replace(DATA, name="older"),),
    batch=4,
    averages=({"name": "warmup", "decay": 0.9},),
    sampler={"name": "ddim", "steps": 5},
    sample={"count": 2, "labels": None},
    init="ddpm",
)
MODEL = DiffusionModel(PlainSpec(8, 1, 1, channels=(4,), bottleneck=8), "cosine", "v")


def checkpoint(training: TrainingRecord | None) -> Checkpoint:
    state = TrainerState.fresh(initial_weights(MODEL.program, 0, np.float32))
    return Checkpoint(64, MODEL, 0, state, {}, training=training)


@pytest.mark.parametrize("record", [RECORD, TrainingRecord(DATA), None])
def test_a_checkpoint_keeps_its_record(tmp_path, record):
    found = load_checkpoint(save_checkpoint(tmp_path, checkpoint(record)))
    assert found.training == record
    if record is not None:
        assert found.training.class_names == ("bird", "cät\udcff")
        assert found.training.value_range == ((0.0, 1.0) if record.process else (-1.0, 1.0))


def test_a_record_with_keys_of_a_later_version_is_read():
    later = json.loads(json.dumps(RECORD.to_dict()))
    later["weather"] = later["data"]["weather"] = "fair"
    assert TrainingRecord.from_dict(later) == RECORD


def test_a_record_without_optional_keys_is_read():
    least = {"data": {"name": "pets", "sha256": "1", "images": 2, "class_names": ["all"]}}
    found = TrainingRecord.from_dict(least)
    assert (found.dropped_labels, found.label_dropout, found.data.flip) == (None, 0.0, False)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data", None), ("data.name", 3), ("data.images", -1), ("data.class_names", []), ("data.class_names", 5),
        ("data.class_images", [1, 2, 3]), ("data.class_images", [1.5, 2]), ("dropped_labels", -1),
        ("label_dropout", 2), ("label_dropout", "much"), ("sampler", 5), ("earlier_data", [3]),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused_by_the_name_of_its_file(tmp_path, path, value):
    file = save_checkpoint(tmp_path, checkpoint(RECORD)) / "state.json"
    state = json.loads(file.read_text())
    *parents, key = path.split(".")
    table = state["training"]
    for parent in parents:
        table = table[parent]
    table[key] = value
    state["sha256"] = hash_entries(state)
    file.write_text(json.dumps(state))
    with pytest.raises(DuetError, match=r"state\.json"):
        load_checkpoint(tmp_path)


def test_classes_without_an_image_are_known():
    assert replace(DATA, class_images=(0, 3)).empty_class_ids == (0,)

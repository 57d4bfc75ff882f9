"""Checkpoints are written completely or not at all, and read back exactly."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.backend.interface import TrainerState
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.files.atomic import pack_safetensors, write_atomically
from diffusion_core.files.safe_read import read_safetensors
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks import PlainSpec, UNetSpec, lower
from diffusion_core.runs import checkpoint as module
from diffusion_core.runs.checkpoint import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    weights_hash,
)

SPEC = UNetSpec(4, 1, 1, 4, (1,), 1, (), middle_attention=False, norm_groups=2)
MODEL = DiffusionModel(SPEC, {"name": "linear", "T": 10}, "eps")
PARTS = ("weights", "ema", "ema1", "moment1", "moment2")
FILES = (*(f"{part}.safetensors" for part in PARTS), "state.json")


@cache
def drawn(part: str) -> dict[str, np.ndarray]:
    return {p.name: Stream(0, f"{part}/{p.name}").normal([0], p.shape)[0] for p in MODEL.program.parameters}


def numbers(part: str, dtype=np.float32) -> dict[str, np.ndarray]:
    return {name: value.astype(dtype) for name, value in drawn(part).items()}


def moment(images_seen: int = 1280, dtype=np.float32, model: DiffusionModel = MODEL) -> Checkpoint:
    state = TrainerState.from_parts({part: numbers(part, dtype) for part in PARTS}, updates=10)
    return Checkpoint(images_seen, model, 3, state, {"backend": "torch", "versions": {"numpy": "2"}})


def assert_same(got: Checkpoint, expected: Checkpoint) -> None:
    assert (got.images_seen, got.seed, got.model) == (expected.images_seen, expected.seed, expected.model)
    assert got.state.updates == expected.state.updates and dict(got.notes) == dict(expected.notes)
    assert list(got.state.parts) == list(expected.state.parts)
    for part, other in expected.state.parts.items():
        one = got.state.parts[part]
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert one[name].dtype == value.dtype and one[name].shape == value.shape
            assert one[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_bit_survives_the_round_trip(tmp_path, dtype):
    path = save_checkpoint(tmp_path, moment(dtype=dtype))
    assert path == tmp_path / "000000001280" and sorted(os.listdir(path)) == sorted(FILES)
    assert_same(load_checkpoint(path), moment(dtype=dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_in_any_memory_layout_are_stored_by_value(tmp_path, dtype):
    # A trainer with another layout returns transposed views, whose bytes are in another order.
    def view(value: np.ndarray) -> np.ndarray:
        axes = tuple(range(value.ndim))[::-1]
        return np.ascontiguousarray(value.transpose(axes)).transpose(axes)

    def strided(value: np.ndarray) -> np.ndarray:
        return np.repeat(value, 2, axis=-1)[..., ::2]

    exact = moment(dtype=dtype)
    for layout in (view, strided):
        parts = {part: {n: layout(v) for n, v in arrays.items()} for part, arrays in exact.state.parts.items()}
        state = TrainerState.from_parts(parts, exact.state.updates)
        assert not all(value.flags.c_contiguous for value in state.weights.values())
        assert_same(load_checkpoint(save_checkpoint(tmp_path / layout.__name__, replace(exact, state=state))), exact)


def test_an_array_without_axes_keeps_its_shape(tmp_path):
    """A gain is one number, with the shape ()."""
    (file := tmp_path / "gain.safetensors").write_bytes(pack_safetensors({"gain": np.float64(0.5)}))
    gain = read_safetensors(file)["gain"]
    assert (gain.shape, float(gain)) == ((), 0.5)


def test_signed_zeros_and_subnormal_numbers_survive(tmp_path):
    odd, ends = moment(), np.finfo(np.float32)
    odd.state.slots["moment1"]["conv_in.bias"][:] = [-0.0, ends.max, -ends.tiny, ends.smallest_subnormal]
    expected = odd.state.slots["moment1"]["conv_in.bias"].tobytes()
    assert load_checkpoint(save_checkpoint(tmp_path, odd)).state.slots["moment1"]["conv_in.bias"].tobytes() == expected


@pytest.mark.parametrize("part", PARTS)
def test_numbers_that_are_not_finite_are_refused_with_their_name_and_count(tmp_path, part):
    odd = moment()
    odd.state.parts[part]["conv_in.bias"][:2] = [np.nan, -np.inf]
    odd.state.parts[part]["out.conv.weight"][0, 0, 0, 0] = np.inf
    path = save_checkpoint(tmp_path, odd)
    with pytest.raises(DuetError) as caught:
        load_checkpoint(path)
    message = "2 of the 4 values of conv_in.bias are not finite, and so are values of 1 more"
    assert str(caught.value) == f"{path / part}.safetensors: {message}"


def positions(size: int) -> list[int]:
    somewhere = Stream(0, "positions").integers(range(12), size).tolist()
    return sorted({0, 7, size // 2, size - 1, *somewhere})


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_detected(tmp_path, name):
    path = save_checkpoint(tmp_path, moment()) / name
    content = path.read_bytes()
    for at in positions(len(content)):
        for flip in (0x01, 0x80):
            changed = bytearray(content)
            changed[at] ^= flip
            path.write_bytes(changed)
            with pytest.raises(DuetError) as caught:
                load_checkpoint(tmp_path)
            assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(content)
    assert_same(load_checkpoint(tmp_path), moment())


def test_every_changed_digit_of_the_state_is_detected(tmp_path):
    path = save_checkpoint(tmp_path, moment()) / "state.json"
    text = path.read_text()
    digits = [i for i, letter in enumerate(text) if letter.isdigit() and i < text.index('"files"')]
    assert len(digits) > 60
    for at in digits:
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        with pytest.raises(DuetError, match=r"state\.json|has format"):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_missing_or_a_directory_is_refused(tmp_path, name):
    path = save_checkpoint(tmp_path, moment()) / name
    content = path.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DuetError, match="corrupt"):
            load_checkpoint(path.parent)
    path.unlink()
    with pytest.raises(DuetError, match=name if name != "state.json" else "holds no checkpoint"):
        load_checkpoint(path.parent)
    path.mkdir()
    with pytest.raises(DuetError):
        load_checkpoint(path.parent)


@pytest.mark.parametrize("garbage", [b"", b"null", b"[]", b"12", b"{}", b'{"format": 1}', b"\xff\xfe", b'{"format": '])
def test_an_invalid_state_is_refused(tmp_path, garbage):
    path = save_checkpoint(tmp_path, moment()) / "state.json"
    path.write_bytes(garbage)
    with pytest.raises(DuetError, match=r"state.json: it is corrupt \(") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def rewrite(path: Path, **changes: object) -> None:
    """Change state.json as another version would write it, including its own hash."""
    state = json.loads((path / "state.json").read_text()) | changes
    state["sha256"] = module.hash_entries(state)
    (path / "state.json").write_text(json.dumps(state))


def test_another_format_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, moment())
    for version in (1, 4):
        rewrite(path, format=version)
        with pytest.raises(DuetError, match=f"it has format {version}; this version of Duet reads formats 2 and 3"):
            load_checkpoint(tmp_path)


def test_a_checkpoint_of_format_2_has_one_average(tmp_path):
    alone = moment()
    alone = replace(alone, state=replace(alone.state, averages=alone.state.averages[:1]))
    path = save_checkpoint(tmp_path, alone)
    state = json.loads((path / "state.json").read_text())
    assert state.pop("averages") == 1 and state["format"] == 3
    (path / "state.json").write_text(json.dumps(state))
    rewrite(path, format=2)
    assert_same(load_checkpoint(tmp_path), alone)


def test_a_state_rewritten_with_its_hash_is_read(tmp_path):
    rewrite(save_checkpoint(tmp_path, moment()), notes={"by": "hand"})
    assert load_checkpoint(tmp_path).notes == {"by": "hand"}


def test_a_checkpoint_whose_program_has_another_hash_is_refused(tmp_path):
    rewrite(save_checkpoint(tmp_path, moment()), program_sha256="0" * 64)
    with pytest.raises(DuetError, match="builds another network from the same options"):
        load_checkpoint(tmp_path)


def test_a_part_that_is_not_a_safetensors_file_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, moment())
    garbage = b"not a tensor file"
    (path / "ema.safetensors").write_bytes(garbage)
    files = json.loads((path / "state.json").read_text())["files"]
    rewrite(path, files=files | {"ema.safetensors": hashlib.sha256(garbage).hexdigest()})
    with pytest.raises(DuetError, match=r"ema.safetensors: it is not a safetensors file"):
        load_checkpoint(tmp_path)


def test_parts_with_wrong_shapes_are_refused(tmp_path):
    state = moment().state
    state = replace(
        state, slots=state.slots | {"moment2": numbers("moment2") | {"conv_in.bias": np.zeros(5, np.float32)}}
    )
    save_checkpoint(tmp_path, replace(moment(), state=state))
    with pytest.raises(DuetError, match=r"moment2.safetensors: conv_in.bias: the network needs shape \(4,\)"):
        load_checkpoint(tmp_path)


def test_the_checkpoint_of_another_network_is_refused(tmp_path):
    save_checkpoint(tmp_path, moment())
    assert_same(load_checkpoint(tmp_path, MODEL.program), moment())
    with pytest.raises(DuetError, match=r"it is of another network: embed.dense0.weight: .* but \(16, 4\) was given"):
        load_checkpoint(tmp_path, lower(replace(SPEC, channels=8)))
    with pytest.raises(DuetError, match="it is of another network, which has the same shapes but different options"):
        load_checkpoint(tmp_path, lower(replace(SPEC, norm_eps=1e-3)))


@pytest.mark.parametrize("spec, message", [
    (replace(SPEC, norm_eps=1e-3), r"with model.norm_eps 1e-06 \(given: 0.001\)$"),
    (replace(SPEC, dropout=0.5), r"with model.dropout 0.0 \(given: 0.5\)$"),
    (replace(SPEC, channels=8, dropout=0.5, time="scale_shift", norm_eps=1e-3),
     r"with model.channels 4 \(given: 8\), model.norm_eps .*, model.dropout 0.0 \(given: 0.5\) and 1 more$"),
    (PlainSpec(16, 1, 1), r", a UNetSpec, but a PlainSpec was given$"),
])  # fmt: skip
def test_the_error_for_another_network_names_the_fields_that_differ(tmp_path, spec, message):
    path = save_checkpoint(tmp_path, moment())
    assert_same(load_checkpoint(tmp_path, SPEC), moment())
    with pytest.raises(DuetError, match=rf"^{path}: it is of another network.*{message}"):
        load_checkpoint(tmp_path, spec)


def test_a_checkpoint_is_selected_by_run_by_directory_or_by_its_own_path(tmp_path):
    parent = tmp_path / "run" / "checkpoints"
    for images_seen in (1280, 256):
        save_checkpoint(parent, moment(images_seen))
    assert [p.name for p in list_checkpoints(parent)] == ["000000000256", "000000001280"]
    for path in (tmp_path / "run", parent, parent / "000000001280", str(parent)):
        assert find_checkpoint(path).name == "000000001280"
    assert find_checkpoint(parent / "000000000256").name == "000000000256"
    with pytest.raises(DuetError, match="holds no checkpoint; give a run directory"):
        find_checkpoint(tmp_path)
    with pytest.raises(DuetError, match="nowhere' does not exist"):
        find_checkpoint(tmp_path / "nowhere")


def test_the_hash_of_weights_is_the_hash_of_their_file(tmp_path):
    path = save_checkpoint(tmp_path, moment())
    for part in PARTS:
        assert weights_hash(tmp_path, part) == hashlib.sha256((path / f"{part}.safetensors").read_bytes()).hexdigest()
    (path / "state.json").write_text("{}")
    with pytest.raises(DuetError, match=r"state\.json"):
        weights_hash(tmp_path)


# Writing


@pytest.mark.parametrize("keep, left", [(None, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_last_checkpoints_are_kept(tmp_path, keep, left):
    for images_seen in (1, 2, 3, 4):
        save_checkpoint(tmp_path, moment(images_seen), keep)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == left
    assert len(os.listdir(tmp_path)) == len(left)


def test_a_run_resumed_from_an_earlier_checkpoint_keeps_the_checkpoints_that_it_writes(tmp_path):
    for images_seen in (1, 2, 5):
        save_checkpoint(tmp_path, moment(images_seen))
    path = save_checkpoint(tmp_path, moment(3), keep=1)
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == [3, 5]
    assert_same(load_checkpoint(path), moment(3))


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_no_checkpoint_is_refused(tmp_path, keep):
    with pytest.raises(DuetError, match=f"keep_checkpoints: {keep} was given; it must be at least 1"):
        save_checkpoint(tmp_path, moment(), keep)
    assert not os.listdir(tmp_path)


def test_a_checkpoint_replaces_an_earlier_one_of_the_same_step(tmp_path):
    save_checkpoint(tmp_path, moment())
    path = save_checkpoint(tmp_path, replace(moment(), notes={"second": True}))
    assert load_checkpoint(path).notes == {"second": True}
    assert os.listdir(tmp_path) == ["000000001280"]


class Failing:
    """A function of `os` that fails at its n-th call."""

    def __init__(self, function, at: int) -> None:
        self.function, self.left = function, at

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            raise OSError(28, "No space left on device")
        return self.function(*arguments)


@pytest.mark.parametrize("images_seen", [1280, 2560], ids=["same moment", "later moment"])
@pytest.mark.parametrize("name, at", [("fsync", n) for n in range(1, 8)] + [("rename", 1), ("rename", 2)])
def test_a_failed_write_leaves_existing_checkpoints_unchanged(tmp_path, monkeypatch, name, at, images_seen):
    if (name, at, images_seen) == ("rename", 2, 2560):
        images_seen = 1280  # a new moment needs one renaming only
    save_checkpoint(tmp_path, moment())
    with monkeypatch.context() as patched:
        patched.setattr(module.os, name, Failing(getattr(os, name), at))
        with pytest.raises(DuetError, match=rf"{images_seen:012d}: the checkpoint cannot be written \(No space left"):
            save_checkpoint(tmp_path, replace(moment(images_seen), notes={"second": True}))
    assert os.listdir(tmp_path) == ["000000001280"]
    assert_same(load_checkpoint(tmp_path), moment())


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", range(1, 8))
def test_a_kill_leaves_no_partial_checkpoint(tmp_path, monkeypatch, at):
    save_checkpoint(tmp_path, moment())
    calls = iter(range(1, 100))

    def fsync(descriptor: int) -> None:
        if next(calls) == at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", fsync)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, moment(2560))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000000001280"]
    assert_same(load_checkpoint(tmp_path), moment())
    # The incomplete directory does not prevent the next checkpoint.
    assert_same(load_checkpoint(save_checkpoint(tmp_path, moment(2560))), moment(2560))
    assert sorted(os.listdir(tmp_path)) == ["000000001280", "000000002560"]


def test_a_kill_while_old_checkpoints_are_deleted_leaves_no_partial_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, moment())

    def rmtree(path, ignore_errors=False):
        if Path(path).exists():
            os.unlink(Path(path) / "ema.safetensors")
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", rmtree)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, moment(2560), keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000000002560"]
    assert_same(load_checkpoint(tmp_path), moment(2560))


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file in place of the directory")
    with pytest.raises(DuetError, match=r"checkpoints/000000001280: the checkpoint cannot be written \(.+\)"):
        save_checkpoint(blocked, moment())
    assert blocked.read_text() == "a file in place of the directory"
    with pytest.raises(DuetError, match="cannot be written"):
        save_checkpoint(blocked / "deeper", moment())


def test_write_atomically_replaces_whole_files(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    for content in (b"one", b"", b"three" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content and os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_write_atomically_leaves_the_old_content_after_a_failure(tmp_path, monkeypatch, name):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(module.os, name, Failing(getattr(os, name), 1))
        with pytest.raises(DuetError, match=r"file: it cannot be written \(No space left on device\)"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_write_atomically_names_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "directory"):
        with pytest.raises(DuetError, match="it cannot be written"):
            write_atomically(path, b"new")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_a_copied_checkpoint_is_equal(tmp_path):
    path = save_checkpoint(tmp_path / "here", moment())
    shutil.copytree(path, tmp_path / "there")
    assert_same(load_checkpoint(tmp_path / "there"), moment())

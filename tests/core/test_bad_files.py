"""Files corrupted by accident or on purpose; see `mutations`."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mutations
import numpy as np
import pytest
from mutations import TARGETS, Target
from safetensors import safe_open

from diffusion_core.common.errors import DuetError
from diffusion_core.convert.arrays import read_arrays
from diffusion_core.files import safe_read
from diffusion_core.files.safe_read import check_safetensors, open_npz, read_npy
from diffusion_core.runs.ema_snapshots import find_snapshots

HERE = Path(__file__).resolve().parent


def corrupt_files(count: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Corrupt `count` files and read them, in a separate process whose memory is bounded."""
    command = [sys.executable, str(HERE / "mutations.py"), str(count), str(seed)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_a_corrupted_file_is_refused_or_read_as_it_was_written():
    done = corrupt_files(len(TARGETS) * len(mutations.MUTATIONS), 0)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_thousands_of_corrupted_files_are_refused_or_read_as_they_were_written():
    """DUET_MUTATIONS=20000 DUET_SEED=7 pytest -m slow tests/core/test_bad_files.py"""
    done = corrupt_files(int(os.environ.get("DUET_MUTATIONS", "2400")), int(os.environ.get("DUET_SEED", "1")))
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def faults(name: str, kind: str, target: Target, count: int = 40) -> str:
    """Return the faults that the judge reports for a reader, for files corrupted in one way."""
    lines: list[str] = []
    step = len(mutations.MUTATIONS)
    mutations.run({name: target}, range(list(mutations.MUTATIONS).index(kind), step * count, step), 0, lines.append)
    return "\n".join(line for line in lines if ": fault" in line)


def unpickling(root: Path) -> object:
    with np.load(root / "samples.npz", allow_pickle=True) as file:
        return {name: file[name] for name in file.files}


def unhashed(root: Path) -> object:
    from safetensors.numpy import load

    return {file.name: load(file.read_bytes()) for file in sorted(root.rglob("*.safetensors"))}


def silent(root: Path) -> object:
    try:
        return TARGETS["samples"].read(root)
    except DuetError as error:
        raise DuetError("it is corrupt") from error


def test_the_judge_reports_a_faulty_reader():
    samples = TARGETS["samples"]
    assert faults("samples", "flip", samples) == ""
    assert "BadZipFile" in faults("samples", "head", replace(samples, read=unpickling), 5)
    assert "code was run" in faults("samples", "pickle", replace(samples, read=unpickling), 5)
    assert "not the content that was written" in faults(
        "checkpoint", "flip", replace(TARGETS["checkpoint"], read=unhashed, sound=lambda found: True)
    )
    assert "its message is 'it is corrupt'" in faults("samples", "cut", replace(samples, read=silent), 5)
    of_any_kind = replace(samples, sound=lambda found: False)
    assert "wrong kind" in faults("samples", "numbers", of_any_kind)


def test_the_judge_reports_unbounded_memory(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    greedy = replace(TARGETS["facts"], read=lambda root: np.ones(1 << 30).sum())
    TARGETS["facts"].make(tmp_path)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        answer = mutations.judge(greedy, tmp_path, None, False, tmp_path / "evil")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert answer.startswith("fault: ") and "Memory" in answer


def test_an_array_with_an_empty_name_is_refused_in_one_line(tmp_path):
    TARGETS["samples"].make(tmp_path)
    draws = iter((0, 5, 3, 0))  # give the first array another name, an empty one, without compression
    mutations._in_npz(tmp_path / "samples.npz", lambda below: next(draws), tmp_path / "evil")
    assert b"\0.npy" in (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(DuetError, match=r"samples.npz: it is not a file of samples \(.+\)$"):
        TARGETS["samples"].read(tmp_path)


def test_a_file_that_would_unpack_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    size = 1 << 20
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros(size, np.uint8))
    with open_npz(tmp_path / "bomb.npz") as file:
        assert file["images"].shape == (size,)
    monkeypatch.setattr(safe_read, "_MIN_UNPACKED", size)
    message = rf"bomb.npz: .*\(it would unpack to {size + 128} bytes; at most {size} are allowed for its size\)"
    with pytest.raises(DuetError, match=message), open_npz(tmp_path / "bomb.npz"):
        pass


def test_a_file_larger_than_expected_is_not_read(tmp_path):
    def sparse(file: Path, head: bytes = b"", size: int = 1 << 40) -> None:
        with open(file, "wb") as opened:
            opened.write(head)
            opened.truncate(size)

    TARGETS["checkpoint"].make(tmp_path)
    (state,) = tmp_path.glob("*/state.json")
    sparse(state)
    with pytest.raises(DuetError, match=r"state.json: it has 1099511627776 bytes; at most .* are expected"):
        TARGETS["checkpoint"].read(tmp_path)
    TARGETS["snapshots"].make(tmp_path)
    (file, _) = (one.path for one in find_snapshots(tmp_path))
    with safe_open(file, framework="numpy") as opened:
        facts = opened.metadata()
    header = {"__metadata__": facts, "x": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}
    head = json.dumps(header).encode()
    sparse(file, struct.pack("<Q", len(head)) + head, 8 + len(head) + (1 << 40))
    with pytest.raises(DuetError, match=rf"{file.name}: it has \d+ bytes; at most \d+ are expected$"):
        find_snapshots(tmp_path)[0].weights()
    sparse(tmp_path / "a.safetensors", struct.pack("<Q", 100_000_001), 1 << 30)
    with pytest.raises(DuetError, match=r"its header has 100000001 bytes; at most 100000000 are read"):
        check_safetensors(tmp_path / "a.safetensors")


class Malice:
    """An object that creates a file when it is unpickled."""

    def __init__(self, evil: Path) -> None:
        self.evil = evil

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.evil}",)


@pytest.mark.parametrize("name", ["weights.pkl", "weights.npz", "weights.npy", "weights.safetensors", "objects.npz"])
def test_no_pickle_is_opened_whatever_its_name_is(tmp_path, name):
    evil = tmp_path / "evil"
    if name == "objects.npz":
        np.savez(tmp_path / name, a=np.array([Malice(evil)], object))
    elif name == "weights.npy":
        np.save(tmp_path / name, np.array([Malice(evil)], object), allow_pickle=True)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Malice(evil)))
    with pytest.raises(DuetError, match=name):
        read_npy(tmp_path / name) if name.endswith("npy") else read_arrays(tmp_path / name, dict)
    assert not evil.exists()
    os.system(f"touch {evil}")  # to show that the command itself works
    assert evil.exists()

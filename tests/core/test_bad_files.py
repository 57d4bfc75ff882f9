"""Files that were harmed, by accident or on purpose; see `mutations`."""

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
from diffusion_core.files import safe_read as reading
from diffusion_core.files.safe_read import check_safetensors, open_npz, read_npy
from diffusion_core.runs.ema_snapshots import find_snapshots

HERE = Path(__file__).resolve().parent


def harmed(count: int, seed: int) -> subprocess.CompletedProcess[str]:
    """So many harms in a process of their own, whose memory is bounded."""
    command = [sys.executable, str(HERE / "mutations.py"), str(count), str(seed)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_no_harmed_file_does_more_than_be_refused():
    done = harmed(len(TARGETS) * len(mutations.HARMS) * 2, 0)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_harmed_file_of_thousands_does_more_than_be_refused():
    """DUET_HARMS=20000 DUET_SEED=7 pytest -m slow tests/core/test_bad_files.py"""
    done = harmed(int(os.environ.get("DUET_HARMS", "2400")), int(os.environ.get("DUET_SEED", "1")))
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def faults(name: str, kind: str, target: Target, count: int = 40) -> str:
    """What the judge says of a reader with a planted fault, of files with harms of one kind."""
    said: list[str] = []
    step = len(mutations.HARMS)
    mutations.run({name: target}, range(list(mutations.HARMS).index(kind), step * count, step), 0, said.append)
    return "\n".join(line for line in said if ": fault" in line)


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


def test_the_judge_notices_a_faulty_reader():
    samples = TARGETS["samples"]
    assert faults("samples", "flip", samples) == ""
    assert "BadZipFile" in faults("samples", "head", replace(samples, read=unpickling), 5)
    assert "code was run" in faults("samples", "pickle", replace(samples, read=unpickling), 5)
    assert "something else" in faults(
        "checkpoint", "flip", replace(TARGETS["checkpoint"], read=unhashed, sound=lambda found: True)
    )
    assert "its message is 'it is corrupt'" in faults("samples", "cut", replace(samples, read=silent), 5)
    of_any_kind = replace(samples, sound=lambda found: False)
    assert "wrong kind" in faults("samples", "numbers", of_any_kind)


def test_the_judge_notices_memory_that_is_not_bounded(tmp_path):
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


def test_an_array_without_a_name_is_written_by_the_harm_and_refused_in_one_line(tmp_path):
    TARGETS["samples"].make(tmp_path)
    told = iter((0, 5, 3, 0))  # of the first array, another name, an empty one, and not packed
    mutations._in_npz(tmp_path / "samples.npz", lambda below: next(told), tmp_path / "evil")
    assert b"\0.npy" in (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(DuetError, match=r"samples.npz: it is not a file of samples \(.+\)$"):
        TARGETS["samples"].read(tmp_path)


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    size = 1 << 20
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros(size, np.uint8))
    with open_npz(tmp_path / "bomb.npz") as file:
        assert file["images"].shape == (size,)
    monkeypatch.setattr(reading, "_LEAST_UNPACKED", size)
    said = rf"bomb.npz: .*\(it would unpack to {size + 128} bytes; one of its size has at most {size}\)"
    with pytest.raises(DuetError, match=said), open_npz(tmp_path / "bomb.npz"):
        pass


def test_no_file_is_read_that_is_larger_than_what_belongs_there(tmp_path):
    def sparse(file: Path, head: bytes = b"", size: int = 1 << 40) -> None:
        with open(file, "wb") as opened:
            opened.write(head)
            opened.truncate(size)

    TARGETS["checkpoint"].make(tmp_path)
    (state,) = tmp_path.glob("*/state.json")
    sparse(state)
    with pytest.raises(DuetError, match=r"state.json: it has 1099511627776 bytes; what belongs there has at most"):
        TARGETS["checkpoint"].read(tmp_path)
    TARGETS["snapshots"].make(tmp_path)
    (file, _) = (one.path for one in find_snapshots(tmp_path))
    with safe_open(file, framework="numpy") as opened:
        facts = opened.metadata()
    header = {"__metadata__": facts, "x": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}
    head = json.dumps(header).encode()
    sparse(file, struct.pack("<Q", len(head)) + head, 8 + len(head) + (1 << 40))
    with pytest.raises(DuetError, match=rf"{file.name}: it has \d+ bytes; what belongs there has at most \d+$"):
        find_snapshots(tmp_path)[0].weights()
    sparse(tmp_path / "a.safetensors", struct.pack("<Q", 100_000_001), 1 << 30)
    with pytest.raises(DuetError, match=r"its header has 100000001 bytes; at most 100000000 are read"):
        check_safetensors(tmp_path / "a.safetensors")


class Malice:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, evil: Path) -> None:
        self.evil = evil

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.evil}",)


@pytest.mark.parametrize("name", ["weights.pkl", "weights.npz", "weights.npy", "weights.safetensors", "objects.npz"])
def test_no_pickle_is_opened_whatever_it_is_called(tmp_path, name):
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
    os.system(f"touch {evil}")  # which is what it would have done
    assert evil.exists()

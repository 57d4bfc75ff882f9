"""A locked directory belongs to one process, and is free again however that process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.files import atomic
from diffusion_core.files import lock as module
from diffusion_core.files.lock import LOCK, lock_directory
from diffusion_core.runs.run_directory import exclusive_directory

HOST = socket.gethostname()

HOLDS = """
import sys
from diffusion_core.files.lock import lock_directory
with lock_directory(sys.argv[1]):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_directory_and_the_error_names_it(tmp_path):
    with lock_directory(tmp_path):
        words = rf"it is in use by process {os.getpid()} on \S+, since \S+; wait"
        with pytest.raises(DuetError, match=words) as told, lock_directory(tmp_path):
            pass
        assert str(tmp_path) in str(told.value) and "\n" not in str(told.value)
        with lock_directory(tmp_path, ".another"):
            pass
    assert not os.listdir(tmp_path)
    with lock_directory(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, None], ids=["killed", "ended"])
def test_a_process_holds_a_directory_until_it_ends(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    with pytest.raises(DuetError, match=f"in use by process {process.pid} on"), exclusive_directory(tmp_path):
        pass
    process.send_signal(number) if number else None
    process.communicate()
    assert (tmp_path / LOCK).exists() == bool(number)  # the file remains but locks nothing
    with exclusive_directory(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_a_lock_on_a_deleted_file_does_not_count(tmp_path, monkeypatch):
    """Of two processes that wait for the same file, the second locks a deleted one and must try again."""
    flock, turns = fcntl.flock, []

    def later(descriptor: int, how: int) -> None:
        if not turns:  # between opening and locking, another one held it, and a third has it now
            turns.append(1)
            os.unlink(tmp_path / LOCK)
            turns.append(os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT))
            flock(turns[1], how)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", later)
    with pytest.raises(DuetError, match="it is in use by another process"), lock_directory(tmp_path):
        pass
    os.close(turns[1])
    with lock_directory(tmp_path):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", none)
    with pytest.warns(UserWarning, match="has no locks"), lock_directory(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch):
    def refused(path: Path, *given: int) -> int:
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(module.os, "open", refused)
    words = r"cannot be written \(Read-only file system\); give another one"
    with pytest.raises(DuetError, match=words), exclusive_directory(tmp_path):
        pass


def temporary(name: str, pid: int, monkeypatch: pytest.MonkeyPatch, host: str = HOST) -> str:
    """Return the path of the temporary file of a process that was killed while it wrote a file."""
    kept = {}
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "getpid", lambda: pid)
        patch.setattr(socket, "gethostname", lambda: host)
        patch.setattr(atomic, "write_flushed", lambda path, content: kept.update(name=path.name))
        with pytest.raises(DuetError):
            atomic.write_atomically(Path(name), b"")
    return str(Path(name).with_name(kept["name"]))


def test_temporary_files_of_killed_processes_are_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, lives, elsewhere = int(ended.stdout), os.getppid(), "gpu-7.cluster"
    old = temporary("b.npz", dead, monkeypatch, elsewhere)
    left = [
        temporary("config.yaml", dead, monkeypatch),
        temporary("samples/samples.npz", os.getpid(), monkeypatch),
        old,
    ]
    # A temporary file of another machine is deleted after a day, since its process cannot be checked.
    other = temporary("samples/samples.npz", dead, monkeypatch, elsewhere)
    kept = ["config.yaml", temporary("result.json", lives, monkeypatch), other, ".hydra/hydra.yaml", ".notes.12"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    os.utime(old, (0, 0))
    with exclusive_directory(tmp_path):
        pass
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept)


def test_an_incomplete_failure_bundle_is_deleted(tmp_path, monkeypatch):
    whole, half = tmp_path / "non_finite/000000000064", tmp_path / "non_finite/.new.000000000128.1"
    for folder in (whole, half):
        folder.mkdir(parents=True)
        (folder / temporary("step.json", os.getpid(), monkeypatch)).write_text("")
    with exclusive_directory(tmp_path):
        pass
    assert list((tmp_path / "non_finite").iterdir()) == [whole] and not list(whole.iterdir())

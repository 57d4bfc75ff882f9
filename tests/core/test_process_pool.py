"""Worker processes end with their parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

# One worker holds a pipe open and is busy; its parent is then killed.
KILLED = """
import os, signal, threading
from diffusion_core.runtime.process_pool import spawn_pool
if __name__ == "__main__":
    with spawn_pool(1) as processes:
        processes.submit(os.open, {pipe!r}, os.O_WRONLY).result()
        processes.submit(threading.Event().wait)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "killed.py").write_text(KILLED.format(pipe=str(tmp_path / "pipe")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = subprocess.run([sys.executable, str(tmp_path / "killed.py")], env=environment, timeout=60)
    assert process.returncode == -signal.SIGKILL
    ended, _, _ = select.select([pipe], [], [], 60)  # ready when no process has it open for writing
    assert ended and os.read(pipe, 1) == b""
    os.close(pipe)

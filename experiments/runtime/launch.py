"""Several processes of one run on this machine: their environments, and how they are started and stopped together."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import takewhile

from diffusion_core.runtime.signals import SIGNALS

__all__ = ["environments", "free_ports", "run_together", "visible_gpus"]

# Seconds after a process failed: until the others are asked to stop (they may notice it themselves and say so), and
# then until they are killed, which leaves time for a checkpoint.
_NOTICE_SECONDS, _STOP_SECONDS = 1.0, 20.0


def environments(ports: Sequence[int], shared: Mapping[str, str], gpus: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return the environment variables of each process on this machine.

    Each finds its rank in TF_CONFIG, as TensorFlow's strategies expect it, and in the variables of `torchrun`, which
    PyTorch's processes read.

    Args:
        ports: one free port for each process.
        shared: the variables that all have.
        gpus: GPUs, by their names in CUDA_VISIBLE_DEVICES; each process sees one.
    """
    addresses, count = [f"127.0.0.1:{port}" for port in ports], str(len(ports))
    environs = []
    for index in range(len(ports)):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        rank = {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": count}
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
        visible = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)], "LOCAL_RANK": "0"} if gpus else {}
        environs.append({**shared, "TF_CONFIG": json.dumps(cluster), **rank, **rendezvous, **visible})
    return environs


def run_together(command: Sequence[str], environs: Sequence[Mapping[str, str]]) -> int:
    """Run a command once in each environment until all have ended; return the first failing exit code, or 0.

    A signal that asks this process to stop is passed on to all of them; Ctrl-C is not, since a terminal sends it to
    every process itself. When one fails, the others are asked to stop.
    """
    workers = [subprocess.Popen(command, env=dict(environ)) for environ in environs]

    def pass_on(number: int, _: object) -> None:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.send_signal(number)

    handlers = dict.fromkeys(SIGNALS, pass_on) | {signal.SIGINT: lambda *_: None}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = _wait(workers, pass_on)
    finally:
        for worker in workers:
            worker.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _wait(workers: Sequence[subprocess.Popen], pass_on: Callable[[int, object], None]) -> int:
    """Wait for all processes, and stop the others when one fails; return the first failing exit code, or 0."""
    code, failed_at, is_asked = 0, None, False
    while None in (codes := [worker.poll() for worker in workers]):
        failed = [code for code in codes if code]
        if failed and failed_at is None:
            code, failed_at = min(failed), time.monotonic()  # the code of a signal is negative and comes first
        waited = 0.0 if failed_at is None else time.monotonic() - failed_at
        if waited > _NOTICE_SECONDS and not is_asked:
            is_asked = True
            pass_on(signal.SIGTERM, None)
        if waited > _NOTICE_SECONDS + _STOP_SECONDS:
            pass_on(signal.SIGKILL, None)
        time.sleep(0.05)
    return code or min([code for code in codes if code], default=0)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nothing uses at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs that may be used, by their names in CUDA_VISIBLE_DEVICES, without loading a framework."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        names = (name.strip() for name in environ["CUDA_VISIBLE_DEVICES"].split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # CUDA ends its list there too
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(len(listed.splitlines()))]

"""Start the processes of a run that computes with several, on this machine, and end them together.

    python3 -m duet launch 2 train backend=torch parallel=ddp experiment=digits
    python3 -m duet launch 2 sample backend=tf parallel=multiworker checkpoint=RUN out=DIR

The first word is how many, the others are what each Python is given. Every worker is told its place in TF_CONFIG, as
TensorFlow's strategies want it, and in the variables of `torchrun`, which PyTorch's processes read; on a machine with
GPUs each worker is shown one, of those in CUDA_VISIBLE_DEVICES where it is set. When one ends with an error the others
are asked to end, and its exit code is that of all.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import takewhile

from diffusion_core.runtime.signals import SIGNALS

__all__ = ["environments", "main", "run_together", "visible_cards"]

# Where one fails, how long the others may take to find it out and say so, and then to end when they are asked to, in
# seconds: enough for a checkpoint.
_ALONE, _GRACE = 1.0, 20.0


def environments(ports: Sequence[int], given: Mapping[str, str], cards: Sequence[str] = ()) -> list[dict[str, str]]:
    """The environment of each worker on this machine.

    Args:
        ports: one that is free for each.
        given: the environment that they share.
        cards: GPUs by the names of CUDA_VISIBLE_DEVICES, of which each worker is shown one.
    """
    addresses, count = [f"127.0.0.1:{port}" for port in ports], str(len(ports))
    told = []
    for index in range(len(ports)):
        place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        rank = {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": count}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
        shown = {"CUDA_VISIBLE_DEVICES": cards[index % len(cards)], "LOCAL_RANK": "0"} if cards else {}
        told.append({**given, "TF_CONFIG": json.dumps(place), **rank, **meeting, **shown})
    return told


def run_together(command: Sequence[str], environs: Sequence[Mapping[str, str]]) -> int:
    """Run a command once in each environment to the end of all; gives the exit code of the first that failed, or 0.

    A signal that asks this process to end is passed on to all, but for Ctrl-C, which a terminal sends to all itself.
    """
    workers = [subprocess.Popen(command, env=dict(environ)) for environ in environs]

    def pass_on(number: int, _: object) -> None:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.send_signal(number)

    handlers = dict.fromkeys(SIGNALS, pass_on) | {signal.SIGINT: lambda *_: None}
    kept = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    code, failed_at, asked = 0, None, False
    try:
        while None in (codes := [worker.poll() for worker in workers]):
            failed = [code for code in codes if code]
            if failed and failed_at is None:
                code, failed_at = min(failed), time.monotonic()  # of two, that of a signal, which comes first
            waited = 0.0 if failed_at is None else time.monotonic() - failed_at
            if waited > _ALONE and not asked:
                asked = True
                pass_on(signal.SIGTERM, None)
            if waited > _ALONE + _GRACE:
                pass_on(signal.SIGKILL, None)
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
        for number, handler in kept.items():
            signal.signal(number, handler)
    code = code or min([code for code in codes if code], default=0)
    return 128 - code if code < 0 else code


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def visible_cards(given: Mapping[str, str]) -> list[str]:
    """The GPUs that may be used, by the names of CUDA_VISIBLE_DEVICES, without loading a framework."""
    if "CUDA_VISIBLE_DEVICES" in given:
        names = (name.strip() for name in given["CUDA_VISIBLE_DEVICES"].split(","))
        return list(takewhile(lambda name: name not in ("", "-1"), names))  # CUDA ends its list there too
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(len(listed.splitlines()))]


def main() -> None:
    """Start so many workers and leave with their exit code."""
    count, *words = sys.argv[1:] or [""]
    if not count.isdecimal() or int(count) < 1 or not words:
        print("error: workers: give how many and what they run, as in\n" + __doc__.splitlines()[2], file=sys.stderr)
        sys.exit(2)
    environs = environments(_free_ports(int(count)), os.environ, visible_cards(os.environ))
    sys.exit(run_together([sys.executable, *words], environs))


if __name__ == "__main__":
    main()

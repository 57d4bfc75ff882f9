"""One contestant of `experiments.bench`: a process that waits for work, does it, and says how long it took.

It reads one JSON object per line from standard input and answers with one per line. The first says what to build, a
backend of Duet or a peer; after that ``{"work": "train"}`` is one round.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from time import perf_counter
from typing import Any, TextIO

from diffusion_core.backend.interface import BackendConfig, load_backend
from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import count
from experiments.benchmark.work import MATRIX, works
from peers import PEERS, Contest, Task


def _duet(task: Mapping[str, Any]) -> Contest:
    """A backend."""
    backend = load_backend(task["contestant"], BackendConfig(**task["settings"]))
    model = DiffusionModel.from_dict(task["problem"])
    description = backend.describe()
    facts = {
        "line": description.line(),
        "versions": dict(description.versions),
        "parameters": count(model.program),
        "matrix": MATRIX[backend.config.device].size,
    }
    rounds = {key: task[key] for key in ("batch", "steps", "images", "ddim_steps")}
    return Contest(facts, works(backend, model, **rounds), backend.peak_memory_mib)


def _peer(task: Mapping[str, Any]) -> Contest:
    """What one would use instead."""
    module, _ = PEERS[task["contestant"]]
    try:
        contest = import_module(module).contest
    except ImportError as error:
        raise DuetError(f"it is not installed here ({error}); `pip install -e .[bench]` brings it") from error
    made = contest(Task.of(task["task"]))
    versions = ", ".join(f"{name} {version}" for name, version in made.facts["versions"].items())
    line = f"{task['contestant']}: {made.facts['parameters']:,} parameters ({versions})"
    return made._replace(facts=made.facts | {"line": line})


def main() -> None:
    """Serve rounds until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a framework prints must not mix with the answers
    task = json.loads(sys.stdin.readline())
    with _told(answers):
        _serve(task, answers)


def _serve(task: Mapping[str, Any], answers: TextIO) -> None:
    made = (_peer if task["contestant"] in PEERS else _duet)(task)
    print(json.dumps(made.facts | {"work": list(made.work)}), file=answers)
    for line in sys.stdin:
        began = perf_counter()
        with _told(answers):
            images = made.work[json.loads(line)["work"]]()
            answer = {"seconds": perf_counter() - began, "images": images, "peak_memory_mib": made.peak_memory_mib()}
            print(json.dumps(answer), file=answers)


@contextmanager
def _told(answers: TextIO) -> Iterator[None]:
    """Answer with what goes wrong."""
    try:
        yield
    except DuetError as error:
        print(json.dumps({"error": str(error)}), file=answers)
    except Exception as error:  # of a framework: too little memory, or what it cannot compile
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0]}"}), file=answers)


if __name__ == "__main__":
    main()

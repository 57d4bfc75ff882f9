"""One contestant of `benchmarks.bench`: a process that waits for workloads, runs them, and reports their times.

It reads one JSON object per line from standard input and answers with one JSON object per line. The first line says
what to build: a backend of Duet, or a peer. Each later line, such as ``{"work": "train"}``, asks for one round.
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

from benchmarks.peers import PEERS, BuiltContestant, Task
from benchmarks.work import MATRIX, make_workloads
from diffusion_core.backend.interface import BackendConfig, load_backend
from diffusion_core.common.errors import DuetError
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import parameter_count


def _build_backend(request: Mapping[str, Any]) -> BuiltContestant:
    """Build a contestant from a backend of Duet."""
    name = request["contestant"]
    config = BackendConfig(**request["settings"])
    backend = load_backend(name, config)
    products = import_module(f"benchmarks.products.{name}")
    own = request.get("own")
    if own:
        from benchmarks.own import PARTS, build_model  # here, since it reads much that other networks do not need

        model = build_model(own, name, config, request["model"])
    else:
        model = DiffusionModel.from_dict(request["model"])
    description = backend.describe()
    facts = {
        "line": description.line(),
        "versions": dict(description.versions),
        "parameters": parameter_count(model.program),
        "matrix": MATRIX[backend.config.device].size,
    }
    sizes = {key: request[key] for key in ("batch", "steps", "images", "ddim_steps")}
    work = make_workloads(backend, products, model, **sizes)
    work = {key: run for key, run in work.items() if not own or key not in PARTS}
    return BuiltContestant(facts, work, backend.peak_memory_mib)


def _build_peer(request: Mapping[str, Any]) -> BuiltContestant:
    """Build a contestant from another library."""
    name = request["contestant"]
    module, _ = PEERS[name]
    try:
        build = import_module(module).build
    except ImportError as error:
        raise DuetError(f"not installed here ({error}); install it with: pip install -e .[bench]") from error
    built = build(Task.from_dict(request["task"]))
    versions = ", ".join(f"{package} {version}" for package, version in built.facts["versions"].items())
    line = f"{name}: {built.facts['parameters']:,} parameters ({versions})"
    return built._replace(facts=built.facts | {"line": line})


def main() -> None:
    """Run rounds until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a framework prints must not mix with the answers
    request = json.loads(sys.stdin.readline())
    with _report_errors(answers):
        _serve(request, answers)


def _serve(request: Mapping[str, Any], answers: TextIO) -> None:
    built = (_build_peer if request["contestant"] in PEERS else _build_backend)(request)
    print(json.dumps(built.facts | {"work": list(built.work)}), file=answers)
    for line in sys.stdin:
        began = perf_counter()
        with _report_errors(answers):
            images = built.work[json.loads(line)["work"]]()
            answer = {"seconds": perf_counter() - began, "images": images, "peak_memory_mib": built.peak_memory_mib()}
            print(json.dumps(answer), file=answers)


@contextmanager
def _report_errors(answers: TextIO) -> Iterator[None]:
    """Answer with an error instead of ending the process."""
    try:
        yield
    except DuetError as error:
        print(json.dumps({"error": str(error)}), file=answers)
    except Exception as error:  # a framework's: out of memory, or code that it cannot compile
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0]}"}), file=answers)


if __name__ == "__main__":
    main()

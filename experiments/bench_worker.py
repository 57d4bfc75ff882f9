"""One contestant of `experiments.bench`: a process that waits for work, does it, and says how long it took.

It reads one JSON object per line from standard input and answers with one per line. The first says what to build;
after that ``{"work": "train"}`` or ``{"work": "sample"}`` is one round.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any, TextIO

import numpy as np

from diffusion_core.backend import Backend, Settings, TrainerState, load_backend
from diffusion_core.errors import DuetError
from diffusion_core.objectives import Objective
from diffusion_core.optimiser import Adam
from diffusion_core.problem import Problem
from diffusion_core.random import Stream
from diffusion_core.sampling import ddim
from diffusion_core.sampling.draw import draw
from diffusion_core.weights import initial_weights


def works(backend: Backend, problem: Problem, batch: int, steps: int, images: int) -> dict[str, Callable[[], int]]:
    """What can be asked for; each does one round and gives the number of images in it."""
    dtype = backend.settings.host_dtype
    weights = initial_weights(problem.program, 0, dtype)
    program = problem.program
    objective = Objective(
        problem.process, 0, null_label=program.null_label, features=program.features, classes=program.classes,
        variance=problem.variance, uncertainty=problem.uncertainty, self_conditioned=program.self_conditioned,
        value_range=problem.value_range,
    )  # fmt: skip
    positions = np.arange(batch)
    pixels = np.tanh(Stream(0, "bench/images").normal(positions, problem.spec.image_shape))
    labels = positions % max(problem.spec.num_classes, 1)
    made: dict[str, Any] = {}

    def train() -> int:
        if "trainer" not in made:
            made["trainer"] = backend.trainer(problem.program, TrainerState.fresh(weights), Adam(), "mse")
            made["batch"] = objective.batch(pixels, labels, positions, dtype)
        results = [made["trainer"].step(made["batch"], 1e-4, (0.999,)) for _ in range(steps)]
        float(results[-1].loss)
        return steps * batch

    def sample() -> int:
        if "network" not in made:
            made["network"] = backend.network(problem.program, weights)
        plan = ddim(problem.process, 50)
        label = np.resize(program.labels or [0], images)
        draw(backend, made["network"], plan, problem.spec.image_shape, label, 0, batch=images)
        return images

    return {"train": train, "sample": sample}


def main() -> None:
    """Serve rounds until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a framework prints must not mix with the answers
    task = json.loads(sys.stdin.readline())
    try:
        _serve(task, answers)
    except DuetError as error:
        print(json.dumps({"error": str(error)}), file=answers)


def _serve(task: dict[str, Any], answers: TextIO) -> None:
    backend = load_backend(task["backend"], Settings(**task["settings"]))
    problem = Problem.from_dict(task["problem"])
    work = works(backend, problem, task["batch"], task["steps"], task["images"])
    print(json.dumps({"line": backend.describe().line(), "versions": backend.describe().versions}), file=answers)
    for line in sys.stdin:
        began = perf_counter()
        count = work[json.loads(line)["work"]]()
        answer = {"seconds": perf_counter() - began, "images": count, "peak_memory_mib": backend.peak_memory_mib()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

"""The process of `benchmarks.model_diff` that records sides of one framework, so that its imports are paid once.

It reads one job per line as JSON: the file and its options, what to record, and the folder for the recording; and
answers each with one line.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from experiments.model_diff.side_recorder import Job, SideRecorder

__all__ = ["main", "record"]


def record(item: dict) -> None:
    """Record one side as `duet diff` does."""
    folder = Path(item["file"]).parent
    # Each pair has a module of its own named weights, and its sides must not see another pair's.
    inside = {str(path.stem) for path in folder.glob("*.py")}
    for name in inside & set(sys.modules):
        del sys.modules[name]
    before = list(sys.path)
    try:
        job = Job(
            f"{Path(item['file']).name}:build",
            place=item["file"],
            name="build",
            folder=str(folder),
            options=item["options"],
            seed=item["seed"],
            recorders=item["recorders"],
            hint=item["hint"],
        )
        side = SideRecorder(job, lambda name: import_module(f"backends.{name}.recorder"))
        side.load()
        inputs = side.own_inputs(item["seed"])
        batches = [[side.own_inputs(item["seed"] + i)] for i in range(item["steps"])]
        side.record(Path(item["folder"]), [inputs], item["passes"], batches, None)
    finally:
        sys.path[:] = before


def main() -> None:
    """Answer jobs until the input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the author's code prints must not be read as an answer
    for line in sys.stdin:
        try:
            record(json.loads(line))
            answer = {}
        except Exception:
            answer = {"error": traceback.format_exc()}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()

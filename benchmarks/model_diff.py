r"""Measure `duet diff` on pairs of models with planted faults.

    python3 -m benchmarks.model_diff                                   # the pairs of tests/diff/pairs
    python3 -m benchmarks.model_diff --pairs FOLDER --out outputs/diff # and those of other folders
    python3 -m benchmarks.model_diff --only vit --faults-only

Each side is recorded in the environment of its framework, by one long-lived process per framework. Every fault is
compared once with the clean other side; everything clean for several seeds, variants and both precisions. Prints a
table by family of faults and writes model_diff.json with every comparison and model_diff.md with the table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.diff_cases import FAMILIES, MODES, SIDES, Case, Pair, Trial, family, read_pairs, score, trials
from diffusion_core.parity.diff.recording import Recording, read_recording
from duet.cli.backends import ROOT, backends

__all__ = ["Recorder", "main", "run_trial", "table"]

OWN = ROOT / "tests" / "diff" / "pairs"
BACKEND = {"torch": "torch", "keras": "tf"}
PACKAGES = {"torch": ("torch",), "tf": ("tensorflow", "keras")}


class Recorder:
    """A process that records sides of one framework."""

    def __init__(self, side: str):
        """Start the process in the environment of the framework."""
        self.backend = BACKEND[side]
        python = ROOT / backends()[self.backend].environment / "bin" / "python"
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [str(python), "-m", "benchmarks.diff_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "DUET_DIFF_VERBOSE" not in os.environ else None,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **quiet},
        )

    def record(self, pair: Pair, case: Case, folder: Path) -> None:
        """Record one case into a folder.

        Raises:
            RuntimeError: the author's code or the recorder fails; the message is its traceback.
        """
        job = {
            "file": str((pair.folder / f"{case.side}_model.py").resolve()),
            "options": dict(case.options),
            "seed": case.seed,
            "steps": pair.steps,
            "passes": pair.passes,
            "recorders": PACKAGES,
            "hint": self.backend,
            "folder": str(folder),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the process of {self.backend} ended with code {self.process.wait()} at {case.key}")
        if error := json.loads(line).get("error"):
            raise RuntimeError(error)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def only(recording: Recording, precision: str) -> Recording:
    """Return a recording with the passes of one precision."""
    passes = {name: one for name, one in recording.passes.items() if name.endswith(precision[-2:])}
    return replace(recording, passes=passes, steps=recording.steps if precision == "float64" else ())


def run_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    """Compare two recordings and score the result; an error of the comparison is a result, too."""
    start = time.process_time()
    try:
        a, b = (only(read_recording(folder / case.key), trial.precision) for case in (trial.torch, trial.keras))
        compare = importlib.import_module("diffusion_core.parity.diff.comparison").compare
        row = score(trial, compare(a, b, None, trial.pair.modes))
    except Exception:
        row = broken(trial, traceback.format_exc())
    return row | {"seconds": round(time.process_time() - start, 3)}


def broken(trial: Trial, error: str) -> dict[str, Any]:
    """Return the row of a trial that could not be recorded or compared."""
    row = {"pair": trial.pair.name, "fault": trial.fault.get("id"), "error": error, "precision": trial.precision}
    row |= {"torch": dict(trial.torch.options), "keras": dict(trial.keras.options), "seed": trial.torch.seed}
    return row | {"planted": trial.fault.get("kind"), "shows_in": trial.fault.get("shows_in")}


def run_pair(
    pair: Pair, recorders: dict[str, Recorder], todo: Sequence[Trial], comparing: ProcessPoolExecutor
) -> list[dict[str, Any]]:
    """Record what the trials of a pair need, both frameworks at a time, and compare, one process per core."""
    cases = {case.key: case for trial in todo for case in (trial.torch, trial.keras)}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:

        def record(side: str) -> None:
            for case in cases.values():
                if case.side == side:
                    try:
                        recorders[side].record(pair, case, Path(folder) / case.key)
                    except RuntimeError as error:
                        failed[case.key] = str(error)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(record, SIDES))
        rows = []
        for trial in todo:
            errors = [failed[case.key] for case in (trial.torch, trial.keras) if case.key in failed]
            rows.append(broken(trial, errors[0]) if errors else comparing.submit(run_trial, trial, Path(folder)))
        return [row if isinstance(row, dict) else row.result() for row in rows]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the Markdown table by family of faults, with totals, and a line on what is clean."""
    rows = list(rows)
    faults = [row for row in rows if row.get("fault")]
    families: dict[str, list[dict[str, Any]]] = {name: [] for name in FAMILIES}
    for row in faults:
        families.setdefault(family(row["planted"], row["shows_in"]), []).append(row)
    for name in MODES.values():
        families[name] = families.pop(name, [])  # after those of the forward pass
    columns = ("place", "counterpart", "verified")
    head = "| faults | planted | right operation | right one on the other side | cause verified |"
    lines = [head, "| --- " + "| ---: " * 4 + "|"]

    def line(name: str, some: list[dict[str, Any]]) -> str:
        return f"| {name} | {len(some)} | " + " | ".join(str(sum(bool(r.get(c)) for r in some)) for c in columns) + " |"

    lines += [line(name, some) for name, some in families.items() if some]
    lines.append(line("**all**", faults))
    if faults:
        percent = (f"{100 * sum(bool(row.get(c)) for row in faults) / len(faults):.0f} %" for c in columns)
        lines.append("| | | " + " | ".join(percent) + " |")
    clean = [row for row in rows if not row.get("fault")]
    alarms = [row for row in clean if not row.get("silent")]
    lines += ["", f"False alarms: {len(alarms)} of {len(clean)} comparisons of equal models."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if it reaches what is promised."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.model_diff", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, nargs="+", action="extend", default=[], help="further folders of pairs")
    parser.add_argument("--only", nargs="+", default=[], help="names of pairs, NAME/FAULT or NAME/clean")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the clean comparisons (default 2)")
    parser.add_argument("--faults-only", action="store_true", help="leave the clean comparisons out")
    parser.add_argument("--out", type=Path, help="folder for model_diff.json and model_diff.md")
    given = parser.parse_args(arguments)
    pairs = read_pairs([OWN, *given.pairs])
    names = {name.split("/")[0] for name in given.only}
    start, rows = time.perf_counter(), []
    recorders = {side: Recorder(side) for side in SIDES}
    comparing = ProcessPoolExecutor(os.cpu_count())
    try:
        for pair in pairs:
            if names and pair.name not in names:
                continue
            todo = list(trials(pair, 0 if given.faults_only else given.seeds))
            if any("/" in name for name in given.only):
                todo = [t for t in todo if {pair.name, f"{pair.name}/{t.fault.get('id', 'clean')}"} & set(given.only)]
            found = run_pair(pair, recorders, todo, comparing)
            rows += found
            for row in found:
                if not (row.get("silent") or (row.get("place") and row.get("verified") and row.get("counterpart"))):
                    print(problem(row), flush=True)
            print(f"{pair.name}: {len(found)} comparisons, {time.perf_counter() - start:.0f} s", flush=True)
    finally:
        comparing.shutdown()
        for recorder in recorders.values():
            recorder.close()
    print(table(rows))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "model_diff.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        (given.out / "model_diff.md").write_text(table(rows) + "\n", encoding="utf-8")
    return 0


def problem(row: dict[str, Any]) -> str:
    """Describe a comparison that did not come out as it should, in one or two lines."""
    what = f"{row['pair']} {row.get('fault') or {**row['torch'], **row['keras']} or 'clean'} {row['precision']}"
    if "error" in row:
        return f"ERROR {what}: {row['error'].strip().splitlines()[-1]}"
    if not row.get("fault"):
        return f"ALARM {what}: {row['first']}"
    lacks = [name for name in ("found", "place", "counterpart", "verified", "kind") if not row[name]]
    return f"{what} ({row['planted']}) lacks {', '.join(lacks)}\n    {row['first']}"


if __name__ == "__main__":
    sys.exit(main())

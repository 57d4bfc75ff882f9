"""Find where two implementations of a model first differ, and why.

    python3 -m duet diff torch_model.py:build keras_model.py:build

`duet.cli.diff` reads the command line, finds an interpreter for each side, and starts this module with what it read as
JSON. It has no configuration of Hydra: a comparison depends on nothing but its arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.runtime import signals
from experiments.model_diff.accepted import read_accepted
from experiments.model_diff.compare import Request, compare_sides
from experiments.model_diff.inputs import read_file
from experiments.model_diff.result import read_weights, summary, to_report, write
from experiments.model_diff.sides import Side

__all__ = ["main"]


def main(options: Mapping[str, Any]) -> int:
    """Compare the two sides, write the report and print what it says; return the exit code."""
    out = Path(options["out"] or default_out()).expanduser()
    if (out / "report.json").exists():
        raise DuetError(f"--out: {out} already contains a report; choose another folder, or delete it")
    if out.exists() and not out.is_dir():
        raise DuetError(f"--out: {out} is a file; it must be a folder or a new name")
    user_map, copy_weights = read_weights(options["weights"], options["copy_weights"])
    request = Request(
        Side(**options["a"]),
        Side(**options["b"]),
        read_file(Path(options["inputs"]).expanduser()) if options["inputs"] else None,
        options["seed"],
        user_map,
        copy_weights,
        options["mode"],
        options["steps"],
        options["precision"],
        read_accepted(Path(options["accept"]).expanduser()) if options["accept"] else (),
    )
    found = compare_sides(request)
    report = to_report(found, options["command"])
    page = write(report, out)
    print((out / "report.json").read_text("utf-8") if options["json"] else summary(report, page))
    return 0 if found.equal else 1


def default_out() -> str:
    """Return a new folder for a report."""
    return f"outputs/diff/{datetime.now():%Y-%m-%d_%H-%M-%S}"


if __name__ == "__main__":
    try:
        with signals.raise_on_signal():
            code = main(json.loads(sys.argv[1]))
    except DuetError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        code = stopped.code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)

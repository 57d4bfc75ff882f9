"""The process that records one side of `duet diff`, run by the interpreter of the model's author.

    python record_side.py JOB    JOB is a `side_recorder.Job` as JSON

It talks in lines of JSON with the process that compares, on its standard input and output; what the author's code
prints goes to standard error. First it says which inputs it has; then it gets those to use, and writes a recording.

That interpreter has NumPy and a framework, and need not have Duet nor what Duet needs. So the few modules of Duet are
imported without their packages' own code, and forgotten afterwards: the author's code may import Duet itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

__all__ = ["main", "read_inputs", "write_inputs"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "backends",
    "diffusion_core",
    "diffusion_core.parity",
    "diffusion_core.parity.diff",
    "experiments",
    "experiments.model_diff",
)


_ours: dict[str, ModuleType] = {}


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in ("backends", "diffusion_core", "experiments")


@contextmanager
def bare_packages() -> Iterator[None]:
    """Import modules of Duet without the code of their packages.

    What was imported before is there again after the body, and what the body imported in the next one.
    """
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
    if not _ours:
        names = [*PACKAGES, *(f"backends.{path.name}" for path in (ROOT / "backends").iterdir() if path.is_dir())]
        for name in names:
            _ours[name] = ModuleType(name)
            _ours[name].__path__ = [str(ROOT.joinpath(*name.split(".")))]
            if "." in name:
                setattr(_ours[name.rpartition(".")[0]], name.rpartition(".")[2], _ours[name])
    sys.modules.update(_ours)
    try:
        yield
    finally:
        _ours.update({name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)})
        sys.modules.update(before)


def find_recorder(name: str) -> ModuleType:
    """Return a recorder: a module, that of a backend by its name, or that of plain functions."""
    module = name if "." in name else f"backends.{name}.recorder"
    with bare_packages():
        return import_module("experiments.model_diff.plain" if name == "plain" else module)


def main() -> int:
    """Record one side; return the exit code."""
    # Standard output belongs to the protocol; what the author's code prints must not be read as such.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    orders = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def tell(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    here = str(Path(__file__).parent)
    sys.path[:] = [path for path in sys.path if path and str(Path(path).resolve()) != here]
    if sys.version_info < (3, 10):  # noqa: UP036 - the author's Python
        version = ".".join(map(str, sys.version_info[:3]))
        tell(event="error", line=f"{sys.executable} is Python {version}; a side needs Python 3.10 or newer", trace="")
        return 2
    try:
        import numpy  # noqa: F401
    except ImportError:
        tell(event="error", line=f"{sys.executable} has no NumPy; install it there", trace="")
        return 2
    with bare_packages():
        side_recorder, author_code = (
            import_module(f"experiments.model_diff.{name}") for name in ("side_recorder", "author_code")
        )
    job = side_recorder.Job(**json.loads(sys.argv[1]))
    if job.path:
        sys.path.append(str(ROOT))  # what opens a file of a model is Duet's own code
    sys.argv[:] = [job.place]  # a script's own arguments, of which there are none here
    side = side_recorder.SideRecorder(job, find_recorder)
    try:
        serve(side, job, orders, tell)
    except BaseException as error:  # every exception of the author's code is told, SystemExit too
        line, trace = author_code.describe_error(job.reference, error)
        tell(event="error", line=line, trace=trace)
        return 2
    return 0


def serve(side: Any, job: Any, orders: IO[str], tell: Any) -> None:
    """Load the side, and record it as often as it is asked to."""
    tell(event="progress", text="loading")
    side.load()
    for line in orders:
        order = json.loads(line)
        if order["order"] == "inputs":
            tell(event="inputs", **offer_inputs(side, job, order["count"], Path(order["file"])))
        elif order["order"] == "record":
            folder = Path(order["folder"])
            used = side.record(
                folder,
                [read_inputs(Path(path)) for path in order["inputs"]],
                order["passes"],
                [[read_inputs(Path(path)) for path in several] for several in order["batches"]],
                read_inputs(Path(order["state"])) if order["state"] else None,
                lambda text: tell(event="progress", text=text),
                order["gradients"],
                order["brief"],
            )
            tell(event="recorded", used=used)
        elif order["order"] == "state":
            write_inputs(side.recorder.read_state(side.model), Path(order["file"]))
            tell(event="state")


def offer_inputs(side: Any, job: Any, count: int, file: Path) -> dict[str, Any]:
    """Write the inputs of the author's file for `count` seeds; say which there are, and what the model declares."""
    files = []
    for i in range(count):
        inputs = side.own_inputs(job.seed + i)
        if inputs is None:
            break
        files.append(str(file.with_name(f"{file.name}.{i}.npz")))
        write_inputs(inputs, Path(files[-1]))
    return {
        "files": files,
        "written": not job.path,  # by the side's author
        "declared": side.declared(),
        "layout": side.layout,
        "framework": side.recorder.FRAMEWORK,
    }


def write_inputs(inputs: Any, path: Path) -> None:
    """Write arrays to an .npz file: by name, or in order as arr_0, arr_1 ..."""
    import numpy as np

    named = isinstance(inputs, dict)
    arrays = inputs if named else {f"arr_{i}": array for i, array in enumerate(inputs)}
    # Names may hold any character, and "file" is an argument of savez; so they are numbered, and kept beside.
    stored = {f"value_{i}": array for i, array in enumerate(arrays.values())}
    names = json.dumps(list(arrays) if named else None)
    with path.open("wb") as file:
        np.savez(file, names=np.array(names), **stored)


def read_inputs(path: Path) -> Any:
    """Read arrays that `write_inputs` wrote."""
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        names = json.loads(str(file["names"]))
        arrays = [file[f"value_{i}"] for i in range(len(file.files) - 1)]
    return tuple(arrays) if names is None else dict(zip(names, arrays))  # noqa: B905 - Python 3.9 gets as far


if __name__ == "__main__":
    sys.exit(main())

"""Execute the notebooks and keep their outputs: python notebooks/update.py [FILE ...]

A notebook whose name ends with a backend, as 02_solvers_torch.ipynb, runs in the environment of that backend. Any other
runs in each environment: its outputs are kept from that of the first backend, and tested in that of the last.

Notebooks that differ in this ending only are twins. Their cells tagged "framework" are their own; all other cells are
copied from the twin of the first backend, and the outputs must be equal up to rounding.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from duet.cli.backends import backends, get_backend  # noqa: E402
from duet.cli.environments import setup  # noqa: E402

TIMEOUT = 600  # seconds for one cell
RELATIVE = 0.01  # allowed difference of printed numbers, which are rounded
PIXELS = 1.0  # allowed mean difference of two figures, of 255
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
# What TensorFlow's C++ code writes about the machine when it is imported, as I0000 00:00:17 10263 port.cc:153] ...
_MACHINE = re.compile(
    r"WARNING: All log messages before absl.*|[IWE]\d{4} \d\d:\d\d:[\d.]+ +\d+ .*"
)
# Nothing of the machine or the Python that ran a notebook is kept.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def notebooks() -> list[Path]:
    """Return the files of all notebooks, in order."""
    return sorted(HERE.glob("*.ipynb"))


def split_name(path: Path) -> tuple[str, str | None]:
    """Return the subject of a notebook and the backend that its name ends with, None if it ends with none."""
    subject, _, ending = path.stem.rpartition("_")
    return (subject, ending) if ending in backends() else (path.stem, None)


def first_twin(path: Path) -> Path:
    """Return the twin of the first backend, from which the shared cells are copied; the notebook itself if alone."""
    subject, backend = split_name(path)
    named = (path.with_stem(f"{subject}_{name}") for name in backends())
    return next((twin for twin in named if twin.exists()), path) if backend else path


def is_framework(cell: Any) -> bool:
    """Return whether a cell belongs to one framework."""
    return "framework" in cell.metadata.get("tags", ())


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)


def with_shared_cells(notebook: Any, twin: Any) -> Any:
    """Return a notebook with the cells of its twin, except for those of the framework.

    Raises:
        ValueError: if the two have different numbers of cells of the framework.
    """
    own = [cell for cell in notebook.cells if is_framework(cell)]
    if len(own) != sum(map(is_framework, twin.cells)):
        raise ValueError(
            f"{len(own)} cells are tagged framework; the twin has another number of them"
        )
    left = iter(own)
    cells = [
        next(left) if is_framework(cell) else nbformat.from_dict(cell) for cell in twin.cells
    ]
    return nbformat.from_dict({**notebook, "cells": cells})


def execute(notebook: Any) -> Any:
    """Return a notebook with its outputs in this Python, as it is kept in a file.

    The kernel is this Python, whatever kernels the machine knows, without the user's start-up files of IPython.
    """
    with tempfile.TemporaryDirectory(prefix="duet-kernel-") as folder:
        kernel = Path(folder) / "kernels" / "python3"
        kernel.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": command, "display_name": "Python 3", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec))
        specs = KernelSpecManager(kernel_dirs=[str(kernel.parent)], ensure_native_kernel=False)
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        manager.connection_file = str(Path(folder) / "connection.json")
        if os.name != "nt":
            manager.transport, manager.ip = "ipc", str(Path(folder) / "kernel")
        env = {"IPYTHONDIR": folder, "PYTHONPATH": _search_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
        resources = {"metadata": {"path": str(HERE)}}
        client = NotebookClient(notebook, km=manager, timeout=TIMEOUT, resources=resources)
        return cleaned(client.execute(env=os.environ | env, cleanup_kc=True))


def _search_path() -> str:
    """Return PYTHONPATH with this repository first, so that the notebooks import what stands beside them."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def cleaned(notebook: Any, compress: bool = True) -> Any:
    """Return a notebook without what differs from one execution to the next: names of cells, times, versions."""
    cells = []
    for index, cell in enumerate(notebook.cells, start=1):
        kept = {
            key: value
            for key, value in cell.items()
            if key in ("cell_type", "source", "execution_count")
        }
        tags = list(cell.metadata.get("tags", ()))
        kept |= {"id": f"cell-{index:02d}", "metadata": {"tags": tags} if tags else {}}
        if cell.cell_type == "code":
            kept["outputs"] = [
                _cleaned_output(output, compress) for output in _joined(cell.outputs)
            ]
        cells.append(kept)
    return nbformat.from_dict(
        {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    )


def _joined(outputs: list[Any]) -> list[Any]:
    """Return outputs with neighbouring texts of one stream joined, as how they were cut depends on the time.

    Lines of the machine are left out.
    """
    joined: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            lines = [
                line
                for line in output.text.splitlines(keepends=True)
                if not _MACHINE.fullmatch(line.rstrip())
            ]
            if not "".join(lines).strip():
                continue
            output = nbformat.from_dict({**output, "text": "".join(lines)})
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1] = nbformat.from_dict(
                {**joined[-1], "text": joined[-1].text + output.text}
            )
        else:
            joined.append(output)
    return joined


def _cleaned_output(output: Any, compress: bool) -> dict[str, Any]:
    output = dict(output)
    if "image/png" in output.get("data", {}):
        png = output["data"]["image/png"]
        output["data"] = {"image/png": _compressed(png) if compress else png}
    return output | ({"metadata": {}} if "metadata" in output else {})


def _compressed(png: str) -> str:
    """Return a figure in base64 with 256 colours of its own, and without the name of the program that drew it."""
    content = io.BytesIO()
    colours = figure(png).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colours.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def figure(png: str) -> Image.Image:
    """Return the figure of an output."""
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


def differences(kept: Any, new: Any) -> Iterator[str]:
    """Describe each output of a notebook that differs from what is kept by more than rounding."""
    for index, (old, cell) in enumerate(zip(kept.cells, new.cells, strict=True), start=1):
        if old.cell_type == "code":
            pair = list(old.outputs), list(cell.outputs)
            kinds = [[output.output_type for output in outputs] for outputs in pair]
            if kinds[0] != kinds[1]:
                yield f"cell {index}: outputs {kinds[1]} in place of {kinds[0]}"
            else:
                found = (_difference(*outputs) for outputs in zip(*pair, strict=True))
                yield from (f"cell {index}: {text}" for text in found if text)


def _difference(old: Any, new: Any) -> str | None:
    if "image/png" in old.get("data", {}):
        pictures = [
            np.asarray(figure(output.data["image/png"]), np.float64) for output in (old, new)
        ]
        if pictures[0].shape != pictures[1].shape:
            return f"a figure of {pictures[1].shape} in place of {pictures[0].shape}"
        mean = np.abs(pictures[0] - pictures[1]).mean()
        return f"the figure differs by {mean:.2f} of 255 on average" if mean > PIXELS else None
    texts = [
        output.text if "text" in output else output.data["text/plain"] for output in (old, new)
    ]
    return None if same_text(*texts) else f"{texts[1]!r} in place of {texts[0]!r}"


def same_text(old: str, new: str) -> bool:
    """Return whether two texts are equal, with numbers compared to a percent and to a unit of their last digit."""
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    return all(
        _same_number(*pair)
        for pair in zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    )


def _same_number(old: str, new: str) -> bool:
    if "." not in old:
        return old == new
    mantissa, _, exponent = old.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(old) - float(new)) <= 1.001 * max(unit, RELATIVE * abs(float(old)))


def update(path: Path) -> None:
    """Execute a notebook in this Python and write it."""
    twin = first_twin(path)
    notebook = read(path) if twin == path else with_shared_cells(read(path), read(twin))
    nbformat.write(execute(notebook), path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def main(words: list[str]) -> None:
    """Execute the notebooks named, or all, each in the environment of its backend; `--here` executes in this one."""
    here = "--here" in words
    paths = [Path(word).resolve() for word in words if word != "--here"] or notebooks()
    for path in paths:
        if here:
            update(path)
        else:
            python = setup(get_backend(split_name(path)[1] or next(iter(backends()))))
            subprocess.run([python, __file__, "--here", str(path)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

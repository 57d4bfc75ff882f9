"""What weights can be written as. A target is a function; its keyword-only arguments are its options.

Each is given a function that opens the backend of a name, the checkpoint, the weights and where to write, and gives a
line for the person. It checks everything before it writes, or writes beside `out`, checks, and renames.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Backend, Forward
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.convert import export_pipeline
from diffusion_core.convert.onnx import onnx_model, open_onnx, save_onnx
from diffusion_core.files.atomic import write_atomically
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import Weights
from diffusion_core.parity.ladder import relative
from diffusion_core.runs.checkpoint import Checkpoint

__all__ = ["TARGETS"]

# Opens the backend of the configuration, which must be the one of this name.
Opener = Callable[[str], Backend]
# How far from the reference a written network may be, by precision: ten times what the ladder allows a small network,
# as a large one has more sums; bfloat16 has eight bits.
ALLOWED = {"float64": 1e-11, "float32": 1e-4, "bf16": 1e-1}


def _diffusers(
    opened: Opener,
    found: Checkpoint,
    weights: Weights,
    out: Path,
    *,
    variance: str = "fixed_small",
    clip: float | None = 1.0,
) -> str:
    """A `DDPMPipeline` directory; `variance` and `clip` are those of Duet's sampler ddpm."""
    files = export_pipeline(found.model, weights, variance, clip)
    with _beside(out) as folder:
        for name, content in files.items():
            write_atomically(folder / name, content)
    if found.model.spec.num_classes:
        return "a UNet2DModel with classes; DDPMPipeline loads it, but gives a network no labels when it samples"
    return "a DDPMPipeline"


def _onnx(opened: Opener, found: Checkpoint, weights: Weights, out: Path, *, check: int = 2) -> str:
    """An ONNX file, compared with the reference on `check` images by onnxruntime."""
    model = found.model
    notes = {"value_range": ",".join(map(str, model.value_range)), "images_seen": str(found.images_seen)}
    graph = onnx_model(model.program, weights, model.spec.image_shape, notes)
    with _beside(out) as path:
        save_onnx(graph, path)
        if find_spec("onnxruntime"):
            said = _compared(partial(open_onnx, path), model, weights, "float32", check)
        else:
            said = "not compared with the reference, as onnxruntime is not installed"
    return f"ONNX, {said}"


def _native(
    opened: Opener, found: Checkpoint, weights: Weights, out: Path, *, backend: str, form: str, check: int = 2
) -> str:
    """What a backend writes itself, compared with the reference on `check` images.

    Args:
        backend: the name of the one that writes it.
        form: what it is, for a person.
    """
    engine, model = opened(backend), found.model
    with _beside(out) as path:
        engine.export(engine.network(model.program, weights), path, model.spec.image_shape)
        again = partial(engine.load_export, model.program, path)
        return f"{form}, {_compared(again, model, weights, engine.config.precision, check)}"


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Where to write: a path of the same name in a folder beside `out`. What is there is moved if all goes well."""
    folder = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder / out.name
        moves = {path: out.with_name(path.name) for path in sorted(folder.iterdir(), reverse=True)}
        if taken := [final for final in moves.values() if final != out and final.exists()]:
            raise DuetError(f"out: {taken[0]}, which belongs to {out}, exists already; give another place")
        for path, final in moves.items():  # the file called `out` last, after those that it needs
            os.rename(path, final)
    except OSError as error:
        raise DuetError(f"{out}: it cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compared(
    opened: Callable[[], Forward], model: DiffusionModel, weights: Weights, precision: str, check: int
) -> str:
    """How far a written network is from the reference, on noise at levels from the first to the last, in words.

    Raises:
        DuetError: if that is more than `ALLOWED`.
    """
    if check < 1:
        return "not compared with the reference"
    program, index = model.program, np.arange(check)
    stream, schedule = Stream(0, "export"), model.process.schedule
    given = (
        stream.normal(index, model.spec.image_shape, 0, np.float32),
        model.process.columns(schedule.even_timesteps(check)).c_noise,
        ((program.null_label or 0) + index) % (program.classes + 1),
        stream.normal(index, (program.features,), 1, np.float32),
    )
    error = relative(opened()(*given), reference.forward(program, weights, *given))
    if not error <= ALLOWED[precision]:
        raise DuetError(
            f"what was written differs from the reference by {error:.1e} of its largest number, where {precision} "
            f"allows {ALLOWED[precision]:.0e}; it was not kept (target.check=0 keeps it)"
        )
    return f"within {error:.1e} of the reference"


# A file in configs/target makes a target of its own of one of these, as torch.yaml and savedmodel.yaml of `native`.
TARGETS: dict[str, Callable[..., str]] = {
    "diffusers": _diffusers,
    "onnx": _onnx,
    "native": _native,
}

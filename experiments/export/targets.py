"""The formats that weights are written in. A target is a function; its keyword-only arguments are its options.

Each target gets a function that opens the backend of a given name, the checkpoint, the weights and the path to write,
and returns a line to print. It checks everything before it writes; or it writes to a temporary folder, checks the
result, and renames it.
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
from safetensors import numpy as tensors

from diffusion_core.backend import reference
from diffusion_core.backend.interface import Backend, Forward
from diffusion_core.common.errors import DuetError
from diffusion_core.common.random import Stream
from diffusion_core.convert import export_pipeline, export_state_dict
from diffusion_core.convert.onnx import onnx_model, open_onnx, save_onnx
from diffusion_core.files.atomic import write_atomically
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.weights import Weights
from diffusion_core.parity.ladder import relative
from diffusion_core.runs.checkpoint import Checkpoint

__all__ = ["TARGETS"]

# Opens the configured backend, after checking that it has this name.
OpenBackend = Callable[[str], Backend]
# By precision: the largest relative difference from the reference that a written network may have. It is ten times the
# tolerance of a small network in the ladder, since a large one has longer sums; bfloat16 has eight bits.
TOLERANCES = {"float64": 1e-11, "float32": 1e-4, "bf16": 1e-1}


def _diffusers(
    open_backend: OpenBackend,
    checkpoint: Checkpoint,
    weights: Weights,
    out: Path,
    *,
    variance: str = "fixed_small",
    clip: float | None = 1.0,
) -> str:
    """Write a `DDPMPipeline` or `DiTPipeline` directory; `variance` and `clip` are those of Duet's sampler ddpm."""
    files = export_pipeline(checkpoint.model, weights, variance, clip)
    with _renamed_when_complete(out) as folder:
        for name, content in files.items():
            write_atomically(folder / name, content)
    if "transformer/config.json" in files:
        return "a DiTPipeline without its vae: DiTPipeline.from_pretrained(DIR, vae=...)"
    if checkpoint.model.spec.num_classes:
        return "a UNet2DModel with classes; DDPMPipeline loads it, but passes no labels to the network when it samples"
    return "a DDPMPipeline"


def _state_dict(open_backend: OpenBackend, checkpoint: Checkpoint, weights: Weights, out: Path, *, project: str) -> str:
    """Write a state dict as safetensors, under the names of the project; `import_weights source=PROJECT` reads it."""
    if out.suffix != ".safetensors":
        raise DuetError(f"out: {str(out)!r} was given; target=state_dict writes a file that ends in .safetensors")
    arrays = export_state_dict(checkpoint.model, weights, project)
    with _renamed_when_complete(out) as path:
        path.write_bytes(tensors.save(arrays, metadata={"format": "pt"}))
    return f"a state dict of {project}"


def _onnx(open_backend: OpenBackend, checkpoint: Checkpoint, weights: Weights, out: Path, *, check: int = 2) -> str:
    """Write an ONNX file, and compare it with the reference on `check` images by onnxruntime."""
    model = checkpoint.model
    notes = {"value_range": ",".join(map(str, model.value_range)), "images_seen": str(checkpoint.images_seen)}
    graph = onnx_model(model.program, weights, model.spec.image_shape, notes)
    with _renamed_when_complete(out) as path:
        save_onnx(graph, path)
        if find_spec("onnxruntime"):
            compared = _compare(partial(open_onnx, path), model, weights, "float32", check)
        else:
            compared = "not compared with the reference, as onnxruntime is not installed"
    return f"ONNX, {compared}"


def _native(
    open_backend: OpenBackend,
    checkpoint: Checkpoint,
    weights: Weights,
    out: Path,
    *,
    backend: str,
    form: str,
    check: int = 2,
) -> str:
    """Write the format of a backend itself, and compare it with the reference on `check` images.

    Args:
        backend: the name of the backend that writes it.
        form: the name of the format, for the printed line.
    """
    engine, model = open_backend(backend), checkpoint.model
    with _renamed_when_complete(out) as path:
        engine.export(engine.network(model.program, weights), path, model.spec.image_shape)
        reopen = partial(engine.load_export, model.program, path)
        return f"{form}, {_compare(reopen, model, weights, engine.config.precision, check)}"


@contextmanager
def _renamed_when_complete(out: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder next to `out`; its files are moved if nothing raises."""
    folder = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder / out.name
        moves = {path: out.with_name(path.name) for path in sorted(folder.iterdir(), reverse=True)}
        if taken := [final for final in moves.values() if final != out and final.exists()]:
            raise DuetError(f"out: {taken[0]}, which belongs to {out}, exists already; give another path")
        for path, final in moves.items():  # `out` itself last, after the files that it needs
            os.rename(path, final)
    except OSError as error:
        raise DuetError(f"{out}: it cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compare(
    open_network: Callable[[], Forward], model: DiffusionModel, weights: Weights, precision: str, check: int
) -> str:
    """Compare a written network with the reference, on noise at noise levels from the first to the last.

    Returns:
        The difference, as text.

    Raises:
        DuetError: if it exceeds the tolerance.
    """
    if check < 1:
        return "not compared with the reference"
    program, index = model.program, np.arange(check)
    stream, schedule = Stream(0, "export"), model.process.schedule
    inputs = (
        stream.normal(index, model.spec.image_shape, 0, np.float32),
        model.process.columns(schedule.even_timesteps(check)).c_noise,
        ((program.null_label or 0) + index) % (program.classes + 1),
        stream.normal(index, (program.features,), 1, np.float32),
    )
    error = relative(open_network()(*inputs), reference.forward(program, weights, *inputs))
    if not error <= TOLERANCES[precision]:
        raise DuetError(
            f"the written network differs from the reference by {error:.1e} of its largest number, where {precision} "
            f"allows {TOLERANCES[precision]:.0e}; it was deleted (target.check=0 keeps it unchecked)"
        )
    return f"within {error:.1e} of the reference"


# A file in configs/target can make a further target from one of these, as torch.yaml and savedmodel.yaml do from
# `native`.
TARGETS: dict[str, Callable[..., str]] = {
    "diffusers": _diffusers,
    "state_dict": _state_dict,
    "onnx": _onnx,
    "native": _native,
}

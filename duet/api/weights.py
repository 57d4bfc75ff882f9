"""Weights of other projects from Python, in and out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.diffusion.process import Process
from diffusion_core.runs.checkpoint import list_checkpoints
from duet.api.backends import backend_setup
from duet.api.options import check_types, plain_values
from duet.api.runs import Run, load_run
from experiments.export.exporting import export_checkpoint
from experiments.export.importing import ImportSetup, import_checkpoint
from experiments.runtime.options import CONFIGS, read_option

__all__ = ["export_weights", "import_weights"]


@check_types
def import_weights(
    source: str,
    path: str | Path,
    out: str | Path,
    *,
    process: Process | None = None,
    backend: str | None = None,
    **options: Any,
) -> Run:
    """Write a run with the weights of another project, and load it.

    Args:
        source: the format, such as ``"dit"``, ``"sit"``, ``"uvit"``, ``"jit"``, ``"edm2"``, ``"diffusers"`` or
            ``"guided_diffusion"``; docs/networks.md lists them.
        path: the file or directory to read. Nothing is unpickled.
        out: the directory of the run, which must not hold checkpoints.
        process: what the network was trained for, where the source does not say so, or in place of it.
        backend: reads files of its framework; None takes the one that this Python can import.
        options: of the source, such as ``ema="nnet_ema.pth"``.

    Raises:
        DuetError: for a source or an option that does not exist, a file that does not fit it, or a directory with
            checkpoints.

    Example:
        The published weights of DiT-XL/2, and four of its latents::

            run = duet.import_weights("dit", "DiT-XL-2-256x256.pt", "runs/dit")
            latents = run.sample(4, sampler={"name": "ddim", "steps": 50, "guidance_scale": 4.0})
    """
    out = Path(out).expanduser()
    if list_checkpoints(out / "checkpoints"):
        raise DuetError(f"out: {str(out)!r} was given and holds checkpoints already; give another directory")
    given = None
    if process is not None:
        if process.schedule.options is None:
            raise DuetError(
                f"process: its schedule {process.schedule.name} was not made by name; use duet.process(...)"
            )
        numbers = {field.name: getattr(process, field.name) for field in fields(Process) if field.name != "schedule"}
        given = {"schedule": dict(process.schedule.options), **numbers}
    setup = ImportSetup(str(path), source, plain_values(options), given, backend_setup(backend, "cpu"))
    import_checkpoint(setup, out)
    return load_run(out)


@check_types
def export_weights(
    checkpoint: str | Path,
    target: str,
    out: str | Path,
    *,
    weights: str | None = None,
    backend: str | None = None,
    **options: Any,
) -> Path:
    """Write the weights of a run in a format of others; return where they are.

    Args:
        checkpoint: a run directory, or one of its checkpoints.
        target: ``"diffusers"``, ``"state_dict"`` (with ``project="dit"``, for example), ``"onnx"``, ``"torch"`` or
            ``"savedmodel"``; docs/networks.md says what each can hold.
        out: a path that does not exist, or an empty directory.
        weights: ``"ema"``, a further average or ``"weights"``; None is what the run samples with.
        backend: for a target of a framework; None takes the one that this Python can import.
        options: of the target.

    Raises:
        DuetError: for a target or an option that does not exist, or a network that the format cannot hold.

    Example:
        An ONNX file of a run::

            duet.export_weights("outputs/digits", "onnx", "digits.onnx")
    """
    out = Path(out).expanduser()
    known: dict[str, Any] = {"name": target}
    if (CONFIGS / "target" / f"{target}.yaml").exists():  # it begins with the target that it is made from
        known = read_option("target", target)
        known["name"] = known.pop("defaults")[0]
    named = known | plain_values(options)
    export_checkpoint(str(checkpoint), out, named, weights, backend_setup(backend, "cpu"))
    return out

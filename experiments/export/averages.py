"""A checkpoint of an EMA profile that a run did not keep, from the EMA snapshots that it kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.optim import Ema, profile_options
from diffusion_core.optim.posthoc_ema import check_fit
from diffusion_core.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from diffusion_core.runs.ema_snapshots import find_snapshots, reconstruct
from diffusion_core.runs.run_directory import describe_environment

__all__ = ["Reconstruction", "reconstruct_ema"]


@dataclass(frozen=True)
class Reconstruction:
    """A reconstructed average.

    Args:
        path: of the checkpoint.
        description: the profile, the moment, the snapshots used and the residual, in one line.
    """

    path: Path
    description: str


def reconstruct_ema(run: str, ema: Ema, out: Path, images: int | None = None, fit: str = "steps") -> Reconstruction:
    """Combine the snapshots of a run into the average `ema`, and write it as a checkpoint into `out`.

    Args:
        run: the run directory, or the directory of its snapshots.
        ema: with the one profile to reconstruct.
        out: gets the checkpoint.
        images: the moment, in images seen; None is the last snapshot.
        fit: of the coefficients, one of `posthoc_ema.FITS`.

    Raises:
        DuetError: if `ema` has several profiles, or there are no such snapshots.
    """
    if len(ema.profiles) != 1:
        raise DuetError(
            f"ema.extra: {len(ema.profiles) - 1} given, but one average is made at a time; give ema.extra=[]"
        )
    check_fit(fit)
    (profile,), snapshots = ema.profiles, find_snapshots(run)
    checkpoint, combination = reconstruct(snapshots, profile, images, fit)
    notes = {"run": run, **checkpoint.notes, **describe_environment()}
    training = None
    if list_checkpoints(Path(run) / "checkpoints"):
        last = load_checkpoint(run)
        notes["sampler"], training = last.notes.get("sampler"), last.training
    path = save_checkpoint(out / "checkpoints", replace(checkpoint, notes=notes, training=training))
    options = profile_options(profile)
    parts = [options.pop("name"), *(f"{key} {value}" for key, value in options.items())]
    used = f"{np.count_nonzero(combination.coefficients)} of {pluralize(len(snapshots), 'snapshot')}"
    moment = f"at {checkpoint.images_seen:,} images"
    return Reconstruction(path, f"{', '.join(parts)}, {moment}: {used}, residual {combination.error:.2g}")

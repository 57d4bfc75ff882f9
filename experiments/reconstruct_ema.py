"""Make a checkpoint of an average that a run did not keep, of the snapshots of those that it did.

    python3 -m duet train backend=torch experiment=digits ema=post_hoc ema.snapshot_images=1280
    python3 -m duet reconstruct_ema run=RUN ema.sigma_rel=0.07 out=outputs/reconstructed
    python3 -m duet reconstruct_ema run=RUN ema=half_life ema.images=4000 images=12800 out=DIR
    python3 -m duet sample backend=tf checkpoint=outputs/reconstructed out=outputs/samples

`ema` is any profile, as for training, and `images` the moment; without it that is the last snapshot. No framework is
needed, and either samples from the result. What is printed as the misfit is how far the weights that the steps have in
the combination are from those of the profile, as a share of their root sum of squares; more snapshots make it smaller.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.optim import make_ema, profile_options
from diffusion_core.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from diffusion_core.runs.ema_snapshots import find_snapshots, reconstruct
from diffusion_core.runs.run_directory import describe_environment
from experiments.config.convert import plain
from experiments.config.entry import command


@command("reconstruct_ema")
def main(cfg: DictConfig) -> None:
    """Read the snapshots, combine them, and write one checkpoint."""
    for name, what in (("run", "directory of a run or of its snapshots"), ("out", "directory to write")):
        if not cfg[name]:
            raise DuetError(f"{name}: nothing was given; it is the {what}")
    out, ema = Path(cfg.out), make_ema(**plain(cfg.ema))
    if len(ema.profiles) != 1:
        raise DuetError("ema.extra: averages were given, but one is made at a time; give ema.extra=[]")
    if list_checkpoints(out / "checkpoints"):
        raise DuetError(f"out: {cfg.out!r} was given and holds checkpoints already; give another directory")
    snapshots = find_snapshots(cfg.run)
    found, made = reconstruct(snapshots, ema.profiles[0], cfg.images)
    notes = {"run": cfg.run, **found.notes, **describe_environment()}
    if list_checkpoints(Path(cfg.run) / "checkpoints"):
        notes["sampler"] = load_checkpoint(cfg.run).notes.get("sampler")
    path = save_checkpoint(out / "checkpoints", replace(found, notes=notes))
    options = profile_options(ema.profiles[0])
    words = [options.pop("name"), *(f"{key} {value}" for key, value in options.items())]
    used = f"{np.count_nonzero(made.coefficients)} of {pluralize(len(snapshots), 'snapshot')}"
    print(f"{', '.join(words)}, at {found.images_seen:,} images: {used}, misfit {made.error:.2g}: {path}")


if __name__ == "__main__":
    main()

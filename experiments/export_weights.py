"""Write the weights of a checkpoint for use elsewhere.

    python -m experiments.export_weights target=diffusers checkpoint=RUN out=DIR [target.variance=fixed_large]

    diffusers    a directory for `DDPMPipeline.from_pretrained` and, under unet, `UNet2DModel.from_pretrained`

`weights` says which: the moving average (ema) or the last ones (weights). The targets are in `experiments.targets`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from omegaconf import DictConfig

from diffusion_core.checkpoint import load_checkpoint
from diffusion_core.errors import DuetError, one_of
from diffusion_core.registry import build
from experiments.common import WEIGHTS, open_backend, weights_of
from experiments.entry import entry, plain
from experiments.targets import TARGETS


@entry("export_weights")
def main(cfg: DictConfig) -> None:
    """Load a checkpoint and write it in another form."""
    if cfg.weights not in WEIGHTS:
        raise one_of("weights", cfg.weights, WEIGHTS)
    out, options = Path(cfg.out), plain(cfg)["target"]
    if not cfg.out or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise DuetError(f"out: {cfg.out!r} was given and exists already; give another place")
    found = load_checkpoint(cfg.checkpoint)
    given = functools.partial(open_backend, cfg), found, weights_of(found.state, cfg.weights), out
    line = build("target", TARGETS, options.pop("name"), options, *given)
    print(f"{line}: {out}")


if __name__ == "__main__":
    main()

"""Write the weights of a checkpoint for use elsewhere.

    python3 -m duet export_weights target=diffusers checkpoint=RUN out=DIR [target.variance=fixed_large]

    diffusers    a directory for `DDPMPipeline.from_pretrained` and, under unet, `UNet2DModel.from_pretrained`
    onnx         a file for any ONNX runtime; see `diffusion_core.convert.onnx` for its inputs
    torch        a state dict as safetensors, with backend=torch
    savedmodel   a SavedModel of TensorFlow, with backend=tf
    native       what a backend writes itself; the two above are that, by their files in configs/target

All but the first are read back and compared with the reference on `target.check` images (2; 0 leaves it out), and the
difference is said; one that computes something else is not kept.
`weights` says which: a moving average (ema, ema1 ...) or the last ones (weights). The targets are in
`experiments.targets`.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from diffusion_core.backend.interface import Backend
from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.runs.checkpoint import load_checkpoint
from experiments.common import open_backend, weights_of, which_of
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.targets import TARGETS


@command("export_weights")
def main(cfg: DictConfig) -> None:
    """Load a checkpoint and write it in another form."""
    out, options = Path(cfg.out), plain(cfg.target)
    if not cfg.out:
        raise DuetError("out: nothing was given; it is the place to write")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DuetError(f"out: {cfg.out!r} was given and exists already; give another place")
    found = load_checkpoint(cfg.checkpoint)
    cfg.weights = which_of("weights", cfg.weights, found)
    target = options.pop("name")

    def opened(name: str) -> Backend:
        if cfg.backend.name != name:
            raise DuetError(
                f"backend: {cfg.backend.name} was given, but this target is written by {name}; type: "
                f"python3 -m duet export_weights backend={name} ..."
            )
        return open_backend(cfg)

    given = opened, found, weights_of(found.state, cfg.weights), out
    line = build("target", TARGETS, target, options, *given)
    print(f"{line}: {out}")


if __name__ == "__main__":
    main()

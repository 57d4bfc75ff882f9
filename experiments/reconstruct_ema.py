"""Make a checkpoint of an average that a run did not keep, from the EMA snapshots that it kept.

    python3 -m duet train backend=torch experiment=digits ema=post_hoc ema.snapshot_images=1280
    python3 -m duet reconstruct_ema run=RUN ema.sigma_rel=0.07 out=outputs/reconstructed
    python3 -m duet reconstruct_ema run=RUN ema=half_life ema.images=4000 images=12800 out=DIR
    python3 -m duet sample backend=tf checkpoint=outputs/reconstructed out=outputs/samples

`ema` is any profile, as for training, and `images` the moment, by default that of the last snapshot. No framework is
needed, and either one samples from the result. The printed residual is the distance between the weights that each
training step has in the combination and in the profile, relative to the norm of the latter; more snapshots make it
smaller. `fit=power` takes the coefficients of EDM2's code, which are those of small batches.
"""

from __future__ import annotations

from diffusion_core.optim import make_ema
from experiments.config import build
from experiments.config.convert import plain
from experiments.config.entry import Config, command
from experiments.export.averages import reconstruct_ema


@command("reconstruct_ema")
def main(cfg: Config) -> None:
    """Read the snapshots, combine them, and write one checkpoint."""
    build.directory(cfg, "run", "directory of a run or of its snapshots")
    ema, out = make_ema(**plain(cfg.ema)), build.new_checkpoint_directory(cfg)
    result = reconstruct_ema(cfg.run, ema, out, cfg.images, cfg.fit)
    print(f"{result.description}: {result.path}")


if __name__ == "__main__":
    main()

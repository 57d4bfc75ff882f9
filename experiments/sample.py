"""Sample from a checkpoint, whichever framework wrote it.

    python3 -m duet sample backend=tf checkpoint=outputs/demo/torch out=outputs/samples
    python3 -m duet sample backend=torch checkpoint=RUN out=DIR sampler=ddpm sample.count=16 sample.labels=7
    python3 -m duet sample checkpoint=RUN out=DIR sampler.guidance_scale=3 sampler.interval=[0.2,3] sampler.rescale=0.7
    python3 -m duet sample checkpoint=RUN out=DIR guide=EARLIER sampler.guidance_scale=2
    python3 -m duet launch 2 sample backend=torch parallel=ddp checkpoint=RUN out=DIR

A checkpoint contains its network and its process, and names the sampler and the weights that its run samples with.
sampler=NAME selects another sampler; an option alone, as sampler.steps=100, changes the sampler of the run;
sample.weights=ema selects other weights. The sampler and the weights in use are printed.

`guide` is the checkpoint of a weaker network of the same process, such as an earlier checkpoint of the run or a smaller
network; guided rows move away from it. `classifier` is the checkpoint of a classifier trained on the same process;
sampler.classifier=1 guides towards its class, whether or not the network itself is conditional.
"""

from __future__ import annotations

from pathlib import Path

from diffusion_core.common.text import format_seconds, pluralize
from experiments.config import build
from experiments.config.convert import to_yaml
from experiments.config.entry import Config, command
from experiments.sampling.run import sample_checkpoint


@command("sample", result=("samples.npz", "samples"))
def main(cfg: Config) -> None:
    """Draw samples and write them with figures."""
    setup = build.sampling_setup(cfg)
    result = sample_checkpoint(setup, Path(cfg.out), to_yaml(cfg, setup.choices))
    drawn = f"{pluralize(len(result.images), 'sample')} in {format_seconds(result.seconds)}"
    print(f"{drawn} from the checkpoint at {setup.checkpoint.images_seen:,} images: {Path(cfg.out) / 'samples.png'}")


if __name__ == "__main__":
    main()

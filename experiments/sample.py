"""Sample from a checkpoint, whichever framework wrote it.

    python -m experiments.sample backend=tf checkpoint=outputs/demo/torch out=outputs/samples
    python -m experiments.sample backend=torch checkpoint=RUN out=DIR sampler=ddpm sample.count=16 sample.labels=7
    python -m experiments.sample checkpoint=RUN out=DIR sampler.guidance=3 sampler.interval=[0.2,3] sampler.rescale=0.7
    python -m experiments.sample checkpoint=RUN out=DIR guide=EARLIER sampler.guidance=2
    python -m experiments.workers 2 -m experiments.sample backend=torch parallel=ddp checkpoint=RUN out=DIR

A checkpoint says itself what network and process it is of, and which sampler and which of its weights its run draws
with; sampler=NAME takes another one, and options alone, as sampler.steps=100, change that of the run, as
sample.weights=ema does the weights. Which it is is printed.

A `guide` is the checkpoint of a weaker network of the same process, which guided rows lead away from: an earlier one of
the run, or of a smaller network. A `classifier` is the checkpoint of one that was trained on the same process;
sampler.classifier=1 leads to its class, be the network told it or not.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.text import counted
from diffusion_core.files.atomic import write_atomically
from diffusion_core.runs.checkpoint import load_checkpoint, weights_hash
from diffusion_core.runs.run_directory import environment, write_json
from diffusion_core.runtime import signals as stopping
from experiments.common import (
    Leaders,
    check_sample,
    drawing_work,
    open_backend,
    sampler_of,
    save_samples,
    weights_of,
    which_of,
)
from experiments.entry import entry, plain
from experiments.processes import pausing


@entry("sample", keeps=("samples.npz", "samples"))
def main(cfg: DictConfig) -> None:
    """Draw samples, and write them with their pictures."""
    found = load_checkpoint(cfg.checkpoint)
    leaders = Leaders.of(cfg)
    cfg.sampler, said = sampler_of(cfg.sampler, found)
    plan = leaders.plan(found.problem, plain(cfg.sampler))
    cfg.sample.weights = which_of("sample.weights", cfg.sample.weights, found)
    check_sample(cfg.sample, found.problem, len(found.state.averages), leaders.classes)
    out = Path(cfg.out)
    backend = open_backend(cfg, "sample", drawing_work(found.problem, [(plan, cfg.sample.count)], cfg.sample.batch))
    print(f"{said}\nweights: {cfg.sample.weights}", flush=True)
    network = backend.network(found.problem.program, weights_of(found.state, cfg.sample.weights))
    leads = backend.team.world.leads
    if leads:
        write_atomically(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
        write_json(out / "environment.json", environment(backend.describe()))
    began = perf_counter()
    with stopping.noted() as stop, pausing(backend.team, stop) as pause:
        images = save_samples(
            backend, network, found.problem, plan, out, cfg.sample, strips=cfg.pictures,
            steering=leaders.steering(backend), pause=pause,
            images_seen=found.images_seen, weights_sha256=weights_hash(cfg.checkpoint, cfg.sample.weights),
        )  # fmt: skip
    if not leads:
        return
    took = perf_counter() - began
    memory = backend.peak_memory_mib()
    write_json(out / "result.json", {"sampled": len(images), "sample_seconds": took, "peak_memory_mib": memory})
    drawn = f"{counted(len(images), 'sample')} in {took:.1f} s"
    print(f"{drawn} from {found.images_seen:,} images seen: {out / 'samples.png'}")


if __name__ == "__main__":
    main()

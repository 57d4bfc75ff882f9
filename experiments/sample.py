"""Sample from a checkpoint, whichever framework wrote it.

    python3 -m duet sample backend=tf checkpoint=outputs/demo/torch out=outputs/samples
    python3 -m duet sample backend=torch checkpoint=RUN out=DIR sampler=ddpm sample.count=16 sample.labels=7
    python3 -m duet sample checkpoint=RUN out=DIR sampler.guidance_scale=3 sampler.interval=[0.2,3] sampler.rescale=0.7
    python3 -m duet sample checkpoint=RUN out=DIR guide=EARLIER sampler.guidance_scale=2
    python3 -m duet launch 2 sample backend=torch parallel=ddp checkpoint=RUN out=DIR

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

from diffusion_core.common.text import pluralize
from diffusion_core.files.atomic import write_atomically
from diffusion_core.runs.checkpoint import load_checkpoint, weights_hash
from diffusion_core.runs.run_directory import describe_environment, write_json
from diffusion_core.runtime import signals
from experiments.common import (
    GuidanceModels,
    check_sample,
    open_backend,
    sampler_of,
    sampling_calls,
    save_samples,
    weights_of,
    which_of,
)
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.runtime.processes import stop_check


@command("sample", result=("samples.npz", "samples"))
def main(cfg: DictConfig) -> None:
    """Draw samples, and write them with their pictures."""
    found = load_checkpoint(cfg.checkpoint)
    leaders = GuidanceModels.from_config(cfg)
    cfg.sampler, said = sampler_of(cfg.sampler, found)
    plan = leaders.plan(found.model, plain(cfg.sampler))
    cfg.sample.weights = which_of("sample.weights", cfg.sample.weights, found)
    check_sample(cfg.sample, found.model, len(found.state.averages), leaders.classes)
    out = Path(cfg.out)
    backend = open_backend(cfg, sampling_calls([(plan, cfg.sample.count)], cfg.sample.batch))
    print(f"{said}\nweights: {cfg.sample.weights}", flush=True)
    network = backend.network(found.model.program, weights_of(found.state, cfg.sample.weights))
    is_main_process = backend.collective.group.is_main_process
    if is_main_process:
        write_atomically(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
        write_json(out / "environment.json", describe_environment(backend.describe()))
    began = perf_counter()
    with signals.flag_on_signal() as stop, stop_check(backend.collective, stop) as pause:
        images = save_samples(
            backend, network, found.model, plan, out, cfg.sample, strips=cfg.pictures,
            guidance=leaders.guidance(backend), pause=pause,
            images_seen=found.images_seen, weights_sha256=weights_hash(cfg.checkpoint, cfg.sample.weights),
        )  # fmt: skip
    if not is_main_process:
        return
    took = perf_counter() - began
    memory = backend.peak_memory_mib()
    write_json(out / "result.json", {"sampled": len(images), "sample_seconds": took, "peak_memory_mib": memory})
    drawn = f"{pluralize(len(images), 'sample')} in {took:.1f} s"
    print(f"{drawn} from {found.images_seen:,} images seen: {out / 'samples.png'}")


if __name__ == "__main__":
    main()

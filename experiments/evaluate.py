"""Evaluate saved samples, or the likelihood or the accuracy of a checkpoint, from any framework.

    python3 -m duet evaluate samples=RUN data=digits features=digits out=DIR
    python3 -m duet evaluate samples=RUN data=cifar10 features=inception features.weights=FILE.pth out=DIR
    python3 -m duet evaluate samples=[A.npz,B.npz,C.npz] reference=FEATURES.npz metrics=[frechet,kernel] out=DIR
    python3 -m duet evaluate checkpoint=RUN data=digits data.options.part=held_out likelihood=vlb out=DIR
    python3 -m duet evaluate checkpoint=RUN data=digits likelihood=ode likelihood.count=256 out=DIR backend=tf
    python3 -m duet launch 2 evaluate parallel=ddp checkpoint=RUN data=digits likelihood=ode out=D

Samples are a run, a `.npz` file of images or features, or a folder of images, with labels from its class folders;
several paths are several sets. `reference` is such a path too, or a `.npz` file of published statistics (mu, sigma).
Every metric of the list `metrics` that applies is computed (`diffusion_core.metrics.evaluate`), on the features of the
group `features`. This opens no backend, and the numbers are the same in every environment. A checkpoint is evaluated by
the groups

    likelihood    bits per dimension, see `experiments.evaluation.likelihood`
    accuracy      of a classifier at each noise level, see `experiments.evaluation.accuracy`

`evaluation.json` has every number under `numbers`, by metric and name, with its interval and protocol, and further
details; `evaluation.npz` has results per sample, and `memorisation.png` shows the samples that are most similar to
training images. See docs/evaluation.md.
"""

from __future__ import annotations

from pathlib import Path

from experiments.config import build
from experiments.config.convert import to_yaml
from experiments.config.entry import Config, command
from experiments.evaluation.run import CHECKPOINT_METHODS, evaluate
from experiments.evaluation.table import number_table


@command("evaluate", result=("evaluation.json", "an evaluation"), options=CHECKPOINT_METHODS)
def main(cfg: Config) -> None:
    """Measure what is requested, print the numbers and write them."""

    def config(weights: str | None) -> str:
        return to_yaml(cfg, {} if weights is None else {"weights": weights})

    result = evaluate(build.evaluation_setup(cfg), cfg.out, config)
    if result is None:
        return
    print("\n".join(number_table(result.numbers)))
    for name, reason in result.skipped.items():
        print(f"skipped: {name}: {reason}")
    print(f"written: {Path(cfg.out) / 'evaluation.json'}")


if __name__ == "__main__":
    main()

"""Evaluate a checkpoint, or samples that were saved, whichever framework wrote them.

    python3 -m duet evaluate samples=RUN data=digits features=digits out=DIR
    python3 -m duet evaluate samples=RUN data=cifar10 features=inception features.weights=FILE.pth out=DIR
    python3 -m duet evaluate samples=[A.npz,B.npz,C.npz] reference=FEATURES.npz metrics=[frechet,kernel] out=DIR
    python3 -m duet evaluate checkpoint=RUN data=digits data.options.part=held_out likelihood=vlb out=DIR
    python3 -m duet evaluate checkpoint=RUN data=digits likelihood=ode likelihood.count=256 out=DIR backend=tf
    python3 -m duet launch 2 evaluate parallel=ddp checkpoint=RUN data=digits likelihood=ode out=D

Samples are a run, a `.npz` file of images or of features, or a folder of PNG files; several of them are several sets.
They are judged by every metric of the list `metrics` that applies (`diffusion_core.metrics.evaluate`), on the features
of the group `features`; no backend is opened for that, and the numbers are the same in every environment. A checkpoint
is judged by the groups

    likelihood    bits per dimension, see `experiments.evaluation.likelihood`
    accuracy      of a classifier at each level of noise, see `experiments.evaluation.accuracy`

`evaluation.json` has every number under `numbers`, by metric and name, with its interval and its protocol, and details
beside it; `evaluation.npz` has what metrics found per sample, and `memorisation.png` shows the samples that are most
like training images. docs/evaluation.md says more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_core.common.errors import DuetError
from diffusion_core.common.registry import build
from diffusion_core.files.atomic import write_atomically
from diffusion_core.metrics.protocol import nested
from diffusion_core.runs.run_directory import describe_environment, write_json
from experiments.config.build import process_group
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.evaluation import accuracy, likelihood, samples
from experiments.evaluation.context import EvaluationContext, Measure
from experiments.evaluation.table import number_table

__all__ = ["METHODS"]

# Per group of the configuration that judges a checkpoint, its methods by name; each gives a `Measure`.
METHODS: Mapping[str, Mapping[str, Callable[..., Measure]]] = {
    "likelihood": likelihood.METHODS,
    "accuracy": accuracy.METHODS,
}


@command("evaluate", result=("evaluation.json", "an evaluation"), options=METHODS)
def main(cfg: DictConfig) -> None:
    """Check everything that is asked for, then measure it and write it down."""
    given, measures, processes = EvaluationContext(cfg), {}, process_group(cfg)
    for group, methods in METHODS.items():
        options = plain(cfg[group])
        name = options.pop("name", "none")
        if name != "none":
            measures[group] = build(group, methods, name, options, given)
    if cfg.samples:
        measures["samples"] = samples.measure(given)
    if not measures:
        choices = ", ".join(f"{group}={name}" for group, methods in METHODS.items() for name in methods)
        raise DuetError(f"evaluate: nothing was asked for; add samples=RUN, or checkpoint=RUN with one of {choices}")
    out = Path(cfg.out)
    if not processes.is_main_process:  # it helps with what a network computes, and keeps nothing
        with tempfile.TemporaryDirectory() as aside:
            for group, measure in measures.items():
                if group != "samples":
                    measure(Path(aside))
        return
    # Samples are judged without a backend, in an environment that may have none.
    facts = describe_environment(given.backend.describe() if set(measures) - {"samples"} else None)
    results = {group: measure(out) for group, measure in measures.items()}
    numbers = [number for result in results.values() for number in result.numbers]
    write_atomically(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
    write_json(out / "environment.json", facts)
    write_json(
        out / "evaluation.json",
        {"numbers": nested(numbers), **{group: result.facts for group, result in results.items()}},
    )
    print("\n".join(number_table(numbers)))
    for name, reason in results["samples"].facts["left_out"].items() if "samples" in results else ():
        print(f"left out: {name}: {reason}")
    print(f"written: {out / 'evaluation.json'}")


if __name__ == "__main__":
    main()

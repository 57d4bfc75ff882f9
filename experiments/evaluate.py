"""Evaluate a checkpoint, or samples that were saved, whichever framework wrote them.

    python -m experiments.evaluate checkpoint=RUN data=digits data.options.part=held_out likelihood=vlb out=DIR
    python -m experiments.evaluate checkpoint=RUN data=digits likelihood=vlb likelihood.levels=50 out=DIR backend=tf
    python -m experiments.evaluate checkpoint=RUN data=digits likelihood=ode likelihood.count=256 out=DIR
    python -m experiments.evaluate samples=RUN/samples/samples.npz data=digits frechet=digits out=DIR

Each group of metrics is chosen and configured by itself, and `none` leaves it out; the groups are

    likelihood    bits per dimension, see `experiments.evaluation.likelihood`
    frechet       the Fréchet distance of samples to the data, see `experiments.evaluation.frechet`
    accuracy      of a classifier at each level of noise, see `experiments.evaluation.accuracy`

`evaluation.json` has the numbers of each under its name, with the protocol that they were measured by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_core.checkpoint import write_atomically
from diffusion_core.errors import DuetError
from diffusion_core.registry import build
from diffusion_core.run import environment, write_json
from experiments.entry import entry, plain
from experiments.evaluation import accuracy, frechet, likelihood
from experiments.evaluation.given import Given, Measure

__all__ = ["METRICS"]

# Per group of the configuration, its methods by name; each gives a `Measure`.
METRICS: Mapping[str, Mapping[str, Callable[..., Measure]]] = {
    "likelihood": likelihood.METHODS,
    "frechet": frechet.METHODS,
    "accuracy": accuracy.METHODS,
}


@entry("evaluate")
def main(cfg: DictConfig) -> None:
    """Check everything that is asked for, then measure it and write it down."""
    given, measures = Given(cfg), {}
    for group, methods in METRICS.items():
        options = plain(cfg[group])
        name = options.pop("name", "none")
        if name != "none":
            measures[group] = build(group, methods, name, options, given)
    if not measures:
        choices = ", ".join(f"{group}={name}" for group, methods in METRICS.items() for name in methods)
        raise DuetError(f"evaluate: nothing was asked for; add one of {choices}, or several of different groups")
    out = Path(cfg.out)
    if (out / "evaluation.json").exists():
        raise DuetError(f"out: {out} holds an evaluation already; give another directory")
    facts = environment(given.backend.describe())
    write_atomically(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
    write_json(out / "environment.json", facts)
    results = {group: measure(out) for group, measure in measures.items()}
    write_json(out / "evaluation.json", {group: result.facts for group, result in results.items()})
    rows = [row for result in results.values() for row in result.rows]
    width = max(len(row.name) for row in rows)
    for row in rows:
        error = "" if row.error is None else f" ± {row.error:.4f}"
        print(f"{row.name:{width}}  {row.value:9.4f}{error} {row.unit}".rstrip())
    print(f"written: {out / 'evaluation.json'}")


if __name__ == "__main__":
    main()

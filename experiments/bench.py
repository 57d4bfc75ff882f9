r"""Measure training and sampling of each backend, and of what one would use instead, in interleaved rounds.

    python3 -m duet bench out=outputs/bench
    python3 -m duet bench out=outputs/bench model=ddpm_cifar10 batch=8 compile=[false,true]
    python3 -m duet bench out=outputs/growth vary=batch values=[1,4,16,64] repeats=3
    python3 -m duet bench device=cuda

Every contestant is a process of its own, in the environment that owns its framework, and waits while another works.
Times are medians over rounds, and a ratio is the median of the ratios within a round. ``device=cuda`` is other work,
see configs/device/cuda.yaml. Who fails is left out and says why. Written are bench.json with every round and how far
the targets of `experiments.benchmark.targets` are met, and a figure of each work as SVG, PNG, CSV and JSON. It loads no
framework itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.files.atomic import write_atomically
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.flops import multiply_adds
from diffusion_core.networks.weights import count
from diffusion_core.runs.run_directory import describe_environment, write_json
from experiments.benchmark.contestants import BACKENDS, Contestant, Mode, interleave, start
from experiments.benchmark.figures import bars, growth
from experiments.benchmark.table import rows, table
from experiments.benchmark.targets import Target, targets, targets_table
from experiments.benchmark.work import ALONE, WORK
from experiments.common import make_model
from experiments.config.entry import command
from peers import PEERS

VARIED = {"batch": "batch", "images": "images", "ddim_steps": "ddim_steps", "image_size": "model.image_size"}
_ROUNDS = ("batch", "steps", "images", "ddim_steps")


@command("bench", result=("bench.json", "a bench"))
def main(cfg: DictConfig) -> None:
    """Start the contestants, interleave their rounds, and write what they took."""
    for what in cfg.work:
        if what not in WORK:
            raise one_of("work", what, WORK)
    for name in ("repeats", "limit_s", "at_once", *_ROUNDS):
        if cfg[name] is not None and cfg[name] < 1:
            raise DuetError(f"{name}: {cfg[name]} was given; it must be at least 1")
    if cfg.device not in ("cpu", "cuda"):
        raise one_of("device", cfg.device, ("cpu", "cuda"))  # the same for all
    modes = _modes(cfg)
    points = _points(cfg)
    models = [make_model(point) for point in points]  # a mistake in any is found before anything starts
    out, rounds = Path(cfg.out), {name: cfg[name] for name in _ROUNDS}
    told = _facts(cfg, models) | {"contestants": {}, "left_out": {}, "targets": [], "rows": []}
    for point, model in zip(points, models, strict=True):
        value = {} if cfg.vary is None else {cfg.vary: OmegaConf.select(point, VARIED[cfg.vary])}
        made: list[dict[str, Any]] = []
        for what in cfg.work:
            found, contestants = _measure(point, model, modes, what)
            made += found
            told["rows"] += [value | row for row in found]
            told["contestants"] |= {one.mode.name: one.facts for one in contestants if one.facts}
            told["left_out"] |= {one.mode.name: one.left_out for one in contestants if one.left_out}
            write_json(out / "bench.json", told)  # now, as the next work may not end
        if made:
            Console(width=160).print(table(made, rounds, _title(point, model)))
        told["targets"] += [value | one.to_dict() for one in _reached(point, made)]
    write_json(out / "bench.json", told)
    if not told["rows"]:
        raise DuetError(f"bench: nobody took part; {next(iter(told['left_out'].values()))}")
    drawn = bars(told["rows"], rounds) if cfg.vary is None else growth(cfg.vary, told["rows"], rounds)
    for name, content in drawn.items():
        write_atomically(out / name, content)
    print(f"figures and bench.json: {out}")


def _measure(
    cfg: DictConfig, model: DiffusionModel, modes: Sequence[Mode], what: str
) -> tuple[list[dict[str, Any]], list[Contestant]]:
    """The rows of one work of one network, and who competed; each work has processes of its own."""
    rounds = {name: cfg[name] for name in _ROUNDS}
    everyone: list[Contestant] = []
    at_once = cfg.at_once or len(modes)
    for first in range(0, len(modes), at_once):
        present: list[Contestant] = []
        with TemporaryDirectory() as cache:
            try:
                for mode in modes[first : first + at_once]:
                    own = Path(cache, str(len(present)))
                    present.append(start(mode, model, rounds, cfg.device, cfg.threads, cfg.limit_s, own))
                    if not present[-1].left_out:
                        print(present[-1].facts["line"], flush=True)
                interleave(present, [what, *ALONE[what]], cfg.repeats)
            finally:
                for one in present:
                    one.stop()
        for one in present:
            if one.left_out:
                print(f"left out: {one.left_out}", flush=True)
        everyone += present
    return rows(everyone, what, model, rounds, at_once >= len(modes)), everyone


def _title(cfg: DictConfig, model: DiffusionModel) -> str:
    """What a table is about."""
    turns = "interleaved " if cfg.at_once is None else ""
    size = f"{count(model.program):,} parameters, {model.spec.image_size} pixels, batch {cfg.batch}, "
    return f"{size}{cfg.images} samples; medians of {cfg.repeats} {turns}rounds"


def _reached(cfg: DictConfig, made: Sequence[dict[str, Any]]) -> list[Target]:
    """The targets that these rows decide, printed."""
    found = targets(made, cfg.device, {name: cfg[name] for name in _ROUNDS})
    if found:
        Console(width=140).print(targets_table(found))
    return found


def _modes(cfg: DictConfig) -> list[Mode]:
    """Who competes: those that are named, or all; each in each precision and with and without compiling."""
    known = (*BACKENDS, *PEERS)
    for name in cfg.contestants:
        if name not in known:
            raise one_of("contestants", name, known)
    for precision in cfg.precisions:
        BackendConfig(cfg.device, precision, False, cfg.threads)
    named = list(cfg.contestants) or list(known)
    made = [Mode(name, precision, mode) for name in named for precision in cfg.precisions for mode in cfg.compile]
    kept = [mode for mode in made if mode.contestant in BACKENDS or mode.precision != "float64"]
    if not kept:
        raise DuetError("bench: nobody competes; name contestants, precisions and compile")
    return kept


def _points(cfg: DictConfig) -> list[DictConfig]:
    """The configuration at each value of what is varied."""
    if cfg.vary is None:
        if cfg["values"]:
            raise DuetError(f"values: {list(cfg['values'])} were given, but not of what; add vary=batch or the like")
        return [cfg]
    if cfg.vary not in VARIED:
        raise one_of("vary", cfg.vary, VARIED)
    if not cfg["values"] or any(not isinstance(value, int) or value < 1 for value in cfg["values"]):
        raise DuetError(f"values: {cfg['values']} was given; it must be a list of whole numbers of at least 1")
    points = []
    for value in cfg["values"]:
        point = cfg.copy()
        OmegaConf.update(point, VARIED[cfg.vary], value)
        points.append(point)
    return points


def _facts(cfg: DictConfig, models: Sequence[DiffusionModel]) -> dict[str, Any]:
    """What was measured, where and how."""
    return {
        "environment": describe_environment(),
        "settings": {name: cfg[name] for name in (*_ROUNDS, "repeats", "device", "threads", "vary")},
        "problems": [
            model.to_dict()
            | {
                "parameters": count(model.program),
                "multiply_adds_per_image": multiply_adds(model.program, model.spec.image_shape),
            }
            for model in models
        ],
    }


if __name__ == "__main__":
    main()

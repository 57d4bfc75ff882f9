r"""Measure speed and memory of training and sampling with each backend and with other libraries.

    python3 -m duet bench out=outputs/bench
    python3 -m duet bench out=outputs/bench model=ddpm_cifar10 batch=8 compile=[false,true]
    python3 -m duet bench out=outputs/growth vary=batch values=[1,4,16,64] repeats=3
    python3 -m duet bench out=outputs/mine network=my_file:build shape=[32,32,3] contestants=[torch]
    python3 -m duet bench device=cuda

Every contestant is a process of its own, in the environment of its framework, and waits while another one works. Times
are medians over interleaved rounds; a ratio is the median of the ratios within a round. ``device=cuda`` sets a larger
workload, see configs/device/cuda.yaml. Contestants that fail are skipped, with the reason. Writes bench.json with every
round, and a figure for each workload as SVG, PNG, CSV and JSON. The command itself loads no framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import benchmarks.schema  # noqa: F401 - registers the schema of this command
from benchmarks.contestants import BACKENDS, CONTESTANTS, Contestant, Mode, interleave, start
from benchmarks.figures import draw_bars, draw_growth
from benchmarks.own import make_request, placeholder
from benchmarks.table import make_rows, make_table
from benchmarks.work import PARTS, WORK
from diffusion_core.backend.interface import BackendConfig
from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.files.atomic import write_atomically
from diffusion_core.model.diffusion_model import DiffusionModel
from diffusion_core.networks.flops import multiply_adds
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.weights import parameter_count
from diffusion_core.runs.run_directory import describe_environment, write_json
from experiments.config.build import make_model
from experiments.config.convert import plain
from experiments.config.entry import command
from experiments.runtime.progress import Counter

# The keys of the configuration by the names that `vary` takes.
VARIED = {"batch": "batch", "images": "images", "ddim_steps": "ddim_steps", "image_size": "model.image_size"}
_OR_BACKENDS = " or ".join(BACKENDS)
_ROUNDS = ("batch", "steps", "images", "ddim_steps")


@command("bench", result=("bench.json", "a bench"))
def main(cfg: DictConfig) -> None:
    """Start the contestants, interleave their rounds, and write the results."""
    _check(cfg)
    own, modes = make_request(cfg), list_modes(cfg)
    points = list_points(cfg)
    models = [_model(point, own) for point in points]  # reports a mistake in any of them before anything starts
    out, rounds = Path(cfg.out), _rounds(cfg)
    report = _facts(cfg, models) | {"contestants": {}, "left_out": {}, "rows": []}
    for point, model in zip(points, models, strict=True):
        value = {} if cfg.vary is None else {cfg.vary: OmegaConf.select(point, VARIED[cfg.vary])}
        measured: list[dict[str, Any]] = []
        for work in cfg.work:
            rows, contestants = _measure(point, model, modes, work, own)
            measured += rows
            report["rows"] += [value | row for row in rows]
            report["contestants"] |= {
                contestant.mode.name: contestant.facts for contestant in contestants if contestant.facts
            }
            report["left_out"] |= {
                contestant.mode.name: contestant.left_out for contestant in contestants if contestant.left_out
            }
            write_json(out / "bench.json", report)  # after each workload, since the next one may be interrupted
        if measured:
            Console(width=160).print(make_table(measured, rounds, _title(point, model, measured)))
    if not report["rows"]:
        raise DuetError(f"bench: every contestant failed; the first: {next(iter(report['left_out'].values()))}")
    figures = draw_bars(report["rows"], rounds) if cfg.vary is None else draw_growth(cfg.vary, report["rows"], rounds)
    for name, content in figures.items():
        write_atomically(out / name, content)
    print(f"figures and bench.json: {out}")


def _check(cfg: DictConfig) -> None:
    for work in cfg.work:
        if work not in WORK:
            raise one_of("work", work, WORK)
    for name in ("repeats", "limit_s", "at_once", *_ROUNDS):
        if cfg[name] is not None and cfg[name] < 1:
            raise DuetError(f"{name}: {cfg[name]} was given; it must be at least 1")
    if cfg.device not in ("cpu", "cuda"):
        raise one_of("device", cfg.device, ("cpu", "cuda"))  # no "auto": all contestants must use the same device


def _rounds(cfg: DictConfig) -> dict[str, int]:
    """Return the keys that say what one round is."""
    return {name: cfg[name] for name in _ROUNDS}


def _model(cfg: DictConfig, own: dict[str, Any] | None) -> DiffusionModel:
    return make_model(cfg) if own is None else placeholder(own, plain(cfg.process))


def _measure(
    cfg: DictConfig, model: DiffusionModel, modes: Sequence[Mode], work: str, own: dict[str, Any] | None
) -> tuple[list[dict[str, Any]], list[Contestant]]:
    """Measure one workload of one network, in new processes; return its rows, and the contestants."""
    everyone: list[Contestant] = []
    at_once = cfg.at_once or len(modes)
    for first in range(0, len(modes), at_once):
        present: list[Contestant] = []
        with TemporaryDirectory() as cache, Counter(work, cfg.repeats + 1, "rounds") as progress:
            try:
                for mode in modes[first : first + at_once]:
                    progress(0, f"starting {mode.name}")
                    folder = Path(cache, str(len(present)))
                    present.append(start(mode, model, _rounds(cfg), cfg.device, cfg.threads, cfg.limit_s, folder, own))
                    if not present[-1].left_out:
                        print(present[-1].facts["line"], flush=True)
                interleave(present, [work, *PARTS[work]], cfg.repeats, progress)
            finally:
                for contestant in present:
                    contestant.stop()
        for contestant in present:
            if contestant.left_out:
                print(f"left out: {contestant.left_out}", flush=True)
        everyone += present
    return make_rows(everyone, work, model, _rounds(cfg), at_once >= len(modes)), everyone


def _title(cfg: DictConfig, model: DiffusionModel, rows: Sequence[dict[str, Any]]) -> str:
    """Return the title of a table."""
    interleaved = "interleaved " if cfg.at_once is None else ""
    parameters = parameter_count(model.program) or rows[0]["parameters"]
    size = f"{parameters:,} parameters, {model.spec.image_size} pixels, batch {cfg.batch}, "
    return f"{size}{cfg.images} samples; medians of {cfg.repeats} {interleaved}rounds"


def list_modes(cfg: DictConfig) -> list[Mode]:
    """Return every configured contestant in each precision, compiled and not, as the configuration says."""
    for name in cfg.contestants:
        if name not in CONTESTANTS:
            raise one_of("contestants", name, CONTESTANTS)
    for precision in cfg.precisions:
        BackendConfig(cfg.device, precision, False, cfg.threads)  # checks them
    peers = [name for name in cfg.contestants if name not in BACKENDS]
    if cfg.network and peers:
        raise DuetError(
            f"contestants: {peers[0]} was given with network=; an own network is measured in {_OR_BACKENDS}"
        )
    names = list(cfg.contestants) or list(BACKENDS if cfg.network else CONTESTANTS)
    modes = [Mode(name, precision, mode) for name in names for precision in cfg.precisions for mode in cfg.compile]
    modes = [mode for mode in modes if mode.contestant in BACKENDS or mode.precision != "float64"]
    if not modes:
        raise DuetError("bench: there is no contestant; give at least one each of contestants, precisions and compile")
    return modes


def list_points(cfg: DictConfig) -> list[DictConfig]:
    """Return the configuration for each of the `values` of what varies."""
    if cfg.vary is None:
        if cfg["values"]:
            raise DuetError(
                f"values: {list(cfg['values'])} was given without vary; add vary=KEY, of {', '.join(VARIED)}"
            )
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
    """Return the environment, the settings and the networks, for bench.json."""
    return {
        "environment": describe_environment(),
        "settings": {name: cfg[name] for name in (*_ROUNDS, "repeats", "device", "threads", "vary")},
        "problems": [
            model.to_dict()
            | {
                "parameters": parameter_count(model.program),
                "multiply_adds_per_image": multiply_adds(model.program, model.spec.image_shape),
            }
            if not isinstance(model.spec, OwnSpec)
            else model.to_dict()
            for model in models
        ],
    }


if __name__ == "__main__":
    main()

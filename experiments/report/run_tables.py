"""The tables on the page of a run: evaluation, speed, experiment, environment, and the commands to type next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from diffusion_core.common.text import format_seconds, pluralize

from .run_facts import RunFacts
from .text import DASH, moment, number, text

__all__ = ["commands", "cost", "environment", "experiment", "numbers", "quality", "quality_lead", "seconds"]


def seconds(value: Any) -> str:
    """Return a time as text; an en dash if it is missing or not finite."""
    return format_seconds(value) if isinstance(value, int | float) and math.isfinite(value) else DASH


def numbers(run: RunFacts) -> list[dict[str, Any]]:
    """Return the evaluated numbers: name, value, interval, unit, and which direction is better."""
    found = []
    for metric in ((run.result.get("evaluation") or {}).get("numbers") or {}).values():
        for entry in metric.values() if isinstance(metric, Mapping) else ():
            if not isinstance(entry, Mapping) or "value" not in entry:
                continue
            interval = entry.get("interval")
            ends = (interval.get("low"), interval.get("high")) if isinstance(interval, Mapping) else interval
            found.append({"name": entry.get("name"), "value": entry["value"], "interval": ends or None,
                          "unit": entry.get("unit"), "better": entry.get("better")})  # fmt: skip
    return found


def quality(run: RunFacts) -> dict[str, Any] | None:
    """Return the numbers of the evaluation, and why others are missing; None without an evaluation."""
    evaluation, measured = run.result.get("evaluation") or {}, numbers(run)
    skipped = dict(evaluation.get("left_out") or {})
    if not (measured or skipped or evaluation.get("reason")):
        return None
    return {"numbers": measured, "skipped": skipped, "reason": evaluation.get("reason")}


def quality_lead(run: RunFacts) -> str:
    """Return what the numbers were measured on."""
    count = run.result.get("sampled")
    return f"Of {pluralize(count, 'sample')}; brackets hold confidence intervals." if count and numbers(run) else ""


def cost(run: RunFacts) -> list[tuple[str, str]] | None:
    """Return the facts of the table of speed."""
    result = run.result
    if not result:
        return None
    sampled, sampling = result.get("sampled"), result.get("sample_seconds")
    rows = [
        ("training, images per second", number(round(result.get("images_per_second") or 0, 1))),
        ("training time", seconds(result.get("train_seconds"))),
        ("steps alone", seconds((result.get("seconds") or 0) + (result.get("first_step_seconds") or 0))),
        ("first step, with tracing and compiling", seconds(result.get("first_step_seconds"))),
        ("sampling, images per second", number(round(sampled / sampling, 1)) if sampled and sampling else ""),
        ("sampling time", seconds(sampling) if sampling else ""),
        ("peak memory", f"{result['peak_memory_mib']:,.0f} MiB" if result.get("peak_memory_mib") else ""),
    ]
    return [row for row in rows if row[1]]


def experiment(run: RunFacts) -> list[tuple[str, str]]:
    """Return what was trained on what."""
    option, env = run.option, run.environment
    data, validation = env.get("data") or {}, env.get("validation")
    schedule, averages = option("process", "schedule", "name"), option("ema", "name")
    rows = [
        ("data", f"{text(data.get('name'))}, {data.get('images', 0):,} images" if data else ""),
        ("SHA-256 of the data", str(data.get("sha256", ""))[:16]),
        (
            "validation",
            f"{validation.get('part')}, {validation.get('of_images', 0):,} images" if validation else "none",
        ),
        ("network", " ".join(own_network(run)) or text(option("model", "architecture"))),
        ("parameters", f"{env['parameters']:,}" if isinstance(env.get("parameters"), int) else ""),
        ("process", f"{option('process', 'prediction')} on {schedule}" if schedule else ""),
        ("batch", str(option("trainer", "batch", default=""))),
        ("learning rate", f"{option('lr', 'peak')}, {option('lr', 'decay', default='constant')}"),
        ("moving average", str(averages or "")),
        ("sampler", " ".join(str(v) for v in (option("sampler", "name"), option("sampler", "steps")) if v is not None)),
        ("seed", str(option("seed", default=""))),
    ]
    resumed = env.get("resumed_from")
    if isinstance(resumed, Mapping):
        rows.append(("resumed from", f"{resumed.get('source')} at {resumed.get('images_seen', 0):,} images"))
    return [row for row in rows if row[1]]


def environment(run: RunFacts) -> list[tuple[str, str]]:
    """Return where and with which versions the run computes."""
    env = run.environment
    rows = [("started", moment(env.get("started")))]
    rows += [(name, env.get(name)) for name in ("device", "precision", "mode", "threads")]
    rows += [(name, version) for name, version in (env.get("versions") or {}).items()]
    rows += [(name, env.get(name)) for name in ("platform", "processor", "cores", "commit")]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def own_network(run: RunFacts) -> list[str]:
    """Return the words that name the own network of a run, as on the command line; none for a network of Duet."""
    named = run.option("network") or run.option("model", "reference")
    if isinstance(named, Mapping):
        named = named.get(run.option("backend", "name"))
    if not named:
        return []
    options = run.option("network_options")
    return [f"network={named}", *(f"network_options.{key}={value}" for key, value in (options or {}).items())]


def commands(run: RunFacts) -> list[tuple[str, str]]:
    """Return titles and commands."""
    path, backend = shlex.quote(str(run.path)), run.option("backend", "name") or run.environment.get("backend")
    with_backend = f"backend={backend} " if backend else ""
    own = "".join(f" {shlex.quote(word)}" for word in own_network(run))
    commands = []
    resume = run.resume_command or f"python3 -m duet train from={path} resume=latest hydra.run.dir={path}{own}"
    if run.is_complete:
        words = [word for word in shlex.split(resume) if not word.startswith("trainer.images=")]
        commands.append(("Train longer", shlex.join([*words, f"trainer.images={2 * run.total}"])))
    else:
        commands.append(("Continue this run", resume))
    if run.last_checkpoint is not None and run.samples:
        out = shlex.quote(str(run.path / "more"))
        commands.append(("Sample", f"python3 -m duet sample {with_backend}checkpoint={path} out={out}{own}"))
    if run.result.get("sampled"):
        out = shlex.quote(str(run.path / "evaluation"))
        commands.append(("Evaluate the samples", f"python3 -m duet evaluate from={path} out={out}"))
    if any(run.path.glob("events.out.tfevents*")):
        title = "Open the curves in TensorBoard (of any Python: pip install tensorboard)"
        commands.append((title, f"tensorboard --logdir {path}"))
    commands.append(("Make this page again", f"python3 -m duet page run={path}"))
    return commands

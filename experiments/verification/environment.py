"""Whether a replay can be expected to have the bits of the run: the same framework, version, device, threads and flags.

Nothing here decides a verdict alone. Where the environments are the same, bits must be equal; where they differ, the
bits are compared first all the same, and a difference is held against a measured bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from diffusion_core.backend.interface import Backend
from diffusion_core.runs.run_directory import describe_environment
from experiments.training.manifest import kernel_flags
from experiments.training.setup import TrainingSetup
from experiments.verification.recorded import Part

__all__ = ["environment_differences", "environment_here"]

_COMPARED = ("backend", "device", "precision", "threads", "mode", "processor")


def environment_here(backend: Backend) -> dict[str, Any]:
    """Return where this process computes, as a manifest records it."""
    facts = describe_environment(backend.describe())
    return {name: facts[name] for name in (*_COMPARED, "versions", "platform", "commit")} | {
        "flags": kernel_flags(os.environ)
    }


def environment_differences(part: Part, setup: TrainingSetup, backend: Backend) -> list[str]:
    """Return why a replay need not have the bits of a part of a run; nothing where it must have them."""
    return list(_differences(part.content, setup, backend))


def _differences(content: Mapping[str, Any], setup: TrainingSetup, backend: Backend) -> Iterator[str]:
    recorded, here = content["environment"], environment_here(backend)
    for name in _COMPARED:
        if recorded.get(name) != here[name]:
            yield f"{name}: {recorded.get(name)} recorded, {here[name]} here"
    if recorded.get("backend") == here["backend"]:
        names = set(recorded["versions"]) | set(here["versions"])
        for name in sorted(names - {"python"}):
            versions = recorded["versions"].get(name), here["versions"].get(name)
            if versions[0] != versions[1]:
                yield f"{name}: version {versions[0]} recorded, {versions[1]} here"
        for name in sorted(content["flags"].keys() | here["flags"].keys()):
            flags = content["flags"].get(name), here["flags"].get(name)
            if flags[0] != flags[1]:
                yield f"{name}: {flags[0]} recorded, {flags[1]} here"
    if content["processes"] != setup.group.size:
        yield f"processes: {content['processes']} recorded, {setup.group.size} here, which sum in another order"
    is_deterministic = content["computed_by"]["deterministic"] and setup.backend.config.deterministic
    if not backend.describe().on_cpu and not is_deterministic:
        yield "backend.deterministic: false, so kernels of the GPU may sum in another order each time"

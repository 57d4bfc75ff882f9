"""What the manifest of a run says where the run, or a part of it, begins and ends.

An entry of the beginning holds everything that the numbers of the run follow from: the configuration, the hashes of
data, program and first state, the objective with the hash of its teacher, and where it computes: framework, versions,
device, threads, and the variables that change kernels. `experiments.verification` builds the run again from it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from diffusion_core.backend.interface import Backend
from diffusion_core.networks.own import OwnSpec
from diffusion_core.networks.weights import hash_weights
from diffusion_core.runs.checkpoint import Checkpoint, weights_hash
from diffusion_core.runs.manifest import MANIFEST, checkpoint_hashes, file_hash, head, read_manifest
from experiments.runtime.own_files import split_reference
from experiments.training.changes import objective_notes
from experiments.training.record import fresh_record
from experiments.training.resume import computed_by
from experiments.training.setup import TrainingSetup

__all__ = ["beginning", "end", "kernel_flags", "setup_facts"]

# Environment variables that choose kernels, their precision or their threads.
_FLAGS = re.compile(
    r"OMP_NUM_THREADS|MKL_(NUM_THREADS|CBWR|ENABLE_INSTRUCTIONS|DYNAMIC)|OPENBLAS_(NUM_THREADS|CORETYPE)"
    r"|(ONEDNN|DNNL)_\w+|ATEN_CPU_CAPABILITY|NVIDIA_TF32_OVERRIDE|CUBLAS_WORKSPACE_CONFIG|XLA_FLAGS"
    r"|TF_(ENABLE_ONEDNN_OPTS|DETERMINISTIC_OPS|CUDNN_\w+|XLA_FLAGS|USE_CUBLASLT|DISABLE_\w+)"
    r"|TORCH_(ALLOW_TF32_CUBLAS_OVERRIDE|CUDNN_\w+)"
)


def beginning(
    setup: TrainingSetup,
    config: str,
    environment: Mapping[str, Any],
    backend: Backend,
    start: Checkpoint,
    source: Path | None,
) -> tuple[str, dict[str, Any]]:
    """Return the kind and the content of the entry with which a run, or its continuation, begins.

    Args:
        setup: what is trained.
        config: the configuration as YAML text.
        environment: the content of environment.json.
        backend: what computes.
        start: the state that training starts from.
        source: the checkpoint that it was read from; None for a new run.
    """
    if source is None:
        kind, state = "start", {"updates": 0, "weights_sha256": hash_weights(start.state.weights)}
    else:
        kind, state = "resume", checkpoint_hashes(source)
    content = {
        "config": config,
        "environment": environment,
        "computed_by": computed_by(setup, backend) | {"deterministic": backend.config.deterministic},
        "processes": setup.group.size,
        "packages": _packages(),
        "flags": kernel_flags(os.environ),
        "setup": setup_facts(setup),
        "state": state,
        "source": None if source is None else _chain_of(source),
    }
    return kind, content


def setup_facts(setup: TrainingSetup) -> dict[str, Any]:
    """Return what the numbers of a run follow from, as plain data: two setups with the same facts train alike."""
    return {
        "seed": setup.seed,
        "program_sha256": setup.model.program.sha256,
        "own_network": _own_network(setup.model.spec),
        "training": fresh_record(setup).to_dict(),
        "trained_for": objective_notes(setup),
        "trainer": asdict(setup.training_config),
        "snapshot_images": setup.ema.snapshot_images,
        "validation": None if setup.validation is None else setup.validation.facts(),
    }


def kernel_flags(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that choose kernels, their precision or their threads."""
    return {name: value for name, value in sorted(environ.items()) if _FLAGS.fullmatch(name)}


def end(run: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the entry with which a run ends: its results, and the hashes of their files."""
    files = [run / "result.json", run / "samples" / "samples.npz"]
    return {
        "files": {path.relative_to(run).as_posix(): file_hash(path) for path in files if path.exists()},
        "result": dict(result),
        "weights_sha256": weights_hash(run, "weights"),
    }


def _chain_of(source: Path) -> dict[str, Any]:
    """Return the head of the chain of the run that a checkpoint belongs to; of this run or of another one."""
    manifest = source.parent.parent / MANIFEST
    entries = read_manifest(manifest) if manifest.exists() else []
    return {"head": head(entries) if entries else None}


def _own_network(spec: Any) -> dict[str, Any] | None:
    """Return the reference of an own network, and the hash of the file that its code stands in, if that is known.

    What that file imports is not hashed.
    """
    if not isinstance(spec, OwnSpec):
        return None
    place, _ = split_reference(spec.reference) or (spec.reference, "")
    path = Path(place) if place.endswith(".py") or Path(place).is_file() else _module_file(place)
    return {"reference": spec.reference, "sha256": file_hash(path) if path and path.is_file() else None}


def _module_file(name: str) -> Path | None:
    """Return the file of a module; None if it has none."""
    module = sys.modules.get(name)
    if module is None:
        try:
            module = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
    path = getattr(module, "__file__", None) or getattr(module, "origin", None)
    return Path(path) if path else None


@cache
def _packages() -> dict[str, str]:
    """Return the version of each installed package, from the names of their folders."""
    found = {}
    for folder in filter(os.path.isdir, dict.fromkeys(sys.path)):
        for name in os.listdir(folder):
            if match := re.fullmatch(r"(.+?)-([^-]+)\.dist-info", name):
                found.setdefault(match[1].lower().replace("_", "-"), match[2])
    return dict(sorted(found.items()))

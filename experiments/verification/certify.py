"""The certificate of a run, written after its record is checked."""

from __future__ import annotations

from pathlib import Path

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.runs.certificate import CERTIFICATE, make_certificate
from diffusion_core.runs.run_directory import write_json
from experiments.verification.recorded import read_run

__all__ = ["certify"]


def certify(path: str | Path, out: str | Path | None = None) -> list[str]:
    """Write the certificate of a run, and return lines on what it says.

    Args:
        path: the run directory.
        out: the file; None is certificate.json in the run directory.

    Raises:
        DuetError: if the record contradicts itself, or the file exists.
    """
    run = read_run(path)
    file = Path(out).expanduser() if out else run.directory / CERTIFICATE
    if file.exists():
        raise DuetError(f"out: {file} exists; choose another out=FILE, or delete it")
    if problems := list(run.problems()):
        more = f", and {pluralize(len(problems) - 1, 'more problem')}" if len(problems) > 1 else ""
        raise DuetError(f"run: {path} cannot be certified: {problems[0]}{more}")
    certificate = make_certificate(run.entries)
    write_json(file, certificate)
    claimed, count = certificate["claims"], len(run.entries)
    lines = [
        f"data: {claimed['data']['name']}, {claimed['data']['images']:,} images, hash {claimed['data']['sha256'][:16]}",
        f"trained: {claimed['images_seen']:,} of {claimed['images']:,} images, seed {claimed['seed']}, "
        f"{claimed['backend']} in {claimed['precision']}",
        f"final weights: {claimed['weights'].get('weights.safetensors', 'none')[:16]}",
        f"head of the chain: {certificate['head'][:16]}, {pluralize(count, 'entry')}",
    ]
    lines += [f"not covered: {finding}" for finding in run.uncovered()]
    return [*lines, f"written: {file}"]

"""Certificates and verification of runs from Python."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.certificate import CERTIFICATE
from diffusion_core.runs.manifest import chain_problem
from duet.api.options import check_types
from duet.api.training import prepare, train
from experiments.runtime.processes import discard_output
from experiments.verification import certify as certificates
from experiments.verification.verdict import Verdict
from experiments.verification.verify import Options, Rebuilt, open_record
from experiments.verification.verify import verify as verify_record

__all__ = ["certify", "verify"]

# Arguments of `train` that say where a run is written and how it continues.
_OF_RUN = ("out", "resume", "change_objective", "change_data", "quiet")


@check_types
def certify(run: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Write the certificate of a run, one file to publish with a paper, and return its content.

    Args:
        run: the run directory.
        out: the file; None is ``certificate.json`` in the run directory.

    Raises:
        DuetError: if the record of the run contradicts itself, or the file exists.

    Example:
        What a run claims::

            claims = duet.certify("outputs/digits")["claims"]
            print(claims["data"]["sha256"], claims["seed"], claims["result"])
    """
    certificates.certify(run, out)
    return read_json(Path(out).expanduser() if out else Path(run).expanduser() / CERTIFICATE)


@check_types
def verify(
    run: str | Path,
    model: Any = None,
    process: Any = None,
    dataset: Any = None,
    *,
    segments: int | str = 3,
    draw_seed: int | None = None,
    results: bool = True,
    twins: int = 3,
    margin: float = 10.0,
    quiet: bool = False,
    **options: Any,
) -> Verdict:
    """Compute drawn segments of a run again, compare them with its record, and return the verdict.

    It takes the arguments that `train` was called with, since a run that Python code started does not keep its objects.
    A run of the command line is verified by ``python3 -m duet verify RUN``.

    Args:
        run: the run directory, or the file of a certificate.
        model: that was trained: a `duet.Model`, or an own network with the weights that it had before.
        process: of an own network.
        dataset: that was trained on.
        segments: how many are computed again, drawn at random, or ``"all"``.
        draw_seed: of the draw; None is a fresh one.
        results: whether the final samples are drawn again.
        twins: how many times a segment is computed from inputs one unit in the last place away, where bits cannot be
            equal.
        margin: of the bound over what these show.
        quiet: suppress the progress output.
        options: the other arguments of `train`. `device` and `threads` are those of the run by default.

    Returns:
        The verdict: `verdict`, `is_success`, `lines()` for people and `to_dict()` for a file.

    Raises:
        DuetError: if there is no such run, or an argument does not fit.

    Example:
        A run, and its verification by the same arguments::

            arguments = dict(images=1280, batch=64, checkpoint_images=320)
            duet.train(model, digits, out="runs/mine", **arguments)
            verdict = duet.verify("runs/mine", model, digits, **arguments)
            print(verdict.verdict)  # BIT-EXACT
    """
    if model is None:
        raise DuetError(
            "model: none was given; give the arguments that duet.train was called with, or verify a run of the command "
            "line with python3 -m duet verify RUN"
        )
    given = Options(segments, draw_seed, results, twins, margin)
    record, problems = open_record(run)
    arguments = inspect.signature(train).bind(model, process, dataset, **options)
    arguments.apply_defaults()
    values = dict(arguments.arguments)
    values = {name: value for name, value in values.items() if name not in _OF_RUN}
    environment = record.last.content["environment"] if chain_problem(record.entries) is None else {}
    values["threads"] = values["threads"] or environment.get("threads")
    if values["device"] == "auto" and str(environment.get("device")).startswith("cpu"):
        values["device"] = "cpu"
    changes = bool(options.get("change_objective", False))
    with discard_output() if quiet else nullcontext():
        return verify_record(
            record, lambda part: Rebuilt(prepare(**values)[0], change_objective=changes), given, problems
        )

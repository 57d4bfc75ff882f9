"""The certificate of a run: one file to publish with a paper.

It says what the run claims (network, data, seed, length, final weights, numbers), and holds the manifest that the
claims follow from. The claims are made of the manifest alone, so a reader makes them again and compares. With the run
directory, its files are compared with the certificate; with the code and the data, the run is computed again.

Keys are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors, read_json
from diffusion_core.runs.checkpoint import hash_entries
from diffusion_core.runs.manifest import Entry, chain_problem, entries_that_count, head

__all__ = ["CERTIFICATE", "claims", "make_certificate", "read_certificate"]

CERTIFICATE = "certificate.json"
FORMAT = 1
KIND = "certificate of duet certify"


def claims(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what a run claims, by its manifest."""
    counting = entries_that_count(entries)
    begin = [entry for entry in counting if entry.begins][-1].content
    last = [entry for entry in counting if entry.kind == "checkpoint"]
    state = last[-1].content if last else begin["state"]
    setup, environment = begin["setup"], begin["environment"]
    data, trainer = setup["training"]["data"], setup["trainer"]
    end = counting[-1].content if counting[-1].kind == "end" else None
    names = ("name", "part", "images", "sha256", "class_names", "flip", "augment")
    return {
        "data": {name: data.get(name) for name in names},
        "network": {"parameters": environment.get("parameters"), "program_sha256": setup["program_sha256"]},
        "own_network": setup.get("own_network"),
        "objective": setup["trained_for"],
        "optimiser": setup["training"]["optimiser"],
        "learning_rate": setup["training"]["learning_rate"],
        "seed": setup["seed"],
        "images": trainer["images"],
        "images_seen": counting[-1].images_seen,
        "batch": trainer["batch"],
        "updates": state["updates"],
        "precision": environment.get("precision"),
        "backend": begin["computed_by"]["backend"],
        "versions": environment.get("versions"),
        "processes": begin["processes"],
        "weights": state.get("files", {}),
        "result": end and end["result"],
        "result_files": end and end["files"],
        "parts": sum(entry.begins for entry in counting),
    }


def make_certificate(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the certificate of a run with this manifest.

    Raises:
        DuetError: if the chain is broken.
    """
    if problem := chain_problem(entries):
        raise DuetError(f"manifest: {problem}")
    content = {
        "format": FORMAT,
        "kind": KIND,
        "head": head(entries),
        "claims": claims(entries),
        "manifest": [dict(entry.content) for entry in entries],
    }
    return content | {"sha256": hash_entries(content)}


def read_certificate(path: Path) -> tuple[dict[str, Any], list[Entry], list[str]]:
    """Return a certificate, the entries of its manifest, and what contradicts itself in it.

    Raises:
        DuetError: if the file is missing, or is no certificate.
    """
    content = read_json(path, "it is no certificate")
    with file_errors(path, "it is no certificate"):
        if not isinstance(content, Mapping) or content.get("kind") != KIND:
            raise DuetError("it is no certificate")
        if content["format"] != FORMAT:
            raise DuetError(f"it has format {content['format']}; this version of Duet reads format {FORMAT}")
        entries = [Entry.from_content(one, f"{path}: entry {k}") for k, one in enumerate(content["manifest"])]
        problems = []
        if content["sha256"] != hash_entries(content):
            problems.append("it was changed: its content does not have its hash")
        if problem := chain_problem(entries):
            problems.append(problem)
        else:
            if content["head"] != head(entries):
                problems.append("its head is not that of its manifest")
            made = claims(entries)
            problems += [
                f"the claim {name} is not what its manifest says"
                for name in made
                if made[name] != content["claims"].get(name)
            ]
        return content, entries, problems

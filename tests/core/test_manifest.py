"""The chain of a manifest: every change of a line breaks it, and a resume continues it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_core.common.errors import DuetError
from diffusion_core.runs.manifest import (
    MANIFEST,
    Manifest,
    chain_problem,
    entries_that_count,
    metrics_hash,
    read_manifest,
)
from diffusion_core.statistics.detection import found_probability, needed_draws


def add_metrics(run: Path, *moments: int) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"images_seen": n, "loss": 1 / n}) + "\n" for n in moments)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three checkpoints."""
    manifest = Manifest(tmp_path)
    manifest.begin("start", 0, {"seed": 0, "gap": float("nan")})
    for moment in (8, 16, 24):
        add_metrics(tmp_path, moment - 4, moment)
        manifest.append("checkpoint", moment, {"files": {"weights.safetensors": f"{moment:064x}"}})
    manifest.append("end", 24, {"result": {}})
    return tmp_path


def rewrite(path: Path, change) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def test_every_changed_moved_or_missing_line_breaks_the_chain(run):
    path, whole = run / MANIFEST, (run / MANIFEST).read_text()
    assert chain_problem(read_manifest(path)) is None
    changes = {
        "changed": lambda lines: [line.replace('"images_seen": 16', '"images_seen": 17') for line in lines],
        "does not follow": lambda lines: (
            [*lines[:2], lines[2].replace(json.loads(lines[2])["previous"], "0" * 64), *lines[3:]]
        ),
        "entry 1 is missing": lambda lines: [lines[0], *lines[2:]],
        "entry 0 is missing": lambda lines: lines[1:],
        "entry 2 is missing": lambda lines: [*lines[:2], lines[3], lines[2], lines[4]],
    }
    for expected, change in changes.items():
        rewrite(path, change)
        found = chain_problem(read_manifest(path))
        assert found and (expected in found or "was changed" in found), (expected, found)
        path.write_text(whole)


def test_each_entry_has_the_metrics_since_the_one_before(run):
    entries = read_manifest(run / MANIFEST)
    assert [one.content["metrics"]["lines"] for one in entries] == [0, 2, 2, 2, 0]
    before = 0
    for entry in entries[1:4]:
        assert metrics_hash(run / "metrics.jsonl", before, entry.images_seen) == entry.content["metrics"]
        before = entry.images_seen
    rewrite(run / "metrics.jsonl", lambda lines: [line.replace("0.0625", "0.0624") for line in lines])
    assert metrics_hash(run / "metrics.jsonl", 8, 16) != entries[2].content["metrics"]


@pytest.mark.parametrize("seen", ["x", None, [12], 12.5, True])
def test_a_line_without_a_moment_is_no_step(run, seen):
    before = metrics_hash(run / "metrics.jsonl", 8, 16)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"images_seen": seen}) + "\n")
    assert metrics_hash(run / "metrics.jsonl", 8, 16) == before


def test_a_resume_continues_the_chain_and_covers_what_no_entry_did(run):
    """A process that is killed after its metrics leaves lines that the next entry covers, and half a line here."""
    add_metrics(run, 28, 32)
    with open(run / MANIFEST, "a") as file:
        file.write('{"format": 1, "numb')
    manifest = Manifest(run)
    manifest.begin("resume", 32, {"seed": 0})
    add_metrics(run, 36, 40)
    manifest.append("checkpoint", 40, {"files": {}})
    entries = read_manifest(run / MANIFEST)
    assert chain_problem(entries) is None and len(entries) == 7
    assert entries[5].content["metrics"]["lines"] == 2 and entries[6].content["metrics"]["lines"] == 2


def test_entries_after_the_moment_of_a_resume_count_no_more(run):
    manifest = Manifest(run)
    manifest.begin("resume", 8, {})
    entries = read_manifest(run / MANIFEST)
    assert chain_problem(entries) is None
    assert [one.number for one in entries_that_count(entries)] == [0, 1, 5]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[]", "no entry"),
        ("{", "not JSON"),
        ('{"number": 0}', "no entry"),
        (None, "format 9"),
        ("[" * 99999, "not JSON"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(run, line, expected):
    first = (run / MANIFEST).read_text().splitlines()[0]
    rewrite(run / MANIFEST, lambda lines: [line or first.replace('"format": 1', '"format": 9'), *lines])
    with pytest.raises(DuetError, match=expected):
        Manifest(run)


def test_the_probability_of_finding_a_change_is_that_of_drawing_it():
    """By counting all draws of 3 of 7, of which 2 are changed."""
    from itertools import combinations

    draws = list(combinations(range(7), 3))
    found = sum(bool({0, 1} & set(draw)) for draw in draws) / len(draws)
    assert found_probability(7, 3, 2) == pytest.approx(found, abs=1e-15)
    assert found_probability(7, 7, 1) == 1 and found_probability(7, 0, 7) == 0 and found_probability(7, 3, 0) == 0
    assert needed_draws(7, 2, found) == 3 and needed_draws(7, 1, 1.0) == 7
    with pytest.raises(DuetError, match=r"must be in 0\.\.7"):
        found_probability(7, 8, 1)

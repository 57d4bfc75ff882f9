"""The looks at a study: at which numbers of seeds its answers were read, and which level is left for the next.

A study may be looked at early and continued, if that is planned: `study.looks: [5, 10, 20]` names the numbers of
seeds. Every report with tests is a look and is recorded in looks.json of the study's directory::

    {"planned": 20, "spending": "pocock", "alpha": 0.05, "looks": [{"seeds": [0, 1], "created": ..., "margins": {...}}]}

The level of a look is what `statistics.sequential` leaves of alpha. A report of the same seeds is the same look again.
A look that was not planned (more seeds than the last planned look, or fewer than an earlier look) has the level 0: its
report describes and claims nothing. What was planned is fixed by the first look.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.common.text import pluralize
from diffusion_core.files.safe_read import read_json
from diffusion_core.runs.run_directory import write_json
from diffusion_core.statistics.sequential import look_levels
from experiments.studies.plan import Study

__all__ = ["Look", "changed_margins", "next_look", "record"]

_FILE = "looks.json"


@dataclass(frozen=True)
class Look:
    """A look at a study.

    Args:
        counts: the number of seeds at each look up to this one.
        planned: the largest number of seeds that was planned.
        difference: the level of two-sided tests at this look.
        equivalence: the level of each one-sided test at this look.
        remark: what a reader must know about it; empty for the only look of a study.
    """

    counts: tuple[int, ...]
    planned: int
    difference: float
    equivalence: float
    remark: str = ""

    @property
    def is_planned(self) -> bool:
        """Whether its tests have a level."""
        return self.equivalence > 0


def next_look(study: Study, out: Path | None = None) -> Look:
    """Return the look that a report on the seeds of the study is.

    Args:
        study: the study.
        out: its directory, with the record of earlier looks; None without one.

    Raises:
        DuetError: another plan of looks, or another level, was recorded at the first look.
    """
    earlier = _read(out)
    before = _seeds_before(earlier, study)
    planned = study.looks[-1] if study.looks else earlier["planned"] if earlier else len(study.seeds)
    if earlier and study.looks and (planned, study.spending) != (earlier["planned"], earlier["spending"]):
        raise DuetError(
            f"study.looks: {list(study.looks)} with spending {study.spending} was given, but the first look planned up "
            f"to {pluralize(earlier['planned'], 'seed')} with {earlier['spending']}; keep the plan, or start a new "
            f"study with another out=DIR"
        )
    if earlier and earlier.get("alpha", study.alpha) != study.alpha:
        raise DuetError(
            f"study.alpha: {study.alpha:g} was given, but the first look had {earlier['alpha']:g}; keep the level, or "
            f"start a new study with another out=DIR"
        )
    spending = earlier["spending"] if earlier else study.spending
    counts = (*map(len, before), len(study.seeds))
    if counts[0] < 2:
        return Look(counts, planned, study.alpha, study.alpha)
    grows = all(set(a) < set(b) for a, b in itertools.pairwise([*before, study.seeds]))
    if len(study.seeds) > planned or not grows:
        return Look(counts, planned, 0.0, 0.0, _unplanned(counts, planned, grows))
    two_sided, one_sided = (look_levels(counts, planned, study.alpha, spending, sides)[-1] for sides in (2, 1))
    remark = ""
    if counts != (planned,):
        remark = (
            f"Look {len(counts)}, at {counts[-1]} of at most {pluralize(planned, 'seed')}"
            + (f", after {', '.join(map(str, counts[:-1]))}" if before else "")
            + f": of the level {study.alpha:g} of all looks together, this one has {two_sided:.2g} for differences and "
            f"{one_sided:.2g} for each one-sided test ({spending.replace('_', '-')} spending)."
        )
    return Look(counts, planned, two_sided, one_sided, remark)


def record(study: Study, out: Path, look: Look) -> None:
    """Add a look to the record, unless it was a look at the same seeds."""
    earlier = _read(out) or {
        "planned": look.planned, "spending": study.spending, "alpha": study.alpha, "looks": []
    }  # fmt: skip
    if sorted(study.seeds) in (sorted(one["seeds"]) for one in earlier["looks"]):
        return
    margins = {metric.name: metric.margin for metric in study.metrics}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    looks = [*earlier["looks"], {"seeds": list(study.seeds), "created": created, "margins": margins}]
    write_json(out / _FILE, {"alpha": study.alpha, **earlier, "looks": looks})


def changed_margins(study: Study, out: Path | None) -> list[str]:
    """Return a sentence for each margin that differs from that of the first look."""
    earlier = _read(out)
    first = earlier["looks"][0].get("margins", {}) if earlier else {}
    return [
        f"The margin of {metric.title} was {_margin(first[metric.name])} at the first look and is now "
        f"{_margin(metric.margin)}; a margin must be stated before the runs."
        for metric in study.metrics
        if metric.name in first and first[metric.name] != metric.margin
    ]


def _margin(margin: float | None) -> str:
    return "none" if margin is None else f"{margin:g}"


def _read(out: Path | None) -> dict[str, Any] | None:
    """Return the record of looks; for a study of an earlier version, its report is the first look."""
    if out is None:
        return None
    if (out / _FILE).is_file():
        found = read_json(out / _FILE)
        if not found.get("looks"):
            raise DuetError(f"{out / _FILE}: it holds no looks; restore it, or start a new study with another out=DIR")
        return found
    if (out / "report.json").is_file():
        report = read_json(out / "report.json")
        tested = any(c.get("p") is not None for f in report.get("findings", []) for c in f.get("comparisons", []))
        if tested and report.get("seeds"):
            looks = [{"seeds": report["seeds"], "created": report.get("created")}]
            return {"planned": len(report["seeds"]), "spending": "pocock", "looks": looks}
    return None


def _seeds_before(earlier: dict[str, Any] | None, study: Study) -> list[Sequence[int]]:
    """Return the seeds of the looks before this one; a look at the same seeds again is that look."""
    seeds = [sorted(one["seeds"]) for one in earlier["looks"]] if earlier else []
    own = sorted(study.seeds)
    return seeds[: seeds.index(own)] if own in seeds else seeds


def _unplanned(counts: Sequence[int], planned: int, grows: bool) -> str:
    earlier = ", ".join(map(str, counts[:-1]))
    why = f"{pluralize(planned, 'seed')} were planned" if grows else "it does not contain all seeds of an earlier look"
    return (
        f"This look at {pluralize(counts[-1], 'seed')} was not planned: there were looks at {earlier}, and {why}. The "
        f"level is spent, so the intervals describe and no test claims anything. Plan looks before the first, as in "
        f"study.looks=[{counts[0]},{max(counts[-1], counts[0] + 1)}], and start with another out=DIR."
    )

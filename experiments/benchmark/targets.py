"""What was to be reached, and whether it was: the targets of speed and memory, from the rows of a bench.

A target compares the fastest of some rows with the fastest of others (with the leanest, where it is about memory), or
states a share that one row has. A ratio is that of `table.compared`, with its interval; it
is met or not by the median, and resolved if the interval lies on one side of what was wanted. A target of which a
contestant did not take part to the end is not there.

The targets of a CPU hold for float32 on both sides. Those of a GPU are for whichever mode of a backend is the fastest,
and say which that was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from experiments.benchmark.contestants import BACKENDS
from experiments.benchmark.table import compared
from peers import PEERS

__all__ = ["Target", "targets", "targets_table"]

Row = Mapping[str, Any]
_DDIM_STEPS = 50  # of which the targets of sampling speak
_LARGE = 30_000_000  # parameters from which on the target of what is beside the passes holds: those of ddpm_cifar10


@dataclass(frozen=True)
class Target:
    """One target and what was measured.

    Args:
        name: what is compared, and which modes it was that were.
        wanted: the bound; None where the number is only to be stated.
        measured: the number.
        low: the least of its interval.
        high: the most of it.
        least: whether the bound is the least that is wanted, and not the most.
    """

    name: str
    wanted: float | None
    measured: float
    low: float
    high: float
    least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the median is on the right side; None where nothing is wanted."""
        if self.wanted is None:
            return None
        return self.measured >= self.wanted if self.least else self.measured <= self.wanted

    @property
    def resolved(self) -> bool | None:
        """Whether the whole interval is on one side; None where nothing is wanted."""
        return None if self.wanted is None else not self.low <= self.wanted <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"met": self.met, "resolved": self.resolved}


def targets(made: Sequence[Row], device: str, rounds: Mapping[str, int]) -> list[Target]:
    """The targets of a device that these rows decide.

    Args:
        made: the rows of `experiments.benchmark.table` at one size of work.
        device: ``"cpu"`` or ``"cuda"``.
        rounds: batch, steps, images and ddim_steps.
    """
    if rounds["ddim_steps"] != _DDIM_STEPS:
        made = [row for row in made if row["work"] != "ddim"]
    return [one for one in (_of_a_gpu if device == "cuda" else _of_a_cpu)(made) if one is not None]


def _of_a_cpu(made: Sequence[Row]) -> Iterator[Target | None]:
    made = [row for row in made if row["precision"] == "float32"]
    best = {(what, name): _best(made, what, name) for what in ("train", "ddim") for name in BACKENDS}
    for name in BACKENDS:
        peers = [peer for peer, (_, owner) in PEERS.items() if owner == name]
        fastest = _best(made, "train", *peers)
        yield _ratio("training step by the fastest peer of the framework", best["train", name], fastest, 1.0)
    both = sorted((row for name in BACKENDS if (row := best["train", name])), key=_time)
    if len(both) == len(BACKENDS):
        yield _ratio("training step, slower backend by the faster", both[-1], both[0], 1.15)
    for name in BACKENDS:
        yield _share("training step", "share_of_convolutions", best["train", name], 0.5)
    for name in BACKENDS:
        if best["train", name] is not None and best["train", name]["parameters"] >= _LARGE:
            yield _share("training step", "share_beside_passes", best["train", name], 0.05, least=False)
        yield _share(f"DDIM-{_DDIM_STEPS}", "by_evaluations", best["ddim", name], 1.03, least=False)
    diffusers, lucidrains = (
        _best(made, "ddim", peer, compiled=False) for peer in ("diffusers", "denoising_diffusion_pytorch")
    )
    for name, compiled, wanted in (("torch", False, 0.85), ("torch", True, 0.70), ("tf", True, 0.55)):
        yield _ratio(f"DDIM-{_DDIM_STEPS}", _best(made, "ddim", name, compiled=compiled), diffusers, wanted)
    for name in BACKENDS:
        yield _ratio(f"DDIM-{_DDIM_STEPS}", best["ddim", name], lucidrains, 0.6)
    leanest = _best(made, "train", *PEERS, by=_memory)
    for name in BACKENDS:
        yield _memory_ratio("peak memory in training by the leanest peer", best["train", name], leanest, 1.1)


def _of_a_gpu(made: Sequence[Row]) -> Iterator[Target | None]:
    for what, title in (("train", "training step"), ("ddim", f"DDIM-{_DDIM_STEPS}")):
        eager = _best(made, what, "diffusers", precision="float32", compiled=False)
        compiled = _best(made, what, "diffusers", precision="bf16", compiled=True)
        for name in BACKENDS:
            ours = _best(made, what, name)
            yield _ratio(title, ours, eager, 1 / 2)
            yield _ratio(title, ours, compiled, 1 / 1.2)
    for name in BACKENDS:
        yield _share("training step", "share_of_matrix", _best(made, "train", name), None)


def _time(row: Row) -> float:
    return row["milliseconds"]


def _memory(row: Row) -> float:
    return row["peak_memory_mib"]


def _best(
    made: Sequence[Row], what: str, *names: str, by: Callable[[Row], float] = _time, **mode: bool | str
) -> Row | None:
    """The least by time, or by memory, of those of the names that did a work in a mode; None where none did."""
    mode = {"work": what, **mode}
    able = [row for row in made if row["who"] in names and all(row[key] == value for key, value in mode.items())]
    return min(able, key=by, default=None)


def _named(what: str, ours: Row, theirs: Row) -> str:
    return f"{what}: {ours['contestant']} by {theirs['contestant']}"


def _ratio(what: str, ours: Row | None, theirs: Row | None, wanted: float) -> Target | None:
    """Time by time, round by round where they were done together."""
    if ours is None or theirs is None:
        return None
    seconds = (np.array(row["seconds_per_image"]) for row in (ours, theirs))
    return Target(_named(what, ours, theirs), wanted, *compared(*seconds, ours["together"]))


def _memory_ratio(what: str, ours: Row | None, theirs: Row | None, wanted: float) -> Target | None:
    """Peak by peak, each of which is one number."""
    if ours is None or theirs is None:
        return None
    ratio = _memory(ours) / _memory(theirs)
    return Target(_named(what, ours, theirs), wanted, ratio, ratio, ratio)


def _share(what: str, column: str, row: Row | None, wanted: float | None, least: bool = True) -> Target | None:
    """A work by a part of it, or by a peak, that was measured beside it in the same types."""
    if row is None or row[column] is None:
        return None
    name = f"{what}, {column.replace('_', ' ')} measured in {row['precision']}: {row['contestant']}"
    return Target(name, wanted, row[column], row[f"{column}_low"], row[f"{column}_high"], least)


def targets_table(found: Sequence[Target]) -> Table:
    """Targets for a terminal."""
    table = Table(title="targets")
    for name in ("target", "wanted", "measured", ""):
        table.add_column(name, justify="left" if name in ("target", "") else "right")
    for one in found:
        wanted = "" if one.wanted is None else f"{'>=' if one.least else '<='} {one.wanted:.2f}"
        verdict = {None: "stated", True: "met", False: "missed"}[one.met]
        verdict += "" if one.resolved in (None, True) else ", not resolved"
        table.add_row(one.name, wanted, f"{one.measured:.2f} [{one.low:.2f} .. {one.high:.2f}]", verdict)
    return table

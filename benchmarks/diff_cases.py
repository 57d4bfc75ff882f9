"""What `benchmarks.model_diff` compares, and how a comparison is scored.

A pair of models is a folder with torch_model.py, keras_model.py and faults.json. A *case* is one side of a pair, built
with a fault or a variant and recorded for one seed; a *trial* compares a case of one side with one of the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_core.parity.diff.findings import Comparison, Place

__all__ = [
    "SIDES",
    "Case",
    "Pair",
    "Trial",
    "family",
    "is_right_kind",
    "is_right_place",
    "read_pairs",
    "score",
    "trials",
]

SIDES = ("torch", "keras")

# Kinds that name the same cause, where one catalogue is finer than the other.
SAME_KINDS: tuple[frozenset[str], ...] = ()


# Families of faults in the table, by parts of their kinds; the first that fits counts.
FAMILIES = {
    "norms": ("norm", "group_", "variance_bias"),
    "activations": ("activation", "gelu", "exp"),
    "recurrent layers": ("gate", "reset_after", "recurrent", "initial_state", "start_token", "implicit_mask"),
    "attention, masks, positions, time": (
        *("attention", "mask", "softmax", "qkv", "head", "rotary", "position", "time_embedding"),
    ),
    "windows, padding, resizing": (
        *("padding", "ceil_mode", "count_include_pad", "crop", "dilation", "kernel", "interpolation", "half_pixel"),
        *("align_corners", "stride", "weight_order"),
    ),
    "order of numbers and of inputs": ("order", "flip", "shift", "reshape", "transpose"),
}
MODES = {"gradient": "gradients", "training": "training mode", "optimiser": "optimisers, schedules, averages"}


@dataclass(frozen=True)
class Pair:
    """A folder with two sides, and what its faults.json says."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def passes(self) -> list[str]:
        """The passes that are recorded."""
        return ["float32", "float64", *(["train64"] if self.content.get("training") else [])]

    @property
    def steps(self) -> int:
        """How many training steps are recorded."""
        return 5 if self.content.get("optimiser") else 0

    @property
    def modes(self) -> tuple[str, ...]:
        """What is compared."""
        more = ("training",) if self.content.get("training") else ()
        return ("forward", "gradient", *more, *(("steps",) if self.steps else ()))


@dataclass(frozen=True)
class Case:
    """One side of a pair as it is built and recorded."""

    pair: str
    side: str
    options: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    @property
    def key(self) -> str:
        """A name for its folder."""
        return "-".join([self.pair, self.side, *(value for _, value in self.options), str(self.seed)])


@dataclass(frozen=True)
class Trial:
    """One comparison: cases of torch and Keras, and the planted fault, if there is one."""

    pair: Pair
    torch: Case
    keras: Case
    precision: str = "float64"
    fault: Mapping[str, Any] = field(default_factory=dict)


def read_pairs(folders: Sequence[Path]) -> list[Pair]:
    """Read pairs: each folder is one, or holds several."""
    found = []
    for folder in folders:
        inner = (
            [folder] if (folder / "faults.json").exists() else sorted(p.parent for p in folder.glob("*/faults.json"))
        )
        found += [Pair(one, json.loads((one / "faults.json").read_text(encoding="utf-8"))) for one in inner]
    return found


def trials(pair: Pair, seeds: int) -> Iterator[Trial]:
    """Yield the trials of a pair: each fault once, and everything that is clean for several seeds and precisions."""

    def case(side: str, seed: int, **options: str) -> Case:
        return Case(pair.name, side, tuple(options.items()), seed)

    for fault in pair.content["faults"]:
        side = fault["side"]
        cases = {name: case(name, 0, **({"fault": fault["id"]} if name == side else {})) for name in SIDES}
        yield Trial(pair, cases["torch"], cases["keras"], "float64", fault)
    for seed in range(seeds):
        clean = {name: case(name, seed) for name in SIDES}
        changed = [clean]
        for variant in pair.content["variants"]:
            changed.append(clean | {variant["side"]: case(variant["side"], seed, variant=variant["id"])})
        for cases in changed:
            for precision in ("float64", "float32"):
                yield Trial(pair, cases["torch"], cases["keras"], precision)


def family(kind: str, shows_in: str) -> str:
    """Return the family of a fault, by which the table is written.

    >>> family("gelu_form", "forward"), family("gelu_form", "gradient")
    ('activations', 'gradients')
    """
    if shows_in in MODES:
        return MODES[shows_in]
    return next(
        (name for name, parts in FAMILIES.items() if any(part in kind for part in parts)),
        "steps that are missing, added or changed",
    )


def is_right_place(place: Place | None, wheres: Sequence[str], operation: str = "") -> bool:
    """Return whether a finding is at one of these layers, inside it, or in the named operation of the model itself."""
    if place is None:
        return False
    layer, parameter = (text.replace("/", ".") for text in (place.layer, place.parameter))
    for where in (text.replace("/", ".") for text in wheres):
        if not where:
            # The model itself: the source line must name what faults.json names.
            words = [word for word in re.findall(r"[A-Za-z_]\w*", operation) if len(word) > 2 and word not in _PLAIN]
            if not layer and (not words or not place.code or any(word in place.code for word in words)):
                return True
        elif f"{layer}.".startswith(f"{where}.") or f"{parameter}.".startswith(f"{where}."):
            return True
    return False


_PLAIN = {"before", "after", "the", "missing", "torch", "self", "weights", "keras", "layers"}


def is_right_kind(found: str, planted: str) -> bool:
    """Return whether a cause has the planted kind, or another name of it."""
    return found == planted or any(found in names and planted in names for names in SAME_KINDS)


def score(trial: Trial, comparison: Comparison) -> dict[str, Any]:
    """Score one comparison.

    Returns:
        for a fault: `found` (there is a finding), `place` (the first one is at the faulty operation), `counterpart`
        (and at that of the other side), `kind`, `verified`; for a clean trial `silent`. `first` describes the finding.
    """
    real = [finding for finding in comparison.findings if not finding.benign]
    first = real[0] if real else None
    row: dict[str, Any] = {
        "pair": trial.pair.name,
        "torch": dict(trial.torch.options),
        "keras": dict(trial.keras.options),
        "seed": trial.torch.seed,
        "precision": trial.precision,
        "findings": len(real),
        "first": "" if first is None else describe(first),
    }
    if not trial.fault:
        return row | {"silent": not real}
    fault = trial.fault
    here, there = (first.a, first.b) if first else (None, None)
    if fault["side"] == "keras":
        here, there = there, here
    wheres = [fault["where"], *fault.get("where_also", [])]
    others = [fault["counterpart"], *fault.get("counterpart_also", [])]
    right = is_right_place(here, wheres, fault.get("op", ""))
    return row | {
        "fault": fault["id"],
        "planted": fault["kind"],
        "shows_in": fault["shows_in"],
        "found": first is not None,
        "place": right,
        "counterpart": is_right_place(there, others, fault.get("counterpart_op", "")),
        "kind": first is not None and is_right_kind(first.kind, fault["kind"]),
        "verified": first is not None and right and first.status == "verified",
    }


def describe(finding: Any) -> str:
    """Describe a finding in one line."""

    def at(place: Place | None) -> str:
        if place is None:
            return "nothing"
        return f"{place.layer or place.parameter or 'model'} [{place.native or place.kind} {place.source} {place.code}]"

    said = f"{finding.mode} {finding.kind or '?'} {finding.status}: {finding.a_does} / {finding.b_does}"
    return f"{said} at {at(finding.a)} and {at(finding.b)}; {finding.error:.1e} -> {finding.left:.1e}"

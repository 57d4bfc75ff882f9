"""A measured number with its protocol, and the rule that numbers of different protocols share no column.

The protocol is everything that a number depends on beside the samples themselves: the reference with its hash and
split, how many samples, how they were cut into sets, the quantisation of pixels, the features with their resize and the
hash of their weights, the options and the seed. What made the samples is the subject of a comparison and no part of it;
neither are versions and machines, which must not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import file_errors, read_json
from diffusion_core.statistics import Interval

__all__ = ["Column", "Number", "columns", "comparable_values", "differences", "nested", "read_numbers"]


@dataclass(frozen=True)
class Number:
    """A number with what it depends on.

    Args:
        name: what it is called: "FID", "digits Fréchet distance".
        value: the number, of all samples together.
        protocol: see above, as plain data.
        interval: where the value lies with other samples of the same kind; None where that was not measured.
        without: the value of all samples but those of each disjoint set, from which the interval is.
        error: what is by custom printed behind ±, where there is such a thing.
        better: "lower" or "higher", or nothing.
        unit: of the value.
    """

    name: str
    value: float
    protocol: Mapping[str, Any]
    interval: Interval | None = None
    without: tuple[float, ...] = ()
    error: float | None = None
    better: str = ""
    unit: str = ""

    @cached_property
    def protocol_sha256(self) -> str:
        """The hash of the protocol."""
        return hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()

    @property
    def plain(self) -> dict[str, Any]:
        """It as plain data, which `from_plain` reads."""
        return {**asdict(self), "protocol": dict(self.protocol), "protocol_sha256": self.protocol_sha256}

    @staticmethod
    def from_plain(data: Mapping[str, Any]) -> Number:
        """A number that was written down; null is a value that was not finite.

        Raises:
            DuetError: it is not one, or its protocol was changed after it was written.
        """
        try:
            given = {**data}
            sha256, interval = given.pop("protocol_sha256"), given.pop("interval")
            given["value"], given["without"] = _finite(given["value"]), tuple(map(_finite, given["without"]))
            number = Number(**given, interval=interval and Interval(**interval))
        except (KeyError, TypeError) as error:
            raise DuetError(f"evaluation: an entry is no number with its protocol ({error})") from error
        if number.protocol_sha256 != sha256:
            raise DuetError(f"evaluation: the protocol of {number.name} is not the one that its hash is of")
        return number


@dataclass(frozen=True)
class Column:
    """Numbers that may be compared: of one name and one protocol.

    Args:
        name: of the number.
        distinction: what tells its protocol from those of other columns of this name, in words; empty where there is
            no other.
        numbers: by subject, such as the run that the samples are from.
    """

    name: str
    distinction: str
    numbers: Mapping[str, Number]

    @property
    def title(self) -> str:
        """Name and distinction."""
        return f"{self.name} ({self.distinction})" if self.distinction else self.name

    @property
    def first(self) -> Number:
        """Any one of the numbers, for what they share."""
        return next(iter(self.numbers.values()))


def nested(numbers: Iterable[Number]) -> dict[str, dict[str, Any]]:
    """Numbers as plain data, by the name of the metric and that of the number within it."""
    made: dict[str, dict[str, Any]] = {}
    for number in numbers:
        made.setdefault(number.protocol["metric"], {})[number.protocol["number"]] = number.plain
    return made


def read_numbers(path: str | Path) -> tuple[Number, ...]:
    """The numbers of an `evaluation.json`, or of the directory that holds one.

    Raises:
        DuetError: it is not one, or a protocol was changed after it was written.
    """
    path = Path(path) / "evaluation.json" if Path(path).is_dir() else Path(path)
    data = read_json(path)
    if not isinstance(data, Mapping) or not isinstance(data.get("numbers"), Mapping):
        raise DuetError(f"{path}: it is no evaluation (it has no numbers)")
    with file_errors(path, "it is no evaluation"):
        return tuple(Number.from_plain(number) for metric in data["numbers"].values() for number in metric.values())


def columns(subjects: Mapping[str, Iterable[Number]]) -> tuple[Column, ...]:
    """Every number in the one column that it may stand in, in the order in which they come.

    Args:
        subjects: the numbers of each subject.

    Raises:
        DuetError: a subject has two numbers for one place.
    """
    found: dict[tuple[str, str], dict[str, Number]] = {}
    for subject, numbers in subjects.items():
        for number in numbers:
            column = found.setdefault((number.name, number.protocol_sha256), {})
            if subject in column:
                raise DuetError(f"{subject}: it has {number.name} twice, by one protocol; give each a subject")
            column[subject] = number
    of_name: dict[str, list[dict[str, Number]]] = {}
    for (name, _), column in found.items():
        of_name.setdefault(name, []).append(column)
    made = []
    for (name, _), column in found.items():
        protocols = [next(iter(other.values())).protocol for other in of_name[name]]
        own, different = _flat(next(iter(column.values())).protocol), differences(protocols)
        said = ", ".join(f"{key} {own.get(key, 'none')}" for key in different)
        made.append(Column(name, said, column))
    return tuple(made)


def comparable_values(numbers: Sequence[Number]) -> tuple[float, ...]:
    """The values of numbers that are to be averaged, subtracted or tested together.

    Raises:
        DuetError: they do not share a name and a protocol; it says in what they differ.
    """
    names = list(dict.fromkeys(number.name for number in numbers))
    if len(names) > 1:
        raise DuetError(f"numbers: {' and '.join(names)} were given; only numbers of one name compare")
    if different := differences([number.protocol for number in numbers]):
        flat = [_flat(number.protocol) for number in numbers]
        said = "; ".join(
            f"{key}: {', '.join(dict.fromkeys(str(f.get(key, 'none')) for f in flat))}" for key in different
        )
        raise DuetError(f"{names[0]}: the numbers were measured by different protocols and do not compare ({said})")
    return tuple(number.value for number in numbers)


def differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which protocols differ, with a point between the levels: ``samples.count``."""
    flat = [_flat(protocol) for protocol in protocols]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    return [key for key in keys if any(key not in one or one[key] != flat[0].get(key) for one in flat)]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
    return {path: value}


def _finite(value: float | None) -> float:
    return float("nan") if value is None else float(value)

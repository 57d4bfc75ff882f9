"""Measured numbers with their protocols. Numbers with different protocols never share a column of a table.

The protocol is everything that a number depends on besides the samples themselves: the reference with its hash and
split, the number of samples, how they were cut into sets, the quantisation of pixels, the features with their resize
and the hash of their weights, the options and the seed. What made the samples is the subject of a comparison and not
part of the protocol; neither are versions and machines, which must not matter.
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
    """A number with its protocol.

    Args:
        name: its name, such as "FID" or "digits Fréchet distance".
        value: the value for all samples together.
        protocol: everything that it depends on, as plain data.
        interval: the confidence interval over draws of the samples, for this number of them and this reference; None if
            it was not measured.
        without: the values for all samples except each disjoint set, from which the interval is computed.
        error: the standard deviation conventionally printed behind ±, if there is one.
        better: "lower", "higher", or "".
        unit: the unit of the value.
        interval_both: the interval over draws of the samples and of the reference.
        without_reference: the values without each disjoint set of the reference.
        floor: the value of as many images drawn from the reference itself.
        corrected: the value without its bias of first order; None where what remains is not negligible.
        trials: the number of independent trials, if the value is the fraction that succeeded.
    """

    name: str
    value: float
    protocol: Mapping[str, Any]
    interval: Interval | None = None
    without: tuple[float, ...] = ()
    error: float | None = None
    better: str = ""
    unit: str = ""
    interval_both: Interval | None = None
    without_reference: tuple[float, ...] = ()
    floor: float | None = None
    corrected: float | None = None
    trials: int | None = None

    def __repr__(self) -> str:
        interval = f" [{self.interval.low:.4g}, {self.interval.high:.4g}]" if self.interval else ""
        return f"Number({self.name!r}, {self.value:.4g}{interval}{f' {self.unit}' if self.unit else ''})"

    @cached_property
    def protocol_sha256(self) -> str:
        """The hash of the protocol."""
        return hashlib.sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()

    @property
    def plain(self) -> dict[str, Any]:
        """The number as plain data, for `from_plain`."""
        return {**asdict(self), "protocol": dict(self.protocol), "protocol_sha256": self.protocol_sha256}

    @staticmethod
    def from_plain(data: Mapping[str, Any]) -> Number:
        """Return a number from plain data; null stands for a value that was not finite.

        Raises:
            DuetError: the data are not a number, or its protocol was changed after it was written.
        """
        try:
            fields = {**data}
            sha256, interval = fields.pop("protocol_sha256"), fields.pop("interval")
            fields["value"], fields["without"] = _finite(fields["value"]), tuple(map(_finite, fields["without"]))
            fields["name"] = _current_name(fields["name"])
            both = fields.pop("interval_both", None)  # files of earlier versions have none
            fields["without_reference"] = tuple(map(_finite, fields.get("without_reference", ())))
            intervals = {"interval": interval and Interval(**interval), "interval_both": both and Interval(**both)}
            number = Number(**fields, **intervals)
        except (KeyError, TypeError) as error:
            raise DuetError(f"evaluation: an entry is not a number with its protocol ({error})") from error
        if number.protocol_sha256 != sha256:
            raise DuetError(f"evaluation: the protocol of {number.name} does not match its hash; evaluate again")
        return number


@dataclass(frozen=True)
class Column:
    """Comparable numbers: with one name and one protocol.

    Args:
        name: the name of the numbers.
        distinction: the protocol entries that differ from those of other columns with this name, if any.
        numbers: by subject, such as the run of the samples.
    """

    name: str
    distinction: str
    numbers: Mapping[str, Number]

    @property
    def title(self) -> str:
        """The name and the distinction."""
        return f"{self.name} ({self.distinction})" if self.distinction else self.name

    @property
    def first(self) -> Number:
        """One of the numbers, for what they have in common."""
        return next(iter(self.numbers.values()))


def nested(numbers: Iterable[Number]) -> dict[str, dict[str, Any]]:
    """Return numbers as plain data, by the name of the metric and that of the number within it."""
    by_metric: dict[str, dict[str, Any]] = {}
    for number in numbers:
        by_metric.setdefault(number.protocol["metric"], {})[number.protocol["number"]] = number.plain
    return by_metric


def read_numbers(path: str | Path) -> tuple[Number, ...]:
    """Read the numbers of an `evaluation.json`, or of a directory that holds one.

    Raises:
        DuetError: the file is not an evaluation, or a protocol was changed after it was written.
    """
    path = Path(path) / "evaluation.json" if Path(path).is_dir() else Path(path)
    data = read_json(path)
    if not isinstance(data, Mapping) or not isinstance(data.get("numbers"), Mapping):
        raise DuetError(f"{path}: it is not an evaluation (it has no numbers)")
    with file_errors(path, "it is not an evaluation"):
        return tuple(Number.from_plain(number) for metric in data["numbers"].values() for number in metric.values())


def columns(subjects: Mapping[str, Iterable[Number]]) -> tuple[Column, ...]:
    """Group numbers into columns of comparable numbers, in the order in which they come.

    Args:
        subjects: the numbers of each subject.

    Raises:
        DuetError: a subject has two numbers for one column.
    """
    by_protocol: dict[tuple[str, str], dict[str, Number]] = {}
    for subject, numbers in subjects.items():
        for number in numbers:
            column = by_protocol.setdefault((number.name, number.protocol_sha256), {})
            if subject in column:
                raise DuetError(f"{subject}: it has {number.name} twice with one protocol; give each its own subject")
            column[subject] = number
    of_name: dict[str, list[dict[str, Number]]] = {}
    for (name, _), column in by_protocol.items():
        of_name.setdefault(name, []).append(column)
    result = []
    for (name, _), column in by_protocol.items():
        protocols = [next(iter(other.values())).protocol for other in of_name[name]]
        own, different = _flat(next(iter(column.values())).protocol), differences(protocols)
        distinction = ", ".join(f"{key} {own.get(key, 'none')}" for key in different)
        result.append(Column(name, distinction, column))
    return tuple(result)


def comparable_values(numbers: Sequence[Number]) -> tuple[float, ...]:
    """Return the values of numbers that are to be averaged, subtracted or tested together.

    Raises:
        DuetError: the numbers differ in name or protocol; the error says in what.
    """
    names = list(dict.fromkeys(number.name for number in numbers))
    if len(names) > 1:
        raise DuetError(f"numbers: {' and '.join(names)} were given; only numbers with one name can be compared")
    if different := differences([number.protocol for number in numbers]):
        flat = [_flat(number.protocol) for number in numbers]
        text = "; ".join(
            f"{key}: {', '.join(dict.fromkeys(str(f.get(key, 'none')) for f in flat))}" for key in different
        )
        raise DuetError(f"{names[0]}: the numbers have different protocols and cannot be compared ({text})")
    return tuple(number.value for number in numbers)


def differences(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which protocols differ, with dots between the levels: ``samples.count``."""
    flat = [_flat(protocol) for protocol in protocols]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    return [key for key in keys if any(key not in one or one[key] != flat[0].get(key) for one in flat)]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
    return {path: value}


# The ends of number names in files of earlier versions, and their present texts.
_OLD_NAMES = {
    "recognised as the class asked for": "recognised as the requested class",
    "memorised": "memorised fraction",
    "copies of training pictures": "copies of training images",
    "median distance to the nearest training picture": "median distance to the nearest training image",
    "spread within a class, as a share of that of the reference": "spread within a class, relative to the reference",
    "brighter than the reference": "brightness difference",
    "contrast, as a share of that of the reference": "contrast, relative to the reference",
    "more black and white values than the reference, as a share": "excess fraction of black and white values",
}


def _current_name(name: str) -> str:
    """Return the present name of a number, which may have the name of its features in front."""
    old = next((old for old in _OLD_NAMES if isinstance(name, str) and name.endswith(old)), None)
    return name if old is None else name.removesuffix(old) + _OLD_NAMES[old]


def _finite(value: float | None) -> float:
    return float("nan") if value is None else float(value)

"""Labels of image files that folders do not say: in a file of labels, or in the names of the images.

A file of labels is one of

    dataset.json     {"labels": [["00000/img0.png", 6], ...]}, as EDM and StyleGAN have it, or with {NAME: LABEL};
                     {"labels": null} says that there are none
    .json            the same, or {NAME: LABEL} alone
    .csv, .jsonl     a row for each image: its name as file_name (or file, name, image), its label as label (or class);
                     other columns of numbers are ignored

A label is one of the kinds of `labels.read_labels`. Names are paths in the folder, or the names of the files alone.

A pattern is text with placeholders, as in ``{class}_{number}.png``: ``{number}`` is digits, ``{part}`` is the part
(train, test), and other placeholders are anything but a slash. It is matched with the whole name of a file, or with its
path if the pattern has a slash. Or it is a regular expression with a group ``(?P<class>...)``, found anywhere in the
path.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), dataset_tool.py of
    https://github.com/NVlabs/edm
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from diffusion_core.common.errors import DuetError
from diffusion_core.files.safe_read import parse_json

__all__ = ["DATASET_JSON", "labels_by_name", "match_names", "parse_labels"]

DATASET_JSON = "dataset.json"
_FILE_KEYS = ("file_name", "filename", "file", "image", "path", "name")
_LABEL_KEYS = ("label", "labels", "class", "class_name", "category")


def parse_labels(name: str, content: bytes) -> dict[str, Any] | None:
    """Return the label of each image by its name, from the content of a file of labels; None if it says there are none.

    Args:
        name: of the file, whose suffix decides how it is read.
        content: its bytes.

    Raises:
        DuetError: the file is of no kind above, or names an image twice.
    """
    suffix = PurePosixPath(name).suffix.lower()
    try:
        text = content.decode("utf-8-sig")
        if suffix == ".json":
            data = parse_json(text)
            data = data["labels"] if isinstance(data, dict) and "labels" in data else data
            if data is None:
                return None
            pairs = [tuple(pair) for pair in (data.items() if isinstance(data, dict) else data)]
        elif suffix == ".jsonl":
            pairs = [_pair(json.loads(line)) for line in text.splitlines() if line.strip()]
        else:
            pairs = _rows(text)
        if not pairs or any(len(pair) != 2 or not isinstance(pair[0], str) for pair in pairs):
            raise ValueError("it has no pairs of a name and a label")
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise DuetError(
            f"labels: {name!r} cannot be read ({error}); it must be dataset.json with "
            f'{{"labels": [["IMAGE.png", LABEL], ...]}}, or a .csv or .jsonl file with file_name and label'
        ) from error
    found = {image.replace("\\", "/").removeprefix("./"): label for image, label in pairs}
    if len(found) < len(pairs):
        names = [image for image, _ in pairs]
        raise DuetError(
            f"labels: {name!r} names {next(n for n in names if names.count(n) > 1)!r} twice; it must be once"
        )
    return found


def _pair(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the label in a row of a table."""
    name = next((key for key in _FILE_KEYS if key in row), None)
    label = next((key for key in _LABEL_KEYS if key in row), None)
    if name is None or label is None:
        raise KeyError(f"the columns are {', '.join(map(str, row))}; file_name and label are needed")
    return row[name], row[label]


def _rows(text: str) -> list[tuple[str, Any]]:
    """Return the pairs of a table; without known columns, its first and its last one."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    head = [cell.lower() for cell in rows[0]] if rows else []
    if any(key in head for key in _FILE_KEYS) and any(key in head for key in _LABEL_KEYS):
        pairs = [_pair(dict(zip(head, row, strict=True))) for row in rows[1:]]
    else:
        pairs = [(row[0], row[-1]) for row in rows]
    if all(re.fullmatch(r"\d+", label) for _, label in pairs):
        return [(name, int(label)) for name, label in pairs]
    return pairs


def labels_by_name(source: str, labels: Mapping[str, Any], names: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Return the label of each image, and the names in the file that are no images.

    Args:
        source: the name of the file of labels, for errors.
        labels: by name.
        names: the paths of the images.

    Raises:
        DuetError: an image has no label.
    """
    keys = list(names)
    if not any(name in labels for name in names):  # perhaps without the outer folder, any folder, or suffixes
        for shorter in (
            lambda name: name.partition("/")[2],
            lambda name: PurePosixPath(name).name,
            lambda name: PurePosixPath(name).stem,
        ):
            short = [shorter(name) for name in names]
            if len(set(short)) == len(short) and any(name in labels for name in short):
                keys = short
                break
    missing = [name for name, key in zip(names, keys, strict=True) if key not in labels]
    if missing:
        raise DuetError(
            f"labels: {source!r} has no label of {missing[0]!r}"
            + (f" and {len(missing) - 1} more images" if missing[1:] else "")
            + f"; its names are as {next(iter(labels))!r}; every image needs one"
        )
    used = set(keys)
    return [labels[key] for key in keys], [name for name in labels if name not in used]


def match_names(pattern: str, names: Sequence[str]) -> list[dict[str, str] | None]:
    """Return for each name the values of the placeholders of a pattern, or None if it does not match.

    Raises:
        DuetError: the pattern has no class, is no regular expression, or matches no name.

    Example:
        >>> match_names("{class}_{number}.png", ["a/red_cat_12.png", "a/notes.png"])
        [{'class': 'red_cat', 'number': '12'}, None]
        >>> match_names(r"-(?P<class>[a-z]+)$", ["12-dog"])
        [{'class': 'dog'}]
    """
    is_regular = "(?P<" in pattern
    try:
        compiled = re.compile(pattern if is_regular else _regular(pattern))
    except re.error as error:
        raise DuetError(f"data.options.pattern: {pattern!r} was given; it is not valid ({error})") from error
    if not {"class", "part"} & set(compiled.groupindex):
        raise DuetError(
            f"data.options.pattern: {pattern!r} was given; it must have the class in it, as {{class}}_{{number}}.png "
            f"or the regular expression (?P<class>[a-z]+)"
        )
    found = [_match(compiled, pattern, is_regular, name) for name in names]
    if not any(found):
        raise DuetError(
            f"data.options.pattern: {pattern!r} was given, but none of the {len(names)} images match it, as "
            f"{names[0]!r}; {{class}} is the class, {{number}} digits, and other words in braces are anything"
        )
    return found


def _match(compiled: re.Pattern[str], pattern: str, is_regular: bool, name: str) -> dict[str, str] | None:
    if is_regular:
        match = compiled.search(name) or compiled.search(str(PurePosixPath(name).with_suffix("")))
    else:
        whole = name if "/" in pattern else PurePosixPath(name).name
        stem = str(PurePosixPath(whole).with_suffix(""))
        has_suffix = re.search(r"\.\w+$", pattern) is not None  # a pattern need not end with .png
        match = next(filter(None, map(compiled.fullmatch, (whole, stem) if has_suffix else (stem, whole))), None)
    return match and {key: value for key, value in match.groupdict().items() if value is not None}


def _regular(pattern: str) -> str:
    """Return a pattern with placeholders as a regular expression; a placeholder that repeats must repeat its text."""
    parts, seen = [], set()
    for text, word in re.findall(r"([^{}]*)(?:\{(\w+)\})?", pattern):
        parts.append(re.escape(text))
        if word in seen:
            parts.append(f"(?P={word})")
        elif word:
            seen.add(word)
            parts.append(f"(?P<{word}>{r'[0-9]+' if word in ('number', 'index', 'id') else '[^/]+?'})")
    return "".join(parts)

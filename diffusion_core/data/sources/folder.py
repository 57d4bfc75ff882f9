"""Image files: in a folder or in a zip archive.

Images alone, one folder per class, or one folder per split (train, test) of the classes; or with labels in a file, as
EDM's ``dataset.json``, or in the names of the images. `layout` says which folders are parts and which are classes,
`file_labels` what a file and a pattern may be, `images.files` which files are images, and `transform` how images become
bytes of one shape. Everything that is left out is counted and named in `Source.reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.common.text import join_some, pluralize
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.file_labels import DATASET_JSON, labels_by_name, match_names, parse_labels
from diffusion_core.data.labels import read_labels
from diffusion_core.data.layout import read_layout, split_name
from diffusion_core.data.reading import BY_CONTENT, Reading
from diffusion_core.data.source import Source
from diffusion_core.files.safe_read import file_errors, parse_json, read_bytes
from diffusion_core.images.decode import Member
from diffusion_core.images.decode import read_bytes as read_image_bytes
from diffusion_core.images.files import (
    OTHER_FILES,
    Folder,
    natural_order,
    plain_order,
    readable_name,
    readable_suffixes,
    scan,
)
from diffusion_core.images.zip_files import scan_zip

__all__ = ["FOLDER", "ZIP", "image_folder", "zip_archive"]

FOLDER = DatasetInfo("Images of a folder", size=64)
ZIP = DatasetInfo("Images of a zip archive", size=None, channels=None)
_PACKED = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")
_ORDERS = {"natural": natural_order, "plain": plain_order}
_UNMATCHED = "images whose names do not match data.options.pattern"
_UNKNOWN = "names in the file of labels that are no images here"
_MAX_LABELS = 1 << 28


@dataclass(frozen=True, eq=False)
class _Files:
    """The images of a folder or an archive, and how to read other files of it."""

    what: str
    name: str
    path: Path
    tree: Folder
    left_out: Mapping[str, list[str]]
    by_content: list[str]
    relative: Callable[[Any], str]
    read: Callable[[str], bytes | None]


def image_folder(
    path: Path,
    *,
    layout: str = "auto",
    order: str = "natural",
    labels: str | None = None,
    pattern: str | None = None,
) -> dict[str, Source]:
    """Return the parts of a folder, or the only part "all"; the name of an image is its path within the folder.

    Args:
        path: the folder.
        layout: "auto" recognises the layout; "flat" makes one class of all images; "classes" takes every folder
            directly inside for a class, "splits" for a part.
        order: "natural" sorts img2 before img10; "plain" sorts character by character.
        labels: a file of labels, in the folder or elsewhere: .json as EDM has it, .jsonl or .csv. None reads
            dataset.json if there is one and `layout` is "auto".
        pattern: of the names of the images, as {class}_{number}.png, or a regular expression with a group "class".

    Raises:
        DuetError: the folder does not exist, holds no images, or can be read in two ways; or an image has no label.
    """
    suffixes = ", ".join(sorted(readable_suffixes()))
    if not path.is_dir():
        what = "is not a folder" if Path(path).exists() else "does not exist"
        if path.is_file() and path.suffix.lower() in _PACKED:
            what += "; data=zip reads it" if path.suffix.lower() == ".zip" else "; unpack it first"
        raise DuetError(
            f"image folder: {str(path)!r} {what}; it must hold images ({suffixes}), or one folder of images per class"
        )
    tree, scanned = scan(path, _order(order))
    files = _Files(
        "image folder", readable_name(path.resolve().name), path, tree, scanned.names, scanned.by_content,
        lambda file: readable_name(file.relative_to(path).as_posix()),
        lambda name: read_bytes(path / name, _MAX_LABELS) if (path / name).is_file() else None,
    )  # fmt: skip
    if not tree.count and (any(path.glob("*/data.json")) or (path / "data.json").is_file()):
        raise DuetError(
            f"image folder: {str(path)!r} holds no images; it is a prepared data set, which data=store "
            f"data.options.directory={path} reads"
        )
    return _sources(files, layout, order, labels, pattern)


def zip_archive(
    path: Path,
    *,
    layout: str = "auto",
    order: str = "natural",
    labels: str | None = None,
    pattern: str | None = None,
) -> dict[str, Source]:
    """Return the parts of a zip archive of images, as of a folder; nothing is unpacked.

    Args:
        path: the archive.
        layout: as for `image_folder`, like order, labels and pattern.
        order: of the names.
        labels: a file of labels, in the archive or elsewhere.
        pattern: of the names of the images.

    Raises:
        DuetError: the archive does not exist, holds no images, or can be read in two ways; or an image has no label.
    """
    if path.is_dir():
        raise DuetError(f"zip: {str(path)!r} is a folder; data=image_folder reads it")
    tree, scanned = scan_zip(path, _order(order))
    every = {str(one.name) for one in tree.every_image()}

    def read(name: str) -> bytes | None:
        is_there = name in every or name in scanned.names.get(OTHER_FILES, ())
        return read_image_bytes(Member(path, name)) if is_there else None

    files = _Files(
        "zip", readable_name(path.stem), path, tree, scanned.names, scanned.by_content,
        lambda member: readable_name(member.name), read,
    )  # fmt: skip
    return _sources(files, layout, order, labels, pattern)


def _order(order: str) -> Callable[[str], object]:
    check_choice("data.options.order", order, _ORDERS)
    return _ORDERS[order]


def _sources(files: _Files, layout: str, order: str, labels: str | None, pattern: str | None) -> dict[str, Source]:
    """Return the parts, with classes from a file of labels, from names, or from folders."""
    if not files.tree.count:
        seen = Reading(left_out=files.left_out).lines
        found = f" ({'; '.join(seen)})" if seen else ""
        suffixes = ", ".join(sorted(readable_suffixes()))
        if any(name.endswith(".npy") for names in files.left_out.values() for name in names):
            found += "; data=arrays reads .npy files"
        raise DuetError(
            f"{files.what}: {str(files.path)!r} holds no images; it must hold images ({suffixes}), or one folder of "
            f"images per class{found}"
        )
    if labels is not None and pattern is not None:
        raise DuetError("data.options.pattern: a pattern and a file of labels were given; choose one of them")
    if pattern is not None:
        return _by_pattern(files, layout, pattern)
    content = _label_file(files, layout, labels)
    if content is not None:
        return _by_file(files, layout, labels or DATASET_JSON, parse_labels(labels or DATASET_JSON, content))
    found = read_layout(files.tree, layout)
    left_out: Mapping[str, list[str]] = {**files.left_out, **found.left_out}
    remarks = found.remarks
    if any(list(names) != sorted(names) for names in found.class_names.values()) and order == "natural":
        remarks += (
            "the classes are in natural order, so that 2 stands before 10; data.options.order=plain sorts their names "
            "character by character, as earlier versions did",
        )
    reading = _reading(files, remarks, left_out, list(found.files))
    return {
        part: Source(
            tuple(images), found.labels[part], found.class_names[part], files.name,
            tuple(map(files.relative, images)), reading,
        )
        for part, images in found.files.items()
    }  # fmt: skip


def _reading(files: _Files, remarks: Sequence[str], left_out: Mapping[str, list[str]], parts: Sequence[str]) -> Reading:
    if files.by_content:
        left_out = {**left_out, BY_CONTENT: files.by_content}
    return Reading(tuple(remarks), left_out, parts=tuple(parts) if len(parts) > 1 else ())


def _label_file(files: _Files, layout: str, labels: str | None) -> bytes | None:
    """Return the content of the file of labels; None without one."""
    if labels is None:
        return _dataset_json(files) if layout == "auto" else None
    content = files.read(labels)
    if content is None and not Path(labels).expanduser().is_file():
        raise DuetError(
            f"data.options.labels: {labels!r} was given; it is no file, in {str(files.path)!r} or elsewhere"
        )
    return read_bytes(Path(labels).expanduser(), _MAX_LABELS) if content is None else content


def _dataset_json(files: _Files) -> bytes | None:
    """Return the content of a dataset.json in the folder, or in the only folder in it, that has labels."""
    inner = [files.tree.folders[0].path.name] if len(files.tree.folders) == 1 and not files.tree.images else []
    for name in (DATASET_JSON, *(f"{folder}/{DATASET_JSON}" for folder in inner)):
        if (content := files.read(name)) is not None:
            with file_errors(files.path / name):
                data = parse_json(content)
            # Other programs call other files dataset.json.
            return content if isinstance(data, dict) and "labels" in data else None
    return None


def _parts(files: _Files, layout: str) -> dict[str, list[Any]]:
    """Return the images of each part, where folders are no classes: folders named after different splits are parts."""
    folders = files.tree.filled
    named = [split_name(folder.name) for folder in folders]
    kinds = [name[0] for name in named if name]
    are_splits = len(kinds) == len(folders) > 1 and len(set(kinds)) == len(kinds) and not files.tree.images
    if layout == "flat" or not (are_splits or layout == "splits"):
        return {"all": list(files.tree.every_image())}
    return {
        name[0] if name else readable_name(folder.name): list(folder.every_image())
        for name, folder in zip(named, folders, strict=True)
    }


def _by_file(files: _Files, layout: str, source: str, labels: Mapping[str, Any] | None) -> dict[str, Source]:
    """Return the parts with the labels of a file; folders are no classes then."""
    parts = _parts(files, "flat" if layout == "classes" else layout)
    names = [files.relative(image) for images in parts.values() for image in images]
    left_out = {kind: [n for n in found if n.rpartition("/")[2] != source] for kind, found in files.left_out.items()}
    left_out = {kind: found for kind, found in left_out.items() if found}
    if labels is None:
        remarks, values = [f"{source} says that there are no labels, so all images are of one class"], None
    else:
        values, unknown = labels_by_name(source, labels, names)
        remarks = [f"the labels are those of {source}; folders are no classes"]
        left_out |= {_UNKNOWN: unknown} if unknown else {}
    return _labelled(files, parts, names, values, remarks, left_out)


def _by_pattern(files: _Files, layout: str, pattern: str) -> dict[str, Source]:
    """Return the parts with the classes, and perhaps the parts, that the names of the images say."""
    parts = _parts(files, "flat" if layout == "classes" else layout)
    every = [(part, image) for part, images in parts.items() for image in images]
    found = match_names(pattern, [files.relative(image) for _, image in every])
    unmatched = [files.relative(image) for (_, image), match in zip(every, found, strict=True) if match is None]
    by_part: dict[str, list[tuple[Any, str | None]]] = {}
    for (part, image), match in zip(every, found, strict=True):
        if match is not None:
            named = match.get("part", part)
            kind = split_name(named)
            by_part.setdefault(kind[0] if kind and not kind[1] else named, []).append((image, match.get("class")))
    values = [label for pairs in by_part.values() for _, label in pairs]
    counts = {name: values.count(name) for name in sorted(set(values) - {None}, key=natural_order)}
    shown = join_some([f"{name} ({count:,})" for name, count in counts.items()], 5)
    remarks = [f"the pattern {pattern} finds {pluralize(len(counts), 'class')}: {shown}"] if counts else []
    left_out = {**files.left_out, **({_UNMATCHED: unmatched} if unmatched else {})}
    parts = {part: [image for image, _ in pairs] for part, pairs in by_part.items()}
    names = [files.relative(image) for images in parts.values() for image in images]
    return _labelled(files, parts, names, values if counts else None, remarks, left_out)


def _labelled(
    files: _Files,
    parts: Mapping[str, list[Any]],
    names: Sequence[str],
    values: list[Any] | None,
    remarks: list[str],
    left_out: Mapping[str, list[str]],
) -> dict[str, Source]:
    """Return the parts of images, whose labels follow one another in the order of the parts."""
    read = read_labels(f"{files.what} {str(files.path)!r}", values, len(names), None if values else (files.name,))
    reading = _reading(files, [*remarks, *([read.remark] if read.remark else [])], left_out, list(parts))
    ends = np.cumsum([len(images) for images in parts.values()])
    sources = {}
    for (part, images), end in zip(parts.items(), ends, strict=True):
        here = slice(int(end) - len(images), int(end))
        sources[part] = Source(
            tuple(images), read.ids[here], read.class_names, files.name, tuple(names[here]), reading,
            conditions=None if read.conditions is None else read.conditions[here], condition_names=read.condition_names,
        )  # fmt: skip
    return sources

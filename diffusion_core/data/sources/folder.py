"""A folder of images: images alone, one folder per class, or one folder per split (train, test) of the classes.

`layout` says which folders are parts and which are classes, `images.files` which files are images, and `transform` how
images become bytes of one shape. Everything that is left out is counted and named in `Source.reading`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.layout import read_layout
from diffusion_core.data.reading import BY_CONTENT, Reading
from diffusion_core.data.source import Source
from diffusion_core.images.files import natural_order, plain_order, readable_name, readable_suffixes, scan

__all__ = ["FOLDER", "image_folder"]

FOLDER = DatasetInfo("Images of a folder", size=64)
_PACKED = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")
_ORDERS = {"natural": natural_order, "plain": plain_order}


def image_folder(path: Path, *, layout: str = "auto", order: str = "natural") -> dict[str, Source]:
    """Return the parts of a folder, or the only part "all"; the name of an image is its path within the folder.

    Args:
        path: the folder.
        layout: "auto" recognises the layout; "flat" makes one class of all images; "classes" takes every folder
            directly inside for a class, "splits" for a part.
        order: "natural" sorts img2 before img10; "plain" sorts character by character.

    Raises:
        DuetError: the folder does not exist, holds no images, or can be read in two ways.
    """
    if order not in _ORDERS:
        raise one_of("data.options.order", order, _ORDERS)
    suffixes = ", ".join(sorted(readable_suffixes()))
    if not path.is_dir():
        what = "is not a folder" if Path(path).exists() else "does not exist"
        what += "; unpack it first" if path.is_file() and path.suffix.lower() in _PACKED else ""
        raise DuetError(
            f"image folder: {str(path)!r} {what}; it must hold images ({suffixes}), or one folder of images per class"
        )
    tree, scanned = scan(path, _ORDERS[order])
    if not tree.count:
        seen = Reading(left_out=scanned.names).lines
        found = f" ({'; '.join(seen)})" if seen else ""
        if any(path.glob("*/data.json")) or (path / "data.json").is_file():
            found += f"; it is a prepared data set, which data=store data.options.directory={path} reads"
        raise DuetError(
            f"image folder: {str(path)!r} holds no images; it must hold images ({suffixes}), or one folder of images "
            f"per class{found}"
        )
    found = read_layout(tree, layout)
    left_out: Mapping[str, list[str]] = {**scanned.names, **found.left_out}
    if scanned.by_content:
        left_out = {**left_out, BY_CONTENT: scanned.by_content}
    remarks = found.remarks
    if any(list(names) != sorted(names) for names in found.class_names.values()) and order == "natural":
        remarks += (
            "the classes are in natural order, so that 2 stands before 10; data.options.order=plain sorts their names "
            "character by character, as earlier versions did",
        )
    reading = Reading(remarks, left_out, parts=tuple(found.files) if len(found.files) > 1 else ())
    name = readable_name(path.resolve().name)
    return {
        part: Source(
            tuple(files), found.labels[part], found.class_names[part], name,
            tuple(readable_name(file.relative_to(path).as_posix()) for file in files), reading,
        )
        for part, files in found.files.items()
    }  # fmt: skip

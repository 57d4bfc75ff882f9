"""CelebA: 202,599 faces, aligned and cropped to 178 x 218 pixels, with forty attributes.

``img_align_celeba.zip`` holds the images. ``list_eval_partition.txt`` has the part of each (0 training, 1 validation, 2
test), one per line. ``list_attr_celeba.txt`` has the attributes: the number of images, a line of names, then one line
per image with 1 or -1 for each. The images are read inside the archive.

References:
    Deep Learning Face Attributes in the Wild (Liu et al., 2015), https://arxiv.org/abs/1411.7766
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError, check_choice
from diffusion_core.data.archives import Archive, DatasetInfo, require_file
from diffusion_core.data.source import Source
from diffusion_core.images.decode import Member

__all__ = ["CELEBA", "celeba"]

_ZIP, _PARTS, _ATTRIBUTES = "img_align_celeba.zip", "list_eval_partition.txt", "list_attr_celeba.txt"

CELEBA = DatasetInfo(
    "CelebA, faces with attributes",
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "for non-commercial research only, according to its page; the images show real people",
    "Liu, Luo, Wang and Tang: Deep learning face attributes in the wild, 2015",
    tuple(Archive((name,)) for name in (_ZIP, _PARTS, _ATTRIBUTES)),
    64,
)


def celeba(path: Path, *, attribute: str | None = None) -> dict[str, Source]:
    """Return the parts "train", "validation" and "test".

    Args:
        path: the folder that holds the three files, at any depth.
        attribute: an attribute that defines two classes, such as ``"Smiling"``; None puts all images into one class.
    """
    archive = require_file("celeba", path, _ZIP)
    part_of = dict(_rows(require_file("celeba", path, _PARTS), 0))
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {name.rsplit("/", 1)[-1]: name for name in opened.namelist() if name.lower().endswith(".jpg")}
    except (OSError, zipfile.BadZipFile) as error:
        raise DuetError(
            f"celeba: {str(archive)!r} cannot be read as a zip archive: {error}; download it again"
        ) from error
    label_of, class_names = dict.fromkeys(part_of, 0), ("face",)
    if attribute is not None:
        rows = _rows(require_file("celeba", path, _ATTRIBUTES), 1)
        attributes = rows.pop(0)
        check_choice("attribute of celeba", attribute, attributes)
        place = attributes.index(attribute) + 1
        label_of = {row[0]: int(row[place] == "1") for row in rows}
        class_names = (f"not {attribute}", attribute)
    sources = {}
    for code, part in enumerate(("train", "validation", "test")):
        names = tuple(sorted(name for name, part_code in part_of.items() if part_code == str(code)))
        missing = [name for name in names if name not in members or name not in label_of]
        if missing or not names:
            raise DuetError(
                f"celeba: {missing[0] if missing else 'every image'} of part {part} is missing from {str(archive)!r} "
                f"or from the list of attributes; the three files must be of one release; download them again"
            )
        labels = np.array([label_of[name] for name in names])
        sources[part] = Source(tuple(Member(archive, members[n]) for n in names), labels, class_names, "celeba", names)
    return sources


def _rows(file: Path, skip: int) -> list[list[str]]:
    """Return the words of every line after the first few."""
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()[skip:] if line.strip()]
    except (OSError, ValueError) as error:
        raise DuetError(f"celeba: {str(file)!r} cannot be read: {error}") from error
    if not rows or len({len(row) for row in rows[skip:]}) > 1 or len(rows[-1]) < 2:
        raise DuetError(f"celeba: {str(file)!r} is not a list of images, one per line; download it again")
    return rows

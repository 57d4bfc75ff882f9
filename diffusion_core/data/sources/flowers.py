"""Oxford Flowers 102: 8,189 colour images of any size in 102 classes, which its files number from 1.

``102flowers.tgz`` holds jpg/image_00001.jpg and so on, ``imagelabels.mat`` the class of each, and ``setid.mat`` the
images for training (1,020), validation (1,020) and test (6,149). The folder jpg can replace the archive.

References:
    Automated flower classification over a large number of classes (Nilsback and Zisserman, 2008),
    https://www.robots.ox.ac.uk/~vgg/data/flowers/102
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import Archive, DatasetInfo, find_file, read_tar_members, require_file
from diffusion_core.data.source import Source
from diffusion_core.data.sources.matlab import read_mat

__all__ = ["FLOWERS", "flowers102"]

_BASE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_ARCHIVE, _FIRST = "102flowers.tgz", "image_00001.jpg"
_SETS = {"train": "trnid", "validation": "valid", "test": "tstid"}

FLOWERS = DatasetInfo(
    "Oxford Flowers 102",
    _BASE.rstrip("/"),
    "not stated by its authors; the images are from the web",
    "Nilsback and Zisserman: Automated flower classification over a large number of classes, 2008",
    (
        Archive((_ARCHIVE, _FIRST), _BASE + _ARCHIVE, "52808999861908f626f3c1f4e79d11fa"),
        Archive(("imagelabels.mat",), f"{_BASE}imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
        Archive(("setid.mat",), f"{_BASE}setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
    ),
    64,
)


def flowers102(path: Path) -> dict[str, Source]:
    """Return the parts "train", "validation" and "test".

    Args:
        path: the folder that holds the files, at any depth.
    """
    (labels,) = read_mat("flowers102", require_file("flowers102", path, "imagelabels.mat"), "labels")
    ids = read_mat("flowers102", require_file("flowers102", path, "setid.mat"), *_SETS.values())
    labels = labels.reshape(-1).astype(np.int32) - 1
    first = find_file(path, _FIRST)
    if first is not None:
        images = {file.name: file for file in first.parent.glob("image_*.jpg")}
    else:
        archive = require_file("flowers102", path, _ARCHIVE)
        images, _ = read_tar_members("flowers102", archive, lambda n: n.endswith(".jpg"), f"it must be {_ARCHIVE}")
    class_names = tuple(f"{k:03d}" for k in range(1, 103))
    sources = {}
    for part, chosen in zip(_SETS, ids, strict=True):
        chosen = np.sort(chosen.reshape(-1).astype(np.int64))
        names = tuple(f"image_{k:05d}.jpg" for k in chosen)
        missing = [name for name in names if name not in images]
        if missing or chosen.min() < 1 or chosen.max() > len(labels):
            raise DuetError(
                f"flowers102: {missing[0] if missing else 'an image of setid.mat'} is missing; download all three"
            )
        sources[part] = Source(
            tuple(images[name] for name in names), labels[chosen - 1], class_names, "flowers102", names
        )
    return sources

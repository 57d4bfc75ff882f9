"""STL-10: colour images of 96 x 96 pixels, 5,000 + 8,000 in ten classes and 100,000 without a class.

``stl10_binary.tar.gz``, or the folder that it unpacks to, holds train_X.bin, train_y.bin, test_X.bin, test_y.bin,
unlabeled_X.bin and class_names.txt. A file of images has 27,648 bytes per image, as (channel, column, row); a file of
labels has one byte per image, counted from 1. Files of a folder are memory-mapped; members of an archive are read into
memory.

References:
    An Analysis of Single-Layer Networks in Unsupervised Feature Learning (Coates et al., 2011),
    https://cs.stanford.edu/~acoates/stl10
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import Archive, DatasetInfo, find_file, read_tar_members
from diffusion_core.data.source import Source

__all__ = ["STL10", "stl10"]

_ARCHIVE, _NAMES = "stl10_binary.tar.gz", "class_names.txt"
_SHAPE = (3, 96, 96)
_EXPECTED = f"it must be {_ARCHIVE}, or the folder that it unpacks to"

STL10 = DatasetInfo(
    "STL-10, images in ten classes, and unlabelled images",
    "https://cs.stanford.edu/~acoates/stl10",
    "not stated by its authors; its images are from ImageNet",
    "Coates, Lee and Ng: An analysis of single-layer networks in unsupervised feature learning, 2011",
    (
        Archive(
            (_ARCHIVE, "train_X.bin"),
            f"http://ai.stanford.edu/~acoates/stl10/{_ARCHIVE}",
            "91f7769df0f17e558f3565bffb0c7dfb",
        ),
    ),
    96,
)


def stl10(path: Path, *, unlabelled: bool = False) -> dict[str, Source]:
    """Return the parts "train" and "test", and optionally "unlabelled", which has one class.

    Args:
        path: the archive, the folder that it unpacks to, or a folder that holds either.
        unlabelled: whether to read the images without a class too, 2.8 GB.
    """
    wanted = [f"{part}_{axis}.bin" for part in ("train", "test") for axis in "Xy"] + [_NAMES]
    wanted += ["unlabeled_X.bin"] if unlabelled else []
    first = find_file(path, "train_X.bin")
    if first is not None:
        files = {name: first.parent / name for name in wanted if (first.parent / name).is_file()}
        read = {name: np.memmap(file, np.uint8, "r") for name, file in files.items() if file.stat().st_size}
    else:
        archive = path if path.is_file() else find_file(path, _ARCHIVE)
        if archive is None:
            raise DuetError(f"stl10: {str(path)!r} has no {_ARCHIVE}; {_EXPECTED}")
        contents, _ = read_tar_members("stl10", archive, set(wanted).__contains__, _EXPECTED)
        read = {name: np.frombuffer(data, np.uint8) for name, data in contents.items()}
    for name in wanted:
        if name not in read:
            raise DuetError(f"stl10: {str(path)!r} has no {name}, or an empty one; {_EXPECTED}")
        if name.endswith("X.bin") and read[name].size % np.prod(_SHAPE):
            raise DuetError(f"stl10: {name} of {str(path)!r} is truncated; download it again")
    names = tuple(bytes(read[_NAMES]).decode("utf-8", "replace").split())
    sources = {}
    for part in ("train", "test"):
        labels = read[f"{part}_y.bin"].astype(np.int32) - 1
        sources[part] = Source(_images(read[f"{part}_X.bin"]), labels, names, "stl10")
    if unlabelled:
        images = _images(read["unlabeled_X.bin"])
        sources["unlabelled"] = Source(images, np.zeros(len(images), np.int32), ("unlabelled",), "stl10")
    return sources


def _images(data: np.ndarray) -> np.ndarray:
    return data.reshape(-1, *_SHAPE).transpose(0, 3, 2, 1)

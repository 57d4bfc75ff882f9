"""SVHN, street view house numbers: colour images of 32 x 32 pixels, each cropped around one digit.

``train_32x32.mat`` (73,257), ``test_32x32.mat`` (26,032) and the optional ``extra_32x32.mat`` (531,131) are MATLAB
files of two arrays: X, uint8 with shape (32, 32, 3, N), and y, with shape (N, 1), where 10 stands for the digit 0.

References:
    Reading Digits in Natural Images with Unsupervised Feature Learning (Netzer et al., 2011),
    http://ufldl.stanford.edu/housenumbers
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusion_core.data.archives import Archive, DatasetInfo, find_file, require_file
from diffusion_core.data.source import Source
from diffusion_core.data.sources.matlab import read_mat

__all__ = ["SVHN", "svhn"]

_BASE = "http://ufldl.stanford.edu/housenumbers/"

SVHN = DatasetInfo(
    "SVHN, street view house numbers",
    _BASE.rstrip("/"),
    "for non-commercial use only, according to its page",
    "Netzer et al.: Reading digits in natural images with unsupervised feature learning, 2011",
    (
        Archive(("train_32x32.mat",), f"{_BASE}train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        Archive(("test_32x32.mat",), f"{_BASE}test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    ),
)


def svhn(path: Path) -> dict[str, Source]:
    """Return the parts "train" and "test", and "extra" if its file exists.

    Args:
        path: the folder that holds the files, at any depth.
    """
    files = {part: require_file("svhn", path, f"{part}_32x32.mat") for part in ("train", "test")}
    if extra := find_file(path, "extra_32x32.mat"):
        files["extra"] = extra
    sources = {}
    for part, file in files.items():
        x, y = read_mat("svhn", file, "X", "y")
        images = np.ascontiguousarray(x.transpose(3, 0, 1, 2))
        sources[part] = Source(images, y.reshape(-1).astype(np.int32) % 10, tuple("0123456789"), "svhn")
    return sources

"""MNIST and Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28 pixels in ten classes.

Both are four files in the idx format, gzipped or not: two zero bytes, the type (8 is a byte), the number of axes, their
lengths as big-endian 32-bit numbers, then the values. MNIST is also read from Keras's ``mnist.npz``.

References:
    Gradient-based learning applied to document recognition (LeCun et al., 1998), http://yann.lecun.com/exdb/mnist
    Fashion-MNIST (Xiao et al., 2017), https://arxiv.org/abs/1708.07747
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError
from diffusion_core.data.archives import Archive, DatasetInfo, find_file, read_packed, require_file
from diffusion_core.data.source import Source
from diffusion_core.files.safe_read import open_npz

__all__ = ["FASHION", "MNIST", "fashion_mnist", "mnist"]

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NPZ = "mnist.npz"
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _archives(base: str, hashes: tuple[str, ...], *others: str) -> tuple[Archive, ...]:
    pairs = zip(_FILES, hashes, strict=True)
    return tuple(Archive((f"{name}.gz", name, *others), f"{base}{name}.gz", md5) for name, md5 in pairs)


MNIST = DatasetInfo(
    "MNIST, handwritten digits",
    "http://yann.lecun.com/exdb/mnist",
    "CC BY-SA 3.0, by Yann LeCun and Corinna Cortes",
    "LeCun, Bottou, Bengio and Haffner: Gradient-based learning applied to document recognition, 1998",
    _archives(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        _NPZ,
    ),
    28,
    1,
)  # fmt: skip
FASHION = DatasetInfo(
    "Fashion-MNIST, articles of clothing",
    "https://github.com/zalandoresearch/fashion-mnist",
    "MIT, by Zalando SE",
    "Xiao, Rasul and Vollgraf: Fashion-MNIST, a novel image dataset for benchmarking machine learning algorithms, 2017",
    _archives(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    28,
    1,
)  # fmt: skip


def mnist(path: Path) -> dict[str, Source]:
    """Return the parts "train" and "test".

    Args:
        path: the folder that holds the four files or mnist.npz, at any depth; or mnist.npz itself.
    """
    if file := find_file(path, _NPZ):
        with open_npz(file, "Keras's mnist.npz") as arrays:
            read = [arrays[f"{axis}_{part}"] for part in ("train", "test") for axis in "xy"]
        return _parts("mnist", read, tuple("0123456789"))
    return _parts("mnist", _idx_files("mnist", path), tuple("0123456789"))


def fashion_mnist(path: Path) -> dict[str, Source]:
    """Return the parts "train" and "test".

    Args:
        path: the folder that holds the four files, at any depth.
    """
    return _parts("fashion_mnist", _idx_files("fashion_mnist", path), _CLOTHES)


def _idx_files(what: str, path: Path) -> list[NDArray[np.uint8]]:
    files = [require_file(what, path, f"{name}.gz", name) for name in _FILES]
    return [_idx(what, file, read_packed(what, file)) for file in files]


def _idx(what: str, file: Path, data: bytes) -> NDArray[np.uint8]:
    """Return the array of an idx file of bytes."""
    axes = data[3] if len(data) > 3 else 0
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * axes], ">u4").tolist()) if len(data) >= 4 + 4 * axes else ()
    if data[:3] != b"\0\0\x08" or len(data) - 4 - 4 * axes != int(np.prod(shape)) or not shape:
        raise DuetError(f"{what}: {str(file)!r} is not a complete idx file of bytes; download it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _parts(what: str, read: list[NDArray], names: tuple[str, ...]) -> dict[str, Source]:
    parts = {}
    for part, images, labels in (("train", *read[:2]), ("test", *read[2:])):
        if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
            raise DuetError(
                f"{what}: {images.dtype} images {images.shape} and labels {labels.shape} were found for {part}; they "
                f"must be uint8 (N, 28, 28) and (N,)"
            )
        parts[part] = Source(images[..., None], labels, names, what)
    return parts

"""The data sets that are read from the files of their authors.

Each is a function from a path, with options of its own, to the parts of the data set by name; see `source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from diffusion_core.data.archives import DatasetInfo
from diffusion_core.data.source import Source
from diffusion_core.data.sources import arrays, celeba, cifar, flowers, folder, hf_folder, mnist, stl10, svhn
from diffusion_core.images import files as images

__all__ = ["DATASET_INFO", "SOURCES", "reader_of_path"]

SOURCES: Mapping[str, Callable[..., dict[str, Source]]] = {
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
    "mnist": mnist.mnist,
    "fashion_mnist": mnist.fashion_mnist,
    "svhn": svhn.svhn,
    "stl10": stl10.stl10,
    "celeba": celeba.celeba,
    "flowers102": flowers.flowers102,
    "image_folder": folder.image_folder,
    "zip": folder.zip_archive,
    "hf_folder": hf_folder.hf_folder,
    "npz": arrays.npz,
    "array": arrays.array,
    "arrays": arrays.arrays,
}

DATASET_INFO: Mapping[str, DatasetInfo] = {
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "mnist": mnist.MNIST,
    "fashion_mnist": mnist.FASHION,
    "svhn": svhn.SVHN,
    "stl10": stl10.STL10,
    "celeba": celeba.CELEBA,
    "flowers102": flowers.FLOWERS,
    "image_folder": folder.FOLDER,
    "zip": folder.ZIP,
    "hf_folder": hf_folder.HF_FOLDER,
    "npz": arrays.NPZ,
    "array": arrays.ARRAY,
    "arrays": arrays.ARRAYS,
}

_SUFFIXES = {".zip": "zip", ".npz": "arrays", ".npy": "arrays", ".parquet": "hf_folder", ".arrow": "hf_folder"}


def reader_of_path(path: Path) -> tuple[str, str]:
    """Return the name of the data set that reads a file or a folder, and the name of its option for the path."""
    if path.is_dir():
        is_store = (path / "data.json").is_file() or any(path.glob("*/data.json"))
        if is_store:
            return "store", "directory"
        if hf_folder.is_hf_folder(path):
            return "hf_folder", "path"
        return "arrays" if _holds_arrays(path) else "image_folder", "path"
    return _SUFFIXES.get(path.suffix.lower(), "image_folder"), "path"


def _holds_arrays(path: Path) -> bool:
    """Return whether the first file in a folder that is an image or an array is an array."""
    suffixes = images.readable_suffixes() | {".npy"}
    files = (file for file in sorted(path.iterdir()) if file.suffix.lower() in suffixes)
    deeper = (file for file in sorted(path.glob("*/*")) if file.suffix.lower() in suffixes)
    first = next(files, None) or next(deeper, None)
    return first is not None and first.suffix.lower() == ".npy"

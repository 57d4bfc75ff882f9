"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32 x 32 pixels, read from their binary versions.

The archive ``cifar-10-binary.tar.gz``, or the folder that it unpacks to, holds data_batch_1.bin ..
data_batch_5.bin (training), test_batch.bin and batches.meta.txt, the class names one per line;
``cifar-100-binary.tar.gz`` holds train.bin, test.bin, fine_label_names.txt and coarse_label_names.txt. A batch is a
sequence of records without a header::

    1 byte         label; in CIFAR-100 two, the coarse one of 20 and the fine one of 100
    3072 bytes     pixels as (channel, row, column): red, then green, then blue

Nothing is unpacked to disk and nothing is unpickled. The "python" version of an archive consists of pickles, which can
carry code, so it is refused.

References:
    Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009),
    https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_core.common.errors import DuetError, one_of
from diffusion_core.data.archives import Archive, DatasetInfo, find_file, read_tar_members
from diffusion_core.data.source import Source

__all__ = ["CIFAR10", "CIFAR100", "CLASS_NAMES", "cifar10", "cifar100"]

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIZE, _CHANNELS = 32, 3
_PIXELS = _CHANNELS * _SIZE * _SIZE
_HOME = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class _Version:
    """The content of the binary version of CIFAR-10 or CIFAR-100."""

    name: str
    parts: dict[str, tuple[str, ...]]
    meta: str
    classes: int
    labels: int  # label bytes before the pixels of a record
    label: int  # the index of the label that is used
    default: tuple[str, ...] | None = None

    @property
    def number(self) -> str:
        return self.name.removeprefix("cifar")

    @property
    def archive(self) -> str:
        return f"cifar-{self.number}-binary.tar.gz"

    @property
    def expected(self) -> str:
        return f'it must be {self.archive} ("CIFAR-{self.number} binary version"), or the folder with its .bin files'


def _about(number: int, md5: str) -> DatasetInfo:
    name = f"cifar-{number}-binary.tar.gz"
    return DatasetInfo(
        f"CIFAR-{number}, small images in {number} classes",
        f"{_HOME}cifar.html",
        "not stated by its authors; used in research with the citation",
        "Krizhevsky: Learning multiple layers of features from tiny images, 2009",
        (Archive((name, "data_batch_1.bin" if number == 10 else "fine_label_names.txt"), _HOME + name, md5),),
        _SIZE,
        _CHANNELS,
    )


CIFAR10 = _about(10, "c32a1d4ab5d03f1284b67883e8d87530")
CIFAR100 = _about(100, "03b5dce01913d631647c71ecec9e9cb8")

_TEN = _Version(
    "cifar10",
    {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
    "batches.meta.txt",
    10,
    1,
    0,
    CLASS_NAMES,
)


def cifar10(path: Path) -> dict[str, Source]:
    """Return the parts "train" and "test", in the order of the files.

    Args:
        path: the binary archive, the folder that it unpacks to, or a folder that holds either.

    Raises:
        DuetError: there is no such file, it is not the binary version, or a batch is missing or truncated.
    """
    return _read(_TEN, path)


def cifar100(path: Path, *, labels: str = "fine") -> dict[str, Source]:
    """Return the parts "train" and "test".

    Args:
        path: as in `cifar10`.
        labels: ``"fine"`` for the 100 classes, ``"coarse"`` for the 20 groups of classes.
    """
    if labels not in ("fine", "coarse"):
        raise one_of("labels of cifar100", labels, ("fine", "coarse"))
    fine = labels == "fine"
    parts = {"train": ("train.bin",), "test": ("test.bin",)}
    return _read(_Version("cifar100", parts, f"{labels}_label_names.txt", 100 if fine else 20, 2, int(fine)), path)


def _read(version: _Version, path: Path) -> dict[str, Source]:
    if path.is_dir():
        path = find_file(path, version.archive) or path
    wanted = {name for files in version.parts.values() for name in files} | {version.meta}
    files = _from_folder(version, path, wanted) if path.is_dir() else _from_archive(version, path, wanted)
    names = _class_names(version, path, files.pop(version.meta, None))
    sources = {}
    for part, batches in version.parts.items():
        records = np.concatenate([_records(version, path, name, files[name]) for name in batches])
        images = records[:, version.labels :].reshape(-1, _CHANNELS, _SIZE, _SIZE).transpose(0, 2, 3, 1)
        sources[part] = Source(np.ascontiguousarray(images), records[:, version.label], names, version.name)
    return sources


def _from_folder(version: _Version, folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """Return the contents of the wanted files in a folder, or in a folder below it."""
    first = min((file for name in wanted for file in folder.rglob(name)), default=None)
    folder = folder if first is None else first.parent
    try:
        present = {file.name: file for file in folder.iterdir() if file.is_file()}
        _check_members(version, folder, list(present))
        return {name: present[name].read_bytes() for name in wanted if name in present}
    except OSError as error:
        raise DuetError(f"{version.name}: {str(folder)!r} cannot be read: {error}") from error


def _from_archive(version: _Version, file: Path, wanted: set[str]) -> dict[str, bytes]:
    """Return the contents of the wanted members of an archive, in any of its folders."""
    if not file.is_file():
        raise DuetError(f"{version.name}: {str(file)!r} is not a file or a folder; {version.expected}")
    contents, names = read_tar_members(version.name, file, wanted.__contains__, version.expected)
    _check_members(version, file, names)
    return contents


def _check_members(version: _Version, source: Path, names: list[str]) -> None:
    """Refuse a source that lacks a batch; class names are checked later."""
    batches = [name for files in version.parts.values() for name in files]
    missing = [name for name in batches if name not in names]
    if not missing:
        return
    if any(name.removesuffix(".bin") in names for name in missing):
        raise DuetError(
            f"{version.name}: {str(source)!r} is the python version, which consists of pickles and is not opened; "
            f"{version.expected}"
        )
    raise DuetError(f"{version.name}: {str(source)!r} has no {missing[0]}; {version.expected}")


def _class_names(version: _Version, source: Path, meta: bytes | None) -> tuple[str, ...]:
    if meta is None and version.default is None:
        raise DuetError(f"{version.name}: {str(source)!r} has no {version.meta}; {version.expected}")
    names = version.default if meta is None else tuple(meta.decode("utf-8", "replace").split())
    if len(names) != version.classes:
        raise DuetError(
            f"{version.name}: {version.meta} of {str(source)!r} names {len(names)} classes; there must be "
            f"{version.classes}"
        )
    return names


def _records(version: _Version, source: Path, name: str, content: bytes) -> NDArray[np.uint8]:
    """Return the records of a batch, with shape (N, labels + 3072)."""
    length = version.labels + _PIXELS
    if not content or len(content) % length:
        raise DuetError(
            f"{version.name}: {name} of {str(source)!r} has {len(content)} bytes; it must be a whole number of records "
            f"of {length} bytes, at least one; download it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    labels = records[:, version.label]
    if labels.max() >= version.classes:
        wrong = int(np.argmax(labels >= version.classes))
        raise DuetError(
            f"{version.name}: record {wrong} of {name} of {str(source)!r} has label {labels[wrong]}; "
            f"the labels are 0..{version.classes - 1}"
        )
    return records

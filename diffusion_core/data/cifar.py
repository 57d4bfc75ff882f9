r"""CIFAR-10: 60,000 colour pictures of 32 x 32 pixels in ten classes, read from its binary version.

The archive ``cifar-10-binary.tar.gz``, or the folder that it unpacks to, holds data_batch_1.bin ..
data_batch_5.bin (training), test_batch.bin and batches.meta.txt, the class names one per line. A batch is a
row of records without a header::

    1 byte         label
    3072 bytes     pixels as (channel, row, column): red, then green, then blue

The bytes are read as they stand: nothing is unpacked to disk and nothing is unpickled. The "python" version of
the archive is made of pickles, which can carry code, so it is refused.

References:
    Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009),
    https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_core.data.dataset import Dataset
from diffusion_core.errors import DuetError, one_of

__all__ = ["CLASS_NAMES", "PARTS", "cifar10"]

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_TEST = ("test_batch.bin",)
PARTS = {"both": _TRAIN + _TEST, "train": _TRAIN, "test": _TEST}

_SIZE, _CHANNELS = 32, 3
_RECORD = 1 + _CHANNELS * _SIZE * _SIZE
_META = "batches.meta.txt"
_FITS = 'it must be cifar-10-binary.tar.gz ("CIFAR-10 binary version"), or the folder with its .bin files'


def cifar10(path: str | Path, part: str = "both", size: int = _SIZE) -> Dataset:
    """The pictures in the order of the files, in memory.

    Args:
        path: the binary archive, or the folder that it unpacks to.
        part: ``"train"``, ``"test"``, or ``"both"``, training first.
        size: height and width in pixels; another one than 32 is resized with an antialiasing filter (Lanczos).

    Raises:
        DuetError: there is no such file, it is not the binary version, or a batch is missing or cut short.
    """
    if part not in PARTS:
        raise one_of("part of cifar10", part, PARTS)
    if size < 1:
        raise DuetError(f"cifar10: size {size} was given; it must be at least 1")
    source = Path(path).expanduser()
    wanted = (*PARTS[part], _META)
    files = _from_folder(source, wanted) if source.is_dir() else _from_archive(source, wanted)
    names = _class_names(source, files.pop(_META, None))
    records = np.concatenate([_records(source, name, files[name], len(names)) for name in PARTS[part]])
    images = records[:, 1:].reshape(-1, _CHANNELS, _SIZE, _SIZE).transpose(0, 2, 3, 1)
    return Dataset(_resized(images, size), records[:, 0].astype(np.int32), names, "cifar10")


def _from_folder(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of the wanted files in a folder, or in the one folder that the archive makes in it."""
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    present = {file.name: file for file in folder.iterdir() if file.is_file()}
    _check_members(folder, list(present), wanted)
    try:
        return {name: present[name].read_bytes() for name in wanted if name in present}
    except OSError as error:
        raise DuetError(f"cifar10: {str(folder)!r} cannot be read: {error}") from error


def _from_archive(file: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of the wanted members of an archive, in whatever folder they are in it."""
    if not file.is_file():
        raise DuetError(f"cifar10: {str(file)!r} is no file and no folder; {_FITS}")
    found, names = {}, []
    try:
        with tarfile.open(file, "r:*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name = PurePosixPath(member.name).name
                names.append(name)
                if name in wanted:
                    found[name] = archive.extractfile(member).read()
            # An archive ends before its file does, and gzip compares its checksum at the end of the file.
            while archive.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DuetError(f"cifar10: {str(file)!r} cannot be read as an archive: {error}; {_FITS}") from error
    _check_members(file, names, wanted)
    return found


def _check_members(source: Path, names: list[str], wanted: tuple[str, ...]) -> None:
    """Refuse a source that lacks a batch; the class names alone may be missing."""
    missing = [name for name in wanted if name not in names and name != _META]
    if not missing:
        return
    if any(name.removesuffix(".bin") in names for name in missing):
        raise DuetError(
            f"cifar10: {str(source)!r} is the python version, whose files are pickles and are not opened; {_FITS}"
        )
    raise DuetError(f"cifar10: {str(source)!r} holds no {missing[0]}; {_FITS}")


def _class_names(source: Path, meta: bytes | None) -> tuple[str, ...]:
    names = tuple(meta.decode("utf-8", "replace").split()) if meta is not None else CLASS_NAMES
    if len(names) != len(CLASS_NAMES):
        raise DuetError(f"cifar10: {_META} of {str(source)!r} names {len(names)} classes; there must be ten")
    return names


def _records(source: Path, name: str, content: bytes, classes: int) -> NDArray[np.uint8]:
    """The records of a batch, with shape (N, 3073)."""
    if not content or len(content) % _RECORD:
        raise DuetError(
            f"cifar10: {name} of {str(source)!r} has {len(content)} bytes; it must be a whole number of records of "
            f"{_RECORD} bytes, at least one; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() >= classes:
        wrong = int(np.argmax(records[:, 0] >= classes))
        raise DuetError(
            f"cifar10: record {wrong} of {name} of {str(source)!r} has label {records[wrong, 0]}; "
            f"the labels are 0..{classes - 1}"
        )
    return records


def _resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pictures with shape (N, size, size, 3)."""
    if size == _SIZE:
        return np.ascontiguousarray(images)
    resized = np.empty((len(images), size, size, _CHANNELS), np.uint8)
    for place, image in enumerate(images):
        picture = Image.fromarray(np.ascontiguousarray(image))
        resized[place] = picture.resize((size, size), Image.Resampling.LANCZOS)
    return resized

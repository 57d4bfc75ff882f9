"""Small archives in the formats that data sets are published in, written byte by byte as their pages describe them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["IMAGES", "WRITERS", "cifar10", "mnist", "mnist_npz", "png", "tar"]

# (images, labels) of every part that a writer writes.
Parts = dict[str, tuple[np.ndarray, np.ndarray]]


def _parts(shape: tuple[int, ...], classes: int, **counts: int) -> Parts:
    rng = np.random.default_rng(0)
    made = {}
    for part, count in counts.items():
        made[part] = rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, classes, count)
    return made


def tar(file: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def mnist(folder: Path, parts: Parts, packed: bool = True) -> None:
    for part, code in (("train", "train"), ("test", "t10k")):
        images, labels = parts[part]
        for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels.astype(np.uint8))):
            content, name = _idx(array), f"{code}-{kind}-ubyte"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


def mnist_npz(folder: Path, parts: Parts) -> None:
    arrays = {f"x_{part}": images[..., 0] for part, (images, _) in parts.items()}
    arrays |= {f"y_{part}": labels.astype(np.uint8) for part, (_, labels) in parts.items()}
    np.savez_compressed(folder / "mnist.npz", **arrays)


def _records(images: np.ndarray, *labels: np.ndarray) -> bytes:
    rows = [
        bytes([*(int(one[k]) for one in labels)]) + image.transpose(2, 0, 1).tobytes() for k, image in enumerate(images)
    ]
    return b"".join(rows)


def cifar10(folder: Path, parts: Parts) -> None:
    images, labels = parts["train"]
    cuts = np.array_split(np.arange(len(images)), 5)
    files = {f"data_batch_{k}.bin": _records(images[cut], labels[cut]) for k, cut in enumerate(cuts, 1)}
    files["test_batch.bin"] = _records(*parts["test"])
    tar(folder / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{name}": data for name, data in files.items()})


def cifar100(folder: Path, parts: Parts) -> None:
    files = {f"{part}.bin": _records(images, labels // 5, labels) for part, (images, labels) in parts.items()}
    files["fine_label_names.txt"] = "\n".join(f"fine{k}" for k in range(100)).encode()
    files["coarse_label_names.txt"] = "\n".join(f"coarse{k}" for k in range(20)).encode()
    tar(folder / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{name}": data for name, data in files.items()})


def svhn(folder: Path, parts: Parts) -> None:
    from scipy.io import savemat

    for part, (images, labels) in parts.items():
        y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y})


def stl10(folder: Path, parts: Parts) -> None:
    files = {"class_names.txt": "\n".join("abcdefghij").encode()}
    for part, (images, labels) in parts.items():
        files[f"{part}_X.bin"] = b"".join(image.transpose(2, 1, 0).tobytes() for image in images)
        files[f"{part}_y.bin"] = (labels + 1).astype(np.uint8).tobytes()
    tar(folder / "stl10_binary.tar.gz", {f"stl10_binary/{name}": data for name, data in files.items()})


def celeba(folder: Path, parts: Parts) -> None:
    rows, attributes, number = [], [], 0
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for code, (images, labels) in enumerate(parts.values()):
            for image, label in zip(images, labels, strict=True):
                number += 1
                archive.writestr(f"img_align_celeba/{number:06d}.jpg", png(image))
                rows.append(f"{number:06d}.jpg {code}")
                attributes.append(f"{number:06d}.jpg -1 {' 1' if label else '-1'}")
    (folder / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    (folder / "list_attr_celeba.txt").write_text(f"{number}\nBald Smiling \n" + "\n".join(attributes) + "\n")


def flowers102(folder: Path, parts: Parts) -> None:
    from scipy.io import savemat

    files, classes, ids, number = {}, [], {}, 0
    for code, (images, labels) in zip(("trnid", "valid", "tstid"), parts.values(), strict=True):
        ids[code] = np.arange(number + 1, number + len(images) + 1)[None]
        for image, label in zip(images, labels, strict=True):
            number += 1
            files[f"jpg/image_{number:05d}.jpg"] = png(image)
            classes.append(label + 1)
    tar(folder / "102flowers.tgz", dict(reversed(files.items())))
    savemat(folder / "imagelabels.mat", {"labels": np.array(classes)[None]})
    savemat(folder / "setid.mat", ids)


# What each holds, and the function that writes it.
IMAGES: dict[str, Parts] = {
    "mnist": _parts((28, 28, 1), 10, train=12, test=5),
    "fashion_mnist": _parts((28, 28, 1), 10, train=7, test=4),
    "cifar10": _parts((32, 32, 3), 10, train=10, test=3),
    "cifar100": _parts((32, 32, 3), 100, train=6, test=3),
    "svhn": _parts((32, 32, 3), 10, train=8, test=4),
    "stl10": _parts((96, 96, 3), 10, train=3, test=2),
    "celeba": _parts((64, 64, 3), 2, train=4, validation=2, test=3),
    "flowers102": _parts((64, 64, 3), 102, train=3, validation=2, test=4),
}
WRITERS = {
    "mnist": mnist, "fashion_mnist": mnist, "cifar10": cifar10, "cifar100": cifar100, "svhn": svhn, "stl10": stl10,
    "celeba": celeba, "flowers102": flowers102,
}  # fmt: skip

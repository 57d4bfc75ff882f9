"""Sets in files: saved samples, folders of PNG files, and features that were computed before.

A `.npz` file may hold any parts of a set (`metrics.metric`), under their own names; uint8 images also as `images` or
`arr_0`, labels as `arr_1` (as the reference batches of guided-diffusion do), and `logits` in the place of
probabilities. `facts` is JSON text: what the file says of itself, with the kind of its features under "kind".
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from diffusion_core.common.errors import DuetError
from diffusion_core.files.atomic import write_atomically
from diffusion_core.files.safe_read import file_errors, open_npz, open_regular, parse_json
from diffusion_core.metrics.metric import ARRAY_NAMES, FEATURE_ARRAYS, FeatureKind, SampleSet

__all__ = ["join", "read_sample_set", "write_features"]

_ALSO = {"pictures": "images", "arr_0": "images", "arr_1": "labels", "logits": "probabilities"}


def read_sample_set(path: str | Path) -> SampleSet:
    """The set in a file, a folder of PNG files, or a run.

    Labels that are all 0, of a file that does not say that its samples are conditional, are no classes and left out.

    Raises:
        DuetError: there is none, or it is not as said above.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / "samples" / "samples.npz", path / "samples.npz"]
        found = next((file for file in files if file.is_file()), None)
        return _from_file(found) if found else _from_folder(path)
    return _from_file(path)


def join(sources: Sequence[SampleSet]) -> SampleSet:
    """Several sets as one, in their order, with the parts that all of them have.

    Raises:
        DuetError: they do not fit together.
    """
    if len(sources) == 1:
        return sources[0]
    first = sources[0]
    if any(source.kind != first.kind for source in sources):
        raise DuetError("samples: the sets have features of different kinds, which do not belong together")
    parts = {}
    for name in first.arrays:
        arrays = [source.arrays[name] for source in sources if name in source.arrays]
        if len(arrays) < len(sources):
            continue
        if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
            shapes = ", ".join(str(array.shape[1:]) for array in arrays)
            raise DuetError(f"samples: {name} of shapes {shapes} were given; all sets must be of one shape")
        parts[name] = np.concatenate(arrays)
    return SampleSet(parts, {"count": sum(map(len, sources)), "sets": [dict(s.facts) for s in sources]}, first.kind)


def write_features(path: Path, source: SampleSet) -> None:
    """Write a set without its images, for `read_sample_set` to read where the features cannot be computed."""
    parts = {name: array for name, array in source.arrays.items() if name in (*FEATURE_ARRAYS, "labels")}
    kind = source.kind and source.kind.plain
    facts = {"source": dict(source.facts), "kind": kind, "conditional": "labels" in parts, "classes": source.classes}
    buffer = io.BytesIO()
    np.savez(buffer, **parts, facts=np.array(json.dumps(facts)))
    write_atomically(path, buffer.getvalue())


def _from_file(path: Path) -> SampleSet:
    with open_npz(path, "a file of samples or features") as file:
        arrays = dict(file)
        facts = parse_json(str(arrays.pop("facts", "{}")))
        kind = facts.pop("kind", None)
        kind, classes = kind and FeatureKind(**kind), tuple(facts.pop("classes", ()))
    parts = {_ALSO.get(name, name): array for name, array in arrays.items() if _ALSO.get(name, name) in ARRAY_NAMES}
    if "logits" in arrays:
        parts["probabilities"] = softmax(arrays["logits"].astype(np.float64), axis=1)
    if not set(parts) - {"labels"}:
        names = ", ".join(arrays) or "nothing"
        raise DuetError(f"{path}: it holds {names}; there must be one of images, {', '.join(FEATURE_ARRAYS)}")
    _check(path, parts)
    if "labels" in parts and not facts.get("conditional") and not parts["labels"].any():
        del parts["labels"]
    if kind is None and set(parts) & set(FEATURE_ARRAYS):
        widths = {name: array.shape[1] for name, array in parts.items() if name in FEATURE_ARRAYS}
        kind = FeatureKind("given", {"kind": "given", "width": widths})
    if "source" in facts:  # features that `write_features` wrote are of the images that they were computed from
        return SampleSet(parts, facts["source"], kind, classes)
    own = {"name": path.stem, "count": len(next(iter(parts.values()))), "sha256": _hash(parts)}
    return SampleSet(parts, own | ({"made": facts} if facts else {}), kind, classes)


def _from_folder(path: Path) -> SampleSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".png")
    if not files:
        raise DuetError(f"{path}: it is no run with samples/samples.npz, and no folder with PNG files")
    images: NDArray[np.uint8] | None = None
    for k, file in enumerate(files):
        with file_errors(file, "it cannot be read"), open_regular(file), Image.open(file) as image:
            mode, image = image.mode, np.asarray(image)
        if mode not in ("L", "RGB"):
            raise DuetError(f"{file}: its mode is {mode}; samples must be grey or red, green and blue, of 8 bits")
        image = image.reshape(*image.shape[:2], -1)
        if images is None:
            images = np.empty((len(files), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise DuetError(f"{file}: it is {image.shape} (h, w, c) and {files[0].name} {images.shape[1:]}")
        images[k] = image
    parts = {"images": images}
    return SampleSet(parts, {"name": path.name, "count": len(files), "sha256": _hash(parts)})


def _check(path: Path, parts: dict[str, NDArray]) -> None:
    for name, array in parts.items():
        if name == "images":
            fits, what = array.dtype == np.uint8 and array.ndim == 4, "uint8 with shape (N, H, W, C)"
        elif name == "labels":
            fits, what = np.issubdtype(array.dtype, np.integer) and array.ndim == 1, "whole numbers with shape (N,)"
        else:
            fits, what = np.issubdtype(array.dtype, np.floating) and array.ndim == 2, "floating with shape (N, D)"
        if not fits or 0 in array.shape:
            raise DuetError(f"{path}: its {name} are {array.dtype} with shape {array.shape}; they must be {what}")
    if len({len(array) for array in parts.values()}) > 1:
        counts = ", ".join(f"{len(array)} {name}" for name, array in parts.items())
        raise DuetError(f"{path}: it holds {counts}; there must be as many of each")


def _hash(parts: dict[str, Any]) -> str:
    """Of the images where there are any, else of the features."""
    digest = hashlib.sha256()
    for name in ("images",) if "images" in parts else sorted(parts):
        array = np.ascontiguousarray(parts[name])
        key = "pictures" if name == "images" else name  # hashes in existing files depend on this word
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()

"""Sets in files: saved samples, folders of PNG files, and features that were computed before.

A `.npz` file may hold any parts of a set (`metrics.metric`), under their own names; uint8 pictures also as `images` or
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
from diffusion_core.files.safe_read import open_npz, open_regular, parse_json, reading
from diffusion_core.metrics.metric import OF_FEATURES, PARTS, FeatureKind, Source

__all__ = ["join", "read_source", "write_features"]

_ALSO = {"images": "pictures", "arr_0": "pictures", "arr_1": "labels", "logits": "probabilities"}


def read_source(path: str | Path) -> Source:
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


def join(sources: Sequence[Source]) -> Source:
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
    for name in first.parts:
        arrays = [source.parts[name] for source in sources if name in source.parts]
        if len(arrays) < len(sources):
            continue
        if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
            shapes = ", ".join(str(array.shape[1:]) for array in arrays)
            raise DuetError(f"samples: {name} of shapes {shapes} were given; all sets must be of one shape")
        parts[name] = np.concatenate(arrays)
    return Source(parts, {"count": sum(map(len, sources)), "sets": [dict(s.facts) for s in sources]}, first.kind)


def write_features(path: Path, source: Source) -> None:
    """Write a set without its pictures, for `read_source` to read where the features cannot be computed."""
    parts = {name: array for name, array in source.parts.items() if name in (*OF_FEATURES, "labels")}
    kind = source.kind and source.kind.plain
    facts = {"source": dict(source.facts), "kind": kind, "conditional": "labels" in parts, "classes": source.classes}
    buffer = io.BytesIO()
    np.savez(buffer, **parts, facts=np.array(json.dumps(facts)))
    write_atomically(path, buffer.getvalue())


def _from_file(path: Path) -> Source:
    with open_npz(path, "a file of samples or features") as file:
        arrays = dict(file)
        facts = parse_json(str(arrays.pop("facts", "{}")))
        kind = facts.pop("kind", None)
        kind, classes = kind and FeatureKind(**kind), tuple(facts.pop("classes", ()))
    parts = {_ALSO.get(name, name): array for name, array in arrays.items() if _ALSO.get(name, name) in PARTS}
    if "logits" in arrays:
        parts["probabilities"] = softmax(arrays["logits"].astype(np.float64), axis=1)
    if not set(parts) - {"labels"}:
        names = ", ".join(arrays) or "nothing"
        raise DuetError(f"{path}: it holds {names}; there must be one of images, {', '.join(OF_FEATURES)}")
    _check(path, parts)
    if "labels" in parts and not facts.get("conditional") and not parts["labels"].any():
        del parts["labels"]
    if kind is None and set(parts) & set(OF_FEATURES):
        widths = {name: array.shape[1] for name, array in parts.items() if name in OF_FEATURES}
        kind = FeatureKind("given", {"kind": "given", "width": widths})
    if "source" in facts:  # features that `write_features` wrote are of the pictures that they were computed from
        return Source(parts, facts["source"], kind, classes)
    own = {"name": path.stem, "count": len(next(iter(parts.values()))), "sha256": _hash(parts)}
    return Source(parts, own | ({"made": facts} if facts else {}), kind, classes)


def _from_folder(path: Path) -> Source:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".png")
    if not files:
        raise DuetError(f"{path}: it is no run with samples/samples.npz, and no folder with PNG files")
    pictures: NDArray[np.uint8] | None = None
    for k, file in enumerate(files):
        with reading(file, "it cannot be read"), open_regular(file), Image.open(file) as image:
            mode, picture = image.mode, np.asarray(image)
        if mode not in ("L", "RGB"):
            raise DuetError(f"{file}: its mode is {mode}; samples must be grey or red, green and blue, of 8 bits")
        picture = picture.reshape(*picture.shape[:2], -1)
        if pictures is None:
            pictures = np.empty((len(files), *picture.shape), np.uint8)
        if picture.shape != pictures.shape[1:]:
            raise DuetError(f"{file}: it is {picture.shape} (h, w, c) and {files[0].name} {pictures.shape[1:]}")
        pictures[k] = picture
    parts = {"pictures": pictures}
    return Source(parts, {"name": path.name, "count": len(files), "sha256": _hash(parts)})


def _check(path: Path, parts: dict[str, NDArray]) -> None:
    for name, array in parts.items():
        if name == "pictures":
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
    """Of the pictures where there are any, else of the features."""
    digest = hashlib.sha256()
    for name in ("pictures",) if "pictures" in parts else sorted(parts):
        array = np.ascontiguousarray(parts[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
